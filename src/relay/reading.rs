//! The task that reads: what it is told to, one thing at a time.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tracing::warn;

use crate::metrics::Metrics;
use crate::store::{Store, StoreError};

use super::Event;
use super::reader::{Answer, DEAD_KEYS, Read, SCAN_PAGE};

/// Until nobody asks any more.
pub(super) async fn run(
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    mut reads: mpsc::Receiver<(u64, Read)>,
    events: mpsc::Sender<Event>,
) {
    let mut inspected = false;
    while let Some((round, read)) = reads.recv().await {
        let answer = read_once(&*store, &metrics, &read, &mut inspected).await;
        let read = (round, read);
        if events.send(Event::Read { read, answer }).await.is_err() {
            return;
        }
    }
}

async fn read_once(
    store: &dyn Store,
    metrics: &Metrics,
    read: &Read,
    inspected: &mut bool,
) -> Result<Answer, StoreError> {
    if !*inspected {
        timed(metrics, "inspect", store.inspect()).await?;
        *inspected = true;
    }
    let answer =
        match read {
            Read::Head { after, limit, shares } => timed(metrics, "head", store.head(*after, *limit, shares))
                .await
                .map(|rows| Answer::Head {
                    rows,
                    whole: !store.owes_a_look(),
                }),
            Read::Scan { after, to, shares } => timed(metrics, "scan", store.scan(*after, *to, SCAN_PAGE, shares))
                .await
                .map(Answer::Scan),
            Read::Probe(ids) => timed(metrics, "probe", store.probe(ids)).await.map(Answer::Probe),
            Read::Fetch { ids, bytes } => timed(metrics, "fetch", store.fetch(ids, *bytes))
                .await
                .map(Answer::Fetch),
            Read::DeadKeys => timed(metrics, "dead_keys", store.dead_keys(DEAD_KEYS))
                .await
                .map(Answer::DeadKeys),
            Read::Changed => store.changed().await.map(Answer::Changed),
        };
    if let Err(StoreError::SchemaMissing(_)) = &answer {
        *inspected = false;
    }
    answer
}

/// Measures a database operation.
pub(super) async fn timed<T>(
    metrics: &Metrics,
    operation: &'static str,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let start = Instant::now();
    let result = work.await;
    let took = start.elapsed();
    metrics.store_operation(operation, took, result.is_err());
    if metrics.slowest.note(operation, took) {
        let seconds = took.as_secs_f64();
        warn!(operation, seconds, "the database is slow");
    }
    result
}
