//! `outbox-relay keys`: the keys that cannot go on, and how they do.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::process::ExitCode;

use clap::{ArgGroup, Args, Subcommand};
use serde_json::{Value, json};
use tracing::warn;

use super::dead_letters::CONFLICTS;
use super::pause::who;
use super::text::{plain, print, span};
use crate::config::Config;
use crate::status::blocked::{BlockedKey, Why, blocked_keys};
use crate::store::operator::{Refused, WAITING_SCAN};
use crate::store::{self, Operator, StoreError};

/// Longer errors are cut in the list.
const ERROR_CHARS: usize = 80;

#[derive(Subcommand)]
pub(super) enum Keys {
    /// List the blocked keys: the row that each waits for, why, since when, and how many rows wait behind it
    List {
        /// At the most so many of each kind
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        limit: u32,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Release blocked keys by what is done to the row that each waits for
    ///
    /// A running relay goes on with the key after its next sweep. A row that waits for its available_at is left alone.
    Release(ReleaseArgs),
}

#[derive(Args)]
#[command(group = ArgGroup::new("how").required(true).args(["replay", "discard"]))]
pub(super) struct ReleaseArgs {
    /// These keys
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<String>,
    /// Try the row again at once, with no attempts counted
    #[arg(long)]
    replay: bool,
    /// Delete the row for good; needs --yes
    #[arg(long)]
    discard: bool,
    /// The row is really to be deleted
    #[arg(long)]
    yes: bool,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// The result as one JSON array
    #[arg(long)]
    json: bool,
}

impl Keys {
    /// What can be said of the arguments without looking at anything.
    pub(super) fn check(&self) -> Result<(), String> {
        match self {
            Self::Release(args) if args.discard && !args.yes && !args.dry_run => {
                Err("--discard deletes messages for good: add --yes, or --dry-run to see which".to_owned())
            }
            _ => Ok(()),
        }
    }
}

pub(super) async fn keys(config: &Config, command: Keys) -> anyhow::Result<ExitCode> {
    let operator = store::open_operator(&config.database_url, super::store_options(config))?;
    let result = match command {
        Keys::List { limit, json } => list(&*operator, config, limit, json).await,
        Keys::Release(args) => args.run(&*operator, config).await,
    };
    operator.close().await;
    result
}

async fn list(operator: &dyn Operator, config: &Config, limit: u32, json: bool) -> anyhow::Result<ExitCode> {
    let (keys, more) = blocked_keys(operator, config, None, limit).await?;
    let names: Vec<&str> = keys.iter().map(|key| key.key.as_str()).collect();
    let unsent: HashMap<String, u64> = operator.rows_of_keys(&names).await?.into_iter().collect();
    let backlog = operator.backlog().await?;
    let at_least = backlog.pending + backlog.retrying >= u64::from(WAITING_SCAN);
    let keys: Vec<Value> = keys
        .iter()
        .map(|key| {
            let rows = unsent.get(&key.key).copied().unwrap_or_default();
            // A dead letter is not among them.
            let own = u64::from(key.why != Why::DeadLetter);
            let mut value = key.json();
            value["rows_waiting"] = rows.saturating_sub(own).into();
            value
        })
        .collect();
    if json {
        print(&format!(
            "{:#}\n",
            json!({ "keys": keys, "more": more, "rows_waiting_at_least": at_least })
        ));
    } else {
        print(&table(&keys, at_least));
    }
    if more {
        eprintln!("outbox-relay: there may be more: raise --limit");
    }
    Ok(ExitCode::SUCCESS)
}

fn table(keys: &[Value], at_least: bool) -> String {
    if keys.is_empty() {
        return "no blocked keys\n".to_owned();
    }
    let mut text = format!(
        "{:24}  {:>12}  {:26}  {:20}  {:>8}  error\n",
        "key", "row", "why", "since", "waiting"
    );
    for key in keys {
        let why = match plain(&key["why"]).as_str() {
            "dead_letter" => "dead letter".to_owned(),
            "delayed" => format!("due in {}", span(&key["due_in_seconds"])),
            _ => format!("tried again in {}", span(&key["due_in_seconds"])),
        };
        let least = if at_least { "≥" } else { "" };
        let error: String = plain(&key["last_error"]).chars().take(ERROR_CHARS).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:24}  {:>12}  {why:26}  {:20}  {:>8}  {error}",
            plain(&key["key"]),
            key["row"],
            plain(&key["since"]),
            format!("{least}{}", key["rows_waiting"]),
        );
    }
    text
}

impl ReleaseArgs {
    async fn run(&self, operator: &dyn Operator, config: &Config) -> anyhow::Result<ExitCode> {
        let mut results = Vec::new();
        let mut problems = false;
        for key in &self.keys {
            let (row, result) = match self.release(operator, config, key).await? {
                Ok(key) => (Some(key.row.0), self.done().to_owned()),
                Err(problem) => {
                    problems = true;
                    (None, problem)
                }
            };
            let still = match self.dry_run {
                true => None,
                false => first(operator, config, key).await?,
            };
            let still = still.filter(|still| Some(still.row.0) != row || row.is_none());
            if !self.json {
                let of = row.map(|row| format!("row {row} ")).unwrap_or_default();
                println!("{}: {of}{result}", plain(&key.as_str().into()));
                if let Some(still) = still.as_ref().filter(|_| row.is_some()) {
                    println!("  it waits for row {} now: see `keys list`", still.row);
                }
            }
            results.push(json!({
                "key": key, "row": row, "result": result, "waits_for": still.map(|still| still.row.0),
            }));
        }
        if self.json {
            println!("{}", Value::from(results));
        }
        Ok(if problems { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    fn done(&self) -> &'static str {
        match (self.replay, self.dry_run) {
            (true, false) => "is tried again",
            (true, true) => "would be tried again",
            (false, false) => "is discarded",
            (false, true) => "would be discarded",
        }
    }

    /// The row that was dealt with, or why none was.
    async fn release(
        &self,
        operator: &dyn Operator,
        config: &Config,
        key: &str,
    ) -> Result<Result<BlockedKey, String>, StoreError> {
        let Some(blocked) = first(operator, config, key).await? else {
            return Ok(Err("is not blocked".to_owned()));
        };
        let which = match blocked.why {
            Why::DeadLetter => Refused::GivenUp,
            Why::Retry => Refused::Waiting,
            Why::Delayed => {
                return Ok(Err(format!(
                    "row {} waits for its available_at, which is the application's: change it there",
                    blocked.row
                )));
            }
        };
        if self.dry_run {
            return Ok(Ok(blocked));
        }
        let (rows, mut tries) = ([blocked.row], 0);
        let changed = loop {
            let result = match self.replay {
                true => operator.replay(&rows, which).await,
                false => operator.discard(&rows, which).await,
            };
            match result {
                Err(error) if error.is_conflict() && tries < CONFLICTS => tries += 1,
                result => break result?,
            }
        };
        if changed == 0 {
            return Ok(Err(format!("row {} was dealt with meanwhile", blocked.row)));
        }
        // What was done is to be found in the log, whatever level is usual.
        let (row, reason, by) = (blocked.row.0, &blocked.last_error, who());
        let how = if self.replay { "replay" } else { "discard" };
        warn!(key, row, reason, how, by, "an operator released a key");
        Ok(Ok(blocked))
    }
}

async fn first(operator: &dyn Operator, config: &Config, key: &str) -> Result<Option<BlockedKey>, StoreError> {
    let (keys, _) = blocked_keys(operator, config, Some(key), 1).await?;
    Ok(keys.into_iter().next())
}
