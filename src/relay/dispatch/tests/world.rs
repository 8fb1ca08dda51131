//! A simulated world: a table with writers, a broker, people, and a relay between them. Time is virtual, everything that
//! takes time takes a random one, and everything is drawn from one seed.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::message::RowId;
use crate::relay::dispatch::{Generation, Paused, Time};
use crate::relay::reader::{Answer, Read};

use super::broker::{Broker, Outcomes, Sent};
use super::checks::Checks;
use super::recount;
use super::scenario::{EXCHANGES, Scenario};
use super::table::{RowState, Table};
use super::twin::{Begun, Job, Twin};
use super::writers::{Writers, chance, random_time};

/// What is wrong with this world's relay, on purpose: the checks must find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bug {
    None,
    /// Neither skipped ids nor anything else below the cursor is looked at again.
    CursorOnlyPoll,
    NoSweep,
    MarkBeforeConfirm,
    /// Two outcomes of a batch are swapped.
    ReturnMatchedToTheWrongMessage,
    RetryLetsLaterPass,
    /// The dispatcher is not told when a read is under way.
    StaleReadAfterMark,
    /// Rows below the highest id that was seen are taken for done.
    IdWatermark,
    /// The relay does not look at what is paused before it publishes, nor while it does.
    PauseNotSeen,
    /// A row behind one of a paused exchange goes.
    PauseLetsLaterPass,
    /// What was left in the table during a pause is not read before newer rows.
    ResumeReadsOn,
}

pub(super) enum Event {
    Writer(usize),
    Snapshot(u64, Read),
    Answered(u64, Read, Option<Answer>),
    Connect(u64),
    Take(Generation, usize),
    /// Of how many batches.
    Report(Generation, usize, usize, Outcomes),
    /// The connection breaks.
    Break(Generation),
    Retiring(Generation),
    Retired(Generation),
    /// The broker finds messages of a lost connection on the wire.
    Late(Sent),
    Block(bool),
    Mark(u64, Job),
    Record(u64, Job),
    Settled(u64, Job),
    Start,
    Crash,
    Stop,
    Exchange(usize, bool),
    /// A person deals with a dead letter.
    Operator,
    /// A person pauses everything (`None`) or an exchange, or resumes it.
    Pause(Option<usize>),
    /// The relay reads what is paused.
    PausesRead(u64),
    Heal,
}

/// How much there was to check.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Summary {
    pub(super) rows: usize,
    pub(super) turns: usize,
    /// The most rows that the dispatcher held.
    pub(super) held: usize,
}

pub(super) struct World {
    pub(super) scenario: Scenario,
    pub(super) bug: Bug,
    pub(super) rng: fastrand::Rng,
    pub(super) now: Time,
    events: BTreeMap<(Time, u64), Event>,
    scheduled: u64,
    pub(super) table: Table,
    pub(super) writers: Writers,
    pub(super) broker: Broker,
    /// What people have paused.
    pub(super) paused: Paused,
    pub(super) relay: Option<Twin>,
    /// Which relay runs: what an earlier one began does not concern it.
    pub(super) life: u64,
    pub(super) checks: Checks,
    pub(super) healed: bool,
    /// The highest id that a head read has shown.
    pub(super) seen: RowId,
    pub(super) summary: Summary,
}

impl World {
    pub(super) fn new(scenario: Scenario, bug: Bug) -> Self {
        let mut world = Self {
            rng: fastrand::Rng::with_seed(scenario.seed ^ 0x5eed),
            now: Time::ZERO,
            events: BTreeMap::new(),
            scheduled: 0,
            table: Table::new(&scenario),
            writers: Writers::new(&scenario),
            broker: Broker::default(),
            paused: Paused::default(),
            relay: None,
            life: 0,
            checks: Checks::new(&scenario.settings),
            healed: false,
            seen: RowId(i64::MIN),
            summary: Summary::default(),
            scenario,
            bug,
        };
        world.schedule_all();
        world
    }

    fn schedule_all(&mut self) {
        for number in 0..self.scenario.writers {
            self.at(Duration::ZERO, Event::Writer(number));
        }
        self.at(self.scenario.started_at, Event::Start);
        self.at(self.scenario.healed_at, Event::Heal);
        let faults = self.scenario.faults;
        for _ in 0..faults.crashes {
            self.sometime(Event::Crash);
        }
        for _ in 0..faults.stops {
            self.sometime(Event::Stop);
        }
        for _ in 0..faults.breaks {
            self.sometime(Event::Break(0));
        }
        for _ in 0..faults.replays {
            self.sometime(Event::Operator);
        }
        for _ in 0..faults.blocks {
            self.sometime(Event::Block(true));
        }
        for _ in 0..faults.pauses {
            let exchange = (self.rng.u8(0..4) > 0).then(|| self.rng.usize(0..EXCHANGES));
            self.sometime(Event::Pause(exchange));
            self.sometime(Event::Pause(exchange));
        }
        for number in 0..faults.missing_exchanges as usize {
            self.sometime(Event::Exchange(number, false));
            self.sometime(Event::Exchange(number, true));
        }
    }

    fn sometime(&mut self, event: Event) {
        let at = random_time(&mut self.rng, self.scenario.healed_at);
        self.at(at, event);
    }

    /// Something happens at this time; what was scheduled first happens first.
    pub(super) fn at(&mut self, at: Time, event: Event) {
        self.scheduled += 1;
        self.events.insert((at.max(self.now), self.scheduled), event);
    }

    /// Something happens within this time.
    pub(super) fn within(&mut self, longest: Duration, event: Event) {
        let at = self.now + random_time(&mut self.rng, longest);
        self.at(at, event);
    }

    /// Takes back what was scheduled.
    pub(super) fn take_events(&mut self, wanted: impl Fn(&Event) -> bool) -> Vec<Event> {
        let found: Vec<_> = self
            .events
            .iter()
            .filter(|(_, e)| wanted(e))
            .map(|(at, _)| *at)
            .collect();
        found.into_iter().filter_map(|at| self.events.remove(&at)).collect()
    }

    /// Runs the world until it has come to rest, or something that must hold does not.
    pub(super) fn run(mut self) -> Result<Summary, String> {
        let mut resting_since = None;
        loop {
            self.turn();
            if self.checks.violated() {
                break;
            }
            if !self.is_at_rest() {
                resting_since = None;
            }
            // Two more sweeps pass, so that whatever was forgotten in memory shows.
            let rest = self.scenario.poll.sweep_interval * 2 + Duration::from_secs(3);
            let since = *resting_since.get_or_insert(self.now);
            if self.now > since + rest {
                self.end();
                break;
            }
            if self.now > self.scenario.healed_at + Duration::from_secs(1_200) {
                self.checks.at_rest(&self.table);
                self.checks
                    .must(false, None, "the world comes to rest once all is well");
                break;
            }
            let Some(next) = self.next_time() else { break };
            self.now = next;
            self.checks.now = next;
            while let Some(event) = self.due_event() {
                self.happen(event);
                // Sometimes the loop turns between two events of the same moment, sometimes it takes them together.
                if self.rng.bool() {
                    break;
                }
            }
        }
        self.summary.rows = self.table.rows.len();
        let state = self
            .relay
            .as_ref()
            .map_or(String::new(), |relay| recount::describe(&relay.dispatcher));
        self.checks
            .verdict(&self.table)
            .map_err(|text| format!("{text}\ndispatcher: {state}"))?;
        Ok(self.summary)
    }

    fn end(&mut self) {
        self.checks.at_rest(&self.table);
        if let Some(leak) = self.relay.as_ref().and_then(|relay| recount::leak(&relay.dispatcher)) {
            self.checks.must(false, None, &leak);
        }
    }

    fn due_event(&mut self) -> Option<Event> {
        let first = self.events.first_entry()?;
        (first.key().0 <= self.now).then(|| first.remove())
    }

    fn next_time(&mut self) -> Option<Time> {
        let event = self.events.first_key_value().map(|((at, _), _)| *at);
        if event == Some(self.now) {
            return event;
        }
        let wait = self.relay.as_ref().map(|relay| relay.wait(self.now));
        self.checks.must(
            wait != Some(Duration::ZERO),
            None,
            "the loop sleeps when there is nothing to do",
        );
        let wake = wait.map(|wait| self.now + wait);
        [event, wake].into_iter().flatten().min()
    }

    fn is_at_rest(&self) -> bool {
        let open = |state| self.table.rows.values().any(|row| row.state == state);
        let blocked = self.scenario.settings.on_dead_letter == crate::config::OnDeadLetter::Block;
        self.healed
            && self.writers.are_done()
            && !open(RowState::Unsent)
            && !(blocked && open(RowState::Dead))
            && self.relay.as_ref().is_some_and(Twin::is_settled)
    }

    /// The relay's loop turns once.
    fn turn(&mut self) {
        let Some(relay) = &mut self.relay else { return };
        let begun = relay.turn(self.now);
        self.summary.turns += 1;
        self.summary.held = self.summary.held.max(relay.dispatcher.rows.len());
        let again = recount::sent_already(&relay.dispatcher, &self.table);
        self.checks
            .must(again.is_none(), again, "nothing marked is taken in again");
        let wrong = recount::wrong(&relay.dispatcher, &self.scenario);
        if let Some(wrong) = wrong {
            self.checks.must(false, None, &wrong);
        }
        self.begin(begun);
        self.finish_stop();
    }

    fn begin(&mut self, begun: Begun) {
        let generation = self.broker.generation;
        for (lane, batch) in begun.batches {
            for message in &batch {
                self.checks.published(&self.table, message, lane, generation);
                if self.bug == Bug::MarkBeforeConfirm {
                    self.checks.marked(message.row);
                    self.table.mark(message.row);
                }
            }
            // On a broken connection nobody takes it, and nobody answers.
            if self.broker.up {
                self.broker.lanes[lane].sent.push_back(Sent { batch, outcomes: None });
                self.within(self.scenario.confirm_delay, Event::Take(generation, lane));
            }
        }
        if let Some(job) = begun.job {
            let slow = !self.healed && chance(&mut self.rng, self.scenario.odds.slow_mark);
            let longest = Duration::from_millis(if slow { 3_000 } else { 20 });
            self.within(longest, Event::Mark(self.life, job));
        }
        if let Some(read) = begun.read {
            // A read sees the table as it was when the database came to it, and is answered later.
            self.within(Duration::from_millis(20), Event::Snapshot(self.life, read));
        }
    }
}
