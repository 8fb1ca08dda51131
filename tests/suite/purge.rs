//! The purge of many rows beside an application that goes on inserting.

use std::time::{Duration, Instant};

use crate::outbox::{Database, Outbox, SECOND, judge};
use crate::support::{Consumer, MariaDb, numbers};

const OLD: i64 = 100_000;

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
    while relay.metric("outbox_relay_rows_purged_total").await.unwrap_or_default() < OLD as f64 {
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
