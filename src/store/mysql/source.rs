//! A table that `migrate` did not make, as MariaDB and MySQL are to read it.

use super::inspect::{backquoted, in_backquotes};
use super::statements::Numbering;
use crate::config::TableName;
use crate::store::columns::Column;
use crate::store::layout::{Layout, Need, Types};
use crate::store::migrate::{literal, quoted};
use crate::store::source::{
    Dialect, HEADER_COLUMNS, MESSAGE_ID, Source, Target, columns, numberless, positions_table, unsent, waiting,
};

/// The type of a number that the database counts. There may be a primary key already.
pub(super) const COUNTER: &str = "bigint NOT NULL AUTO_INCREMENT UNIQUE";

/// What the table of row numbers has room for.
const ROW_KEY_BYTES: u32 = 1_020;

/// MariaDB's and MySQL's types and expressions.
pub(super) struct MySql;

const INTEGERS: &[&str] = &["bigint", "int", "mediumint", "smallint", "tinyint"];
const OBJECTS: &[&str] = &["json", "varchar", "tinytext", "text", "mediumtext", "longtext"];
/// Without `char` and `binary`: they lose or add bytes at the end.
const BODIES: &[&str] = &[
    "json",
    "varchar",
    "tinytext",
    "text",
    "mediumtext",
    "longtext",
    "varbinary",
    "tinyblob",
    "blob",
    "mediumblob",
    "longblob",
];
const BYTES: &[&str] = &["binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob"];
const TEXTS: &[&str] = &[
    "char",
    "varchar",
    "tinytext",
    "text",
    "mediumtext",
    "longtext",
    "enum",
    "set",
];
const ERRORS: &[&str] = &["char", "varchar", "tinytext", "text", "mediumtext", "longtext"];
/// `datetime` has no time zone: UTC is meant, which the connections are set to.
const TIMES: &[&str] = &["timestamp", "datetime"];
const SENT: &[&str] = &["timestamp", "datetime", "tinyint", "bit"];

impl Types for MySql {
    fn allowed(&self, need: Need) -> &'static [&'static str] {
        match need {
            Need::Text => &[],
            Need::Object => OBJECTS,
            Need::Body => BODIES,
            Need::Time => TIMES,
            Need::Count => INTEGERS,
            Need::Sent => SENT,
            Need::Error => ERRORS,
        }
    }

    fn is_integer(&self, column: &Column) -> bool {
        INTEGERS.contains(&column.kind.as_str())
    }

    fn is_flag(&self, column: &Column) -> bool {
        ["tinyint", "bit"].contains(&column.kind.as_str())
    }

    fn time(&self) -> &'static str {
        "timestamp(6) NULL DEFAULT NULL"
    }

    fn counter(&self) -> Option<&'static str> {
        Some(COUNTER)
    }

    /// In two steps: MySQL with a binary log adds no column with random values for the rows that are there (error 1674).
    fn add_message_id(&self, table: &str) -> Option<String> {
        Some(format!(
            "ALTER TABLE {table} ADD COLUMN message_id char(36); ALTER TABLE {table} ALTER COLUMN message_id SET DEFAULT (uuid())"
        ))
    }

    /// They are kept as UTF-8, of up to four bytes a character.
    fn longest_key(&self, key: &Column) -> Option<u32> {
        let is_text = TEXTS.contains(&key.kind.as_str());
        let width = match &key.collation {
            Some(collation) if is_text && !collation.starts_with("ascii") => 4,
            _ => 1,
        };
        let too_long = key.length.is_some_and(|length| length > ROW_KEY_BYTES / width);
        too_long.then_some(ROW_KEY_BYTES / width)
    }

    fn table(&self, table: &TableName) -> String {
        backquoted(table)
    }

    fn unique_index(&self, table: &str, column: &Column) -> String {
        format!("ALTER TABLE {table} ADD UNIQUE INDEX ({})", in_backquotes(&column.name))
    }

    fn alter_nullable(&self, table: &str, column: &Column, nullable: bool) -> Option<String> {
        let null = if nullable { "NULL DEFAULT NULL" } else { "NOT NULL" };
        let (name, declared) = (in_backquotes(&column.name), &column.declared);
        Some(format!("ALTER TABLE {table} MODIFY {name} {declared} {null}"))
    }

    fn shorten(&self, table: &str, column: &Column, most: u32) -> String {
        let (name, kind) = (in_backquotes(&column.name), column.kind.as_str());
        let kind = if BYTES.contains(&kind) { "varbinary" } else { "varchar" };
        let collation = column.collation.iter().map(|name| format!(" COLLATE {name}"));
        let collation: String = collation.collect();
        format!("ALTER TABLE {table} MODIFY {name} {kind}({most}){collation} NOT NULL")
    }
}

impl Dialect for MySql {
    fn text(&self, column: &Column, sql: &str) -> String {
        match column.kind.as_str() {
            kind if TEXTS.contains(&kind) => format!("convert({sql} USING utf8mb4)"),
            kind if BYTES.contains(&kind) => format!("lower(hex({sql}))"),
            // By itself it would be its bytes.
            "bit" => format!("CAST({sql} + 0 AS CHAR CHARACTER SET utf8mb4)"),
            _ => format!("CAST({sql} AS CHAR CHARACTER SET utf8mb4)"),
        }
    }

    fn message_id(&self, column: &Column, sql: &str) -> String {
        match BYTES.contains(&column.kind.as_str()) {
            // Sixteen bytes are a UUID.
            true => format!("CASE octet_length({sql}) WHEN 16 THEN hex({sql}) ELSE {sql} END"),
            false => self.text(column, sql),
        }
    }

    fn concat(&self, parts: &[String]) -> String {
        format!("concat({})", parts.join(", "))
    }

    fn null(&self, need: Need) -> &'static str {
        match need {
            Need::Time | Need::Sent => "CAST(NULL AS DATETIME(6))",
            Need::Count => "0",
            Need::Text | Need::Object | Need::Body | Need::Error => "CAST(NULL AS CHAR CHARACTER SET utf8mb4)",
        }
    }

    fn object(&self, entries: &[(String, Option<&Column>, String)]) -> String {
        let entries: Vec<_> = entries
            .iter()
            .map(
                |(name, column, sql)| match column.map(|column| (column, column.kind.as_str())) {
                    None | Some((_, "json" | "decimal" | "float" | "double")) => format!("{name}, {sql}"),
                    Some((_, kind)) if INTEGERS.contains(&kind) => format!("{name}, {sql}"),
                    Some((_, "bit")) => format!("{name}, {sql} + 0"),
                    Some((column, _)) => format!("{name}, {}", self.text(column, sql)),
                },
            )
            .collect();
        format!("json_object({})", entries.join(", "))
    }

    fn never_null(&self, _: &Column, sql: &str) -> String {
        format!("coalesce({sql}, '')")
    }

    fn is_unset(&self, column: &Column, sql: &str) -> String {
        match column.nullable {
            true => format!("({sql} = 0 OR {sql} IS NULL)"),
            false => format!("{sql} = 0"),
        }
    }

    /// In the collation of the column: by any other its index would not be used. What is kept are bytes, of UTF-8: these are
    /// read as such before they become another character set's.
    fn stored_key(&self, key: &Column, sql: &str) -> String {
        match (key.kind.as_str(), &key.collation) {
            ("uuid", _) => format!("CAST(convert({sql} USING utf8mb4) AS UUID)"),
            (kind, _) if BYTES.contains(&kind) => sql.to_owned(),
            (_, Some(collation)) => {
                let charset = collation.split('_').next().unwrap_or("utf8mb4");
                format!("convert(convert({sql} USING utf8mb4) USING {charset}) COLLATE {collation}")
            }
            _ => format!("convert({sql} USING utf8mb4)"),
        }
    }
}

/// A key as the table of row numbers has it: its bytes.
fn to_row_key(key: &Column, sql: &str) -> String {
    match BYTES.contains(&key.kind.as_str()) {
        true => sql.to_owned(),
        false => format!("CAST({} AS BINARY)", MySql.text(key, sql)),
    }
}

/// What the statements read from. With an `index` that begins with what is marked, unsent rows are read through it.
pub(super) fn source(table: &TableName, layout: &Layout, index: Option<&str>) -> Source {
    let target = Target::new(table, layout, &MySql);
    let Target {
        key,
        outbox,
        failures,
        key_there,
        ..
    } = &target;
    let list = columns(layout, &MySql);
    let refusals = |id: &str| match layout.bookkeeping {
        Some(_) => String::new(),
        None => format!(" LEFT JOIN {failures} AS b ON b.outbox = {outbox} AND b.id = {id}"),
    };
    let force = index
        .map(|index| format!(" FORCE INDEX ({})", quoted(index)))
        .unwrap_or_default();
    let from = |force: &str| match &target.positions {
        Some(positions) => format!(
            "FROM {positions} AS p STRAIGHT_JOIN {table} AS a ON a.{key} = {key_there}{} WHERE p.outbox = {outbox}",
            refusals("p.position")
        ),
        None => format!("FROM {table} AS a{force}{}", refusals(&format!("a.{key}"))),
    };
    let given_up = format!("WHERE b.outbox = {outbox} AND b.dead_at IS NOT NULL");
    let dead = match (&layout.bookkeeping, &target.positions) {
        (Some(_), _) => from(&force),
        (None, None) => format!("FROM {failures} AS b STRAIGHT_JOIN {table} AS a ON a.{key} = b.id {given_up}"),
        (None, Some(positions)) => format!(
            "FROM {failures} AS b STRAIGHT_JOIN {positions} AS p ON p.outbox = b.outbox AND p.position = b.id
               STRAIGHT_JOIN {table} AS a ON a.{key} = {key_there} {given_up}"
        ),
    };
    Source {
        reads: format!("(SELECT {list} {}) AS o", from(&force)),
        by_id: format!("(SELECT {list} {}) AS o", from("")),
        dead: format!("(SELECT {list} {dead}) AS o"),
        unsent: unsent(layout, &MySql, |_| "o.sent_at".to_owned()),
        waiting: target.positions.as_ref().map(|_| waiting(table, layout, &MySql)),
        message_id: MESSAGE_ID.to_owned(),
        header_columns: (!layout.headers.is_empty()).then(|| HEADER_COLUMNS.to_owned()),
        target,
    }
}

/// Numbers rows that have no number yet, up to `?`: by their time of creation if they have one, then by their key; and, in
/// the second statement, as they come.
pub(super) fn number(table: &TableName, layout: &Layout) -> Numbering {
    let (outbox, positions) = (literal(table.name()), positions_table(table));
    let key = format!("a.{}", layout.key.quoted());
    let row_key = to_row_key(&layout.key, &key);
    let found = numberless(table, layout, &MySql, (&row_key, &key));
    let insert = format!("INSERT IGNORE INTO {positions} (outbox, row_key)");
    let number = format!("{insert} SELECT {outbox}, {row_key} {}", found.rows);
    Numbering {
        // Beside all outboxes, none of which has an empty name.
        lock: format!("SELECT position FROM {positions} WHERE outbox = '' AND row_key = {outbox} FOR UPDATE NOWAIT")
            .into(),
        see_lock: format!("SELECT position FROM {positions} WHERE outbox = '' AND row_key = {outbox}").into(),
        // By a number that is none of the rows'.
        make_lock: format!(
            "INSERT IGNORE INTO {positions} (outbox, position, row_key) VALUES ('', -1 - CAST(crc32({outbox}) AS SIGNED), {outbox})"
        )
        .into(),
        in_order: format!("{number} {} LIMIT ?", found.order).into(),
        as_they_come: format!("{number} LIMIT ?").into(),
    }
}
