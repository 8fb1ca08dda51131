//! Another shape of the table in PostgreSQL beside the one that is shipped: without the index of unsent rows and with half of
//! every page free, a mark is a HOT update, and writes no index. What that gains, and what it costs.

use std::time::{Duration, Instant};

use crate::stage::Stage;
use crate::strain::{Strained, alone, sent};

/// What the relay asks every 15 s, so that nothing is forgotten whatever happened to the ids.
const SWEEP: &str = "SELECT count(*) FROM outbox WHERE sent_at IS NULL AND dead_at IS NULL";

/// As `migrate` makes it.
const INDEX: &str = "CREATE INDEX outbox_relay_unsent ON outbox (id) WHERE sent_at IS NULL AND dead_at IS NULL";

pub(crate) struct Shapes {
    /// As shipped, and the other one.
    pub(crate) drains: Vec<Strained>,
    /// How long a sweep takes that finds nothing, with fifty times the rows kept: as shipped, and without the index.
    pub(crate) sweeps: [Duration; 2],
}

pub(crate) async fn measure(stage: &mut Stage, rows: usize, pairs: usize) -> Shapes {
    let mut drains = Vec::new();
    for _ in 0..pairs {
        let without = alone(stage, rows).await;
        hot(stage).await;
        let under = alone(stage, rows).await;
        shipped(stage).await;
        drains.push(Strained {
            without,
            under,
            purged: None,
        });
    }
    stage.clear().await;
    sent(stage, 50 * rows, "1 hour").await;
    let with_index = sweep(stage).await;
    hot(stage).await;
    let without_index = sweep(stage).await;
    stage.clear().await;
    shipped(stage).await;
    Shapes {
        drains,
        sweeps: [with_index, without_index],
    }
}

async fn hot(stage: &mut Stage) {
    stage.run("DROP INDEX outbox_relay_unsent").await;
    stage.run("ALTER TABLE outbox SET (fillfactor = 50)").await;
}

async fn shipped(stage: &mut Stage) {
    stage.run(INDEX).await;
    stage.run("ALTER TABLE outbox RESET (fillfactor)").await;
}

/// The second of two: what is read is in memory then, as far as it has room there.
async fn sweep(stage: &mut Stage) -> Duration {
    stage.number(SWEEP).await;
    let began = Instant::now();
    stage.number(SWEEP).await;
    began.elapsed()
}
