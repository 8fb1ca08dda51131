//! What goes a second time and what does not, after a lost connection, an old read, a stop; and what is known of
//! earlier copies.

use super::steps::{LATER, NOW, bring, confirm, connected, go, row, settings};
use crate::broker::{Doubt, Outcome};
use crate::config::Ordering;
use crate::message::{Copies, RowId};
use crate::relay::dispatch::Dispatcher;

#[test]
fn after_a_lost_connection_a_row_goes_again_at_once_and_what_the_old_connection_says_later_is_ignored() {
    let mut dispatcher = connected(settings(Ordering::Strict));
    dispatcher.admit(vec![row(1, "a")], NOW);
    go(&mut dispatcher, 0);
    dispatcher.cut_off();
    dispatcher.retired(1, NOW);
    assert_eq!((go(&mut dispatcher, 0), dispatcher.in_flight()), (vec![], 0));
    dispatcher.connected(2);
    assert_eq!(go(&mut dispatcher, 1), [1]);
    confirm(&mut dispatcher, 1);
    assert_eq!((dispatcher.in_flight(), dispatcher.marks_waiting()), (1, 0));
}

#[test]
fn a_read_that_began_before_a_mark_does_not_bring_the_row_back() {
    let mut dispatcher = connected(settings(Ordering::Strict));
    dispatcher.admit(vec![row(1, "a")], NOW);
    go(&mut dispatcher, 0);
    dispatcher.read_started();
    confirm(&mut dispatcher, 1);
    let marks = dispatcher.take_marks();
    dispatcher.marked(&marks);
    dispatcher.admit(vec![row(1, "a")], NOW);
    assert_eq!(go(&mut dispatcher, 0), [0; 0]);
    dispatcher.read_finished();
    assert_eq!(dispatcher.rows.len(), 0);
}

#[test]
fn what_is_known_of_earlier_copies_goes_with_every_message() {
    let mut dispatcher = connected(settings(Ordering::Strict));
    let mut refused_before = row(3, "c");
    refused_before.attempts = 1;
    dispatcher.admit(vec![row(1, "a")], NOW);
    dispatcher.admit_unpublished(vec![row(2, "b"), refused_before, row(4, "d")], NOW);
    let copies = |dispatcher: &mut Dispatcher| -> Vec<_> {
        let batch = dispatcher.next_batch(0, 0);
        batch.iter().map(|message| (message.row.0, message.copies)).collect()
    };
    let first = [
        (1, Copies::Perhaps),
        (2, Copies::None),
        (3, Copies::Refused),
        (4, Copies::None),
    ];
    assert_eq!(copies(&mut dispatcher), first);
    dispatcher.outcome(1, RowId(4), Outcome::Nacked, NOW);
    dispatcher.cut_off();
    dispatcher.retired(1, NOW);
    dispatcher.connected(2);
    // A copy that was refused once stays one, whatever became of the next.
    let mut again = copies(&mut dispatcher);
    again.sort_by_key(|(row, _)| *row);
    assert_eq!(
        again,
        [(1, Copies::Unknown), (2, Copies::Unknown), (3, Copies::Refused)]
    );
    bring(&mut dispatcher, row(4, "d"), LATER);
    assert_eq!(copies(&mut dispatcher), [(4, Copies::Refused)]);
}

#[test]
fn what_was_not_sent_is_no_copy() {
    let mut dispatcher = connected(settings(Ordering::Strict));
    dispatcher.admit_unpublished(vec![row(1, "a"), row(2, "b")], NOW);
    let copies = |dispatcher: &mut Dispatcher| -> Vec<_> {
        let batch = dispatcher.next_batch(0, 0);
        batch.iter().map(|message| (message.row.0, message.copies)).collect()
    };
    assert_eq!(copies(&mut dispatcher), [(1, Copies::None), (2, Copies::None)]);
    dispatcher.cut_off();
    dispatcher.outcome(1, RowId(1), Outcome::Unknown(Doubt::Unsent), NOW);
    dispatcher.retired(1, NOW);
    dispatcher.connected(2);
    let mut again = copies(&mut dispatcher);
    again.sort_by_key(|(row, _)| *row);
    assert_eq!(again, [(1, Copies::None), (2, Copies::Unknown)]);
}

#[test]
fn after_a_stop_nothing_begins_its_way_and_what_is_in_flight_is_settled() {
    let mut dispatcher = connected(settings(Ordering::Strict));
    dispatcher.admit(vec![row(1, "a"), row(2, "a")], NOW);
    go(&mut dispatcher, 0);
    dispatcher.stop();
    confirm(&mut dispatcher, 1);
    assert_eq!((go(&mut dispatcher, 0), dispatcher.is_settled()), (vec![], false));
    let marks = dispatcher.take_marks();
    dispatcher.marked(&marks);
    assert!(dispatcher.is_settled());
}
