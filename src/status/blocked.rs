//! Keys that cannot go on, each with the row that it waits for.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::{seconds, time};
use crate::config::{Config, OnDeadLetter, Ordering};
use crate::message::RowId;
use crate::store::StoreError;
use crate::store::operator::{DeadFilter, DeadLetter, Operator, WaitingKey};

/// What a key waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// A row that was given up, under `RELAY_ON_DEAD_LETTER=block`.
    DeadLetter,
    /// A row that was refused and is tried again.
    Retry,
    /// A row whose `available_at` has not come.
    Delayed,
}

/// A key that cannot go on.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockedKey {
    /// The key.
    pub key: String,
    /// The row that its later rows wait for.
    pub row: RowId,
    /// Why that row does not go.
    pub why: Why,
    /// Refusals of the row.
    pub attempts: u32,
    /// How long it waits yet; zero for a dead letter.
    pub due_in: Duration,
    /// Reason of the last refusal.
    pub last_error: Option<String>,
    /// When the row was given up, else when it was created; `None`: the table does not say.
    pub since: Option<SystemTime>,
}

/// The blocked keys (or only `key`, if it is one) by their rows, up to `limit` of each kind; and whether there may be more.
///
/// # Errors
/// As the store's.
pub async fn blocked_keys(
    operator: &dyn Operator,
    config: &Config,
    key: Option<&str>,
    limit: u32,
) -> Result<(Vec<BlockedKey>, bool), StoreError> {
    if config.ordering == Ordering::None {
        return Ok((Vec::new(), false));
    }
    let waiting = operator.waiting_keys(key, limit).await?;
    let mut more = waiting.len() == limit as usize;
    let mut found: Vec<BlockedKey> = waiting.into_iter().map(waits).collect();
    if config.on_dead_letter == OnDeadLetter::Block {
        let letters = blocking_letters(operator, key, limit).await?;
        more |= letters.len() == limit as usize;
        found.extend(letters.into_iter().map(is_dead));
    }
    // Of a key that waits for two rows, the lower one.
    let mut keys: BTreeMap<String, BlockedKey> = BTreeMap::new();
    for one in found {
        let first = keys.entry(one.key.clone()).or_insert_with(|| one.clone());
        if one.row < first.row {
            *first = one;
        }
    }
    let mut keys: Vec<BlockedKey> = keys.into_values().collect();
    keys.sort_by_key(|key| key.row);
    Ok((keys, more))
}

/// The lowest dead letter of each key.
async fn blocking_letters(
    operator: &dyn Operator,
    key: Option<&str>,
    limit: u32,
) -> Result<Vec<DeadLetter>, StoreError> {
    let first = RowId(i64::MIN);
    let (filter, limit) = match key {
        Some(key) => (
            DeadFilter {
                key: Some(key.to_owned()),
                ..DeadFilter::default()
            },
            1,
        ),
        None => {
            let ids: Vec<RowId> = operator.dead_keys(limit).await?.iter().map(|(_, row)| *row).collect();
            if ids.is_empty() {
                return Ok(Vec::new());
            }
            let filter = DeadFilter {
                ids,
                ..DeadFilter::default()
            };
            (filter, limit)
        }
    };
    operator.dead_letters(&filter, first, limit).await
}

fn waits(waiting: WaitingKey) -> BlockedKey {
    BlockedKey {
        key: waiting.key.as_str().to_owned(),
        row: waiting.row,
        why: if waiting.attempts > 0 { Why::Retry } else { Why::Delayed },
        attempts: waiting.attempts,
        due_in: waiting.due_in,
        last_error: waiting.last_error,
        since: waiting.age.and_then(|age| SystemTime::now().checked_sub(age)),
    }
}

fn is_dead(letter: DeadLetter) -> BlockedKey {
    BlockedKey {
        key: letter.ordering_key.unwrap_or_default(),
        row: letter.id,
        why: Why::DeadLetter,
        attempts: letter.attempts,
        due_in: Duration::ZERO,
        last_error: letter.last_error,
        since: Some(super::unix(letter.dead_at)),
    }
}

impl BlockedKey {
    /// As `status --json` and `keys list --json` have it.
    pub fn json(&self) -> Value {
        json!({
            "key": self.key,
            "row": self.row.0,
            "why": match self.why {
                Why::DeadLetter => "dead_letter",
                Why::Retry => "retry",
                Why::Delayed => "delayed",
            },
            "attempts": self.attempts,
            "due_in_seconds": seconds(self.due_in),
            "last_error": self.last_error,
            "since": self.since.map(time),
        })
    }
}
