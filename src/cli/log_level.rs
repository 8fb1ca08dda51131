//! `outbox-relay log-level`: the log levels of the relay that runs here.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::healthcheck;
use super::text::{plain, span};
use crate::config::{Config, log_directives};

const TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Args)]
pub(super) struct LogLevel {
    /// As RELAY_LOG is written: `debug`, or `info,outbox_relay=debug`; without it the levels in force are shown
    levels: Option<String>,
    /// Only for so long (90s, 10m), then those of RELAY_LOG come back; without it until the relay ends
    #[arg(long = "for", value_name = "DURATION", requires = "levels", value_parser = humantime::parse_duration)]
    span: Option<Duration>,
}

impl LogLevel {
    /// What can be said of the arguments without looking at anything.
    pub(super) fn check(&self) -> Result<(), String> {
        self.levels
            .as_deref()
            .map_or(Ok(()), |levels| log_directives(levels).map(drop))
    }
}

pub(super) async fn log_level(config: &Config, args: &LogLevel) -> anyhow::Result<ExitCode> {
    let (code, body) = match &args.levels {
        None => healthcheck::ask(config, "/log", TIMEOUT).await?,
        Some(levels) => {
            let span = args.span.map(|span| humantime::format_duration(span).to_string());
            let asked = json!({ "levels": levels, "for": span }).to_string();
            healthcheck::put(config, "/log", &asked, TIMEOUT).await?
        }
    };
    let answer: Value = serde_json::from_str(&body).unwrap_or_default();
    if code != 200 {
        let reason = match &answer["error"] {
            Value::Null => "another program, or another version".to_owned(),
            reason => plain(reason),
        };
        anyhow::bail!("the answer is {code}: {reason}");
    }
    let end = match &answer["ends_in_seconds"] {
        Value::Null => String::new(),
        left => format!(", for {} more; then {}", span(left), plain(&answer["at_start"])),
    };
    println!("{}{end}", plain(&answer["levels"]));
    Ok(ExitCode::SUCCESS)
}
