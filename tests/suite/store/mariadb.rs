//! MariaDB: the harness, and what only it can do.

use std::time::Duration;

use async_trait::async_trait;
use outbox_relay::config::{OnSent, Secret};
use outbox_relay::message::{Payload, RowId};
use outbox_relay::store::operator::{DeadFilter, Refused};
use outbox_relay::store::{self, LeaseAsk, NextStep, Shares, StoreError, StoreOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection, Row};
use tokio::sync::Mutex;

use crate::store::harness::{Harness, body, confirmed, failure, head, head_ids, nobody, options};
use crate::support::{Product, numbers};

const ALL: &Shares = &Shares::All;

pub(crate) struct MariaDb {
    pub(crate) url: String,
    connection: Mutex<MySqlConnection>,
}

#[async_trait]
impl Harness for MariaDb {
    async fn fresh() -> Self {
        let url = crate::support::MariaDb::shared().await.create_database().await;
        let connection = Mutex::new(application(&url).await);
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
        let sql = AssertSqlSafe(format!("SELECT CAST(({sql}) AS SIGNED)"));
        self.connection.lock().await.fetch_one(sql).await.expect("a row").get(0)
    }

    fn in_seconds(&self, seconds: i64) -> String {
        format!("now(6) + INTERVAL {seconds} SECOND")
    }

    fn at(&self, unix: i64) -> String {
        format!("from_unixtime({unix})")
    }

    /// It grows, as rows that are inserted at once are in the order of their keys.
    fn random(&self) -> &'static str {
        "lpad(uuid_short(), 40, '0')"
    }

    fn time(&self) -> &'static str {
        "timestamp(6) NULL"
    }

    fn ends_what_is_given_up(&self) -> bool {
        product() == Product::MariaDb
    }

    async fn free_payload(&self) {
        if product() == Product::MySql {
            self.execute("ALTER TABLE outbox DROP CHECK outbox_chk_1").await;
        }
    }

    fn refuse_inserts(&self, table: &str) -> Vec<String> {
        vec![format!(
            "CREATE TRIGGER refused BEFORE INSERT ON {table} FOR EACH ROW SIGNAL SQLSTATE '45000'"
        )]
    }

    fn slow_inserts(&self, table: &str) -> Vec<String> {
        vec![format!(
            "CREATE TRIGGER slow BEFORE INSERT ON {table} FOR EACH ROW DO sleep((SELECT 3 * count(*) FROM slow))"
        )]
    }

    fn uuid_version(&self) -> usize {
        1
    }

    /// They are in that of the unsent rows.
    fn dead_index(&self) -> Option<&'static str> {
        None
    }

    async fn drop_index(&self, name: &str) {
        self.execute(&format!("DROP INDEX {name} ON outbox")).await;
    }
}

/// A session as applications have them: in a time zone of its own, and under REPEATABLE READ. Only the quotes are the
/// standard's, as the cases for all databases write them.
async fn application(url: &str) -> MySqlConnection {
    let mut connection = MySqlConnection::connect(url).await.expect("a connection");
    connection
        .execute("SET time_zone = '+05:00', sql_mode = concat(@@sql_mode, ',ANSI_QUOTES')")
        .await
        .expect("settings");
    connection
}

pub(crate) fn product() -> Product {
    crate::support::MariaDb::product()
}

impl MariaDb {
    pub(crate) async fn another(&self) -> MySqlConnection {
        application(&self.url).await
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
    let db = MariaDb::fresh().await;
    let store = db.migrated().await;
    let big = "€".repeat(200_000);
    let json: &[u8] = match product() {
        Product::MariaDb => b" {\"a\" :1,  \"a\":2}\n",
        // A type of its own, which keeps the meaning.
        Product::MySql => b"{\"a\": 2}",
    };
    let cases: &[(&str, &str, Vec<u8>)] = &[
        ("json", "' {\"a\" :1,  \"a\":2}\n'", json.to_vec()),
        ("longtext", "'x\ny  '", b"x\ny  ".to_vec()),
        ("mediumtext CHARACTER SET utf8mb3", "'é  '", "é  ".as_bytes().to_vec()),
        ("varchar(50)", "''", Vec::new()),
        ("varbinary(50)", "x'00ff0a2700'", vec![0, 0xff, 0x0a, 0x27, 0]),
        ("longblob", "x'00ff0a27'", vec![0, 0xff, 0x0a, 0x27]),
    ];
    for (kind, sql, expected) in cases {
        db.execute(&format!(
            "TRUNCATE outbox; ALTER TABLE outbox DROP COLUMN payload; ALTER TABLE outbox ADD COLUMN payload {kind} NOT NULL"
        ))
        .await;
        db.execute(&format!(
            "INSERT INTO outbox (routing_key, payload) VALUES ('r', {sql})"
        ))
        .await;
        // A statement that was prepared before the change goes on.
        assert_eq!(body(&head(&store).await[0]), expected, "{kind}");
        let fetched = store.fetch(&[RowId(1)], u64::MAX).await.expect("rows");
        assert_eq!(body(&fetched[0]), expected, "{kind}");
        if !kind.starts_with("var") {
            db.execute(&format!(
                "INSERT INTO outbox (routing_key, payload) VALUES ('r', '\"{big}\"')"
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
async fn ids_of_every_type_are_read() {
    let db = MariaDb::fresh().await;
    let store = db.migrated().await;
    let id = "6f9619ff-8b86-d011-b42d-00cf4fc964ff";
    for (kind, value) in [
        ("char(36)", "'6F9619FF-8B86-D011-B42D-00CF4FC964FF'"),
        ("varchar(40)", "'6f9619ff8b86d011b42d00cf4fc964ff'"),
        ("uuid", "'6f9619ff-8b86-d011-b42d-00cf4fc964ff'"),
        ("binary(16)", "x'6f9619ff8b86d011b42d00cf4fc964ff'"),
        ("varbinary(16)", "x'6f9619ff8b86d011b42d00cf4fc964ff'"),
    ] {
        if kind == "uuid" && product() == Product::MySql {
            continue;
        }
        db.execute(&format!(
            "TRUNCATE outbox; ALTER TABLE outbox DROP COLUMN message_id; ALTER TABLE outbox ADD COLUMN message_id {kind};
             INSERT INTO outbox (routing_key, payload, message_id) VALUES ('r', '1', {value}), ('r', '1', NULL)"
        ))
        .await;
        store.inspect().await.expect(kind);
        let rows = head(&store).await;
        assert_eq!(rows[0].message_id.to_string(), id, "{kind}");
        assert_eq!(
            rows[1].message_id,
            head(&store).await[1].message_id,
            "the same on every copy"
        );
    }
    db.execute(
        "UPDATE outbox SET message_id = NULL; ALTER TABLE outbox MODIFY message_id varchar(40); UPDATE outbox SET message_id = 'no uuid' WHERE id = 1",
    )
    .await;
    assert_eq!(head(&store).await[0].message_id, head(&store).await[0].message_id);
    db.execute("ALTER TABLE outbox MODIFY id int NOT NULL AUTO_INCREMENT, MODIFY attempts smallint")
        .await;
    store.inspect().await.expect("other numbers");
    assert_eq!(head_ids(&store).await, [1, 2]);
}

#[tokio::test]
async fn times_without_a_zone_are_utc_and_far_ones_are_understood() {
    let db = MariaDb::fresh().await;
    let store = db.migrated().await;
    db.insert(&["a", "b", "c"]).await;
    for column in ["created_at", "available_at", "next_attempt_at", "sent_at"] {
        db.execute(&format!("ALTER TABLE outbox MODIFY {column} datetime(3)"))
            .await;
    }
    db.execute("UPDATE outbox SET available_at = utc_timestamp() + INTERVAL 100 SECOND, created_at = utc_timestamp() WHERE id = 1")
        .await;
    db.execute("UPDATE outbox SET available_at = '9999-12-31 23:59:59', created_at = '0001-01-01' WHERE id = 2")
        .await;
    db.execute("UPDATE outbox SET created_at = '9999-12-31' WHERE id = 3")
        .await;
    let rows = head(&store).await;
    let due = rows[0].due_in.as_secs();
    assert!(
        (90..=100).contains(&due) && rows[0].age < Duration::from_secs(60),
        "{due}"
    );
    assert!(rows[1].due_in > Duration::from_secs(86_400 * 365) && rows[1].created_at == Some(Duration::ZERO));
    assert!(rows[2].age.is_zero());
    store
        .record_failures(&[failure(3, 1, NextStep::RetryIn(Duration::from_secs(50)))], &nobody())
        .await
        .expect("written");
    assert!(head(&store).await[2].due_in > Duration::from_secs(40));
    store.backlog().await.expect("a backlog");
    store.scan(RowId(0), RowId(9), 9, ALL).await.expect("a scan");
    assert_eq!(store.mark_sent(&confirmed([3])).await.expect("marked"), 1);
    assert_eq!(store.purge(Duration::from_secs(60), 9).await.expect("purged"), 0);
}

/// Not even for a mark that waits itself. Its isolation is asserted as well: under the default one, what a statement
/// looks at is locked with the gaps before it, where inserts go.
#[tokio::test]
async fn an_insert_never_waits_for_the_relay() {
    let db = MariaDb::fresh().await;
    let store = db.migrated().await;
    db.insert(&["a"; 2_000]).await;
    let (mut writer, mut other) = (db.another().await, db.another().await);
    writer
        .execute("SET innodb_lock_wait_timeout = 1")
        .await
        .expect("settings");
    other
        .execute("BEGIN; SELECT id FROM outbox WHERE id = 1999 FOR UPDATE")
        .await
        .expect("locked");
    let rows = confirmed(1..=2_000);
    let inserting = async {
        let marking = "SELECT count(*) FROM information_schema.processlist WHERE db = database() AND info LIKE 'UPDATE JSON_TABLE%'";
        crate::support::until("the mark is under way", Duration::from_secs(10), async || {
            db.number(marking).await == 1
        })
        .await;
        for _ in 0..20 {
            writer
                .execute("INSERT INTO outbox (routing_key, payload) VALUES ('r', '1')")
                .await
                .expect("an insert never waits");
        }
        let committed = "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_isolation_level = 'READ COMMITTED' AND trx_query LIKE 'UPDATE JSON_TABLE%'";
        assert_eq!((db.number(marking).await, db.number(committed).await), (1, 1));
        other.execute("ROLLBACK").await.expect("unlocked");
    };
    let (marked, ()) = tokio::join!(store.mark_sent(&rows), inserting);
    assert_eq!(marked.expect("marked"), 2_000);
    assert_eq!(head(&store).await.len(), 20);
}

#[tokio::test]
async fn a_late_commit_is_found_by_a_probe() {
    let db = MariaDb::fresh().await;
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
    let after = store.probe(&[RowId(1)]).await.expect("a probe");
    assert_eq!((after.present.len(), after.unsent.len()), (1, 1));
    assert!(
        after.open.oldest < before.open.next && after.open.oldest >= before.open.oldest,
        "time only goes on: {before:?}, {after:?}"
    );
    assert!(store.commits_out_of_order());
    assert_eq!(store.changed().await.expect("an answer"), None);
}

/// A script's lock is a row's, and ends with the transaction: of a call that was given up nothing is left.
#[tokio::test]
async fn a_lease_call_that_is_given_up_leaves_no_lock() {
    let db = MariaDb::fresh().await;
    db.migrated().await;
    let ask = LeaseAsk {
        member: "it's \\ me".to_owned(),
        partitions: 16,
        ttl: Duration::from_secs(60),
        give: Vec::new(),
        leaving: false,
    };
    let store = db.store();
    let members = store.lease(&ask).await.expect("an answer").members;
    assert_eq!(members, std::slice::from_ref(&ask.member));
    let mut other = db.another().await;
    other
        .execute("BEGIN; SELECT * FROM outbox_relay_members WHERE member = '' FOR UPDATE")
        .await
        .expect("locked");
    let error = db.impatient().lease(&ask).await.expect_err("locked");
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    let given_up = tokio::time::timeout(Duration::from_millis(100), store.lease(&ask)).await;
    assert!(given_up.is_err(), "{given_up:?}");
    other.execute("ROLLBACK").await.expect("unlocked");
    let view = store.lease(&ask).await.expect("an answer");
    assert!(
        view.shares
            .iter()
            .all(|share| share.owner.as_ref() == Some(&ask.member))
    );
    assert!(!store.has_free_shares(16).await.expect("an answer"));
}

/// Keys that a collation takes for equal are different keys.
#[tokio::test]
async fn keys_are_compared_by_their_bytes() {
    let db = MariaDb::fresh().await;
    let store = db.migrated().await;
    db.execute("ALTER TABLE outbox MODIFY ordering_key varchar(100) CHARACTER SET latin1 COLLATE latin1_swedish_ci")
        .await;
    db.insert(&["é", "É", "e", "e ", "é"]).await;
    let failures: Vec<_> = (1..=5).map(|id| failure(id, 1, NextStep::Dead)).collect();
    store.record_failures(&failures, &nobody()).await.expect("written");
    let keys = store.dead_keys(10).await.expect("keys");
    let keys: Vec<(&str, i64)> = keys.iter().map(|(key, id)| (key.as_str(), id.0)).collect();
    assert_eq!(keys, [("é", 1), ("É", 2), ("e", 3), ("e ", 4)]);
    let operator = db.operator();
    let of_key = DeadFilter {
        key: Some("é".to_owned()),
        ..DeadFilter::default()
    };
    let letters = operator.dead_letters(&of_key, RowId(0), 9).await.expect("a list");
    assert_eq!(letters.iter().map(|letter| letter.id.0).collect::<Vec<_>>(), [1, 5]);
    operator
        .replay(&[1, 2, 3, 4, 5].map(RowId), Refused::GivenUp)
        .await
        .expect("replayed");
    db.execute("UPDATE outbox SET available_at = now() + INTERVAL 1 HOUR")
        .await;
    let waiting = operator.waiting_keys(None, 9).await.expect("keys");
    let waiting: Vec<_> = waiting.iter().map(|key| (key.key.as_str(), key.row.0)).collect();
    assert_eq!(waiting, keys, "the same rows");
}

/// A filter is applied to some of the dead letters at a time.
#[tokio::test]
async fn a_rare_dead_letter_is_found_behind_many_others() {
    let db = MariaDb::fresh().await;
    db.migrated().await;
    db.execute(&format!(
        "INSERT INTO outbox (routing_key, payload, dead_at) SELECT 'r', '{{}}', now() FROM {}",
        numbers(1, 25_000)
    ))
    .await;
    db.execute("UPDATE outbox SET last_error = 'refused' WHERE id IN (7, 10000, 10001, 24999)")
        .await;
    let operator = db.operator();
    let refused = DeadFilter {
        reason: Some("refused".to_owned()),
        ..DeadFilter::default()
    };
    for (after, limit, expected) in [
        (0, 9, &[7, 10_000, 10_001, 24_999][..]),
        (0, 3, &[7, 10_000, 10_001]),
        (10_001, 9, &[24_999]),
        (24_999, 9, &[]),
    ] {
        let letters = operator.dead_letters(&refused, RowId(after), limit).await;
        let ids: Vec<i64> = letters.expect("a list").iter().map(|letter| letter.id.0).collect();
        assert_eq!(ids, expected, "above {after}");
    }
}
