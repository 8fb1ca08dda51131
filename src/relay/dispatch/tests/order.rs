//! Which rows go together and which after one another: keys, lanes, windows.

use std::sync::Arc;

use super::steps::{LATER, NOW, bring, confirm, connected, follow, go, refuse, row, settings};
use crate::config::{Attribute, CloudEvents, ContentMode, Ordering, Piece};
use crate::message::OutboxRow;
use crate::relay::dispatch::{LANE_DEPTH, Settings};

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
