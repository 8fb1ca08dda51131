//! What the statements read from and write to: the table that `migrate` makes, or another one behind a subquery that has
//! the same columns, so that every statement is written once.
//!
//! The subquery is a plain selection, which every database merges into the statement around it: the indexes of the
//! application's table are used as if the statement were written for it.

use super::columns::Column;
use super::layout::{Header, Layout, Need, Part, Value};
use super::migrate::{in_schema, literal};
pub(super) use super::target::{Names, Target};
use crate::config::{Field, TableName};

/// Refusals of rows whose table has no columns for them.
const FAILURES: &str = "outbox_relay_failures";
/// Numbers of rows whose table has none.
const POSITIONS: &str = "outbox_relay_positions";

/// The message id, where it needs nothing done to it.
pub(super) const MESSAGE_ID: &str = "o.message_id";

/// The headers that are made of columns, in a source of an existing table.
pub(super) const HEADER_COLUMNS: &str = "o.header_columns";

/// What differs between databases in an expression.
pub(super) trait Dialect {
    /// Column `sql` as text.
    fn text(&self, column: &Column, sql: &str) -> String;
    /// Column `sql` as a message id: text, or the bytes of a UUID.
    fn message_id(&self, column: &Column, sql: &str) -> String;
    /// Texts, none of them null, in a row.
    fn concat(&self, parts: &[String]) -> String;
    /// Null, of the type that is needed.
    fn null(&self, need: Need) -> &'static str;
    /// A JSON object as text, of names (as SQL texts) and columns, or texts where there is no column.
    fn object(&self, entries: &[(String, Option<&Column>, String)]) -> String;
    /// The body, with an empty one in the place of null.
    fn never_null(&self, column: &Column, sql: &str) -> String;
    /// That the flag `sql` is not set.
    fn is_unset(&self, column: &Column, sql: &str) -> String;
    /// That there is no time in `sql`.
    fn is_never(&self, _column: &Column, sql: &str) -> String {
        format!("{sql} IS NULL")
    }
    /// From what the table of row numbers has of a key to the key.
    fn stored_key(&self, key: &Column, sql: &str) -> String;
    /// A text in SQL.
    fn literal(&self, text: &str) -> String {
        literal(text)
    }
}

/// The relay's own table of refusals.
pub(super) fn failures_table(table: &TableName) -> String {
    in_schema(table, FAILURES)
}

/// The relay's own table of row numbers.
pub(super) fn positions_table(table: &TableName) -> String {
    in_schema(table, POSITIONS)
}

/// What statements are made of; every table in it is named `o`.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// Where unsent rows are read from in `id` order.
    pub(super) reads: String,
    /// Where rows are looked up by their ids.
    pub(super) by_id: String,
    /// Where dead letters are read from.
    pub(super) dead: String,
    /// That a row is not sent, where that can be told; empty: every row that is there is unsent.
    pub(super) unsent: String,
    /// The unsent rows themselves, where many of them are not in `reads` yet: with the times they have in their table, exchange and
    /// routing key. Those given up are among them.
    pub(super) waiting: Option<String>,
    /// The message id of `o`.
    pub(super) message_id: String,
    /// Headers that are made of columns of `o`, as a JSON object; `None`: there are none.
    pub(super) header_columns: Option<String>,
    /// How it is written to.
    pub(super) target: Target,
}

impl Source {
    /// The table that `migrate` makes, or one like it. `indexed` is the table with the index of unsent rows.
    pub(super) fn standard(table: &TableName, indexed: &str) -> Self {
        let every = format!("{table} AS o");
        Self {
            reads: indexed.to_owned(),
            by_id: every.clone(),
            dead: every,
            unsent: "o.sent_at IS NULL".to_owned(),
            waiting: None,
            message_id: MESSAGE_ID.to_owned(),
            header_columns: None,
            target: Target {
                table: table.to_string(),
                key: "id".to_owned(),
                sent: Some("sent_at".to_owned()),
                sent_is_flag: false,
                sent_is_number: false,
                unsent: "o.sent_at IS NULL".to_owned(),
                unsent_here: "sent_at IS NULL".to_owned(),
                error_chars: None,
                names: Names {
                    key: "id".to_owned(),
                    sent: Some("sent_at".to_owned()),
                    sent_type: String::new(),
                    dead: Some("dead_at".to_owned()),
                },
                bookkeeping: Some(["attempts", "next_attempt_at", "last_error", "dead_at"].map(str::to_owned)),
                outbox: literal(table.name()),
                failures: failures_table(table),
                positions: None,
                by_place: false,
                key_there: String::new(),
            },
        }
    }

    /// Unsent and not given up.
    pub(super) fn open(&self) -> String {
        match self.unsent.as_str() {
            "" => "o.dead_at IS NULL".to_owned(),
            unsent => format!("{unsent} AND o.dead_at IS NULL"),
        }
    }

    /// Given up.
    pub(super) fn given_up(&self) -> String {
        match self.unsent.as_str() {
            "" => "o.dead_at IS NOT NULL".to_owned(),
            unsent => format!("o.dead_at IS NOT NULL AND {unsent}"),
        }
    }

    /// What stands behind the columns of a page.
    pub(super) fn more_columns(&self) -> String {
        let more = self.header_columns.as_ref();
        more.map(|sql| format!(", {sql} AS header_columns")).unwrap_or_default()
    }

    /// The same, where [`Source::more_columns`] are within.
    pub(super) fn more_names(&self) -> &'static str {
        match self.header_columns {
            Some(_) => ", header_columns",
            None => "",
        }
    }
}

/// What is not sent, of a source or of the table itself: `sql` gives the column.
pub(super) fn unsent(layout: &Layout, dialect: &dyn Dialect, sql: impl Fn(&Column) -> String) -> String {
    match &layout.sent {
        None => String::new(),
        Some(column) if layout.sent_is_flag => dialect.is_unset(column, &sql(column)),
        Some(column) => dialect.is_never(column, &sql(column)),
    }
}

/// The columns of a source: `a` is the application's table, `p` that of the row numbers, `b` that of the refusals.
pub(super) fn columns(layout: &Layout, dialect: &dyn Dialect) -> String {
    let of = |column: &Column| format!("a.{}", column.quoted());
    let id = match layout.numbered {
        true => "p.position".to_owned(),
        false => of(&layout.key),
    };
    let mut list = vec![format!("{id} AS id")];
    for field in Field::ALL {
        let sql = match field {
            Field::Id => continue,
            Field::SentAt => match &layout.sent {
                Some(sent) => of(sent),
                None => dialect.null(Need::Time).to_owned(),
            },
            Field::Attempts | Field::NextAttemptAt | Field::LastError | Field::DeadAt => {
                let place = Field::BOOKKEEPING
                    .iter()
                    .position(|other| *other == field)
                    .unwrap_or_default();
                match &layout.bookkeeping {
                    Some(columns) => of(&columns[place]),
                    None => format!("b.{}", field.name()),
                }
            }
            field => content(field, layout, dialect),
        };
        list.push(format!("{sql} AS {}", field.name()));
    }
    if let Some(object) = header_object(&layout.headers, dialect, "a") {
        list.push(format!("{object} AS header_columns"));
    }
    list.join(", ")
}

/// Headers that are made of columns of `table`, as a JSON object; `None` without any.
pub(super) fn header_object(headers: &[Header], dialect: &dyn Dialect, table: &str) -> Option<String> {
    let of = |column: &Column| format!("{table}.{}", column.quoted());
    let entries: Vec<_> = headers
        .iter()
        .filter_map(|(name, value)| match value {
            Value::Column(column) => Some((dialect.literal(name), Some(column), of(column))),
            // An empty one is none.
            Value::Template(parts) => {
                let text = format!("nullif({}, '')", template(parts, dialect, of));
                Some((dialect.literal(name), None, text))
            }
            Value::Nowhere => None,
        })
        .collect();
    (!entries.is_empty()).then(|| dialect.object(&entries))
}

/// The text that a template makes; nothing where a column is null.
fn template(parts: &[Part], dialect: &dyn Dialect, of: impl Fn(&Column) -> String) -> String {
    let parts: Vec<_> = parts
        .iter()
        .map(|part| match part {
            Part::Text(text) => dialect.literal(text),
            Part::Column(column) => format!("coalesce({}, '')", dialect.text(column, &of(column))),
        })
        .collect();
    dialect.concat(&parts)
}

fn content(field: Field, layout: &Layout, dialect: &dyn Dialect) -> String {
    let of = |column: &Column| format!("a.{}", column.quoted());
    match layout.value(field) {
        Value::Nowhere => dialect.null(Need::of(field)).to_owned(),
        Value::Template(parts) => {
            let text = template(parts, dialect, of);
            // Of these, empty text says as much as null.
            match field {
                Field::Exchange | Field::Type => format!("nullif({text}, '')"),
                _ => text,
            }
        }
        Value::Column(column) => match (field, Need::of(field)) {
            (Field::MessageId, _) => dialect.message_id(column, &of(column)),
            (Field::Payload, _) if layout.null_payload_is_empty && column.nullable => {
                dialect.never_null(column, &of(column))
            }
            (_, Need::Text) => dialect.text(column, &of(column)),
            _ => of(column),
        },
    }
}

/// The unsent rows as the table has them, with what is needed to tell how old they are and where they go.
pub(super) fn waiting(table: &TableName, layout: &Layout, dialect: &dyn Dialect) -> String {
    let of = |column: &Column| format!("a.{}", column.quoted());
    let never = dialect.null(Need::Time);
    let time = |field| match layout.value(field) {
        Value::Column(column) => of(column),
        _ => never.to_owned(),
    };
    let unsent = match unsent(layout, dialect, of) {
        unsent if unsent.is_empty() => unsent,
        unsent => format!(" WHERE {unsent}"),
    };
    format!(
        "(SELECT {} AS created_at, {} AS available_at, {never} AS next_attempt_at, {} AS exchange, {} AS routing_key
          FROM {table} AS a{unsent}) AS o",
        time(Field::CreatedAt),
        time(Field::AvailableAt),
        content(Field::Exchange, layout, dialect),
        content(Field::RoutingKey, layout, dialect),
    )
}

/// Unsent rows without a number.
pub(super) struct Numberless {
    /// From where, and which: the table is `a`.
    pub(super) rows: String,
    /// Their order.
    pub(super) order: String,
}

/// `row_key` is the key as the table of row numbers has it; `order` is that of rows with the same time of creation.
pub(super) fn numberless(
    table: &TableName,
    layout: &Layout,
    dialect: &dyn Dialect,
    (row_key, order): (&str, &str),
) -> Numberless {
    let of = |column: &Column| format!("a.{}", column.quoted());
    let created = match layout.value(Field::CreatedAt) {
        Value::Column(column) => format!("{}, ", of(column)),
        _ => String::new(),
    };
    let unsent = match unsent(layout, dialect, of) {
        unsent if unsent.is_empty() => unsent,
        unsent => format!("{unsent} AND "),
    };
    // Null keys, which SQLite lets be in a primary key, can have no number: they must not fill the look.
    let (positions, outbox, key) = (positions_table(table), literal(table.name()), of(&layout.key));
    Numberless {
        rows: format!(
            "FROM {table} AS a
         WHERE {unsent}{key} IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {positions} AS p WHERE p.outbox = {outbox} AND p.row_key = {row_key})"
        ),
        order: format!("ORDER BY {created}{order}"),
    }
}
