//! The limit: the relay's own lanes, publishing the same messages from memory. No database, no order to keep.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Confirmation, Connection, ConnectionProperties};
use outbox_relay::broker::amqp::{Amqp, AmqpOptions};
use outbox_relay::broker::{Broker, Lane, Outcome};
use outbox_relay::config::{Secret, Tls};
use outbox_relay::message::{Message, MessageRules, OrderingKey, OutboxRow, OwnHeaders, Payload, RowId};
use outbox_relay::relay;
use uuid::Uuid;

use crate::procfs;
use crate::stage::{EXCHANGE, ROUTING_KEY, Stage, body};

/// Of every message.
const CREATED_AT: Duration = Duration::from_secs(1_700_000_000);

/// How messages are published.
#[derive(Clone, Copy)]
pub(crate) enum Window {
    /// All lanes, each with its share of the window.
    Full,
    /// On a bare channel, one message after the other: what strict order allows a single key.
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
    let messages: Vec<_> = (1..=count).map(message).collect();
    match window {
        Window::Full => by_lanes(stage, messages).await,
        Window::One => one_by_one(stage, messages).await,
    }
}

/// As many lanes and as large a window as the relay has.
async fn by_lanes(stage: &Stage, messages: Vec<Arc<Message>>) -> Ceiling {
    let config = stage.config();
    let lanes = relay::lanes(&config);
    let window = config.publish.in_flight as usize;
    assert!(messages.len() > window, "a window of {window} needs more rows");
    let batch = window / lanes;
    let broker = Amqp::new(AmqpOptions {
        urls: vec![Secret::new(stage.amqp_url.as_str())],
        tls: Tls::default(),
        connect_timeout: Duration::from_secs(10),
        confirm_timeout: Duration::from_secs(30),
        lanes,
        own_headers: OwnHeaders::default(),
    });
    let connected = broker.connect().await.expect("the broker is up");
    let (messages, next) = (Arc::new(messages), Arc::new(AtomicUsize::new(0)));
    let clock = Clock::start(stage);
    let lanes: Vec<_> = connected
        .lanes
        .into_iter()
        .map(|lane| tokio::spawn(publish(lane, messages.clone(), next.clone(), batch)))
        .collect();
    let mut confirmed = Vec::new();
    for lane in lanes {
        confirmed.extend(lane.await.expect("it publishes"));
    }
    let ceiling = clock.stop(stage, messages.len(), batch, confirmed);
    connected.session.close().await;
    ceiling
}

/// Publish, await the confirm, next.
async fn one_by_one(stage: &Stage, messages: Vec<Arc<Message>>) -> Ceiling {
    let connection = Connection::connect(&stage.amqp_url, ConnectionProperties::default())
        .await
        .expect("the broker is up");
    let channel = connection.create_channel().await.expect("a channel");
    let select = channel.confirm_select(ConfirmSelectOptions::default());
    select.await.expect("confirms");
    let mandatory = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let mut confirmed = Vec::with_capacity(messages.len());
    let clock = Clock::start(stage);
    for message in &messages {
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_delivery_mode(2)
            .with_message_id(message.message_id.as_str().into())
            .with_timestamp(CREATED_AT.as_secs());
        let sent = channel.basic_publish(
            EXCHANGE.into(),
            ROUTING_KEY.into(),
            mandatory,
            &message.body,
            properties,
        );
        let answer = sent.await.expect("it publishes").await.expect("an answer");
        assert!(matches!(answer, Confirmation::Ack(None)), "every message is confirmed");
        confirmed.push(Instant::now());
    }
    let ceiling = clock.stop(stage, messages.len(), 1, confirmed);
    connection.close(200, "".into()).await.expect("it closes");
    ceiling
}

/// Processor times before anything was published.
struct Clock {
    own: Duration,
    broker: Duration,
}

impl Clock {
    fn start(stage: &Stage) -> Self {
        Self {
            own: procfs::cpu(std::process::id()),
            broker: procfs::cpu_of_tree(stage.rabbit.pid()),
        }
    }

    /// `confirmed`: when each batch of so many messages was.
    fn stop(self, stage: &Stage, count: usize, batch: usize, mut confirmed: Vec<Instant>) -> Ceiling {
        let now = Self::start(stage);
        confirmed.sort_unstable();
        let (first, last) = (confirmed[0], confirmed[confirmed.len() - 1]);
        Ceiling {
            rate: (count - batch) as f64 / (last - first).as_secs_f64(),
            cpu_a_message: (now.own - self.own) / count as u32,
            broker_cpu_a_message: now.broker.saturating_sub(self.broker) / count as u32,
        }
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
        created_at: Some(CREATED_AT),
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
