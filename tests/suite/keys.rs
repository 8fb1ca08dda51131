//! Keys that cannot go on, and a person who releases them, by the real binary.

use serde_json::Value;

use crate::outbox::{Outbox, SECOND, judge};
use crate::support::Consumer;

const BLOCK: &[(&str, &str)] = &[("RELAY_ON_DEAD_LETTER", "block")];

/// Rows of the keys 1 to 4, which the relay is not to send as they are, each with others behind it: refused (1 and 2), given up
/// (3), delayed (4).
async fn with_blocked_keys(outbox: &Outbox) {
    let later = outbox.db.in_seconds(3_600);
    let (refused, dead, delayed) = (
        format!("3, 'unroutable: no queue', {later}, NULL, NULL"),
        "10, 'refused: not you', NULL, now(), NULL".to_owned(),
        format!("0, NULL, NULL, NULL, {later}"),
    );
    for (key, how) in [(1, &refused), (2, &refused), (3, &dead), (4, &delayed)] {
        for n in 1..=3 {
            let how = if n == 1 { how } else { "0, NULL, NULL, NULL, NULL" };
            let how = match outbox.database_url.starts_with("sqlite") {
                true => how.replace("now()", "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"),
                false => how.to_owned(),
            };
            outbox
                .db
                .run(&format!(
                    "INSERT INTO outbox (routing_key, ordering_key, payload, attempts, last_error, next_attempt_at, dead_at, available_at)
                     VALUES ('good', 'k{key}', '{{\"key\": {key}, \"n\": {n}}}', {how})"
                ))
                .await;
        }
    }
}

async fn blocked_keys_are_listed_and_released(outbox: Outbox) {
    with_blocked_keys(&outbox).await;
    let mut relay = outbox
        .relay()
        .env("RELAY_ON_DEAD_LETTER", "block")
        .env("RELAY_POLL_SWEEP_INTERVAL", "300ms")
        .spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    relay
        .wait_metric("outbox_relay_blocked_keys", |keys| keys == 4.0, 30 * SECOND)
        .await;

    let (code, out, err) = outbox.command(&["keys", "list", "--json"], BLOCK).await;
    assert_eq!(code, Some(0), "{out}{err}");
    let listed: Value = serde_json::from_str(&out).expect("json");
    let of = |key: &Value, name: &str| key[name].to_string();
    let keys: Vec<_> = listed["keys"].as_array().expect("keys").iter().collect();
    let found: Vec<_> = keys
        .iter()
        .map(|key| (of(key, "key"), of(key, "row"), of(key, "why"), of(key, "rows_waiting")))
        .collect();
    let expected = [
        ("k1", 1, "retry"),
        ("k2", 4, "retry"),
        ("k3", 7, "dead_letter"),
        ("k4", 10, "delayed"),
    ];
    let expected: Vec<_> = expected
        .iter()
        .map(|(key, row, why)| {
            (
                format!("\"{key}\""),
                row.to_string(),
                format!("\"{why}\""),
                "2".to_owned(),
            )
        })
        .collect();
    assert_eq!(found, expected, "{out}");
    assert!(
        keys.iter()
            .all(|key| key["since"].as_str().is_some_and(|since| since.starts_with("20"))),
        "{out}"
    );
    assert_eq!(keys[2]["last_error"], "refused: not you", "{out}");
    let (_, out, _) = outbox.command(&["keys", "list"], BLOCK).await;
    assert!(out.contains("dead letter") && out.contains("refused: not you"), "{out}");
    // Under `continue` a dead letter blocks nobody.
    let (_, out, _) = outbox.command(&["keys", "list"], &[]).await;
    assert!(out.contains("k2") && !out.contains("k3"), "{out}");

    let release = async |args: &[&str]| outbox.command(&[&["keys", "release"], args].concat(), BLOCK).await;
    let (code, _, err) = release(&["k1"]).await;
    assert!(code == Some(64) && err.contains("--replay"), "{err}");
    let (code, _, err) = release(&["k1", "--discard"]).await;
    assert!(code == Some(64) && err.contains("--yes"), "{err}");
    let (code, out, _) = release(&["k1", "k2", "--discard", "--dry-run"]).await;
    assert!(code == Some(0) && out.contains("k2: row 4 would be discarded"), "{out}");
    let (code, out, _) = release(&["k4", "none", "--replay"]).await;
    assert!(
        code == Some(1) && out.contains("available_at") && out.contains("none: is not blocked"),
        "{out}"
    );

    let (code, out, err) = release(&["k1", "k3", "--replay"]).await;
    assert!(
        code == Some(0) && out.contains("k1: row 1 is tried again"),
        "{out}{err}"
    );
    consumer.wait_distinct(6, 30 * SECOND).await;
    let (code, out, err) = release(&["k2", "--discard", "--yes", "--json"]).await;
    assert!(code == Some(0) && out.contains("\"row\":4"), "{out}{err}");
    assert!(
        err.contains("an operator released a key") && err.contains("unroutable") && err.contains('@'),
        "{err}"
    );
    consumer.wait_distinct(8, 30 * SECOND).await;
    relay
        .wait_metric("outbox_relay_blocked_keys", |keys| keys == 1.0, 30 * SECOND)
        .await;

    // While no relay runs.
    relay.sigterm();
    relay.wait(30 * SECOND).await;
    let later = outbox.db.in_seconds(3_600);
    outbox
        .db
        .run(&format!("INSERT INTO outbox (routing_key, ordering_key, payload, attempts, next_attempt_at) VALUES ('good', 'k5', '{{\"key\": 5, \"n\": 1}}', 1, {later})"))
        .await;
    let (code, out, err) = release(&["k5", "--replay"]).await;
    assert!(code == Some(0), "{out}{err}");
    let _relay = outbox.relay().spawn();
    let received = consumer.wait_distinct(9, 30 * SECOND).await;
    assert_eq!(judge(&received).distinct, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn blocked_keys_are_listed_and_released_on_postgres() {
    blocked_keys_are_listed_and_released(Outbox::on_postgres().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocked_keys_are_listed_and_released_on_mariadb() {
    blocked_keys_are_listed_and_released(Outbox::on_mariadb().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocked_keys_are_listed_and_released_on_sqlite() {
    blocked_keys_are_listed_and_released(Outbox::on_sqlite().await).await;
}
