//! Every statement on the outbox table, built once from its name and what is to be read from.
//!
//! Few texts and no values in them: each is prepared once in each connection. Times are compared as microseconds, which
//! no date is too far away for, unlike `unix_timestamp`. `CAST … AS SIGNED` makes one type of every kind of number.

use std::sync::Arc;

use super::history::History;
use crate::config::{OnSent, TableName};
use crate::store::leases::shares_table;
use crate::store::migrate::quoted;
use crate::store::source::{Source, Target};
use crate::store::{BACKLOG_CAP, INLINE_PAYLOAD_BYTES, SCAN_HORIZON};

/// Number rows that have none, one relay at a time: two statements at once would give numbers in turns
/// (`innodb_autoinc_lock_mode = 2`), and so out of order.
#[derive(Debug)]
pub(super) struct Numbering {
    /// Locks the row that stands for it, or fails at once.
    pub(super) lock: Arc<str>,
    /// Whether that row is there.
    pub(super) see_lock: Arc<str>,
    /// Makes it.
    pub(super) make_lock: Arc<str>,
    pub(super) in_order: Arc<str>,
    pub(super) as_they_come: Arc<str>,
}

/// Statement texts.
#[derive(Debug)]
pub(super) struct Statements {
    pub(super) head: Arc<str>,
    pub(super) head_shares: Arc<str>,
    pub(super) scan: Arc<str>,
    pub(super) scan_shares: Arc<str>,
    pub(super) probe: Arc<str>,
    pub(super) fetch: Arc<str>,
    /// Run together; the first one tells how many rows there were.
    pub(super) mark: Vec<Arc<str>>,
    /// Run together; the last one tells how many rows took it.
    pub(super) failures: Vec<Arc<str>>,
    /// Find and remove the errors that are noted of rows that are sent or gone; `None`: none are noted.
    pub(super) history: Option<History>,
    /// Which entries of the relay's own tables belong to rows that are there; `None`: they are not used.
    pub(super) tidy_look: Option<Arc<str>>,
    /// Refusals whose row has no number any more, as they were written while it was marked; `None`: there are no numbers.
    pub(super) numberless_failures: Option<Arc<str>>,
    /// Removes entries of the relay's own tables.
    pub(super) free: Vec<Arc<str>>,
    /// `None`: rows have a number of their own.
    pub(super) number: Option<Numbering>,
    pub(super) dead_keys: Arc<str>,
    /// `None`: nothing tells when a row was sent.
    pub(super) purge_window: Option<Arc<str>>,
    pub(super) purge: Arc<str>,
    pub(super) backlog: Arc<str>,
    pub(super) source: Source,
    /// The table of the shares.
    pub(super) shares: String,
    /// For a person: which columns hold what; `None`: every one is under its own name.
    pub(super) columns: Option<String>,
    /// For a person: what works, but could be mended.
    pub(super) advice: Vec<String>,
}

/// The ids of a JSON array, as a table. `STRAIGHT_JOIN` behind it: each row is looked up by its id, whatever the planner
/// thinks of a table it knows nothing of.
pub(super) const LISTED: &str = "JSON_TABLE(?, '$[*]' COLUMNS (id bigint PATH '$')) AS w STRAIGHT_JOIN";

/// The share of a row: equal to `share_of`. UTF-8 whatever the character set of the column.
const SHARE: &str =
    "AND find_in_set(ord(unhex(left(sha2(convert(coalesce(o.ordering_key, o.id) USING utf8mb4), 256), 2))) % ?, ?) > 0";

/// The highest id there is for the relay.
pub(super) const LAST_ID: i64 = i64::MAX;

/// Microseconds to wait.
pub(super) const DUE: &str = "coalesce(timestampdiff(MICROSECOND, now(6), \
greatest(coalesce(o.available_at, o.next_attempt_at), coalesce(o.next_attempt_at, o.available_at))), 0)";

/// Microseconds since 1970.
pub(super) const CREATED: &str = "timestampdiff(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', o.created_at)";
pub(super) const AGE: &str = "timestampdiff(MICROSECOND, o.created_at, now(6))";

/// The standard table. With an `index` on `(sent_at, dead_at)`, reads of unsent rows are bound to it: statistics from a
/// time of backlog would have the planner walk over every row ever sent.
pub(super) fn standard(table: &TableName, index: Option<&str>) -> Source {
    let indexed = match index {
        Some(index) => format!("{table} AS o FORCE INDEX ({})", quoted(index)),
        None => format!("{table} AS o"),
    };
    Source {
        dead: indexed.clone(),
        ..Source::standard(table, &indexed)
    }
}

impl Statements {
    pub(super) fn new(table: &TableName, on_sent: OnSent, source: Source) -> Self {
        let (open, target) = (source.open(), &source.target);
        let Target { table: t, key, .. } = target;
        let sent = target.sent.as_deref().unwrap_or_default();
        let free = free(target);
        let mut mark = vec![mark(target, on_sent)];
        mark.extend(free.iter().cloned());
        Self {
            head: head(&source, ""),
            head_shares: head(&source, SHARE),
            scan: scan(&source, ""),
            scan_shares: scan(&source, SHARE),
            probe: format!(
                "SELECT {}, o.ordering_key, {DUE}, o.exchange, {open} FROM {LISTED} {} ON o.id = w.id ORDER BY o.id",
                id(),
                source.by_id
            )
            .into(),
            fetch: fetch(&source),
            mark,
            failures: failures(target, &shares_table(table)),
            history: None,
            shares: shares_table(table),
            numberless_failures: target.positions.as_ref().map(|positions| numberless_failures(target, positions)),
            tidy_look: (!free.is_empty()).then(|| tidy_look(target)),
            free,
            number: None,
            dead_keys: dead_keys(&source),
            purge_window: target.can_purge().then(|| {
                format!(
                    "SELECT CAST(o.{key} AS SIGNED), o.{sent} < now(6) - INTERVAL ? MICROSECOND FROM {t} AS o WHERE o.{key} > ?
                     ORDER BY o.{key} LIMIT ?"
                )
                .into()
            }),
            purge: format!(
                "DELETE o FROM {} WHERE o.{sent} < now(6) - INTERVAL ? MICROSECOND",
                listed(target)
            )
            .into(),
            backlog: backlog(&source),
            source,
            columns: None,
            advice: Vec::new(),
        }
    }
}

/// The application's table by row ids.
pub(super) fn listed(target: &Target) -> String {
    let Target {
        table,
        key,
        outbox,
        key_there,
        ..
    } = target;
    match &target.positions {
        None => format!("{LISTED} {table} AS o ON o.{key} = w.id"),
        Some(positions) => format!(
            "{LISTED} {positions} AS p ON p.outbox = {outbox} AND p.position = w.id
             STRAIGHT_JOIN {table} AS o ON o.{key} = {key_there}"
        ),
    }
}

/// Removes what the relay's own tables have of rows, by their ids.
fn free(target: &Target) -> Vec<Arc<str>> {
    let Target { outbox, failures, .. } = target;
    let mut statements: Vec<Arc<str>> = Vec::new();
    if target.bookkeeping.is_none() {
        statements
            .push(format!("DELETE b FROM {LISTED} {failures} AS b ON b.outbox = {outbox} AND b.id = w.id").into());
    }
    if let Some(positions) = &target.positions {
        statements.push(
            format!("DELETE p FROM {LISTED} {positions} AS p ON p.outbox = {outbox} AND p.position = w.id").into(),
        );
    }
    statements
}

/// A page of entries, each with whether its row is there.
fn tidy_look(target: &Target) -> Arc<str> {
    let Target { outbox, failures, .. } = target;
    let has = target.has("e.id");
    let entries = match &target.positions {
        None => {
            format!("SELECT b.id FROM {failures} AS b WHERE b.outbox = {outbox} AND b.id > ? ORDER BY b.id LIMIT ?")
        }
        Some(positions) => format!(
            "SELECT p.position AS id FROM {positions} AS p WHERE p.outbox = {outbox} AND p.position > ? ORDER BY p.position LIMIT ?"
        ),
    };
    format!("SELECT e.id, {has} FROM ({entries}) AS e ORDER BY e.id").into()
}

fn numberless_failures(target: &Target, positions: &str) -> Arc<str> {
    let Target { outbox, failures, .. } = target;
    format!(
        "SELECT b.id FROM {failures} AS b
         WHERE b.outbox = {outbox} AND NOT EXISTS (SELECT 1 FROM {positions} AS p WHERE p.outbox = b.outbox AND p.position = b.id)
         ORDER BY b.id LIMIT ?"
    )
    .into()
}

fn id() -> &'static str {
    "CAST(o.id AS SIGNED)"
}

/// Whole rows, the body last.
fn columns(body: &str, source: &Source) -> String {
    let more = source.more_columns();
    format!(
        "{}, {}, o.exchange, o.routing_key, o.ordering_key, o.type, o.content_type, o.headers, o.properties,
         {CREATED}, {AGE}, {DUE}, CAST(coalesce(o.attempts, 0) AS SIGNED), CAST(octet_length(o.payload) AS SIGNED), {body}{more}",
        id(),
        source.message_id
    )
}

/// Without ids that only `bigint unsigned` has: the relay would take them for negative ones, and could never mark their rows.
fn head(source: &Source, shares: &str) -> Arc<str> {
    let body = format!("CASE WHEN {DUE} <= 0 AND octet_length(o.payload) <= {INLINE_PAYLOAD_BYTES} THEN o.payload END");
    format!(
        "SELECT {} FROM {} WHERE o.id > ? AND o.id <= {LAST_ID} AND {} {shares} ORDER BY o.id LIMIT ?",
        columns(&body, source),
        source.reads,
        source.open()
    )
    .into()
}

/// Bodies, as many as there is room for, and at least one: which, is found by their sizes alone. In no order: MySQL would
/// sort whole rows, and has no room for large ones of its type json.
fn fetch(source: &Source) -> Arc<str> {
    let (by_id, open) = (&source.by_id, source.open());
    format!(
        "SELECT {}
         FROM (SELECT s.id, sum(s.octets) OVER (ORDER BY s.id) <= ? OR row_number() OVER (ORDER BY s.id) = 1 AS fits
               FROM (SELECT o.id, octet_length(o.payload) AS octets
                     FROM {LISTED} {by_id} ON o.id = w.id WHERE {open}) AS s) AS f
         STRAIGHT_JOIN {by_id} ON o.id = f.id",
        columns("CASE WHEN f.fits THEN o.payload END", source)
    )
    .into()
}

fn scan(source: &Source, shares: &str) -> Arc<str> {
    let horizon = SCAN_HORIZON.as_micros();
    format!(
        "SELECT {}, o.ordering_key, {DUE}, o.exchange FROM {}
         WHERE o.id > ? AND o.id <= ? AND {} AND (o.ordering_key IS NOT NULL OR {DUE} <= {horizon}) {shares}
         ORDER BY o.id LIMIT ?",
        id(),
        source.reads,
        source.open()
    )
    .into()
}

/// A row that was given up and then confirmed after all *is* sent: it is no dead letter any more.
fn mark(target: &Target, on_sent: OnSent) -> Arc<str> {
    let listed = listed(target);
    match (on_sent, &target.sent) {
        (OnSent::Mark, Some(sent)) => {
            let now = if target.sent_is_flag { "1" } else { "now(6)" };
            let dead = match &target.bookkeeping {
                Some([.., dead]) => format!(", o.{dead} = NULL"),
                None => String::new(),
            };
            format!("UPDATE {listed} SET o.{sent} = {now}{dead} WHERE {}", target.unsent)
        }
        _ => format!("DELETE o FROM {listed}"),
    }
    .into()
}

/// See [`failures`].
pub(super) const REFUSED: &str = "JSON_TABLE(?, '$[*]' COLUMNS (
             id bigint PATH '$[0]', attempts int PATH '$[1]', error varchar(2000) CHARACTER SET utf8mb4 PATH '$[2]',
             delay bigint PATH '$[3]', share int PATH '$[4]', epoch bigint PATH '$[5]')) AS f";

/// That the lease under which a failure was decided is still its writer's.
pub(super) fn held(outbox: &str, shares: &str) -> String {
    format!(
        "(f.epoch IS NULL OR EXISTS (
               SELECT 1 FROM {shares} AS s WHERE s.outbox = {outbox} AND s.layout = ? AND s.share = f.share
                                             AND s.epoch = f.epoch AND s.owner = ?))"
    )
}

/// An array of `[id, attempts, error, microseconds or null, share or null, epoch or null]`. A failure that was decided
/// under a lease is written only while the lease is its writer's.
fn failures(target: &Target, shares: &str) -> Vec<Arc<str>> {
    let Target {
        outbox,
        failures,
        bookkeeping,
        key,
        table,
        ..
    } = target;
    let held = held(outbox, shares);
    let cut = target.cut("f.error");
    let set = |alias: &str, [attempts, next, error, dead]: [&str; 4]| {
        format!(
            "SET {alias}.{attempts} = f.attempts, {alias}.{error} = {cut},
             {alias}.{next} = CASE WHEN f.delay IS NOT NULL THEN now(6) + INTERVAL f.delay MICROSECOND END,
             {alias}.{dead} = CASE WHEN f.delay IS NULL THEN now(6) END"
        )
    };
    let Some(columns) = bookkeeping else {
        // The first makes room for the second, which counts: of an INSERT that may update, the server's count says little.
        let has = target.has("f.id");
        let set = set("b", ["attempts", "next_attempt_at", "last_error", "dead_at"]);
        return vec![
            format!("INSERT IGNORE INTO {failures} (outbox, id, attempts) SELECT {outbox}, f.id, 0 FROM {REFUSED} WHERE {has} AND {held}").into(),
            format!(
                "UPDATE {REFUSED} STRAIGHT_JOIN {failures} AS b ON b.outbox = {outbox} AND b.id = f.id
         {set}
         WHERE b.dead_at IS NULL AND {has} AND {held}"
            )
            .into(),
        ];
    };
    let [.., dead] = columns;
    let set = set("o", columns.each_ref().map(String::as_str));
    let unsent = target.and_unsent();
    vec![
        format!(
            "UPDATE {REFUSED}
         STRAIGHT_JOIN {table} AS o ON o.{key} = f.id
         {set}
         WHERE o.{dead} IS NULL{unsent}
           AND {held}"
        )
        .into(),
    ]
}

/// Keys are compared by their bytes, whatever the collation of the column.
fn dead_keys(source: &Source) -> Arc<str> {
    format!(
        "SELECT CAST(convert(o.ordering_key USING utf8mb4) AS BINARY) AS k, CAST(min(o.id) AS SIGNED) AS lowest
         FROM {} WHERE {} AND o.ordering_key IS NOT NULL
         GROUP BY k ORDER BY lowest LIMIT ?",
        source.dead,
        source.given_up()
    )
    .into()
}

/// Of rows that the relay numbers, most have no number yet while many wait: all that are there are counted, and what the
/// relay knows of some of them is taken off.
fn backlog(source: &Source) -> Arc<str> {
    if let Some(waiting) = &source.waiting {
        let Target { outbox, failures, .. } = &source.target;
        return format!(
            "SELECT CAST(greatest(CAST(t.total AS SIGNED) - f.retrying - f.dead, 0) AS SIGNED), CAST(f.retrying AS SIGNED), t.oldest,
                    CAST(f.dead AS SIGNED)
             FROM (SELECT count(*) AS total, CAST(max(CASE WHEN {DUE} <= 0 THEN {AGE} END) AS SIGNED) AS oldest
                   FROM (SELECT o.created_at, o.available_at, o.next_attempt_at FROM {waiting} LIMIT {BACKLOG_CAP}) AS o) AS t,
                  (SELECT coalesce(sum(b.dead_at IS NULL), 0) AS retrying, coalesce(sum(b.dead_at IS NOT NULL), 0) AS dead
                   FROM {failures} AS b WHERE b.outbox = {outbox}) AS f"
        )
        .into();
    }
    let (reads, open) = (&source.reads, source.open());
    format!(
        "SELECT CAST(coalesce(sum(attempts <= 0), 0) AS SIGNED), CAST(coalesce(sum(attempts > 0), 0) AS SIGNED),
                CAST(max(CASE WHEN due <= 0 THEN age END) AS SIGNED),
                (SELECT count(*) FROM (SELECT 1 FROM {} WHERE {}
                                       LIMIT {BACKLOG_CAP}) AS dead)
         FROM (SELECT coalesce(o.attempts, 0) AS attempts, {AGE} AS age, {DUE} AS due
               FROM {reads} WHERE {open} ORDER BY o.id LIMIT {BACKLOG_CAP}) AS unsent",
        source.dead,
        source.given_up()
    )
    .into()
}
