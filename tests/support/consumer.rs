//! What arrives at the other end of the broker.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Connection, ConnectionProperties, ExchangeKind};
use tokio::task::JoinHandle;

/// Bounds each step of talking to the broker; a frozen one must not hang the test.
const STEP: Duration = Duration::from_secs(20);

/// Deliveries on their way at most. The broker may deliver those of a lost connection again *after* newer messages, so
/// that nothing can be said of their order: few of them.
pub const PREFETCH: u16 = 50;

/// After so long without a delivery the consumer connects anew: a queue that is just starting up may take a consumer and
/// forget it.
const QUIET: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Quorum,
    Classic,
}

/// Declares a durable direct exchange and a durable queue that is bound to it with these keys. An
/// exchange named "" is the default one: no binding is needed, its key is the queue's name.
pub async fn declare(url: &str, exchange: &str, queue: &str, kind: Kind, routing_keys: &[&str]) {
    let work = async {
        let connection = connect(url).await?;
        let channel = connection.create_channel().await?;
        let mut arguments = FieldTable::default();
        let kind = match kind {
            Kind::Quorum => "quorum",
            Kind::Classic => "classic",
        };
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        channel
            .queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments)
            .await?;
        if !exchange.is_empty() {
            let durable = ExchangeDeclareOptions {
                durable: true,
                ..Default::default()
            };
            let none = FieldTable::default;
            channel
                .exchange_declare(exchange.into(), ExchangeKind::Direct, durable, none())
                .await?;
            for key in routing_keys {
                let options = QueueBindOptions::default();
                channel
                    .queue_bind(queue.into(), exchange.into(), (*key).into(), options, none())
                    .await?;
            }
        }
        connection.close(200, "done".into()).await
    };
    tokio::time::timeout(STEP, work)
        .await
        .expect("the broker answers")
        .unwrap_or_else(|e| panic!("declare {exchange:?} -> {queue:?}: {e}"));
}

/// Declares a durable exchange with arguments, and binds the queue to it without a routing key.
pub async fn exchange(url: &str, name: &str, kind: ExchangeKind, arguments: &[(&str, &str)], queue: Option<&str>) {
    let work = async {
        let connection = connect(url).await?;
        let channel = connection.create_channel().await?;
        let durable = ExchangeDeclareOptions {
            durable: true,
            ..Default::default()
        };
        let mut table = FieldTable::default();
        for (name, value) in arguments {
            table.insert((*name).into(), AMQPValue::LongString((*value).into()));
        }
        channel.exchange_declare(name.into(), kind, durable, table).await?;
        if let Some(queue) = queue {
            let options = QueueBindOptions::default();
            let binding = channel.queue_bind(queue.into(), name.into(), "".into(), options, FieldTable::default());
            binding.await?;
        }
        connection.close(200, "done".into()).await
    };
    tokio::time::timeout(STEP, work)
        .await
        .expect("the broker answers")
        .unwrap_or_else(|e| panic!("declare {name:?}: {e}"));
}

/// Takes the binding away: messages with this routing key become unroutable.
pub async fn unbind(url: &str, exchange: &str, queue: &str, routing_key: &str) {
    let work = async {
        let connection = connect(url).await?;
        let channel = connection.create_channel().await?;
        let arguments = FieldTable::default();
        channel
            .queue_unbind(queue.into(), exchange.into(), routing_key.into(), arguments)
            .await?;
        connection.close(200, "done".into()).await
    };
    tokio::time::timeout(STEP, work)
        .await
        .expect("the broker answers")
        .unwrap_or_else(|e| panic!("unbind {exchange:?} -> {queue:?}: {e}"));
}

/// One delivery.
#[derive(Clone, Debug)]
pub struct Received {
    /// Empty when the message has none.
    pub message_id: String,
    pub body: Vec<u8>,
    pub headers: FieldTable,
    pub properties: BasicProperties,
    pub routing_key: String,
    pub exchange: String,
    /// The broker delivered this copy before, to a connection that ended before the ack arrived.
    pub redelivered: bool,
    /// Which connection of the consumer it came through, from 0.
    pub connection: usize,
}

impl Received {
    fn new(delivery: Delivery, connection: usize) -> Self {
        let mut properties = delivery.properties;
        if let Some(headers) = properties.headers() {
            // The broker's own, on what it delivers again.
            let own = |name: &ShortString| ["x-delivery-count", "x-acquired-count"].contains(&name.as_str());
            let others = headers.inner().iter().filter(|(name, _)| !own(name));
            let others: BTreeMap<_, _> = others.map(|(name, value)| (name.clone(), value.clone())).collect();
            properties = properties.with_headers(others.into());
        }
        Self {
            message_id: properties
                .message_id()
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            headers: properties.headers().clone().unwrap_or_default(),
            properties,
            body: delivery.data,
            routing_key: delivery.routing_key.to_string(),
            exchange: delivery.exchange.to_string(),
            redelivered: delivery.redelivered,
            connection,
        }
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// What the relay published, as far as a consumer can tell: without the broker's redeliveries of
/// messages that were recorded already. Two of one `message_id` in here are a duplicate of the relay.
pub fn arrivals(received: &[Received]) -> Vec<Received> {
    let mut seen = HashSet::new();
    received
        .iter()
        .filter(|message| seen.insert(message.message_id.clone()) || !message.redelivered)
        .cloned()
        .collect()
}

/// Collects deliveries in the background, in the order of arrival; connects again by itself.
pub struct Consumer {
    received: Arc<Mutex<Vec<Received>>>,
    /// How its last connection ended.
    trouble: Arc<Mutex<String>>,
    task: JoinHandle<()>,
}

impl Consumer {
    /// Returns at once: the broker may come later.
    pub fn start(url: &str, queue: &str) -> Self {
        let (received, trouble) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(String::new())));
        let (url, queue, list, ends) = (url.to_string(), queue.to_string(), received.clone(), trouble.clone());
        let task = tokio::spawn(async move {
            for connection in 0.. {
                // Every end of a connection is an expected one in these tests.
                let end = consume(&url, &queue, connection, &list).await;
                *ends.lock().expect("no panic while locked") = format!("{connection}: {end:?}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Self {
            received,
            trouble,
            task,
        }
    }

    pub fn snapshot(&self) -> Vec<Received> {
        self.received.lock().expect("no panic while locked").clone()
    }

    /// What came since the last call; nothing else shows it again.
    pub fn take(&self) -> Vec<Received> {
        std::mem::take(&mut self.received.lock().expect("no panic while locked"))
    }

    pub fn count(&self) -> usize {
        self.received.lock().expect("no panic while locked").len()
    }

    /// Waits until that many different messages were received, however many copies of them came, and returns all.
    pub async fn wait_distinct(&self, count: usize, timeout: Duration) -> Vec<Received> {
        let enough = |received: &[Received]| {
            let ids: HashSet<&str> = received.iter().map(|message| message.message_id.as_str()).collect();
            ids.len() >= count
        };
        self.wait_for(|received| received.len() >= count && enough(received), timeout)
            .await
    }

    /// Waits until the condition holds for all that was received so far, and returns that.
    pub async fn wait_for(&self, condition: impl Fn(&[Received]) -> bool, timeout: Duration) -> Vec<Received> {
        let end = Instant::now() + timeout;
        let mut checked = None;
        loop {
            let count = {
                let received = self.received.lock().expect("no panic while locked");
                // Looks again only when there is more: the list may be long.
                if checked.replace(received.len()) != Some(received.len()) && condition(&received) {
                    return received.clone();
                }
                received.len()
            };
            let trouble = self.trouble.lock().expect("no panic while locked").clone();
            assert!(
                Instant::now() < end,
                "the consumer has not received what the test waits for within {timeout:?}, but {count} messages; \
                 its last connection ended with: {trouble}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn consume(url: &str, queue: &str, connection_number: usize, list: &Mutex<Vec<Received>>) -> anyhow::Result<()> {
    let connection = tokio::time::timeout(STEP, connect(url)).await??;
    let channel = tokio::time::timeout(STEP, connection.create_channel()).await??;
    let window = channel.basic_qos(PREFETCH, BasicQosOptions::default());
    tokio::time::timeout(STEP, window).await??;
    let options = BasicConsumeOptions::default();
    let arguments = FieldTable::default();
    let start = channel.basic_consume(queue.into(), "test".into(), options, arguments);
    let mut deliveries = tokio::time::timeout(STEP, start).await??;
    while let Ok(next) = tokio::time::timeout(QUIET, deliveries.next()).await {
        let Some(delivery) = next else { return Ok(()) };
        let delivery = delivery?;
        let acker = delivery.acker.clone();
        let received = Received::new(delivery, connection_number);
        // Recorded first: an ack that is lost costs a redelivery, never a message.
        list.lock().expect("no panic while locked").push(received);
        // lapin's ack of a connection that just ended may never return.
        tokio::time::timeout(STEP, acker.ack(BasicAckOptions::default())).await??;
    }
    tokio::time::timeout(STEP, connection.close(200, "quiet".into())).await??;
    Ok(())
}

/// Takes all messages out of a queue, however long that takes: each of them comes in time.
pub async fn drain_queue(url: &str, queue: &str) -> Vec<Received> {
    let work = async {
        let connection = step(connect(url)).await?;
        let channel = step(connection.create_channel()).await?;
        let mut all = Vec::new();
        let no_ack = BasicGetOptions { no_ack: true };
        while let Some(message) = step(channel.basic_get(queue.into(), no_ack)).await? {
            all.push(Received::new(message.delivery, 0));
        }
        step(connection.close(200, "done".into())).await?;
        Ok::<_, lapin::Error>(all)
    };
    work.await.unwrap_or_else(|e| panic!("drain {queue:?}: {e}"))
}

async fn step<T>(work: impl Future<Output = lapin::Result<T>>) -> lapin::Result<T> {
    tokio::time::timeout(STEP, work).await.expect("the broker answers")
}

async fn connect(url: &str) -> lapin::Result<Connection> {
    Connection::connect(url, ConnectionProperties::default()).await
}
