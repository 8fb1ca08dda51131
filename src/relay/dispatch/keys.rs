//! The keys that have rows here: who is first, who must wait, and what was left in the table.

use std::collections::{BTreeSet, VecDeque};

use foldhash::HashMap;

use crate::config::Ordering;
use crate::message::{OrderingKey, RowId};

use super::Time;

/// Rows held of one key while there is little room.
const CROWDED_CAP: usize = 64;

#[derive(Default)]
struct Key {
    /// Rows that can go when it is their turn, by id.
    waiting: VecDeque<RowId>,
    /// Rows that must wait (refused, or not due), by id: nothing above the first goes before it.
    held: Vec<RowId>,
    /// A dead letter that blocks the key, and since when it is known.
    dead: Option<(RowId, Time)>,
    in_flight: usize,
    /// Where its messages in flight are (`pipelined`).
    lane: Option<usize>,
    /// It has a turn coming.
    queued: bool,
    /// Its rows from this id on are in the table only.
    left_from: Option<RowId>,
}

impl Key {
    /// The lowest row that must wait: none above it goes before it.
    fn stuck_at(&self) -> Option<RowId> {
        let dead = self.dead.map(|(row, _)| row);
        [self.held.first().copied(), dead].into_iter().flatten().min()
    }

    fn next(&self, strict: bool) -> Option<RowId> {
        let first = *self.waiting.front()?;
        let blocked = self.stuck_at().is_some_and(|row| row < first) || (strict && self.in_flight > 0);
        (!blocked).then_some(first)
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty()
            && self.held.is_empty()
            && self.dead.is_none()
            && self.in_flight == 0
            && self.left_from.is_none()
    }

    fn leave_from(&mut self, id: RowId) {
        self.left_from = Some(self.left_from.map_or(id, |from| from.min(id)));
    }
}

/// All keys.
pub(super) struct Keys {
    map: HashMap<OrderingKey, Key>,
    strict: bool,
    rows_per_key: usize,
    /// Rows held of one key at the most, at present.
    cap: usize,
    /// How many keys have a row that must wait, or a dead letter that blocks.
    stuck: usize,
    /// Flowing keys that have room for more of what was left in the table, by the id it begins at.
    hungry: BTreeSet<(RowId, OrderingKey)>,
    /// During a scan: the hungry keys that it serves, and whether they have had enough.
    serving: HashMap<OrderingKey, bool>,
}

impl Keys {
    pub(super) fn new(ordering: Ordering, rows_per_key: usize) -> Self {
        Self {
            map: HashMap::default(),
            strict: ordering == Ordering::Strict,
            rows_per_key,
            cap: rows_per_key,
            stuck: 0,
            hungry: BTreeSet::new(),
            serving: HashMap::default(),
        }
    }

    /// Changes a key, and keeps the index of hungry keys true.
    fn change<R>(&mut self, key: &OrderingKey, f: impl FnOnce(&mut Key) -> R) -> R {
        let enough = self.rows_per_key / 2;
        let hungry = |k: &Key| match k.left_from {
            Some(from) if k.stuck_at().is_none() && k.waiting.len() <= enough => Some(from),
            _ => None,
        };
        let entry = self.map.entry(key.clone()).or_default();
        let (before, was_stuck) = (hungry(entry), entry.stuck_at().is_some());
        let result = f(entry);
        let (after, is_stuck) = (hungry(entry), entry.stuck_at().is_some());
        self.stuck = self.stuck + usize::from(is_stuck) - usize::from(was_stuck);
        if entry.is_empty() && !entry.queued {
            self.map.remove(key);
        }
        if before != after {
            before.map(|from| self.hungry.remove(&(from, key.clone())));
            after.map(|from| self.hungry.insert((from, key.clone())));
        }
        result
    }

    /// While much is held, no key may add much to it: else a few keys with long queues would leave no room for others.
    pub(super) fn crowded(&mut self, crowded: bool) {
        self.cap = if crowded {
            self.rows_per_key.min(CROWDED_CAP)
        } else {
            self.rows_per_key
        };
    }

    // ---- taking rows in ------------------------------------------------------------------------------------------

    /// Whether a row that was not known is to be held here; if not, the key remembers that it is in the table.
    pub(super) fn takes(&mut self, key: &OrderingKey, id: RowId) -> bool {
        let cap = self.cap;
        let Some(known) = self.map.get(key) else { return true };
        let left = known.left_from.is_some_and(|from| id >= from);
        let stuck = known.stuck_at().is_some_and(|row| row < id);
        let full = known.waiting.len() >= cap && known.waiting.back().is_some_and(|last| *last < id);
        if left {
            return false;
        }
        if stuck || full {
            self.change(key, |k| k.leave_from(id));
            return false;
        }
        true
    }

    /// A scan of all unsent ids above `after` begins.
    pub(super) fn scan_began(&mut self, after: RowId) {
        let from = self.hungry.iter().filter(|(from, _)| *from > after);
        self.serving = from.map(|(_, key)| (key.clone(), false)).collect();
    }

    /// Whether a row that the scan found is to be held here. Called in `id` order.
    pub(super) fn takes_from_scan(&mut self, key: &OrderingKey, id: RowId) -> bool {
        let left = self
            .map
            .get(key)
            .and_then(|k| k.left_from)
            .is_some_and(|from| id >= from);
        if !left {
            return self.takes(key, id);
        }
        let cap = self.cap;
        let stop = |k: &Key| k.waiting.len() >= cap || k.stuck_at().is_some_and(|row| row < id);
        let stop = self.map.get(key).is_some_and(stop);
        match self.serving.get_mut(key) {
            Some(enough) if !*enough => {
                *enough = stop;
                if *enough {
                    self.change(key, |k| k.left_from = Some(id));
                }
                !stop
            }
            _ => false,
        }
    }

    /// The scan showed everything up to `through`; `complete`: and there is nothing above it.
    pub(super) fn scan_ended(&mut self, through: RowId, complete: bool) {
        for (key, enough) in std::mem::take(&mut self.serving) {
            if enough {
                continue;
            }
            self.change(&key, |k| match k.left_from {
                Some(_) if complete => k.left_from = None,
                Some(from) if from <= through => k.left_from = Some(RowId(through.0.saturating_add(1))),
                _ => {}
            });
        }
    }

    /// Where the rows begin that flowing keys left in the table.
    pub(super) fn refill_from(&self) -> Option<RowId> {
        self.hungry.first().map(|(from, _)| *from)
    }

    // ---- a row's way ---------------------------------------------------------------------------------------------

    pub(super) fn add_waiting(&mut self, key: &OrderingKey, id: RowId) {
        self.change(key, |k| {
            remove(&mut k.held, id);
            let at = k.waiting.partition_point(|other| *other < id);
            k.waiting.insert(at, id);
        });
    }

    /// Asks for a turn: `None` if it cannot go or has one coming; else the lane it must go to, if that matters.
    pub(super) fn ask_turn(&mut self, key: &OrderingKey) -> Option<Option<usize>> {
        let strict = self.strict;
        let k = self.map.get_mut(key)?;
        if k.queued || k.next(strict).is_none() {
            return None;
        }
        k.queued = true;
        Some(k.lane)
    }

    /// The key's turn has come. Where it may go to: this lane, or another one that has its messages in flight.
    pub(super) fn turn_came(&mut self, key: &OrderingKey, lane: usize) -> Result<Option<RowId>, usize> {
        let strict = self.strict;
        let Some(k) = self.map.get(key) else { return Ok(None) };
        match k.lane {
            Some(other) if other != lane => Err(other),
            _ => Ok(self.change(key, |k| {
                k.queued = false;
                k.next(strict)
            })),
        }
    }

    /// The row that was next is published on `lane`.
    pub(super) fn started(&mut self, key: &OrderingKey, id: RowId, lane: usize) {
        let strict = self.strict;
        self.change(key, |k| {
            remove_waiting(k, id);
            k.in_flight += 1;
            if !strict {
                k.lane = Some(lane);
            }
        });
    }

    /// A row that was published is not in flight any more.
    pub(super) fn landed(&mut self, key: &OrderingKey) {
        self.change(key, |k| {
            k.in_flight -= 1;
            if k.in_flight == 0 {
                k.lane = None;
            }
        });
    }

    /// The row must wait. Returns the rows behind it: they are left in the table from now on. `rests`: a row that
    /// waits for its time and can be left as well.
    pub(super) fn hold(&mut self, key: &OrderingKey, id: RowId, rests: impl Fn(RowId) -> bool) -> Vec<RowId> {
        self.change(key, |k| {
            remove_waiting(k, id);
            insert(&mut k.held, id);
            leave_behind(k, id, rests)
        })
    }

    /// The rows behind this one stay in the table for as long as it does. Returns those that are held here and can go.
    pub(super) fn put_back(&mut self, key: &OrderingKey, id: RowId, rests: impl Fn(RowId) -> bool) -> Vec<RowId> {
        if !self.map.contains_key(key) {
            return Vec::new();
        }
        self.change(key, |k| {
            let behind = take_behind(k, id, rests);
            k.left_from = k.left_from.filter(|from| *from < id);
            behind
        })
    }

    /// The row that must wait is in the table only, and so are those behind it, which are returned.
    pub(super) fn read_again(&mut self, key: &OrderingKey, id: RowId, rests: impl Fn(RowId) -> bool) -> Vec<RowId> {
        self.change(key, |k| {
            remove(&mut k.held, id);
            k.leave_from(id);
            take_behind(k, id, rests)
        })
    }

    /// The row is done with.
    pub(super) fn gone(&mut self, key: &OrderingKey, id: RowId) {
        self.change(key, |k| {
            remove(&mut k.held, id);
            remove_waiting(k, id);
        });
    }

    // ---- dead letters that block ---------------------------------------------------------------------------------

    /// The row is a dead letter now and blocks the key. Returns the rows behind it.
    pub(super) fn dead(
        &mut self,
        key: &OrderingKey,
        id: RowId,
        now: Time,
        rests: impl Fn(RowId) -> bool,
    ) -> Vec<RowId> {
        self.change(key, |k| {
            remove(&mut k.held, id);
            // The same row may have been sent again in between, and given up again.
            if k.dead.is_none_or(|(row, _)| row >= id) {
                k.dead = Some((id, now));
            }
            leave_behind(k, id, rests)
        })
    }

    /// Replaces what is known of dead letters up to `through` by what the table said at `as_of`. Returns the keys that can go on, and
    /// the rows that are left in the table from now on.
    pub(super) fn replace_dead(
        &mut self,
        found: &[(OrderingKey, RowId)],
        through: RowId,
        as_of: Time,
        rests: impl Fn(RowId) -> bool,
    ) -> (Vec<OrderingKey>, Vec<RowId>) {
        let found: HashMap<_, _> = found.iter().map(|(key, row)| (key.clone(), *row)).collect();
        let known = self
            .map
            .iter()
            .filter(|(_, k)| k.dead.is_some_and(|(row, since)| since < as_of && row <= through));
        let released: Vec<_> = known
            .filter(|(key, _)| !found.contains_key(*key))
            .map(|(key, _)| key.clone())
            .collect();
        for key in &released {
            // The dead letter may be one to be sent again: it is looked for before the rows behind it.
            self.change(key, |k| {
                if let Some((row, _)) = k.dead.take() {
                    k.leave_from(row);
                }
            });
        }
        for (key, row) in &found {
            // The lower one is no dead letter any more: as with a release.
            self.change(key, |k| {
                if let Some((old, since)) = k.dead
                    && since < as_of
                    && old < *row
                {
                    k.dead = None;
                    k.leave_from(old);
                }
            });
        }
        let left = found
            .iter()
            .flat_map(|(key, row)| self.dead(key, *row, as_of, &rests))
            .collect();
        (released, left)
    }

    /// Forgets what is known of these keys beyond what is in flight.
    pub(super) fn forget(&mut self, which: impl Fn(&OrderingKey) -> bool) {
        let keys: Vec<_> = self.map.keys().filter(|key| which(key)).cloned().collect();
        for key in keys {
            self.change(&key, |k| {
                k.dead = None;
                k.left_from = None;
            });
        }
    }

    pub(super) fn blocked(&self) -> usize {
        self.stuck
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.map.len()
    }
}

fn leave_behind(k: &mut Key, id: RowId, rests: impl Fn(RowId) -> bool) -> Vec<RowId> {
    let behind = take_behind(k, id, rests);
    if let Some(first) = behind.iter().min() {
        k.leave_from(*first);
    }
    behind
}

fn take_behind(k: &mut Key, id: RowId, rests: impl Fn(RowId) -> bool) -> Vec<RowId> {
    let at = k.waiting.partition_point(|other| *other < id);
    let mut behind: Vec<_> = k.waiting.drain(at..).collect();
    // One that waits for its time goes with them: else it would go before them when it comes.
    behind.extend(k.held.extract_if(.., |other| *other > id && rests(*other)));
    behind
}

fn remove_waiting(k: &mut Key, id: RowId) {
    if k.waiting.front() == Some(&id) {
        k.waiting.pop_front();
    } else if let Ok(at) = k.waiting.binary_search(&id) {
        k.waiting.remove(at);
    }
}

fn insert(ids: &mut Vec<RowId>, id: RowId) {
    if let Err(at) = ids.binary_search(&id) {
        ids.insert(at, id);
    }
}

fn remove(ids: &mut Vec<RowId>, id: RowId) {
    if let Ok(at) = ids.binary_search(&id) {
        ids.remove(at);
    }
}
