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

/// As documented the table has no key: two rows of one id are two messages, and a key can be made while rows wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_debezium_table_without_a_key_loses_and_repeats_nothing() {
    let outbox = Outbox::without_tables("postgres", &["Order.Made"]).await;
    outbox.db.run(super::debezium("postgres")).await;
    migrate(&outbox, DEBEZIUM).await;
    let (code, out, _) = outbox.command(&["check"], DEBEZIUM).await;
    assert_eq!(code, Some(0), "{out}");
    let warning = out
        .lines()
        .find(|line| line.starts_with("warning table"))
        .expect("a warning");
    let (_, index) = warning.split_once("mends both: ").expect("advice");
    let relay = with(&outbox, DEBEZIUM).spawn();
    until("it is said at the start", 20 * SECOND, async || {
        relay
            .log_text()
            .contains("nothing keeps two rows from having the same id")
    })
    .await;
    let twice = |n: i64| {
        format!(
            "INSERT INTO outboxevent (id, aggregatetype, aggregateid, type, payload)
             VALUES ('4d47e190-0402-4048-bc2c-89dd54343cdc', 'Order', '1', 'Made', '{n}')"
        )
    };
    outbox.db.run(&format!("{}; {}", twice(1), twice(2))).await;
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let received = consumer.wait_for(|received| received.len() >= 2, 30 * SECOND).await;
    assert_eq!([received[0].text(), received[1].text()], ["1", "2"]);
    assert_eq!(received[0].message_id, received[1].message_id);
    until("they are gone", 20 * SECOND, async || {
        outbox.db.number("SELECT count(*) FROM outboxevent").await == 0
    })
    .await;
    drop(relay);
    // The broker is away, rows wait with numbers, one is given up: then there is a key.
    for n in 3..6 {
        insert_event(&outbox, "postgres", "1", "Made", &format!("'{n}'")).await;
    }
    insert_event(&outbox, "postgres", "2", "Unwanted", "'0'").await;
    let numbers = "SELECT count(*) FROM outbox_relay_positions";
    let away = format!("amqp://127.0.0.1:{}", crate::support::free_port());
    let relay = with(&outbox, DEBEZIUM).env("RELAY_AMQP_URL", &away).spawn();
    until("they are numbered", 20 * SECOND, async || {
        outbox.db.number(numbers).await == 4
    })
    .await;
    drop(relay);
    outbox
        .db
        .run("INSERT INTO outbox_relay_failures SELECT outbox, max(position), 1, NULL, 'unroutable', now() FROM outbox_relay_positions GROUP BY 1")
        .await;
    outbox.db.run(index).await;
    let (_, out, _) = outbox.command(&["check"], DEBEZIUM).await;
    assert!(!out.contains("warning table"), "{out}");
    let _relay = with(&outbox, DEBEZIUM).spawn();
    let received = consumer.wait_for(|received| received.len() >= 5, 30 * SECOND).await;
    let texts: Vec<_> = received[2..].iter().map(|message| message.text()).collect();
    assert_eq!(texts, ["3", "4", "5"]);
    until("only what was given up is left", 20 * SECOND, async || {
        outbox.db.number("SELECT count(*) FROM outboxevent").await == 1 && outbox.db.number(numbers).await == 1
    })
    .await;
    let (_, out, _) = outbox.command(&["dead-letters", "list"], DEBEZIUM).await;
    assert!(out.contains("Order.Unwanted"), "{out}");
}

/// Another relay is at the numbers, so that this one cannot look: what it has not seen is not "nothing there".
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_does_not_end_before_rows_without_a_number_were_looked_for() {
    let outbox = Outbox::without_tables("postgres", &["Order.Made"]).await;
    outbox.db.run(super::debezium("postgres")).await;
    migrate(&outbox, DEBEZIUM).await;
    let mut other = PgConnection::connect(&outbox.database_url).await.expect("a connection");
    let lock = "BEGIN; SELECT pg_advisory_xact_lock(1869509997::bigint << 32 | 'outboxevent'::regclass::oid::bigint)";
    other.execute(lock).await.expect("locked");
    insert_event(&outbox, "postgres", "1", "Made", "'{}'").await;
    let mut relay = with(&outbox, DEBEZIUM).env("RELAY_SHUTDOWN_DRAIN", "true").spawn();
    let polls = "outbox_relay_polls_total{outcome=\"empty\"}";
    let before = relay.wait_metric(polls, |polls| polls > 1.0, 20 * SECOND).await;
    relay.sigterm();
    relay
        .wait_metric(polls, |polls| polls > before + 10.0, 20 * SECOND)
        .await;
    let kept_away = "another session has the lock under which rows are numbered";
    until("it is said that this is long", 30 * SECOND, async || {
        relay.log_text().contains(kept_away)
    })
    .await;
    let polled = relay.wait_metric(polls, |_| true, 20 * SECOND).await;
    relay
        .wait_metric(polls, |polls| polls > polled + 10.0, 20 * SECOND)
        .await;
    other.execute("COMMIT").await.expect("released");
    let status = relay.wait(30 * SECOND).await;
    let log = relay.log_text();
    assert!(status.success(), "{log}");
    assert_eq!(log.matches(kept_away).count(), 1, "once, and not at every look");
    assert!(log.contains("rows can be numbered here again"), "{log}");
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
        // Other messages, by their ids as well.
        let received = consumer.wait_distinct(n, 10 * SECOND).await;
        assert_eq!(received[n - 1].text(), n.to_string());
        until("it is gone", 10 * SECOND, async || {
            outbox.db.number("SELECT count(*) FROM events").await == 0
        })
        .await;
    }
}

/// Like the table that `migrate` makes, but that ids are given again: it works, and is told how to be mended.
#[tokio::test(flavor = "multi_thread")]
async fn a_standard_table_whose_ids_sqlite_gives_again_is_warned_of() {
    let outbox = Outbox::on_sqlite().await;
    let made = "SELECT sql FROM sqlite_schema WHERE name = 'outbox'";
    let made = outbox.db.text(made).await.expect("a table");
    assert!(made.contains("AUTOINCREMENT"), "{made}");
    outbox.db.run("DROP TABLE outbox").await;
    outbox.db.run(&made.replace("AUTOINCREMENT", "")).await;
    outbox
        .db
        .run("CREATE INDEX outbox_relay_unsent_2 ON outbox (id) WHERE sent_at IS NULL")
        .await;
    let (_, out, _) = outbox.command(&["check"], &[]).await;
    assert!(!out.contains("AUTOINCREMENT"), "rows that are marked stay: {out}");
    let delete = ("RELAY_OUTBOX_ON_SENT", "delete");
    let warning = "warning table: id has no AUTOINCREMENT";
    let (_, out, _) = outbox.command(&["check"], &[delete]).await;
    assert!(out.contains(warning), "{out}");
    let relay = with(&outbox, &[delete]).spawn();
    until("it is said at the start", 20 * SECOND, async || {
        relay.log_text().contains("id has no AUTOINCREMENT")
    })
    .await;
    drop(relay);
    // As it advises.
    let mended = [delete, ("RELAY_COLUMN_ID", "id"), ("RELAY_POLL_SWEEP_INTERVAL", "50s")];
    migrate(&outbox, &mended).await;
    let (_, out, _) = outbox.command(&["check"], &mended).await;
    assert!(!out.contains(warning), "{out}");
    let _relay = with(&outbox, &mended).spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    for n in 1..=3 {
        outbox
            .db
            .run(&format!(
                "INSERT INTO outbox (routing_key, payload) VALUES ('good', '{n}')"
            ))
            .await;
        consumer.wait_distinct(n, 30 * SECOND).await;
        until("it is gone", 10 * SECOND, async || {
            outbox.db.number("SELECT count(*) FROM outbox").await == 0
        })
        .await;
    }
}

/// PostgreSQL's message ids can be text, too.
#[tokio::test(flavor = "multi_thread")]
async fn message_ids_of_the_standard_table_can_be_text() {
    let outbox = Outbox::on_postgres().await;
    outbox
        .db
        .run("ALTER TABLE outbox ALTER COLUMN message_id DROP DEFAULT, ALTER COLUMN message_id TYPE text")
        .await;
    outbox
        .db
        .run("INSERT INTO outbox (routing_key, message_id, payload) VALUES ('good', 'order-7/1', '1'), ('bad', 'order-7/2', '1')")
        .await;
    let (code, out, _) = outbox.command(&["check"], &[]).await;
    assert_eq!(code, Some(0), "{out}");
    let _relay = outbox.relay().env("RELAY_RETRY_MAX_ATTEMPTS", "1").spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    assert_eq!(consumer.wait_distinct(1, 30 * SECOND).await[0].message_id, "order-7/1");
    outbox.wait_all_sent(20 * SECOND).await;
    let (_, out, _) = outbox.command(&["dead-letters", "list", "--json"], &[]).await;
    assert!(out.contains("order-7/2"), "{out}");
}
