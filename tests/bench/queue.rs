//! How quickly a queue fills, told by the broker: in the same way for whatever publishes.

use std::time::{Duration, Instant};

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};

/// Between two looks: 100,000 messages take some hundred of them, and each costs the broker a fraction of a
/// millisecond.
const LOOK: Duration = Duration::from_millis(5);

/// All may take this long.
const TIMEOUT: Duration = Duration::from_secs(600);

pub(crate) struct Queue {
    connection: Connection,
    channel: Channel,
    name: String,
}

/// How many messages there were when.
pub(crate) struct Depth {
    pub(crate) messages: usize,
    at: Instant,
}

impl Depth {
    /// Messages a second since then.
    pub(crate) fn rate_since(&self, before: &Self) -> f64 {
        (self.messages - before.messages) as f64 / (self.at - before.at).as_secs_f64()
    }
}

impl Queue {
    pub(crate) async fn open(url: &str, name: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default())
            .await
            .expect("the broker is up");
        Self {
            channel: connection.create_channel().await.expect("a channel"),
            connection,
            name: name.to_owned(),
        }
    }

    pub(crate) async fn close(&self) {
        self.connection.close(200, "".into()).await.expect("it closes");
    }

    /// Waits for so many messages. `goes_on` panics when there is nothing to wait for any more.
    pub(crate) async fn reached(&self, count: usize, goes_on: impl Fn()) -> Depth {
        let end = Instant::now() + TIMEOUT;
        loop {
            let (depth, now) = (self.depth().await, Instant::now());
            if depth >= count {
                return Depth {
                    messages: depth,
                    at: now,
                };
            }
            assert!(now < end, "{depth} messages of {count} within {TIMEOUT:?}");
            goes_on();
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn depth(&self) -> usize {
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let name = self.name.as_str().into();
        let queue = self.channel.queue_declare(name, passive, FieldTable::default()).await;
        queue.expect("the queue is there").message_count() as usize
    }
}
