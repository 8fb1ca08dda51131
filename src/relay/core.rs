//! The loop: takes events, turns the state machine, starts what can be started. It is the only place that holds state.

mod events;
mod ownership;
mod pauses;
mod stop;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tracing::{error, warn};

use crate::config::Shutdown;
use crate::health::Health;
use crate::message::RowId;
use crate::metrics::Metrics;
use crate::store::Lease;

use super::dispatch::{Dispatcher, Generation, Notice, Time};
use super::outage::{LogBudget, Outage};
use super::publisher::Batch;
use super::reader::{Plan, Read};
use super::settler::Job;
use super::{Ended, Event, Stop};
use stop::Stopping;

/// Marks wait for each other this long at the most, so that a trickle of rows does not cost one write each.
const MARK_LINGER: Duration = Duration::from_millis(10);

/// Marks that are enough for a write at once.
const MARK_BATCH: usize = 500;

/// The loop turns at least this often.
const LONGEST_TURN: Duration = Duration::from_secs(1);

/// The channels between the loop and the tasks.
pub(super) struct Queues {
    pub(super) inbox: mpsc::Receiver<Event>,
    pub(super) reads: mpsc::Sender<(u64, Read)>,
    pub(super) jobs: mpsc::Sender<Job>,
    /// Shares to be given back: at most as many as there are.
    pub(super) gives: mpsc::UnboundedSender<Lease>,
    /// Whether a long pause between reads is worth a wake-up.
    pub(super) sleep: watch::Sender<bool>,
    /// Whether the first share is this relay's, or may be.
    pub(super) own_first: watch::Sender<bool>,
}

pub(super) struct Core {
    dispatcher: Dispatcher,
    plan: Plan,
    queues: Queues,
    clock: Instant,
    reading: bool,
    reading_stopped: bool,
    settling: bool,
    /// When the oldest mark that was not handed on was made.
    oldest_mark: Option<Time>,
    lanes: Vec<LaneSlot>,
    /// Of batches that a lane which had ended was given: none of it was sent.
    unsent: Vec<RowId>,
    generation: Option<Generation>,
    /// Until then what is owned may be used; `None` before it was known.
    trusted_until: Option<Instant>,
    /// Leases that were handed to be given back.
    given: Vec<Lease>,
    partitions: u16,
    pauses_known: bool,
    database: Outage,
    crowd: Outage,
    /// Of rows that are tried again.
    logs: LogBudget,
    /// Of rows that are given up: the others must not keep them from being named.
    dead_logs: LogBudget,
    shutdown: Shutdown,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
}

struct LaneSlot {
    batches: mpsc::Sender<Batch>,
    under_way: usize,
}

impl Core {
    pub(super) fn new(
        dispatcher: Dispatcher,
        plan: Plan,
        queues: Queues,
        partitions: u16,
        shutdown: Shutdown,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
    ) -> Self {
        Self {
            dispatcher,
            plan,
            queues,
            clock: Instant::now(),
            reading: false,
            reading_stopped: false,
            settling: false,
            oldest_mark: None,
            lanes: Vec::new(),
            unsent: Vec::new(),
            generation: None,
            trusted_until: None,
            given: Vec::new(),
            partitions,
            pauses_known: false,
            database: Outage::new("reading the outbox table"),
            crowd: Outage::new("reading new rows"),
            logs: LogBudget::new("rows could not be published"),
            dead_logs: LogBudget::new("rows were given up and are dead letters now"),
            shutdown,
            metrics,
            health,
        }
    }

    /// Until the relay is asked to stop and has done so.
    pub(super) async fn run(&mut self, mut stop: watch::Receiver<Stop>) -> Ended {
        let mut stopping: Option<Stopping> = None;
        loop {
            self.turn();
            self.health.turned();
            if let Some(ended) = stopping.as_mut().and_then(|stopping| self.stopped(stopping)) {
                return ended;
            }
            let wait = self.wait(stopping.as_ref());
            tokio::select! {
                event = self.queues.inbox.recv() => {
                    let Some(event) = event else { return Ended::Broken };
                    self.take(event);
                    // Whatever else has come is taken in the same turn.
                    while let Ok(event) = self.queues.inbox.try_recv() {
                        self.take(event);
                    }
                }
                () = tokio::time::sleep(wait) => {}
                changed = stop.changed() => {
                    let asked = *stop.borrow_and_update();
                    if changed.is_err() || asked == Stop::Now {
                        self.warn_unsettled("stopping at once");
                        return Ended::AtOnce;
                    }
                    if asked == Stop::Gracefully && stopping.is_none() {
                        stopping = Some(self.begin_stop());
                    }
                }
            }
        }
    }

    /// Nothing more is asked of the publisher, and nobody listens to it: it can end.
    pub(super) fn let_publisher_go(&mut self) {
        self.lanes.clear();
        self.queues.inbox.close();
    }

    fn now(&self) -> Time {
        self.clock.elapsed()
    }

    /// Everything that can be started now is started.
    fn turn(&mut self) {
        let now = self.now();
        self.dispatcher.tick(now);
        self.hand_over();
        self.publish();
        self.settle(now);
        self.read(now);
        set(&self.queues.sleep, self.plan.is_idle());
        self.tell();
        self.metrics
            .in_flight
            .set(i64::try_from(self.dispatcher.in_flight()).unwrap_or(i64::MAX));
    }

    fn publish(&mut self) {
        // A relay that was frozen, or that cannot reach the database, may have lost its shares to another.
        if self.trusted_until.is_none_or(|until| Instant::now() >= until) {
            return;
        }
        // Idle lanes first: a key that fills the window of another lane must not keep all others waiting.
        for follow in [false, true] {
            for (number, lane) in self.lanes.iter_mut().enumerate() {
                while follow == (lane.under_way > 0) {
                    let batch = self.dispatcher.next_batch(number, lane.under_way);
                    if batch.is_empty() {
                        break;
                    }
                    lane.under_way += 1;
                    // A lane that ended takes nothing more. It goes again when its connection is retired.
                    if let Err(TrySendError::Closed(batch) | TrySendError::Full(batch)) = lane.batches.try_send(batch) {
                        self.unsent.extend(batch.iter().map(|message| message.row));
                    }
                }
            }
        }
    }

    fn settle(&mut self, now: Time) {
        let waiting = self.dispatcher.marks_waiting();
        if self.oldest_mark.is_none() && waiting > 0 {
            self.oldest_mark = Some(now);
        }
        // Above two windows nothing more is published.
        let enough = MARK_BATCH.min(self.dispatcher.window());
        let due = self.oldest_mark.is_some_and(|oldest| now >= oldest + MARK_LINGER) || waiting >= enough;
        if self.settling || !(due || self.dispatcher.failures_waiting()) {
            return;
        }
        self.oldest_mark = None;
        self.settling = true;
        let job = Job {
            sent: self.dispatcher.take_marks(),
            failed: self.dispatcher.take_failures(),
        };
        // There is room: one job is under way at a time.
        let _ = self.queues.jobs.try_send(job);
    }

    fn read(&mut self, now: Time) {
        if self.reading || self.reading_stopped {
            return;
        }
        if let Some(read) = self.plan.next(&self.dispatcher, now) {
            self.reading = true;
            self.dispatcher.read_started();
            // There is room: one read is under way at a time.
            let _ = self.queues.reads.try_send((self.plan.round(), read));
        }
    }

    fn wait(&self, stopping: Option<&Stopping>) -> Duration {
        let now = self.now();
        let mark = self
            .oldest_mark
            .filter(|_| !self.settling)
            .map(|oldest| oldest + MARK_LINGER);
        let read = if self.reading || self.reading_stopped {
            None
        } else {
            self.plan.next_time(&self.dispatcher)
        };
        let deadline = stopping.map(|stopping| stopping.deadline);
        let next = [mark, read, deadline, self.dispatcher.next_timer()]
            .into_iter()
            .flatten()
            .min();
        next.map_or(LONGEST_TURN, |at| at.saturating_sub(now)).min(LONGEST_TURN)
    }

    fn tell(&mut self) {
        for notice in self.dispatcher.take_notices() {
            match notice {
                Notice::Published { latency } => self.metrics.published(latency),
                Notice::Failed {
                    row,
                    reason,
                    detail,
                    first,
                    again,
                } => {
                    self.metrics.failed(reason);
                    if first && again && self.logs.allows() {
                        warn!(
                            row = row.0,
                            reason, detail, "a row could not be published; it is tried again, and its key waits for it"
                        );
                    }
                }
                Notice::DeadLettered { row, reason, detail } => {
                    self.metrics.dead_lettered(reason);
                    if self.dead_logs.allows() {
                        error!(
                            row = row.0,
                            reason, detail, "a row was given up and is a dead letter now"
                        );
                    }
                }
            }
        }
        self.logs.tell();
        self.dead_logs.tell();
        if self.dispatcher.is_full_of_waiting() {
            self.crowd
                .goes_on("too many keys wait for their time, a retry or a paused exchange: see backlog, last_error, available_at and status");
        } else {
            self.crowd.over();
        }
        let blocked = i64::try_from(self.dispatcher.blocked_keys()).unwrap_or(i64::MAX);
        self.metrics.blocked_keys.set(blocked);
        let held = self.dispatcher.held();
        let owned = i64::try_from(held.len()).unwrap_or(i64::MAX);
        self.metrics.partitions_owned.set(owned);
        if self.trusted_until.is_some() {
            set(&self.queues.own_first, held.iter().any(|lease| lease.share == 0));
        }
    }
}

/// Wakes nobody if it is so already.
fn set(flag: &watch::Sender<bool>, value: bool) {
    flag.send_if_modified(|before| std::mem::replace(before, value) != value);
}
