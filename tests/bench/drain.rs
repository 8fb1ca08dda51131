//! A full table is drained: how fast, beside the ceiling, and at what cost.

use std::time::{Duration, SystemTime};

use crate::ceiling::{self, Ceiling, Window};
use crate::procfs;
use crate::stage::{ServersCpu, Source, Stage};
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
    source: Source,
    queue: Kind,
    keys: usize,
    /// Of the ceiling: what strict order allows a single key is one message after the other.
    window: Window,
    settings: &'static [(&'static str, &'static str)],
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
    pub(crate) servers_a_message: ServersCpu,
    pub(crate) peak_mib: f64,
}

const MARK: &[(&str, &str)] = &[];
const DELETE: &[(&str, &str)] = &[("RELAY_OUTBOX_ON_SENT", "delete")];
const PIPELINED: &[(&str, &str)] = &[("RELAY_ORDERING", "pipelined")];

/// Many keys, unless it is about one.
const QUORUM_MARK: Drain = Drain {
    name: "quorum-mark",
    source: Source::Postgres,
    queue: Kind::Quorum,
    keys: 10_000,
    window: Window::Full,
    settings: MARK,
};

pub(crate) const DRAINS: [Drain; 8] = [
    QUORUM_MARK,
    Drain {
        name: "quorum-delete",
        settings: DELETE,
        ..QUORUM_MARK
    },
    Drain {
        name: "classic-mark",
        queue: Kind::Classic,
        ..QUORUM_MARK
    },
    Drain {
        name: "classic-delete",
        queue: Kind::Classic,
        settings: DELETE,
        ..QUORUM_MARK
    },
    Drain {
        name: "mariadb-mark",
        source: Source::MariaDb,
        ..QUORUM_MARK
    },
    Drain {
        name: "sqlite-mark",
        source: Source::Sqlite,
        ..QUORUM_MARK
    },
    Drain {
        name: "hot-key-strict",
        keys: 1,
        window: Window::One,
        ..QUORUM_MARK
    },
    Drain {
        name: "hot-key-pipelined",
        keys: 1,
        settings: PIPELINED,
        ..QUORUM_MARK
    },
];

impl Drain {
    pub(crate) async fn run(&self, stage: &mut Stage, rows: usize, pairs: usize) -> Vec<Pair> {
        let rows = match self.window {
            Window::Full => rows,
            Window::One => rows / 10,
        };
        let mut measured = Vec::new();
        let mut before = self.ceiling(stage, rows).await;
        for _ in 0..pairs {
            stage.load(self.source, rows, self.keys).await;
            stage.new_queue(self.queue).await;
            let relay = drain(stage, self.source, self.settings, rows).await;
            let after = self.ceiling(stage, rows).await;
            let ceiling = before.mean(after);
            measured.push(Pair { ceiling, relay });
            before = after;
        }
        measured
    }

    async fn ceiling(&self, stage: &mut Stage, rows: usize) -> Ceiling {
        stage.new_queue(self.queue).await;
        ceiling::measure(stage, rows, self.window).await
    }
}

/// Runs a relay until it has sent and marked so many rows; others may be left.
pub(crate) async fn drain(stage: &mut Stage, source: Source, settings: &[(&str, &str)], rows: usize) -> Drained {
    let left = stage.unsent(source).await - rows as i64;
    let command = stage.relay(source);
    let command = settings
        .iter()
        .fold(command, |command, (name, value)| command.env(name, value));
    // Other settings can be tried: `RELAY_PUBLISH_IN_FLIGHT=2000 cargo bench -- --only quorum-mark`.
    let command = std::env::vars()
        .filter(|(name, _)| name.starts_with("RELAY_"))
        .fold(command, |command, (name, value)| command.env(&name, &value));
    let mut relay = command.spawn();
    let pid = relay.pid();
    // A first look once something is confirmed; the end is told by the relay itself.
    let first = relay
        .wait_metric(PUBLISHED, |count| count > 0.0, Duration::from_secs(60))
        .await;
    let (began, cpu, servers) = (unix_now(), procfs::cpu(pid), stage.cpu(source));
    until("everything is confirmed", TIMEOUT, async || {
        tokio::time::sleep(LOOK).await;
        number(&relay, PUBLISHED).await >= rows as f64
    })
    .await;
    let ended = number(&relay, LAST_PUBLISH).await;
    until("everything is marked", TIMEOUT, async || {
        stage.unsent(source).await <= left
    })
    .await;
    let count = (rows as f64 - first).max(1.0);
    let servers_after = stage.cpu(source);
    let a_message = |after: Duration, before| after.saturating_sub(before).div_f64(count);
    let drained = Drained {
        rate: count / (ended - began),
        cpu_a_message: a_message(procfs::cpu(pid), cpu),
        servers_a_message: ServersCpu {
            database: a_message(servers_after.database, servers.database),
            broker: a_message(servers_after.broker, servers.broker),
        },
        peak_mib: procfs::memory_mib(pid, "VmHWM"),
    };
    relay.sigterm();
    assert!(relay.wait(Duration::from_secs(30)).await.success());
    drained
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
