//! Every statement on the outbox table, built once from its name.

use std::sync::Arc;

use crate::config::{OnSent, TableName};
use crate::store::leases::shares_table;
use crate::store::migrate::{literal, quoted};
use crate::store::{BACKLOG_CAP, INLINE_PAYLOAD_BYTES, SCAN_HORIZON};

/// Statement texts. Lists of ids are one JSON array, so that a text does not change with their number.
#[derive(Debug)]
pub(super) struct Statements {
    pub(super) head: Arc<str>,
    pub(super) open_keys: Arc<str>,
    pub(super) head_of: Arc<str>,
    pub(super) scan: Arc<str>,
    pub(super) probe: Arc<str>,
    pub(super) fetch: Arc<str>,
    pub(super) mark: Arc<str>,
    pub(super) failures: Arc<str>,
    pub(super) dead_keys: Arc<str>,
    pub(super) purge_window: Arc<str>,
    pub(super) purge: Arc<str>,
    pub(super) backlog: Arc<str>,
    /// Changes nothing, but fails where nothing could be changed (unlike `BEGIN IMMEDIATE`).
    pub(super) touch: Arc<str>,
}

pub(super) const OPEN: &str = "o.sent_at IS NULL AND o.dead_at IS NULL";
pub(super) const LISTED: &str = "o.id IN (SELECT value FROM json_each(?1))";

/// Seconds since 1970. `julianday`, as older versions have no fractions in `unixepoch`.
pub(super) const NOW: &str = "((julianday('now') - 2440587.5) * 86400.0)";
const NOW_TEXT: &str = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')";

impl Statements {
    /// With `unsent_index`, reads of unsent rows are bound to it: statistics are as old as the application's last
    /// `ANALYZE`, and those from a time of backlog would have the planner walk over every row ever sent.
    pub(super) fn new(table: &TableName, on_sent: OnSent, unsent_index: Option<&str>) -> Self {
        let t = table.to_string();
        let unsent = match unsent_index {
            Some(index) => format!("{t} AS o INDEXED BY {}", quoted(index)),
            None => format!("{t} AS o"),
        };
        let every = format!("{t} AS o");
        let listed = format!("{LISTED} AND {OPEN}");
        Self {
            head: page(&unsent, &format!("o.id > ?1 AND {OPEN}"), "LIMIT ?2", true),
            head_of: page(&every, &listed, "", true),
            fetch: page(&every, &listed, "", false),
            open_keys: format!(
                "SELECT o.id, CAST(o.ordering_key AS TEXT) FROM {unsent} WHERE o.id > ?1 AND {OPEN} ORDER BY o.id LIMIT ?2"
            )
            .into(),
            scan: scan(&unsent),
            probe: format!("SELECT o.id, CAST(o.ordering_key AS TEXT), {}, {OPEN} FROM {t} AS o WHERE {LISTED} ORDER BY o.id", due())
                .into(),
            mark: mark(&t, on_sent),
            failures: failures(&t, &shares_table(table), &literal(table.name())),
            dead_keys: dead_keys(&t),
            purge_window: purge_window(&t),
            purge: format!("DELETE FROM {t} AS o WHERE {LISTED} AND {} < {NOW} - ?2", epoch("o.sent_at")).into(),
            backlog: backlog(&t, &unsent),
            touch: format!("UPDATE {t} SET sent_at = sent_at WHERE id IS NULL").into(),
        }
    }
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
fn page(from: &str, filter: &str, limit: &str, bounded: bool) -> Arc<str> {
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
                created, {NOW} - created, due, attempts, octets, {inline}
         FROM (SELECT o.id, o.message_id, {}, {} AS created, {} AS due, CAST(coalesce(o.attempts, 0) AS INTEGER) AS attempts,
                      octet_length(o.payload) AS octets, o.payload
               FROM {from} WHERE {filter} ORDER BY o.id {limit})
         ORDER BY id",
        texts.join(", "),
        epoch("o.created_at"),
        due(),
    )
    .into()
}

fn scan(from: &str) -> Arc<str> {
    let (due, horizon) = (due(), SCAN_HORIZON.as_secs());
    format!(
        "SELECT o.id, CAST(o.ordering_key AS TEXT), {due} FROM {from}
         WHERE o.id > ?1 AND o.id <= ?2 AND {OPEN} AND (o.ordering_key IS NOT NULL OR {due} <= {horizon})
         ORDER BY o.id LIMIT ?3"
    )
    .into()
}

/// A row that was given up and then confirmed after all *is* sent: it is no dead letter any more.
fn mark(table: &str, on_sent: OnSent) -> Arc<str> {
    match on_sent {
        OnSent::Mark => {
            format!("UPDATE {table} AS o SET sent_at = {NOW_TEXT}, dead_at = NULL WHERE {LISTED} AND o.sent_at IS NULL")
        }
        OnSent::Delete => format!("DELETE FROM {table} AS o WHERE {LISTED}"),
    }
    .into()
}

/// `?1`: an array of `[id, attempts, error, seconds or null, share or null, epoch or null]`. A failure that was decided
/// under a lease is written only while the lease is its writer's.
fn failures(table: &str, shares: &str, outbox: &str) -> Arc<str> {
    format!(
        "UPDATE {table} AS o SET attempts = f.attempts, last_error = f.error,
                next_attempt_at = CASE WHEN f.delay IS NOT NULL
                    THEN strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('%.3f seconds', f.delay)) END,
                dead_at = CASE WHEN f.delay IS NULL THEN {NOW_TEXT} END
         FROM (SELECT value ->> 0 AS id, value ->> 1 AS attempts, value ->> 2 AS error, value ->> 3 AS delay,
                      value ->> 4 AS share, value ->> 5 AS epoch
               FROM json_each(?1)) AS f
         WHERE o.id = f.id AND {OPEN}
           AND (f.epoch IS NULL OR EXISTS (
               SELECT 1 FROM {shares} AS s WHERE s.outbox = {outbox} AND s.layout = ?2 AND s.share = f.share
                                             AND s.epoch = f.epoch AND s.owner = ?3))"
    )
    .into()
}

fn dead_keys(table: &str) -> Arc<str> {
    format!(
        "SELECT CAST(o.ordering_key AS TEXT) AS k, min(o.id) FROM {table} AS o
         WHERE o.dead_at IS NOT NULL AND o.sent_at IS NULL AND o.ordering_key IS NOT NULL
         GROUP BY k ORDER BY 2 LIMIT ?1"
    )
    .into()
}

/// `?1` where the window begins, `?2` its size, `?3` the least age in seconds.
fn purge_window(table: &str) -> Arc<str> {
    format!(
        "SELECT count(*), max(id), count(*) FILTER (WHERE sent >= {NOW} - ?3),
                json_group_array(id) FILTER (WHERE sent < {NOW} - ?3)
         FROM (SELECT o.id, {} AS sent FROM {table} AS o WHERE o.id > ?1 ORDER BY o.id LIMIT ?2)",
        epoch("o.sent_at")
    )
    .into()
}

fn backlog(table: &str, from: &str) -> Arc<str> {
    format!(
        "SELECT count(*) FILTER (WHERE attempts <= 0), count(*) FILTER (WHERE attempts > 0),
                {NOW} - min(created) FILTER (WHERE due <= 0),
                (SELECT count(*) FROM (SELECT 1 FROM {table} AS o
                                       WHERE o.dead_at IS NOT NULL AND o.sent_at IS NULL LIMIT {BACKLOG_CAP}))
         FROM (SELECT coalesce(o.attempts, 0) AS attempts, {} AS created, {} AS due
               FROM {from} WHERE {OPEN} ORDER BY o.id LIMIT {BACKLOG_CAP})",
        epoch("o.created_at"),
        due(),
    )
    .into()
}
