//! What must hold in every history. The first violation ends it, with a trace of the row and its key.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::broker::Outcome;
use crate::config::{OnDeadLetter, Ordering};
use crate::message::{Message, OrderingKey, RowId};
use crate::relay::dispatch::{Generation, Paused, Settings, Time};
use crate::store::{Failure, NextStep};

use super::table::{RowState, Table, TableRow};

/// One line of the trace.
#[derive(Debug)]
#[allow(dead_code)] // fields are read by `Debug` only
pub(super) enum What {
    Committed { due_at: Time, size: u64 },
    Published { lane: usize, generation: Generation },
    Delivered,
    Told(Outcome),
    MarkedSent,
    Written(Failure),
    Operator { replay: bool },
    Connected(Generation),
    Broken(Generation),
    Retired(Generation),
    Blocked(bool),
    PausesTold(Paused),
    Started,
    Crashed,
    StoppedCleanly,
    Healed,
}

/// What is known of a row besides what the table says.
#[derive(Default)]
struct Facts {
    deliveries: u32,
    /// The broker took it and routed it.
    confirmed: bool,
    marked: bool,
    /// A second delivery is excused.
    doubt: bool,
    in_flight: bool,
    last_refusal: Option<&'static str>,
}

pub(super) struct Checks {
    ordering: Ordering,
    on_dead_letter: OnDeadLetter,
    max_attempts: u32,
    facts: BTreeMap<RowId, Facts>,
    in_flight: BTreeMap<OrderingKey, BTreeSet<RowId>>,
    /// Keys of which the broker refused a message.
    refused: BTreeSet<OrderingKey>,
    /// What the relay knows to be paused.
    paused: Option<Paused>,
    trace: Vec<(Time, Option<RowId>, What)>,
    violation: Option<(Option<RowId>, String)>,
    pub(super) now: Time,
}

impl Checks {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            ordering: settings.ordering,
            on_dead_letter: settings.on_dead_letter,
            max_attempts: settings.retry.max_attempts,
            facts: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            refused: BTreeSet::new(),
            paused: None,
            trace: Vec::new(),
            violation: None,
            now: Time::ZERO,
        }
    }

    pub(super) fn note(&mut self, row: Option<RowId>, what: What) {
        self.trace.push((self.now, row, what));
    }

    pub(super) fn must(&mut self, holds: bool, row: Option<RowId>, promise: &str) {
        if !holds && self.violation.is_none() {
            self.violation = Some((row, promise.to_owned()));
        }
    }

    fn facts(&mut self, id: RowId) -> &mut Facts {
        self.facts.entry(id).or_default()
    }

    // ---- what happens --------------------------------------------------------------------------------------------

    pub(super) fn published(&mut self, table: &Table, message: &Message, lane: usize, generation: Generation) {
        let id = message.row;
        self.note(Some(id), What::Published { lane, generation });
        let Some(row) = table.rows.get(&id) else {
            return self.must(false, Some(id), "only rows of the table are published");
        };
        let same = message.message_id == row.message_id.into()
            && message.body.len() as u64 == row.size
            && message.exchange == row.exchange.to_string();
        self.must(same, Some(id), "every copy is what the row says");
        self.must(
            row.state != RowState::Unseen,
            Some(id),
            "nothing uncommitted is published",
        );
        self.must(row.state != RowState::Sent, Some(id), "nothing marked is published");
        let given_up = matches!(row.state, RowState::Dead | RowState::Discarded);
        self.must(!given_up, Some(id), "no dead letter is published");
        self.must(row.flaw.is_none(), Some(id), "nothing invalid is published");
        self.must(row.due_at <= self.now, Some(id), "nothing is published before its time");
        self.must(row.attempts < self.max_attempts, Some(id), "attempts are bounded");
        let paused = |paused: &Paused| paused.everything || paused.exchanges.contains(&message.exchange);
        self.must(
            self.paused.as_ref().is_some_and(|told| !paused(told)),
            Some(id),
            "nothing that is paused is published, and nothing before that is known",
        );
        let already = std::mem::replace(&mut self.facts(id).in_flight, true);
        self.must(!already, Some(id), "a row is in flight once");
        if let Some(key) = row.key.as_ref().filter(|_| self.ordering != Ordering::None) {
            let others = self.in_flight.entry(key.clone()).or_default();
            let alone = others.is_empty();
            others.insert(id);
            self.must(
                alone || self.ordering != Ordering::Strict,
                Some(id),
                "strict: one message of a key at a time",
            );
            if self.on_dead_letter == OnDeadLetter::Block {
                let dead = table.below(key, id).any(|lower| lower.state == RowState::Dead);
                self.must(!dead, Some(id), "block: nothing passes a dead letter");
            }
        }
    }

    /// The relay has just started.
    pub(super) fn pauses_unknown(&mut self) {
        self.paused = None;
    }

    pub(super) fn pauses_told(&mut self, paused: &Paused) {
        self.note(None, What::PausesTold(paused.clone()));
        self.paused = Some(paused.clone());
    }

    /// The broker routed it to the consumer.
    pub(super) fn delivered(&mut self, table: &Table, id: RowId) {
        self.note(Some(id), What::Delivered);
        let facts = self.facts(id);
        facts.deliveries += 1;
        facts.confirmed = true;
        let (first, excused) = (facts.deliveries == 1, facts.doubt);
        self.must(
            first || excused,
            Some(id),
            "duplicates only after a crash, a timeout or a lost connection",
        );
        let key = table.rows.get(&id).and_then(|row| row.key.clone());
        if let Some(key) = key.filter(|_| first) {
            self.check_order(table, &key, id);
        }
    }

    /// The first delivery of `id`: all rows of its key below it came before, or were given up.
    fn check_order(&mut self, table: &Table, key: &OrderingKey, id: RowId) {
        let exempt = match self.ordering {
            Ordering::Strict => false,
            Ordering::Pipelined => self.refused.contains(key),
            Ordering::None => true,
        };
        let missing = |row: &TableRow| {
            let delivered = self.facts.get(&row.id).is_some_and(|facts| facts.deliveries > 0);
            // A dead letter that is sent again after others went on without it is late by its nature.
            let replayed = row.was_dead && self.on_dead_letter == OnDeadLetter::Continue;
            row.state == RowState::Unsent && !delivered && !replayed
        };
        let passed = table.below(key, id).find(|row| missing(row)).map(|row| row.id);
        if let Some(passed) = passed.filter(|_| !exempt) {
            self.must(false, Some(id), &format!("order per key: it passed row {passed}"));
        }
    }

    /// The broker did not take it.
    pub(super) fn refused(&mut self, table: &Table, id: RowId) {
        if let Some(key) = table.rows.get(&id).and_then(|row| row.key.clone()) {
            self.refused.insert(key);
        }
    }

    pub(super) fn told(&mut self, table: &Table, id: RowId, outcome: &Outcome) {
        self.note(Some(id), What::Told(outcome.clone()));
        self.landed(table, id);
        let refusal = match outcome {
            Outcome::Unroutable(_) => "unroutable",
            Outcome::NoExchange(_) => "no_exchange",
            Outcome::Refused(_) => "refused",
            Outcome::Unknown(_) => return self.facts(id).doubt = true,
            Outcome::Confirmed(_) | Outcome::Nacked => return,
        };
        self.facts(id).last_refusal = Some(refusal);
    }

    /// A copy is on the wire of a lost connection.
    pub(super) fn doubted(&mut self, id: RowId) {
        self.facts(id).doubt = true;
    }

    /// The connection's messages are lost from sight.
    pub(super) fn lost_sight(&mut self, table: &Table) {
        let lost: Vec<_> = self
            .facts
            .iter()
            .filter(|(_, f)| f.in_flight)
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            self.facts(id).doubt = true;
            self.landed(table, id);
        }
    }

    fn landed(&mut self, table: &Table, id: RowId) {
        self.facts(id).in_flight = false;
        let key = table.rows.get(&id).and_then(|row| row.key.as_ref());
        if let Some(others) = key.and_then(|key| self.in_flight.get_mut(key)) {
            others.remove(&id);
        }
    }

    /// The relay ended in the middle: what was confirmed and not marked comes again.
    pub(super) fn crashed(&mut self, table: &Table) {
        self.note(None, What::Crashed);
        self.lost_sight(table);
        for facts in self.facts.values_mut().filter(|facts| facts.confirmed && !facts.marked) {
            facts.doubt = true;
        }
    }

    pub(super) fn stopped_cleanly(&mut self) {
        self.note(None, What::StoppedCleanly);
        let open = |facts: &Facts| facts.in_flight || (facts.confirmed && !facts.marked && !facts.doubt);
        let open = self.facts.iter().find(|(_, facts)| open(facts)).map(|(id, _)| *id);
        self.must(open.is_none(), open, "a clean stop leaves nothing unsettled");
    }

    pub(super) fn marked(&mut self, id: RowId) {
        self.note(Some(id), What::MarkedSent);
        let facts = self.facts(id);
        facts.marked = true;
        let confirmed = facts.confirmed;
        self.must(confirmed, Some(id), "no mark without a confirm of that very message");
    }

    pub(super) fn recorded(&mut self, table: &Table, failure: &Failure) {
        let id = failure.row;
        self.note(Some(id), What::Written(failure.clone()));
        let Some(row) = table.rows.get(&id) else {
            return self.must(false, Some(id), "only rows of the table are refused");
        };
        let reason = failure.error.split(':').next().unwrap_or_default();
        let (expected, attempts) = match row.flaw {
            Some(_) => (Some("invalid"), row.attempts),
            None => (self.facts(id).last_refusal, row.attempts + 1),
        };
        self.must(
            Some(reason) == expected,
            Some(id),
            "a refusal is written with its own reason",
        );
        self.must(
            failure.attempts == attempts,
            Some(id),
            "every refusal counts once, and nothing else does",
        );
        let dead = failure.next == NextStep::Dead;
        let due = row.flaw.is_some() || attempts >= self.max_attempts;
        self.must(
            dead == due,
            Some(id),
            "a row is given up after its last attempt, an invalid one at once",
        );
    }

    /// All is well again, and the world has come to rest.
    pub(super) fn at_rest(&mut self, table: &Table) {
        for row in table.rows.values() {
            let facts = self.facts(row.id);
            let settled = match row.state {
                RowState::Unseen => facts.deliveries == 0,
                RowState::Unsent => false,
                RowState::Sent => facts.deliveries > 0 && facts.marked,
                RowState::Dead | RowState::Discarded => !facts.marked,
            };
            self.must(
                settled,
                Some(row.id),
                "every committed row is sent and marked, or a dead letter",
            );
        }
    }

    // ---- the verdict ---------------------------------------------------------------------------------------------

    pub(super) fn violated(&self) -> bool {
        self.violation.is_some()
    }

    /// The violation as a person wants to read it.
    pub(super) fn verdict(&self, table: &Table) -> Result<(), String> {
        let Some((row, promise)) = &self.violation else {
            return Ok(());
        };
        let mut text = format!("violated: {promise}");
        let Some(id) = row else {
            let _ = write!(text, " (at {:?})", self.now);
            return Err(text + &self.story(|row| row.is_none()));
        };
        let key = table.rows.get(id).and_then(|row| row.key.clone());
        let _ = write!(
            text,
            " (row {id}, key {:?}, at {:?})",
            key.as_ref().map(OrderingKey::as_str),
            self.now
        );
        let concerned = |other: Option<RowId>| {
            other.is_none_or(|other| {
                other == *id || (key.is_some() && table.rows.get(&other).is_some_and(|row| row.key == key))
            })
        };
        Err(text + &self.story(concerned))
    }

    /// The end of the trace, of the rows that are concerned.
    fn story(&self, concerned: impl Fn(Option<RowId>) -> bool) -> String {
        let lines: Vec<_> = self.trace.iter().filter(|(_, row, _)| concerned(*row)).collect();
        let mut text = String::new();
        for (at, row, what) in lines.iter().skip(lines.len().saturating_sub(80)) {
            let row = row.map_or(String::new(), |row| format!("row {row}: "));
            let _ = write!(text, "\n  {:>10.4}s {row}{what:?}", at.as_secs_f64());
        }
        text
    }
}
