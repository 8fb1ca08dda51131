//! What slows others down: the same drain under a strain and without it, in turn.

use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};

use crate::drain::{LOOK, Look, Running, drain};
use crate::stage::{Rows, Source, Stage};
use crate::support::{Kind, until};

/// 5M old rows are purged within this, at 4,200 a second.
const PURGE_TIMEOUT: Duration = Duration::from_secs(1_200);

/// Rows that the purge is to delete, which has `RELAY_OUTBOX_RETENTION=7d`.
const OLD: &str = "SELECT count(*) FROM outbox WHERE sent_at < now() - interval '7 days'";

/// What is in the way.
#[derive(Clone, Copy)]
pub(crate) enum Strain {
    /// Fifty times the rows were sent and are kept, and ten times wait, of which the first rows are sent; against the
    /// same number in a table of their own.
    FullTable,
    /// A snapshot is open while twenty times the rows are sent.
    Snapshot,
    /// Ten times the rows wait behind the first row of their key, which is not due.
    BlockedKey,
    /// Fifty times the rows are older than the retention, and are purged meanwhile.
    Purge,
}

pub(crate) const STRAINS: [(&str, Strain); 4] = [
    ("full-table", Strain::FullTable),
    ("open-snapshot", Strain::Snapshot),
    ("blocked-key", Strain::BlockedKey),
    ("purge", Strain::Purge),
];

/// Messages a second.
pub(crate) struct Strained {
    pub(crate) without: f64,
    pub(crate) under: f64,
    pub(crate) purged: Option<Purged>,
}

/// How the old rows went.
#[derive(Clone, Copy)]
pub(crate) struct Purged {
    /// Rows a second, while others were sent.
    pub(crate) meanwhile: f64,
    /// Rows that were left when all others were sent.
    pub(crate) left: f64,
    /// How long those took.
    pub(crate) afterwards: Duration,
}

impl Strain {
    pub(crate) async fn run(self, stage: &mut Stage, rows: usize, pairs: usize) -> Vec<Strained> {
        let mut measured = Vec::new();
        for _ in 0..pairs {
            let without = self.without(stage, rows).await;
            let (under, purged) = self.under(stage, rows).await;
            measured.push(Strained { without, under, purged });
        }
        stage.clear().await;
        measured
    }

    async fn without(self, stage: &mut Stage, rows: usize) -> f64 {
        let rows = match self {
            Self::FullTable | Self::BlockedKey => rows,
            Self::Snapshot => 20 * rows,
            Self::Purge => 10 * rows,
        };
        alone(stage, rows).await
    }

    async fn under(self, stage: &mut Stage, rows: usize) -> (f64, Option<Purged>) {
        stage.clear().await;
        let rate = match self {
            Self::FullTable => {
                sent(stage, 50 * rows, "1 hour").await;
                waiting(stage, 10 * rows).await;
                // As many as without: a drain that lasts ten times as long has another share of start, end and pauses
                // of the servers (checkpoints, autovacuum).
                rate(stage, "off", rows).await
            }
            Self::Snapshot => {
                let mut reader = PgConnection::connect(&stage.database_url)
                    .await
                    .expect("the server is up");
                let open = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox";
                sqlx::raw_sql(open).execute(&mut reader).await.expect("it runs");
                waiting(stage, 20 * rows).await;
                let rate = rate(stage, "off", 20 * rows).await;
                sqlx::raw_sql("COMMIT").execute(&mut reader).await.expect("still open");
                rate
            }
            Self::BlockedKey => {
                let blocked = |count, delay| Rows {
                    count,
                    key: "blocked",
                    keys: 1,
                    delay,
                    ..Rows::default()
                };
                stage.insert(&blocked(1, Some("1 hour"))).await;
                stage.insert(&blocked(10 * rows, None)).await;
                waiting(stage, rows).await;
                rate(stage, "off", rows).await
            }
            Self::Purge => {
                let (rate, purged) = purge(stage, rows).await;
                return (rate, Some(purged));
            }
        };
        (rate, None)
    }
}

/// The relay goes on after the drain, until no old row is left.
async fn purge(stage: &mut Stage, rows: usize) -> (f64, Purged) {
    sent(stage, 50 * rows, "8 days").await;
    waiting(stage, 10 * rows).await;
    stage.new_queue(Kind::Quorum).await;
    let settings = [("RELAY_OUTBOX_RETENTION", "7d")];
    let running = Running::start(stage, Source::Postgres, &settings, 10 * rows).await;
    let drained = running.drained(stage).await;
    let (began, all) = (Instant::now(), (50 * rows) as f64);
    let left = all - Look::at(&running.relay).await.purged();
    until("the old rows are purged", PURGE_TIMEOUT, async || {
        tokio::time::sleep(LOOK).await;
        Look::at(&running.relay).await.purged() >= all
    })
    .await;
    let afterwards = began.elapsed();
    assert_eq!(stage.number(OLD).await, 0, "old rows that are left");
    running.stop().await;
    let purged = Purged {
        meanwhile: drained.purge_rate,
        left,
        afterwards,
    };
    (drained.rate, purged)
}

/// Messages a second, of rows in a table of their own.
pub(crate) async fn alone(stage: &mut Stage, rows: usize) -> f64 {
    stage.clear().await;
    waiting(stage, rows).await;
    rate(stage, "off", rows).await
}

async fn waiting(stage: &mut Stage, count: usize) {
    let rows = Rows {
        count,
        ..Rows::default()
    };
    stage.insert(&rows).await;
    stage.run("VACUUM ANALYZE outbox").await;
}

pub(crate) async fn sent(stage: &mut Stage, count: usize, ago: &'static str) {
    let rows = Rows {
        count,
        sent_ago: Some(ago),
        ..Rows::default()
    };
    stage.insert(&rows).await;
    // Sent long ago: nothing of them is left to be cleaned up or written to disk.
    stage.run("VACUUM ANALYZE outbox").await;
    stage.run("CHECKPOINT").await;
}

async fn rate(stage: &mut Stage, retention: &str, rows: usize) -> f64 {
    stage.new_queue(Kind::Quorum).await;
    let settings = [("RELAY_OUTBOX_RETENTION", retention)];
    drain(stage, Source::Postgres, &settings, rows).await.rate
}
