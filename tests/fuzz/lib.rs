//! What the targets share: rows written as text, and messages as the broker gets them.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, WriteContext, gen_frame, parse_frame};
use amq_protocol::protocol::{AMQPClass, basic};
use lapin::BasicProperties;
use outbox_relay::broker::{Outcome, amqp};
use outbox_relay::config::{self, CloudEvents};
use outbox_relay::message::{
    Coding, Compression, Message, MessageId, MessageRules, OrderingKey, OutboxRow, OwnHeaders, Payload, RowId,
};
use outbox_relay::traces::{Server, Traces};
use tokio::runtime::Runtime;

/// What the relay asks the broker for.
const FRAME_MAX: usize = 131_072;

/// A row out of lines: settings, message id, exchange, routing key, type, content type, `created_at` in microseconds,
/// headers, properties; all that follows is the body. Lines that are not there are empty.
pub fn row(data: &[u8]) -> (Settings, OutboxRow) {
    let mut lines = data.splitn(10, |byte| *byte == b'\n');
    let mut line = || String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let settings = Settings(line());
    let row = OutboxRow {
        id: RowId(1),
        message_id: MessageId::new(&line()),
        exchange: Some(line()).filter(|name| !name.is_empty()),
        routing_key: line(),
        ordering_key: Some(OrderingKey::new("k")),
        kind: Some(line()).filter(|kind| !kind.is_empty()),
        content_type: line(),
        created_at: line().parse().ok().map(Duration::from_micros),
        headers: line(),
        properties: line(),
        payload: Payload::Loaded(lines.next().unwrap_or_default().to_vec()),
        age: Duration::ZERO,
        due_in: Duration::ZERO,
        attempts: 0,
        not_utf8: None,
    };
    (settings, row)
}

/// One letter for each: `b` and `s` binary and structured events, `g` and `z` gzip and zstd, `d` and `r` the relay's own
/// headers, `a` reserved headers allowed, `t` a span.
pub struct Settings(String);

impl Settings {
    /// Whether the letter is there.
    pub fn has(&self, letter: char) -> bool {
        self.0.contains(letter)
    }

    /// The rules for messages.
    pub fn rules(&self) -> MessageRules {
        let own = |letter, name: &str| self.has(letter).then(|| name.to_owned());
        let allowed: &[&str] = if self.has('a') { &["CC", "BCC", "x-death"] } else { &[] };
        MessageRules {
            default_exchange: "events".to_owned(),
            max_body_bytes: 1 << 20,
            allowed_headers: allowed.iter().map(|&name| name.to_owned()).collect(),
            own_headers: OwnHeaders {
                dedup: own('d', "x-deduplication-header"),
                repeat: own('r', "outbox-repeat"),
            },
            cloudevents: self.cloudevents(),
        }
    }

    fn cloudevents(&self) -> Option<Arc<CloudEvents>> {
        match (self.has('b'), self.has('s')) {
            (true, _) => BINARY.clone(),
            (false, true) => STRUCTURED.clone(),
            (false, false) => None,
        }
    }

    /// The compression, of bodies from 16 bytes on.
    pub fn compression(&self) -> Option<Compression> {
        let coding = match (self.has('g'), self.has('z')) {
            (true, _) => Coding::Gzip,
            (false, true) => Coding::Zstd,
            (false, false) => return None,
        };
        Some(Compression { coding, min_bytes: 16 })
    }
}

static BINARY: LazyLock<Option<Arc<CloudEvents>>> = LazyLock::new(|| events("cloudevents-binary"));
static STRUCTURED: LazyLock<Option<Arc<CloudEvents>>> = LazyLock::new(|| events("cloudevents-structured"));

/// The settings of a format; the type is a row's own.
fn events(format: &str) -> Option<Arc<CloudEvents>> {
    let given = [("RELAY_MESSAGE_FORMAT", format), ("RELAY_CLOUDEVENTS_SOURCE", "/shop")];
    let env = required().into_iter().chain(given);
    let loaded = config::load(env.map(|(name, value)| (name.to_owned(), value.to_owned())));
    loaded.expect("a configuration").config.cloudevents.map(Arc::new)
}

/// The variables that must be set.
pub fn required() -> [(&'static str, &'static str); 2] {
    [
        ("RELAY_DATABASE_URL", "sqlite:///nowhere"),
        ("RELAY_AMQP_URL", "amqp://localhost"),
    ]
}

static TRACES: LazyLock<(Runtime, Traces)> = LazyLock::new(|| {
    let runtime = Runtime::new().expect("a runtime");
    let guard = runtime.enter();
    // No collector is there: spans are dropped on another thread.
    let traces = Traces::start(Some(&config::Traces {
        timeout: Duration::from_millis(100),
        ca_file: None,
        exposed: false,
    }));
    drop(guard);
    (runtime, traces.expect("no variable is wrong"))
});

/// The message as it goes with a span.
pub fn traced(message: &Arc<Message>) -> Arc<Message> {
    let mut batch = [message.clone()];
    let spans = TRACES.1.begin(&mut batch, &Server::of("amqp://localhost"));
    spans.end(&[(message.row, Outcome::Nacked)]);
    let [message] = batch;
    message
}

/// Writes the frames of a message and reads them again: what a broker would see.
pub fn delivered(message: &Message, own: &OwnHeaders) -> BasicProperties {
    let properties = amqp::properties(message, own);
    let publish = basic::AMQPMethod::Publish(basic::Publish {
        exchange: message.exchange.as_str().into(),
        routing_key: message.routing_key.as_str().into(),
        mandatory: true,
        immediate: false,
    });
    passed(&AMQPFrame::Method(1, AMQPClass::Basic(publish)));
    let header = AMQPFrame::Header(
        1,
        AMQPContentHeader {
            class_id: 60,
            body_size: message.body.len() as u64,
            properties: properties.clone(),
        },
    );
    let AMQPFrame::Header(_, read) = passed(&header) else {
        panic!("a header frame became another one");
    };
    assert_eq!(read.properties, properties, "decoding gives what was encoded");
    read.properties
}

/// The frame, written and read.
fn passed(frame: &AMQPFrame) -> AMQPFrame {
    let context = WriteContext::from(Vec::new());
    let (bytes, _) = gen_frame(frame)(context).expect("it can be encoded").into_inner();
    assert!(bytes.len() <= FRAME_MAX, "a frame of {} bytes", bytes.len());
    let (rest, read) = parse_frame(&*bytes).expect("it can be decoded");
    assert!(rest.is_empty(), "{} bytes behind a frame", rest.len());
    read
}
