//! A message's fields in AMQP's types.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, LongString, ShortString};
use serde_json::{Map, Value};

use crate::message::Message;

/// AMQP `delivery_mode` 2: the broker writes the message to disk.
const PERSISTENT: u8 = 2;

/// A short string is at most 255 bytes. Rows were validated before they came here, so the text is never cut.
pub(super) fn short(text: &str) -> ShortString {
    ShortString::try_new(text).unwrap_or_default()
}

pub(super) fn properties(message: &Message) -> BasicProperties {
    let mut properties = BasicProperties::default()
        .with_message_id(short(message.message_id.as_str()))
        .with_content_type(short(&message.content_type))
        .with_delivery_mode(PERSISTENT);
    if let Some(timestamp) = message.timestamp.and_then(|seconds| u64::try_from(seconds).ok()) {
        properties = properties.with_timestamp(timestamp);
    }
    if let Some(kind) = &message.kind {
        properties = properties.with_type(short(kind));
    }
    if !message.headers.is_empty() {
        properties = properties.with_headers(table(&message.headers));
    }
    let own = &message.properties;
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

fn table(map: &Map<String, Value>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in map {
        table.insert(short(name), field(value));
    }
    table
}

fn field(value: &Value) -> AMQPValue {
    match value {
        Value::Null => AMQPValue::Void,
        Value::Bool(value) => AMQPValue::Boolean(*value),
        Value::Number(number) => match number.as_i64() {
            Some(integer) => AMQPValue::LongLongInt(integer),
            None => AMQPValue::Double(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => AMQPValue::LongString(LongString::from(text.as_str())),
        Value::Array(items) => AMQPValue::FieldArray(FieldArray::from(items.iter().map(field).collect::<Vec<_>>())),
        Value::Object(map) => AMQPValue::FieldTable(table(map)),
    }
}
