//! The reading side: rows come in, as far as there is room and use for them.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use foldhash::HashSet;

use crate::config::{OnDeadLetter, Ordering};
use crate::message::{self, Copies, Message, OrderingKey, OutboxRow, Payload, RowId};
use crate::store::Stub;

use super::{Content, Dispatcher, Hashed, Row, State, Time, Turn, rests};

/// Rows without a key that are due later than this are not remembered: a later sweep finds them again.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// Rows that wait for their time and are read again after a sweep: two pages of a scan.
const LOOKED_AT_AGAIN: usize = 10_000;

impl Dispatcher {
    /// How many more rows can be taken in now.
    pub fn room(&self) -> usize {
        let full = self.bytes >= self.settings.bytes || !self.left.is_empty() || self.is_full_of_waiting();
        if full {
            0
        } else {
            self.settings.rows.saturating_sub(self.active())
        }
    }

    /// The same, and no key is kept short of room because of them. Keys that are sent one row at a time may be: their
    /// other rows are of no use yet.
    pub fn easy_room(&self) -> usize {
        match self.settings.ordering {
            Ordering::Pipelined => self.room().min(self.crowd().saturating_sub(self.active())),
            Ordering::Strict | Ordering::None => self.room(),
        }
    }

    /// Whether a whole window can go as soon as lanes are free.
    pub fn has_window_ready(&self) -> bool {
        let ready = match self.settings.ordering {
            Ordering::Pipelined => self.active().saturating_sub(self.in_flight),
            // Of each key with a turn, one row.
            Ordering::Strict | Ordering::None => {
                self.ready.len() + self.pinned.iter().map(VecDeque::len).sum::<usize>()
            }
        };
        ready >= self.settings.in_flight
    }

    /// Rows held from which on there is little room left for those of other keys.
    fn crowd(&self) -> usize {
        match self.settings.ordering {
            // A window in flight, one ready, and a page: what is left of two windows and two pages is a page.
            Ordering::Pipelined => self.settings.in_flight + self.settings.rows / 2,
            Ordering::Strict | Ordering::None => self.settings.rows / 2,
        }
    }

    /// A read of the table begins. At most one is under way.
    pub fn read_started(&mut self) {
        self.reading = true;
    }

    /// The read's rows have been admitted, or it failed.
    pub fn read_finished(&mut self) {
        self.reading = false;
        for id in std::mem::take(&mut self.forget_after_read) {
            self.rows.remove(&id);
        }
    }

    /// Takes in rows as read; those that their key cannot use yet stay in the table, and known ones change nothing.
    pub fn admit(&mut self, rows: Vec<OutboxRow>, now: Time) {
        self.admit_with(rows, Copies::Perhaps, now);
    }

    /// The same for rows that were committed while this relay owned their shares: nobody else has published them, and
    /// it has not seen them before.
    pub fn admit_unpublished(&mut self, rows: Vec<OutboxRow>, now: Time) {
        self.admit_with(rows, Copies::None, now);
    }

    fn admit_with(&mut self, rows: Vec<OutboxRow>, copies: Copies, now: Time) {
        for row in rows {
            if !self.rows.contains_key(&row.id) {
                self.admit_new(row, copies, now);
            }
        }
    }

    /// Takes in what a scan found of the ids above `after` and up to `through` (`complete`: all that have ever been
    /// read). Returns up to where it got: it stops when there is no more room.
    pub fn admit_stubs(&mut self, stubs: &[Stub], after: RowId, through: RowId, complete: bool, now: Time) -> RowId {
        self.keys.scan_began(after);
        let mut got = (through, complete);
        for stub in stubs {
            if self.rows.contains_key(&stub.id) {
                continue;
            }
            if self.active() >= self.settings.rows || self.stubs >= self.settings.stubs {
                got = (RowId(stub.id.0 - 1), false);
                break;
            }
            self.admit_stub(stub, now);
        }
        self.keys.scan_ended(got.0, got.1);
        got.0
    }

    /// Takes in rows that appeared below ids already read. They are few, and later rows of their keys may be about to
    /// go: they do not ask for room.
    pub fn admit_late(&mut self, stubs: &[Stub], now: Time) {
        for stub in stubs {
            if !self.rows.contains_key(&stub.id) {
                self.admit_stub(stub, now);
            }
        }
    }

    fn admit_stub(&mut self, stub: &Stub, now: Time) {
        self.keys.crowded(self.active() >= self.crowd());
        let share = self.share(stub.id, stub.ordering_key.as_ref());
        if !self.takes_share(share) {
            return;
        }
        let key = self.ordered(stub.ordering_key.as_ref());
        if key.is_none() && stub.due_in > FORGET_AFTER {
            return;
        }
        let exchange = self.exchange(stub.exchange.as_deref());
        if self.stays(stub.id, key.as_ref(), exchange) {
            return;
        }
        if key.as_ref().is_none_or(|key| self.keys.takes_from_scan(key, stub.id)) {
            let row = Row::new(key, (share, exchange), Content::Left, 0, 0, (Duration::ZERO, now));
            self.insert(stub.id, row, stub.due_in, now);
        }
    }

    /// Everything unsent has been looked through. What a key waits for by the table's word is read from there again: a
    /// person may have made it due, or taken it away. That is done for the lowest 10,000 rows; others wait for
    /// their time as it was known.
    pub fn look_again(&mut self) {
        let noted = |row: &Row| row.key.is_some() && matches!(row.state, State::Backoff { noted: true, .. });
        let noted = self.rows.iter().filter(|(_, row)| noted(row));
        let mut noted: Vec<RowId> = noted.map(|(id, _)| *id).collect();
        noted.sort_unstable();
        noted.truncate(LOOKED_AT_AGAIN);
        for id in &noted {
            if let Some(key) = self.rows.get(id).and_then(|row| row.key.clone()) {
                let behind = self.keys.read_again(&key, *id, |row| rests(&self.rows, row));
                self.leave(behind);
                self.abandon(*id);
            }
        }
        if !noted.is_empty() {
            let rows = &self.rows;
            self.timers.retain(|Reverse((_, id))| rows.contains_key(id));
        }
    }

    /// The id from which rows of some flowing key were left in the table, if there is room for them now.
    pub fn refill_from(&self) -> Option<RowId> {
        if self.room() == 0 {
            None
        } else {
            self.keys.refill_from()
        }
    }

    /// Up to `limit` rows whose bodies should be fetched now, and how many bytes of them there is room for.
    pub fn to_fetch(&self, limit: usize) -> (Vec<RowId>, u64) {
        let room = self.settings.bytes.saturating_sub(self.bytes);
        // When nothing else can go, one row is fetched whatever its size: else rows behind it could fill the room that
        // it needs.
        let stalled = self.in_flight == 0 && self.ready.is_empty() && self.pinned.iter().all(VecDeque::is_empty);
        let mut ids = Vec::new();
        let mut sum = 0;
        for id in self.left.iter().take(limit) {
            let size = self.rows.get(id).map_or(0, |row| row.size);
            // The size of a row that only a scan has shown is not known: without any room it is not fetched.
            if sum + size.max(1) > room && !(ids.is_empty() && stalled) {
                break;
            }
            sum += size;
            ids.push(*id);
        }
        (ids, room)
    }

    /// Takes in the answer to a fetch. Rows that it did not bring are not unsent any more: forgotten.
    pub fn fetched(&mut self, asked: &[RowId], rows: Vec<OutboxRow>, now: Time) {
        let brought: HashSet<RowId> = rows.iter().map(|row| row.id).collect();
        for id in asked.iter().filter(|id| !brought.contains(id)) {
            if !self.left.remove(id) {
                continue;
            }
            if let Some(key) = self.rows.remove(id).and_then(|row| row.key) {
                self.keys.gone(&key, *id);
                self.queue_key(key);
            }
        }
        for row in rows {
            self.body_arrived(row, now);
        }
    }

    /// Tells which keys have a dead letter (matters for `block` only): `found`, in the order of their rows, and if not
    /// `all` of them, none of the others is below the last. `as_of`: when the table was asked.
    pub fn dead_keys(&mut self, found: &[(OrderingKey, RowId)], all: bool, as_of: Time) {
        if self.settings.on_dead_letter == OnDeadLetter::Continue || self.settings.ordering == Ordering::None {
            return;
        }
        let mine = |(key, row): &&(OrderingKey, RowId)| self.takes_share(self.share(*row, Some(key)));
        let through = found.last().filter(|_| !all).map_or(RowId(i64::MAX), |(_, row)| *row);
        let found: Vec<_> = found.iter().filter(mine).cloned().collect();
        let rests = |row| rests(&self.rows, row);
        let (released, left) = self.keys.replace_dead(&found, through, as_of, rests);
        self.leave(left);
        for key in released {
            self.queue_key(key);
        }
    }

    fn ordered(&self, key: Option<&OrderingKey>) -> Option<OrderingKey> {
        if self.settings.ordering == Ordering::None {
            None
        } else {
            key.cloned()
        }
    }

    fn admit_new(&mut self, row: OutboxRow, copies: Copies, now: Time) {
        self.keys.crowded(self.active() >= self.crowd());
        let share = self.share(row.id, row.ordering_key.as_ref());
        let key = self.ordered(row.ordering_key.as_ref());
        if !self.takes_share(share) || (key.is_none() && row.due_in > FORGET_AFTER) {
            return;
        }
        let exchange = self.exchange(row.exchange.as_deref());
        if self.stays(row.id, key.as_ref(), exchange) || key.as_ref().is_some_and(|key| !self.keys.takes(key, row.id)) {
            return;
        }
        let (id, due_in, attempts, age) = (row.id, row.due_in, row.attempts, row.age);
        let size = row.payload.size();
        let content = self.content(row);
        let size = content.size().unwrap_or(size);
        let mut row = Row::new(key, (share, exchange), content, size, attempts, (age, now));
        row.copies = if attempts > 0 { Copies::Refused } else { copies };
        self.insert(id, row, due_in, now);
    }

    fn insert(&mut self, id: RowId, mut row: Row, due_in: Duration, now: Time) {
        let key = row.key.clone();
        if due_in.is_zero() {
            match row.content {
                Content::Ready(_) => self.bytes += row.size,
                Content::Left => drop(self.left.insert(id)),
                Content::Bad(_) => {}
            }
            self.rows.insert(id, row);
            self.queue(id, key);
        } else {
            row.content = Content::Left;
            row.state = State::Waiting;
            self.rows.insert(id, row);
            self.hold(id, key.as_ref());
            self.back_off(id, now.saturating_add(due_in), true);
        }
    }

    /// `id` waits until this time, which is in the table as well (`noted`) or only known here. One without a key need not be remembered where there are too many: a sweep finds it
    /// again.
    pub(super) fn back_off(&mut self, id: RowId, until: Time, noted: bool) {
        if self.goes_back(id) {
            return;
        }
        let many = self.stubs >= self.settings.stubs / 2;
        if many && self.rows.get(&id).is_some_and(|row| row.key.is_none()) {
            // A read under way may still show it as it was.
            return self.forget(id);
        }
        self.drop_body(id);
        if let Some(row) = self.rows.get_mut(&id) {
            row.state = State::Backoff { until, noted };
            self.stubs += 1;
            self.timers.push(Reverse((until, id)));
        }
    }

    fn body_arrived(&mut self, read: OutboxRow, now: Time) {
        let id = read.id;
        // It may have been left in the table again since it was asked for.
        if !self.left.contains(&id) {
            return;
        }
        let (size, age, attempts) = (read.payload.size(), read.age, read.attempts);
        let exchange = self.exchange(read.exchange.as_deref());
        let content = self.content(read);
        let size = content.size().unwrap_or(size);
        let Some(row) = self.rows.get_mut(&id) else { return };
        row.size = size;
        row.attempts = row.attempts.max(attempts);
        if attempts > 0 {
            row.copies = Copies::Refused;
        }
        row.age = (age, now);
        // Somebody may have sent it elsewhere since it was found.
        row.exchange = exchange;
        if self.goes_back(id) {
            return;
        }
        let Some(row) = self.rows.get_mut(&id) else { return };
        // There was no room for it this time: it stays in the line.
        if matches!(content, Content::Left) {
            return;
        }
        if matches!(content, Content::Ready(_)) {
            self.bytes += size;
        }
        row.content = content;
        let key = row.key.clone();
        self.left.remove(&id);
        match key {
            None => self.ready.push_back(Turn::Row(id)),
            Some(key) => self.queue_key(key),
        }
    }

    fn content(&self, row: OutboxRow) -> Content {
        if let Payload::Left(size) = row.payload {
            return match message::check_body_size(size, &self.settings.rules) {
                Ok(()) => Content::Left,
                Err(invalid) => Content::Bad(invalid),
            };
        }
        match Message::from_row(row, &self.settings.rules) {
            Ok(message) => Content::Ready(Arc::new(message)),
            Err(invalid) => Content::Bad(invalid),
        }
    }
}

impl Content {
    /// Bytes of the body that is held, which as a CloudEvent is larger than the one in the table.
    fn size(&self) -> Option<u64> {
        match self {
            Self::Ready(message) => Some(message.body.len() as u64),
            Self::Left | Self::Bad(_) => None,
        }
    }
}

impl Row {
    fn new(
        key: Option<OrderingKey>,
        (share, exchange): (u16, Hashed),
        content: Content,
        size: u64,
        attempts: u32,
        age: (Duration, Time),
    ) -> Self {
        Self {
            key,
            share,
            exchange,
            content,
            size,
            attempts,
            setbacks: 0,
            given_up: None,
            copies: Copies::Perhaps,
            state: State::Waiting,
            age,
        }
    }
}
