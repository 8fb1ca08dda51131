//! Rights and passwords that are taken away or changed while a relay runs: it says so, keeps what it has, asks again now and
//! then, and goes on by itself once it may.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::outbox::{Arrived, Outbox, SECOND, judge};
use crate::support::{Consumer, MariaDb, Postgres, Rabbit, Relay, replace, until};

const REFUSED: &str = "outbox_relay_publish_failures_total{reason=\"refused\"}";

fn connects(outcome: &str) -> String {
    format!("outbox_relay_broker_connects_total{{outcome=\"{outcome}\"}}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permission_that_the_broker_takes_back_loses_nothing_and_raises_no_storm() {
    const KEYS: i64 = 5;
    // Its own count of connections and channels is of all that are there.
    let rabbit = Rabbit::start().await;
    let outbox = Outbox::between(Postgres::shared().await, &rabbit).await;
    let given = ["^$", "^events$", "^$"];
    let url = rabbit.add_user("relay", "relay-secret", &outbox.amqp_url, given).await;
    let relay = outbox.relay().env("RELAY_AMQP_URL", &url).spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    outbox.insert(1, 20, KEYS).await;
    outbox.wait_all_sent(60 * SECOND).await;

    // It may not write any more. The connection stays.
    rabbit.channels_sleep().await;
    rabbit
        .set_permissions("relay", &outbox.amqp_url, ["^$", "^$", "^$"])
        .await;
    let before = rabbit.opened().await;
    outbox.insert(21, 20, KEYS).await;
    relay.wait_metric(REFUSED, |count| count >= 10.0, 60 * SECOND).await;
    let advice = "give the broker's user write permission on the exchange";
    let log = relay.log_text();
    assert!(log.contains("ACCESS_REFUSED") && log.contains(advice), "{log}");
    let told = outbox.db.text("SELECT max(last_error) FROM outbox").await;
    assert!(told.as_ref().is_some_and(|told| told.contains(advice)), "{told:?}");
    assert_eq!(outbox.db.unsent().await, 20);
    let (connections, channels) = rabbit.opened().await;
    let refused = relay.metric(REFUSED).await.unwrap();
    assert_eq!(connections, before.0);
    // Each refusal closes a channel, as AMQP has it; one more where a look whether the exchange exists is refused as well.
    assert!(
        (channels - before.1) as f64 <= 2.0 * refused + 20.0,
        "{channels} {before:?} {refused}"
    );
    // Ten tries for each key are a minute and more.
    assert!(refused < 10.0 * KEYS as f64, "{refused} tries");
    rabbit.set_permissions("relay", &outbox.amqp_url, given).await;
    outbox.wait_all_sent(60 * SECOND).await;

    // It may not even open the virtual host, and its connection is closed.
    rabbit.clear_permissions("relay", &outbox.amqp_url).await;
    rabbit.close_all_connections().await;
    let before = rabbit.opened().await;
    outbox.insert(41, 20, KEYS).await;
    relay
        .wait_metric(&connects("failure"), |count| count >= 5.0, 60 * SECOND)
        .await;
    let ready = relay.get("/readyz").await.1;
    assert!(
        ready.contains("give the user permissions in the virtual host") && !ready.contains("relay-secret"),
        "{ready}"
    );
    let tries = "SELECT count(*) FROM outbox WHERE sent_at IS NULL AND attempts > 0";
    assert_eq!(outbox.db.number(tries).await, 0, "an outage spends no attempts");
    let failures = relay.metric(&connects("failure")).await.unwrap();
    let (connections, _) = rabbit.opened().await;
    // Consumers of the test come back as well.
    assert!(
        failures < 100.0 && (connections - before.0) as f64 <= failures + 20.0,
        "{failures} {connections} {before:?}"
    );
    rabbit.set_permissions("relay", &outbox.amqp_url, given).await;
    outbox.wait_all_sent(60 * SECOND).await;

    let received = consumer.wait_distinct(60, 60 * SECOND).await;
    let Arrived { distinct, duplicates } = judge(&received);
    // A message whose confirm was on its way when the connections were closed comes again.
    assert!(distinct == 60 && duplicates < 20, "{distinct} {duplicates}");
    assert_eq!(
        outbox
            .db
            .number("SELECT count(*) FROM outbox WHERE dead_at IS NOT NULL")
            .await,
        0
    );
}

/// Stands for a PostgreSQL that refuses whoever comes; returns its port.
async fn refusing(logins: Arc<AtomicU32>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            logins.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let length = stream.read_u32().await.unwrap_or(4) as usize;
                let mut startup = vec![0; length - 4];
                stream.read_exact(&mut startup).await.unwrap();
                let fields = b"SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed\0\0";
                stream.write_u8(b'E').await.unwrap();
                stream.write_u32(fields.len() as u32 + 4).await.unwrap();
                stream.write_all(fields).await.unwrap();
            });
        }
    });
    port
}

/// Servers lock accounts that fail too often. The relay's tasks each ask for a connection, and go on asking.
#[tokio::test]
async fn refused_logins_are_few_however_many_tasks_ask() {
    let logins = Arc::new(AtomicU32::new(0));
    let port = refusing(logins.clone()).await;
    let relay = Relay::command()
        .env("RELAY_AMQP_URL", "amqp://127.0.0.1:1")
        .env(
            "RELAY_DATABASE_URL",
            format!("postgres://u:p@127.0.0.1:{port}/app?sslmode=disable"),
        )
        .spawn();
    let asked = "outbox_relay_store_errors_total{operation=\"lease\"}";
    relay.wait_metric(asked, |count| count >= 20.0, 60 * SECOND).await;
    let logins = logins.load(Ordering::Relaxed);
    assert!((4..16).contains(&logins), "{logins} logins");
    let ready = relay.get("/readyz").await.1;
    assert!(ready.contains("look at user and password"), "{ready}");
}

#[tokio::test]
async fn a_new_password_of_the_broker_is_taken_from_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let (outbox, rabbit) = (Outbox::on_postgres().await, Rabbit::shared().await);
    let user = format!("rotated-{}", uuid::Uuid::new_v4().simple());
    let url = rabbit
        .add_user(&user, "relay-secret", &outbox.amqp_url, ["^$", "^events$", "^$"])
        .await;
    let file = folder.path().join("url");
    replace(&file, &url.replace("relay-secret", "relay-mistaken"));
    outbox.insert(1, 10, 2).await;
    let relay = outbox
        .relay()
        .env_remove("RELAY_AMQP_URL")
        .env("RELAY_AMQP_URL_FILE", &file)
        .spawn();
    let refused = async |least: f64| {
        relay
            .wait_metric(&connects("failure"), |count| count >= least, 60 * SECOND)
            .await;
        let ready = relay.get("/readyz").await.1;
        assert!(ready.contains("look at user and password in RELAY_AMQP_URL"), "{ready}");
    };
    refused(3.0).await;
    assert_eq!(outbox.db.unsent().await, 10);
    replace(&file, &url);
    outbox.wait_all_sent(60 * SECOND).await;

    // A connection outlives the password that it was opened with.
    rabbit.change_password(&user, "relay-renewed").await;
    outbox.insert(11, 10, 2).await;
    outbox.wait_all_sent(60 * SECOND).await;
    let before = relay.metric(&connects("failure")).await.unwrap();
    rabbit.close_connections_of(&outbox.amqp_url).await;
    refused(before + 3.0).await;
    outbox.insert(21, 10, 2).await;
    assert_eq!(outbox.db.unsent().await, 10);
    replace(&file, &url.replace("relay-secret", "relay-renewed"));
    outbox.wait_all_sent(60 * SECOND).await;
    let attempts = relay.metric(&connects("failure")).await.unwrap();
    assert!(attempts < 100.0, "{attempts} attempts");
    for secret in ["relay-secret", "relay-renewed", "relay-mistaken"] {
        assert!(!relay.log_text().contains(secret), "{}", relay.log_text());
    }
}

#[tokio::test]
async fn a_new_password_of_mariadb_is_taken_from_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = Outbox::on_mariadb().await;
    let user = format!("r{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
    outbox
        .db
        .run(&format!(
            "CREATE USER {user}@'127.0.0.1' IDENTIFIED BY 'relay-first';
             GRANT ALL ON *.* TO {user}@'127.0.0.1'"
        ))
        .await;
    let url = outbox
        .database_url
        .replace("//relay:relay-secret@", &format!("//{user}:relay-first@"));
    assert_ne!(url, outbox.database_url);
    let file = folder.path().join("url");
    replace(&file, &url);
    let relay = outbox
        .relay()
        .env_remove("RELAY_DATABASE_URL")
        .env("RELAY_DATABASE_URL_FILE", &file)
        .spawn();
    outbox.insert(1, 10, 2).await;
    outbox.wait_all_sent(60 * SECOND).await;
    outbox
        .db
        .run(&format!("ALTER USER {user}@'127.0.0.1' IDENTIFIED BY 'relay-renewed'"))
        .await;
    let mariadb = MariaDb::shared().await;
    mariadb.kill_connections(&format!("user = '{user}'")).await.unwrap();
    until("the relay is refused", 60 * SECOND, async || {
        relay.get("/readyz").await.1.contains("look at user and password")
    })
    .await;
    outbox.insert(11, 10, 2).await;
    assert_eq!(outbox.db.unsent().await, 10);
    replace(&file, &url.replace("relay-first", "relay-renewed"));
    outbox.wait_all_sent(60 * SECOND).await;
    for secret in ["relay-first", "relay-renewed"] {
        assert!(!relay.log_text().contains(secret), "{}", relay.log_text());
    }
}

/// A role that may do all that a relay does with the table and its own ones.
async fn role(outbox: &Outbox, at: &str) -> (String, String) {
    let user = format!("r{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
    let create = match at {
        "" => format!("CREATE ROLE {user} LOGIN PASSWORD 'relay-secret'"),
        _ => format!("CREATE USER {user}{at} IDENTIFIED BY 'relay-secret'"),
    };
    outbox.db.run(&create).await;
    for table in [
        "outbox_relay_shares",
        "outbox_relay_members",
        "outbox_relay_pauses",
        "outbox_relay_errors",
    ] {
        let grant = format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {user}{at}");
        outbox.db.run(&grant).await;
    }
    let url = outbox.database_url.replace("//relay:", &format!("//{user}:"));
    assert_ne!(url, outbox.database_url);
    (format!("{user}{at}"), url)
}

async fn errors_of(relay: &Relay, operation: &str) -> f64 {
    let series = format!("outbox_relay_store_errors_total{{operation=\"{operation}\"}}");
    relay.metric(&series).await.unwrap()
}

/// `at`: what follows a user's name.
async fn a_privilege_is_taken_back(outbox: &Outbox, at: &str) {
    let (role, url) = role(outbox, at).await;
    let give = async |privilege: &str| outbox.db.run(&format!("GRANT {privilege} ON outbox TO {role}")).await;
    let take = async |privilege: &str| {
        outbox
            .db
            .run(&format!("REVOKE {privilege} ON outbox FROM {role}"))
            .await
    };
    give("SELECT, UPDATE, DELETE").await;
    let relay = outbox.relay().env("RELAY_DATABASE_URL", &url).spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    outbox.insert(1, 20, 5).await;
    outbox.wait_all_sent(60 * SECOND).await;

    // What is sent cannot be marked.
    take("UPDATE").await;
    outbox.insert(21, 20, 5).await;
    until("marks are refused", 60 * SECOND, async || {
        errors_of(&relay, "mark").await >= 3.0 && relay.log_text().contains("denied")
    })
    .await;
    // The first of each key; its later ones wait for the mark of none.
    assert!(outbox.db.unsent().await > 0);
    give("UPDATE").await;
    outbox.wait_all_sent(60 * SECOND).await;
    let errors = errors_of(&relay, "mark").await;
    assert!(errors < 100.0, "{errors} attempts");

    // Nothing can be read.
    take("SELECT").await;
    outbox.insert(41, 20, 5).await;
    until("the relay says that it may not read", 60 * SECOND, async || {
        let (status, reasons) = relay.get("/readyz").await;
        status == 503 && reasons.contains("denied")
    })
    .await;
    let reasons = relay.get("/readyz").await.1;
    assert!(reasons.contains("migrate --print-grants=ROLE` writes"), "{reasons}");
    assert_eq!(outbox.db.unsent().await, 20);
    give("SELECT").await;
    outbox.wait_all_sent(60 * SECOND).await;
    let errors = errors_of(&relay, "head").await;
    assert!(errors < 100.0, "{errors} attempts");

    let received = consumer.wait_distinct(60, 60 * SECOND).await;
    assert_eq!(
        judge(&received),
        Arrived {
            distinct: 60,
            duplicates: 0
        }
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_privilege_that_postgres_takes_back_loses_and_repeats_nothing() {
    a_privilege_is_taken_back(&Outbox::on_postgres().await, "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_privilege_that_mariadb_takes_back_loses_and_repeats_nothing() {
    a_privilege_is_taken_back(&Outbox::on_mariadb().await, "@'127.0.0.1'").await;
}
