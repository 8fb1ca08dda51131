//! Tables that the application made before it knew of the relay, by the real binary.

use std::collections::HashMap;

use crate::outbox::{Outbox, SECOND};
use crate::support::{Consumer, Received, Relay, RelayCommand, until};

mod bad_input;
mod habits;
mod names;

use names::names_templates_and_headers_are_what_the_variables_say;

/// A test for each database.
macro_rules! everywhere {
    ($($name:ident)*) => {
        $(mod $name {
            #[tokio::test(flavor = "multi_thread")]
            async fn on_postgres() {
                super::$name("postgres").await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn on_mariadb() {
                super::$name("mariadb").await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn on_sqlite() {
                super::$name("sqlite").await;
            }
        })*
    };
}

everywhere! {
    a_debezium_table_is_relayed_as_it_is
    rows_stay_until_they_are_confirmed_and_two_relays_share_them
    names_templates_and_headers_are_what_the_variables_say
    message_ids_are_of_any_type
    refusals_without_columns_are_seen_replayed_and_discarded
}

fn with(outbox: &Outbox, variables: &[(&str, &str)]) -> RelayCommand {
    variables
        .iter()
        .fold(outbox.relay(), |relay, (name, value)| relay.env(name, value))
}

async fn migrate(outbox: &Outbox, variables: &[(&str, &str)]) {
    let (code, out, err) = outbox.command(&["migrate"], variables).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("is the application's"), "{out}");
}

fn debezium(database: &str) -> &'static str {
    match database {
        // https://debezium.io/documentation/reference/stable/transformations/outbox-event-router.html
        "postgres" => {
            "CREATE TABLE outboxevent (
                 id uuid NOT NULL, aggregatetype character varying(255) NOT NULL,
                 aggregateid character varying(255) NOT NULL, type character varying(255) NOT NULL, payload jsonb)"
        }
        "mariadb" => {
            "CREATE TABLE outboxevent (
                 id binary(16) NOT NULL PRIMARY KEY, aggregatetype varchar(255) NOT NULL,
                 aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload json,
                 made timestamp(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6))"
        }
        _ => {
            "CREATE TABLE outboxevent (
                 id TEXT NOT NULL PRIMARY KEY, aggregatetype TEXT NOT NULL, aggregateid TEXT NOT NULL, type TEXT NOT NULL,
                 payload TEXT)"
        }
    }
}

const DEBEZIUM: &[(&str, &str)] = &[("RELAY_PRESET", "debezium"), ("RELAY_OUTBOX_TABLE", "outboxevent")];

/// Of rows that are found at once, MariaDB tells nothing but their random ids: with a time there is an order.
fn ordered(database: &str) -> Vec<(&'static str, &'static str)> {
    let made = ("RELAY_COLUMN_CREATED_AT", "made");
    DEBEZIUM
        .iter()
        .copied()
        .chain((database == "mariadb").then_some(made))
        .collect()
}

/// A random id as SQL.
fn id(database: &str) -> String {
    let id = uuid::Uuid::new_v4();
    match database {
        "mariadb" => format!("x'{}'", id.simple()),
        _ => format!("'{id}'"),
    }
}

async fn insert_event(outbox: &Outbox, database: &str, aggregate: &str, kind: &str, payload: &str) {
    let id = id(database);
    outbox
        .db
        .run(&format!(
            "INSERT INTO outboxevent (id, aggregatetype, aggregateid, type, payload)
             VALUES ({id}, 'Order', '{aggregate}', '{kind}', {payload})"
        ))
        .await;
}

fn numbers(received: &[Received]) -> HashMap<String, Vec<i64>> {
    let mut keys: HashMap<String, Vec<i64>> = HashMap::new();
    for message in received {
        let body: serde_json::Value = serde_json::from_slice(&message.body).expect("json");
        let key = body["key"].as_str().expect("a key").to_owned();
        keys.entry(key).or_default().push(body["n"].as_i64().expect("a number"));
    }
    keys
}

async fn a_debezium_table_is_relayed_as_it_is(database: &str) {
    let variables = &ordered(database)[..];
    let outbox = Outbox::without_tables(database, &["Order.OrderCreated", "Order.OrderDeleted"]).await;
    outbox.db.run(debezium(database)).await;
    insert_event(&outbox, database, "1", "OrderCreated", "'{\"key\": \"1\", \"n\": 0}'").await;
    migrate(&outbox, variables).await;
    let (code, out, _) = outbox.command(&["check"], variables).await;
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains("routing_key ← \"{aggregatetype}.{type}\""), "{out}");
    let relay = with(&outbox, variables).env("RELAY_RETRY_MAX_ATTEMPTS", "1").spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let first = consumer.wait_distinct(1, 30 * SECOND).await;
    assert_eq!(first[0].routing_key, "Order.OrderCreated");
    let kind = first[0].properties.kind().as_ref().map(ToString::to_string);
    assert_eq!(kind.as_deref(), Some("OrderCreated"));
    uuid::Uuid::parse_str(&first[0].message_id).expect("the id of the row");
    assert_eq!(first[0].message_id.len(), 36);
    // Where nobody knows when it was made, there is none.
    let timed = variables.len() > DEBEZIUM.len();
    assert_eq!(first[0].properties.timestamp().is_some(), timed);
    for n in 1..40 {
        let (key, kind) = (n % 3, if n % 2 == 0 { "OrderCreated" } else { "OrderDeleted" });
        let payload = format!("'{{\"key\": \"{key}\", \"n\": {n}}}'");
        insert_event(&outbox, database, &key.to_string(), kind, &payload).await;
    }
    // A tombstone, and one that nobody wants.
    consumer.wait_distinct(40, 30 * SECOND).await;
    insert_event(&outbox, database, "1", "OrderDeleted", "NULL").await;
    insert_event(&outbox, database, "2", "Unwanted", "'{}'").await;
    let received = consumer.wait_distinct(41, 30 * SECOND).await;
    assert!(received[40].body.is_empty());
    for (key, numbers) in numbers(&received[..40]) {
        let mut sorted = numbers.clone();
        sorted.sort_unstable();
        // Each was committed before the next.
        assert_eq!(numbers, sorted, "{key}");
        sorted.dedup();
        assert_eq!(sorted.len(), numbers.len(), "{key}: {numbers:?}");
    }
    let dead = "SELECT count(*) FROM outbox_relay_failures WHERE dead_at IS NOT NULL";
    until("a dead letter", 20 * SECOND, async || outbox.db.number(dead).await == 1).await;
    until("all others are gone", 20 * SECOND, async || {
        outbox.db.number("SELECT count(*) FROM outboxevent").await == 1
    })
    .await;
    assert_eq!(
        outbox
            .db
            .number("SELECT count(*) FROM outbox_relay_positions WHERE outbox <> ''")
            .await,
        1
    );
    drop(relay);
    let (code, out, err) = outbox
        .command(&["dead-letters", "discard", "--all", "--yes"], variables)
        .await;
    assert_eq!(code, Some(0), "{out}{err}");
    for table in ["outboxevent", "outbox_relay_positions", "outbox_relay_failures"] {
        let sql = match table {
            // Beside the row that is locked by who numbers.
            "outbox_relay_positions" => format!("SELECT count(*) FROM {table} WHERE outbox <> ''"),
            _ => format!("SELECT count(*) FROM {table}"),
        };
        assert_eq!(outbox.db.number(&sql).await, 0, "{table}");
    }
}

async fn rows_stay_until_they_are_confirmed_and_two_relays_share_them(database: &str) {
    let variables = &ordered(database)[..];
    let outbox = Outbox::without_tables(database, &["Order.Made"]).await;
    outbox.db.run(debezium(database)).await;
    migrate(&outbox, variables).await;
    for n in 0..30 {
        let key = n % 5;
        let payload = format!("'{{\"key\": \"{key}\", \"n\": {n}}}'");
        insert_event(&outbox, database, &key.to_string(), "Made", &payload).await;
    }
    let away = format!("amqp://127.0.0.1:{}", crate::support::free_port());
    let relay = with(&outbox, variables).env("RELAY_AMQP_URL", &away).spawn();
    until("the rows are known", 20 * SECOND, async || {
        outbox
            .db
            .number("SELECT count(*) FROM outbox_relay_positions WHERE outbox <> ''")
            .await
            == 30
    })
    .await;
    let (_, out, _) = outbox.command(&["status", "--json"], variables).await;
    let report: serde_json::Value = serde_json::from_str(&out).expect("json");
    assert_eq!(report["backlog"]["pending"], 30, "{report:#}");
    drop(relay);
    assert_eq!(outbox.db.number("SELECT count(*) FROM outboxevent").await, 30);
    let _relays = [with(&outbox, variables).spawn(), with(&outbox, variables).spawn()];
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    // A writer for each key, all at once.
    let write = async |key: i64| {
        for n in (30 + key..330).step_by(5) {
            let payload = format!("'{{\"key\": \"{key}\", \"n\": {n}}}'");
            insert_event(&outbox, database, &key.to_string(), "Made", &payload).await;
        }
    };
    tokio::join!(write(0), write(1), write(2), write(3), write(4));
    let received = consumer.wait_distinct(330, 60 * SECOND).await;
    for (key, numbers) in numbers(&received) {
        let first: i64 = key.parse().expect("a number");
        assert_eq!(
            numbers,
            (first..330).step_by(5).collect::<Vec<_>>(),
            "each once, in order"
        );
    }
    until("nothing is left", 20 * SECOND, async || {
        outbox.db.number("SELECT count(*) FROM outboxevent").await
            + outbox
                .db
                .number("SELECT count(*) FROM outbox_relay_positions WHERE outbox <> ''")
                .await
            == 0
    })
    .await;
}

async fn message_ids_are_of_any_type(database: &str) {
    let outbox = Outbox::without_tables(database, &["r"]).await;
    let key = match database {
        "postgres" => "bigserial PRIMARY KEY",
        "mariadb" => "bigint AUTO_INCREMENT PRIMARY KEY",
        _ => "INTEGER PRIMARY KEY AUTOINCREMENT",
    };
    let long = "x".repeat(256);
    let mut relays = Vec::new();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let mut expected = Vec::new();
    for (kind, value, id) in [
        ("bigint", "42".to_owned(), "42"),
        ("varchar(300)", "'order-7/é'".to_owned(), "order-7/é"),
        (
            "varchar(36)",
            "'6F9619FF-8B86-D011-B42D-00CF4FC964FF'".to_owned(),
            "6f9619ff-8b86-d011-b42d-00cf4fc964ff",
        ),
        ("varchar(300)", format!("'{long}'"), ""),
    ] {
        let n = relays.len();
        let table = format!("t{n}");
        outbox
            .db
            .run(&format!(
                "CREATE TABLE {table} (id {key}, mid {kind}, payload varchar(100))"
            ))
            .await;
        outbox
            .db
            .run(&format!("INSERT INTO {table} (mid, payload) VALUES ({value}, '{n}')"))
            .await;
        let variables = [
            ("RELAY_OUTBOX_TABLE", table.as_str()),
            ("RELAY_OUTBOX_ON_SENT", "delete"),
            ("RELAY_COLUMN_MESSAGE_ID", "mid"),
            ("RELAY_ROUTING_KEY", "r"),
        ];
        migrate(&outbox, &variables).await;
        relays.push(with(&outbox, &variables).spawn());
        if !id.is_empty() {
            expected.push(id);
        }
    }
    let received = consumer.wait_distinct(3, 30 * SECOND).await;
    let mut ids: Vec<_> = received.iter().map(|message| message.message_id.as_str()).collect();
    ids.sort_unstable();
    expected.sort_unstable();
    assert_eq!(ids, expected);
    let error = "SELECT last_error FROM outbox_relay_failures WHERE outbox = 't3' AND dead_at IS NOT NULL";
    until("the long one is a dead letter", 20 * SECOND, async || {
        outbox
            .db
            .number("SELECT count(*) FROM outbox_relay_failures WHERE outbox = 't3'")
            .await
            == 1
    })
    .await;
    let error = outbox.db.text(error).await.unwrap_or_default();
    assert!(error.contains("message_id has 256 bytes"), "{error}");
}

async fn refusals_without_columns_are_seen_replayed_and_discarded(database: &str) {
    let outbox = Outbox::without_tables(database, &["good"]).await;
    let key = match database {
        "postgres" => "bigserial PRIMARY KEY",
        "mariadb" => "bigint AUTO_INCREMENT PRIMARY KEY",
        _ => "INTEGER PRIMARY KEY AUTOINCREMENT",
    };
    let time = if database == "postgres" {
        "timestamptz"
    } else {
        "timestamp NULL"
    };
    outbox
        .db
        .run(&format!(
            "CREATE TABLE events (seq {key}, topic varchar(100), k varchar(100), data text NOT NULL, published_at {time})"
        ))
        .await;
    let variables = [
        ("RELAY_OUTBOX_TABLE", "events"),
        ("RELAY_COLUMN_ID", "seq"),
        ("RELAY_COLUMN_ROUTING_KEY", "topic"),
        ("RELAY_COLUMN_ORDERING_KEY", "k"),
        ("RELAY_COLUMN_PAYLOAD", "data"),
        ("RELAY_COLUMN_SENT_AT", "published_at"),
        ("RELAY_RETRY_MAX_ATTEMPTS", "2"),
        ("RELAY_RETRY_MIN_DELAY", "10ms"),
        ("RELAY_POLL_SWEEP_INTERVAL", "200ms"),
    ];
    migrate(&outbox, &variables).await;
    for (topic, n) in [("good", 1), ("bad", 2), ("good", 3), ("bad", 4)] {
        outbox
            .db
            .run(&format!(
                "INSERT INTO events (topic, k, data) VALUES ('{topic}', 'a', '{n}')"
            ))
            .await;
    }
    let relay: Relay = with(&outbox, &variables).spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    consumer.wait_distinct(2, 30 * SECOND).await;
    let dead = "SELECT count(*) FROM outbox_relay_failures WHERE dead_at IS NOT NULL AND attempts = 2";
    until("two dead letters", 20 * SECOND, async || {
        outbox.db.number(dead).await == 2
    })
    .await;
    let (code, out, err) = outbox.command(&["dead-letters", "list", "--json"], &variables).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(
        out.contains("unroutable") && out.contains("\"routing_key\": \"bad\""),
        "{out}"
    );
    let metric = "outbox_relay_messages_dead_lettered_total{reason=\"unroutable\"}";
    relay.wait_metric(metric, |value| value == 2.0, 20 * SECOND).await;
    // Mended by the application, which has no idea of the relay's tables.
    outbox.db.run("UPDATE events SET topic = 'good' WHERE seq = 2").await;
    let (code, out, err) = outbox.command(&["dead-letters", "replay", "2"], &variables).await;
    assert_eq!(code, Some(0), "{out}{err}");
    consumer.wait_distinct(3, 20 * SECOND).await;
    let (code, out, err) = outbox
        .command(&["dead-letters", "discard", "4", "--yes"], &variables)
        .await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert_eq!(outbox.db.number("SELECT count(*) FROM events").await, 3);
    until("all is marked and nothing left", 20 * SECOND, async || {
        outbox
            .db
            .number("SELECT count(*) FROM events WHERE published_at IS NULL")
            .await
            + outbox.db.number("SELECT count(*) FROM outbox_relay_failures").await
            == 0
    })
    .await;
}
