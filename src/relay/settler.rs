//! Writes what was settled back to the table: marks in batches, refusals with them. Nothing is given up: a database
//! that is away is waited for, and one row that it will not take does not hold up the others.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::error;

use crate::broker::Confirmed;
use crate::message::RowId;
use crate::metrics::Metrics;
use crate::store::{Failure, Holder, Store, StoreError};

use super::Event;
use super::outage::Outage;
use super::reader::timed;

/// Longest pause between two tries; also how often a row that could not be marked is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What is to be written.
#[derive(Debug, Default)]
pub(super) struct Job {
    /// Confirmed rows.
    pub(super) sent: Vec<Confirmed>,
    /// Refused rows.
    pub(super) failed: Vec<Failure>,
}

pub(super) struct Settler {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    events: mpsc::Sender<Event>,
    holder: Holder,
    outage: Outage,
    /// Rows that the database will not mark, each for a reason of its own.
    stubborn: Vec<Confirmed>,
}

impl Settler {
    pub(super) fn new(
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
        events: mpsc::Sender<Event>,
        holder: Holder,
    ) -> Self {
        Self {
            store,
            metrics,
            events,
            holder,
            outage: Outage::new("writing to the outbox table"),
            stubborn: Vec::new(),
        }
    }

    pub(super) async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        loop {
            let job = match tokio::time::timeout(LONGEST_PAUSE, jobs.recv()).await {
                Ok(Some(job)) => job,
                Ok(None) => return,
                Err(_idle) if self.stubborn.is_empty() => continue,
                Err(_idle) => Job::default(),
            };
            let marked = self.mark(job.sent).await;
            let failed = self.record(job.failed).await;
            if self.events.send(Event::Settled { marked, failed }).await.is_err() {
                return;
            }
        }
    }

    /// Marks rows; returns those that are marked.
    async fn mark(&mut self, mut rows: Vec<Confirmed>) -> Vec<Confirmed> {
        rows.sort_unstable();
        let again = std::mem::take(&mut self.stubborn);
        let mut work: VecDeque<Vec<Confirmed>> = again.into_iter().map(|row| vec![row]).collect();
        work.push_front(rows);
        let mut marked = Vec::new();
        let mut tries = 0;
        while let Some(chunk) = work.pop_front() {
            if chunk.is_empty() {
                continue;
            }
            match timed(&self.metrics, "mark", self.store.mark_sent(&chunk)).await {
                Ok(count) => {
                    self.outage.over();
                    tries = 0;
                    self.metrics
                        .marks_lost
                        .inc_by((chunk.len() as u64).saturating_sub(count));
                    marked.extend(chunk);
                }
                Err(StoreError::Failed(text)) if chunk.len() == 1 => {
                    error!(
                        row = chunk[0].row().0,
                        error = text,
                        "this row was sent but cannot be marked: see what refuses the update"
                    );
                    self.stubborn.extend(chunk);
                }
                Err(StoreError::Failed(_)) => {
                    let half = chunk.len() / 2;
                    work.push_back(chunk[..half].to_vec());
                    work.push_back(chunk[half..].to_vec());
                }
                Err(error) => {
                    work.push_front(chunk);
                    self.pause(&error, &mut tries).await;
                }
            }
        }
        marked
    }

    /// Writes refusals; returns their rows. A refusal that the database will not take at all is only logged: the row
    /// stays unsent and is met again.
    async fn record(&mut self, failures: Vec<Failure>) -> Vec<RowId> {
        let rows = failures.iter().map(|failure| failure.row).collect();
        let mut tries = 0;
        while !failures.is_empty() {
            match timed(
                &self.metrics,
                "fail",
                self.store.record_failures(&failures, &self.holder),
            )
            .await
            {
                Ok(_) => {
                    self.outage.over();
                    break;
                }
                Err(error) => self.pause(&error, &mut tries).await,
            }
        }
        rows
    }

    async fn pause(&mut self, error: &StoreError, tries: &mut u32) {
        if !error.is_conflict() {
            self.outage.goes_on(&error.to_string());
        }
        let bound = Duration::from_millis(20) * 2u32.saturating_pow((*tries).min(8));
        *tries = tries.saturating_add(1);
        // At least half of it: a database that just refused is not asked again at once.
        let pause = bound.min(LONGEST_PAUSE).mul_f64(0.5 + fastrand::f64() / 2.0);
        tokio::time::sleep(pause).await;
    }
}
