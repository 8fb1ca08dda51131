//! Every statement on the outbox table, built once from its name and what is to be read from.

use std::sync::Arc;

use crate::config::{OnSent, TableName};
use crate::store::leases::shares_table;
use crate::store::migrate::quoted;
use crate::store::source::{Source, Target};
use crate::store::{BACKLOG_CAP, INLINE_PAYLOAD_BYTES, SCAN_HORIZON};

/// Number rows that have none.
#[derive(Debug)]
pub(super) struct Numbering {
    /// Up to `?1` of them, as a JSON array.
    pub(super) in_order: Arc<str>,
    pub(super) as_they_come: Arc<str>,
    /// Takes that array.
    pub(super) insert: Arc<str>,
}

/// Statement texts. Lists of ids are one JSON array, so that a text does not change with their number.
#[derive(Debug)]
pub(super) struct Statements {
    pub(super) head: Arc<str>,
    pub(super) open_keys: Arc<str>,
    pub(super) head_of: Arc<str>,
    pub(super) scan: Arc<str>,
    pub(super) probe: Arc<str>,
    pub(super) fetch: Arc<str>,
    /// Run together; the first one tells how many rows there were.
    pub(super) mark: Vec<Arc<str>>,
    /// Run together; the last one tells how many rows took it.
    pub(super) failures: Vec<Arc<str>>,
    /// Removes the errors that are noted of rows, if they are sent or gone; `None`: none are noted.
    pub(super) forget: Option<Arc<str>>,
    /// Which entries of the relay's own tables belong to rows that are there; `None`: they are not used.
    pub(super) tidy_look: Option<Arc<str>>,
    /// Removes entries of the relay's own tables.
    pub(super) free: Vec<Arc<str>>,
    /// `None`: rows have a number of their own.
    pub(super) number: Option<Numbering>,
    pub(super) dead_keys: Arc<str>,
    /// `None`: nothing tells when a row was sent.
    pub(super) purge_window: Option<Arc<str>>,
    pub(super) purge: Arc<str>,
    pub(super) backlog: Arc<str>,
    /// Changes nothing, but fails where nothing could be changed (unlike `BEGIN IMMEDIATE`).
    pub(super) touch: Arc<str>,
    pub(super) source: Source,
    /// The table of the shares.
    pub(super) shares: String,
    /// For a person: which columns hold what; `None`: every one is under its own name.
    pub(super) columns: Option<String>,
    /// For a person: what works, but could be mended.
    pub(super) advice: Vec<String>,
}

pub(super) const LISTED: &str = "o.id IN (SELECT value FROM json_each(?1))";

/// Seconds since 1970. `julianday`, as older versions have no fractions in `unixepoch`.
pub(super) const NOW: &str = "((julianday('now') - 2440587.5) * 86400.0)";
const NOW_TEXT: &str = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')";

/// The standard table. With `unsent_index`, reads of unsent rows are bound to it: statistics are as old as the
/// application's last `ANALYZE`, and those from a time of backlog would have the planner walk over every row ever sent.
pub(super) fn standard(table: &TableName, unsent_index: Option<&str>) -> Source {
    let indexed = match unsent_index {
        Some(index) => format!("{table} AS o INDEXED BY {}", quoted(index)),
        None => format!("{table} AS o"),
    };
    Source::standard(table, &indexed)
}

impl Statements {
    pub(super) fn new(table: &TableName, on_sent: OnSent, source: Source) -> Self {
        let (open, target) = (source.open(), &source.target);
        let Target { table: t, key, .. } = target;
        let (unsent, every) = (&source.reads, &source.by_id);
        let listed = format!("{LISTED} AND {open}");
        let free = free(target);
        let mut mark = vec![mark(target, on_sent)];
        mark.extend(free.iter().cloned());
        Self {
            head: page(unsent, &format!("o.id > ?1 AND {open}"), "LIMIT ?2", true, &source),
            head_of: page(every, &listed, "", true, &source),
            fetch: page(every, &listed, "", false, &source),
            open_keys: format!(
                "SELECT o.id, CAST(o.ordering_key AS TEXT) FROM {unsent} WHERE o.id > ?1 AND {open} ORDER BY o.id LIMIT ?2"
            )
            .into(),
            scan: scan(unsent, &open),
            probe: format!(
                "SELECT o.id, CAST(o.ordering_key AS TEXT), {}, o.exchange, {open} FROM {every} WHERE {LISTED} ORDER BY o.id",
                due()
            )
            .into(),
            mark,
            failures: vec![failures(target, &shares_table(table))],
            forget: None,
            shares: shares_table(table),
            tidy_look: (!free.is_empty()).then(|| tidy_look(target)),
            free,
            number: None,
            dead_keys: dead_keys(&source),
            purge_window: target.can_purge().then(|| purge_window(target)),
            purge: purge(target, false),
            backlog: backlog(&source),
            touch: touch(target, t, key).into(),
            source,
            columns: None,
            advice: Vec::new(),
        }
    }
}

fn touch(target: &Target, table: &str, key: &str) -> String {
    match &target.sent {
        Some(sent) => format!("UPDATE {table} SET {sent} = {sent} WHERE {key} IS NULL"),
        // A null key is none of the relay's.
        None => format!("DELETE FROM {table} WHERE {key} IS NULL AND 0"),
    }
}

/// That a row of the application's table is among those listed. The plus keeps from the index of keys, which begins with the
/// outbox: all of its numbers would be walked over.
pub(super) fn target_listed(target: &Target) -> String {
    let Target { key, outbox, .. } = target;
    match &target.positions {
        None => format!("o.{key} IN (SELECT value FROM json_each(?1))"),
        Some(positions) => format!(
            "o.{key} IN (SELECT p.row_key FROM {positions} AS p
                         WHERE +p.outbox = {outbox} AND p.position IN (SELECT value FROM json_each(?1)))"
        ),
    }
}

/// Removes what the relay's own tables have of rows, by their ids.
fn free(target: &Target) -> Vec<Arc<str>> {
    let Target { outbox, failures, .. } = target;
    let listed = |column: &str| format!("{column} IN (SELECT value FROM json_each(?1))");
    let mut statements: Vec<Arc<str>> = Vec::new();
    if target.bookkeeping.is_none() {
        statements.push(format!("DELETE FROM {failures} WHERE outbox = {outbox} AND {}", listed("id")).into());
    }
    if let Some(positions) = &target.positions {
        statements.push(
            format!(
                "DELETE FROM {positions} WHERE +outbox = {outbox} AND {}",
                listed("position")
            )
            .into(),
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
            format!("SELECT b.id FROM {failures} AS b WHERE b.outbox = {outbox} AND b.id > ?1 ORDER BY b.id LIMIT ?2")
        }
        Some(positions) => format!(
            "SELECT p.position AS id FROM {positions} AS p WHERE p.outbox = {outbox} AND p.position > ?1 ORDER BY p.position LIMIT ?2"
        ),
    };
    format!("SELECT e.id, {has} FROM ({entries}) AS e ORDER BY e.id").into()
}

/// A time as seconds since 1970, however it is written: ISO 8601 text, or a number of seconds, or of milliseconds
/// where it would be beyond the year 5000; the number may have become text in a `TEXT` column. Null where it is no
/// time at all, which is then as good as not set: the row must not be lost.
pub(super) fn epoch(column: &str) -> String {
    let number = format!(
        "CASE WHEN typeof({column}) = 'text' AND {column} GLOB '*[^0-9.]*' \
         THEN (julianday({column}) - 2440587.5) * 86400.0 ELSE {column} + 0.0 END"
    );
    format!("(SELECT CASE WHEN n > 1e11 THEN n / 1000.0 ELSE n END FROM (SELECT {number} AS n))")
}

pub(super) fn due() -> String {
    let (available, next) = (epoch("o.available_at"), epoch("o.next_attempt_at"));
    format!("(max(coalesce({available}, 0), coalesce({next}, 0)) - {NOW})")
}

/// Whole rows; numbers in text columns become text, and blobs stay blobs.
fn page(from: &str, filter: &str, limit: &str, bounded: bool, source: &Source) -> Arc<str> {
    let (more, names) = (source.more_columns(), source.more_names());
    let payload = "CASE typeof(payload) WHEN 'integer' THEN CAST(payload AS TEXT) WHEN 'real' THEN CAST(payload AS TEXT) \
                   ELSE payload END";
    let inline = match bounded {
        true => format!("CASE WHEN due <= 0 AND octets <= {INLINE_PAYLOAD_BYTES} THEN {payload} END"),
        // A fetch is for bodies, as many as there is room for, and at least one.
        false => format!(
            "CASE WHEN sum(octets) OVER (ORDER BY id) <= ?2 OR row_number() OVER (ORDER BY id) = 1 THEN {payload} END"
        ),
    };
    let text = |column: &str| format!("CAST(o.{column} AS TEXT) AS {column}");
    let texts: Vec<String> = [
        "exchange",
        "routing_key",
        "ordering_key",
        "type",
        "content_type",
        "headers",
        "properties",
    ]
    .map(text)
    .to_vec();
    format!(
        "SELECT id, message_id, exchange, routing_key, ordering_key, type, content_type, headers, properties,
                created, {NOW} - created, due, attempts, octets, {inline}{names}
         FROM (SELECT o.id, o.message_id, {}, {} AS created, {} AS due, CAST(coalesce(o.attempts, 0) AS INTEGER) AS attempts,
                      octet_length(o.payload) AS octets, o.payload{more}
               FROM {from} WHERE {filter} ORDER BY o.id {limit})
         ORDER BY id",
        texts.join(", "),
        epoch("o.created_at"),
        due(),
    )
    .into()
}

fn scan(from: &str, open: &str) -> Arc<str> {
    let (due, horizon) = (due(), SCAN_HORIZON.as_secs());
    format!(
        "SELECT o.id, CAST(o.ordering_key AS TEXT), {due}, o.exchange FROM {from}
         WHERE o.id > ?1 AND o.id <= ?2 AND {open} AND (o.ordering_key IS NOT NULL OR {due} <= {horizon})
         ORDER BY o.id LIMIT ?3"
    )
    .into()
}

/// A row that was given up and then confirmed after all *is* sent: it is no dead letter any more.
fn mark(target: &Target, on_sent: OnSent) -> Arc<str> {
    let (table, listed) = (&target.table, target_listed(target));
    match (on_sent, &target.sent) {
        (OnSent::Mark, Some(sent)) => {
            let now = match (target.sent_is_flag, target.sent_is_number) {
                (true, _) => "1",
                (_, true) => "CAST(strftime('%s', 'now') AS INTEGER)",
                _ => NOW_TEXT,
            };
            let dead = match &target.bookkeeping {
                Some([.., dead]) => format!(", {dead} = NULL"),
                None => String::new(),
            };
            format!(
                "UPDATE {table} AS o SET {sent} = {now}{dead} WHERE {listed}{}",
                target.and_unsent()
            )
        }
        _ => format!("DELETE FROM {table} AS o WHERE {listed}"),
    }
    .into()
}

/// See [`failures`].
pub(super) const REFUSED: &str =
    "(SELECT value ->> 0 AS id, value ->> 1 AS attempts, value ->> 2 AS error, value ->> 3 AS delay,
                      value ->> 4 AS share, value ->> 5 AS epoch
               FROM json_each(?1)) AS f";

/// That the lease under which a failure was decided is still that of `?3`, among `?2` shares.
pub(super) fn held(outbox: &str, shares: &str) -> String {
    format!(
        "(f.epoch IS NULL OR EXISTS (
               SELECT 1 FROM {shares} AS s WHERE s.outbox = {outbox} AND s.layout = ?2 AND s.share = f.share
                                             AND s.epoch = f.epoch AND s.owner = ?3))"
    )
}

/// `?1`: an array of `[id, attempts, error, seconds or null, share or null, epoch or null]`. A failure that was decided
/// under a lease is written only while the lease is its writer's.
fn failures(target: &Target, shares: &str) -> Arc<str> {
    let Target {
        table,
        key,
        outbox,
        failures,
        ..
    } = target;
    let held = held(outbox, shares);
    let later = "CASE WHEN f.delay IS NOT NULL
                    THEN strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('%.3f seconds', f.delay)) END";
    let given_up = format!("CASE WHEN f.delay IS NULL THEN {NOW_TEXT} END");
    match &target.bookkeeping {
        Some([attempts, next, error, dead]) => format!(
            "UPDATE {table} AS o SET {attempts} = f.attempts, {error} = f.error,
                {next} = {later},
                {dead} = {given_up}
         FROM {REFUSED}
         WHERE o.{key} = f.id AND o.{dead} IS NULL{}
           AND {held}",
            target.and_unsent()
        ),
        None => format!(
            "INSERT INTO {failures} AS b (outbox, id, attempts, last_error, next_attempt_at, dead_at)
             SELECT {outbox}, f.id, f.attempts, f.error, {later}, {given_up}
             FROM {REFUSED}
             WHERE {} AND {held}
             ON CONFLICT (outbox, id) DO UPDATE SET attempts = excluded.attempts, last_error = excluded.last_error,
                    next_attempt_at = excluded.next_attempt_at, dead_at = excluded.dead_at
             WHERE b.dead_at IS NULL",
            target.has("f.id")
        ),
    }
    .into()
}

fn dead_keys(source: &Source) -> Arc<str> {
    format!(
        "SELECT CAST(o.ordering_key AS TEXT) AS k, min(o.id) FROM {}
         WHERE {} AND o.ordering_key IS NOT NULL
         GROUP BY k ORDER BY 2 LIMIT ?1",
        source.dead,
        source.given_up()
    )
    .into()
}

/// `keep_last`: not the row with the highest id, which SQLite would give again, below those that were read already.
pub(super) fn purge(target: &Target, keep_last: bool) -> Arc<str> {
    let Target { table, key, .. } = target;
    let (listed, sent) = (target_listed(target), target.sent.as_deref().unwrap_or_default());
    let sent = epoch(&format!("o.{sent}"));
    let keep = match keep_last {
        true => format!(" AND o.{key} < (SELECT max(x.{key}) FROM {table} AS x)"),
        false => String::new(),
    };
    format!("DELETE FROM {table} AS o WHERE {listed} AND {sent} < {NOW} - ?2{keep}").into()
}

/// `?1` where the window begins, `?2` its size, `?3` the least age in seconds.
fn purge_window(target: &Target) -> Arc<str> {
    let Target { table, key, .. } = target;
    let sent = target.sent.as_deref().unwrap_or_default();
    format!(
        "SELECT count(*), max(id), count(*) FILTER (WHERE sent >= {NOW} - ?3),
                json_group_array(id) FILTER (WHERE sent < {NOW} - ?3)
         FROM (SELECT o.{key} AS id, {} AS sent FROM {table} AS o WHERE o.{key} > ?1 ORDER BY o.{key} LIMIT ?2)",
        epoch(&format!("o.{sent}"))
    )
    .into()
}

/// Of rows that the relay numbers, most have no number yet while many wait: all that are there are counted, and what the
/// relay knows of some of them is taken off.
fn backlog(source: &Source) -> Arc<str> {
    let (created, due) = (epoch("o.created_at"), due());
    if let Some(waiting) = &source.waiting {
        let Target { outbox, failures, .. } = &source.target;
        return format!(
            "SELECT max(t.total - f.retrying - f.dead, 0), f.retrying, t.oldest, f.dead
             FROM (SELECT count(*) AS total, {NOW} - min({created}) FILTER (WHERE {due} <= 0) AS oldest
                   FROM (SELECT o.created_at, o.available_at, o.next_attempt_at FROM {waiting} LIMIT {BACKLOG_CAP}) AS o) AS t,
                  (SELECT count(*) FILTER (WHERE b.dead_at IS NULL) AS retrying,
                          count(*) FILTER (WHERE b.dead_at IS NOT NULL) AS dead
                   FROM {failures} AS b WHERE b.outbox = {outbox}) AS f"
        )
        .into();
    }
    format!(
        "SELECT count(*) FILTER (WHERE attempts <= 0), count(*) FILTER (WHERE attempts > 0),
                {NOW} - min(created) FILTER (WHERE due <= 0),
                (SELECT count(*) FROM (SELECT 1 FROM {}
                                       WHERE {} LIMIT {BACKLOG_CAP}))
         FROM (SELECT coalesce(o.attempts, 0) AS attempts, {created} AS created, {due} AS due
               FROM {} WHERE {} ORDER BY o.id LIMIT {BACKLOG_CAP})",
        source.dead,
        source.given_up(),
        source.reads,
        source.open()
    )
    .into()
}
