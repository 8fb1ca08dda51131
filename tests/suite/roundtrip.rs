//! Random rows of every type and size, read back by a client in another language: what arrives is what was written.

mod sample;

use std::collections::HashMap;

use serde_json::Value;
use sqlx::Executor;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::outbox::{Database, Outbox, SECOND};
use crate::support::{exchange, python};
use sample::{EXCHANGES, Sample, samples};

/// What the rows of one run are like.
struct Run {
    seed: u64,
    count: usize,
    /// The largest body in bytes.
    largest: usize,
    /// `RELAY_MESSAGE_COMPRESSION`.
    compression: &'static str,
}

/// Bodies from here on are compressed: the default of `RELAY_MESSAGE_COMPRESSION_MIN_BYTES`.
const COMPRESSED_FROM: usize = 4 * 1024;

async fn what_arrives_is_what_was_written(outbox: Outbox, run: Run) {
    for name in EXCHANGES {
        exchange(&outbox.amqp_url, name, lapin::ExchangeKind::Fanout, &[], Some("q")).await;
    }
    outbox.db.take_any_body().await;
    let samples = samples(run.seed, run.count, run.largest);
    for page in samples.chunks(500) {
        insert(&outbox.db, page).await;
    }
    let relay = outbox
        .relay()
        .env("RELAY_AMQP_EXCHANGE", EXCHANGES[0])
        .env("RELAY_MESSAGE_COMPRESSION", run.compression)
        .spawn();
    let arrived = arrived(&outbox.amqp_url, samples.len()).await;
    for sample in &samples {
        let row = sample.message_id.to_string();
        let message = &arrived[&row];
        let compressed = run.compression != "none" && sample.is_compressible && sample.body.len() >= COMPRESSED_FROM;
        let compressed = compressed && !sample.properties.contains_key("content_encoding");
        let mut expected = sample.expected();
        if compressed {
            expected["properties"]["content_encoding"] = run.compression.into();
        }
        let encoded = message["encoded_bytes"].as_u64().expect("a size") as usize;
        assert_eq!(encoded < sample.body.len(), compressed, "{row}: {encoded} bytes");
        for (what, value) in expected.as_object().expect("an object") {
            assert_eq!(&message[what], value, "{row}: {what} of {sample:?}");
        }
    }
    outbox.wait_all_sent(60 * SECOND).await;
    assert_eq!(
        outbox
            .db
            .number("SELECT count(*) FROM outbox WHERE dead_at IS NOT NULL")
            .await,
        0
    );
    let connects = relay
        .metric("outbox_relay_broker_connects_total{outcome=\"success\"}")
        .await;
    assert_eq!(connects, Some(1.0), "no message cost the connection");
}

/// What came, by message id; copies are alike.
async fn arrived(url: &str, count: usize) -> HashMap<String, Value> {
    let mut consumer = python::start("consume.py", &[url, "q", &count.to_string()]);
    let mut lines = BufReader::new(consumer.stdout.take().expect("it is piped")).lines();
    let mut arrived: HashMap<String, Value> = HashMap::new();
    while let Some(line) = lines.next_line().await.expect("text") {
        let message: Value = serde_json::from_str(&line).expect("JSON");
        let id = message["properties"]["message_id"].as_str().expect("an id").to_owned();
        if let Some(earlier) = arrived.get(&id) {
            assert_eq!(earlier["sha256"], message["sha256"], "copies are alike");
        }
        arrived.insert(id, message);
    }
    assert!(consumer.wait().await.expect("it ends").success());
    assert_eq!(arrived.len(), count);
    arrived
}

/// `$insert` has the columns in the order of the binds.
macro_rules! insert_all {
    ($pool:expr, $samples:expr, $insert:expr) => {{
        let mut transaction = $pool.begin().await.expect("begins");
        for sample in $samples {
            let query = sqlx::query($insert)
                .bind(sample.message_id.to_string())
                .bind(sample.exchange)
                .bind(&sample.routing_key)
                .bind(&sample.ordering_key)
                .bind(&sample.kind)
                .bind(&sample.content_type)
                .bind(&sample.headers_text)
                .bind(sample.properties_text())
                .bind(&sample.body)
                .bind(sample.created_at);
            transaction.execute(query).await.expect("inserts");
        }
        transaction.commit().await.expect("commits");
    }};
}

async fn insert(db: &Database, samples: &[Sample]) {
    const COLUMNS: &str = "message_id, exchange, routing_key, ordering_key, type, content_type, headers, properties, \
                           payload, created_at";
    let sql = |values: &str| sqlx::AssertSqlSafe(format!("INSERT INTO outbox ({COLUMNS}) VALUES ({values})"));
    match db {
        Database::Postgres(pool) => insert_all!(
            pool,
            samples,
            sql("$1::uuid, $2, $3, $4, $5, $6, $7::json, $8::json, $9, to_timestamp($10)")
        ),
        Database::MariaDb(pool) => insert_all!(pool, samples, sql("?, ?, ?, ?, ?, ?, ?, ?, ?, from_unixtime(?)")),
        Database::Sqlite(pool) => insert_all!(
            pool,
            samples,
            sql("?, ?, ?, ?, ?, ?, ?, ?, ?, strftime('%Y-%m-%dT%H:%M:%fZ', ?, 'unixepoch')")
        ),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_rows_of_postgres_arrive_as_written() {
    let run = Run {
        seed: 1,
        count: 10_000,
        // RabbitMQ's own limit, from 4.0 on.
        largest: 16 << 20,
        compression: "none",
    };
    what_arrives_is_what_was_written(Outbox::on_postgres().await, run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_mariadb_arrive_as_written_compressed_with_gzip() {
    let run = Run {
        seed: 2,
        count: 1_000,
        // A packet of MariaDB has at most 16 MiB by default.
        largest: 8 << 20,
        compression: "gzip",
    };
    what_arrives_is_what_was_written(Outbox::on_mariadb().await, run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_sqlite_arrive_as_written_compressed_with_zstd() {
    let run = Run {
        seed: 3,
        count: 1_000,
        largest: 16 << 20,
        compression: "zstd",
    };
    what_arrives_is_what_was_written(Outbox::on_sqlite().await, run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_one_byte_too_many_is_a_dead_letter_and_costs_nobody_else() {
    let outbox = Outbox::on_postgres().await;
    outbox.db.take_any_body().await;
    for (key, bytes) in [("fits", 16 << 20), ("too-large", (16 << 20) + 1)] {
        let insert = "INSERT INTO outbox (routing_key, ordering_key, payload)";
        let body = format!("convert_to(repeat('x', {bytes}), 'UTF8')");
        outbox.db.run(&format!("{insert} SELECT 'good', '{key}', {body}")).await;
    }
    let relay = outbox.relay().spawn();
    outbox.wait_all_sent(60 * SECOND).await;
    let dead = "SELECT string_agg(ordering_key || ': ' || last_error, ', ') FROM outbox WHERE dead_at IS NOT NULL";
    let expected = "too-large: invalid: payload has 16777217 bytes, the limit is 16777216 (RELAY_MESSAGE_MAX_BYTES)";
    assert_eq!(outbox.db.text(dead).await.as_deref(), Some(expected));
    let connects = relay
        .metric("outbox_relay_broker_connects_total{outcome=\"success\"}")
        .await;
    assert_eq!(connects, Some(1.0));
}
