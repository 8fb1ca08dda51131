//! The purge: of many rows beside an application that goes on inserting, by one of several relays, of rows that are slow to
//! delete.

use std::time::{Duration, Instant};

use crate::outbox::{Database, Outbox, SECOND, judge};
use crate::support::{Consumer, MariaDb, numbers, until};

const OLD: i64 = 100_000;

const PURGED: &str = "outbox_relay_rows_purged_total";

async fn a_purge_keeps_up_and_disturbs_nobody(outbox: Outbox) {
    let (fill, deadlocks) = match outbox.db {
        Database::MariaDb(_) => (
            format!(
                "INSERT INTO outbox (routing_key, payload, sent_at) SELECT 'good', '{{}}', now() - INTERVAL 8 DAY FROM {}",
                numbers(1, OLD)
            ),
            "SELECT CAST(count AS SIGNED) FROM information_schema.innodb_metrics WHERE name = 'lock_deadlocks'",
        ),
        _ => (
            format!(
                "INSERT INTO outbox (routing_key, payload, sent_at)
                 SELECT 'good', '{{}}', now() - interval '8 days' FROM generate_series(1, {OLD})"
            ),
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()",
        ),
    };
    outbox.db.run(&fill).await;
    let deadlocks_before = outbox.db.number(deadlocks).await;
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let relay = outbox.relay().spawn();
    let (begun, mut inserted, mut longest) = (Instant::now(), 0, Duration::ZERO);
    // Inserts go on until all are purged: if they starved the purge, it would never end.
    while relay.metric(PURGED).await.unwrap_or_default() < OLD as f64 {
        assert!(begun.elapsed() < 90 * SECOND, "the purge does not keep up");
        let insert = Instant::now();
        outbox.insert(inserted, 20, 1_000).await;
        longest = longest.max(insert.elapsed());
        inserted += 20;
    }
    println!(
        "{OLD} rows purged in {:?}, {inserted} inserted meanwhile",
        begun.elapsed()
    );
    assert!(longest < 3 * SECOND, "an insert took {longest:?}");
    outbox.wait_all_sent(60 * SECOND).await;
    let old = "SELECT count(*) FROM outbox WHERE created_at > sent_at";
    assert_eq!(outbox.db.number(old).await, 0);
    assert_eq!(outbox.db.number("SELECT count(*) FROM outbox").await, inserted);
    assert_eq!(outbox.db.number(deadlocks).await, deadlocks_before);
    for operation in ["purge", "mark", "head"] {
        let errors = format!("outbox_relay_store_errors_total{{operation=\"{operation}\"}}");
        assert_eq!(relay.metric(&errors).await, Some(0.0), "{operation}");
    }
    // Bounded: a statement deletes a thousand rows at most.
    let series = |part: &str| format!("outbox_relay_store_operation_duration_seconds_{part}{{operation=\"purge\"}}");
    let calls = relay.metric(&series("count")).await.unwrap_or_default();
    assert!(calls >= (OLD / 1_000) as f64, "{calls} calls");
    let received = consumer
        .wait_for(|received| received.len() as i64 >= inserted, 60 * SECOND)
        .await;
    let arrived = judge(&received);
    assert_eq!((arrived.distinct as i64, arrived.duplicates), (inserted, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_of_postgres_keeps_up_and_disturbs_nobody() {
    a_purge_keeps_up_and_disturbs_nobody(Outbox::on_postgres().await).await;
}

/// On a server of its own: deadlocks are counted for all of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_purge_of_mariadb_keeps_up_and_disturbs_nobody() {
    let mariadb = MariaDb::start().await;
    a_purge_keeps_up_and_disturbs_nobody(Outbox::on(mariadb.create_database().await).await).await;
}

/// Old rows whose deletion takes so long each.
async fn with_slow_rows(rows: u32, milliseconds: u32) -> Outbox {
    let outbox = Outbox::on_postgres().await;
    outbox
        .db
        .run(&format!(
            "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM pg_sleep({milliseconds} / 1000.0); RETURN OLD; END $$;
             CREATE TRIGGER slowly BEFORE DELETE ON outbox FOR EACH ROW EXECUTE FUNCTION slowly();
             INSERT INTO outbox (routing_key, payload, sent_at)
                 SELECT 'good', '{{}}', now() - interval '8 days' FROM generate_series(1, {rows})"
        ))
        .await;
    outbox
}

/// It owns the first share, which is the first relay's: others get the last ones.
#[tokio::test(flavor = "multi_thread")]
async fn one_relay_of_several_purges_and_the_next_one_when_it_stops() {
    let outbox = with_slow_rows(20_000, 1).await;
    let owned = "outbox_relay_partitions_owned";
    let mut first = outbox.relay().spawn();
    first.wait_metric(owned, |owned| owned == 16.0, 30 * SECOND).await;
    let second = outbox.relay().spawn();
    second.wait_metric(owned, |owned| owned == 8.0, 30 * SECOND).await;
    let purged = first.metric(PURGED).await.unwrap_or_default();
    first
        .wait_metric(PURGED, |now| now >= purged + 2_000.0, 60 * SECOND)
        .await;
    assert_eq!(second.metric(PURGED).await, Some(0.0));
    first.sigterm();
    assert!(first.wait(30 * SECOND).await.success());
    second.wait_metric(PURGED, |purged| purged > 0.0, 60 * SECOND).await;
}

/// A thousand would take three times as long as a statement may.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_slow_to_delete_are_purged_in_smaller_batches() {
    let outbox = with_slow_rows(1_000, 3).await;
    let _relay = outbox.relay().env("RELAY_DATABASE_TIMEOUT", "1s").spawn();
    until("they are gone", 90 * SECOND, async || {
        outbox.db.number("SELECT count(*) FROM outbox").await == 0
    })
    .await;
}
