//! A table that `migrate` did not make, as PostgreSQL is to read it.
//!
//! What is joined to a row is looked up for that row (`LATERAL` and `OFFSET 0`, which the planner does not take apart):
//! left to itself it joins by a hash of the whole table as soon as its statistics are old, at every poll.

use super::statements::{DURABLE, Numbering, Size};
use crate::config::{Field, TableName};
use crate::store::columns::Column;
use crate::store::layout::{Layout, Need, Types, Value};
use crate::store::migrate::{literal, quoted};
use crate::store::pace::NUMBERED_AT_ONCE;
use crate::store::source::{
    Dialect, HEADER_COLUMNS, MESSAGE_ID, Source, Target, columns, numberless, positions_table, unsent, waiting,
};

/// The type of a number that the database counts.
pub(super) const COUNTER: &str = "bigint GENERATED ALWAYS AS IDENTITY UNIQUE";

/// PostgreSQL's types and expressions.
pub(super) struct Postgres;

const TEXTS: &[&str] = &["json", "jsonb", "text", "character varying"];
const BODIES: &[&str] = &["json", "jsonb", "text", "character varying", "bytea"];
const INTEGERS: &[&str] = &["bigint", "integer", "smallint"];
/// Without a time zone, UTC is meant: the driver's connections are set to it.
const TIMES: &[&str] = &["timestamp with time zone", "timestamp without time zone"];
const SENT: &[&str] = &["timestamp with time zone", "timestamp without time zone", "boolean"];

impl Types for Postgres {
    fn allowed(&self, need: Need) -> &'static [&'static str] {
        match need {
            Need::Text => &[],
            Need::Object => TEXTS,
            Need::Body => BODIES,
            Need::Time => TIMES,
            Need::Count => INTEGERS,
            Need::Sent => SENT,
            Need::Error => &["text", "character varying"],
        }
    }

    fn is_integer(&self, column: &Column) -> bool {
        INTEGERS.contains(&column.kind.as_str())
    }

    fn is_flag(&self, column: &Column) -> bool {
        column.kind == "boolean"
    }

    fn time(&self) -> &'static str {
        "timestamptz"
    }

    fn counter(&self) -> Option<&'static str> {
        Some(COUNTER)
    }

    fn add_message_id(&self, table: &str) -> Option<String> {
        Some(format!(
            "ALTER TABLE {table} ADD COLUMN message_id uuid NOT NULL DEFAULT gen_random_uuid()"
        ))
    }

    fn ignores_case(&self) -> bool {
        false
    }

    fn alter_nullable(&self, table: &str, column: &Column, nullable: bool) -> Option<String> {
        let change = if nullable { "DROP" } else { "SET" };
        Some(format!(
            "ALTER TABLE {table} ALTER COLUMN {} {change} NOT NULL",
            column.quoted()
        ))
    }

    fn knows_places(&self) -> bool {
        true
    }
}

impl Dialect for Postgres {
    fn text(&self, column: &Column, sql: &str) -> String {
        match column.kind.as_str() {
            "text" => sql.to_owned(),
            "bytea" => format!("encode({sql}, 'hex')"),
            _ => format!("{sql}::text"),
        }
    }

    fn message_id(&self, column: &Column, sql: &str) -> String {
        match column.kind.as_str() {
            "uuid" => sql.to_owned(),
            _ => self.text(column, sql),
        }
    }

    fn concat(&self, parts: &[String]) -> String {
        format!("({})", parts.join(" || "))
    }

    fn null(&self, need: Need) -> &'static str {
        match need {
            Need::Time | Need::Sent => "NULL::timestamptz",
            Need::Count => "0",
            Need::Text | Need::Object | Need::Body | Need::Error => "NULL::text",
        }
    }

    fn object(&self, entries: &[(String, Option<&Column>, String)]) -> String {
        let entries: Vec<_> = entries
            .iter()
            .map(|(name, column, sql)| match column {
                Some(column) if column.kind == "bytea" => format!("{name}, encode({sql}, 'hex')"),
                _ => format!("{name}, {sql}"),
            })
            .collect();
        format!("json_build_object({})::text", entries.join(", "))
    }

    fn never_null(&self, column: &Column, sql: &str) -> String {
        match column.kind.as_str() {
            "bytea" => format!("coalesce({sql}, ''::bytea)"),
            _ => format!("coalesce({sql}::text, '')"),
        }
    }

    fn stored_key(&self, key: &Column, sql: &str) -> String {
        match key.kind.as_str() {
            "text" | "character varying" if key.unique => sql.to_owned(),
            // `character` alone would be of one character.
            "character" if key.unique => format!("{sql}::bpchar"),
            // With a place before it, if there is one: of a time when nothing kept the keys apart, too.
            kind => {
                let kind = if kind == "character" { "bpchar" } else { kind };
                format!("(CASE WHEN {sql} LIKE '@%' THEN regexp_replace({sql}, '{PLACE}', '') ELSE {sql} END)::{kind}")
            }
        }
    }

    fn is_unset(&self, column: &Column, sql: &str) -> String {
        match column.nullable {
            true => format!("{sql} IS NOT TRUE"),
            // As a partial index has it.
            false => format!("NOT {sql}"),
        }
    }
}

/// What stands before the key of a row that is known by its place: the file of its table (or partition), which is another
/// one once rows were moved, and the place in it.
const PLACE: &str = "^@[0-9]+([(][0-9]+,[0-9]+[)]) ";

/// What the row `a` is known by.
fn row_key(layout: &Layout, key: &str) -> String {
    match layout.by_place {
        true => format!("concat('@', pg_relation_filenode(a.tableoid), a.ctid::text, ' ', a.{key}::text)"),
        false => format!("a.{key}::text"),
    }
}

/// That `row` of the application's table is the one whose number is `p`.
pub(super) fn is_numbered(target: &Target, row: &str) -> String {
    let Target { key, key_there, .. } = target;
    let by_key = format!("{row}.{key} = {key_there}");
    match target.by_place {
        // The place is where the row is looked up, which needs no index.
        true => format!(
            "{row}.ctid = substring(p.row_key FROM '{PLACE}')::tid
             AND p.row_key LIKE concat('@', pg_relation_filenode({row}.tableoid), '(%') AND {by_key}"
        ),
        false => by_key,
    }
}

/// That a row, named `o`, is one of those whose numbers were in `gone`.
pub(super) fn is_gone(target: &Target) -> String {
    match target.by_place {
        true => format!(
            "o.ctid = ANY(ARRAY(SELECT substring(p.row_key FROM '{PLACE}')::tid FROM gone AS p))
             AND EXISTS (SELECT FROM gone AS p WHERE {})",
            is_numbered(target, "o")
        ),
        false => format!(
            "o.{} = ANY(ARRAY(SELECT {} FROM gone AS p))",
            target.key, target.key_there
        ),
    }
}

/// Numbers from a time when nothing kept keys apart, for a table where something does: those of its rows still are. `None`:
/// there is nothing to be done.
pub(super) fn without_places(target: &Target) -> Option<String> {
    let Target { outbox, by_place, .. } = target;
    let positions = target.positions.as_ref().filter(|_| !by_place)?;
    let key = format!("regexp_replace(p.row_key, '{PLACE}', '')");
    Some(format!(
        "UPDATE {positions} AS p SET row_key = {key} WHERE p.outbox = {outbox} AND p.row_key ~ '{PLACE}'
           AND NOT EXISTS (SELECT FROM {positions} AS x WHERE x.outbox = p.outbox AND x.row_key = {key})"
    ))
}

/// Where the number to read from can stand in a source: within a statement it is a comment until then.
const AFTER: &str = "/* after */";

/// The source of a page that begins above `$1`.
pub(super) fn above(source: &Source) -> String {
    source.reads.replace(AFTER, " AND x.position > $1")
}

/// How the size of a body is found.
pub(super) fn size(layout: &Layout) -> Size {
    match layout.value(Field::Payload) {
        Value::Column(column) if column.kind.starts_with("json") => Size::OfText,
        _ => Size::OfColumn,
    }
}

/// What the statements read from.
pub(super) fn source(table: &TableName, layout: &Layout) -> Source {
    let target = Target::new(table, layout, &Postgres);
    let (list, outbox, key) = (columns(layout, &Postgres), &target.outbox, &target.key);
    let id = if layout.numbered {
        "p.position".to_owned()
    } else {
        format!("a.{key}")
    };
    let failures = &target.failures;
    let refusals = match layout.bookkeeping {
        Some(_) => String::new(),
        None => format!(
            " LEFT JOIN LATERAL (SELECT x.attempts, x.next_attempt_at, x.last_error, x.dead_at FROM {failures} AS x
               WHERE x.outbox = {outbox} AND x.id = {id} OFFSET 0) AS b ON true"
        ),
    };
    let mut read: Vec<_> = layout
        .read()
        .into_iter()
        .map(|name| format!("r.{}", quoted(name)))
        .collect();
    read.sort_unstable();
    read.dedup();
    let read = read.join(", ");
    let row = |condition: &str| {
        format!("CROSS JOIN LATERAL (SELECT {read} FROM {table} AS r WHERE {condition} OFFSET 0) AS a")
    };
    let by_key = is_numbered(&target, "r");
    let from = match &target.positions {
        Some(positions) => format!(
            "FROM {positions} AS p {}{refusals} WHERE p.outbox = {outbox}",
            row(&by_key)
        ),
        None => format!("FROM {table} AS a{refusals}"),
    };
    // In order before anything is joined: as long as nothing is known of the numbers, the planner takes them for few, and
    // would join all of them before it sorts (50,000: 330 ms a page, where this takes 20).
    let in_order = match &target.positions {
        Some(positions) => format!(
            "FROM (SELECT x.position, x.row_key FROM {positions} AS x WHERE x.outbox = {outbox}{AFTER}
                   ORDER BY x.position OFFSET 0) AS p {}{refusals}",
            row(&by_key)
        ),
        None => from.clone(),
    };
    let dead = match (&layout.bookkeeping, &target.positions) {
        (Some(_), _) => from.clone(),
        (None, None) => format!(
            "FROM {failures} AS b {} WHERE b.outbox = {outbox} AND b.dead_at IS NOT NULL",
            row(&format!("r.{key} = b.id"))
        ),
        (None, Some(positions)) => format!(
            "FROM {failures} AS b CROSS JOIN LATERAL (SELECT x.* FROM {positions} AS x
               WHERE x.outbox = b.outbox AND x.position = b.id OFFSET 0) AS p {} WHERE b.outbox = {outbox} AND b.dead_at IS NOT NULL",
            row(&by_key)
        ),
    };
    let by_id = format!("(SELECT {list} {from}) AS o");
    let reads = format!("(SELECT {list} {in_order}) AS o");
    // The other name of the same thing: the number that the refusal has.
    let dead_list = match &layout.bookkeeping {
        Some(_) => list,
        None => list.replacen(&format!("{id} AS id"), "b.id AS id", 1),
    };
    Source {
        by_id,
        reads,
        dead: format!("(SELECT {dead_list} {dead}) AS o"),
        unsent: unsent(layout, &Postgres, |_| "o.sent_at".to_owned()),
        waiting: target.positions.as_ref().map(|_| waiting(table, layout, &Postgres)),
        message_id: MESSAGE_ID.to_owned(),
        header_columns: (!layout.headers.is_empty()).then(|| HEADER_COLUMNS.to_owned()),
        target,
    }
}

/// Of the advisory lock of who numbers, above the table's object id: "onum" in ASCII.
const LOCK_SPACE: i64 = 0x6f6e_756d << 32;

/// Numbers rows that have no number yet, up to `$1`: in the order in which they were inserted, as far as that can be known;
/// and, in the second statement, as they come. One relay at a time: says whether it is this one, and how many there were.
pub(super) fn number(table: &TableName, layout: &Layout) -> Numbering {
    let target = Target::new(table, layout, &Postgres);
    let outbox = &target.outbox;
    let row_key = row_key(layout, &target.key);
    let order = "age(a.xmin) DESC, a.cmin::text::bigint, a.ctid";
    let found = numberless(table, layout, &Postgres, (&row_key, order));
    let (rows, positions, name) = (&found.rows, positions_table(table), literal(&table.to_string()));
    let statement = |limit: &str| {
        format!(
            "WITH mine AS MATERIALIZED (
             SELECT pg_try_advisory_xact_lock({LOCK_SPACE} | to_regclass({name})::oid::bigint) AND {DURABLE} AS mine),
         numbered AS (
             INSERT INTO {positions} (outbox, row_key)
             SELECT {outbox}, {row_key} {rows} AND (SELECT mine FROM mine) {limit}
             ON CONFLICT DO NOTHING RETURNING 1)
         SELECT (SELECT mine FROM mine), (SELECT count(*) FROM numbered)"
        )
        .into()
    };
    Numbering {
        in_order: statement(&format!("{} LIMIT $1", found.order)),
        // The planner knows this number, and does not prepare to read everything.
        as_they_come: statement(&format!("LIMIT {NUMBERED_AT_ONCE}")),
    }
}
