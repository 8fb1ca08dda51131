//! Every statement on the outbox table, built once from its name and what is to be read from.
//!
//! Few texts and no literals in them: each is prepared once in each connection. `o.` stands before every column, as an
//! output name would otherwise win in `ORDER BY`, and lose the index with it.

use std::sync::Arc;

use super::source::{above, is_gone};
use crate::config::{OnSent, TableName};
use crate::store::layout::Layout;
use crate::store::leases::shares_table;
use crate::store::source::{Source, Target};
use crate::store::{BACKLOG_CAP, INLINE_PAYLOAD_BYTES, SCAN_HORIZON};

/// How the size of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    /// `text`, `bytea`: the server knows it without reading a large value (1 µs for any size).
    OfColumn,
    /// `json`, `jsonb`: only as text, which reads the value (36 and 145 µs for 100 kB; nothing to notice below 1 kB).
    OfText,
}

/// Number rows that have none.
#[derive(Debug)]
pub(super) struct Numbering {
    pub(super) in_order: Arc<str>,
    pub(super) as_they_come: Arc<str>,
}

/// Statement texts.
#[derive(Debug)]
pub(super) struct Statements {
    pub(super) size: Size,
    pub(super) head: Arc<str>,
    pub(super) head_shares: Arc<str>,
    pub(super) scan: Arc<str>,
    pub(super) scan_shares: Arc<str>,
    pub(super) probe: Arc<str>,
    pub(super) fetch: Arc<str>,
    pub(super) mark: Arc<str>,
    pub(super) failures: Arc<str>,
    /// Removes the errors that are noted of rows, if they are sent or gone; `None`: none are noted.
    pub(super) forget: Option<Arc<str>>,
    pub(super) dead_keys: Arc<str>,
    /// `None`: nothing tells when a row was sent.
    pub(super) purge: Option<Arc<str>>,
    /// Removes what the relay's own tables hold of rows that are gone; `None`: they are not used.
    pub(super) tidy: Option<Arc<str>>,
    /// `None`: rows have a number of their own.
    pub(super) number: Option<Numbering>,
    pub(super) backlog: Arc<str>,
    pub(super) source: Source,
    /// The table of the shares.
    pub(super) shares: String,
    /// For a person: which columns hold what; `None`: every one is under its own name.
    pub(super) columns: Option<String>,
    /// For a person: what works, but could be mended.
    pub(super) advice: Vec<String>,
}

/// Unsent rows. The last line says nothing new, but keeps the planner on the partial index whatever the statistics
/// say: it follows from `sent_at IS NULL`, so that a scan of the partial index drops it, while on any other index its
/// (only estimated) cost counts for every row. Without it, and with statistics from before a backlog was sent, a
/// generic plan walks the primary key over every row ever sent (600,000 rows: 330 ms instead of 0.1).
pub(super) fn open(source: &Source) -> String {
    match source.unsent.as_str() {
        "" => source.open(),
        unsent => format!(
            "{}
AND ({unsent} OR to_tsvector('pg_catalog.simple'::regconfig, o.id::text) IS NULL)",
            source.open()
        ),
    }
}

/// Dead letters. The last line says nothing new, but keeps the planner on their partial index; see [`open`].
pub(super) fn dead(source: &Source) -> String {
    format!(
        "{}
AND (o.dead_at IS NOT NULL OR to_tsvector('pg_catalog.simple'::regconfig, o.id::text) IS NULL)",
        source.given_up()
    )
}

/// The share of a row: equal to `share_of`. UTF-8 whatever the encoding of the database.
const SHARE: &str = "get_byte(sha256(convert_to(coalesce(o.ordering_key, o.id::text), 'UTF8')), 0)";

/// Seconds to wait, as a float, in which `infinity` is a number like others (intervals cannot hold it).
pub(super) const DUE: &str = "coalesce(date_part('epoch', greatest(o.available_at, o.next_attempt_at)) \
- date_part('epoch', clock_timestamp()), 0)";

pub(super) const AGE: &str = "date_part('epoch', clock_timestamp()) - date_part('epoch', o.created_at)";

/// A mark or a purge that is lost in a crash of the server only shows the row once more, so it need not wait for the
/// disk. A transaction-local setting inside the statement itself also holds behind a pooler; as a subquery it is
/// evaluated once, before the first row.
const RELAXED: &str = "(SELECT set_config('synchronous_commit', 'off', true)) = 'off'";

/// Numbers must be on disk before anybody works by them, whatever the server's setting: after a crash a number that is
/// forgotten would be given to another row, and the confirm of the first one would mark the second.
pub(super) const DURABLE: &str = "(SELECT set_config('synchronous_commit', \
coalesce(nullif(current_setting('synchronous_commit'), 'off'), 'on'), true)) <> 'off'";

impl Statements {
    pub(super) fn new(
        table: &TableName,
        on_sent: OnSent,
        size: Size,
        source: Source,
        number: Option<Numbering>,
    ) -> Self {
        let shares = |n: u32| format!("AND {SHARE} % ${n} = ANY(${})", n + 1);
        let (open, target) = (open(&source), &source.target);
        Self {
            size,
            head: page(&source, size, &format!("o.id > $1 AND {open}"), "LIMIT $2"),
            head_shares: page(
                &source,
                size,
                &format!("o.id > $1 AND {open} {}", shares(3)),
                "LIMIT $2",
            ),
            fetch: page(&source, size, &format!("o.id = ANY($1) AND {}", source.open()), ""),
            scan: scan(&source, ""),
            scan_shares: scan(&source, &shares(4)),
            probe: probe(&source),
            mark: mark(target, on_sent),
            failures: failures(&source, &shares_table(table)),
            forget: None,
            shares: shares_table(table),
            dead_keys: dead_keys(&source),
            purge: target.can_purge().then(|| purge(target)),
            tidy: (target.bookkeeping.is_none() || target.positions.is_some()).then(|| tidy(&source)),
            number,
            backlog: backlog(&source),
            source,
            columns: None,
            advice: Vec::new(),
        }
    }

    pub(super) fn described(self, layout: &Layout) -> Self {
        Self {
            columns: Some(layout.describe()),
            advice: layout.advice.clone(),
            ..self
        }
    }
}

/// Whole rows. The inner query has the clock in it, so that it is evaluated by itself: `due` is one value.
fn page(source: &Source, size: Size, filter: &str, limit: &str) -> Arc<str> {
    let octets = match size {
        Size::OfColumn => "octet_length(o.payload)",
        Size::OfText => "octet_length(o.payload::text)",
    };
    // A fetch is for bodies, as many as there is room for, and at least one.
    let inline = match limit {
        "" => "CASE WHEN sum(octets) OVER (ORDER BY id) <= $2 OR row_number() OVER (ORDER BY id) = 1 THEN payload END"
            .to_owned(),
        _ => format!("CASE WHEN due <= 0 AND octets <= {INLINE_PAYLOAD_BYTES} THEN payload END"),
    };
    let (more, names) = (source.more_columns(), source.more_names());
    let from = match limit {
        "" => source.by_id.clone(),
        _ => above(source),
    };
    format!(
        "SELECT id, message_id, exchange, routing_key, ordering_key, type, content_type, headers, properties,
                created, age, due, attempts, octets, {inline}{names}
         FROM (SELECT o.id::bigint AS id, o.message_id, o.exchange, o.routing_key, o.ordering_key, o.type,
                      o.content_type, o.headers::text AS headers, o.properties::text AS properties,
                      date_part('epoch', o.created_at) AS created, {AGE} AS age, {DUE} AS due,
                      coalesce(o.attempts, 0)::bigint AS attempts, {octets}::bigint AS octets, o.payload{more}
               FROM {from} WHERE {filter} ORDER BY o.id {limit}) AS page
         ORDER BY id"
    )
    .into()
}

fn scan(source: &Source, shares: &str) -> Arc<str> {
    let (horizon, from, open) = (SCAN_HORIZON.as_secs(), above(source), open(source));
    format!(
        "SELECT o.id::bigint, o.ordering_key, {DUE}, o.exchange FROM {from}
         WHERE o.id > $1 AND o.id <= $2 AND {open}
           AND (o.ordering_key IS NOT NULL OR {DUE} <= {horizon}) {shares}
         ORDER BY o.id LIMIT $3"
    )
    .into()
}

/// The snapshot is the statement's own: a row that it does not see belongs to a transaction that is open in it, or is
/// not there. Without any row it is still told.
fn probe(source: &Source) -> Arc<str> {
    let (from, open) = (&source.by_id, source.open());
    format!(
        "SELECT s.oldest, s.next, o.id::bigint, o.ordering_key, {DUE}, o.exchange, {open}
         FROM (SELECT pg_snapshot_xmin(snapshot)::text::bigint AS oldest, pg_snapshot_xmax(snapshot)::text::bigint AS next
               FROM pg_current_snapshot() AS snapshot) AS s
         LEFT JOIN {from} ON o.id = ANY($1)
         ORDER BY o.id"
    )
    .into()
}

/// A row that was given up and then confirmed after all *is* sent: it is no dead letter any more. `$1`: row ids.
fn mark(target: &Target, on_sent: OnSent) -> Arc<str> {
    let Target {
        table,
        key,
        outbox,
        failures,
        ..
    } = target;
    let mut first = Vec::new();
    let mut which = format!("o.{key} = ANY($1)");
    if target.bookkeeping.is_none() {
        first.push(format!(
            "freed AS (DELETE FROM {failures} AS b WHERE b.outbox = {outbox} AND b.id = ANY($1))"
        ));
    }
    if let Some(positions) = &target.positions {
        first.push(format!(
            "gone AS (DELETE FROM {positions} AS p WHERE p.outbox = {outbox} AND p.position = ANY($1)
                     RETURNING p.row_key)"
        ));
        which = is_gone(target);
    }
    let with = match first.is_empty() {
        true => String::new(),
        false => format!("WITH {} ", first.join(", ")),
    };
    let sent = target.sent.as_deref().unwrap_or_default();
    let (now, unsent) = match target.sent_is_flag {
        true => ("true", &target.unsent),
        false => ("clock_timestamp()", &target.unsent),
    };
    match on_sent {
        OnSent::Mark => {
            let dead = match &target.bookkeeping {
                Some([.., dead]) => format!(", {dead} = NULL"),
                None => String::new(),
            };
            format!(
                "{with}UPDATE {table} AS o SET {sent} = {now}{dead}
             WHERE {which} AND {unsent} AND {RELAXED}"
            )
        }
        OnSent::Delete => format!("{with}DELETE FROM {table} AS o WHERE {which} AND {RELAXED}"),
    }
    .into()
}

/// The failures to be written: `$1` to `$6`.
pub(super) const REFUSED: &str = "unnest($1::bigint[], $2::int[], $3::text[], $4::float8[], $5::int[], $6::bigint[])
              AS f(id, attempts, error, delay, share, epoch)";

/// That the lease under which a failure was decided is still that of `$8`, among `$7` shares.
pub(super) fn held(outbox: &str, shares: &str) -> String {
    format!(
        "(f.epoch IS NULL OR EXISTS (
               SELECT FROM {shares} AS s WHERE s.outbox = {outbox} AND s.layout = $7 AND s.share = f.share
                                           AND s.epoch = f.epoch AND s.owner = $8))"
    )
}

/// `o.id = ANY($1)` repeats the join, so that no statistics make the planner read the whole table.
/// A failure that was decided under a lease is written only while the lease is its writer's.
fn failures(source: &Source, shares: &str) -> Arc<str> {
    let Target {
        table,
        key,
        outbox,
        failures,
        bookkeeping,
        ..
    } = &source.target;
    let held = held(outbox, shares);
    match bookkeeping {
        Some([attempts, next, error, dead]) => {
            let (unsent, cut) = (source.target.and_unsent(), source.target.cut("f.error"));
            format!(
                "UPDATE {table} AS o SET {attempts} = f.attempts, {error} = {cut},
                {next} = clock_timestamp() + f.delay * interval '1 second',
                {dead} = CASE WHEN f.delay IS NULL THEN clock_timestamp() END
         FROM {REFUSED}
         WHERE o.{key} = ANY($1) AND o.{key} = f.id{unsent} AND o.{dead} IS NULL
           AND {held}"
            )
        }
        None => format!(
            "INSERT INTO {failures} AS b (outbox, id, attempts, last_error, next_attempt_at, dead_at)
             SELECT {outbox}, f.id, f.attempts, f.error, clock_timestamp() + f.delay * interval '1 second',
                    CASE WHEN f.delay IS NULL THEN clock_timestamp() END
             FROM {REFUSED}
             WHERE EXISTS (SELECT FROM {} WHERE o.id = f.id AND {}) AND {held}
             ORDER BY f.id
             ON CONFLICT (outbox, id) DO UPDATE SET attempts = excluded.attempts, last_error = excluded.last_error,
                    next_attempt_at = excluded.next_attempt_at, dead_at = excluded.dead_at
             WHERE b.dead_at IS NULL",
            source.by_id,
            source.open()
        ),
    }
    .into()
}

fn dead_keys(source: &Source) -> Arc<str> {
    format!(
        "SELECT o.ordering_key, min(o.id)::bigint FROM {}
         WHERE {} AND o.ordering_key IS NOT NULL
         GROUP BY o.ordering_key ORDER BY 2 LIMIT $1",
        source.dead,
        dead(source)
    )
    .into()
}

/// One window of ids: `$1` where it begins, `$2` its size, `$3` the least age in seconds, `$4` how many to delete.
/// Arrays rather than joins, as the planner guesses a join with a window to be worth a scan of the table. Rows are
/// locked in order and those in use left alone, so that a purge waits for nobody.
fn purge(target: &Target) -> Arc<str> {
    let Target { table, key, .. } = target;
    let sent = target.sent.as_deref().unwrap_or_default();
    let old = "sent_at < statement_timestamp() - $3 * interval '1 second'";
    let still = old.replacen("sent_at", sent, 1);
    format!(
        "WITH seen AS MATERIALIZED (
             SELECT o.{key} AS id, o.{sent} AS sent_at FROM {table} AS o WHERE o.{key} > $1 AND {RELAXED}
             ORDER BY o.{key} LIMIT $2),
         batch AS MATERIALIZED (
             SELECT o.{key} AS id FROM {table} AS o
             WHERE o.{key} = ANY(ARRAY(SELECT id FROM seen WHERE {old} ORDER BY id LIMIT $4)) AND o.{still}
             ORDER BY o.{key} FOR UPDATE SKIP LOCKED),
         gone AS (DELETE FROM {table} AS o WHERE o.{key} = ANY(ARRAY(SELECT id FROM batch)) RETURNING o.{key} AS id)
         SELECT (SELECT count(*) FROM seen), (SELECT max(id)::bigint FROM seen),
                (SELECT count(*) FROM seen WHERE sent_at >= statement_timestamp() - $3 * interval '1 second'),
                (SELECT count(*) FROM gone), (SELECT max(id)::bigint FROM gone)"
    )
    .into()
}

/// Removes what the relay's own tables hold of rows that are gone, or were sent by somebody else: among `$1` entries above
/// `$2`. Says how many there were, and which was the last.
fn tidy(source: &Source) -> Arc<str> {
    let Target {
        outbox,
        failures,
        positions,
        ..
    } = &source.target;
    let unsent = match source.unsent.as_str() {
        "" => String::new(),
        unsent => format!(" AND {unsent}"),
    };
    let (entries, numbers) = match positions {
        None => (
            format!("SELECT b.id FROM {failures} AS b WHERE b.outbox = {outbox} AND b.id > $2"),
            String::new(),
        ),
        Some(positions) => (
            format!("SELECT p.position AS id FROM {positions} AS p WHERE p.outbox = {outbox} AND p.position > $2"),
            format!(
                ", numbers AS (DELETE FROM {positions} AS p WHERE p.outbox = {outbox} AND p.position = ANY(ARRAY(SELECT id FROM gone)))"
            ),
        ),
    };
    // A refusal that was written while its row was marked has no number any more.
    let numberless = match positions {
        None => String::new(),
        Some(positions) => format!(
            " OR b.id IN (SELECT x.id FROM {failures} AS x WHERE x.outbox = {outbox}
                 AND NOT EXISTS (SELECT FROM {positions} AS p WHERE p.outbox = x.outbox AND p.position = x.id) LIMIT $1)"
        ),
    };
    format!(
        "WITH seen AS MATERIALIZED ({entries} ORDER BY 1 LIMIT $1),
         gone AS MATERIALIZED (
             SELECT seen.id FROM seen WHERE NOT EXISTS (SELECT FROM {} WHERE o.id = seen.id{unsent})){numbers},
         freed AS (DELETE FROM {failures} AS b
                   WHERE b.outbox = {outbox} AND (b.id = ANY(ARRAY(SELECT id FROM gone)){numberless}))
         SELECT count(*), max(id) FROM seen",
        source.by_id
    )
    .into()
}

/// Of rows that the relay numbers, most have no number yet while many wait: all that are there are counted, and what the
/// relay knows of some of them is taken off.
fn backlog(source: &Source) -> Arc<str> {
    let (reads, given_up, open) = (&source.reads, dead(source), open(source));
    let dead = &source.dead;
    if let Some(waiting) = &source.waiting {
        let Target { outbox, failures, .. } = &source.target;
        return format!(
            "SELECT greatest(t.total - f.retrying - f.dead, 0), f.retrying, t.oldest, f.dead
             FROM (SELECT count(*) AS total, max({AGE}) FILTER (WHERE {DUE} <= 0) AS oldest
                   FROM (SELECT o.created_at, o.available_at, o.next_attempt_at FROM {waiting} LIMIT {BACKLOG_CAP}) AS o) AS t,
                  (SELECT count(*) FILTER (WHERE b.dead_at IS NULL) AS retrying,
                          count(*) FILTER (WHERE b.dead_at IS NOT NULL) AS dead
                   FROM {failures} AS b WHERE b.outbox = {outbox}) AS f"
        )
        .into();
    }
    format!(
        "SELECT count(*) FILTER (WHERE attempts = 0), count(*) FILTER (WHERE attempts > 0),
                max(age) FILTER (WHERE due <= 0),
                (SELECT count(*) FROM (SELECT 1 FROM {dead}
                                       WHERE {given_up} LIMIT {BACKLOG_CAP}) AS dead)
         FROM (SELECT greatest(o.attempts, 0) AS attempts, {AGE} AS age, {DUE} AS due
               FROM {reads} WHERE {open} ORDER BY o.id LIMIT {BACKLOG_CAP}) AS unsent"
    )
    .into()
}
