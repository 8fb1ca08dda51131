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
#[derive(Default)]
pub(super) struct LogBudget {
    second: Option<Instant>,
    used: u32,
    swallowed: u64,
}

impl LogBudget {
    /// Whether one more line may be written now.
    pub(super) fn allows(&mut self) -> bool {
        if self
            .second
            .is_none_or(|second| second.elapsed() >= Duration::from_secs(1))
        {
            if self.swallowed > 0 {
                warn!(
                    count = self.swallowed,
                    "more rows had trouble than were logged: see the metrics"
                );
            }
            *self = Self {
                second: Some(Instant::now()),
                ..Self::default()
            };
        }
        self.used += 1;
        self.swallowed += u64::from(self.used > FAILURE_LOGS_PER_SECOND);
        self.used <= FAILURE_LOGS_PER_SECOND
    }
}
