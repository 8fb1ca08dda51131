//! The columns of an outbox table, compared with what the relay can use.

use super::StoreError;
use super::migrate::quoted;
use super::types::Need;
use crate::config::{Field, TableName};

/// The columns the relay writes.
pub(super) const WRITTEN: &[&str] = &["sent_at", "dead_at", "attempts", "next_attempt_at", "last_error"];

/// A column of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    /// Its type, as the database's catalogue names it.
    pub(super) kind: String,
    /// Its type as it stands in a statement, where one is needed to change something else of it.
    pub(super) declared: String,
    /// May hold nulls.
    pub(super) nullable: bool,
    /// No two rows have the same value: by an index, or because only the database gives it.
    pub(super) unique: bool,
    /// The database counts it where the application gives none.
    pub(super) counted: bool,
    /// Has a default.
    pub(super) preset: bool,
    /// Of text or bytes: how long a value can be, in characters or bytes; `None`: as long as can be.
    pub(super) length: Option<u32>,
    /// Of text, where comparing by another one would not use the column's index.
    pub(super) collation: Option<String>,
}

impl Column {
    /// As it stands in SQL.
    pub(super) fn quoted(&self) -> String {
        quoted(&self.name)
    }
}

/// What is not there yet may come.
pub(super) fn missing(text: &str) -> StoreError {
    StoreError::SchemaMissing(format!(
        "{text}: run `outbox-relay migrate`, or wait for the application's migrations"
    ))
}

/// The same of a table that `migrate` leaves to the application.
pub(super) fn awaited(text: &str) -> StoreError {
    StoreError::SchemaMissing(format!(
        "{text}: correct the variable, or wait for the application's migrations"
    ))
}

/// A table that is not there; `mapped`: nor would `migrate` make it.
pub(super) fn no_table(text: &str, mapped: bool) -> StoreError {
    match mapped {
        true => StoreError::SchemaMissing(format!(
            "{text}: correct RELAY_OUTBOX_TABLE, or wait for the application's migrations; `outbox-relay migrate` makes no table whose \
             columns are named in variables"
        )),
        false => missing(text),
    }
}

/// Says what to do about the relay's own tables beside a table that it did not make.
pub(super) fn explain(error: StoreError, table: &TableName) -> StoreError {
    match error {
        StoreError::SchemaMissing(text) if text.contains("outbox_relay_") => missing(&text),
        StoreError::Denied(text) if text.contains("outbox_relay_") => StoreError::Denied(format!(
            "{text}: beside {table} the relay needs SELECT, INSERT, UPDATE, DELETE on outbox_relay_failures and \
             outbox_relay_positions; grant them"
        )),
        error => error,
    }
}

/// How many characters of an error fit into the column for it; `None`: all.
pub(super) fn error_chars<'a>(mut columns: impl Iterator<Item = &'a Column>) -> Option<u32> {
    columns.find(|column| column.name == "last_error")?.length
}

/// For columns that are not there: what makes them, and what does without them.
pub(super) fn absent(columns: &[(&str, &str)], table: &TableName, in_sql: &str) -> StoreError {
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    let add = |(name, kind): &(&str, &str)| format!("ALTER TABLE {in_sql} ADD COLUMN {name} {kind}");
    let add: Vec<String> = columns.iter().map(add).collect();
    missing(&format!(
        "table {table} has no column {}: {}; or name the columns that it has with RELAY_PRESET or RELAY_COLUMN_…; while it is \
         still to be made",
        names.join(", "),
        add.join("; ")
    ))
}

/// Every column that is `wanted` must be there, with one of the types allowed. `in_sql` is the table for a person's statements,
/// and `counter` the type of a number that the database counts, for rows that are there as well.
pub(super) fn check<'a>(
    columns: impl Iterator<Item = &'a Column> + Clone,
    wanted: &[(&str, &[&str])],
    table: &TableName,
    (in_sql, counter): (&str, &'static str),
) -> Result<(), StoreError> {
    let find = |name: &str| columns.clone().find(|column| column.name == name);
    let lacking: Vec<(&str, &str)> = wanted
        .iter()
        .filter(|(name, _)| find(name).is_none())
        .map(|(name, allowed)| match allowed.first().copied().unwrap_or_default() {
            _ if *name == "id" => (*name, counter),
            // As the migrations have them.
            "varchar" => (*name, "varchar(512)"),
            "char" => (*name, "char(36)"),
            // Else some servers fill it in by themselves.
            "timestamp" => (*name, "timestamp(6) NULL DEFAULT NULL"),
            kind => (*name, kind),
        })
        .collect();
    if !lacking.is_empty() {
        return Err(absent(&lacking, table, in_sql));
    }
    let wrong: Vec<String> = wanted
        .iter()
        .filter_map(|(name, allowed)| find(name).map(|column| (column, allowed)))
        .filter(|(column, allowed)| !allowed.contains(&column.kind.as_str()))
        .map(|(column, allowed)| format!("{} is {}, allowed: {}", column.name, column.kind, allowed.join(", ")))
        .collect();
    if wrong.is_empty() {
        let sent = find("sent_at").filter(|sent| !sent.nullable);
        return sent.map_or(Ok(()), |sent| Err(StoreError::Failed(never_null(&sent.name, table))));
    }
    // Named, they are read as text whatever their type.
    let named: Vec<String> = Field::ALL
        .into_iter()
        .filter(|field| *field != Field::Id && Need::of(*field) == Need::Text)
        .filter(|field| {
            wrong
                .iter()
                .any(|text| text.starts_with(&format!("{} is ", field.name())))
        })
        .map(|field| format!("{}={}", field.variable(), field.name()))
        .collect();
    let remedy = match named.is_empty() {
        false => format!(
            "; set {} and run `outbox-relay migrate`: columns of other types are read as text then",
            named.join(", ")
        ),
        true => String::new(),
    };
    Err(StoreError::Failed(format!(
        "columns of {table} have types the relay cannot use: {}{remedy}",
        wrong.join("; ")
    )))
}

/// For a time of sending that cannot be null.
pub(super) fn never_null(name: &str, table: &TableName) -> String {
    format!(
        "{name} of {table} is NOT NULL, so that no row would ever be unsent: let it be null, or name another column"
    )
}
