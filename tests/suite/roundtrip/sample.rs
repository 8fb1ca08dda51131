//! Random rows, each with what a consumer must see of it.

use std::collections::BTreeSet;

use fastrand::Rng;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Exchanges that rows go to; the first is the one of rows that name none.
pub(super) const EXCHANGES: [&str; 3] = ["fan", "événements ☂/\\\"'", "-.:_ "];

/// Characters that are trouble somewhere: in SQL, in JSON, in UTF-8, in a terminal.
const ODD: &[char] = &[
    '\u{1}',
    '\t',
    '\n',
    '\r',
    '\u{1f}',
    '"',
    '\'',
    '\\',
    '/',
    '{',
    '}',
    '$',
    '%',
    ';',
    '\u{7f}',
    '\u{80}',
    'é',
    'ß',
    '\u{301}',
    '\u{202e}',
    '中',
    '\u{d7ff}',
    '\u{e000}',
    '\u{feff}',
    '\u{fffd}',
    '\u{ffff}',
    '😀',
    '\u{10ffff}',
];

#[derive(Debug)]
pub(super) struct Sample {
    pub(super) message_id: Uuid,
    pub(super) exchange: Option<&'static str>,
    pub(super) routing_key: String,
    pub(super) ordering_key: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) content_type: String,
    pub(super) headers_text: String,
    headers: Value,
    /// As a consumer sees them.
    pub(super) properties: Map<String, Value>,
    pub(super) body: Vec<u8>,
    pub(super) is_compressible: bool,
    pub(super) created_at: i64,
}

/// `count` rows, one of them with a body of `largest` bytes; the same for the same seed.
pub(super) fn samples(seed: u64, count: usize, largest: usize) -> Vec<Sample> {
    let mut rng = Rng::with_seed(seed);
    let mut edges = vec![
        Vec::new(),
        vec![0],
        b"a\0b".to_vec(),
        vec![0xff, 0xfe, 0xc0, 0x80],
        vec![b'z'; largest],
    ];
    (0..count)
        .map(|_| {
            let (body, is_compressible) = match edges.pop() {
                Some(body) => (body, true),
                None => body(&mut rng),
            };
            Sample::new(&mut rng, body, is_compressible)
        })
        .collect()
}

/// Its bytes, and whether they say little for their number.
fn body(rng: &mut Rng) -> (Vec<u8>, bool) {
    let size = match rng.u8(..100) {
        0..60 => rng.usize(..300),
        60..95 => rng.usize(..8_000),
        95..99 => rng.usize(..70_000),
        _ => rng.usize(..1 << 20),
    };
    if rng.bool() {
        ((0..size).map(|_| rng.u8(..)).collect(), false)
    } else {
        let phrase = text(rng, 60).repeat(size / 8 + 1);
        (phrase.into_bytes().into_iter().cycle().take(size).collect(), true)
    }
}

impl Sample {
    fn new(rng: &mut Rng, body: Vec<u8>, is_compressible: bool) -> Self {
        let (headers_text, headers) = match rng.u8(..10) {
            0 => ("{}".to_owned(), json!({ "table": {} })),
            _ => table(rng, 0),
        };
        Self {
            message_id: Uuid::from_u128(rng.u128(..)),
            exchange: rng.bool().then(|| EXCHANGES[rng.usize(..EXCHANGES.len())]),
            routing_key: text(rng, 255),
            ordering_key: rng.bool().then(|| format!("key {}", rng.u8(..200))),
            kind: rng.bool().then(|| text(rng, 255)),
            content_type: text(rng, 255),
            headers_text,
            headers,
            properties: properties(rng),
            body,
            is_compressible,
            // Up to 2038, where MariaDB's timestamps end.
            created_at: rng.i64(1..i64::from(i32::MAX)),
        }
    }

    /// The text of the column: a consumer sees an expiration as text.
    pub(super) fn properties_text(&self) -> String {
        Value::Object(self.properties.clone()).to_string()
    }

    /// What a consumer must see.
    pub(super) fn expected(&self) -> Value {
        let mut properties = self.properties.clone();
        properties.entry("delivery_mode").or_insert(2.into());
        properties.insert("message_id".to_owned(), self.message_id.to_string().into());
        properties.insert("content_type".to_owned(), self.content_type.as_str().into());
        properties.insert("timestamp".to_owned(), self.created_at.into());
        if let Some(kind) = &self.kind {
            properties.insert("type".to_owned(), kind.as_str().into());
        }
        let digest = Sha256::digest(&self.body);
        json!({
            "exchange": self.exchange.unwrap_or(EXCHANGES[0]),
            "routing_key": self.routing_key,
            "properties": properties,
            "headers": self.headers,
            "bytes": self.body.len(),
            "sha256": digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
        })
    }
}

fn properties(rng: &mut Rng) -> Map<String, Value> {
    let mut properties = Map::new();
    for name in ["correlation_id", "reply_to", "app_id"] {
        if rng.bool() {
            properties.insert(name.to_owned(), text(rng, 255).into());
        }
    }
    if rng.u8(..5) == 0 {
        let encoding = ["utf-8", "identity", "br"][rng.usize(..3)];
        properties.insert("content_encoding".to_owned(), encoding.into());
    }
    if rng.bool() {
        properties.insert("priority".to_owned(), rng.u8(..).into());
    }
    if rng.bool() {
        // From an hour on: it must not be over before the consumer comes.
        let milliseconds = rng.u32(3_600_000..).to_string();
        properties.insert("expiration".to_owned(), milliseconds.into());
    }
    if rng.bool() {
        properties.insert("user_id".to_owned(), "guest".into());
    }
    if rng.bool() {
        properties.insert("delivery_mode".to_owned(), rng.u8(1..=2).into());
    }
    properties
}

/// Text of up to so many bytes, more often short; no NUL, which PostgreSQL cannot store.
fn text(rng: &mut Rng, most: usize) -> String {
    let most = if rng.u8(..4) == 0 { most } else { most.min(12) };
    let size = rng.usize(..=most);
    let mut text = String::new();
    loop {
        let character = match rng.u8(..4) {
            0 => ODD[rng.usize(..ODD.len())],
            1 => rng.char(' '..='\u{10ffff}'),
            _ => rng.alphanumeric(),
        };
        if text.len() + character.len_utf8() > size {
            return text;
        }
        text.push(character);
    }
}

/// A table in JSON, and as a consumer must see it.
fn table(rng: &mut Rng, depth: u8) -> (String, Value) {
    let names: BTreeSet<String> = (0..rng.u8(..6)).map(|_| text(rng, 255)).collect();
    let mut members = Vec::new();
    let mut expected = Map::new();
    for name in names {
        let (written, value) = value(rng, depth + 1);
        members.push(format!("{}{}:{written}", space(rng), quoted(rng, &name)));
        expected.insert(name, value);
    }
    (format!("{{{}}}", members.join(",")), json!({ "table": expected }))
}

fn value(rng: &mut Rng, depth: u8) -> (String, Value) {
    let kinds = if depth > 4 { 8 } else { 10 };
    match rng.u8(..kinds) {
        0 => ("null".to_owned(), json!({ "null": null })),
        1 => {
            let boolean = rng.bool();
            (boolean.to_string(), json!({ "boolean": boolean }))
        }
        2 => {
            let edges = [i64::MIN, -1, 0, 1, (1 << 53) + 1, i64::MAX];
            let number = if rng.bool() { rng.i64(..) } else { edges[rng.usize(..6)] };
            (number.to_string(), json!({ "integer": number.to_string() }))
        }
        3 | 4 => double(rng),
        5 => {
            // In JSON a text may have a NUL.
            let text = format!("{}{}", text(rng, 2_000), if rng.u8(..5) == 0 { "\0" } else { "" });
            (quoted(rng, &text), json!({ "text": text }))
        }
        6 => {
            let seconds = rng.u64(..=253_402_300_799);
            (format!("{{\"$timestamp\":{seconds}}}"), json!({ "timestamp": seconds }))
        }
        7 => decimal(rng),
        8 => {
            let (texts, values): (Vec<_>, Vec<_>) = (0..rng.u8(..5)).map(|_| value(rng, depth + 1)).unzip();
            (format!("[{}]", texts.join(", ")), json!({ "array": values }))
        }
        _ => table(rng, depth),
    }
}

fn double(rng: &mut Rng) -> (String, Value) {
    let any = f64::from_bits(rng.u64(..));
    let edges = [
        0.0,
        -0.0,
        0.1,
        1.0,
        5e-324,
        f64::MAX,
        f64::MIN_POSITIVE,
        9_007_199_254_740_993.0,
    ];
    let number = if any.is_finite() && rng.bool() {
        any
    } else {
        edges[rng.usize(..edges.len())]
    };
    let written = match rng.u8(..3) {
        // More digits than a double has.
        0 => format!("{number:.30e}"),
        1 => format!("{number:E}").replace('E', ".0E+").replace("+-", "-"),
        _ => format!("{number:?}"),
    };
    // `1.5E3` has its fraction already.
    let written = if written.matches('.').count() > 1 {
        format!("{number:?}")
    } else {
        written
    };
    let bytes: String = number.to_be_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    (written, json!({ "double": bytes }))
}

fn decimal(rng: &mut Rng) -> (String, Value) {
    let scale = if rng.u8(..10) == 0 { rng.u8(..) } else { rng.u8(..6) };
    let unscaled = if rng.bool() {
        rng.i32(..)
    } else {
        rng.i32(-1_000..1_000)
    };
    let digits = format!("{:0width$}", unscaled.unsigned_abs(), width = usize::from(scale) + 1);
    let (whole, fraction) = digits.split_at(digits.len() - usize::from(scale));
    let (sign, point) = (if unscaled < 0 { "-" } else { "" }, if scale > 0 { "." } else { "" });
    (
        format!("{{\"$decimal\":\"{sign}{whole}{point}{fraction}\"}}"),
        json!({ "decimal": [scale, unscaled] }),
    )
}

/// A string of JSON, with more escapes than need be now and then.
fn quoted(rng: &mut Rng, text: &str) -> String {
    if rng.u8(..4) > 0 {
        return Value::from(text).to_string();
    }
    let units = text.encode_utf16().map(|unit| format!("\\u{unit:04x}"));
    format!("\"{}\"", units.collect::<String>())
}

fn space(rng: &mut Rng) -> &'static str {
    ["", "", " ", "\n\t"][rng.usize(..4)]
}
