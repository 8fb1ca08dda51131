//! What `check` says without the management plug-in: of exchanges that only rows name, and of what cannot be reached or is not
//! granted, each with what to do.

use crate::outbox::{Outbox, SECOND};
use crate::support::{free_port, until};

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

/// A relay works without it, but its table grows.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_right_to_purge_is_told_by_check_and_by_status() {
    for outbox in [Outbox::on_postgres().await, Outbox::on_mariadb().await] {
        let postgres = outbox.database_url.starts_with("postgres");
        let role = format!("nodelete_{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let (create, name) = match postgres {
            true => (format!("CREATE ROLE {role} LOGIN PASSWORD 'secret'"), role.clone()),
            false => {
                let name = format!("'{role}'@'%'");
                (format!("CREATE USER {name} IDENTIFIED BY 'secret'"), name)
            }
        };
        outbox.db.run(&create).await;
        outbox
            .db
            .run(&format!("GRANT SELECT, INSERT, UPDATE ON outbox TO {name}"))
            .await;
        for table in ["outbox_relay_shares", "outbox_relay_members", "outbox_relay_pauses"] {
            let grant = format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {name}");
            outbox.db.run(&grant).await;
        }
        let url = as_user(&outbox.database_url, &role);
        let variables = [("RELAY_DATABASE_URL", url.as_str())];
        let lines = ["warning purge: ", "grant DELETE", "RELAY_OUTBOX_RETENTION=off"];
        said(&outbox, &variables, &lines, 0).await;
        let (_, out, _) = outbox
            .command(&["check"], &[variables[0], ("RELAY_OUTBOX_RETENTION", "off")])
            .await;
        assert!(!out.contains("purge"), "{out}");
        if postgres {
            outbox
                .db
                .run("INSERT INTO outbox (routing_key, payload, sent_at) VALUES ('good', '{}', now() - interval '8 days')")
                .await;
            let relay = outbox.relay().env("RELAY_DATABASE_URL", &url).spawn();
            until("the log says what to grant", 30 * SECOND, async || {
                relay.log_text().contains("grant DELETE on the table")
            })
            .await;
        }
    }
}

/// The URL for another user, whose password is `secret`.
fn as_user(url: &str, user: &str) -> String {
    let mut url = url::Url::parse(url).expect("a URL");
    url.set_username(user).expect("it has a host");
    url.set_password(Some("secret")).expect("it has a host");
    url.to_string()
}
