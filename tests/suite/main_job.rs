//! Committed rows reach RabbitMQ, confirmed, in order, and are marked: the real binary between real servers.

use crate::outbox::{Arrived, Outbox, SECOND, judge};
use crate::support::Consumer;

async fn rows_arrive_once_in_order_and_are_marked(outbox: Outbox) {
    let mut relay = outbox.relay().spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    for round in 0..5 {
        outbox.insert(round * 1_000, 1_000, 100).await;
    }
    let received = consumer.wait_distinct(5_000, 60 * SECOND).await;
    outbox.wait_all_sent(10 * SECOND).await;
    relay.sigterm();
    assert!(relay.wait(30 * SECOND).await.success());
    let quiet = Arrived {
        distinct: 5_000,
        duplicates: 0,
    };
    assert_eq!(judge(&received), quiet);
    assert_eq!(
        outbox
            .db
            .number("SELECT count(*) FROM outbox WHERE sent_at IS NULL")
            .await,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_arrive_once_in_order_and_are_marked_from_postgres() {
    rows_arrive_once_in_order_and_are_marked(Outbox::on_postgres().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_arrive_once_in_order_and_are_marked_from_mariadb() {
    rows_arrive_once_in_order_and_are_marked(Outbox::on_mariadb().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_arrive_once_in_order_and_are_marked_from_sqlite() {
    rows_arrive_once_in_order_and_are_marked(Outbox::on_sqlite().await).await;
}
