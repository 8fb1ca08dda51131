//! The purge of rows that were sent long ago.
//!
//! Only the relay that owns the first share purges: of several, each would take its part of the database's time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::info;

use crate::health::Health;
use crate::metrics::Metrics;
use crate::store::{Store, StoreError};

use super::outage::Outage;
use super::reading::timed;

/// Rows deleted at once, at the most.
const BATCH: u32 = 1_000;

/// Pause after a full batch, in times of what it took: with as long a pause as the batch, a drain that went on beside it kept
/// 0.75 of its rate and twice as many rows were purged as sent (`cargo bench -- --only purge`).
const REST: u32 = 2;

/// Pause when nothing (more) is old enough, and the longest one.
const INTERVAL: Duration = Duration::from_secs(30);

/// Pause when it took several batches to come to the end of the old rows: by then there are many again.
const SOON: Duration = Duration::from_secs(1);

/// A purge that does not come to the end of the old rows within this time is behind: time enough for what has become old in
/// an interval, and soon enough to be told within 30 s.
const BEHIND: Duration = Duration::from_secs(25);

/// How often it is logged what was deleted.
const SAY_INTERVAL: Duration = Duration::from_secs(60);

const PURGED: &str = "purged sent rows older than the retention";

const TOO_MANY: &str = "sent rows older than RELAY_OUTBOX_RETENTION are more than are deleted in time; it goes on";

const NOT_ALLOWED: &str = "grant DELETE on the table, or set RELAY_OUTBOX_RETENTION=off";

pub(super) struct Purger {
    pub(super) store: Arc<dyn Store>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,
    pub(super) retention: Duration,
    /// Of one statement.
    pub(super) bound: Duration,
}

impl Purger {
    /// Whenever the first share is this relay's, until it ends.
    pub(super) async fn run(self, mut owns_first: watch::Receiver<bool>) {
        // Where no leases are to be had nobody knows whose it is, and what keeps rows from being deleted is told all the same.
        let _ = tokio::time::timeout(SOON, owns_first.changed()).await;
        while owns_first.wait_for(|owns| *owns).await.is_ok() {
            self.purge(&mut owns_first).await;
            // Whoever purges now tells how it goes.
            self.metrics.purge_behind.set(0);
            self.health.purge.up();
        }
    }

    /// Until the first share is another relay's: in small batches, and for a third of the time at the most.
    async fn purge(&self, owns_first: &mut watch::Receiver<bool>) {
        let mut outage = Outage::new("keeping the table free of old rows");
        let mut pace = Pace::new(self.bound);
        let (mut purged, mut said) = (0, None::<Instant>);
        while *owns_first.borrow_and_update() {
            let start = Instant::now();
            let purge = timed(&self.metrics, "purge", self.store.purge(self.retention, pace.batch)).await;
            let now = Instant::now();
            let pause = pace.after(&purge, now - start, now);
            let problem = match purge {
                Ok(count) => {
                    self.metrics.rows_purged.inc_by(count);
                    purged += count;
                    pace.is_behind(now).then(|| TOO_MANY.to_owned())
                }
                Err(StoreError::Denied(text)) => Some(format!("{text}: {NOT_ALLOWED}")),
                Err(error) => Some(error.to_string()),
            };
            if purged > 0 && said.is_none_or(|said| now - said >= SAY_INTERVAL) {
                info!(rows = purged, "{PURGED}");
                (purged, said) = (0, Some(now));
            }
            self.metrics.purge_behind.set(i64::from(problem.is_some()));
            match problem {
                None => {
                    outage.over();
                    self.health.purge.up();
                }
                Some(reason) => {
                    outage.goes_on(&reason);
                    self.health.purge.down(&reason);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                Ok(()) = owns_first.changed() => {}
            }
        }
        if purged > 0 {
            info!(rows = purged, "{PURGED}");
        }
    }
}

/// How many rows are deleted next, and when.
struct Pace {
    batch: u32,
    bound: Duration,
    /// When the first full batch began since the end of the old rows was reached.
    catches_up: Option<Instant>,
}

impl Pace {
    fn new(bound: Duration) -> Self {
        Self {
            batch: BATCH,
            bound,
            catches_up: None,
        }
    }

    /// The pause after a batch that took so long.
    fn after(&mut self, batch: &Result<u64, StoreError>, took: Duration, now: Instant) -> Duration {
        let rest = (REST * took).min(INTERVAL);
        match batch {
            Ok(count) => {
                let full = *count >= u64::from(self.batch);
                // Twice as many rows are still far from the bound.
                if took < self.bound / 4 {
                    self.batch = (self.batch * 2).min(BATCH);
                }
                if full {
                    self.catches_up.get_or_insert(now - took);
                    return rest;
                }
                match self.catches_up.take() {
                    Some(_) => SOON,
                    None => INTERVAL,
                }
            }
            // Perhaps so many rows cannot be deleted in time.
            Err(StoreError::Unavailable(_)) if self.batch > 1 => {
                self.batch /= 2;
                rest.max(SOON)
            }
            Err(_) => INTERVAL,
        }
    }

    fn is_behind(&self, now: Instant) -> bool {
        self.catches_up.is_some_and(|since| now - since > BEHIND)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(30);
    const QUICK: Duration = Duration::from_millis(30);

    fn unavailable() -> Result<u64, StoreError> {
        Err(StoreError::Unavailable("no answer".to_owned()))
    }

    #[test]
    fn many_rows_are_looked_for_again_soon_and_few_after_a_while() {
        let now = Instant::now();
        let mut pace = Pace::new(BOUND);
        assert_eq!(pace.after(&Ok(999), QUICK, now), INTERVAL);
        assert_eq!(pace.after(&Ok(1_000), QUICK, now), 2 * QUICK);
        assert_eq!(pace.after(&Ok(1_000), QUICK, now), 2 * QUICK);
        assert_eq!(pace.after(&Ok(0), QUICK, now), SOON, "it took three batches");
        assert_eq!(pace.after(&Ok(0), QUICK, now), INTERVAL);
        let slow = Duration::from_secs(16);
        assert_eq!(pace.after(&Ok(1_000), slow, now), INTERVAL, "no pause is longer");
    }

    /// Of `sent` rows a second, and batches that take 30 ms and rest for 60.
    fn ever_behind(sent: f64) -> bool {
        let begun = Instant::now();
        let mut pace = Pace::new(BOUND);
        let (mut now, mut old) = (begun, 20_000.0);
        let mut behind = false;
        while now - begun < Duration::from_secs(1_200) {
            let deleted = f64::min(old, f64::from(pace.batch));
            let pause = pace.after(&Ok(deleted as u64), QUICK, now + QUICK);
            now += QUICK;
            behind |= pace.is_behind(now);
            now += pause;
            old += sent * (QUICK + pause).as_secs_f64() - deleted.floor();
        }
        behind
    }

    #[test]
    fn a_purge_is_behind_only_if_it_cannot_keep_up() {
        for sent in [0.0, 100.0, 900.0, 5_000.0, 9_500.0] {
            assert!(!ever_behind(sent), "{sent}");
        }
        // Eleven batches a second.
        assert!(ever_behind(11_200.0));
    }

    #[test]
    fn a_purge_that_is_behind_stays_so_until_it_has_come_to_the_end() {
        let begun = Instant::now();
        let mut pace = Pace::new(BOUND);
        let later = begun + BEHIND + QUICK;
        pace.after(&Ok(1_000), QUICK, begun + QUICK);
        pace.after(&Ok(1_000), QUICK, begun + BEHIND);
        assert!(!pace.is_behind(begun + BEHIND));
        for batch in [Ok(1_000), unavailable(), Ok(1_000)] {
            pace.after(&batch, QUICK, later);
            assert!(pace.is_behind(later));
        }
        pace.after(&Ok(1), QUICK, later);
        assert!(!pace.is_behind(later));
    }

    #[test]
    fn what_cannot_be_deleted_in_time_is_tried_with_fewer_rows() {
        let now = Instant::now();
        let mut pace = Pace::new(BOUND);
        for batch in [500, 250, 125, 62, 31, 15, 7, 3, 1] {
            assert_eq!(pace.after(&unavailable(), QUICK, now), SOON);
            assert_eq!(pace.batch, batch);
        }
        assert_eq!(pace.after(&unavailable(), BOUND, now), INTERVAL, "it is away");
        assert_eq!(pace.batch, 1);
        pace.after(&Ok(1), BOUND / 4, now);
        assert_eq!(pace.batch, 1, "two may be too many");
        for batch in [2, 4, 8, 16, 32, 64, 128, 256, 512, 1_000, 1_000] {
            let full = u64::from(pace.batch);
            assert_eq!(pace.after(&Ok(full), QUICK, now), 2 * QUICK);
            assert_eq!(pace.batch, batch);
        }
        pace.after(&Err(StoreError::Denied("no".to_owned())), QUICK, now);
        assert_eq!(pace.batch, 1_000);
    }
}
