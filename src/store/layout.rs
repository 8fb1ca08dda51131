//! A table that `migrate` did not make: which of its columns hold what, by what the variables say and the table has.

mod search;

use crate::config::{Field, Mapping, OnSent, TableName};

use super::StoreError;
use super::columns::Column;
pub(super) use super::types::{Need, Types};
use search::Search;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Column(Column),
    Template(Vec<Part>),
    Nowhere,
}

/// A part of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    Text(String),
    Column(Column),
}

/// A header's name, and what it is made of.
pub(super) type Header = (String, Value);

/// Which columns hold what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    /// What tells rows apart.
    pub(super) key: Column,
    /// The key is no whole number: the relay numbers the rows in a table of its own.
    pub(super) numbered: bool,
    /// Rows that the relay numbers are told apart by their place in the table as well: nothing keeps two of them from
    /// having the same key.
    pub(super) by_place: bool,
    /// What works, but has a mend that a person should know of.
    pub(super) advice: Vec<String>,
    /// For every field but the id and those of the bookkeeping.
    values: Vec<(Field, Value)>,
    /// Headers that are made of columns, with their names.
    pub(super) headers: Vec<Header>,
    /// What is marked; `None`: sent rows are deleted, or nothing is there to be marked.
    pub(super) sent: Option<Column>,
    /// What is marked is true or false.
    pub(super) sent_is_flag: bool,
    /// Attempts, next attempt, last error, dead; `None`: in a table of the relay's own.
    pub(super) bookkeeping: Option<[Column; 4]>,
    /// A null body is an empty one.
    pub(super) null_payload_is_empty: bool,
}

impl Layout {
    /// What `mapping` makes of a table with these columns.
    ///
    /// # Errors
    /// [`StoreError::SchemaMissing`] for columns that are not there, with the variable and the nearest name;
    /// [`StoreError::Failed`] for those that will not do, with what to do.
    pub(super) fn new(
        mapping: &Mapping,
        columns: &[Column],
        table: &TableName,
        on_sent: OnSent,
        types: &dyn Types,
    ) -> Result<Self, StoreError> {
        let mut search = Search::new(mapping, columns, table, types);
        let layout = search.layout(on_sent);
        search.all_there(table)?;
        match layout {
            Some(layout) if search.wrong.is_empty() => Ok(layout),
            _ => Err(StoreError::Failed(format!(
                "table {table}: {}",
                search.wrong.join("; ")
            ))),
        }
    }

    /// Where a field's value comes from.
    pub(super) fn value(&self, field: Field) -> &Value {
        let found = self.values.iter().find(|(of, _)| *of == field);
        found.map_or(&Value::Nowhere, |(_, value)| value)
    }

    /// The columns that are read.
    pub(super) fn read(&self) -> Vec<&str> {
        let mut names = vec![self.key.name.as_str()];
        names.extend(self.values.iter().flat_map(|(_, value)| value.names()));
        names.extend(names_in(&self.headers));
        names.extend(self.sent.iter().map(|column| column.name.as_str()));
        names.extend(self.bookkeeping.iter().flatten().map(|column| column.name.as_str()));
        names
    }

    /// The columns that are written.
    pub(super) fn written(&self, on_sent: OnSent) -> Vec<&str> {
        let sent = self.sent.iter().filter(|_| on_sent == OnSent::Mark);
        let columns = sent.chain(self.bookkeeping.iter().flatten());
        columns.map(|column| column.name.as_str()).collect()
    }

    /// For a person: every field that has a value, with where it comes from.
    pub(super) fn describe(&self) -> String {
        let key = match self.numbered {
            true => format!("{}, in the order in which the relay found the rows", self.key.name),
            false => self.key.name.clone(),
        };
        let mut parts = vec![format!("id ← {key}")];
        let there = self.values.iter().filter(|(_, value)| *value != Value::Nowhere);
        parts.extend(there.map(|(field, value)| format!("{} ← {}", field.name(), value.describe())));
        if *self.value(Field::MessageId) == Value::Nowhere {
            parts.push("message_id ← made of the table's name, id and created_at".to_owned());
        }
        parts.extend(described(&self.headers));
        parts.push(match &self.sent {
            Some(sent) => format!("sent → {}", sent.name),
            None => "sent → the row is deleted".to_owned(),
        });
        parts.push(match &self.bookkeeping {
            Some([attempts, next, error, dead]) => {
                format!(
                    "refusals → {}, {}, {}, {}",
                    attempts.name, next.name, error.name, dead.name
                )
            }
            None => "refusals → outbox_relay_failures".to_owned(),
        });
        parts.join(", ")
    }
}

impl Value {
    fn names(&self) -> Vec<&str> {
        match self {
            Value::Column(column) => vec![&column.name],
            Value::Template(parts) => parts.iter().filter_map(Part::name).collect(),
            Value::Nowhere => Vec::new(),
        }
    }

    fn describe(&self) -> String {
        match self {
            Value::Column(column) => column.name.clone(),
            Value::Template(parts) => {
                let part = |part: &Part| match part {
                    Part::Text(text) => text.clone(),
                    Part::Column(column) => format!("{{{}}}", column.name),
                };
                format!("\"{}\"", parts.iter().map(part).collect::<String>())
            }
            Value::Nowhere => "nothing".to_owned(),
        }
    }
}

impl Part {
    fn name(&self) -> Option<&str> {
        match self {
            Part::Column(column) => Some(&column.name),
            Part::Text(_) => None,
        }
    }
}

/// The headers that are made of columns, for a table that `migrate` made.
///
/// # Errors
/// [`StoreError::SchemaMissing`] for columns that are not there.
pub(super) fn headers(
    mapping: &Mapping,
    columns: &[Column],
    table: &TableName,
    types: &dyn Types,
) -> Result<Vec<Header>, StoreError> {
    let mut search = Search::new(mapping, columns, table, types);
    let headers = search.headers();
    search.all_there(table).map(|()| headers)
}

/// The columns that headers are made of.
pub(super) fn names_in(headers: &[Header]) -> impl Iterator<Item = &str> {
    headers.iter().flat_map(|(_, value)| value.names())
}

/// For a person.
pub(super) fn described(headers: &[Header]) -> impl Iterator<Item = String> {
    headers
        .iter()
        .map(|(name, value)| format!("header {name} ← {}", value.describe()))
}
