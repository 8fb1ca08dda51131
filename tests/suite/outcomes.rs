//! What each outcome does: dead letters are exactly the rows that deserve it, and cost the others nothing.

use crate::outbox::{Database, Outbox, SECOND, judge, session};
use crate::support::{Consumer, Kind, Rabbit, Received, declare, drain_queue, numbers, until};
use sqlx::Executor;

async fn exactly_the_unroutable_become_dead_letters(outbox: Outbox, kind: Kind) {
    declare(&outbox.amqp_url, "mixed", "m", kind, &["here"]).await;
    let relay = outbox
        .relay()
        .env("RELAY_RETRY_MAX_ATTEMPTS", "1")
        .env("RELAY_AMQP_EXCHANGE", "mixed")
        .spawn();
    for round in 1..=20 {
        // Every row its own key: whole windows of mixed fates.
        outbox
            .db
            .run(&match outbox.db {
                Database::MariaDb(_) => format!(
                    "INSERT INTO outbox (routing_key, ordering_key, payload)
                     SELECT CASE WHEN rand() < 0.5 THEN 'here' ELSE 'nowhere' END, concat('k', seq), seq FROM {}",
                    numbers(1, 500)
                ),
                _ => "INSERT INTO outbox (routing_key, ordering_key, payload)
                     SELECT CASE WHEN random() < 0.5 THEN 'here' ELSE 'nowhere' END, 'k' || n, to_json(n) FROM generate_series(1, 500) AS n"
                    .to_owned(),
            })
            .await;
        outbox.wait_all_sent(60 * SECOND).await;
        let wrong = "SELECT count(*) FROM outbox WHERE (routing_key = 'here') <> (sent_at IS NOT NULL) OR (routing_key = 'nowhere') <> (dead_at IS NOT NULL)";
        assert_eq!(outbox.db.number(wrong).await, 0, "round {round}");
    }
    let routable = outbox
        .db
        .number("SELECT count(*) FROM outbox WHERE routing_key = 'here'")
        .await;
    let unroutable = outbox.db.number("SELECT count(*) FROM outbox WHERE routing_key = 'nowhere' AND attempts = 1 AND last_error LIKE 'unroutable%'").await;
    assert_eq!(routable + unroutable, 10_000);
    assert_eq!(
        relay
            .metric("outbox_relay_messages_dead_lettered_total{reason=\"unroutable\"}")
            .await,
        Some(unroutable as f64)
    );
    drop(relay);
    assert_eq!(drain_queue(&outbox.amqp_url, "m").await.len() as i64, routable);
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_the_unroutable_become_dead_letters_beside_a_quorum_queue() {
    exactly_the_unroutable_become_dead_letters(Outbox::on_postgres().await, Kind::Quorum).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_the_unroutable_become_dead_letters_beside_a_classic_queue() {
    exactly_the_unroutable_become_dead_letters(Outbox::on_postgres().await, Kind::Classic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_the_unroutable_become_dead_letters_of_mariadb() {
    exactly_the_unroutable_become_dead_letters(Outbox::on_mariadb().await, Kind::Quorum).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_rows_become_dead_letters_and_good_rows_do_not_notice() {
    let rabbit = Rabbit::shared().await;
    let outbox = Outbox::on_postgres().await;
    declare(&outbox.amqp_url, "forbidden", "f", Kind::Classic, &["good"]).await;
    let user = format!("u{}", uuid::Uuid::new_v4().simple());
    let limited = rabbit
        // RabbitMQ 4.3 looks at the permission before it looks for the exchange.
        .add_user(&user, "pw", &outbox.amqp_url, ["^$", "^(events|missing)$", "^$"])
        .await;
    let relay = outbox
        .relay()
        .env("RELAY_AMQP_URL", &limited)
        .env("RELAY_RETRY_MAX_ATTEMPTS", "2")
        .env("RELAY_RETRY_MIN_DELAY", "50ms")
        .env("RELAY_MESSAGE_MAX_BYTES", "1MiB")
        .spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let poison = [
        (
            "'long key', repeat('k', 256), '{}', '{}', '1', NULL",
            "routing_key has 256 bytes",
        ),
        (
            "'headers', 'good', '[1]', '{}', '1', NULL",
            "headers must be a JSON object",
        ),
        (
            "'big headers', 'good', json_build_object('h', repeat('x', 200000)), '{}', '1', NULL",
            "headers take",
        ),
        (
            "'big body', 'good', '{}', '{}', to_json(repeat('x', 2000000)), NULL",
            "payload has",
        ),
        (
            "'expiration', 'good', '{}', '{\"expiration\": \"soon\"}', '1', NULL",
            "property expiration",
        ),
        (
            "'property', 'good', '{}', '{\"nonsense\": 1}', '1', NULL",
            "\"nonsense\" is unknown",
        ),
        ("'missing', 'good', '{}', '{}', '1', 'missing'", "no_exchange: "),
        ("'forbidden', 'good', '{}', '{}', '1', 'forbidden'", "refused: "),
    ];
    for round in 0..3 {
        outbox.insert(round * 1_000, 500, 50).await;
        for (values, _) in poison {
            let insert = "INSERT INTO outbox (ordering_key, routing_key, headers, properties, payload, exchange)";
            outbox.db.run(&format!("{insert} SELECT {values}")).await;
        }
        outbox.insert(round * 1_000 + 500, 500, 50).await;
    }
    let received = consumer.wait_distinct(3_000, 60 * SECOND).await;
    judge(&received);
    outbox.wait_all_sent(60 * SECOND).await;
    let dead = outbox
        .db
        .number("SELECT count(*) FROM outbox WHERE dead_at IS NOT NULL")
        .await;
    assert_eq!(dead, 3 * poison.len() as i64);
    for (values, reason) in poison {
        let key = values.split('\'').nth(1).unwrap();
        let error = outbox
            .db
            .text(&format!(
                "SELECT min(last_error) FROM outbox WHERE ordering_key = '{key}'"
            ))
            .await;
        assert!(
            error.as_ref().is_some_and(|error| error.contains(reason)),
            "{key}: {error:?}"
        );
    }
    let attempts = outbox
        .db
        .number("SELECT max(attempts)::bigint FROM outbox WHERE last_error LIKE 'invalid%'")
        .await;
    assert_eq!(attempts, 0, "what can never be a message is not tried");
    assert_eq!(
        relay
            .metric("outbox_relay_broker_connects_total{outcome=\"success\"}")
            .await,
        Some(1.0)
    );
}

/// SQLite takes any bytes for text. Made into characters they would be another routing key, or the id of another message.
#[tokio::test(flavor = "multi_thread")]
async fn text_that_is_not_utf8_is_a_dead_letter() {
    let outbox = Outbox::on_sqlite().await;
    outbox.insert(0, 10, 10).await;
    let columns = [
        "message_id",
        "exchange",
        "routing_key",
        "ordering_key",
        "type",
        "content_type",
        "headers",
        "properties",
    ];
    for column in columns {
        let text = match column {
            "headers" | "properties" => "CAST(x'7b2261707069645f223a22ff227d' AS TEXT)",
            _ => "CAST(x'61ff' AS TEXT)",
        };
        let (names, values) = match column {
            "routing_key" => (String::new(), String::new()),
            _ => ("routing_key, ".to_owned(), "'good', ".to_owned()),
        };
        let insert = format!("INSERT INTO outbox ({names}{column}, payload) VALUES ({values}{text}, '1')");
        outbox.db.run(&insert).await;
    }
    outbox.insert(10, 10, 10).await;
    let _relay = outbox.relay().spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    outbox.wait_all_sent(30 * SECOND).await;
    let errors = "SELECT group_concat(last_error, '; ') FROM (SELECT last_error FROM outbox WHERE dead_at IS NOT NULL ORDER BY id)";
    let expected = columns
        .map(|column| format!("invalid: {column} is not UTF-8"))
        .join("; ");
    assert_eq!(outbox.db.text(errors).await, Some(expected));
    assert_eq!(judge(&consumer.wait_distinct(20, 30 * SECOND).await).distinct, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_spends_no_attempts_and_drains_when_there_is_room() {
    let rabbit = Rabbit::shared().await;
    let outbox = Outbox::on_postgres().await;
    declare(&outbox.amqp_url, "narrow", "full", Kind::Classic, &["good"]).await;
    rabbit
        .set_policy(
            &outbox.amqp_url,
            "cap",
            "^full$",
            r#"{"max-length":5,"overflow":"reject-publish"}"#,
        )
        .await;
    outbox.db.run("INSERT INTO outbox (exchange, routing_key, payload) SELECT 'narrow', 'good', to_json(n) FROM generate_series(1, 300) AS n").await;
    outbox.insert(0, 1_000, 50).await;
    let relay = outbox
        .relay()
        .env("RELAY_RETRY_MIN_DELAY", "50ms")
        .env("RELAY_RETRY_MAX_DELAY", "500ms")
        .env("RELAY_RETRY_MAX_ATTEMPTS", "1")
        .spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    consumer.wait_distinct(1_000, 60 * SECOND).await;
    relay
        .wait_metric(
            "outbox_relay_publish_failures_total{reason=\"nack\"}",
            |value| value > 300.0,
            30 * SECOND,
        )
        .await;
    rabbit.clear_policy(&outbox.amqp_url, "cap").await;
    outbox.wait_all_sent(60 * SECOND).await;
    assert_eq!(
        outbox
            .db
            .number("SELECT count(*) FROM outbox WHERE attempts > 0 OR dead_at IS NOT NULL")
            .await,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_of_one_exchange_starves_no_other() {
    let outbox = Outbox::on_postgres().await;
    declare(&outbox.amqp_url, "narrow", "full", Kind::Classic, &["good"]).await;
    let limit = r#"{"max-length":5,"overflow":"reject-publish"}"#;
    let rabbit = Rabbit::shared().await;
    rabbit.set_policy(&outbox.amqp_url, "cap", "^full$", limit).await;
    outbox
        .db
        .run(
            "INSERT INTO outbox (exchange, routing_key, ordering_key, payload)
             SELECT 'narrow', 'good', 'narrow-' || n % 20000, to_json(n) FROM generate_series(1, 100000) AS n",
        )
        .await;
    outbox.insert(0, 5_000, 500).await;
    let relay = outbox.relay().spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let received = consumer
        .wait_for(|received| judge(received).distinct == 5_000, 120 * SECOND)
        .await;
    assert_eq!(judge(&received).duplicates, 0);
    // The others are where they were, but for the few that fitted.
    assert!(outbox.db.unsent().await > 90_000);
    let full = relay
        .metric("outbox_relay_publish_failures_total{reason=\"nack\"}")
        .await;
    assert!(full > Some(1_000.0), "{full:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_blocks_its_key_if_asked_until_it_is_gone() {
    let outbox = Outbox::on_postgres().await;
    let mut db = session(&outbox.database_url).await;
    db.execute(
        "INSERT INTO outbox (routing_key, ordering_key, payload) SELECT CASE n WHEN 3 THEN 'nowhere' ELSE 'good' END, 'a', json_build_object('key', 1000, 'n', n) FROM generate_series(1, 10) AS n",
    )
    .await
    .unwrap();
    outbox.insert(100, 100, 10).await;
    let relay = || {
        outbox
            .relay()
            .env("RELAY_ON_DEAD_LETTER", "block")
            .env("RELAY_RETRY_MAX_ATTEMPTS", "1")
            .env("RELAY_POLL_SWEEP_INTERVAL", "500ms")
            .spawn()
    };
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let mut first = relay();
    consumer.wait_distinct(102, 30 * SECOND).await;
    until("the third row is a dead letter", 10 * SECOND, async || {
        outbox
            .db
            .number("SELECT count(*) FROM outbox WHERE dead_at IS NOT NULL")
            .await
            == 1
    })
    .await;
    // A relay that starts later knows it as well.
    first.sigterm();
    assert!(first.wait(30 * SECOND).await.success());
    let _second = relay();
    outbox.insert(200, 100, 10).await;
    let received = consumer.wait_distinct(202, 30 * SECOND).await;
    assert_eq!(received.len(), 202, "the key waits");
    db.execute("DELETE FROM outbox WHERE dead_at IS NOT NULL")
        .await
        .unwrap();
    let received = consumer.wait_distinct(209, 30 * SECOND).await;
    judge(&received);
}

async fn a_delayed_row_waits(outbox: Outbox) {
    outbox
        .db
        .run(&format!(
            "INSERT INTO outbox (routing_key, ordering_key, payload, available_at) VALUES
             ('good', 'a', '{{\"key\": 1, \"n\": 1}}', {}),
             ('good', 'a', '{{\"key\": 1, \"n\": 2}}', NULL),
             ('good', 'b', '{{\"key\": 2, \"n\": 1}}', NULL)",
            outbox.db.in_seconds(3)
        ))
        .await;
    let _relay = outbox.relay().spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let received = consumer.wait_distinct(3, 30 * SECOND).await;
    judge(&received);
    assert!(received[0].text().contains("\"key\": 2"), "{}", received[0].text());
    let early = "SELECT count(*) FROM outbox WHERE sent_at < available_at";
    outbox.wait_all_sent(10 * SECOND).await;
    assert_eq!(outbox.db.number(early).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_row_waits_and_later_rows_of_its_key_wait_for_it() {
    a_delayed_row_waits(Outbox::on_postgres().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_row_waits_and_later_rows_of_its_key_wait_for_it_on_mariadb() {
    a_delayed_row_waits(Outbox::on_mariadb().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_tells_what_was_surely_not_published_before_from_the_rest() {
    let outbox = Outbox::on_postgres().await;
    // Another relay may have published these before it died.
    outbox.insert(0, 100, 10).await;
    let _relay = outbox
        .relay()
        .env("RELAY_MESSAGE_REPEAT_HEADER", "outbox-repeat")
        .spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    consumer.wait_distinct(100, 30 * SECOND).await;
    outbox.insert(100, 100, 10).await;
    let received = consumer.wait_distinct(200, 30 * SECOND).await;
    let may_repeat = |message: &Received| message.headers.inner()["outbox-repeat"].as_bool();
    assert!(received[..100].iter().all(|message| may_repeat(message) == Some(true)));
    // Those that a probe or a sweep found first could be repetitions for all that is known.
    let surely_first = received[100..]
        .iter()
        .filter(|message| may_repeat(message) == Some(false));
    assert!(surely_first.count() >= 50, "{received:?}");
}
