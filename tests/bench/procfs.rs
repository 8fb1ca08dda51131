//! What the kernel knows of a process, and of the machine.

use std::time::Duration;

use crate::support::process;

/// The kernel's unit for processor times as it shows them: `USER_HZ`, 100 on every Linux.
const TICK: Duration = Duration::from_millis(10);

/// Processor time of a process so far, user and system.
pub(crate) fn cpu(pid: u32) -> Duration {
    times(&read(&format!("/proc/{pid}/stat")), 2)
}

/// Processor time so far of a process, its descendants, and those of them that have ended.
pub(crate) fn cpu_of_tree(root: u32) -> Duration {
    let stat = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    process::tree(root)
        .into_iter()
        .filter_map(stat)
        .map(|stat| times(&stat, 4))
        .sum()
}

/// The first so many of: user, system, user of children that were waited for, system of those.
fn times(stat: &str, count: usize) -> Duration {
    // "pid (name) state ...": the name may hold blanks and brackets. utime is field 14 of all.
    let (_, fields) = stat.rsplit_once(") ").expect("the name ends");
    let ticks = fields.split(' ').skip(11).take(count);
    TICK * ticks.map(|ticks| ticks.parse::<u32>().expect("ticks")).sum()
}

/// `VmRSS` (resident now) or `VmHWM` (at its most).
pub(crate) fn memory_mib(pid: u32, which: &str) -> f64 {
    let status = read(&format!("/proc/{pid}/status"));
    let line = status.lines().find_map(|line| line.strip_prefix(which)).expect(which);
    let kib: f64 = line
        .split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("a number");
    kib / 1024.0
}

/// One line about where this runs.
pub(crate) fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown processor", |text| text.trim_start_matches(['\t', ' ', ':']));
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or_default();
    format!(
        "{cores} cores ({model}), Linux {}, load before the run {load}",
        kernel.trim()
    )
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}
