//! Connections to PostgreSQL, directly or through a pooler.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};

use super::error::{STARTUP_REFUSED, classify};
use crate::config::Secret;
use crate::store::StoreError;
use crate::store::url::readable;

const APPLICATION_NAME: &str = "outbox-relay";

/// What the driver understands in a URL's query. It logs what it does not understand *with its value*.
const PARAMETERS: &[&str] = &[
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

/// Opens connections.
#[derive(Debug)]
pub(super) struct Connector {
    options: PgConnectOptions,
    statement_timeout: Duration,
    /// False when the URL turns the statement cache off.
    pub(super) persistent: bool,
    /// A pooler refused a setting at the start of a connection: it is left out from then on.
    pooled: AtomicBool,
}

impl Connector {
    /// Reads the URL; `timeout` is the bound of a call.
    pub(super) fn new(url: &Secret, timeout: Duration) -> Result<Self, StoreError> {
        let url = readable(url, |key| PARAMETERS.contains(&key) || key.starts_with("options["))?;
        let persistent = !url
            .query_pairs()
            .any(|(key, value)| key == "statement-cache-capacity" && value == "0");
        let mut options = PgConnectOptions::from_url(&url)
            // Its text quotes the value.
            .map_err(|_| StoreError::Failed("the database URL has a parameter with a value not understood".to_owned()))?
            // Poolers refuse it at the start of a connection, and only floats as text would need it.
            .extra_float_digits(None)
            .disable_statement_logging();
        if !url.query_pairs().any(|(key, _)| key == "application_name") {
            options = options.application_name(APPLICATION_NAME);
        }
        Ok(Self {
            options,
            // The server gives up first: then the connection lives on, and no forgotten query waits for its lock on
            // the server until the connections run out.
            statement_timeout: timeout.mul_f64(0.9).max(Duration::from_millis(1)),
            persistent,
            pooled: AtomicBool::new(false),
        })
    }

    /// A connection whose statements are bounded by the server as well.
    pub(super) async fn connect(&self) -> Result<PgConnection, StoreError> {
        if self.pooled.load(Ordering::Relaxed) {
            return self.connect_unbounded().await;
        }
        let bound = format!("{}ms", self.statement_timeout.as_millis());
        match self
            .options
            .clone()
            .options([("statement_timeout", bound)])
            .connect()
            .await
        {
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(STARTUP_REFUSED) => {
                self.pooled.store(true, Ordering::Relaxed);
                self.connect_unbounded().await
            }
            other => other.map_err(|error| classify(&error).error),
        }
    }

    /// A connection for migrations, which take the time they take.
    pub(super) async fn connect_unbounded(&self) -> Result<PgConnection, StoreError> {
        PgConnection::connect_with(&self.options)
            .await
            .map_err(|error| classify(&error).error)
    }
}
