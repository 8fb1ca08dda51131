//! From an SQLSTATE to what the caller does about it.

use sqlx::postgres::PgDatabaseError;

use crate::store::StoreError;
use crate::store::secure::{lost, untrusted};
use crate::store::slot::Verdict;
use crate::tls;

/// What a pooler says to a setting in the first message of a connection (`protocol_violation`).
pub(super) const STARTUP_REFUSED: &str = "08P01";

/// For a person: what it means, and how to mend it.
pub(super) const TAKES_NO_WRITES: &str = "the server takes no writes (a standby, or default_transaction_read_only is on): name the primary in RELAY_DATABASE_URL";

/// Longer messages are cut: they come from triggers.
const MAX_MESSAGE_CHARS: usize = 300;

/// Sorts an error. Texts hold the server's message only: its detail can quote rows.
pub(super) fn classify(error: &sqlx::Error) -> Verdict {
    match error {
        sqlx::Error::Database(error) => match error.try_downcast_ref::<PgDatabaseError>() {
            Some(error) => database(error),
            None => Verdict::closed(StoreError::Failed("an unknown database error".to_owned())),
        },
        sqlx::Error::Io(error) => lost(error),
        sqlx::Error::Tls(error) => untrusted(&**error),
        sqlx::Error::Protocol(text) => Verdict::closed(StoreError::Unavailable(format!("protocol: {text}"))),
        sqlx::Error::Configuration(error) => Verdict::closed(StoreError::Failed(format!("the database URL: {error}"))),
        // Everything else is about values; its text could hold one.
        _ => Verdict::closed(StoreError::Failed("the driver could not read the answer".to_owned())),
    }
}

fn database(error: &PgDatabaseError) -> Verdict {
    let code = error.code();
    let text = describe(error);
    let (class, _) = code.split_at_checked(2).unwrap_or((code, ""));
    match (class, code) {
        (_, "40001" | "40P01") => Verdict::kept(StoreError::Conflict(text)),
        (_, "42P01" | "42703" | "3F000") => Verdict::closed(StoreError::SchemaMissing(text)),
        // "cached plan must not change result type": a column has another type now, prepared statements are void.
        (_, "0A000") if error.message().contains("cached plan") => Verdict::closed(StoreError::SchemaMissing(text)),
        (_, "42501") => Verdict::kept(StoreError::Denied(text)),
        // Not kept: after a failover the next connection may find a server that can be written to.
        (_, "25006") => Verdict::closed(StoreError::ReadOnly(format!("{text}: {TAKES_NO_WRITES}"))),
        // A transaction that was left alone for too long: the connection is gone.
        (_, "25P03") => Verdict::closed(StoreError::Unavailable(text)),
        (_, "57014" | "55P03") => Verdict::kept(StoreError::Unavailable(text)),
        // A pooler handed the statement to a server connection that does not have it, or has another by this name.
        (_, "26000" | "42P05") => Verdict::closed(StoreError::Unavailable(format!(
            "{text}: add ?statement-cache-capacity=0 to the database URL, as a pooler is between that did not show"
        ))),
        (_, "3D000") => Verdict::closed(StoreError::Unavailable(text)),
        ("28", _) => Verdict::refused(format!(
            "login refused: {text}: look at user and password in RELAY_DATABASE_URL (or its file), and at pg_hba.conf of the \
             server; for a client certificate set {}",
            tls::DATABASE.certificate
        )),
        ("08" | "53" | "57" | "58", _) => Verdict::closed(StoreError::Unavailable(text)),
        _ => Verdict::kept(StoreError::Failed(text)),
    }
}

fn describe(error: &PgDatabaseError) -> String {
    // "invalid input syntax for type json: …" quotes the value.
    if error.code().starts_with("22") {
        return format!("a value in the table is not valid (SQLSTATE {})", error.code());
    }
    let message: String = error.message().chars().take(MAX_MESSAGE_CHARS).collect();
    format!("{message} (SQLSTATE {})", error.code())
}
