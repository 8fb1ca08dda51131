//! The wake-up when a writer or another relay is in its way. Polls are an hour apart, so that what comes was told.

use std::time::Instant;

use outbox_relay::message::RowId;
use outbox_relay::store::share_of;
use sqlx::{AssertSqlSafe, Executor};

use crate::outbox::{Outbox, SECOND, migrate_with_wakeup, session};
use crate::support::{Consumer, RelayCommand, until};

/// Relays that listen hold it while they are armed.
const ARMED: &str = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// Relays whose last statement tried to get it.
const TRIED: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND query LIKE 'SELECT pg_try_advisory_lock(%'";

const EMPTY_POLLS: &str = "outbox_relay_polls_total{outcome=\"empty\"}";

async fn with_wakeup() -> Outbox {
    let outbox = Outbox::on_postgres().await;
    migrate_with_wakeup(&outbox.database_url).await;
    outbox
}

fn without_polls(outbox: &Outbox) -> RelayCommand {
    outbox
        .relay()
        .env("RELAY_POLL_MIN_INTERVAL", "1h")
        .env("RELAY_POLL_MAX_INTERVAL", "1h")
        .env("RELAY_POLL_SWEEP_INTERVAL", "50s")
}

async fn wait_armed(outbox: &Outbox) {
    until("a relay is armed", 30 * SECOND, async || {
        outbox.db.number(ARMED).await == 1
    })
    .await;
}

/// A key of this share, of 16.
fn key_of(share: u16) -> String {
    let keys = (0..).map(|n| format!("k{n}"));
    let mut of_share = keys.filter(|key| share_of(RowId(0), Some(key), 16) == share);
    of_share.next().expect("there are many")
}

fn insert_of(key: &str) -> AssertSqlSafe<String> {
    AssertSqlSafe(format!(
        "INSERT INTO outbox (routing_key, ordering_key, payload) VALUES ('good', '{key}', '1')"
    ))
}

/// The trigger holds what the relay asks for until its transaction ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_fell_asleep_beside_an_open_insert_is_armed_soon_after_it() {
    let outbox = with_wakeup().await;
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let mut writer = session(&outbox.database_url).await;
    writer.execute("BEGIN").await.expect("begun");
    writer.execute(insert_of("a")).await.expect("inserted");
    let _relay = without_polls(&outbox).spawn();
    until("it has tried", 30 * SECOND, async || outbox.db.number(TRIED).await == 1).await;
    let tried = Instant::now();
    assert_eq!(outbox.db.number(ARMED).await, 0);
    writer.execute("COMMIT").await.expect("committed");
    wait_armed(&outbox).await;
    let unarmed = tried.elapsed();
    assert!(unarmed < 4 * SECOND, "{unarmed:?}");
    consumer.wait_distinct(1, 30 * SECOND).await;
    writer.execute(insert_of("a")).await.expect("inserted");
    consumer.wait_distinct(2, 30 * SECOND).await;
}

/// One relay is busy, and the other one sleeps.
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_another_relay_do_not_keep_waking_one_that_sleeps() {
    const INSERTS: usize = 1_000;
    let outbox = with_wakeup().await;
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let sleeping = without_polls(&outbox).spawn();
    wait_armed(&outbox).await;
    let busy = outbox.relay().spawn();
    for relay in [&sleeping, &busy] {
        relay
            .wait_metric("outbox_relay_partitions_owned", |owned| owned == 8.0, 30 * SECOND)
            .await;
    }
    let before = sleeping.metric(EMPTY_POLLS).await.unwrap_or_default();
    let mut writer = session(&outbox.database_url).await;
    // The highest shares were handed over.
    let key = key_of(15);
    for _ in 0..INSERTS {
        writer.execute(insert_of(&key)).await.expect("inserted");
    }
    consumer.wait_distinct(INSERTS, 60 * SECOND).await;
    let looks = sleeping.metric(EMPTY_POLLS).await.unwrap_or_default() - before;
    println!("{looks} looks for {INSERTS} inserts");
    assert!(looks < 100.0, "{looks} looks");
    // It is woken again by its own.
    wait_armed(&outbox).await;
    writer.execute(insert_of(&key_of(0))).await.expect("inserted");
    consumer.wait_distinct(INSERTS + 1, 30 * SECOND).await;
}
