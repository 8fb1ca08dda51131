//! Child processes that never outlive the test process, however it ends.
//!
//! A destructor does not run after `kill -9`, an abort, or for a `static` at a normal exit, so the
//! clean-up is not left to this process: a small shell (`guard.sh`) holds the other end of a pipe
//! and acts when the pipe closes.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::process;

/// A temporary folder and the processes started for it; all gone when this is dropped.
pub struct Guard {
    shell: Mutex<Shell>,
    log: PathBuf,
    // Held for its path; the shell removes the folder, this is the second try.
    dir: tempfile::TempDir,
}

struct Shell {
    child: Child,
    commands: Option<ChildStdin>,
    pids: BufReader<ChildStdout>,
}

/// The user that processes run as, when not the one of the test process.
#[derive(Clone, Copy)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

impl User {
    /// Database servers refuse to run as root; then the account of this name is used, which comes with the server.
    pub fn instead_of_root(name: &str) -> Option<Self> {
        let is_root = id(&["-u"]) == 0;
        is_root.then(|| Self {
            uid: id(&["-u", name]),
            gid: id(&["-g", name]),
        })
    }
}

fn id(args: &[&str]) -> u32 {
    let output = Command::new("id").args(args).output().expect("id starts");
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim()
        .parse()
        .unwrap_or_else(|_| panic!("`id {}` failed: is the server installed?", args.join(" ")))
}

impl Guard {
    pub fn new(name: &str, user: Option<User>) -> Self {
        let dir = tempfile::Builder::new()
            .prefix(&format!("outbox-relay-{name}-"))
            .tempdir()
            .expect("a temporary folder");
        let log = dir.path().join("output.log");
        // A session of its own: Ctrl-C must not reach the shell, and neither must the hang-up that the
        // kernel sends to a process group with frozen members when its parent (the test) dies.
        let mut command = Command::new("setsid");
        command
            .args(["sh", "-c", include_str!("guard.sh"), "guard"])
            .args([dir.path(), &log])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        if let Some(User { uid, gid }) = user {
            std::os::unix::fs::chown(dir.path(), Some(uid), Some(gid)).expect("chown");
            command.uid(uid).gid(gid).current_dir(dir.path());
        }
        let mut child = command.spawn().expect("setsid starts");
        let shell = Shell {
            commands: child.stdin.take(),
            pids: BufReader::new(child.stdout.take().expect("stdout is piped")),
            child,
        };
        Self {
            shell: Mutex::new(shell),
            log,
            dir,
        }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts a process in the background and returns its id. Output goes to the log.
    pub fn start(&self, env: &[(&str, String)], program: &Path, args: &[&str]) -> u32 {
        let mut line = String::from("env");
        for (name, value) in env {
            line.push_str(&quote(&format!("{name}={value}")));
        }
        line.push_str(&quote(&program.to_string_lossy()));
        args.iter().for_each(|arg| line.push_str(&quote(arg)));
        line.push('\n');

        let mut shell = self.shell.lock().expect("no panic while locked");
        let commands = shell.commands.as_mut().expect("open until drop");
        commands.write_all(line.as_bytes()).expect("guard listens");
        let mut pid = String::new();
        shell.pids.read_line(&mut pid).expect("guard answers");
        pid.trim().parse().expect("guard answers with a process id")
    }

    /// The end of what the processes printed, for messages of a failed test.
    pub fn log_tail(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // A poisoned lock must not keep the servers alive.
        let shell = match self.shell.get_mut() {
            Ok(shell) => shell,
            Err(poisoned) => poisoned.into_inner(),
        };
        shell.commands = None;
        let _ = shell.child.wait();
    }
}

/// Kills one process of this test when the test process ends before it.
///
/// For children whose exit status matters: they stay direct children of the test.
pub struct Watchdog(Child);

impl Watchdog {
    pub fn new(pid: u32) -> Self {
        let script = format!("read -r _; kill -KILL {pid}");
        let child = Command::new("setsid")
            .args(["sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("setsid starts");
        Self(child)
    }
}

impl Drop for Watchdog {
    /// Its process has ended: stop watching, before the process id is used again.
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A TCP port of 127.0.0.1 that nobody listens on now.
///
/// Below the range of the kernel's own choices: a client that keeps trying a stopped server's port
/// from within that range is sooner or later given this very port, and connects to itself.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let clock = SystemTime::now().duration_since(UNIX_EPOCH);
    let seed = clock.map_or(0, |t| t.subsec_micros()) ^ process::own_pid().wrapping_mul(7919);
    // Only the first call sets it; then ports of one process follow each other, never twice the same.
    let _ = NEXT.compare_exchange(0, seed % 21_000 + 1, Ordering::Relaxed, Ordering::Relaxed);
    for _ in 0..21_000 {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed) % 21_000;
        let port = 11_000 + offset as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free TCP port between 11000 and 32000");
}

fn quote(word: &str) -> String {
    assert!(!word.contains('\n'), "one line a command");
    format!(" '{}'", word.replace('\'', r"'\''"))
}
