//! The slow work beside the relay's own: counting the backlog, tidying, saying once a minute what was done.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info};

use crate::metrics::Metrics;
use crate::store::Store;

use super::reading::timed;

/// How often the backlog is counted.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);

/// How often totals are noted for the rates; a line is logged with every twelfth.
const RATE_INTERVAL: Duration = Duration::from_secs(5);
const RATES_PER_SUMMARY: u32 = 12;

/// How often the relay's own tables are tidied.
const TIDY_INTERVAL: Duration = Duration::from_secs(30);

/// Counts the backlog for the metrics, for ever.
pub(super) async fn sample_backlog(store: Arc<dyn Store>, metrics: Arc<Metrics>) {
    loop {
        match timed(&metrics, "backlog", store.backlog()).await {
            Ok(backlog) => metrics.backlog(&backlog),
            // The reader tells about an outage of the database.
            Err(error) => debug!(%error, "could not count the backlog"),
        }
        tokio::time::sleep(SAMPLE_INTERVAL).await;
    }
}

/// Notes the totals for the rates, for ever, and logs one line a minute while there is something to tell.
pub(super) async fn summarise(metrics: Arc<Metrics>) {
    let mut before = metrics.totals();
    metrics.rates.note(before);
    loop {
        for _ in 0..RATES_PER_SUMMARY {
            tokio::time::sleep(RATE_INTERVAL).await;
            metrics.rates.note(metrics.totals());
        }
        let now = metrics.totals();
        if now != before {
            info!(
                published = now.published - before.published,
                failures = now.failures - before.failures,
                dead_lettered = now.dead_lettered - before.dead_lettered,
                in_flight = metrics.in_flight.get(),
                blocked_keys = metrics.blocked_keys.get(),
                "the last minute"
            );
        }
        before = now;
    }
}

/// Removes what the relay's own tables hold of rows that are gone, for ever.
pub(super) async fn tidy(store: Arc<dyn Store>) {
    loop {
        tokio::time::sleep(TIDY_INTERVAL).await;
        if let Err(error) = store.tidy().await {
            // What is left does no harm; the reader tells about an outage.
            debug!(%error, "could not tidy the relay's own tables");
        }
    }
}
