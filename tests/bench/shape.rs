//! Other shapes of the table in PostgreSQL beside the one that is shipped: what each gains, and what it costs.

use std::time::Duration;

use crate::drain::Look;
use crate::stage::{Rows, Source, Stage};
use crate::strain::{Strained, alone, sent};
use crate::support::{Kind, until};

/// Sweeps of which the mean is taken.
const SWEEPS: f64 = 10.0;

pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    /// From the shape that `migrate` makes to this one, and back.
    there: &'static str,
    back: &'static str,
    /// Times the rows that are sent.
    times: usize,
}

pub(crate) const SHAPES: [Shape; 2] = [
    // A mark is a HOT update then, and writes no index.
    Shape {
        name: "hot-marks",
        what: "no index of unsent rows, fillfactor 50",
        there: "DROP INDEX outbox_relay_unsent; ALTER TABLE outbox SET (fillfactor = 50)",
        back: "CREATE INDEX outbox_relay_unsent ON outbox (id) WHERE sent_at IS NULL AND dead_at IS NULL;
               ALTER TABLE outbox RESET (fillfactor)",
        times: 1,
    },
    // So many rows that the server looks once or twice at what there is to be cleaned up, as it does every minute.
    Shape {
        name: "autovacuum",
        what: "the server's own settings of it",
        there: "ALTER TABLE outbox RESET (autovacuum_vacuum_threshold, autovacuum_vacuum_scale_factor,
                                          autovacuum_analyze_threshold, autovacuum_analyze_scale_factor)",
        back: "ALTER TABLE outbox SET (autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_scale_factor = 0.01,
                                       autovacuum_analyze_threshold = 10000, autovacuum_analyze_scale_factor = 0.02)",
        times: 40,
    },
];

/// What a drain leaves behind.
#[derive(Default)]
pub(crate) struct Left {
    /// Of the marks, those that were HOT updates.
    pub(crate) hot: f64,
    /// Bytes of the index of unsent rows when all was sent, where there is one.
    pub(crate) index: i64,
}

/// As shipped, and in the other shape.
pub(crate) struct Shapes {
    pub(crate) drains: Vec<Strained>,
    pub(crate) left: [Left; 2],
    /// How long a sweep takes that finds nothing, with fifty times the rows kept.
    pub(crate) sweeps: [Duration; 2],
}

impl Shape {
    pub(crate) async fn measure(&self, stage: &mut Stage, rows: usize, pairs: usize) -> Shapes {
        let rows_sent = self.times * rows;
        let (mut left, mut left_otherwise) = (Left::default(), Left::default());
        let as_shipped = async |stage: &mut Stage| drained(stage, rows_sent, &mut left).await;
        let otherwise = async |stage: &mut Stage| {
            stage.run(self.there).await;
            let rate = drained(stage, rows_sent, &mut left_otherwise).await;
            stage.run(self.back).await;
            rate
        };
        let drains = Strained::measure(stage, pairs, as_shipped, otherwise).await;
        stage.clear().await;
        sent(stage, 50 * rows, "1 hour").await;
        let as_shipped = sweep(stage).await;
        stage.run(self.there).await;
        let otherwise = sweep(stage).await;
        stage.clear().await;
        stage.run(self.back).await;
        Shapes {
            drains,
            left: [left, left_otherwise],
            sweeps: [as_shipped, otherwise],
        }
    }
}

/// A drain, messages a second.
async fn drained(stage: &mut Stage, rows: usize, left: &mut Left) -> f64 {
    const MARKS: &str = "SELECT n_tup_upd FROM pg_stat_user_tables WHERE relid = 'outbox'::regclass";
    const HOT: &str = "SELECT n_tup_hot_upd FROM pg_stat_user_tables WHERE relid = 'outbox'::regclass";
    const INDEX: &str = "SELECT coalesce(pg_relation_size(to_regclass('outbox_relay_unsent')), 0)";
    stage
        .run("SELECT pg_stat_reset_single_table_counters('outbox'::regclass)")
        .await;
    let rate = alone(stage, rows).await;
    // The server counts them when the relay's connection has gone.
    until("the marks are counted", Duration::from_secs(20), async || {
        stage.number(MARKS).await >= rows as i64
    })
    .await;
    *left = Left {
        hot: stage.number(HOT).await as f64 / rows as f64,
        index: stage.number(INDEX).await,
    };
    rate
}

/// By the relay's own measure. It sweeps what is below the last row that it has read: one that it sends.
async fn sweep(stage: &mut Stage) -> Duration {
    stage.new_queue(Kind::Quorum).await;
    stage
        .insert(&Rows {
            count: 1,
            ..Rows::default()
        })
        .await;
    let relay = stage.relay(Source::Postgres);
    let mut relay = relay.env("RELAY_POLL_SWEEP_INTERVAL", "100ms").spawn();
    let timeout = Duration::from_secs(120);
    relay
        .wait_metric("outbox_relay_messages_published_total", |sent| sent == 1.0, timeout)
        .await;
    let first = Look::at(&relay).await;
    let mut last = Look::at(&relay).await;
    let sweeps = |last: &Look| last.operations("scan") - first.operations("scan");
    until("the table is swept", timeout, async || {
        last = Look::at(&relay).await;
        sweeps(&last) >= SWEEPS
    })
    .await;
    let mean = (last.seconds("scan") - first.seconds("scan")) / sweeps(&last);
    relay.sigterm();
    assert!(relay.wait(Duration::from_secs(30)).await.success());
    Duration::from_secs_f64(mean)
}
