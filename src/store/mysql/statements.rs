//! Every statement on the outbox table, built once from its name.
//!
//! Few texts and no values in them: each is prepared once in each connection. Times are compared as microseconds, which
//! no date is too far away for, unlike `unix_timestamp`. `CAST … AS SIGNED` makes one type of every kind of number.

use std::sync::Arc;

use crate::config::{OnSent, TableName};
use crate::store::leases::shares_table;
use crate::store::migrate::{literal, quoted};
use crate::store::{BACKLOG_CAP, INLINE_PAYLOAD_BYTES, SCAN_HORIZON};

/// Statement texts.
#[derive(Debug)]
pub(super) struct Statements {
    /// The table, with the index to be used.
    pub(super) indexed: String,
    pub(super) head: Arc<str>,
    pub(super) head_shares: Arc<str>,
    pub(super) scan: Arc<str>,
    pub(super) scan_shares: Arc<str>,
    pub(super) probe: Arc<str>,
    pub(super) fetch: Arc<str>,
    pub(super) mark: Arc<str>,
    pub(super) failures: Arc<str>,
    pub(super) dead_keys: Arc<str>,
    pub(super) purge_window: Arc<str>,
    pub(super) purge: Arc<str>,
    pub(super) backlog: Arc<str>,
}

pub(super) const OPEN: &str = "o.sent_at IS NULL AND o.dead_at IS NULL";

/// The ids of a JSON array, as a table. `STRAIGHT_JOIN` behind it: each row is looked up by its id, whatever the planner
/// thinks of a table it knows nothing of.
pub(super) const LISTED: &str = "JSON_TABLE(?, '$[*]' COLUMNS (id bigint PATH '$')) AS w STRAIGHT_JOIN";

/// The share of a row: equal to `share_of`. UTF-8 whatever the character set of the column.
const SHARE: &str =
    "AND find_in_set(ord(unhex(left(sha2(convert(coalesce(o.ordering_key, o.id) USING utf8mb4), 256), 2))) % ?, ?) > 0";

/// Microseconds to wait.
pub(super) const DUE: &str = "coalesce(timestampdiff(MICROSECOND, now(6), \
greatest(coalesce(o.available_at, o.next_attempt_at), coalesce(o.next_attempt_at, o.available_at))), 0)";

/// Microseconds since 1970.
pub(super) const CREATED: &str = "timestampdiff(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', o.created_at)";
const AGE: &str = "timestampdiff(MICROSECOND, o.created_at, now(6))";

impl Statements {
    /// With an `index` on `(sent_at, dead_at)`, reads of unsent rows are bound to it: statistics from a time of backlog
    /// would have the planner walk over every row ever sent.
    pub(super) fn new(table: &TableName, on_sent: OnSent, index: Option<&str>) -> Self {
        let t = table.to_string();
        let indexed = match index {
            Some(index) => format!("{t} AS o FORCE INDEX ({})", quoted(index)),
            None => format!("{t} AS o"),
        };
        Self {
            head: head(&indexed, ""),
            head_shares: head(&indexed, SHARE),
            scan: scan(&indexed, ""),
            scan_shares: scan(&indexed, SHARE),
            probe: format!(
                "SELECT {}, o.ordering_key, {DUE}, {OPEN} FROM {LISTED} {t} AS o ON o.id = w.id ORDER BY o.id",
                id()
            )
            .into(),
            fetch: fetch(&t),
            mark: mark(&t, on_sent),
            failures: failures(&t, &shares_table(table), &literal(table.name())),
            dead_keys: dead_keys(&indexed),
            purge_window: format!(
                "SELECT {}, o.sent_at < now(6) - INTERVAL ? MICROSECOND FROM {t} AS o WHERE o.id > ? ORDER BY o.id LIMIT ?",
                id()
            )
            .into(),
            purge: format!(
                "DELETE o FROM {LISTED} {t} AS o ON o.id = w.id WHERE o.sent_at < now(6) - INTERVAL ? MICROSECOND"
            )
            .into(),
            backlog: backlog(&indexed),
            indexed,
        }
    }
}

fn id() -> &'static str {
    "CAST(o.id AS SIGNED)"
}

/// Whole rows, the body last.
fn columns(body: &str) -> String {
    format!(
        "{}, o.message_id, o.exchange, o.routing_key, o.ordering_key, o.type, o.content_type, o.headers, o.properties,
         {CREATED}, {AGE}, {DUE}, CAST(coalesce(o.attempts, 0) AS SIGNED), CAST(octet_length(o.payload) AS SIGNED), {body}",
        id()
    )
}

fn head(indexed: &str, shares: &str) -> Arc<str> {
    let body = format!("CASE WHEN {DUE} <= 0 AND octet_length(o.payload) <= {INLINE_PAYLOAD_BYTES} THEN o.payload END");
    format!(
        "SELECT {} FROM {indexed} WHERE o.id > ? AND {OPEN} {shares} ORDER BY o.id LIMIT ?",
        columns(&body)
    )
    .into()
}

/// Bodies, as many as there is room for, and at least one: which, is found by their sizes alone. In no order: MySQL would
/// sort whole rows, and has no room for large ones of its type json.
fn fetch(table: &str) -> Arc<str> {
    format!(
        "SELECT {}
         FROM (SELECT s.id, sum(s.octets) OVER (ORDER BY s.id) <= ? OR row_number() OVER (ORDER BY s.id) = 1 AS fits
               FROM (SELECT o.id, octet_length(o.payload) AS octets
                     FROM {LISTED} {table} AS o ON o.id = w.id WHERE {OPEN}) AS s) AS f
         STRAIGHT_JOIN {table} AS o ON o.id = f.id",
        columns("CASE WHEN f.fits THEN o.payload END")
    )
    .into()
}

fn scan(indexed: &str, shares: &str) -> Arc<str> {
    let horizon = SCAN_HORIZON.as_micros();
    format!(
        "SELECT {}, o.ordering_key, {DUE} FROM {indexed}
         WHERE o.id > ? AND o.id <= ? AND {OPEN} AND (o.ordering_key IS NOT NULL OR {DUE} <= {horizon}) {shares}
         ORDER BY o.id LIMIT ?",
        id()
    )
    .into()
}

/// A row that was given up and then confirmed after all *is* sent: it is no dead letter any more.
fn mark(table: &str, on_sent: OnSent) -> Arc<str> {
    match on_sent {
        OnSent::Mark => format!(
            "UPDATE {LISTED} {table} AS o ON o.id = w.id SET o.sent_at = now(6), o.dead_at = NULL WHERE o.sent_at IS NULL"
        ),
        OnSent::Delete => format!("DELETE o FROM {LISTED} {table} AS o ON o.id = w.id"),
    }
    .into()
}

/// An array of `[id, attempts, error, microseconds or null, share or null, epoch or null]`. A failure that was decided
/// under a lease is written only while the lease is its writer's.
fn failures(table: &str, shares: &str, outbox: &str) -> Arc<str> {
    format!(
        "UPDATE JSON_TABLE(?, '$[*]' COLUMNS (
             id bigint PATH '$[0]', attempts int PATH '$[1]', error varchar(2000) CHARACTER SET utf8mb4 PATH '$[2]',
             delay bigint PATH '$[3]', share int PATH '$[4]', epoch bigint PATH '$[5]')) AS f
         STRAIGHT_JOIN {table} AS o ON o.id = f.id
         SET o.attempts = f.attempts, o.last_error = f.error,
             o.next_attempt_at = CASE WHEN f.delay IS NOT NULL THEN now(6) + INTERVAL f.delay MICROSECOND END,
             o.dead_at = CASE WHEN f.delay IS NULL THEN now(6) END
         WHERE {OPEN}
           AND (f.epoch IS NULL OR EXISTS (
               SELECT 1 FROM {shares} AS s WHERE s.outbox = {outbox} AND s.layout = ? AND s.share = f.share
                                             AND s.epoch = f.epoch AND s.owner = ?))"
    )
    .into()
}

/// Keys are compared by their bytes, whatever the collation of the column.
fn dead_keys(indexed: &str) -> Arc<str> {
    format!(
        "SELECT CAST(convert(o.ordering_key USING utf8mb4) AS BINARY) AS k, CAST(min(o.id) AS SIGNED) AS lowest
         FROM {indexed} WHERE o.sent_at IS NULL AND o.dead_at IS NOT NULL AND o.ordering_key IS NOT NULL
         GROUP BY k ORDER BY lowest LIMIT ?"
    )
    .into()
}

fn backlog(indexed: &str) -> Arc<str> {
    format!(
        "SELECT CAST(coalesce(sum(attempts <= 0), 0) AS SIGNED), CAST(coalesce(sum(attempts > 0), 0) AS SIGNED),
                CAST(max(CASE WHEN due <= 0 THEN age END) AS SIGNED),
                (SELECT count(*) FROM (SELECT 1 FROM {indexed} WHERE o.sent_at IS NULL AND o.dead_at IS NOT NULL
                                       LIMIT {BACKLOG_CAP}) AS dead)
         FROM (SELECT coalesce(o.attempts, 0) AS attempts, {AGE} AS age, {DUE} AS due
               FROM {indexed} WHERE {OPEN} ORDER BY o.id LIMIT {BACKLOG_CAP}) AS unsent"
    )
    .into()
}
