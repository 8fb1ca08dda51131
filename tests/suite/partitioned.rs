//! A PostgreSQL table that is partitioned by time: the application makes it, and `migrate` adds what the relay needs.

use sqlx::Executor;

use crate::outbox::{Outbox, SECOND, judge, session};
use crate::support::{Consumer, Postgres, Relay, until};

/// The key has the partition's column in it, as PostgreSQL asks for: that an id is unique is the sequence's doing.
/// Identity columns of partitioned tables are new in PostgreSQL 17.
const TABLE: &str = "
CREATE SEQUENCE outbox_id;
CREATE TABLE outbox (
    id bigint NOT NULL DEFAULT nextval('outbox_id'), message_id uuid NOT NULL DEFAULT gen_random_uuid(),
    exchange text, routing_key text NOT NULL, ordering_key text, type text,
    content_type text NOT NULL DEFAULT 'application/json',
    headers json NOT NULL DEFAULT '{}', properties json NOT NULL DEFAULT '{}', payload json NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(), available_at timestamptz,
    attempts integer NOT NULL DEFAULT 0, next_attempt_at timestamptz, last_error text,
    sent_at timestamptz, dead_at timestamptz,
    PRIMARY KEY (id, created_at)
) PARTITION BY RANGE (created_at);
CREATE TABLE outbox_2001 PARTITION OF outbox FOR VALUES FROM ('2001-01-01') TO ('2002-01-01');
CREATE TABLE outbox_now PARTITION OF outbox FOR VALUES FROM ('2002-01-01') TO ('2999-01-01');
CREATE TABLE outbox_rest PARTITION OF outbox DEFAULT";

/// Rows of 50 keys, each key's in both partitions by turns.
const INSERT: &str = "
INSERT INTO outbox (routing_key, ordering_key, payload, created_at)
SELECT 'good', 'k' || (n % 50), json_build_object('key', n % 50, 'n', n), CASE n / 50 % 2 WHEN 0 THEN now() ELSE '2001-06-01' END
FROM generate_series";

async fn partitioned() -> Outbox {
    let url = Postgres::shared().await.create_database().await;
    let mut owner = session(&url).await;
    owner.execute(sqlx::raw_sql(TABLE)).await.expect("a table");
    Outbox::on(url).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partitioned_table_is_sent_in_order_marked_and_purged() {
    let outbox = partitioned().await;
    let count = async |what: &str| outbox.db.number(&format!("SELECT count(*) FROM {what}")).await;
    assert_eq!(
        count("pg_indexes WHERE indexdef LIKE '%WHERE%sent_at IS NULL%'").await,
        4,
        "one for each partition"
    );
    let env = [
        ("RELAY_DATABASE_URL", outbox.database_url.as_str()),
        ("RELAY_AMQP_URL", outbox.amqp_url.as_str()),
        ("RELAY_AMQP_EXCHANGE", "events"),
    ];
    let (status, out, _) = Relay::run_to_end(&["check"], &env).await;
    assert!(status.success() && out.contains("ok      autovacuum"), "{out}");

    let relay = outbox.relay().env("RELAY_RETRY_MAX_ATTEMPTS", "1").spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    outbox.db.run(&format!("{INSERT}(0, 4999) AS n")).await;
    outbox
        .db
        .run("INSERT INTO outbox (routing_key, payload, created_at) VALUES ('nowhere', '{\"key\": 99, \"n\": 1}', '2001-06-01')")
        .await;
    outbox.wait_all_sent(60 * SECOND).await;
    assert_eq!(count("outbox_2001 WHERE sent_at IS NOT NULL").await, 2_500);
    assert_eq!(count("outbox_2001 WHERE dead_at IS NOT NULL").await, 1);
    outbox
        .db
        .run("UPDATE outbox SET routing_key = 'good' WHERE dead_at IS NOT NULL")
        .await;
    let (status, out, err) = Relay::run_to_end(&["dead-letters", "replay", "--all"], &env).await;
    assert!(status.success(), "{out}{err}");
    outbox.wait_all_sent(30 * SECOND).await;

    // Partitions go and come while the relay runs.
    outbox
        .db
        .run("DROP TABLE outbox_2001; CREATE TABLE outbox_2001_june PARTITION OF outbox FOR VALUES FROM ('2001-06-01') TO ('2001-07-01')")
        .await;
    outbox.db.run(&format!("{INSERT}(5000, 6999) AS n")).await;
    let received = consumer.wait_distinct(7_001, 60 * SECOND).await;
    let arrived = judge(&received);
    assert_eq!((arrived.distinct, arrived.duplicates), (7_001, 0));
    outbox.wait_all_sent(30 * SECOND).await;
    drop(relay);

    outbox
        .db
        .run("UPDATE outbox SET sent_at = now() - interval '8 days' WHERE id % 2 = 0")
        .await;
    let (old, all) = (count("outbox WHERE id % 2 = 0").await, count("outbox").await);
    let relay = outbox.relay().spawn();
    until("the old ones are purged", 60 * SECOND, async || {
        count("outbox").await == all - old
    })
    .await;
    drop(relay);

    let _relay = outbox.relay().env("RELAY_OUTBOX_ON_SENT", "delete").spawn();
    outbox.db.run(&format!("{INSERT}(7000, 7999) AS n")).await;
    let received = consumer.wait_distinct(8_001, 60 * SECOND).await;
    assert_eq!(judge(&received).distinct, 8_001);
    until("they are deleted", 30 * SECOND, async || {
        count("outbox").await == all - old
    })
    .await;
    let (status, out, _) = Relay::run_to_end(&["status"], &env).await;
    assert!(status.success(), "{out}");
}
