//! Replay and discard: in batches, each a short statement that changes only what still is a dead letter. So two operators
//! can do it at once, and each counts what it really changed.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use tracing::{info, warn};

use super::{CONFLICTS, Which};
use crate::cli::pause::who;
use crate::cli::progress::{self, Progress};
use crate::cli::text::ranges;
use crate::config::Config;
use crate::message::RowId;
use crate::store::operator::{DeadFilter, DeadLetter, Refused};
use crate::store::{Operator, StoreError};

/// Rows changed with one statement; the log line of each batch names them.
const BATCH: u32 = 200;

#[derive(Args)]
pub(in crate::cli) struct ChangeArgs {
    #[command(flatten)]
    which: Which,
    /// All dead letters
    #[arg(long, conflicts_with_all = ["ids", "reason", "exchange", "key", "older_than", "newer_than"])]
    all: bool,
    /// At the most so many, the lowest ids first
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// At the most so many a second
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Only say how many there are
    #[arg(long)]
    pub(super) dry_run: bool,
    /// The result as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Replay,
    Discard,
}

impl What {
    fn done(self) -> &'static str {
        match self {
            What::Replay => "replayed",
            What::Discard => "discarded",
        }
    }
}

/// What was done so far.
#[derive(Default)]
struct Done {
    /// Dead letters that were found.
    matched: u64,
    /// Of them, those that this command changed.
    changed: u64,
    /// Whether rows with a key were among them.
    keyed: bool,
    found: BTreeSet<RowId>,
}

impl ChangeArgs {
    /// Nothing is changed by mistake: what is meant must be said.
    pub(super) fn check(&self) -> Result<(), String> {
        let Which {
            ids,
            reason,
            exchange,
            key,
            older_than,
            newer_than,
        } = &self.which;
        let chosen = !ids.is_empty()
            || reason.is_some()
            || exchange.is_some()
            || key.is_some()
            || older_than.is_some()
            || newer_than.is_some();
        if chosen || self.all {
            Ok(())
        } else {
            Err("which dead letters? Give ids, a filter such as --reason or --key, or --all".to_owned())
        }
    }

    pub(super) async fn run(self, operator: &dyn Operator, config: &Config, what: What) -> anyhow::Result<ExitCode> {
        let (limit, rate, dry_run, json, all) = (self.limit, self.rate, self.dry_run, self.json, self.all);
        let filter = self.which.filter(config);
        let work = Work {
            operator,
            filter: &filter,
            what,
            dry_run,
            limit: limit.map_or(u64::MAX, u64::from),
            rate,
            all,
        };
        let mut done = Done::default();
        let result = work.run(&mut done).await;
        let missing: Vec<i64> = filter
            .ids
            .iter()
            .filter(|id| !done.found.contains(id))
            .map(|id| id.0)
            .collect();
        if json {
            let done = json!({
                "matched": done.matched,
                what.done(): done.changed,
                "dry_run": dry_run,
                "not_dead_letters": missing,
            });
            println!("{done}");
        } else if dry_run {
            println!("{} dead letters would be {}", done.matched, what.done());
        } else {
            println!("{} dead letters {}", done.changed, what.done());
            if what == What::Replay && done.keyed {
                println!(
                    "rows of a key are sent in the order of their ids; later rows of it may have been sent before them"
                );
            }
        }
        result?;
        if !missing.is_empty() && limit.is_none() {
            anyhow::bail!("no dead letters (any more), or left out by a filter: {missing:?}");
        }
        Ok(ExitCode::SUCCESS)
    }
}

struct Work<'a> {
    operator: &'a dyn Operator,
    filter: &'a DeadFilter,
    what: What,
    dry_run: bool,
    limit: u64,
    /// Rows a second.
    rate: Option<u32>,
    all: bool,
}

impl Work<'_> {
    /// Walks up the ids once: what becomes a dead letter again meanwhile is not touched twice.
    async fn run(&self, done: &mut Done) -> Result<(), StoreError> {
        let (start, mut after) = (Instant::now(), RowId(i64::MIN));
        let batch = self.rate.map_or(BATCH, |rate| rate.min(BATCH));
        let mut progress = Progress::new(self.total().await?);
        while done.matched < self.limit {
            let wanted = batch.min(u32::try_from(self.limit - done.matched).unwrap_or(batch));
            let letters = self.operator.dead_letters(self.filter, after, wanted).await?;
            let Some(last) = letters.last() else { break };
            after = last.id;
            done.matched += letters.len() as u64;
            done.keyed |= letters.iter().any(|letter| letter.ordering_key.is_some());
            if !self.filter.ids.is_empty() {
                done.found.extend(letters.iter().map(|letter| letter.id));
            }
            if self.dry_run {
                progress.show(done.matched, "found");
            } else {
                let changed = self.change(&letters).await?;
                progress.hide();
                self.log(&letters, changed);
                done.changed += changed;
                progress.show(done.matched, self.what.done());
            }
            if letters.len() < wanted as usize {
                break;
            }
            self.pace(start, done).await;
        }
        Ok(())
    }

    /// How many there are at the most, where somebody looks on and that is easily told.
    async fn total(&self) -> Result<Option<u64>, StoreError> {
        let total = match self.filter.ids.len() {
            _ if !progress::is_wanted() => return Ok(None),
            0 if self.all => self.operator.backlog().await?.dead,
            0 => return Ok(None),
            ids => ids as u64,
        };
        Ok(Some(total.min(self.limit)))
    }

    async fn change(&self, letters: &[DeadLetter]) -> Result<u64, StoreError> {
        let ids: Vec<RowId> = letters.iter().map(|letter| letter.id).collect();
        let mut tries = 0;
        loop {
            let result = match self.what {
                What::Replay => self.operator.replay(&ids, Refused::GivenUp).await,
                What::Discard => self.operator.discard(&ids, Refused::GivenUp).await,
            };
            match result {
                Err(error) if error.is_conflict() && tries < CONFLICTS => tries += 1,
                result => return result,
            }
        }
    }

    /// Who did it. Of rows that another operator was quicker with nothing is said: that one's line has them.
    fn log(&self, letters: &[DeadLetter], changed: u64) {
        if changed == 0 {
            return;
        }
        let rows = ranges(letters.iter().map(|letter| letter.id));
        let by = who();
        match self.what {
            What::Replay => info!(rows, changed, by, "an operator replayed dead letters"),
            // What is gone is to be found in the log, whatever level is usual.
            What::Discard => warn!(rows, changed, by, "an operator discarded dead letters"),
        }
    }

    /// Waits until what was done is not more than the rate allows.
    async fn pace(&self, start: Instant, done: &Done) {
        if let Some(rate) = self.rate.filter(|_| !self.dry_run) {
            let due = Duration::from_secs_f64(done.matched as f64 / f64::from(rate));
            tokio::time::sleep(due.saturating_sub(start.elapsed())).await;
        }
    }
}
