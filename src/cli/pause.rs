//! `outbox-relay pause` and `resume`: a note in the database that every relay of the table obeys.

use std::os::unix::fs::MetadataExt as _;
use std::process::ExitCode;
use std::sync::Arc;

use tracing::warn;

use crate::config::{Config, user_name};
use crate::store::{self, Operator, Pause};

/// What the table has room for.
const NAME_CHARS: usize = 255;
const REASON_CHARS: usize = 1_000;

pub(super) async fn pause(config: &Config, exchange: Option<&str>, reason: &str) -> anyhow::Result<ExitCode> {
    let what = what(exchange)?;
    let operator = open(config)?;
    let result = begin(&*operator, exchange, reason).await;
    operator.close().await;
    match result? {
        Some(before) => println!("{what} is paused already, by {}: {}", before.by, before.reason),
        None => println!("{what} is paused; relays obey within some seconds, `outbox-relay resume` ends it"),
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn resume(config: &Config, exchange: Option<&str>) -> anyhow::Result<ExitCode> {
    let what = what(exchange)?;
    let operator = open(config)?;
    let ended = operator.resume(exchange).await;
    let left = operator.pauses().await;
    operator.close().await;
    if ended? {
        warn!(exchange, by = who(), "an operator resumed what was paused");
        println!("{what} is resumed");
    } else {
        println!("{what} was not paused");
    }
    for pause in left? {
        let exchange = pause
            .exchange
            .map_or("everything".to_owned(), |name| format!("exchange {name:?}"));
        println!("still paused: {exchange}, by {}: {}", pause.by, pause.reason);
    }
    Ok(ExitCode::SUCCESS)
}

/// What was noted before, if it was paused already.
async fn begin(operator: &dyn Operator, exchange: Option<&str>, reason: &str) -> anyhow::Result<Option<Pause>> {
    let same = |pause: &Pause| pause.exchange.as_deref() == exchange;
    if let Some(before) = operator.pauses().await?.into_iter().find(same) {
        return Ok(Some(before));
    }
    let (by, reason): (String, String) = (
        who().chars().take(NAME_CHARS).collect(),
        reason.chars().take(REASON_CHARS).collect(),
    );
    operator.pause(exchange, &by, &reason).await?;
    warn!(exchange, by, reason, "an operator paused publishing");
    Ok(None)
}

fn open(config: &Config) -> anyhow::Result<Arc<dyn Operator>> {
    Ok(store::open_operator(
        &config.database_url,
        super::store_options(config),
    )?)
}

fn what(exchange: Option<&str>) -> anyhow::Result<String> {
    match exchange {
        None => Ok("everything".to_owned()),
        Some(name) if name.len() > 255 => anyhow::bail!("an exchange's name has at most 255 bytes"),
        Some(name) => Ok(format!("exchange {name:?}")),
    }
}

/// The person as the system knows them, and the machine.
pub(super) fn who() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    // In a container or under cron there may be no name.
    let number = || {
        std::fs::metadata("/proc/self")
            .ok()
            .map(|own| format!("uid {}", own.uid()))
    };
    let user = user_name().or_else(number).unwrap_or_else(|| "somebody".to_owned());
    format!("{user}@{}", host.trim())
}
