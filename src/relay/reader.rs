//! What to read next. One read is under way at a time.
//!
//! Three reads: the *head* (ids above the cursor) is the fast way of new rows. *Probes* look at ids that the cursor
//! skipped ([`Holes`]). *Scans* walk all that is unsent below the cursor: now and then (the sweep), which is what makes
//! loss impossible whatever happened to the ids, and whenever a key can go on whose rows were left in the table.

use std::time::Duration;

use crate::config::Poll;
use crate::message::{OrderingKey, OutboxRow, RowId};
use crate::store::{Probe, Shares, Stub};

use super::dispatch::{Dispatcher, Time};
use super::holes::Holes;

mod answers;

/// How often skipped ids are looked at while no new rows come.
const PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// Ids of one page of a scan; they come without bodies. Tests have small tables, and want several pages.
pub(super) const SCAN_PAGE: u32 = if cfg!(test) { 7 } else { 5_000 };

/// Bodies fetched with one statement.
const FETCH_PAGE: usize = 500;

/// How long reading waits for a busy key that sends many rows at once (`pipelined`) to make room for its next ones: until then
/// they are read once. A slower key has them left in the table, so that it does not keep those of others from being read.
const PATIENCE: Duration = Duration::from_millis(50);

/// How late a timer is in the mean: tokio's go off at whole milliseconds.
const TIMER_LATE: Duration = Duration::from_micros(500);

/// Where the database tells cheaply whether anything changed, it is asked at least this often.
const CHANGE_INTERVAL: Duration = Duration::from_millis(10);

/// Pauses between reads from which on a wake-up is worth its cost.
const WAKEUP_FROM: Duration = Duration::from_millis(16);

/// How many ids below the first row are taken for skipped: transactions that were open then.
const START_WATCH: i64 = 1_000;

/// Longest pause after an error.
const ERROR_PAUSE: Duration = Duration::from_secs(5);

/// Keys with dead letters that are asked for.
pub(super) const DEAD_KEYS: u32 = 10_000;

/// One question to the store.
#[derive(Debug, Clone)]
pub enum Read {
    /// New rows.
    Head {
        /// The cursor.
        after: RowId,
        /// Rows at the most.
        limit: u32,
        /// Of these shares.
        shares: Shares,
    },
    /// Everything unsent in a range of ids.
    Scan {
        /// Not this one.
        after: RowId,
        /// This one too.
        to: RowId,
        /// Of these shares.
        shares: Shares,
    },
    /// Ids that were skipped.
    Probe(Vec<RowId>),
    /// Bodies.
    Fetch {
        /// Of these rows.
        ids: Vec<RowId>,
        /// Of so many bytes together.
        bytes: u64,
    },
    /// Keys with dead letters.
    DeadKeys,
    /// Has anything changed?
    Changed,
}

/// The store's answer.
#[derive(Debug)]
pub enum Answer {
    /// To [`Read::Head`].
    Head {
        /// The rows.
        rows: Vec<OutboxRow>,
        /// Where these are fewer than asked for, there were no more.
        whole: bool,
    },
    /// To [`Read::Scan`].
    Scan(Vec<Stub>),
    /// To [`Read::Probe`].
    Probe(Probe),
    /// To [`Read::Fetch`].
    Fetch(Vec<OutboxRow>),
    /// To [`Read::DeadKeys`].
    DeadKeys(Vec<(OrderingKey, RowId)>),
    /// To [`Read::Changed`]; `None`: the database cannot tell.
    Changed(Option<bool>),
}

/// How often everything has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passes {
    /// Completed sweeps.
    pub sweeps: u64,
    /// Head reads that found the end of the table.
    pub ends: u64,
}

impl Passes {
    /// Whether everything has been read since `before`.
    pub fn beyond(self, before: Self) -> bool {
        self.sweeps > before.sweeps && self.ends > before.ends
    }
}

/// Decides what is read when.
pub struct Plan {
    poll: Poll,
    /// What is read; `None`: nothing is owned.
    shares: Option<Shares>,
    /// Counts the times that reading began anew: answers to questions from before do not count.
    round: u64,
    out_of_order: bool,
    watch_dead_keys: bool,
    cursor: RowId,
    /// Rows of a head read that wait until the skipped ids have been looked at.
    unproven: Option<Vec<OutboxRow>>,
    /// A head read has found the end of the table since reading began anew: what comes after it was committed later.
    found_end: bool,
    /// That was so before the rows that wait were read.
    unproven_are_new: bool,
    holes: Holes,
    head_at: Time,
    /// When there was last room for a page for which no key is kept short.
    easy_at: Time,
    idle: Duration,
    /// A head read is wanted that began after this was set.
    wanted: bool,
    /// Whether the database can tell cheaply that nothing changed.
    tells_changes: bool,
    /// The last head read was empty: that question comes first.
    ask_first: bool,
    probe_at: Time,
    sweep_at: Time,
    /// How far the sweep under way has come.
    sweep: Option<RowId>,
    sweeps_done: u64,
    /// How often a head read has found the end of the table.
    ends_found: u64,
    /// Dead keys are asked for before the first rows are used, and with every sweep.
    dead_keys_due: bool,
    asked_at: Time,
    scan_next: bool,
    errors: u32,
}

impl Plan {
    /// Reads nothing before it is told what is owned.
    pub fn new(poll: Poll, out_of_order: bool, watch_dead_keys: bool) -> Self {
        Self {
            shares: None,
            round: 0,
            idle: poll.min_interval,
            sweep_at: poll.sweep_interval,
            poll,
            out_of_order,
            watch_dead_keys,
            cursor: RowId(i64::MIN),
            unproven: None,
            found_end: false,
            unproven_are_new: false,
            holes: Holes::default(),
            head_at: Duration::ZERO,
            easy_at: Duration::ZERO,
            wanted: false,
            tells_changes: true,
            ask_first: false,
            probe_at: Duration::ZERO,
            sweep: None,
            sweeps_done: 0,
            ends_found: 0,
            dead_keys_due: watch_dead_keys,
            asked_at: Duration::ZERO,
            scan_next: false,
            errors: 0,
        }
    }

    /// These shares are read from now on. `anew`: some of them were not read before, so that everything unsent is read
    /// from the beginning; rows that are known are known.
    pub fn read_shares(&mut self, shares: Option<Shares>, anew: bool) {
        self.shares = shares;
        // What is under way was asked for other shares.
        self.round += 1;
        self.sweep = None;
        if anew {
            // Read again; otherwise these rows are behind the cursor and must not be dropped.
            self.unproven = None;
            self.found_end = false;
            self.cursor = RowId(i64::MIN);
            self.ask_first = false;
            self.head_at = Duration::ZERO;
            self.dead_keys_due = self.watch_dead_keys;
        }
    }

    /// Everything unsent is read from the beginning, of the same shares.
    pub fn read_anew(&mut self) {
        let shares = self.shares.take();
        self.read_shares(shares, true);
    }

    /// Something may have been inserted: the next head read is now. Does not make the reads after it any quicker.
    pub fn look(&mut self, now: Time) {
        self.wanted = true;
        self.head_at = self.head_at.min(now);
    }

    /// Whether so little comes that the pauses between reads have become long.
    pub fn is_idle(&self) -> bool {
        self.reads() && self.errors == 0 && self.idle >= WAKEUP_FROM
    }

    /// Which reading a question belongs to.
    pub fn round(&self) -> u64 {
        self.round
    }

    /// How often everything has been read: by a sweep, and up to the end of the table.
    pub fn passes(&self) -> Passes {
        Passes {
            sweeps: self.sweeps_done,
            ends: self.ends_found,
        }
    }

    /// Whether anything is read at all.
    pub fn reads(&self) -> bool {
        self.shares.is_some()
    }

    /// Sweeps now.
    pub fn sweep_now(&mut self, now: Time) {
        // A read that is under way may not see what is committed now.
        self.round += 1;
        self.sweep_at = now;
        self.sweep = None;
    }

    /// The next question, if it is time for one.
    pub fn next(&mut self, dispatcher: &Dispatcher, now: Time) -> Option<Read> {
        self.asked_at = now;
        if !dispatcher.has_window_ready() || dispatcher.easy_room() >= self.page() {
            self.easy_at = now;
        }
        if self.shares.is_none() || (self.errors > 0 && now < self.head_at) {
            return None;
        }
        if self.dead_keys_due {
            return Some(Read::DeadKeys);
        }
        if self.unproven.is_some() {
            return Some(Read::Probe(self.holes.ids_through(self.cursor)));
        }
        let (ids, bytes) = dispatcher.to_fetch(FETCH_PAGE);
        if !ids.is_empty() {
            return Some(Read::Fetch { ids, bytes });
        }
        self.scan_next = !self.scan_next;
        if self.scan_next {
            self.back(dispatcher, now).or_else(|| self.head(dispatcher, now))
        } else {
            self.head(dispatcher, now).or_else(|| self.back(dispatcher, now))
        }
    }

    /// When to ask again if nothing happens.
    pub fn next_time(&self, dispatcher: &Dispatcher) -> Option<Time> {
        self.shares.as_ref()?;
        if self.errors > 0 && self.asked_at < self.head_at {
            return Some(self.head_at);
        }
        let room = dispatcher.room() > 0;
        let head = if self.head_limit(dispatcher, self.asked_at) > 0 {
            Some(self.head_at)
        } else {
            let patient = self.easy_at + PATIENCE;
            (self.head_limit(dispatcher, patient) > 0).then_some(self.head_at.max(patient))
        };
        let sweep = room.then_some(self.sweep_at);
        let probe = self.holes.any_through(self.cursor).then_some(self.probe_at);
        [head, sweep, probe].into_iter().flatten().min()
    }

    fn head(&mut self, dispatcher: &Dispatcher, now: Time) -> Option<Read> {
        let limit = self.head_limit(dispatcher, now);
        if limit == 0 || now < self.head_at {
            return None;
        }
        if self.ask_first && self.tells_changes {
            return Some(Read::Changed);
        }
        self.wanted = false;
        Some(Read::Head {
            after: self.cursor,
            limit,
            shares: self.shares.clone()?,
        })
    }

    /// How many new rows are read at once.
    fn head_limit(&self, dispatcher: &Dispatcher, now: Time) -> u32 {
        if self.waits_for_room(dispatcher, now) {
            return 0;
        }
        u32::try_from(dispatcher.room())
            .unwrap_or(u32::MAX)
            .min(self.poll.batch_size)
    }

    /// While there is enough to publish, rows are read only once a whole page of them has room: three small pages cost
    /// the database more than a large one.
    fn waits_for_room(&self, dispatcher: &Dispatcher, now: Time) -> bool {
        let room = if now < self.easy_at + PATIENCE {
            dispatcher.easy_room()
        } else {
            dispatcher.room()
        };
        dispatcher.has_window_ready() && room < self.page()
    }

    fn page(&self) -> usize {
        self.poll.batch_size as usize
    }

    fn back(&mut self, dispatcher: &Dispatcher, now: Time) -> Option<Read> {
        if !self.waits_for_room(dispatcher, now)
            && let Some(from) = dispatcher.refill_from()
        {
            return self.scan(RowId(from.0.saturating_sub(1)));
        }
        if now >= self.sweep_at && dispatcher.room() > 0 {
            let after = *self.sweep.get_or_insert(RowId(i64::MIN));
            return self.scan(after);
        }
        if now >= self.probe_at && self.holes.any_through(self.cursor) {
            return Some(Read::Probe(self.holes.ids_through(self.cursor)));
        }
        None
    }

    fn scan(&self, after: RowId) -> Option<Read> {
        Some(Read::Scan {
            after,
            to: self.cursor,
            shares: self.shares.clone()?,
        })
    }

    /// Whether rows that were read wait until the skipped ids have been looked at.
    pub fn holds_rows(&self) -> bool {
        self.unproven.is_some()
    }
}
