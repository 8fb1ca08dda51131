//! Connections to MariaDB and MySQL.

use std::time::Duration;

use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

use super::error::classify;
use crate::config::{Secret, Tls, database_url_now};
use crate::store::StoreError;
use crate::store::refusals::Refusals;
use crate::store::secure::{Given, is_exposed, must_verify, needs_authorities, pems};
use crate::store::url::readable;

/// What may stand in a URL's query: the driver knows more, but character set, time zone and mode are the relay's.
const PARAMETERS: &[&str] = &[
    "sslmode",
    "ssl-mode",
    "sslca",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "socket",
];

/// Standard quotes, so that names and texts are written as for the other databases. Strict: what does not fit is an error.
const SQL_MODE: &str = "ANSI_QUOTES,NO_BACKSLASH_ESCAPES,STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION";

/// Opens connections.
#[derive(Debug)]
pub(super) struct Connector {
    /// Read again for each connection, where it came from a file.
    url: Secret,
    tls: Tls,
    exposed: bool,
    refusals: Refusals,
    database: String,
    /// The server's bounds of a statement and of its waits for locks.
    bounds: String,
}

impl Connector {
    /// Reads the URL; `timeout` is the bound of a call.
    pub(super) fn new(url: &Secret, tls: &Tls, timeout: Duration) -> Result<Self, StoreError> {
        let Parsed { options, exposed, .. } = parse(url, tls)?;
        let Some(database) = options.get_database().map(str::to_owned) else {
            return Err(StoreError::Failed(
                "the database URL names no database: mysql://user@host/database".to_owned(),
            ));
        };
        Ok(Self {
            url: url.clone(),
            tls: tls.clone(),
            exposed,
            refusals: Refusals::default(),
            database,
            bounds: bounds(timeout),
        })
    }

    /// As URL and certificates are now.
    fn options(&self) -> Result<MySqlConnectOptions, StoreError> {
        let url = database_url_now(&self.url).map_err(StoreError::Unavailable)?;
        let Parsed {
            mut options,
            authorities,
            ..
        } = parse(&url, &self.tls)?;
        let pems = pems(&self.tls, authorities)?;
        if let Some(authorities) = pems.authorities {
            options = options.ssl_ca_from_pem(authorities);
        }
        if let Some((certificate, key)) = pems.identity {
            options = options
                .ssl_client_cert_from_pem(certificate)
                .ssl_client_key_from_pem(key);
        }
        Ok(options)
    }

    /// Whether what is sent may leave this machine without TLS.
    pub(super) fn is_exposed(&self) -> bool {
        self.exposed
    }

    /// The database that the URL names.
    pub(super) fn database(&self) -> &str {
        &self.database
    }

    /// A connection whose statements are bounded by the server as well.
    pub(super) async fn connect(&self) -> Result<MySqlConnection, StoreError> {
        self.open(&self.bounds).await
    }

    /// A connection for migrations, which take the time they take.
    pub(super) async fn connect_unbounded(&self) -> Result<MySqlConnection, StoreError> {
        self.open("").await
    }

    /// READ COMMITTED: under the default, REPEATABLE READ, the relay's writes would lock the gaps between the rows they
    /// look at, and the application's inserts would wait for them.
    async fn open(&self, bounds: &str) -> Result<MySqlConnection, StoreError> {
        let session = format!(
            "SET NAMES utf8mb4;
             SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED;
             SET autocommit = 1, time_zone = '+00:00', sql_mode = '{SQL_MODE}'{bounds}"
        );
        let options = self.options()?;
        self.refusals.wait_over()?;
        let connected = async {
            let mut connection = MySqlConnection::connect_with(&options).await?;
            sqlx::raw_sql(AssertSqlSafe(session)).execute(&mut connection).await?;
            Ok(connection)
        };
        self.refusals.judged(connected.await, &self.tls, classify)
    }
}

struct Parsed {
    options: MySqlConnectOptions,
    /// They need authorities yet.
    authorities: bool,
    /// What is sent may leave the machine without TLS.
    exposed: bool,
}

/// The driver's options, as far as the URL and `tls` give them.
fn parse(url: &Secret, tls: &Tls) -> Result<Parsed, StoreError> {
    let url = readable(url, |key| PARAMETERS.contains(&key))?;
    let options = MySqlConnectOptions::from_url(&url)
        // Its text quotes the value.
        .map_err(|_| StoreError::Failed("the database URL has a parameter with a value not understood".to_owned()))?
        // All of this is set by one statement, see `Connector::open`.
        .pipes_as_concat(false)
        .no_engine_substitution(false)
        .timezone(None)
        .set_names(false)
        .disable_statement_logging();
    let mode = options.get_ssl_mode();
    let written = |names: &[&str]| url.query_pairs().any(|(key, _)| names.contains(&&*key));
    let given = Given {
        authorities: written(&["sslca", "ssl-ca"]),
        weak: matches!(mode, MySqlSslMode::Disabled | MySqlSslMode::Preferred),
        blind: matches!(mode, MySqlSslMode::Required),
        written: written(&["sslmode", "ssl-mode"]),
        host: options.get_socket().is_none().then(|| options.get_host()),
    };
    let verified = must_verify(tls, &given)?;
    let exposed = is_exposed(verified, &given);
    let authorities = needs_authorities(tls, verified, &given);
    let options = match verified {
        true => options.ssl_mode(MySqlSslMode::VerifyIdentity),
        false => options,
    };
    Ok(Parsed {
        options,
        authorities,
        exposed,
    })
}

/// The server gives up first: then the connection lives on, and no forgotten statement waits on the server for its lock.
/// MariaDB bounds every statement, MySQL only reading ones; their waits for locks are bounded in whole seconds.
///
/// A transaction that is open while nobody works in it is one whose statement has failed when its relay was frozen or cut off
/// (see `script`): MariaDB ends it after a second. MySQL has no such bound.
fn bounds(timeout: Duration) -> String {
    let bound = timeout.mul_f64(0.9);
    let lock = bound.as_secs().max(1);
    format!(
        ", lock_wait_timeout = {lock}, innodb_lock_wait_timeout = {lock}\
         /*M! , max_statement_time = {}, idle_transaction_timeout = 1 */ /*!80000 , max_execution_time = {} */",
        bound.as_secs_f64(),
        bound.as_millis().max(1),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_without_a_database_is_refused_without_quoting_it() {
        let url = |text: &str| Connector::new(&Secret::new(text), &Tls::default(), Duration::from_secs(1));
        assert_eq!(url("mysql://u:pw@h/app").expect("a URL").database(), "app");
        for text in ["mysql://u:s3cr3t@h", "mysql://u:s3cr3t@h/?ssl-mode=s3cr3t"] {
            let error = url(text).expect_err("no good").to_string();
            assert!(!error.contains("s3cr3t"), "{error}");
        }
    }
}
