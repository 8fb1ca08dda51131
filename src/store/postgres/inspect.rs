//! What the table looks like, and what may be done with it.

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use tracing::warn;

use super::statements::Size;
use crate::config::{OnSent, TableName};
use crate::store::StoreError;
use crate::store::columns::{Column, WRITTEN, check, missing};
use crate::store::values::unreadable;

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
       current_setting('transaction_read_only') = 'on'
FROM pg_catalog.pg_class c
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
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
    ("message_id", &["uuid"]),
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

/// Judges the answer to [`QUERY`]; what the statements need to know of the table.
pub(super) fn judge(rows: &[PgRow], table: &TableName, on_sent: OnSent) -> Result<Size, StoreError> {
    let Some(first) = rows.first() else {
        return Err(missing(&format!(
            "table {table} does not exist, or the role may not see its schema"
        )));
    };
    let relation: String = first.try_get(0).map_err(|error| unreadable(&error))?;
    check_relation(&relation, table)?;
    let columns = columns(rows)?;
    check(columns.iter().map(|granted| &granted.column), COLUMNS, table)?;
    if first.try_get(8).map_err(|error| unreadable(&error))? {
        return Err(StoreError::Denied(
            "the server takes no writes (a standby, or default_transaction_read_only is on)".to_owned(),
        ));
    }
    let role: String = first.try_get(7).map_err(|error| unreadable(&error))?;
    let deletable: bool = first.try_get(5).map_err(|error| unreadable(&error))?;
    check_privileges(&columns, deletable || on_sent == OnSent::Mark, &role, table, on_sent)?;
    if first.try_get::<bool, _>(6).unwrap_or(false) {
        warn!(%table, role, "row-level security applies to this role: rows it hides are never sent");
    }
    let payload = columns
        .iter()
        .map(|granted| &granted.column)
        .find(|column| column.name == "payload")
        .map(|column| column.kind.as_str());
    Ok(match payload {
        Some("json" | "jsonb") => Size::OfText,
        _ => Size::OfColumn,
    })
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
    let column = |row: &PgRow| {
        let Some(name) = row.try_get(1)? else { return Ok(None) };
        Ok(Some(Granted {
            column: Column {
                name,
                kind: row.try_get(2)?,
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
    may_delete: bool,
    role: &str,
    table: &TableName,
    on_sent: OnSent,
) -> Result<(), StoreError> {
    let used = |granted: &&Granted| COLUMNS.iter().any(|(name, _)| *name == granted.column.name);
    let written = |granted: &&Granted| WRITTEN.contains(&granted.column.name.as_str());
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
    let wanted = match on_sent {
        OnSent::Mark => "SELECT, UPDATE, DELETE (for the purge)",
        OnSent::Delete => "SELECT, UPDATE, DELETE",
    };
    let lacking = lacking.join(", ");
    Err(StoreError::Denied(format!(
        "role {role} lacks {lacking} on {table}; it needs {wanted}: GRANT {lacking} ON {table} TO {role}"
    )))
}
