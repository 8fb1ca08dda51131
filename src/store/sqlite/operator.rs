//! What a person asks of an outbox in an SQLite file.
//!
//! Which rows a filter picks out is in `find`, what is changed in them in `change`, and whether the indexes are there
//! in `upkeep`.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::json;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::rows::{bytes, number, text};
use super::statements::{NOW, Statements, due, epoch};
use super::{Sqlite, decode, decode_one, lease_dialect};
use crate::message::RowId;
use crate::store::migrate::{dead_index, quoted, unsent_index};
use crate::store::operator::rows::{Cells, counted, owner, route, waiting_key};
use crate::store::operator::{
    Database, DeadFilter, DeadLetter, Operator, Ownership, PastError, Refused, Route, SentFilter, SentMark, SentRow,
    Upkeep, WAITING_SCAN, WaitingKey, count_reasons, count_routes,
};
use crate::store::{StoreError, history, leases, pauses};

mod change;
mod find;
mod upkeep;

use change::{discard, replay};

impl Sqlite {
    async fn ask(&self, sql: String) -> Result<Vec<SqliteRow>, StoreError> {
        let sql: Arc<str> = sql.into();
        self.rows(&self.housekeeping, self.query(&sql)).await
    }

    /// The table for a read of `which` rows, bound to their index where it is there: see [`super::Statements::new`].
    async fn through(&self, index: &str) -> Result<String, StoreError> {
        Ok(match self.has_index(index).await? {
            true => format!("{} AS o INDEXED BY {}", self.table, quoted(index)),
            false => format!("{} AS o", self.table),
        })
    }

    /// Where unsent rows are read from.
    async fn open_rows(&self, statements: &Statements) -> Result<String, StoreError> {
        match &statements.columns {
            None => self.through(&unsent_index(&self.options.table)).await,
            Some(_) => Ok(statements.source.reads.clone()),
        }
    }

    /// Where dead letters are read from.
    async fn dead_rows(&self, statements: &Statements) -> Result<String, StoreError> {
        match &statements.columns {
            None => self.through(&dead_index(&self.options.table)).await,
            Some(_) => Ok(statements.source.dead.clone()),
        }
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
        let statements = self.statements().await?;
        let dead = format!(
            "{} WHERE {} ORDER BY o.id",
            self.dead_rows(&statements).await?,
            statements.source.given_up()
        );
        let sql = count_reasons("CAST(o.last_error AS TEXT)", &dead);
        decode(&self.ask(sql).await?, counted)
    }

    async fn waiting_keys(&self, key: Option<&str>, limit: u32) -> Result<Vec<WaitingKey>, StoreError> {
        let statements = self.statements().await?;
        // With `min`, the other columns are those of the row that has it: https://www.sqlite.org/lang_select.html#bareagg
        let sql: Arc<str> = format!(
            "SELECT k, min(id), attempts, due, e, age
             FROM (SELECT CAST(o.ordering_key AS TEXT) AS k, o.id AS id, CAST(coalesce(o.attempts, 0) AS INTEGER) AS attempts, {} AS due,
                          CAST(o.last_error AS TEXT) AS e, {NOW} - {} AS age
                   FROM {} WHERE {} ORDER BY o.id LIMIT {WAITING_SCAN})
             WHERE k IS NOT NULL AND (?1 IS NULL OR k = ?1) AND due > 0 GROUP BY k ORDER BY 2 LIMIT {limit}",
            due(),
            epoch("o.created_at"),
            self.open_rows(&statements).await?,
            statements.source.open()
        )
        .into();
        let rows = self.rows(&self.housekeeping, self.query(&sql).bind(key)).await?;
        decode(&rows, waiting_key)
    }

    async fn rows_of_keys(&self, keys: &[&str]) -> Result<Vec<(String, u64)>, StoreError> {
        let statements = self.statements().await?;
        let sql: Arc<str> = format!(
            "SELECT k, count(*)
             FROM (SELECT CAST(o.ordering_key AS TEXT) AS k FROM {} WHERE {} ORDER BY o.id LIMIT {WAITING_SCAN})
             WHERE k IN (SELECT value FROM json_each(?1)) GROUP BY k",
            self.open_rows(&statements).await?,
            statements.source.open()
        )
        .into();
        let query = self.query(&sql).bind(json!(keys).to_string());
        decode(&self.rows(&self.housekeeping, query).await?, counted)
    }

    async fn routes(&self, limit: u32) -> Result<Vec<Route>, StoreError> {
        let statements = self.statements().await?;
        let open = format!(
            "{} WHERE {}",
            self.open_rows(&statements).await?,
            statements.source.open()
        );
        let sql = count_routes(
            "CAST(o.exchange AS TEXT)",
            "CAST(o.routing_key AS TEXT)",
            &statements.source,
            &open,
            limit,
        );
        decode(&self.ask(sql).await?, route)
    }

    async fn dead_letters(&self, filter: &DeadFilter, after: RowId, limit: u32) -> Result<Vec<DeadLetter>, StoreError> {
        self.find_dead(filter, after, limit).await
    }

    async fn past_errors(&self, id: RowId) -> Result<Vec<PastError>, StoreError> {
        let rows = self.ask(history::list(&self.options.table, id)).await;
        decode(&rows.map_err(history::explain)?, history::past_error)
    }

    async fn dead_payload(&self, id: RowId) -> Result<Option<Vec<u8>>, StoreError> {
        let statements = self.statements().await?;
        let source = &statements.source;
        let sql: Arc<str> = format!(
            "SELECT o.payload FROM {} WHERE {} AND o.id = ?1",
            source.dead,
            source.given_up()
        )
        .into();
        let rows = self.rows(&self.housekeeping, self.query(&sql).bind(id.0)).await?;
        let bodies = decode(&rows, |row| Ok(bytes(row, 0)?.unwrap_or_default().to_vec()))?;
        Ok(bodies.into_iter().next())
    }

    async fn replay(&self, ids: &[RowId], which: Refused) -> Result<u64, StoreError> {
        let statements = self.statements().await?;
        self.change(&[replay(&statements.source.target, which).into()], ids)
            .await
    }

    async fn discard(&self, ids: &[RowId], which: Refused) -> Result<u64, StoreError> {
        let statements = self.statements().await?;
        let mut discard = discard(&statements.source.target, which);
        discard.extend(statements.forget.clone());
        self.change(&discard, ids).await
    }

    async fn sent_mark(&self) -> Result<SentMark, StoreError> {
        Ok(self.statements().await?.source.target.mark())
    }

    async fn sent_rows(&self, wanted: &SentFilter, after: RowId, window: u32) -> Result<Vec<SentRow>, StoreError> {
        self.find_sent(wanted, after, window).await
    }

    async fn replay_sent(&self, ids: &[RowId], until: Option<f64>) -> Result<u64, StoreError> {
        self.change_sent(ids, until).await
    }

    async fn try_lease(&self, partitions: u16) -> Result<(), StoreError> {
        let script = leases::rehearsal(&self.options.table, partitions, lease_dialect());
        self.leased(script).await.map(drop)
    }

    async fn pause(&self, exchange: Option<&str>, by: &str, reason: &str) -> Result<(), StoreError> {
        let (table, (scope, exchange)) = (&self.options.table, pauses::stored(exchange));
        let now = lease_dialect().now;
        let sql: Arc<str> = pauses::begin(table, now, ["?1", "?2", "?3", "?4"], "ON CONFLICT DO NOTHING").into();
        let query = self.query(&sql).bind(scope).bind(exchange).bind(by).bind(reason);
        let begun = self.execute(&self.write, query).await;
        begun.map(drop).map_err(pauses::explain)
    }

    async fn resume(&self, exchange: Option<&str>) -> Result<bool, StoreError> {
        let (scope, exchange) = pauses::stored(exchange);
        let sql: Arc<str> = pauses::end(&self.options.table, ["?1", "?2"]).into();
        let query = self.query(&sql).bind(scope).bind(exchange);
        let ended = self.execute(&self.write, query).await;
        Ok(ended.map_err(pauses::explain)? > 0)
    }

    async fn columns(&self) -> Result<Option<String>, StoreError> {
        Ok(self.statements().await?.columns.clone())
    }

    async fn advice(&self) -> Result<Vec<String>, StoreError> {
        Ok(self.statements().await?.advice.clone())
    }

    async fn upkeep(&self) -> Result<Upkeep, StoreError> {
        self.inspect_upkeep().await
    }
}

impl Cells for SqliteRow {
    fn width(&self) -> usize {
        self.len()
    }

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
