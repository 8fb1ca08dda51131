//! PostgreSQL, 13 or later.
//!
//! Four connections, so that a page being read, a mark, a long count and a lease never wait for one another. A pooler in
//! transaction mode may be between: no session state is used, and each call is a transaction then.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Executor as _, Postgres as Driver, Row as _};

use super::leases::{self, Dialect, LeaseRow, Take};
use super::migrate::Applied;
use super::pace::{Pace, TidyWalk};
use super::pauses::{self, Pause};
use super::purge::{self, PurgeWalk};
use super::slot::Slot;
use super::values::{FailureColumns, decode, decode_one};
use super::{
    Backlog, Failure, Holder, LeaseAsk, LeaseView, Probe, Shares, Store, StoreError, StoreOptions, Stub, Wakeups,
};
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
mod source;
mod statements;
mod wakeup;
mod writes;

use connect::Connector;
use statements::Statements;

/// An outbox table in PostgreSQL.
#[derive(Debug)]
pub struct Postgres {
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
    read: Slot<PgConnection>,
    write: Slot<PgConnection>,
    housekeeping: Slot<PgConnection>,
    leases: Slot<PgConnection>,
}

type Statement<'q> = Query<'q, Driver, PgArguments>;

impl Postgres {
    /// A store that is not connected yet.
    ///
    /// # Errors
    /// [`StoreError::Failed`] for a URL that is not understood; the text holds nothing of it.
    pub fn new(url: &Secret, options: StoreOptions) -> Result<Self, StoreError> {
        Ok(Self {
            connector: Connector::new(url, &options.tls, options.timeout)?,
            table: options.table.to_string(),
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
    /// [`StoreError::SchemaMissing`] for a schema that does not exist, [`StoreError::Denied`] where the role may not.
    pub async fn migrate(&self) -> Result<Vec<Applied>, StoreError> {
        migrate::migrate(&self.connector, &self.options.table, &self.options.mapping).await
    }

    /// Makes, or makes anew, the trigger that wakes relays; see [`super::wakeup_sql`].
    ///
    /// # Errors
    /// [`StoreError::Denied`] where the role may not, [`StoreError::SchemaMissing`] without a table.
    pub async fn migrate_wakeup(&self) -> Result<(), StoreError> {
        migrate::run_script(&self.connector, wakeup::sql(&self.options.table)).await
    }

    async fn statements(&self) -> Result<Arc<Statements>, StoreError> {
        let known = self.statements.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match known {
            Some(statements) => Ok(statements),
            None => self.look().await,
        }
    }

    async fn look(&self) -> Result<Arc<Statements>, StoreError> {
        // On the heap: it is large, and every call would have room for it on its stack.
        let found = Box::pin(async { self.with_history(self.inspected().await?).await }).await;
        match found {
            Ok(statements) => {
                let statements = Arc::new(statements);
                self.remember(Some(Arc::clone(&statements)));
                Ok(statements)
            }
            Err(error) => {
                self.remember(None);
                // The next look may find another server behind the same name.
                self.read.close().await;
                Err(error)
            }
        }
    }

    async fn leased(&self, script: String) -> Result<Vec<LeaseRow>, StoreError> {
        let run = async |connection: &mut PgConnection| {
            // One message, as without a pooler: with a commit that waits for its client, a relay that is frozen then
            // would keep the lock, and all others would lose their leases.
            let script = match self.connector.pooled() {
                true => format!("{}; {script}", self.connector.settings()),
                false => script,
            };
            // The lock answers with a row as well, of one column.
            let rows = sqlx::raw_sql(AssertSqlSafe(script)).fetch_all(connection).await?;
            rows.iter()
                .filter(|row| row.len() > 1)
                .map(rows::lease)
                .collect::<Result<Vec<_>, _>>()
        };
        self.call(&self.leases, run).await.map_err(leases::explain)
    }

    fn remember(&self, statements: Option<Arc<Statements>>) {
        *self.statements.lock().unwrap_or_else(PoisonError::into_inner) = statements;
    }

    fn query<'q>(&self, sql: &Arc<str>) -> Statement<'q> {
        sqlx::query(AssertSqlSafe(Arc::clone(sql)))
    }

    async fn rows(&self, slot: &Slot<PgConnection>, query: Statement<'_>) -> Result<Vec<PgRow>, StoreError> {
        self.call(slot, async |connection| {
            let pooled = self.connector.begin(connection).await?;
            let answer = connection.fetch_all(query.persistent(!pooled)).await;
            self.connector.end(connection, pooled, answer).await
        })
        .await
    }

    async fn execute(&self, slot: &Slot<PgConnection>, query: Statement<'_>) -> Result<u64, StoreError> {
        self.call(slot, async |connection| {
            let pooled = self.connector.begin(connection).await?;
            let answer = connection.execute(query.persistent(!pooled)).await;
            let answer = answer.map(|done| done.rows_affected());
            self.connector.end(connection, pooled, answer).await
        })
        .await
    }

    /// Work on a connection, with everything that can go wrong with it.
    async fn call<T>(
        &self,
        slot: &Slot<PgConnection>,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let answer = slot
            .call(self.options.timeout, self.connector.connect(), error::classify, work)
            .await;
        if matches!(answer, Err(StoreError::SchemaMissing(_))) {
            self.remember(None);
        }
        answer
    }
}

#[async_trait]
impl Store for Postgres {
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
        let statements = self.statements().await?;
        self.write_failures(&statements, FailureColumns::of(failures), holder)
            .await
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
        let query = self.query(&statements.dead_keys).bind(i64::from(limit));
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

    async fn wakeups(&self) -> Result<Option<Box<dyn Wakeups>>, StoreError> {
        let sql: Arc<str> = wakeup::query().into();
        let rows = self
            .rows(&self.housekeeping, self.query(&sql).bind(self.table.as_str()))
            .await?;
        let Some(oid) = decode(&rows, |row| row.try_get::<i64, _>(0))?.pop() else {
            return Ok(None);
        };
        if self.connector.pooled() {
            return Err(StoreError::Failed(
                "the wake-up needs a connection without a pooler between".to_owned(),
            ));
        }
        let ear = wakeup::listen(&self.connector, oid, self.options.timeout).await?;
        Ok(Some(Box::new(ear)))
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

/// The statements that make the wake-up; see [`super::wakeup_sql`].
pub fn wakeup_sql(table: &TableName) -> String {
    wakeup::sql(table)
}

fn lease_dialect() -> Dialect {
    Dialect {
        now: "date_part('epoch', clock_timestamp())",
        // Several statements in one message are one transaction. Held to its end: "lease" in ASCII.
        begin: "SELECT pg_advisory_xact_lock(465557419877)".to_owned(),
        end: "",
        or_leave: "ON CONFLICT DO NOTHING",
        or_set: "ON CONFLICT (outbox, member) DO UPDATE SET",
        div: "/",
        take: Take::ByLimit,
    }
}
