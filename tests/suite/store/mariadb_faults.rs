//! MariaDB that is locked, killed, forbidden, or not what was expected.

use std::time::{Duration, Instant};

use outbox_relay::config::{OnSent, Secret};
use outbox_relay::message::RowId;
use outbox_relay::store::{self, NextStep, Shares, StoreError, StoreOptions};
use sqlx::Executor;

use crate::store::existing::mapping;
use crate::store::harness::{Harness, confirmed, failure, head, head_ids, nobody, options};
use crate::store::mariadb::MariaDb;
use crate::support::{Proxy, until};

const ALL: &Shares = &Shares::All;

/// The relay's connection: the oldest but the one that asks.
const RELAYS: &str =
    "SELECT min(id) FROM information_schema.processlist WHERE db = database() AND id <> connection_id()";

#[tokio::test]
async fn a_locked_table_costs_one_timeout_and_no_connection() {
    let db = MariaDb::fresh().await;
    db.migrated().await;
    db.insert(&["a"]).await;
    let store = db.impatient();
    assert_eq!(head_ids(&store).await, [1]);
    let mut ddl = db.another().await;
    ddl.execute("LOCK TABLES outbox WRITE").await.expect("locked");
    for _ in 0..3 {
        let begun = Instant::now();
        let error = store.head(RowId(0), 1, ALL).await.expect_err("locked");
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        assert!(begun.elapsed() < Duration::from_secs(2));
    }
    let waiting = "SELECT count(*) FROM information_schema.processlist WHERE db = database() AND state LIKE 'Waiting%'";
    until(
        "nothing waits on the server for an answer nobody reads",
        Duration::from_secs(2),
        async || db.number(waiting).await == 0,
    )
    .await;
    ddl.execute("UNLOCK TABLES").await.expect("unlocked");
    assert_eq!(head_ids(&store).await, [1]);
}

#[tokio::test]
async fn a_killed_connection_costs_one_call() {
    let db = MariaDb::fresh().await;
    let store = db.migrated().await;
    db.insert(&["a"]).await;
    head(&store).await;
    let id = db.number(RELAYS).await;
    db.execute(&format!("KILL {id}")).await;
    let gone = format!("SELECT count(*) FROM information_schema.processlist WHERE id = {id}");
    until("it is gone", Duration::from_secs(10), async || {
        db.number(&gone).await == 0
    })
    .await;
    let error = store.head(RowId(0), 1, ALL).await.expect_err("killed");
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    assert_eq!(head_ids(&store).await, [1]);
}

#[tokio::test]
async fn a_call_that_is_given_up_leaves_no_answer_behind() {
    let db = MariaDb::fresh().await;
    let store = db.migrated().await;
    db.insert(&["a", "b"]).await;
    head(&store).await;
    let mut ddl = db.another().await;
    ddl.execute("LOCK TABLES outbox WRITE").await.expect("locked");
    let given_up = tokio::time::timeout(Duration::from_millis(100), store.head(RowId(0), 1, ALL)).await;
    assert!(given_up.is_err(), "{given_up:?}");
    ddl.execute("UNLOCK TABLES").await.expect("unlocked");
    let probe = store.probe(&[RowId(2)]).await.expect("its own answer");
    assert_eq!(probe.present, [RowId(2)]);
}

#[tokio::test]
async fn a_deadlock_is_a_conflict_and_costs_no_connection() {
    let db = MariaDb::fresh().await;
    let store = db.migrated().await;
    db.insert(&["a"; 200]).await;
    let mut other = db.another().await;
    // Whoever has changed less is the victim.
    other
        .execute("BEGIN; UPDATE outbox SET attempts = 1 WHERE id > 50")
        .await
        .expect("locked");
    let rows = confirmed([1, 100]);
    let crossing = async {
        let marking = "SELECT count(*) FROM information_schema.processlist WHERE db = database() AND info LIKE 'UPDATE JSON_TABLE%'";
        until("the mark waits", Duration::from_secs(10), async || {
            db.number(marking).await == 1
        })
        .await;
        other
            .execute("UPDATE outbox SET attempts = 1 WHERE id = 1; ROLLBACK")
            .await
            .expect("the other one is the victim");
    };
    let (marked, ()) = tokio::join!(store.mark_sent(&rows), crossing);
    // Where the mark did not have its first row yet, it only waited.
    assert!(matches!(marked, Err(StoreError::Conflict(_)) | Ok(2)), "{marked:?}");
    if marked.is_err() {
        assert_eq!(store.mark_sent(&rows).await.expect("marked"), 2);
    }
}

#[tokio::test]
async fn missing_privileges_are_named() {
    let db = MariaDb::fresh().await;
    db.migrated().await;
    let name = format!("weak {}", std::process::id());
    let user = format!("'{name}'@'127.0.0.1'");
    db.execute(&format!(
        "CREATE USER {user} IDENTIFIED BY 'pw'; GRANT SELECT ON outbox TO {user}"
    ))
    .await;
    let url = db.url_as(&name);
    let store = store::open(&url, options("outbox", OnSent::Delete)).expect("a store");
    let denied = async || match store.inspect().await {
        Err(StoreError::Denied(text)) => text,
        other => panic!("{other:?}"),
    };
    let text = denied().await;
    assert!(
        text.contains(&format!("GRANT UPDATE, DELETE ON `outbox` TO {user}")),
        "{text}"
    );
    let columns = "sent_at, dead_at, attempts, next_attempt_at, last_error";
    db.execute(&format!("GRANT UPDATE ({columns}) ON outbox TO {user}"))
        .await;
    assert!(denied().await.contains("lacks DELETE"));
    let marking = store::open(&url, options("outbox", OnSent::Mark)).expect("a store");
    marking.inspect().await.expect("enough to mark");
    db.execute(&format!("GRANT DELETE ON outbox TO {user}")).await;
    store.inspect().await.expect("enough");
    db.execute(&format!(
        "REVOKE UPDATE, UPDATE ({columns}) ON outbox FROM {user}; INSERT INTO outbox (routing_key, payload) VALUES ('r', '1')"
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
    let db = MariaDb::fresh().await;
    let store = db.migrated().await;
    let refused = async || match store.inspect().await {
        Err(StoreError::Failed(text) | StoreError::Denied(text)) => text,
        other => panic!("{other:?}"),
    };
    db.execute("ALTER TABLE outbox MODIFY attempts varchar(9)").await;
    assert!(refused().await.contains("attempts is varchar, allowed: bigint, int"));
    db.execute(
        "ALTER TABLE outbox MODIFY attempts int; RENAME TABLE outbox TO base; CREATE VIEW outbox AS SELECT * FROM base",
    )
    .await;
    assert!(refused().await.contains("is a view"));
    db.execute("DROP VIEW outbox; RENAME TABLE base TO outbox").await;
    store.inspect().await.expect("a table again");
    db.execute("ALTER TABLE outbox ENGINE=MyISAM").await;
    assert!(refused().await.contains("ENGINE=InnoDB"));
}

#[tokio::test]
async fn other_databases_of_the_server_are_reached() {
    let (db, other) = (MariaDb::fresh().await, MariaDb::fresh().await);
    let schema = other.url.rsplit('/').next().expect("a name");
    let wanted = options(&format!("{schema}.\"My Outbox\""), OnSent::Mark);
    store::migrate(&db.url(), wanted.clone()).await.expect("migrations");
    let store = db.store_with(wanted);
    other
        .execute("INSERT INTO \"My Outbox\" (routing_key, payload) VALUES ('r', '1'), ('r', '1')")
        .await;
    assert_eq!(head_ids(&store).await, [1, 2]);
    assert_eq!(store.mark_sent(&confirmed([1])).await.expect("marked"), 1);
    store.purge(Duration::ZERO, 10).await.expect("purged");
    assert!(!store.has_free_shares(16).await.expect("an answer"));
    let missing = options("nowhere.outbox", OnSent::Mark);
    let error = store::migrate(&db.url(), missing.clone())
        .await
        .expect_err("no database");
    assert!(
        matches!(&error, StoreError::SchemaMissing(text) if text.contains("create it first")),
        "{error:?}"
    );
    assert!(matches!(
        db.store_with(missing).inspect().await,
        Err(StoreError::SchemaMissing(_))
    ));
}

#[tokio::test]
async fn errors_hold_no_password_and_no_body() {
    let db = MariaDb::fresh().await;
    db.migrated().await;
    let host = db.url.split('@').nth(1).expect("a host").to_owned();
    let urls = [
        format!("mysql://nobody:s3cr3t@{host}"),
        "mysql://u:s3cr3t@127.0.0.1:1/db".to_owned(),
        "mysql://u:s3cr3t@no-such-host.invalid/db".to_owned(),
        "mysql://u:12/s3cr3t@127.0.0.1/db".to_owned(),
        "mariadb://u:s3cr3t@[bad/db".to_owned(),
        format!("mysql://u:s3cr3t@{host}?ssl-mode=s3cr3t"),
        format!("mysql://u:s3cr3t@{host}?ssl-mode=REQUIRED"),
        format!("mysql://u:s3cr3t@{host}?sslmod=s3cr3t"),
        "mysql://u:s3cr3t@127.0.0.1".to_owned(),
    ];
    for url in urls {
        let error = match store::open(&Secret::new(url.clone()), options("outbox", OnSent::Mark)) {
            Ok(store) => store.inspect().await.expect_err("a bad URL"),
            Err(error) => error,
        };
        assert!(!format!("{error} {error:?}").contains("s3cr3t"), "{url}: {error:?}");
    }
    db.execute("ALTER TABLE outbox ADD CHECK (attempts < 5), ADD UNIQUE (last_error(100))")
        .await;
    db.execute(
        "INSERT INTO outbox (routing_key, payload, last_error) VALUES ('r', '\"s3cr3t\"', 's3cr3t'), ('r', '1', NULL)",
    )
    .await;
    let mut double = failure(2, 1, NextStep::Dead);
    double.error = "s3cr3t".to_owned();
    for bad in [failure(1, 9, NextStep::Dead), double] {
        let error = db
            .store()
            .record_failures(&[bad], &nobody())
            .await
            .expect_err("a violated constraint");
        assert!(
            matches!(&error, StoreError::Failed(text) if !text.contains("s3cr3t")),
            "{error:?}"
        );
    }
}

/// Something of the relay's own tables is being removed: the second statement of a mark.
const FREEING: &str = "SELECT count(*) FROM information_schema.processlist
    WHERE db = database() AND id <> connection_id() AND info LIKE '%outbox_relay_failures%' AND command <> 'Sleep'";

/// What a relay has begun is ended without it, and its locks with it.
#[tokio::test]
async fn a_relay_that_is_cut_off_within_a_mark_holds_up_no_other() {
    let db = MariaDb::fresh().await;
    db.execute("CREATE TABLE events (id bigint AUTO_INCREMENT PRIMARY KEY, payload text, sent_at timestamp(6) NULL)")
        .await;
    let options = StoreOptions {
        mapping: mapping(&[("RELAY_ROUTING_KEY", "r")]),
        // Nothing ends by it within the test.
        timeout: Duration::from_secs(120),
        ..options("events", OnSent::Mark)
    };
    store::migrate(&db.url(), options.clone()).await.expect("migrations");
    let port = crate::support::MariaDb::shared().await.port();
    let line = Proxy::start(([127, 0, 0, 1], port).into()).await;
    let far = store::open(&Secret::new(line.through(&db.url)), options.clone()).expect("a good URL");
    let near = store::open(&db.url(), options).expect("a good URL");
    db.execute("INSERT INTO events (payload) VALUES ('a')").await;
    let refused = failure(1, 1, NextStep::RetryIn(Duration::ZERO));
    far.record_failures(&[refused], &nobody()).await.expect("written");
    let mut other = db.another().await;
    let lock = "SELECT id FROM outbox_relay_failures FOR UPDATE";
    for sql in ["START TRANSACTION", lock] {
        let sql = sqlx::raw_sql(sqlx::AssertSqlSafe(sql));
        other.fetch_all(sql).await.expect("raw SQL");
    }
    let marking = tokio::spawn(async move { far.mark_sent(&confirmed([1])).await });
    until("it waits for the lock", Duration::from_secs(20), async || {
        db.number(FREEING).await == 1
    })
    .await;
    line.stall();
    other.execute("ROLLBACK").await.expect("released");
    let marked = tokio::time::timeout(Duration::from_secs(30), near.mark_sent(&confirmed([1]))).await;
    assert_eq!(marked.expect("in time").expect("an answer"), 0, "it is marked");
    assert_eq!(db.number("SELECT count(*) FROM outbox_relay_failures").await, 0);
    line.resume();
    assert_eq!(marking.await.expect("no panic").expect("its answer was kept"), 1);
}

/// The lock under which rows are numbered ends without the relay that took it.
#[tokio::test]
async fn a_relay_that_is_cut_off_while_it_numbers_holds_up_no_other() {
    let db = MariaDb::fresh().await;
    db.execute("CREATE TABLE events (id varchar(9) PRIMARY KEY, payload text)")
        .await;
    let options = StoreOptions {
        mapping: mapping(&[("RELAY_ROUTING_KEY", "r")]),
        timeout: Duration::from_secs(120),
        ..options("events", OnSent::Delete)
    };
    store::migrate(&db.url(), options.clone()).await.expect("migrations");
    let port = crate::support::MariaDb::shared().await.port();
    let line = Proxy::start(([127, 0, 0, 1], port).into()).await;
    let far = store::open(&Secret::new(line.through(&db.url)), options.clone()).expect("a good URL");
    let near = store::open(&db.url(), options).expect("a good URL");
    far.inspect().await.expect("a table");
    near.inspect().await.expect("a table");
    db.execute("INSERT INTO events VALUES ('a', '1')").await;
    let mut other = db.another().await;
    let number = "INSERT INTO outbox_relay_positions (outbox, row_key) VALUES ('events', 'a')";
    for sql in ["START TRANSACTION", number] {
        other
            .execute(sqlx::raw_sql(sqlx::AssertSqlSafe(sql)))
            .await
            .expect("raw SQL");
    }
    let looking = tokio::spawn(async move { far.head(RowId(0), 10, ALL).await });
    let numbering = "SELECT count(*) FROM information_schema.processlist
        WHERE db = database() AND id <> connection_id() AND info LIKE '%INSERT IGNORE INTO \"outbox_relay_positions%'";
    until("it waits for the other one", Duration::from_secs(20), async || {
        db.number(numbering).await == 1
    })
    .await;
    line.stall();
    other.execute(sqlx::raw_sql("ROLLBACK")).await.expect("released");
    until("another relay reads the row", Duration::from_secs(30), async || {
        near.head(RowId(0), 10, ALL).await.expect("a head").len() == 1
    })
    .await;
    db.execute("INSERT INTO events VALUES ('b', '2')").await;
    until("and numbers the next one", Duration::from_secs(30), async || {
        near.head(RowId(0), 10, ALL).await.expect("a head").len() == 2
    })
    .await;
    line.resume();
    let seen = looking.await.expect("no panic").expect("its answer was kept");
    assert!(!seen.is_empty());
}
