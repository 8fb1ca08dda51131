//! What a drain of larger bodies takes in memory.

use crate::drain::drain;
use crate::stage::{Rows, Source, Stage};
use crate::support::Kind;

/// Bytes of a body, and how many of them stand for one of the rows asked for.
pub(crate) const BODIES: [(&str, usize, usize); 2] = [("memory-1kB", 1_000, 2), ("memory-1MB", 1_000_000, 250)];

/// The most that was resident, in MiB.
pub(crate) async fn measure(stage: &mut Stage, bytes: usize, count: usize) -> f64 {
    stage.clear().await;
    let rows = Rows {
        count,
        bytes,
        ..Rows::default()
    };
    stage.insert(&rows).await;
    stage.new_queue(Kind::Quorum).await;
    let drained = drain(stage, Source::Postgres, &[], count).await;
    stage.clear().await;
    drained.peak_mib
}
