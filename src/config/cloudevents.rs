//! Messages as CloudEvents: the variables `RELAY_CLOUDEVENTS_…`.

use super::mapping::HeaderTemplate;
use super::template::{Piece, pieces};
use super::{findings::shown, parse::Reader, variables::VARIABLES};

const FORMAT: &str = "RELAY_MESSAGE_FORMAT";
const SOURCE: &str = "RELAY_CLOUDEVENTS_SOURCE";
const EXTENSIONS: &str = "RELAY_CLOUDEVENTS_EXTENSIONS";
const PREFIX: &str = "RELAY_CLOUDEVENTS_PREFIX";

/// The attributes with a variable of their own.
const ATTRIBUTES: &[(&str, &str)] = &[
    ("source", SOURCE),
    ("type", "RELAY_CLOUDEVENTS_TYPE"),
    ("subject", "RELAY_CLOUDEVENTS_SUBJECT"),
    ("dataschema", "RELAY_CLOUDEVENTS_DATASCHEMA"),
];

/// The first is of CloudEvents' binding to AMQP, which the second was before; the third is of Knative's to RabbitMQ.
/// <https://github.com/cloudevents/spec/blob/main/cloudevents/bindings/amqp-protocol-binding.md>,
/// <https://github.com/knative-extensions/eventing-rabbitmq/blob/main/cloudevents-protocol-spec/spec.md>
const PREFIXES: &[(&str, &str)] = &[
    ("cloudEvents_", "cloudEvents_"),
    ("cloudEvents:", "cloudEvents:"),
    ("ce-", "ce-"),
];

/// Messages are CloudEvents 1.0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudEvents {
    /// Where attributes and data are.
    pub mode: ContentMode,
    /// What the names of headers with attributes begin with.
    pub prefix: &'static str,
    /// Attributes that are configured, with what they are made of: name, variable, pieces.
    pub attributes: Vec<Attribute>,
}

/// An attribute of every event, of columns and text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    /// Its name, `[a-z0-9]{1,20}`.
    pub name: String,
    /// The variable that it was given by.
    pub variable: &'static str,
    /// What it is made of.
    pub value: Vec<Piece>,
}

impl Attribute {
    /// The text, where it is the same for all rows.
    pub fn constant(&self) -> Option<&str> {
        match &self.value[..] {
            [] => Some(""),
            [Piece::Text(text)] => Some(text),
            _ => None,
        }
    }
}

/// The content modes of CloudEvents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentMode {
    /// Attributes are headers, the data is the body.
    Binary,
    /// The body is a JSON object that holds both.
    Structured,
}

/// What the relay sets itself, or the format keeps for itself, and where it comes from.
const RESERVED: &[(&str, &str)] = &[
    ("specversion", "it is always 1.0"),
    ("id", "it is the message_id"),
    ("time", "it is created_at"),
    ("datacontenttype", "it is the content_type"),
    ("data", "it is the payload"),
    ("data_base64", "it is the payload"),
];

/// What is wrong with an attribute's name, if anything.
pub fn bad_attribute_name(name: &str) -> Option<String> {
    if let Some((name, why)) = RESERVED.iter().find(|(reserved, _)| *reserved == name) {
        return Some(format!("{name} cannot be set: {why}"));
    }
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let good = (1..=20).contains(&name.len()) && name.chars().all(plain);
    (!good).then(|| "an attribute's name is 1 to 20 lower-case letters and digits".to_owned())
}

impl CloudEvents {
    /// `None`: messages are plain.
    pub(super) fn read(from: &mut Reader<'_>) -> Option<Self> {
        let modes = [
            ("plain", None),
            ("cloudevents-binary", Some(ContentMode::Binary)),
            ("cloudevents-structured", Some(ContentMode::Structured)),
        ];
        let mode = from.choice(FORMAT, None, &modes);
        let prefix = from.choice(PREFIX, PREFIXES[0].1, PREFIXES);
        let mut attributes: Vec<_> = ATTRIBUTES
            .iter()
            .filter_map(|&(name, variable)| {
                let value = from.optional(variable, template)?;
                Some(Attribute {
                    name: name.to_owned(),
                    variable,
                    value,
                })
            })
            .collect();
        attributes.extend(from.optional(EXTENSIONS, extensions).unwrap_or_default());
        let Some(mode) = mode else {
            let set = VARIABLES
                .iter()
                .map(|variable| variable.name)
                .filter(|name| name.starts_with("RELAY_CLOUDEVENTS_") && *name != PREFIX);
            for name in set.filter(|name| from.is_set(name)).collect::<Vec<_>>() {
                from.warning(format!("{name} has no effect while {FORMAT} is plain"));
            }
            return None;
        };
        if !from.is_set(SOURCE) {
            let advice = "is required for CloudEvents: what the events are about or come from, like `/shop` or `https://shop.example.com/{tenant}`";
            from.problem(SOURCE, advice.to_owned());
        }
        for attribute in &attributes {
            if let Some(problem) = attribute
                .constant()
                .and_then(|text| bad_attribute(&attribute.name, text))
            {
                from.problem(attribute.variable, format!("{problem}; set another text, or unset it"));
            }
        }
        Some(Self {
            mode,
            prefix,
            attributes,
        })
    }

    /// The attributes that differ from row to row, as headers.
    pub(super) fn of_columns(&self) -> Vec<HeaderTemplate> {
        let attributes = self
            .attributes
            .iter()
            .filter(|attribute| attribute.constant().is_none());
        attributes
            .map(|attribute| HeaderTemplate {
                header: format!("{}{}", self.prefix, attribute.name),
                variable: attribute.variable,
                value: attribute.value.clone(),
            })
            .collect()
    }
}

/// What is wrong with an attribute's value, if anything. Characters and URIs:
/// <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md#type-system>.
pub fn bad_attribute(name: &str, value: &str) -> Option<String> {
    if value.is_empty() {
        return Some("is empty".to_owned());
    }
    if value.chars().any(char::is_control) {
        return Some("holds a control character".to_owned());
    }
    let stands_for_none = |c| matches!(u32::from(c), 0xFDD0..=0xFDEF) || u32::from(c) & 0xFFFE == 0xFFFE;
    if value.chars().any(stands_for_none) {
        return Some("holds a code point that Unicode keeps for no character".to_owned());
    }
    let is_uri = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&b))
    };
    let has_scheme = |text: &str| {
        let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme);
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    };
    match name {
        "source" | "dataschema" if !is_uri(value) => {
            Some("is no URI: percent-encode blanks and other special characters".to_owned())
        }
        "dataschema" if !has_scheme(value) => Some("is no absolute URI, like `https://…` or `urn:…`".to_owned()),
        _ => None,
    }
}

/// `tenantid={tenant_id},partitionkey={ordering_key}`; commas in braces belong to a column's name.
fn extensions(text: &str) -> Result<Vec<Attribute>, String> {
    let mut all: Vec<Attribute> = Vec::new();
    for item in outside_braces(text) {
        let Some((name, value)) = item.split_once('=') else {
            return Err(format!(
                "must be `name=template`, separated by commas; an entry {}",
                shown(item)
            ));
        };
        let name = name.trim();
        if let Some(problem) = bad_attribute_name(name) {
            return Err(format!("has a name that cannot be ({problem}); it {}", shown(name)));
        }
        let own = ATTRIBUTES.iter().find(|(core, _)| *core == name);
        if let Some((_, variable)) = own {
            return Err(format!("has {name}, for which there is {variable}"));
        }
        if all.iter().any(|other| other.name == name) {
            return Err(format!("has {name} twice"));
        }
        all.push(Attribute {
            name: name.to_owned(),
            variable: EXTENSIONS,
            value: template(value.trim())?,
        });
    }
    Ok(all)
}

/// Unlike other templates it may be a URL of the web, but none that could hold a password: it is shown, and sent.
fn template(text: &str) -> Result<Vec<Piece>, String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    if text.contains('@') || rest.unwrap_or(text).contains("://") || (rest.is_some() && text.contains('?')) {
        return Err(
            "must be no URL but one of http or https, without user, password and query: it is sent to all".to_owned(),
        );
    }
    pieces(text)
}

/// The parts between commas that are not within braces.
fn outside_braces(text: &str) -> Vec<&str> {
    let mut depth = 0_u32;
    text.split(|c: char| {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
    .collect()
}
