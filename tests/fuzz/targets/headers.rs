//! Headers of any text arrive with the values that the JSON has, or are refused.
#![no_main]

use amq_protocol::types::AMQPValue;
use libfuzzer_sys::fuzz_target;
use outbox_relay::message::Message;
use outbox_relay_fuzz::{delivered, row};
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let (_, mut row) = row(b"\nid\nevents\nkey\n\n\n\n");
    row.headers = String::from_utf8_lossy(data).into_owned();
    row.properties = "{}".to_owned();
    let (settings, _) = outbox_relay_fuzz::row(b"a");
    let rules = settings.rules();
    let json = serde_json::from_str::<Value>(&row.headers);
    let Ok(message) = Message::from_row(row, &rules) else {
        return;
    };
    let Ok(Value::Object(json)) = json else {
        panic!("headers were made of what is no JSON object");
    };
    let properties = delivered(&message, &rules.own_headers);
    let headers = properties.headers().clone().unwrap_or_default();
    assert_eq!(headers.inner().len(), json.len());
    for (name, value) in &json {
        let header = headers.inner().get(name.as_str()).expect("every name");
        assert!(same(value, header), "{name:?}: {value} became {header:?}");
    }
});

fn same(json: &Value, header: &AMQPValue) -> bool {
    match (json, header) {
        (Value::Null, AMQPValue::Void) => true,
        (Value::Bool(a), AMQPValue::Boolean(b)) => a == b,
        (Value::Number(a), AMQPValue::LongLongInt(b)) => a.to_string() == b.to_string() || a.to_string() == "-0",
        (Value::Number(a), AMQPValue::Double(b)) => a.to_string().parse() == Ok(*b) && b.is_finite(),
        (Value::String(a), AMQPValue::LongString(b)) => a.as_bytes() == b.as_bytes(),
        (Value::Array(a), AMQPValue::FieldArray(b)) => {
            let b = b.as_slice();
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), AMQPValue::FieldTable(b)) => {
            let b = b.inner();
            a.len() == b.len()
                && a.iter()
                    .all(|(name, a)| b.get(name.as_str()).is_some_and(|b| same(a, b)))
        }
        (Value::Object(a), AMQPValue::Timestamp(b)) => a.len() == 1 && a["$timestamp"].as_u64() == Some(*b),
        (Value::Object(a), AMQPValue::DecimalValue(b)) => {
            let digits = a["$decimal"].as_str().unwrap_or_default();
            let behind = digits.split_once('.').map_or(0, |(_, behind)| behind.len());
            let unscaled = digits.replace('.', "").parse::<i32>();
            a.len() == 1 && behind == usize::from(b.scale) && unscaled == Ok(b.value.cast_signed())
        }
        _ => false,
    }
}
