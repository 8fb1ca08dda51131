//! Tables that are missing, changed, doubled, or strangely named.

use outbox_relay::config::OnSent;
use outbox_relay::message::RowId;
use outbox_relay::store::{self, Shares, StoreError};

use crate::store::harness::{Harness, confirmed, head_ids, nobody, options};

pub(crate) async fn a_missing_table_is_waited_for(db: &impl Harness) {
    let store = db.store();
    for _ in 0..2 {
        let error = store.inspect().await.expect_err("no table");
        assert!(matches!(error, StoreError::SchemaMissing(_)), "{error:?}");
        assert!(error.to_string().contains("outbox-relay migrate"), "{error}");
    }
    let error = store.head(RowId(0), 1, &Shares::All).await.expect_err("no table");
    assert!(matches!(error, StoreError::SchemaMissing(_)), "{error:?}");
    store::migrate(&db.url(), options("outbox", OnSent::Mark))
        .await
        .expect("migrations");
    db.insert(&["a"]).await;
    assert_eq!(head_ids(&store).await, [1], "found without being told");
    db.execute("DROP TABLE outbox").await;
    let error = store.head(RowId(0), 1, &Shares::All).await.expect_err("no table");
    assert!(matches!(error, StoreError::SchemaMissing(_)), "{error:?}");
    store.inspect().await.expect_err("no table");
}

pub(crate) async fn a_missing_column_is_named(db: &impl Harness) {
    let store = db.migrated().await;
    store.inspect().await.expect("a table");
    db.execute("ALTER TABLE outbox RENAME COLUMN last_error TO oops").await;
    let error = store.inspect().await.expect_err("a column is missing");
    assert!(
        matches!(&error, StoreError::SchemaMissing(text) if text.contains("last_error")),
        "{error:?}"
    );
    let error = store
        .head(RowId(0), 1, &Shares::All)
        .await
        .expect_err("a column is missing");
    assert!(matches!(error, StoreError::SchemaMissing(_)), "{error:?}");
    db.execute("ALTER TABLE outbox RENAME COLUMN oops TO last_error").await;
    store.inspect().await.expect("whole again");
}

pub(crate) async fn two_tables_live_in_one_database(db: &impl Harness) {
    let first = db.migrated().await;
    let applied = store::migrate(&db.url(), options("other", OnSent::Mark))
        .await
        .expect("migrations");
    assert_eq!(applied.len(), 4, "each table has its own history");
    let second = db.store_with(options("other", OnSent::Mark));
    db.insert(&["a", "b"]).await;
    db.execute("INSERT INTO other (routing_key, payload) VALUES ('r', '{}')")
        .await;
    assert_eq!(first.mark_sent(&confirmed([1])).await.expect("marked"), 1);
    assert_eq!((head_ids(&first).await, head_ids(&second).await), (vec![2], vec![1]));
}

pub(crate) async fn strange_names_work(db: &impl Harness) {
    let long = format!("\"{}\"", "Ö".repeat(31));
    for name in ["\"Mixed Case\"", "\"a'b\"\"c;--\"", "\"select\"", &long] {
        let options = options(name, OnSent::Mark);
        store::migrate(&db.url(), options.clone()).await.expect("migrations");
        assert_eq!(
            store::migrate(&db.url(), options.clone()).await.expect("migrations"),
            [],
            "applied already"
        );
        let store = db.store_with(options);
        db.execute(&format!(
            "INSERT INTO {name} (routing_key, payload) VALUES ('r', '{{}}')"
        ))
        .await;
        assert_eq!(head_ids(&store).await, [1]);
        store.mark_sent(&confirmed([1])).await.expect("marked");
        store.purge(std::time::Duration::ZERO, 10).await.expect("purged");
        store.backlog().await.expect("a backlog");
        store.scan(RowId(0), RowId(9), 9, &Shares::All).await.expect("a scan");
        store.dead_keys(1).await.expect("keys");
        store.probe(&[RowId(1)]).await.expect("a probe");
        store.record_failures(&[], &nobody()).await.expect("written");
    }
}

pub(crate) async fn migrations_run_once(db: &impl Harness) {
    let (url, options) = (db.url(), options("outbox", OnSent::Mark));
    let all = (0..8).map(|_| {
        let (url, options) = (url.clone(), options.clone());
        tokio::spawn(async move { store::migrate(&url, options).await })
    });
    let mut applied = 0;
    for one in all.collect::<Vec<_>>() {
        applied += one.await.expect("no panic").expect("migrations").len();
    }
    assert_eq!(applied, 4, "one of them did it");
    assert_eq!(store::migrate(&url, options).await.expect("migrations"), []);
    assert_eq!(db.number("SELECT count(*) FROM outbox_relay_migrations").await, 4);
}

pub(crate) async fn printed_migrations_are_the_same(db: &impl Harness) {
    let options = options("outbox", OnSent::Mark);
    let sql = store::migration_sql(&db.url(), &options).expect("SQL");
    assert!(!sql.contains('{') || !sql.contains("{outbox}"), "{sql}");
    for _ in 0..2 {
        // A database whose file is not there yet is made by the harness.
        db.execute(&sql).await;
    }
    assert_eq!(
        store::migrate(&db.url(), options).await.expect("migrations"),
        [],
        "it knows what was run by hand"
    );
    db.store().inspect().await.expect("a table");
}
