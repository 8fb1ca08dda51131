//! What is kept of the errors of earlier attempts.

use std::sync::Arc;
use std::time::Duration;

use outbox_relay::config::OnSent;
use outbox_relay::message::RowId;
use outbox_relay::store::operator::{Operator, Refused::GivenUp};
use outbox_relay::store::{self, Failure, NextStep, Store, StoreError, StoreOptions};

use crate::store::existing::mapping;
use crate::store::harness::{Harness, confirmed, failure, head_ids, nobody, options};

const AGAIN: NextStep = NextStep::RetryIn(Duration::ZERO);

async fn refuse(store: &dyn Store, row: i64, attempts: u32, error: &str, next: NextStep) {
    let failure = Failure {
        error: error.to_owned(),
        ..failure(row, attempts, next)
    };
    let written = store.record_failures(&[failure], &nobody()).await;
    assert_eq!(written.expect("written"), 1, "{error}");
    // In SQLite two times in the same millisecond would be one.
    tokio::time::sleep(Duration::from_millis(2)).await;
}

async fn told(operator: &dyn Operator, row: i64) -> Vec<(u32, String)> {
    let errors = operator.past_errors(RowId(row)).await.expect("errors");
    assert!(errors.is_sorted_by(|newer, older| newer.at > older.at), "{errors:?}");
    errors.into_iter().map(|past| (past.attempt, past.error)).collect()
}

fn expected(errors: &[(u32, &str)]) -> Vec<(u32, String)> {
    errors
        .iter()
        .map(|(attempt, error)| (*attempt, (*error).to_owned()))
        .collect()
}

pub(crate) async fn errors_of_earlier_attempts_are_kept(db: &impl Harness) {
    db.migrated().await;
    let operator = db.operator();
    db.insert(&["a", "b", ""]).await;
    let before = operator.database().await.expect("a clock").now;
    refuse(&*operator, 1, 0, "nack: the queue is full", AGAIN).await;
    refuse(&*operator, 1, 1, "unroutable: it's first", AGAIN).await;
    refuse(&*operator, 1, 1, "nack: the queue is full again", AGAIN).await;
    // Its answer was lost, and it was written once more.
    refuse(&*operator, 1, 2, "refused: second", AGAIN).await;
    refuse(&*operator, 1, 2, "refused: second", AGAIN).await;
    refuse(&*operator, 1, 3, "unroutable: last", NextStep::Dead).await;
    refuse(&*operator, 2, 0, "invalid: never a message", NextStep::Dead).await;
    let late = [failure(1, 4, NextStep::Dead), failure(99, 1, NextStep::Dead)];
    assert_eq!(operator.record_failures(&late, &nobody()).await.expect("an answer"), 0);
    let first = [
        (3, "unroutable: last"),
        (2, "refused: second"),
        (1, "unroutable: it's first"),
    ];
    assert_eq!(told(&*operator, 1).await, expected(&first));
    assert_eq!(told(&*operator, 2).await, expected(&[(0, "invalid: never a message")]));
    assert!(told(&*operator, 3).await.is_empty() && told(&*operator, 99).await.is_empty());
    let after = operator.database().await.expect("a clock").now;
    for past in operator.past_errors(RowId(1)).await.expect("errors") {
        assert!(before <= past.at && past.at <= after, "{before} {past:?} {after}");
    }
    // A replay counts anew.
    assert_eq!(operator.replay(&[RowId(1)], GivenUp).await.expect("replayed"), 1);
    assert_eq!(told(&*operator, 1).await, expected(&first));
    refuse(&*operator, 1, 1, "no_exchange", AGAIN).await;
    let all = [&[(1, "no_exchange")][..], &first].concat();
    assert_eq!(told(&*operator, 1).await, expected(&all));
}

pub(crate) async fn only_the_newest_errors_are_kept(db: &impl Harness) {
    db.migrated().await;
    let operator = db.operator();
    db.insert(&["a", "b"]).await;
    refuse(&*operator, 2, 1, "another row", AGAIN).await;
    for attempt in 1..=25 {
        refuse(&*operator, 1, attempt, "x", AGAIN).await;
    }
    let attempts: Vec<u32> = told(&*operator, 1).await.iter().map(|(attempt, _)| *attempt).collect();
    assert_eq!(attempts, (16..=25).rev().collect::<Vec<u32>>());
    assert_eq!(db.number("SELECT count(*) FROM outbox_relay_errors").await, 11);
    let mut long = failure(2, 2, AGAIN);
    long.error = "é".repeat(3_000);
    operator.record_failures(&[long], &nobody()).await.expect("written");
    assert_eq!(told(&*operator, 2).await[0].1.chars().count(), 2_000);
}

pub(crate) async fn what_is_noted_goes_with_its_row(db: &impl Harness) {
    db.migrated().await;
    let operator = db.operator();
    db.insert(&["a", "b", "c", "d", "e"]).await;
    for row in 1..=5 {
        refuse(&*operator, row, 1, "x", if row < 4 { AGAIN } else { NextStep::Dead }).await;
    }
    // Of another outbox.
    db.execute("INSERT INTO outbox_relay_errors SELECT 'other', id, failed_at, attempt, error FROM outbox_relay_errors WHERE id = 1")
        .await;
    operator.mark_sent(&confirmed([1])).await.expect("marked");
    db.execute("DELETE FROM outbox WHERE id = 2").await;
    assert_eq!(
        operator
            .discard(&[RowId(4), RowId(3)], GivenUp)
            .await
            .expect("discarded"),
        1
    );
    assert!(told(&*operator, 4).await.is_empty(), "discarded");
    operator.tidy().await.expect("tidied");
    for (row, kept) in [(1, 0), (2, 0), (3, 1), (4, 0), (5, 1)] {
        assert_eq!(told(&*operator, row).await.len(), kept, "{row}");
    }
    assert_eq!(db.number("SELECT count(*) FROM outbox_relay_errors").await, 3);
}

/// Without columns for refusals, with a number of its own and without one.
pub(crate) async fn errors_of_a_table_of_the_application_are_kept(db: &impl Harness) {
    for (table, id, first) in [
        ("numbers", "bigint PRIMARY KEY", "7"),
        ("words", "varchar(40) PRIMARY KEY", "'7'"),
    ] {
        db.execute(&format!("CREATE TABLE {table} (id {id}, payload text)"))
            .await;
        let options = StoreOptions {
            mapping: mapping(&[("RELAY_ROUTING_KEY", "r")]),
            ..options(table, OnSent::Delete)
        };
        store::migrate(&db.url(), options.clone()).await.expect("migrations");
        let operator = store::open_operator(&db.url(), options).expect("a good URL");
        db.execute(&format!("INSERT INTO {table} VALUES ({first}, 'x')")).await;
        let store: Arc<dyn Store> = operator.clone();
        let row = head_ids(&store).await[0];
        refuse(&*operator, row, 1, "first", AGAIN).await;
        refuse(&*operator, row, 1, "nack", AGAIN).await;
        refuse(&*operator, row, 2, "second", NextStep::Dead).await;
        assert_eq!(
            told(&*operator, row).await,
            expected(&[(2, "second"), (1, "first")]),
            "{table}"
        );
        operator.tidy().await.expect("tidied");
        assert_eq!(told(&*operator, row).await.len(), 2, "{table}");
        assert_eq!(operator.replay(&[RowId(row)], GivenUp).await.expect("replayed"), 1);
        refuse(&*operator, row, 1, "third", NextStep::Dead).await;
        assert_eq!(told(&*operator, row).await.len(), 3, "{table}");
        assert_eq!(operator.discard(&[RowId(row)], GivenUp).await.expect("discarded"), 1);
        assert!(told(&*operator, row).await.is_empty(), "{table}");
    }
}

/// As it is before the migration, or if somebody takes the table away while relays run.
pub(crate) async fn without_its_table_everything_else_works(db: &impl Harness) {
    db.migrated().await;
    let operator = db.operator();
    db.insert(&["a", "b"]).await;
    refuse(&*operator, 1, 1, "first", AGAIN).await;
    db.execute("DROP TABLE outbox_relay_errors").await;
    // Found when it is missed; then it is not missed any more.
    let again = [failure(1, 2, AGAIN)];
    let _ = operator.record_failures(&again, &nobody()).await;
    refuse(&*operator, 1, 3, "dead", NextStep::Dead).await;
    let fresh = db.operator();
    fresh.inspect().await.expect("a table");
    refuse(&*fresh, 2, 1, "x", AGAIN).await;
    fresh.tidy().await.expect("tidied");
    let advice = fresh.advice().await.expect("advice");
    let said = |words: [&str; 3]| words.iter().all(|word| advice[0].contains(word));
    assert!(said(["outbox_relay_errors", "outbox-relay migrate", "5"]), "{advice:?}");
    let error = fresh.past_errors(RowId(1)).await.expect_err("no table");
    assert!(
        matches!(&error, StoreError::SchemaMissing(text) if text.contains("outbox-relay migrate")),
        "{error:?}"
    );
    assert_eq!(fresh.discard(&[RowId(1)], GivenUp).await.expect("discarded"), 1);
    // Once it is there, all is kept again.
    db.execute("DELETE FROM outbox_relay_migrations WHERE version = 5")
        .await;
    db.migrated().await;
    let fresh = db.operator();
    refuse(&*fresh, 2, 2, "kept", AGAIN).await;
    assert_eq!(told(&*fresh, 2).await, expected(&[(2, "kept")]));
    assert!(fresh.advice().await.expect("advice").is_empty());
}
