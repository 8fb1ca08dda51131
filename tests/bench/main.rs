//! What the relay costs and how fast it is, beside the limit that was measured in the same run.
//!
//! `cargo bench` runs everything, `cargo bench -- --quick` only shows that it runs. Servers are private ones, started
//! here; the relay is the real binary. The machine is never quiet enough for absolute figures: read the ratios.

#![allow(clippy::unwrap_used, clippy::expect_used)] // what goes wrong here is to be seen

#[path = "../support/mod.rs"]
mod support;

mod ceiling;
mod drain;
mod idle;
mod latency;
mod procfs;
mod report;
mod stage;

use clap::Parser;

use drain::Drain;
use stage::{Database, Stage};
use support::Kind;

#[derive(Parser)]
struct Arguments {
    /// A few rows and one pair: shows that it runs, its figures mean nothing
    #[arg(long)]
    quick: bool,
    /// Only scenarios with this in their name
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,
    /// Rows of a drain
    #[arg(long)]
    rows: Option<usize>,
    /// How often the relay is measured, each time between two ceilings
    #[arg(long)]
    pairs: Option<usize>,
    /// What cargo calls every benchmark with
    #[arg(long, hide = true)]
    bench: bool,
}

const DRAINS: [Drain; 7] = [
    Drain::new("quorum-mark", Kind::Quorum, "mark"),
    Drain::new("quorum-delete", Kind::Quorum, "delete"),
    Drain::new("classic-mark", Kind::Classic, "mark"),
    Drain::new("classic-delete", Kind::Classic, "delete"),
    Drain::hot_key("hot-key", Kind::Quorum, "mark"),
    Drain::mariadb("mariadb-quorum-mark", Kind::Quorum, "mark"),
    Drain::mariadb("mariadb-quorum-delete", Kind::Quorum, "delete"),
];

const PACES: [&str; 3] = ["latency-500", "latency-sporadic", "idle"];

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let quick = arguments.quick;
    let chosen = |name: &str| name.contains(&arguments.only);
    let rows = arguments.rows.unwrap_or(if quick { 5_000 } else { 100_000 });
    let pairs = arguments.pairs.unwrap_or(if quick { 1 } else { 5 }).max(1);

    println!("{}", procfs::machine());
    for database in [Database::Postgres, Database::MariaDb] {
        let on_it = |drain: &&Drain| drain.database == database && chosen(drain.name);
        let drains: Vec<_> = DRAINS.iter().filter(on_it).collect();
        let paced = database == Database::Postgres && PACES.iter().any(|name| chosen(name));
        if drains.is_empty() && !paced {
            continue;
        }
        let mut stage = Stage::start(database).await;
        println!("{}\n", stage.versions().await);
        drain_all(&mut stage, &drains, rows, pairs).await;
        if paced {
            pace_all(&mut stage, quick, chosen).await;
        }
    }
}

async fn drain_all(stage: &mut Stage, drains: &[&Drain], rows: usize, pairs: usize) {
    if drains.is_empty() {
        return;
    }
    println!("Drain, {rows} rows of 256 bytes (one key: a tenth of them), strict, {pairs} pairs;");
    println!("rates from the first confirm to the last; median, and least to most in brackets.\n");
    report::drain_header();
    for drain in drains {
        let pairs = drain.run(stage, rows, pairs).await;
        report::drain_line(drain.name, &pairs);
    }
    println!();
}

async fn pace_all(stage: &mut Stage, quick: bool, chosen: impl Fn(&str) -> bool) {
    let paces = [
        latency::Pace::steady("latency-500", 500, if quick { 500 } else { 10_000 }),
        latency::Pace::sporadic("latency-sporadic", if quick { 3 } else { 30 }),
    ];
    for pace in paces.iter().filter(|pace| chosen(pace.name)) {
        let direct = latency::direct(stage, pace).await;
        report::latency_line(pace.name, "publish -> consumer, no relay", direct);
        let relayed = latency::relayed(stage, pace).await;
        report::latency_line(pace.name, "commit -> consumer", relayed);
    }
    if chosen("idle") {
        println!("idle: {}", idle::measure(stage, if quick { 2 } else { 20 }).await);
    }
}
