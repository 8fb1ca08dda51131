//! The outbox table, with what the `Store` trait promises about reads.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use crate::message::{OrderingKey, OutboxRow, Payload, RowId};
use crate::relay::dispatch::Time;
use crate::relay::reader::{Answer, Read, SCAN_PAGE};
use crate::store::{Failure, NextStep, OpenTransactions, Probe, Stub};

use super::scenario::Scenario;

/// Why a row can never be a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    RoutingKey,
    Headers,
    TooLarge,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowState {
    /// Its transaction is open or was rolled back.
    Unseen,
    Unsent,
    Sent,
    Dead,
    /// A dead letter that a person gave up.
    Discarded,
}

#[derive(Debug, Clone)]
pub(super) struct TableRow {
    pub(super) id: RowId,
    pub(super) message_id: Uuid,
    pub(super) key: Option<OrderingKey>,
    pub(super) exchange: usize,
    pub(super) size: u64,
    pub(super) flaw: Option<Flaw>,
    /// The broker refuses it for ever.
    pub(super) poison: bool,
    pub(super) due_at: Time,
    pub(super) attempts: u32,
    pub(super) state: RowState,
    pub(super) was_dead: bool,
}

#[derive(Default)]
pub(super) struct Table {
    pub(super) rows: BTreeMap<RowId, TableRow>,
    by_key: BTreeMap<OrderingKey, Vec<RowId>>,
    open: BTreeSet<u64>,
    last_id: i64,
    last_transaction: u64,
    changes: u64,
    changes_told: u64,
    inline: u64,
    deletes: bool,
    tells_changes: bool,
}

impl Table {
    pub(super) fn new(scenario: &Scenario) -> Self {
        Self {
            inline: scenario.inline,
            deletes: scenario.deletes,
            tells_changes: scenario.one_at_a_time,
            ..Self::default()
        }
    }

    // ---- the application -----------------------------------------------------------------------------------------

    pub(super) fn take_id(&mut self) -> RowId {
        self.last_id += 1;
        RowId(self.last_id)
    }

    pub(super) fn begin(&mut self) -> u64 {
        self.last_transaction += 1;
        self.open.insert(self.last_transaction);
        self.last_transaction
    }

    pub(super) fn insert(&mut self, row: TableRow) {
        if let Some(key) = &row.key {
            let ids = self.by_key.entry(key.clone()).or_default();
            ids.push(row.id);
        }
        self.rows.insert(row.id, row);
    }

    pub(super) fn commit(&mut self, transaction: Option<u64>, rows: &[RowId]) {
        for id in rows {
            if let Some(row) = self.rows.get_mut(id) {
                row.state = RowState::Unsent;
            }
        }
        self.changes += 1;
        self.roll_back(transaction);
    }

    pub(super) fn roll_back(&mut self, transaction: Option<u64>) {
        if let Some(transaction) = transaction {
            self.open.remove(&transaction);
        }
    }

    /// The rows of a key below `id`.
    pub(super) fn below<'a>(&'a self, key: &OrderingKey, id: RowId) -> impl Iterator<Item = &'a TableRow> {
        let ids = self.by_key.get(key).into_iter().flatten();
        ids.filter(move |other| **other < id).filter_map(|id| self.rows.get(id))
    }

    pub(super) fn in_state(&self, state: RowState) -> Vec<RowId> {
        let rows = self.rows.values().filter(|row| row.state == state);
        rows.map(|row| row.id).collect()
    }

    /// What a person does about a dead letter: it is sent once more, or given up.
    pub(super) fn operate(&mut self, id: RowId, replay: bool) {
        if let Some(row) = self.rows.get_mut(&id).filter(|row| row.state == RowState::Dead) {
            row.was_dead = true;
            row.attempts = 0;
            row.due_at = Time::ZERO;
            row.state = if replay { RowState::Unsent } else { RowState::Discarded };
            self.changes += 1;
        }
    }

    /// What a person does about a row that was refused and must wait yet: it is due now, or gone.
    pub(super) fn release(&mut self, id: RowId, replay: bool, now: Time) {
        let waits = |row: &&mut TableRow| row.state == RowState::Unsent && row.attempts > 0 && row.due_at > now;
        if let Some(row) = self.rows.get_mut(&id).filter(waits) {
            match replay {
                true => row.due_at = Time::ZERO,
                false => row.state = RowState::Discarded,
            }
            self.changes += 1;
        }
    }

    // ---- the store -----------------------------------------------------------------------------------------------

    pub(super) fn mark(&mut self, id: RowId) {
        if let Some(row) = self.rows.get_mut(&id) {
            row.state = RowState::Sent;
        }
    }

    pub(super) fn record(&mut self, failure: &Failure, now: Time) {
        let row = self
            .rows
            .get_mut(&failure.row)
            .filter(|row| row.state == RowState::Unsent);
        let Some(row) = row else { return };
        row.attempts = failure.attempts;
        match failure.next {
            NextStep::RetryIn(delay) => row.due_at = now + delay,
            NextStep::Dead => row.state = RowState::Dead,
        }
    }

    /// The answer to a question, from what is committed now.
    pub(super) fn answer(&mut self, read: &Read, now: Time) -> Answer {
        match read {
            Read::Head { after, limit, .. } => {
                let found = self.unsent().filter(|row| row.id > *after).take(*limit as usize);
                Answer::Head {
                    rows: found.map(|row| self.row(row, now)).collect(),
                    whole: true,
                }
            }
            Read::Scan { after, to, .. } => {
                let found = self.unsent().filter(|row| row.id > *after && row.id <= *to);
                Answer::Scan(found.take(SCAN_PAGE as usize).map(|row| stub(row, now)).collect())
            }
            Read::Probe(ids) => Answer::Probe(self.probe(ids, now)),
            Read::Fetch { ids, bytes } => Answer::Fetch(self.fetch(ids, *bytes, now)),
            Read::DeadKeys => Answer::DeadKeys(self.dead_keys()),
            Read::Changed => {
                let changed = self.changes > self.changes_told;
                self.changes_told = self.changes;
                Answer::Changed(self.tells_changes.then_some(changed))
            }
        }
    }

    fn unsent(&self) -> impl Iterator<Item = &TableRow> {
        self.rows.values().filter(|row| row.state == RowState::Unsent)
    }

    fn probe(&self, ids: &[RowId], now: Time) -> Probe {
        let exists = |row: &&TableRow| match row.state {
            RowState::Unseen | RowState::Discarded => false,
            RowState::Sent => !self.deletes,
            RowState::Unsent | RowState::Dead => true,
        };
        let rows: Vec<_> = ids.iter().filter_map(|id| self.rows.get(id)).filter(exists).collect();
        let unsent = rows.iter().filter(|row| row.state == RowState::Unsent);
        let next = self.last_transaction + 1;
        Probe {
            unsent: unsent.map(|row| stub(row, now)).collect(),
            present: rows.iter().map(|row| row.id).collect(),
            open: OpenTransactions {
                oldest: self.open.first().copied().unwrap_or(next),
                next,
            },
        }
    }

    fn fetch(&self, ids: &[RowId], bytes: u64, now: Time) -> Vec<OutboxRow> {
        let mut sum = 0;
        let mut rows = Vec::new();
        for row in self.unsent().filter(|row| ids.contains(&row.id)) {
            sum += row.size;
            let mut read = self.row(row, now);
            let fits = sum <= bytes || rows.is_empty();
            read.payload = if fits {
                loaded(row.size)
            } else {
                Payload::Left(row.size)
            };
            rows.push(read);
        }
        rows
    }

    fn dead_keys(&self) -> Vec<(OrderingKey, RowId)> {
        let mut lowest = BTreeMap::new();
        for row in self.rows.values().filter(|row| row.state == RowState::Dead) {
            if let Some(key) = &row.key {
                lowest.entry(key.clone()).or_insert(row.id);
            }
        }
        lowest.into_iter().collect()
    }

    fn row(&self, row: &TableRow, now: Time) -> OutboxRow {
        let due_in = row.due_at.saturating_sub(now);
        let inline = row.size <= self.inline && due_in.is_zero();
        OutboxRow {
            id: row.id,
            message_id: row.message_id.into(),
            exchange: Some(row.exchange.to_string()),
            routing_key: if row.flaw == Some(Flaw::RoutingKey) {
                "r".repeat(256)
            } else {
                "r".to_owned()
            },
            ordering_key: row.key.clone(),
            kind: None,
            content_type: String::new(),
            headers: if row.flaw == Some(Flaw::Headers) { "[]" } else { "{}" }.to_owned(),
            properties: "{}".to_owned(),
            payload: if inline {
                loaded(row.size)
            } else {
                Payload::Left(row.size)
            },
            created_at: None,
            age: Time::ZERO,
            due_in,
            attempts: row.attempts,
            not_utf8: None,
        }
    }
}

fn loaded(size: u64) -> Payload {
    Payload::Loaded(vec![b'x'; usize::try_from(size).unwrap()])
}

fn stub(row: &TableRow, now: Time) -> Stub {
    Stub {
        id: row.id,
        ordering_key: row.key.clone(),
        due_in: row.due_at.saturating_sub(now),
        exchange: Some(row.exchange.to_string()),
    }
}
