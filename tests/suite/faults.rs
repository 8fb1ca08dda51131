//! What the relay survives: cuts, kills, alarms, a broker or a database that is away.

use std::net::SocketAddr;
use std::time::Duration;

use sqlx::Executor;

use crate::outbox::{Outbox, SECOND, judge, migrate, session};
use crate::support::{Consumer, Kind, Postgres, Proxy, Rabbit, Relay, declare, until};

/// What a crash may send twice at the most: what was in flight, and what was confirmed but not marked yet.
const CRASH_BOUND: usize = 1_000 + 2 * 1_000;

/// In flight on one connection.
const CUT_BOUND: usize = 1_000;

#[tokio::test(flavor = "multi_thread")]
async fn cuts_and_kills_lose_nothing_and_keep_the_order_of_each_key() {
    let (postgres, rabbit) = tokio::join!(Postgres::start(), Rabbit::start());
    let outbox = Outbox::between(&postgres, &rabbit).await;
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], rabbit.port()))).await;
    let start = || {
        outbox
            .relay()
            .env("RELAY_AMQP_URL", proxy.through(&outbox.amqp_url))
            .spawn()
    };
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let mut relay = start();
    let mut inserted = 0;
    for step in 0..10 {
        outbox.insert(inserted, 2_000, 500).await;
        inserted += 2_000;
        // Each fault comes while rows are on their way.
        consumer
            .wait_for(|received| received.len() as i64 > inserted - 2_000, 60 * SECOND)
            .await;
        match step {
            1 | 3 => proxy.reset(),
            5 => proxy.cut(),
            6 => {
                rabbit.kill9().await;
                rabbit.start_again().await;
            }
            8 => {
                relay.kill9();
                relay = start();
            }
            _ => {}
        }
    }
    outbox.wait_all_sent(120 * SECOND).await;
    assert_eq!(
        outbox
            .db
            .number("SELECT count(*) FROM outbox WHERE sent_at IS NULL")
            .await,
        0
    );
    let received = consumer
        .wait_for(|received| judge_distinct(received) >= 20_000, 60 * SECOND)
        .await;
    let arrived = judge(&received);
    assert_eq!(arrived.distinct, 20_000);
    let bound = 4 * CUT_BOUND + CRASH_BOUND;
    assert!(arrived.duplicates <= bound, "{arrived:?}");
    relay.sigterm();
    assert!(relay.wait(30 * SECOND).await.success());
}

fn judge_distinct(received: &[crate::support::Received]) -> usize {
    let ids: std::collections::HashSet<_> = received.iter().map(|message| &message.message_id).collect();
    ids.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_costs_latency_only() {
    let (postgres, rabbit) = tokio::join!(Postgres::start(), Rabbit::start());
    let outbox = Outbox::between(&postgres, &rabbit).await;
    let relay = outbox.relay().env("RELAY_PUBLISH_CONFIRM_TIMEOUT", "1s").spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    outbox.insert(0, 1_000, 100).await;
    consumer.wait_distinct(1_000, 30 * SECOND).await;
    rabbit.memory_alarm(true).await;
    outbox.insert(1_000, 20_000, 100).await;
    relay
        .wait_metric("outbox_relay_broker_blocked", |value| value == 1.0, 20 * SECOND)
        .await;
    let (status, reasons) = relay.get("/readyz").await;
    assert!(status == 503 && reasons.contains("alarm"), "{status} {reasons}");
    assert_eq!(relay.get("/livez").await.0, 200);
    // Longer than the confirm timeout: the alarm is no failure, and memory does not grow with the backlog.
    let before = memory(&relay);
    outbox.insert(21_000, 20_000, 100).await;
    tokio::time::sleep(3 * SECOND).await;
    let after = memory(&relay);
    assert!(after < before + 30_000_000, "{before} {after}");
    assert_eq!(
        outbox.db.number("SELECT count(*) FROM outbox WHERE attempts > 0").await,
        0
    );
    rabbit.memory_alarm(false).await;
    outbox.wait_all_sent(60 * SECOND).await;
    let received = consumer
        .wait_for(|received| judge_distinct(received) == 41_000, 60 * SECOND)
        .await;
    let arrived = judge(&received);
    assert_eq!((arrived.distinct, arrived.duplicates), (41_000, 0));
    assert_eq!(
        outbox
            .db
            .number("SELECT count(*) FROM outbox WHERE attempts > 0 OR dead_at IS NOT NULL")
            .await,
        0
    );
    assert_eq!(relay.metric("outbox_relay_broker_blocked").await, Some(0.0));
}

/// Resident bytes.
fn memory(relay: &Relay) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.pid())).expect("it runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("on Linux");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_at_the_start_and_later_costs_latency_only() {
    let (postgres, rabbit) = tokio::join!(Postgres::start(), Rabbit::start());
    let outbox = Outbox::between(&postgres, &rabbit).await;
    rabbit.stop_app().await;
    let relay = outbox.relay().spawn();
    outbox.insert(0, 3_000, 100).await;
    assert_eq!(relay.get("/startupz").await.0, 200);
    assert_eq!(relay.get("/livez").await.0, 200);
    until("the relay says that the broker is away", 20 * SECOND, async || {
        let (status, reasons) = relay.get("/readyz").await;
        status == 503 && reasons.contains("refused")
    })
    .await;
    rabbit.start_app().await;
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    outbox.wait_all_sent(60 * SECOND).await;
    rabbit.stop_app().await;
    outbox.insert(3_000, 3_000, 100).await;
    relay
        .wait_metric("outbox_relay_broker_connected", |value| value == 0.0, 20 * SECOND)
        .await;
    tokio::time::sleep(5 * SECOND).await;
    assert_eq!(
        outbox.db.number("SELECT count(*) FROM outbox WHERE attempts > 0").await,
        0
    );
    rabbit.start_app().await;
    outbox.wait_all_sent(60 * SECOND).await;
    let received = consumer
        .wait_for(|received| judge_distinct(received) == 6_000, 60 * SECOND)
        .await;
    assert_eq!(judge(&received).distinct, 6_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_is_waited_for() {
    let (postgres, rabbit) = tokio::join!(Postgres::start(), Rabbit::start());
    let outbox = Outbox::between(&postgres, &rabbit).await;
    let relay = outbox.relay().spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    outbox.insert(0, 1_000, 100).await;
    consumer.wait_distinct(1_000, 30 * SECOND).await;
    outbox.wait_all_sent(20 * SECOND).await;
    postgres.kill9().await;
    until("the relay says that the database is away", 20 * SECOND, async || {
        let (status, reasons) = relay.get("/readyz").await;
        status == 503 && reasons.contains("\"database\":{\"ok\":false")
    })
    .await;
    assert_eq!(relay.get("/livez").await.0, 200);
    postgres.start_again().await;
    outbox.insert(1_000, 1_000, 100).await;
    postgres.terminate_backends().await;
    let received = consumer
        .wait_for(|received| judge_distinct(received) == 2_000, 60 * SECOND)
        .await;
    assert_eq!(judge(&received).distinct, 2_000);
    outbox.wait_all_sent(60 * SECOND).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_took_its_id_first_and_commits_last_is_sent() {
    let outbox = Outbox::on_postgres().await;
    let relay = outbox.relay().env("RELAY_POLL_SWEEP_INTERVAL", "50s").spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    outbox.insert(0, 10, 10).await;
    consumer.wait_distinct(10, 30 * SECOND).await;
    let mut late = session(&outbox.database_url).await;
    let insert =
        "INSERT INTO outbox (routing_key, ordering_key, payload) VALUES ('good', 'late', '{\"key\": 77, \"n\": 1}')";
    late.execute("BEGIN").await.unwrap();
    late.execute(insert).await.unwrap();
    outbox.insert(10, 1_000, 10).await;
    consumer.wait_distinct(1_010, 30 * SECOND).await;
    late.execute("COMMIT").await.unwrap();
    // No sweep comes within this time: the skipped id itself is watched.
    consumer.wait_distinct(1_011, 10 * SECOND).await;
    drop(relay);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_commit_goes_before_the_next_row_of_its_key_when_writers_are_serialised() {
    let outbox = Outbox::on_postgres().await;
    let _relay = outbox.relay().env("RELAY_POLL_SWEEP_INTERVAL", "50s").spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    outbox.insert(0, 10, 10).await;
    consumer.wait_distinct(10, 30 * SECOND).await;
    let mut expected = 10;
    for round in 0..30 {
        let n = 1_000 + 2 * round;
        let row = |n: i64| {
            format!(
                "INSERT INTO outbox (routing_key, ordering_key, payload) VALUES ('good', 'late', '{{\"key\": 77, \"n\": {n}}}')"
            )
        };
        let (mut first, mut second) = (session(&outbox.database_url).await, session(&outbox.database_url).await);
        let lock = "BEGIN; SELECT pg_advisory_xact_lock(77)";
        sqlx::raw_sql(lock).execute(&mut first).await.unwrap();
        first.execute(sqlx::AssertSqlSafe(row(n))).await.unwrap();
        // The second writer of the key takes its id only when the first has committed; others move the cursor on.
        let next = async move {
            sqlx::raw_sql(lock).execute(&mut second).await.unwrap();
            second.execute(sqlx::AssertSqlSafe(row(n + 1))).await.unwrap();
            second.execute("COMMIT").await.unwrap();
        };
        let commit = async {
            outbox.insert(10_000 + round * 10, 10, 10).await;
            consumer.wait_distinct(expected + 10, 30 * SECOND).await;
            first.execute("COMMIT").await.unwrap();
        };
        tokio::join!(next, commit);
        expected += 12;
        consumer.wait_distinct(expected, 30 * SECOND).await;
    }
    judge(&consumer.snapshot());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_starts_before_the_table_is_there_waits_and_says_so() {
    let rabbit = Rabbit::shared().await;
    let (database_url, amqp_url) = (
        Postgres::shared().await.create_database().await,
        rabbit.create_vhost().await,
    );
    declare(&amqp_url, "events", "q", Kind::Classic, &["good"]).await;
    let relay = Relay::command()
        .env("RELAY_DATABASE_URL", &database_url)
        .env("RELAY_AMQP_URL", &amqp_url)
        .env("RELAY_AMQP_EXCHANGE", "events")
        .spawn();
    until("the relay names the missing table", 20 * SECOND, async || {
        let (status, reasons) = relay.get("/readyz").await;
        status == 503 && reasons.contains("outbox-relay migrate")
    })
    .await;
    migrate(&database_url, &[]).await;
    let mut session = session(&database_url).await;
    session
        .execute("INSERT INTO outbox (routing_key, payload) VALUES ('good', '{\"id\": 1}')")
        .await
        .unwrap();
    let consumer = Consumer::start(&amqp_url, "q");
    consumer.wait_distinct(1, 20 * SECOND).await;
    assert_eq!(relay.get("/readyz").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_rows_of_a_blocked_key_slow_no_other_key_and_fill_no_memory() {
    let outbox = Outbox::on_postgres().await;
    let mut blocked = session(&outbox.database_url).await;
    blocked
        .execute(
            "INSERT INTO outbox (exchange, routing_key, ordering_key, payload)
             SELECT 'missing', 'good', 'blocked', '{\"key\": 0, \"n\": 0}' FROM generate_series(1, 1000000)",
        )
        .await
        .unwrap();
    outbox.insert(0, 20_000, 100).await;
    let relay = outbox
        .relay()
        .env("RELAY_RETRY_MIN_DELAY", "1h")
        .env("RELAY_RETRY_MAX_DELAY", "1h")
        .spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let received = consumer.wait_distinct(20_000, 120 * SECOND).await;
    judge(&received);
    assert_eq!(relay.metric("outbox_relay_blocked_keys").await, Some(1.0));
    assert!(memory(&relay) < 150_000_000, "{}", memory(&relay));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_blocked_goes_on_in_order_when_its_exchange_appears() {
    let outbox = Outbox::on_postgres().await;
    let mut session = session(&outbox.database_url).await;
    session
        .execute(
            "INSERT INTO outbox (exchange, routing_key, ordering_key, payload)
             SELECT 'later', 'good', 'k' || (n % 3), json_build_object('key', n % 3, 'n', n) FROM generate_series(1, 12000) AS n",
        )
        .await
        .unwrap();
    let relay = outbox
        .relay()
        .env("RELAY_RETRY_MIN_DELAY", "100ms")
        .env("RELAY_RETRY_MAX_DELAY", "200ms")
        .env("RELAY_RETRY_MAX_ATTEMPTS", "1000")
        .spawn();
    relay
        .wait_metric(
            "outbox_relay_publish_failures_total{reason=\"no_exchange\"}",
            |value| value > 5.0,
            20 * SECOND,
        )
        .await;
    declare(&outbox.amqp_url, "later", "q2", Kind::Classic, &["good"]).await;
    let consumer = Consumer::start(&outbox.amqp_url, "q2");
    let received = consumer.wait_distinct(12_000, 60 * SECOND).await;
    let arrived = judge(&received);
    assert_eq!((arrived.distinct, arrived.duplicates), (12_000, 0));
    outbox.wait_all_sent(Duration::from_secs(20)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_was_reaped_while_idle_is_replaced() {
    let rabbit = Rabbit::shared().await;
    let outbox = Outbox::on_postgres().await;
    let _relay = outbox.relay().spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    for round in 0..3 {
        outbox.insert(round * 10, 10, 10).await;
        consumer
            .wait_for(|received| received.len() as i64 >= (round + 1) * 10, 30 * SECOND)
            .await;
        outbox.wait_all_sent(20 * SECOND).await;
        rabbit.close_connections_of(&outbox.amqp_url).await;
    }
    assert_eq!(judge(&consumer.snapshot()).distinct, 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_under_ids_long_passed_are_found_by_the_sweep() {
    let outbox = Outbox::on_postgres().await;
    outbox.db.run("ALTER TABLE outbox ALTER id RESTART WITH 1000000").await;
    let _relay = outbox.relay().env("RELAY_POLL_SWEEP_INTERVAL", "500ms").spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    outbox.insert(0, 100, 10).await;
    consumer.wait_distinct(100, 30 * SECOND).await;
    // As after a restore with a sequence that begins anew.
    outbox.db.run("ALTER TABLE outbox ALTER id RESTART WITH 1").await;
    outbox.insert(100, 100, 10).await;
    let received = consumer.wait_distinct(200, 30 * SECOND).await;
    assert_eq!(judge(&received).distinct, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_starts_during_an_alarm_waits_for_its_end() {
    let (postgres, rabbit) = tokio::join!(Postgres::start(), Rabbit::start());
    let outbox = Outbox::between(&postgres, &rabbit).await;
    rabbit.memory_alarm(true).await;
    outbox.insert(0, 2_000, 500).await;
    let relay = outbox.relay().env("RELAY_PUBLISH_CONFIRM_TIMEOUT", "1s").spawn();
    relay
        .wait_metric("outbox_relay_broker_blocked", |value| value == 1.0, 20 * SECOND)
        .await;
    let blocked = std::time::Instant::now();
    until("three confirm timeouts pass", 10 * SECOND, async || {
        blocked.elapsed() > 3 * SECOND
    })
    .await;
    rabbit.memory_alarm(false).await;
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    outbox.wait_all_sent(60 * SECOND).await;
    let received = consumer.wait_distinct(2_000, 30 * SECOND).await;
    let arrived = judge(&received);
    assert_eq!((arrived.distinct, arrived.duplicates), (2_000, 0));
    let timeouts = "outbox_relay_publish_failures_total{reason=\"timeout\"}";
    assert_eq!(relay.metric(timeouts).await, Some(0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_message_in_flight_at_a_time_is_enough() {
    let outbox = Outbox::on_postgres().await;
    let _relay = outbox
        .relay()
        .env("RELAY_PUBLISH_IN_FLIGHT", "1")
        .env("RELAY_POLL_BATCH_SIZE", "1")
        .spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    outbox.insert(0, 200, 3).await;
    let received = consumer.wait_distinct(200, 60 * SECOND).await;
    assert_eq!(judge(&received).duplicates, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_row_of_an_empty_table_arrives() {
    let outbox = Outbox::on_postgres().await;
    let relay = outbox.relay().spawn();
    relay
        .wait_metric(
            "outbox_relay_polls_total{outcome=\"empty\"}",
            |value| value > 3.0,
            20 * SECOND,
        )
        .await;
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    outbox.insert(0, 1, 1).await;
    consumer.wait_distinct(1, 10 * SECOND).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_takes_no_refusals_or_marks_of_some_rows_stops_no_others() {
    let outbox = Outbox::on_postgres().await;
    outbox
        .db
        .run(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION 'the application says no'; END $$;
             CREATE TRIGGER refuse BEFORE UPDATE ON outbox FOR EACH ROW WHEN (OLD.type = 'frozen') EXECUTE FUNCTION refuse();
             INSERT INTO outbox (routing_key, type, payload) VALUES ('nowhere', 'frozen', '1'), ('good', 'frozen', '{\"key\": 9000, \"n\": 1}')",
        )
        .await;
    outbox.insert(0, 2_000, 100).await;
    let _relay = outbox.relay().spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    consumer.wait_distinct(2_001, 60 * SECOND).await;
    until("all others are marked", 30 * SECOND, async || {
        outbox.db.unsent().await == 2
    })
    .await;
    outbox.insert(2_000, 1_000, 100).await;
    let received = consumer.wait_distinct(3_001, 60 * SECOND).await;
    assert_eq!(judge(&received).duplicates, 0);
}
