//! A message's fields in AMQP's types.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, DecimalValue, FieldTable, LongString, ShortString};

use crate::message::{Copies, HeaderValue, Headers, Message, OwnHeaders};

/// AMQP `delivery_mode`: the broker need not write the message to disk.
const TRANSIENT: u8 = 1;

/// AMQP `delivery_mode`: the broker writes the message to disk.
const PERSISTENT: u8 = 2;

/// A short string is at most 255 bytes. Rows were validated before they came here, so the text is never cut.
pub(super) fn short(text: &str) -> ShortString {
    ShortString::try_new(text).unwrap_or_default()
}

/// The properties that `message` is published with, and the headers among them.
pub fn properties(message: &Message, own_headers: &OwnHeaders) -> BasicProperties {
    let own = &message.properties;
    let mut properties = BasicProperties::default()
        .with_message_id(short(message.message_id.as_str()))
        .with_content_type(short(&message.content_type))
        .with_delivery_mode(if own.transient { TRANSIENT } else { PERSISTENT });
    if let Some(timestamp) = message.timestamp.and_then(|seconds| u64::try_from(seconds).ok()) {
        properties = properties.with_timestamp(timestamp);
    }
    if let Some(kind) = &message.kind {
        properties = properties.with_type(short(kind));
    }
    let headers = with_own(table(&message.headers), message, own_headers);
    if !headers.inner().is_empty() {
        properties = properties.with_headers(headers);
    }
    if let Some(value) = &own.correlation_id {
        properties = properties.with_correlation_id(short(value));
    }
    if let Some(value) = &own.reply_to {
        properties = properties.with_reply_to(short(value));
    }
    if let Some(value) = own.priority {
        properties = properties.with_priority(value);
    }
    if let Some(value) = own.expiration {
        properties = properties.with_expiration(short(&value.to_string()));
    }
    if let Some(value) = &own.content_encoding {
        properties = properties.with_content_encoding(short(value));
    }
    if let Some(value) = &own.app_id {
        properties = properties.with_app_id(short(value));
    }
    if let Some(value) = &own.user_id {
        properties = properties.with_user_id(short(value));
    }
    properties
}

fn table(headers: &Headers) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert(short(name), field(value));
    }
    table
}

fn field(value: &HeaderValue) -> AMQPValue {
    match value {
        HeaderValue::Null => AMQPValue::Void,
        HeaderValue::Boolean(value) => AMQPValue::Boolean(*value),
        HeaderValue::Integer(value) => AMQPValue::LongLongInt(*value),
        HeaderValue::Double(value) => AMQPValue::Double(*value),
        HeaderValue::Text(text) => AMQPValue::LongString(LongString::from(text.as_str())),
        HeaderValue::Timestamp(seconds) => AMQPValue::Timestamp(*seconds),
        HeaderValue::Decimal { scale, unscaled } => AMQPValue::DecimalValue(DecimalValue {
            scale: *scale,
            // Four bytes, which clients read as a number with a sign.
            value: unscaled.cast_unsigned(),
        }),
        HeaderValue::Array(items) => AMQPValue::FieldArray(items.iter().map(field).collect::<Vec<_>>().into()),
        HeaderValue::Table(headers) => AMQPValue::FieldTable(table(headers)),
    }
}

/// Adds what the relay writes itself.
fn with_own(mut headers: FieldTable, message: &Message, own: &OwnHeaders) -> FieldTable {
    if let Some(name) = &own.dedup
        && message.copies != Copies::Refused
    {
        let id = LongString::from(message.message_id.as_str());
        headers.insert(short(name), AMQPValue::LongString(id));
    }
    if let Some(name) = &own.repeat {
        headers.insert(short(name), AMQPValue::Boolean(message.copies != Copies::None));
    }
    headers
}
