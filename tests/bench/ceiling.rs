//! The limit: the relay's own lanes, publishing the same messages from memory. No database, no order to keep.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use outbox_relay::broker::amqp::{Amqp, AmqpOptions};
use outbox_relay::broker::{Broker, Lane, Outcome};
use outbox_relay::config::{Secret, Tls};
use outbox_relay::message::{Message, MessageRules, OrderingKey, OutboxRow, OwnHeaders, Payload, RowId};
use uuid::Uuid;

use crate::procfs;
use crate::stage::{EXCHANGE, ROUTING_KEY, Stage, body};

/// The relay's lanes, `relay::LANES`.
const LANES: usize = 4;

/// The relay's default window: `RELAY_PUBLISH_IN_FLIGHT`.
const IN_FLIGHT: usize = 1_000;

/// How messages are published.
#[derive(Clone, Copy)]
pub(crate) enum Window {
    /// All lanes, each with its share of the window.
    Full,
    /// One lane, one message after the other: what strict order allows a single key.
    One,
}

#[derive(Clone, Copy)]
pub(crate) struct Ceiling {
    /// Messages a second, from the first confirm to the last.
    pub(crate) rate: f64,
    /// Of this process, user and system.
    pub(crate) cpu_a_message: Duration,
    pub(crate) broker_cpu_a_message: Duration,
}

impl Ceiling {
    pub(crate) fn mean(self, other: Self) -> Self {
        Self {
            rate: f64::midpoint(self.rate, other.rate),
            cpu_a_message: (self.cpu_a_message + other.cpu_a_message) / 2,
            broker_cpu_a_message: (self.broker_cpu_a_message + other.broker_cpu_a_message) / 2,
        }
    }
}

/// Publishes `count` messages.
pub(crate) async fn measure(stage: &Stage, count: usize, window: Window) -> Ceiling {
    let messages: Arc<Vec<_>> = Arc::new((1..=count).map(message).collect());
    let (lanes, batch) = match window {
        Window::Full => (LANES, IN_FLIGHT / LANES),
        Window::One => (1, 1),
    };
    let broker = Amqp::new(AmqpOptions {
        urls: vec![Secret::new(stage.amqp_url.as_str())],
        tls: Tls::default(),
        connect_timeout: Duration::from_secs(10),
        confirm_timeout: Duration::from_secs(30),
        lanes,
        own_headers: OwnHeaders::default(),
    });
    let connected = broker.connect().await.expect("the broker is up");
    let next = Arc::new(AtomicUsize::new(0));
    let cpu = procfs::cpu(std::process::id());
    let broker_cpu = procfs::cpu_of_tree(stage.rabbit.pid());
    let lanes: Vec<_> = connected
        .lanes
        .into_iter()
        .map(|lane| tokio::spawn(publish(lane, messages.clone(), next.clone(), batch)))
        .collect();
    let mut confirmed = Vec::new();
    for lane in lanes {
        confirmed.extend(lane.await.expect("it publishes"));
    }
    let cpu = procfs::cpu(std::process::id()) - cpu;
    let broker_cpu = procfs::cpu_of_tree(stage.rabbit.pid()).saturating_sub(broker_cpu);
    connected.session.close().await;
    confirmed.sort_unstable();
    let (first, last) = (confirmed[0], confirmed[confirmed.len() - 1]);
    Ceiling {
        rate: (count - batch) as f64 / (last - first).as_secs_f64(),
        cpu_a_message: cpu / count as u32,
        broker_cpu_a_message: broker_cpu / count as u32,
    }
}

/// When each batch was confirmed.
async fn publish(
    mut lane: Box<dyn Lane>,
    messages: Arc<Vec<Arc<Message>>>,
    next: Arc<AtomicUsize>,
    batch: usize,
) -> Vec<Instant> {
    let mut confirmed = Vec::new();
    loop {
        let from = next.fetch_add(batch, Ordering::Relaxed).min(messages.len());
        let messages = &messages[from..messages.len().min(from + batch)];
        if messages.is_empty() {
            return confirmed;
        }
        lane.begin(messages.to_vec());
        let report = lane.report().await;
        let good = |(_, outcome): &(RowId, Outcome)| matches!(outcome, Outcome::Confirmed(_));
        assert!(
            report.broken.is_none() && report.outcomes.iter().all(good),
            "every message is confirmed"
        );
        confirmed.push(Instant::now());
    }
}

/// What the relay makes of the `n`th row.
fn message(n: usize) -> Arc<Message> {
    let row = OutboxRow {
        id: RowId(n as i64),
        message_id: Uuid::new_v4().into(),
        exchange: None,
        routing_key: ROUTING_KEY.to_owned(),
        ordering_key: Some(OrderingKey::new("key")),
        kind: None,
        content_type: "application/json".to_owned(),
        headers: "{}".to_owned(),
        properties: "{}".to_owned(),
        payload: Payload::Loaded(body(n)),
        created_at: Some(Duration::from_secs(1_700_000_000)),
        age: Duration::ZERO,
        due_in: Duration::ZERO,
        attempts: 0,
        not_utf8: None,
    };
    let rules = MessageRules {
        default_exchange: EXCHANGE.to_owned(),
        max_body_bytes: 1 << 20,
        ..MessageRules::default()
    };
    Arc::new(Message::from_row(row, &rules).expect("a good row"))
}
