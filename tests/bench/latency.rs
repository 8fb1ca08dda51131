//! From the writer's commit to the consumer, beside the way without relay: from the publish to the consumer.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ConnectionProperties};
use tokio::task::JoinHandle;

use crate::stage::{EXCHANGE, ROUTING_KEY, Source, Stage, body, number_in};
use crate::support::Kind;

/// Many keys, so that none waits for its own predecessor.
const KEYS: usize = 1_000;

/// The relay has connected and slowed down to its idle pace by then.
const WARM_UP: Duration = Duration::from_secs(2);

/// How rows come.
pub(crate) struct Pace {
    pub(crate) name: &'static str,
    rows: usize,
    interval: Duration,
    /// Added to the interval in turn, none to five times, so that rows do not keep step with the relay's polls.
    jitter: Duration,
}

impl Pace {
    /// 500 a second.
    pub(crate) fn steady(name: &'static str, rows: usize) -> Self {
        Self {
            name,
            rows,
            interval: Duration::from_millis(2),
            jitter: Duration::from_micros(370),
        }
    }

    /// About one a second.
    pub(crate) fn sporadic(name: &'static str, rows: usize) -> Self {
        Self {
            name,
            rows,
            interval: Duration::from_millis(900),
            jitter: Duration::from_millis(37),
        }
    }

    /// When the `n`th row comes, from 1.
    fn at(&self, start: Instant, n: usize) -> Instant {
        start + self.interval * n as u32 + self.jitter * (n % 6) as u32
    }
}

/// Rows are committed one by one; the relay does the rest.
pub(crate) async fn relayed(stage: &mut Stage, pace: &Pace) -> Vec<Duration> {
    stage.load(Source::Postgres, 0, 1).await;
    let queue = stage.new_queue(Kind::Quorum).await;
    let arrivals = Arrivals::start(&stage.amqp_url, &queue, pace.rows).await;
    let mut relay = stage.relay(Source::Postgres).spawn();
    tokio::time::sleep(WARM_UP).await;
    let start = Instant::now();
    let mut sent = Vec::with_capacity(pace.rows);
    for n in 1..=pace.rows {
        tokio::time::sleep_until(pace.at(start, n).into()).await;
        sqlx::query("INSERT INTO outbox (routing_key, ordering_key, payload) VALUES ($1, $2, $3::text::json)")
            .bind(ROUTING_KEY)
            .bind(format!("key-{}", n % KEYS))
            .bind(String::from_utf8(body(n)).expect("text"))
            .execute(&mut stage.db)
            .await
            .expect("it inserts");
        sent.push(Instant::now());
    }
    let latencies = arrivals.since(&sent).await;
    relay.sigterm();
    assert!(relay.wait(Duration::from_secs(30)).await.success());
    latencies
}

/// The same messages, published when they would have been committed.
pub(crate) async fn direct(stage: &mut Stage, pace: &Pace) -> Vec<Duration> {
    let queue = stage.new_queue(Kind::Quorum).await;
    let arrivals = Arrivals::start(&stage.amqp_url, &queue, pace.rows).await;
    let connection = connect(&stage.amqp_url).await;
    let channel = connection.create_channel().await.expect("a channel");
    let start = Instant::now();
    let mut sent = Vec::with_capacity(pace.rows);
    for n in 1..=pace.rows {
        tokio::time::sleep_until(pace.at(start, n).into()).await;
        let properties = BasicProperties::default().with_delivery_mode(2);
        sent.push(Instant::now());
        channel
            .basic_publish(
                EXCHANGE.into(),
                ROUTING_KEY.into(),
                BasicPublishOptions::default(),
                &body(n),
                properties,
            )
            .await
            .expect("it publishes");
    }
    arrivals.since(&sent).await
}

/// When each message came, by its number.
pub(crate) struct Arrivals {
    times: Arc<Mutex<Vec<Option<Instant>>>>,
    task: JoinHandle<()>,
}

impl Arrivals {
    pub(crate) async fn start(url: &str, queue: &str, count: usize) -> Self {
        let times = Arc::new(Mutex::new(vec![None; count]));
        let connection = connect(url).await;
        let channel = connection.create_channel().await.expect("a channel");
        let no_ack = BasicConsumeOptions {
            no_ack: true,
            ..BasicConsumeOptions::default()
        };
        let mut deliveries = channel
            .basic_consume(queue.into(), "bench".into(), no_ack, FieldTable::default())
            .await
            .expect("it consumes");
        let list = times.clone();
        let task = tokio::spawn(async move {
            let _open = connection;
            while let Some(Ok(delivery)) = deliveries.next().await {
                let now = Instant::now();
                let n = number_in(&delivery.data);
                list.lock().expect("no panic while locked")[n - 1].get_or_insert(now);
            }
        });
        Self { times, task }
    }

    /// How long each message took, once all are there.
    pub(crate) async fn since(self, sent: &[Instant]) -> Vec<Duration> {
        let missing = || {
            let times = self.times.lock().expect("no panic while locked");
            times.iter().filter(|time| time.is_none()).count()
        };
        let end = Instant::now() + Duration::from_secs(30);
        while missing() > 0 {
            assert!(Instant::now() < end, "{} messages do not arrive", missing());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.task.abort();
        let times = self.times.lock().expect("no panic while locked");
        let pairs = times.iter().flatten().zip(sent);
        pairs
            .map(|(came, sent)| came.saturating_duration_since(*sent))
            .collect()
    }
}

async fn connect(url: &str) -> Connection {
    Connection::connect(url, ConnectionProperties::default())
        .await
        .expect("the broker is up")
}
