//! The relay's loop without its tasks: it drives the real `Dispatcher` and `Plan` as `relay::Core` does.

use std::sync::Arc;
use std::time::Duration;

use crate::broker::Confirmed;
use crate::config::{OnDeadLetter, Ordering};
use crate::message::Message;
use crate::relay::dispatch::{Dispatcher, Generation, Paused, Time};
use crate::relay::reader::{Answer, Plan, Read};
use crate::store::{Failure, Lease, Shares};

use super::broker::Outcomes;
use super::scenario::Scenario;
use super::world::Bug;

const MARK_LINGER: Duration = Duration::from_millis(5);
const MARK_BATCH: usize = 8;
const LONGEST_TURN: Duration = Duration::from_secs(1);
const NEVER: Duration = Duration::from_secs(1_000_000);

#[derive(Debug, Clone, Default)]
pub(super) struct Job {
    pub(super) sent: Vec<Confirmed>,
    pub(super) failed: Vec<Failure>,
}

/// What a turn of the loop began.
#[derive(Default)]
pub(super) struct Begun {
    pub(super) batches: Vec<(usize, Vec<Arc<Message>>)>,
    pub(super) job: Option<Job>,
    pub(super) read: Option<Read>,
}

pub(super) struct Twin {
    pub(super) dispatcher: Dispatcher,
    pub(super) plan: Plan,
    bug: Bug,
    reading: bool,
    /// The round of the read under way.
    round: u64,
    settling: bool,
    oldest_mark: Option<Time>,
    /// How many batches each lane has; none without a connection.
    lanes: Vec<usize>,
    generation: Option<Generation>,
    /// Since when it is being stopped.
    pub(super) stopping: Option<Time>,
    /// Its clock began then.
    born: Time,
}

impl Twin {
    pub(super) fn new(scenario: &Scenario, bug: Bug, born: Time) -> Self {
        let mut settings = scenario.settings.clone();
        let blocks = settings.on_dead_letter == OnDeadLetter::Block;
        let mut poll = scenario.poll;
        if bug == Bug::RetryLetsLaterPass {
            settings.ordering = Ordering::None;
        }
        if matches!(bug, Bug::NoSweep | Bug::CursorOnlyPoll) {
            poll.sweep_interval = NEVER;
        }
        let out_of_order = !scenario.one_at_a_time && bug != Bug::CursorOnlyPoll;
        let mut dispatcher = Dispatcher::new(settings, scenario.seed);
        dispatcher.own(Lease { share: 0, epoch: 1 });
        if bug == Bug::PauseNotSeen {
            dispatcher.pause(&Paused::default());
        }
        let mut plan = Plan::new(poll, out_of_order, blocks);
        plan.read_shares(Some(Shares::All), true);
        Self {
            dispatcher,
            plan,
            bug,
            reading: false,
            round: 0,
            settling: false,
            oldest_mark: None,
            lanes: Vec::new(),
            generation: None,
            stopping: None,
            born,
        }
    }

    /// The time as this relay's own clock tells it.
    fn own(&self, now: Time) -> Time {
        now.saturating_sub(self.born)
    }

    pub(super) fn turn(&mut self, now: Time) -> Begun {
        let now = self.own(now);
        let mut begun = Begun::default();
        if self.bug == Bug::PauseLetsLaterPass {
            self.dispatcher.pauses.forget_keys();
        }
        self.dispatcher.tick(now);
        for follow in [false, true] {
            for (lane, under_way) in self.lanes.iter_mut().enumerate() {
                while follow == (*under_way > 0) {
                    let batch = self.dispatcher.next_batch(lane, *under_way);
                    if batch.is_empty() {
                        break;
                    }
                    *under_way += 1;
                    begun.batches.push((lane, batch));
                }
            }
        }
        let waiting = self.dispatcher.marks_waiting();
        if self.oldest_mark.is_none() && waiting > 0 {
            self.oldest_mark = Some(now);
        }
        let due = self.oldest_mark.is_some_and(|oldest| now >= oldest + MARK_LINGER) || waiting >= MARK_BATCH;
        if !self.settling && (due || self.dispatcher.failures_waiting()) {
            self.oldest_mark = None;
            self.settling = true;
            begun.job = Some(Job {
                sent: self.dispatcher.take_marks(),
                failed: self.dispatcher.take_failures(),
            });
        }
        if !self.reading && self.stopping.is_none() {
            begun.read = self.plan.next(&self.dispatcher, now);
            self.reading = begun.read.is_some();
            self.round = self.plan.round();
            if self.reading && self.bug != Bug::StaleReadAfterMark {
                self.dispatcher.read_started();
            }
        }
        self.dispatcher.take_notices();
        begun
    }

    /// How long the loop sleeps if nothing happens.
    pub(super) fn wait(&self, now: Time) -> Duration {
        let now = self.own(now);
        let mark = self
            .oldest_mark
            .filter(|_| !self.settling)
            .map(|oldest| oldest + MARK_LINGER);
        let read = if self.reading || self.stopping.is_some() {
            None
        } else {
            self.plan.next_time(&self.dispatcher)
        };
        let next = [mark, read, self.dispatcher.next_timer()].into_iter().flatten().min();
        next.map_or(LONGEST_TURN, |at| at.saturating_sub(now)).min(LONGEST_TURN)
    }

    pub(super) fn connected(&mut self, generation: Generation, lanes: usize) {
        self.lanes = vec![0; lanes];
        self.generation = Some(generation);
        self.dispatcher.connected(generation);
    }

    pub(super) fn blocked(&mut self, blocked: bool) {
        match self.generation {
            _ if blocked => self.dispatcher.cut_off(),
            Some(generation) => self.dispatcher.connected(generation),
            None => {}
        }
    }

    pub(super) fn pause(&mut self, paused: &Paused) {
        if self.bug != Bug::PauseNotSeen && self.dispatcher.pause(paused) && self.bug != Bug::ResumeReadsOn {
            self.plan.read_anew();
        }
    }

    pub(super) fn report(
        &mut self,
        generation: Generation,
        lane: usize,
        batches: usize,
        outcomes: Outcomes,
        now: Time,
    ) {
        let own = self.own(now);
        for (row, outcome) in outcomes {
            self.dispatcher.outcome(generation, row, outcome, own);
        }
        if self.generation == Some(generation) {
            self.lanes[lane] -= batches;
        }
    }

    pub(super) fn retiring(&mut self) {
        self.generation = None;
        self.lanes.clear();
        self.dispatcher.cut_off();
    }

    pub(super) fn retired(&mut self, generation: Generation, now: Time) {
        let own = self.own(now);
        self.dispatcher.retired(generation, own);
    }

    pub(super) fn answered(&mut self, read: Read, answer: Option<Answer>, now: Time) {
        let own = self.own(now);
        self.reading = false;
        match answer {
            Some(answer) => {
                let read = (self.round, read);
                self.plan.answered(read, answer, &mut self.dispatcher, own);
            }
            None => self.plan.failed(own),
        }
        if !self.plan.holds_rows() {
            self.dispatcher.read_finished();
        }
    }

    pub(super) fn settled(&mut self, job: &Job, now: Time) {
        let own = self.own(now);
        self.settling = false;
        self.dispatcher.marked(&job.sent);
        let rows: Vec<_> = job.failed.iter().map(|failure| failure.row).collect();
        self.dispatcher.failures_written(&rows, own);
    }

    pub(super) fn stop(&mut self, now: Time) {
        self.stopping = Some(now);
        self.dispatcher.stop();
    }

    pub(super) fn is_settled(&self) -> bool {
        self.dispatcher.is_settled() && !self.settling
    }
}
