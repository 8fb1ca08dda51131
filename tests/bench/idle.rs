//! What a relay costs that has nothing to do.

use std::time::Duration;

use crate::procfs;
use crate::stage::{Source, Stage};
use crate::support::Kind;

/// The start is over by then, and the relay at its slowest pace.
const WARM_UP: Duration = Duration::from_secs(3);

/// Every statement outside a transaction counts as one.
const TRANSACTIONS: &str =
    "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()";

pub(crate) async fn measure(stage: &mut Stage, seconds: u32) -> String {
    stage.load(Source::Postgres, 0, 1).await;
    stage.new_queue(Kind::Quorum).await;
    let mut relay = stage.relay(Source::Postgres).spawn();
    tokio::time::sleep(WARM_UP).await;
    let (cpu, statements) = (procfs::cpu(relay.pid()), stage.number(TRANSACTIONS).await);
    tokio::time::sleep(Duration::from_secs(seconds.into())).await;
    let cpu = procfs::cpu(relay.pid()) - cpu;
    let statements = stage.number(TRANSACTIONS).await - statements;
    let resident = procfs::memory_mib(relay.pid(), "VmRSS");
    relay.sigterm();
    assert!(relay.wait(Duration::from_secs(30)).await.success());
    format!(
        "{:.2} % of a core, {:.1} statements a second, {resident:.1} MiB resident (over {seconds} s)",
        100.0 * cpu.as_secs_f64() / f64::from(seconds),
        statements as f64 / f64::from(seconds),
    )
}
