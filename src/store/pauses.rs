//! What people have paused, the same SQL for every database.

use super::StoreError;
use super::columns::missing;
use super::migrate::{in_schema, literal};
use super::operator::rows::Cells;
use crate::config::TableName;

const PAUSES: &str = "outbox_relay_pauses";

/// Something that is not published until a person resumes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Pause {
    /// `None`: everything; empty: the default exchange.
    pub exchange: Option<String>,
    /// Who paused it, at most 255 characters.
    pub by: String,
    /// Why, at most 1,000 characters; empty: not said.
    pub reason: String,
    /// Since when, in seconds since 1970 by the database's clock.
    pub at: f64,
}

pub(super) fn pauses_table(table: &TableName) -> String {
    in_schema(table, PAUSES)
}

/// Columns: scope, exchange, who, why, when.
pub(super) fn list(table: &TableName) -> String {
    format!(
        "SELECT scope, exchange, paused_by, reason, paused_at FROM {} WHERE outbox = {} ORDER BY scope, exchange",
        pauses_table(table),
        literal(table.name())
    )
}

/// Notes a pause, if it is not there. `arguments`: how the database names four; they are scope, exchange, who and why.
pub(super) fn begin(table: &TableName, now: &str, arguments: [&str; 4], or_leave: &str) -> String {
    let [scope, exchange, by, reason] = arguments;
    format!(
        "INSERT INTO {} (outbox, scope, exchange, paused_by, reason, paused_at)
         VALUES ({}, {scope}, {exchange}, {by}, {reason}, {now}) {or_leave}",
        pauses_table(table),
        literal(table.name())
    )
}

/// Ends a pause. `arguments`: scope and exchange.
pub(super) fn end(table: &TableName, arguments: [&str; 2]) -> String {
    let [scope, exchange] = arguments;
    format!(
        "DELETE FROM {} WHERE outbox = {} AND scope = {scope} AND exchange = {exchange}",
        pauses_table(table),
        literal(table.name())
    )
}

/// Scope and exchange as they are stored.
pub(super) fn stored(exchange: Option<&str>) -> (&'static str, &str) {
    match exchange {
        None => ("everything", ""),
        Some(exchange) => ("exchange", exchange),
    }
}

pub(super) fn pause(row: &impl Cells) -> Result<Pause, sqlx::Error> {
    let exchange = row.word(1)?;
    Ok(Pause {
        exchange: (row.word(0)? == "exchange").then_some(exchange),
        by: row.word(2)?,
        reason: row.word(3)?,
        at: row.double(4)?.unwrap_or_default(),
    })
}

/// Says what to do about a table that is not there, or not for this role.
pub(super) fn explain(error: StoreError) -> StoreError {
    match error {
        StoreError::SchemaMissing(text) => missing(&text),
        StoreError::Denied(text) if text.contains(PAUSES) => StoreError::Denied(format!(
            "{text}: for pauses SELECT, INSERT, UPDATE and DELETE on {PAUSES} are needed; grant them"
        )),
        error => error,
    }
}
