//! SQLite, in WAL mode, on the same host as the application.
//!
//! Writers come one at a time, so that a row never appears below ids already seen. The database has no such hash: shares are
//! filtered after reading, and only the ownership of the whole table reads no more than it needs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Executor as _, Row as _, Sqlite as Driver};

use super::leases::{self, Dialect, LeaseRow, Take};
use super::migrate::{Applied, unsent_index};
use super::pace::{Pace, TidyWalk, advise};
use super::pauses::{self, Pause};
use super::purge::{self, PurgeWalk};
use super::slot::Slot;
use super::values::{decode, decode_one};
use super::{Backlog, Failure, Holder, LeaseAsk, LeaseView, Probe, Shares, Store, StoreError, StoreOptions, Stub};
use crate::broker::Confirmed;
use crate::config::{OnSent, Secret};
use crate::message::{OrderingKey, OutboxRow, RowId};

mod connect;
mod error;
mod existing;
mod history;
mod inspect;
mod migrate;
mod operator;
mod pages;
#[cfg(test)]
mod plans;
mod rows;
mod source;
mod statements;
mod writes;

use connect::Connector;
use statements::Statements;

/// Every statement holds the only write lock of the database: short ones let the application in between.
const MAX_WRITE: usize = 500;

/// An outbox table in an SQLite file.
#[derive(Debug)]
pub struct Sqlite {
    connector: Connector,
    options: StoreOptions,
    /// The table's name as it stands in statements.
    table: String,
    /// `None` until the table was looked at, and again after it was found changed.
    statements: Mutex<Option<Arc<Statements>>>,
    walk: Mutex<PurgeWalk>,
    /// Of looking for rows without a number.
    numbering: Pace,
    tidied: Mutex<TidyWalk>,
    /// Through the errors of earlier attempts.
    forgotten: Mutex<TidyWalk>,
    /// The last `data_version` seen; one connection's number says nothing to another.
    version: Mutex<Option<i64>>,
    read: Slot<SqliteConnection>,
    write: Slot<SqliteConnection>,
    housekeeping: Slot<SqliteConnection>,
    leases: Slot<SqliteConnection>,
}

type Statement<'q> = Query<'q, Driver, SqliteArguments>;

impl Sqlite {
    /// A store that is not connected yet.
    ///
    /// # Errors
    /// [`StoreError::Failed`] for a URL that is not understood, and for an in-memory database.
    pub fn new(url: &Secret, options: StoreOptions) -> Result<Self, StoreError> {
        Ok(Self {
            connector: Connector::new(url, options.timeout)?,
            table: options.table.to_string(),
            statements: Mutex::default(),
            walk: Mutex::default(),
            numbering: Pace::new(options.timeout),
            options,
            tidied: Mutex::default(),
            forgotten: Mutex::default(),
            version: Mutex::default(),
            read: Slot::new(),
            write: Slot::new(),
            housekeeping: Slot::new(),
            leases: Slot::new(),
        })
    }

    /// Creates or upgrades the tables, and the file where there is none; see [`super::migrate`].
    ///
    /// # Errors
    /// [`StoreError::Denied`] for a file that cannot be written.
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
        let table = &self.options.table;
        // What is found wrong now must not be worked on as it was known before.
        *lock(&self.statements) = None;
        inspect::check_schema(table)?;
        let statements = match self.options.mapping.is_default() {
            // On the heap: it is large, and every call would have room for it on its stack.
            true => Box::pin(self.inspected()).await?,
            false => self.inspected_existing().await?,
        };
        let statements = Arc::new(Box::pin(self.with_history(statements)).await?);
        self.check_writable(&statements).await?;
        self.connector.hold_to_file();
        *lock(&self.statements) = Some(Arc::clone(&statements));
        Ok(statements)
    }

    async fn inspected(&self) -> Result<Statements, StoreError> {
        let table = &self.options.table;
        let index = unsent_index(table);
        let query = sqlx::query(inspect::QUERY).bind(table.name()).bind(index.as_str());
        let found = inspect::judge(&self.rows(&self.read, query).await?, &self.options)?;
        let mut source = statements::standard(table, found.has_index.then_some(&index));
        source.header_columns = found.header_columns;
        let mut statements = Statements::new(table, self.options.on_sent, source);
        if !found.autoincrement {
            statements.purge = statements::purge(&statements.source.target, true);
            if self.options.on_sent == OnSent::Delete {
                statements.advice.push(existing::ids_given_again(table));
            }
        }
        advise(table, &statements.advice);
        Ok(statements)
    }

    async fn leased(&self, script: String) -> Result<Vec<LeaseRow>, StoreError> {
        let run = async |connection: &mut SqliteConnection| {
            let rows = sqlx::raw_sql(AssertSqlSafe(script)).fetch_all(&mut *connection).await;
            if rows.is_err() {
                // Whatever failed, the transaction must not stay open; without one this fails, which is as good.
                let _ = sqlx::raw_sql("ROLLBACK").execute(connection).await;
            }
            rows?.iter().map(rows::lease).collect::<Result<Vec<_>, _>>()
        };
        self.call(&self.leases, run).await.map_err(leases::explain)
    }

    /// A file that can only be read would have every message published again and again, for want of a mark.
    async fn check_writable(&self, statements: &Statements) -> Result<(), StoreError> {
        match self.execute(&self.write, self.query(&statements.touch)).await {
            // Another writer is at work: so it can be written.
            Ok(_) | Err(StoreError::Unavailable(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn query<'q>(&self, sql: &Arc<str>) -> Statement<'q> {
        sqlx::query(AssertSqlSafe(Arc::clone(sql)))
    }

    async fn rows(&self, slot: &Slot<SqliteConnection>, query: Statement<'_>) -> Result<Vec<SqliteRow>, StoreError> {
        self.call(slot, async |connection| connection.fetch_all(query).await)
            .await
    }

    async fn execute(&self, slot: &Slot<SqliteConnection>, query: Statement<'_>) -> Result<u64, StoreError> {
        self.call(slot, async |connection| {
            connection.execute(query).await.map(|done| done.rows_affected())
        })
        .await
    }

    /// One statement on a connection, with everything that can go wrong with it.
    async fn call<T>(
        &self,
        slot: &Slot<SqliteConnection>,
        work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        self.connector.check_file()?;
        let answer = slot
            .call(self.options.timeout, self.connect(slot), error::classify, work)
            .await;
        if matches!(answer, Err(StoreError::SchemaMissing(_))) {
            *lock(&self.statements) = None;
        }
        answer
    }

    async fn connect(&self, slot: &Slot<SqliteConnection>) -> Result<SqliteConnection, StoreError> {
        let connection = self.connector.connect().await?;
        if std::ptr::eq(slot, &self.read) {
            *lock(&self.version) = None;
        }
        Ok(connection)
    }
}

#[async_trait]
impl Store for Sqlite {
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
        let script = leases::script(&self.options.table, ask, &lease_dialect());
        self.leased(script).await.map(leases::view)
    }

    async fn has_free_shares(&self, partitions: u16) -> Result<bool, StoreError> {
        let sql: Arc<str> = leases::free(&self.options.table, partitions, &lease_dialect()).into();
        let rows = self
            .rows(&self.leases, self.query(&sql))
            .await
            .map_err(leases::explain)?;
        decode_one(&rows, |row| row.try_get::<i64, _>(0)).map(|free| free > 0)
    }

    async fn dead_keys(&self, limit: u32) -> Result<Vec<(OrderingKey, RowId)>, StoreError> {
        let statements = self.statements().await?;
        decode(
            &self
                .rows(&self.housekeeping, self.query(&statements.dead_keys).bind(limit))
                .await?,
            rows::dead_key,
        )
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
        decode_one(
            &self.rows(&self.housekeeping, self.query(&statements.backlog)).await?,
            rows::backlog,
        )
    }

    /// The relay's own marks change the number as well, on the connection that did not make them.
    async fn changed(&self) -> Result<Option<bool>, StoreError> {
        let rows = self.rows(&self.read, sqlx::query("PRAGMA data_version")).await?;
        let now: i64 = decode_one(&rows, |row| row.try_get(0))?;
        let before = lock(&self.version).replace(now);
        // A look for rows without a number that was put off must not wait for the next commit.
        Ok(Some(before != Some(now) || self.numbering.is_owed()))
    }

    fn commits_out_of_order(&self) -> bool {
        false
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

fn lease_dialect() -> Dialect {
    Dialect {
        now: "((julianday('now') - 2440587.5) * 86400.0)",
        begin: "BEGIN IMMEDIATE".to_owned(),
        end: "COMMIT",
        or_leave: "ON CONFLICT DO NOTHING",
        or_set: "ON CONFLICT (outbox, member) DO UPDATE SET",
        div: "/",
        take: Take::ByLimit,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn list(ids: &[i64]) -> String {
    json!(ids).to_string()
}
