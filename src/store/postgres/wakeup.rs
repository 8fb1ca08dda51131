//! The wake-up by `LISTEN`, and by the trigger that `migrate --with-wakeup` makes.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::{PgListener, PgPoolOptions};
use sqlx::{AssertSqlSafe, Row as _};
use tokio::time::{Instant, timeout};

use super::connect::Connector;
use super::error::classify;
use crate::config::TableName;
use crate::store::StoreError;
use crate::store::migrate::in_schema;
use crate::store::slot::within;
use crate::store::wakeup::Wakeups;

const TRIGGER: &str = "outbox_relay_wakeup";

/// A function and a trigger; both can be made again and again.
const SQL: &str = include_str!("../../../migrations/postgres/wakeup.sql");

/// Of the advisory lock, above the table's object id: "obox" in ASCII. The trigger has the same.
const LOCK_SPACE: i64 = 0x6f62_6f78;

/// How long nothing is heard before the line is tried.
const TEST_INTERVAL: Duration = Duration::from_secs(60);

/// A notification of one's own comes back within a millisecond, or not at all.
const TEST_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct Ear {
    listener: PgListener,
    channel: String,
    lock: i64,
    bound: Duration,
    /// Heard at last.
    heard: Instant,
}

/// The statements that make function and trigger.
pub(super) fn sql(table: &TableName) -> String {
    SQL.replace("{outbox}", &table.to_string())
        .replace("{function}", &in_schema(table, TRIGGER))
}

/// Asks for the object id of the table `$1`, if it has the trigger.
pub(super) fn query() -> String {
    format!(
        "SELECT c.oid::bigint FROM pg_class AS c JOIN pg_trigger AS t ON t.tgrelid = c.oid
         WHERE c.oid = to_regclass($1) AND t.tgname = '{TRIGGER}' AND t.tgenabled <> 'D'"
    )
}

/// An ear for the table of this object id.
///
/// # Errors
/// [`StoreError::Failed`] when a notification does not come back: something between does not pass it on.
pub(super) async fn listen(connector: &Connector, oid: i64, bound: Duration) -> Result<Ear, StoreError> {
    within(bound + TEST_TIMEOUT, async {
        let options = connector.options()?;
        connector.wait_over()?;
        // One connection, and no other when it is lost: the lock would be lost with it.
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options);
        let mut listener = connector.judged(PgListener::connect_with(&pool).await)?;
        listener.eager_reconnect(false);
        let mut ear = Ear {
            listener,
            channel: format!("outbox_relay_{oid}"),
            lock: LOCK_SPACE << 32 | oid,
            bound,
            heard: Instant::now(),
        };
        ear.listener.listen(&ear.channel).await.map_err(explain)?;
        ear.test().await?;
        Ok(ear)
    })
    .await
}

impl Ear {
    /// Notifies itself.
    async fn test(&mut self) -> Result<(), StoreError> {
        self.ask(format!("SELECT pg_notify('{}', 'test')::text", self.channel))
            .await?;
        match timeout(TEST_TIMEOUT, self.next()).await {
            Ok(heard) => heard,
            Err(_) => Err(StoreError::Failed(
                "a notification that the relay sent to itself did not arrive; is a pooler between?".to_owned(),
            )),
        }
    }

    async fn next(&mut self) -> Result<(), StoreError> {
        match self.listener.try_recv().await {
            Ok(Some(_)) => {
                self.heard = Instant::now();
                Ok(())
            }
            // The driver would connect anew, and the lock is gone.
            Ok(None) => Err(StoreError::Unavailable("the connection was lost".to_owned())),
            Err(error) => Err(explain(error)),
        }
    }

    async fn ask(&mut self, sql: String) -> Result<bool, StoreError> {
        let row = within(self.bound, async {
            let row = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_one(&mut self.listener).await;
            row.map_err(explain)
        });
        Ok(row.await?.try_get(0).unwrap_or(true))
    }
}

#[async_trait]
impl Wakeups for Ear {
    async fn arm(&mut self) -> Result<bool, StoreError> {
        self.ask(format!("SELECT pg_try_advisory_lock({})", self.lock)).await
    }

    async fn disarm(&mut self) -> Result<(), StoreError> {
        self.ask(format!("SELECT pg_advisory_unlock({})", self.lock))
            .await
            .map(drop)
    }

    async fn told(&mut self) -> Result<(), StoreError> {
        match tokio::time::timeout_at(self.heard + TEST_INTERVAL, self.next()).await {
            Ok(heard) => heard,
            // Nobody inserts, or nobody is heard.
            Err(_) => self.test().await,
        }
    }
}

fn explain(error: sqlx::Error) -> StoreError {
    classify(&error).error
}
