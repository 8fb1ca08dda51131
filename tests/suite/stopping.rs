//! How the relay ends: signals, the grace, the drain, and what its exit code says.

use crate::outbox::{Arrived, Outbox, SECOND, judge};
use crate::support::{Consumer, Postgres, Rabbit, Relay};

async fn ten_stops_under_load(outbox: Outbox) {
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    for round in 0..10 {
        outbox.insert(round * 3_000, 3_000, 300).await;
        let mut relay = outbox.relay().spawn();
        // Its own count: what the consumer gets now may have been sent by the relay before, and a process that is not
        // yet listening to signals is ended by one.
        relay
            .wait_metric(
                "outbox_relay_messages_published_total",
                |published| published > 200.0,
                60 * SECOND,
            )
            .await;
        relay.sigterm();
        let status = relay.wait(25 * SECOND).await;
        assert!(status.success(), "{status}\n{}", relay.log_text());
    }
    let _last = outbox.relay().spawn();
    outbox.wait_all_sent(60 * SECOND).await;
    let received = consumer.wait_distinct(30_000, 60 * SECOND).await;
    let all = Arrived {
        distinct: 30_000,
        duplicates: 0,
    };
    assert_eq!(judge(&received), all);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_stops_under_load_send_nothing_twice_and_lose_nothing() {
    ten_stops_under_load(Outbox::on_postgres().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_stops_under_load_send_nothing_twice_and_lose_nothing_on_mariadb() {
    ten_stops_under_load(Outbox::on_mariadb().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_the_broker_takes_nothing_ends_with_the_grace() {
    let (postgres, rabbit) = tokio::join!(Postgres::start(), Rabbit::start());
    let outbox = Outbox::between(&postgres, &rabbit).await;
    let mut relay = outbox.relay().env("RELAY_SHUTDOWN_GRACE", "2s").spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    outbox.insert(0, 10, 10).await;
    consumer.wait_distinct(10, 30 * SECOND).await;
    rabbit.memory_alarm(true).await;
    outbox.insert(10, 100, 10).await;
    relay
        .wait_metric("outbox_relay_broker_blocked", |value| value == 1.0, 20 * SECOND)
        .await;
    relay.sigterm();
    let status = relay.wait(10 * SECOND).await;
    assert_eq!(status.code(), Some(1), "messages in flight were not settled");
    assert!(relay.log_text().contains("may be sent again"), "{}", relay.log_text());
    rabbit.memory_alarm(false).await;
    let _next = outbox.relay().spawn();
    outbox.wait_all_sent(60 * SECOND).await;
    let received = consumer.wait_distinct(110, 30 * SECOND).await;
    assert_eq!(judge(&received).distinct, 110);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_at_once() {
    let (postgres, rabbit) = tokio::join!(Postgres::start(), Rabbit::start());
    let outbox = Outbox::between(&postgres, &rabbit).await;
    let mut relay = outbox.relay().env("RELAY_SHUTDOWN_GRACE", "10m").spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    outbox.insert(0, 10, 10).await;
    consumer.wait_distinct(10, 30 * SECOND).await;
    // What a consumer has, the relay may not know to be confirmed yet.
    outbox.wait_all_sent(30 * SECOND).await;
    rabbit.freeze();
    outbox.insert(10, 100, 10).await;
    relay
        .wait_metric("outbox_relay_messages_in_flight", |value| value > 0.0, 20 * SECOND)
        .await;
    relay.sigterm();
    crate::support::until("it is stopping", 10 * SECOND, async || {
        relay.log_text().contains("\"stopping\"")
    })
    .await;
    relay.sigint();
    assert_eq!(relay.wait(5 * SECOND).await.code(), Some(1));
    rabbit.thaw();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_the_broker_is_away_is_clean() {
    let (postgres, rabbit) = tokio::join!(Postgres::start(), Rabbit::start());
    let outbox = Outbox::between(&postgres, &rabbit).await;
    rabbit.kill9().await;
    let mut relay = outbox.relay().spawn();
    outbox.insert(0, 100, 10).await;
    relay.admin().await;
    relay.sigterm();
    assert!(relay.wait(10 * SECOND).await.success());
    assert_eq!(outbox.db.unsent().await, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_drain_on_the_rest_leaves_before_the_end() {
    let outbox = Outbox::on_postgres().await;
    outbox.insert(0, 20_000, 500).await;
    let mut relay = outbox.relay().env("RELAY_SHUTDOWN_DRAIN", "true").spawn();
    relay.admin().await;
    relay.sigterm();
    let status = relay.wait(60 * SECOND).await;
    assert!(status.success(), "{}", relay.log_text());
    assert_eq!(outbox.db.unsent().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_when_sent_if_asked() {
    for outbox in [
        Outbox::on_postgres().await,
        Outbox::on_mariadb().await,
        Outbox::on_sqlite().await,
    ] {
        let mut relay = outbox.relay().env("RELAY_OUTBOX_ON_SENT", "delete").spawn();
        let consumer = Consumer::start(&outbox.amqp_url, "q");
        outbox.insert(0, 2_000, 100).await;
        let received = consumer.wait_distinct(2_000, 60 * SECOND).await;
        relay.sigterm();
        assert!(relay.wait(30 * SECOND).await.success());
        assert_eq!(outbox.db.number("SELECT count(*) FROM outbox").await, 0);
        assert_eq!(judge(&received).duplicates, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_configuration_is_told_at_once_and_whole() {
    let env = [
        ("RELAY_DATABASE_URL", "oracle://scott:tiger@db/orcl"),
        ("RELAY_ORDERING", "sometimes"),
        ("RELAY_LEASE_TTL", "10"),
        ("RELAY_POLL_BATCH_SIZ", "10"),
    ];
    let (status, _, err) = Relay::run_to_end(&["run"], &env).await;
    assert_eq!(status.code(), Some(64), "{err}");
    for variable in [
        "RELAY_DATABASE_URL",
        "RELAY_AMQP_URL",
        "RELAY_ORDERING",
        "RELAY_LEASE_TTL",
    ] {
        assert!(err.contains(variable), "{variable} is not named: {err}");
    }
    assert!(!err.contains("tiger"), "{err}");
    let (status, out, _) = Relay::run_to_end(&["--help"], &[]).await;
    assert!(status.success() && out.contains("RELAY_DATABASE_URL"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_line_by_line_what_fits_and_what_does_not() {
    for outbox in [Outbox::on_postgres().await, Outbox::on_mariadb().await] {
        check_says(&outbox).await;
    }
}

async fn check_says(outbox: &Outbox) {
    let good = [
        ("RELAY_DATABASE_URL", outbox.database_url.as_str()),
        ("RELAY_AMQP_URL", &outbox.amqp_url),
        ("RELAY_AMQP_EXCHANGE", "events"),
    ];
    let (status, out, err) = Relay::run_to_end(&["check"], &good).await;
    assert!(
        status.success() && out.lines().all(|line| line.starts_with("ok")),
        "{out}{err}"
    );
    let mut bad = good.to_vec();
    bad.extend([
        ("RELAY_OUTBOX_TABLE", "nowhere"),
        ("RELAY_AMQP_EXCHANGE", "missing"),
        ("RELAY_POLL_BATCH_SIZ", "1"),
    ]);
    let (status, out, _) = Relay::run_to_end(&["check"], &bad).await;
    assert_eq!(status.code(), Some(1));
    for expected in ["RELAY_POLL_BATCH_SIZE", "outbox-relay migrate", "no exchange 'missing'"] {
        assert!(out.contains(expected), "{expected}: {out}");
    }
}
