//! Other relays and this one, in turn: the same bodies, from tables of the same database to the same broker. What others need is
//! got by `tests/bench/others/install.sh`; each has the settings that were quickest here, of those its documentation names.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use crate::ceiling::{self, Window};
use crate::procfs;
use crate::queue::Queue;
use crate::report;
use crate::stage::{BODY, EXCHANGE, ROUTING_KEY, Source, Stage};
use crate::support::{Kind, Relay, RelayCommand, until};

/// A drain may take this long.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Different keys of the rows, where a table has any.
const KEYS: usize = 10_000;

/// A relay may take this long to stop.
const GRACE: Duration = Duration::from_secs(10);

/// One relay, and the mean of the ceilings right before and after it.
pub(crate) struct Compared {
    pub(crate) ceiling: f64,
    pub(crate) relay: Emptied,
}

/// What a relay took to empty its table.
pub(crate) struct Emptied {
    /// Messages a second.
    pub(crate) rate: f64,
    /// User and system, from the first messages in the queue until everything was marked.
    pub(crate) cpu_a_message: Duration,
    pub(crate) peak_mib: f64,
}

/// One that is compared.
struct Other {
    name: &'static str,
    table: &'static str,
    /// What a row gets besides its body, and how.
    columns: &'static str,
    values: &'static str,
    program: Program,
}

enum Program {
    /// The table's DDL is what it makes itself for a table that it writes to.
    MqBridge,
    /// In `tests/bench/others`; makes its table itself.
    Python(&'static str),
}

static OTHERS: [Other; 3] = [
    Other {
        name: "mq-bridge-app (deletes; no order)",
        table: "mq_bridge",
        columns: "",
        values: "",
        program: Program::MqBridge,
    },
    Other {
        name: "txoutbox (deletes; order per key)",
        table: "txoutbox",
        columns: "topic, key, ",
        values: "'bench', 'key-' || n % keys, ",
        program: Program::Python("txoutbox_relay.py"),
    },
    Other {
        name: "faststream-outbox (deletes; no order)",
        table: "faststream_outbox",
        columns: "queue, headers, ",
        // Bytes, which it need not parse.
        values: r#"'bench', '{"content-type": "application/octet-stream", "correlation_id": "1"}', "#,
        program: Program::Python("faststream_outbox_relay.py"),
    },
];

/// This one.
const OWN: [(&str, &str); 2] = [
    ("outbox-relay, `mark` (order per key)", "mark"),
    ("outbox-relay, `delete` (order per key)", "delete"),
];

/// Those that are wanted by name, each so many times, by turns; prints a table.
pub(crate) async fn compare(stage: &mut Stage, wanted: &impl Fn(&str) -> bool, rows: usize, rounds: usize) {
    let own = OWN.iter().map(|(name, on_sent)| (*name, Contender::Own(on_sent)));
    let others = OTHERS.iter().map(|other| (other.name, Contender::Other(other)));
    let chosen: Vec<_> = own.chain(others).filter(|(name, _)| wanted(name)).collect();
    for (_, contender) in &chosen {
        if let Contender::Other(other) = contender {
            other.create_table(stage).await;
        }
    }
    let mut compared: Vec<_> = chosen.iter().map(|(name, _)| (*name, Vec::new())).collect();
    let mut before = ceiling(stage, rows).await;
    for round in 0..rounds {
        for turn in 0..chosen.len() {
            // Another one is first in each round: the machine's pace drifts.
            let index = (round + turn) % chosen.len();
            let running = match chosen[index].1 {
                Contender::Own(on_sent) => start_own(stage, on_sent, rows).await,
                Contender::Other(other) => other.start(stage, rows).await,
            };
            let relay = running.measure(stage, rows).await;
            let after = ceiling(stage, rows).await;
            let ceiling = f64::midpoint(before, after);
            compared[index].1.push(Compared { ceiling, relay });
            before = after;
        }
    }
    report::compared(&compared);
}

enum Contender {
    /// This one: what it does with rows that were sent.
    Own(&'static str),
    Other(&'static Other),
}

/// Messages a second, as the queue shows it of the relays.
async fn ceiling(stage: &mut Stage, rows: usize) -> f64 {
    let name = stage.new_queue(Kind::Quorum).await;
    let queue = Queue::open(&stage.amqp_url, &name).await;
    let filled = async {
        let first = queue.reached(1, || ()).await;
        queue.reached(rows, || ()).await.rate_since(&first)
    };
    let (rate, _) = tokio::join!(filled, ceiling::measure(stage, rows, Window::Full));
    queue.close().await;
    rate
}

/// A relay that was started a moment ago.
struct Running {
    relay: Relay,
    queue: Queue,
    table: &'static str,
    /// Of the rows: those that are still to be sent or to be marked.
    left: &'static str,
    _folder: Option<tempfile::TempDir>,
}

async fn start_own(stage: &mut Stage, on_sent: &str, rows: usize) -> Running {
    stage.load(Source::Postgres, rows, KEYS).await;
    let name = stage.new_queue(Kind::Quorum).await;
    let relay = stage
        .relay(Source::Postgres)
        .env("RELAY_OUTBOX_ON_SENT", on_sent)
        .env("RELAY_LOG", "warn");
    Running {
        queue: Queue::open(&stage.amqp_url, &name).await,
        relay: relay.spawn(),
        table: "outbox",
        left: "sent_at IS NULL",
        _folder: None,
    }
}

impl Other {
    async fn create_table(&self, stage: &mut Stage) {
        match self.program {
            Program::MqBridge => {
                stage
                    .run(
                        "CREATE TABLE mq_bridge (id BIGSERIAL PRIMARY KEY, payload BYTEA NOT NULL,
                         locked_until TIMESTAMPTZ, created_at TIMESTAMPTZ DEFAULT NOW());
                         CREATE INDEX idx_mq_bridge_locked_until ON mq_bridge (locked_until)",
                    )
                    .await;
            }
            Program::Python(program) => {
                let status = python(stage, program, "create").status().await;
                assert!(status.is_ok_and(|status| status.success()), "{program} makes its table");
            }
        }
    }

    async fn start(&self, stage: &mut Stage, rows: usize) -> Running {
        let Self {
            table, columns, values, ..
        } = self;
        stage
            .run(&format!(
                "INSERT INTO {table} ({columns}payload)
                 SELECT {values}convert_to(rpad('{{\"n\":' || n || ',\"pad\":\"', {}, 'x') || '\"}}', 'UTF8')
                 FROM generate_series(1, {rows}) AS n, (VALUES ({KEYS})) AS k (keys)",
                BODY - 2
            ))
            .await;
        stage.run(&format!("ANALYZE {table}")).await;
        let name = stage.new_queue(Kind::Quorum).await;
        let (command, folder) = match self.program {
            Program::Python(program) => (python(stage, program, "run"), None),
            Program::MqBridge => {
                let folder = tempfile::tempdir().expect("a folder");
                (mq_bridge(stage, folder.path()), Some(folder))
            }
        };
        Running {
            queue: Queue::open(&stage.amqp_url, &name).await,
            relay: RelayCommand::from(command).spawn(),
            table,
            left: "true",
            _folder: folder,
        }
    }
}

fn python(stage: &Stage, program: &str, command: &str) -> Command {
    let mut python = Command::new(installed("python/bin/python3"));
    python
        .arg(sources().join(program))
        .arg(command)
        .envs(environment(stage));
    python
}

/// What others are told of the stage.
fn environment(stage: &Stage) -> [(&'static str, &str); 4] {
    [
        ("DATABASE_URL", &stage.database_url),
        ("AMQP_URL", &stage.amqp_url),
        ("EXCHANGE", EXCHANGE),
        ("ROUTING_KEY", ROUTING_KEY),
    ]
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench/others")
}

fn mq_bridge(stage: &Stage, folder: &Path) -> Command {
    let configuration = folder.join("mq-bridge.yaml");
    let mut text = std::fs::read_to_string(sources().join("mq_bridge.yaml")).expect("it is there");
    for (name, value) in environment(stage) {
        text = text.replace(&format!("{{{name}}}"), value);
    }
    std::fs::write(&configuration, text).expect("the folder is writable");
    let mut command = Command::new(installed("mq-bridge/bin/mq-bridge-app"));
    command
        .args(["--no-ui", "--no-metrics", "--config"])
        .arg(configuration)
        .env("RUST_LOG", "warn")
        .current_dir(folder);
    command
}

fn installed(program: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("the target folder");
    let program = target.join("others").join(program);
    assert!(
        program.exists(),
        "run tests/bench/others/install.sh first: there is no {}",
        program.display()
    );
    program
}

impl Running {
    /// The broker tells how far it is, as it does for all of them.
    async fn measure(self, stage: &mut Stage, rows: usize) -> Emptied {
        let Self { mut relay, table, .. } = self;
        let pid = relay.pid();
        let goes_on = || assert!(!relay.has_ended(), "it ended:\n{}", relay.log_text());
        let first = self.queue.reached(1, goes_on).await;
        let cpu = procfs::cpu(pid);
        let last = self.queue.reached(rows, goes_on).await;
        self.queue.close().await;
        let left = format!("SELECT count(*) FROM {table} WHERE {}", self.left);
        until("all is marked", TIMEOUT, async || stage.number(&left).await == 0).await;
        let emptied = Emptied {
            rate: last.rate_since(&first),
            cpu_a_message: (procfs::cpu(pid) - cpu).div_f64((rows - first.messages) as f64),
            peak_mib: procfs::memory_mib(pid, "VmHWM"),
        };
        relay.sigterm();
        // Some take longer than anybody would wait for.
        if tokio::time::timeout(GRACE, relay.wait(TIMEOUT)).await.is_err() {
            relay.kill9();
            relay.wait(TIMEOUT).await;
        }
        // Not to be vacuumed while the next one is measured.
        stage.run(&format!("TRUNCATE {table} RESTART IDENTITY")).await;
        stage.run("CHECKPOINT").await;
        emptied
    }
}
