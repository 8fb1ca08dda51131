//! Tables whose rows the relay numbers itself.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use outbox_relay::config::OnSent;
use outbox_relay::message::{OutboxRow, RowId};
use outbox_relay::store::{NextStep, Shares, Store, StoreError, StoreOptions};
use sqlx::{AssertSqlSafe, Executor as _};

use crate::store::existing::{Keyless, Numbered};
use crate::store::harness::{Harness, body, confirmed, failure, nobody, options};
use crate::store::{mariadb::MariaDb, postgres::Postgres, sqlite::Sqlite};
use crate::support::until;

const ALL: &Shares = &Shares::All;
const WAIT: Duration = Duration::from_secs(20);

/// A test for each database.
macro_rules! everywhere {
    ($($name:ident)*) => {
        $(mod $name {
            #[tokio::test]
            async fn on_postgres() {
                super::$name::<crate::store::postgres::Postgres>().await;
            }

            #[tokio::test]
            async fn on_mariadb() {
                super::$name::<crate::store::mariadb::MariaDb>().await;
            }

            #[tokio::test]
            async fn on_sqlite() {
                super::$name::<crate::store::sqlite::Sqlite>().await;
            }
        })*
    };
}

everywhere! {
    one_head_numbers_and_reads
    what_fails_behind_rows_does_not_lose_them
    writers_marks_failures_and_tidying_at_once_lose_and_keep_nothing
}

/// Rows with these bodies, which no read has come to yet.
async fn insert(db: &impl Harness, bodies: &[i64]) {
    let rows: Vec<_> = bodies.iter().map(|n| format!("('r', 'k', '{n}')")).collect();
    let rows = rows.join(",");
    db.execute(&format!(
        "INSERT INTO outbox (routing_key, ordering_key, payload) VALUES {rows}"
    ))
    .await;
}

async fn after(store: &Arc<dyn Store>, id: i64) -> Vec<OutboxRow> {
    store.head(RowId(id), 1_000, ALL).await.expect("a head")
}

fn bodies(rows: &[OutboxRow]) -> Vec<i64> {
    let number = |row| std::str::from_utf8(body(row)).expect("text").parse();
    rows.iter().map(|row| number(row).expect("a number")).collect()
}

async fn one_head_numbers_and_reads<H: Harness>() {
    let db = Numbered::<H>::fresh().await;
    let store = db.migrated().await;
    insert(&db, &[1, 2, 3]).await;
    let rows = after(&store, 0).await;
    assert_eq!(bodies(&rows), [1, 2, 3]);
    assert!(store.owes_a_look(), "there may be more");
    assert_eq!(after(&store, 0).await.len(), 3);
    assert!(!store.owes_a_look());
    insert(&db, &[4]).await;
    let last = rows[2].id.0;
    until("it is found behind them", WAIT, async || {
        bodies(&after(&store, last).await) == [4]
    })
    .await;
    store.mark_sent(&confirmed([last])).await.expect("marked");
    assert_eq!(bodies(&after(&store, 0).await), [1, 2, 4]);
}

async fn what_fails_behind_rows_does_not_lose_them<H: Harness>() {
    let db = Numbered::<H>::fresh().await;
    let store = db.migrated().await;
    insert(&db, &[1, 2]).await;
    let last = after(&store, 0).await[1].id.0;
    for sql in db.refuse_inserts("outbox_relay_positions") {
        db.execute(&sql).await;
    }
    insert(&db, &[3]).await;
    until("a look fails", WAIT, async || {
        assert_eq!(bodies(&after(&store, 0).await), [1, 2]);
        store.owes_a_look()
    })
    .await;
    until("it is told", WAIT, async || {
        store.head(RowId(last), 10, ALL).await.is_err()
    })
    .await;
    db.execute(db.allow_inserts()).await;
    until("it succeeds", WAIT, async || {
        bodies(&after(&store, last).await) == [3] && !store.owes_a_look()
    })
    .await;
}

async fn a_look_that_takes_too_long_is_followed_by_one_without_order<H: Harness>() {
    let db = Numbered::<H>::fresh().await;
    db.migrated().await;
    let store = db.store_with(StoreOptions {
        timeout: Duration::from_secs(2),
        ..options("outbox", OnSent::Mark)
    });
    db.execute("CREATE TABLE slow (s int)").await;
    for sql in db.slow_inserts("outbox_relay_positions") {
        db.execute(&sql).await;
    }
    let insert = async |n: i64| {
        let (one, two) = (db.in_seconds(-n), db.in_seconds(-n - 1));
        let next = n + 1;
        db.execute(&format!(
            "INSERT INTO outbox (routing_key, payload, created_at) VALUES ('r', '{n}', {one}), ('r', '{next}', {two})"
        ))
        .await;
    };
    insert(1).await;
    assert_eq!(bodies(&after(&store, 0).await), [2, 1], "by the time of their creation");
    db.execute("INSERT INTO slow VALUES (1)").await;
    insert(3).await;
    let last = after(&store, 0).await;
    assert_eq!(bodies(&last), [2, 1], "rows that are there are not lost");
    let last = last[1].id.0;
    db.execute("DELETE FROM slow").await;
    until("they are found as they come", WAIT, async || {
        let rows = store.head(RowId(last), 10, ALL).await.unwrap_or_default();
        let found = bodies(&rows);
        let ordered = found == [4, 3] && !db.ends_what_is_given_up();
        assert!(found.is_empty() || found == [3, 4] || ordered, "{found:?}");
        !found.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_look_that_takes_too_long_is_followed_by_one_without_order_on_postgres() {
    a_look_that_takes_too_long_is_followed_by_one_without_order::<Postgres>().await;
}

#[tokio::test]
async fn a_look_that_takes_too_long_is_followed_by_one_without_order_on_mariadb() {
    a_look_that_takes_too_long_is_followed_by_one_without_order::<MariaDb>().await;
}

/// A deadlock is something that the relay tries again, and so does this.
async fn patiently<T>(work: impl AsyncFn() -> Result<T, StoreError>) -> T {
    loop {
        match work().await {
            Err(error) if error.is_conflict() => {}
            done => return done.expect("done"),
        }
    }
}

/// Two relays on one table, and two writers: every row is seen, in the order of its writer, and nothing is left over.
async fn writers_marks_failures_and_tidying_at_once_lose_and_keep_nothing<H: Harness>() {
    const EACH: i64 = 60;
    let db = Numbered::<H>::fresh().await;
    let first = db.migrated().await;
    let second = db.store_with(options("outbox", OnSent::Mark));
    let done = AtomicBool::new(false);
    let write = async |from: i64| {
        for n in from..from + EACH {
            insert(&db, &[n]).await;
        }
    };
    let writers = async {
        tokio::join!(write(0), write(1_000));
        done.store(true, Ordering::SeqCst);
    };
    let relay = async |store: &Arc<dyn Store>, marks: bool| {
        let (mut cursor, mut seen) = (0, Vec::new());
        loop {
            let last_look = done.load(Ordering::SeqCst);
            let rows = patiently(async || store.head(RowId(cursor), 1_000, ALL).await).await;
            cursor = rows.last().map_or(cursor, |row| row.id.0);
            seen.extend(bodies(&rows));
            let ids: Vec<_> = rows.iter().map(|row| row.id.0).collect();
            if marks {
                let rows = confirmed(ids);
                patiently(async || store.mark_sent(&rows).await).await;
            } else {
                let failures: Vec<_> = ids
                    .iter()
                    .map(|id| failure(*id, 1, NextStep::RetryIn(Duration::ZERO)))
                    .collect();
                patiently(async || store.record_failures(&failures, &nobody()).await).await;
                patiently(async || store.tidy().await).await;
            }
            if last_look && rows.is_empty() && !store.owes_a_look() {
                return seen;
            }
        }
    };
    let ((), seen, _) = tokio::join!(writers, relay(&first, true), relay(&second, false));
    for writer in [0, 1_000] {
        let rows: Vec<_> = seen
            .iter()
            .filter(|n| (writer..writer + EACH).contains(n))
            .copied()
            .collect();
        assert_eq!(rows, (writer..writer + EACH).collect::<Vec<_>>());
    }
    assert_eq!(
        seen.iter().collect::<BTreeSet<_>>().len(),
        seen.len(),
        "none is numbered twice"
    );
    until("nothing is left of them", WAIT, async || {
        first.tidy().await.expect("tidied");
        db.number("SELECT count(*) FROM outbox_relay_failures").await
            + db.number("SELECT count(*) FROM outbox_relay_positions WHERE outbox = 'outbox'")
                .await
            == 0
    })
    .await;
}

#[tokio::test]
async fn numbers_wait_for_the_disk_whatever_the_server_does() {
    let db = Numbered::<Postgres>::fresh().await;
    let store = db.migrated().await;
    let name = db.0.url.rsplit('/').next().expect("a name").to_owned();
    db.execute(&format!(
        "ALTER DATABASE \"{name}\" SET synchronous_commit = off;
         CREATE TABLE noted (setting text);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO noted VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$;
         CREATE TRIGGER note AFTER INSERT ON outbox_relay_positions FOR EACH ROW EXECUTE FUNCTION note()"
    ))
    .await;
    insert(&db, &[1]).await;
    assert_eq!(bodies(&after(&store, 0).await), [1]);
    assert_eq!(db.number("SELECT count(*) FROM noted WHERE setting = 'on'").await, 1);
}

/// Nothing keeps two rows from having the same key: each is a row of its own all the same.
#[tokio::test]
async fn rows_of_the_same_key_are_each_numbered_marked_and_given_up() {
    let db = Keyless::<Postgres>::fresh().await;
    let store = db.migrated().await;
    let insert = async |n: i64| {
        db.execute(&format!(
            "INSERT INTO outbox (id, routing_key, ordering_key, payload) VALUES ('same', 'r', 'k', '{n}')"
        ))
        .await;
    };
    insert(1).await;
    let first = after(&store, 0).await;
    assert_eq!(bodies(&first), [1]);
    // It comes while the first one is on its way.
    insert(2).await;
    let marked = store.mark_sent(&confirmed([first[0].id.0])).await.expect("marked");
    assert_eq!(marked, 1);
    let sent = "SELECT count(*) FROM outbox WHERE sent_at IS NOT NULL";
    assert_eq!(db.number(&format!("{sent} AND payload = '1'")).await, 1);
    assert_eq!(db.number(sent).await, 1, "and no other");
    insert(3).await;
    let mut rows = Vec::new();
    until("both are found", WAIT, async || {
        rows = after(&store, 0).await;
        rows.len() == 2
    })
    .await;
    assert_eq!(bodies(&rows), [2, 3]);
    assert_eq!(rows[0].message_id, rows[1].message_id);
    let dead = [failure(rows[0].id.0, 1, NextStep::Dead)];
    assert_eq!(store.record_failures(&dead, &nobody()).await.expect("written"), 1);
    let left = after(&store, 0).await;
    assert_eq!(bodies(&left), [3]);
    // Rows that were moved are numbered anew, and what is known of the old places marks nothing.
    db.execute("DELETE FROM outbox WHERE payload = '2'").await;
    db.execute("VACUUM FULL outbox").await;
    assert_eq!(store.mark_sent(&confirmed([left[0].id.0])).await.expect("marked"), 0);
    until("it is found again", WAIT, async || {
        bodies(&after(&store, 0).await) == [3]
    })
    .await;
}

/// Another one has `lock` until it ends its transaction: meanwhile nothing is numbered, and nobody waits.
async fn is_left_to_another<H: Harness>(db: &Numbered<H>, release: impl AsyncFnOnce()) {
    let store = db.store();
    insert(db, &[1]).await;
    assert!(after(&store, 0).await.is_empty() && store.owes_a_look());
    release().await;
    until("it is this one's turn", WAIT, async || {
        bodies(&after(&store, 0).await) == [1]
    })
    .await;
}

#[tokio::test]
async fn one_relay_numbers_at_a_time_on_postgres() {
    let db = Numbered::<Postgres>::fresh().await;
    db.migrated().await.inspect().await.expect("a table");
    let mut other = db.0.another().await;
    other
        .execute("BEGIN; SELECT pg_advisory_xact_lock(1869509997::bigint << 32 | 'outbox'::regclass::oid::bigint)")
        .await
        .expect("locked");
    // A table of the same name is another one.
    db.execute("CREATE SCHEMA other; CREATE TABLE other.outbox (LIKE outbox INCLUDING ALL)")
        .await;
    let elsewhere = StoreOptions {
        table: "other.outbox".parse().expect("a name"),
        ..options("outbox", OnSent::Mark)
    };
    let elsewhere = db.migrated_with(elsewhere).await;
    db.execute("INSERT INTO other.outbox (routing_key, payload) VALUES ('r', '7')")
        .await;
    assert_eq!(bodies(&after(&elsewhere, 0).await), [7]);
    is_left_to_another(&db, async || {
        other.execute("COMMIT").await.expect("released");
    })
    .await;
}

#[tokio::test]
async fn one_relay_numbers_at_a_time_on_mariadb() {
    let db = Numbered::<MariaDb>::fresh().await;
    after(&db.migrated().await, 0).await;
    let mut other = db.0.another().await;
    other.execute(sqlx::raw_sql("START TRANSACTION")).await.expect("begun");
    let lock = "SELECT position FROM outbox_relay_positions WHERE outbox = '' AND row_key = 'outbox' FOR UPDATE";
    let locked = other
        .fetch_all(sqlx::raw_sql(AssertSqlSafe(lock)))
        .await
        .expect("locked");
    assert_eq!(locked.len(), 1);
    let release = async || {
        other.execute(sqlx::raw_sql("COMMIT")).await.expect("released");
    };
    is_left_to_another(&db, release).await;
}

/// SQLite lets keys of text be null: more of them than one look numbers do not fill each look.
#[tokio::test]
async fn rows_with_a_null_key_starve_no_others_on_sqlite() {
    let db = Numbered::<Sqlite>::fresh().await;
    let store = db.migrated().await;
    db.execute(
        "ALTER TABLE outbox RENAME TO keyed;
         CREATE TABLE outbox (id TEXT PRIMARY KEY, routing_key TEXT, payload TEXT, sent_at TEXT);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5001)
             INSERT INTO outbox SELECT NULL, 'r', '0', NULL FROM n;
         INSERT INTO outbox VALUES ('a', 'r', '7', NULL)",
    )
    .await;
    until("it is found", WAIT, async || bodies(&after(&store, 0).await) == [7]).await;
}

/// The application's transaction has the only write lock: a look that finds nothing does not need it.
#[tokio::test]
async fn a_look_takes_no_lock_on_sqlite() {
    let db = Numbered::<Sqlite>::fresh().await;
    let store = db.migrated().await;
    insert(&db, &[1]).await;
    let last = after(&store, 0).await[0].id.0;
    let mut writer = db.0.another().await;
    writer
        .execute("BEGIN IMMEDIATE; UPDATE outbox SET routing_key = routing_key")
        .await
        .expect("locked");
    until("it has looked", WAIT, async || {
        after(&store, last).await.is_empty() && !store.owes_a_look()
    })
    .await;
    writer.execute("ROLLBACK").await.expect("ended");
}
