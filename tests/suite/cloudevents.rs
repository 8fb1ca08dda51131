//! CloudEvents, read by a library of another language, out of the table that `migrate` makes and out of one of the application's.

use std::time::Duration;

use serde_json::{Value, json};

use crate::outbox::{Outbox, SECOND};
use crate::support::{python, until};

const MODES: [(&str, &str); 4] = [
    ("cloudevents-binary", "cloudEvents_"),
    ("cloudevents-binary", "cloudEvents:"),
    ("cloudevents-binary", "ce-"),
    ("cloudevents-structured", "cloudEvents_"),
];

/// Publishes what is in the table, and reads `count` events.
async fn events(outbox: &Outbox, (format, prefix): (&str, &str), more: &[(&str, &str)], count: usize) -> Vec<Value> {
    let relay = outbox
        .relay()
        .env("RELAY_MESSAGE_FORMAT", format)
        .env("RELAY_CLOUDEVENTS_PREFIX", prefix);
    let mut relay = more
        .iter()
        .fold(relay, |relay, (name, value)| relay.env(name, value))
        .spawn();
    let printed = python::run("read_cloudevents.py", &[&outbox.amqp_url, "q", &count.to_string()]).await;
    let events: Vec<Value> = printed
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(events.len(), count);
    // The next one neither waits for its leases nor repeats what was not marked.
    relay.sigterm();
    assert!(relay.wait(Duration::from_secs(30)).await.success());
    events
}

/// With a column more than `migrate` makes.
async fn out_of_the_table_of_the_relay(outbox: Outbox) {
    outbox.db.run("ALTER TABLE outbox ADD COLUMN tenant varchar(20)").await;
    let variables = [
        ("RELAY_CLOUDEVENTS_SOURCE", "https://shop.example.com/{tenant}"),
        ("RELAY_CLOUDEVENTS_SUBJECT", "{ordering_key}"),
        ("RELAY_CLOUDEVENTS_DATASCHEMA", "https://schemas.example.com/v1"),
        ("RELAY_CLOUDEVENTS_EXTENSIONS", "tenantid={tenant},gone={exchange}"),
    ];
    for mode in MODES {
        outbox
            .db
            .run(
                "INSERT INTO outbox (routing_key, ordering_key, type, payload, tenant, created_at)
                 VALUES ('good', 'order-1', 'order.placed', '{\"n\": 1}', 'a1', '2026-01-02 03:04:05.678')",
            )
            .await;
        let events = events(&outbox, mode, &variables, 1).await;
        let (attributes, id) = (&events[0]["attributes"], &events[0]["message_id"]);
        assert_eq!(
            *attributes,
            json!({
                "specversion": "1.0", "id": id, "source": "https://shop.example.com/a1", "type": "order.placed",
                "subject": "order-1", "dataschema": "https://schemas.example.com/v1", "tenantid": "a1",
                "datacontenttype": "application/json", "time": "2026-01-02T03:04:05.678000+00:00"
            }),
            "{mode:?}"
        );
        assert_eq!(events[0]["data"], json!({"n": 1}));
        outbox.wait_all_sent(20 * SECOND).await;
    }
    // A type is missing: a dead letter that says what to do.
    outbox
        .db
        .run("INSERT INTO outbox (routing_key, payload, tenant) VALUES ('good', '{}', 'a')")
        .await;
    let relay = outbox
        .relay()
        .env("RELAY_MESSAGE_FORMAT", MODES[0].0)
        .env("RELAY_CLOUDEVENTS_SOURCE", "/{tenant}");
    let _relay = relay.spawn();
    let dead = "SELECT count(*) FROM outbox WHERE dead_at IS NOT NULL";
    until("a dead letter", 20 * SECOND, async || outbox.db.number(dead).await == 1).await;
    let error = outbox
        .db
        .text("SELECT last_error FROM outbox WHERE dead_at IS NOT NULL")
        .await;
    assert!(error.is_some_and(|error| error.contains("RELAY_CLOUDEVENTS_TYPE")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tables_of_the_relay_on_postgres() {
    out_of_the_table_of_the_relay(Outbox::on_postgres().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tables_of_the_relay_on_mariadb() {
    out_of_the_table_of_the_relay(Outbox::on_mariadb().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tables_of_the_relay_on_sqlite() {
    out_of_the_table_of_the_relay(Outbox::on_sqlite().await).await;
}

/// Every kind of data, out of a table that the application had already.
async fn out_of_an_existing_table(database: &str, key: &str, bytes: &str) {
    let outbox = Outbox::without_tables(database, &["r"]).await;
    let create = format!("CREATE TABLE e (id {key}, kind varchar(99), media varchar(99), body {bytes})");
    outbox.db.run(&create).await;
    let variables = [
        ("RELAY_OUTBOX_TABLE", "e"),
        ("RELAY_OUTBOX_ON_SENT", "delete"),
        ("RELAY_ROUTING_KEY", "r"),
        ("RELAY_COLUMN_PAYLOAD", "body"),
        ("RELAY_COLUMN_CONTENT_TYPE", "media"),
        ("RELAY_ORDERING", "strict"),
        ("RELAY_COLUMN_ORDERING_KEY", "kind"),
        ("RELAY_CLOUDEVENTS_SOURCE", "/e"),
        ("RELAY_CLOUDEVENTS_TYPE", "com.example.{kind}.v2"),
    ];
    let (code, out, err) = outbox.command(&["migrate"], &variables).await;
    assert_eq!(code, Some(0), "{out}{err}");
    let hex = |hex: &str| {
        if database == "postgres" {
            format!("'\\x{hex}'")
        } else {
            format!("x'{hex}'")
        }
    };
    for mode in [MODES[0], MODES[3]] {
        for (media, body) in [
            ("application/json", "5b312c20325d".to_owned()),
            ("text/plain", "c3a90a".to_owned()),
            ("application/x", "ff00".to_owned()),
        ] {
            let body = hex(&body);
            let insert = format!("INSERT INTO e (kind, media, body) VALUES ('made', '{media}', {body})");
            outbox.db.run(&insert).await;
        }
        let events = events(&outbox, mode, &variables, 3).await;
        let data: Vec<_> = events.iter().map(|event| &event["data"]).collect();
        assert_eq!(
            data,
            [&json!([1, 2]), &json!("é\n"), &json!({"hex": "ff00"})],
            "{mode:?}"
        );
        assert!(
            events
                .iter()
                .all(|event| event["attributes"]["type"] == "com.example.made.v2")
        );
        until("all are gone", 20 * SECOND, async || {
            outbox.db.number("SELECT count(*) FROM e").await == 0
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_existing_table_on_postgres() {
    out_of_an_existing_table("postgres", "bigserial PRIMARY KEY", "bytea").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_existing_table_on_mariadb() {
    out_of_an_existing_table("mariadb", "bigint AUTO_INCREMENT PRIMARY KEY", "blob").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_existing_table_on_sqlite() {
    out_of_an_existing_table("sqlite", "INTEGER PRIMARY KEY AUTOINCREMENT", "BLOB").await;
}
