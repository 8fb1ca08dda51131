//! What a store reads.

use std::time::Duration;

use outbox_relay::message::{OutboxRow, Payload, RowId};
use outbox_relay::store::{NextStep, Shares, share_of};

use crate::store::harness::{Harness, body, confirmed, failure, head, head_ids, nobody};

const ALL: &Shares = &Shares::All;

pub(crate) async fn a_minimal_insert_gets_defaults(db: &impl Harness) {
    let store = db.migrated().await;
    db.execute("INSERT INTO outbox (routing_key, payload) VALUES ('orders.placed', '{\"id\":  1}')")
        .await;
    db.execute("INSERT INTO outbox (routing_key, payload) VALUES ('orders.placed', '{}')")
        .await;
    let rows = head(&store).await;
    let row = &rows[0];
    assert_eq!(
        (row.id, row.routing_key.as_str(), row.attempts),
        (RowId(1), "orders.placed", 0)
    );
    assert_eq!(body(row), b"{\"id\":  1}", "whitespace is part of the body");
    assert_eq!(
        (row.exchange.as_deref(), row.kind.as_deref(), row.ordering_key.as_ref()),
        (None, None, None)
    );
    assert_eq!(
        (row.content_type.as_str(), row.headers.as_str(), row.properties.as_str()),
        ("application/json", "{}", "{}")
    );
    assert_eq!(
        uuid::Uuid::parse_str(row.message_id.as_str())
            .expect("a UUID")
            .get_version_num(),
        db.uuid_version()
    );
    assert_ne!(row.message_id, rows[1].message_id);
    assert_eq!(
        row.message_id,
        head(&store).await[0].message_id,
        "the same on every copy"
    );
    assert!(row.due_in.is_zero() && row.age < Duration::from_secs(60));
    assert!(row.created_at > Some(Duration::from_secs(1_700_000_000)));
}

pub(crate) async fn every_column_is_read(db: &impl Harness) {
    let store = db.migrated().await;
    db.execute(&format!(
        "INSERT INTO outbox (message_id, exchange, routing_key, ordering_key, type, content_type, headers, properties,
             payload, created_at, attempts)
         VALUES ('6F9619FF-8B86-D011-B42D-00CF4FC964FF', 'x', 'r', 'köy', 'T', 'text/plain', '{{\"h\": 1}}',
             '{{\"priority\": 5}}', '\"é\"', {}, 3)",
        db.at(1_577_836_800)
    ))
    .await;
    let row = &head(&store).await[0];
    assert_eq!(row.message_id.to_string(), "6f9619ff-8b86-d011-b42d-00cf4fc964ff");
    assert_eq!((row.exchange.as_deref(), row.kind.as_deref()), (Some("x"), Some("T")));
    assert_eq!(row.ordering_key.as_ref().map(|key| key.as_str()), Some("köy"));
    assert_eq!(
        (row.content_type.as_str(), row.headers.as_str()),
        ("text/plain", "{\"h\": 1}")
    );
    assert_eq!(row.properties, "{\"priority\": 5}");
    assert_eq!(body(row), "\"é\"".as_bytes());
    assert_eq!(
        (row.created_at, row.attempts),
        (Some(Duration::from_secs(1_577_836_800)), 3)
    );
    assert!(row.age > Duration::from_secs(86_400));
}

pub(crate) async fn the_head_follows_cursor_and_limit(db: &impl Harness) {
    let store = db.migrated().await;
    db.insert(&["a"; 10]).await;
    store.mark_sent(&confirmed([3])).await.expect("marked");
    let ids = async |after, limit| -> Vec<i64> {
        store
            .head(RowId(after), limit, ALL)
            .await
            .expect("a head")
            .iter()
            .map(|row| row.id.0)
            .collect()
    };
    assert_eq!(ids(0, 4).await, [1, 2, 4, 5]);
    assert_eq!(ids(5, 100).await, [6, 7, 8, 9, 10]);
    assert_eq!(ids(10, 100).await, Vec::<i64>::new());
}

pub(crate) async fn delayed_rows_say_how_long(db: &impl Harness) {
    let store = db.migrated().await;
    db.insert(&["a", "b", "c"]).await;
    db.execute(&format!(
        "UPDATE outbox SET available_at = {} WHERE id = 1",
        db.in_seconds(100)
    ))
    .await;
    db.execute(&format!(
        "UPDATE outbox SET available_at = {}, next_attempt_at = {} WHERE id = 2",
        db.in_seconds(100),
        db.in_seconds(200)
    ))
    .await;
    db.execute(&format!(
        "UPDATE outbox SET available_at = {} WHERE id = 3",
        db.in_seconds(-100)
    ))
    .await;
    let rows = head(&store).await;
    let seconds: Vec<u64> = rows.iter().map(|row| row.due_in.as_secs()).collect();
    assert!(
        (90..=100).contains(&seconds[0]) && (190..=200).contains(&seconds[1]),
        "{seconds:?}"
    );
    assert!(rows[2].due_in.is_zero());
    assert!(
        matches!(rows[0].payload, Payload::Left(2)),
        "a body that cannot be sent yet stays in the table"
    );
    assert_eq!(body(&rows[2]), b"{}");
}

pub(crate) async fn large_bodies_are_left_and_fetched(db: &impl Harness) {
    let store = db.migrated().await;
    let sizes = [16_384, 16_385, 1_000_000];
    for size in sizes {
        let text = format!("\"{}\"", "x".repeat(size - 2));
        db.execute(&format!(
            "INSERT INTO outbox (routing_key, payload) VALUES ('r', '{text}')"
        ))
        .await;
    }
    let rows = head(&store).await;
    assert_eq!(body(&rows[0]).len(), sizes[0]);
    assert!(matches!(rows[1].payload, Payload::Left(16_385)));
    assert!(matches!(rows[2].payload, Payload::Left(1_000_000)));
    let fetched = store.fetch(&[RowId(3), RowId(2)], u64::MAX).await.expect("bodies");
    assert_eq!(
        fetched.iter().map(|row| body(row).len()).collect::<Vec<_>>(),
        [16_385, 1_000_000]
    );
    assert!(body(&fetched[1])[1..999_999].iter().all(|byte| *byte == b'x'));
    let left = |row: &OutboxRow| matches!(row.payload, Payload::Left(_));
    let rows = store.fetch(&[1, 2, 3].map(RowId), 40_000).await.expect("bodies");
    assert_eq!(
        rows.iter().map(left).collect::<Vec<_>>(),
        [false, false, true],
        "as many as there is room for"
    );
    let rows = store.fetch(&[3, 2].map(RowId), 1).await.expect("bodies");
    assert_eq!(rows.iter().map(left).collect::<Vec<_>>(), [false, true], "at least one");
}

pub(crate) async fn shares_divide_the_rows(db: &impl Harness) {
    let store = db.migrated().await;
    let keys: Vec<String> = (0..300)
        .map(|i| if i % 3 == 0 { String::new() } else { format!("clé {i}") })
        .collect();
    db.insert(&keys.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let of = 16;
    let mut seen = 0;
    for share in 0..of {
        let shares = Shares::Some { of, owned: vec![share] };
        let expected: Vec<RowId> = keys
            .iter()
            .zip(1..)
            .map(|(key, id)| (Some(key.as_str()).filter(|key| !key.is_empty()), RowId(id)))
            .filter(|(key, id)| share_of(*id, *key, of) == share)
            .map(|(_, id)| id)
            .collect();
        let rows = store.head(RowId(0), 1_000, &shares).await.expect("a head");
        assert_eq!(rows.iter().map(|row| row.id).collect::<Vec<_>>(), expected);
        let stubs = store
            .scan(RowId(0), RowId(1_000), 1_000, &shares)
            .await
            .expect("a scan");
        assert_eq!(stubs.iter().map(|stub| stub.id).collect::<Vec<_>>(), expected);
        let two = store.head(RowId(0), 2, &shares).await.expect("a head");
        assert_eq!(two.iter().map(|row| row.id).collect::<Vec<_>>(), expected[..2]);
        let two = store.scan(RowId(0), RowId(1_000), 2, &shares).await.expect("a scan");
        assert_eq!(two.iter().map(|stub| stub.id).collect::<Vec<_>>(), expected[..2]);
        seen += rows.len();
    }
    assert_eq!(seen, keys.len());
    let many = Shares::Some {
        of: 256,
        owned: (0..256).collect(),
    };
    assert_eq!(
        store.head(RowId(0), 1_000, &many).await.expect("a head").len(),
        keys.len()
    );
    let none = Shares::Some { of, owned: vec![] };
    assert!(store.head(RowId(0), 1_000, &none).await.expect("a head").is_empty());
}

pub(crate) async fn a_scan_leaves_out_what_nobody_waits_for(db: &impl Harness) {
    let store = db.migrated().await;
    db.insert(&["", "", "k", "", "k"]).await;
    for (id, seconds) in [(1, 3_600), (2, 30), (3, 3_600)] {
        db.execute(&format!(
            "UPDATE outbox SET available_at = {} WHERE id = {id}",
            db.in_seconds(seconds)
        ))
        .await;
    }
    let stubs = store.scan(RowId(0), RowId(4), 10, ALL).await.expect("a scan");
    assert_eq!(stubs.iter().map(|stub| stub.id.0).collect::<Vec<_>>(), [2, 3, 4]);
    assert_eq!(stubs[1].ordering_key.as_ref().map(|key| key.as_str()), Some("k"));
    assert!(stubs[1].due_in > Duration::from_secs(3_500) && stubs[2].due_in.is_zero());
    let one = store.scan(RowId(2), RowId(5), 1, ALL).await.expect("a scan");
    assert_eq!(one.iter().map(|stub| stub.id.0).collect::<Vec<_>>(), [3]);
}

pub(crate) async fn a_probe_tells_what_is_there(db: &impl Harness) {
    let store = db.migrated().await;
    assert!(store.probe(&[RowId(1)]).await.expect("a probe").present.is_empty());
    db.insert(&["a", "b", "c"]).await;
    store.mark_sent(&confirmed([1])).await.expect("marked");
    store
        .record_failures(&[failure(2, 1, NextStep::Dead)], &nobody())
        .await
        .expect("written");
    let probe = store.probe(&[1, 2, 3, 4].map(RowId)).await.expect("a probe");
    assert_eq!(probe.present, [1, 2, 3].map(RowId));
    assert_eq!(probe.unsent.iter().map(|stub| stub.id.0).collect::<Vec<_>>(), [3]);
    assert_eq!(store.probe(&[]).await.expect("a probe").present, []);
}

pub(crate) async fn a_fetch_gives_unsent_rows_only(db: &impl Harness) {
    let store = db.migrated().await;
    db.insert(&["a", "b", "c"]).await;
    store.mark_sent(&confirmed([2])).await.expect("marked");
    let rows = store.fetch(&[9, 3, 2, 1].map(RowId), u64::MAX).await.expect("rows");
    assert_eq!(rows.iter().map(|row| row.id.0).collect::<Vec<_>>(), [1, 3]);
    assert!(store.fetch(&[], u64::MAX).await.expect("rows").is_empty());
    assert_eq!(head_ids(&store).await, [1, 3]);
}
