//! Process trees and signals by `/proc` and `kill`: no `unsafe`, no dependency.

use std::collections::HashSet;
use std::process::Command;
use std::time::{Duration, Instant};

pub fn own_pid() -> u32 {
    std::process::id()
}

/// Whether the process runs. A zombie does not: its parent is only slow to collect it.
pub fn alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z' && state != 'X')
}

/// The process and all its descendants, parents first.
pub fn tree(root: u32) -> Vec<u32> {
    let mut pairs: Vec<(u32, u32)> = std::fs::read_dir("/proc")
        .expect("/proc is mounted")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, stat(pid)?.1)))
        .collect();
    let mut found = vec![root];
    let mut known = HashSet::from([root]);
    loop {
        let before = found.len();
        pairs.retain(|&(pid, parent)| {
            let child = known.contains(&parent);
            if child && known.insert(pid) {
                found.push(pid);
            }
            !child
        });
        if found.len() == before {
            return found;
        }
    }
}

/// Sends a signal by its name (`KILL`, `STOP`, ...); processes that are gone are fine.
pub fn signal(name: &str, pids: &[u32]) {
    let status = Command::new("kill")
        .arg(format!("-{name}"))
        .args(pids.iter().map(u32::to_string))
        .stderr(std::process::Stdio::null())
        .status();
    assert!(status.is_ok(), "the kill command starts: {status:?}");
}

/// Kills a process with all its descendants, and returns when they are gone.
pub async fn kill_tree(root: u32) {
    let pids = tree(root);
    signal("KILL", &pids);
    wait_gone(&pids, Duration::from_secs(10)).await;
}

pub async fn wait_gone(pids: &[u32], timeout: Duration) {
    let end = Instant::now() + timeout;
    while let Some(pid) = pids.iter().find(|pid| alive(**pid)) {
        assert!(Instant::now() < end, "process {pid} still runs after {timeout:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// State and parent of a process.
fn stat(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // "pid (name) state parent ...": the name may hold blanks and brackets.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}
