//! What the relay costs and how fast it is, beside the limit that was measured in the same run.
//!
//! `cargo bench` runs everything, `cargo bench -- --quick` only shows that it runs. Servers are private ones, started
//! here; the relay is the real binary. It and the ceiling have the caller's `RELAY_PUBLISH_*` and `RELAY_POLL_*`, so that
//! other settings can be tried: `RELAY_PUBLISH_IN_FLIGHT=2000 cargo bench -- --only quorum-mark`. The machine is never quiet enough for absolute figures: read the ratios.
//!
//! `cargo bench --profile dev -- --quick` takes the build of the tests, which is what `.ci/run` does.
//!
//! Where the relay's time goes, function by function, tells `perf` (Debian's `linux-perf`) from a release that has kept
//! its symbols. In one terminal, with frame pointers for whole stacks at little cost:
//!
//! ```sh
//! export CARGO_PROFILE_RELEASE_STRIP=none CARGO_PROFILE_RELEASE_DEBUG=1 RUSTFLAGS="-C force-frame-pointers=yes"
//! cargo bench --target-dir target/profile -- --only quorum-mark --rows 500000
//! ```
//!
//! and in another, once the relay runs (ceilings are measured before and after it, in the benchmark's own process):
//!
//! ```sh
//! perf record -g -p "$(pidof outbox-relay)" -- sleep 5 && perf report --no-children
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used)] // what goes wrong here is to be seen

#[path = "../support/mod.rs"]
mod support;

mod bare;
mod bracket;
mod ceiling;
mod drain;
mod idle;
mod inserts;
mod latency;
mod memory;
mod others;
mod procfs;
mod queue;
mod report;
mod shape;
mod stage;
mod start;
mod strain;

use std::cell::Cell;
use std::process::ExitCode;

use clap::Parser;

use bracket::bracketed;
use ceiling::Window;
use drain::DRAINS;
use shape::SHAPES;
use stage::Stage;
use strain::STRAINS;
use support::Kind;

/// The relay's own, so that the ceiling is measured with the same.
#[cfg(target_arch = "x86_64")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Parser)]
struct Arguments {
    /// A few rows and one pair: shows that it runs, its figures mean nothing
    #[arg(long)]
    quick: bool,
    /// Only scenarios with this in their name
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,
    /// Rows of a drain, at least 2,000: two windows
    #[arg(long, value_parser = clap::value_parser!(u32).range(2_000..))]
    rows: Option<u32>,
    /// How often the relay is measured, each time between two ceilings, at least once
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: Option<u32>,
    /// Only the comparison with other relays, all or those of `--only`: run tests/bench/others/install.sh first
    #[arg(long)]
    others: bool,
    /// What cargo calls every benchmark with
    #[arg(long, hide = true)]
    bench: bool,
}

// As many threads as the relay has.
#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let quick = arguments.quick;
    let found = Cell::new(false);
    let chosen = |name: &str| {
        let chosen = name.contains(&arguments.only);
        found.set(found.get() || chosen);
        chosen
    };
    let rows = arguments.rows.unwrap_or(if quick { 2_000 } else { 100_000 }) as usize;
    let pairs = arguments.pairs.unwrap_or(if quick { 1 } else { 5 }) as usize;

    let mut stage = Stage::start().await;
    println!("{}", procfs::machine());
    println!("{}\n", stage.versions().await);
    drain::warm_up(&mut stage, rows).await;

    if arguments.others {
        println!("Drain PostgreSQL into a quorum queue, {rows} rows of 256 bytes, {pairs} rounds;");
        println!("rates, and the ceilings' before and after each, from the first message in the queue to the last;");
        println!("median, and least to most in brackets.\n");
        others::compare(&mut stage, &chosen, rows, pairs).await;
        return ended(found.get());
    }

    let drains: Vec<_> = DRAINS.iter().filter(|drain| chosen(drain.name)).collect();
    if !drains.is_empty() {
        println!("Drain, {rows} rows of 256 bytes (hot-key-strict: a tenth of them), {pairs} pairs;");
        println!("rates from the first confirm to the last; median, and least to most in brackets.\n");
        report::drain_header();
        let mut measured = Vec::new();
        for drain in drains {
            let pairs = drain.run(&mut stage, rows, pairs).await;
            report::drain_line(drain.name, &pairs);
            measured.push((drain.name, pairs));
        }
        println!("\nDatabase operations for a thousand messages; in PostgreSQL each is a statement and a round trip:");
        for (name, pairs) in &measured {
            report::operations_line(name, pairs);
        }
        println!();
    }

    if chosen("bare") {
        let ceiling = async |stage: &mut Stage| full(stage, rows).await;
        let rates = async |stage: &mut Stage| (bare(stage, rows, bare::CHANNELS).await, bare(stage, rows, 1).await);
        let measured = bracketed(&mut stage, pairs, ceiling, rates).await.into_iter();
        let bare = |((rate, ordered), [before, after]): ((f64, f64), [f64; 2])| report::Bare {
            rate,
            ordered,
            ceiling: f64::midpoint(before, after),
        };
        report::bare_line(&measured.map(bare).collect::<Vec<_>>());
    }

    let strains: Vec<_> = STRAINS.iter().filter(|(name, _)| chosen(name)).collect();
    for (name, strain) in strains {
        let measured = strain.run(&mut stage, rows, pairs.div_ceil(2)).await;
        report::strain(name, &measured);
    }

    for shape in SHAPES.iter().filter(|shape| chosen(shape.name)) {
        let shapes = shape.measure(&mut stage, rows, pairs.div_ceil(2)).await;
        report::shape(shape, &shapes, 50 * rows);
    }

    if chosen("wakeup-inserts") {
        let (seconds, pairs) = if quick { (1, 1) } else { (10, pairs) };
        let measured = inserts::measure(&mut stage, seconds, pairs).await;
        report::strained("wakeup-inserts (32 writers)", &measured);
        println!();
    }

    let paces = [
        latency::Pace::steady("latency-500", if quick { 500 } else { 10_000 }),
        latency::Pace::sporadic("latency-sporadic", if quick { 3 } else { 30 }),
    ];
    for pace in paces.iter().filter(|pace| chosen(pace.name)) {
        let direct = latency::direct(&mut stage, pace).await;
        let direct = report::latency_line(pace.name, "publish -> consumer, no relay", direct, None);
        let relayed = latency::relayed(&mut stage, pace).await;
        report::latency_line(pace.name, "commit -> consumer", relayed, Some(direct));
        stage.wake_up(true).await;
        let woken = latency::relayed(&mut stage, pace).await;
        report::latency_line(pace.name, "commit -> consumer, with the wake-up", woken, Some(direct));
        stage.wake_up(false).await;
    }
    for (name, bytes, fraction) in memory::BODIES {
        if chosen(name) {
            let peak = memory::measure(&mut stage, bytes, (rows / fraction).max(1)).await;
            println!("{name}: {peak:.0} MiB resident at most");
        }
    }
    if chosen("start") {
        let times = start::measure(&mut stage, if quick { 1 } else { 11 }).await;
        report::latency_line("start", "process -> first message, a row waiting", times, None);
        println!("start: the program is a file of {:.1} MB", start::binary_mb());
    }
    if chosen("idle") {
        println!("idle: {}", idle::measure(&mut stage, if quick { 2 } else { 20 }).await);
    }
    ended(found.get())
}

fn ended(found: bool) -> ExitCode {
    if found {
        ExitCode::SUCCESS
    } else {
        eprintln!("no scenario has that in its name: see tests/bench/main.rs");
        ExitCode::FAILURE
    }
}

/// The ceiling with a queue of its own, messages a second.
async fn full(stage: &mut Stage, rows: usize) -> f64 {
    stage.new_queue(Kind::Quorum).await;
    ceiling::measure(stage, rows, Window::Full).await.rate
}

/// The same on a bare socket.
async fn bare(stage: &mut Stage, rows: usize, channels: usize) -> f64 {
    stage.new_queue(Kind::Quorum).await;
    let port = stage.rabbit.port();
    let bare = tokio::task::spawn_blocking(move || bare::measure(port, rows, channels));
    bare.await.expect("it publishes")
}
