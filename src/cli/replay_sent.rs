//! `outbox-relay replay-sent`: sent rows become unsent again, in batches, each a short statement.
//!
//! Two operators can do it at once: only rows that were sent before the command began are touched, so that what the other one
//! has set back, and a relay has sent again, is left alone.

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use serde_json::json;
use tracing::warn;

use super::dead_letters::CONFLICTS;
use super::pause::who;
use super::progress::Progress;
use crate::config::{Config, OnSent};
use crate::message::RowId;
use crate::store::operator::{SentFilter, SentMark};
use crate::store::{self, Operator, StoreError};

/// Rows set back with one statement.
const BATCH: u32 = 200;

/// Rows looked at with one statement.
const WINDOW: u32 = 5_000;

#[derive(Args)]
pub(super) struct ReplaySent {
    /// These rows
    #[arg(allow_negative_numbers = true)]
    ids: Vec<i64>,
    /// Sent since then: 2026-11-25T03:00:00Z, or so long ago: 90m, 7d
    #[arg(long, value_parser = moment)]
    since: Option<SystemTime>,
    /// Sent before then; the beginning of this command at the latest
    #[arg(long, value_parser = moment)]
    until: Option<SystemTime>,
    /// Of this exchange; empty: the default exchange
    #[arg(long)]
    exchange: Option<String>,
    /// With this routing key
    #[arg(long)]
    routing_key: Option<String>,
    /// Of this ordering key
    #[arg(long)]
    key: Option<String>,
    /// All sent rows
    #[arg(long, conflicts_with_all = ["ids", "since", "until", "exchange", "routing_key", "key"])]
    all: bool,
    /// At the most so many, the lowest ids first
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// At the most so many a second
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Only say how many there are
    #[arg(long)]
    dry_run: bool,
    /// The result as one JSON object
    #[arg(long)]
    json: bool,
}

/// A time, or a span before now.
fn moment(text: &str) -> Result<SystemTime, String> {
    if let Ok(time) = humantime::parse_rfc3339_weak(text) {
        return Ok(time);
    }
    let span = humantime::parse_duration(text)
        .map_err(|_| "a time like 2026-11-25T03:00:00Z (UTC), or a span before now like 90m or 7d".to_owned())?;
    SystemTime::now()
        .checked_sub(span)
        .ok_or_else(|| "so long ago there is no time".to_owned())
}

#[derive(Default)]
struct Done {
    looked_at: u64,
    matched: u64,
    changed: u64,
    keyed: bool,
}

impl ReplaySent {
    /// Nothing is sent again by mistake: what is meant must be said.
    pub(super) fn check(&self) -> Result<(), String> {
        let chosen = !self.ids.is_empty()
            || self.since.is_some()
            || self.until.is_some()
            || self.exchange.is_some()
            || self.routing_key.is_some()
            || self.key.is_some();
        if chosen || self.all {
            Ok(())
        } else {
            Err("which sent rows? Give ids, --since, a filter such as --routing-key, or --all".to_owned())
        }
    }
}

pub(super) async fn replay_sent(config: &Config, args: ReplaySent) -> anyhow::Result<ExitCode> {
    if config.outbox.on_sent == OnSent::Delete {
        anyhow::bail!(
            "with RELAY_OUTBOX_ON_SENT=delete no row is kept once it was sent: there is nothing to publish again"
        );
    }
    let operator = store::open_operator(&config.database_url, super::store_options(config))?;
    let result = args.run(&*operator, config).await;
    operator.close().await;
    result
}

impl ReplaySent {
    async fn run(&self, operator: &dyn Operator, config: &Config) -> anyhow::Result<ExitCode> {
        let filter = self.filter(operator, config).await?;
        let mut done = Done::default();
        let result = self.walk(operator, &filter, &mut done).await;
        if !self.dry_run && done.changed > 0 {
            // What was sent twice is to be found in the log, whatever level is usual.
            let (rows, by) = (done.changed, who());
            warn!(rows, by, "an operator had sent rows published again");
        }
        if self.json {
            println!(
                "{}",
                json!({ "looked_at": done.looked_at, "matched": done.matched, "replayed": done.changed, "dry_run": self.dry_run })
            );
        } else if self.dry_run {
            println!("{} sent rows would be published again", done.matched);
        } else {
            println!("{} sent rows are published again", done.changed);
            if done.keyed {
                println!("their keys: in the order of the ids, if the exchange was paused or no relay ran meanwhile");
            }
        }
        result?;
        Ok(ExitCode::SUCCESS)
    }

    async fn filter(&self, operator: &dyn Operator, config: &Config) -> anyhow::Result<SentFilter> {
        let unix = |time: SystemTime| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH);
            since.map_or(0.0, |since| since.as_secs_f64())
        };
        let until = match operator.sent_mark().await? {
            SentMark::Time => {
                let now = operator.database().await?.now;
                Some(self.until.map_or(now, |until| unix(until).min(now)))
            }
            SentMark::Flag if self.since.is_some() || self.until.is_some() => anyhow::bail!(
                "the table marks sent rows with a boolean, which does not say when: leave out --since and --until"
            ),
            SentMark::Flag => None,
            SentMark::Deleted => anyhow::bail!("the table has no column that says what was sent"),
            SentMark::Numbered => anyhow::bail!(
                "the relay numbers the rows of this table, and a row's number is gone once it was sent: set the mark back in SQL, \
                 as UPDATE … SET … = NULL, and the relay finds the rows"
            ),
        };
        Ok(SentFilter {
            ids: self.ids.iter().copied().map(RowId).collect(),
            since: self.since.map(unix),
            until,
            exchange: self.exchange.clone(),
            default_exchange: config.amqp_exchange.clone(),
            routing_key: self.routing_key.clone(),
            key: self.key.clone(),
        })
    }

    /// Walks up the ids once.
    async fn walk(&self, operator: &dyn Operator, filter: &SentFilter, done: &mut Done) -> Result<(), StoreError> {
        let (start, mut after) = (Instant::now(), RowId(i64::MIN));
        let limit = self.limit.unwrap_or(u64::MAX);
        // How many sent rows there are, nobody has counted.
        let mut progress = Progress::new(None);
        while done.matched < limit {
            let rows = operator.sent_rows(filter, after, WINDOW).await?;
            let Some(last) = rows.last() else { break };
            after = last.id;
            done.looked_at += rows.len() as u64;
            let room = usize::try_from(limit - done.matched).unwrap_or(usize::MAX);
            let wanted: Vec<_> = rows.iter().filter(|row| row.wanted).take(room).collect();
            done.keyed |= wanted.iter().any(|row| row.keyed);
            let ids: Vec<RowId> = wanted.iter().map(|row| row.id).collect();
            for ids in ids.chunks(BATCH.min(self.rate) as usize) {
                done.matched += ids.len() as u64;
                if !self.dry_run {
                    done.changed += set_back(operator, ids, filter.until).await?;
                    self.pace(start, done.matched).await;
                }
                progress.show(done.matched, &format!("found in {} rows", done.looked_at));
            }
            if rows.len() < WINDOW as usize {
                break;
            }
        }
        Ok(())
    }

    /// Waits until what was done is not more than the rate allows.
    async fn pace(&self, start: Instant, rows: u64) {
        let due = Duration::from_secs_f64(rows as f64 / f64::from(self.rate));
        tokio::time::sleep(due.saturating_sub(start.elapsed())).await;
    }
}

async fn set_back(operator: &dyn Operator, ids: &[RowId], until: Option<f64>) -> Result<u64, StoreError> {
    let mut tries = 0;
    loop {
        match operator.replay_sent(ids, until).await {
            Err(error) if error.is_conflict() && tries < CONFLICTS => tries += 1,
            result => return result,
        }
    }
}
