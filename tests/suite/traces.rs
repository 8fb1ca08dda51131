//! Spans, as a receiver with OpenTelemetry's own protobuf definitions decodes them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::Child;

use crate::outbox::{Outbox, SECOND};
use crate::support::{Authority, Consumer, Received, free_port, python, until};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const WRITER: &str = "00f067aa0ba902b7";

/// Ends when it is dropped.
struct Collector {
    port: u16,
    spans: Arc<Mutex<Vec<Value>>>,
    _process: Child,
}

impl Collector {
    async fn start(arguments: &[&str]) -> Self {
        let mut process = python::start("collector.py", arguments);
        let mut lines = BufReader::new(process.stdout.take().expect("it is piped")).lines();
        let first = tokio::time::timeout(30 * SECOND, lines.next_line()).await;
        let port = first.expect("in time").expect("UTF-8").expect("a line");
        let spans = Arc::new(Mutex::new(Vec::new()));
        let sink = spans.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let span = serde_json::from_str(&line).expect("JSON");
                sink.lock().expect("no panic while locked").push(span);
            }
        });
        Self {
            port: port.parse().expect("a port"),
            spans,
            _process: process,
        }
    }

    fn spans(&self) -> Vec<Value> {
        self.spans.lock().expect("no panic while locked").clone()
    }

    /// Once there are so many, by message id.
    async fn wait(&self, count: usize) -> HashMap<String, Value> {
        until("spans have come", 30 * SECOND, async || self.spans().len() >= count).await;
        let id = |span: &Value| {
            span["attributes"]["messaging.message.id"]
                .as_str()
                .expect("an id")
                .to_owned()
        };
        self.spans().into_iter().map(|span| (id(&span), span)).collect()
    }
}

fn header<'a>(message: &'a Received, name: &str) -> Option<&'a str> {
    let value = message.headers.inner().get(name)?;
    Some(std::str::from_utf8(value.as_long_string().expect("text").as_bytes()).expect("UTF-8"))
}

/// The trace and the span that a message names, and the flags.
fn parts(message: &Received) -> Vec<&str> {
    header(message, "traceparent")
        .expect("a traceparent")
        .split('-')
        .collect()
}

async fn insert(outbox: &Outbox, routing_key: &str, payload: &str, headers: &Value) {
    let insert = format!(
        "INSERT INTO outbox (routing_key, ordering_key, payload, headers, properties)
         VALUES ('{routing_key}', '{payload}', '\"{payload}\"', '{headers}', '{{\"correlation_id\": \"order-7\"}}')"
    );
    outbox.db.run(&insert).await;
}

async fn spans_lead_from_writer_to_consumer(outbox: Outbox) {
    let collector = Collector::start(&["200"]).await;
    let writer = |flags| format!("00-{TRACE}-{WRITER}-{flags}");
    let known = json!({"traceparent": writer("01"), "tracestate": "vendor=a,other=b", "tenant": 7});
    insert(&outbox, "good", "known", &known).await;
    insert(&outbox, "good", "new", &json!({})).await;
    insert(&outbox, "good", "unsampled", &json!({"traceparent": writer("00")})).await;
    insert(
        &outbox,
        "good",
        "broken",
        &json!({"traceparent": "00-x", "tracestate": "vendor=a"}),
    )
    .await;
    insert(&outbox, "nowhere", "unroutable", &json!({})).await;
    let mut relay = outbox
        .relay()
        .env(
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            format!("http://127.0.0.1:{}", collector.port),
        )
        .env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20s3cr3t")
        .env("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        .env("RELAY_RETRY_MAX_ATTEMPTS", "1")
        .env("RELAY_LOG", "trace")
        .spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let received = consumer.wait_distinct(4, 30 * SECOND).await;
    outbox.wait_all_sent(30 * SECOND).await;
    relay.sigterm();
    assert!(relay.wait(30 * SECOND).await.success());
    // A stop sends what is left: nobody waited for the schedule.
    let spans = collector.wait(4).await;
    assert_eq!(spans.len(), 4, "all but the one that is not sampled: {spans:?}");
    let of = |name: &str| {
        let message = received.iter().find(|message| message.text() == format!("\"{name}\""));
        message.unwrap_or_else(|| panic!("{name} is missing"))
    };

    let message = of("known");
    let span = &spans[&message.message_id];
    assert_eq!(
        parts(message),
        ["00", TRACE, span["span"].as_str().expect("text"), "01"]
    );
    assert_eq!((&span["trace"], &span["parent"]), (&json!(TRACE), &json!(WRITER)));
    assert_eq!(header(message, "tracestate"), Some("vendor=a,other=b"));
    assert_eq!(span["tracestate"], "vendor=a,other=b");
    assert!(message.headers.inner().contains_key("tenant"));
    let server = url::Url::parse(&outbox.amqp_url).expect("a URL");
    assert_eq!(
        span["attributes"],
        json!({
            "messaging.system": "rabbitmq",
            "messaging.operation.name": "publish",
            "messaging.operation.type": "send",
            "messaging.destination.name": "events:good",
            "messaging.rabbitmq.destination.routing_key": "good",
            "messaging.message.id": message.message_id,
            "messaging.message.conversation_id": "order-7",
            "messaging.message.body.size": message.body.len(),
            "server.address": server.host_str(),
            "server.port": server.port(),
        })
    );
    // PRODUCER; nothing is said of what went well.
    assert_eq!(
        (&span["name"], &span["kind"], &span["status"]),
        (&json!("publish events"), &json!(4), &json!(0))
    );
    assert!(span["nanoseconds"].as_u64().is_some_and(|time| time > 0));
    assert_eq!(
        (&span["path"], &span["content_type"]),
        (&json!("/v1/traces"), &json!("application/x-protobuf"))
    );
    assert_eq!(span["authorization"], "Bearer s3cr3t");
    assert_eq!(span["resource"]["service.name"], "outbox-relay");
    assert_eq!(span["resource"]["deployment.environment.name"], "test");

    for name in ["new", "broken"] {
        let message = of(name);
        let span = &spans[&message.message_id];
        let [trace, id] = [&span["trace"], &span["span"]].map(|text| text.as_str().expect("text"));
        assert_eq!(parts(message), ["00", trace, id, "01"]);
        assert_eq!(span["parent"], "", "a new trace");
        assert_eq!(header(message, "tracestate"), None);
    }
    let unsampled = parts(of("unsampled"));
    assert_eq!((unsampled[1], unsampled[3]), (TRACE, "00"));
    assert!(!spans.contains_key(&of("unsampled").message_id));

    let lost = spans
        .values()
        .find(|span| span["status"] == 2)
        .expect("a span of the one that was returned");
    assert_eq!(lost["attributes"]["error.type"], "unroutable");
    assert_eq!(lost["attributes"]["messaging.destination.name"], "events:nowhere");
    assert!(!relay.log_text().contains("s3cr3t"), "{}", relay.log_text());
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_lead_from_writer_to_consumer_on_postgres() {
    spans_lead_from_writer_to_consumer(Outbox::on_postgres().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_lead_from_writer_to_consumer_on_mariadb() {
    spans_lead_from_writer_to_consumer(Outbox::on_mariadb().await).await;
}

/// What delays spans delays no message, and no stop for long.
async fn relays_beside_a_collector_at(endpoint: &str, more: &[(&str, &str)]) -> String {
    let outbox = Outbox::on_sqlite().await;
    // More than the queue holds.
    outbox.insert(0, 5_000, 100).await;
    let relay = outbox
        .relay()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        .env("OTEL_BSP_SCHEDULE_DELAY", "10");
    let relay = more.iter().fold(relay, |relay, (name, value)| relay.env(name, value));
    let mut relay = relay.spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    consumer.wait_distinct(5_000, 60 * SECOND).await;
    outbox.wait_all_sent(60 * SECOND).await;
    // Each message names its span, whether that is sent or not.
    assert!(
        consumer
            .snapshot()
            .iter()
            .all(|message| header(message, "traceparent").is_some())
    );
    let start = Instant::now();
    relay.sigterm();
    assert!(relay.wait(30 * SECOND).await.success());
    // The bound of the spans is 2 s.
    assert!(start.elapsed() < 20 * SECOND, "{:?}", start.elapsed());
    relay.log_text()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_not_there_delays_nothing() {
    let log = relays_beside_a_collector_at(&format!("http://127.0.0.1:{}", free_port()), &[]).await;
    assert!(log.contains("sending spans fails"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_never_answers_delays_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    // Connections are taken by the kernel, and nobody reads them.
    let log = relays_beside_a_collector_at(
        &format!("http://127.0.0.1:{port}"),
        &[("OTEL_EXPORTER_OTLP_TIMEOUT", "300")],
    )
    .await;
    assert!(log.contains("sending spans fails"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_takes_nothing_delays_nothing() {
    let collector = Collector::start(&["503"]).await;
    let log = relays_beside_a_collector_at(&format!("http://127.0.0.1:{}", collector.port), &[]).await;
    assert!(log.contains("sending spans fails"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_go_over_tls_to_a_collector_whose_authority_is_known() {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new("collectors");
    let (certificate, key) = authority.server(&["localhost"]).write(folder.path(), "collector");
    let ca_file = folder.path().join("ca.pem");
    std::fs::write(&ca_file, authority.pem()).expect("the folder is writable");
    let [certificate, key, ca_file] = [&certificate, &key, &ca_file].map(|path| path.to_str().expect("UTF-8"));
    let collector = Collector::start(&["200", certificate, key]).await;
    let endpoint = format!("https://localhost:{}", collector.port);
    relays_beside_a_collector_at(&endpoint, &[("OTEL_EXPORTER_OTLP_CERTIFICATE", ca_file)]).await;
    assert!(!collector.spans().is_empty());
    let log = relays_beside_a_collector_at(&endpoint, &[]).await;
    assert!(
        log.contains("sending spans fails"),
        "not signed by an authority of the system: {log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_being_asked_for_there_are_no_spans() {
    let collector = Collector::start(&["200"]).await;
    let outbox = Outbox::on_sqlite().await;
    let endpoint = format!("http://127.0.0.1:{}", collector.port);
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    for (number, (name, value)) in [
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
    ]
    .into_iter()
    .enumerate()
    {
        insert(&outbox, "good", &format!("m{number}"), &json!({})).await;
        let mut relay = outbox
            .relay()
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
            .env(name, value)
            .spawn();
        let received = consumer.wait_distinct(number + 1, 30 * SECOND).await;
        assert!(
            received[number].headers.inner().is_empty(),
            "{name}: {:?}",
            received[number].headers
        );
        relay.sigterm();
        assert!(relay.wait(Duration::from_secs(30)).await.success());
        let warned = relay.log_text().contains("no spans are sent");
        assert_eq!(warned, number >= 2, "{name}: {}", relay.log_text());
    }
    assert!(collector.spans().is_empty());
}
