//! What `check` says without the management plug-in: of exchanges that only rows name, and of what cannot be reached or is not
//! granted, each with what to do.

use crate::outbox::Outbox;
use crate::support::free_port;

async fn said(outbox: &Outbox, more: &[(&str, &str)], expected: &[&str], code: i32) {
    let (ended, out, err) = outbox.command(&["check"], more).await;
    for text in expected {
        assert!(out.contains(text), "{text:?} is missing: {out}{err}");
    }
    assert_eq!(ended, Some(code), "{out}{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exchanges_that_only_rows_name_are_looked_for() {
    for outbox in [
        Outbox::on_postgres().await,
        Outbox::on_mariadb().await,
        Outbox::on_sqlite().await,
    ] {
        for exchange in ["NULL", "''", "'events'", "'amq.topic'"] {
            insert(&outbox, exchange).await;
        }
        let there = "ok      exchange \"amq.topic\": exists; 1 unsent rows go to it";
        said(&outbox, &[], &[there], 0).await;
        insert(&outbox, "'absent'").await;
        let missing = [
            "FAILED  exchange \"absent\": NOT_FOUND",
            "declare it, the relay never does; 1 unsent rows go to it",
        ];
        said(&outbox, &[], &missing, 1).await;
    }
}

async fn insert(outbox: &Outbox, exchange: &str) {
    outbox
        .db
        .run(&format!(
            "INSERT INTO outbox (exchange, routing_key, payload) VALUES ({exchange}, 'good', '{{}}')"
        ))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_comes_with_what_to_do() {
    let outbox = Outbox::on_postgres().await;
    let closed = free_port();
    let (database, broker) = (
        format!("postgres://app@127.0.0.1:{closed}/app"),
        format!("amqp://127.0.0.1:{closed}"),
    );
    let lines = ["FAILED  database", "look at host and port in RELAY_DATABASE_URL"];
    said(&outbox, &[("RELAY_DATABASE_URL", &database)], &lines, 1).await;
    let lines = ["FAILED  broker", "look at host and port in RELAY_AMQP_URL"];
    said(&outbox, &[("RELAY_AMQP_URL", &broker)], &lines, 1).await;
}
