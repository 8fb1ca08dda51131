//! The publishing side: batches go out, outcomes come back.

use std::cmp::Reverse;
use std::sync::Arc;

use crate::broker::{Confirmed, Doubt, Outcome};
use crate::config::OnDeadLetter;
use crate::message::{Copies, Message, RowId};
use crate::store::{Failure, NextStep};

use super::{Content, Dispatcher, Generation, LANE_DEPTH, Notice, State, Time, Turn, rests};

/// What a turn led to.
enum Taken {
    Message(Arc<Message>),
    /// A message with the same `message_id` is in flight.
    Twin(Turn),
    Nothing,
}

impl Dispatcher {
    /// A connection is up; messages can be published on it.
    pub fn connected(&mut self, generation: Generation) {
        self.generation = Some(generation);
    }

    /// The broker takes nothing now (connection lost or being retired, alarm).
    pub fn cut_off(&mut self) {
        self.generation = None;
    }

    /// The connection is gone for good and all its outcomes have been told: what is still in flight on it is unknown.
    pub fn retired(&mut self, generation: Generation, now: Time) {
        let lost = |row: &super::Row| row.state == State::InFlight(generation);
        let lost: Vec<_> = self
            .rows
            .iter()
            .filter(|(_, row)| lost(row))
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            self.outcome(generation, id, Outcome::Unknown(Doubt::Disconnected), now);
        }
    }

    /// The next batch for a lane (0 to `lanes - 1`) that has `under_way` others; empty when nothing more should go on it
    /// now. No two messages in flight have the same `message_id`: returned messages are told apart by it.
    pub fn next_batch(&mut self, lane: usize, under_way: usize) -> Vec<Arc<Message>> {
        let mut batch = Vec::new();
        let Some(generation) = self.generation else {
            return batch;
        };
        if self.stopped || self.pauses.everything() || self.confirmed >= self.settings.unmarked {
            return batch;
        }
        let share = (self.settings.in_flight / self.settings.lanes).max(1);
        let free = self.settings.in_flight.saturating_sub(self.in_flight);
        // Keys that stay on this lane (`pipelined`) need not wait for its batches, unless others wait for a lane that is idle.
        let follows = under_way > 0;
        let may_follow = under_way < LANE_DEPTH && self.ready.is_empty();
        let limit = if follows && !may_follow { 0 } else { share.min(free) };
        let mut twins = Vec::new();
        while batch.len() < limit {
            // Alternately, so that neither keys that stay on this lane nor the others are kept waiting.
            let turn = match batch.len() % 2 {
                _ if follows => self.pinned[lane].pop_front(),
                0 => self.pinned[lane].pop_front().or_else(|| self.ready.pop_front()),
                _ => self.ready.pop_front().or_else(|| self.pinned[lane].pop_front()),
            };
            let Some(turn) = turn else { break };
            match self.take_turn(turn, lane, generation) {
                Taken::Message(message) => batch.push(message),
                Taken::Twin(turn) => twins.push(turn),
                Taken::Nothing => {}
            }
        }
        for turn in twins.into_iter().rev() {
            self.ready.push_front(turn);
        }
        batch
    }

    fn take_turn(&mut self, turn: Turn, lane: usize, generation: Generation) -> Taken {
        let (id, key) = match turn {
            Turn::Row(id) => (id, None),
            Turn::Key(key) => match self.keys.turn_came(&key, lane) {
                Ok(Some(id)) => (id, Some(key)),
                Ok(None) => return Taken::Nothing,
                Err(other) => {
                    self.pinned[other].push_back(Turn::Key(key));
                    return Taken::Nothing;
                }
            },
        };
        let Some(row) = self.rows.get_mut(&id).filter(|row| row.state == State::Waiting) else {
            return Taken::Nothing;
        };
        match &mut row.content {
            Content::Ready(message) => {
                if !self.ids.insert(message.message_id.clone()) {
                    if let Some(key) = key {
                        let _ = self.keys.ask_turn(&key);
                        return Taken::Twin(Turn::Key(key));
                    }
                    return Taken::Twin(Turn::Row(id));
                }
                if message.copies != row.copies {
                    // A copy only where a lane that has just reported still holds it.
                    Arc::make_mut(message).copies = row.copies;
                }
                let message = message.clone();
                row.state = State::InFlight(generation);
                self.in_flight += 1;
                if let Some(key) = key {
                    self.keys.started(&key, id, lane);
                    self.queue_key(key);
                }
                Taken::Message(message)
            }
            Content::Left => {
                // Its turn comes again with its body.
                self.left.insert(id);
                Taken::Nothing
            }
            Content::Bad(invalid) => {
                let (detail, attempts) = (invalid.to_string(), row.attempts);
                self.fail(id, attempts, "invalid", detail, NextStep::Dead);
                Taken::Nothing
            }
        }
    }

    /// What became of a published message.
    pub fn outcome(&mut self, generation: Generation, id: RowId, outcome: Outcome, now: Time) {
        let Some(row) = self
            .rows
            .get_mut(&id)
            .filter(|row| row.state == State::InFlight(generation))
        else {
            return;
        };
        row.state = State::Waiting;
        if let Content::Ready(message) = &row.content {
            self.ids.remove(&message.message_id);
        }
        row.copies = match outcome {
            Outcome::Unknown(Doubt::Unsent) => row.copies,
            Outcome::Unknown(_) if row.copies != Copies::Refused => Copies::Unknown,
            _ => Copies::Refused,
        };
        let (key, share) = (row.key.clone(), row.share);
        self.in_flight -= 1;
        if let Some(key) = &key {
            self.keys.landed(key);
        }
        match outcome {
            Outcome::Confirmed(proof) => self.confirmed(id, proof, now),
            // Whatever happened to it, it is another relay's now, or about to be.
            _ if !self.takes_share(share) => self.abandon(id),
            Outcome::Unroutable(text) => self.refused(id, "unroutable", text),
            Outcome::NoExchange(text) => self.refused(id, "no_exchange", text),
            Outcome::Refused(text) => self.refused(id, "refused", text),
            Outcome::Nacked => self.set_back(id, "nack", "the broker could not take it (queue full or failed)", now),
            Outcome::Unknown(Doubt::Timeout) => self.set_back(id, "timeout", "no confirm came in time", now),
            Outcome::Unknown(Doubt::Disconnected | Doubt::Unsent) => {
                self.notices.push(Notice::Failed {
                    row: id,
                    reason: "disconnected",
                    detail: String::new(),
                    first: false,
                    again: true,
                });
                if !self.goes_back(id) {
                    self.queue(id, key);
                }
            }
        }
    }

    fn confirmed(&mut self, id: RowId, proof: Confirmed, now: Time) {
        self.drop_body(id);
        let Some(row) = self.rows.get_mut(&id) else { return };
        row.state = State::Confirmed;
        let (age, read_at) = row.age;
        let key = row.key.clone();
        self.confirmed += 1;
        self.marks.push(proof);
        self.notices.push(Notice::Published {
            latency: age + now.saturating_sub(read_at),
        });
        if let Some(key) = key {
            self.queue_key(key);
        }
    }

    /// A refusal that counts.
    fn refused(&mut self, id: RowId, reason: &'static str, text: String) {
        let Some(row) = self.rows.get(&id) else { return };
        let attempts = row.attempts.saturating_add(1);
        let next = if attempts >= self.settings.retry.max_attempts {
            NextStep::Dead
        } else {
            NextStep::RetryIn(self.settings.retry.delay(attempts, &mut self.rng))
        };
        self.fail(id, attempts, reason, text, next);
    }

    /// A refusal that does not count, and is not written: it says nothing about the row.
    fn set_back(&mut self, id: RowId, reason: &'static str, text: &str, now: Time) {
        let Some(row) = self.rows.get_mut(&id) else { return };
        row.setbacks = row.setbacks.saturating_add(1);
        let (setbacks, key) = (row.setbacks, row.key.clone());
        self.notices.push(Notice::Failed {
            row: id,
            reason,
            detail: text.to_owned(),
            first: setbacks == 1,
            again: true,
        });
        self.hold(id, key.as_ref());
        let delay = self.settings.retry.delay(setbacks, &mut self.rng);
        self.back_off(id, now + delay, false);
    }

    /// The refusal is to be written; until that is done the row and its key wait. A dead letter that is not written
    /// must not let later rows pass: after a crash the row would be sent behind them.
    fn fail(&mut self, id: RowId, attempts: u32, reason: &'static str, text: String, next: NextStep) {
        self.drop_body(id);
        let Some(row) = self.rows.get_mut(&id) else { return };
        let first = row.attempts == 0 && row.setbacks == 0;
        row.attempts = attempts;
        let again = next != NextStep::Dead;
        row.given_up = (!again).then(|| text.as_str().into());
        let (key, share) = (row.key.clone(), row.share);
        let lease = self.lease(share);
        if let Some(row) = self.rows.get_mut(&id) {
            row.state = State::Failing { next, reason, lease };
        }
        self.hold(id, key.as_ref());
        self.failures.push(Failure {
            row: id,
            attempts,
            error: if text.is_empty() {
                reason.to_owned()
            } else {
                format!("{reason}: {text}")
            },
            next,
            lease,
        });
        self.notices.push(Notice::Failed {
            row: id,
            reason,
            detail: text,
            first,
            again,
        });
    }

    /// These refusals are in the table, unless their leases were lost.
    pub fn failures_written(&mut self, rows: &[RowId], now: Time) {
        for id in rows {
            let Some(row) = self.rows.get_mut(id) else { continue };
            let State::Failing { next, reason, lease } = row.state else {
                continue;
            };
            let (key, share, given_up) = (row.key.clone(), row.share, row.given_up.take());
            if !self.takes_share(share) {
                self.abandon(*id);
            } else if self.lease(share) != lease {
                // Lost and owned again in between: it may not have been written. Tried again, to be sure.
                self.back_off(*id, now, false);
            } else if let NextStep::RetryIn(delay) = next {
                self.back_off(*id, now + delay, true);
            } else {
                self.notices.push(Notice::DeadLettered {
                    row: *id,
                    reason,
                    detail: given_up.unwrap_or_default().into(),
                });
                self.forget(*id);
                if let Some(key) = key {
                    self.after_dead_letter(key, *id, now);
                }
            }
        }
    }

    /// These refusals could not be written for reasons of their own: their rows, and with them their keys, wait long.
    pub fn failures_refused(&mut self, rows: &[RowId], now: Time) {
        for id in rows {
            if self
                .rows
                .get(id)
                .is_some_and(|row| matches!(row.state, State::Failing { .. }))
            {
                self.back_off(*id, now + self.settings.retry.max_delay, false);
            }
        }
    }

    fn after_dead_letter(&mut self, key: crate::message::OrderingKey, id: RowId, now: Time) {
        if self.settings.on_dead_letter == OnDeadLetter::Continue {
            self.keys.gone(&key, id);
        } else {
            let behind = self.keys.dead(&key, id, now, |row| rests(&self.rows, row));
            self.leave(behind);
        }
        self.queue_key(key);
    }

    /// These rows are marked in the table (or are not there any more).
    pub fn marked(&mut self, rows: &[Confirmed]) {
        for proof in rows {
            let id = proof.row();
            if self.rows.get(&id).is_some_and(|row| row.state == State::Confirmed) {
                self.confirmed -= 1;
                self.forget(id);
            }
        }
    }

    /// Rows whose time has come can go again.
    pub fn tick(&mut self, now: Time) {
        while let Some(Reverse((at, id))) = self.timers.peek().copied() {
            if at > now {
                break;
            }
            self.timers.pop();
            let Some(row) = self.rows.get_mut(&id) else { continue };
            if matches!(row.state, State::Backoff { until, .. } if until <= now) {
                row.state = State::Waiting;
                let key = row.key.clone();
                self.stubs -= 1;
                self.queue(id, key);
            }
        }
    }
}
