//! The real binary.

use std::net::SocketAddr;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::guard::Watchdog;
use super::{http, process, until};

/// For steps that take no time unless something is wrong.
const STEP: Duration = Duration::from_secs(20);

/// A running relay; killed when dropped.
pub struct Relay {
    child: Child,
    pid: u32,
    stdout: Output,
    stderr: Output,
    watchdog: Option<Watchdog>,
}

/// How to start one.
pub struct RelayCommand(Command);

impl Relay {
    /// `outbox-relay run` with defaults for tests and, but for `PATH`, an empty environment.
    pub fn command() -> RelayCommand {
        Self::command_with(&["run"])
    }

    pub fn command_with(args: &[&str]) -> RelayCommand {
        let binary = env!("CARGO_BIN_EXE_outbox-relay");
        let mut command = Command::new(binary);
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("RELAY_ADMIN_LISTEN", "127.0.0.1:0")
            .env("RELAY_LOG", "info")
            .env("RELAY_LOG_FORMAT", "json");
        RelayCommand(command)
    }

    /// Runs a command such as `migrate` to its end: status, standard output, standard error.
    pub async fn run_to_end(args: &[&str], env: &[(&str, &str)]) -> (ExitStatus, String, String) {
        let mut command = Self::command_with(args);
        for (name, value) in env {
            command = command.env(name, value);
        }
        let mut relay = command.spawn();
        let status = relay.wait(Duration::from_secs(60)).await;
        (status, relay.stdout.text(), relay.stderr.text())
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Where its admin server listens, once it does.
    pub async fn admin(&self) -> SocketAddr {
        let mut address = None;
        until("the relay logs its admin_address", STEP, async || {
            address = self.logs().iter().find_map(|line| {
                let field = line.get("admin_address");
                let field = field.or_else(|| line.get("fields")?.get("admin_address"));
                field?.as_str()?.parse().ok()
            });
            address.is_some() || self.has_ended()
        })
        .await;
        address.unwrap_or_else(|| panic!("the relay ended at start:\n{}", self.log_text()))
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        http::get(self.admin().await, path)
            .await
            .unwrap_or_else(|e| panic!("GET {path}: {e}\n{}", self.log_text()))
    }

    /// The value of one series, all its labels given: `name{reason="nack"}`.
    pub async fn metric(&self, series: &str) -> Option<f64> {
        http::metric(&self.get("/metrics").await.1, series)
    }

    pub async fn wait_metric(&self, series: &str, condition: impl Fn(f64) -> bool, timeout: Duration) -> f64 {
        let mut last = None;
        let work = async {
            loop {
                last = self.metric(series).await;
                match last {
                    Some(value) if condition(value) => return value,
                    _ => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let result = tokio::time::timeout(timeout, work).await;
        result.unwrap_or_else(|_| {
            let log = self.log_text();
            panic!("not within {timeout:?}: {series} is {last:?}\n{log}")
        })
    }

    pub fn sigterm(&self) {
        self.signal("TERM");
    }

    pub fn sigint(&self) {
        self.signal("INT");
    }

    pub fn kill9(&self) {
        self.signal("KILL");
    }

    pub fn freeze(&self) {
        self.signal("STOP");
    }

    pub fn thaw(&self) {
        self.signal("CONT");
    }

    pub fn has_ended(&self) -> bool {
        !process::alive(self.pid)
    }

    /// Waits for its end, until all its output is here as well.
    pub async fn wait(&mut self, timeout: Duration) -> ExitStatus {
        let Ok(status) = tokio::time::timeout(timeout, self.child.wait()).await else {
            let log = self.log_text();
            panic!("the relay still runs after {timeout:?}:\n{log}")
        };
        self.watchdog = None;
        for output in [&mut self.stdout, &mut self.stderr] {
            if let Some(reader) = output.reader.take() {
                let _ = tokio::time::timeout(STEP, reader).await;
            }
        }
        status.expect("a child can be waited for")
    }

    /// The log so far; lines that are not JSON objects are left out.
    pub fn logs(&self) -> Vec<Value> {
        let text = self.stderr.text();
        let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        lines.filter(Value::is_object).collect()
    }

    pub fn log_text(&self) -> String {
        self.stderr.text()
    }

    pub fn stdout_text(&self) -> String {
        self.stdout.text()
    }

    fn signal(&self, name: &str) {
        // Not after `wait`: the process id may be another's by then.
        assert!(self.watchdog.is_some(), "the relay has ended");
        process::signal(name, &[self.pid]);
    }
}

/// Another program that relays, with an environment of its own.
impl From<Command> for RelayCommand {
    fn from(command: Command) -> Self {
        Self(command)
    }
}

impl RelayCommand {
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    #[must_use]
    pub fn env_remove(mut self, name: &str) -> Self {
        self.0.env_remove(name);
        self
    }

    pub fn spawn(mut self) -> Relay {
        let mut child = self
            .0
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|e| panic!("{:?}: {e}", self.0));
        let pid = child.id().expect("not waited for yet");
        Relay {
            stdout: Output::collect(child.stdout.take().expect("stdout is piped")),
            stderr: Output::collect(child.stderr.take().expect("stderr is piped")),
            watchdog: Some(Watchdog::new(pid)),
            pid,
            child,
        }
    }
}

/// Lines read in the background, so that the relay never waits for a full pipe.
struct Output {
    text: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Output {
    fn collect(stream: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let sink = text.clone();
        let reader = tokio::spawn(async move {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while stream.read_until(b'\n', &mut line).await.is_ok_and(|n| n > 0) {
                let mut text = sink.lock().expect("no panic while locked");
                text.push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
        });
        Self {
            text,
            reader: Some(reader),
        }
    }

    fn text(&self) -> String {
        self.text.lock().expect("no panic while locked").clone()
    }
}
