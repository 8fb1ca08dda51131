//! A broker with lanes: batches are taken in their order at one moment and answered as a whole at a later one. Connections
//! break in between, and what was on the wire then is delivered in part, at once or later.

use std::collections::{BTreeSet, VecDeque};
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

/// A lane, seen from the broker.
#[derive(Debug, Clone, Default)]
pub(super) struct Wire {
    /// What is under way, in order.
    pub(super) sent: VecDeque<Sent>,
    /// Nothing more is taken: a confirm did not come in time.
    dead: bool,
}

/// What a lane has lost with its connection.
pub(super) struct Lost {
    pub(super) lane: usize,
    pub(super) batches: usize,
    /// Messages that the broker reads from the wire yet.
    pub(super) read: Vec<Arc<Message>>,
    /// What the lane will report.
    pub(super) outcomes: Outcomes,
}

#[derive(Default)]
pub(super) struct Broker {
    pub(super) generation: Generation,
    /// The connection of this generation can be used.
    pub(super) up: bool,
    pub(super) blocked: bool,
    pub(super) lanes: Vec<Wire>,
    pub(super) missing: BTreeSet<usize>,
    pub(super) healed: bool,
}

impl Broker {
    /// The broker takes the next batch of a lane. Returns whether the connection must be given up.
    pub(super) fn take(
        &mut self,
        lane: usize,
        table: &Table,
        scenario: &Scenario,
        checks: &mut Checks,
        rng: &mut fastrand::Rng,
    ) -> bool {
        let wire = &self.lanes[lane];
        let Some(next) = wire.sent.iter().position(|sent| sent.outcomes.is_none()) else {
            return false;
        };
        let batch = wire.sent[next].batch.clone();
        // A channel that was closed takes nothing more until its lane has told so and opened another.
        let earlier = wire.sent.iter().take(next).filter_map(|sent| sent.outcomes.as_ref());
        if wire.dead || earlier.flatten().any(is_unknown) {
            self.lanes[lane].sent[next].outcomes = Some(unknown(&batch));
            return false;
        }
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
        self.lanes[lane].sent[next].outcomes = Some(outcomes);
        self.lanes[lane].dead = times_out;
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

    /// What a lane tells of the batches that were answered: of the oldest, or of all. Of what is behind a message of
    /// unknown fate nothing more is known either. None: nothing yet.
    pub(super) fn answer(&mut self, lane: usize, rng: &mut fastrand::Rng) -> Option<(usize, Outcomes)> {
        let sent = &mut self.lanes[lane].sent;
        let answered = sent.iter().take_while(|sent| sent.outcomes.is_some()).count();
        let mut batches = if rng.bool() { answered } else { answered.min(1) };
        let told = sent.iter().take(batches).filter_map(|sent| sent.outcomes.as_ref());
        if told.flatten().any(is_unknown) {
            batches = sent.len();
        }
        let outcomes = sent.drain(..batches).flat_map(|sent| match sent.outcomes {
            Some(outcomes) => outcomes,
            None => unknown(&sent.batch),
        });
        let outcomes = outcomes.collect();
        (batches > 0).then_some((batches, outcomes))
    }

    /// The connection breaks. Returns what each lane with batches under way has lost.
    pub(super) fn break_off(&mut self, rng: &mut fastrand::Rng) -> Vec<Lost> {
        self.up = false;
        self.blocked = false;
        let mut all = Vec::new();
        for (lane, wire) in self.lanes.iter_mut().enumerate() {
            let mut lost = Lost {
                lane,
                batches: wire.sent.len(),
                read: Vec::new(),
                outcomes: Vec::new(),
            };
            let mut reads = !wire.dead;
            for sent in wire.sent.drain(..) {
                match sent.outcomes {
                    Some(outcomes) if rng.bool() => lost.outcomes.extend(outcomes),
                    Some(_) => lost.outcomes.extend(unknown(&sent.batch)),
                    None => {
                        lost.outcomes.extend(unknown(&sent.batch));
                        let read = if reads { rng.usize(0..=sent.batch.len()) } else { 0 };
                        reads = read == sent.batch.len();
                        lost.read.extend_from_slice(&sent.batch[..read]);
                    }
                }
            }
            if lost.batches > 0 {
                all.push(lost);
            }
        }
        all
    }
}

fn unknown(batch: &[Arc<Message>]) -> Outcomes {
    let lost = |message: &Arc<Message>| (message.row, Outcome::Unknown(Doubt::Disconnected));
    batch.iter().map(lost).collect()
}

fn is_unknown((_, outcome): &(RowId, Outcome)) -> bool {
    matches!(outcome, Outcome::Unknown(_))
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
