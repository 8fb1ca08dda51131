//! Says once that something is away, now and then that it still is, and once that it is back.

use std::time::{Duration, Instant};

use tracing::{info, warn};

/// How often a lasting outage is mentioned.
const REMINDER: Duration = Duration::from_secs(60);

/// One thing that can be away.
pub(super) struct Outage {
    what: &'static str,
    since: Option<Instant>,
    said: Option<Instant>,
    text: String,
}

impl Outage {
    pub(super) fn new(what: &'static str) -> Self {
        Self {
            what,
            since: None,
            said: None,
            text: String::new(),
        }
    }

    /// It failed (again), for this reason.
    pub(super) fn goes_on(&mut self, reason: &str) {
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
    pub(super) fn over(&mut self) {
        if let Some(since) = self.since.take() {
            info!(after_seconds = since.elapsed().as_secs(), "{} works again", self.what);
            self.said = None;
            self.text.clear();
        }
    }
}
