//! Sent rows that are published again, by the real binary.

use serde_json::Value;

use crate::outbox::{Outbox, SECOND, judge};
use crate::support::{Consumer, Kind, declare, until};

/// A thousand rows of ten keys are sent; then a second consumer comes that had none of them.
async fn a_new_consumer_gets_what_was_sent_in_the_order_of_its_keys(outbox: Outbox) {
    outbox.insert(0, 1_000, 10).await;
    let relay = outbox.relay().env("RELAY_POLL_SWEEP_INTERVAL", "100ms").spawn();
    outbox.wait_all_sent(60 * SECOND).await;
    declare(&outbox.amqp_url, "events", "late", Kind::Quorum, &["good"]).await;
    let late = Consumer::start(&outbox.amqp_url, "late");
    let replay = async |args: &[&str]| {
        let args = [&["replay-sent", "--json", "--rate", "5000"], args].concat();
        let (code, out, err) = outbox.command(&args, &[]).await;
        assert_eq!(code, Some(0), "{out}{err}");
        let done: Value = serde_json::from_str(&out).expect("json");
        (done["matched"].as_i64(), done["replayed"].as_i64(), err)
    };
    let (matched, replayed, _) = replay(&["--since", "1h", "--dry-run"]).await;
    assert_eq!((matched, replayed), (Some(1_000), Some(0)));
    let (matched, ..) = replay(&["--until", "1h", "--dry-run"]).await;
    assert_eq!(matched, Some(0));

    // With the exchange paused, order is kept; two operators at once set back each row once.
    let (code, out, err) = outbox.command(&["pause", "--exchange", "events"], &[]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    relay
        .wait_metric("outbox_relay_paused_exchanges", |paused| paused == 1.0, 20 * SECOND)
        .await;
    let both = ["--since", "1h", "--exchange", "events"];
    let (one, two) = tokio::join!(replay(&both), replay(&both));
    assert_eq!(one.1.and_then(|one| Some(one + two.1?)), Some(1_000), "{one:?} {two:?}");
    let log = one.2 + &two.2;
    assert!(
        log.contains("an operator had sent rows published again") && log.contains('@'),
        "{log}"
    );
    let (code, out, err) = outbox.command(&["resume", "--exchange", "events"], &[]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    let copies = late.wait_distinct(1_000, 60 * SECOND).await;
    assert_eq!(judge(&copies).distinct, 1_000);
    outbox.wait_all_sent(30 * SECOND).await;

    // One key, while the relay runs and nothing is paused.
    let (matched, replayed, _) = replay(&["--key", "k3", "--limit", "7"]).await;
    assert_eq!((matched, replayed), (Some(7), Some(7)));
    late.wait_for(|received| received.len() >= 1_007, 30 * SECOND).await;
    outbox.wait_all_sent(30 * SECOND).await;
    assert_eq!(relay.metric("outbox_relay_marks_lost_total").await, Some(0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_consumer_gets_what_was_sent_in_the_order_of_its_keys_on_postgres() {
    a_new_consumer_gets_what_was_sent_in_the_order_of_its_keys(Outbox::on_postgres().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_consumer_gets_what_was_sent_in_the_order_of_its_keys_on_mariadb() {
    a_new_consumer_gets_what_was_sent_in_the_order_of_its_keys(Outbox::on_mariadb().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_consumer_gets_what_was_sent_in_the_order_of_its_keys_on_sqlite() {
    a_new_consumer_gets_what_was_sent_in_the_order_of_its_keys(Outbox::on_sqlite().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_sent_again_is_said() {
    let outbox = Outbox::on_sqlite().await;
    let (code, _, err) = outbox.command(&["replay-sent"], &[]).await;
    assert!(code == Some(64) && err.contains("--all"), "{err}");
    let (code, _, err) = outbox.command(&["replay-sent", "--since", "yesterday"], &[]).await;
    assert!(code == Some(64) && err.contains("90m or 7d"), "{err}");
    let deletes = [("RELAY_OUTBOX_ON_SENT", "delete")];
    let (code, _, err) = outbox.command(&["replay-sent", "--all"], &deletes).await;
    assert!(code == Some(1) && err.contains("RELAY_OUTBOX_ON_SENT=delete"), "{err}");
}

/// Marked by a boolean.
async fn a_row_that_a_boolean_marks_is_set_back(database: &str) {
    let outbox = Outbox::without_tables(database, &["good"]).await;
    let boolean = if database == "sqlite" {
        "INTEGER NOT NULL DEFAULT 0"
    } else {
        "boolean NOT NULL DEFAULT false"
    };
    let table = format!("(seq bigint PRIMARY KEY, topic varchar(100), data varchar(100), done {boolean})");
    outbox.db.run(&format!("CREATE TABLE events {table}")).await;
    let variables = [
        ("RELAY_OUTBOX_TABLE", "events"),
        ("RELAY_COLUMN_ID", "seq"),
        ("RELAY_COLUMN_ROUTING_KEY", "topic"),
        ("RELAY_COLUMN_PAYLOAD", "data"),
        ("RELAY_COLUMN_SENT_AT", "done"),
        ("RELAY_POLL_SWEEP_INTERVAL", "200ms"),
    ];
    let (code, out, err) = outbox.command(&["migrate"], &variables).await;
    assert_eq!(code, Some(0), "{out}{err}");
    outbox
        .db
        .run("INSERT INTO events (seq, topic, data) VALUES (1, 'good', '1'), (2, 'good', '2')")
        .await;
    let relay = variables
        .iter()
        .fold(outbox.relay(), |relay, (name, value)| relay.env(name, value));
    let _relay = relay.spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    consumer.wait_distinct(2, 30 * SECOND).await;
    let unmarked = if database == "sqlite" { "done = 0" } else { "NOT done" };
    let unmarked = format!("SELECT count(*) FROM events WHERE {unmarked}");
    until("both are marked", 20 * SECOND, async || {
        outbox.db.number(&unmarked).await == 0
    })
    .await;
    let (code, _, err) = outbox.command(&["replay-sent", "--since", "1h"], &variables).await;
    assert!(code == Some(1) && err.contains("boolean"), "{err}");
    let (code, out, err) = outbox.command(&["replay-sent", "2"], &variables).await;
    assert!(code == Some(0) && out.contains("1 sent rows"), "{out}{err}");
    let received = consumer.wait_for(|received| received.len() >= 3, 30 * SECOND).await;
    assert_eq!(received[2].body, b"2");
    assert_eq!(received[2].message_id, received[1].message_id, "a copy");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_a_boolean_marks_is_set_back_on_postgres() {
    a_row_that_a_boolean_marks_is_set_back("postgres").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_a_boolean_marks_is_set_back_on_mariadb() {
    a_row_that_a_boolean_marks_is_set_back("mariadb").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_a_boolean_marks_is_set_back_on_sqlite() {
    a_row_that_a_boolean_marks_is_set_back("sqlite").await;
}
