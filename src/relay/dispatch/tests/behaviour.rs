//! Who goes and who waits, in plain sentences.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::broker::{Confirmed, Doubt, Outcome};
use crate::config::{Attribute, CloudEvents, ContentMode, OnDeadLetter, Ordering, Piece};
use crate::message::{Copies, MessageRules, OrderingKey, OutboxRow, Payload, RowId};
use crate::relay::dispatch::{Dispatcher, LANE_DEPTH, Paused, RetryPolicy, Settings, Time};
use crate::store::{Lease, NextStep, Stub};

const NOW: Time = Time::from_secs(1);
const LATER: Time = Time::from_secs(100);

pub(super) fn settings(ordering: Ordering) -> Settings {
    Settings {
        ordering,
        on_dead_letter: OnDeadLetter::Continue,
        retry: RetryPolicy {
            min_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(10),
            max_attempts: 2,
        },
        rules: MessageRules {
            default_exchange: String::new(),
            max_body_bytes: 100,
            ..MessageRules::default()
        },
        partitions: 1,
        lanes: 2,
        in_flight: 20,
        unmarked: 20,
        rows: 100,
        stubs: 100,
        paused_keys: 100,
        rows_per_key: 10,
        bytes: 1_000,
    }
}

pub(super) fn connected(settings: Settings) -> Dispatcher {
    let mut dispatcher = Dispatcher::new(settings, 1);
    dispatcher.own(Lease { share: 0, epoch: 1 });
    dispatcher.pause(&Paused::default());
    dispatcher.connected(1);
    dispatcher
}

pub(super) fn row(id: i64, key: &str) -> OutboxRow {
    OutboxRow {
        id: RowId(id),
        message_id: Uuid::from_u128(u128::from(id.unsigned_abs())).into(),
        exchange: None,
        routing_key: "r".to_owned(),
        ordering_key: (!key.is_empty()).then(|| OrderingKey::new(key)),
        kind: None,
        content_type: String::new(),
        headers: "{}".to_owned(),
        properties: "{}".to_owned(),
        payload: Payload::Loaded(b"body".to_vec()),
        created_at: None,
        age: Duration::ZERO,
        due_in: Duration::ZERO,
        attempts: 0,
        not_utf8: None,
    }
}

pub(super) fn stub(id: i64, key: &str) -> Stub {
    Stub {
        id: RowId(id),
        ordering_key: Some(OrderingKey::new(key)),
        due_in: Duration::ZERO,
        exchange: None,
    }
}

/// What goes on an idle lane now.
pub(super) fn go(dispatcher: &mut Dispatcher, lane: usize) -> Vec<i64> {
    follow(dispatcher, lane, 0)
}

/// What goes on a lane now that has so many batches under way.
fn follow(dispatcher: &mut Dispatcher, lane: usize, under_way: usize) -> Vec<i64> {
    dispatcher
        .next_batch(lane, under_way)
        .iter()
        .map(|message| message.row.0)
        .collect()
}

#[allow(clippy::disallowed_methods)] // the test stands for the lane
pub(super) fn confirm(dispatcher: &mut Dispatcher, id: i64) {
    let id = RowId(id);
    dispatcher.outcome(1, id, Outcome::Confirmed(Confirmed::attest(id)), NOW);
}

pub(super) fn refuse(dispatcher: &mut Dispatcher, id: i64) -> NextStep {
    dispatcher.outcome(1, RowId(id), Outcome::Unroutable("no queue".to_owned()), NOW);
    let failures = dispatcher.take_failures();
    dispatcher.failures_written(&[RowId(id)], NOW);
    failures[0].next
}

/// Events in the JSON format, with a type of the row's own.
fn events() -> CloudEvents {
    CloudEvents {
        mode: ContentMode::Structured,
        prefix: "cloudEvents_",
        attributes: vec![Attribute {
            name: "source".to_owned(),
            variable: "RELAY_CLOUDEVENTS_SOURCE",
            value: vec![Piece::Text("/shop".to_owned())],
        }],
    }
}

/// The time of a row comes, and its body with it.
fn bring(dispatcher: &mut Dispatcher, row: OutboxRow, now: Time) {
    dispatcher.tick(now);
    assert_eq!(go(dispatcher, 0), [0; 0]);
    assert_eq!(dispatcher.to_fetch(10).0, [row.id]);
    dispatcher.fetched(&[row.id], vec![row], now);
}

#[test]
fn a_body_is_counted_as_large_as_its_event_is() {
    let mut settings = settings(Ordering::Strict);
    settings.rules.max_body_bytes = 1_000;
    settings.rules.cloudevents = Some(Arc::new(events()));
    let mut dispatcher = connected(settings);
    let mut row = row(1, "a");
    (row.kind, row.content_type) = (Some("t".to_owned()), "image/png".to_owned());
    dispatcher.admit(vec![row.clone()], NOW);
    let held = dispatcher.bytes;
    let batch = dispatcher.next_batch(0, 0);
    assert!(batch[0].body.ends_with(b",\"data_base64\":\"Ym9keQ==\"}"));
    assert_eq!(held, batch[0].body.len() as u64);
    // Left in the table for its retry, and read again.
    refuse(&mut dispatcher, 1);
    assert_eq!(dispatcher.bytes, 0);
    bring(&mut dispatcher, row, LATER);
    assert_eq!(dispatcher.bytes, held);
    assert_eq!(go(&mut dispatcher, 0), [1]);
    confirm(&mut dispatcher, 1);
    assert_eq!(dispatcher.bytes, 0);
}

#[test]
fn strict_the_next_row_of_a_key_goes_when_the_one_before_is_confirmed_and_other_keys_do_not_wait() {
    let mut dispatcher = connected(settings(Ordering::Strict));
    dispatcher.admit(vec![row(1, "a"), row(2, "a"), row(3, "b"), row(4, "")], NOW);
    assert_eq!(go(&mut dispatcher, 0), [1, 3, 4]);
    assert_eq!(go(&mut dispatcher, 1), [0; 0]);
    confirm(&mut dispatcher, 1);
    // It does not wait for the mark.
    assert_eq!(dispatcher.unmarked(), 1);
    assert_eq!(go(&mut dispatcher, 1), [2]);
}

#[test]
fn pipelined_rows_of_a_key_go_together_and_stay_on_their_lane_while_any_is_in_flight() {
    let mut dispatcher = connected(settings(Ordering::Pipelined));
    dispatcher.admit(vec![row(1, "a"), row(2, "a")], NOW);
    assert_eq!(go(&mut dispatcher, 0), [1, 2]);
    dispatcher.admit(vec![row(3, "a"), row(4, "b")], NOW);
    assert_eq!(go(&mut dispatcher, 1), [4]);
    assert_eq!(go(&mut dispatcher, 0), [3]);
}

#[test]
fn two_messages_of_one_id_are_not_in_flight_together() {
    let mut dispatcher = connected(settings(Ordering::Pipelined));
    let twins = [1, 2, 3].map(|id| OutboxRow {
        message_id: row(1, "").message_id,
        ..row(id, if id == 2 { "a" } else { "b" })
    });
    dispatcher.admit(twins.into(), NOW);
    assert_eq!(go(&mut dispatcher, 0), [1]);
    assert_eq!(
        (follow(&mut dispatcher, 0, 1), go(&mut dispatcher, 1)),
        (vec![], vec![])
    );
    confirm(&mut dispatcher, 1);
    assert_eq!(go(&mut dispatcher, 1), [2]);
    dispatcher.retired(1, NOW);
    let mut rest = follow(&mut dispatcher, 0, 0);
    confirm(&mut dispatcher, rest[0]);
    rest.extend(go(&mut dispatcher, 0));
    rest.sort_unstable();
    assert_eq!(rest, [2, 3]);
}

#[test]
fn batches_of_a_pipelined_key_follow_each_other_on_its_lane_until_the_window_is_full() {
    let connected = || {
        connected(Settings {
            lanes: 4,
            rows_per_key: 100,
            ..settings(Ordering::Pipelined)
        })
    };
    let many: Vec<_> = (1..31).map(|id| row(id, "a")).collect();
    let mut dispatcher = connected();
    dispatcher.admit(many.clone(), NOW);
    let ids = |ids: std::ops::RangeInclusive<i64>| ids.collect::<Vec<_>>();
    let batches: Vec<_> = (0..3).map(|n| follow(&mut dispatcher, 0, n)).collect();
    assert_eq!(batches, [ids(1..=5), ids(6..=10), ids(11..=15)]);
    assert_eq!(follow(&mut dispatcher, 0, LANE_DEPTH), [0; 0]);
    dispatcher.admit(vec![row(31, "b")], NOW);
    assert_eq!(go(&mut dispatcher, 1), [31], "another key does not wait");
    assert_eq!(follow(&mut dispatcher, 0, 3), ids(16..=19), "other rows do not follow");
    assert_eq!(follow(&mut dispatcher, 0, 3), [0; 0]);
    for id in 1..=5 {
        confirm(&mut dispatcher, id);
    }
    assert_eq!(follow(&mut dispatcher, 0, 3), ids(20..=24));
    let mut dispatcher = connected();
    let others = (31..61).map(|id| row(id, &id.to_string())).collect();
    dispatcher.admit([many, others].concat(), NOW);
    assert_eq!(
        (0..4).map(|lane| go(&mut dispatcher, lane).len()).collect::<Vec<_>>(),
        [5; 4]
    );
}

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
