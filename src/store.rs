//! The database behind one trait. Only the files below this one contain SQL.

use std::time::Duration;

use async_trait::async_trait;

use crate::broker::Confirmed;
use crate::config::{Mapping, OnSent, TableName, Tls};
use crate::message::{OrderingKey, OutboxRow, RowId};

mod by_url;
mod columns;
mod grants;
mod history;
mod layout;
mod leases;
mod migrate;
pub mod mysql;
pub mod operator;
mod pace;
mod pauses;
pub mod postgres;
mod purge;
mod refusals;
mod secure;
mod slot;
mod source;
pub mod sqlite;
mod target;
mod types;
mod url;
mod values;
mod wakeup;

pub use by_url::{migrate, migrate_wakeup, migration_sql, open, open_operator, wakeup_sql};
pub use grants::grants_sql;
pub use migrate::Applied;
pub use operator::Operator;
pub use pauses::Pause;
pub use values::share_of;
pub use wakeup::Wakeups;

/// Bodies up to this many bytes travel with the row; larger ones are fetched when there is room for them,
/// so that a page of rows is bounded in bytes as well.
pub const INLINE_PAYLOAD_BYTES: u64 = 16 * 1024;

/// What every store must know.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The outbox table.
    pub table: TableName,
    /// What becomes of a row whose message is confirmed.
    pub on_sent: OnSent,
    /// The bound of one call, connecting included.
    pub timeout: Duration,
    /// How a server is spoken to.
    pub tls: Tls,
    /// Which columns hold what, where the table is not one that `migrate` makes.
    pub mapping: Mapping,
}

/// An outbox table in some database.
///
/// A call before [`Store::inspect`], or after the table changed, looks at the table by itself.
///
/// Every method is one statement (or one short transaction) with a bound on its time, and fails rather
/// than waits: the caller decides when to try again. No method leaves a transaction open.
#[async_trait]
pub trait Store: Send + Sync {
    /// Looks at the table: columns, their types, what may be read and written. Called at the start and again
    /// after [`StoreError::SchemaMissing`], until the application has made its table.
    async fn inspect(&self) -> Result<(), StoreError>;

    /// Up to `limit` unsent rows above `after`, in `id` order. Bodies over [`INLINE_PAYLOAD_BYTES`], and those of
    /// rows that are not due, are left in the table.
    async fn head(&self, after: RowId, limit: u32, shares: &Shares) -> Result<Vec<OutboxRow>, StoreError>;

    /// Like [`Store::head`] for ids above `after` and up to `to`, but only what is needed to decide which rows to fetch.
    /// Rows without a key that are due later than [`SCAN_HORIZON`] are left out.
    async fn scan(&self, after: RowId, to: RowId, limit: u32, shares: &Shares) -> Result<Vec<Stub>, StoreError>;

    /// Looks whether rows have appeared under ids that were not there before (late commits).
    async fn probe(&self, ids: &[RowId]) -> Result<Probe, StoreError>;

    /// The unsent rows among `ids`, in `id` order, with their bodies as long as these have no more than `bytes` together
    /// (the first comes whatever its size); the bodies behind are left in the table.
    async fn fetch(&self, ids: &[RowId], bytes: u64) -> Result<Vec<OutboxRow>, StoreError>;

    /// Marks rows sent, or deletes them, as configured. Returns how many were still there to be marked.
    async fn mark_sent(&self, rows: &[Confirmed]) -> Result<u64, StoreError>;

    /// Writes refusals and dead letters. Returns how many rows were still unsent and took the write; a failure whose
    /// lease is not `holder`'s any more is not written.
    async fn record_failures(&self, failures: &[Failure], holder: &Holder) -> Result<u64, StoreError>;

    /// Joins the relays of this outbox, renews what is owned, gives back what is to be given, takes what is free up to a
    /// fair part (or leaves, with everything); then tells who owns what.
    async fn lease(&self, ask: &LeaseAsk) -> Result<LeaseView, StoreError>;

    /// Whether some share has no owner: a cheap question asked between calls of [`Store::lease`].
    async fn has_free_shares(&self, partitions: u16) -> Result<bool, StoreError>;

    /// The keys that have a dead letter, each with the lowest such row: what `RELAY_ON_DEAD_LETTER=block` blocks.
    async fn dead_keys(&self, limit: u32) -> Result<Vec<(OrderingKey, RowId)>, StoreError>;

    /// What people have paused.
    async fn pauses(&self) -> Result<Vec<Pause>, StoreError>;

    /// Removes what the relay's own tables hold of rows that the application took away; bounded.
    async fn tidy(&self) -> Result<(), StoreError>;

    /// Deletes up to `limit` rows that were sent longer than `older_than` ago. Returns how many.
    async fn purge(&self, older_than: Duration, limit: u32) -> Result<u64, StoreError>;

    /// Counts what is waiting.
    async fn backlog(&self) -> Result<Backlog, StoreError>;

    /// Whether anything may have been committed by others since the last call: a cheap question asked between
    /// polls. `None` where the database cannot answer more cheaply than by a poll.
    async fn changed(&self) -> Result<Option<bool>, StoreError>;

    /// Whether a row can appear below ids already seen. False where writers come one at a time.
    fn commits_out_of_order(&self) -> bool;

    /// Whether the last [`Store::head`] may not have shown all that was committed before it, though it came to the end: a
    /// later one may bring it.
    fn owes_a_look(&self) -> bool {
        false
    }

    /// An ear for inserts, on a connection of its own; `None` where the table or the database has none. Fails where there
    /// is one that does not hear.
    async fn wakeups(&self) -> Result<Option<Box<dyn Wakeups>>, StoreError> {
        Ok(None)
    }

    /// Closes the connections; bounded in time.
    async fn close(&self);
}

/// The part of the key space that is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shares {
    /// Everything: no filter.
    All,
    /// These shares (each below `of`) of `of`.
    Some {
        /// How many shares there are, 1 to 256.
        of: u16,
        /// The shares that are read.
        owned: Vec<u16>,
    },
}

/// [`Store::backlog`] counts no further than this: a count must not hurt the database it reports on.
pub const BACKLOG_CAP: u32 = 1_000_000;

/// [`Store::scan`] leaves out rows without a key that are due later than this: nobody waits for them, and a later
/// sweep finds them.
pub const SCAN_HORIZON: Duration = Duration::from_secs(60);

/// An unsent row without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stub {
    /// Position in the outbox.
    pub id: RowId,
    /// Its key.
    pub ordering_key: Option<OrderingKey>,
    /// How long it must wait yet; zero: due now.
    pub due_in: Duration,
    /// Where it goes to; `None`: `RELAY_AMQP_EXCHANGE`.
    pub exchange: Option<String>,
}

/// The answer to [`Store::probe`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Of the ids asked for, those that exist now in any state.
    pub present: Vec<RowId>,
    /// Those among them that are unsent and not dead.
    pub unsent: Vec<Stub>,
    /// The transactions that were open when the question was answered.
    pub open: OpenTransactions,
}

/// Which transactions may still commit: every one below `oldest` has ended, none at or above `next` has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenTransactions {
    /// The lowest transaction number still running.
    pub oldest: u64,
    /// One above the highest transaction number given out.
    pub next: u64,
}

/// Who writes: a relay under a number of shares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The relay's name, unique among all relays that ever ran.
    pub member: String,
    /// Into how many shares it divides the rows, 1 to 256.
    pub partitions: u16,
}

/// What a relay asks for in one call of [`Store::lease`].
#[derive(Debug, Clone)]
pub struct LeaseAsk {
    /// The relay's name.
    pub member: String,
    /// Into how many shares it divides the rows, 1 to 256.
    pub partitions: u16,
    /// How long leases last from now.
    pub ttl: Duration,
    /// Shares to be given back.
    pub give: Vec<u16>,
    /// Gives everything back and is gone.
    pub leaving: bool,
}

/// Who owns what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaseView {
    /// Every share, by number.
    pub shares: Vec<ShareLease>,
    /// The relays that are there, by name.
    pub members: Vec<String>,
}

/// One share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareLease {
    /// Its number, from 0.
    pub share: u16,
    /// Who owns it now; `None`: free.
    pub owner: Option<String>,
    /// How often its owner has changed.
    pub epoch: i64,
}

/// Under which lease something was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The share.
    pub share: u16,
    /// The epoch in which it was owned.
    pub epoch: i64,
}

/// One refusal, to be written to its row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The row.
    pub row: RowId,
    /// Refusals so far, this one included where it counts.
    pub attempts: u32,
    /// For a person: no payload, no secret. Stores cut it at 2,000 characters.
    pub error: String,
    /// What happens to the row.
    pub next: NextStep,
    /// The lease it was decided under; `None`: written whoever owns the row's share.
    pub lease: Option<Lease>,
}

/// What happens to a refused row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextStep {
    /// Tried again after this time.
    RetryIn(Duration),
    /// Given up: a dead letter.
    Dead,
}

/// What is waiting, by the database's own clock.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Backlog {
    /// Unsent, never refused.
    pub pending: u64,
    /// Unsent, refused at least once.
    pub retrying: u64,
    /// Dead letters.
    pub dead: u64,
    /// Age of the oldest unsent row that is due; `None` without one.
    pub oldest_age: Option<Duration>,
    /// Counting stopped at [`BACKLOG_CAP`] unsent rows, or as many dead ones: there are at least so many.
    pub capped: bool,
}

/// What went wrong, named by what the caller does about it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No connection, or it was lost, or the time was up: try again later.
    #[error("database unavailable: {0}")]
    Unavailable(String),
    /// Deadlock or serialization failure: try again at once.
    #[error("database conflict: {0}")]
    Conflict(String),
    /// The table or a column is not there yet: wait for the application's migrations.
    #[error("{0}")]
    SchemaMissing(String),
    /// The role lacks a privilege: a person must grant it; the relay keeps trying.
    #[error("{0}")]
    Denied(String),
    /// The server or the file takes no writes, whoever asks: a person must name another one, or it becomes writable (a
    /// failover); the relay keeps trying.
    #[error("{0}")]
    ReadOnly(String),
    /// Anything else the database said.
    #[error("database error: {0}")]
    Failed(String),
}

impl StoreError {
    /// Whether the same call may succeed at once.
    pub fn is_conflict(&self) -> bool {
        matches!(self, StoreError::Conflict(_))
    }

    /// For a person: what to do as well, where the server's own words for a privilege that is lacking do not say it.
    pub fn with_advice(&self) -> String {
        match self {
            Self::Denied(text) if is_bare_refusal(text) => {
                format!("{text}: `outbox-relay migrate --print-grants=ROLE` writes what the role needs")
            }
            error => error.to_string(),
        }
    }
}

/// PostgreSQL's words, or those of MariaDB and MySQL, and nothing said to them yet.
fn is_bare_refusal(text: &str) -> bool {
    (text.contains("permission denied for") || text.contains("command denied to")) && !text.contains("grant")
}
