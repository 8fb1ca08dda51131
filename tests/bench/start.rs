//! From the start of the process to the first message, with the servers up and a row waiting.

use std::time::{Duration, Instant};

use crate::latency::Arrivals;
use crate::stage::{Source, Stage};
use crate::support::Kind;

pub(crate) async fn measure(stage: &mut Stage, times: usize) -> Vec<Duration> {
    let mut measured = Vec::new();
    for _ in 0..times {
        stage.load(Source::Postgres, 1, 1).await;
        let queue = stage.new_queue(Kind::Quorum).await;
        let arrivals = Arrivals::start(&stage.amqp_url, &queue, 1).await;
        let began = Instant::now();
        let mut relay = stage.relay(Source::Postgres).spawn();
        measured.extend(arrivals.since(&[began]).await);
        relay.sigterm();
        assert!(relay.wait(Duration::from_secs(30)).await.success());
    }
    measured
}

/// Of the program's file.
pub(crate) fn binary_mb() -> f64 {
    let file = std::fs::metadata(env!("CARGO_BIN_EXE_outbox-relay")).expect("it is built");
    file.len() as f64 / 1e6
}
