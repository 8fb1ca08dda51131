//! Who may go now, and who waits: a pure state machine. No I/O, no clock, no task; it is told what happened and when.
//!
//! A row's states:
//!
//! ```text
//!  admit ─▶ Waiting ─▶ InFlight ─▶ Confirmed ─▶ (marked: forgotten)
//!             ▲  ▲         │ fate unknown
//!             │  └─────────┤
//!             │            │ refused             given up
//!             └─ Backoff ◀─┴─▶ Failing ────────▶ (dead letter: forgotten)
//! ```
//!
//! Memory is bounded by the settings, not by the backlog: bodies are held only for rows that may go soon, and of a key
//! that cannot go on, only its first row is remembered. The rest is *left*: it stays in the table from a known id on,
//! and is read again when the key flows.

mod admit;
mod keys;
mod pauses;
mod publish;
mod retry;
mod shares;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use foldhash::{HashMap, HashSet};

use crate::broker::Confirmed;
use crate::config::{OnDeadLetter, Ordering};
use crate::message::{Copies, Invalid, Message, MessageId, MessageRules, OrderingKey, RowId};
use crate::store::{Failure, Lease, NextStep};

pub use pauses::Paused;
pub use retry::RetryPolicy;

use keys::Keys;
use pauses::{Hashed, Pauses};
use shares::Share;

/// Time since the relay started, by a monotonic clock that the caller reads.
pub type Time = Duration;

/// Which connection to the broker: an outcome of an older one never settles a row.
pub type Generation = u64;

/// Batches under way on a lane at the most: with one behind another the broker has always something to do.
pub const LANE_DEPTH: usize = 4;

/// The bounds within which rows are dispatched.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What order is kept.
    pub ordering: Ordering,
    /// What a dead letter does to its key.
    pub on_dead_letter: OnDeadLetter,
    /// What becomes of refused rows.
    pub retry: RetryPolicy,
    /// What every message must satisfy.
    pub rules: MessageRules,
    /// Into how many shares the rows are divided, 1 to 256.
    pub partitions: u16,
    /// How many lanes there are.
    pub lanes: usize,
    /// Messages published and not settled, over all lanes.
    pub in_flight: usize,
    /// Messages confirmed and not yet marked; above it nothing more is published.
    pub unmarked: usize,
    /// Rows held that are waiting or in flight.
    pub rows: usize,
    /// Rows remembered without their body because they must wait (backoff, delayed send).
    pub stubs: usize,
    /// Keys remembered because a row of a paused exchange stands before their others; above it nothing more is read.
    pub paused_keys: usize,
    /// Rows held of one key.
    pub rows_per_key: usize,
    /// Bytes of the bodies held.
    pub bytes: u64,
}

/// What an observer may want to count or log.
#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
    /// The broker confirmed a row this long after it was created.
    Published {
        /// By the database's clock.
        latency: Duration,
    },
    /// A publish did not succeed.
    Failed {
        /// The row.
        row: RowId,
        /// One of [`crate::metrics::FAILURE_REASONS`].
        reason: &'static str,
        /// For a person.
        detail: String,
        /// The row had no trouble before.
        first: bool,
        /// It is tried again; else it is given up.
        again: bool,
    },
    /// A row was given up and the dead letter is written.
    DeadLettered {
        /// The row.
        row: RowId,
        /// One of [`crate::metrics::DEAD_LETTER_REASONS`].
        reason: &'static str,
        /// For a person.
        detail: String,
    },
}

struct Row {
    key: Option<OrderingKey>,
    share: u16,
    /// Where it goes to.
    exchange: Hashed,
    content: Content,
    /// Bytes of the body; 0 when not known yet.
    size: u64,
    attempts: u32,
    /// Refusals in a row that do not count as attempts: nacks and timeouts.
    setbacks: u32,
    /// For a person: why it is given up.
    given_up: Option<Box<str>>,
    copies: Copies,
    state: State,
    /// Age when it was read, and when that was.
    age: (Duration, Time),
}

enum Content {
    /// The body is in the table.
    Left,
    Ready(Arc<Message>),
    /// It can never be a message.
    Bad(Invalid),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    InFlight(Generation),
    Confirmed,
    /// Its refusal is being written.
    Failing {
        next: NextStep,
        reason: &'static str,
        lease: Option<Lease>,
    },
    Backoff {
        until: Time,
        /// The table says so, too.
        noted: bool,
    },
    /// Kept only until the read under way has ended.
    Done,
}

/// Something that may be able to go.
enum Turn {
    Row(RowId),
    Key(OrderingKey),
}

/// The state machine.
pub struct Dispatcher {
    settings: Settings,
    shares: Vec<Share>,
    rows: HashMap<RowId, Row>,
    keys: Keys,
    ready: VecDeque<Turn>,
    /// Turns of keys that have messages in flight on a lane (`pipelined` only): order holds per channel.
    pinned: Vec<VecDeque<Turn>>,
    /// Waiting rows whose bodies are still to be fetched.
    left: BTreeSet<RowId>,
    timers: BinaryHeap<Reverse<(Time, RowId)>>,
    rng: fastrand::Rng,
    pauses: Pauses,
    /// The connection in use; `None`: nothing can be published.
    generation: Option<Generation>,
    in_flight: usize,
    /// The `message_id`s of what is in flight.
    ids: HashSet<MessageId>,
    confirmed: usize,
    stubs: usize,
    bytes: u64,
    marks: Vec<Confirmed>,
    failures: Vec<Failure>,
    notices: Vec<Notice>,
    /// No row begins its way any more.
    stopped: bool,
    /// A read is under way that may still show rows as they were when it began.
    reading: bool,
    /// Rows that are done but may be shown once more by that read.
    forget_after_read: Vec<RowId>,
}

impl Dispatcher {
    /// An empty one. `seed` makes the jitter of retries repeatable.
    pub fn new(settings: Settings, seed: u64) -> Self {
        Self {
            keys: Keys::new(settings.ordering, settings.rows_per_key),
            shares: vec![Share::default(); usize::from(settings.partitions)],
            pinned: (0..settings.lanes).map(|_| VecDeque::new()).collect(),
            settings,
            rows: HashMap::default(),
            ready: VecDeque::new(),
            left: BTreeSet::new(),
            timers: BinaryHeap::new(),
            rng: fastrand::Rng::with_seed(seed),
            pauses: Pauses::unknown(),
            generation: None,
            in_flight: 0,
            ids: HashSet::default(),
            confirmed: 0,
            stubs: 0,
            bytes: 0,
            marks: Vec::new(),
            failures: Vec::new(),
            notices: Vec::new(),
            stopped: false,
            reading: false,
            forget_after_read: Vec::new(),
        }
    }

    // ---- what goes out -------------------------------------------------------------------------------------------

    /// Confirmed rows to be marked, in the order of their confirms.
    pub fn take_marks(&mut self) -> Vec<Confirmed> {
        std::mem::take(&mut self.marks)
    }

    /// How many confirmed rows wait to be taken by [`Dispatcher::take_marks`].
    pub fn marks_waiting(&self) -> usize {
        self.marks.len()
    }

    /// Whether there are refusals to be written.
    pub fn failures_waiting(&self) -> bool {
        !self.failures.is_empty()
    }

    /// Refusals to be written.
    pub fn take_failures(&mut self) -> Vec<Failure> {
        std::mem::take(&mut self.failures)
    }

    /// What happened since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Nothing more is published; what is on its way is settled.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    // ---- what is held --------------------------------------------------------------------------------------------

    /// Messages published and not settled.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Messages confirmed and not yet marked.
    pub fn unmarked(&self) -> usize {
        self.confirmed
    }

    /// Keys whose next row cannot go now because it was refused, must wait, or is a dead letter that blocks.
    pub fn blocked_keys(&self) -> usize {
        self.keys.blocked()
    }

    /// Whether so many keys must wait that no new rows are read.
    pub fn is_full_of_waiting(&self) -> bool {
        self.stubs >= self.settings.stubs || self.pauses.keys() >= self.settings.paused_keys
    }

    /// Whether nothing is on its way: neither to the broker nor back to the table.
    pub fn is_settled(&self) -> bool {
        self.in_flight == 0
            && self.confirmed == 0
            && !self.rows.values().any(|row| matches!(row.state, State::Failing { .. }))
    }

    /// Whether no row is held that could still be published without waiting for its time or a person.
    pub fn is_drained(&self) -> bool {
        let nothing_left = self.active() == 0 && self.keys.refill_from().is_none();
        self.is_settled() && (nothing_left || self.pauses.everything())
    }

    /// When [`Dispatcher::tick`] has something to do next.
    pub fn next_timer(&self) -> Option<Time> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    /// How many messages may be in flight.
    pub fn window(&self) -> usize {
        self.settings.in_flight
    }

    /// Rows that are waiting or in flight.
    fn active(&self) -> usize {
        self.rows
            .len()
            .saturating_sub(self.stubs + self.confirmed + self.forget_after_read.len())
    }

    /// Gives the body's memory back.
    fn drop_body(&mut self, id: RowId) {
        if let Some(row) = self.rows.get_mut(&id) {
            if matches!(row.content, Content::Ready(_)) {
                self.bytes -= row.size;
            }
            row.content = Content::Left;
        }
    }

    /// Forgets a row that is done with here; not before the read under way has ended, which may show it as it was.
    fn forget(&mut self, id: RowId) {
        self.drop_body(id);
        self.left.remove(&id);
        if !self.reading {
            self.rows.remove(&id);
        } else if let Some(row) = self.rows.get_mut(&id) {
            row.state = State::Done;
            self.forget_after_read.push(id);
        }
    }

    /// `id`, and with it its key, must wait; later rows of the key go back to the table.
    fn hold(&mut self, id: RowId, key: Option<&OrderingKey>) {
        if let Some(key) = key {
            let behind = self.keys.hold(key, id, |row| rests(&self.rows, row));
            self.leave(behind);
        }
    }

    /// These rows, which wait for their turn or their time, are not held any longer; they will be read again.
    fn leave(&mut self, rows: Vec<RowId>) {
        for id in rows {
            self.drop_body(id);
            self.left.remove(&id);
            if rests(&self.rows, id) {
                self.stubs -= 1;
            }
            self.rows.remove(&id);
        }
    }

    /// `id` can go as soon as it is its turn.
    fn queue(&mut self, id: RowId, key: Option<OrderingKey>) {
        match key {
            None => self.ready.push_back(Turn::Row(id)),
            Some(key) => {
                self.keys.add_waiting(&key, id);
                self.queue_key(key);
            }
        }
    }

    /// Gives the key a turn if it has a row that can go.
    fn queue_key(&mut self, key: OrderingKey) {
        match self.keys.ask_turn(&key) {
            None => {}
            Some(None) => self.ready.push_back(Turn::Key(key)),
            Some(Some(lane)) => self.pinned[lane].push_back(Turn::Key(key)),
        }
    }
}

/// Whether a row waits for nothing but its time.
fn rests(rows: &HashMap<RowId, Row>, id: RowId) -> bool {
    rows.get(&id)
        .is_some_and(|row| matches!(row.state, State::Backoff { .. }))
}
