//! The configuration: every variable, read once at start, all mistakes shown at once.
//!
//! Values come from the environment, beneath it from the TOML file that `RELAY_CONFIG_FILE`
//! names, beneath that from the defaults of [`VARIABLES`]. Nothing else in the relay reads the
//! environment, but for OpenTelemetry's library, which reads its own variables. A value that may hold a password is a [`Secret`] from the start, and no error,
//! warning or log line quotes it.
//!
//! In the file a variable is its name without `RELAY_`, in lower case, flat
//! (`poll_batch_size = 500`) or as a table (`[poll] batch_size = 500`). TOML allows no table
//! beside a value of the same name: with `log = "info"` write `log_format`, not `[log] format`.

use std::{collections::HashMap, ffi::OsString, net::SocketAddr, time::Duration};

mod cloudevents;
mod findings;
mod mapping;
mod parse;
mod presets;
mod read;
mod secret;
mod sources;
mod table_name;
mod template;
#[cfg(test)]
mod tests;
mod tls;
mod traces;
mod variables;

pub use cloudevents::{Attribute, CloudEvents, ContentMode, bad_attribute, bad_attribute_name};
pub use findings::{ConfigErrors, Problem};
pub use mapping::{ColumnName, Field, HEADER_COLUMNS, HeaderTemplate, Mapping, Origin};
pub use parse::log_directives;
pub use secret::{Secret, broker_urls_now, database_url_now, management_url_now, redacted_url, token_now};
pub use table_name::{TableName, TableNameError};
pub use template::Piece;
pub use tls::{Identity, Tls, is_loopback, leaves_without_tls};
pub use traces::Traces;
pub use variables::{VARIABLES, Variable, help_text, markdown_table};

use crate::message::{Compression, OwnHeaders};
use findings::Findings;
use parse::Reader;

/// A configuration that has passed every check.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the outbox table is; the scheme selects the database.
    pub database_url: Secret,
    /// Brokers to try in turn, at least one.
    pub amqp_urls: Vec<Secret>,
    /// The broker's management plug-in, which only `check` and `status` ask.
    pub amqp_management_url: Option<Secret>,
    /// Exchange of rows that name none, at most 255 bytes; empty is the default exchange.
    pub amqp_exchange: String,
    /// Bound of one attempt to connect to the broker.
    pub amqp_connect_timeout: Duration,
    /// How the broker is spoken to over TLS.
    pub amqp_tls: Tls,
    /// Bound of each statement.
    pub database_timeout: Duration,
    /// How the database server is spoken to over TLS.
    pub database_tls: Tls,
    /// The table and what becomes of its sent rows.
    pub outbox: Outbox,
    /// Messages are CloudEvents; `None`: they are what the row says and nothing else.
    pub cloudevents: Option<CloudEvents>,
    /// What order is kept.
    pub ordering: Ordering,
    /// What a dead letter does to its key.
    pub on_dead_letter: OnDeadLetter,
    /// Shares that replicas divide among them, 1 to 256.
    pub partitions: u16,
    /// A dead replica's shares are taken over after this long, at least 2 s.
    pub lease_ttl: Duration,
    /// How the table is read.
    pub poll: Poll,
    /// How much is published at once.
    pub publish: Publish,
    /// What is made of rows.
    pub message: MessageSettings,
    /// What becomes of refused messages.
    pub retry: Retry,
    /// How the relay stops.
    pub shutdown: Shutdown,
    /// Where metrics and health are served; port 0 takes a free one.
    pub admin_listen: SocketAddr,
    /// What a request that changes something must show; without one there are none.
    pub admin_token: Option<Secret>,
    /// Whom the endpoints are served as, over TLS.
    pub admin_identity: Option<Identity>,
    /// Levels, as `tracing_subscriber::filter::Targets` reads them: `info,outbox_relay=debug`.
    pub log: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Where spans are sent; `None`: there are none.
    pub traces: Option<Traces>,
    /// Every variable with the text in force, in the order of [`VARIABLES`]: for people, secrets hidden. Empty: not set.
    pub in_force: Vec<(&'static str, String)>,
}

/// The outbox table and what becomes of its sent rows.
#[derive(Debug, Clone)]
pub struct Outbox {
    /// The table's name.
    pub table: TableName,
    /// What is done to a row once its message is confirmed.
    pub on_sent: OnSent,
    /// Sent rows older than this are purged; `None` keeps them.
    pub retention: Option<Duration>,
    /// Which columns hold what.
    pub mapping: Mapping,
}

/// What is done to a row once its message is confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnSent {
    /// `sent_at` is set.
    Mark,
    /// The row is deleted.
    Delete,
}

/// What order is kept among the rows of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ordering {
    /// At most one message of a key is unsettled at a time.
    Strict,
    /// Many messages of a key are in flight, in order; a broker's refusal can let later ones pass.
    Pipelined,
    /// Ordering keys are ignored.
    None,
}

/// What a dead letter does to the later rows of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDeadLetter {
    /// They are sent.
    Continue,
    /// They wait until the dead letter is replayed or discarded.
    Block,
}

/// How the table is read. `min_interval` is never above `max_interval`.
#[derive(Debug, Clone, Copy)]
pub struct Poll {
    /// Pause between reads while rows arrive.
    pub min_interval: Duration,
    /// Longest pause between reads while idle.
    pub max_interval: Duration,
    /// How often everything unsent is looked through.
    pub sweep_interval: Duration,
    /// Rows per read, 1 to 10 000.
    pub batch_size: u32,
}

/// How much is published at once.
#[derive(Debug, Clone, Copy)]
pub struct Publish {
    /// Messages awaiting their confirm, 1 to 65 535.
    pub in_flight: u32,
    /// Bytes of bodies awaiting their confirm; it may be below `max_message_bytes`.
    pub in_flight_bytes: u64,
    /// A message without a confirm after this long is published again.
    pub confirm_timeout: Duration,
    /// A body of more bytes is a dead letter, at most 128 MiB.
    pub max_message_bytes: u64,
}

/// What is made of rows.
#[derive(Debug, Clone)]
pub struct MessageSettings {
    /// How bodies are compressed; `None`: not at all.
    pub compression: Option<Compression>,
    /// Reserved headers that rows may have all the same.
    pub allowed_headers: Vec<String>,
    /// Headers that the relay adds.
    pub own_headers: OwnHeaders,
}

/// What becomes of refused messages. `min_delay` is never above `max_delay`.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// First backoff, before jitter.
    pub min_delay: Duration,
    /// Longest backoff, before jitter.
    pub max_delay: Duration,
    /// Refusals before a message is a dead letter, at least 1.
    pub max_attempts: u32,
}

/// How the relay stops.
#[derive(Debug, Clone, Copy)]
pub struct Shutdown {
    /// How long a stop waits for confirms and marks.
    pub grace: Duration,
    /// Whether what is pending is published before stopping.
    pub drain: bool,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    Auto,
    /// One readable line per event.
    Text,
    /// One JSON object per line.
    Json,
}

/// A configuration and what is odd about it.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// One sentence for each unknown variable or key; `check` treats them as errors.
    pub warnings: Vec<String>,
}

/// Reads the configuration from `env`, and from the files it names.
///
/// # Errors
///
/// Every problem found, each with its variable.
pub fn load(env: impl IntoIterator<Item = (String, String)>) -> Result<Loaded, ConfigErrors> {
    load_collecting(env.into_iter().collect(), Findings::default())
}

/// Reads the configuration from this process's environment, and from the files it names.
///
/// # Errors
///
/// Every problem found, each with its variable.
pub fn load_from_process() -> Result<Loaded, ConfigErrors> {
    load_os(std::env::vars_os())
}

/// Who runs this process, as the environment says, and behind sudo who asked for it; not a setting.
pub fn user_name() -> Option<String> {
    let named = |wanted: &str| std::env::vars_os().find(|(name, value)| name == wanted && !value.is_empty());
    let name = ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(named);
    name.map(|(_, value)| value.to_string_lossy().into_owned())
}

fn load_os(env: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Loaded, ConfigErrors> {
    let mut findings = Findings::default();
    let mut texts = HashMap::new();
    for (name, value) in env {
        let name = name.to_string_lossy().into_owned();
        match value.into_string() {
            Ok(value) => {
                texts.insert(name, value);
            }
            Err(_) => {
                if let Some(variable) = variables::concerned(&name) {
                    let message = format!("the value of {name} is not UTF-8; correct or unset it");
                    findings.problem(variable, message);
                }
            }
        }
    }
    load_collecting(texts, findings)
}

fn load_collecting(env: HashMap<String, String>, mut findings: Findings) -> Result<Loaded, ConfigErrors> {
    let texts = sources::layered(&env, &mut findings);
    let traces = Traces::read(&env, &mut findings);
    let config = Config::read(&mut Reader::new(texts, &mut findings), traces);
    let warnings = findings.finish()?;
    Ok(Loaded { config, warnings })
}
