//! Which database operation took longest of late, to tell a slow database from everything else that makes rows wait.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// From here on an operation is slow: a poll or a mark takes some milliseconds.
const SLOW: Duration = Duration::from_secs(1);

/// For how long one is remembered, and how often one is logged at the most.
const LATELY: Duration = Duration::from_secs(60);

/// A slow operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlowOperation {
    /// One of [`crate::metrics::OPERATIONS`].
    pub operation: &'static str,
    /// How long it took.
    pub took: Duration,
}

/// The slowest operation of the last minute, if one was slow.
#[derive(Debug, Default)]
pub struct Slowest(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    slowest: Option<(Instant, SlowOperation)>,
    said: Option<Instant>,
}

impl Slowest {
    /// Notes an operation. True: it is to be logged.
    pub fn note(&self, operation: &'static str, took: Duration) -> bool {
        self.note_at(Instant::now(), SlowOperation { operation, took })
    }

    /// The slowest one of the last minute.
    pub fn of_late(&self) -> Option<SlowOperation> {
        self.of_late_at(Instant::now())
    }

    fn note_at(&self, now: Instant, seen: SlowOperation) -> bool {
        if seen.took < SLOW {
            return false;
        }
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let slower = |(at, slowest): &(Instant, SlowOperation)| is_recent(*at, now) && slowest.took > seen.took;
        if !state.slowest.as_ref().is_some_and(slower) {
            state.slowest = Some((now, seen));
        }
        let due = state.said.is_none_or(|said| !is_recent(said, now));
        if due {
            state.said = Some(now);
        }
        due
    }

    fn of_late_at(&self, now: Instant) -> Option<SlowOperation> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, slowest) = state.slowest?;
        is_recent(at, now).then_some(slowest)
    }
}

fn is_recent(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) < LATELY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_of_the_last_minute_is_told_and_one_a_minute_is_logged() {
        let (slowest, start) = (Slowest::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let seen = |operation, ms| SlowOperation {
            operation,
            took: Duration::from_millis(ms),
        };
        assert!(!slowest.note_at(at(0), seen("head", 999)));
        assert_eq!(slowest.of_late_at(at(0)), None);
        assert!(slowest.note_at(at(1), seen("mark", 3_000)));
        assert!(!slowest.note_at(at(30), seen("head", 2_000)), "said a moment ago");
        assert_eq!(slowest.of_late_at(at(60)), Some(seen("mark", 3_000)));
        assert_eq!(slowest.of_late_at(at(61)), None);
        assert!(slowest.note_at(at(62), seen("head", 1_500)));
        assert_eq!(slowest.of_late_at(at(63)), Some(seen("head", 1_500)));
    }
}
