//! A table that `migrate` did not make, as SQLite is to read it.

use super::statements::Numbering;
use crate::config::TableName;
use crate::store::columns::Column;
use crate::store::layout::{Layout, Need, Types};
use crate::store::migrate::{literal, quoted};
use crate::store::source::{
    Dialect, HEADER_COLUMNS, MESSAGE_ID, Source, Target, columns, numberless, positions_table, unsent, waiting,
};

/// SQLite's types and expressions. Declared types hardly bind it: values are understood as they come.
pub(super) struct Sqlite {
    /// Sent rows are deleted, and the id of the highest one may then be given again: a late mark would take a row that was
    /// never sent.
    pub(super) ids_are_given_again: bool,
}

impl Types for Sqlite {
    fn allowed(&self, _: Need) -> &'static [&'static str] {
        &[]
    }

    /// By SQLite's own rule for an integer affinity.
    fn is_integer(&self, column: &Column) -> bool {
        column.kind.contains("INT") && !self.ids_are_given_again
    }

    fn alter_nullable(&self, _: &str, _: &Column, _: bool) -> Option<String> {
        None
    }

    fn unique_index(&self, table: &str, column: &Column) -> String {
        let name = quoted(&format!("{}_{}", table.trim_matches('"'), column.name));
        format!("CREATE UNIQUE INDEX {name} ON {table} ({})", column.quoted())
    }

    fn is_given_again(&self, key: &Column) -> bool {
        key.kind.contains("INT") && self.ids_are_given_again
    }

    fn is_flag(&self, column: &Column) -> bool {
        // A number that may be null, and is so unless somebody says otherwise, is a time.
        column.kind.contains("BOOL") || (column.kind.contains("INT") && (!column.nullable || column.preset))
    }

    fn time(&self) -> &'static str {
        "TEXT"
    }

    fn counter(&self) -> Option<&'static str> {
        None
    }
}

impl Dialect for Sqlite {
    fn text(&self, _: &Column, sql: &str) -> String {
        format!("CAST({sql} AS TEXT)")
    }

    fn message_id(&self, _: &Column, sql: &str) -> String {
        format!("CASE typeof({sql}) WHEN 'blob' THEN {sql} ELSE CAST({sql} AS TEXT) END")
    }

    fn concat(&self, parts: &[String]) -> String {
        format!("({})", parts.join(" || "))
    }

    fn null(&self, need: Need) -> &'static str {
        match need {
            Need::Count => "0",
            _ => "NULL",
        }
    }

    /// A blob cannot be in JSON, and one such row must not stop its page.
    fn object(&self, entries: &[(String, Option<&Column>, String)]) -> String {
        let entries: Vec<_> = entries
            .iter()
            .map(|(name, _, sql)| {
                format!("{name}, CASE typeof({sql}) WHEN 'blob' THEN lower(hex({sql})) ELSE {sql} END")
            })
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

    /// A number may be a flag all the same: 0 is no time either.
    fn is_never(&self, column: &Column, sql: &str) -> String {
        match column.kind.contains("INT") {
            true => self.is_unset(column, sql),
            false => format!("{sql} IS NULL"),
        }
    }

    fn stored_key(&self, _: &Column, sql: &str) -> String {
        sql.to_owned()
    }
}

/// What the statements read from.
pub(super) fn source(table: &TableName, layout: &Layout, dialect: &Sqlite) -> Source {
    let target = Target::new(table, layout, dialect);
    let Target {
        key,
        outbox,
        failures,
        key_there,
        ..
    } = &target;
    let list = columns(layout, dialect);
    let refusals = |id: &str| match layout.bookkeeping {
        Some(_) => String::new(),
        None => format!(" LEFT JOIN {failures} AS b ON b.outbox = {outbox} AND b.id = {id}"),
    };
    let from = match &target.positions {
        // CROSS: in this order. The plus keeps it from the index of keys, and with that from sorting at every read.
        Some(positions) => format!(
            "FROM {positions} AS p CROSS JOIN {table} AS a{} WHERE a.{key} = {key_there} AND +p.outbox = {outbox}",
            refusals("p.position")
        ),
        None => format!("FROM {table} AS a{}", refusals(&format!("a.{key}"))),
    };
    let given_up = format!("b.outbox = {outbox} AND b.dead_at IS NOT NULL");
    let dead = match (&layout.bookkeeping, &target.positions) {
        (Some(_), _) => from.clone(),
        (None, None) => format!("FROM {failures} AS b CROSS JOIN {table} AS a WHERE a.{key} = b.id AND {given_up}"),
        (None, Some(positions)) => format!(
            "FROM {failures} AS b CROSS JOIN {positions} AS p CROSS JOIN {table} AS a
               WHERE p.outbox = b.outbox AND p.position = b.id AND a.{key} = {key_there} AND {given_up}"
        ),
    };
    let reads = format!("(SELECT {list} {from}) AS o");
    Source {
        by_id: reads.clone(),
        reads,
        dead: format!("(SELECT {list} {dead}) AS o"),
        unsent: unsent(layout, dialect, |_| "o.sent_at".to_owned()),
        waiting: target.positions.as_ref().map(|_| waiting(table, layout, dialect)),
        message_id: MESSAGE_ID.to_owned(),
        header_columns: (!layout.headers.is_empty()).then(|| HEADER_COLUMNS.to_owned()),
        target,
    }
}

/// Rows are found without a lock, and numbered by what finds them again at once: their row ids, or the keys of a table
/// that has none. By their time of creation if they have one, then in the order of their insertion, which the row id tells.
pub(super) fn number(table: &TableName, layout: &Layout, dialect: &Sqlite, has_rowid: bool) -> Numbering {
    let (outbox, positions) = (literal(table.name()), positions_table(table));
    let key = layout.key.quoted();
    let handle = if has_rowid { "rowid" } else { &key };
    // The plus: a column's type must not keep the comparison from the index, whose column has none.
    let found = numberless(table, layout, dialect, (&format!("+a.{key}"), &format!("a.{handle}")));
    let (rows, order) = (&found.rows, &found.order);
    Numbering {
        in_order: format!("SELECT json_group_array(h) FROM (SELECT a.{handle} AS h {rows} {order} LIMIT ?1)").into(),
        as_they_come: format!("SELECT json_group_array(h) FROM (SELECT a.{handle} AS h {rows} LIMIT ?1)").into(),
        insert: format!(
            "INSERT OR IGNORE INTO {positions} (outbox, row_key)
             SELECT {outbox}, a.{key} FROM json_each(?1) AS w CROSS JOIN {table} AS a WHERE a.{handle} = w.value ORDER BY w.id"
        )
        .into(),
    }
}
