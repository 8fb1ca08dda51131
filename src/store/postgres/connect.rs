//! Connections to PostgreSQL, directly or through a pooler.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row as _};
use tracing::{info, warn};
use url::Url;

use super::error::{STARTUP_REFUSED, classify};
use crate::config::Secret;
use crate::store::StoreError;

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
    /// A pooler is between, or may be: see [`Connector::in_transaction`].
    pooled: AtomicBool,
}

impl Connector {
    /// Reads the URL; `timeout` is the bound of a call.
    pub(super) fn new(url: &Secret, timeout: Duration) -> Result<Self, StoreError> {
        let url = readable(url)?;
        // Whoever turns the statement cache off in the URL has a pooler.
        let pooled = url
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
            pooled: AtomicBool::new(pooled),
        })
    }

    /// Whether a pooler is between, as far as it is known.
    pub(super) fn pooled(&self) -> bool {
        self.pooled.load(Ordering::Relaxed)
    }

    /// A connection whose statements are bounded by the server as well.
    ///
    /// The bound is told in the first message of the connection, as a setting of the session. A pooler refuses it or
    /// leaves it out, which gives the pooler away: then this call fails, and the next one knows.
    pub(super) async fn connect(&self) -> Result<PgConnection, StoreError> {
        if self.pooled() {
            return self.connect_unbounded().await;
        }
        let bound = self.statement_timeout.as_millis().to_string();
        let options = self.options.clone().options([("statement_timeout", &bound)]);
        let opened = async {
            let mut connection = options.connect().await?;
            let asked = "SELECT setting FROM pg_settings WHERE name = 'statement_timeout'";
            let row = sqlx::raw_sql(asked).fetch_one(&mut connection).await?;
            Ok((row.try_get::<String, _>(0)? == bound).then_some(connection))
        };
        match opened.await {
            Ok(Some(connection)) => Ok(connection),
            Ok(None) => Err(self.found_pooler()),
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(STARTUP_REFUSED) => {
                Err(self.found_pooler())
            }
            Err(error) => Err(classify(&error).error),
        }
    }

    fn found_pooler(&self) -> StoreError {
        if !self.pooled.swap(true, Ordering::Relaxed) {
            info!("a pooler is between the relay and PostgreSQL: each statement is sent in a transaction of its own");
        }
        StoreError::Unavailable("a pooler was found, and is asked again in the way it needs".to_owned())
    }

    /// One call through a pooler.
    ///
    /// The driver prepares a statement in one message and executes it in the next. In between, a pooler in transaction
    /// mode may change the server connection, and the statement of that name there may be another one: in the worst
    /// case a mark in place of a read, as both take a list of ids. Within a transaction the server connection stays.
    pub(super) async fn in_transaction<T>(
        &self,
        connection: &mut PgConnection,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        let bound = self.statement_timeout.as_millis();
        let begin = format!("BEGIN; SET LOCAL statement_timeout = {bound}");
        sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut *connection).await?;
        let answer = work(connection).await?;
        sqlx::raw_sql("COMMIT").execute(connection).await?;
        Ok(answer)
    }

    /// For a connection that others open.
    pub(super) fn plain(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// A connection for migrations, which take the time they take.
    pub(super) async fn connect_unbounded(&self) -> Result<PgConnection, StoreError> {
        PgConnection::connect_with(&self.options)
            .await
            .map_err(|error| classify(&error).error)
    }
}

/// The URL without parameters that the driver would log.
fn readable(url: &Secret) -> Result<Url, StoreError> {
    let failed = |text: String| StoreError::Failed(format!("the database URL {text}"));
    // The parser's errors are fixed texts.
    let mut url = Url::parse(url.expose()).map_err(|error| failed(format!("cannot be read: {error}")))?;
    // `postgres://user:12/34@host/db` is host "user", and the rest of the password a database's name to be reported.
    if url.path().contains('@') || url.fragment().is_some() {
        return Err(failed(
            "is ambiguous: write / ? # @ in the password as %2F %3F %23 %40".to_owned(),
        ));
    }
    let known = |key: &str| PARAMETERS.contains(&key) || key.starts_with("options[");
    let (kept, unknown): (Vec<_>, Vec<_>) = url.query_pairs().into_owned().partition(|(key, _)| known(key));
    if !unknown.is_empty() {
        let names: Vec<&str> = unknown.iter().map(|(key, _)| key.as_str()).collect();
        warn!(parameters = ?names, "parameters of the database URL are not known and have no effect");
        url.query_pairs_mut().clear().extend_pairs(kept);
    }
    Ok(url)
}
