//! PostgreSQL: the harness, and what only it can do.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use outbox_relay::config::{OnSent, Secret};
use outbox_relay::message::{Payload, RowId};
use outbox_relay::store::{self, NextStep, Shares, StoreOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};
use tokio::sync::Mutex;

use crate::store::harness::{Harness, body, confirmed, failure, head, head_ids, nobody, options};

const ALL: &Shares = &Shares::All;

pub(crate) struct Postgres {
    pub(crate) url: String,
    connection: Mutex<PgConnection>,
}

#[async_trait]
impl Harness for Postgres {
    async fn fresh() -> Self {
        let url = crate::support::Postgres::shared().await.create_database().await;
        let connection = Mutex::new(PgConnection::connect(&url).await.expect("a connection"));
        Self { url, connection }
    }

    fn url(&self) -> Secret {
        Secret::new(self.url.clone())
    }

    async fn execute(&self, sql: &str) {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        sql.execute(&mut *self.connection.lock().await).await.expect("raw SQL");
    }

    async fn number(&self, sql: &str) -> i64 {
        let sql = AssertSqlSafe(format!("SELECT ({sql})::bigint"));
        self.connection.lock().await.fetch_one(sql).await.expect("a row").get(0)
    }

    fn in_seconds(&self, seconds: i64) -> String {
        format!("now() + interval '{seconds} seconds'")
    }

    fn allow_inserts(&self) -> &'static str {
        "DROP TRIGGER refused ON outbox_relay_positions"
    }

    fn at(&self, unix: i64) -> String {
        format!("to_timestamp({unix})")
    }
}

impl Postgres {
    pub(crate) async fn another(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("a connection")
    }

    pub(crate) fn impatient(&self) -> std::sync::Arc<dyn store::Store> {
        let timeout = Duration::from_millis(500);
        self.store_with(StoreOptions {
            timeout,
            ..options("outbox", OnSent::Mark)
        })
    }

    /// `user` with the password `pw`.
    pub(crate) fn url_as(&self, user: &str) -> Secret {
        let mut url = url::Url::parse(&self.url).expect("a URL");
        url.set_username(user).expect("a user");
        url.set_password(Some("pw")).expect("a password");
        Secret::new(url.as_str())
    }
}

#[tokio::test]
async fn bodies_of_every_type_come_as_stored() {
    let db = Postgres::fresh().await;
    let store = db.migrated().await;
    let big = "€".repeat(200_000);
    let cases: &[(&str, &str, Vec<u8>)] = &[
        ("json", "' {\"a\" :1,  \"a\":2}\n'", b" {\"a\" :1,  \"a\":2}\n".to_vec()),
        (
            "jsonb",
            "'{\"b\":1,\"a\": [1,2]}'",
            b"{\"a\": [1, 2], \"b\": 1}".to_vec(),
        ),
        ("text", "E'x\\ny  '", b"x\ny  ".to_vec()),
        ("varchar(50)", "''", Vec::new()),
        ("bytea", "'\\x00ff0a27'", vec![0, 0xff, 0x0a, 0x27]),
    ];
    for (kind, sql, expected) in cases {
        db.execute(&format!(
            "TRUNCATE outbox RESTART IDENTITY; ALTER TABLE outbox ALTER payload TYPE {kind} USING NULL"
        ))
        .await;
        db.execute(&format!(
            "INSERT INTO outbox (routing_key, payload) VALUES ('r', {sql})"
        ))
        .await;
        // The change of type voids prepared statements: said once, then healed.
        if store.inspect().await.is_err() || store.head(RowId(0), 1, ALL).await.is_err() {
            store.inspect().await.expect("healed");
        }
        assert_eq!(body(&head(&store).await[0]), expected, "{kind}");
        if store.fetch(&[RowId(1)], u64::MAX).await.is_err() {
            store.inspect().await.expect("healed");
        }
        assert_eq!(
            body(&store.fetch(&[RowId(1)], u64::MAX).await.expect("rows")[0]),
            expected,
            "{kind}"
        );
        if *kind != "varchar(50)" {
            let (open, close) = if *kind == "bytea" {
                ("convert_to(", ", 'UTF8')")
            } else {
                ("", "")
            };
            db.execute(&format!(
                "INSERT INTO outbox (routing_key, payload) VALUES ('r', {open}'\"{big}\"'{close})"
            ))
            .await;
            assert!(
                matches!(head(&store).await[1].payload, Payload::Left(600_002)),
                "{kind}"
            );
            assert_eq!(
                body(&store.fetch(&[RowId(2)], u64::MAX).await.expect("rows")[0]),
                format!("\"{big}\"").as_bytes()
            );
        }
    }
}

#[tokio::test]
async fn infinity_is_a_long_time() {
    let db = Postgres::fresh().await;
    let store = db.migrated().await;
    db.insert(&["a", "b", "c"]).await;
    db.execute("UPDATE outbox SET available_at = 'infinity' WHERE id = 1")
        .await;
    db.execute("UPDATE outbox SET available_at = '-infinity', created_at = '-infinity' WHERE id = 2")
        .await;
    db.execute("UPDATE outbox SET created_at = 'infinity' WHERE id = 3")
        .await;
    let rows = head(&store).await;
    assert!(rows[0].due_in > Duration::from_secs(86_400 * 365));
    assert!(rows[1].due_in.is_zero() && rows[1].created_at == Some(Duration::ZERO) && rows[2].age.is_zero());
    store.backlog().await.expect("a backlog");
    store.scan(RowId(0), RowId(9), 9, ALL).await.expect("a scan");
    store.probe(&[RowId(1)]).await.expect("a probe");
}

#[tokio::test]
async fn a_late_commit_is_found_by_a_probe() {
    let db = Postgres::fresh().await;
    let store = db.migrated().await;
    let mut late = db.another().await;
    late.execute("BEGIN; INSERT INTO outbox (routing_key, payload) VALUES ('r', '1')")
        .await
        .expect("insert");
    db.insert(&["b"]).await;
    assert_eq!(head_ids(&store).await, [2]);
    let before = store.probe(&[RowId(1)]).await.expect("a probe");
    assert!(
        before.present.is_empty() && before.open.oldest < before.open.next,
        "{before:?}"
    );
    late.execute("COMMIT").await.expect("commit");
    let mut after = store.probe(&[RowId(1)]).await.expect("a probe");
    assert_eq!((after.present.len(), after.unsent.len()), (1, 1));
    // Transaction numbers are the whole server's: those of other tests that were open then must end, too.
    let deadline = Instant::now() + Duration::from_secs(30);
    while after.open.oldest < before.open.next {
        assert!(
            Instant::now() < deadline,
            "all that was open then has ended: {before:?}, {after:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
        after = store.probe(&[RowId(1)]).await.expect("a probe");
    }
    assert!(store.commits_out_of_order());
    assert_eq!(store.changed().await.expect("an answer"), None);
}

#[tokio::test]
async fn no_statistics_lead_away_from_the_partial_index() {
    // None at all, as after a restore, and those of a backlog that was sent since.
    for statistics in ["", "ANALYZE outbox"] {
        reads_keep_to_the_partial_index(statistics).await;
    }
}

async fn reads_keep_to_the_partial_index(statistics: &str) {
    let db = Postgres::fresh().await;
    let store = db.migrated().await;
    db.execute(&format!(
        "ALTER TABLE outbox SET (autovacuum_enabled = off);
         INSERT INTO outbox (routing_key, payload) SELECT 'r', '{{}}' FROM generate_series(1, 50000);
         {statistics};
         UPDATE outbox SET sent_at = now() WHERE id <= 49990",
    ))
    .await;
    let shares = Shares::Some {
        of: 16,
        owned: (0..16).collect(),
    };
    for _ in 0..10 {
        assert_eq!(head(&store).await.len(), 10);
        assert_eq!(store.head(RowId(0), 99, &shares).await.expect("a head").len(), 10);
        assert_eq!(
            store
                .scan(RowId(0), RowId(i64::MAX), 99, ALL)
                .await
                .expect("a scan")
                .len(),
            10
        );
        assert_eq!(
            store
                .scan(RowId(0), RowId(i64::MAX), 99, &shares)
                .await
                .expect("a scan")
                .len(),
            10
        );
        assert_eq!(store.backlog().await.expect("a backlog").pending, 10);
    }
    store.close().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let read = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'outbox_pkey'";
    let scanned = "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'outbox'";
    // The update itself may have read the table once either way, and ANALYZE counts for nothing.
    assert!(
        db.number(read).await + db.number(scanned).await < 3 * 50_000,
        "the statements walk over sent rows"
    );
}

#[tokio::test]
async fn a_mark_does_not_wait_for_the_disk() {
    let db = Postgres::fresh().await;
    let store = db.migrated().await;
    db.insert(&["a"; 10]).await;
    db.execute("CREATE TABLE seen (setting text)").await;
    db.execute(
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER note AFTER UPDATE OR DELETE ON outbox DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW EXECUTE FUNCTION note()",
    )
    .await;
    // Deferred triggers fire at the commit itself, so that they see what the commit sees.
    store.mark_sent(&confirmed(1..=5)).await.expect("marked");
    assert_eq!(db.number("SELECT count(*) FROM seen WHERE setting = 'off'").await, 5);
    db.execute("UPDATE outbox SET sent_at = now() - interval '1 day' WHERE id <= 5; TRUNCATE seen")
        .await;
    assert_eq!(store.purge(Duration::from_secs(60), 100).await.expect("purged"), 5);
    assert_eq!(db.number("SELECT count(*) FROM seen WHERE setting = 'off'").await, 5);
    let delete = db.store_with(options("outbox", OnSent::Delete));
    assert_eq!(delete.mark_sent(&confirmed([6])).await.expect("deleted"), 1);
    assert_eq!(db.number("SELECT count(*) FROM seen WHERE setting = 'off'").await, 6);
    // A refusal is written for good.
    store
        .record_failures(&[failure(7, 1, NextStep::Dead)], &nobody())
        .await
        .expect("written");
    assert_eq!(db.number("SELECT count(*) FROM seen WHERE setting = 'off'").await, 6);
}

#[tokio::test]
async fn a_purge_waits_for_nobody() {
    let db = Postgres::fresh().await;
    let store = db.migrated().await;
    db.insert(&["a"; 3]).await;
    db.execute("UPDATE outbox SET sent_at = now() - interval '1 day'").await;
    let mut other = db.another().await;
    other
        .execute("BEGIN; SELECT FROM outbox WHERE id = 2 FOR UPDATE")
        .await
        .expect("locked");
    assert_eq!(store.purge(Duration::from_secs(60), 10).await.expect("purged"), 2);
    other.execute("ROLLBACK").await.expect("unlocked");
    assert_eq!(store.purge(Duration::from_secs(60), 10).await.expect("purged"), 1);
}

#[tokio::test]
async fn one_row_without_a_message_id_does_not_stop_its_page() {
    let db = Postgres::fresh().await;
    let store = db.migrated().await;
    db.execute("ALTER TABLE outbox ALTER message_id DROP NOT NULL, ALTER payload DROP NOT NULL")
        .await;
    db.insert(&["a", "b"]).await;
    db.execute("UPDATE outbox SET message_id = NULL, payload = NULL WHERE id = 1")
        .await;
    let rows = head(&store).await;
    assert_eq!(
        rows[0].message_id,
        head(&store).await[0].message_id,
        "the same on every copy"
    );
    assert!(matches!(rows[0].payload, Payload::Missing));
}
