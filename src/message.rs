//! From a row of the outbox table to a message that a broker can accept.
//!
//! Everything a broker may refuse for the message's own sake is found here, before anything is sent:
//! a refusal by the broker would cost the channel, and with it the confirms of innocent messages.

mod cloudevents;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use uuid::Uuid;

use crate::config::CloudEvents;

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
    pub headers: Map<String, Value>,
    /// The properties that have no column of their own.
    pub properties: Properties,
    /// The body.
    pub body: Vec<u8>,
}

/// The content of the `properties` column.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties {
    /// AMQP `correlation_id`.
    pub correlation_id: Option<String>,
    /// AMQP `reply_to`.
    pub reply_to: Option<String>,
    /// AMQP `priority`.
    pub priority: Option<u8>,
    /// AMQP `expiration`: milliseconds.
    pub expiration: Option<u32>,
    /// AMQP `content_encoding`.
    pub content_encoding: Option<String>,
    /// AMQP `app_id`.
    pub app_id: Option<String>,
    /// AMQP `user_id`; the broker accepts only the user the relay is logged in as.
    pub user_id: Option<String>,
}

/// What the configuration says about every message.
#[derive(Debug, Clone)]
pub struct MessageRules {
    /// For rows whose `exchange` is null.
    pub default_exchange: String,
    /// Bodies above this many bytes are refused; the broker's own limit must not be lower.
    pub max_body_bytes: u64,
    /// What makes a CloudEvent of it; `None`: it is none.
    pub cloudevents: Option<Arc<CloudEvents>>,
}

/// Why a row can never be a message: the text is for the person who mends the row and holds no payload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

/// An AMQP short string: routing key, exchange, most properties.
const MAX_SHORT_STRING: usize = 255;

/// Properties and headers travel in one frame. `frame_max` is 131,072, 8 bytes are the frame's own, and
/// 4 kB are kept for the other properties (at most 255 bytes each) and the header frame's fixed fields.
const MAX_HEADER_BYTES: usize = 131_072 - 8 - 4_096;

/// RabbitMQ refuses longer times with 406, which costs the channel: its limit is 2^32 - 1 ms.
const MAX_EXPIRATION_MS: u64 = u32::MAX as u64;

impl Message {
    /// Makes the message of `row`.
    ///
    /// # Errors
    /// [`Invalid`] when no retry can ever make the row a message: a field too long, headers or properties
    /// that are not what AMQP can carry, a body above the limit or not loaded.
    pub fn from_row(row: OutboxRow, rules: &MessageRules) -> Result<Self, Invalid> {
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
            headers: headers(&row.headers)?,
            properties: properties(&row.properties)?,
            body,
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

fn headers(text: &str) -> Result<Map<String, Value>, Invalid> {
    let map = object("headers", text)?;
    for (name, value) in &map {
        if name.len() > MAX_SHORT_STRING {
            return Err(Invalid(format!(
                "headers has a name of {} bytes, AMQP allows {MAX_SHORT_STRING}",
                name.len()
            )));
        }
        check_value(name, value)?;
    }
    check_headers_size(&map)?;
    Ok(map)
}

fn check_headers_size(headers: &Map<String, Value>) -> Result<(), Invalid> {
    let size = table_size(headers);
    if size > MAX_HEADER_BYTES {
        return Err(Invalid(format!(
            "headers take {size} bytes, one AMQP frame carries {MAX_HEADER_BYTES}"
        )));
    }
    Ok(())
}

/// A value is refused where AMQP would change it silently.
fn check_value(name: &str, value: &Value) -> Result<(), Invalid> {
    match value {
        Value::Number(number) if number.as_i64().is_none() && number.is_u64() => Err(Invalid(format!(
            "header {name:?} is an integer above 2^63 - 1, which AMQP cannot carry: write it as a string"
        ))),
        Value::Array(items) => items.iter().try_for_each(|item| check_value(name, item)),
        Value::Object(map) => map.iter().try_for_each(|(key, item)| {
            if key.len() > MAX_SHORT_STRING {
                return Err(Invalid(format!(
                    "header {name:?} holds a name over {MAX_SHORT_STRING} bytes"
                )));
            }
            check_value(name, item)
        }),
        _ => Ok(()),
    }
}

/// Bytes of the encoded field table: each entry is a short string, a type byte and the value.
fn table_size(map: &Map<String, Value>) -> usize {
    4 + map
        .iter()
        .map(|(name, value)| 1 + name.len() + value_size(value))
        .sum::<usize>()
}

fn value_size(value: &Value) -> usize {
    1 + match value {
        Value::Null => 0,
        Value::Bool(_) => 1,
        Value::Number(_) => 8,
        Value::String(text) => 4 + text.len(),
        Value::Array(items) => 4 + items.iter().map(value_size).sum::<usize>(),
        Value::Object(map) => table_size(map),
    }
}

fn properties(text: &str) -> Result<Properties, Invalid> {
    let mut properties = Properties::default();
    for (name, value) in object("properties", text)? {
        if value.is_null() {
            continue;
        }
        match name.as_str() {
            "correlation_id" => properties.correlation_id = Some(text_property(&name, value)?),
            "reply_to" => properties.reply_to = Some(text_property(&name, value)?),
            "content_encoding" => properties.content_encoding = Some(text_property(&name, value)?),
            "app_id" => properties.app_id = Some(text_property(&name, value)?),
            "user_id" => properties.user_id = Some(text_property(&name, value)?),
            "priority" => properties.priority = Some(number_property(&name, &value, u64::from(u8::MAX))? as u8),
            "expiration" => properties.expiration = Some(number_property(&name, &value, MAX_EXPIRATION_MS)? as u32),
            _ => {
                return Err(Invalid(format!(
                    "property {name:?} is unknown: correlation_id, reply_to, priority, expiration, \
                     content_encoding, app_id and user_id can be set"
                )));
            }
        }
    }
    Ok(properties)
}

fn text_property(name: &str, value: Value) -> Result<String, Invalid> {
    match value {
        Value::String(text) if text.len() <= MAX_SHORT_STRING => Ok(text),
        Value::String(text) => Err(Invalid(format!(
            "property {name} has {} bytes, AMQP allows {MAX_SHORT_STRING}",
            text.len()
        ))),
        other => Err(Invalid(format!(
            "property {name} must be a string, it is {}",
            type_name(&other)
        ))),
    }
}

/// A whole number, or its digits in a string as AMQP's own `expiration` is written.
fn number_property(name: &str, value: &Value, max: u64) -> Result<u64, Invalid> {
    let number = match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    };
    match number {
        Some(number) if number <= max => Ok(number),
        _ => Err(Invalid(format!(
            "property {name} must be a whole number from 0 to {max}"
        ))),
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
