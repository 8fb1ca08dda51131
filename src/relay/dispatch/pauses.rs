//! What people have paused. Rows of a paused exchange are not held here, nor later rows of their keys: they stay in the
//! table, so that a backlog of any size costs no memory but for its keys, and are read again when the exchange is resumed.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::message::{OrderingKey, RowId};

use super::{Dispatcher, Row, State, rests};

/// What is not published for the time being.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paused {
    /// Nothing at all is.
    pub everything: bool,
    /// Messages to these exchanges are not; empty text is the default exchange.
    pub exchanges: BTreeSet<String>,
}

/// A name as eight bytes, as there can be a million of them. Names that have the same are paused together, no more.
pub(super) type Hashed = u64;

/// What is paused, and the keys that wait for it.
pub(super) struct Pauses {
    everything: bool,
    exchanges: HashSet<Hashed>,
    /// Of keys with a row of a paused exchange the first such row: those behind it wait.
    behind: HashMap<Hashed, RowId>,
}

impl Pauses {
    /// Until it is known what is paused, everything is.
    pub(super) fn unknown() -> Self {
        Self {
            everything: true,
            exchanges: HashSet::new(),
            behind: HashMap::new(),
        }
    }

    pub(super) fn everything(&self) -> bool {
        self.everything
    }

    /// How many keys are remembered.
    pub(super) fn keys(&self) -> usize {
        self.behind.len()
    }

    /// Everything is about to be read from the beginning: what waits is found again.
    pub(super) fn forget_keys(&mut self) {
        self.behind.clear();
    }
}

impl Dispatcher {
    /// From now on this is paused, and nothing else. What is on its way is settled. Returns whether some exchange was
    /// resumed: then everything unsent is to be read from the beginning before anything else is.
    pub fn pause(&mut self, paused: &Paused) -> bool {
        self.pauses.everything = paused.everything;
        let exchanges: HashSet<Hashed> = paused.exchanges.iter().map(|name| hashed(name)).collect();
        let resumed = !self.pauses.exchanges.is_subset(&exchanges);
        if resumed {
            self.pauses.forget_keys();
        }
        self.pauses.exchanges = exchanges;
        let paused = self
            .rows
            .iter()
            .filter(|(_, row)| row.state.is_idle() && self.is_paused(row));
        let mut paused: Vec<RowId> = paused.map(|(id, _)| *id).collect();
        paused.sort_unstable();
        for id in paused {
            // It may have gone with an earlier one of its key.
            let _ = self.goes_back(id);
        }
        resumed
    }

    pub(super) fn is_paused(&self, row: &Row) -> bool {
        self.pauses.exchanges.contains(&row.exchange)
    }

    /// The exchange of a row, where null is the default one.
    pub(super) fn exchange(&self, name: Option<&str>) -> Hashed {
        hashed(name.unwrap_or(&self.settings.rules.default_exchange))
    }

    /// Whether a row has to stay in the table: because its exchange is paused, and then its key is remembered, or because
    /// it is behind such a row.
    pub(super) fn stays(&mut self, id: RowId, key: Option<&OrderingKey>, exchange: Hashed) -> bool {
        if self.pauses.exchanges.is_empty() {
            return false;
        }
        let paused = self.pauses.exchanges.contains(&exchange);
        let Some(key) = key else { return paused };
        if paused {
            self.wait_behind(key, id);
            return true;
        }
        self.pauses
            .behind
            .get(&hashed(key.as_str()))
            .is_some_and(|first| *first < id)
    }

    /// Whether a row that is held here has to go back to the table, see [`Dispatcher::stays`]; then it is forgotten.
    pub(super) fn goes_back(&mut self, id: RowId) -> bool {
        let Some(row) = self.rows.get(&id) else { return false };
        let (key, exchange) = (row.key.clone(), row.exchange);
        let goes = self.stays(id, key.as_ref(), exchange);
        if goes {
            self.abandon(id);
        }
        goes
    }

    /// Rows of the key behind `id` with which nothing was begun are not held any longer.
    fn wait_behind(&mut self, key: &OrderingKey, id: RowId) {
        let first = self.pauses.behind.entry(hashed(key.as_str())).or_insert(id);
        *first = id.min(*first);
        let behind = self.keys.put_back(key, id, |row| rests(&self.rows, row));
        self.leave(behind);
    }
}

impl State {
    /// Whether nothing was begun with the row.
    fn is_idle(self) -> bool {
        matches!(self, State::Waiting | State::Backoff { .. })
    }
}

fn hashed(name: &str) -> Hashed {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}
