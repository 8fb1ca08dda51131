//! Ids that were skipped: some transaction may still commit a row under them.
//!
//! A cursor over ids alone would read row 12 of a key although its row 10 is committed as well: if another writer's row
//! 11 moved the cursor past 10 while 10 was not committed yet. So ids that are missing when the cursor passes them are
//! watched, and looked at *after* each read of new rows and before those rows are used: whoever committed 12 after 10
//! cannot have made 12 visible without 10.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::message::RowId;
use crate::store::Probe;

use super::dispatch::Time;

/// A transaction takes its id first and its transaction number with the insert: that long after an id was skipped, its
/// transaction is taken to have a number, if there is one.
const GRACE: Duration = Duration::from_secs(10);

/// Ids watched at the most; the lowest are given up first, and left to the sweep. Until the next probe there may be ten
/// times as many: most of them turn out to be rows that were sent, or other relays'.
const MAX_WATCHED: usize = 10_000;

/// A longer run of missing ids is a jump of the sequence, not open transactions.
const MAX_RUN: i64 = 10_000;

struct Hole {
    since: Time,
    /// Only transactions below this number can still fill it.
    filled_below: Option<u64>,
}

/// The ids that are watched.
#[derive(Default)]
pub struct Holes {
    ids: BTreeMap<RowId, Hole>,
}

impl Holes {
    /// Whether nothing is watched.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Whether this id is watched.
    pub fn contains(&self, id: RowId) -> bool {
        self.ids.contains_key(&id)
    }

    /// The ids to ask for: above the cursor, rows are about to be read in order, and none may come before them.
    pub fn ids_through(&self, cursor: RowId) -> Vec<RowId> {
        self.ids.range(..=cursor).map(|(id, _)| *id).collect()
    }

    /// Whether there are ids to ask for.
    pub fn any_through(&self, cursor: RowId) -> bool {
        self.ids.range(..=cursor).next().is_some()
    }

    /// Rows were read in `id` order; watches the ids missing between `after` and the last of them.
    pub fn observe(&mut self, after: RowId, read: impl Iterator<Item = RowId>, now: Time) {
        let mut last = after.0;
        for id in read {
            if id.0.saturating_sub(last).saturating_sub(1) <= MAX_RUN {
                self.watch(last + 1, id.0, now);
            }
            last = id.0;
        }
    }

    /// Watches the ids from `from` to below `end`.
    pub fn watch(&mut self, from: i64, end: i64, now: Time) {
        for id in from..end {
            self.ids.entry(RowId(id)).or_insert(Hole {
                since: now,
                filled_below: None,
            });
        }
        self.shrink(10 * MAX_WATCHED);
    }

    fn shrink(&mut self, most: usize) {
        while self.ids.len() > most {
            self.ids.pop_first();
        }
    }

    /// Forgets the ids that have rows now, and those that no running transaction can fill.
    pub fn probed(&mut self, probe: &Probe, now: Time) {
        for id in &probe.present {
            self.ids.remove(id);
        }
        self.ids.retain(|_, hole| match hole.filled_below {
            Some(below) => probe.open.oldest < below,
            None => {
                if now.saturating_sub(hole.since) >= GRACE {
                    hole.filled_below = Some(probe.open.next);
                }
                true
            }
        });
        self.shrink(MAX_WATCHED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::OpenTransactions;

    fn probe(present: &[i64], oldest: u64, next: u64) -> Probe {
        Probe {
            present: present.iter().map(|id| RowId(*id)).collect(),
            unsent: Vec::new(),
            open: OpenTransactions { oldest, next },
        }
    }

    #[test]
    fn a_hole_is_watched_until_no_open_transaction_can_fill_it() {
        let secs = Duration::from_secs;
        let mut holes = Holes::default();
        holes.observe(RowId(4), [5, 8, 9].map(RowId).into_iter(), secs(0));
        assert_eq!(holes.ids_through(RowId(i64::MAX)), [RowId(6), RowId(7)]);
        holes.probed(&probe(&[7], 100, 200), secs(1));
        assert_eq!(holes.ids_through(RowId(i64::MAX)), [RowId(6)]);
        // Grace over: transactions up to 299 may hold it, and 150 still runs.
        holes.probed(&probe(&[], 150, 300), secs(11));
        holes.probed(&probe(&[], 150, 400), secs(3600));
        assert_eq!(holes.ids_through(RowId(i64::MAX)), [RowId(6)]);
        holes.probed(&probe(&[], 300, 500), secs(3601));
        assert!(holes.is_empty());
    }

    #[test]
    fn a_jump_of_the_sequence_is_no_hole_and_the_number_is_bounded() {
        let mut holes = Holes::default();
        holes.observe(RowId(0), [RowId(1), RowId(5_000_000)].into_iter(), Duration::ZERO);
        assert!(holes.is_empty());
        holes.observe(RowId(0), (1..400_000).map(|n| RowId(n * 2)), Duration::ZERO);
        assert_eq!(holes.ids_through(RowId(i64::MAX)).len(), 10 * MAX_WATCHED);
        holes.probed(&probe(&[], 1, 1), Duration::ZERO);
        assert_eq!(holes.ids_through(RowId(i64::MAX)).len(), MAX_WATCHED);
    }
}
