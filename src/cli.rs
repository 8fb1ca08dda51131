//! The command line: what the binary can be asked to do.

mod check;
mod dead_letters;
mod extras;
mod grants;
mod healthcheck;
mod keys;
mod log_level;
mod migrate;
mod pause;
mod progress;
mod replay_sent;
mod run;
mod status;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::broker::amqp::AmqpOptions;
use crate::config::{self, Config, Loaded};
use crate::relay;
use crate::store::StoreOptions;
use crate::telemetry::LogLevels;

/// With the commit that the program is built from (see `deploy/build.rs`).
const VERSION: &str = env!("OUTBOX_RELAY_VERSION");

/// Bad configuration or arguments (`EX_USAGE` of sysexits.h).
const BAD_CONFIGURATION: u8 = 64;

#[derive(Parser)]
#[command(name = "outbox-relay", version = VERSION, about, after_long_help = config::help_text())]
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
        /// PostgreSQL: make a trigger, too, that wakes a sleeping relay on inserts (and costs each insert some microseconds)
        #[arg(long)]
        with_wakeup: bool,
        /// Write the SQL that gives a role what the relay needs and no more, and the command for the broker; nothing is run
        #[arg(long, value_name = "ROLE", num_args = 0..=1, require_equals = true, default_missing_value = "outbox_relay",
              value_parser = grants::role, conflicts_with_all = ["print", "with_wakeup"])]
        print_grants: Option<String>,
    },
    /// Check configuration, database, table, broker and exchange, one line each; exit code 1 if any fails
    Check,
    /// Show backlog, dead letters, blocked keys, owners, database, broker and configuration
    Status(status::StatusArgs),
    /// List, show, replay and discard dead letters
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLetters),
    /// List the ordering keys that cannot go on, and release them
    #[command(subcommand)]
    Keys(keys::Keys),
    /// Publish sent rows again, for a consumer that lost what it had
    ///
    /// They keep their message_id: what a consumer has noted it will drop. Every queue that is bound gets them, not only that of
    /// one consumer. Rows are there for RELAY_OUTBOX_RETENTION, and not at all with RELAY_OUTBOX_ON_SENT=delete. Within a key they
    /// go by their ids as far as a running relay finds them together; to be sure of the order, pause the exchange before and
    /// resume it afterwards.
    ReplaySent(replay_sent::ReplaySent),
    /// Publish nothing, or nothing to an exchange, until `resume`; kept in the database, for all relays of the table
    Pause {
        /// Only this exchange; empty: the default exchange
        #[arg(long)]
        exchange: Option<String>,
        /// Why, for others to read
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// End a pause
    Resume {
        /// That of this exchange
        #[arg(long)]
        exchange: Option<String>,
    },
    /// Ask the running relay whether it is alive; for a container's HEALTHCHECK
    Healthcheck {
        /// Ask whether database and broker can be reached as well
        #[arg(long)]
        ready: bool,
    },
    /// Show or change the log levels of the relay that runs here
    LogLevel(log_level::LogLevel),
    /// Write a shell's completions to standard output
    Completions {
        /// For this shell
        shell: clap_complete::Shell,
    },
    /// Write the manual page (roff) to standard output, or a page for each command to a folder
    Man {
        /// A folder that exists
        #[arg(long, value_name = "FOLDER")]
        dir: Option<PathBuf>,
    },
}

impl Command {
    /// What can be said of the arguments without looking at anything.
    fn check(&self) -> Result<(), String> {
        match self {
            Command::DeadLetters(command) => command.check(),
            Command::Keys(command) => command.check(),
            Command::ReplaySent(args) => args.check(),
            Command::LogLevel(args) => args.check(),
            _ => Ok(()),
        }
    }
}

/// Runs the program; the exit code is 0, 1, or 64 for bad configuration.
pub fn main() -> ExitCode {
    crate::telemetry::log_panics();
    // What went wrong has been told.
    std::panic::catch_unwind(run_to_end).unwrap_or(ExitCode::FAILURE)
}

fn run_to_end() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no mistakes.
            let code = if error.use_stderr() { BAD_CONFIGURATION } else { 0 };
            // What is no argument is quoted in full, be it a URL with its password.
            match code != 0 && std::env::args_os().any(|argument| argument.to_string_lossy().contains("://")) {
                true => eprintln!(
                    "outbox-relay: {}, and one of the arguments is a URL: the relay takes URLs from the environment, see --help",
                    error.kind()
                ),
                false => drop(error.print()),
            }
            return ExitCode::from(code);
        }
    };
    // What needs no configuration.
    match &cli.command {
        Command::Completions { shell } => return extras::completions::<Cli>(*shell),
        Command::Man { dir } => return extras::man::<Cli>(dir.as_deref()),
        _ => {}
    }
    if let Err(problem) = cli.command.check() {
        eprintln!("outbox-relay: {problem}");
        return ExitCode::from(BAD_CONFIGURATION);
    }
    let loaded = match config::load_from_process() {
        Ok(loaded) => loaded,
        Err(errors) => return bad_configuration(&errors.to_string()),
    };
    let levels = crate::telemetry::init(&loaded.config);
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(execute(cli.command, loaded, levels));
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

async fn execute(command: Command, loaded: Loaded, levels: LogLevels) -> anyhow::Result<ExitCode> {
    let Loaded { config, warnings } = loaded;
    match command {
        Command::Run => run::run(config, levels).await,
        Command::Migrate {
            print_grants: Some(role),
            ..
        } => grants::print(config, &role).await,
        Command::Migrate { print, with_wakeup, .. } => migrate::migrate(config, print, with_wakeup).await,
        Command::Check => Ok(check::check(&config, &warnings).await),
        Command::Status(args) => status::status(config, &args).await,
        Command::DeadLetters(command) => dead_letters::dead_letters(config, command).await,
        Command::ReplaySent(args) => replay_sent::replay_sent(&config, args).await,
        Command::Keys(command) => keys::keys(&config, command).await,
        Command::Pause { exchange, reason } => pause::pause(&config, exchange.as_deref(), &reason).await,
        Command::Resume { exchange } => pause::resume(&config, exchange.as_deref()).await,
        // Done before the configuration was read.
        Command::Completions { .. } | Command::Man { .. } => Ok(ExitCode::SUCCESS),
        Command::LogLevel(args) => log_level::log_level(&config, &args).await,
        Command::Healthcheck { ready } => healthcheck::healthcheck(&config, ready).await,
    }
}

fn amqp_options(config: &Config) -> AmqpOptions {
    AmqpOptions {
        urls: config.amqp_urls.clone(),
        tls: config.amqp_tls.clone(),
        connect_timeout: config.amqp_connect_timeout,
        confirm_timeout: config.publish.confirm_timeout,
        lanes: relay::lanes(config),
        own_headers: config.message.own_headers.clone(),
    }
}

fn store_options(config: &Config) -> StoreOptions {
    StoreOptions {
        table: config.outbox.table.clone(),
        on_sent: config.outbox.on_sent,
        timeout: config.database_timeout,
        tls: config.database_tls.clone(),
        mapping: config.outbox.mapping.clone(),
    }
}
