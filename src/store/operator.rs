//! What a person asks of an outbox: who works on it, what was given up, what is blocked. Beside [`Store`], which holds what the
//! relay itself needs; every method is bounded as those are.

use std::time::Duration;

use super::source::Source;
use super::{Store, StoreError};
use crate::message::{MessageId, OrderingKey, RowId};
use async_trait::async_trait;

pub(super) mod rows;

/// [`Operator::dead_reasons`] counts no further than this.
pub const DEAD_REASONS_CAP: u32 = 100_000;

/// [`Operator::waiting_keys`] looks at so many unsent rows, the lowest.
pub const WAITING_SCAN: u32 = 100_000;

/// The reason of a dead letter whose `last_error` begins with none of those the relay writes.
pub const OTHER_REASON: &str = "other";

/// A store as the operator's commands and `/status` use it.
#[async_trait]
pub trait Operator: Store {
    /// Which database it is, and what time it has.
    async fn database(&self) -> Result<Database, StoreError>;

    /// The shares that are owned now, under whatever division, and the relays that are there or are gone without leaving.
    async fn ownership(&self) -> Result<Ownership, StoreError>;

    /// Dead letters by the reason their `last_error` begins with ([`OTHER_REASON`] for any other text), up to [`DEAD_REASONS_CAP`] rows.
    async fn dead_reasons(&self) -> Result<Vec<(String, u64)>, StoreError>;

    /// Up to `limit` keys (or only `key`) that wait for a row which is not due, each with the lowest such row; of the first
    /// [`WAITING_SCAN`] unsent rows.
    async fn waiting_keys(&self, key: Option<&str>, limit: u32) -> Result<Vec<WaitingKey>, StoreError>;

    /// How many unsent rows each of these keys has, given up ones not counted; of the first [`WAITING_SCAN`] unsent rows. A
    /// key without any is left out.
    async fn rows_of_keys(&self, keys: &[&str]) -> Result<Vec<(String, u64)>, StoreError>;

    /// Where the first [`WAITING_SCAN`] unsent rows go, up to `limit` different places, those of most rows first. Of a table without a
    /// number: any so many, dead letters included.
    async fn routes(&self, limit: u32) -> Result<Vec<Route>, StoreError>;

    /// Up to `limit` dead letters above `after`, in `id` order.
    async fn dead_letters(&self, filter: &DeadFilter, after: RowId, limit: u32) -> Result<Vec<DeadLetter>, StoreError>;

    /// What earlier attempts of a row failed for, the newest first, as far as that is kept. [`StoreError::SchemaMissing`] where
    /// there is no table for it.
    async fn past_errors(&self, id: RowId) -> Result<Vec<PastError>, StoreError>;

    /// The body of a dead letter as stored; `None`: no such dead letter.
    async fn dead_payload(&self, id: RowId) -> Result<Option<Vec<u8>>, StoreError>;

    /// Makes refused rows unsent rows like any other, with no attempts counted and due at once. Returns how many of `ids` still
    /// were such: of two callers at once only one has each.
    async fn replay(&self, ids: &[RowId], which: Refused) -> Result<u64, StoreError>;

    /// Deletes refused rows. Returns how many of `ids` still were such.
    async fn discard(&self, ids: &[RowId], which: Refused) -> Result<u64, StoreError>;

    /// What tells that a row was sent.
    async fn sent_mark(&self) -> Result<SentMark, StoreError>;

    /// Looks at up to `window` rows above `after`, in `id` order, for sent ones that are wanted.
    async fn sent_rows(&self, wanted: &SentFilter, after: RowId, window: u32) -> Result<Vec<SentRow>, StoreError>;

    /// Makes sent rows unsent again, with no attempts counted. Returns how many of `ids` were marked before `until` (seconds since
    /// 1970; `None`: whenever) and still are: a row that was sent again meanwhile is left alone.
    async fn replay_sent(&self, ids: &[RowId], until: Option<f64>) -> Result<u64, StoreError>;

    /// Takes leases as a relay would, in a transaction that is rolled back: fails where a relay would.
    async fn try_lease(&self, partitions: u16) -> Result<(), StoreError>;

    /// Pauses everything (`None`) or an exchange; what is paused already stays as it was noted then.
    async fn pause(&self, exchange: Option<&str>, by: &str, reason: &str) -> Result<(), StoreError>;

    /// Ends a pause; false: there was none.
    async fn resume(&self, exchange: Option<&str>) -> Result<bool, StoreError>;

    /// For a person: which columns hold what; `None`: the table is as `migrate` makes it.
    async fn columns(&self) -> Result<Option<String>, StoreError>;

    /// For a person: what works, but could be mended in the table, and how.
    async fn advice(&self) -> Result<Vec<String>, StoreError>;

    /// Whether what is sent may leave this machine without TLS, by the URL and the variables.
    fn is_exposed(&self) -> bool {
        false
    }

    /// What makes the table slow in the long run.
    async fn upkeep(&self) -> Result<Upkeep, StoreError>;
}

/// What became of a row that the broker refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It was given up: a dead letter.
    GivenUp,
    /// It is unsent, and tried again at a time that has not come.
    Waiting,
}

/// What tells that a row was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SentMark {
    /// The time when it was.
    Time,
    /// A boolean.
    Flag,
    /// Nothing: it is deleted.
    Deleted,
    /// There is a mark, but the number that the relay gave the row is gone with it.
    Numbered,
}

/// Which sent rows; everything that is given must hold.
#[derive(Debug, Clone, Default)]
pub struct SentFilter {
    /// One of these; empty: any.
    pub ids: Vec<RowId>,
    /// Sent at this time or later, in seconds since 1970 by the database's clock. Only where the mark is a time.
    pub since: Option<f64>,
    /// Sent before this time; likewise.
    pub until: Option<f64>,
    /// The exchange it went to.
    pub exchange: Option<String>,
    /// The exchange of rows that name none.
    pub default_exchange: String,
    /// The routing key.
    pub routing_key: Option<String>,
    /// The ordering key.
    pub key: Option<String>,
}

/// A row that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentRow {
    /// Position in the outbox.
    pub id: RowId,
    /// Sent, and all that the filter says.
    pub wanted: bool,
    /// It has an ordering key.
    pub keyed: bool,
}

/// A database server or file.
#[derive(Debug, Clone, PartialEq)]
pub struct Database {
    /// `PostgreSQL`, `MariaDB`, `MySQL` or `SQLite`.
    pub product: &'static str,
    /// As it names itself.
    pub version: String,
    /// Its clock, in seconds since 1970.
    pub now: f64,
}

/// Who works on the outbox.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ownership {
    /// By number.
    pub shares: Vec<OwnedShare>,
    /// By name.
    pub members: Vec<Member>,
    /// Relays that are gone without having left, as one does that was killed, is frozen or cut off: for how long their leases
    /// have run out. Other relays forget them after a minute.
    pub silent: Vec<(String, Duration)>,
}

/// A share that somebody owns.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnedShare {
    /// Its number, from 0.
    pub share: u16,
    /// Into how many shares the rows are divided.
    pub partitions: u16,
    /// The relay.
    pub owner: String,
    /// For how long it has been this relay's.
    pub held: Duration,
    /// What is left of the lease.
    pub expires_in: Duration,
}

/// A relay that is there, with or without a share.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Host, process id and a random part.
    pub name: String,
    /// Into how many shares it divides the rows.
    pub partitions: u16,
    /// When it is taken for gone.
    pub expires_in: Duration,
}

/// A key whose rows wait.
#[derive(Debug, Clone, PartialEq)]
pub struct WaitingKey {
    /// The key.
    pub key: OrderingKey,
    /// The row that its later rows wait for.
    pub row: RowId,
    /// Refusals of that row; 0: it is a delayed row.
    pub attempts: u32,
    /// How long it must wait yet.
    pub due_in: Duration,
    /// Reason of the last refusal.
    pub last_error: Option<String>,
    /// Since it was created; `None`: the table does not say.
    pub age: Option<Duration>,
}

/// Where rows go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// `None`: `RELAY_AMQP_EXCHANGE`.
    pub exchange: Option<String>,
    /// Routing key.
    pub routing_key: String,
    /// How many rows.
    pub rows: u64,
}

/// Which dead letters; everything that is given must hold.
#[derive(Debug, Clone, Default)]
pub struct DeadFilter {
    /// One of these; empty: any.
    pub ids: Vec<RowId>,
    /// What `last_error` begins with.
    pub reason: Option<String>,
    /// The exchange it goes to.
    pub exchange: Option<String>,
    /// The exchange of rows that name none.
    pub default_exchange: String,
    /// The ordering key.
    pub key: Option<String>,
    /// Given up longer ago than this.
    pub older_than: Option<Duration>,
    /// Given up more recently than this.
    pub newer_than: Option<Duration>,
}

/// A row that was given up, without its body.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    /// Position in the outbox.
    pub id: RowId,
    /// `None`: null in the table; the message has one made from what does not change.
    pub message_id: Option<MessageId>,
    /// `None`: `RELAY_AMQP_EXCHANGE`.
    pub exchange: Option<String>,
    /// Routing key.
    pub routing_key: String,
    /// Ordering key.
    pub ordering_key: Option<String>,
    /// AMQP `type`.
    pub kind: Option<String>,
    /// AMQP `content_type`.
    pub content_type: Option<String>,
    /// As stored: mostly a JSON object.
    pub headers: Option<String>,
    /// As stored: mostly a JSON object.
    pub properties: Option<String>,
    /// Bytes of the body.
    pub payload_bytes: Option<u64>,
    /// Refusals.
    pub attempts: u32,
    /// Reason of the last refusal.
    pub last_error: Option<String>,
    /// Seconds since 1970.
    pub created_at: f64,
    /// Seconds since 1970.
    pub dead_at: f64,
}

/// What an attempt failed for.
#[derive(Debug, Clone, PartialEq)]
pub struct PastError {
    /// Seconds since 1970 by the database's clock.
    pub at: f64,
    /// Which one it was, counted anew after a replay.
    pub attempt: u32,
    /// For a person, as in `last_error`.
    pub error: String,
}

/// What makes the table slow in the long run.
#[derive(Debug, Clone, PartialEq)]
pub struct Upkeep {
    /// The index of the unsent rows.
    pub unsent_index: Index,
    /// The index of the dead letters, which may be the same one.
    pub dead_index: Index,
    /// How the table is vacuumed, where the database needs that.
    pub vacuum: Option<Vacuum>,
}

/// An index that there should be.
#[derive(Debug, Clone, PartialEq)]
pub struct Index {
    /// It is there, or another one that does as well.
    pub exists: bool,
    /// The statement that makes it, without stopping the application where the database can do that.
    pub create: String,
}

/// The state of PostgreSQL's autovacuum for the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Vacuum {
    /// On for the server and the table.
    pub enabled: bool,
    /// Row versions that wait to be removed, by the server's statistics.
    pub dead_rows: u64,
    /// At how many of them a vacuum begins.
    pub threshold: u64,
    /// Since the last vacuum; `None`: never.
    pub last: Option<Duration>,
}

/// An SQL expression for the reason that a `last_error` begins with.
pub(super) fn reason_of(column: &str) -> String {
    let whens: Vec<String> = crate::metrics::DEAD_LETTER_REASONS
        .iter()
        // `_` in a pattern would stand for any character.
        .map(|reason| {
            let pattern = reason.replace('_', "\\_");
            format!("WHEN {column} = '{reason}' OR {column} LIKE '{pattern}:%' ESCAPE '\\' THEN '{reason}'")
        })
        .collect();
    format!("CASE {} ELSE '{OTHER_REASON}' END", whens.join(" "))
}

/// A statement that counts unsent rows by where they go; `open`: tables and conditions that give them, `exchange` and `key`:
/// expressions for texts.
pub(super) fn count_routes(exchange: &str, key: &str, source: &Source, open: &str, limit: u32) -> String {
    let from = match &source.waiting {
        Some(waiting) => waiting.clone(),
        None => format!("{open} ORDER BY o.id"),
    };
    format!(
        "SELECT e, k, count(*) FROM (SELECT {exchange} AS e, {key} AS k FROM {from} LIMIT {WAITING_SCAN}) AS u
         GROUP BY e, k ORDER BY 3 DESC, e, k LIMIT {limit}"
    )
}

/// A statement that counts by reason what `dead` (tables, conditions and order) gives, up to [`DEAD_REASONS_CAP`] rows. `error`
/// is the expression for `last_error`.
pub(super) fn count_reasons(error: &str, dead: &str) -> String {
    format!(
        "SELECT {}, count(*) FROM (SELECT {error} AS e FROM {dead} LIMIT {DEAD_REASONS_CAP}) AS d GROUP BY 1 ORDER BY 2 DESC, 1",
        reason_of("d.e")
    )
}
