//! The task that looks what people have paused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::warn;

use crate::health::Health;
use crate::metrics::Metrics;
use crate::store::{Pause, Store, StoreError};

use super::Event;
use super::outage::Outage;
use super::reading::timed;

/// How soon a pause is obeyed, and ends.
const INTERVAL: Duration = Duration::from_secs(1);

/// How often what is paused is mentioned again, so that nobody forgets it.
const REMINDER: Duration = Duration::from_secs(60 * 60);

/// How often a table is looked for that is not there.
const MISSING_INTERVAL: Duration = Duration::from_secs(10);

/// Until the relay ends. While the database is away, what was known stays in force.
pub(super) async fn watch(
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    events: mpsc::Sender<Event>,
) {
    let mut outage = Outage::new("reading what is paused");
    let mut reminded = Instant::now();
    loop {
        let mut pause = INTERVAL;
        if reminded.elapsed() >= REMINDER {
            reminded = Instant::now();
            remind(&health.pauses().unwrap_or_default());
        }
        let known = match timed(&metrics, "pauses", store.pauses()).await {
            Ok(pauses) => Some(pauses),
            // Where there is no table, nobody can have paused anything.
            Err(StoreError::SchemaMissing(text)) => {
                outage.goes_on(&text);
                pause = MISSING_INTERVAL;
                health.pauses().is_none().then(Vec::new)
            }
            Err(error) => {
                if !error.is_conflict() {
                    outage.goes_on(&error.with_advice());
                }
                None
            }
        };
        if let Some(pauses) = known {
            if pause == INTERVAL {
                outage.over();
            }
            if health.pauses().as_ref() != Some(&pauses) && events.send(Event::Pauses(pauses)).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(pause).await;
    }
}

fn remind(pauses: &[Pause]) {
    for pause in pauses {
        let (exchange, by, reason) = (&pause.exchange, &pause.by, &pause.reason);
        warn!(exchange, by, reason, "still paused, until a person resumes it");
    }
}
