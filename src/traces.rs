//! A span of OpenTelemetry for each publish, where its variables ask for it: a child of the writer's, whose `traceparent` the
//! row has, and the parent of the consumer's, as the message carries it from here on.
//!
//! Nothing waits for a collector: spans go into a bounded queue, and those that find it full are dropped.
//! <https://opentelemetry.io/docs/specs/semconv/messaging/>

mod client;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Span as _, SpanBuilder, SpanKind, Status, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, Key, KeyValue};
use opentelemetry_otlp::{SpanExporter as Otlp, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span, SpanData, SpanExporter};
use tracing::{info, warn};
use url::Url;

use crate::broker::Outcome;
use crate::config;
use crate::message::{HeaderValue, Headers, Message, RowId};
use crate::relay::outage::Outage;

/// How long a stop waits for what is still to be sent.
const FAREWELL: Duration = Duration::from_secs(2);

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";

/// Makes spans and sends them.
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    propagator: TraceContextPropagator,
}

/// The broker that a span is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    host: String,
    port: u16,
}

impl Server {
    /// That of a URL.
    pub fn of(url: &str) -> Self {
        let url = Url::parse(url).ok();
        let port = |url: &Url| url.port().unwrap_or(if url.scheme() == "amqps" { 5671 } else { 5672 });
        Self {
            port: url.as_ref().map_or(0, port),
            host: url.as_ref().and_then(Url::host_str).unwrap_or_default().to_owned(),
        }
    }
}

impl Traces {
    /// Within the runtime that requests are to be sent from. `None` where there are to be no spans, or cannot be: the log says why.
    pub fn start(config: Option<&config::Traces>) -> Option<Self> {
        let client = client::Client::new(config?);
        let exporter = match Otlp::builder().with_http().with_http_client(client).build() {
            Ok(exporter) => exporter,
            Err(error) => {
                warn!(
                    reason = named(&error.to_string()),
                    "the OTEL_ variables cannot be used: no spans are sent"
                );
                return None;
            }
        };
        let exporter = Reporting {
            exporter,
            outage: Mutex::new(Outage::new("sending spans")),
        };
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource())
            .build();
        info!("spans are sent");
        Some(Self {
            tracer: provider.tracer("outbox-relay"),
            propagator: TraceContextPropagator::new(),
            provider,
        })
    }

    /// Begins a span for each message, and puts what stands for it into the message.
    pub fn begin(&self, batch: &mut [Arc<Message>], broker: &Server) -> Spans {
        let spans = batch.iter_mut().map(|message| {
            let parent = self
                .propagator
                .extract_with_context(&Context::new(), &Carrier(&message.headers));
            let mut span = self.tracer.build_with_context(builder(message, broker), &parent);
            *message = Arc::new(carrying(message, &mut span));
            (message.row, span)
        });
        Spans(spans.collect())
    }

    /// Sends what is left, within a bound.
    pub async fn stop(&self) {
        let provider = self.provider.clone();
        let stopping = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FAREWELL));
        // What could not be sent was reported.
        let _ = tokio::time::timeout(FAREWELL, stopping).await;
    }
}

/// Which variable an error is about; its text quotes the value, with a password that is in it.
fn named(error: &str) -> String {
    let name = error
        .split(|c: char| !c.is_ascii_uppercase() && c != '_')
        .find(|word| word.starts_with("OTEL_"));
    format!("{} is not understood", name.unwrap_or("one of them"))
}

/// The spans of a batch under way.
pub struct Spans(HashMap<RowId, Span>);

impl Spans {
    /// Ends them with what became of the messages.
    pub fn end(mut self, outcomes: &[(RowId, Outcome)]) {
        for (row, outcome) in outcomes {
            let Some(span) = self.0.get_mut(row) else { continue };
            if let Some(failure) = outcome.failure() {
                span.set_attribute(KeyValue::new("error.type", failure));
                span.set_status(Status::error(failure));
            }
            span.end();
        }
    }
}

/// Version 1.3x of the conventions. The name has the exchange only, as routing keys can be many.
fn builder(message: &Message, broker: &Server) -> SpanBuilder {
    let (exchange, key) = (&message.exchange, &message.routing_key);
    let named = if exchange.is_empty() { "amq.default" } else { exchange };
    let destination = match (exchange.is_empty(), key.is_empty()) {
        (false, false) => format!("{exchange}:{key}"),
        (true, false) => key.clone(),
        (_, true) => named.to_owned(),
    };
    let mut attributes = vec![
        KeyValue::new("messaging.system", "rabbitmq"),
        KeyValue::new("messaging.operation.name", "publish"),
        KeyValue::new("messaging.operation.type", "send"),
        KeyValue::new("messaging.destination.name", destination),
        KeyValue::new("messaging.message.id", message.message_id.as_str().to_owned()),
        KeyValue::new("messaging.message.body.size", message.body.len() as i64),
        KeyValue::new("server.address", broker.host.clone()),
        KeyValue::new("server.port", i64::from(broker.port)),
    ];
    if !key.is_empty() {
        attributes.push(KeyValue::new("messaging.rabbitmq.destination.routing_key", key.clone()));
    }
    if let Some(id) = &message.properties.correlation_id {
        attributes.push(KeyValue::new("messaging.message.conversation_id", id.clone()));
    }
    SpanBuilder::from_name(format!("publish {named}"))
        .with_kind(SpanKind::Producer)
        .with_attributes(attributes)
}

/// The message with this span for the consumer's parent; the body is not copied.
fn carrying(message: &Message, span: &mut Span) -> Message {
    let context = span.span_context();
    let mut message = message.clone();
    let parent = format!(
        "00-{}-{}-{:02x}",
        context.trace_id(),
        context.span_id(),
        context.trace_flags().to_u8()
    );
    message
        .headers
        .insert(TRACEPARENT.to_owned(), HeaderValue::Text(parent));
    // As the writer's; that of a `traceparent` which is none counts for nothing.
    match context.trace_state().header() {
        none if none.is_empty() => drop(message.headers.remove(TRACESTATE)),
        state => drop(message.headers.insert(TRACESTATE.to_owned(), HeaderValue::Text(state))),
    }
    message
}

struct Carrier<'a>(&'a Headers);

impl Extractor for Carrier<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match self.0.get(key) {
            Some(HeaderValue::Text(text)) => Some(text),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

/// What the variables say, with the name of the program where they say none.
fn resource() -> Resource {
    let resource = Resource::builder().build();
    let named = resource
        .get(&Key::from_static_str("service.name"))
        .map(|name| name.to_string());
    match named {
        Some(name) if !name.starts_with("unknown_service") => resource,
        _ => Resource::builder().with_service_name("outbox-relay").build(),
    }
}

/// Logs that spans are not taken, and that they are again.
struct Reporting {
    exporter: Otlp,
    outage: Mutex<Outage>,
}

impl fmt::Debug for Reporting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The other one's headers may hold a secret.
        f.write_str("Reporting")
    }
}

impl SpanExporter for Reporting {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let result = self.exporter.export(batch).await;
        let mut outage = self.outage.lock().unwrap_or_else(PoisonError::into_inner);
        match &result {
            Ok(()) => outage.over(),
            Err(error) => outage.goes_on(&error.to_string()),
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
