//! What the attempts of a row failed for, in a table of the relay's own: `last_error` has the last alone.
//!
//! An error is noted in the statement or transaction that writes the refusal, and only where it counts as an attempt, so that an
//! outage fills nothing. What is noted of rows that are sent or gone is removed in the background: a mark costs nothing more.
//!
//! Nothing depends on it: where `migrate` has not made the table yet, or the role has no rights on it, a relay goes without.

use super::StoreError;
use super::columns::missing;
use super::migrate::{in_schema, literal};
use super::operator::PastError;
use super::operator::rows::Cells;
use crate::config::TableName;
use crate::message::RowId;

const ERRORS: &str = "outbox_relay_errors";

/// So many errors of a row are told, the newest.
pub(super) const TOLD: u32 = 10;

pub(super) fn errors_table(table: &TableName) -> String {
    in_schema(table, ERRORS)
}

/// In SQL: that the failure `f` of row `o` spends an attempt, and was not noted before.
pub(super) const COUNTS: &str = "(f.delay IS NULL OR f.attempts > coalesce(o.attempts, 0))";

/// Statements that change nothing, but fail where errors cannot be noted.
pub(super) fn touches(table: &TableName) -> [String; 2] {
    let errors = errors_table(table);
    let columns = "outbox, id, failed_at, attempt, error";
    [
        format!("INSERT INTO {errors} ({columns}) SELECT {columns} FROM {errors} AS e WHERE 1 = 0"),
        format!("DELETE FROM {errors} WHERE 1 = 0"),
    ]
}

/// Columns: when, which attempt, what. Of one row, the newest first.
pub(super) fn list(table: &TableName, id: RowId) -> String {
    format!(
        "SELECT failed_at, attempt, error FROM {} WHERE outbox = {} AND id = {id} ORDER BY failed_at DESC LIMIT {TOLD}",
        errors_table(table),
        literal(table.name())
    )
}

/// The next `limit` rows above `after` of which something is noted.
pub(super) fn page(table: &TableName, after: i64, limit: i64) -> String {
    format!(
        "SELECT DISTINCT id FROM {} WHERE outbox = {} AND id > {after} ORDER BY id LIMIT {limit}",
        errors_table(table),
        literal(table.name())
    )
}

pub(super) fn past_error(row: &impl Cells) -> Result<PastError, sqlx::Error> {
    Ok(PastError {
        at: row.double(0)?.unwrap_or_default(),
        attempt: super::values::attempts(row.number(1)?),
        error: row.word(2)?,
    })
}

/// Says what to do about a table that is not there, or may not be used.
pub(super) fn explain(error: StoreError) -> StoreError {
    match error {
        StoreError::SchemaMissing(text) => missing(&text),
        StoreError::Denied(text) => StoreError::Denied(format!(
            "{text}: for the errors of earlier attempts SELECT, INSERT, UPDATE, DELETE on {ERRORS} are needed; grant them"
        )),
        error => error,
    }
}

/// For a person: why only last errors are kept, and how to mend it; `None`: the database has another trouble.
pub(super) fn not_kept(error: &StoreError) -> Option<String> {
    let why = match error {
        StoreError::SchemaMissing(text) => {
            format!("{text}: run `outbox-relay migrate` (migration 5, errors)")
        }
        StoreError::Denied(text) => format!("{text}: grant SELECT, INSERT, UPDATE, DELETE on {ERRORS}"),
        _ => return None,
    };
    Some(format!(
        "of refused rows only the last error is kept, not those of earlier attempts: {why}, and start the relays anew"
    ))
}
