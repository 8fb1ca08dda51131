//! What the migrations of every database have in common: their list, and the names they use.
//!
//! `sqlx`'s own migrator is not used: its table would be shared with the application's migrations, and it knows one
//! set of tables a database, where several outboxes can live in one.

use sha2::{Digest, Sha256};

use crate::config::{Mapping, TableName};
use crate::store::history::errors_table;
use crate::store::leases::{members_table, shares_table};
use crate::store::pauses::pauses_table;
use crate::store::source::{failures_table, positions_table};

/// The relay's own book of what was applied; in the schema of the outbox.
const BOOK: &str = "outbox_relay_migrations";

/// PostgreSQL silently cuts longer names.
const MAX_NAME_BYTES: usize = 63;

/// One step, never changed once it was released.
#[derive(Debug)]
pub(super) struct Migration {
    pub(super) version: i32,
    pub(super) name: &'static str,
    pub(super) sql: &'static str,
}

/// A migration that was run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Counted from 1.
    pub version: i32,
    /// What it is about.
    pub name: &'static str,
}

/// The step that makes what the relay needs beside a table that it did not make.
pub(super) const EXISTING: i32 = 3;

/// The step that makes the outbox itself.
const OUTBOX: i32 = 1;

/// The steps for this outbox: where columns are mapped, the application makes its table itself.
pub(super) fn wanted(all: &'static [Migration], mapping: &Mapping) -> impl Iterator<Item = &'static Migration> {
    let needless = if mapping.is_default() { EXISTING } else { OUTBOX };
    all.iter().filter(move |migration| migration.version != needless)
}

/// The step's statements for this table.
pub(super) fn render(migration: &Migration, table: &TableName) -> String {
    migration
        .sql
        .replace("{outbox}", &table.to_string())
        .replace("{shares}", &shares_table(table))
        .replace("{members}", &members_table(table))
        .replace("{pauses}", &pauses_table(table))
        .replace("{errors}", &errors_table(table))
        .replace("{failures}", &failures_table(table))
        .replace("{positions}", &positions_table(table))
        .replace("{unsent_index}", &quoted(&unsent_index(table)))
        .replace("{dead_index}", &quoted(&dead_index(table)))
}

/// What a person is to run: all steps between an opening and a closing, each with the note `record` makes of it.
pub(super) fn printed(
    opening: &str,
    migrations: impl Iterator<Item = &'static Migration>,
    table: &TableName,
    record: fn(&Migration, &TableName) -> String,
    closing: &str,
) -> String {
    let mut sql = format!("{opening};\n");
    for migration in migrations {
        sql.push_str(&format!(
            "\n{}\n{};\n",
            render(migration, table).trim_end(),
            record(migration, table)
        ));
    }
    sql.push_str(&format!("\n{closing};\n"));
    sql
}

/// The note that a step was made.
pub(super) fn record(migration: &Migration, table: &TableName) -> String {
    format!(
        "INSERT INTO {} (outbox, version) VALUES ({}, {}) ON CONFLICT DO NOTHING",
        book(table),
        literal(table.name()),
        migration.version
    )
}

/// The book's quoted name.
pub(super) fn book(table: &TableName) -> String {
    in_schema(table, BOOK)
}

/// The quoted name of something in the schema of the outbox.
pub(super) fn in_schema(table: &TableName, name: &str) -> String {
    match table.schema() {
        Some(schema) => format!("{}.{}", quoted(schema), quoted(name)),
        None => quoted(name),
    }
}

/// A standard SQL name.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A standard SQL text.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The name of the index of unsent rows, without quotes.
pub(super) fn unsent_index(table: &TableName) -> String {
    index_name(table, "unsent")
}

/// The name of the index of dead letters, without quotes.
pub(super) fn dead_index(table: &TableName) -> String {
    index_name(table, "dead")
}

/// An index's name: indexes share a name space with tables, so it is made from the table's; where that is too
/// long, from its beginning and its hash, as two long names may begin alike.
fn index_name(table: &TableName, purpose: &str) -> String {
    let suffix = format!("_relay_{purpose}");
    let name = table.name();
    if name.len() + suffix.len() <= MAX_NAME_BYTES {
        return format!("{name}{suffix}");
    }
    let digest: String = Sha256::digest(name.as_bytes())
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut end = MAX_NAME_BYTES - suffix.len() - digest.len() - 1;
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}_{digest}{suffix}", &name[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_names_fit_and_differ() {
        let name = |text: &str| index_name(&text.parse().expect("a table name"), "unsent");
        assert_eq!(name("app.outbox"), "outbox_relay_unsent");
        assert_eq!(name("\"a\"\"b\""), "a\"b_relay_unsent");
        let (one, two) = (format!("{}1", "é".repeat(31)), format!("{}2", "é".repeat(31)));
        assert_ne!(name(&one), name(&two));
        assert!(name(&one).len() <= MAX_NAME_BYTES, "{}", name(&one));
    }
}
