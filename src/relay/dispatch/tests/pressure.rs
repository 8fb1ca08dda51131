//! Much of one thing: what is held stays bounded, and nothing else suffers.

use std::time::Duration;

use uuid::Uuid;

use crate::broker::{Confirmed, Outcome};
use crate::config::Ordering;
use crate::message::{OrderingKey, RowId};
use crate::relay::dispatch::{Paused, Time};

use super::recount;
use super::scenario::Scenario;
use super::table::{RowState, Table, TableRow};
use super::twin::Twin;
use super::world::Bug;

/// A relay whose table and broker answer at once, in steps of 10 ms: one batch a lane and step, and a few reads.
struct Small {
    scenario: Scenario,
    table: Table,
    relay: Twin,
    now: Time,
    held: usize,
    /// Reads that are answered in one step.
    reads: usize,
}

impl Small {
    fn new() -> Self {
        let mut scenario = Scenario::calm(3, Ordering::Strict, 0, 1);
        scenario.settings.paused_keys = 10_000;
        let mut relay = Twin::new(&scenario, Bug::None, Time::ZERO);
        relay.pause(&Paused::default());
        relay.connected(1, scenario.settings.lanes);
        Self {
            table: Table::new(&scenario),
            scenario,
            relay,
            now: Time::ZERO,
            held: 0,
            reads: 5,
        }
    }

    fn insert(&mut self, key: &str, due_at: Time) -> RowId {
        self.insert_for(0, Some(key), due_at)
    }

    fn insert_for(&mut self, exchange: usize, key: Option<&str>, due_at: Time) -> RowId {
        let id = self.table.take_id();
        self.table.insert(TableRow {
            id,
            message_id: Uuid::from_u128(u128::from(id.0.unsigned_abs())),
            key: key.map(OrderingKey::new),
            exchange,
            size: 10,
            flaw: None,
            poison: false,
            due_at,
            attempts: 0,
            state: RowState::Unsent,
            was_dead: false,
        });
        id
    }

    #[allow(clippy::disallowed_methods)] // the test stands for the broker
    fn step(&mut self) {
        self.now += Duration::from_millis(10);
        let mut reports = Vec::new();
        for _ in 0..self.reads {
            let begun = self.relay.turn(self.now);
            for (lane, batch) in begun.batches {
                let confirmed = |id| (id, Outcome::Confirmed(Confirmed::attest(id)));
                reports.push((lane, batch.iter().map(|message| confirmed(message.row)).collect()));
            }
            if let Some(job) = begun.job {
                job.sent.iter().for_each(|proof| self.table.mark(proof.row()));
                self.relay.settled(&job, self.now);
            }
            if let Some(read) = begun.read {
                let answer = self.table.answer(&read, self.now);
                self.relay.answered(read, Some(answer), self.now);
            }
            self.held = self.held.max(self.relay.dispatcher.rows.len());
            assert_eq!(recount::wrong(&self.relay.dispatcher, &self.scenario), None);
        }
        for (lane, outcomes) in reports {
            self.relay.report(1, lane, 1, outcomes, self.now);
        }
    }

    /// How long it takes until so many rows are unsent.
    fn until_unsent(&mut self, rows: usize, patience: Duration) -> Duration {
        let start = self.now;
        while self.table.in_state(RowState::Unsent).len() > rows {
            assert!(
                self.now < start + patience,
                "{}",
                recount::describe(&self.relay.dispatcher)
            );
            self.step();
        }
        self.now - start
    }
}

#[test]
fn a_blocked_key_with_very_many_rows_behind_holds_few_of_them_and_the_others_flow() {
    let mut small = Small::new();
    let released = Duration::from_secs(3_600);
    small.insert("blocked", released);
    for number in 0..3_000 {
        small.insert("blocked", Time::ZERO);
        if number % 10 == 0 {
            small.insert(&format!("other {}", number % 70), Time::ZERO);
        }
    }
    small.until_unsent(3_001, Duration::from_secs(60));
    assert!(small.held < 100, "{} rows were held", small.held);
    assert_eq!(small.relay.dispatcher.blocked_keys(), 1);

    small.now = released;
    small.until_unsent(0, Duration::from_secs(300));
    assert!(small.held < 100, "{} rows were held", small.held);
}

#[test]
fn very_many_rows_of_a_paused_exchange_are_not_held_and_the_others_flow() {
    let mut small = Small::new();
    let one = Paused {
        exchanges: ["1".to_owned()].into(),
        ..Paused::default()
    };
    small.relay.pause(&one);
    for number in 0..3_000 {
        let key = format!("paused {number}");
        small.insert_for(1, (number % 2 == 0).then_some(&key), Time::ZERO);
        if number % 10 == 0 {
            small.insert(&format!("other {}", number % 70), Time::ZERO);
        }
        if number % 100 == 0 {
            // Behind a row of the paused exchange.
            small.insert(&key, Time::ZERO);
        }
    }
    small.until_unsent(3_030, Duration::from_secs(60));
    let sweep = small.relay.plan.passes().sweeps + 2;
    while small.relay.plan.passes().sweeps < sweep {
        small.step();
    }
    assert_eq!(small.table.in_state(RowState::Unsent).len(), 3_030);
    assert!(small.held < 100, "{} rows were held", small.held);
    assert_eq!(small.relay.dispatcher.pauses.keys(), 1_500);

    small.relay.pause(&Paused::default());
    small.until_unsent(0, Duration::from_secs(300));
    assert!(small.held < 100, "{} rows were held", small.held);
    assert_eq!(small.relay.dispatcher.pauses.keys(), 0);
}

#[test]
fn keys_that_always_have_more_to_send_do_not_keep_the_sweep_from_finding_other_rows() {
    let mut small = Small::new();
    small.reads = 1;
    for number in 0..3_000 {
        small.insert(&format!("long {}", number % 20), Time::ZERO);
    }
    while small.relay.plan.passes().sweeps == 0 {
        small.step();
        assert!(small.now < Duration::from_secs(30), "no sweep was completed");
    }
    assert!(!small.table.in_state(RowState::Unsent).is_empty());
}
