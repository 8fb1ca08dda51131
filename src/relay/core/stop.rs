//! Stopping: nothing new begins, what is under way is settled, within the grace.

use tracing::{info, warn};

use crate::relay::dispatch::Time;
use crate::relay::reader::Passes;
use crate::relay::{Ended, farewell_time};

use super::Core;

/// A stop under way.
pub(super) struct Stopping {
    pub(super) deadline: Time,
    /// Reading goes on until everything has been read once more since then (`RELAY_SHUTDOWN_DRAIN`).
    drain_since: Option<Passes>,
}

impl Core {
    pub(super) fn begin_stop(&mut self) -> Stopping {
        let now = self.now();
        let (grace, drain) = (self.shutdown.grace, self.shutdown.drain);
        info!(?grace, drain, in_flight = self.dispatcher.in_flight(), "stopping");
        if drain {
            self.plan.sweep_now(now);
        } else {
            self.stop_reading();
        }
        Stopping {
            deadline: now + grace.saturating_sub(farewell_time(grace)),
            drain_since: drain.then(|| self.plan.passes()),
        }
    }

    /// No row begins its way any more.
    fn stop_reading(&mut self) {
        self.reading_stopped = true;
        self.dispatcher.stop();
    }

    /// Whether the stop is complete, or its time is up.
    pub(super) fn stopped(&mut self, stopping: &mut Stopping) -> Option<Ended> {
        if let Some(since) = stopping.drain_since
            && self.is_drained(since)
        {
            stopping.drain_since = None;
            self.stop_reading();
        }
        if stopping.drain_since.is_none() && self.dispatcher.is_settled() && !self.settling {
            info!("stopped: everything that was published is settled");
            return Some(Ended::Cleanly);
        }
        if self.now() >= stopping.deadline {
            self.warn_unsettled("the time to stop is up");
            return Some(Ended::Unsettled);
        }
        None
    }

    /// Whether nothing is left that this relay could send: it has read everything since then and sent it, or it is known
    /// that others own everything.
    fn is_drained(&self, since: Passes) -> bool {
        let all_read = self.plan.passes().beyond(since) || !self.plan.reads();
        self.trusted_until.is_some()
            && self.pauses_known
            && all_read
            && !self.plan.holds_rows()
            && self.dispatcher.is_drained()
    }

    pub(super) fn warn_unsettled(&self, why: &str) {
        let (in_flight, unmarked) = (self.dispatcher.in_flight(), self.dispatcher.unmarked());
        warn!(
            in_flight,
            unmarked, "{why}: these messages may be sent again, with the same message_id, by the next relay"
        );
    }
}
