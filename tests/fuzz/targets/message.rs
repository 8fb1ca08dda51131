//! A row of any text becomes a message that arrives as it is, or is refused.
#![no_main]

use std::io::Read as _;
use std::sync::Arc;

use libfuzzer_sys::{Corpus, fuzz_target};
use outbox_relay::message::{Copies, HeaderValue, Message};
use outbox_relay_fuzz::{Settings, delivered, row, traced};
use serde_json::Value;

fuzz_target!(|data: &[u8]| -> Corpus {
    let (settings, row) = row(data);
    let rules = settings.rules();
    let Ok(message) = Message::from_row(row.clone(), &rules) else {
        return Corpus::Keep;
    };
    let (_, again) = outbox_relay_fuzz::row(data);
    let again = Message::from_row(again, &rules).expect("it was a message before");
    assert_eq!((&message.body, &message.headers), (&again.body, &again.headers));
    assert_eq!(message.routing_key, row.routing_key);
    assert!(message.body.len() as u64 <= rules.max_body_bytes);
    check_body(&settings, &message, data);

    let mut message = Arc::new(message);
    if settings.has('t') {
        message = with_span(message);
    }
    let sent = match settings.compression() {
        Some(compression) => compression.apply(&[message.clone()]).remove(0),
        None => message.clone(),
    };
    assert_eq!(plain(&sent, &message), message.body);
    for copies in [Copies::None, Copies::Perhaps, Copies::Unknown, Copies::Refused] {
        let sent = Message {
            copies,
            ..(*sent).clone()
        };
        let properties = delivered(&sent, &rules.own_headers);
        let id = properties.message_id().as_ref().map(|id| id.as_str());
        assert_eq!(id, Some(message.message_id.as_str()));
        let kind = properties.kind().as_ref().map(|kind| kind.as_str());
        assert_eq!(kind, message.kind.as_deref());
        let headers = properties.headers().as_ref().map_or(0, |table| table.inner().len());
        let own = usize::from(settings.has('d') && copies != Copies::Refused) + usize::from(settings.has('r'));
        assert_eq!(
            headers,
            message.headers.len() + own,
            "every header, and those of the relay"
        );
    }
    Corpus::Keep
});

/// All headers stay, but for those of the trace.
fn with_span(message: Arc<Message>) -> Arc<Message> {
    let traced = traced(&message);
    let others = |message: &Message| {
        let mut headers = message.headers.clone();
        headers.retain(|name, _| !["traceparent", "tracestate"].contains(&name.as_str()));
        headers
    };
    assert_eq!(others(&traced), others(&message));
    match &traced.headers["traceparent"] {
        HeaderValue::Text(parent) => assert_eq!(parent.len(), 55),
        other => panic!("{other:?} for a traceparent"),
    }
    assert_eq!(traced.body, message.body);
    traced
}

/// The body is the payload, or an event with it.
fn check_body(settings: &Settings, message: &Message, data: &[u8]) {
    let event = message.content_type == "application/cloudevents+json; charset=utf-8";
    if settings.has('s') && !settings.has('b') && event {
        let event: Value = serde_json::from_slice(&message.body).expect("an event is JSON");
        // A row can be an event of its own, which is sent as it is.
        if event["specversion"] == "1.0" {
            assert_eq!(event["id"], message.message_id.as_str());
        }
    } else {
        let payload = data.splitn(10, |byte| *byte == b'\n').nth(9).unwrap_or_default();
        assert_eq!(message.body[..], *payload);
    }
}

/// The body as its `content_encoding` says.
fn plain(sent: &Message, message: &Message) -> Vec<u8> {
    let encoding = sent.properties.content_encoding.as_deref();
    match encoding.filter(|_| message.properties.content_encoding.is_none()) {
        None => sent.body.to_vec(),
        Some("gzip") => {
            let mut plain = Vec::new();
            let mut decoder = flate2::read::GzDecoder::new(&*sent.body);
            decoder.read_to_end(&mut plain).expect("gzip");
            plain
        }
        Some(_) => zstd::bulk::decompress(&sent.body, message.body.len()).expect("zstd"),
    }
}
