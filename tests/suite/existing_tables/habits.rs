//! Tables with habits of their own: of the Go library Watermill, and of SQLite without `AUTOINCREMENT`.

use sqlx::{Connection as _, Executor as _, PgConnection};

use super::{DEBEZIUM, insert_event, migrate, with};
use crate::outbox::{Outbox, SECOND};
use crate::support::{Consumer, until};

/// As https://watermill.io/pubsubs/sql/ makes it for the topic "orders".
#[tokio::test(flavor = "multi_thread")]
async fn a_watermill_table_is_relayed() {
    let outbox = Outbox::without_tables("postgres", &["orders"]).await;
    outbox
        .db
        .run(
            "CREATE TABLE watermill_orders (
                 \"offset\" BIGSERIAL, \"uuid\" VARCHAR(36) NOT NULL, \"created_at\" TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
                 \"payload\" JSON DEFAULT NULL, \"metadata\" JSON DEFAULT NULL, \"transaction_id\" xid8 NOT NULL,
                 PRIMARY KEY (\"transaction_id\", \"offset\"))",
        )
        .await;
    let variables = [
        ("RELAY_PRESET", "watermill"),
        ("RELAY_OUTBOX_TABLE", "watermill_orders"),
        ("RELAY_ROUTING_KEY", "orders"),
    ];
    migrate(&outbox, &variables).await;
    outbox
        .db
        .run(
            "INSERT INTO watermill_orders (uuid, payload, metadata, transaction_id)
             VALUES ('01890b2e-0000-7000-8000-000000000001', '{\"id\": 1}', '{\"name\": \"placed\"}', pg_current_xact_id())",
        )
        .await;
    let (code, out, _) = outbox.command(&["check"], &variables).await;
    assert!(
        code == Some(1) && out.contains("no index of unsent rows"),
        "its key begins with another column: {out}"
    );
    let (_, advice) = out.split_once("make it: ").expect("advice");
    outbox.db.run(advice.lines().next().expect("a line")).await;
    let (code, out, _) = outbox.command(&["check"], &variables).await;
    assert_eq!(code, Some(0), "{out}");
    let _relay = with(&outbox, &variables).spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let received = consumer.wait_distinct(1, 30 * SECOND).await;
    assert_eq!(received[0].message_id, "01890b2e-0000-7000-8000-000000000001");
    assert_eq!(received[0].text(), "{\"id\": 1}");
    assert!(received[0].headers.inner().contains_key("name") && received[0].properties.timestamp().is_some());
    until("it is gone", 20 * SECOND, async || {
        outbox.db.number("SELECT count(*) FROM watermill_orders").await == 0
    })
    .await;
}

/// Another relay is at the numbers, so that this one cannot look: what it has not seen is not "nothing there".
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_does_not_end_before_rows_without_a_number_were_looked_for() {
    let outbox = Outbox::without_tables("postgres", &["Order.Made"]).await;
    outbox.db.run(super::debezium("postgres")).await;
    migrate(&outbox, DEBEZIUM).await;
    let mut other = PgConnection::connect(&outbox.database_url).await.expect("a connection");
    let lock = "BEGIN; SELECT pg_advisory_xact_lock(hashtextextended('outboxevent', 122550254464888))";
    other.execute(lock).await.expect("locked");
    insert_event(&outbox, "postgres", "1", "Made", "'{}'").await;
    let mut relay = with(&outbox, DEBEZIUM).env("RELAY_SHUTDOWN_DRAIN", "true").spawn();
    let polls = "outbox_relay_polls_total{outcome=\"empty\"}";
    let before = relay.wait_metric(polls, |polls| polls > 1.0, 20 * SECOND).await;
    relay.sigterm();
    relay
        .wait_metric(polls, |polls| polls > before + 10.0, 20 * SECOND)
        .await;
    other.execute("COMMIT").await.expect("released");
    let status = relay.wait(30 * SECOND).await;
    assert!(status.success(), "{}", relay.log_text());
    assert_eq!(outbox.db.number("SELECT count(*) FROM outboxevent").await, 0);
}

/// Once its row is deleted, an id is given again: what is known of the old row must not be taken for the new one.
#[tokio::test(flavor = "multi_thread")]
async fn ids_that_sqlite_gives_again_are_other_rows() {
    let outbox = Outbox::without_tables("sqlite", &["r"]).await;
    outbox
        .db
        .run("CREATE TABLE events (id INTEGER PRIMARY KEY, payload TEXT)")
        .await;
    let variables = [
        ("RELAY_OUTBOX_TABLE", "events"),
        ("RELAY_OUTBOX_ON_SENT", "delete"),
        ("RELAY_ROUTING_KEY", "r"),
        // No sweep comes within the test.
        ("RELAY_POLL_SWEEP_INTERVAL", "50s"),
    ];
    migrate(&outbox, &variables).await;
    let _relay = with(&outbox, &variables).spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    for n in 1..=10 {
        outbox
            .db
            .run(&format!("INSERT INTO events (payload) VALUES ('{n}')"))
            .await;
        assert_eq!(
            outbox.db.number("SELECT max(id) FROM events").await,
            1,
            "the same id each time"
        );
        // Their message ids repeat, too: they are made of the id.
        let received = consumer.wait_for(|received| received.len() >= n, 10 * SECOND).await;
        assert_eq!(received[n - 1].text(), n.to_string());
        until("it is gone", 10 * SECOND, async || {
            outbox.db.number("SELECT count(*) FROM events").await == 0
        })
        .await;
    }
}
