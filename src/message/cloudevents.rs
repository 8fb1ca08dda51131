//! A message as a CloudEvent 1.0: in AMQP's binary mode (attributes are headers), or in the JSON format.
//!
//! Attributes come from the configuration (a text, or a template that the store has made a header of), and above them from
//! the row's own headers with the prefix. <https://github.com/cloudevents/spec/tree/v1.0.2/cloudevents>

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::headers::LAST_SECOND;
use super::{HeaderValue, Headers, Invalid, Message, MessageRules, headers};
use crate::config::{CloudEvents, ContentMode, bad_attribute, bad_attribute_name};

/// What a content type begins with where the message is an event in a format of its own.
const MEDIA_TYPE: &str = "application/cloudevents";
/// The JSON format.
const STRUCTURED: &str = "application/cloudevents+json; charset=utf-8";

/// Makes the event of a message. One that is an event already, as its content type says, stays as it is.
///
/// # Errors
/// [`Invalid`] without the attributes that an event must have, for values that they cannot have, and for a payload that is
/// not what its content type says or is too long as an event.
pub(super) fn event(
    mut message: Message,
    created_at: Option<Duration>,
    events: &CloudEvents,
    rules: &MessageRules,
) -> Result<Message, Invalid> {
    let content_type = message.content_type.trim_start();
    if content_type
        .get(..MEDIA_TYPE.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(MEDIA_TYPE))
    {
        return Ok(message);
    }
    let mut attributes = attributes(&mut message, events)?;
    attributes.insert("specversion".to_owned(), Attribute::text("1.0"));
    attributes.insert("id".to_owned(), Attribute::text(message.message_id.as_str()));
    if let Some(since) = created_at {
        if since.as_secs() > LAST_SECOND {
            return Err(Invalid("created_at is beyond the year 9999".to_owned()));
        }
        let time = humantime::format_rfc3339_micros(UNIX_EPOCH + since);
        attributes.insert("time".to_owned(), Attribute::Text(time.to_string()));
    }
    match events.mode {
        ContentMode::Binary => {
            let headers = attributes
                .into_iter()
                .map(|(name, value)| (format!("{}{name}", events.prefix), value.header()));
            message.headers.extend(headers);
            headers::check_size(&message.headers)?;
        }
        ContentMode::Structured => {
            message.body = structured(attributes, &message)?.into();
            STRUCTURED.clone_into(&mut message.content_type);
            check_size(message.body.len() as u64, rules)?;
        }
    }
    Ok(message)
}

/// The value of an attribute: CloudEvents' other types are strings in both modes.
enum Attribute {
    Text(String),
    Boolean(bool),
    /// CloudEvents' integers have 32 bits.
    Integer(i32),
}

type Attributes = BTreeMap<String, Attribute>;

impl Attribute {
    fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    fn header(self) -> HeaderValue {
        match self {
            Self::Text(text) => HeaderValue::Text(text),
            Self::Boolean(value) => HeaderValue::Boolean(value),
            Self::Integer(number) => HeaderValue::Integer(number.into()),
        }
    }

    fn json(self) -> Value {
        match self {
            Self::Text(text) => text.into(),
            Self::Boolean(value) => value.into(),
            Self::Integer(number) => number.into(),
        }
    }
}

/// Those that are given, out of the headers and the configuration, all of them with values that can be.
fn attributes(message: &mut Message, events: &CloudEvents) -> Result<Attributes, Invalid> {
    let mut given = Headers::new();
    for attribute in &events.attributes {
        if let Some(constant) = attribute.constant() {
            given.insert(attribute.name.clone(), HeaderValue::Text(constant.to_owned()));
        }
    }
    // The column, unless something is said of it.
    if let (Some(kind), false) = (
        &message.kind,
        events.attributes.iter().any(|attribute| attribute.name == "type"),
    ) {
        given.insert("type".to_owned(), HeaderValue::Text(kind.clone()));
    }
    message.headers.retain(|header, value| {
        let name = header.strip_prefix(events.prefix);
        if let (Some(name), true) = (name, *value != HeaderValue::Null) {
            given.insert(name.to_owned(), value.clone());
        }
        name.is_none()
    });
    let mut attributes = Attributes::new();
    for (name, value) in given {
        let value = attribute(&name, value, events)?;
        attributes.insert(name, value);
    }
    if let Some(problem) = bad_attribute("id", message.message_id.as_str()) {
        return Err(Invalid(format!("message_id, the id of the CloudEvent, {problem}")));
    }
    let content_type = Some(&message.content_type).filter(|text| !text.is_empty());
    if let Some(problem) = content_type.and_then(|text| bad_attribute("datacontenttype", text)) {
        return Err(Invalid(format!(
            "content_type, the datacontenttype of the CloudEvent, {problem}"
        )));
    }
    for name in ["source", "type"] {
        if !attributes.contains_key(name) {
            return Err(Invalid(format!(
                "the CloudEvent has no {name}: {}",
                advice(name, events)
            )));
        }
    }
    Ok(attributes)
}

fn attribute(name: &str, value: HeaderValue, events: &CloudEvents) -> Result<Attribute, Invalid> {
    let bad = |problem: &str| {
        let advice = advice(name, events);
        Err(Invalid(format!("CloudEvents attribute {name:?} {problem}: {advice}")))
    };
    if let Some(problem) = bad_attribute_name(name) {
        return Err(Invalid(format!(
            "header {:?}: {problem}",
            format!("{}{name}", events.prefix)
        )));
    }
    let is_core = ["source", "type", "subject", "dataschema"].contains(&name);
    match value {
        HeaderValue::Text(text) => match bad_attribute(name, &text) {
            Some(problem) => bad(&problem),
            None => Ok(Attribute::Text(text)),
        },
        other if is_core => bad(&format!("must be a string, it is {}", type_name(&other))),
        HeaderValue::Boolean(value) => Ok(Attribute::Boolean(value)),
        HeaderValue::Integer(number) => match number.try_into() {
            Ok(number) => Ok(Attribute::Integer(number)),
            Err(_) => bad(NO_INTEGER),
        },
        HeaderValue::Double(_) => bad(NO_INTEGER),
        other => bad(&format!(
            "must be a string, a boolean or a number, it is {}",
            type_name(&other)
        )),
    }
}

const NO_INTEGER: &str = "is no whole number of 32 bits: write it as a string";

fn type_name(value: &HeaderValue) -> &'static str {
    match value {
        HeaderValue::Null => "null",
        HeaderValue::Boolean(_) => "a boolean",
        HeaderValue::Integer(_) | HeaderValue::Double(_) => "a number",
        HeaderValue::Text(_) => "a string",
        HeaderValue::Timestamp(_) => "a timestamp",
        HeaderValue::Decimal { .. } => "a decimal",
        HeaderValue::Array(_) => "an array",
        HeaderValue::Table(_) => "an object",
    }
}

/// Where an attribute is set.
fn advice(name: &str, events: &CloudEvents) -> String {
    let given = events.attributes.iter().find(|attribute| attribute.name == name);
    let variable = match (given, name) {
        (Some(attribute), _) => format!("{} makes it", attribute.variable),
        (None, "type") => "set it in the column of the type, or with RELAY_CLOUDEVENTS_TYPE".to_owned(),
        (None, _) => "it is set".to_owned(),
    };
    format!(
        "{variable}, or the row's header {:?}",
        format!("{}{name}", events.prefix)
    )
}

/// The event in the JSON format: the attributes, and then the data as it is.
fn structured(mut attributes: Attributes, message: &Message) -> Result<Vec<u8>, Invalid> {
    if message.properties.content_encoding.is_some() {
        return Err(Invalid(
            "property content_encoding is set, which an event in the JSON format cannot say of its data: publish it with \
             RELAY_MESSAGE_FORMAT=cloudevents-binary"
                .to_owned(),
        ));
    }
    let (content_type, data) = (&message.content_type, &message.body);
    if !content_type.is_empty() {
        attributes.insert("datacontenttype".to_owned(), Attribute::text(content_type));
    }
    let attributes = attributes.into_iter().map(|(name, value)| (name, value.json()));
    let mut body = Value::Object(attributes.collect()).to_string().into_bytes();
    // The brace comes again at the end.
    body.pop();
    match (Data::of(content_type), std::str::from_utf8(data)) {
        // No JSON at all: an event without data.
        (Data::Json, _) if data.is_empty() => {}
        (Data::Json, text) => {
            let text =
                text.map_err(|_| Invalid("payload is not UTF-8, though its content_type says JSON".to_owned()))?;
            // Only checked. What is not parsed cannot change.
            serde_json::from_str::<IgnoredAny>(text)
                .map_err(|error| Invalid(format!("payload is not JSON, though its content_type says so: {error}")))?;
            body.extend_from_slice(b",\"data\":");
            body.extend_from_slice(data);
        }
        (Data::Text, Ok(text)) => {
            body.extend_from_slice(b",\"data\":");
            body.extend_from_slice(Value::from(text).to_string().as_bytes());
        }
        _ => {
            body.extend_from_slice(b",\"data_base64\":\"");
            body.extend_from_slice(BASE64_STANDARD.encode(data).as_bytes());
            body.push(b'"');
        }
    }
    body.push(b'}');
    Ok(body)
}

/// What data is in JSON, by its content type alone: consumers find the same at all times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Data {
    /// A value, as it stands.
    Json,
    /// A string.
    Text,
    /// Base64.
    Bytes,
}

impl Data {
    fn of(content_type: &str) -> Self {
        let lower = content_type.to_ascii_lowercase();
        let (media_type, parameters) = lower.split_once(';').unwrap_or((&lower, ""));
        let (kind, subtype) = media_type.trim().split_once('/').unwrap_or_default();
        let is =
            |format: &str| subtype == format || subtype.strip_suffix(format).is_some_and(|rest| rest.ends_with('+'));
        // Nothing said means JSON.
        if is("json") || media_type.trim().is_empty() {
            Self::Json
        } else if kind == "text" || is("xml") || parameters.replace(['"', ' '], "").contains("charset=utf-8") {
            Self::Text
        } else {
            Self::Bytes
        }
    }
}

fn check_size(size: u64, rules: &MessageRules) -> Result<(), Invalid> {
    if size > rules.max_body_bytes {
        return Err(Invalid(format!(
            "as a CloudEvent the payload has {size} bytes, the limit is {} (RELAY_MESSAGE_MAX_BYTES)",
            rules.max_body_bytes
        )));
    }
    Ok(())
}
