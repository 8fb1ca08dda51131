//! The message broker behind a narrow trait. Only the files below this one name lapin.

use std::sync::Arc;

use async_trait::async_trait;

use crate::message::{Message, RowId};

pub mod amqp;
pub mod management;

/// Proof that the broker took responsibility for a row's message: the only thing that can be marked sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Confirmed(RowId);

impl Confirmed {
    /// States that `row`'s message is confirmed. A lane calls this for a positive confirm of exactly that message
    /// which did not come back as unroutable; nothing else in this crate may (clippy's `disallowed_methods`).
    pub fn attest(row: RowId) -> Self {
        Self(row)
    }

    /// The row.
    pub fn row(self) -> RowId {
        self.0
    }
}

/// What became of one published message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Taken by the broker and routed.
    Confirmed(Confirmed),
    /// No queue is bound for it.
    Unroutable(String),
    /// A queue is full or failed: the broker could not take it now.
    Nacked,
    /// The exchange does not exist.
    NoExchange(String),
    /// The broker refuses this message or this user.
    Refused(String),
    /// Nobody knows: published again under the same `message_id`.
    Unknown(Doubt),
}

impl Outcome {
    /// What went wrong, in the words of the metrics; `None` for a message that is there.
    pub fn failure(&self) -> Option<&'static str> {
        Some(match self {
            Self::Confirmed(_) => return None,
            Self::Unroutable(_) => "unroutable",
            Self::Nacked => "nack",
            Self::NoExchange(_) => "no_exchange",
            Self::Refused(_) => "refused",
            Self::Unknown(Doubt::Timeout) => "timeout",
            Self::Unknown(Doubt::Disconnected | Doubt::Unsent) => "disconnected",
        })
    }
}

/// Why the fate of a message is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// No confirm within the time allowed.
    Timeout,
    /// Channel or connection lost.
    Disconnected,
    /// The connection was lost before anything of the message was sent: there is no new copy of it.
    Unsent,
}

/// The fate of every message of the oldest batches of a lane.
#[derive(Debug)]
pub struct BatchReport {
    /// How many batches these were.
    pub batches: usize,
    /// One outcome per message, in any order.
    pub outcomes: Vec<(RowId, Outcome)>,
    /// Set when the whole connection must be retired; says why. The lane has no batch any more.
    pub broken: Option<String>,
}

impl BatchReport {
    fn of(batches: usize) -> Self {
        Self {
            batches,
            outcomes: Vec::new(),
            broken: None,
        }
    }

    /// The connection must be retired, and nobody knows what became of these messages, unless their `copies` say that none was
    /// sent.
    fn broken(&mut self, doubt: Doubt, messages: impl IntoIterator<Item = Arc<Message>>, why: String) {
        let unknown = messages.into_iter().map(|message| {
            let unsent = message.copies.none_of_this_relay();
            let doubt = if unsent { Doubt::Unsent } else { doubt };
            (message.row, Outcome::Unknown(doubt))
        });
        self.outcomes.extend(unknown);
        self.broken = Some(why);
    }
}

/// A broker that can be connected to.
#[async_trait]
pub trait Broker: Send + Sync {
    /// Opens a connection with its lanes, trying each address in turn. Bounded in time.
    async fn connect(&self) -> Result<Connected, BrokerError>;
}

/// A fresh connection.
pub struct Connected {
    /// The connection itself.
    pub session: Box<dyn Session>,
    /// Its lanes, each owned by one task.
    pub lanes: Vec<Box<dyn Lane>>,
}

/// A connection's state, watched while its lanes work.
#[async_trait]
pub trait Session: Send + Sync {
    /// The broker stopped taking messages (memory or disk alarm): an outage.
    fn blocked(&self) -> bool;

    /// Why the connection can no longer be used; `None` while it can.
    fn failure(&self) -> Option<String>;

    /// Which broker it is, without credentials.
    fn address(&self) -> &str;

    /// Whether the exchange is there; the error is for a person.
    async fn check_exchange(&self, name: &str) -> Result<(), String>;

    /// Ends the connection for good, within a bound, whatever state it is in. Messages still waiting for a confirm
    /// are reported as [`Outcome::Unknown`] by their lanes.
    async fn close(&self);
}

/// One AMQP channel, whose messages keep their order. Owned by one task: two tasks on a channel would swap delivery tags.
#[async_trait]
pub trait Lane: Send {
    /// Takes a batch, to be published behind those that are under way. `message_id`s are unique among all of them.
    fn begin(&mut self, batch: Vec<Arc<Message>>);

    /// Ends when [`Lane::report`] has something to do. Must be called while a batch is under way: nothing goes out
    /// without. Can be dropped at any time.
    async fn wait(&mut self);

    /// What became of the oldest batches, once that is certain or the confirm timeout has passed (it stands still while
    /// the broker is blocked). Must not be dropped before its end, nor be called when no batch is under way.
    async fn report(&mut self) -> BatchReport;
}

/// No connection could be made.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BrokerError(pub String);
