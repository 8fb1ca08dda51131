//! How often something is done that can be slow: never for more than a fifth of the time.

use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

use super::columns::Column;
use crate::config::TableName;

/// The rest after a piece of work, in times of what it took.
const REST: u32 = 4;

/// Rows numbered with one statement: it looks through all that have no number, so that it should be many.
pub(super) const NUMBERED_AT_ONCE: i64 = 50_000;

/// Says, once in the life of the process, what is to be known of a table without an order of its own.
pub(super) fn warn_of_numbers(table: &TableName, key: &Column) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        warn!(
            %table,
            key = key.name,
            "the table has no column of whole numbers that tells the order of its rows: the relay numbers them as it finds \
             them, and rows of a key that it finds at once are in the order of their creation only as far as the table tells \
             it (see the README)"
        );
    });
}

/// When the next piece of work is due.
#[derive(Debug, Default)]
pub(super) struct Pace {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    due: Option<Instant>,
    /// It was asked for while it rested.
    owed: bool,
}

impl Pace {
    /// Whether the last rest is over. If it is not, the work is owed from now on.
    pub(super) fn is_due(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let due = state.due.is_none_or(|due| Instant::now() >= due);
        state.owed |= !due;
        due
    }

    /// Whether work was asked for and not done since.
    pub(super) fn is_owed(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).owed
    }

    /// Work was done for that long. `useful`: there may be more of it, so that no rest is taken.
    pub(super) fn took(&self, span: Duration, useful: bool) {
        let rest = if useful { Duration::ZERO } else { span * REST };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = State {
            due: Some(Instant::now() + rest),
            owed: false,
        };
    }
}

/// A walk through the relay's own tables, a page at a time, again and again.
#[derive(Debug)]
pub(super) struct TidyWalk {
    position: i64,
}

impl Default for TidyWalk {
    fn default() -> Self {
        Self { position: i64::MIN }
    }
}

impl TidyWalk {
    /// Entries looked at with one statement.
    pub(super) const PAGE: i64 = 5_000;

    /// Entries above this are looked at next.
    pub(super) fn position(&self) -> i64 {
        self.position
    }

    /// So many entries were seen, up to the last one.
    pub(super) fn advance(&mut self, seen: i64, last: Option<i64>) {
        self.position = last.filter(|_| seen >= Self::PAGE).unwrap_or(i64::MIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_nothing_rests() {
        let pace = Pace::default();
        assert!(pace.is_due());
        pace.took(Duration::from_secs(60), true);
        assert!(pace.is_due());
        pace.took(Duration::from_secs(60), false);
        assert!(!pace.is_owed() && !pace.is_due() && pace.is_owed());
    }
}
