//! The application: transactions that take ids in order, and are committed in any order or rolled back. Writers of one
//! key are serialised: the next one takes its id only when the one before it has ended.

use std::collections::BTreeSet;
use std::time::Duration;

use uuid::Uuid;

use crate::message::{OrderingKey, RowId};
use crate::relay::dispatch::Time;

use super::scenario::{EXCHANGES, MAX_BODY, Scenario};
use super::table::{Flaw, RowState, Table, TableRow};

#[derive(Default)]
struct Writer {
    transaction: Option<Transaction>,
}

struct Transaction {
    key: Option<OrderingKey>,
    number: Option<u64>,
    /// An id was taken, its row is not inserted yet.
    taken: Option<RowId>,
    rows: Vec<RowId>,
    to_write: u32,
    rolls_back: bool,
    slow: bool,
}

pub(super) struct Writers {
    writers: Vec<Writer>,
    /// Transactions that are still to be begun.
    left: u32,
    /// Keys whose writer has not ended.
    locked: BTreeSet<OrderingKey>,
    everything_locked: bool,
}

impl Writers {
    pub(super) fn new(scenario: &Scenario) -> Self {
        Self {
            writers: (0..scenario.writers).map(|_| Writer::default()).collect(),
            left: scenario.transactions,
            locked: BTreeSet::new(),
            everything_locked: false,
        }
    }

    pub(super) fn are_done(&self) -> bool {
        self.left == 0 && self.writers.iter().all(|writer| writer.transaction.is_none())
    }

    /// One step of a writer. Returns when its next one comes, and the rows that it committed.
    pub(super) fn step(
        &mut self,
        number: usize,
        scenario: &Scenario,
        table: &mut Table,
        rng: &mut fastrand::Rng,
        now: Time,
    ) -> (Option<Time>, Vec<RowId>) {
        let pause = random_time(rng, scenario.write_pause);
        let Some(mut transaction) = self.writers[number].transaction.take() else {
            if self.left == 0 {
                return (None, Vec::new());
            }
            self.begin(number, scenario, rng);
            return (Some(now + pause), Vec::new());
        };
        if let Some(id) = transaction.taken.take() {
            // The transaction gets its number with its first insert, after the id was taken.
            transaction.number.get_or_insert_with(|| table.begin());
            table.insert(new_row(id, transaction.key.clone(), scenario, rng, now));
            transaction.rows.push(id);
            transaction.to_write -= 1;
        } else if transaction.to_write > 0 {
            transaction.taken = Some(table.take_id());
        } else {
            let committed = self.end(transaction, table);
            return (Some(now + pause), committed);
        }
        let slow = if transaction.slow {
            random_time(rng, Duration::from_secs(4))
        } else {
            Duration::ZERO
        };
        self.writers[number].transaction = Some(transaction);
        (Some(now + pause / 4 + slow), Vec::new())
    }

    fn begin(&mut self, number: usize, scenario: &Scenario, rng: &mut fastrand::Rng) {
        let keyed = !chance(rng, scenario.odds.unkeyed);
        let key = keyed.then(|| OrderingKey::new(&format!("k{}", rng.u32(0..scenario.keys))));
        let locked = self.everything_locked || key.as_ref().is_some_and(|key| self.locked.contains(key));
        if locked {
            return;
        }
        self.everything_locked = scenario.one_at_a_time;
        self.locked.extend(key.clone());
        self.left -= 1;
        self.writers[number].transaction = Some(Transaction {
            key,
            number: None,
            taken: None,
            rows: Vec::new(),
            to_write: if rng.u8(0..3) == 0 { rng.u32(1..=4) } else { 1 },
            rolls_back: chance(rng, scenario.odds.rollback),
            slow: chance(rng, scenario.odds.slow_commit),
        });
    }

    fn end(&mut self, transaction: Transaction, table: &mut Table) -> Vec<RowId> {
        self.everything_locked = false;
        if let Some(key) = &transaction.key {
            self.locked.remove(key);
        }
        if transaction.rolls_back {
            table.roll_back(transaction.number);
            return Vec::new();
        }
        table.commit(transaction.number, &transaction.rows);
        transaction.rows
    }
}

fn new_row(id: RowId, key: Option<OrderingKey>, scenario: &Scenario, rng: &mut fastrand::Rng, now: Time) -> TableRow {
    let odds = &scenario.odds;
    let flaws = [Flaw::RoutingKey, Flaw::Headers, Flaw::TooLarge];
    let flaw = chance(rng, odds.invalid).then(|| flaws[rng.usize(0..flaws.len())]);
    let size = match rng.u8(0..10) {
        _ if flaw == Some(Flaw::TooLarge) => MAX_BODY + 1,
        0 => rng.u64(200..=MAX_BODY),
        _ => rng.u64(0..200),
    };
    // A row may be a copy of an earlier one that the application made, message_id and all.
    let twin_of = if chance(rng, odds.twin) {
        rng.i64((id.0 - 4).max(1)..=id.0)
    } else {
        id.0
    };
    let longest = if rng.u8(0..10) == 0 {
        Duration::from_secs(90)
    } else {
        Duration::from_secs(4)
    };
    TableRow {
        id,
        message_id: Uuid::from_u128(u128::from(twin_of.unsigned_abs())),
        key,
        exchange: rng.usize(0..EXCHANGES),
        size,
        flaw,
        poison: chance(rng, odds.poison),
        due_at: if chance(rng, odds.delayed) {
            now + random_time(rng, longest)
        } else {
            Time::ZERO
        },
        attempts: 0,
        state: RowState::Unseen,
        was_dead: false,
    }
}

/// True in `odds` of 1000 cases.
pub(super) fn chance(rng: &mut fastrand::Rng, odds: u32) -> bool {
    odds > 0 && rng.u32(0..1_000) < odds
}

/// Anything up to `longest`; often nothing at all, so that things happen at the same time.
pub(super) fn random_time(rng: &mut fastrand::Rng, longest: Duration) -> Duration {
    if rng.u8(0..8) == 0 {
        return Duration::ZERO;
    }
    let nanos = u64::try_from(longest.as_nanos()).unwrap();
    Duration::from_nanos(rng.u64(0..=nanos))
}
