//! What the types of a database's columns are good for.

use super::columns::Column;
use crate::config::{Field, TableName};

/// What a value is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// To be read as text, of whatever type it is.
    Text,
    /// A JSON object.
    Object,
    /// The body.
    Body,
    /// A time.
    Time,
    /// A whole number.
    Count,
    /// A text for a person, to be written.
    Error,
    /// A time, or a flag.
    Sent,
}

impl Need {
    pub(super) fn of(field: Field) -> Self {
        match field {
            Field::Headers | Field::Properties => Self::Object,
            Field::Payload => Self::Body,
            Field::CreatedAt | Field::AvailableAt | Field::NextAttemptAt | Field::DeadAt => Self::Time,
            Field::Attempts => Self::Count,
            Field::LastError => Self::Error,
            Field::SentAt => Self::Sent,
            _ => Self::Text,
        }
    }
}

/// The types of a database.
pub(super) trait Types {
    /// Those that will do; none: any.
    fn allowed(&self, need: Need) -> &'static [&'static str];
    /// Whether values of this column can be row ids.
    fn is_integer(&self, column: &Column) -> bool;
    /// Whether values of this column are true or false.
    fn is_flag(&self, column: &Column) -> bool;
    /// The type of a time, in statements for a person.
    fn time(&self) -> &'static str;
    /// The type of a number that the database counts, for rows that are there as well; `None`: no such column can be added.
    fn counter(&self) -> Option<&'static str>;
    /// Statements for a person that add a message id which the database makes; `None`: no such column can be added.
    fn add_message_id(&self, _table: &str) -> Option<String> {
        None
    }

    /// How many bytes of a key the table of row numbers takes; `None`: any number.
    fn longest_key(&self, _key: &Column) -> Option<u32> {
        None
    }

    /// Whether a value of this key may be that of another row later.
    fn is_given_again(&self, _key: &Column) -> bool {
        false
    }

    /// Whether rows are told apart where nothing keeps their keys from being equal.
    fn knows_places(&self) -> bool {
        false
    }

    /// Whether `Name` and `name` are the same column.
    fn ignores_case(&self) -> bool {
        true
    }

    /// The table's name in statements for a person.
    fn table(&self, table: &TableName) -> String {
        table.to_string()
    }

    /// A statement for a person: nothing but one row has a value of this column.
    fn unique_index(&self, table: &str, column: &Column) -> String {
        format!("CREATE UNIQUE INDEX ON {table} ({})", column.quoted())
    }

    /// A statement for a person that lets the column be null, or keeps it from being so; `None`: columns cannot be changed.
    fn alter_nullable(&self, _table: &str, _column: &Column, _nullable: bool) -> Option<String>;

    /// A statement for a person that makes the column no longer than `most`.
    fn shorten(&self, table: &str, column: &Column, most: u32) -> String {
        format!(
            "ALTER TABLE {table} ALTER COLUMN {} TYPE varchar({most})",
            column.quoted()
        )
    }
}
