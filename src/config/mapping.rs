//! Which columns of an existing table hold what: the variables `RELAY_COLUMN_…` and the templates beside them.

use std::{fmt, str::FromStr};

use super::template::{Piece, column, header_columns, template};
use super::{CloudEvents, OnSent, TableNameError, parse::Reader, table_name::only_part};

/// What the relay wants to know of a row, or writes to it: the columns of the table that `migrate` makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Field {
    /// The order of rows.
    Id,
    /// AMQP `message_id`.
    MessageId,
    /// The exchange.
    Exchange,
    /// The routing key.
    RoutingKey,
    /// Rows with the same one are kept in order.
    OrderingKey,
    /// AMQP `type`.
    Type,
    /// AMQP `content_type`.
    ContentType,
    /// A JSON object of headers.
    Headers,
    /// A JSON object of properties.
    Properties,
    /// The body.
    Payload,
    /// AMQP `timestamp`.
    CreatedAt,
    /// Not before this time.
    AvailableAt,
    /// Refusals so far.
    Attempts,
    /// When it is tried again.
    NextAttemptAt,
    /// Reason of the last refusal.
    LastError,
    /// When it was confirmed.
    SentAt,
    /// When it was given up.
    DeadAt,
}

impl Field {
    /// Every one, in the order of the table.
    pub const ALL: [Self; 17] = [
        Self::Id,
        Self::MessageId,
        Self::Exchange,
        Self::RoutingKey,
        Self::OrderingKey,
        Self::Type,
        Self::ContentType,
        Self::Headers,
        Self::Properties,
        Self::Payload,
        Self::CreatedAt,
        Self::AvailableAt,
        Self::Attempts,
        Self::NextAttemptAt,
        Self::LastError,
        Self::SentAt,
        Self::DeadAt,
    ];

    /// What the relay writes of a refusal.
    pub const BOOKKEEPING: [Self; 4] = [Self::Attempts, Self::NextAttemptAt, Self::LastError, Self::DeadAt];

    /// The column's name in the table that `migrate` makes.
    pub fn name(self) -> &'static str {
        self.names().0
    }

    /// The variable that names another column.
    pub fn variable(self) -> &'static str {
        self.names().1
    }

    /// The variable of a template in the place of a column.
    pub fn template_variable(self) -> Option<&'static str> {
        match self {
            Self::RoutingKey => Some("RELAY_ROUTING_KEY"),
            Self::Exchange => Some("RELAY_EXCHANGE"),
            Self::Type => Some("RELAY_TYPE"),
            _ => None,
        }
    }

    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Id => ("id", "RELAY_COLUMN_ID"),
            Self::MessageId => ("message_id", "RELAY_COLUMN_MESSAGE_ID"),
            Self::Exchange => ("exchange", "RELAY_COLUMN_EXCHANGE"),
            Self::RoutingKey => ("routing_key", "RELAY_COLUMN_ROUTING_KEY"),
            Self::OrderingKey => ("ordering_key", "RELAY_COLUMN_ORDERING_KEY"),
            Self::Type => ("type", "RELAY_COLUMN_TYPE"),
            Self::ContentType => ("content_type", "RELAY_COLUMN_CONTENT_TYPE"),
            Self::Headers => ("headers", "RELAY_COLUMN_HEADERS_JSON"),
            Self::Properties => ("properties", "RELAY_COLUMN_PROPERTIES"),
            Self::Payload => ("payload", "RELAY_COLUMN_PAYLOAD"),
            Self::CreatedAt => ("created_at", "RELAY_COLUMN_CREATED_AT"),
            Self::AvailableAt => ("available_at", "RELAY_COLUMN_AVAILABLE_AT"),
            Self::Attempts => ("attempts", "RELAY_COLUMN_ATTEMPTS"),
            Self::NextAttemptAt => ("next_attempt_at", "RELAY_COLUMN_NEXT_ATTEMPT_AT"),
            Self::LastError => ("last_error", "RELAY_COLUMN_LAST_ERROR"),
            Self::SentAt => ("sent_at", "RELAY_COLUMN_SENT_AT"),
            Self::DeadAt => ("dead_at", "RELAY_COLUMN_DEAD_AT"),
        }
    }
}

/// Columns that become headers.
pub const HEADER_COLUMNS: &str = "RELAY_COLUMN_HEADERS";

/// A column's raw name, validated once; every store quotes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ColumnName(String);

impl ColumnName {
    /// The name as it stands in the database's catalogue.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Taken as written, whatever characters it has.
    pub(super) fn raw(name: &str) -> Result<Self, TableNameError> {
        only_part(&format!("\"{}\"", name.replace('"', "\"\""))).map(Self)
    }
}

impl fmt::Display for ColumnName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ColumnName {
    type Err = TableNameError;

    /// `name`, or `"Any Name"`.
    fn from_str(text: &str) -> Result<Self, TableNameError> {
        only_part(text).map(Self)
    }
}

/// Where a field's value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// From this column.
    Column(ColumnName),
    /// From columns and text between them, at least one piece.
    Template(Vec<Piece>),
    /// From nowhere: there is no such column.
    Nowhere,
}

/// A header made of columns and text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderTemplate {
    /// Its name.
    pub header: String,
    /// The variable that it was given by: for messages about it.
    pub variable: &'static str,
    /// At least one piece, one of them a column.
    pub value: Vec<Piece>,
}

/// What the variables say of the table's columns; the default says nothing: the table is one that `migrate` made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mapping {
    origins: Vec<(Field, Origin)>,
    /// Columns that become headers, each with the header's name.
    pub headers: Vec<(ColumnName, String)>,
    /// Templates of columns that become headers: attributes of CloudEvents. The table may well be one that `migrate` made.
    pub attributes: Vec<HeaderTemplate>,
    /// Whether a null body is an empty one; else it is a dead letter.
    pub null_payload_is_empty: bool,
}

impl Mapping {
    /// Whether nothing is said of where a field is, so that every column must be there under its own name.
    pub fn is_default(&self) -> bool {
        self.origins.is_empty() && self.headers.is_empty()
    }

    /// What is said of a field.
    pub fn origin(&self, field: Field) -> Option<&Origin> {
        self.origins
            .iter()
            .find(|(named, _)| *named == field)
            .map(|(_, origin)| origin)
    }

    /// The variable by which a field was given: for messages about it.
    pub fn variable(&self, field: Field) -> &'static str {
        match (self.origin(field), field.template_variable()) {
            (Some(Origin::Template(_)), Some(variable)) => variable,
            _ => field.variable(),
        }
    }

    pub(super) fn read(from: &mut Reader<'_>, on_sent: OnSent, events: Option<&CloudEvents>) -> Self {
        let mut mapping = Self {
            attributes: events.map(CloudEvents::of_columns).unwrap_or_default(),
            headers: from.optional(HEADER_COLUMNS, header_columns).unwrap_or_default(),
            null_payload_is_empty: from.optional("RELAY_PRESET", |text| Ok(text == "debezium")) == Some(true),
            ..Self::default()
        };
        for field in Field::ALL {
            let column = from.optional(field.variable(), origin);
            let template = field
                .template_variable()
                .and_then(|variable| Some((variable, from.optional(variable, template)?)));
            let origin = match (column, template) {
                (Some(_), Some((variable, _))) => {
                    from.problem(
                        variable,
                        format!("is given beside {}; remove one of them", field.variable()),
                    );
                    continue;
                }
                (column, template) => column.or(template.map(|(_, template)| Origin::Template(template))),
            };
            if let Some(origin) = origin {
                mapping.origins.push((field, origin));
            }
        }
        mapping.check(from, on_sent);
        mapping
    }

    fn check(&self, from: &mut Reader<'_>, on_sent: OnSent) {
        for field in [Field::Id, Field::Payload] {
            if self.origin(field) == Some(&Origin::Nowhere) {
                from.problem(
                    field.variable(),
                    "must name a column: the relay cannot do without it".to_owned(),
                );
            }
        }
        if self.origin(Field::SentAt) == Some(&Origin::Nowhere) && on_sent == OnSent::Mark {
            let advice =
                "is `-`, so that a sent row cannot be marked: name a column, or set RELAY_OUTBOX_ON_SENT=delete";
            from.problem(Field::SentAt.variable(), advice.to_owned());
        }
    }
}

fn origin(text: &str) -> Result<Origin, String> {
    match text {
        "-" => Ok(Origin::Nowhere),
        text => column(text).map(Origin::Column),
    }
}
