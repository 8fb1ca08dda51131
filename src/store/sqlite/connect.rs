//! Connections to an SQLite file.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};

use super::error::classify;
use crate::config::Secret;
use crate::store::StoreError;

/// How long a writer waits for another one, at most.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens connections.
#[derive(Debug)]
pub(super) struct Connector {
    options: SqliteConnectOptions,
}

impl Connector {
    /// Reads the URL; `timeout` is the bound of a call.
    pub(super) fn new(url: &Secret, timeout: Duration) -> Result<Self, StoreError> {
        if url.expose().contains(":memory:") || url.expose().contains("mode=memory") {
            return Err(StoreError::Failed(
                "an in-memory database cannot be shared with the application".to_owned(),
            ));
        }
        let options = SqliteConnectOptions::from_str(url.expose())
            .map_err(|error| classify(&error).error)?
            // Readers and a writer at the same time. Held in the file, so that the application's connections use it too.
            .journal_mode(SqliteJournalMode::Wal)
            // A power cut may lose the last marks (rows are sent again), never the integrity of the file.
            .synchronous(SqliteSynchronous::Normal)
            // Below the bound of the call: "locked" is a better answer than none, and keeps the connection.
            .busy_timeout(BUSY_TIMEOUT.min(timeout.mul_f64(0.8)))
            .disable_statement_logging();
        Ok(Self { options })
    }

    /// A connection to a file that exists. `mode=rwc` in the URL has no effect: an empty file that takes the place of
    /// a misspelt one would only hide the mistake.
    pub(super) async fn connect(&self) -> Result<SqliteConnection, StoreError> {
        let file: &Path = self.options.get_filename();
        if !file.exists() {
            return Err(StoreError::SchemaMissing(format!(
                "database file {} does not exist: run `outbox-relay migrate`, or wait for the application to make it",
                file.display()
            )));
        }
        self.open(false).await
    }

    /// A connection to a file that may have to be made.
    pub(super) async fn connect_or_create(&self) -> Result<SqliteConnection, StoreError> {
        self.open(true).await
    }

    async fn open(&self, create: bool) -> Result<SqliteConnection, StoreError> {
        let options = self.options.clone().create_if_missing(create);
        options.connect().await.map_err(|error| classify(&error).error)
    }
}
