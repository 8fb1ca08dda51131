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
use super::reading::timed;

/// Longest pause between two tries. A row that could not be marked is tried again after so long without other work.
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
            let event = match tokio::time::timeout(LONGEST_PAUSE, jobs.recv()).await {
                Ok(Some(job)) => {
                    let marked = self.mark(in_one(job.sent)).await;
                    let (written, refused) = self.record(job.failed).await;
                    Event::Settled {
                        marked,
                        written,
                        refused,
                    }
                }
                Ok(None) => return,
                Err(_idle) if self.stubborn.is_empty() => continue,
                Err(_idle) => {
                    let again = std::mem::take(&mut self.stubborn);
                    Event::Marked(self.mark(again.into_iter().map(|row| vec![row]).collect()).await)
                }
            };
            if self.events.send(event).await.is_err() {
                return;
            }
        }
    }

    /// Marks rows; returns those that are marked. Where the database refuses one for a reason of its own, the others are
    /// marked all the same.
    async fn mark(&mut self, mut work: VecDeque<Vec<Confirmed>>) -> Vec<Confirmed> {
        let mut marked = Vec::new();
        let mut tries = 0;
        while let Some(chunk) = work.pop_front() {
            match timed(&self.metrics, "mark", self.store.mark_sent(&chunk)).await {
                Ok(count) => {
                    self.outage.over();
                    tries = 0;
                    let lost = (chunk.len() as u64).saturating_sub(count);
                    self.metrics.marks_lost.inc_by(lost);
                    marked.extend(chunk);
                }
                Err(StoreError::Failed(text)) if chunk.len() == 1 => {
                    let row = chunk[0].row().0;
                    error!(
                        row,
                        error = text,
                        "this row was sent but cannot be marked: see what refuses the update"
                    );
                    self.stubborn.extend(chunk);
                }
                Err(StoreError::Failed(_)) => work.extend(halves(chunk)),
                Err(error) => {
                    work.push_front(chunk);
                    self.pause(&error, &mut tries).await;
                }
            }
        }
        marked
    }

    /// Writes refusals; returns the rows whose refusal is written, and those whose refusal the database will not take.
    async fn record(&mut self, failures: Vec<Failure>) -> (Vec<RowId>, Vec<RowId>) {
        let mut work = in_one(failures);
        let (mut written, mut refused) = (Vec::new(), Vec::new());
        let mut tries = 0;
        while let Some(chunk) = work.pop_front() {
            let writing = self.store.record_failures(&chunk, &self.holder);
            match timed(&self.metrics, "fail", writing).await {
                Ok(_) => {
                    self.outage.over();
                    tries = 0;
                    written.extend(chunk.iter().map(|failure| failure.row));
                }
                Err(StoreError::Failed(text)) if chunk.len() == 1 => {
                    let row = chunk[0].row.0;
                    error!(
                        row,
                        error = text,
                        "the refusal of this row cannot be written: see what refuses the update"
                    );
                    refused.push(chunk[0].row);
                }
                Err(StoreError::Failed(_)) => work.extend(halves(chunk)),
                Err(error) => {
                    work.push_front(chunk);
                    self.pause(&error, &mut tries).await;
                }
            }
        }
        (written, refused)
    }

    async fn pause(&mut self, error: &StoreError, tries: &mut u32) {
        if !error.is_conflict() {
            self.outage.goes_on(&error.with_advice());
        }
        let bound = Duration::from_millis(20) * 2u32.saturating_pow((*tries).min(8));
        *tries = tries.saturating_add(1);
        // At least half of it: a database that just refused is not asked again at once.
        let pause = bound.min(LONGEST_PAUSE).mul_f64(0.5 + fastrand::f64() / 2.0);
        tokio::time::sleep(pause).await;
    }
}

fn in_one<T>(rows: Vec<T>) -> VecDeque<Vec<T>> {
    if rows.is_empty() {
        VecDeque::new()
    } else {
        VecDeque::from([rows])
    }
}

fn halves<T>(mut rows: Vec<T>) -> [Vec<T>; 2] {
    let back = rows.split_off(rows.len() / 2);
    [rows, back]
}
