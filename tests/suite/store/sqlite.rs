//! SQLite: the harness, and what only it can do.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use outbox_relay::config::{OnSent, Secret};
use outbox_relay::message::RowId;
use outbox_relay::store::{self, Shares, StoreError, StoreOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, Row};
use tempfile::TempDir;

use crate::store::harness::{Harness, body, confirmed, head, head_ids, options};

pub(crate) struct Sqlite {
    folder: TempDir,
}

#[async_trait]
impl Harness for Sqlite {
    async fn fresh() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a folder"),
        }
    }

    fn url(&self) -> Secret {
        Secret::new(format!("sqlite://{}", self.file().display()))
    }

    async fn execute(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&mut self.another().await)
            .await
            .expect("raw SQL");
    }

    async fn number(&self, sql: &str) -> i64 {
        self.another()
            .await
            .fetch_one(AssertSqlSafe(sql.to_owned()))
            .await
            .expect("a row")
            .get(0)
    }

    fn in_seconds(&self, seconds: i64) -> String {
        format!("strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '{seconds} seconds')")
    }

    fn at(&self, unix: i64) -> String {
        format!("strftime('%Y-%m-%dT%H:%M:%fZ', {unix}, 'unixepoch')")
    }

    fn refuse_inserts(&self, table: &str) -> Vec<String> {
        vec![format!(
            "CREATE TRIGGER refused BEFORE INSERT ON {table} BEGIN SELECT raise(ABORT, 'refused'); END"
        )]
    }

    async fn make_writable(&self, table: &str, columns: &[(&str, &str)]) {
        let mut values = Vec::new();
        for (there, here) in columns {
            let sql = format!("SELECT dflt_value FROM pragma_table_info('{table}') WHERE name = '{there}'");
            let default = self.another().await.fetch_one(AssertSqlSafe(sql)).await.expect("a row");
            values.push(match default.get::<Option<String>, _>(0) {
                Some(default) => format!("coalesce(NEW.{here}, {default})"),
                None => format!("NEW.{here}"),
            });
        }
        let names: Vec<_> = columns.iter().map(|(there, _)| format!("\"{there}\"")).collect();
        let set: Vec<_> = columns
            .iter()
            .map(|(there, here)| format!("\"{there}\" = NEW.{here}"))
            .collect();
        let (names, values, set, key) = (names.join(", "), values.join(", "), set.join(", "), columns[0].0);
        self.execute(&format!(
            "CREATE TRIGGER i INSTEAD OF INSERT ON outbox BEGIN INSERT INTO \"{table}\" ({names}) VALUES ({values}); END;
             CREATE TRIGGER u INSTEAD OF UPDATE ON outbox BEGIN UPDATE \"{table}\" SET {set} WHERE \"{key}\" = OLD.id; END;
             CREATE TRIGGER d INSTEAD OF DELETE ON outbox BEGIN DELETE FROM \"{table}\" WHERE \"{key}\" = OLD.id; END"
        ))
        .await;
    }

    fn random(&self) -> &'static str {
        "hex(randomblob(16))"
    }

    fn time(&self) -> &'static str {
        "TEXT"
    }
}

impl Sqlite {
    fn file(&self) -> PathBuf {
        self.folder.path().join("app.db")
    }

    pub(crate) async fn another(&self) -> SqliteConnection {
        SqliteConnectOptions::new()
            .filename(self.file())
            .create_if_missing(true)
            .connect()
            .await
            .expect("a connection")
    }
}

#[tokio::test]
async fn bodies_and_ids_of_every_type_come_as_stored() {
    let db = Sqlite::fresh().await;
    let store = db.migrated().await;
    db.execute(
        "INSERT INTO outbox (routing_key, payload, message_id) VALUES
             ('r', ' {\"a\" : 1}', '6F9619FF8B86D011B42D00CF4FC964FF'), ('r', x'00ff0a', x'6f9619ff8b86d011b42d00cf4fc964ff'),
             ('r', 42, 'no uuid'), ('r', 'a' || char(0) || 'b', '6f9619ff-8b86-d011-b42d-00cf4fc964ff'),
             (x'ff', '', 'no uuid either')",
    )
    .await;
    let rows = head(&store).await;
    let bodies: Vec<&[u8]> = rows.iter().map(body).collect();
    assert_eq!(
        bodies,
        [b" {\"a\" : 1}".as_slice(), &[0, 0xff, 0x0a], b"42", b"a\0b", b""]
    );
    let ids: Vec<String> = rows.iter().map(|row| row.message_id.to_string()).collect();
    assert_eq!(ids[0], "6f9619ff-8b86-d011-b42d-00cf4fc964ff");
    assert!(ids[1] == ids[0] && ids[3] == ids[0] && ids[2] != ids[4]);
    assert_eq!(
        ids,
        head(&store)
            .await
            .iter()
            .map(|row| row.message_id.to_string())
            .collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn times_are_understood_as_they_come() {
    let db = Sqlite::fresh().await;
    let store = db.migrated().await;
    let now = "unixepoch('now')";
    let delayed = [
        "strftime('%Y-%m-%d %H:%M:%S', 'now', '100 seconds')".to_owned(),
        "strftime('%Y-%m-%dT%H:%M:%S', 'now', '100 seconds', '2 hours') || '+02:00'".to_owned(),
        format!("{now} + 100"),
        format!("{now} + 100.5"),
        format!("({now} + 100) * 1000"),
        format!("CAST({now} + 100 AS TEXT)"),
    ];
    for time in &delayed {
        db.execute(&format!(
            "INSERT INTO outbox (routing_key, payload, available_at) VALUES ('r', '', {time})"
        ))
        .await;
    }
    for time in ["'soon'", "''", "'infinity'", "0", "-5", "x'00'", "NULL", "'2001-02-03'"] {
        db.execute(&format!(
            "INSERT INTO outbox (routing_key, payload, available_at) VALUES ('r', '', {time})"
        ))
        .await;
    }
    let waits: Vec<u64> = head(&store).await.iter().map(|row| row.due_in.as_secs()).collect();
    assert!(waits[..6].iter().all(|wait| (90..=101).contains(wait)), "{waits:?}");
    assert!(
        waits[6..].iter().all(|wait| *wait == 0),
        "a wrong time must not lose the row: {waits:?}"
    );
    db.execute("UPDATE outbox SET created_at = 1577836800 WHERE id = 1")
        .await;
    db.execute("UPDATE outbox SET created_at = 'never' WHERE id = 2").await;
    let rows = head(&store).await;
    assert_eq!(
        (rows[0].created_at, rows[1].created_at, rows[1].age),
        (Some(Duration::from_secs(1_577_836_800)), None, Duration::ZERO)
    );
}

#[tokio::test]
async fn a_commit_of_others_is_noticed() {
    let db = Sqlite::fresh().await;
    let store = db.migrated().await;
    assert_eq!(
        store.changed().await.expect("an answer"),
        Some(true),
        "nothing is known at first"
    );
    assert_eq!(store.changed().await.expect("an answer"), Some(false));
    db.insert(&["a"]).await;
    assert_eq!(store.changed().await.expect("an answer"), Some(true));
    assert_eq!(store.changed().await.expect("an answer"), Some(false));
    store.close().await;
    assert_eq!(
        store.changed().await.expect("an answer"),
        Some(true),
        "another connection knows nothing"
    );
    assert!(!store.commits_out_of_order());
}

#[tokio::test]
async fn another_writer_is_waited_for_within_the_bound() {
    let db = Sqlite::fresh().await;
    db.migrated().await;
    db.insert(&["a"]).await;
    let timeout = Duration::from_millis(500);
    let store = db.store_with(StoreOptions {
        timeout,
        ..options("outbox", OnSent::Mark)
    });
    let mut writer = db.another().await;
    writer.execute("BEGIN IMMEDIATE").await.expect("begun");
    store.inspect().await.expect("busy is writable");
    let begun = Instant::now();
    let error = store.mark_sent(&confirmed([1])).await.expect_err("locked");
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(head_ids(&store).await, [1], "readers do not wait");
    writer.execute("ROLLBACK").await.expect("ended");
    assert_eq!(store.mark_sent(&confirmed([1])).await.expect("marked"), 1);
}

#[tokio::test]
async fn files_that_will_not_do_are_explained() {
    let db = Sqlite::fresh().await;
    let inspect = async |url: String| {
        let store = store::open(&Secret::new(url), options("outbox", OnSent::Mark));
        match store {
            Ok(store) => store.inspect().await.expect_err("a bad file"),
            Err(error) => error,
        }
    };
    let error = inspect(format!("sqlite://{}?mode=rwc", db.file().display())).await;
    assert!(
        matches!(&error, StoreError::SchemaMissing(text) if text.contains("does not exist")),
        "{error:?}"
    );
    assert!(!db.file().exists());
    let text = db.folder.path().join("text");
    std::fs::write(&text, "no database".repeat(1_000)).expect("written");
    let error = inspect(format!("sqlite://{}", text.display())).await;
    assert!(
        matches!(&error, StoreError::Failed(text) if text.contains("not an SQLite")),
        "{error:?}"
    );
    let error = inspect("sqlite::memory:".to_owned()).await;
    assert!(
        matches!(&error, StoreError::Failed(text) if text.contains("in-memory")),
        "{error:?}"
    );
    db.migrated().await;
    let error = inspect(format!("sqlite://{}?mode=ro", db.file().display())).await;
    assert!(matches!(&error, StoreError::ReadOnly(_)), "{error:?}");
    let error = store::open(&db.url(), options("app.outbox", OnSent::Mark))
        .expect("a store")
        .inspect()
        .await;
    assert!(
        matches!(&error, Err(StoreError::Failed(text)) if text.contains("no schema")),
        "{error:?}"
    );
    db.execute("CREATE VIEW v AS SELECT * FROM outbox").await;
    let error = db.store_with(options("v", OnSent::Mark)).inspect().await;
    assert!(
        matches!(&error, Err(StoreError::Failed(text)) if text.contains("is a view")),
        "{error:?}"
    );
}

/// What is open would stay with the old file, and see nothing of what is committed to the new one.
#[tokio::test]
async fn a_file_that_is_replaced_is_noticed_and_not_mistaken() {
    let db = Sqlite::fresh().await;
    let store = db.migrated().await;
    db.insert(&["a"]).await;
    assert_eq!(head_ids(&store).await, [1]);
    // Nothing is left beside it that belongs to it.
    store.close().await;
    let kept = db.folder.path().join("kept.db");
    std::fs::rename(db.file(), &kept).expect("moved");
    let refused = async || {
        let error = store.mark_sent(&confirmed([1])).await.expect_err("another file");
        matches!(&error, StoreError::Unavailable(text) if text.contains("restart the relay"))
    };
    assert!(refused().await, "it is gone");
    db.migrated().await.close().await;
    db.insert(&["b"]).await;
    assert!(refused().await, "row 1 is another one there");
    assert_eq!(head_ids(&db.store()).await, [1], "a relay that is started anew has it");
    std::fs::rename(&kept, db.file()).expect("moved back");
    assert_eq!(
        store.mark_sent(&confirmed([1])).await.expect("marked"),
        1,
        "the file that it was"
    );
}

#[tokio::test]
async fn a_dropped_index_is_noticed() {
    let db = Sqlite::fresh().await;
    let store = db.migrated().await;
    db.insert(&["a", "b"]).await;
    store.mark_sent(&confirmed([1])).await.expect("marked");
    assert_eq!(head_ids(&store).await, [2]);
    db.execute("DROP INDEX outbox_relay_unsent").await;
    let error = store
        .head(RowId(0), 1, &Shares::All)
        .await
        .expect_err("bound to the index");
    assert!(matches!(error, StoreError::SchemaMissing(_)), "{error:?}");
    assert_eq!(head_ids(&store).await, [2], "slower without it, but it works");
}

#[tokio::test]
async fn old_statistics_do_not_make_it_read_sent_rows() {
    let db = Sqlite::fresh().await;
    let store = db.migrated().await;
    db.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000)
         INSERT INTO outbox (routing_key, payload) SELECT 'r', '{}' FROM n;
         ANALYZE; UPDATE outbox SET sent_at = '2020-01-01' WHERE id < 200000",
    )
    .await;
    let fastest = async |index: bool| {
        let mut fastest = Duration::MAX;
        for _ in 0..10 {
            let begun = Instant::now();
            assert_eq!(head_ids(&store).await, [200_000], "with the index: {index}");
            fastest = fastest.min(begun.elapsed());
        }
        fastest
    };
    let with = fastest(true).await;
    db.execute("DROP INDEX outbox_relay_unsent").await;
    store.inspect().await.expect("a table");
    let without = fastest(false).await;
    assert!(with * 5 < without, "{with:?} with the index, {without:?} without");
}

#[tokio::test]
async fn ids_are_not_used_again() {
    let db = Sqlite::fresh().await;
    db.migrated().await;
    let store = db.store_with(options("outbox", OnSent::Delete));
    db.insert(&["a"]).await;
    store.mark_sent(&confirmed([1])).await.expect("deleted");
    db.insert(&["b"]).await;
    let rows = store.head(RowId(1), 10, &Shares::All).await.expect("a head");
    assert_eq!(rows.iter().map(|row| row.id.0).collect::<Vec<_>>(), [2]);
}
