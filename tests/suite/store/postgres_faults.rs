//! PostgreSQL that is locked, killed, forbidden, or not what was expected.

use std::time::{Duration, Instant};

use outbox_relay::config::{OnSent, Secret};
use outbox_relay::message::RowId;
use outbox_relay::store::{self, NextStep, Shares, StoreError};
use sqlx::Executor;

use crate::store::harness::{Harness, failure, head, head_ids, nobody, options};
use crate::store::postgres::Postgres;

const ALL: &Shares = &Shares::All;

#[tokio::test]
async fn a_locked_table_costs_one_timeout_and_no_backend() {
    let db = Postgres::fresh().await;
    db.migrated().await;
    db.insert(&["a"]).await;
    let store = db.impatient();
    assert_eq!(head_ids(&store).await, [1]);
    let mut ddl = db.another().await;
    ddl.execute("BEGIN; LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")
        .await
        .expect("locked");
    for _ in 0..3 {
        let begun = Instant::now();
        let error = store.head(RowId(0), 1, ALL).await.expect_err("locked");
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        assert!(begun.elapsed() < Duration::from_secs(2));
    }
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outbox-relay' AND datname = current_database() AND wait_event_type = 'Lock'";
    assert_eq!(
        db.number(waiting).await,
        0,
        "nothing waits on the server for an answer nobody reads"
    );
    ddl.execute("ROLLBACK").await.expect("unlocked");
    assert_eq!(head_ids(&store).await, [1]);
}

#[tokio::test]
async fn a_killed_backend_costs_one_call() {
    let db = Postgres::fresh().await;
    let store = db.migrated().await;
    db.insert(&["a"]).await;
    head(&store).await;
    db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'outbox-relay' AND datname = current_database()")
        .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let error = store.head(RowId(0), 1, ALL).await.expect_err("killed");
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    assert_eq!(head_ids(&store).await, [1]);
}

#[tokio::test]
async fn a_call_that_is_given_up_leaves_no_answer_behind() {
    let db = Postgres::fresh().await;
    let store = db.migrated().await;
    db.insert(&["a", "b"]).await;
    head(&store).await;
    let mut ddl = db.another().await;
    ddl.execute("BEGIN; LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")
        .await
        .expect("locked");
    let given_up = tokio::time::timeout(Duration::from_millis(100), store.head(RowId(0), 1, ALL)).await;
    assert!(given_up.is_err(), "{given_up:?}");
    ddl.execute("ROLLBACK").await.expect("unlocked");
    let probe = store.probe(&[RowId(2)]).await.expect("its own answer");
    assert_eq!(probe.present, [RowId(2)]);
}

#[tokio::test]
async fn missing_privileges_are_named() {
    let db = Postgres::fresh().await;
    db.migrated().await;
    let role = format!("\"weak {}\"", std::process::id());
    db.execute(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'pw'; GRANT SELECT ON outbox TO {role}"
    ))
    .await;
    let url = db.url_as(&format!("weak {}", std::process::id()));
    let store = store::open(&url, options("outbox", OnSent::Delete)).expect("a store");
    let denied = async || match store.inspect().await {
        Err(StoreError::Denied(text)) => text,
        other => panic!("{other:?}"),
    };
    let text = denied().await;
    assert!(
        text.contains(&format!("GRANT UPDATE, DELETE ON \"outbox\" TO {role}")),
        "{text}"
    );
    let columns = "sent_at, dead_at, attempts, next_attempt_at, last_error";
    db.execute(&format!("GRANT UPDATE ({columns}) ON outbox TO {role}"))
        .await;
    assert!(denied().await.contains("lacks DELETE"));
    db.execute(&format!("GRANT DELETE ON outbox TO {role}")).await;
    store.inspect().await.expect("enough");
    db.execute(&format!(
        "REVOKE UPDATE ON outbox FROM {role}; INSERT INTO outbox (routing_key, payload) VALUES ('r', '1')"
    ))
    .await;
    let error = store
        .record_failures(&[failure(1, 1, NextStep::Dead)], &nobody())
        .await
        .expect_err("revoked");
    assert!(matches!(error, StoreError::Denied(_)), "{error:?}");
    let error = store::migrate(&url, options("mine", OnSent::Mark))
        .await
        .expect_err("may not create");
    assert!(
        matches!(&error, StoreError::Denied(text) if text.contains("--print")),
        "{error:?}"
    );
}

#[tokio::test]
async fn what_is_no_outbox_is_refused() {
    let db = Postgres::fresh().await;
    let store = db.migrated().await;
    let refused = async || match store.inspect().await {
        Err(StoreError::Failed(text) | StoreError::Denied(text)) => text,
        other => panic!("{other:?}"),
    };
    db.execute("ALTER TABLE outbox ALTER payload TYPE xml USING NULL").await;
    assert!(refused().await.contains("payload is xml, allowed: json, jsonb, text"));
    db.execute("ALTER TABLE outbox RENAME TO base; CREATE VIEW outbox AS SELECT * FROM base")
        .await;
    assert!(refused().await.contains("is a view"));
    db.execute(
        "DROP VIEW outbox; ALTER TABLE base ALTER payload TYPE json USING NULL; ALTER TABLE base RENAME TO outbox",
    )
    .await;
    store.inspect().await.expect("a table again");
    let read_only = Secret::new(format!("{}?options=-c%20default_transaction_read_only%3Don", db.url));
    let store = store::open(&read_only, options("outbox", OnSent::Mark)).expect("a store");
    let error = store.inspect().await.expect_err("read-only");
    assert!(matches!(error, StoreError::ReadOnly(_)), "{error:?}");
}

#[tokio::test]
async fn schemas_are_honoured() {
    let db = Postgres::fresh().await;
    let wanted = options("\"My App\".\"Outbox\"", OnSent::Mark);
    let error = store::migrate(&db.url(), wanted.clone()).await.expect_err("no schema");
    assert!(
        matches!(&error, StoreError::SchemaMissing(text) if text.contains("create it first")),
        "{error:?}"
    );
    let store = db.store_with(wanted.clone());
    assert!(matches!(store.inspect().await, Err(StoreError::SchemaMissing(_))));
    db.execute("CREATE SCHEMA \"My App\"").await;
    store::migrate(&db.url(), wanted).await.expect("migrations");
    db.execute("INSERT INTO \"My App\".\"Outbox\" (routing_key, payload) VALUES ('r', '1')")
        .await;
    assert_eq!(head_ids(&store).await, [1]);
    // The search path finds a table without a schema in its name.
    let path = Secret::new(format!("{}?options[search_path]=%22My%20App%22", db.url));
    let store = store::open(&path, options("Outbox", OnSent::Mark)).expect("a store");
    assert_eq!(head_ids(&store).await, [1]);
}

#[tokio::test]
async fn errors_hold_no_password_and_no_body() {
    let db = Postgres::fresh().await;
    db.migrated().await;
    let host = db.url.split('@').nth(1).expect("a host").to_owned();
    let urls = [
        format!("postgres://nobody:s3cr3t@{host}"),
        "postgres://u:s3cr3t@127.0.0.1:1/db".to_owned(),
        "postgres://u:s3cr3t@no-such-host.invalid/db".to_owned(),
        "postgres://u:12/s3cr3t@127.0.0.1/db".to_owned(),
        "postgres://u:s3cr3t@[bad/db".to_owned(),
        format!("postgres://u:s3cr3t@{host}?sslmode=s3cr3t"),
        format!("postgres://u:s3cr3t@{host}?sslmode=require"),
        "s3cr3t".to_owned(),
        "mysql://u:s3cr3t@h/db".to_owned(),
    ];
    for url in urls {
        let error = match store::open(&Secret::new(url.clone()), options("outbox", OnSent::Mark)) {
            Ok(store) => store.inspect().await.expect_err("a bad URL"),
            Err(error) => error,
        };
        assert!(!format!("{error} {error:?}").contains("s3cr3t"), "{url}: {error:?}");
    }
    db.execute("ALTER TABLE outbox ADD CHECK (attempts < 5)").await;
    db.execute("INSERT INTO outbox (routing_key, payload) VALUES ('r', '\"s3cr3t\"')")
        .await;
    let error = db
        .store()
        .record_failures(&[failure(1, 9, NextStep::Dead)], &nobody())
        .await
        .expect_err("a violated check");
    assert!(
        matches!(&error, StoreError::Failed(text) if !text.contains("s3cr3t")),
        "{error:?}"
    );
}
