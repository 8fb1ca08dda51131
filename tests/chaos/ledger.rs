//! What the writers wrote and what arrived: judges every message the moment it comes.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use lapin::types::FieldTable;
use uuid::Uuid;

use crate::faults::{Kind, Record};
use crate::support::{PREFETCH, Received};

/// More would only repeat what these say.
const MOST_VIOLATIONS: usize = 20;

/// Rows of a key around the one that is wrong.
const HISTORY: u32 = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Its transaction runs, or ended in a way that its writer does not know yet.
    Open,
    Committed,
    RolledBack,
}

struct Row {
    key: Option<u32>,
    /// Within the key.
    n: u32,
    /// In the table, once it was inserted.
    id: Option<i64>,
    body: String,
    fate: Fate,
    /// The first arrival, with what identifies the properties of the message.
    first: Option<(Duration, u64)>,
    /// Further copies that the relays published.
    copies: Vec<Duration>,
}

#[derive(Default)]
struct Key {
    rows: Vec<Uuid>,
    /// The last number that arrived, and whether the broker delivered it again.
    last: Option<(u32, bool)>,
}

/// Shared by writers, consumer and watchers.
#[derive(Clone)]
pub(crate) struct Ledger {
    record: Record,
    book: Arc<Mutex<Book>>,
}

#[derive(Default)]
pub(crate) struct Book {
    rows: HashMap<Uuid, Row>,
    keys: HashMap<u32, Key>,
    /// Committed and not arrived.
    pub(crate) pending: HashSet<Uuid>,
    pub(crate) committed: usize,
    pub(crate) rolled_back: usize,
    pub(crate) arrived: usize,
    pub(crate) last_arrival: Duration,
    /// Deliveries that the broker repeated to the consumer.
    pub(crate) redelivered: usize,
    /// Of these, first seen so, after a later row of the key.
    pub(crate) order_unknown: usize,
    pub(crate) duplicates: BTreeMap<Kind, usize>,
    pub(crate) violations: Vec<String>,
}

impl Ledger {
    pub(crate) fn new(record: Record) -> Self {
        Self {
            record,
            book: Arc::default(),
        }
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("no panic while locked")
    }

    pub(crate) fn violation(&self, text: String) {
        let now = self.record.now();
        self.book().violation(now, text);
    }

    /// A row is about to be inserted, its key locked: returns its number within the key and its body.
    pub(crate) fn write(&self, message_id: Uuid, key: Option<u32>, padding: usize) -> (u32, String) {
        let mut book = self.book();
        let n = key.map_or(0, |key| {
            let rows = &mut book.keys.entry(key).or_default().rows;
            rows.push(message_id);
            u32::try_from(rows.len()).expect("not that many")
        });
        let named = key.map_or("null".to_owned(), |key| key.to_string());
        let text = "x".repeat(padding);
        let body = format!(r#"{{"key": {named},  "n": {n}, "text": "{message_id} {text}"}}"#);
        let row = Row {
            key,
            n,
            id: None,
            body: body.clone(),
            fate: Fate::Open,
            first: None,
            copies: Vec::new(),
        };
        assert!(book.rows.insert(message_id, row).is_none(), "each id is drawn once");
        (n, body)
    }

    pub(crate) fn inserted(&self, message_id: Uuid, id: i64) {
        if let Some(row) = self.book().rows.get_mut(&message_id) {
            row.id = Some(id);
        }
    }

    /// The transaction ended.
    pub(crate) fn decided(&self, rows: &[Uuid], fate: Fate) {
        let now = self.record.now();
        let mut book = self.book();
        for message_id in rows {
            let Some(row) = book.rows.get_mut(message_id) else {
                continue;
            };
            row.fate = fate;
            let arrived = row.first.is_some();
            match fate {
                Fate::Open => {}
                Fate::Committed => {
                    book.committed += 1;
                    if !arrived {
                        book.pending.insert(*message_id);
                    }
                }
                Fate::RolledBack => {
                    book.rolled_back += 1;
                    if arrived {
                        book.violation_of(now, "a row that was rolled back had arrived", *message_id);
                    }
                }
            }
        }
    }

    /// A message came out of the queue.
    pub(crate) fn arrived(&self, message: &Received) {
        let now = self.record.now();
        let mut guard = self.book();
        let book = &mut *guard;
        let parsed = Uuid::try_parse(&message.message_id).ok();
        let Some((message_id, row)) = parsed.and_then(|id| Some((id, book.rows.get_mut(&id)?))) else {
            let (id, text) = (&message.message_id, message.text());
            book.violation(now, format!("a message that nobody wrote: {id:?}, {text}"));
            return;
        };
        let properties = digest(message);
        let (first, key, n) = (row.first, row.key, row.n);
        let alike = row.body.as_bytes() == message.body && first.is_none_or(|(_, digest)| digest == properties);
        let rolled_back = row.fate == Fate::RolledBack;
        if first.is_none() {
            row.first = Some((now, properties));
        } else if message.redelivered {
            book.redelivered += 1;
        } else {
            row.copies.push(now);
        }
        if !alike {
            let text = format!(
                "a copy is not like the row or the first: {}, {:?}",
                message.text(),
                message.properties
            );
            book.violation_of(now, &text, message_id);
        }
        if rolled_back {
            book.violation_of(now, "a row that was rolled back arrives", message_id);
        }
        if first.is_some() {
            if !message.redelivered {
                match self.record.explanation(now) {
                    Some(kind) => *book.duplicates.entry(kind).or_default() += 1,
                    None => book.violation_of(now, "a duplicate that no fault explains", message_id),
                }
            }
            return;
        }
        book.arrived += 1;
        book.last_arrival = now;
        book.pending.remove(&message_id);
        if let Some(key) = key {
            let this = (n, message.redelivered);
            let last = book.keys.entry(key).or_default().last.get_or_insert(this);
            let (before, again) = *last;
            *last = this.max(*last);
            // What the broker delivers a second time it delivered at some earlier moment to a connection that has ended
            // since, and it may do so after messages that it delivers for the first time: nothing is known then.
            if before > n && message.redelivered && !again {
                book.order_unknown += 1;
                let most = usize::from(PREFETCH) * (message.connection + 1);
                if book.order_unknown > most {
                    book.violation(
                        now,
                        format!("more than {most} rows are out of order, and the broker alone is not it"),
                    );
                }
            } else if before > n {
                let text = format!("out of order: number {n} of key {key} arrives after {before}");
                book.violation_of(now, &text, message_id);
            }
        }
    }
}

impl Book {
    fn violation(&mut self, now: Duration, text: String) {
        if self.violations.len() < MOST_VIOLATIONS {
            self.violations.push(format!("at {:.3}: {text}", now.as_secs_f64()));
        }
    }

    /// With the history of the row's key.
    pub(crate) fn violation_of(&mut self, now: Duration, text: &str, message_id: Uuid) {
        let history = self.history(message_id);
        self.violation(now, format!("{text}\n{history}"));
    }

    fn history(&self, message_id: Uuid) -> String {
        let Some(row) = self.rows.get(&message_id) else {
            return String::new();
        };
        let rows: Vec<Uuid> = match row.key.and_then(|key| self.keys.get(&key)) {
            None => vec![message_id],
            Some(key) => {
                let from = row.n.saturating_sub(HISTORY + 1) as usize;
                let to = key.rows.len().min((row.n + HISTORY) as usize);
                key.rows[from..to].to_vec()
            }
        };
        let lines = rows.iter().filter_map(|id| {
            let row = self.rows.get(id)?;
            let mark = if *id == message_id { '>' } else { ' ' };
            let secs = |at: &Duration| format!("{:.3}", at.as_secs_f64());
            let first = row
                .first
                .map_or("not arrived".to_owned(), |(at, _)| format!("arrived {}", secs(&at)));
            let copies: Vec<String> = row.copies.iter().map(secs).collect();
            Some(format!(
                " {mark} key {:?} number {} row {:?} {id} {:?}, {first}, copies {copies:?}\n",
                row.key, row.n, row.id, row.fate
            ))
        });
        lines.collect()
    }
}

/// Everything but the body that is the same on every copy.
fn digest(message: &Received) -> u64 {
    let headers: Vec<_> = message.headers.inner().iter().collect();
    let properties = message.properties.clone().with_headers(FieldTable::default());
    let mut hasher = DefaultHasher::new();
    let (exchange, routing_key) = (&message.exchange, &message.routing_key);
    format!("{properties:?} {headers:?} {exchange} {routing_key}").hash(&mut hasher);
    hasher.finish()
}
