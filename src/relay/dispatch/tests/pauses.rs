//! What a pause holds back, in plain sentences.

use std::time::Duration;

use super::steps::{confirm, connected, go, refuse, row, settings, stub};
use crate::broker::Outcome;
use crate::config::Ordering;
use crate::message::{OutboxRow, RowId};
use crate::relay::dispatch::{Dispatcher, Paused, Time};
use crate::store::{Lease, NextStep};

const NOW: Time = Duration::from_secs(1);
const LATER: Time = Duration::from_secs(100);

fn exchange(name: &str) -> Paused {
    Paused {
        everything: false,
        exchanges: [name.to_owned()].into(),
    }
}

fn row_for(exchange: &str, id: i64, key: &str) -> OutboxRow {
    OutboxRow {
        exchange: Some(exchange.to_owned()),
        ..row(id, key)
    }
}

#[test]
fn nothing_goes_before_it_is_known_what_is_paused() {
    let mut dispatcher = Dispatcher::new(settings(Ordering::Strict), 1);
    dispatcher.own(Lease { share: 0, epoch: 1 });
    dispatcher.connected(1);
    dispatcher.admit(vec![row(1, "a")], NOW);
    assert_eq!(go(&mut dispatcher, 0), [0; 0]);
    assert!(!dispatcher.pause(&Paused::default()), "nothing was resumed");
    assert_eq!(go(&mut dispatcher, 0), [1]);
}

#[test]
fn while_everything_is_paused_rows_are_kept_and_what_is_in_flight_is_settled() {
    let mut dispatcher = connected(settings(Ordering::Strict));
    dispatcher.admit(vec![row(1, "a"), row(2, "a")], NOW);
    assert_eq!(go(&mut dispatcher, 0), [1]);
    let everything = Paused {
        everything: true,
        ..Paused::default()
    };
    dispatcher.pause(&everything);
    confirm(&mut dispatcher, 1);
    assert_eq!(go(&mut dispatcher, 0), [0; 0]);
    let marks = dispatcher.take_marks();
    dispatcher.marked(&marks);
    assert!(
        dispatcher.is_drained(),
        "a stop with a drain does not wait for a person"
    );
    assert!(!dispatcher.pause(&Paused::default()), "nothing needs to be read anew");
    assert_eq!(go(&mut dispatcher, 0), [2]);
}

#[test]
fn rows_of_a_paused_exchange_and_those_behind_them_are_not_held_and_all_others_go() {
    let mut dispatcher = connected(settings(Ordering::Strict));
    dispatcher.pause(&exchange("e"));
    let rows = vec![
        row(1, "a"),
        row_for("e", 2, "a"),
        row(3, "a"),
        row_for("e", 4, ""),
        row(5, "b"),
    ];
    dispatcher.admit(rows, NOW);
    assert_eq!(go(&mut dispatcher, 0), [1, 5]);
    confirm(&mut dispatcher, 1);
    confirm(&mut dispatcher, 5);
    // Nor when a sweep shows them.
    let mut paused = stub(2, "a");
    paused.exchange = Some("e".to_owned());
    dispatcher.admit_stubs(&[paused, stub(3, "a")], RowId(0), RowId(5), true, NOW);
    assert_eq!(dispatcher.to_fetch(10).0, [RowId(0); 0]);
    let marks = dispatcher.take_marks();
    dispatcher.marked(&marks);
    assert_eq!(dispatcher.rows.len(), 0);
    // Read from the beginning when it is resumed.
    assert!(dispatcher.pause(&Paused::default()));
    dispatcher.admit(vec![row_for("e", 2, "a"), row(3, "a"), row_for("e", 4, "")], NOW);
    assert_eq!(go(&mut dispatcher, 0), [2, 4]);
}

#[test]
fn the_default_exchange_can_be_paused() {
    let mut dispatcher = connected(settings(Ordering::Strict));
    dispatcher.pause(&exchange(""));
    dispatcher.admit(vec![row(1, "a"), row_for("e", 2, "b")], NOW);
    assert_eq!(go(&mut dispatcher, 0), [2]);
}

#[test]
fn what_is_held_when_a_pause_begins_goes_back_to_the_table() {
    let mut dispatcher = connected(settings(Ordering::Strict));
    dispatcher.admit(
        vec![row_for("e", 1, "a"), row(2, "a"), row(3, "b"), row_for("e", 4, "b")],
        NOW,
    );
    dispatcher.pause(&exchange("e"));
    assert_eq!(go(&mut dispatcher, 0), [3]);
    assert_eq!(dispatcher.rows.len(), 1);
    assert_eq!((dispatcher.bytes, dispatcher.room()), (4, 99));
}

#[test]
fn a_message_in_flight_when_its_exchange_is_paused_is_not_published_again_after_a_nack() {
    let mut dispatcher = connected(settings(Ordering::Strict));
    dispatcher.admit(vec![row_for("e", 1, "a"), row(2, "a")], NOW);
    assert_eq!(go(&mut dispatcher, 0), [1]);
    dispatcher.pause(&exchange("e"));
    dispatcher.outcome(1, RowId(1), Outcome::Nacked, NOW);
    dispatcher.tick(LATER);
    assert_eq!((go(&mut dispatcher, 0), dispatcher.rows.len()), (vec![], 0));
    assert_eq!(dispatcher.blocked_keys(), 0);
}

#[test]
fn a_refusal_of_a_message_in_flight_is_written_during_a_pause_and_the_next_try_waits_for_its_end() {
    let mut dispatcher = connected(settings(Ordering::Strict));
    dispatcher.admit(vec![row_for("e", 1, "a"), row(2, "a")], NOW);
    assert_eq!(go(&mut dispatcher, 0), [1]);
    dispatcher.pause(&exchange("e"));
    assert!(matches!(refuse(&mut dispatcher, 1), NextStep::RetryIn(_)));
    dispatcher.tick(LATER);
    assert_eq!((go(&mut dispatcher, 0), dispatcher.rows.len()), (vec![], 0));
}

#[test]
fn a_row_that_turns_out_to_go_to_a_paused_exchange_goes_back() {
    let mut dispatcher = connected(settings(Ordering::Strict));
    dispatcher.pause(&exchange("e"));
    dispatcher.admit_stubs(&[stub(1, "a"), stub(2, "a")], RowId(0), RowId(2), true, NOW);
    assert_eq!(dispatcher.to_fetch(10).0, [RowId(1), RowId(2)]);
    dispatcher.fetched(&[RowId(1), RowId(2)], vec![row_for("e", 1, "a"), row(2, "a")], NOW);
    assert_eq!((go(&mut dispatcher, 0), dispatcher.rows.len()), (vec![], 0));
}

#[test]
fn more_keys_than_can_be_remembered_stop_the_reading_and_not_the_process() {
    let mut settings = settings(Ordering::Strict);
    settings.paused_keys = 2;
    let mut dispatcher = connected(settings);
    dispatcher.pause(&exchange("e"));
    dispatcher.admit(vec![row_for("e", 1, "a"), row_for("e", 2, "a")], NOW);
    assert!(dispatcher.room() > 0);
    dispatcher.admit(vec![row_for("e", 3, "b")], NOW);
    assert_eq!((dispatcher.room(), dispatcher.is_full_of_waiting()), (0, true));
    dispatcher.pause(&Paused::default());
    assert!(dispatcher.room() > 0);
}
