//! What a person asks of an outbox in MariaDB or MySQL.
//!
//! Dead letters are next to each other in the index of unsent rows, but by their time and not by their id: to find the
//! lowest ids all of them are looked through. So that is done in the index alone, and only rows that may be wanted are
//! looked up (300,000 dead letters: 0.1 s for a page, where a filter on the rows themselves takes 1.5 s).

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::Row as _;
use sqlx::mysql::MySqlRow;

use super::inspect::{self, backquoted};
use super::rows::{self, bytes, message_id, text};
use super::statements::{CREATED, DUE, LISTED, OPEN};
use super::{MAX_MARK, MySql, lease_dialect, list, micros};
use crate::message::RowId;
use crate::store::operator::rows::{Cells, dead_letter, owner, reason, waiting_key};
use crate::store::operator::{
    Database, DeadFilter, DeadLetter, Index, Operator, Ownership, Upkeep, WAITING_SCAN, WaitingKey, count_reasons,
    reason_of,
};
use crate::store::values::{decode, decode_one, epoch, raw};
use crate::store::{StoreError, leases};

const DEAD: &str = "o.sent_at IS NULL AND o.dead_at IS NOT NULL";

/// With a filter on what is not in the index, so many dead letters at a time are looked up.
const WINDOW: usize = 10_000;

/// Microseconds since it was given up.
const DEAD_FOR: &str = "timestampdiff(MICROSECOND, o.dead_at, now(6))";

/// In UTC, as every connection is.
const DEAD_AT: &str = "timestampdiff(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', o.dead_at)";

impl MySql {
    async fn ask(&self, sql: String) -> Result<Vec<MySqlRow>, StoreError> {
        let sql: Arc<str> = sql.into();
        self.rows(&self.housekeeping, self.query(&sql)).await
    }

    /// In `id` order, as every writer locks rows.
    async fn change(&self, sql: String, ids: &[RowId]) -> Result<u64, StoreError> {
        let sql: Arc<str> = sql.into();
        let mut ids = raw(ids);
        ids.sort_unstable();
        let mut changed = 0;
        for ids in ids.chunks(MAX_MARK) {
            changed += self.execute(&self.write, self.query(&sql).bind(list(ids))).await?;
        }
        Ok(changed)
    }
}

impl MySql {
    /// The lowest ids of dead letters above `after`, from the index alone.
    async fn dead_ids(&self, ages: &str, after: i64, limit: usize) -> Result<Vec<i64>, StoreError> {
        let statements = self.statements().await?;
        let sql: Arc<str> = format!(
            "SELECT CAST(o.id AS SIGNED) FROM {} WHERE {DEAD}{ages} AND o.id > ? ORDER BY o.id LIMIT {limit}",
            statements.indexed
        )
        .into();
        let query = self.query(&sql).bind(after);
        decode(&self.rows(&self.housekeeping, query).await?, |row| row.try_get(0))
    }

    /// The lowest of these rows that are wanted dead letters.
    async fn dead_among(&self, ids: &[i64], wanted: &Wanted, limit: usize) -> Result<Vec<DeadLetter>, StoreError> {
        let table = &self.table;
        // The rows are found first, and then read: to be sorted they must be small, see `fetch`.
        let sql: Arc<str> = format!(
            "SELECT CAST(o.id AS SIGNED), o.message_id, o.exchange, o.routing_key, o.ordering_key, o.type, o.content_type,
                    o.headers, o.properties, CAST(octet_length(o.payload) AS SIGNED),
                    CAST(coalesce(o.attempts, 0) AS SIGNED), o.last_error, {CREATED} / 1e6, {DEAD_AT} / 1e6
             FROM (SELECT o.id FROM {LISTED} {table} AS o ON o.id = w.id
                   WHERE {DEAD}{}{} ORDER BY o.id LIMIT {limit}) AS d STRAIGHT_JOIN {table} AS o ON o.id = d.id",
            wanted.ages, wanted.others
        )
        .into();
        let texts = wanted.texts.iter();
        let query = texts.fold(self.query(&sql).bind(list(ids)), |query, text| {
            query.bind(text.as_str())
        });
        let mut letters = decode(&self.rows(&self.housekeeping, query).await?, |row| {
            let created = epoch(row.double(12)?);
            let id = message_id(row, &format!("{table}:{}:{created}", row.number(0)?))?;
            dead_letter(row, Some(id))
        })?;
        letters.sort_unstable_by_key(|letter| letter.id);
        Ok(letters)
    }
}

#[async_trait]
impl Operator for MySql {
    async fn database(&self) -> Result<Database, StoreError> {
        let sql = format!("SELECT version(), {}", lease_dialect(&self.options.table).now);
        decode_one(&self.ask(sql).await?, |row| {
            let version = rows::name(row)?;
            Ok(Database {
                product: inspect::product(&version),
                version,
                now: row.double(1)?.unwrap_or_default(),
            })
        })
    }

    async fn ownership(&self) -> Result<Ownership, StoreError> {
        let table = &self.options.table;
        let rows = self.ask(leases::ownership(table, &lease_dialect(table))).await;
        Ok(leases::owners(decode(&rows.map_err(leases::explain)?, owner)?))
    }

    async fn dead_reasons(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let statements = self.statements().await?;
        // In no order: it would be sorted for that.
        let dead = format!("{} WHERE {DEAD}", statements.indexed);
        decode(&self.ask(count_reasons("o.last_error", &dead)).await?, reason)
    }

    async fn waiting_keys(&self, limit: u32) -> Result<Vec<WaitingKey>, StoreError> {
        let statements = self.statements().await?;
        // Keys are compared by their bytes, whatever the collation of the column.
        let sql = format!(
            "SELECT o.ordering_key, CAST(o.id AS SIGNED), CAST(coalesce(o.attempts, 0) AS SIGNED), {DUE} / 1e6, o.last_error
             FROM (SELECT k, min(id) AS lowest
                   FROM (SELECT CAST(convert(o.ordering_key USING utf8mb4) AS BINARY) AS k, o.id AS id, {DUE} AS due
                         FROM {} WHERE {OPEN} ORDER BY o.id LIMIT {WAITING_SCAN}) AS unsent
                   WHERE k IS NOT NULL AND due > 0 GROUP BY k ORDER BY lowest LIMIT {limit}) AS w
             STRAIGHT_JOIN {} AS o ON o.id = w.lowest ORDER BY o.id",
            statements.indexed, self.table
        );
        decode(&self.ask(sql).await?, waiting_key)
    }

    async fn dead_letters(&self, filter: &DeadFilter, after: RowId, limit: u32) -> Result<Vec<DeadLetter>, StoreError> {
        let wanted = Wanted::of(filter);
        let (mut after, limit) = (after.0, limit as usize);
        let mut letters = Vec::new();
        loop {
            let room = limit - letters.len();
            let (ids, more) = if filter.ids.is_empty() {
                let window = if wanted.texts.is_empty() { room } else { WINDOW };
                let ids = self.dead_ids(&wanted.ages, after, window).await?;
                let more = ids.len() == window;
                (ids, more)
            } else {
                let ids: BTreeSet<i64> = raw(&filter.ids).into_iter().filter(|id| *id > after).collect();
                (ids.into_iter().collect(), false)
            };
            letters.extend(self.dead_among(&ids, &wanted, room).await?);
            match ids.last() {
                Some(last) if more && letters.len() < limit => after = *last,
                _ => return Ok(letters),
            }
        }
    }

    async fn dead_payload(&self, id: RowId) -> Result<Option<Vec<u8>>, StoreError> {
        let sql: Arc<str> = format!("SELECT o.payload FROM {} AS o WHERE {DEAD} AND o.id = ?", self.table).into();
        let rows = self.rows(&self.housekeeping, self.query(&sql).bind(id.0)).await?;
        let bodies = decode(&rows, |row| Ok(bytes(row, 0)?.unwrap_or_default().to_vec()))?;
        Ok(bodies.into_iter().next())
    }

    async fn replay(&self, ids: &[RowId]) -> Result<u64, StoreError> {
        let sql = format!(
            "UPDATE {LISTED} {} AS o ON o.id = w.id SET o.dead_at = NULL, o.attempts = 0, o.next_attempt_at = NULL WHERE {DEAD}",
            self.table
        );
        self.change(sql, ids).await
    }

    async fn discard(&self, ids: &[RowId]) -> Result<u64, StoreError> {
        let sql = format!("DELETE o FROM {LISTED} {} AS o ON o.id = w.id WHERE {DEAD}", self.table);
        self.change(sql, ids).await
    }

    /// One index is for both.
    async fn upkeep(&self) -> Result<Upkeep, StoreError> {
        let index = Index {
            exists: self.unsent_index(&self.housekeeping).await?.is_some(),
            create: format!(
                "ALTER TABLE {} ADD INDEX (sent_at, dead_at)",
                backquoted(&self.options.table)
            ),
        };
        Ok(Upkeep {
            unsent_index: index.clone(),
            dead_index: index,
            vacuum: None,
        })
    }
}

/// Conditions, each with its `AND`.
struct Wanted {
    /// On what stands in the index.
    ages: String,
    /// On other columns.
    others: String,
    /// What is bound to these, in their order.
    texts: Vec<String>,
}

impl Wanted {
    fn of(filter: &DeadFilter) -> Self {
        let (mut ages, mut others, mut texts) = (String::new(), String::new(), Vec::new());
        if let Some(span) = filter.older_than {
            ages.push_str(&format!(" AND {DEAD_FOR} > {}", micros(span)));
        }
        if let Some(span) = filter.newer_than {
            ages.push_str(&format!(" AND {DEAD_FOR} < {}", micros(span)));
        }
        // By their bytes, whatever the collation of the column.
        let is = |what: &str| format!("CAST(convert({what} USING utf8mb4) AS BINARY) = CAST(? AS BINARY)");
        let mut want = |condition: String, text: &str| {
            others.push_str(&format!(" AND {condition}"));
            texts.push(text.to_owned());
        };
        if let Some(reason) = &filter.reason {
            want(is(&reason_of("o.last_error")), reason);
        }
        match &filter.exchange {
            Some(exchange) if *exchange == filter.default_exchange => {
                want(format!("(o.exchange IS NULL OR {})", is("o.exchange")), exchange);
            }
            Some(exchange) => want(is("o.exchange"), exchange),
            None => {}
        }
        if let Some(key) = &filter.key {
            want(is("o.ordering_key"), key);
        }
        Self { ages, others, texts }
    }
}

impl Cells for MySqlRow {
    fn text(&self, index: usize) -> Result<Option<String>, sqlx::Error> {
        text(self, index)
    }

    fn integer(&self, index: usize) -> Result<Option<i64>, sqlx::Error> {
        self.try_get(index)
    }

    fn double(&self, index: usize) -> Result<Option<f64>, sqlx::Error> {
        self.try_get(index)
    }
}
