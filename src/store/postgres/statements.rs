//! Every statement on the outbox table, built once from its name.
//!
//! Few texts and no literals in them: each is prepared once in each connection. `o.` stands before every column, as an
//! output name would otherwise win in `ORDER BY`, and lose the index with it.

use std::sync::Arc;

use crate::config::{OnSent, TableName};
use crate::store::leases::shares_table;
use crate::store::migrate::literal;
use crate::store::{BACKLOG_CAP, INLINE_PAYLOAD_BYTES, SCAN_HORIZON};

/// How the size of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    /// `text`, `bytea`: the server knows it without reading a large value (1 µs for any size).
    OfColumn,
    /// `json`, `jsonb`: only as text, which reads the value (36 and 145 µs for 100 kB; nothing to notice below 1 kB).
    OfText,
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
    pub(super) dead_keys: Arc<str>,
    pub(super) purge: Arc<str>,
    pub(super) backlog: Arc<str>,
}

/// Unsent rows. The last line says nothing new, but keeps the planner on the partial index whatever the statistics
/// say: it follows from `sent_at IS NULL`, so that a scan of the partial index drops it, while on any other index its
/// (only estimated) cost counts for every row. Without it, and with statistics from before a backlog was sent, a
/// generic plan walks the primary key over every row ever sent (600,000 rows: 330 ms instead of 0.1).
pub(super) const OPEN: &str = "o.sent_at IS NULL AND o.dead_at IS NULL
AND (o.sent_at IS NULL OR to_tsvector('pg_catalog.simple'::regconfig, o.id::text) IS NULL)";

/// Dead letters. The last line says nothing new, but keeps the planner on their partial index; see [`OPEN`].
pub(super) const DEAD: &str = "o.dead_at IS NOT NULL AND o.sent_at IS NULL
AND (o.dead_at IS NOT NULL OR to_tsvector('pg_catalog.simple'::regconfig, o.id::text) IS NULL)";

/// The share of a row: equal to `share_of`. UTF-8 whatever the encoding of the database.
const SHARE: &str = "get_byte(sha256(convert_to(coalesce(o.ordering_key, o.id::text), 'UTF8')), 0)";

/// Seconds to wait, as a float, in which `infinity` is a number like others (intervals cannot hold it).
pub(super) const DUE: &str = "coalesce(date_part('epoch', greatest(o.available_at, o.next_attempt_at)) \
- date_part('epoch', clock_timestamp()), 0)";

const AGE: &str = "date_part('epoch', clock_timestamp()) - date_part('epoch', o.created_at)";

/// A mark or a purge that is lost in a crash of the server only shows the row once more, so it need not wait for the
/// disk. A transaction-local setting inside the statement itself also holds behind a pooler; as a subquery it is
/// evaluated once, before the first row.
const RELAXED: &str = "(SELECT set_config('synchronous_commit', 'off', true)) = 'off'";

impl Statements {
    pub(super) fn new(table: &TableName, on_sent: OnSent, size: Size) -> Self {
        let shares = |n: u32| format!("AND {SHARE} % ${n} = ANY(${})", n + 1);
        let t = table.to_string();
        Self {
            size,
            head: page(&t, size, &format!("o.id > $1 AND {OPEN}"), "LIMIT $2"),
            head_shares: page(&t, size, &format!("o.id > $1 AND {OPEN} {}", shares(3)), "LIMIT $2"),
            fetch: page(
                &t,
                size,
                "o.id = ANY($1) AND o.sent_at IS NULL AND o.dead_at IS NULL",
                "",
            ),
            scan: scan(&t, ""),
            scan_shares: scan(&t, &shares(4)),
            probe: probe(&t),
            mark: mark(&t, on_sent),
            failures: failures(&t, &shares_table(table), &literal(table.name())),
            dead_keys: dead_keys(&t),
            purge: purge(&t),
            backlog: backlog(&t),
        }
    }
}

/// Whole rows. The inner query has the clock in it, so that it is evaluated by itself: `due` is one value.
fn page(table: &str, size: Size, filter: &str, limit: &str) -> Arc<str> {
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
    format!(
        "SELECT id, message_id, exchange, routing_key, ordering_key, type, content_type, headers, properties,
                created, age, due, attempts, octets, {inline}
         FROM (SELECT o.id::bigint AS id, o.message_id, o.exchange, o.routing_key, o.ordering_key, o.type,
                      o.content_type, o.headers::text AS headers, o.properties::text AS properties,
                      date_part('epoch', o.created_at) AS created, {AGE} AS age, {DUE} AS due,
                      coalesce(o.attempts, 0)::bigint AS attempts, {octets}::bigint AS octets, o.payload
               FROM {table} AS o WHERE {filter} ORDER BY o.id {limit}) AS page
         ORDER BY id"
    )
    .into()
}

fn scan(table: &str, shares: &str) -> Arc<str> {
    let horizon = SCAN_HORIZON.as_secs();
    format!(
        "SELECT o.id::bigint, o.ordering_key, {DUE} FROM {table} AS o
         WHERE o.id > $1 AND o.id <= $2 AND {OPEN}
           AND (o.ordering_key IS NOT NULL OR {DUE} <= {horizon}) {shares}
         ORDER BY o.id LIMIT $3"
    )
    .into()
}

/// The snapshot is the statement's own: a row that it does not see belongs to a transaction that is open in it, or is
/// not there. Without any row it is still told.
fn probe(table: &str) -> Arc<str> {
    format!(
        "SELECT s.oldest, s.next, o.id::bigint, o.ordering_key, {DUE}, o.sent_at IS NULL AND o.dead_at IS NULL
         FROM (SELECT pg_snapshot_xmin(snapshot)::text::bigint AS oldest, pg_snapshot_xmax(snapshot)::text::bigint AS next
               FROM pg_current_snapshot() AS snapshot) AS s
         LEFT JOIN {table} AS o ON o.id = ANY($1)
         ORDER BY o.id"
    )
    .into()
}

/// A row that was given up and then confirmed after all *is* sent: it is no dead letter any more.
fn mark(table: &str, on_sent: OnSent) -> Arc<str> {
    match on_sent {
        OnSent::Mark => format!(
            "UPDATE {table} AS o SET sent_at = clock_timestamp(), dead_at = NULL
             WHERE o.id = ANY($1) AND o.sent_at IS NULL AND {RELAXED}"
        ),
        OnSent::Delete => format!("DELETE FROM {table} AS o WHERE o.id = ANY($1) AND {RELAXED}"),
    }
    .into()
}

/// `o.id = ANY($1)` repeats the join, so that no statistics make the planner read the whole table.
/// A failure that was decided under a lease is written only while the lease is its writer's.
fn failures(table: &str, shares: &str, outbox: &str) -> Arc<str> {
    format!(
        "UPDATE {table} AS o SET attempts = f.attempts, last_error = f.error,
                next_attempt_at = clock_timestamp() + f.delay * interval '1 second',
                dead_at = CASE WHEN f.delay IS NULL THEN clock_timestamp() END
         FROM unnest($1::bigint[], $2::int[], $3::text[], $4::float8[], $5::int[], $6::bigint[])
              AS f(id, attempts, error, delay, share, epoch)
         WHERE o.id = ANY($1) AND o.id = f.id AND o.sent_at IS NULL AND o.dead_at IS NULL
           AND (f.epoch IS NULL OR EXISTS (
               SELECT FROM {shares} AS s WHERE s.outbox = {outbox} AND s.layout = $7 AND s.share = f.share
                                           AND s.epoch = f.epoch AND s.owner = $8))"
    )
    .into()
}

fn dead_keys(table: &str) -> Arc<str> {
    format!(
        "SELECT o.ordering_key, min(o.id)::bigint FROM {table} AS o
         WHERE {DEAD} AND o.ordering_key IS NOT NULL
         GROUP BY o.ordering_key ORDER BY 2 LIMIT $1"
    )
    .into()
}

/// One window of ids: `$1` where it begins, `$2` its size, `$3` the least age in seconds, `$4` how many to delete.
/// Arrays rather than joins, as the planner guesses a join with a window to be worth a scan of the table. Rows are
/// locked in order and those in use left alone, so that a purge waits for nobody.
fn purge(table: &str) -> Arc<str> {
    let old = "sent_at < statement_timestamp() - $3 * interval '1 second'";
    format!(
        "WITH seen AS MATERIALIZED (
             SELECT o.id, o.sent_at FROM {table} AS o WHERE o.id > $1 AND {RELAXED} ORDER BY o.id LIMIT $2),
         batch AS MATERIALIZED (
             SELECT o.id FROM {table} AS o
             WHERE o.id = ANY(ARRAY(SELECT id FROM seen WHERE {old} ORDER BY id LIMIT $4)) AND o.{old}
             ORDER BY o.id FOR UPDATE SKIP LOCKED),
         gone AS (DELETE FROM {table} AS o WHERE o.id = ANY(ARRAY(SELECT id FROM batch)) RETURNING o.id)
         SELECT (SELECT count(*) FROM seen), (SELECT max(id)::bigint FROM seen),
                (SELECT count(*) FROM seen WHERE sent_at >= statement_timestamp() - $3 * interval '1 second'),
                (SELECT count(*) FROM gone), (SELECT max(id)::bigint FROM gone)"
    )
    .into()
}

fn backlog(table: &str) -> Arc<str> {
    format!(
        "SELECT count(*) FILTER (WHERE attempts = 0), count(*) FILTER (WHERE attempts > 0),
                max(age) FILTER (WHERE due <= 0),
                (SELECT count(*) FROM (SELECT 1 FROM {table} AS o
                                       WHERE {DEAD} LIMIT {BACKLOG_CAP}) AS dead)
         FROM (SELECT greatest(o.attempts, 0) AS attempts, {AGE} AS age, {DUE} AS due
               FROM {table} AS o WHERE {OPEN} ORDER BY o.id LIMIT {BACKLOG_CAP}) AS unsent"
    )
    .into()
}
