use serde_json::json;

use super::super::tests::{row, rules};
use super::*;
use crate::config;
use crate::message::{OutboxRow, Payload};

/// As the variables say, all of them set beside the URLs.
fn configured(variables: &[(&str, &str)]) -> MessageRules {
    let url = [
        ("RELAY_DATABASE_URL", "sqlite:///a.db"),
        ("RELAY_AMQP_URL", "amqp://localhost"),
        ("RELAY_CLOUDEVENTS_SOURCE", "/shop"),
    ];
    let all = url.iter().chain(variables);
    let env = all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let config = config::load(env).expect("valid").config;
    MessageRules {
        max_body_bytes: 1_000,
        cloudevents: config.cloudevents.map(Into::into),
        ..rules()
    }
}

const BINARY: (&str, &str) = ("RELAY_MESSAGE_FORMAT", "cloudevents-binary");
const JSON: (&str, &str) = ("RELAY_MESSAGE_FORMAT", "cloudevents-structured");

fn typed(payload: &[u8], content_type: &str, headers: &Value) -> OutboxRow {
    OutboxRow {
        kind: Some("order.placed".to_owned()),
        payload: Payload::Loaded(payload.to_vec()),
        content_type: content_type.to_owned(),
        headers: headers.to_string(),
        created_at: Some(Duration::from_micros(1_700_000_000_000_120)),
        ..row()
    }
}

fn made(row: OutboxRow, variables: &[(&str, &str)]) -> Message {
    Message::from_row(row, &configured(variables)).expect("a message")
}

/// As a row would have them.
fn headers(headers: &Value) -> Headers {
    headers::read(&headers.to_string(), &MessageRules::default()).expect("good headers")
}

fn reason(row: OutboxRow, variables: &[(&str, &str)]) -> String {
    let made = Message::from_row(row, &configured(variables));
    made.expect_err("no message").to_string()
}

/// The body of a structured event with this payload, from behind its attributes.
fn data(payload: &[u8], content_type: &str) -> String {
    let body = made(typed(payload, content_type, &json!({})), &[JSON]).body;
    let text = String::from_utf8(body.to_vec()).expect("UTF-8");
    let (_, data) = text.split_once(",\"type\":\"order.placed\"").expect("a type");
    data.to_owned()
}

#[test]
fn a_time_that_cannot_be_written_is_no_event() {
    let at = |micros| OutboxRow {
        created_at: Some(Duration::from_micros(micros)),
        ..typed(b"{}", "application/json", &json!({}))
    };
    let last = made(at(253_402_300_799_999_999), &[BINARY]);
    let time = HeaderValue::Text("9999-12-31T23:59:59.999999Z".to_owned());
    assert_eq!(last.headers.get("cloudEvents_time"), Some(&time));
    for beyond in [253_402_300_800_000_000, u64::MAX] {
        assert!(reason(at(beyond), &[JSON]).contains("year 9999"));
    }
}

#[test]
fn attributes_are_headers_with_the_prefix_and_the_payload_is_not_touched() {
    let given = json!({
        "tenant": 7, "cloudEvents_subject": "order/1", "cloudEvents_n": -3, "cloudEvents_yes": true, "cloudEvents_gone": null
    });
    let message = made(typed(b"{\"a\" :1}", "application/json", &given), &[BINARY]);
    assert_eq!(message.body[..], *b"{\"a\" :1}");
    assert_eq!(message.content_type, "application/json");
    assert_eq!(
        message.headers,
        headers(&json!({
            "tenant": 7,
            "cloudEvents_specversion": "1.0",
            "cloudEvents_id": "00000000-0000-0000-0000-000000000000",
            "cloudEvents_source": "/shop",
            "cloudEvents_type": "order.placed",
            "cloudEvents_subject": "order/1",
            "cloudEvents_time": "2023-11-14T22:13:20.000120Z",
            "cloudEvents_n": -3,
            "cloudEvents_yes": true
        }))
    );
    let given = json!({"ce-source": "/own", "cloudEvents_subject": "of another prefix"});
    let other = [
        BINARY,
        ("RELAY_CLOUDEVENTS_PREFIX", "ce-"),
        ("RELAY_CLOUDEVENTS_TYPE", "v2"),
    ];
    let headers = made(typed(b"", "text/plain", &given), &other).headers;
    let text = |name: &str| match &headers[name] {
        HeaderValue::Text(text) => text.clone(),
        other => panic!("{name} is {other:?}"),
    };
    assert_eq!(
        (text("ce-source"), text("ce-type")),
        ("/own".to_owned(), "v2".to_owned())
    );
    assert_eq!(text("cloudEvents_subject"), "of another prefix");
}

#[test]
fn json_is_put_into_json_byte_for_byte() {
    let deep = format!("{}{}", "[".repeat(400), "]".repeat(400));
    for payload in [
        "{\"n\": 1.10, \"n\":12345678901234567890123, \"e\":1e400,\"s\":\"\\u00e9\\ud800\"}",
        " null ",
        &deep,
    ] {
        for content_type in [
            "application/json",
            "text/json; charset=utf-8",
            "application/vnd.shop.v1+JSON",
        ] {
            assert_eq!(data(payload.as_bytes(), content_type), format!(",\"data\":{payload}}}"));
        }
    }
    assert_eq!(data(b"", "application/json"), "}", "an event without data");
    let given = json!({"a": "b", "cloudEvents_n": -3, "cloudEvents_yes": true});
    let message = made(typed(b"1", "application/json", &given), &[JSON]);
    assert_eq!(message.content_type, "application/cloudevents+json; charset=utf-8");
    assert_eq!(message.headers, headers(&json!({"a": "b"})));
    assert_eq!(
        String::from_utf8(message.body.to_vec()).expect("UTF-8"),
        "{\"datacontenttype\":\"application/json\",\"id\":\"00000000-0000-0000-0000-000000000000\",\"n\":-3,\"source\":\"/shop\",\
         \"specversion\":\"1.0\",\"time\":\"2023-11-14T22:13:20.000120Z\",\"type\":\"order.placed\",\"yes\":true,\"data\":1}"
    );
}

#[test]
fn other_data_is_a_string_or_base64_by_its_content_type() {
    assert_eq!(
        data("a\n\"é\0".as_bytes(), "text/csv"),
        ",\"data\":\"a\\n\\\"é\\u0000\"}"
    );
    assert_eq!(data(b"", "text/plain"), ",\"data\":\"\"}");
    assert_eq!(data(b"<a/>", "application/atom+xml"), ",\"data\":\"<a/>\"}");
    assert_eq!(data(b"x", "application/x; charset=\"UTF-8\""), ",\"data\":\"x\"}");
    // Text by accident is still no text.
    assert_eq!(data(b"abc", "application/protobuf"), ",\"data_base64\":\"YWJj\"}");
    assert_eq!(data(b"\xff\x00", "text/plain"), ",\"data_base64\":\"/wA=\"}");
    assert_eq!(data(b"", "application/octet-stream"), ",\"data_base64\":\"\"}");
}

#[test]
fn what_cannot_be_an_event_is_refused_with_what_to_do() {
    let with = |headers: Value| typed(b"{}", "application/json", &headers);
    let untyped = || OutboxRow {
        kind: None,
        ..with(json!({}))
    };
    for mode in [BINARY, JSON] {
        let why = reason(untyped(), &[mode]);
        assert!(
            why.contains("has no type") && why.contains("RELAY_CLOUDEVENTS_TYPE"),
            "{why}"
        );
        // A template whose columns are empty.
        let why = reason(untyped(), &[mode, ("RELAY_CLOUDEVENTS_TYPE", "{kind}")]);
        assert!(why.contains("RELAY_CLOUDEVENTS_TYPE makes it"), "{why}");
        for (headers, words) in [
            (json!({"cloudEvents_id": "1"}), "id cannot be set: it is the message_id"),
            (json!({"cloudEvents_data": "1"}), "it is the payload"),
            (json!({"cloudEvents_tenant_id": "1"}), "1 to 20 lower-case letters"),
            (json!({"cloudEvents_subject": ""}), "\"subject\" is empty"),
            (json!({"cloudEvents_subject": 1}), "must be a string, it is a number"),
            (json!({"cloudEvents_source": "a b"}), "no URI"),
            (json!({"cloudEvents_dataschema": "/a"}), "no absolute URI"),
            (json!({"cloudEvents_x": "a\nb"}), "control character"),
            (json!({"cloudEvents_x": "a\u{ffff}b"}), "no character"),
            (json!({"cloudEvents_x": "\u{fdd0}"}), "no character"),
            (json!({"cloudEvents_x": 2_147_483_648_u32}), "32 bits"),
            (json!({"cloudEvents_x": 1.5}), "32 bits"),
            (json!({"cloudEvents_x": [1]}), "it is an array"),
            (json!({"cloudEvents_x": {"$timestamp": 1}}), "it is a timestamp"),
        ] {
            let why = reason(with(headers), &[mode]);
            assert!(why.contains(words), "{why}");
        }
    }
    for mode in [BINARY, JSON] {
        let why = reason(typed(b"1", "text/plain\n", &json!({})), &[mode]);
        assert!(why.contains("content_type, the datacontenttype"), "{why}");
    }
    let payload = |bytes: &[u8], content_type| reason(typed(bytes, content_type, &json!({})), &[JSON]);
    assert!(payload(b"{\"secret\":}", "application/json").contains("not JSON, though"));
    assert!(!payload(b"{\"secret\":}", "application/json").contains("secret"));
    assert!(payload(b"1 2", "application/json").contains("trailing characters"));
    assert!(payload(b"\"\xff\"", "application/json").contains("not UTF-8"));
    assert!(payload(&[0; 800], "application/octet-stream").contains("as a CloudEvent the payload has 1"));
    let encoded = OutboxRow {
        properties: "{\"content_encoding\":\"gzip\"}".to_owned(),
        ..with(json!({}))
    };
    assert!(reason(encoded, &[JSON]).contains("content_encoding"));
    let long = json!({"a": "x".repeat(125_800)});
    assert!(reason(with(long), &[BINARY]).contains("one AMQP frame"));
}

#[test]
fn what_is_an_event_already_stays_as_it_is() {
    let row = typed(b"[]", "Application/CloudEvents-batch+json", &json!({"a": 1}));
    for mode in [BINARY, JSON] {
        let message = made(row.clone(), &[mode]);
        assert_eq!(message.body[..], *b"[]");
        assert_eq!(message.headers, headers(&json!({"a": 1})));
    }
}
