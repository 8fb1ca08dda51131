//! A broker with lanes: a batch is taken at one moment and answered as a whole at a later one. Connections break in
//! between, and what was on the wire then is delivered in part, at once or later.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::broker::{Confirmed, Doubt, Outcome};
use crate::message::{Message, RowId};
use crate::relay::dispatch::Generation;

use super::checks::Checks;
use super::scenario::{Odds, Scenario};
use super::table::Table;
use super::writers::chance;

pub(super) type Outcomes = Vec<(RowId, Outcome)>;

#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub(super) batch: Vec<Arc<Message>>,
    /// Known once the broker has taken the batch.
    pub(super) outcomes: Option<Outcomes>,
}

#[derive(Default)]
pub(super) struct Broker {
    pub(super) generation: Generation,
    /// The connection of this generation can be used.
    pub(super) up: bool,
    pub(super) blocked: bool,
    pub(super) lanes: Vec<Option<Sent>>,
    pub(super) missing: BTreeSet<usize>,
    pub(super) healed: bool,
}

impl Broker {
    /// The broker takes a lane's batch. Returns whether the connection must be given up.
    pub(super) fn take(
        &mut self,
        lane: usize,
        table: &Table,
        scenario: &Scenario,
        checks: &mut Checks,
        rng: &mut fastrand::Rng,
    ) -> bool {
        let Some(batch) = self.lanes[lane].as_ref().map(|sent| sent.batch.clone()) else {
            return false;
        };
        let odds = &scenario.odds;
        let times_out = !self.healed && chance(rng, odds.timeout);
        let confirms = if times_out {
            rng.usize(0..batch.len())
        } else {
            batch.len()
        };
        let mut outcomes = Vec::new();
        let mut channel_closed = false;
        for (at, message) in batch.iter().enumerate() {
            let outcome = if at >= confirms {
                // It may have been taken all the same.
                if !channel_closed && confirms + 1 == batch.len() && rng.bool() {
                    self.decide(message, table, odds, checks, rng);
                }
                Outcome::Unknown(Doubt::Timeout)
            } else if channel_closed {
                Outcome::Unknown(Doubt::Disconnected)
            } else {
                self.decide(message, table, odds, checks, rng)
            };
            let closes = matches!(outcome, Outcome::NoExchange(_) | Outcome::Refused(_));
            channel_closed = channel_closed || (closes && rng.bool());
            outcomes.push((message.row, outcome));
        }
        self.lanes[lane] = Some(Sent {
            batch,
            outcomes: Some(outcomes),
        });
        times_out
    }

    /// What the broker does with one message.
    #[allow(clippy::disallowed_methods)] // this is the broker: it knows what it confirms
    pub(super) fn decide(
        &self,
        message: &Message,
        table: &Table,
        odds: &Odds,
        checks: &mut Checks,
        rng: &mut fastrand::Rng,
    ) -> Outcome {
        let id = message.row;
        let poison = table.rows.get(&id).is_some_and(|row| row.poison);
        let mut moody = |odds| !self.healed && chance(rng, odds);
        let refusal = if self.missing.iter().any(|number| number.to_string() == message.exchange) {
            Outcome::NoExchange("no such exchange".to_owned())
        } else if poison && id.0 % 2 == 0 || moody(odds.refused) {
            Outcome::Refused("no access".to_owned())
        } else if poison || moody(odds.unroutable) {
            Outcome::Unroutable("312 NO_ROUTE".to_owned())
        } else if moody(odds.nack) {
            Outcome::Nacked
        } else {
            checks.delivered(table, id);
            return Outcome::Confirmed(Confirmed::attest(id));
        };
        checks.refused(table, id);
        refusal
    }

    /// The connection breaks. Returns, of each lane with a batch under way, the messages that the broker reads from the
    /// wire yet, and what the lane will report.
    pub(super) fn break_off(&mut self, rng: &mut fastrand::Rng) -> Vec<(usize, Vec<Arc<Message>>, Outcomes)> {
        self.up = false;
        self.blocked = false;
        let mut lost = Vec::new();
        for (lane, sent) in self.lanes.iter_mut().enumerate() {
            let Some(sent) = sent.take() else { continue };
            let unknown = sent
                .batch
                .iter()
                .map(|m| (m.row, Outcome::Unknown(Doubt::Disconnected)));
            match sent.outcomes {
                Some(outcomes) if rng.bool() => lost.push((lane, Vec::new(), outcomes)),
                Some(_) => lost.push((lane, Vec::new(), unknown.collect())),
                None => {
                    let read = rng.usize(0..=sent.batch.len());
                    lost.push((lane, sent.batch[..read].to_vec(), unknown.collect()));
                }
            }
        }
        lost
    }
}

/// The outcomes of the first two messages change places.
#[allow(clippy::disallowed_methods)] // the bug that is looked for: a confirm stated for another message
pub(super) fn swap(outcomes: &mut Outcomes) {
    let with_row = |row: RowId, outcome: &Outcome| match outcome {
        Outcome::Confirmed(_) => (row, Outcome::Confirmed(Confirmed::attest(row))),
        other => (row, other.clone()),
    };
    let first = with_row(outcomes[0].0, &outcomes[1].1);
    let second = with_row(outcomes[1].0, &outcomes[0].1);
    outcomes[0] = first;
    outcomes[1] = second;
}
