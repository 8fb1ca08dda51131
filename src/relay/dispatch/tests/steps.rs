//! Single steps of a dispatcher, in few words: for tests that say in plain sentences who goes and who waits.

use std::time::Duration;

use uuid::Uuid;

use crate::broker::{Confirmed, Outcome};
use crate::config::{OnDeadLetter, Ordering};
use crate::message::{MessageRules, OrderingKey, OutboxRow, Payload, RowId};
use crate::relay::dispatch::{Dispatcher, Paused, RetryPolicy, Settings, Time};
use crate::store::{Lease, NextStep, Stub};

pub(super) const NOW: Time = Time::from_secs(1);
pub(super) const LATER: Time = Time::from_secs(100);

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
pub(super) fn follow(dispatcher: &mut Dispatcher, lane: usize, under_way: usize) -> Vec<i64> {
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

/// The time of a row comes, and its body with it.
pub(super) fn bring(dispatcher: &mut Dispatcher, row: OutboxRow, now: Time) {
    dispatcher.tick(now);
    assert_eq!(go(dispatcher, 0), [0; 0]);
    assert_eq!(dispatcher.to_fetch(10).0, [row.id]);
    dispatcher.fetched(&[row.id], vec![row], now);
}
