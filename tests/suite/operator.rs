//! The operator's commands, by the real binary: while a relay runs, and while none does.

use serde_json::Value;

use crate::outbox::{Outbox, SECOND, judge};
use crate::support::{Consumer, MariaDb, Postgres, Product, Rabbit, Relay, until};

/// Exit code, standard output, standard error.
async fn command(outbox: &Outbox, args: &[&str], more: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let mut env = vec![
        ("RELAY_DATABASE_URL", outbox.database_url.as_str()),
        ("RELAY_AMQP_URL", outbox.amqp_url.as_str()),
        ("RELAY_AMQP_EXCHANGE", "events"),
    ];
    env.extend_from_slice(more);
    let (status, out, err) = Relay::run_to_end(args, &env).await;
    (status.code(), out, err)
}

async fn status(outbox: &Outbox, more: &[(&str, &str)]) -> (Option<i32>, Value) {
    let (code, out, err) = command(outbox, &["status", "--json"], more).await;
    (
        code,
        serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}")),
    )
}

/// The key `a`, n from 1 to 6, of which row 3 cannot be routed.
async fn with_a_bad_row(outbox: &Outbox) {
    for n in 1..=6 {
        let routing_key = if n == 3 { "nowhere" } else { "good" };
        let row = format!("'{routing_key}', 'a', '{{\"key\": 1000, \"n\": {n}}}'");
        let insert = "INSERT INTO outbox (routing_key, ordering_key, payload) VALUES";
        outbox.db.run(&format!("{insert} ({row})")).await;
    }
}

async fn dead(outbox: &Outbox) -> i64 {
    outbox
        .db
        .number("SELECT count(*) FROM outbox WHERE dead_at IS NOT NULL")
        .await
}

async fn a_key_behind_a_dead_letter_goes_on_after_replay_and_after_discard(outbox: Outbox) {
    with_a_bad_row(&outbox).await;
    let relay = outbox
        .relay()
        .env("RELAY_ON_DEAD_LETTER", "block")
        .env("RELAY_RETRY_MAX_ATTEMPTS", "1")
        .env("RELAY_POLL_SWEEP_INTERVAL", "300ms")
        .spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    consumer.wait_distinct(2, 30 * SECOND).await;
    until("a dead letter", 20 * SECOND, async || dead(&outbox).await == 1).await;

    // It is seen: by status, with the row that blocks the key, and by the list.
    let admin = relay.admin().await.to_string();
    let more = [
        ("RELAY_ADMIN_LISTEN", admin.as_str()),
        ("RELAY_ON_DEAD_LETTER", "block"),
    ];
    let (code, report) = status(&outbox, &more).await;
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!(report["backlog"]["dead"], 1, "{report:#}");
    assert_eq!(report["dead_letters"]["by_reason"]["unroutable"], 1, "{report:#}");
    assert_eq!(report["blocked_keys"]["keys"][0]["key"], "a", "{report:#}");
    assert_eq!(report["blocked_keys"]["keys"][0]["row"], 3, "{report:#}");
    assert_eq!(report["relay"]["ok"], true, "{report:#}");
    assert_eq!(report["relay"]["published"], 2, "{report:#}");
    let member = report["relay"]["member"].as_str().expect("a name").to_owned();
    assert_eq!(report["owners"]["shares"][0]["owner"], member, "{report:#}");
    assert_eq!(report["owners"]["free"], 0, "{report:#}");
    let (code, page) = relay.get("/status").await;
    assert_eq!(code, 200);
    let page: Value = serde_json::from_str(&page).unwrap();
    for part in ["dead_letters", "blocked_keys", "table", "version"] {
        assert_eq!(page[part], report[part], "the endpoint says what the command says");
    }
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&page), names(&report));

    // Still unroutable: replayed, and given up again.
    let (code, out, err) = command(&outbox, &["dead-letters", "replay", "3"], &[]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(
        out.contains("1 dead letters replayed") && out.contains("later rows"),
        "{out}"
    );
    let unroutable = "outbox_relay_messages_dead_lettered_total{reason=\"unroutable\"}";
    relay.wait_metric(unroutable, |value| value == 2.0, 20 * SECOND).await;

    // The cause is mended: replayed, and with it the key goes on.
    outbox
        .db
        .run("UPDATE outbox SET routing_key = 'good' WHERE id = 3")
        .await;
    let (code, out, _) = command(&outbox, &["dead-letters", "replay", "--key", "a", "--json"], &[]).await;
    let done: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &done["replayed"]), (Some(0), &1.into()), "{out}");
    let received = consumer.wait_distinct(6, 20 * SECOND).await;
    judge(&received);

    // And with a discard.
    outbox.db.run("INSERT INTO outbox (routing_key, ordering_key, payload) VALUES ('nowhere', 'b', '{}'), ('good', 'b', '{\"key\": 1, \"n\": 2}')").await;
    until("a dead letter", 20 * SECOND, async || dead(&outbox).await == 1).await;
    let (code, out, _) = command(&outbox, &["dead-letters", "discard", "--all", "--dry-run"], &[]).await;
    assert_eq!((code, out.trim()), (Some(0), "1 dead letters would be discarded"));
    let (code, _, err) = command(&outbox, &["dead-letters", "discard", "--all"], &[]).await;
    assert_eq!(code, Some(64), "{err}");
    assert_eq!(dead(&outbox).await, 1);
    let discard = ["dead-letters", "discard", "--reason", "unroutable", "--yes"];
    let (code, out, err) = command(&outbox, &discard, &[]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(
        err.contains("an operator discarded dead letters") && err.contains("[7]"),
        "{err}"
    );
    consumer.wait_distinct(7, 20 * SECOND).await;
    assert_eq!(dead(&outbox).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_behind_a_dead_letter_goes_on_after_replay_and_after_discard_on_postgres() {
    a_key_behind_a_dead_letter_goes_on_after_replay_and_after_discard(Outbox::on_postgres().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_behind_a_dead_letter_goes_on_after_replay_and_after_discard_on_mariadb() {
    a_key_behind_a_dead_letter_goes_on_after_replay_and_after_discard(Outbox::on_mariadb().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_behind_a_dead_letter_goes_on_after_replay_and_after_discard_on_sqlite() {
    a_key_behind_a_dead_letter_goes_on_after_replay_and_after_discard(Outbox::on_sqlite().await).await;
}

async fn two_operators_replay_once_and_a_running_relay_sends_in_order(outbox: Outbox) {
    outbox.insert(0, 1_000, 10).await;
    outbox
        .db
        .run("UPDATE outbox SET dead_at = now(), attempts = 10, last_error = 'unroutable'")
        .await;
    let relay = outbox.relay().env("RELAY_POLL_SWEEP_INTERVAL", "100ms").spawn();
    let polls = "outbox_relay_polls_total{outcome=\"empty\"}";
    relay.wait_metric(polls, |value| value > 0.0, 20 * SECOND).await;
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let replay = ["dead-letters", "replay", "--all", "--json"];
    let (one, two) = tokio::join!(command(&outbox, &replay, &[]), command(&outbox, &replay, &[]));
    let replayed = |out: &str| {
        serde_json::from_str::<Value>(out).unwrap()["replayed"]
            .as_i64()
            .unwrap()
    };
    assert_eq!((one.0, two.0), (Some(0), Some(0)), "{} {}", one.2, two.2);
    assert_eq!(replayed(&one.1) + replayed(&two.1), 1_000, "{} {}", one.1, two.1);
    judge(&consumer.wait_distinct(1_000, 30 * SECOND).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_operators_replay_once_and_a_running_relay_sends_in_order_on_postgres() {
    two_operators_replay_once_and_a_running_relay_sends_in_order(Outbox::on_postgres().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_operators_replay_once_and_a_running_relay_sends_in_order_on_mariadb() {
    two_operators_replay_once_and_a_running_relay_sends_in_order(Outbox::on_mariadb().await).await;
}

async fn dead_letters_are_listed_and_shown_without_their_body(outbox: Outbox) {
    let long_ago = outbox.db.in_seconds(-1_000_000);
    outbox.db.run(&format!("INSERT INTO outbox (routing_key, payload, properties, last_error, dead_at) VALUES ('r', '{{\"secret\":1}}', '{{\"app_id\":\"shop\"}}', 'unroutable: no queue', {long_ago})")).await;
    outbox.insert(0, 3, 1).await;
    outbox
        .db
        .run(&format!(
            "UPDATE outbox SET dead_at = {long_ago}, last_error = 'refused' WHERE id > 2"
        ))
        .await;
    let list = async |args: &[&str]| command(&outbox, &[&["dead-letters", "list"], args].concat(), &[]).await;
    let (code, out, err) = list(&["--limit", "2", "--json"]).await;
    let letters: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, letters.as_array().unwrap().len()), (Some(0), 2), "{out}");
    assert!(
        err.contains("there are more") && letters[0]["properties"]["app_id"] == "shop",
        "{out}{err}"
    );
    let (_, out, _) = list(&["--reason", "refused"]).await;
    assert!(out.lines().count() == 3 && !out.contains("unroutable"), "{out}");
    let (code, _, err) = list(&["--reason", "nonsense"]).await;
    assert!(
        code == Some(64) && err.contains("unroutable"),
        "the reasons there are: {err}"
    );
    let (code, _, err) = list(&["--older-than", "7"]).await;
    assert_eq!(code, Some(64), "{err}");
    outbox
        .db
        .run(
            "INSERT INTO outbox_relay_errors (outbox, id, failed_at, attempt, error)
             VALUES ('outbox', 1, 86400.5, 1, 'no_exchange: first'), ('outbox', 1, 90000, 2, 'refused: second')",
        )
        .await;
    let (code, out, _) = command(&outbox, &["dead-letters", "show", "1"], &[]).await;
    let second = "errors         1970-01-02T01:00:00Z  attempt 2  refused: second\n";
    let first = "               1970-01-02T00:00:00Z  attempt 1  no_exchange: first\n";
    assert!(out.contains(&format!("{second}{first}")), "{out}");
    assert!(
        code == Some(0) && out.contains("no queue") && !out.contains("secret"),
        "{out}"
    );
    let (_, out, _) = command(&outbox, &["dead-letters", "show", "1", "--body"], &[]).await;
    assert!(out.contains("{\"secret\":1}"), "{out}");
    let (_, out, _) = command(&outbox, &["dead-letters", "show", "1", "--json"], &[]).await;
    let letter: Value = serde_json::from_str(&out).unwrap();
    let first = serde_json::json!({ "at": "1970-01-02T00:00:00Z", "attempt": 1, "error": "no_exchange: first" });
    assert_eq!(letter["errors"][1], first, "{letter:#}");
    // As it is before the migration.
    outbox.db.run("DROP TABLE outbox_relay_errors").await;
    let (code, out, err) = command(&outbox, &["dead-letters", "show", "1"], &[]).await;
    assert!(code == Some(0) && out.contains("no queue"), "{out}{err}");
    let words = ["outbox_relay_errors", "outbox-relay migrate"];
    assert!(words.iter().all(|word| err.contains(word)), "{err}");
    let (_, out, _) = command(&outbox, &["check"], &[]).await;
    let warned = |line: &str| line.starts_with("warning table: ") && words.iter().all(|word| line.contains(word));
    assert!(out.lines().any(warned) && !out.contains("FAILED"), "{out}");
    let (code, _, err) = command(&outbox, &["dead-letters", "show", "2"], &[]).await;
    assert!(code == Some(1) && err.contains("row 2 is no dead letter"), "{err}");
    let (code, _, err) = command(&outbox, &["dead-letters", "replay", "2"], &[]).await;
    assert!(code == Some(1) && err.contains("[2]"), "{err}");
    let (code, _, err) = command(&outbox, &["dead-letters", "replay"], &[]).await;
    assert!(code == Some(64) && err.contains("--all"), "{err}");
    let paced = std::time::Instant::now();
    let (code, out, _) = command(&outbox, &["dead-letters", "replay", "--all", "--rate", "1"], &[]).await;
    assert!(code == Some(0) && out.starts_with("3 dead letters replayed"), "{out}");
    assert!(paced.elapsed() >= 2 * SECOND, "three at one a second");
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_and_shown_without_their_body_on_postgres() {
    dead_letters_are_listed_and_shown_without_their_body(Outbox::on_postgres().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_and_shown_without_their_body_on_mariadb() {
    dead_letters_are_listed_and_shown_without_their_body(Outbox::on_mariadb().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_and_shown_without_their_body_on_sqlite() {
    dead_letters_are_listed_and_shown_without_their_body(Outbox::on_sqlite().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_while_relay_broker_or_postgres_are_away() {
    let postgres = Postgres::start().await;
    let url = postgres.create_database().await;
    status_tells_while_relay_broker_or_database_are_away(&url, "PostgreSQL", postgres.stop()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_while_relay_broker_or_mariadb_are_away() {
    let mariadb = MariaDb::start().await;
    let url = mariadb.create_database().await;
    status_tells_while_relay_broker_or_database_are_away(&url, product_name(), mariadb.kill9()).await;
}

async fn status_tells_while_relay_broker_or_database_are_away(
    url: &str,
    product: &str,
    stop: impl Future<Output = ()>,
) {
    let amqp_url = Rabbit::shared().await.create_vhost().await;
    crate::outbox::migrate(url, &[]).await;
    let env = |amqp: &str| {
        [
            ("RELAY_DATABASE_URL", url.to_owned()),
            ("RELAY_AMQP_URL", amqp.to_owned()),
        ]
    };
    let ask = async |args: &[&str], amqp: &str| {
        let env = env(amqp);
        let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Relay::run_to_end(args, &env).await
    };
    let (status, out, err) = ask(&["status", "--json"], &amqp_url).await;
    let report: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
    assert!(status.success(), "{out}{err}");
    assert_eq!(
        (&report["broker"]["ok"], &report["relay"]["ok"]),
        (&true.into(), &false.into()),
        "{report:#}"
    );
    assert_eq!(report["database"]["product"], product, "{report:#}");
    let secret = url.split(':').nth(2).unwrap().split('@').next().unwrap();
    assert!(!out.contains(secret), "no password: {out}");

    let (status, out, err) = ask(&["status"], "amqp://127.0.0.1:1").await;
    assert!(status.success() && out.contains("away: "), "{out}{err}");
    assert!(!out.contains('\u{1b}'), "colours are for terminals: {out}");

    stop.await;
    let (status, out, err) = ask(&["status", "--json"], &amqp_url).await;
    let report: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
    assert_eq!(
        (status.code(), &report["broker"]["ok"]),
        (Some(1), &true.into()),
        "{report:#}"
    );
    assert_eq!(report["backlog"]["ok"], false, "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_what_is_wrong_and_how_to_mend_it() {
    let outbox = Outbox::on_postgres().await;
    let (code, out, err) = command(&outbox, &["check"], &[]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    for what in ["version: PostgreSQL", "clock: ", "indexes: ", "autovacuum: "] {
        assert!(out.contains(&format!("ok      {what}")), "{what}: {out}");
    }
    outbox
        .db
        .run("ALTER TABLE outbox SET (autovacuum_enabled = off); DROP INDEX outbox_relay_dead")
        .await;
    let (code, out, _) = command(&outbox, &["check"], &[]).await;
    assert_eq!(code, Some(0), "the relay works: {out}");
    assert!(
        out.contains("warning indexes: ") && out.contains("warning autovacuum: it is off"),
        "{out}"
    );
    outbox.db.run("DROP INDEX outbox_relay_unsent").await;
    let (code, out, _) = command(&outbox, &["check"], &[("RELAY_PUBLISH_INFLIGHT", "3")]).await;
    assert_eq!(code, Some(1), "{out}");
    assert!(
        out.contains("FAILED  indexes: ") && out.contains("CREATE INDEX CONCURRENTLY"),
        "{out}"
    );
    assert!(
        out.contains("FAILED  configuration: RELAY_PUBLISH_INFLIGHT is unknown"),
        "{out}"
    );
}

fn product_name() -> &'static str {
    match MariaDb::product() {
        Product::MariaDb => "MariaDB",
        Product::MySql => "MySQL",
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_what_mariadb_needs() {
    let outbox = Outbox::on_mariadb().await;
    let (code, out, err) = command(&outbox, &["check"], &[]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    let version = format!("version: {}", product_name());
    for what in [version.as_str(), "clock: ", "indexes: "] {
        assert!(out.contains(&format!("ok      {what}")), "{what}: {out}");
    }
    assert!(!out.contains("autovacuum"), "{out}");
    outbox.db.run("DROP INDEX outbox_relay_unsent ON outbox").await;
    let (code, out, _) = command(&outbox, &["check"], &[]).await;
    assert_eq!(code, Some(1), "{out}");
    let advice = "ALTER TABLE `outbox` ADD INDEX (sent_at, dead_at)";
    assert!(out.contains("FAILED  indexes: ") && out.contains(advice), "{out}");
}

#[tokio::test]
async fn completions_and_the_manual_need_no_configuration() {
    for shell in ["bash", "zsh", "fish"] {
        let (status, out, err) = Relay::run_to_end(&["completions", shell], &[]).await;
        assert!(status.success() && out.contains("dead-letters"), "{shell}: {err}");
    }
    let (status, out, err) = Relay::run_to_end(&["man"], &[]).await;
    assert!(
        status.success() && out.contains(".TH outbox-relay 1") && out.contains("RELAY"),
        "{err}"
    );
}
