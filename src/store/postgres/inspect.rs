//! What the table looks like, and what may be done with it.

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use tracing::warn;

use super::error::TAKES_NO_WRITES;
use super::source::{COUNTER, Postgres};
use super::statements::Size;
use crate::config::{OnSent, TableName};
use crate::store::columns::{Column, WRITTEN, check, error_chars, no_table};
use crate::store::layout::{Layout, headers, names_in};
use crate::store::source::header_object;
use crate::store::values::unreadable;
use crate::store::{StoreError, StoreOptions};

/// One row for each column; one row without a column for a table without columns; none without a table. The privilege
/// functions are asked by column, as a role may have been granted single ones.
pub(super) const QUERY: &str = "\
SELECT c.relkind::text, a.attname::text,
       (CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END)::regtype::text,
       coalesce(has_column_privilege(c.oid, a.attnum, 'SELECT'), false),
       coalesce(has_column_privilege(c.oid, a.attnum, 'UPDATE'), false),
       has_table_privilege(c.oid, 'DELETE'),
       row_security_active(c.oid),
       quote_ident(current_user),
       current_setting('transaction_read_only') = 'on',
       NOT coalesce(a.attnotnull, false),
       coalesce(a.attidentity = 'a', false) OR EXISTS (
           SELECT FROM pg_catalog.pg_index AS i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid
               AND i.indpred IS NULL AND i.indnkeyatts = 1 AND i.indkey[0] = a.attnum),
       coalesce(a.attidentity <> '' OR pg_get_expr(d.adbin, d.adrelid) LIKE 'nextval(%', false),
       d.adbin IS NOT NULL,
       CASE WHEN t.typtype = 'd' THEN nullif(t.typtypmod, -1) ELSE nullif(a.atttypmod, -1) END - 4
FROM pg_catalog.pg_class c
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
LEFT JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
WHERE c.oid = to_regclass($1)";

const INTEGERS: &[&str] = &["bigint", "integer", "smallint"];
const TEXTS: &[&str] = &["text", "character varying"];
const OBJECTS: &[&str] = &["json", "jsonb", "text", "character varying"];
const BODIES: &[&str] = &["json", "jsonb", "text", "character varying", "bytea"];
/// Without a time zone, UTC is meant: the driver's connections are set to it.
const TIMES: &[&str] = &["timestamp with time zone", "timestamp without time zone"];

/// The columns the relay reads, with the types they may have.
const COLUMNS: &[(&str, &[&str])] = &[
    ("id", &["bigint", "integer"]),
    ("message_id", &["uuid", "text", "character varying"]),
    ("exchange", TEXTS),
    ("routing_key", TEXTS),
    ("ordering_key", TEXTS),
    ("type", TEXTS),
    ("content_type", TEXTS),
    ("headers", OBJECTS),
    ("properties", OBJECTS),
    ("payload", BODIES),
    ("created_at", TIMES),
    ("available_at", TIMES),
    ("attempts", INTEGERS),
    ("next_attempt_at", TIMES),
    ("last_error", TEXTS),
    ("sent_at", TIMES),
    ("dead_at", TIMES),
];

struct Granted {
    column: Column,
    readable: bool,
    writable: bool,
}

/// What the statements need to know of a table that `migrate` made.
pub(super) struct Standard {
    /// How the size of a body is found.
    pub(super) size: Size,
    /// How long an error's text can be.
    pub(super) error_chars: Option<u32>,
    /// Headers that are made of its columns.
    pub(super) header_columns: Option<String>,
}

/// Judges the answer to [`QUERY`].
pub(super) fn judge(rows: &[PgRow], options: &StoreOptions) -> Result<Standard, StoreError> {
    let (table, on_sent) = (&options.table, options.on_sent);
    let columns = relation(rows, table, false)?;
    let in_sql = table.to_string();
    let all = columns.iter().map(|granted| &granted.column);
    check(all.clone(), COLUMNS, table, (&in_sql, COUNTER))?;
    let error_chars = error_chars(all.clone());
    let all: Vec<Column> = all.cloned().collect();
    let headers = headers(&options.mapping, &all, table, &Postgres)?;
    let read: Vec<&str> = COLUMNS
        .iter()
        .map(|(name, _)| *name)
        .chain(names_in(&headers))
        .collect();
    check_role(rows, &columns, &read, WRITTEN, table, on_sent)?;
    let payload = columns
        .iter()
        .map(|granted| &granted.column)
        .find(|column| column.name == "payload")
        .map(|column| column.kind.as_str());
    let size = match payload {
        Some("json" | "jsonb") => Size::OfText,
        _ => Size::OfColumn,
    };
    Ok(Standard {
        size,
        error_chars,
        header_columns: header_object(&headers, &Postgres, "o"),
    })
}

/// The same for a table that `migrate` did not make.
pub(super) fn judge_mapped(rows: &[PgRow], options: &StoreOptions) -> Result<Layout, StoreError> {
    let (table, on_sent) = (&options.table, options.on_sent);
    let granted = relation(rows, table, true)?;
    let columns: Vec<Column> = granted.iter().map(|granted| granted.column.clone()).collect();
    let layout = Layout::new(&options.mapping, &columns, table, on_sent, &Postgres)?;
    check_role(rows, &granted, &layout.read(), &layout.written(on_sent), table, on_sent)?;
    Ok(layout)
}

/// The columns of the table, if it is one.
fn relation(rows: &[PgRow], table: &TableName, mapped: bool) -> Result<Vec<Granted>, StoreError> {
    let Some(first) = rows.first() else {
        let text = format!("table {table} does not exist, or the role may not see its schema");
        return Err(no_table(&text, mapped));
    };
    let relation: String = first.try_get(0).map_err(|error| unreadable(&error))?;
    check_relation(&relation, table)?;
    columns(rows)
}

fn check_role(
    rows: &[PgRow],
    columns: &[Granted],
    read: &[&str],
    written: &[&str],
    table: &TableName,
    on_sent: OnSent,
) -> Result<(), StoreError> {
    let Some(first) = rows.first() else { return Ok(()) };
    if first.try_get(8).map_err(|error| unreadable(&error))? {
        return Err(StoreError::ReadOnly(TAKES_NO_WRITES.to_owned()));
    }
    let role: String = first.try_get(7).map_err(|error| unreadable(&error))?;
    let deletable: bool = first.try_get(5).map_err(|error| unreadable(&error))?;
    let may_delete = deletable || on_sent == OnSent::Mark;
    check_privileges(columns, (read, written), may_delete, &role, table, on_sent)?;
    if first.try_get::<bool, _>(6).unwrap_or(false) {
        warn!(%table, role, "row-level security applies to this role: rows it hides are never sent");
    }
    Ok(())
}

fn check_relation(kind: &str, table: &TableName) -> Result<(), StoreError> {
    let what = match kind {
        "r" | "p" => return Ok(()),
        "v" | "m" => "a view",
        "f" => "a foreign table",
        _ => "not a table",
    };
    Err(StoreError::Failed(format!(
        "{table} is {what}: name the table itself in RELAY_OUTBOX_TABLE"
    )))
}

fn columns(rows: &[PgRow]) -> Result<Vec<Granted>, StoreError> {
    // Of numbers and times the modifier says something else.
    let length = |row: &PgRow| {
        let is_text = row
            .try_get::<Option<&str>, _>(2)?
            .is_some_and(|kind| kind.starts_with("character"));
        let length = row.try_get::<Option<i32>, _>(13)?;
        Ok::<_, sqlx::Error>(length.filter(|_| is_text).and_then(|length| u32::try_from(length).ok()))
    };
    let column = |row: &PgRow| {
        let Some(name) = row.try_get(1)? else { return Ok(None) };
        Ok(Some(Granted {
            column: Column {
                name,
                kind: row.try_get(2)?,
                declared: String::new(),
                nullable: row.try_get(9)?,
                unique: row.try_get(10)?,
                counted: row.try_get(11)?,
                preset: row.try_get(12)?,
                length: length(row)?,
                collation: None,
            },
            readable: row.try_get(3)?,
            writable: row.try_get(4)?,
        }))
    };
    rows.iter()
        .filter_map(|row| column(row).transpose())
        .collect::<Result<_, _>>()
        .map_err(|error| unreadable(&error))
}

fn check_privileges(
    columns: &[Granted],
    (read, written): (&[&str], &[&str]),
    may_delete: bool,
    role: &str,
    table: &TableName,
    on_sent: OnSent,
) -> Result<(), StoreError> {
    let used = |granted: &&Granted| read.contains(&granted.column.name.as_str());
    let written = |granted: &&Granted| written.contains(&granted.column.name.as_str());
    let may_update = columns.iter().any(|granted| written(&granted));
    let mut lacking = Vec::new();
    if !columns.iter().filter(used).all(|granted| granted.readable) {
        lacking.push("SELECT");
    }
    if !columns.iter().filter(written).all(|granted| granted.writable) {
        lacking.push("UPDATE");
    }
    if !may_delete {
        lacking.push("DELETE");
    }
    if lacking.is_empty() {
        return Ok(());
    }
    // The purge of rows that are marked deletes, too, but the relay can do without it.
    let wanted = match (on_sent, may_update) {
        (OnSent::Mark, _) => "SELECT, UPDATE, DELETE (for the purge)",
        (OnSent::Delete, true) => "SELECT, UPDATE, DELETE",
        (OnSent::Delete, false) => "SELECT, DELETE",
    };
    let lacking = lacking.join(", ");
    Err(StoreError::Denied(format!(
        "role {role} lacks {lacking} on {table}; it needs {wanted}: GRANT {lacking} ON {table} TO {role}"
    )))
}
