//! Headers: from the JSON of a row to values that AMQP has types for.
//!
//! Nothing changes on the way: what AMQP cannot carry as it stands is refused. Of several members with one name the last
//! counts, as in PostgreSQL's and MySQL's own functions.

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value};

use super::{Invalid, MAX_SHORT_STRING, MessageRules, object};

/// AMQP headers by name, each name at most 255 bytes.
pub type Headers = BTreeMap<String, HeaderValue>;

/// The value of a header.
#[derive(Debug, Clone, PartialEq)]
pub enum HeaderValue {
    /// No value.
    Null,
    /// A boolean.
    Boolean(bool),
    /// A whole number.
    Integer(i64),
    /// Any other number; finite.
    Double(f64),
    /// Text.
    Text(String),
    /// Seconds since 1970 (UTC), up to the year 9999.
    Timestamp(u64),
    /// `unscaled` divided by 10 to the power of `scale`.
    Decimal {
        /// Digits behind the point.
        scale: u8,
        /// All the digits, with the sign.
        unscaled: i32,
    },
    /// Values in their order.
    Array(Vec<HeaderValue>),
    /// Values by name.
    Table(Headers),
}

/// An object with this member alone is a timestamp: `{"$timestamp": 1700000000}`.
const TIMESTAMP: &str = "$timestamp";

/// An object with this member alone is a decimal: `{"$decimal": "12.34"}`.
const DECIMAL: &str = "$decimal";

/// The last second of the year 9999: many clients fail on dates beyond it, at each delivery.
pub(super) const LAST_SECOND: u64 = 253_402_300_799;

/// Properties and headers travel in one frame. `frame_max` is 131,072, 8 bytes are the frame's own, 4 kB are kept for
/// the other properties (at most 255 bytes each) and the header frame's fixed fields, and 1 kB for the headers that the relay
/// writes itself.
const MAX_HEADER_BYTES: usize = 131_072 - 8 - 4_096 - 1_024;

/// Headers that RabbitMQ acts on or writes itself, with what it does; `*` stands for any end.
const RESERVED: &[(&str, &str)] = &[
    ("CC", "RabbitMQ routes by it as by more routing keys"),
    ("BCC", "RabbitMQ routes by it as by more routing keys, and takes it off"),
    ("x-death", DEAD_LETTERING),
    ("x-first-death-*", DEAD_LETTERING),
    ("x-last-death-*", DEAD_LETTERING),
    ("x-delivery-count", "RabbitMQ counts deliveries in it"),
    ("x-acquired-count", "RabbitMQ counts deliveries in it"),
    (
        "x-delay",
        "a delayed-message exchange returns what it delays, so that it would be published again and again; available_at \
         delays it",
    ),
    ("x-stream-offset", "RabbitMQ writes a stream's position in it"),
    (
        "x-received-from",
        "a federation drops what seems to have passed it before",
    ),
    ("x-shovelled*", "a shovel writes it"),
    ("x-invalid-headers", "RabbitMQ puts what it does not understand in it"),
    ("x-amqp-1.0-*", "RabbitMQ keeps parts of AMQP 1.0 messages in it"),
    ("x-mqtt-*", "RabbitMQ keeps what MQTT needs in it"),
];

const DEAD_LETTERING: &str = "RabbitMQ records dead-lettering in it, and drops what seems to go in a circle";

/// Why a header of this name is refused unless it is allowed; `None`: it is like any other.
pub fn reserved(name: &str) -> Option<&'static str> {
    let matches = |pattern: &str| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    };
    RESERVED
        .iter()
        .find(|(pattern, _)| matches(pattern))
        .map(|(_, reason)| *reason)
}

/// Reads the text of a row's headers.
///
/// # Errors
/// [`Invalid`] for anything but a JSON object that AMQP can carry without changing it.
pub(super) fn read(text: &str, rules: &MessageRules) -> Result<Headers, Invalid> {
    let mut headers = Headers::new();
    for (name, value) in object("headers", text)? {
        check_name(&name, rules)?;
        let value = typed(&name, value)?;
        if matches!(name.as_str(), "CC" | "BCC") {
            check_routes(&name, &value)?;
        }
        headers.insert(name, value);
    }
    check_size(&headers)?;
    Ok(headers)
}

/// Checks the size of all headers of a message but those that the relay has room kept for.
///
/// # Errors
/// [`Invalid`] when they do not fit into one frame.
pub(super) fn check_size(headers: &Headers) -> Result<(), Invalid> {
    let size = table_size(headers);
    if size > MAX_HEADER_BYTES {
        return Err(Invalid(format!(
            "headers take {size} bytes, one AMQP frame carries {MAX_HEADER_BYTES}"
        )));
    }
    Ok(())
}

fn check_name(name: &str, rules: &MessageRules) -> Result<(), Invalid> {
    if name.len() > MAX_SHORT_STRING {
        return Err(Invalid(format!(
            "headers has a name of {} bytes, AMQP allows {MAX_SHORT_STRING}",
            name.len()
        )));
    }
    if rules.own_headers.contain(name) {
        return Err(Invalid(format!("header {name:?} is written by the relay")));
    }
    match reserved(name) {
        Some(reason) if !rules.allowed_headers.iter().any(|allowed| allowed == name) => Err(Invalid(format!(
            "header {name:?} is reserved: {reason}; RELAY_MESSAGE_ALLOW_HEADERS can allow it"
        ))),
        _ => Ok(()),
    }
}

/// RabbitMQ closes the channel for anything but an array, and passes over what is no text in it.
fn check_routes(name: &str, value: &HeaderValue) -> Result<(), Invalid> {
    let short = |item: &HeaderValue| matches!(item, HeaderValue::Text(key) if key.len() <= MAX_SHORT_STRING);
    match value {
        HeaderValue::Array(items) if items.iter().all(short) => Ok(()),
        _ => Err(Invalid(format!(
            "header {name:?} must be an array of routing keys of at most {MAX_SHORT_STRING} bytes"
        ))),
    }
}

/// `name` is the header's, for the error; the depth of the value is bounded by the parser of JSON.
fn typed(name: &str, value: Value) -> Result<HeaderValue, Invalid> {
    Ok(match value {
        Value::Null => HeaderValue::Null,
        Value::Bool(value) => HeaderValue::Boolean(value),
        Value::Number(number) => self::number(name, &number)?,
        Value::String(text) => HeaderValue::Text(text),
        Value::Array(items) => {
            let items = items.into_iter().map(|item| typed(name, item));
            HeaderValue::Array(items.collect::<Result<_, _>>()?)
        }
        Value::Object(map) => member(name, map)?,
    })
}

fn number(name: &str, number: &Number) -> Result<HeaderValue, Invalid> {
    if let Some(integer) = number.as_i64() {
        return Ok(HeaderValue::Integer(integer));
    }
    match number.as_f64().filter(|double| double.is_finite()) {
        Some(double) if number.is_f64() => Ok(HeaderValue::Double(double)),
        Some(_) => Err(Invalid(format!(
            "header {name:?} has an integer beyond 64 bits with a sign, which AMQP cannot carry: write it as a string"
        ))),
        None => Err(Invalid(format!(
            "header {name:?} has a number beyond a double, which AMQP cannot carry: write it as a string"
        ))),
    }
}

/// A table, or one of the types that JSON has not.
fn member(name: &str, map: Map<String, Value>) -> Result<HeaderValue, Invalid> {
    if map.len() == 1 {
        if let Some(value) = map.get(TIMESTAMP) {
            return timestamp(name, value);
        }
        if let Some(value) = map.get(DECIMAL) {
            return decimal(name, value);
        }
    }
    let mut table = Headers::new();
    for (key, item) in map {
        if key.len() > MAX_SHORT_STRING {
            return Err(Invalid(format!(
                "header {name:?} holds a name over {MAX_SHORT_STRING} bytes"
            )));
        }
        table.insert(key, typed(name, item)?);
    }
    Ok(HeaderValue::Table(table))
}

fn timestamp(name: &str, value: &Value) -> Result<HeaderValue, Invalid> {
    let seconds = value.as_u64().filter(|seconds| *seconds <= LAST_SECOND);
    seconds.map(HeaderValue::Timestamp).ok_or_else(|| {
        Invalid(format!(
            "header {name:?}: {TIMESTAMP} must be whole seconds since 1970, 0 to {LAST_SECOND}"
        ))
    })
}

fn decimal(name: &str, value: &Value) -> Result<HeaderValue, Invalid> {
    let parsed = value.as_str().and_then(|text| {
        let digits = text.strip_prefix('-').unwrap_or(text);
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let plain = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        let complete = !whole.is_empty() && (fraction.is_empty() != digits.contains('.'));
        if !(complete && plain(whole) && plain(fraction)) {
            return None;
        }
        Some(HeaderValue::Decimal {
            scale: fraction.len().try_into().ok()?,
            unscaled: text.replacen('.', "", 1).parse().ok()?,
        })
    });
    parsed.ok_or_else(|| {
        Invalid(format!(
            "header {name:?}: {DECIMAL} must be text like \"-12.34\", with at most 255 digits behind the point, and \
             without it a whole number of 32 bits with a sign"
        ))
    })
}

/// Bytes of the encoded field table: each entry is a short string, a type byte and the value.
fn table_size(headers: &Headers) -> usize {
    4 + headers
        .iter()
        .map(|(name, value)| 1 + name.len() + value_size(value))
        .sum::<usize>()
}

fn value_size(value: &HeaderValue) -> usize {
    1 + match value {
        HeaderValue::Null => 0,
        HeaderValue::Boolean(_) => 1,
        HeaderValue::Integer(_) | HeaderValue::Double(_) | HeaderValue::Timestamp(_) => 8,
        HeaderValue::Decimal { .. } => 5,
        HeaderValue::Text(text) => 4 + text.len(),
        HeaderValue::Array(items) => 4 + items.iter().map(value_size).sum::<usize>(),
        HeaderValue::Table(table) => table_size(table),
    }
}
