//! From MySQL's error numbers to what the caller does about them.
//!
//! <https://mariadb.com/kb/en/mariadb-error-code-reference/>,
//! <https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html>

use sqlx::mysql::MySqlDatabaseError;

use crate::store::StoreError;
use crate::store::secure::{lost, untrusted};
use crate::store::slot::Verdict;
use crate::tls;

/// Longer messages are cut: they come from triggers.
const MAX_MESSAGE_CHARS: usize = 300;

/// Sorts an error.
pub(super) fn classify(error: &sqlx::Error) -> Verdict {
    Verdict::closed(match error {
        sqlx::Error::Database(error) => match error.try_downcast_ref::<MySqlDatabaseError>() {
            Some(error) => return database(error),
            None => StoreError::Failed("an unknown database error".to_owned()),
        },
        sqlx::Error::Io(error) => return lost(error),
        sqlx::Error::Tls(error) => return untrusted(&**error),
        sqlx::Error::Protocol(text) => StoreError::Unavailable(format!("protocol: {text}")),
        // What the driver says where `caching_sha2_password` would need RSA, which it is built without: its
        // implementation can be made to tell the key (RUSTSEC-2023-0071).
        sqlx::Error::Configuration(error) if error.to_string().contains("RSA") => {
            return Verdict::refused(
                "login refused: passwords of caching_sha2_password are sent over TLS only: let the server offer TLS, and write \
                 ?ssl-mode=REQUIRED in the database URL"
                    .to_owned(),
            );
        }
        sqlx::Error::Configuration(error) => StoreError::Failed(format!("the database URL: {error}")),
        // Everything else is about values; its text could hold one.
        _ => StoreError::Failed("the driver could not read the answer".to_owned()),
    })
}

/// Whether another transaction has the row that was asked for with `NOWAIT`.
pub(super) fn is_locked(error: &sqlx::Error) -> bool {
    let error = error.as_database_error();
    let number = error.and_then(|error| Some(error.try_downcast_ref::<MySqlDatabaseError>()?.number()));
    // Of MariaDB, and of MySQL.
    matches!(number, Some(1205 | 3572))
}

fn database(error: &MySqlDatabaseError) -> Verdict {
    let text = describe(error);
    match error.number() {
        // A deadlock, and "record has changed since last read" (MariaDB 11.8: innodb_snapshot_isolation).
        1213 | 1020 => Verdict::kept(StoreError::Conflict(text)),
        // A table, a column, an index that is not there (any more).
        1146 | 1054 | 1176 | 1615 => Verdict::closed(StoreError::SchemaMissing(text)),
        // On a table, a column, a routine; for want of a privilege on everything; on a database.
        1142 | 1143 | 1370 | 1227 | 1044 => Verdict::kept(StoreError::Denied(text)),
        // Not kept: after a failover the next connection may find a server that can be written to.
        1290 | 1792 | 1836 => Verdict::closed(StoreError::ReadOnly(format!(
            "{text}: the server takes no writes (a replica, or read_only is on): name the primary in RELAY_DATABASE_URL"
        ))),
        // A lock, or the end, was waited for too long; or somebody ended the statement.
        1205 | 1969 | 3024 | 1317 => Verdict::kept(StoreError::Unavailable(text)),
        // Name, password or host; no such plugin; the password has expired.
        // Or the server takes no connection without TLS (3159).
        1045 | 1130 | 1698 | 1251 | 1524 | 1820 | 1862 | 3159 => Verdict::refused(format!(
            "login refused: {text}: look at user and password in RELAY_DATABASE_URL (or its file), and whether the user must \
             come over TLS or with a certificate ({})",
            tls::DATABASE.certificate
        )),
        // No such database; too many connections; shutting down; connection killed, or idle for too long; a proxy handed
        // the statement to a connection that does not have it; disk, memory or table full.
        1049 | 1040 | 1203 | 1226 | 1053 | 1927 | 4031 | 1243 | 1021 | 1037 | 1038 | 1041 | 1114 => {
            Verdict::closed(StoreError::Unavailable(text))
        }
        1665 => Verdict::closed(StoreError::Failed(format!(
            "{text}: the relay works under READ COMMITTED, for which binlog_format must be ROW or MIXED"
        ))),
        // Connections (08…) include a node of a cluster that is not ready (1047).
        _ if error.code().is_some_and(|code| code.starts_with("08")) => Verdict::closed(StoreError::Unavailable(text)),
        _ => Verdict::kept(StoreError::Failed(text)),
    }
}

fn describe(error: &MySqlDatabaseError) -> String {
    let number = error.number();
    // "Incorrect datetime value: '…'", "Duplicate entry '…'", "Incorrect string value: …" quote the value.
    if error.code().is_some_and(|code| code.starts_with("22")) || [1062, 1292, 1366, 1411].contains(&number) {
        return format!("a value in the table is not valid (error {number})");
    }
    let message: String = error.message().chars().take(MAX_MESSAGE_CHARS).collect();
    format!("{message} (error {number})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_that_needs_tls_says_so() {
        let driver = "RSA auth backend disabled; enable feature `mysql-rsa` or use TLS.";
        let error = classify(&sqlx::Error::Configuration(driver.into())).error;
        assert!(
            matches!(&error, StoreError::Unavailable(text) if text.contains("ssl-mode=REQUIRED")),
            "{error:?}"
        );
    }
}
