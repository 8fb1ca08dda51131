//! PostgreSQL, 13 or later.
//!
//! Four connections, so that a page being read, a mark, a long count and a lease never wait for one another. Through a pooler
//! in transaction mode everything works that does not need more: no session state is used, and prepared statements
//! must be supported by it (PgBouncer 1.21 with `max_prepared_statements`).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Executor as _, Postgres as Driver, Row as _};

use super::leases::{self, Dialect};
use super::migrate::Applied;
use super::purge::{PurgeWalk, WINDOWS_PER_CALL};
use super::slot::{Slot, within};
use super::values::{FailureColumns, raw, seconds, sorted, unreadable};
use super::{Backlog, Failure, Holder, LeaseAsk, LeaseView, Probe, Shares, Store, StoreError, StoreOptions, Stub};
use crate::broker::Confirmed;
use crate::config::{Secret, TableName};
use crate::message::{OrderingKey, OutboxRow, RowId};

mod connect;
mod error;
mod inspect;
mod migrate;
mod operator;
mod rows;
mod statements;

use connect::Connector;
use statements::Statements;

/// More rows in one statement gain nothing (measured), and hold their locks longer.
const MAX_MARK: usize = 4_000;

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
            connector: Connector::new(url, options.timeout)?,
            table: options.table.to_string(),
            options,
            statements: Mutex::default(),
            walk: Mutex::default(),
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
        migrate::migrate(&self.connector, &self.options.table).await
    }

    async fn statements(&self) -> Result<Arc<Statements>, StoreError> {
        let known = self.statements.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match known {
            Some(statements) => Ok(statements),
            None => self.look().await,
        }
    }

    async fn look(&self) -> Result<Arc<Statements>, StoreError> {
        let query = sqlx::query(inspect::QUERY).persistent(self.connector.persistent);
        let rows = self.rows(&self.read, query.bind(self.table.as_str())).await?;
        let size = match inspect::judge(&rows, &self.options.table, self.options.on_sent) {
            Ok(size) => size,
            Err(error) => {
                self.remember(None);
                // The next look may find another server behind the same name.
                self.read.close().await;
                return Err(error);
            }
        };
        let statements = Arc::new(Statements::new(&self.options.table, self.options.on_sent, size));
        self.remember(Some(Arc::clone(&statements)));
        Ok(statements)
    }

    fn remember(&self, statements: Option<Arc<Statements>>) {
        *self.statements.lock().unwrap_or_else(PoisonError::into_inner) = statements;
    }

    fn query<'q>(&self, sql: &Arc<str>) -> Statement<'q> {
        sqlx::query(AssertSqlSafe(Arc::clone(sql))).persistent(self.connector.persistent)
    }

    async fn rows(&self, slot: &Slot<PgConnection>, query: Statement<'_>) -> Result<Vec<PgRow>, StoreError> {
        self.call(slot, async |connection| connection.fetch_all(query).await)
            .await
    }

    async fn execute(&self, slot: &Slot<PgConnection>, query: Statement<'_>) -> Result<u64, StoreError> {
        self.call(slot, async |connection| {
            connection.execute(query).await.map(|done| done.rows_affected())
        })
        .await
    }

    /// One statement on a connection, with everything that can go wrong with it.
    async fn call<T>(
        &self,
        slot: &Slot<PgConnection>,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let answer = within(self.options.timeout, async {
            let mut lease = slot.lease(self.connector.connect()).await?;
            match work(lease.connection()).await {
                Ok(answer) => {
                    lease.keep();
                    Ok(answer)
                }
                Err(error) => {
                    let verdict = error::classify(&error);
                    if verdict.keep_connection {
                        lease.keep();
                    }
                    Err(verdict.error)
                }
            }
        })
        .await;
        if matches!(answer, Err(StoreError::SchemaMissing(_))) {
            self.remember(None);
        }
        answer
    }

    async fn purge_window(&self, older_than: Duration, wanted: u64) -> Result<(u64, bool), StoreError> {
        let statements = self.statements().await?;
        let size = PurgeWalk::size(wanted);
        let position = self.walk.lock().unwrap_or_else(PoisonError::into_inner).position();
        let query = self
            .query(&statements.purge)
            .bind(position)
            .bind(size as i64)
            .bind(seconds(older_than))
            .bind(wanted as i64);
        let rows = self.rows(&self.housekeeping, query).await?;
        let found = decode_one(&rows, rows::window)?;
        let more = self
            .walk
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .advance(found, size, wanted);
        Ok((found.deleted, more))
    }
}

#[async_trait]
impl Store for Postgres {
    async fn inspect(&self) -> Result<(), StoreError> {
        self.look().await.map(drop)
    }

    async fn head(&self, after: RowId, limit: u32, shares: &Shares) -> Result<Vec<OutboxRow>, StoreError> {
        let statements = self.statements().await?;
        let query = match shares {
            Shares::All => self.query(&statements.head).bind(after.0).bind(i64::from(limit)),
            Shares::Some { of, owned } => {
                let (of, owned) = shares_arguments(*of, owned);
                self.query(&statements.head_shares)
                    .bind(after.0)
                    .bind(i64::from(limit))
                    .bind(of)
                    .bind(owned)
            }
        };
        let rows = self.rows(&self.read, query).await?;
        decode(&rows, |row| rows::outbox_row(row, &self.table))
    }

    async fn scan(&self, after: RowId, to: RowId, limit: u32, shares: &Shares) -> Result<Vec<Stub>, StoreError> {
        let statements = self.statements().await?;
        let limit = i64::from(limit);
        let query = match shares {
            Shares::All => self.query(&statements.scan).bind(after.0).bind(to.0).bind(limit),
            Shares::Some { of, owned } => {
                let (of, owned) = shares_arguments(*of, owned);
                self.query(&statements.scan_shares)
                    .bind(after.0)
                    .bind(to.0)
                    .bind(limit)
                    .bind(of)
                    .bind(owned)
            }
        };
        decode(&self.rows(&self.read, query).await?, rows::stub)
    }

    async fn probe(&self, ids: &[RowId]) -> Result<Probe, StoreError> {
        let statements = self.statements().await?;
        let rows = self
            .rows(&self.read, self.query(&statements.probe).bind(raw(ids)))
            .await?;
        rows::probe(&rows).map_err(|error| unreadable(&error))
    }

    async fn fetch(&self, ids: &[RowId], bytes: u64) -> Result<Vec<OutboxRow>, StoreError> {
        let statements = self.statements().await?;
        let room = i64::try_from(bytes).unwrap_or(i64::MAX);
        let query = self.query(&statements.fetch).bind(raw(ids)).bind(room);
        let rows = self.rows(&self.read, query).await?;
        decode(&rows, |row| rows::outbox_row(row, &self.table))
    }

    async fn mark_sent(&self, rows: &[Confirmed]) -> Result<u64, StoreError> {
        let statements = self.statements().await?;
        let mut marked = 0;
        for ids in sorted(rows).chunks(MAX_MARK) {
            marked += self
                .execute(&self.write, self.query(&statements.mark).bind(ids.to_vec()))
                .await?;
        }
        Ok(marked)
    }

    async fn record_failures(&self, failures: &[Failure], holder: &Holder) -> Result<u64, StoreError> {
        let statements = self.statements().await?;
        let columns = FailureColumns::of(failures);
        let query = self
            .query(&statements.failures)
            .bind(columns.ids)
            .bind(columns.attempts)
            .bind(columns.errors)
            .bind(columns.delays)
            .bind(columns.shares)
            .bind(columns.epochs)
            .bind(i32::from(holder.partitions))
            .bind(holder.member.as_str());
        self.execute(&self.write, query).await
    }

    async fn lease(&self, ask: &LeaseAsk) -> Result<LeaseView, StoreError> {
        let script = leases::script(&self.options.table, ask, &lease_dialect());
        let run = async |connection: &mut PgConnection| {
            // The lock answers with a row as well, of one column.
            let rows = sqlx::raw_sql(AssertSqlSafe(script)).fetch_all(connection).await?;
            rows.iter()
                .filter(|row| row.len() > 1)
                .map(rows::lease)
                .collect::<Result<Vec<_>, _>>()
        };
        self.call(&self.leases, run)
            .await
            .map(leases::view)
            .map_err(leases::explain)
    }

    async fn has_free_shares(&self, partitions: u16) -> Result<bool, StoreError> {
        let sql: Arc<str> = leases::free(&self.options.table, partitions, &lease_dialect()).into();
        let rows = self.rows(&self.leases, self.query(&sql)).await?;
        decode_one(&rows, |row| row.try_get::<i64, _>(0)).map(|free| free > 0)
    }

    async fn dead_keys(&self, limit: u32) -> Result<Vec<(OrderingKey, RowId)>, StoreError> {
        let statements = self.statements().await?;
        let query = self.query(&statements.dead_keys).bind(i64::from(limit));
        decode(&self.rows(&self.housekeeping, query).await?, rows::dead_key)
    }

    async fn purge(&self, older_than: Duration, limit: u32) -> Result<u64, StoreError> {
        let mut deleted = 0;
        for _ in 0..WINDOWS_PER_CALL {
            let (gone, more) = self
                .purge_window(older_than, u64::from(limit).saturating_sub(deleted))
                .await?;
            deleted += gone;
            if !more {
                break;
            }
        }
        Ok(deleted)
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
pub fn migration_sql(table: &TableName) -> String {
    migrate::sql(table)
}

fn lease_dialect() -> Dialect {
    Dialect {
        now: "date_part('epoch', clock_timestamp())",
        // Several statements in one message are one transaction. Held to its end: "lease" in ASCII.
        begin: "SELECT pg_advisory_xact_lock(465557419877)".to_owned(),
        end: "",
    }
}

fn shares_arguments(of: u16, owned: &[u16]) -> (i32, Vec<i32>) {
    // Modulo 0 is an error in SQL.
    (
        i32::from(of.max(1)),
        owned.iter().map(|share| i32::from(*share)).collect(),
    )
}

fn decode<T>(rows: &[PgRow], one: impl Fn(&PgRow) -> Result<T, sqlx::Error>) -> Result<Vec<T>, StoreError> {
    rows.iter()
        .map(one)
        .collect::<Result<_, _>>()
        .map_err(|error| unreadable(&error))
}

fn decode_one<T>(rows: &[PgRow], one: impl Fn(&PgRow) -> Result<T, sqlx::Error>) -> Result<T, StoreError> {
    rows.first()
        .ok_or(sqlx::Error::RowNotFound)
        .and_then(one)
        .map_err(|error| unreadable(&error))
}
