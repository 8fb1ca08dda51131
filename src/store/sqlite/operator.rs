//! What a person asks of an outbox in an SQLite file.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::rows::{bytes, message_id, number, text};
use super::statements::{LISTED, NOW, OPEN, due, epoch};
use super::{MAX_WRITE, Sqlite, Statement, decode, decode_one, lease_dialect, list};
use crate::message::{OrderingKey, RowId};
use crate::store::migrate::{dead_index, quoted, unsent_index};
use crate::store::operator::{
    DEAD_REASONS_CAP, Database, DeadFilter, DeadLetter, Operator, Ownership, Upkeep, WAITING_SCAN, WaitingKey,
    reason_of,
};
use crate::store::values::{self, attempts, count, raw, seconds, span};
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
        let rows = decode(&rows.map_err(leases::explain)?, |row| {
            Ok((
                row.try_get(0)?,
                row.try_get(1)?,
                row.try_get(2)?,
                row.try_get(3)?,
                number(row, 4)?.unwrap_or_default(),
                number(row, 5)?.unwrap_or_default(),
            ))
        })?;
        Ok(leases::owners(rows))
    }

    async fn dead_reasons(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let sql = format!(
            "SELECT {}, count(*) FROM (SELECT CAST(o.last_error AS TEXT) AS e FROM {} WHERE {DEAD} ORDER BY o.id LIMIT {DEAD_REASONS_CAP})
             GROUP BY 1 ORDER BY 2 DESC, 1",
            reason_of("e"),
            self.dead_rows().await?
        );
        decode(&self.ask(sql).await?, |row| {
            Ok((row.try_get(0)?, count(row.try_get(1)?)))
        })
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
        decode(&self.ask(sql).await?, |row| {
            Ok(WaitingKey {
                key: OrderingKey::new(&text(row, 0)?.unwrap_or_default()),
                row: RowId(row.try_get(1)?),
                attempts: attempts(row.try_get(2)?),
                due_in: span(number(row, 3)?),
                last_error: text(row, 4)?,
            })
        })
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
            self.dead_letter(row)
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
        Ok(Upkeep {
            unsent_index: self.has_index(&unsent_index(&self.options.table)).await?,
            dead_index: self.has_index(&dead_index(&self.options.table)).await?,
            vacuum: None,
        })
    }
}

impl Sqlite {
    fn dead_letter(&self, row: &SqliteRow) -> Result<DeadLetter, sqlx::Error> {
        let payload_bytes: Option<i64> = row.try_get(9)?;
        let created: Option<f64> = number(row, 12)?;
        let id: i64 = row.try_get(0)?;
        Ok(DeadLetter {
            id: RowId(id),
            message_id: message_id(row, &format!("{}:{id}:{}", self.table, values::epoch(created))).ok(),
            exchange: text(row, 2)?,
            routing_key: text(row, 3)?.unwrap_or_default(),
            ordering_key: text(row, 4)?,
            kind: text(row, 5)?,
            content_type: text(row, 6)?,
            headers: text(row, 7)?,
            properties: text(row, 8)?,
            payload_bytes: payload_bytes.map(count),
            attempts: attempts(row.try_get(10)?),
            last_error: text(row, 11)?,
            created_at: created.unwrap_or_default(),
            dead_at: number(row, 13)?.unwrap_or_default(),
        })
    }
}
