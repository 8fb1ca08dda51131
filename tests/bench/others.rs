//! Other relays and this one, in turn: the same bodies, from tables of the same database to the same broker. What others need is
//! got by `tests/bench/others/install.sh`; each has the settings that were quickest here, of those its documentation names.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};
use tokio::process::{Child, Command};

use crate::ceiling::{self, Window};
use crate::procfs;
use crate::report::{self, Compared};
use crate::stage::{BODY, EXCHANGE, ROUTING_KEY, Source, Stage};
use crate::support::{Kind, process, until};

/// Between two looks at the queue.
const LOOK: Duration = Duration::from_millis(10);

/// A drain may take this long.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Different keys of the rows, where a table has any.
const KEYS: usize = 10_000;

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

const OTHERS: [Other; 3] = [
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
        values: "'bench', 'key-' || n % 10000, ", // `KEYS`
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

/// Each so many times, by turns; prints a table.
pub(crate) async fn compare(stage: &mut Stage, rows: usize, rounds: usize) {
    for other in &OTHERS {
        other.create_table(stage).await;
    }
    let names = OWN
        .iter()
        .map(|(name, _)| *name)
        .chain(OTHERS.iter().map(|other| other.name));
    let mut compared: Vec<_> = names.map(|name| (name, Vec::new())).collect();
    for _ in 0..rounds {
        for (index, (_, measured)) in compared.iter_mut().enumerate() {
            stage.new_queue(Kind::Quorum).await;
            let ceiling = ceiling::measure(stage, rows, Window::Full).await.rate;
            let running = match OWN.get(index) {
                Some((_, on_sent)) => own(stage, on_sent, rows).await,
                None => OTHERS[index - OWN.len()].start(stage, rows).await,
            };
            measured.push(running.measure(stage, rows, ceiling).await);
        }
    }
    report::compared(&compared);
}

/// A relay that was started a moment ago.
struct Running {
    child: Child,
    queue: String,
    /// Rows that are still to be sent or to be marked.
    left: String,
    _folder: Option<tempfile::TempDir>,
}

async fn own(stage: &mut Stage, on_sent: &str, rows: usize) -> Running {
    stage.load(Source::Postgres, rows, KEYS).await;
    let queue = stage.new_queue(Kind::Quorum).await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_outbox-relay"));
    command
        .arg("run")
        .env("RELAY_DATABASE_URL", &stage.database_url)
        .env("RELAY_AMQP_URL", &stage.amqp_url)
        .env("RELAY_AMQP_EXCHANGE", EXCHANGE)
        .env("RELAY_ORDERING", "strict")
        .env("RELAY_OUTBOX_ON_SENT", on_sent)
        .env("RELAY_ADMIN_LISTEN", "127.0.0.1:0")
        .env("RELAY_LOG", "warn");
    Running {
        child: spawn(command),
        queue,
        left: "SELECT count(*) FROM outbox WHERE sent_at IS NULL".to_owned(),
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
        stage.run(&format!("TRUNCATE {table} RESTART IDENTITY")).await;
        stage.run("CHECKPOINT").await;
        stage
            .run(&format!(
                "INSERT INTO {table} ({columns}payload)
                 SELECT {values}convert_to(rpad('{{\"n\":' || n || ',\"pad\":\"', {}, 'x') || '\"}}', 'UTF8')
                 FROM generate_series(1, {rows}) AS n",
                BODY - 2
            ))
            .await;
        stage.run(&format!("ANALYZE {table}")).await;
        let queue = stage.new_queue(Kind::Quorum).await;
        let (command, folder) = match self.program {
            Program::Python(program) => (python(stage, program, "run"), None),
            Program::MqBridge => {
                let folder = tempfile::tempdir().expect("a folder");
                (mq_bridge(stage, folder.path()), Some(folder))
            }
        };
        Running {
            child: spawn(command),
            queue,
            left: format!("SELECT count(*) FROM {table}"),
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

/// It may complain, no more: a line a message would be measured.
fn spawn(mut command: Command) -> Child {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts")
}

impl Running {
    /// The broker tells how far it is, as it does for all of them.
    async fn measure(mut self, stage: &mut Stage, rows: usize, ceiling: f64) -> Compared {
        let pid = self.child.id().expect("it runs");
        let connection = Connection::connect(&stage.amqp_url, ConnectionProperties::default())
            .await
            .expect("the broker is up");
        let channel = connection.create_channel().await.expect("a channel");
        let first = self.reached(&channel, 1).await;
        let (began, cpu) = (Instant::now(), procfs::cpu(pid));
        let all = self.reached(&channel, rows).await;
        let took = began.elapsed();
        until("all is marked", TIMEOUT, async || stage.number(&self.left).await == 0).await;
        let cpu = procfs::cpu(pid) - cpu;
        let peak_mib = procfs::memory_mib(pid, "VmHWM");
        process::signal("TERM", &[pid]);
        // Some take longer than anybody would wait for.
        if tokio::time::timeout(Duration::from_secs(10), self.child.wait())
            .await
            .is_err()
        {
            self.child.kill().await.expect("it is killed");
        }
        connection.close(200, "".into()).await.expect("it closes");
        let count = all - first;
        let rate = count as f64 / took.as_secs_f64();
        Compared {
            rate,
            of_ceiling: rate / ceiling,
            cpu_a_message: cpu.div_f64(count.max(1) as f64),
            peak_mib,
        }
    }

    /// Waits until there are so many messages in the queue; how many there are then.
    async fn reached(&mut self, channel: &Channel, count: usize) -> usize {
        let mut depth = 0;
        until("the messages are in the queue", TIMEOUT, async || {
            let ended = self.child.try_wait().expect("its state is known");
            assert!(ended.is_none(), "it ended: {ended:?}");
            tokio::time::sleep(LOOK).await;
            let passive = QueueDeclareOptions {
                passive: true,
                ..QueueDeclareOptions::default()
            };
            let name = self.queue.as_str().into();
            let queue = channel.queue_declare(name, passive, FieldTable::default()).await;
            depth = queue.expect("the queue is there").message_count() as usize;
            depth >= count
        })
        .await;
        depth
    }
}
