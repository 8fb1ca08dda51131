//! A broker that drops duplicates, from the row to the mark.

use std::net::SocketAddr;

use crate::outbox::{Outbox, SECOND};
use crate::support::{Consumer, Proxy, Rabbit, unbind, until};

/// The plug-in routes a duplicate nowhere, so that it comes back. Here the binding is taken away once the first copies are in the
/// queue: to the relay it is the same.
async fn a_copy_that_the_broker_drops_is_sent(outbox: Outbox) {
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], Rabbit::shared().await.port()))).await;
    let relay = outbox
        .relay()
        .env("RELAY_AMQP_URL", proxy.through(&outbox.amqp_url))
        .env("RELAY_AMQP_DEDUP_HEADER", "x-deduplication-header")
        .env("RELAY_RETRY_MAX_ATTEMPTS", "1")
        .spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    outbox.insert(0, 1, 1).await;
    outbox.wait_all_sent(30 * SECOND).await;

    // Each of a key of its own, so that all are in flight.
    proxy.hold_answers(true);
    outbox.insert(1, 50, 50).await;
    let first = consumer.wait_distinct(51, 30 * SECOND).await;
    assert_eq!(outbox.db.unsent().await, 50, "no confirm has come");
    unbind(&outbox.amqp_url, "events", "q", "good").await;
    proxy.cut();
    // The confirms are held until the relay has given them up.
    let given_up = "outbox_relay_publish_failures_total{reason=\"disconnected\"}";
    relay.wait_metric(given_up, |count| count >= 50.0, 30 * SECOND).await;
    proxy.hold_answers(false);

    outbox.wait_all_sent(60 * SECOND).await;
    let dead = "SELECT count(*) FROM outbox WHERE dead_at IS NOT NULL OR attempts > 0";
    assert_eq!(outbox.db.number(dead).await, 0);
    assert!(first.iter().all(|message| {
        let id = message.headers.inner().get("x-deduplication-header");
        id.and_then(|id| id.as_long_string())
            .is_some_and(|id| id.as_bytes() == message.message_id.as_bytes())
    }));
    relay
        .wait_metric(
            "outbox_relay_messages_published_total",
            |count| count >= 51.0,
            20 * SECOND,
        )
        .await;

    // One that was never published before, and that nobody is bound for, is a dead letter all the same.
    outbox.insert(51, 1, 1).await;
    until("a dead letter", 30 * SECOND, async || outbox.db.number(dead).await == 1).await;
    assert_eq!(consumer.count(), 51);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_the_broker_drops_is_sent_on_postgres() {
    a_copy_that_the_broker_drops_is_sent(Outbox::on_postgres().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_the_broker_drops_is_sent_on_sqlite() {
    a_copy_that_the_broker_drops_is_sent(Outbox::on_sqlite().await).await;
}
