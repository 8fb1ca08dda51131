//! What the table looks like.

use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::source::Sqlite;
use crate::config::TableName;
use crate::store::columns::{Column, absent, missing, never_null, no_table};
use crate::store::layout::headers;
use crate::store::source::header_object;
use crate::store::values::{decode, unreadable};
use crate::store::{StoreError, StoreOptions};

/// One row for each column; none without a table. `?1` the table, `?2` its index of unsent rows.
pub(super) const QUERY: &str = "\
SELECT s.type, p.name, p.type, (SELECT encoding FROM pragma_encoding),
       EXISTS (SELECT 1 FROM sqlite_schema AS i WHERE i.type = 'index' AND i.name = ?2 AND i.tbl_name = s.name),
       lower(p.name) = 'sent_at' AND p.\"notnull\", s.sql
FROM sqlite_schema AS s JOIN pragma_table_info(s.name) AS p
WHERE lower(s.name) = lower(?1) AND s.type IN ('table', 'view')";

/// One row for each column of a table that `migrate` did not make; none without a table. `?1` the table.
pub(super) const EXISTING: &str = "\
SELECT s.type, p.name, p.type, (SELECT encoding FROM pragma_encoding), p.\"notnull\" = 0 AND p.pk = 0,
       (p.pk = 1 AND (SELECT max(q.pk) FROM pragma_table_info(s.name) AS q) = 1) OR EXISTS (
           SELECT 1 FROM pragma_index_list(s.name) AS i
           WHERE i.\"unique\" AND NOT i.partial
             AND (SELECT count(*) FROM pragma_index_info(i.name)) = 1
             AND (SELECT c.name FROM pragma_index_info(i.name) AS c) = p.name),
       s.sql,
       NOT EXISTS (SELECT 1 FROM pragma_table_list(s.name) AS l WHERE l.wr AND l.schema = 'main'),
       p.dflt_value IS NOT NULL
FROM sqlite_schema AS s JOIN pragma_table_info(s.name) AS p
WHERE lower(s.name) = lower(?1) AND s.type IN ('table', 'view')";

/// A table that `migrate` did not make.
pub(super) struct Existing {
    pub(super) columns: Vec<Column>,
    /// No id is given twice.
    pub(super) autoincrement: bool,
    pub(super) has_rowid: bool,
}

/// The columns the relay reads. Their declared types hardly bind SQLite, so that values are understood as they come.
const COLUMNS: &[&str] = &[
    "id",
    "message_id",
    "exchange",
    "routing_key",
    "ordering_key",
    "type",
    "content_type",
    "headers",
    "properties",
    "payload",
    "created_at",
    "available_at",
    "attempts",
    "next_attempt_at",
    "last_error",
    "sent_at",
    "dead_at",
];

/// A table's only schema, as the relay attaches no other file.
pub(super) fn check_schema(table: &TableName) -> Result<(), StoreError> {
    match table.schema() {
        None => Ok(()),
        Some(schema) if schema.eq_ignore_ascii_case("main") => Ok(()),
        Some(schema) => Err(StoreError::Failed(format!(
            "SQLite has no schema {schema:?}: name the table alone"
        ))),
    }
}

/// Judges the answer to [`EXISTING`].
pub(super) fn existing(rows: &[SqliteRow], table: &TableName) -> Result<Existing, StoreError> {
    let first = relation(rows, table, true)?;
    let column = |row: &SqliteRow| {
        Ok(Column {
            name: row.try_get(1)?,
            kind: row.try_get::<String, _>(2)?.to_ascii_uppercase(),
            declared: String::new(),
            nullable: row.try_get(4)?,
            unique: row.try_get(5)?,
            counted: false,
            preset: row.try_get(8)?,
            length: None,
            collation: None,
        })
    };
    Ok(Existing {
        columns: decode(rows, column)?,
        autoincrement: counts(&text(first, 6)?),
        has_rowid: first.try_get(7).map_err(|error| unreadable(&error))?,
    })
}

/// Whether a statement that made a table says `AUTOINCREMENT`, and not just in a comment or a name.
fn counts(sql: &str) -> bool {
    let (mut words, mut rest) = (String::new(), sql);
    while let Some(at) = rest.find(['-', '/', '\'', '"', '`', '[']) {
        words.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = match rest.as_bytes() {
            [b'-', b'-', ..] => "\n",
            [b'/', b'*', ..] => "*/",
            [b'[', ..] => "]",
            [b'-' | b'/', ..] => "",
            _ => &rest[..1],
        };
        rest = rest[1..].split_once(end).map_or("", |(_, behind)| behind);
        words.push(' ');
    }
    words.push_str(rest);
    words
        .split_whitespace()
        .any(|word| word.trim_end_matches([',', ')']).eq_ignore_ascii_case("AUTOINCREMENT"))
}

/// The first row of either answer, if it is about a table that will do.
fn relation<'a>(rows: &'a [SqliteRow], table: &TableName, mapped: bool) -> Result<&'a SqliteRow, StoreError> {
    let Some(first) = rows.first() else {
        return Err(no_table(&format!("table {table} does not exist"), mapped));
    };
    if text(first, 0)? == "view" {
        return Err(StoreError::Failed(format!(
            "{table} is a view: name the table itself in RELAY_OUTBOX_TABLE"
        )));
    }
    if text(first, 3)? != "UTF-8" {
        return Err(StoreError::Failed(
            "the database's text encoding must be UTF-8".to_owned(),
        ));
    }
    Ok(first)
}

/// What the statements need to know of a table that `migrate` made.
pub(super) struct Standard {
    /// No id is given twice.
    pub(super) autoincrement: bool,
    /// The index of unsent rows is there.
    pub(super) has_index: bool,
    /// Headers that are made of its columns.
    pub(super) header_columns: Option<String>,
}

/// Judges the answer to [`QUERY`].
pub(super) fn judge(rows: &[SqliteRow], options: &StoreOptions) -> Result<Standard, StoreError> {
    let table = &options.table;
    let first = relation(rows, table, false)?;
    let mut columns = Vec::with_capacity(rows.len());
    for row in rows {
        columns.push((text(row, 1)?.to_ascii_lowercase(), text(row, 2)?.to_ascii_uppercase()));
    }
    let find = |name: &str| columns.iter().find(|(column, _)| column == name);
    let lacking: Vec<&str> = COLUMNS.iter().copied().filter(|name| find(name).is_none()).collect();
    if lacking.contains(&"id") {
        return Err(missing(&format!(
            "table {table} has no column {}; name the columns that it has with RELAY_PRESET or RELAY_COLUMN_…, or make the table anew, \
             as SQLite adds no id INTEGER PRIMARY KEY AUTOINCREMENT to one; while it is still to be made",
            lacking.join(", ")
        )));
    }
    if !lacking.is_empty() {
        let lacking: Vec<_> = lacking
            .into_iter()
            .map(|name| (name, if name == "attempts" { "INTEGER" } else { "TEXT" }))
            .collect();
        return Err(absent(&lacking, table, &table.to_string()));
    }
    for row in rows {
        if row.try_get(5).map_err(|error| unreadable(&error))? {
            return Err(StoreError::Failed(never_null(&text(row, 1)?, table)));
        }
    }
    match find("id") {
        // SQLite's own rule for an integer affinity.
        Some((_, kind)) if !kind.contains("INT") => Err(StoreError::Failed(format!(
            "columns of {table} have types the relay cannot use: id is {kind}, allowed: INTEGER PRIMARY KEY AUTOINCREMENT"
        ))),
        _ => Ok(Standard {
            autoincrement: counts(&text(first, 6)?),
            has_index: first.try_get(4).map_err(|error| unreadable(&error))?,
            header_columns: header_columns(rows, options)?,
        }),
    }
}

fn header_columns(rows: &[SqliteRow], options: &StoreOptions) -> Result<Option<String>, StoreError> {
    let column = |row: &SqliteRow| {
        Ok(Column {
            name: row.try_get(1)?,
            kind: row.try_get::<String, _>(2)?.to_ascii_uppercase(),
            declared: String::new(),
            nullable: true,
            unique: false,
            counted: false,
            preset: false,
            length: None,
            collation: None,
        })
    };
    let dialect = Sqlite {
        ids_are_given_again: false,
    };
    let headers = headers(&options.mapping, &decode(rows, column)?, &options.table, &dialect)?;
    Ok(header_object(&headers, &dialect, "o"))
}

fn text(row: &SqliteRow, index: usize) -> Result<String, StoreError> {
    row.try_get(index).map_err(|error| unreadable(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn autoincrement_is_told_from_comments_and_names() {
        let counted = "CREATE TABLE t (id INTEGER PRIMARY KEY /* or so */ AUTOINCREMENT, \"it's\" TEXT)";
        assert!(counts(counted) && counts("CREATE TABLE t (id INTEGER PRIMARY KEY autoincrement) -- it's"));
        for not in [
            "CREATE TABLE t (id INTEGER PRIMARY KEY) -- no AUTOINCREMENT",
            "CREATE TABLE t (/* AUTOINCREMENT */ id INTEGER PRIMARY KEY, x DEFAULT (1 - 2 / 3))",
            "CREATE TABLE t (id INTEGER PRIMARY KEY, \" AUTOINCREMENT \" TEXT, [ AUTOINCREMENT ] TEXT DEFAULT ' AUTOINCREMENT '",
        ] {
            assert!(!counts(not), "{not}");
        }
    }
}
