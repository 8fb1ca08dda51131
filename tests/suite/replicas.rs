//! Several relays on one table: each share has one owner, and changes of owner lose, repeat and reorder nothing.

use std::time::{Duration, Instant};

use crate::outbox::{Arrived, Outbox, SECOND, judge, session};
use crate::support::{Consumer, Kind, Postgres, Rabbit, Relay, declare, until};
use sqlx::Executor;

const OWNED: &str = "outbox_relay_partitions_owned";

async fn owned(relay: &Relay) -> f64 {
    relay.metric(OWNED).await.unwrap_or(0.0)
}

async fn wait_spread(relays: &[Relay], each: &[f64]) {
    until("the shares are spread", 30 * SECOND, async || {
        let mut counts = Vec::new();
        for relay in relays {
            counts.push(owned(relay).await);
        }
        counts.sort_by(f64::total_cmp);
        counts == each
    })
    .await;
}

/// In order, each row once, and all are marked.
async fn all_arrived_once(outbox: &Outbox, consumer: &Consumer, inserted: i64) {
    outbox.wait_all_sent(60 * SECOND).await;
    let received = consumer
        .wait_for(|received| received.len() as i64 >= inserted, 60 * SECOND)
        .await;
    let all = Arrived {
        distinct: usize::try_from(inserted).expect("a count"),
        duplicates: 0,
    };
    assert_eq!(judge(&received), all);
}

async fn shares_spread(outbox: Outbox) {
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let mut relays = vec![outbox.relay().spawn()];
    wait_spread(&relays, &[16.0]).await;
    let mut inserted = 0;
    for each in [&[8.0, 8.0][..], &[5.0, 5.0, 6.0]] {
        relays.push(outbox.relay().spawn());
        // Rows keep coming while shares are handed over.
        for _ in 0..10 {
            outbox.insert(inserted, 500, 200).await;
            inserted += 500;
            consumer
                .wait_for(|received| received.len() as i64 >= inserted - 1_000, 60 * SECOND)
                .await;
        }
        wait_spread(&relays, each).await;
    }
    all_arrived_once(&outbox, &consumer, inserted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_spread_over_the_replicas_and_nothing_is_sent_twice_while_they_do() {
    shares_spread(Outbox::on_postgres().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_spread_over_the_replicas_and_nothing_is_sent_twice_while_they_do_on_mariadb() {
    shares_spread(Outbox::on_mariadb().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_under_load_sends_nothing_twice_and_stalls_no_key_for_long() {
    let outbox = Outbox::on_postgres().await;
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let mut relays = vec![outbox.relay().spawn(), outbox.relay().spawn(), outbox.relay().spawn()];
    wait_spread(&relays, &[5.0, 5.0, 6.0]).await;
    let mut inserted = 0;
    let mut longest = Duration::ZERO;
    for relay in &mut relays {
        relay.sigterm();
        let mut ended = std::mem::replace(relay, outbox.relay().spawn());
        for _ in 0..30 {
            // One row of each of 100 keys: all shares have some.
            let start = Instant::now();
            outbox.insert(inserted, 100, 100).await;
            inserted += 100;
            consumer
                .wait_for(|received| received.len() as i64 >= inserted, 60 * SECOND)
                .await;
            longest = longest.max(start.elapsed());
        }
        assert!(ended.wait(30 * SECOND).await.success());
    }
    all_arrived_once(&outbox, &consumer, inserted).await;
    // The figure belongs to the README; here only what would be a wait for a lease to run out fails.
    println!("longest stall: {longest:?}");
    assert!(longest < 8 * SECOND, "a share was waited for: {longest:?}");
}

async fn a_killed_replica_is_taken_over(outbox: Outbox) {
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let start = || outbox.relay().env("RELAY_LEASE_TTL", "3s").spawn();
    let mut relays = vec![start(), start()];
    wait_spread(&relays, &[8.0, 8.0]).await;
    relays.remove(0).kill9();
    let killed = Instant::now();
    outbox.insert(0, 1_000, 200).await;
    let received = consumer.wait_distinct(1_000, 60 * SECOND).await;
    println!("taken over after {:?}", killed.elapsed());
    assert_eq!(judge(&received).distinct, 1_000);
    wait_spread(&relays, &[16.0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_replica_is_taken_over_within_the_lease_time() {
    a_killed_replica_is_taken_over(Outbox::on_postgres().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_replica_is_taken_over_within_the_lease_time_on_mariadb() {
    a_killed_replica_is_taken_over(Outbox::on_mariadb().await).await;
}

async fn a_frozen_replica_comes_back(outbox: Outbox) {
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let start = || outbox.relay().env("RELAY_LEASE_TTL", "2s").spawn();
    let relays = [start(), start()];
    wait_spread(&relays, &[8.0, 8.0]).await;
    let mut inserted = 0;
    for _ in 0..3 {
        outbox.insert(inserted, 5_000, 300).await;
        inserted += 5_000;
        relays[0].freeze();
        until("the other one owns everything", 30 * SECOND, async || {
            owned(&relays[1]).await == 16.0
        })
        .await;
        outbox.insert(inserted, 2_000, 300).await;
        inserted += 2_000;
        consumer
            .wait_for(|received| received.len() as i64 >= inserted - 3_000, 60 * SECOND)
            .await;
        relays[0].thaw();
        wait_spread(&relays, &[8.0, 8.0]).await;
    }
    outbox.wait_all_sent(60 * SECOND).await;
    let enough = |received: &[crate::support::Received]| {
        let ids: std::collections::HashSet<_> = received.iter().map(|message| &message.message_id).collect();
        ids.len() as i64 >= inserted
    };
    let received = consumer.wait_for(enough, 60 * SECOND).await;
    assert_eq!(judge(&received).distinct as i64, inserted);
    assert!(
        relays[0]
            .metric("outbox_relay_leases_lost_total")
            .await
            .is_some_and(|lost| lost > 0.0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_frozen_beyond_its_lease_keeps_the_order_when_it_comes_back() {
    a_frozen_replica_comes_back(Outbox::on_postgres().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_frozen_beyond_its_lease_keeps_the_order_when_it_comes_back_on_mariadb() {
    a_frozen_replica_comes_back(Outbox::on_mariadb().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_row_is_tried_at_the_cadence_of_one_relay() {
    let outbox = Outbox::on_postgres().await;
    let start = || {
        let relay = outbox
            .relay()
            .env("RELAY_RETRY_MIN_DELAY", "500ms")
            .env("RELAY_RETRY_MAX_DELAY", "500ms");
        relay.env("RELAY_RETRY_MAX_ATTEMPTS", "5").spawn()
    };
    let relays = [start(), start(), start()];
    wait_spread(&relays, &[5.0, 5.0, 6.0]).await;
    outbox
        .db
        .run("INSERT INTO outbox (routing_key, payload) VALUES ('nowhere', '1')")
        .await;
    outbox.wait_all_sent(60 * SECOND).await;
    assert_eq!(outbox.db.number("SELECT attempts::bigint FROM outbox").await, 5);
    let mut tries = 0.0;
    for relay in &relays {
        let series = "outbox_relay_publish_failures_total{reason=\"unroutable\"}";
        tries += relay.metric(series).await.unwrap_or(0.0);
    }
    assert_eq!(tries, 5.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_rows_due_at_once_are_sent_once_by_three_replicas() {
    let outbox = Outbox::on_postgres().await;
    let relays = [outbox.relay().spawn(), outbox.relay().spawn(), outbox.relay().spawn()];
    wait_spread(&relays, &[5.0, 5.0, 6.0]).await;
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    outbox
        .db
        .run(
            "INSERT INTO outbox (routing_key, payload, available_at)
             SELECT 'good', json_build_object('key', n, 'n', n), now() + interval '2 seconds' FROM generate_series(1, 10000) AS n",
        )
        .await;
    let received = consumer.wait_distinct(10_000, 60 * SECOND).await;
    outbox.wait_all_sent(30 * SECOND).await;
    let exactly = Arrived {
        distinct: 10_000,
        duplicates: 0,
    };
    assert_eq!(judge(&received), exactly);
    assert_eq!(consumer.count(), 10_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_partition_is_one_active_relay_with_standbys_that_take_over() {
    let outbox = Outbox::on_postgres().await;
    let start = || outbox.relay().env("RELAY_PARTITIONS", "1").spawn();
    let mut relays = vec![start(), start()];
    wait_spread(&relays, &[0.0, 1.0]).await;
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    outbox.insert(0, 100, 10).await;
    consumer.wait_distinct(100, 30 * SECOND).await;
    for relay in &relays {
        assert_eq!(relay.get("/readyz").await.0, 200, "a standby is ready");
    }
    let active = if owned(&relays[0]).await == 1.0 { 0 } else { 1 };
    let mut ended = relays.remove(active);
    ended.sigterm();
    assert!(ended.wait(30 * SECOND).await.success());
    outbox.insert(100, 100, 10).await;
    let received = consumer.wait_distinct(200, 30 * SECOND).await;
    assert_eq!(judge(&received).duplicates, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_partitions_can_be_changed_replica_by_replica() {
    let outbox = Outbox::on_postgres().await;
    let start = |partitions: &str| outbox.relay().env("RELAY_PARTITIONS", partitions).spawn();
    let mut old = [start("16"), start("16")];
    wait_spread(&old, &[8.0, 8.0]).await;
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let new = [start("10"), start("10")];
    let mut inserted = 0;
    for relay in &mut old {
        outbox.insert(inserted, 2_000, 100).await;
        inserted += 2_000;
        for waiting in &new {
            assert_eq!(
                owned(waiting).await,
                0.0,
                "no share of the new kind is owned beside the old ones"
            );
        }
        relay.sigterm();
        assert!(relay.wait(30 * SECOND).await.success());
    }
    wait_spread(&new, &[5.0, 5.0]).await;
    outbox.insert(inserted, 2_000, 100).await;
    inserted += 2_000;
    all_arrived_once(&outbox, &consumer, inserted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_relays_on_one_sqlite_file_take_turns() {
    let outbox = Outbox::on_sqlite().await;
    let mut relays = vec![outbox.relay().spawn(), outbox.relay().spawn()];
    wait_spread(&relays, &[0.0, 1.0]).await;
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    outbox.insert(0, 500, 50).await;
    consumer.wait_distinct(500, 30 * SECOND).await;
    let active = if owned(&relays[0]).await == 1.0 { 0 } else { 1 };
    let mut ended = relays.remove(active);
    ended.sigterm();
    assert!(ended.wait(30 * SECOND).await.success());
    outbox.insert(500, 500, 50).await;
    let received = consumer.wait_distinct(1_000, 30 * SECOND).await;
    assert_eq!(judge(&received).duplicates, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_on_two_tables_of_one_database_do_not_see_each_other() {
    let outbox = Outbox::on_postgres().await;
    crate::outbox::migrate(&outbox.database_url, &[("RELAY_OUTBOX_TABLE", "second")]).await;
    declare(&outbox.amqp_url, "events", "q2", Kind::Classic, &["second"]).await;
    let relays = [
        outbox.relay().spawn(),
        outbox.relay().env("RELAY_OUTBOX_TABLE", "second").spawn(),
    ];
    wait_spread(&relays, &[16.0, 16.0]).await;
    outbox.insert(0, 100, 10).await;
    outbox
        .db
        .run("INSERT INTO second (routing_key, payload) VALUES ('second', '1')")
        .await;
    let (first, second) = (
        Consumer::start(&outbox.amqp_url, "q"),
        Consumer::start(&outbox.amqp_url, "q2"),
    );
    first.wait_distinct(100, 30 * SECOND).await;
    second.wait_distinct(1, 30 * SECOND).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_transaction_is_open_and_no_insert_waits_while_the_broker_is_awaited() {
    let (postgres, rabbit) = tokio::join!(Postgres::start(), Rabbit::start());
    let outbox = Outbox::between(&postgres, &rabbit).await;
    let relay = outbox.relay().spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    outbox.insert(0, 100, 10).await;
    consumer.wait_distinct(100, 30 * SECOND).await;
    outbox.wait_all_sent(30 * SECOND).await;
    rabbit.freeze();
    outbox.insert(100, 5_000, 100).await;
    relay
        .wait_metric("outbox_relay_messages_in_flight", |value| value > 0.0, 20 * SECOND)
        .await;
    let mut writer = session(&outbox.database_url).await;
    for n in 0..50 {
        let open = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outbox-relay' AND state LIKE 'idle in transaction%'";
        assert_eq!(outbox.db.number(open).await, 0);
        writer.execute("BEGIN; SET LOCAL lock_timeout = '200ms'").await.unwrap();
        let insert =
            format!("INSERT INTO outbox (routing_key, payload) VALUES ('good', '{{\"key\": 5000, \"n\": {n}}}')");
        writer
            .execute(sqlx::AssertSqlSafe(insert))
            .await
            .expect("an insert never waits");
        writer.execute("COMMIT").await.unwrap();
    }
    rabbit.thaw();
    outbox.wait_all_sent(60 * SECOND).await;
}
