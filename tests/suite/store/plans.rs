//! Which rows the statements read: those that are wanted, whatever else is in the table, and whatever the statistics say.

use std::time::Duration;

use outbox_relay::message::RowId;
use outbox_relay::store::Shares;
use outbox_relay::store::operator::{DeadFilter, Refused};

use crate::store::existing::{Bare, Keyless, Numbered};
use crate::store::harness::{Harness, confirmed, head, head_ids};
use crate::store::mariadb::{MariaDb, product};
use crate::store::postgres::Postgres;
use crate::support::{Product, numbers, until};

const ALL: &Shares = &Shares::All;

/// Rows of the outbox that were read, as MariaDB or MySQL counts them.
struct Reads {
    query: &'static str,
    before: i64,
}

impl Reads {
    async fn of(db: &MariaDb) -> Self {
        let query = match product() {
            Product::MariaDb => {
                let server = crate::support::MariaDb::shared().await;
                server.execute("SET GLOBAL userstat = 1".to_owned()).await;
                "SELECT coalesce(sum(rows_read), 0) FROM information_schema.table_statistics
                 WHERE table_schema = database() AND table_name = 'outbox'"
            }
            Product::MySql => {
                "SELECT coalesce(sum(count_fetch), 0) FROM performance_schema.table_io_waits_summary_by_table
                 WHERE object_schema = database() AND object_name = 'outbox'"
            }
        };
        let before = db.number(query).await;
        Self { query, before }
    }

    async fn since(&self, db: &MariaDb) -> i64 {
        db.number(self.query).await - self.before
    }
}

#[tokio::test]
async fn reads_are_bound_to_the_index_and_a_dropped_one_is_noticed() {
    let db = MariaDb::fresh().await;
    let store = db.migrated().await;
    db.execute(&format!(
        "INSERT INTO outbox (routing_key, payload) SELECT 'r', '{{}}' FROM {}; ANALYZE TABLE outbox",
        numbers(1, 50_000)
    ))
    .await;
    db.execute("UPDATE outbox SET sent_at = now() WHERE id <= 49990").await;
    let read = Reads::of(&db).await;
    for shares in [
        Shares::All,
        Shares::Some {
            of: 16,
            owned: (0..16).collect(),
        },
    ] {
        assert_eq!(store.head(RowId(0), 99, &shares).await.expect("a head").len(), 10);
        let scan = store.scan(RowId(0), RowId(i64::MAX), 99, &shares).await;
        assert_eq!(scan.expect("a scan").len(), 10);
    }
    assert_eq!(store.backlog().await.expect("a backlog").pending, 10);
    store.dead_keys(9).await.expect("keys");
    store.close().await;
    let operator = db.operator();
    db.execute("UPDATE outbox SET ordering_key = 'k', available_at = now() + INTERVAL 1 HOUR WHERE id > 49995; UPDATE outbox SET dead_at = now(), last_error = 'refused' WHERE id BETWEEN 49991 AND 49993")
        .await;
    let keys = operator.waiting_keys(None, 9).await.expect("keys");
    assert_eq!((keys.len(), keys[0].row), (1, RowId(49_996)));
    let reasons = operator.dead_reasons().await.expect("reasons");
    assert_eq!(reasons, [("refused".to_owned(), 3)]);
    let refused = DeadFilter {
        reason: Some("refused".to_owned()),
        ..DeadFilter::default()
    };
    for filter in [DeadFilter::default(), refused] {
        let letters = operator.dead_letters(&filter, RowId(49_991), 9).await;
        assert_eq!(letters.expect("a list").len(), 2);
    }
    assert_eq!(
        operator
            .replay(&[RowId(49_991)], Refused::GivenUp)
            .await
            .expect("replayed"),
        1
    );
    assert_eq!(
        operator
            .discard(&[RowId(49_992)], Refused::GivenUp)
            .await
            .expect("discarded"),
        1
    );
    operator.close().await;
    assert!(
        read.since(&db).await < 1_000,
        "the statements walk over sent rows: {}",
        read.since(&db).await
    );
    db.execute("DROP INDEX outbox_relay_unsent ON outbox").await;
    assert!(store.head(RowId(0), 99, ALL).await.is_err(), "bound to the index");
    assert_eq!(head_ids(&store).await.len(), 8, "slower without it, but it works");
    db.execute("CREATE INDEX by_any_name ON outbox (sent_at, dead_at)")
        .await;
    store.inspect().await.expect("a table");
    assert_eq!(head_ids(&store).await.len(), 8);
}

#[tokio::test]
async fn dead_letters_of_mariadb_cost_a_poll_nothing() {
    let db = MariaDb::fresh().await;
    let store = db.migrated().await;
    db.execute(&format!(
        "INSERT INTO outbox (routing_key, payload, dead_at) SELECT 'r', '{{}}', now() FROM {}",
        numbers(1, 20_000)
    ))
    .await;
    db.insert(&["a"; 10]).await;
    let read = Reads::of(&db).await;
    for _ in 0..10 {
        assert_eq!(head(&store).await.len(), 10);
    }
    store.close().await;
    assert!(read.since(&db).await < 1_000, "{}", read.since(&db).await);
}

/// Entries that were read of an index, when all of what was asked has been counted.
async fn entries(db: &Postgres, index: &str, asked: i64) -> i64 {
    let read = format!("SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = '{index}'");
    until("the server has counted", Duration::from_secs(10), async || {
        db.number(&read).await >= asked
    })
    .await;
    db.number(&read).await
}

#[tokio::test]
async fn dead_letters_of_postgres_leave_the_index_of_unsent_rows() {
    let db = Postgres::fresh().await;
    let store = db.migrated().await;
    db.execute(
        "ALTER TABLE outbox SET (autovacuum_enabled = off);
         INSERT INTO outbox (routing_key, payload) SELECT 'r', '{}' FROM generate_series(1, 20000);
         UPDATE outbox SET dead_at = now()",
    )
    .await;
    db.execute("VACUUM outbox").await;
    db.insert(&["a"; 10]).await;
    for _ in 0..10 {
        assert_eq!(head(&store).await.len(), 10);
    }
    store.close().await;
    let read = entries(&db, "outbox_relay_unsent", 100).await;
    assert!(read < 1_000, "{read} entries were read for 100 rows");
}

/// In each partition its own index is read.
#[tokio::test]
async fn sent_rows_of_a_partitioned_table_cost_a_poll_nothing() {
    let db = Postgres::fresh().await;
    db.execute(
        "CREATE TABLE template (id bigint NOT NULL, message_id uuid NOT NULL DEFAULT gen_random_uuid(), exchange text,
             routing_key text NOT NULL DEFAULT 'r', ordering_key text, type text, content_type text NOT NULL DEFAULT 'text/plain',
             headers json NOT NULL DEFAULT '{}', properties json NOT NULL DEFAULT '{}', payload json NOT NULL DEFAULT '{}',
             created_at timestamptz NOT NULL DEFAULT now(), available_at timestamptz, attempts integer NOT NULL DEFAULT 0,
             next_attempt_at timestamptz, last_error text, sent_at timestamptz, dead_at timestamptz);
         CREATE TABLE outbox (LIKE template INCLUDING DEFAULTS, PRIMARY KEY (id, created_at)) PARTITION BY RANGE (created_at);
         CREATE TABLE outbox_2001 PARTITION OF outbox FOR VALUES FROM ('2001-01-01') TO ('2002-01-01');
         CREATE TABLE outbox_rest PARTITION OF outbox DEFAULT;
         INSERT INTO outbox (id, created_at, sent_at) SELECT n, '2001-06-01', now() FROM generate_series(1, 20000) AS n;
         INSERT INTO outbox (id, sent_at) SELECT n, now() FROM generate_series(20001, 40000) AS n;
         INSERT INTO outbox (id, created_at) SELECT 40000 + n, CASE n % 2 WHEN 0 THEN now() ELSE '2001-06-01' END
         FROM generate_series(1, 10) AS n",
    )
    .await;
    let store = db.migrated().await;
    for _ in 0..10 {
        assert_eq!(head_ids(&store).await, (40_001..=40_010).collect::<Vec<_>>());
        let scan = store.scan(RowId(0), RowId(i64::MAX), 99, ALL).await;
        assert_eq!(scan.expect("a scan").len(), 10);
        assert_eq!(store.backlog().await.expect("a backlog").pending, 10);
    }
    let rows = confirmed(40_001..=40_010);
    assert_eq!(store.mark_sent(&rows).await.expect("marked"), 10);
    store.close().await;
    // The last reads come in one report with the marks.
    let marked = "SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'outbox_rest'";
    until("the server has counted", Duration::from_secs(10), async || {
        db.number(marked).await == 5
    })
    .await;
    let scanned =
        "SELECT coalesce(sum(seq_tup_read), 0)::bigint FROM pg_stat_user_tables WHERE relname LIKE 'outbox_%'";
    let read = "SELECT coalesce(sum(idx_tup_read), 0)::bigint FROM pg_stat_user_indexes WHERE relname LIKE 'outbox_%'";
    let (scanned, read) = (db.number(scanned).await, db.number(read).await);
    // The indexes were built by reading each partition, once for each.
    assert!(scanned <= 3 * 40_010 && read < 2_000, "{scanned}, {read}");
}

/// Statistics from before the rows were there, or none, do not make a poll of a mapped table read what was sent.
#[tokio::test]
async fn polls_of_a_mapped_table_of_mariadb_keep_to_its_index_whatever_the_statistics() {
    for statistics in ["SELECT 1", "ANALYZE TABLE outbox"] {
        let db = Bare::<MariaDb>::fresh().await;
        let store = db.migrated().await;
        db.execute("ALTER TABLE outbox ADD INDEX (sent_at, id), STATS_AUTO_RECALC = 0")
            .await;
        db.execute(statistics).await;
        db.execute(&format!(
            "INSERT INTO outbox (routing_key, payload, sent_at) SELECT 'r', '{{}}', now() FROM {}",
            numbers(1, 50_000)
        ))
        .await;
        db.execute(&format!(
            "INSERT INTO outbox (routing_key, payload) SELECT 'r', '{{}}' FROM {}",
            numbers(1, 10)
        ))
        .await;
        let read = Reads::of(&db.0).await;
        for _ in 0..5 {
            assert_eq!(head(&store).await.len(), 10);
            let scan = store.scan(RowId(0), RowId(i64::MAX), 99, ALL).await;
            assert_eq!(scan.expect("a scan").len(), 10);
        }
        let ids = head_ids(&store).await;
        assert_eq!(store.mark_sent(&confirmed(ids)).await.expect("marked"), 10);
        store.close().await;
        let read = read.since(&db.0).await;
        assert!(read < 1_000, "{statistics}: {read} rows were read");
    }
}

/// Rows that the relay numbers are looked up one by one, by their key or by their place, whatever the statistics say.
async fn numbered_rows_are_looked_up<H: Harness>(db: &H, keyed: bool) {
    let store = db.migrated().await;
    db.execute("ALTER TABLE outbox SET (autovacuum_enabled = off)").await;
    db.insert(&["a"; 10]).await;
    let scans = "SELECT coalesce(seq_tup_read, 0)::bigint FROM pg_stat_user_tables WHERE relname = 'outbox'";
    assert_eq!(head(&store).await.len(), 10);
    db.execute(
        "INSERT INTO outbox (routing_key, payload, sent_at) SELECT 'r', '{}', now() FROM generate_series(1, 50000)",
    )
    .await;
    store.close().await;
    let before = db.number(scans).await;
    for _ in 0..5 {
        let scan = store.scan(RowId(0), RowId(i64::MAX), 99, ALL).await;
        assert_eq!(scan.expect("a scan").len(), 10);
    }
    let ids = head_ids(&store).await;
    assert_eq!(store.mark_sent(&confirmed(ids)).await.expect("marked"), 10);
    store.close().await;
    let marked = "SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'outbox'";
    until("the server has counted", Duration::from_secs(10), async || {
        db.number(marked).await == 10
    })
    .await;
    // The look for rows without a number goes over the table, and nothing else does.
    let read = db.number(scans).await - before;
    assert!(read <= 2 * 50_010, "keyed: {keyed}: {read} rows were read");
}

#[tokio::test]
async fn rows_that_postgres_numbers_are_looked_up_by_key_or_place() {
    numbered_rows_are_looked_up(&Numbered::<Postgres>::fresh().await, true).await;
    numbered_rows_are_looked_up(&Keyless::<Postgres>::fresh().await, false).await;
}
