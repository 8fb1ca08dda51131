//! The slow work beside the relay's own: counting the backlog, purging old rows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, info};

use crate::metrics::Metrics;
use crate::store::Store;

use super::outage::Outage;
use super::reading::timed;

/// How often the backlog is counted.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);

/// Rows purged with one statement.
const PURGE_BATCH: u32 = 1_000;

/// Pause when nothing (more) is old enough.
const PURGE_INTERVAL: Duration = Duration::from_secs(30);

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

/// Deletes sent rows that are older than `retention`, for ever: in small batches, and never more than half of the time.
pub(super) async fn purge(store: Arc<dyn Store>, metrics: Arc<Metrics>, retention: Duration) {
    let mut outage = Outage::new("purging old rows");
    let mut purged = 0;
    loop {
        let start = Instant::now();
        let pause = match timed(&metrics, "purge", store.purge(retention, PURGE_BATCH)).await {
            Ok(count) => {
                outage.over();
                metrics.rows_purged.inc_by(count);
                purged += count;
                if count == u64::from(PURGE_BATCH) {
                    start.elapsed()
                } else {
                    if purged > 0 {
                        info!(rows = purged, "purged sent rows older than the retention");
                    }
                    purged = 0;
                    PURGE_INTERVAL
                }
            }
            Err(error) => {
                outage.goes_on(&error.to_string());
                PURGE_INTERVAL
            }
        };
        tokio::time::sleep(pause).await;
    }
}
