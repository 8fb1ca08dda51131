//! A full table is drained: how fast, beside the ceiling, and at what cost.

use std::time::{Duration, Instant};

use outbox_relay::metrics::OPERATIONS;

use crate::bracket::bracketed;
use crate::ceiling::{self, Ceiling, Window};
use crate::procfs;
use crate::stage::{ServersCpu, Source, Stage};
use crate::support::{Kind, Relay, http, until};

/// A drain may take this long.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Between two looks at the relay: each costs it a fraction of a millisecond.
pub(crate) const LOOK: Duration = Duration::from_millis(50);

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
    /// From its start until messages were confirmed.
    pub(crate) began_after: Duration,
    /// Messages that were given to the broker and not confirmed yet, in the mean over all looks: as many as the window
    /// has wherever it is the broker that the others wait for.
    pub(crate) in_flight: f64,
    /// Old rows deleted a second, in the same time.
    pub(crate) purge_rate: f64,
    /// User and system, until everything was marked; of the broker, until it had confirmed everything.
    pub(crate) cpu_a_message: Duration,
    pub(crate) servers_a_message: ServersCpu,
    /// Of the database, by kind as in `OPERATIONS`, for a thousand messages. For PostgreSQL each is a statement and a
    /// round trip (the lease's several statements go in one message).
    pub(crate) operations_a_thousand: [f64; OPERATIONS.len()],
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

/// Servers that have just been started are slow at first.
pub(crate) async fn warm_up(stage: &mut Stage, rows: usize) {
    QUORUM_MARK.run(stage, rows, 1).await;
}

impl Drain {
    pub(crate) async fn run(&self, stage: &mut Stage, rows: usize, pairs: usize) -> Vec<Pair> {
        let rows = match self.window {
            Window::Full => rows,
            Window::One => rows / 10,
        };
        let ceiling = async |stage: &mut Stage| self.ceiling(stage, rows).await;
        let relay = async |stage: &mut Stage| {
            stage.load(self.source, rows, self.keys).await;
            stage.new_queue(self.queue).await;
            drain(stage, self.source, self.settings, rows).await
        };
        let measured = bracketed(stage, pairs, ceiling, relay).await.into_iter();
        let pair = |(relay, [before, after]): (Drained, [Ceiling; 2])| Pair {
            ceiling: before.mean(after),
            relay,
        };
        measured.map(pair).collect()
    }

    async fn ceiling(&self, stage: &mut Stage, rows: usize) -> Ceiling {
        stage.new_queue(self.queue).await;
        ceiling::measure(stage, rows, self.window).await
    }
}

/// Runs a relay until it has sent and marked so many rows; others may be left.
pub(crate) async fn drain(stage: &mut Stage, source: Source, settings: &[(&str, &str)], rows: usize) -> Drained {
    let running = Running::start(stage, source, settings, rows).await;
    let drained = running.drained(stage).await;
    running.stop().await;
    drained
}

/// A relay that was started to send so many rows.
pub(crate) struct Running {
    pub(crate) relay: Relay,
    started: Instant,
    source: Source,
    rows: usize,
    /// Rows that are unsent when it has.
    left: i64,
}

impl Running {
    pub(crate) async fn start(stage: &mut Stage, source: Source, settings: &[(&str, &str)], rows: usize) -> Self {
        let left = stage.unsent(source).await - rows as i64;
        let command = stage.relay(source);
        let command = settings
            .iter()
            .fold(command, |command, (name, value)| command.env(name, value));
        Self {
            relay: command.spawn(),
            started: Instant::now(),
            source,
            rows,
            left,
        }
    }

    /// Waits until the rows are sent and marked.
    pub(crate) async fn drained(&self, stage: &mut Stage) -> Drained {
        let Self { relay, source, .. } = self;
        let (pid, rows) = (relay.pid(), self.rows as f64);
        let first = Look::once(relay, Duration::ZERO, |look| look.published() > 0.0).await;
        let began_after = self.started.elapsed();
        let (cpu, servers) = (procfs::cpu(pid), stage.cpu(*source));
        let mut in_flight = Vec::new();
        let last = Look::once(relay, LOOK, |look| {
            in_flight.push(look.in_flight());
            look.published() >= rows
        })
        .await;
        // The last look is at the end.
        in_flight.pop();
        let broker = stage.cpu(*source).broker;
        until("everything is marked", TIMEOUT, async || {
            stage.unsent(*source).await <= self.left
        })
        .await;
        let (cpu_after, servers_after) = (procfs::cpu(pid), stage.cpu(*source));
        // Where more rows wait, more have been sent meanwhile.
        let end = Look::at(relay).await;
        let count = (end.published() - first.published()).max(1.0);
        let operations = OPERATIONS.map(|kind| end.operations(kind) - first.operations(kind));
        let a_message = |after: Duration, before| after.saturating_sub(before).div_f64(count);
        let seconds = last.confirmed_at() - first.confirmed_at();
        Drained {
            rate: (last.published() - first.published()) / seconds,
            began_after,
            in_flight: in_flight.iter().sum::<f64>() / in_flight.len().max(1) as f64,
            purge_rate: (last.purged() - first.purged()) / seconds,
            cpu_a_message: a_message(cpu_after, cpu),
            servers_a_message: ServersCpu {
                database: a_message(servers_after.database, servers.database),
                broker: a_message(broker, servers.broker),
            },
            operations_a_thousand: operations.map(|number| 1_000.0 * number / count),
            peak_mib: procfs::memory_mib(pid, "VmHWM"),
        }
    }

    pub(crate) async fn stop(mut self) {
        self.relay.sigterm();
        assert!(self.relay.wait(Duration::from_secs(30)).await.success());
    }
}

/// What the relay tells of itself, all at one time: in a count and a time of different looks are different messages.
pub(crate) struct Look(String);

impl Look {
    pub(crate) async fn at(relay: &Relay) -> Self {
        Self(relay.get("/metrics").await.1)
    }

    /// The first that is as it should be.
    async fn once(relay: &Relay, pause: Duration, mut good: impl FnMut(&Self) -> bool) -> Self {
        let mut look = Self::at(relay).await;
        until("the messages are confirmed", TIMEOUT, async || {
            if good(&look) {
                return true;
            }
            tokio::time::sleep(pause).await;
            look = Self::at(relay).await;
            good(&look)
        })
        .await;
        look
    }

    /// Messages that the broker confirmed.
    fn published(&self) -> f64 {
        self.number("outbox_relay_messages_published_total")
    }

    fn in_flight(&self) -> f64 {
        self.number("outbox_relay_messages_in_flight")
    }

    /// When it confirmed the last of them: unix time in seconds.
    fn confirmed_at(&self) -> f64 {
        self.number("outbox_relay_last_publish_timestamp_seconds")
    }

    /// Old rows that were deleted.
    pub(crate) fn purged(&self) -> f64 {
        self.number("outbox_relay_rows_purged_total")
    }

    /// Operations of a kind that the database was asked for.
    pub(crate) fn operations(&self, kind: &str) -> f64 {
        let count = "outbox_relay_store_operation_duration_seconds_count";
        self.number(&format!("{count}{{operation=\"{kind}\"}}"))
    }

    /// How long all of them took.
    pub(crate) fn seconds(&self, kind: &str) -> f64 {
        let sum = "outbox_relay_store_operation_duration_seconds_sum";
        self.number(&format!("{sum}{{operation=\"{kind}\"}}"))
    }

    fn number(&self, series: &str) -> f64 {
        http::metric(&self.0, series).expect("a metric of the relay")
    }
}
