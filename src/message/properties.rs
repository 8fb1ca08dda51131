//! Properties that have no column of their own.

use std::ops::RangeInclusive;

use serde_json::Value;

use super::{Invalid, MAX_SHORT_STRING, object, shown, type_name};

/// RabbitMQ refuses longer times with 406, which costs the channel: its limit is 2^32 - 1 ms.
const MAX_EXPIRATION_MS: u64 = u32::MAX as u64;

/// A `reply_to` with which RabbitMQ closes the channel, unless answers are consumed on that very channel.
const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";

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
    /// AMQP `delivery_mode` 1: the broker need not write the message to disk. Else it is persistent.
    pub transient: bool,
}

/// Reads the text of a row's properties.
///
/// # Errors
/// [`Invalid`] for anything but a JSON object of known properties with values that a broker takes.
pub(super) fn read(text: &str) -> Result<Properties, Invalid> {
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
            "priority" => properties.priority = Some(number_property(&name, &value, 0..=u64::from(u8::MAX))? as u8),
            "expiration" => properties.expiration = Some(number_property(&name, &value, 0..=MAX_EXPIRATION_MS)? as u32),
            "delivery_mode" => properties.transient = number_property(&name, &value, 1..=2)? == 1,
            _ => return Err(unknown(&name)),
        }
    }
    if properties.reply_to.as_deref() == Some(DIRECT_REPLY_TO) {
        return Err(Invalid(format!(
            "property reply_to is {DIRECT_REPLY_TO}, but the relay awaits no answers"
        )));
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
fn number_property(name: &str, value: &Value, bounds: RangeInclusive<u64>) -> Result<u64, Invalid> {
    let number = match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    };
    number.filter(|number| bounds.contains(number)).ok_or_else(|| {
        Invalid(format!(
            "property {name} must be a whole number from {} to {}",
            bounds.start(),
            bounds.end()
        ))
    })
}

fn unknown(name: &str) -> Invalid {
    let column = match name {
        "message_id" | "type" | "content_type" | "headers" => name,
        "timestamp" => "created_at",
        "cluster_id" => return Invalid("property cluster_id is reserved in AMQP 0-9-1".to_owned()),
        _ => {
            return Invalid(format!(
                "property {:?} is unknown: correlation_id, reply_to, priority, expiration, content_encoding, app_id, \
                 user_id and delivery_mode can be set",
                shown(name)
            ));
        }
    };
    Invalid(format!("property {name} is not set here, but by the column {column}"))
}
