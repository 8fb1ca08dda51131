//! What a person asks of an outbox in an SQLite file.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::json;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::rows::{bytes, message_id, number, text, to_the_millisecond};
use super::statements::{NOW, Statements, due, epoch, target_listed};
use super::{MAX_WRITE, Sqlite, Statement, decode, decode_one, lease_dialect, list};
use crate::message::RowId;
use crate::store::migrate::{dead_index, quoted, unsent_index};
use crate::store::operator::rows::{Cells, counted, dead_letter, owner, route, sent_row, waiting_key};
use crate::store::operator::{
    Database, DeadFilter, DeadLetter, Index, Operator, Ownership, PastError, Refused, Route, SentFilter, SentMark,
    SentRow, Upkeep, WAITING_SCAN, WaitingKey, count_reasons, count_routes, reason_of,
};
use crate::store::source::Target;
use crate::store::values::{self, raw, seconds};
use crate::store::{StoreError, history, leases, pauses};

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

    /// In short transactions, as each holds the only write lock.
    async fn change(&self, statements: &[Arc<str>], ids: &[RowId]) -> Result<u64, StoreError> {
        let mut changed = 0;
        for ids in raw(ids).chunks(MAX_WRITE) {
            changed += self.together(&self.write, statements, ids).await?;
        }
        Ok(changed)
    }

    /// Whether a table that `migrate` did not make has the indexes for its reads, by the plan of a poll.
    async fn existing_indexes(&self, statements: &Statements) -> Result<(Index, Index), StoreError> {
        let Target {
            key,
            names,
            bookkeeping,
            unsent_here,
            ..
        } = &statements.source.target;
        let plan = statements.head.replace("?1", "0").replace("?2", "1000");
        let steps = decode(&self.ask(format!("EXPLAIN QUERY PLAN {plan}")).await?, |row| {
            text(row, 3)
        })?;
        let step = steps
            .into_iter()
            .flatten()
            .find(|step| step.starts_with("SCAN a") || step.starts_with("SEARCH a"));
        let step = step.unwrap_or_default();
        let index = |exists, of: String| Index {
            exists,
            create: format!(
                "CREATE INDEX {} ON {} ({key}){of}",
                quoted(&unsent_index(&self.options.table)),
                self.table
            ),
        };
        let partial = match unsent_here.as_str() {
            "" => String::new(),
            unsent => format!(" WHERE {unsent}"),
        };
        // Through the key alone, a read goes over every row ever sent.
        let mut good = step.starts_with("SEARCH a");
        if let Some(sent) = &names.sent {
            good &= self.has_index_of(sent).await?;
        }
        let dead = match (bookkeeping, &names.dead) {
            (Some([.., dead]), Some(name)) => Index {
                exists: self.has_index_of(name).await?,
                create: format!(
                    "CREATE INDEX {} ON {} ({key}) WHERE {dead} IS NOT NULL",
                    quoted(&dead_index(&self.options.table)),
                    self.table
                ),
            },
            // They are few, and in a table of their own.
            _ => index(true, String::new()),
        };
        Ok((index(good, partial), dead))
    }

    /// Whether an index has this column in its condition, or first among its own.
    async fn has_index_of(&self, name: &str) -> Result<bool, StoreError> {
        let query: Statement<'_> = sqlx::query(
            "SELECT EXISTS (
                 SELECT 1 FROM sqlite_schema AS s WHERE s.type = 'index' AND s.tbl_name = ?1 COLLATE NOCASE
                   AND (lower(s.sql) LIKE '%where%' || lower(?2) || '%'
                        OR (SELECT lower(c.name) FROM pragma_index_info(s.name) AS c WHERE c.seqno = 0) = lower(?2)))",
        );
        let query = query.bind(self.options.table.name()).bind(name);
        decode_one(&self.rows(&self.housekeeping, query).await?, |row| row.try_get(0))
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
        let (dead, created) = (epoch("o.dead_at"), epoch("o.created_at"));
        let statements = self.statements().await?;
        let more = statements.source.more_columns();
        let sql: Arc<str> = format!(
            "SELECT o.id, o.message_id, o.exchange, o.routing_key, o.ordering_key, o.type, o.content_type, o.headers,
                    o.properties, octet_length(o.payload), CAST(coalesce(o.attempts, 0) AS INTEGER), o.last_error,
                    {created}, {dead}{more}
             FROM {}
             WHERE {} AND o.id > ?1 AND (?2 = '[]' OR o.id IN (SELECT value FROM json_each(?2)))
               AND (?3 IS NULL OR {} = ?3)
               AND (?4 IS NULL OR coalesce(CAST(o.exchange AS TEXT), ?5) = ?4)
               AND (?6 IS NULL OR CAST(o.ordering_key AS TEXT) = ?6)
               AND (?7 IS NULL OR {NOW} - {dead} > ?7) AND (?8 IS NULL OR {NOW} - {dead} < ?8)
             ORDER BY o.id LIMIT ?9",
            self.dead_rows(&statements).await?,
            statements.source.given_up(),
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
            let created = values::epoch(row.double(12)?.map(to_the_millisecond));
            let id = message_id(row, &format!("{}:{}:{created}", self.table, row.number(0)?))?;
            dead_letter(row, Some(id))
        })
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
        let statements = self.statements().await?;
        let source = &statements.source;
        let sent = epoch("o.sent_at");
        let listed = match wanted.ids.is_empty() {
            true => "?3 IS NOT NULL",
            false => "o.id IN (SELECT value FROM json_each(?3))",
        };
        let sql: Arc<str> = format!(
            "SELECT o.id,
                    NOT ({}) AND (?4 IS NULL OR {sent} >= ?4) AND (?5 IS NULL OR {sent} < ?5)
                      AND (?6 IS NULL OR coalesce(CAST(o.exchange AS TEXT), ?7) = ?6)
                      AND (?8 IS NULL OR CAST(o.routing_key AS TEXT) = ?8)
                      AND (?9 IS NULL OR coalesce(CAST(o.ordering_key AS TEXT) = ?9, 0)),
                    o.ordering_key IS NOT NULL
             FROM {} WHERE o.id > ?1 AND {listed} ORDER BY o.id LIMIT ?2",
            source.unsent, source.by_id
        )
        .into();
        let query = self
            .query(&sql)
            .bind(after.0)
            .bind(i64::from(window))
            .bind(list(&raw(&wanted.ids)))
            .bind(wanted.since)
            .bind(wanted.until)
            .bind(wanted.exchange.as_deref())
            .bind(wanted.default_exchange.as_str())
            .bind(wanted.routing_key.as_deref())
            .bind(wanted.key.as_deref());
        decode(&self.rows(&self.housekeeping, query).await?, sent_row)
    }

    async fn replay_sent(&self, ids: &[RowId], until: Option<f64>) -> Result<u64, StoreError> {
        let statements = self.statements().await?;
        let target = &statements.source.target;
        let before = match (until, &target.sent) {
            (Some(until), Some(sent)) => format!("AND {} < {until}", epoch(&format!("o.{sent}"))),
            _ => String::new(),
        };
        let sql = format!(
            "UPDATE {} AS o SET {} WHERE {} AND NOT ({}) {before}",
            target.table,
            target.unsend("", "0"),
            target_listed(target),
            target.unsent
        );
        self.change(&[sql.into()], ids).await
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
        let table = &self.options.table;
        let statements = self.statements().await?;
        if statements.columns.is_some() {
            let (unsent_index, dead_index) = self.existing_indexes(&statements).await?;
            return Ok(Upkeep {
                unsent_index,
                dead_index,
                vacuum: None,
            });
        }
        Ok(Upkeep {
            unsent_index: self
                .index(unsent_index(table), "sent_at IS NULL AND dead_at IS NULL")
                .await?,
            dead_index: self.index(dead_index(table), "dead_at IS NOT NULL").await?,
            vacuum: None,
        })
    }
}

/// `?1`: row ids.
fn replay(target: &Target, which: Refused) -> String {
    let Target {
        outbox,
        failures,
        table,
        ..
    } = target;
    match &target.bookkeeping {
        Some(columns @ [attempts, next, _, dead]) => format!(
            "UPDATE {table} AS o SET {dead} = NULL, {attempts} = 0, {next} = NULL WHERE {} AND {}{}",
            target_listed(target),
            Target::refused(columns, which, later),
            target.and_unsent()
        ),
        None => format!(
            "DELETE FROM {failures} AS b WHERE b.outbox = {outbox} AND b.id IN (SELECT value FROM json_each(?1))
               AND {} AND {}",
            Target::refused_there(which, later),
            target.has("b.id")
        ),
    }
}

/// Take row ids, one after the other; the first tells how many there were.
fn discard(target: &Target, which: Refused) -> Vec<Arc<str>> {
    let Target {
        outbox,
        failures,
        table,
        key,
        ..
    } = target;
    let unsent = target.and_unsent();
    if let Some(columns) = &target.bookkeeping {
        let (listed, refused) = (target_listed(target), Target::refused(columns, which, later));
        return vec![format!("DELETE FROM {table} AS o WHERE {listed} AND {refused}{unsent}").into()];
    }
    let refused = format!(
        "SELECT b.id FROM {failures} AS b WHERE b.outbox = {outbox} AND {}
           AND b.id IN (SELECT value FROM json_each(?1))",
        Target::refused_there(which, later)
    );
    let mut statements: Vec<Arc<str>> = Vec::new();
    match &target.positions {
        None => statements.push(format!("DELETE FROM {table} AS o WHERE o.{key} IN ({refused}){unsent}").into()),
        Some(positions) => {
            let keys = format!(
                "SELECT p.row_key FROM {positions} AS p WHERE +p.outbox = {outbox} AND p.position IN ({refused})"
            );
            statements.push(format!("DELETE FROM {table} AS o WHERE o.{key} IN ({keys}){unsent}").into());
            statements
                .push(format!("DELETE FROM {positions} WHERE +outbox = {outbox} AND position IN ({refused})").into());
        }
    }
    statements.push(format!("DELETE FROM {failures} WHERE outbox = {outbox} AND id IN ({refused})").into());
    statements
}

/// That a time has not come.
fn later(time: &str) -> String {
    format!("{} > {NOW}", epoch(time))
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
