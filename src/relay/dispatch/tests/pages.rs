//! How much is read at once.

use std::time::Duration;

use super::steps::{confirm, connected, go, row, settings};
use crate::config::{Ordering, Poll};
use crate::message::OutboxRow;
use crate::relay::dispatch::{Dispatcher, Settings, Time};
use crate::relay::reader::{Answer, Plan, Read};
use crate::store::Shares;

const NOW: Time = Duration::from_secs(1);

/// Pages of 50 rows, of which the dispatcher holds 100; its window is 20.
fn plan() -> Plan {
    let mut plan = Plan::new(
        Poll {
            min_interval: Duration::from_millis(2),
            max_interval: Duration::from_millis(100),
            sweep_interval: Duration::from_secs(60),
            batch_size: 50,
        },
        false,
        false,
    );
    plan.read_shares(Some(Shares::All), true);
    plan
}

fn limit(plan: &mut Plan, dispatcher: &Dispatcher) -> Option<u32> {
    match plan.next(dispatcher, NOW)? {
        Read::Head { limit, .. } => Some(limit),
        other => panic!("{other:?}"),
    }
}

fn answer(plan: &mut Plan, dispatcher: &mut Dispatcher, rows: Vec<OutboxRow>) {
    let read = plan.next(dispatcher, NOW).expect("a read");
    plan.answered(
        (plan.round(), read),
        Answer::Head { rows, whole: true },
        dispatcher,
        NOW,
    );
}

#[test]
fn while_a_window_is_ready_only_whole_pages_are_read() {
    let (mut plan, mut dispatcher) = (plan(), connected(settings(Ordering::Strict)));
    let keys = |ids: std::ops::Range<i64>| ids.map(|id| row(id, &id.to_string())).collect();
    assert_eq!(limit(&mut plan, &dispatcher), Some(50));
    answer(&mut plan, &mut dispatcher, keys(1..51));
    answer(&mut plan, &mut dispatcher, keys(51..101));
    assert_eq!(limit(&mut plan, &dispatcher), None, "there is no room");
    for _ in 0..4 {
        for id in go(&mut dispatcher, 0) {
            confirm(&mut dispatcher, id);
        }
        plan_is_still(&mut plan, &dispatcher);
        let marked = dispatcher.take_marks();
        dispatcher.marked(&marked);
    }
    for id in go(&mut dispatcher, 0) {
        confirm(&mut dispatcher, id);
    }
    assert_eq!(limit(&mut plan, &dispatcher), Some(50), "half of them have gone");
}

fn plan_is_still(plan: &mut Plan, dispatcher: &Dispatcher) {
    assert_eq!(limit(plan, dispatcher), None, "a page has no room yet");
    let next = plan.next_time(dispatcher);
    assert!(
        next.is_none_or(|at| at > NOW),
        "nothing is asked for until something has gone: {next:?}"
    );
}

#[test]
fn a_key_whose_rows_were_left_is_not_read_again_and_again_while_a_page_has_no_room() {
    let (mut plan, mut dispatcher) = (plan(), connected(settings(Ordering::Strict)));
    // Ten rows of each key are held, the others left in the table.
    answer(
        &mut plan,
        &mut dispatcher,
        (1..51).map(|id| row(id, if id <= 20 { "a" } else { "b" })).collect(),
    );
    for _ in 0..6 {
        for id in go(&mut dispatcher, 0) {
            confirm(&mut dispatcher, id);
        }
    }
    assert!(dispatcher.refill_from().is_some());
    dispatcher.admit((51..101).map(|id| row(id, &id.to_string())).collect(), NOW);
    assert!(dispatcher.room() > 0 && dispatcher.room() < 50, "{}", dispatcher.room());
    plan_is_still(&mut plan, &dispatcher);
}

#[test]
fn less_than_a_page_is_read_when_little_is_ready() {
    let (mut plan, mut dispatcher) = (plan(), connected(settings(Ordering::Strict)));
    let seven_keys = (1..71).map(|id| row(id, &(id % 7).to_string())).collect();
    dispatcher.admit(seven_keys, NOW);
    assert_eq!((dispatcher.room(), limit(&mut plan, &dispatcher)), (30, Some(30)));
    let (mut plan, mut dispatcher) = (
        self::plan(),
        connected(Settings {
            rows_per_key: 100,
            ..settings(Ordering::Pipelined)
        }),
    );
    dispatcher.admit((1..71).map(|id| row(id, "a")).collect(), NOW);
    plan_is_still(&mut plan, &dispatcher);
}

/// Bounds as `relay::settings` makes them, with pages of 50.
fn pipelined(in_flight: usize) -> Dispatcher {
    connected(Settings {
        in_flight,
        unmarked: 2 * in_flight,
        rows: 2 * (in_flight + 50),
        rows_per_key: 2 * in_flight + 50,
        ..settings(Ordering::Pipelined)
    })
}

#[test]
fn the_rows_of_a_pipelined_key_that_is_alone_are_read_once() {
    for window in [20, 50, 200] {
        let (mut plan, mut dispatcher) = (plan(), pipelined(window));
        let (mut read, mut sent) = (0_i64, 0);
        while sent < 2_000 {
            while let Some(limit) = limit(&mut plan, &dispatcher) {
                let rows = (read + 1..).take(limit as usize).map(|id| row(id, "a")).collect();
                read += i64::from(limit);
                answer(&mut plan, &mut dispatcher, rows);
                let held = dispatcher.active() as i64;
                assert_eq!(held, read - sent, "none was left in the table");
            }
            let batch = go(&mut dispatcher, 0);
            assert!(!batch.is_empty(), "there is always something to send");
            for id in batch {
                sent += 1;
                confirm(&mut dispatcher, id);
            }
            let marked = dispatcher.take_marks();
            dispatcher.marked(&marked);
        }
    }
}

#[test]
fn a_slow_pipelined_key_with_many_rows_does_not_keep_those_of_others_from_being_read() {
    const LATER: Time = Duration::from_millis(1_050);
    let (mut plan, mut dispatcher) = (plan(), pipelined(20));
    let page = |from: i64| (from..from + 50).map(|id| row(id, "slow")).collect::<Vec<_>>();
    let mut read = 0;
    while limit(&mut plan, &dispatcher).is_some() {
        answer(&mut plan, &mut dispatcher, page(read + 1));
        read += 50;
    }
    assert_eq!(go(&mut dispatcher, 0).len(), 10);
    assert_eq!(
        plan.next_time(&dispatcher),
        Some(LATER),
        "reading waits, but not for ever"
    );
    // Nothing of the key is confirmed. Its other rows stay in the table, and they are passed quickly.
    while read < 1_000 {
        let asked = plan.next(&dispatcher, LATER).expect("a read");
        let rows = page(read + 1);
        plan.answered(
            (plan.round(), asked),
            Answer::Head { rows, whole: true },
            &mut dispatcher,
            LATER,
        );
        read += 50;
    }
    let asked = plan.next(&dispatcher, LATER).expect("a read");
    let rows = vec![row(read + 1, "other")];
    plan.answered(
        (plan.round(), asked),
        Answer::Head { rows, whole: true },
        &mut dispatcher,
        LATER,
    );
    assert_eq!(go(&mut dispatcher, 1), [read + 1]);
}
