//! From a row of the outbox table to a message that a broker can accept.
//!
//! Everything a broker may refuse for the message's own sake is found here, before anything is sent:
//! a refusal by the broker would cost the channel, and with it the confirms of innocent messages.

mod cloudevents;
mod compression;
mod headers;
mod properties;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::config::CloudEvents;
pub use compression::{Coding, Compression};
pub use headers::{HeaderValue, Headers, reserved};
pub use properties::Properties;

/// The value of the outbox table's `id` column: the order in which rows are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId(pub i64);

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The value of a row's `ordering_key`: rows that share it are sent one after the other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderingKey(Arc<str>);

impl OrderingKey {
    /// The key with this text.
    pub fn new(key: &str) -> Self {
        Self(key.into())
    }

    /// The key's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// AMQP `message_id`: the same on every copy of a message.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(Arc<str>);

impl MessageId {
    /// The id with this text; a UUID in any spelling is written as 36 lower-case characters.
    pub fn new(text: &str) -> Self {
        match Uuid::try_parse(text) {
            Ok(uuid) => uuid.into(),
            Err(_) => Self(text.into()),
        }
    }

    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<Uuid> for MessageId {
    fn from(uuid: Uuid) -> Self {
        Self((&*uuid.as_hyphenated().encode_lower(&mut Uuid::encode_buffer())).into())
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One row of the outbox table as a store reads it. Times are the database's, never this machine's.
#[derive(Debug, Clone)]
pub struct OutboxRow {
    /// Position in the outbox.
    pub id: RowId,
    /// The same on every copy of the message.
    pub message_id: MessageId,
    /// `None`: the configured default exchange.
    pub exchange: Option<String>,
    /// The AMQP routing key.
    pub routing_key: String,
    /// `None`: no order is asked for.
    pub ordering_key: Option<OrderingKey>,
    /// The AMQP `type`.
    pub kind: Option<String>,
    /// The AMQP `content_type`.
    pub content_type: String,
    /// The text of a JSON object.
    pub headers: String,
    /// The text of a JSON object.
    pub properties: String,
    /// The body, or why it was left in the table.
    pub payload: Payload,
    /// When the row was created: since 1970 (UTC), in microseconds, not before that; `None`: not known.
    pub created_at: Option<Duration>,
    /// How old the row was when it was read; zero for a row "from the future".
    pub age: Duration,
    /// How long it must wait yet (`available_at`, `next_attempt_at`); zero: due now.
    pub due_in: Duration,
    /// Refusals so far.
    pub attempts: u32,
    /// The column whose text is not UTF-8, if there is one: what was read of it is not what stands there.
    pub not_utf8: Option<&'static str>,
}

/// A row's body. Large bodies, and those that are not due yet, stay in the table until they are wanted.
#[derive(Debug, Clone)]
pub enum Payload {
    /// The bytes exactly as stored.
    Loaded(Vec<u8>),
    /// Left in the table; its size in bytes.
    Left(u64),
    /// The column is null: there is no body to be had.
    Missing,
}

impl Payload {
    /// The size of the body in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Payload::Loaded(bytes) => bytes.len() as u64,
            Payload::Left(size) => *size,
            Payload::Missing => 0,
        }
    }
}

/// A message that passed every check which can be made without the broker.
#[derive(Debug, Clone)]
pub struct Message {
    /// The row it is made of.
    pub row: RowId,
    /// AMQP `message_id`, at most 255 bytes.
    pub message_id: MessageId,
    /// The exchange; empty for the broker's default exchange.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
    /// AMQP `type`.
    pub kind: Option<String>,
    /// AMQP `content_type`.
    pub content_type: String,
    /// AMQP `timestamp`, seconds since 1970 (UTC); `None`: not known, and left out.
    pub timestamp: Option<i64>,
    /// AMQP headers.
    pub headers: Headers,
    /// The properties that have no column of their own.
    pub properties: Properties,
    /// The body.
    pub body: Bytes,
    /// What is known of earlier copies.
    pub copies: Copies,
}

/// What is known of the copies of a message that were published before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Copies {
    /// There is none.
    None,
    /// It is not known whether there is one: another relay may have published it, or this one before it was started.
    #[default]
    Perhaps,
    /// This relay published it, and does not know what became of it.
    Unknown,
    /// It was published and not taken: a queue was full, or it was refused. That one had a deduplication id, under which
    /// the broker may drop another.
    Refused,
}

impl Copies {
    /// This relay has published none since it was started.
    pub(crate) fn none_of_this_relay(self) -> bool {
        matches!(self, Self::None | Self::Perhaps)
    }
}

/// What the configuration says about every message.
#[derive(Debug, Clone, Default)]
pub struct MessageRules {
    /// For rows whose `exchange` is null.
    pub default_exchange: String,
    /// Bodies above this many bytes are refused; the broker's own limit must not be lower.
    pub max_body_bytes: u64,
    /// Reserved headers that rows may have all the same.
    pub allowed_headers: Vec<String>,
    /// Headers that the relay writes: rows may not have them.
    pub own_headers: OwnHeaders,
    /// What makes a CloudEvent of it; `None`: it is none.
    pub cloudevents: Option<Arc<CloudEvents>>,
}

/// The names of the headers that the relay itself adds to messages, each at most 255 bytes; `None`: not added.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnHeaders {
    /// Holds the `message_id`, for a broker that drops duplicates by it.
    pub dedup: Option<String>,
    /// A boolean: false where no copy was published before.
    pub repeat: Option<String>,
}

impl OwnHeaders {
    /// Whether the relay writes a header of this name.
    pub fn contain(&self, name: &str) -> bool {
        [&self.dedup, &self.repeat].into_iter().flatten().any(|own| own == name)
    }
}

/// Why a row can never be a message: the text is for the person who mends the row and holds no payload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

/// An AMQP short string: routing key, exchange, most properties.
const MAX_SHORT_STRING: usize = 255;

impl Message {
    /// Makes the message of `row`.
    ///
    /// # Errors
    /// [`Invalid`] when no retry can ever make the row a message: a field too long, headers or properties
    /// that are not what AMQP can carry, text that is none, a body above the limit or not loaded.
    pub fn from_row(row: OutboxRow, rules: &MessageRules) -> Result<Self, Invalid> {
        if let Some(column) = row.not_utf8 {
            return Err(Invalid(format!("{column} is not UTF-8")));
        }
        let exchange = row.exchange.unwrap_or_else(|| rules.default_exchange.clone());
        short("message_id", row.message_id.as_str())?;
        short("exchange", &exchange)?;
        short("routing_key", &row.routing_key)?;
        short("content_type", &row.content_type)?;
        if let Some(kind) = &row.kind {
            short("type", kind)?;
        }
        check_body_size(row.payload.size(), rules)?;
        let Payload::Loaded(body) = row.payload else {
            return Err(Invalid("payload is null".to_owned()));
        };
        let message = Self {
            row: row.id,
            message_id: row.message_id,
            exchange,
            routing_key: row.routing_key,
            kind: row.kind,
            content_type: row.content_type,
            timestamp: row.created_at.and_then(|since| i64::try_from(since.as_secs()).ok()),
            headers: headers::read(&row.headers, rules)?,
            properties: properties::read(&row.properties)?,
            body: body.into(),
            copies: Copies::default(),
        };
        match &rules.cloudevents {
            None => Ok(message),
            Some(events) => cloudevents::event(message, row.created_at, events, rules),
        }
    }
}

/// Checks a body's size without having the body.
///
/// # Errors
/// [`Invalid`] when it is above the limit.
pub fn check_body_size(size: u64, rules: &MessageRules) -> Result<(), Invalid> {
    if size > rules.max_body_bytes {
        return Err(Invalid(format!(
            "payload has {size} bytes, the limit is {} (RELAY_MESSAGE_MAX_BYTES)",
            rules.max_body_bytes
        )));
    }
    Ok(())
}

fn short(column: &str, value: &str) -> Result<(), Invalid> {
    if value.len() > MAX_SHORT_STRING {
        return Err(Invalid(format!(
            "{column} has {} bytes, AMQP allows {MAX_SHORT_STRING}",
            value.len()
        )));
    }
    Ok(())
}

fn object(column: &str, text: &str) -> Result<Map<String, Value>, Invalid> {
    if text == "{}" {
        return Ok(Map::new());
    }
    // serde_json's message gives line and column of the text, none of its content.
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(Invalid(format!(
            "{column} must be a JSON object, it is {}",
            type_name(&other)
        ))),
        Err(error) => Err(Invalid(format!("{column} is not JSON: {error}"))),
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The beginning of a name that came from a row, for an error: it can have any length.
fn shown(name: &str) -> String {
    const MOST: usize = 60;
    match name.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}
