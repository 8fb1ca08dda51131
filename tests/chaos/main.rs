//! Several relays on one table while everything goes wrong, and a checker of what must hold all the same.
//!
//! `cargo test --test chaos` takes about two minutes; by hand `cargo test --test chaos -- --minutes 20 --seed 7`. The seed
//! gives the sequence of the faults and what the writers decide; when things happen it cannot give. `--database mariadb` runs
//! on MariaDB (or MySQL).
//!
//! Not a function for the usual harness: it has arguments, it tells what it saw when all went well, too, and it ends at
//! the first violation while the servers still run.

#![allow(clippy::unwrap_used, clippy::expect_used)] // what goes wrong here is to be seen

#[path = "../support/mod.rs"]
mod support;

mod database;
mod faults;
mod ledger;
mod proof;
mod report;
mod stage;
mod strike;
mod watch;
mod writers;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tokio::sync::RwLock;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::sleep;

use database::Choice;
use faults::{Record, Sequence};
use ledger::Ledger;
use stage::Stage;
use watch::Watcher;

/// After so many faults everything must heal.
const FAULTS_BETWEEN_QUIET_POINTS: usize = 20;

/// When all is done, a copy that comes late still comes.
const AFTERGLOW: Duration = Duration::from_secs(3);

#[derive(Parser)]
struct Arguments {
    /// Drawn and printed when it is not given
    #[arg(long)]
    seed: Option<u64>,
    /// How long faults happen
    #[arg(long, default_value_t = 1.5)]
    minutes: f64,
    /// Only faults with this in their name
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,
    #[arg(long, default_value_t = 3)]
    relays: usize,
    #[arg(long, value_enum, default_value_t = Choice::Postgres)]
    database: Choice,
    /// The name of a test, as `cargo test NAME` gives to every harness
    #[arg(hide = true)]
    filter: Vec<String>,
    /// For `cargo test -- --nocapture`: nothing is captured
    #[arg(long, hide = true)]
    nocapture: bool,
    /// For `cargo test -- --test-threads N`: there is one test
    #[arg(long, hide = true, value_name = "N")]
    test_threads: Option<usize>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let wanted = |name: &String| "chaos".contains(name.as_str());
    if !(arguments.filter.is_empty() || arguments.filter.iter().any(wanted)) {
        return ExitCode::SUCCESS;
    }
    proof::checker_finds_what_it_is_for();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let minutes = arguments.minutes;
    let database = arguments.database.name();
    println!("again: cargo test --test chaos -- --seed {seed} --minutes {minutes} --database {database}");

    let stage = Arc::new(Stage::start(arguments.database, arguments.relays, seed).await);
    let record = Record::new();
    let ledger = Ledger::new(record.clone());
    let gate = Arc::new(RwLock::new(()));
    let watcher = Watcher {
        stage: stage.clone(),
        record: record.clone(),
        ledger: ledger.clone(),
        seen: Arc::default(),
    };
    let mut watching = JoinSet::new();
    watching.spawn(watcher.clone().watch_arrivals(stage.consumer()));
    watching.spawn(watcher.clone().watch_database());
    let duration = Duration::from_secs_f64(minutes * 60.0);
    let longest_hold = Duration::from_secs(60).min(duration / 3);
    let mut writing = writers::start(seed, &stage.application_url, longest_hold, &ledger, &gate);

    let seen = watcher.seen.clone();
    let mut run = Run {
        watcher,
        sequence: Sequence::new(seed, arguments.relays, &arguments.only),
        striking: JoinSet::new(),
        others: [&mut watching, &mut writing],
    };
    // The servers' controls are not made for tasks that change threads.
    LocalSet::new().run_until(run.go(duration, &gate)).await;

    // Nobody writes any more, not even the one that holds a transaction open for long.
    writing.shutdown().await;
    let unclean = if ledger.book().violations.is_empty() {
        let unclean = stage.stop().await;
        sleep(AFTERGLOW).await;
        unclean
    } else {
        stage.keep_logs().await;
        Vec::new()
    };
    watching.shutdown().await;
    if !unclean.is_empty() {
        ledger.violation(format!("relays {unclean:?} did not stop cleanly at the end"));
    }
    report::print(&stage, &record, &ledger, &seen.lock().expect("no panic while locked"));
    println!("\nseed {seed}");
    if ledger.book().violations.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

struct Run<'a> {
    watcher: Watcher,
    sequence: Sequence,
    striking: JoinSet<()>,
    /// Tasks that never end, unless by a panic.
    others: [&'a mut JoinSet<()>; 2],
}

impl Run<'_> {
    /// Faults for that long, with quiet points; ends early when something is violated.
    async fn go(&mut self, duration: Duration, gate: &RwLock<()>) {
        let record = self.watcher.record.clone();
        // All is well before the first fault: a relay that never works would look like one that recovers slowly.
        sleep(Duration::from_secs(2)).await;
        self.watcher.quiet_point(gate).await;
        let mut struck = 0;
        while record.now() < duration && self.goes_well() {
            let plan = self.sequence.draw();
            sleep(plan.gap).await;
            while !record.has_room_for(&plan) && self.goes_well() {
                sleep(Duration::from_millis(50)).await;
            }
            let (stage, ledger) = (self.watcher.stage.clone(), self.watcher.ledger.clone());
            self.striking
                .spawn_local(strike::strike(stage, record.clone(), ledger, plan));
            struck += 1;
            if struck % FAULTS_BETWEEN_QUIET_POINTS == 0 {
                self.heal().await;
                self.watcher.quiet_point(gate).await;
            }
        }
        self.heal().await;
        self.watcher.quiet_point(gate).await;
    }

    /// Until all faults have ended.
    async fn heal(&mut self) {
        while let Some(ended) = self.striking.join_next().await {
            ended.expect("the fault could be made");
        }
    }

    fn goes_well(&mut self) -> bool {
        while let Some(ended) = self.striking.try_join_next() {
            ended.expect("the fault could be made");
        }
        for tasks in &mut self.others {
            assert!(tasks.try_join_next().is_none(), "a part of the run itself failed");
        }
        self.watcher.ledger.book().violations.is_empty()
    }
}
