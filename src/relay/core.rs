//! The loop: takes events, turns the state machine, starts what can be started. It is the only place that holds state.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::config::Shutdown;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::store::{Lease, Shares, StoreError};

use super::dispatch::{Dispatcher, Generation, Notice, Time};
use super::leases::Leases;
use super::outage::Outage;
use super::publisher::Batch;
use super::reader::{Answer, Passes, Plan, Read};
use super::settler::Job;
use super::{Ended, Event, Stop};

/// Marks wait for each other this long at the most, so that a trickle of rows does not cost one write each.
const MARK_LINGER: Duration = Duration::from_millis(5);

/// Marks that are enough for a write at once.
const MARK_BATCH: usize = 250;

/// The loop turns at least this often.
const LONGEST_TURN: Duration = Duration::from_secs(1);

/// Failures of rows are logged one by one up to this many a second.
const FAILURE_LOGS_PER_SECOND: u32 = 10;

/// The channels between the loop and the tasks.
pub(super) struct Queues {
    pub(super) inbox: mpsc::Receiver<Event>,
    pub(super) reads: mpsc::Sender<(u64, Read)>,
    pub(super) jobs: mpsc::Sender<Job>,
    /// Shares to be given back: at most as many as there are.
    pub(super) gives: mpsc::UnboundedSender<Lease>,
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
    generation: Option<Generation>,
    /// Until then what is owned may be used; `None` before it was known.
    trusted_until: Option<Instant>,
    /// Leases that were handed to be given back.
    given: Vec<Lease>,
    partitions: u16,
    database: Outage,
    logs: LogBudget,
    shutdown: Shutdown,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
}

struct LaneSlot {
    batches: mpsc::Sender<Batch>,
    idle: bool,
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
            generation: None,
            trusted_until: None,
            given: Vec::new(),
            partitions,
            database: Outage::new("reading the outbox table"),
            logs: LogBudget::default(),
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
        for number in 0..self.lanes.len() {
            if !self.lanes[number].idle {
                continue;
            }
            let batch = self.dispatcher.next_batch(number);
            if batch.is_empty() {
                continue;
            }
            self.lanes[number].idle = false;
            // A lane that ended takes nothing more; its messages are unknown when its connection is retired.
            let _ = self.lanes[number].batches.try_send(batch);
        }
    }

    fn settle(&mut self, now: Time) {
        let waiting = self.dispatcher.marks_waiting();
        if self.oldest_mark.is_none() && waiting > 0 {
            self.oldest_mark = Some(now);
        }
        let due = self.oldest_mark.is_some_and(|oldest| now >= oldest + MARK_LINGER) || waiting >= MARK_BATCH;
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

    fn take(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::Read { read, answer } => self.take_read(read, answer, now),
            Event::Leases(leases) => self.take_leases(leases),
            Event::Connected { generation, lanes } => {
                self.lanes = lanes
                    .into_iter()
                    .map(|batches| LaneSlot { batches, idle: true })
                    .collect();
                self.generation = Some(generation);
                self.dispatcher.connected(generation);
            }
            Event::Blocked(true) => self.dispatcher.paused(),
            Event::Blocked(false) => {
                if let Some(generation) = self.generation {
                    self.dispatcher.connected(generation);
                }
            }
            Event::Report {
                generation,
                lane,
                outcomes,
                broken,
            } => {
                for (row, outcome) in outcomes {
                    self.dispatcher.outcome(generation, row, outcome, now);
                }
                if self.generation == Some(generation) {
                    self.lanes[lane].idle = true;
                    if broken {
                        self.pause();
                    }
                }
            }
            Event::Pausing => self.pause(),
            Event::Retired { generation } => self.dispatcher.retired(generation, now),
            Event::Settled {
                marked,
                written,
                refused,
            } => {
                self.settling = false;
                self.dispatcher.marked(&marked);
                self.dispatcher.failures_written(&written, now);
                self.dispatcher.failures_refused(&refused, now);
            }
            Event::Marked(marked) => self.dispatcher.marked(&marked),
        }
    }

    fn take_read(&mut self, read: (u64, Read), answer: Result<Answer, StoreError>, now: Time) {
        self.reading = false;
        let is_head = matches!(read.1, Read::Head { .. });
        if answer.is_ok() && matches!(read.1, Read::Changed) {
            self.metrics.looked();
        }
        match answer {
            Ok(answer) => {
                self.database.over();
                self.health.database.up();
                let rows = self.plan.answered(read, answer, &mut self.dispatcher, now);
                if is_head {
                    self.metrics.polled(Some(rows));
                }
            }
            Err(error) => {
                if !error.is_conflict() {
                    self.database.goes_on(&error.to_string());
                    self.health.database.down(&error.to_string());
                }
                self.plan.failed(now);
                if is_head {
                    self.metrics.polled(None);
                }
            }
        }
        // Rows that wait to be used are as old as the read that brought them.
        if !self.plan.holds_rows() {
            self.dispatcher.read_finished();
        }
    }

    /// Nothing more is published on this connection.
    fn pause(&mut self) {
        self.generation = None;
        self.lanes.clear();
        self.dispatcher.paused();
    }

    fn take_leases(&mut self, leases: Leases) {
        self.trusted_until = Some(leases.trusted_until);
        self.given.retain(|given| leases.owned.contains(given));
        let now_owned: Vec<Lease> = leases
            .owned
            .into_iter()
            .filter(|lease| !self.given.contains(lease))
            .collect();
        let held = self.dispatcher.held();
        let lost: Vec<Lease> = held
            .iter()
            .copied()
            .filter(|lease| !now_owned.contains(lease))
            .collect();
        let gained: Vec<Lease> = now_owned.into_iter().filter(|lease| !held.contains(lease)).collect();
        for lease in &lost {
            self.dispatcher.disown(lease.share);
        }
        for lease in &gained {
            self.dispatcher.own(*lease);
        }
        if !lost.is_empty() {
            self.metrics.leases_lost.inc_by(lost.len() as u64);
            warn!(shares = ?numbers(&lost), "lost leases: another relay has taken these shares over");
        }
        if !gained.is_empty() {
            info!(shares = ?numbers(&gained), "took over shares");
        }
        let owned = self.dispatcher.owned();
        let under_way = self.dispatcher.held().len() - owned.len();
        let more = leases.surplus.saturating_sub(under_way);
        let handing_over: Vec<Lease> = owned.into_iter().rev().take(more).collect();
        for lease in &handing_over {
            self.dispatcher.drain(lease.share);
        }
        if !(lost.is_empty() && gained.is_empty() && handing_over.is_empty()) {
            self.read_owned(!gained.is_empty());
        }
    }

    /// Gives back the shares of which nothing is on its way any more.
    fn hand_over(&mut self) {
        let drained = self.dispatcher.drained();
        if drained.is_empty() {
            return;
        }
        info!(shares = ?numbers(&drained), "handing over shares");
        for lease in drained {
            self.dispatcher.disown(lease.share);
            self.given.push(lease);
            // The keeper ends only after this loop.
            let _ = self.queues.gives.send(lease);
        }
    }

    fn read_owned(&mut self, anew: bool) {
        let owned: Vec<u16> = numbers(&self.dispatcher.owned());
        let shares = match owned.len() {
            0 => None,
            n if n == usize::from(self.partitions) => Some(Shares::All),
            _ => Some(Shares::Some {
                of: self.partitions,
                owned,
            }),
        };
        self.plan.read_shares(shares, anew);
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
                } => {
                    self.metrics.failed(reason);
                    if first && self.logs.allows() {
                        warn!(
                            row = row.0,
                            reason, detail, "a row could not be published; its key waits for the next try"
                        );
                    }
                }
                Notice::DeadLettered { row, reason } => {
                    self.metrics.dead_lettered(reason);
                    if self.logs.allows() {
                        error!(row = row.0, reason, "a row was given up and is a dead letter now");
                    }
                }
            }
        }
        let blocked = i64::try_from(self.dispatcher.blocked_keys()).unwrap_or(i64::MAX);
        self.metrics.blocked_keys.set(blocked);
        let owned = i64::try_from(self.dispatcher.held().len()).unwrap_or(i64::MAX);
        self.metrics.partitions_owned.set(owned);
    }
}

fn numbers(leases: &[Lease]) -> Vec<u16> {
    leases.iter().map(|lease| lease.share).collect()
}

/// A stop under way.
struct Stopping {
    deadline: Time,
    /// Reading goes on until everything has been read once more since then (`RELAY_SHUTDOWN_DRAIN`).
    drain_since: Option<Passes>,
}

impl Core {
    fn begin_stop(&mut self) -> Stopping {
        let now = self.now();
        let (grace, drain) = (self.shutdown.grace, self.shutdown.drain);
        info!(?grace, drain, in_flight = self.dispatcher.in_flight(), "stopping");
        if drain {
            self.plan.sweep_now(now);
        } else {
            self.stop_reading();
        }
        Stopping {
            deadline: now + grace.saturating_sub(super::farewell_time(grace)),
            drain_since: drain.then(|| self.plan.passes()),
        }
    }

    /// No row begins its way any more.
    fn stop_reading(&mut self) {
        self.reading_stopped = true;
        self.dispatcher.stop();
    }

    /// Whether the stop is complete, or its time is up.
    fn stopped(&mut self, stopping: &mut Stopping) -> Option<Ended> {
        if let Some(since) = stopping.drain_since
            && self.is_drained(since)
        {
            stopping.drain_since = None;
            self.stop_reading();
        }
        if stopping.drain_since.is_none() && self.dispatcher.is_settled() && !self.settling {
            info!("stopped: everything that was published is settled");
            return Some(Ended::Cleanly);
        }
        if self.now() >= stopping.deadline {
            self.warn_unsettled("the time to stop is up");
            return Some(Ended::Unsettled);
        }
        None
    }

    /// Whether nothing is left that this relay could send: it has read everything since then and sent it, or it is known
    /// that others own everything.
    fn is_drained(&self, since: Passes) -> bool {
        let all_read = self.plan.passes().beyond(since) || !self.plan.reads();
        self.trusted_until.is_some() && all_read && !self.plan.holds_rows() && self.dispatcher.is_drained()
    }

    fn warn_unsettled(&self, why: &str) {
        let (in_flight, unmarked) = (self.dispatcher.in_flight(), self.dispatcher.unmarked());
        warn!(
            in_flight,
            unmarked, "{why}: these messages may be sent again, with the same message_id, by the next relay"
        );
    }
}

/// Keeps a storm of failures from becoming a storm of logs; the metrics count them all.
#[derive(Default)]
struct LogBudget {
    second: Option<Instant>,
    used: u32,
    swallowed: u64,
}

impl LogBudget {
    fn allows(&mut self) -> bool {
        if self
            .second
            .is_none_or(|second| second.elapsed() >= Duration::from_secs(1))
        {
            if self.swallowed > 0 {
                warn!(
                    count = self.swallowed,
                    "more rows had trouble than were logged: see the metrics"
                );
            }
            *self = Self {
                second: Some(Instant::now()),
                ..Self::default()
            };
        }
        self.used += 1;
        self.swallowed += u64::from(self.used > FAILURE_LOGS_PER_SECOND);
        self.used <= FAILURE_LOGS_PER_SECOND
    }
}
