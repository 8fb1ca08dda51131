//! How often something is done that can be slow: where it finds nothing or fails, for no more than a fifth of the time.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::StoreError;
use super::columns::Column;
use crate::config::TableName;

/// Another relay is at the numbers for moments only: so long it holds them up.
const KEPT_AWAY_LONG: Duration = Duration::from_secs(10);

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

/// Says, once in the life of the process, what of the table works but could be mended.
pub(super) fn advise(table: &TableName, advice: &[String]) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    for text in advice {
        if SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(text.clone()) {
            warn!(%table, "{text}");
        }
    }
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
    /// The last head did not begin with a look that found nothing.
    owed: bool,
    /// The last head left rows that have numbers: looks can wait for them.
    more: bool,
    /// Since when every look found another relay at it; `None`: the last one did not.
    kept_away: Option<Instant>,
    /// That this is long was said.
    said: bool,
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

    /// A head read, with a look before it. What the read then shows is all that was committed before the look, whoever
    /// gave it numbers. Rows that were read are not lost by a look that failed.
    ///
    /// # Errors
    /// Those of `read`; those of `look` where there is nothing to be read.
    pub(super) async fn head<Row>(
        &self,
        limit: u32,
        read: impl Future<Output = Result<Vec<Row>, StoreError>>,
        look: impl Future<Output = Result<(), StoreError>>,
    ) -> Result<Vec<Row>, StoreError> {
        let more = {
            let mut state = self.state();
            state.owed = true;
            state.more
        };
        let looked = if more { Ok(()) } else { look.await };
        let rows = read.await?;
        self.state().more = rows.len() >= limit as usize;
        match looked {
            Err(error) if rows.is_empty() => Err(error),
            // The next head that finds nothing tells.
            Err(error) => {
                debug!(%error, "rows without a number could not be looked for");
                Ok(rows)
            }
            Ok(()) => Ok(rows),
        }
    }

    /// Looks, if the last rest is over. `work` is told whether to do without the order, and tells how many rows it numbered;
    /// `None`: another relay is at it.
    ///
    /// # Errors
    /// Those of `work`; the rest after it is the same.
    pub(super) async fn look(
        &self,
        at_once: i64,
        work: impl AsyncFnOnce(bool) -> Result<Option<u64>, StoreError>,
    ) -> Result<(), StoreError> {
        let Some(hurried) = self.begin() else {
            return Ok(());
        };
        let begun = Instant::now();
        let numbered = work(hurried).await;
        self.ended(begun.elapsed(), at_once, &numbered);
        numbered.map(|_| ())
    }

    /// Whether the last head may not have shown all that was there when it began: its look was put off, did not succeed, or
    /// found some rows, so that there may be more.
    pub(super) fn is_owed(&self) -> bool {
        self.state().owed
    }

    /// Whether to hurry; `None`: not now.
    fn begin(&self) -> Option<bool> {
        let state = self.state();
        let due = state.due.is_none_or(|due| Instant::now() >= due);
        due.then_some(state.hurried)
    }

    fn ended(&self, span: Duration, at_once: i64, numbered: &Result<Option<u64>, StoreError>) {
        let mut state = self.state();
        state.note_lock(matches!(numbered, Ok(None)));
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

impl State {
    /// Logs when it turns out, and when it is over: not at every look.
    fn note_lock(&mut self, is_another_at_it: bool) {
        if is_another_at_it {
            let span = self.kept_away.get_or_insert_with(Instant::now).elapsed();
            if span >= KEPT_AWAY_LONG && !self.said {
                self.said = true;
                warn!(
                    ?span,
                    "another session has the lock under which rows are numbered all the time: unless it is a relay that numbers \
                     them, new rows are not found until its transaction ends"
                );
            }
            return;
        }
        self.kept_away = None;
        if std::mem::take(&mut self.said) {
            info!("rows can be numbered here again");
        }
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
    use std::cell::Cell;

    use super::*;

    fn ended(pace: &Pace, seconds: u64, numbered: Result<Option<u64>, StoreError>) {
        pace.ended(Duration::from_secs(seconds), 100, &numbered);
    }

    fn too_late() -> Result<Option<u64>, StoreError> {
        Err(StoreError::Unavailable("no answer".to_owned()))
    }

    /// A head that shows so many rows, of up to two; its look finds `numbered` rows if it takes place.
    async fn head(pace: &Pace, rows: usize, numbered: Result<Option<u64>, StoreError>) -> bool {
        let looked = Cell::new(false);
        let look = pace.look(100, async |_| {
            looked.set(true);
            numbered
        });
        let shown = pace.head(2, async { Ok(vec![(); rows]) }, look).await;
        assert_eq!(shown.map_or(0, |shown| shown.len()), rows);
        looked.get()
    }

    #[tokio::test]
    async fn a_head_is_whole_when_a_look_before_it_found_nothing() {
        let pace = Pace::new(Duration::from_secs(60));
        assert!(!pace.is_owed());
        assert!(head(&pace, 1, Ok(Some(1))).await);
        assert!(pace.is_owed(), "there may be more");
        assert!(head(&pace, 1, Ok(Some(0))).await);
        assert!(!pace.is_owed(), "it has seen everything");
        head(&pace, 2, Ok(Some(0))).await;
        assert!(!head(&pace, 1, Ok(Some(0))).await, "rows with numbers first");
        assert!(pace.is_owed());
    }

    #[test]
    fn what_finds_nothing_or_fails_rests() {
        for numbered in [Ok(Some(0)), Ok(None), too_late()] {
            let pace = Pace::new(Duration::from_secs(60));
            assert_eq!(pace.begin(), Some(false));
            ended(&pace, 60, numbered);
            assert!(pace.begin().is_none());
        }
        let pace = Pace::new(Duration::from_secs(60));
        ended(&pace, 60, Ok(Some(1)));
        assert_eq!(pace.begin(), Some(false), "there may be more");
    }

    #[tokio::test]
    async fn a_look_that_fails_loses_no_rows_and_is_owed() {
        for unsuccessful in [Ok(None), too_late()] {
            let pace = Pace::new(Duration::from_secs(60));
            assert!(head(&pace, 1, unsuccessful).await);
            assert!(pace.is_owed());
        }
        let pace = Pace::new(Duration::from_secs(60));
        let look = pace.look(100, async |_| too_late());
        assert!(pace.head(2, async { Ok(Vec::<()>::new()) }, look).await.is_err());
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
