//! What slows others down: the same drain under a strain and without it, in turn.

use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};

use crate::bracket::bracketed;
use crate::drain::{Drained, LOOK, Look, Running, drain};
use crate::stage::{Rows, Source, Stage};
use crate::support::{Kind, until};

/// 5M old rows are purged within this, at 4,200 a second.
const PURGE_TIMEOUT: Duration = Duration::from_secs(1_200);

/// Rows that the purge is to delete, which has `RELAY_OUTBOX_RETENTION=7d`.
const OLD: &str = "SELECT count(*) FROM outbox WHERE sent_at < now() - interval '7 days'";

/// What is in the way.
#[derive(Clone, Copy)]
pub(crate) enum Strain {
    /// Fifty times the rows were sent and are kept, and ten times wait; against the rows in a table of their own.
    FullTable,
    /// A snapshot is open while twenty times the rows are sent.
    Snapshot,
    /// Ten times the rows wait behind the first row of their key, which is not due, and as many others behind them: it
    /// takes long enough for the sweeps to find them again.
    BlockedKey,
    /// Fifty times the rows are older than the retention; forty times are sent while most of those are purged.
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
    /// The mean of right before and right after.
    pub(crate) without: f64,
    pub(crate) under: f64,
}

impl Strained {
    pub(crate) async fn measure(
        stage: &mut Stage,
        pairs: usize,
        without: impl AsyncFnMut(&mut Stage) -> f64,
        under: impl AsyncFnMut(&mut Stage) -> f64,
    ) -> Vec<Self> {
        let measured = bracketed(stage, pairs, without, under).await.into_iter();
        let strained = |(under, [before, after]): (f64, [f64; 2])| Self {
            without: f64::midpoint(before, after),
            under,
        };
        measured.map(strained).collect()
    }
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

/// What was measured of a strain.
pub(crate) struct Measured {
    pub(crate) pairs: Vec<Strained>,
    pub(crate) purged: Vec<Purged>,
    /// From the start of the relay to its first messages, under the strain.
    pub(crate) began_after: Vec<Duration>,
}

impl Strain {
    pub(crate) async fn run(self, stage: &mut Stage, rows: usize, pairs: usize) -> Measured {
        let (mut purged, mut began_after) = (Vec::new(), Vec::new());
        let without = async |stage: &mut Stage| self.without(stage, rows).await;
        let under = async |stage: &mut Stage| {
            let drained = self.under(stage, rows, &mut purged).await;
            began_after.push(drained.began_after);
            drained.rate
        };
        let pairs = Strained::measure(stage, pairs, without, under).await;
        stage.clear().await;
        Measured {
            pairs,
            purged,
            began_after,
        }
    }

    async fn without(self, stage: &mut Stage, rows: usize) -> f64 {
        let rows = match self {
            Self::FullTable => rows,
            Self::BlockedKey => 10 * rows,
            Self::Snapshot => 20 * rows,
            Self::Purge => 40 * rows,
        };
        alone(stage, rows).await
    }

    async fn under(self, stage: &mut Stage, rows: usize, purged: &mut Vec<Purged>) -> Drained {
        stage.clear().await;
        match self {
            Self::FullTable => {
                sent(stage, 50 * rows, "1 hour").await;
                waiting(stage, 10 * rows).await;
                drained(stage, 10 * rows).await
            }
            Self::Snapshot => {
                let mut reader = PgConnection::connect(&stage.database_url)
                    .await
                    .expect("the server is up");
                let open = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox";
                sqlx::raw_sql(open).execute(&mut reader).await.expect("it runs");
                waiting(stage, 20 * rows).await;
                let drained = drained(stage, 20 * rows).await;
                sqlx::raw_sql("COMMIT").execute(&mut reader).await.expect("still open");
                drained
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
                waiting(stage, 10 * rows).await;
                drained(stage, 10 * rows).await
            }
            Self::Purge => {
                let (drained, how) = purge(stage, rows).await;
                purged.push(how);
                drained
            }
        }
    }
}

/// The relay goes on after the drain, until no old row is left.
async fn purge(stage: &mut Stage, rows: usize) -> (Drained, Purged) {
    sent(stage, 50 * rows, "8 days").await;
    waiting(stage, 40 * rows).await;
    stage.new_queue(Kind::Quorum).await;
    let settings = [("RELAY_OUTBOX_RETENTION", "7d")];
    let running = Running::start(stage, Source::Postgres, &settings, 40 * rows).await;
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
    (drained, purged)
}

/// Messages a second, of rows in a table of their own.
pub(crate) async fn alone(stage: &mut Stage, rows: usize) -> f64 {
    stage.clear().await;
    waiting(stage, rows).await;
    drained(stage, rows).await.rate
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

/// Nothing is purged meanwhile.
async fn drained(stage: &mut Stage, rows: usize) -> Drained {
    stage.new_queue(Kind::Quorum).await;
    drain(stage, Source::Postgres, &[("RELAY_OUTBOX_RETENTION", "off")], rows).await
}
