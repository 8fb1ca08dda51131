//! The command line: what the binary can be asked to do.

mod healthcheck;
mod migrate;
mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{self, Config};
use crate::store::StoreOptions;

/// Bad configuration (`EX_USAGE` of sysexits.h).
const BAD_CONFIGURATION: u8 = 64;

#[derive(Parser)]
#[command(name = "outbox-relay", version, about, after_long_help = config::help_text())]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Publish committed rows until told to stop (the sidecar)
    Run,
    /// Create or upgrade the relay's tables; safe to repeat
    Migrate {
        /// Write the SQL instead of running it
        #[arg(long)]
        print: bool,
    },
    /// Ask the running relay whether it is alive; for a container's HEALTHCHECK
    Healthcheck {
        /// Ask whether database and broker can be reached as well
        #[arg(long)]
        ready: bool,
    },
}

/// Runs the program; the exit code is 0, 1, or 64 for bad configuration.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no mistakes.
            let code = if error.use_stderr() { BAD_CONFIGURATION } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let loaded = match config::load_from_process() {
        Ok(loaded) => loaded,
        Err(errors) => return bad_configuration(&errors.to_string()),
    };
    let config = loaded.config;
    crate::telemetry::init(&config);
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(execute(cli.command, config));
            // Without waiting for name look-ups that hang.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(anyhow::anyhow!("cannot start: {error}")),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("outbox-relay: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bad_configuration(problems: &str) -> ExitCode {
    eprintln!("outbox-relay: the configuration is not usable:\n{problems}");
    ExitCode::from(BAD_CONFIGURATION)
}

async fn execute(command: Command, config: Config) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run => run::run(config).await,
        Command::Migrate { print } => migrate::migrate(config, print).await,
        Command::Healthcheck { ready } => healthcheck::healthcheck(&config, ready).await,
    }
}

fn store_options(config: &Config) -> StoreOptions {
    StoreOptions {
        table: config.outbox.table.clone(),
        on_sent: config.outbox.on_sent,
        timeout: config.database_timeout,
    }
}
