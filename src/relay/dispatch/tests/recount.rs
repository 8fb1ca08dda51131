//! The dispatcher's own counters against a recount, and its bounds.

use std::collections::BTreeSet;

use crate::config::OnDeadLetter;
use crate::message::RowId;
use crate::relay::dispatch::{Content, Dispatcher, Row, State};
use crate::relay::reader::SCAN_PAGE;

use super::scenario::{MAX_BODY, Scenario};
use super::table::{RowState, Table};

impl Dispatcher {
    /// What does not agree with a recount, or is above its bound.
    fn recount(&self, scenario: &Scenario) -> Option<String> {
        let done: BTreeSet<_> = self.forget_after_read.iter().copied().collect();
        let live = || {
            self.rows
                .iter()
                .filter(|(id, _)| !done.contains(id))
                .map(|(_, row)| row)
        };
        let in_state = |wanted: fn(&State) -> bool| live().filter(|row| wanted(&row.state)).count();
        let in_flight = in_state(|state| matches!(state, State::InFlight(_)));
        let confirmed = in_state(|state| matches!(state, State::Confirmed));
        let stubs = in_state(|state| matches!(state, State::Backoff { .. }));
        let wanted = |row: &Row| row.state == State::Waiting && matches!(row.content, Content::Left);
        let fetching = self
            .left
            .iter()
            .filter_map(|id| self.rows.get(id))
            .filter(|row| wanted(row))
            .count();
        let active = live().count() - stubs - confirmed;
        let held = live().filter(|row| matches!(row.state, State::Backoff { .. } | State::Failing { .. }));
        let held: BTreeSet<_> = held.filter_map(|row| row.key.as_ref()).collect();
        let body = |row: &Row| match &row.content {
            Content::Ready(message) => message.body.len() as u64,
            Content::Left | Content::Bad(_) => 0,
        };
        let bytes: u64 = self.rows.values().map(body).sum();

        let mut wrong = Vec::new();
        let mut same = |name: &str, counted: usize, found: usize| {
            if counted != found {
                wrong.push(format!("{name} is {counted}, a recount finds {found}"));
            }
        };
        same("in_flight", self.in_flight, in_flight);
        // The ids of this world's rows differ.
        same("ids", self.ids.len(), in_flight);
        same("confirmed", self.confirmed, confirmed);
        same("stubs", self.stubs, stubs);
        same("active", self.active(), active);
        same("left", self.left.len(), fetching);
        same(
            "bytes",
            usize::try_from(self.bytes).unwrap(),
            usize::try_from(bytes).unwrap(),
        );
        // Keys behind a dead letter are stuck as well.
        if self.settings.on_dead_letter == OnDeadLetter::Continue || self.blocked_keys() < held.len() {
            same("blocked_keys", self.blocked_keys(), held.len());
        }

        let stays = |row: &&Row| matches!(row.state, State::Waiting | State::Backoff { .. }) && self.is_paused(row);
        same("idle rows of paused exchanges", 0, live().filter(stays).count());

        let bounds = &self.settings;
        let page = scenario.poll.batch_size as usize;
        let mut within = |name: &str, found: usize, bound: usize| {
            if found > bound {
                wrong.push(format!("{name} is {found}, above {bound}"));
            }
        };
        within("in_flight", in_flight, bounds.in_flight);
        within(
            "paused_keys",
            self.pauses.keys(),
            bounds.paused_keys + page + SCAN_PAGE as usize,
        );
        within("unmarked", confirmed, bounds.unmarked + bounds.in_flight);
        // A body that is larger than the room left comes whole, and one more when nothing could go without it.
        let most = bounds.bytes + page as u64 * scenario.inline + 2 * MAX_BODY;
        within("bytes", usize::try_from(bytes).unwrap(), usize::try_from(most).unwrap());
        // Late rows do not ask for room; of each writer at most one transaction is late.
        let late = scenario.writers * 4;
        let most = bounds.rows + bounds.stubs + bounds.unmarked + bounds.in_flight + page + late;
        within("rows", self.rows.len(), most);
        wrong.into_iter().next()
    }

    /// Whether nothing is held at all.
    fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.left.is_empty() && self.marks.is_empty() && self.failures.is_empty()
    }
}

/// What does not agree with a recount, or is above its bound.
pub(super) fn wrong(dispatcher: &Dispatcher, scenario: &Scenario) -> Option<String> {
    dispatcher.recount(scenario)
}

/// What is still held although there is nothing left to do.
pub(super) fn leak(dispatcher: &Dispatcher) -> Option<String> {
    let blocked = dispatcher.blocked_keys();
    let keys = dispatcher.keys.len();
    (!dispatcher.is_empty() || blocked > 0 || keys > 0).then(|| {
        format!(
            "at rest {} rows, {keys} keys ({blocked} blocked) are held",
            dispatcher.rows.len()
        )
    })
}

/// A row that is to be published although the table says that it was.
pub(super) fn sent_already(dispatcher: &Dispatcher, table: &Table) -> Option<RowId> {
    let to_go = |row: &Row| matches!(row.state, State::Waiting | State::Backoff { .. });
    let sent = |id: &RowId| table.rows.get(id).is_some_and(|row| row.state == RowState::Sent);
    let mut rows = dispatcher.rows.iter().filter(|(id, row)| to_go(row) && sent(id));
    rows.next().map(|(id, _)| *id)
}

/// The dispatcher's state as a person wants to read it.
pub(super) fn describe(dispatcher: &Dispatcher) -> String {
    let mut rows: Vec<_> = dispatcher.rows.iter().collect();
    rows.sort_unstable_by_key(|(id, _)| **id);
    let rows: Vec<_> = rows.iter().map(|(id, row)| format!("{id} {:?}", row.state)).collect();
    format!(
        "room {}, refill from {:?}, {} in flight, {} confirmed, {} stubs, {} bytes, {} keys ({} blocked), rows {rows:?}",
        dispatcher.room(),
        dispatcher.refill_from(),
        dispatcher.in_flight,
        dispatcher.confirmed,
        dispatcher.stubs,
        dispatcher.bytes,
        dispatcher.keys.len(),
        dispatcher.blocked_keys(),
    )
}
