//! `outbox-relay dead-letters`: rows that were given up, and what becomes of them.

mod change;
mod show;

use std::process::ExitCode;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};

use crate::config::Config;
use crate::message::RowId;
use crate::metrics::DEAD_LETTER_REASONS;
use crate::store::operator::{DeadFilter, OTHER_REASON};
use crate::store::{self, Operator};

use change::ChangeArgs;

/// Another writer was in the way: tried again so often.
pub(super) const CONFLICTS: u32 = 10;

#[derive(Subcommand)]
pub(super) enum DeadLetters {
    /// List dead letters, the lowest id first
    List {
        #[command(flatten)]
        which: Which,
        /// At the most so many
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// One JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show one dead letter with its properties and its last error
    Show {
        /// The row
        #[arg(allow_negative_numbers = true)]
        id: i64,
        /// The body as well
        #[arg(long)]
        body: bool,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Publish dead letters again: attempts begin at 0, a running relay takes them up with its next sweep
    ///
    /// A replayed row keeps its id and message_id. Within its key it goes before rows with higher ids that are not sent
    /// yet, but those that were sent meanwhile came before it (unless RELAY_ON_DEAD_LETTER=block held them back).
    Replay(#[command(flatten)] ChangeArgs),
    /// Delete dead letters for good; needs --yes
    Discard {
        #[command(flatten)]
        change: ChangeArgs,
        /// They are really to be deleted
        #[arg(long)]
        yes: bool,
    },
}

/// Which dead letters. Everything that is given must hold.
#[derive(Args)]
pub(super) struct Which {
    /// These rows
    #[arg(allow_negative_numbers = true)]
    ids: Vec<i64>,
    /// Given up for this reason
    #[arg(long, value_parser = PossibleValuesParser::new(DEAD_LETTER_REASONS.into_iter().chain([OTHER_REASON])))]
    reason: Option<String>,
    /// Of this exchange; empty: the default exchange
    #[arg(long)]
    exchange: Option<String>,
    /// Of this ordering key
    #[arg(long)]
    key: Option<String>,
    /// Given up longer ago than this, like 90s, 2h or 7d
    #[arg(long, value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Given up more recently than this
    #[arg(long, value_parser = humantime::parse_duration)]
    newer_than: Option<Duration>,
}

impl Which {
    fn filter(self, config: &Config) -> DeadFilter {
        DeadFilter {
            ids: self.ids.into_iter().map(RowId).collect(),
            reason: self.reason,
            exchange: self.exchange,
            default_exchange: config.amqp_exchange.clone(),
            key: self.key,
            older_than: self.older_than,
            newer_than: self.newer_than,
        }
    }
}

impl DeadLetters {
    /// What can be said of the arguments without looking at anything.
    pub(super) fn check(&self) -> Result<(), String> {
        match self {
            Self::Replay(change) => change.check(),
            Self::Discard { change, yes } => {
                change.check()?;
                if *yes || change.dry_run {
                    Ok(())
                } else {
                    Err("discard deletes messages for good: add --yes, or --dry-run to see how many".to_owned())
                }
            }
            Self::List { .. } | Self::Show { .. } => Ok(()),
        }
    }
}

pub(super) async fn dead_letters(config: Config, command: DeadLetters) -> anyhow::Result<ExitCode> {
    let operator = store::open_operator(&config.database_url, super::store_options(&config))?;
    let result = run(&*operator, &config, command).await;
    operator.close().await;
    result
}

async fn run(operator: &dyn Operator, config: &Config, command: DeadLetters) -> anyhow::Result<ExitCode> {
    match command {
        DeadLetters::List { which, limit, json } => show::list(operator, &which.filter(config), limit, json).await,
        DeadLetters::Show { id, body, json } => show::show(operator, RowId(id), body, json).await,
        DeadLetters::Replay(change) => change.run(operator, config, change::What::Replay).await,
        DeadLetters::Discard { change, .. } => change.run(operator, config, change::What::Discard).await,
    }
}
