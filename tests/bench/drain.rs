//! A full table is drained: how fast, beside the ceiling, and at what cost.

use std::time::{Duration, SystemTime};

use crate::ceiling::{self, Ceiling, Window};
use crate::procfs;
use crate::stage::{Database, Stage};
use crate::support::{Kind, Relay, until};

/// A drain may take this long.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Between two looks at the relay: each costs it a fraction of a millisecond.
const LOOK: Duration = Duration::from_millis(100);

const PUBLISHED: &str = "outbox_relay_messages_published_total";
const LAST_PUBLISH: &str = "outbox_relay_last_publish_timestamp_seconds";

/// One scenario.
pub(crate) struct Drain {
    pub(crate) name: &'static str,
    pub(crate) database: Database,
    queue: Kind,
    on_sent: &'static str,
    hot_key: bool,
}

/// The relay, and the mean of the ceilings right before and after it: the machine's pace drifts.
pub(crate) struct Pair {
    pub(crate) ceiling: Ceiling,
    pub(crate) relay: Drained,
}

pub(crate) struct Drained {
    /// Messages a second, from the first confirm to the last.
    pub(crate) rate: f64,
    /// User and system, until everything was marked.
    pub(crate) cpu_a_message: Duration,
    pub(crate) peak_mib: f64,
}

impl Drain {
    /// Over a thousand keys.
    pub(crate) const fn new(name: &'static str, queue: Kind, on_sent: &'static str) -> Self {
        Self {
            name,
            database: Database::Postgres,
            queue,
            on_sent,
            hot_key: false,
        }
    }

    /// The same from MariaDB.
    pub(crate) const fn mariadb(name: &'static str, queue: Kind, on_sent: &'static str) -> Self {
        Self {
            database: Database::MariaDb,
            ..Self::new(name, queue, on_sent)
        }
    }

    /// All rows of one key.
    pub(crate) const fn hot_key(name: &'static str, queue: Kind, on_sent: &'static str) -> Self {
        Self {
            hot_key: true,
            ..Self::new(name, queue, on_sent)
        }
    }

    pub(crate) async fn run(&self, stage: &mut Stage, rows: usize, pairs: usize) -> Vec<Pair> {
        let (rows, keys, window) = if self.hot_key {
            (rows / 10, 1, Window::One)
        } else {
            (rows, 1_000, Window::Full)
        };
        let mut measured = Vec::new();
        let mut before = self.ceiling(stage, rows, window).await;
        for _ in 0..pairs {
            stage.load(rows, keys).await;
            let relay = self.relay(stage, rows).await;
            let after = self.ceiling(stage, rows, window).await;
            let ceiling = before.mean(after);
            measured.push(Pair { ceiling, relay });
            before = after;
        }
        measured
    }

    async fn ceiling(&self, stage: &mut Stage, rows: usize, window: Window) -> Ceiling {
        stage.new_queue(self.queue).await;
        ceiling::measure(stage, rows, window).await
    }

    async fn relay(&self, stage: &mut Stage, rows: usize) -> Drained {
        stage.new_queue(self.queue).await;
        let mut relay = stage.relay().env("RELAY_OUTBOX_ON_SENT", self.on_sent).spawn();
        let pid = relay.pid();
        // A first look once something is confirmed; the end is told by the relay itself.
        let first = relay
            .wait_metric(PUBLISHED, |count| count > 0.0, Duration::from_secs(20))
            .await;
        let (began, cpu) = (unix_now(), procfs::cpu(pid));
        until("everything is confirmed", TIMEOUT, async || {
            tokio::time::sleep(LOOK).await;
            number(&relay, PUBLISHED).await >= rows as f64
        })
        .await;
        let ended = number(&relay, LAST_PUBLISH).await;
        until("everything is marked", TIMEOUT, async || stage.unsent().await == 0).await;
        let count = rows as f64 - first;
        let drained = Drained {
            rate: count / (ended - began),
            cpu_a_message: (procfs::cpu(pid) - cpu).div_f64(count),
            peak_mib: procfs::memory_mib(pid, "VmHWM"),
        };
        relay.sigterm();
        assert!(relay.wait(Duration::from_secs(30)).await.success());
        drained
    }
}

async fn number(relay: &Relay, series: &str) -> f64 {
    relay.metric(series).await.expect("a metric of the relay")
}

fn unix_now() -> f64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("after 1970")
        .as_secs_f64()
}
