//! Connections to an SQLite file.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use backon::{ConstantBuilder, Retryable};
use sqlx::ConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};

use super::error::{classify, is_locked};
use crate::config::Secret;
use crate::store::StoreError;

/// How long a writer waits for another one, at most.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The pause before a locked file is opened again; up to twice as long with its jitter.
const REOPEN_PAUSE: Duration = Duration::from_millis(20);

/// Opens connections.
#[derive(Debug)]
pub(super) struct Connector {
    options: SqliteConnectOptions,
    busy_timeout: Duration,
    /// Device and number of the file that the outbox was found in.
    found: Mutex<Option<(u64, u64)>>,
}

impl Connector {
    /// Reads the URL; `timeout` is the bound of a call.
    pub(super) fn new(url: &Secret, timeout: Duration) -> Result<Self, StoreError> {
        if url.expose().contains(":memory:") || url.expose().contains("mode=memory") {
            return Err(StoreError::Failed(
                "an in-memory database cannot be shared with the application".to_owned(),
            ));
        }
        // Below the bound of the call: "locked" is a better answer than none, and keeps the connection.
        let busy_timeout = BUSY_TIMEOUT.min(timeout.mul_f64(0.8));
        let options = SqliteConnectOptions::from_str(url.expose())
            .map_err(|error| classify(&error).error)?
            // Readers and a writer at the same time. Held in the file, so that the application's connections use it too.
            .journal_mode(SqliteJournalMode::Wal)
            // A power cut may lose the last marks (rows are sent again), never the integrity of the file.
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(busy_timeout)
            .disable_statement_logging();
        Ok(Self {
            options,
            busy_timeout,
            found: Mutex::default(),
        })
    }

    fn file(&self) -> Option<(u64, u64)> {
        let file = std::fs::metadata(self.options.get_filename()).ok()?;
        Some((file.dev(), file.ino()))
    }

    /// From now on it must be this file.
    pub(super) fn hold_to_file(&self) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        *found = found.or_else(|| self.file());
    }

    /// Connections stay with a file that was removed or replaced, and what is committed to the new one would never be seen.
    /// It is not simply opened: what is on its way to the broker belongs to the old one, and rows of the same ids may be others.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] while it is not the file that it was.
    pub(super) fn check_file(&self) -> Result<(), StoreError> {
        let found = *self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found.is_none() || found == self.file() {
            return Ok(());
        }
        Err(StoreError::Unavailable(format!(
            "the file {} is gone, or is another one than the relay has opened: restart the relay when the right one is there",
            self.options.get_filename().display()
        )))
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
        // SQLite does not wait when the journal is switched to WAL, as it is in a new file: "locked" at once, whatever
        // the busy timeout, where another process does the same.
        let attempts = self.busy_timeout.as_millis() / REOPEN_PAUSE.as_millis();
        let pauses = ConstantBuilder::new()
            .with_delay(REOPEN_PAUSE)
            .with_jitter()
            .with_max_times(usize::try_from(attempts).unwrap_or(usize::MAX));
        let connection = (|| options.connect()).retry(pauses).when(is_locked).await;
        connection.map_err(|error| classify(&error).error)
    }
}
