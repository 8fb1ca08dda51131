//! What a store writes.

use std::time::Duration;

use outbox_relay::config::OnSent;
use outbox_relay::message::{OrderingKey, RowId};
use outbox_relay::store::NextStep;

use crate::store::harness::{Harness, confirmed, failure, head, head_ids, nobody, options};

const HOUR: Duration = Duration::from_secs(3_600);

pub(crate) async fn a_row_is_marked_once(db: &impl Harness) {
    let store = db.migrated().await;
    db.insert(&["a", "b", "c"]).await;
    assert_eq!(store.mark_sent(&confirmed([3, 1, 1, 77])).await.expect("marked"), 2);
    assert_eq!(
        store.mark_sent(&confirmed([1, 3])).await.expect("marked"),
        0,
        "the second time"
    );
    assert_eq!(store.mark_sent(&[]).await.expect("marked"), 0);
    assert_eq!(head_ids(&store).await, [2]);
    assert_eq!(
        db.number("SELECT count(*) FROM outbox WHERE sent_at IS NOT NULL").await,
        2
    );
}

pub(crate) async fn a_row_is_deleted_once(db: &impl Harness) {
    db.migrated().await;
    let store = db.store_with(options("outbox", OnSent::Delete));
    db.insert(&["a", "b", "c"]).await;
    assert_eq!(store.mark_sent(&confirmed([3, 1])).await.expect("deleted"), 2);
    assert_eq!(store.mark_sent(&confirmed([3, 1])).await.expect("deleted"), 0);
    assert_eq!(db.number("SELECT sum(id) FROM outbox").await, 2);
}

pub(crate) async fn five_thousand_rows_are_marked(db: &impl Harness) {
    let store = db.migrated().await;
    db.insert(&["a"; 5_001]).await;
    assert_eq!(
        store.mark_sent(&confirmed((1..=5_000).rev())).await.expect("marked"),
        5_000
    );
    assert_eq!(head_ids(&store).await, [5_001]);
}

pub(crate) async fn a_retry_is_seen_as_a_wait(db: &impl Harness) {
    let store = db.migrated().await;
    db.insert(&["a", "b", "c"]).await;
    let failures = [
        failure(1, 4, NextStep::RetryIn(HOUR)),
        failure(2, 1, NextStep::RetryIn(Duration::MAX)),
    ];
    assert_eq!(store.record_failures(&failures, &nobody()).await.expect("written"), 2);
    let rows = head(&store).await;
    assert_eq!((rows[0].attempts, rows[1].attempts, rows[2].attempts), (4, 1, 0));
    // SQLite rounds times to milliseconds.
    assert!(rows[0].due_in <= HOUR + Duration::from_millis(2) && rows[0].due_in > HOUR - Duration::from_secs(60));
    assert!(rows[1].due_in > HOUR * 1_000 && rows[2].due_in.is_zero());
    let quoted = "SELECT count(*) FROM outbox WHERE last_error = 'it''s \"refused\"'";
    assert_eq!(db.number(quoted).await, 2);
}

pub(crate) async fn a_dead_letter_leaves_the_head(db: &impl Harness) {
    let store = db.migrated().await;
    db.insert(&["a", "a"]).await;
    assert_eq!(
        store
            .record_failures(&[failure(1, 10, NextStep::Dead)], &nobody())
            .await
            .expect("written"),
        1
    );
    assert_eq!(head_ids(&store).await, [2]);
    assert!(store.fetch(&[RowId(1)], u64::MAX).await.expect("rows").is_empty());
    assert_eq!(
        store
            .record_failures(&[failure(1, 11, NextStep::Dead)], &nobody())
            .await
            .expect("written"),
        0,
        "dead already"
    );
    assert_eq!(db.number("SELECT attempts FROM outbox WHERE id = 1").await, 10);
}

pub(crate) async fn a_late_failure_takes_nothing(db: &impl Harness) {
    let store = db.migrated().await;
    db.insert(&["a", "b"]).await;
    store.mark_sent(&confirmed([1])).await.expect("marked");
    let failures = [
        failure(1, 1, NextStep::Dead),
        failure(2, 1, NextStep::RetryIn(HOUR)),
        failure(9, 1, NextStep::Dead),
    ];
    assert_eq!(store.record_failures(&failures, &nobody()).await.expect("written"), 1);
    assert_eq!(
        db.number("SELECT count(*) FROM outbox WHERE dead_at IS NOT NULL").await,
        0
    );
    assert_eq!(store.record_failures(&[], &nobody()).await.expect("written"), 0);
}

pub(crate) async fn a_dead_letter_that_was_confirmed_is_sent(db: &impl Harness) {
    let store = db.migrated().await;
    db.insert(&["a"]).await;
    store
        .record_failures(&[failure(1, 1, NextStep::Dead)], &nobody())
        .await
        .expect("written");
    assert_eq!(store.mark_sent(&confirmed([1])).await.expect("marked"), 1);
    assert_eq!(store.backlog().await.expect("a backlog").dead, 0);
}

pub(crate) async fn dead_keys_come_with_their_lowest_row(db: &impl Harness) {
    let store = db.migrated().await;
    db.insert(&["x", "b", "a", "b", "", "c"]).await;
    let failures: Vec<_> = [2, 3, 4, 5, 6].map(|id| failure(id, 1, NextStep::Dead)).into();
    store.record_failures(&failures, &nobody()).await.expect("written");
    let key = |name: &str, id| (OrderingKey::new(name), RowId(id));
    assert_eq!(
        store.dead_keys(10).await.expect("keys"),
        [key("b", 2), key("a", 3), key("c", 6)]
    );
    assert_eq!(store.dead_keys(1).await.expect("keys"), [key("b", 2)]);
}

pub(crate) async fn a_purge_respects_age_and_limit(db: &impl Harness) {
    let store = db.migrated().await;
    db.insert(&["a"; 20]).await;
    store
        .record_failures(&[failure(1, 1, NextStep::Dead)], &nobody())
        .await
        .expect("written");
    store.mark_sent(&confirmed(2..=18)).await.expect("marked");
    assert_eq!(store.purge(HOUR, 100).await.expect("purged"), 0, "sent just now");
    db.execute(&format!(
        "UPDATE outbox SET sent_at = {} WHERE id BETWEEN 2 AND 11",
        db.in_seconds(-7_200)
    ))
    .await;
    assert_eq!(store.purge(HOUR, 6).await.expect("purged"), 6);
    assert_eq!(
        db.number("SELECT min(id) FROM outbox WHERE sent_at IS NOT NULL").await,
        8,
        "the oldest first"
    );
    assert_eq!(store.purge(HOUR, 6).await.expect("purged"), 4);
    assert_eq!(store.purge(HOUR, 6).await.expect("purged"), 0);
    assert_eq!(db.number("SELECT count(*) FROM outbox").await, 10);
    assert_eq!(store.purge(HOUR, 0).await.expect("purged"), 0);
}

pub(crate) async fn a_purge_passes_what_stays(db: &impl Harness) {
    let store = db.migrated().await;
    db.insert(&["a"; 2_600]).await;
    db.execute(&format!(
        "UPDATE outbox SET dead_at = {} WHERE id <= 2500",
        db.in_seconds(-7_200)
    ))
    .await;
    db.execute(&format!(
        "UPDATE outbox SET sent_at = {} WHERE id > 2500",
        db.in_seconds(-7_200)
    ))
    .await;
    let mut purged = 0;
    for _ in 0..4 {
        purged += store.purge(HOUR, 30).await.expect("purged");
    }
    assert_eq!(purged, 100);
    // Sent later than its neighbours, and below the place the purge has come to.
    db.execute(&format!(
        "UPDATE outbox SET dead_at = NULL, sent_at = {} WHERE id = 7",
        db.in_seconds(-7_200)
    ))
    .await;
    store.purge(HOUR, 30).await.expect("purged");
    store.purge(HOUR, 30).await.expect("purged");
    assert_eq!(db.number("SELECT count(*) FROM outbox WHERE id = 7").await, 0);
    assert_eq!(db.number("SELECT count(*) FROM outbox").await, 2_499);
}

pub(crate) async fn the_backlog_is_counted(db: &impl Harness) {
    let store = db.migrated().await;
    let empty = store.backlog().await.expect("a backlog");
    assert_eq!(
        (
            empty.pending,
            empty.retrying,
            empty.dead,
            empty.oldest_age,
            empty.capped
        ),
        (0, 0, 0, None, false)
    );
    db.insert(&["a"; 10]).await;
    db.execute(&format!(
        "UPDATE outbox SET created_at = {} WHERE id = 4",
        db.in_seconds(-500)
    ))
    .await;
    let (delayed, old) = (db.in_seconds(500), db.in_seconds(-9_000));
    db.execute(&format!(
        "UPDATE outbox SET available_at = {delayed}, created_at = {old} WHERE id = 5"
    ))
    .await;
    store.mark_sent(&confirmed([1, 2])).await.expect("marked");
    let failures = [failure(3, 1, NextStep::Dead), failure(6, 2, NextStep::RetryIn(HOUR))];
    store.record_failures(&failures, &nobody()).await.expect("written");
    let backlog = store.backlog().await.expect("a backlog");
    assert_eq!(
        (backlog.pending, backlog.retrying, backlog.dead, backlog.capped),
        (6, 1, 1, false)
    );
    let age = backlog.oldest_age.expect("an age").as_secs();
    assert!((500..600).contains(&age), "the oldest that is due: {age}");
}
