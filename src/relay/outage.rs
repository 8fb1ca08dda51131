//! Logs worth reading: once that something is away, now and then that it still is, once that it is back; and no storms.

use std::time::{Duration, Instant};

use tracing::{info, warn};

/// How often a lasting outage is mentioned.
const REMINDER: Duration = Duration::from_secs(60);

/// Failures of rows are logged one by one up to this many a second.
const FAILURE_LOGS_PER_SECOND: u32 = 10;

/// One thing that can be away.
pub(crate) struct Outage {
    what: &'static str,
    since: Option<Instant>,
    said: Option<Instant>,
    text: String,
}

impl Outage {
    pub(crate) fn new(what: &'static str) -> Self {
        Self {
            what,
            since: None,
            said: None,
            text: String::new(),
        }
    }

    /// It failed (again), for this reason.
    pub(crate) fn goes_on(&mut self, reason: &str) {
        let since = *self.since.get_or_insert_with(Instant::now);
        let due = self.said.is_none_or(|said| said.elapsed() >= REMINDER) || self.text != reason;
        if due && self.said.is_none_or(|said| said.elapsed() >= Duration::from_secs(1)) {
            warn!(
                reason,
                for_seconds = since.elapsed().as_secs(),
                "{} fails; trying again",
                self.what
            );
            self.said = Some(Instant::now());
            reason.clone_into(&mut self.text);
        }
    }

    /// It works.
    pub(crate) fn over(&mut self) {
        if let Some(since) = self.since.take() {
            info!(after_seconds = since.elapsed().as_secs(), "{} works again", self.what);
            self.said = None;
            self.text.clear();
        }
    }
}

/// Keeps a storm of failures from becoming a storm of logs; the metrics count them all.
pub(super) struct LogBudget {
    what: &'static str,
    second: Option<Instant>,
    used: u32,
    swallowed: u64,
}

impl LogBudget {
    /// `what` happens to rows: said with how many of them were not named.
    pub(super) fn new(what: &'static str) -> Self {
        Self {
            what,
            second: None,
            used: 0,
            swallowed: 0,
        }
    }

    /// Whether one more line may be written now.
    pub(super) fn allows(&mut self) -> bool {
        self.tell();
        self.allows_at(Instant::now())
    }

    fn allows_at(&mut self, now: Instant) -> bool {
        if self.used < FAILURE_LOGS_PER_SECOND {
            self.used += 1;
            self.second.get_or_insert(now);
            return true;
        }
        self.swallowed += 1;
        false
    }

    /// To be called now and then: once a second is over, says how many lines were not written in it.
    pub(super) fn tell(&mut self) {
        if let Some(count) = self.over(Instant::now()).filter(|count| *count > 0) {
            warn!(
                count,
                "more {}, which were not named one by one: see `status` and the metrics", self.what
            );
        }
    }

    /// How many lines were not written, once the second is over.
    fn over(&mut self, now: Instant) -> Option<u64> {
        let begun = self.second?;
        (now.saturating_duration_since(begun) >= Duration::from_secs(1)).then(|| {
            self.second = None;
            self.used = 0;
            std::mem::take(&mut self.swallowed)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_logged_is_told_when_the_second_is_over() {
        let (mut budget, begun) = (LogBudget::new("rows"), Instant::now());
        let allowed = (0..25).filter(|_| budget.allows_at(begun)).count();
        assert_eq!(allowed, 10);
        assert_eq!(budget.over(begun + Duration::from_millis(999)), None);
        assert_eq!(
            budget.over(begun + Duration::from_secs(1)),
            Some(15),
            "without another failure"
        );
        assert!(budget.allows_at(begun + Duration::from_secs(1)));
    }
}
