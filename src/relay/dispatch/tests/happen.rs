//! What happens in the world, one event at a time.

use std::time::Duration;

use crate::config::OnDeadLetter;
use crate::relay::dispatch::{Generation, Paused};
use crate::relay::reader::{Answer, Read};

use super::broker::{Lost, Outcomes, Sent, Wire, swap};
use super::checks::What;
use super::table::RowState;
use super::twin::{Job, Twin};
use super::world::{Bug, Event, World};
use super::writers::{chance, random_time};

/// How long a graceful stop may take.
const GRACE: Duration = Duration::from_secs(5);

impl World {
    pub(super) fn happen(&mut self, event: Event) {
        match event {
            Event::Writer(number) => self.write(number),
            Event::Snapshot(life, read) if life == self.life => self.snapshot(read),
            Event::Answered(life, read, answer) if life == self.life => self.answered(read, answer),
            Event::Mark(life, job) if life == self.life => self.mark(job),
            Event::Record(life, job) if life == self.life => self.record(job),
            Event::Settled(life, job) if life == self.life => {
                if let Some(relay) = &mut self.relay {
                    relay.settled(&job, self.now);
                }
            }
            Event::Connect(life) if life == self.life => self.connect(),
            Event::Take(generation, lane) => self.take(generation, lane),
            Event::Report(generation, lane, batches, outcomes) => self.report(generation, lane, batches, outcomes),
            Event::Break(0) => self.break_off(),
            Event::Break(generation) if generation == self.broker.generation => self.break_off(),
            Event::Retiring(generation) if generation == self.broker.generation => {
                if let Some(relay) = &mut self.relay {
                    relay.retiring();
                }
            }
            Event::Retired(generation) if generation == self.broker.generation => self.retired(generation),
            Event::Late(sent) => self.read_from_the_wire(&sent),
            Event::Block(blocked) => self.block(blocked),
            Event::Start => self.start(),
            Event::Crash => self.crash(),
            Event::Stop => {
                if let Some(relay) = self.relay.as_mut().filter(|relay| relay.stopping.is_none()) {
                    relay.stop(self.now);
                }
            }
            Event::Exchange(number, there) if !self.healed => {
                if there {
                    self.broker.missing.remove(&number);
                } else {
                    self.broker.missing.insert(number);
                }
            }
            Event::Operator => self.operate(),
            Event::Pause(exchange) if !self.healed => self.pause_or_resume(exchange),
            Event::PausesRead(life) if life == self.life => self.pauses_read(),
            Event::Heal => self.heal(),
            _ => {}
        }
    }

    fn write(&mut self, number: usize) {
        let Self {
            writers,
            scenario,
            table,
            rng,
            now,
            ..
        } = self;
        let (next, committed) = writers.step(number, scenario, table, rng, *now);
        for id in committed {
            let row = &self.table.rows[&id];
            let (due_at, size) = (row.due_at, row.size);
            self.checks.note(Some(id), What::Committed { due_at, size });
        }
        if let Some(next) = next {
            self.at(next, Event::Writer(number));
        }
    }

    // ---- reads ---------------------------------------------------------------------------------------------------

    fn snapshot(&mut self, read: Read) {
        let fails = !self.healed && chance(&mut self.rng, self.scenario.odds.read_fails);
        let mut answer = (!fails).then(|| self.table.answer(&read, self.now));
        if self.bug == Bug::IdWatermark {
            let seen = self.seen;
            match &mut answer {
                Some(Answer::Head { rows, .. }) => self.seen = rows.last().map_or(seen, |row| row.id.max(seen)),
                // What was there at the start is known; only rows that came late are missed.
                Some(Answer::Probe(probe)) => probe.unsent.clear(),
                Some(Answer::Scan(stubs)) => stubs.clear(),
                _ => {}
            }
        }
        let slow = if self.rng.u8(0..5) == 0 { 500 } else { 10 };
        self.within(Duration::from_millis(slow), Event::Answered(self.life, read, answer));
    }

    fn answered(&mut self, read: Read, answer: Option<Answer>) {
        if let Some(relay) = &mut self.relay {
            relay.answered(read, answer, self.now);
        }
    }

    // ---- marks ---------------------------------------------------------------------------------------------------

    fn mark(&mut self, job: Job) {
        self.write_marks(&job);
        self.within(Duration::from_millis(20), Event::Record(self.life, job));
    }

    fn write_marks(&mut self, job: &Job) {
        for proof in &job.sent {
            self.checks.marked(proof.row());
            self.table.mark(proof.row());
        }
    }

    fn record(&mut self, job: Job) {
        self.write_failures(&job);
        self.within(Duration::from_millis(20), Event::Settled(self.life, job));
    }

    fn write_failures(&mut self, job: &Job) {
        for failure in &job.failed {
            self.checks.recorded(&self.table, failure);
            self.table.record(failure, self.now);
        }
    }

    // ---- the broker ----------------------------------------------------------------------------------------------

    fn connect(&mut self) {
        let Some(relay) = &mut self.relay else { return };
        let lanes = self.scenario.settings.lanes;
        self.broker.generation += 1;
        self.broker.up = true;
        self.broker.lanes = vec![Wire::default(); lanes];
        relay.connected(self.broker.generation, lanes);
        self.checks.note(None, What::Connected(self.broker.generation));
    }

    fn take(&mut self, generation: Generation, lane: usize) {
        if generation != self.broker.generation || !self.broker.up {
            return;
        }
        if self.broker.blocked {
            return self.within(Duration::from_millis(100), Event::Take(generation, lane));
        }
        let Self {
            broker,
            table,
            scenario,
            checks,
            rng,
            ..
        } = self;
        let times_out = broker.take(lane, table, scenario, checks, rng);
        let at = self.now + random_time(&mut self.rng, self.scenario.confirm_delay);
        self.at(at, Event::Report(generation, lane, 0, Vec::new()));
        if times_out {
            self.at(at + Duration::from_millis(1), Event::Break(generation));
        }
    }

    /// A lane's answer; of a connection that still works it is the broker's (`batches` is 0 then).
    fn report(&mut self, generation: Generation, lane: usize, mut batches: usize, mut outcomes: Outcomes) {
        if batches == 0 {
            if generation != self.broker.generation || !self.broker.up {
                return;
            }
            let Some(answer) = self.broker.answer(lane, &mut self.rng) else {
                return;
            };
            (batches, outcomes) = answer;
        }
        // Of a connection that was retired nothing is believed.
        if generation == self.broker.generation {
            for (row, outcome) in &outcomes {
                self.checks.told(&self.table, *row, outcome);
            }
        }
        if self.bug == Bug::ReturnMatchedToTheWrongMessage && outcomes.len() > 1 {
            swap(&mut outcomes);
        }
        if let Some(relay) = &mut self.relay {
            relay.report(generation, lane, batches, outcomes, self.now);
        }
    }

    fn break_off(&mut self) {
        if !self.broker.up {
            return;
        }
        let generation = self.broker.generation;
        self.checks.note(None, What::Broken(generation));
        self.lose_the_wire(true);
        let at = self.now + random_time(&mut self.rng, Duration::from_millis(100));
        self.at(at, Event::Retiring(generation));
        self.at(at + Duration::from_millis(100), Event::Retired(generation));
    }

    /// What was sent and not taken is read by the broker in part, now or later; lanes tell what they know, or never do.
    fn lose_the_wire(&mut self, lanes_report: bool) {
        let generation = self.broker.generation;
        for lost in self.broker.break_off(&mut self.rng) {
            let Lost {
                lane,
                batches,
                read: batch,
                outcomes,
            } = lost;
            let sent = Sent { batch, outcomes: None };
            if self.rng.bool() {
                self.read_from_the_wire(&sent);
            } else {
                self.within(Duration::from_secs(2), Event::Late(sent));
            }
            if lanes_report && self.rng.u8(0..4) > 0 {
                let longest = Duration::from_millis(if self.rng.u8(0..4) > 0 { 100 } else { 2_000 });
                self.within(longest, Event::Report(generation, lane, batches, outcomes));
            }
        }
    }

    fn read_from_the_wire(&mut self, sent: &Sent) {
        // A batch on the wire of a lost connection excuses a second delivery, whatever was told of it before.
        let Self {
            broker,
            table,
            scenario,
            checks,
            rng,
            ..
        } = self;
        for message in &sent.batch {
            checks.doubted(message.row);
            broker.decide(message, table, &scenario.odds, checks, rng);
        }
    }

    fn retired(&mut self, generation: Generation) {
        self.checks.note(None, What::Retired(generation));
        self.checks.lost_sight(&self.table);
        // Reports of it that come now are late: they carry a number that is not in use any more.
        self.broker.generation += 1;
        if let Some(relay) = &mut self.relay {
            relay.retired(generation, self.now);
        }
        let longest = Duration::from_millis(if self.healed { 100 } else { 2_000 });
        self.within(longest, Event::Connect(self.life));
    }

    fn block(&mut self, blocked: bool) {
        if !self.broker.up || (blocked && self.healed) {
            return;
        }
        self.broker.blocked = blocked;
        self.checks.note(None, What::Blocked(blocked));
        if let Some(relay) = &mut self.relay {
            relay.blocked(blocked);
        }
        if blocked {
            self.within(Duration::from_secs(2), Event::Block(false));
        }
    }

    // ---- the relay's life ----------------------------------------------------------------------------------------

    fn start(&mut self) {
        if self.relay.is_none() {
            self.checks.note(None, What::Started);
            self.relay = Some(Twin::new(&self.scenario, self.bug, self.now));
            self.within(Duration::from_millis(500), Event::Connect(self.life));
            self.checks.pauses_unknown();
            self.within(Duration::from_millis(500), Event::PausesRead(self.life));
        }
    }

    fn crash(&mut self) {
        if self.relay.is_none() || self.healed {
            return;
        }
        self.checks.crashed(&self.table);
        self.let_go();
    }

    /// The relay's process is gone. What it had asked of the database just now is done, or is not.
    fn let_go(&mut self) {
        for event in self.take_events(|event| matches!(event, Event::Mark(..) | Event::Record(..))) {
            if self.rng.bool() {
                match event {
                    Event::Mark(_, job) => self.write_marks(&job),
                    Event::Record(_, job) => self.write_failures(&job),
                    _ => {}
                }
            }
        }
        self.lose_the_wire(false);
        self.broker.generation += 1;
        self.life += 1;
        self.relay = None;
        self.within(Duration::from_secs(2), Event::Start);
    }

    pub(super) fn finish_stop(&mut self) {
        let Some(relay) = &self.relay else { return };
        let Some(since) = relay.stopping else { return };
        if relay.is_settled() {
            self.checks.stopped_cleanly();
            self.let_go();
        } else if self.now > since + GRACE {
            self.checks.crashed(&self.table);
            self.let_go();
        }
    }

    // ---- people --------------------------------------------------------------------------------------------------

    fn operate(&mut self) {
        let dead = self.table.in_state(RowState::Dead);
        if !dead.is_empty() {
            let id = dead[self.rng.usize(0..dead.len())];
            let row = &self.table.rows[&id];
            let replay = self.rng.bool() && !(self.healed && (row.poison || row.flaw.is_some()));
            self.checks.note(Some(id), What::Operator { replay });
            self.table.operate(id, replay);
        }
        let unsent = self.table.in_state(RowState::Unsent);
        if !unsent.is_empty() {
            let id = unsent[self.rng.usize(0..unsent.len())];
            let replay = self.rng.bool();
            self.checks.note(Some(id), What::Operator { replay });
            self.table.release(id, replay, self.now);
        }
        // A key that blocks goes on only when somebody sees to its dead letter.
        if self.healed && self.scenario.settings.on_dead_letter == OnDeadLetter::Block {
            self.within(Duration::from_secs(2), Event::Operator);
        }
    }

    fn pause_or_resume(&mut self, exchange: Option<usize>) {
        match exchange.map(|number| number.to_string()) {
            None => self.paused.everything = !self.paused.everything,
            Some(name) => {
                if !self.paused.exchanges.remove(&name) {
                    self.paused.exchanges.insert(name);
                }
            }
        }
        self.within(Duration::from_secs(1), Event::PausesRead(self.life));
    }

    fn pauses_read(&mut self) {
        let Some(relay) = &mut self.relay else { return };
        self.checks.pauses_told(&self.paused);
        relay.pause(&self.paused);
    }

    fn heal(&mut self) {
        self.checks.note(None, What::Healed);
        self.paused = Paused::default();
        self.within(Duration::from_secs(1), Event::PausesRead(self.life));
        self.healed = true;
        self.broker.healed = true;
        self.broker.missing.clear();
        self.block(false);
        self.operate();
    }
}
