//! What the trigger of the wake-up costs the application: the inserts of many writers with it and without it, in turn.

use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};

use crate::stage::{ROUTING_KEY, Source, Stage, body};
use crate::strain::Strained;
use crate::support::Kind;

const WRITERS: usize = 32;

/// Inserts a second.
pub(crate) async fn measure(stage: &mut Stage, seconds: u64, pairs: usize) -> Vec<Strained> {
    let lasts = Duration::from_secs(seconds);
    let without = async |stage: &mut Stage| rate(stage, lasts).await;
    let under = async |stage: &mut Stage| {
        stage.wake_up(true).await;
        let under = rate(stage, lasts).await;
        stage.wake_up(false).await;
        under
    };
    let measured = Strained::measure(stage, pairs, without, under).await;
    stage.clear().await;
    measured
}

/// Each row is a transaction of its own, and a relay is at work.
async fn rate(stage: &mut Stage, lasts: Duration) -> f64 {
    stage.load(Source::Postgres, 0, 1).await;
    stage.new_queue(Kind::Quorum).await;
    let mut relay = stage.relay(Source::Postgres).spawn();
    relay
        .wait_metric(
            "outbox_relay_broker_connected",
            |value| value == 1.0,
            Duration::from_secs(20),
        )
        .await;
    let end = Instant::now() + lasts;
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| tokio::spawn(write(stage.database_url.clone(), end)))
        .collect();
    let mut rows = 0;
    for writer in writers {
        rows += writer.await.expect("it writes");
    }
    relay.sigterm();
    assert!(relay.wait(Duration::from_secs(30)).await.success());
    f64::from(rows) / lasts.as_secs_f64()
}

async fn write(url: String, end: Instant) -> u32 {
    let mut connection = PgConnection::connect(&url).await.expect("the server is up");
    let payload = String::from_utf8(body(1)).expect("text");
    let mut rows = 0;
    while Instant::now() < end {
        sqlx::query("INSERT INTO outbox (routing_key, payload) VALUES ($1, $2::text::json)")
            .bind(ROUTING_KEY)
            .bind(&payload)
            .execute(&mut connection)
            .await
            .expect("it inserts");
        rows += 1;
    }
    rows
}
