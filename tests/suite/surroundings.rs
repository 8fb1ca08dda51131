//! What is around the relay: poolers, clocks, snapshots, limits.

use crate::outbox::{Outbox, SECOND, judge, migrate, migrate_with_wakeup, session};
use crate::support::{Consumer, PgBouncer, Postgres, Rabbit, until};
use sqlx::Executor as _;

/// PgBouncer refuses what it does not know at the start of a connection, or leaves it out if it is told so.
const POOLERS: [&str; 2] = ["", "ignore_startup_parameters = options"];

#[tokio::test(flavor = "multi_thread")]
async fn three_relays_behind_a_pooler_in_transaction_mode_share_and_send_once() {
    for settings in POOLERS {
        let outbox = Outbox::on_postgres().await;
        let pooler = PgBouncer::before(Postgres::shared().await, settings).await;
        let url = pooler.through(&outbox.database_url);
        migrate(&url, &[("RELAY_OUTBOX_TABLE", "second")]).await;
        let start = || outbox.relay().env("RELAY_DATABASE_URL", &url).spawn();
        let consumer = Consumer::start(&outbox.amqp_url, "q");
        let (first, second, third) = (start(), start(), start());
        for relay in [&first, &second, &third] {
            relay
                .wait_metric(
                    "outbox_relay_partitions_owned",
                    |owned| (5.0..=6.0).contains(&owned),
                    30 * SECOND,
                )
                .await;
        }
        outbox.insert(0, 20_000, 100).await;
        outbox.wait_all_sent(60 * SECOND).await;
        let received = consumer.wait_distinct(20_000, 30 * SECOND).await;
        let arrived = judge(&received);
        assert_eq!((arrived.distinct, arrived.duplicates), (20_000, 0), "{settings:?}");
        let tried = outbox.db.number("SELECT count(*) FROM outbox WHERE attempts > 0").await;
        assert_eq!(tried, 0);
        assert!(
            first.log_text().contains("a pooler is between"),
            "it says so:\n{}",
            first.log_text()
        );
        // Leases work there as well: what one leaves behind is taken over.
        first.kill9();
        for relay in [&second, &third] {
            relay
                .wait_metric("outbox_relay_partitions_owned", |owned| owned == 8.0, 30 * SECOND)
                .await;
        }
        outbox.insert(20_000, 2_000, 100).await;
        outbox.wait_all_sent(60 * SECOND).await;
        // Refusals are written under a lease, too.
        outbox
            .db
            .run("INSERT INTO outbox (routing_key, payload) VALUES ('nowhere', '{}')")
            .await;
        until("the refusal is written", 30 * SECOND, async || {
            let tried = "SELECT count(*) FROM outbox WHERE attempts > 0 AND last_error IS NOT NULL";
            outbox.db.number(tried).await == 1
        })
        .await;
    }
}

/// A relay that is frozen anywhere in a call must not keep a lock in the database: its socket stays open.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_frozen_behind_a_pooler_holds_up_nobody() {
    let outbox = Outbox::on_postgres().await;
    let pooler = PgBouncer::before(Postgres::shared().await, "").await;
    let url = pooler.through(&outbox.database_url);
    let start = || {
        outbox
            .relay()
            .env("RELAY_DATABASE_URL", &url)
            .env("RELAY_LEASE_TTL", "3s")
            .spawn()
    };
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let (first, second) = (start(), start());
    for round in 0..3 {
        for relay in [&first, &second] {
            relay
                .wait_metric("outbox_relay_partitions_owned", |owned| owned == 8.0, 60 * SECOND)
                .await;
        }
        outbox.insert(round * 3_000, 3_000, 300).await;
        let some = round as usize * 3_000 + 500;
        consumer
            .wait_for(|received| judge(received).distinct > some, 60 * SECOND)
            .await;
        first.freeze();
        // All of it is marked by the other one while the first is frozen.
        outbox.wait_all_sent(60 * SECOND).await;
        first.thaw();
    }
    let received = consumer
        .wait_for(|received| judge(received).distinct == 9_000, 60 * SECOND)
        .await;
    judge(&received);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_held_open_for_long_stops_nothing() {
    let outbox = Outbox::on_postgres().await;
    let _relay = outbox.relay().spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    outbox.insert(0, 10, 10).await;
    outbox.wait_all_sent(30 * SECOND).await;
    let mut reader = session(&outbox.database_url).await;
    reader
        .execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox")
        .await
        .unwrap();
    // No version of these rows can be removed: neither the unsent ones nor their entries in the indexes.
    for round in 0..20 {
        outbox.insert(10 + round * 10_000, 10_000, 500).await;
        outbox.wait_all_sent(60 * SECOND).await;
        let all = 10 + (round as usize + 1) * 10_000;
        consumer.wait_distinct(all, 60 * SECOND).await;
    }
    reader.execute("COMMIT").await.unwrap();
    let received = consumer.wait_distinct(200_010, 60 * SECOND).await;
    let arrived = judge(&received);
    assert_eq!((arrived.distinct, arrived.duplicates), (200_010, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_keeps_to_its_few_connections_whatever_breaks() {
    let (postgres, rabbit) = tokio::join!(Postgres::start(), Rabbit::start());
    let outbox = Outbox::between(&postgres, &rabbit).await;
    let _relay = outbox.relay().spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    for round in 0..6 {
        outbox.insert(round * 2_000, 2_000, 100).await;
        match round % 3 {
            0 => {}
            1 => postgres.terminate_backends_of(&outbox.database_url).await,
            _ => rabbit.close_all_connections().await,
        }
        outbox.wait_all_sent(60 * SECOND).await;
        // A backend that was terminated ends a moment after its client noticed.
        until("four connections", 20 * SECOND, async || {
            let count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outbox-relay'";
            (1..=4).contains(&outbox.db.number(count).await)
        })
        .await;
    }
    let received = consumer
        .wait_for(|received| judge(received).distinct == 12_000, 60 * SECOND)
        .await;
    judge(&received);
    // The relay's and the consumer's.
    until("one connection each", 20 * SECOND, async || {
        rabbit.eval("length(rabbit_networking:connections())").await == "2"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_with_a_wrong_clock_in_another_time_zone_does_all_by_the_databases_clock() {
    let outbox = Outbox::on_postgres().await;
    let fake = std::fs::read_dir("/usr/lib")
        .expect("it is there")
        .filter_map(|entry| Some(entry.ok()?.path().join("faketime/libfaketime.so.1")))
        .find(|library| library.exists())
        .expect("libfaketime is installed by tests/run.sh");
    let start = |clock: &str, zone: &str| {
        outbox
            .relay()
            .env("LD_PRELOAD", &fake)
            .env("FAKETIME", clock)
            .env("TZ", zone)
            // A process sees the wrong time of day; how time goes by it sees right.
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("DONT_FAKE_MONOTONIC", "1")
            .spawn()
    };
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let (fast, slow) = (start("+5m", "Asia/Tokyo"), start("-5m", "America/Lima"));
    for relay in [&fast, &slow] {
        relay
            .wait_metric("outbox_relay_partitions_owned", |owned| owned == 8.0, 30 * SECOND)
            .await;
    }
    for (relay, minutes) in [(&fast, 5.0), (&slow, -5.0)] {
        let first = relay.logs().swap_remove(0);
        let told = humantime::parse_rfc3339(first["timestamp"].as_str().expect("a time")).expect("a time");
        let ahead = match told.duration_since(std::time::SystemTime::now()) {
            Ok(ahead) => ahead.as_secs_f64(),
            Err(behind) => -behind.duration().as_secs_f64(),
        };
        assert!((ahead - minutes * 60.0).abs() < 60.0, "its clock is {ahead} s ahead");
    }
    let later = "INSERT INTO outbox (routing_key, payload, available_at)
                 SELECT 'good', json_build_object('key', n, 'n', 1000000 + n), now() + interval '3 seconds'
                 FROM generate_series(1000, 1049) AS n";
    outbox.db.run(later).await;
    outbox.insert(0, 5_000, 100).await;
    let received = consumer.wait_distinct(5_050, 60 * SECOND).await;
    let arrived = judge(&received);
    assert_eq!((arrived.distinct, arrived.duplicates), (5_050, 0));
    outbox.wait_all_sent(30 * SECOND).await;
    let early = "SELECT count(*) FROM outbox WHERE sent_at < coalesce(available_at, created_at)";
    assert_eq!(outbox.db.number(early).await, 0);
    let skewed = "SELECT count(*) FROM outbox WHERE abs(extract(epoch FROM now() - sent_at)) > 120";
    assert_eq!(outbox.db.number(skewed).await, 0);
    for relay in [&fast, &slow] {
        let seconds = relay
            .metric("outbox_relay_delivery_latency_seconds_sum")
            .await
            .unwrap_or_default();
        let rows = relay
            .metric("outbox_relay_delivery_latency_seconds_count")
            .await
            .unwrap_or_default();
        assert!(
            rows > 0.0 && (0.0..60.0).contains(&(seconds / rows)),
            "{seconds} s for {rows} rows"
        );
    }
}

/// Polls are as rare as they may be, so that nothing but the wake-up is quick.
#[tokio::test(flavor = "multi_thread")]
async fn with_the_trigger_a_sleeping_relay_is_woken_by_an_insert() {
    let outbox = Outbox::on_postgres().await;
    migrate_with_wakeup(&outbox.database_url).await;
    migrate_with_wakeup(&outbox.database_url).await;
    let start = || {
        outbox
            .relay()
            .env("RELAY_POLL_MAX_INTERVAL", "1h")
            .env("RELAY_POLL_SWEEP_INTERVAL", "50s")
            .spawn()
    };
    let relays = [start(), start()];
    for relay in &relays {
        relay
            .wait_metric("outbox_relay_partitions_owned", |owned| owned == 8.0, 30 * SECOND)
            .await;
    }
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    for round in 0..20 {
        // Asleep: one of them holds the lock.
        until("a relay sleeps", 30 * SECOND, async || {
            let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock'
                         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
            outbox.db.number(locks).await == 1
        })
        .await;
        outbox.insert(round * 10, 10, 10).await;
        let all = (round as usize + 1) * 10;
        consumer.wait_distinct(all, 20 * SECOND).await;
    }
    let arrived = judge(&consumer.snapshot());
    assert_eq!((arrived.distinct, arrived.duplicates), (200, 0));
    // The connections that listen are lost, and made again.
    Postgres::shared()
        .await
        .terminate_backends_of(&outbox.database_url)
        .await;
    until("a relay listens again", 60 * SECOND, async || {
        let listening = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%pg_try_advisory_lock%'";
        outbox.db.number(listening).await >= 1
    })
    .await;
    outbox.insert(200, 10, 10).await;
    consumer
        .wait_for(|received| judge(received).distinct == 210, 60 * SECOND)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_that_swallows_the_wake_up_is_noticed_and_polling_goes_on() {
    let outbox = Outbox::on_postgres().await;
    migrate_with_wakeup(&outbox.database_url).await;
    let pooler = PgBouncer::before(Postgres::shared().await, "").await;
    let url = pooler.through(&outbox.database_url);
    let relay = outbox.relay().env("RELAY_DATABASE_URL", &url).spawn();
    until("it says so", 30 * SECOND, async || {
        relay.log_text().contains("rows are found by polling only")
    })
    .await;
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    outbox.insert(0, 100, 10).await;
    consumer.wait_distinct(100, 30 * SECOND).await;
}
