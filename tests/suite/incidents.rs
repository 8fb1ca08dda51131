//! Ten incidents: for each of them `status`, `/metrics` and the log of a relay name the cause. The README's "When something is
//! wrong" has them in this order. There it says 30 seconds; here a slow machine may take longer.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::outbox::{Outbox, SECOND};
use crate::support::{Authority, Postgres, Proxy, Rabbit, Relay, free_port, until};

const BOUND: Duration = Duration::from_secs(90);

/// Where the cause is to be found.
struct Named<'a> {
    /// In what `status` says.
    status: &'a str,
    /// In a metric: all its labels given, and the least value; `None`: it is 0.
    metric: (&'a str, Option<f64>),
    /// In the log.
    log: &'a str,
}

/// Waits until all three name the cause.
async fn named(outbox: &Outbox, relay: &Relay, more: &[(&str, &str)], cause: Named<'_>) {
    let admin = relay.admin().await.to_string();
    let mut env = vec![("RELAY_ADMIN_LISTEN", admin.as_str())];
    env.extend_from_slice(more);
    let start = Instant::now();
    let mut shown = String::new();
    loop {
        let status = outbox.command(&["status"], &env).await.1;
        let value = relay.metric(cause.metric.0).await;
        let (in_status, in_log) = (status.contains(cause.status), relay.log_text().contains(cause.log));
        let in_metric = match cause.metric.1 {
            Some(least) => value.is_some_and(|value| value >= least),
            None => value == Some(0.0),
        };
        if in_status && in_metric && in_log {
            println!("{:?}: {}", start.elapsed(), cause.status);
            return;
        }
        if status != shown {
            shown = status;
        }
        assert!(
            start.elapsed() < BOUND,
            "status {in_status}, metric {in_metric} ({value:?}), log {in_log}\n{shown}\n{}",
            relay.log_text()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn insert(outbox: &Outbox, routing_key: &str, key: &str) {
    outbox
        .db
        .run(&format!(
            "INSERT INTO outbox (routing_key, ordering_key, payload) VALUES ('{routing_key}', {key}, '{{}}')"
        ))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_is_gone() {
    let outbox = Outbox::on_postgres().await;
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], Rabbit::shared().await.port()))).await;
    let through = proxy.through(&outbox.amqp_url);
    let relay = outbox.relay().env("RELAY_AMQP_URL", &through).spawn();
    relay
        .wait_metric(
            "outbox_relay_broker_connected",
            |connected| connected == 1.0,
            30 * SECOND,
        )
        .await;
    proxy.refuse(true);
    proxy.cut();
    let cause = Named {
        status: "away: ",
        metric: ("outbox_relay_broker_connected", None),
        log: "lost the connection to the broker",
    };
    named(&outbox, &relay, &[("RELAY_AMQP_URL", &through)], cause).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_has_a_memory_alarm() {
    let rabbit = Rabbit::start().await;
    let outbox = Outbox::between(Postgres::shared().await, &rabbit).await;
    let relay = outbox.relay().spawn();
    rabbit.memory_alarm(true).await;
    outbox.insert(0, 100, 10).await;
    let cause = Named {
        status: "memory or disk alarm",
        metric: ("outbox_relay_broker_blocked", Some(1.0)),
        log: "the broker takes no messages (memory or disk alarm)",
    };
    named(&outbox, &relay, &[], cause).await;
    rabbit.memory_alarm(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binding_is_missing() {
    let outbox = Outbox::on_postgres().await;
    let relay = outbox
        .relay()
        .env("RELAY_RETRY_MIN_DELAY", "1d")
        .env("RELAY_RETRY_MAX_DELAY", "1d")
        .spawn();
    insert(&outbox, "nowhere", "NULL").await;
    let cause = Named {
        status: "1 unroutable",
        metric: ("outbox_relay_publish_failures_total{reason=\"unroutable\"}", Some(1.0)),
        log: "no queue is bound",
    };
    named(&outbox, &relay, &[], cause).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_can_never_be_a_message() {
    let outbox = Outbox::on_postgres().await;
    let relay = outbox.relay().spawn();
    insert(&outbox, &"r".repeat(256), "NULL").await;
    let cause = Named {
        status: "1 invalid",
        metric: (
            "outbox_relay_messages_dead_lettered_total{reason=\"invalid\"}",
            Some(1.0),
        ),
        log: "is a dead letter now",
    };
    named(&outbox, &relay, &[], cause).await;
    assert!(
        relay.log_text().contains("routing_key"),
        "what is wrong with it: {}",
        relay.log_text()
    );
}

/// So many at once are not all named. But those that are only tried again take nothing away from them, and the rest is counted.
#[tokio::test(flavor = "multi_thread")]
async fn many_rows_are_given_up_at_once() {
    let outbox = Outbox::on_postgres().await;
    outbox
        .db
        .run("INSERT INTO outbox (routing_key, payload) SELECT 'nowhere', '{}' FROM generate_series(1, 40)")
        .await;
    let relay = outbox.relay().env("RELAY_RETRY_MAX_ATTEMPTS", "1").spawn();
    let dead = "SELECT count(*) FROM outbox WHERE dead_at IS NOT NULL";
    until("they are dead", 60 * SECOND, async || {
        outbox.db.number(dead).await == 40
    })
    .await;
    let named = |text: &str| text.matches("a row was given up and is a dead letter now").count();
    until("the others are counted", 30 * SECOND, async || {
        let text = relay.log_text();
        named(&text) == 40 || text.contains("more rows were given up and are dead letters now")
    })
    .await;
    let text = relay.log_text();
    assert!(named(&text) >= 10, "{text}");
    assert!(text.contains("no queue is bound"), "each with its cause: {text}");
    assert!(!text.contains("it is tried again"), "none of them is: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_blocked() {
    let outbox = Outbox::on_postgres().await;
    let block = [("RELAY_ON_DEAD_LETTER", "block")];
    let relay = outbox
        .relay()
        .env("RELAY_ON_DEAD_LETTER", "block")
        .env("RELAY_RETRY_MAX_ATTEMPTS", "1")
        .spawn();
    insert(&outbox, "nowhere", "'order-42'").await;
    insert(&outbox, "good", "'order-42'").await;
    let cause = Named {
        status: "\"order-42\" waits for row 1, a dead letter",
        metric: ("outbox_relay_blocked_keys", Some(1.0)),
        log: "is a dead letter now",
    };
    named(&outbox, &relay, &block, cause).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_is_slow() {
    let outbox = Outbox::on_postgres().await;
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], Postgres::shared().await.port()))).await;
    let relay = outbox
        .relay()
        .env("RELAY_DATABASE_URL", proxy.through(&outbox.database_url))
        .spawn();
    outbox.insert(0, 10, 10).await;
    outbox.wait_all_sent(30 * SECOND).await;
    // Both ways.
    proxy.delay(Duration::from_millis(700));
    let cause = Named {
        status: "the database is slow: ",
        metric: (
            "outbox_relay_store_operation_duration_seconds_sum{operation=\"head\"}",
            Some(1.4),
        ),
        log: "the database is slow",
    };
    named(&outbox, &relay, &[], cause).await;
    proxy.delay(Duration::ZERO);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_frozen() {
    let outbox = Outbox::on_postgres().await;
    let start = || outbox.relay().env("RELAY_LEASE_TTL", "3s").spawn();
    let (one, two) = (start(), start());
    for relay in [&one, &two] {
        relay
            .wait_metric("outbox_relay_partitions_owned", |owned| owned == 8.0, 60 * SECOND)
            .await;
    }
    one.freeze();
    let cause = Named {
        status: "is silent: killed, frozen or cut off",
        metric: ("outbox_relay_partitions_owned", Some(16.0)),
        log: "took over shares",
    };
    named(&outbox, &two, &[], cause).await;
    one.thaw();
    let cause = Named {
        status: "2 relays",
        metric: ("outbox_relay_leases_lost_total", Some(1.0)),
        log: "lost leases: another relay has taken these shares over",
    };
    named(&outbox, &one, &[], cause).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_purge_is_behind() {
    let outbox = Outbox::on_postgres().await;
    outbox
        .db
        .run(
            "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.003); RETURN OLD; END $$;
             CREATE TRIGGER slowly BEFORE DELETE ON outbox FOR EACH ROW EXECUTE FUNCTION slowly();
             INSERT INTO outbox (routing_key, payload, sent_at) SELECT 'good', '{}', now() - interval '8 days' FROM generate_series(1, 60000)",
        )
        .await;
    let relay = outbox.relay().spawn();
    let cause = Named {
        status: "purge behind: ",
        metric: ("outbox_relay_purge_behind", Some(1.0)),
        log: "older than RELAY_OUTBOX_RETENTION",
    };
    named(&outbox, &relay, &[], cause).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_has_expired() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("ours");
    let (certificate, key) = authority.expired_server(&["localhost"]).write(folder.path(), "broker");
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, authority.pem()).unwrap();
    let port = free_port();
    Rabbit::shared()
        .await
        .eval(&format!(
            "ok = rabbit_networking:start_ssl_listener({{\"127.0.0.1\", {port}}}, [{{certfile, \"{}\"}}, {{keyfile, \"{}\"}}], 2)",
            certificate.display(),
            key.display()
        ))
        .await;
    let outbox = Outbox::on_postgres().await;
    let (_, vhost) = outbox.amqp_url.rsplit_once('/').unwrap();
    let url = format!("amqps://guest:guest@localhost:{port}/{vhost}");
    let tls = [
        ("RELAY_AMQP_URL", url.as_str()),
        ("RELAY_AMQP_CA_FILE", ca.to_str().unwrap()),
    ];
    let relay = tls
        .iter()
        .fold(outbox.relay(), |relay, (name, value)| relay.env(name, value))
        .spawn();
    let cause = Named {
        status: "has expired; renew it",
        metric: ("outbox_relay_broker_connects_total{outcome=\"failure\"}", Some(1.0)),
        log: "has expired; renew it",
    };
    named(&outbox, &relay, &tls, cause).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_paused_it_and_forgot() {
    let outbox = Outbox::on_postgres().await;
    let relay = outbox.relay().spawn();
    let (code, _, err) = outbox
        .command(&["pause", "--reason", "consumer is being mended"], &[])
        .await;
    assert_eq!(code, Some(0), "{err}");
    let cause = Named {
        status: ": consumer is being mended",
        metric: ("outbox_relay_paused", Some(1.0)),
        log: "everything is paused until a person resumes it",
    };
    named(&outbox, &relay, &[], cause).await;
    let sent = "SELECT count(*) FROM outbox WHERE sent_at IS NOT NULL";
    insert(&outbox, "good", "NULL").await;
    let (code, _, err) = outbox.command(&["resume"], &[]).await;
    assert_eq!(code, Some(0), "{err}");
    until("it is sent", 30 * SECOND, async || outbox.db.number(sent).await == 1).await;
}
