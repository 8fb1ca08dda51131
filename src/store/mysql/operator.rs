//! What a person asks of an outbox in MariaDB or MySQL.
//!
//! Which rows a filter picks out is in `find`, what is changed in them in `change`, and whether the indexes are there
//! in `upkeep`.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::Row as _;
use sqlx::mysql::MySqlRow;

use super::inspect;
use super::rows::{self, bytes, text};
use super::statements::{AGE, DUE};
use super::{MySql, lease_dialect};
use crate::message::RowId;
use crate::store::operator::rows::{Cells, counted, owner, route, waiting_key};
use crate::store::operator::{
    Database, DeadFilter, DeadLetter, Operator, Ownership, PastError, Refused, Route, SentFilter, SentMark, SentRow,
    Upkeep, WAITING_SCAN, WaitingKey, count_reasons, count_routes,
};
use crate::store::values::{decode, decode_one, raw};
use crate::store::{StoreError, history, leases, pauses};

mod change;
mod find;
mod upkeep;

use change::{discard, replay};

/// Keys are compared by their bytes, whatever the collation of the column.
const KEY: &str = "CAST(convert(o.ordering_key USING utf8mb4) AS BINARY)";

impl MySql {
    async fn ask(&self, sql: String) -> Result<Vec<MySqlRow>, StoreError> {
        let sql: Arc<str> = sql.into();
        self.rows(&self.housekeeping, self.query(&sql)).await
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
        let dead = format!("{} WHERE {}", statements.source.dead, statements.source.given_up());
        decode(&self.ask(count_reasons("o.last_error", &dead)).await?, counted)
    }

    async fn waiting_keys(&self, key: Option<&str>, limit: u32) -> Result<Vec<WaitingKey>, StoreError> {
        let statements = self.statements().await?;
        let only = if key.is_some() { "AND k = CAST(? AS BINARY)" } else { "" };
        let sql: Arc<str> = format!(
            "SELECT o.ordering_key, CAST(o.id AS SIGNED), CAST(coalesce(o.attempts, 0) AS SIGNED), {DUE} / 1e6, o.last_error,
                    {AGE} / 1e6
             FROM (SELECT k, min(id) AS lowest
                   FROM (SELECT {KEY} AS k, o.id AS id, {DUE} AS due
                         FROM {} WHERE {} ORDER BY o.id LIMIT {WAITING_SCAN}) AS unsent
                   WHERE k IS NOT NULL {only} AND due > 0 GROUP BY k ORDER BY lowest LIMIT {limit}) AS w
             STRAIGHT_JOIN {} ON o.id = w.lowest ORDER BY o.id",
            statements.source.reads,
            statements.source.open(),
            statements.source.by_id
        )
        .into();
        let query = key.into_iter().fold(self.query(&sql), |query, key| query.bind(key));
        decode(&self.rows(&self.housekeeping, query).await?, waiting_key)
    }

    async fn rows_of_keys(&self, keys: &[&str]) -> Result<Vec<(String, u64)>, StoreError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let statements = self.statements().await?;
        let sql: Arc<str> = format!(
            "SELECT k, count(*)
             FROM (SELECT {KEY} AS k FROM {} WHERE {} ORDER BY o.id LIMIT {WAITING_SCAN}) AS unsent
             WHERE k IN ({}) GROUP BY k",
            statements.source.reads,
            statements.source.open(),
            vec!["CAST(? AS BINARY)"; keys.len()].join(", ")
        )
        .into();
        let query = keys.iter().fold(self.query(&sql), |query, key| query.bind(*key));
        decode(&self.rows(&self.housekeeping, query).await?, counted)
    }

    async fn routes(&self, limit: u32) -> Result<Vec<Route>, StoreError> {
        let statements = self.statements().await?;
        let open = format!("{} WHERE {}", statements.source.reads, statements.source.open());
        // Told apart by their bytes, whatever the collation of the columns.
        let bytes = |column: &str| format!("CAST(convert({column} USING utf8mb4) AS BINARY)");
        let sql = count_routes(
            &bytes("o.exchange"),
            &bytes("o.routing_key"),
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
            "SELECT o.payload FROM {} WHERE {} AND o.id = ?",
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
        let discarded = self.change(&discard(&statements.source.target, which), ids).await?;
        if let Some(history) = &statements.history {
            self.forget(history, &raw(ids)).await?;
        }
        Ok(discarded)
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
        let script = leases::rehearsal(&self.options.table, partitions, lease_dialect(&self.options.table));
        self.leased(script).await.map(drop)
    }

    async fn pause(&self, exchange: Option<&str>, by: &str, reason: &str) -> Result<(), StoreError> {
        let (table, (scope, exchange)) = (&self.options.table, pauses::stored(exchange));
        let now = lease_dialect(table).now;
        let sql: Arc<str> = pauses::begin(
            table,
            now,
            ["?", "?", "?", "?"],
            "ON DUPLICATE KEY UPDATE scope = scope",
        )
        .into();
        let query = self
            .query(&sql)
            .bind(scope)
            .bind(exchange.as_bytes())
            .bind(by)
            .bind(reason);
        let begun = self.execute(&self.write, query).await;
        begun.map(drop).map_err(pauses::explain)
    }

    async fn resume(&self, exchange: Option<&str>) -> Result<bool, StoreError> {
        let (scope, exchange) = pauses::stored(exchange);
        let sql: Arc<str> = pauses::end(&self.options.table, ["?", "?"]).into();
        let query = self.query(&sql).bind(scope).bind(exchange.as_bytes());
        let ended = self.execute(&self.write, query).await;
        Ok(ended.map_err(pauses::explain)? > 0)
    }

    fn is_exposed(&self) -> bool {
        self.connector.is_exposed()
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

impl Cells for MySqlRow {
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
        self.try_get(index)
    }
}
