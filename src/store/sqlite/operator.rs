//! What a person asks of an outbox in an SQLite file.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::rows::{bytes, message_id, number, text};
use super::statements::{LISTED, NOW, OPEN, due, epoch};
use super::{MAX_WRITE, Sqlite, Statement, decode, decode_one, lease_dialect, list};
use crate::message::RowId;
use crate::store::migrate::{dead_index, quoted, unsent_index};
use crate::store::operator::rows::{Cells, dead_letter, owner, reason, waiting_key};
use crate::store::operator::{
    Database, DeadFilter, DeadLetter, Index, Operator, Ownership, Upkeep, WAITING_SCAN, WaitingKey, count_reasons,
    reason_of,
};
use crate::store::values::{self, raw, seconds};
use crate::store::{StoreError, leases};

const DEAD: &str = "o.dead_at IS NOT NULL AND o.sent_at IS NULL";

impl Sqlite {
    async fn ask(&self, sql: String) -> Result<Vec<SqliteRow>, StoreError> {
        let sql: Arc<str> = sql.into();
        self.rows(&self.housekeeping, self.query(&sql)).await
    }

    async fn has_index(&self, name: &str) -> Result<bool, StoreError> {
        let query: Statement<'_> = sqlx::query(
            "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'index' AND name = ?1 AND tbl_name = ?2 COLLATE NOCASE)",
        );
        let query = query.bind(name).bind(self.options.table.name());
        decode_one(&self.rows(&self.housekeeping, query).await?, |row| row.try_get(0))
    }

    /// Only under its own name, by which reads are bound to it.
    async fn index(&self, name: String, of: &str) -> Result<Index, StoreError> {
        Ok(Index {
            exists: self.has_index(&name).await?,
            create: format!("CREATE INDEX {} ON {} (id) WHERE {of}", quoted(&name), self.table),
        })
    }

    /// The table for a read of `which` rows, bound to their index where it is there: see [`super::Statements::new`].
    async fn through(&self, index: &str) -> Result<String, StoreError> {
        Ok(match self.has_index(index).await? {
            true => format!("{} AS o INDEXED BY {}", self.table, quoted(index)),
            false => format!("{} AS o", self.table),
        })
    }

    async fn dead_rows(&self) -> Result<String, StoreError> {
        self.through(&dead_index(&self.options.table)).await
    }

    /// In short statements, as each holds the only write lock.
    async fn change(&self, sql: String, ids: &[RowId]) -> Result<u64, StoreError> {
        let sql: Arc<str> = sql.into();
        let mut changed = 0;
        for ids in raw(ids).chunks(MAX_WRITE) {
            changed += self.execute(&self.write, self.query(&sql).bind(list(ids))).await?;
        }
        Ok(changed)
    }
}

#[async_trait]
impl Operator for Sqlite {
    async fn database(&self) -> Result<Database, StoreError> {
        decode_one(&self.ask(format!("SELECT sqlite_version(), {NOW}")).await?, |row| {
            Ok(Database {
                product: "SQLite",
                version: row.try_get(0)?,
                now: row.try_get(1)?,
            })
        })
    }

    async fn ownership(&self) -> Result<Ownership, StoreError> {
        let rows = self.ask(leases::ownership(&self.options.table, &lease_dialect())).await;
        Ok(leases::owners(decode(&rows.map_err(leases::explain)?, owner)?))
    }

    async fn dead_reasons(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let dead = format!("{} WHERE {DEAD} ORDER BY o.id", self.dead_rows().await?);
        let sql = count_reasons("CAST(o.last_error AS TEXT)", &dead);
        decode(&self.ask(sql).await?, reason)
    }

    async fn waiting_keys(&self, limit: u32) -> Result<Vec<WaitingKey>, StoreError> {
        // With `min`, the other columns are those of the row that has it: https://www.sqlite.org/lang_select.html#bareagg
        let sql = format!(
            "SELECT k, min(id), attempts, due, e
             FROM (SELECT CAST(o.ordering_key AS TEXT) AS k, o.id AS id, CAST(coalesce(o.attempts, 0) AS INTEGER) AS attempts, {} AS due,
                          CAST(o.last_error AS TEXT) AS e
                   FROM {} WHERE {OPEN} ORDER BY o.id LIMIT {WAITING_SCAN})
             WHERE k IS NOT NULL AND due > 0 GROUP BY k ORDER BY 2 LIMIT {limit}",
            due(),
            self.through(&unsent_index(&self.options.table)).await?
        );
        decode(&self.ask(sql).await?, waiting_key)
    }

    async fn dead_letters(&self, filter: &DeadFilter, after: RowId, limit: u32) -> Result<Vec<DeadLetter>, StoreError> {
        let (dead, created) = (epoch("o.dead_at"), epoch("o.created_at"));
        let sql: Arc<str> = format!(
            "SELECT o.id, o.message_id, o.exchange, o.routing_key, o.ordering_key, o.type, o.content_type, o.headers,
                    o.properties, octet_length(o.payload), CAST(coalesce(o.attempts, 0) AS INTEGER), o.last_error,
                    {created}, {dead}
             FROM {}
             WHERE {DEAD} AND o.id > ?1 AND (?2 = '[]' OR o.id IN (SELECT value FROM json_each(?2)))
               AND (?3 IS NULL OR {} = ?3)
               AND (?4 IS NULL OR coalesce(CAST(o.exchange AS TEXT), ?5) = ?4)
               AND (?6 IS NULL OR CAST(o.ordering_key AS TEXT) = ?6)
               AND (?7 IS NULL OR {NOW} - {dead} > ?7) AND (?8 IS NULL OR {NOW} - {dead} < ?8)
             ORDER BY o.id LIMIT ?9",
            self.dead_rows().await?,
            reason_of("CAST(o.last_error AS TEXT)")
        )
        .into();
        let query = self
            .query(&sql)
            .bind(after.0)
            .bind(list(&raw(&filter.ids)))
            .bind(filter.reason.as_deref())
            .bind(filter.exchange.as_deref())
            .bind(filter.default_exchange.as_str())
            .bind(filter.key.as_deref())
            .bind(filter.older_than.map(seconds))
            .bind(filter.newer_than.map(seconds))
            .bind(i64::from(limit));
        decode(&self.rows(&self.housekeeping, query).await?, |row| {
            let created = values::epoch(row.double(12)?);
            let id = message_id(row, &format!("{}:{}:{created}", self.table, row.number(0)?))?;
            dead_letter(row, Some(id))
        })
    }

    async fn dead_payload(&self, id: RowId) -> Result<Option<Vec<u8>>, StoreError> {
        let sql: Arc<str> = format!("SELECT o.payload FROM {} AS o WHERE {DEAD} AND o.id = ?1", self.table).into();
        let rows = self.rows(&self.housekeeping, self.query(&sql).bind(id.0)).await?;
        let bodies = decode(&rows, |row| Ok(bytes(row, 0)?.unwrap_or_default().to_vec()))?;
        Ok(bodies.into_iter().next())
    }

    async fn replay(&self, ids: &[RowId]) -> Result<u64, StoreError> {
        let sql = format!(
            "UPDATE {} AS o SET dead_at = NULL, attempts = 0, next_attempt_at = NULL WHERE {LISTED} AND {DEAD}",
            self.table
        );
        self.change(sql, ids).await
    }

    async fn discard(&self, ids: &[RowId]) -> Result<u64, StoreError> {
        self.change(
            format!("DELETE FROM {} AS o WHERE {LISTED} AND {DEAD}", self.table),
            ids,
        )
        .await
    }

    async fn upkeep(&self) -> Result<Upkeep, StoreError> {
        let table = &self.options.table;
        Ok(Upkeep {
            unsent_index: self
                .index(unsent_index(table), "sent_at IS NULL AND dead_at IS NULL")
                .await?,
            dead_index: self.index(dead_index(table), "dead_at IS NOT NULL").await?,
            vacuum: None,
        })
    }
}

impl Cells for SqliteRow {
    fn text(&self, index: usize) -> Result<Option<String>, sqlx::Error> {
        text(self, index)
    }

    fn integer(&self, index: usize) -> Result<Option<i64>, sqlx::Error> {
        self.try_get(index)
    }

    fn double(&self, index: usize) -> Result<Option<f64>, sqlx::Error> {
        number(self, index)
    }
}
