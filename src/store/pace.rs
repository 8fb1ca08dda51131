//! How often something is done that can be slow: where it finds nothing or fails, for no more than a fifth of the time.

use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::StoreError;
use super::columns::Column;
use crate::config::TableName;
use crate::message::OutboxRow;

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

/// When the next look for rows without a number is due, and what the last one came to.
#[derive(Debug)]
pub(super) struct Pace {
    /// The bound of one statement.
    bound: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    due: Option<Instant>,
    /// It was asked for, and has not looked at everything since.
    owed: bool,
    /// The last look in order took too long: until the end is reached, rows are taken as they come.
    hurried: bool,
}

impl Pace {
    pub(super) fn new(bound: Duration) -> Self {
        Self {
            bound,
            state: Mutex::default(),
        }
    }

    /// Looks, if the last rest is over. `work` is told whether to do without the order, and tells how many rows it numbered;
    /// `None`: another relay is at it. True: there were some.
    ///
    /// # Errors
    /// Those of `work`; the rest after it is the same.
    pub(super) async fn look(
        &self,
        at_once: i64,
        work: impl AsyncFnOnce(bool) -> Result<Option<u64>, StoreError>,
    ) -> Result<bool, StoreError> {
        let Some(hurried) = self.begin() else {
            return Ok(false);
        };
        let begun = Instant::now();
        let numbered = work(hurried).await;
        self.ended(begun.elapsed(), at_once, &numbered);
        Ok(numbered?.is_some_and(|rows| rows > 0))
    }

    /// Whether a look was asked for and put off, or did not succeed.
    pub(super) fn is_owed(&self) -> bool {
        self.state().owed
    }

    /// Whether to hurry; `None`: not now.
    fn begin(&self) -> Option<bool> {
        let mut state = self.state();
        state.owed = true;
        let due = state.due.is_none_or(|due| Instant::now() >= due);
        due.then_some(state.hurried)
    }

    fn ended(&self, span: Duration, at_once: i64, numbered: &Result<Option<u64>, StoreError>) {
        let mut state = self.state();
        let mut rest = span * REST;
        match numbered {
            Ok(Some(rows)) => {
                // Of those that were found there may be more, and other relays have theirs to read.
                state.owed = *rows > 0;
                state.hurried &= *rows >= at_once.unsigned_abs();
                if state.owed {
                    rest = Duration::ZERO;
                }
            }
            Ok(None) => {}
            Err(error) => {
                let too_long = matches!(error, StoreError::Unavailable(_)) && span >= self.bound / 2;
                if too_long && !state.hurried {
                    warn!(
                        ?span,
                        "so many rows wait that they cannot be brought into an order in time: they are numbered as the database \
                         gives them"
                    );
                }
                state.hurried |= too_long;
            }
        }
        state.due = Some(Instant::now() + rest);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A head read: once more where it came to the end, and `look` found rows without a number. Rows that were read are not
/// lost by what fails behind them.
pub(super) async fn head<F: Future<Output = Result<Vec<OutboxRow>, StoreError>>>(
    limit: u32,
    read: impl Fn() -> F,
    look: impl Future<Output = Result<bool, StoreError>>,
) -> Result<Vec<OutboxRow>, StoreError> {
    let rows = read().await?;
    if rows.len() >= limit as usize {
        return Ok(rows);
    }
    let more = match look.await {
        Ok(false) => return Ok(rows),
        Ok(true) => read().await,
        Err(error) => Err(error),
    };
    match more {
        // The next read that finds nothing tells.
        Err(error) if !rows.is_empty() => {
            debug!(%error, "rows without a number could not be looked for");
            Ok(rows)
        }
        more => more,
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

    fn ended(pace: &Pace, seconds: u64, numbered: Result<Option<u64>, StoreError>) {
        pace.ended(Duration::from_secs(seconds), 100, &numbered);
    }

    fn too_late() -> Result<Option<u64>, StoreError> {
        Err(StoreError::Unavailable("no answer".to_owned()))
    }

    #[test]
    fn what_finds_nothing_or_fails_rests_and_is_owed_until_it_succeeds() {
        let pace = Pace::new(Duration::from_secs(60));
        assert!(!pace.is_owed());
        assert_eq!(pace.begin(), Some(false));
        ended(&pace, 60, Ok(Some(1)));
        assert!(pace.is_owed());
        assert_eq!(pace.begin(), Some(false), "there may be more");
        ended(&pace, 60, Ok(Some(0)));
        assert!(!pace.is_owed(), "it has seen everything");
        assert!(pace.begin().is_none() && pace.is_owed(), "it rests");
        for unsuccessful in [Ok(None), too_late()] {
            let pace = Pace::new(Duration::from_secs(60));
            pace.begin();
            ended(&pace, 10, unsuccessful);
            assert!(pace.is_owed() && pace.begin().is_none());
        }
    }

    #[test]
    fn what_took_too_long_hurries_until_it_has_come_to_the_end() {
        let pace = Pace::new(Duration::from_secs(60));
        let hurried = |pace: &Pace| pace.state().hurried;
        ended(&pace, 1, too_late());
        assert!(!hurried(&pace), "the connection was lost");
        ended(&pace, 59, too_late());
        assert!(hurried(&pace));
        ended(&pace, 1, Ok(Some(100)));
        assert!(hurried(&pace), "there are more");
        ended(&pace, 1, Ok(Some(99)));
        assert!(!hurried(&pace));
    }
}
