//! What the table looks like, and what may be done with it.

use sqlx::Row as _;
use sqlx::mysql::MySqlRow;

use super::rows;
use super::source::COUNTER;
use super::statements::LAST_ID;
use crate::config::{OnSent, TableName};
use crate::store::StoreError;
use crate::store::columns::{Column, WRITTEN, check, no_table};
use crate::store::layout::{Header, names_in};
use crate::store::migrate::quoted;
use crate::store::source::{Names, Target};
use crate::store::values::{decode, unreadable};

/// One row for each column that the user may do anything with; none without a table. The database, then the table.
pub(super) const COLUMNS_QUERY: &str = "\
SELECT c.column_name, c.data_type, t.table_type, coalesce(t.engine, ''), version(), current_user(), c.is_nullable,
       c.extra LIKE '%auto_increment%', c.collation_name, CAST(c.character_maximum_length AS SIGNED), c.column_type
FROM information_schema.tables AS t
JOIN information_schema.columns AS c ON c.table_schema = t.table_schema AND c.table_name = t.table_name
WHERE t.table_schema = ? AND t.table_name = ?";

/// The names of indexes in which unsent rows are next to each other, in `id` order.
pub(super) const INDEX_QUERY: &str = "\
SELECT s.index_name FROM information_schema.statistics AS s
WHERE s.table_schema = ? AND s.table_name = ?
GROUP BY s.index_name
HAVING sum(s.seq_in_index = 1 AND s.column_name = 'sent_at') = 1
   AND sum(s.seq_in_index = 2 AND s.column_name = 'dead_at') = 1 AND count(*) = 2";

/// The columns that have a unique index to themselves.
pub(super) const UNIQUE_QUERY: &str = "\
SELECT max(s.column_name) FROM information_schema.statistics AS s
WHERE s.table_schema = ? AND s.table_name = ? AND s.non_unique = 0
GROUP BY s.index_name HAVING count(*) = 1";

/// The columns of all indexes, each behind its index's name.
pub(super) const INDEXES: &str = "\
SELECT s.index_name, s.column_name FROM information_schema.statistics AS s
WHERE s.table_schema = ? AND s.table_name = ? ORDER BY s.index_name, s.seq_in_index";

/// Of these columns of indexes, the name of an index in which unsent rows are next to each other in `id` order: by what is
/// marked, then by when it was given up, where the table has that, then by the key, which the primary key is a part of
/// every index for. Rows that are unsent by two values are in two places, so that no index is of use.
pub(super) fn index_of_unsent(columns: &[(String, String)], target: &Target) -> Option<String> {
    let Names { key, sent, dead, .. } = &target.names;
    let sent = sent.as_ref().filter(|_| target.unsent_is_one_value())?;
    let of = |index: &str| -> Vec<&String> {
        let of_index = columns.iter().filter(|(name, _)| name == index);
        of_index.map(|(_, column)| column).collect()
    };
    let is_primary = of("PRIMARY") == [key];
    let good = |index: &str| match of(index).split_first() {
        Some((first, rest)) if *first == sent => {
            let rest = rest.iter().skip_while(|column| Some(**column) == dead.as_ref());
            rest.clone().next().map_or(is_primary, |column| *column == key)
        }
        _ => false,
    };
    columns
        .iter()
        .map(|(index, _)| index)
        .find(|index| good(index))
        .cloned()
}

const INTEGERS: &[&str] = &["bigint", "int", "mediumint", "smallint", "tinyint"];
const TEXTS: &[&str] = &["varchar", "char", "tinytext", "text", "mediumtext", "longtext"];
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
/// `datetime` has no time zone: UTC is meant, which the connections are set to.
const TIMES: &[&str] = &["timestamp", "datetime"];

/// The columns the relay reads, with the types they may have.
const COLUMNS: &[(&str, &[&str])] = &[
    ("id", &["bigint", "int"]),
    ("message_id", &["char", "varchar", "binary", "varbinary", "uuid"]),
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

/// The columns in the answer to [`COLUMNS_QUERY`], if it is about a table that will do. `mapped`: it is not one that `migrate` makes.
pub(super) fn columns(rows: &[MySqlRow], table: &TableName, mapped: bool) -> Result<Vec<Column>, StoreError> {
    let Some(first) = rows.first() else {
        let text = format!("table {table} does not exist, or the user may do nothing with it");
        return Err(no_table(&text, mapped));
    };
    let text = |index| rows::word(first, index).map_err(|error| unreadable(&error));
    check_version(&text(4)?)?;
    if text(2)?.contains("VIEW") {
        return Err(StoreError::Failed(format!(
            "{table} is a view: name the table itself in RELAY_OUTBOX_TABLE"
        )));
    }
    let engine = text(3)?;
    if !engine.eq_ignore_ascii_case("InnoDB") {
        return Err(StoreError::Failed(format!(
            "{table} is stored by {engine}, without transactions: ALTER TABLE {} ENGINE=InnoDB",
            backquoted(table)
        )));
    }
    let length = |row: &MySqlRow| {
        let length = row
            .try_get::<Option<i64>, _>(9)?
            .and_then(|length| u32::try_from(length).ok());
        // Of this type alone they are bytes that a text can be too long for.
        let width = if rows::word(row, 1)? == "tinytext" { 4 } else { 1 };
        Ok::<_, sqlx::Error>(length.map(|length| length / width))
    };
    decode(rows, |row| {
        Ok(Column {
            name: rows::word(row, 0)?,
            kind: rows::word(row, 1)?.to_ascii_lowercase(),
            declared: declared(row)?,
            nullable: rows::word(row, 6)? == "YES",
            unique: false,
            counted: row.try_get::<i64, _>(7)? != 0,
            preset: false,
            length: length(row)?,
            collation: rows::text(row, 8)?,
        })
    })
}

fn declared(row: &MySqlRow) -> Result<String, sqlx::Error> {
    let kind = rows::word(row, 10)?;
    Ok(match rows::text(row, 8)? {
        Some(collation) => format!("{kind} COLLATE {collation}"),
        None => kind,
    })
}

/// The user, as the server knows him.
pub(super) fn user(rows: &[MySqlRow]) -> Result<String, StoreError> {
    let user = rows.first().map_or(Ok(String::new()), |first| rows::word(first, 5));
    user.map_err(|error| unreadable(&error))
}

/// Of the table that `migrate` makes, every column must be there.
pub(super) fn check_columns(columns: &[Column], table: &TableName) -> Result<(), StoreError> {
    let lower: Vec<Column> = columns
        .iter()
        .map(|column| Column {
            name: column.name.to_ascii_lowercase(),
            ..column.clone()
        })
        .collect();
    check(lower.iter(), COLUMNS, table, (&backquoted(table), COUNTER))
}

/// What is read and written of it.
pub(super) fn standard_columns(headers: &[Header]) -> (Vec<&str>, Vec<&str>) {
    let read = COLUMNS.iter().map(|(name, _)| *name).chain(names_in(headers));
    (read.collect(), WRITTEN.to_vec())
}

/// Which of the two it is.
pub(super) fn product(version: &str) -> &'static str {
    if version.contains("MariaDB") {
        "MariaDB"
    } else {
        "MySQL"
    }
}

/// `10.11.6-MariaDB-…`, `8.4.2`.
fn check_version(version: &str) -> Result<(), StoreError> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|number| number.parse().ok()).unwrap_or(0);
    let (found, least): ((u32, u32), _) = (
        (next(), next()),
        if product(version) == "MariaDB" { (10, 6) } else { (8, 0) },
    );
    if found >= least {
        return Ok(());
    }
    Err(StoreError::Failed(format!(
        "the server is {version}: MariaDB 10.6 or MySQL 8.0 is the oldest that will do"
    )))
}

/// Finds a row whose id is higher than the relay can count; `None`: the column has no such values.
pub(super) fn beyond_reach(key: &Column, table: &TableName) -> Option<String> {
    let unsigned = key.kind == "bigint" && key.declared.to_ascii_lowercase().contains("unsigned");
    unsigned.then(|| {
        format!(
            "SELECT 1 FROM {table} AS o WHERE o.{} > {LAST_ID} LIMIT 1",
            key.quoted()
        )
    })
}

/// For a person.
pub(super) fn too_high(key: &Column, table: &TableName) -> String {
    format!(
        "{table} has ids ({}) above {LAST_ID}, which is as far as the relay counts: these rows are not sent; give them lower ids, \
         or name another column of whole numbers in RELAY_COLUMN_ID",
        key.name
    )
}

/// Statements that change nothing, but fail without a privilege (however it was granted), and on a server that takes no
/// writes.
pub(super) fn touches(table: &TableName, read: &[&str], written: &[&str]) -> Vec<(&'static str, String)> {
    let reads: Vec<_> = read.iter().map(|name| format!("o.{}", quoted(name))).collect();
    let writes: Vec<_> = written
        .iter()
        .map(|name| format!("o.{0} = o.{0}", quoted(name)))
        .collect();
    let mut touches = vec![
        (
            "SELECT",
            format!("SELECT {} FROM {table} AS o WHERE 1 = 0", reads.join(", ")),
        ),
        ("DELETE", format!("DELETE FROM {table} WHERE 1 = 0")),
    ];
    if !writes.is_empty() {
        let update = format!("UPDATE {table} AS o SET {} WHERE 1 = 0", writes.join(", "));
        touches.insert(1, ("UPDATE", update));
    }
    touches
}

pub(super) fn check_privileges(
    lacking: &[&str],
    user: &str,
    table: &TableName,
    on_sent: OnSent,
) -> Result<(), StoreError> {
    // The purge of rows that are marked deletes, too, but the relay can do without it.
    let (wanted, needless) = match on_sent {
        OnSent::Mark => ("SELECT, UPDATE, DELETE (for the purge)", "DELETE"),
        OnSent::Delete => ("SELECT, UPDATE, DELETE", ""),
    };
    let lacking: Vec<&str> = lacking
        .iter()
        .copied()
        .filter(|privilege| *privilege != needless)
        .collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let lacking = lacking.join(", ");
    let (name, host) = user.rsplit_once('@').unwrap_or((user, "%"));
    Err(StoreError::Denied(format!(
        "user {user} lacks {lacking} on {table}; it needs {wanted}: GRANT {lacking} ON {} TO '{name}'@'{host}'",
        backquoted(table)
    )))
}

/// For a person: quoted as the server understands it in its default mode.
pub(super) fn backquoted(table: &TableName) -> String {
    match table.schema() {
        Some(schema) => format!("{}.{}", in_backquotes(schema), in_backquotes(table.name())),
        None => in_backquotes(table.name()),
    }
}

/// The same for any name.
pub(super) fn in_backquotes(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_servers_are_refused() {
        for good in ["10.6.0-MariaDB", "11.4.2-MariaDB-log", "8.0.36", "9.1.0-commercial"] {
            check_version(good).expect(good);
        }
        for old in ["10.5.21-MariaDB", "5.7.44-log", "nonsense"] {
            check_version(old).expect_err(old);
        }
    }
}
