//! How fast the counters grew lately.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::metrics::Totals;

/// Rates are over this time, or since the start.
const WINDOW: Duration = Duration::from_secs(60);

/// Totals of the last minute.
#[derive(Debug, Default)]
pub struct Rates(Mutex<VecDeque<(Instant, Totals)>>);

/// Growth a second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PerSecond {
    /// Messages the broker confirmed.
    pub published: f64,
    /// Publishes without success.
    pub failures: f64,
    /// Over this time.
    pub over: Duration,
}

impl Rates {
    /// Notes the totals of this moment.
    pub fn note(&self, totals: Totals) {
        self.note_at(Instant::now(), totals);
    }

    /// The growth from the oldest note to `totals`, which are those of this moment.
    pub fn per_second(&self, totals: Totals) -> PerSecond {
        self.per_second_at(Instant::now(), totals)
    }

    fn note_at(&self, now: Instant, totals: Totals) {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        notes.push_back((now, totals));
        while notes
            .front()
            .is_some_and(|(at, _)| now.saturating_duration_since(*at) > WINDOW)
        {
            notes.pop_front();
        }
    }

    fn per_second_at(&self, now: Instant, totals: Totals) -> PerSecond {
        let notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((since, before)) = notes.front() else {
            return PerSecond::default();
        };
        let over = now.saturating_duration_since(*since);
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / over.as_secs_f64().max(0.001);
        PerSecond {
            published: rate(totals.published, before.published),
            failures: rate(totals.failures, before.failures),
            over,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_over_the_last_minute() {
        let (rates, start) = (Rates::default(), Instant::now());
        let totals = |published| Totals {
            published,
            ..Totals::default()
        };
        assert_eq!(rates.per_second_at(start, totals(9)), PerSecond::default());
        for second in 0..100 {
            rates.note_at(start + Duration::from_secs(second), totals(second * 10));
        }
        let now = rates.per_second_at(start + Duration::from_secs(99), totals(990));
        assert!((now.published - 10.0).abs() < 0.001 && now.over == WINDOW, "{now:?}");
    }
}
