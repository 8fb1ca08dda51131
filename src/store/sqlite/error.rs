//! From SQLite's result codes to what the caller does about them.

use sqlx::error::DatabaseError;

use crate::store::StoreError;
use crate::store::slot::Verdict;

/// Sorts an error. The codes: <https://www.sqlite.org/rescode.html>.
pub(super) fn classify(error: &sqlx::Error) -> Verdict {
    let (error, keep_connection) = match error {
        sqlx::Error::Database(error) => by_code(code_of(error.as_ref()), error.message()),
        sqlx::Error::Io(error) => (StoreError::Unavailable(error.to_string()), false),
        sqlx::Error::WorkerCrashed => (
            StoreError::Unavailable("the connection's thread ended".to_owned()),
            false,
        ),
        sqlx::Error::Configuration(error) => (StoreError::Failed(format!("the database URL: {error}")), false),
        // Everything else is about values; its text could hold one.
        _ => (
            StoreError::Failed("the driver could not read the answer".to_owned()),
            false,
        ),
    };
    Verdict {
        error,
        keep_connection,
        refused: false,
    }
}

/// Whether another connection holds the file or a table of it.
pub(super) fn is_locked(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(error) if is_lock(code_of(error.as_ref())))
}

/// `SQLITE_BUSY` or `SQLITE_LOCKED`; extended codes hold the primary one in their low byte.
fn is_lock(code: i32) -> bool {
    matches!(code & 0xff, 5 | 6)
}

fn code_of(error: &dyn DatabaseError) -> i32 {
    error.code().and_then(|code| code.parse().ok()).unwrap_or(1)
}

fn by_code(code: i32, message: &str) -> (StoreError, bool) {
    const BUSY_SNAPSHOT: i32 = 517;
    match (code, code & 0xff) {
        (BUSY_SNAPSHOT, _) => (StoreError::Conflict(message.to_owned()), true),
        _ if is_lock(code) => (
            StoreError::Unavailable(format!("{message}: another writer holds it")),
            true,
        ),
        (_, 1)
            if ["no such table", "no such column", "no such index"]
                .iter()
                .any(|text| message.contains(text)) =>
        {
            (StoreError::SchemaMissing(message.to_owned()), false)
        }
        (_, 3 | 23) => (StoreError::Denied(message.to_owned()), false),
        (_, 8) => (
            StoreError::ReadOnly(format!("{message}: file and directory must be writable by the relay")),
            false,
        ),
        (_, 14) => (
            StoreError::Unavailable(format!("{message}: check its path and permissions")),
            false,
        ),
        (_, 26) => (
            StoreError::Failed("the file is not an SQLite database".to_owned()),
            false,
        ),
        (_, 7 | 10 | 13) => (StoreError::Unavailable(message.to_owned()), false),
        _ => (StoreError::Failed(format!("{message} (SQLite code {code})")), false),
    }
}
