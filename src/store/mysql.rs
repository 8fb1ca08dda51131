//! MariaDB 10.6 or later, and MySQL 8.
//!
//! Four connections, as for PostgreSQL. Lists of ids are one JSON text each, joined as a table: so there are few statements,
//! all of them prepared, where `IN` lists of every length would each be another one (and `IN (SELECT …)` in an UPDATE
//! reads the whole table in MariaDB 10).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::json;
use sqlx::mysql::{MySql as Driver, MySqlArguments, MySqlConnection, MySqlRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Executor as _, Row as _};

use super::leases::{self, Dialect, LeaseRow, Take};
use super::migrate::{Applied, literal};
use super::pace::{Pace, TidyWalk};
use super::pauses::{self, Pause};
use super::purge::{self, PurgeWalk};
use super::slot::Slot;
use super::values::{decode, decode_one};
use super::{Backlog, Failure, Holder, LeaseAsk, LeaseView, Probe, Shares, Store, StoreError, StoreOptions, Stub};
use crate::broker::Confirmed;
use crate::config::{Secret, TableName};
use crate::message::{OrderingKey, OutboxRow, RowId};

mod connect;
mod error;
mod existing;
mod history;
mod inspect;
mod migrate;
mod operator;
mod pages;
mod rows;
mod script;
mod source;
mod statements;
mod writes;

use connect::Connector;
use statements::Statements;

/// More rows in one statement gain nothing, and hold their locks longer.
const MAX_MARK: usize = 2_000;

/// An outbox table in MariaDB or MySQL.
#[derive(Debug)]
pub struct MySql {
    connector: Connector,
    options: StoreOptions,
    /// The table's name as it stands in statements.
    table: String,
    /// What "now" is counted from where the time of this process stands for transaction numbers.
    started: Instant,
    /// `None` until the table was looked at, and again after it was found changed.
    statements: Mutex<Option<Arc<Statements>>>,
    walk: Mutex<PurgeWalk>,
    /// Of looking for rows without a number.
    numbering: Pace,
    tidied: Mutex<TidyWalk>,
    /// Through the errors of earlier attempts.
    forgotten: Mutex<TidyWalk>,
    read: Slot<MySqlConnection>,
    write: Slot<MySqlConnection>,
    housekeeping: Slot<MySqlConnection>,
    leases: Slot<MySqlConnection>,
}

type Statement<'q> = Query<'q, Driver, MySqlArguments>;

impl MySql {
    /// A store that is not connected yet.
    ///
    /// # Errors
    /// [`StoreError::Failed`] for a URL that is not understood; the text holds nothing of it.
    pub fn new(url: &Secret, options: StoreOptions) -> Result<Self, StoreError> {
        Ok(Self {
            connector: Connector::new(url, &options.tls, options.timeout)?,
            table: options.table.to_string(),
            started: Instant::now(),
            statements: Mutex::default(),
            walk: Mutex::default(),
            numbering: Pace::new(options.timeout),
            options,
            tidied: Mutex::default(),
            forgotten: Mutex::default(),
            read: Slot::new(),
            write: Slot::new(),
            housekeeping: Slot::new(),
            leases: Slot::new(),
        })
    }

    /// Creates or upgrades the tables; see [`super::migrate`].
    ///
    /// # Errors
    /// [`StoreError::SchemaMissing`] for a database that does not exist, [`StoreError::Denied`] where the user may not.
    pub async fn migrate(&self) -> Result<Vec<Applied>, StoreError> {
        migrate::migrate(&self.connector, &self.options.table, &self.options.mapping).await
    }

    async fn statements(&self) -> Result<Arc<Statements>, StoreError> {
        let known = lock(&self.statements).clone();
        match known {
            Some(statements) => Ok(statements),
            None => self.look().await,
        }
    }

    async fn look(&self) -> Result<Arc<Statements>, StoreError> {
        // What is found wrong now must not be worked on as it was known before.
        *lock(&self.statements) = None;
        // On the heap: it is large, and every call would have room for it on its stack.
        let found = Box::pin(async { self.with_history(self.inspected().await?).await }).await;
        if found.is_err() {
            // The next look may find another server behind the same name.
            self.read.close().await;
        }
        let statements = Arc::new(found?);
        *lock(&self.statements) = Some(Arc::clone(&statements));
        Ok(statements)
    }

    async fn leased(&self, script: String) -> Result<Vec<LeaseRow>, StoreError> {
        let run = async |connection: &mut MySqlConnection| {
            let rows = sqlx::raw_sql(AssertSqlSafe(script)).fetch_all(&mut *connection).await;
            if rows.is_err() {
                // Whatever failed, the transaction must not stay open on a connection that is kept.
                let _ = sqlx::raw_sql("ROLLBACK").execute(connection).await;
            }
            rows?.iter().map(rows::lease).collect::<Result<Vec<_>, _>>()
        };
        self.call(&self.leases, run).await.map_err(leases::explain)
    }

    /// What the server's catalogue says of the table.
    async fn catalogue(&self, slot: &Slot<MySqlConnection>, sql: &'static str) -> Result<Vec<MySqlRow>, StoreError> {
        let table = &self.options.table;
        let schema = table.schema().unwrap_or_else(|| self.connector.database());
        self.rows(slot, sqlx::query(sql).bind(schema).bind(table.name())).await
    }

    /// The name of the index that reads of unsent rows and of dead letters go through.
    async fn unsent_index(&self, slot: &Slot<MySqlConnection>) -> Result<Option<String>, StoreError> {
        let indexes = self.catalogue(slot, inspect::INDEX_QUERY).await?;
        Ok(decode(&indexes, rows::name)?.into_iter().next())
    }

    fn query<'q>(&self, sql: &Arc<str>) -> Statement<'q> {
        sqlx::query(AssertSqlSafe(Arc::clone(sql)))
    }

    async fn rows(&self, slot: &Slot<MySqlConnection>, query: Statement<'_>) -> Result<Vec<MySqlRow>, StoreError> {
        self.call(slot, async |connection| connection.fetch_all(query).await)
            .await
    }

    async fn execute(&self, slot: &Slot<MySqlConnection>, query: Statement<'_>) -> Result<u64, StoreError> {
        self.call(slot, async |connection| {
            connection.execute(query).await.map(|done| done.rows_affected())
        })
        .await
    }

    async fn call<T>(
        &self,
        slot: &Slot<MySqlConnection>,
        work: impl AsyncFnOnce(&mut MySqlConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let answer = slot
            .call(self.options.timeout, self.connector.connect(), error::classify, work)
            .await;
        if matches!(answer, Err(StoreError::SchemaMissing(_))) {
            *lock(&self.statements) = None;
        }
        answer
    }
}

#[async_trait]
impl Store for MySql {
    async fn inspect(&self) -> Result<(), StoreError> {
        self.look().await.map(drop)
    }

    async fn head(&self, after: RowId, limit: u32, shares: &Shares) -> Result<Vec<OutboxRow>, StoreError> {
        let statements = self.statements().await?;
        let read = self.head_rows(&statements, after, limit, shares);
        match &statements.number {
            None => read.await,
            Some(number) => self.numbering.head(limit, read, self.number_rows(number)).await,
        }
    }

    async fn scan(&self, after: RowId, to: RowId, limit: u32, shares: &Shares) -> Result<Vec<Stub>, StoreError> {
        self.scan_rows(after, to, limit, shares).await
    }

    async fn probe(&self, ids: &[RowId]) -> Result<Probe, StoreError> {
        self.probe_ids(ids).await
    }

    async fn fetch(&self, ids: &[RowId], bytes: u64) -> Result<Vec<OutboxRow>, StoreError> {
        self.fetch_rows(ids, bytes).await
    }

    async fn mark_sent(&self, rows: &[Confirmed]) -> Result<u64, StoreError> {
        self.mark_rows(rows).await
    }

    async fn record_failures(&self, failures: &[Failure], holder: &Holder) -> Result<u64, StoreError> {
        self.write_all_failures(failures, holder).await
    }

    async fn lease(&self, ask: &LeaseAsk) -> Result<LeaseView, StoreError> {
        let script = leases::script(&self.options.table, ask, &lease_dialect(&self.options.table));
        self.leased(script).await.map(leases::view)
    }

    async fn has_free_shares(&self, partitions: u16) -> Result<bool, StoreError> {
        let table = &self.options.table;
        let sql: Arc<str> = leases::free(table, partitions, &lease_dialect(table)).into();
        let rows = self
            .rows(&self.leases, self.query(&sql))
            .await
            .map_err(leases::explain)?;
        decode_one(&rows, |row| row.try_get::<i64, _>(0)).map(|free| free > 0)
    }

    async fn dead_keys(&self, limit: u32) -> Result<Vec<(OrderingKey, RowId)>, StoreError> {
        let statements = self.statements().await?;
        let query = self.query(&statements.dead_keys).bind(limit);
        decode(&self.rows(&self.housekeeping, query).await?, rows::dead_key)
    }

    async fn pauses(&self) -> Result<Vec<Pause>, StoreError> {
        let sql: Arc<str> = pauses::list(&self.options.table).into();
        // Not behind a long count.
        let rows = self.rows(&self.leases, self.query(&sql)).await;
        decode(&rows.map_err(pauses::explain)?, pauses::pause)
    }

    async fn tidy(&self) -> Result<(), StoreError> {
        self.tidy_own_tables().await?;
        self.tidy_history().await
    }

    async fn purge(&self, older_than: Duration, limit: u32) -> Result<u64, StoreError> {
        purge::walk(limit, |wanted| self.purge_window(older_than, wanted)).await
    }

    async fn backlog(&self) -> Result<Backlog, StoreError> {
        let statements = self.statements().await?;
        let rows = self.rows(&self.housekeeping, self.query(&statements.backlog)).await?;
        decode_one(&rows, rows::backlog)
    }

    /// Never known: a poll costs as little as any question.
    async fn changed(&self) -> Result<Option<bool>, StoreError> {
        Ok(None)
    }

    fn commits_out_of_order(&self) -> bool {
        true
    }

    fn owes_a_look(&self) -> bool {
        self.numbering.is_owed()
    }

    async fn close(&self) {
        tokio::join!(
            self.read.close(),
            self.write.close(),
            self.housekeeping.close(),
            self.leases.close()
        );
    }
}

/// The statements that make the tables, with the relay's note of them; see [`super::migration_sql`].
pub fn migration_sql(options: &StoreOptions) -> String {
    migrate::sql(&options.table, &options.mapping)
}

/// For a person to run: names stand in standard quotes, whatever the mode of the session.
pub(super) fn in_standard_quotes(sql: &str) -> String {
    migrate::in_standard_quotes(sql)
}

/// Scripts wait for each other at the row of a member without a name, whether or not it was there. A lock on a row, and not
/// `GET_LOCK`, which is the session's: it would be held until the server notices that a relay is gone, where this one
/// ends with the script, and it would be one for the whole server.
fn lease_dialect(table: &TableName) -> Dialect {
    Dialect {
        // In UTC, as every connection is.
        now: "(timestampdiff(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', now(6)) / 1e6)",
        begin: format!(
            "START TRANSACTION;
INSERT INTO {} (outbox, member, layout, expires_at) VALUES ({}, '', 0, 1e12) ON DUPLICATE KEY UPDATE expires_at = 1e12",
            leases::members_table(table),
            literal(table.name())
        ),
        end: "COMMIT",
        or_leave: "ON DUPLICATE KEY UPDATE epoch = epoch",
        or_set: "ON DUPLICATE KEY UPDATE",
        div: "DIV",
        take: Take::ByNumber,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn list(ids: &[i64]) -> String {
    json!(ids).to_string()
}

/// A span for a statement's argument, never so long that date arithmetic overflows.
fn micros(span: Duration) -> i64 {
    i64::try_from(span.min(super::values::FOREVER).as_micros()).unwrap_or(i64::MAX)
}
