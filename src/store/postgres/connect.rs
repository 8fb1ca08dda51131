//! Connections to PostgreSQL, directly or through a pooler.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row as _};
use tracing::info;

use super::error::{STARTUP_REFUSED, classify};
use crate::config::{Secret, Tls, database_url_now};
use crate::store::StoreError;
use crate::store::refusals::Refusals;
use crate::store::secure::{Given, is_exposed, must_verify, needs_authorities, pems};
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

/// Between two statements of one transaction lies nothing but the way to the pooler.
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// Opens connections.
#[derive(Debug)]
pub(super) struct Connector {
    /// Read again for each connection, where it came from a file.
    url: Secret,
    tls: Tls,
    exposed: bool,
    refusals: Refusals,
    statement_timeout: Duration,
    /// A pooler is between, or may be: see [`Connector::begin`].
    pooled: AtomicBool,
}

impl Connector {
    /// Reads the URL; `timeout` is the bound of a call.
    pub(super) fn new(url: &Secret, tls: &Tls, timeout: Duration) -> Result<Self, StoreError> {
        let exposed = parse(url, tls)?.exposed;
        // Whoever turns the statement cache off in the URL has a pooler.
        let pooled = readable(url, is_known)?
            .query_pairs()
            .any(|(key, value)| key == "statement-cache-capacity" && value == "0");
        Ok(Self {
            url: url.clone(),
            tls: tls.clone(),
            exposed,
            refusals: Refusals::default(),
            // The server gives up first: then the connection lives on, and no forgotten query waits for its lock on
            // the server until the connections run out.
            statement_timeout: timeout.mul_f64(0.9).max(Duration::from_millis(1)),
            pooled: AtomicBool::new(pooled),
        })
    }

    /// Whether what is sent may leave this machine without TLS.
    pub(super) fn is_exposed(&self) -> bool {
        self.exposed
    }

    /// Whether a pooler is between, as far as it is known.
    pub(super) fn pooled(&self) -> bool {
        self.pooled.load(Ordering::Relaxed)
    }

    /// A connection whose statements are bounded by the server as well.
    ///
    /// The bound is told in the first message of the connection, as a setting of the session. A pooler refuses it or
    /// leaves it out, which gives the pooler away.
    pub(super) async fn connect(&self) -> Result<PgConnection, StoreError> {
        if self.pooled() {
            return self.connect_unbounded().await;
        }
        let bound = self.statement_timeout.as_millis().to_string();
        let options = self.options()?.options([("statement_timeout", &bound)]);
        self.refusals.wait_over()?;
        let opened = async {
            let mut connection = options.connect().await?;
            let asked = "SELECT setting FROM pg_settings WHERE name = 'statement_timeout'";
            let row = sqlx::raw_sql(asked).fetch_one(&mut connection).await?;
            if row.try_get::<String, _>(0)? != bound {
                self.note_pooler();
            }
            Ok(connection)
        };
        match opened.await {
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(STARTUP_REFUSED) => {
                self.note_pooler();
                self.judged(PgConnection::connect_with(&self.options()?).await)
            }
            other => self.judged(other),
        }
    }

    /// To be called before an attempt to connect.
    pub(super) fn wait_over(&self) -> Result<(), StoreError> {
        self.refusals.wait_over()
    }

    /// What is to be made of an attempt to connect.
    pub(super) fn judged<C>(&self, attempt: Result<C, sqlx::Error>) -> Result<C, StoreError> {
        self.refusals.judged(attempt, &self.tls, classify)
    }

    fn note_pooler(&self) {
        if !self.pooled.swap(true, Ordering::Relaxed) {
            info!("a pooler is between the relay and PostgreSQL: each statement is sent in a transaction of its own");
        }
    }

    /// Before a statement: begins a transaction if a pooler is between, and says whether one is.
    ///
    /// The driver prepares a statement in one message and executes it in the next. In between, a pooler in transaction
    /// mode may change the server connection, and the statement of that name there may be another one: in the worst
    /// case a mark in place of a read, as both take a list of ids. Within a transaction the server connection stays.
    /// The statement must not be a persistent one: it would stay there for others to find.
    pub(super) async fn begin(&self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let pooled = self.pooled();
        if pooled {
            let begin = format!("BEGIN; {}", self.settings());
            sqlx::raw_sql(AssertSqlSafe(begin)).execute(connection).await?;
        }
        Ok(pooled)
    }

    /// After it: ends the transaction that [`Connector::begin`] began.
    pub(super) async fn end<T>(
        &self,
        connection: &mut PgConnection,
        pooled: bool,
        answer: Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        if pooled {
            let end = if answer.is_ok() { "COMMIT" } else { "ROLLBACK" };
            let ended = sqlx::raw_sql(end).execute(connection).await;
            return answer.and_then(|answer| ended.map(|_| answer));
        }
        answer
    }

    /// What each transaction through a pooler needs, as settings of a session do not get through. A relay that is frozen
    /// between two statements must not keep the rows that it marks.
    pub(super) fn settings(&self) -> String {
        let bound = self.statement_timeout.as_millis();
        let idle = IDLE_TIMEOUT.as_millis();
        format!(
            "SET LOCAL statement_timeout = {bound}; SET LOCAL idle_in_transaction_session_timeout = {idle}; \
             SET LOCAL timezone = 'UTC'"
        )
    }

    /// As URL and certificates are now.
    pub(super) fn options(&self) -> Result<PgConnectOptions, StoreError> {
        let url = database_url_now(&self.url).map_err(StoreError::Unavailable)?;
        let Parsed {
            mut options,
            authorities,
            ..
        } = parse(&url, &self.tls)?;
        let pems = pems(&self.tls, authorities)?;
        if let Some(authorities) = pems.authorities {
            options = options.ssl_root_cert_from_pem(authorities);
        }
        if let Some((certificate, key)) = pems.identity {
            options = options
                .ssl_client_cert_from_pem(certificate)
                .ssl_client_key_from_pem(key);
        }
        Ok(options)
    }

    /// A connection for migrations, which take the time they take.
    pub(super) async fn connect_unbounded(&self) -> Result<PgConnection, StoreError> {
        let options = self.options()?;
        self.refusals.wait_over()?;
        self.judged(PgConnection::connect_with(&options).await)
    }
}

fn is_known(key: &str) -> bool {
    PARAMETERS.contains(&key) || key.starts_with("options[")
}

struct Parsed {
    options: PgConnectOptions,
    /// They need authorities yet.
    authorities: bool,
    /// What is sent may leave the machine without TLS.
    exposed: bool,
}

/// The driver's options, as far as the URL and `tls` give them.
fn parse(url: &Secret, tls: &Tls) -> Result<Parsed, StoreError> {
    let url = readable(url, is_known)?;
    let written = |names: &[&str]| url.query_pairs().any(|(key, _)| names.contains(&&*key));
    let mut options = PgConnectOptions::from_url(&url)
        // Its text quotes the value.
        .map_err(|_| StoreError::Failed("the database URL has a parameter with a value not understood".to_owned()))?
        // Poolers refuse it at the start of a connection, and only floats as text would need it.
        .extra_float_digits(None)
        .disable_statement_logging();
    if !written(&["application_name"]) {
        options = options.application_name(APPLICATION_NAME);
    }
    let mode = options.get_ssl_mode();
    let socket = options.get_socket().is_some() || options.get_host().starts_with('/');
    let given = Given {
        authorities: written(&["sslrootcert", "ssl-root-cert", "ssl-ca"]),
        weak: matches!(mode, PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer),
        blind: matches!(mode, PgSslMode::Require),
        written: written(&["sslmode", "ssl-mode"]),
        host: (!socket).then(|| options.get_host()),
    };
    let verified = must_verify(tls, &given)?;
    let exposed = is_exposed(verified, &given);
    let authorities = needs_authorities(tls, verified, &given);
    if verified {
        options = options.ssl_mode(PgSslMode::VerifyFull);
    }
    Ok(Parsed {
        options,
        authorities,
        exposed,
    })
}
