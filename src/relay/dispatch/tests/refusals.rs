//! Rows that are refused, not due, or given up: what waits for them, and what does not.

use std::time::Duration;

use super::steps::{LATER, NOW, bring, confirm, connected, go, refuse, row, settings, stub};
use crate::broker::{Doubt, Outcome};
use crate::config::{OnDeadLetter, Ordering};
use crate::message::{OrderingKey, RowId};
use crate::relay::dispatch::Settings;
use crate::store::NextStep;

#[test]
fn a_refused_row_holds_up_its_key_until_its_time_comes_and_nothing_else() {
    let mut dispatcher = connected(settings(Ordering::Strict));
    dispatcher.admit(vec![row(1, "a"), row(2, "a"), row(3, "b")], NOW);
    assert_eq!(go(&mut dispatcher, 0), [1, 3]);
    assert!(matches!(refuse(&mut dispatcher, 1), NextStep::RetryIn(_)));
    assert_eq!((go(&mut dispatcher, 0), dispatcher.blocked_keys()), (vec![], 1));
    // Row 2 was left in the table; row 1 was remembered, and its body is fetched again.
    bring(&mut dispatcher, row(1, "a"), LATER);
    assert_eq!(go(&mut dispatcher, 0), [1]);
    assert_eq!(dispatcher.refill_from(), Some(RowId(2)));
}

#[test]
fn a_row_is_given_up_after_its_last_attempt_and_its_key_goes_on_once_that_is_written() {
    let mut dispatcher = connected(settings(Ordering::Strict));
    let mut last = row(1, "a");
    last.attempts = 1;
    dispatcher.admit(vec![last, row(2, "a")], NOW);
    go(&mut dispatcher, 0);
    dispatcher.outcome(1, RowId(1), Outcome::Refused("no access".to_owned()), NOW);
    assert_eq!(dispatcher.take_failures()[0].next, NextStep::Dead);
    assert_eq!(dispatcher.refill_from(), None);
    dispatcher.failures_written(&[RowId(1)], NOW);
    assert_eq!(
        (dispatcher.refill_from(), dispatcher.blocked_keys()),
        (Some(RowId(2)), 0)
    );
}

#[test]
fn nacks_and_outages_count_no_attempts() {
    let mut dispatcher = connected(settings(Ordering::Strict));
    dispatcher.admit(vec![row(1, "a")], NOW);
    for round in 0..20 {
        if round > 0 {
            bring(&mut dispatcher, row(1, "a"), LATER * round);
        }
        assert_eq!(go(&mut dispatcher, 0), [1]);
        let outcome = if round % 2 == 0 {
            Outcome::Nacked
        } else {
            Outcome::Unknown(Doubt::Timeout)
        };
        dispatcher.outcome(1, RowId(1), outcome, LATER * round);
    }
    assert!(!dispatcher.failures_waiting());
}

#[test]
fn a_delayed_row_keeps_the_later_rows_of_its_key_waiting() {
    let mut dispatcher = connected(settings(Ordering::Strict));
    let mut delayed = row(2, "a");
    delayed.due_in = Duration::from_secs(30);
    dispatcher.admit(vec![row(1, "a"), delayed, row(3, "a"), row(4, "b")], NOW);
    assert_eq!(go(&mut dispatcher, 0), [1, 4]);
    confirm(&mut dispatcher, 1);
    assert_eq!(go(&mut dispatcher, 0), [0; 0]);
    assert_eq!(dispatcher.next_timer(), Some(NOW + Duration::from_secs(30)));
}

#[test]
fn a_row_in_front_of_a_delayed_one_goes_first_even_if_it_was_left_in_the_table() {
    let mut dispatcher = connected(settings(Ordering::Strict));
    let mut delayed = row(3, "a");
    delayed.due_in = Duration::from_secs(30);
    dispatcher.admit(vec![row(1, "a"), row(2, "a"), delayed], NOW);
    go(&mut dispatcher, 0);
    // Rows 2 and 3 go back to the table together: the timer of row 3 alone would let it pass row 2.
    refuse(&mut dispatcher, 1);
    bring(&mut dispatcher, row(1, "a"), LATER);
    assert_eq!(go(&mut dispatcher, 0), [1]);
    confirm(&mut dispatcher, 1);
    assert_eq!(
        (go(&mut dispatcher, 0), dispatcher.refill_from()),
        (vec![], Some(RowId(2)))
    );
}

#[test]
fn an_invalid_row_is_a_dead_letter_at_once_and_is_not_published() {
    let mut dispatcher = connected(settings(Ordering::Strict));
    let mut bad = row(1, "a");
    bad.routing_key = "r".repeat(256);
    dispatcher.admit(vec![bad, row(2, "b")], NOW);
    assert_eq!(go(&mut dispatcher, 0), [2]);
    let failures = dispatcher.take_failures();
    assert!(failures[0].error.starts_with("invalid: routing_key has 256 bytes"));
    assert_eq!((failures[0].next, failures[0].attempts), (NextStep::Dead, 0));
}

#[test]
fn block_a_dead_letter_stops_its_key_until_a_person_deals_with_it_and_is_looked_for_first_then() {
    let mut dispatcher = connected(Settings {
        on_dead_letter: OnDeadLetter::Block,
        ..settings(Ordering::Strict)
    });
    let dead = [(OrderingKey::new("a"), RowId(5))];
    dispatcher.dead_keys(&dead, true, NOW);
    dispatcher.admit(vec![row(4, "a"), row(6, "a"), row(7, "b")], NOW);
    assert_eq!(go(&mut dispatcher, 0), [4, 7]);
    confirm(&mut dispatcher, 4);
    assert_eq!((go(&mut dispatcher, 0), dispatcher.refill_from()), (vec![], None));
    // Sent again or discarded: if it is still there, it goes before row 6.
    dispatcher.dead_keys(&[], true, LATER);
    assert_eq!(dispatcher.refill_from(), Some(RowId(5)));
    dispatcher.admit_stubs(&[stub(5, "a"), stub(6, "a")], RowId(4), RowId(7), true, LATER);
    dispatcher.fetched(&[RowId(5), RowId(6)], vec![row(5, "a"), row(6, "a")], LATER);
    assert_eq!(go(&mut dispatcher, 0), [5]);
}

#[test]
fn after_a_sweep_the_table_says_how_long_a_refused_row_waits() {
    let mut dispatcher = connected(settings(Ordering::Strict));
    dispatcher.admit(vec![row(1, "a"), row(2, "a"), row(3, "b"), row(4, "b")], NOW);
    assert_eq!(go(&mut dispatcher, 0), [1, 3]);
    refuse(&mut dispatcher, 1);
    refuse(&mut dispatcher, 3);
    assert_eq!((dispatcher.blocked_keys(), dispatcher.refill_from()), (2, None));
    dispatcher.look_again();
    assert_eq!(
        (dispatcher.refill_from(), dispatcher.next_timer()),
        (Some(RowId(1)), None)
    );
    // A person has released both: row 1 is due, row 3 is gone.
    let rows = [stub(1, "a"), stub(2, "a"), stub(4, "b")];
    dispatcher.admit_stubs(&rows, RowId(0), RowId(4), true, NOW);
    assert_eq!((dispatcher.blocked_keys(), dispatcher.refill_from()), (0, None));
    assert_eq!(go(&mut dispatcher, 0), [0; 0]);
    assert_eq!(dispatcher.to_fetch(10).0, [RowId(1), RowId(2), RowId(4)]);
}

#[test]
fn what_only_the_relay_knows_outlasts_a_sweep() {
    let mut dispatcher = connected(settings(Ordering::Strict));
    dispatcher.admit(vec![row(1, "a")], NOW);
    assert_eq!(go(&mut dispatcher, 0), [1]);
    dispatcher.outcome(1, RowId(1), Outcome::Nacked, NOW);
    let timer = dispatcher.next_timer();
    dispatcher.look_again();
    assert_eq!((dispatcher.next_timer(), dispatcher.blocked_keys()), (timer, 1));
}
