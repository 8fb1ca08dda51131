//! What a person asks of an outbox in PostgreSQL.
//!
//! Which rows a filter picks out is in `find`, what is changed in them in `change`, and whether the indexes are there
//! in `upkeep`. The texts are made when they are needed: a person asks seldom.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use sqlx::{Row as _, TypeInfo as _, ValueRef as _};

use super::rows::text;
use super::statements::{AGE, DUE, Size, dead, open};
use super::{Postgres, decode, decode_one, lease_dialect};
use crate::message::RowId;
use crate::store::leases::{self, Dialect};
use crate::store::operator::rows::{Cells, counted, owner, route, waiting_key};
use crate::store::operator::{
    Database, DeadFilter, DeadLetter, Operator, Ownership, PastError, Refused, Route, SentFilter, SentMark, SentRow,
    Upkeep, WAITING_SCAN, WaitingKey, count_reasons, count_routes,
};
use crate::store::{StoreError, history, pauses};

mod change;
mod find;
mod upkeep;

use change::{discard, replay};

impl Postgres {
    async fn ask(&self, sql: String) -> Result<Vec<PgRow>, StoreError> {
        let sql: Arc<str> = sql.into();
        self.rows(&self.housekeeping, self.query(&sql)).await
    }
}

#[async_trait]
impl Operator for Postgres {
    async fn database(&self) -> Result<Database, StoreError> {
        let sql = "SELECT current_setting('server_version'), date_part('epoch', clock_timestamp())".to_owned();
        decode_one(&self.ask(sql).await?, |row| {
            Ok(Database {
                product: "PostgreSQL",
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
        let source = &statements.source;
        let dead = format!("{} WHERE {} ORDER BY o.id", source.dead, dead(source));
        decode(&self.ask(count_reasons("o.last_error", &dead)).await?, counted)
    }

    async fn waiting_keys(&self, key: Option<&str>, limit: u32) -> Result<Vec<WaitingKey>, StoreError> {
        let statements = self.statements().await?;
        let (from, open) = (&statements.source.reads, open(&statements.source));
        let sql: Arc<str> = format!(
            "SELECT k, id, attempts, due, last_error, age
             FROM (SELECT DISTINCT ON (k) k, id, attempts, due, last_error, age
                   FROM (SELECT o.ordering_key AS k, o.id::bigint AS id, coalesce(o.attempts, 0)::bigint AS attempts, {DUE} AS due,
                                o.last_error, {AGE} AS age
                         FROM {from} WHERE {open} ORDER BY o.id LIMIT {WAITING_SCAN}) AS unsent
                   WHERE k IS NOT NULL AND ($1::text IS NULL OR k = $1) AND due > 0 ORDER BY k, id) AS keys
             ORDER BY id LIMIT {limit}"
        )
        .into();
        let rows = self.rows(&self.housekeeping, self.query(&sql).bind(key)).await?;
        decode(&rows, waiting_key)
    }

    async fn rows_of_keys(&self, keys: &[&str]) -> Result<Vec<(String, u64)>, StoreError> {
        let statements = self.statements().await?;
        let (from, open) = (&statements.source.reads, open(&statements.source));
        let sql: Arc<str> = format!(
            "SELECT k, count(*)
             FROM (SELECT o.ordering_key AS k FROM {from} WHERE {open} ORDER BY o.id LIMIT {WAITING_SCAN}) AS unsent
             WHERE k = ANY($1) GROUP BY k"
        )
        .into();
        let query = self.query(&sql).bind(keys.to_vec());
        decode(&self.rows(&self.housekeeping, query).await?, counted)
    }

    async fn routes(&self, limit: u32) -> Result<Vec<Route>, StoreError> {
        let statements = self.statements().await?;
        let open = format!("{} WHERE {}", statements.source.reads, open(&statements.source));
        let sql = count_routes(
            "o.exchange::text",
            "o.routing_key::text",
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
        let body = match self.statements().await?.size {
            Size::OfText => "convert_to(o.payload::text, 'UTF8')",
            Size::OfColumn => "o.payload",
        };
        let statements = self.statements().await?;
        let source = &statements.source;
        let sql: Arc<str> = format!(
            "SELECT {body} FROM {} WHERE {} AND o.id = $1",
            source.dead,
            dead(source)
        )
        .into();
        let rows = self.rows(&self.housekeeping, self.query(&sql).bind(id.0)).await?;
        let bodies = decode(&rows, |row| {
            let value = row.try_get_raw(0)?;
            Ok(value.as_bytes().map(<[u8]>::to_vec).unwrap_or_default())
        })?;
        Ok(bodies.into_iter().next())
    }

    async fn replay(&self, ids: &[RowId], which: Refused) -> Result<u64, StoreError> {
        let statements = self.statements().await?;
        self.change(replay(&statements.source, which), ids).await
    }

    async fn discard(&self, ids: &[RowId], which: Refused) -> Result<u64, StoreError> {
        let statements = self.statements().await?;
        let discarded = self.change(discard(&statements.source, which), ids).await?;
        if let Some(forget) = &statements.forget {
            self.change(forget.to_string(), ids).await?;
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
        let dialect = lease_dialect();
        // Not the end of a transaction that nobody has begun, which the server would warn of.
        let dialect = Dialect {
            begin: format!("BEGIN; {}", dialect.begin),
            ..dialect
        };
        let tried = self
            .leased(leases::rehearsal(&self.options.table, partitions, dialect))
            .await;
        if tried.is_err() {
            // What failed has left its transaction open, on a connection that is kept.
            self.leases.close().await;
        }
        tried.map(drop)
    }

    async fn pause(&self, exchange: Option<&str>, by: &str, reason: &str) -> Result<(), StoreError> {
        let (table, (scope, exchange)) = (&self.options.table, pauses::stored(exchange));
        let now = lease_dialect().now;
        let sql: Arc<str> = pauses::begin(table, now, ["$1", "$2", "$3", "$4"], "ON CONFLICT DO NOTHING").into();
        let query = self.query(&sql).bind(scope).bind(exchange).bind(by).bind(reason);
        let begun = self.execute(&self.write, query).await;
        begun.map(drop).map_err(pauses::explain)
    }

    async fn resume(&self, exchange: Option<&str>) -> Result<bool, StoreError> {
        let (scope, exchange) = pauses::stored(exchange);
        let sql: Arc<str> = pauses::end(&self.options.table, ["$1", "$2"]).into();
        let query = self.query(&sql).bind(scope).bind(exchange);
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

impl Cells for PgRow {
    fn width(&self) -> usize {
        self.len()
    }

    fn text(&self, index: usize) -> Result<Option<String>, sqlx::Error> {
        text(self, index)
    }

    fn integer(&self, index: usize) -> Result<Option<i64>, sqlx::Error> {
        match self.try_get_raw(index)?.type_info().name() {
            "INT4" => Ok(self.try_get::<Option<i32>, _>(index)?.map(i64::from)),
            _ => self.try_get(index),
        }
    }

    fn double(&self, index: usize) -> Result<Option<f64>, sqlx::Error> {
        self.try_get(index)
    }
}
