//! The slow work beside the relay's own: counting the backlog, purging old rows, saying once a minute what was done.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, info};

use crate::health::Health;
use crate::metrics::Metrics;
use crate::store::{Store, StoreError};

use super::outage::Outage;
use super::reading::timed;

/// How often the backlog is counted.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);

/// How often totals are noted for the rates; a line is logged with every twelfth.
const RATE_INTERVAL: Duration = Duration::from_secs(5);
const RATES_PER_SUMMARY: u32 = 12;

/// Rows purged with one statement.
const PURGE_BATCH: u32 = 1_000;

/// Pause after a full batch, in times of what it took: with as long a pause as the batch, a drain that went on beside it kept
/// 0.75 of its rate and twice as many rows were purged as sent (`cargo bench -- --only purge`).
const PURGE_REST: u32 = 2;

/// Pause when nothing (more) is old enough.
const PURGE_INTERVAL: Duration = Duration::from_secs(30);

/// A purge that has not come to the end of the old rows for so long is behind.
const PURGE_BEHIND: Duration = Duration::from_secs(10);

const TOO_MANY: &str = "sent rows older than RELAY_OUTBOX_RETENTION are more than are deleted in time; it goes on";

const NOT_ALLOWED: &str = "grant DELETE on the table, or set RELAY_OUTBOX_RETENTION=off";

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
        tokio::time::sleep(PURGE_INTERVAL).await;
        if let Err(error) = store.tidy().await {
            // What is left does no harm; the reader tells about an outage.
            debug!(%error, "could not tidy the relay's own tables");
        }
    }
}

/// Deletes sent rows that are older than `retention`, for ever: in small batches, and never more than a third of the time.
pub(super) async fn purge(store: Arc<dyn Store>, metrics: Arc<Metrics>, health: Arc<Health>, retention: Duration) {
    let mut outage = Outage::new("keeping the table free of old rows");
    let (mut purged, mut begun) = (0, Instant::now());
    loop {
        let start = Instant::now();
        let purge = timed(&metrics, "purge", store.purge(retention, PURGE_BATCH)).await;
        let (problem, pause) = match purge {
            Ok(count) => {
                metrics.rows_purged.inc_by(count);
                purged += count;
                if count == u64::from(PURGE_BATCH) {
                    let behind = begun.elapsed() > PURGE_BEHIND;
                    (behind.then(|| TOO_MANY.to_owned()), PURGE_REST * start.elapsed())
                } else {
                    if purged > 0 {
                        info!(rows = purged, "purged sent rows older than the retention");
                    }
                    purged = 0;
                    (None, PURGE_INTERVAL)
                }
            }
            Err(StoreError::Denied(text)) => (Some(format!("{text}: {NOT_ALLOWED}")), PURGE_INTERVAL),
            Err(error) => (Some(error.to_string()), PURGE_INTERVAL),
        };
        metrics.purge_behind.set(i64::from(problem.is_some()));
        match problem {
            None => {
                outage.over();
                health.purge.up();
            }
            Some(reason) => {
                outage.goes_on(&reason);
                health.purge.down(&reason);
            }
        }
        tokio::time::sleep(pause).await;
        if pause == PURGE_INTERVAL {
            begun = Instant::now();
        }
    }
}
