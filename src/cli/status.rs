//! `outbox-relay status`: the report, for a person or as JSON.

mod text;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::healthcheck;
use crate::broker::amqp::Amqp;
use crate::broker::management::{self, About, Access};
use crate::broker::{Broker, Session};
use crate::config::Config;
use crate::status::{Status, missing};
use crate::store;

/// Bound of one attempt to reach the broker, and of the question to a relay here.
const SHORT: Duration = Duration::from_secs(3);

/// A person waits: less patience than the relay has.
const DATABASE_PATIENCE: Duration = Duration::from_secs(10);

const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// Deletes the screen and goes to its beginning.
const CLEAR: &str = "\u{1b}[2J\u{1b}[H";

#[derive(Args)]
pub(super) struct StatusArgs {
    /// One JSON object, as `/status` gives it; with --watch one a line
    #[arg(long)]
    json: bool,
    /// Again and again, every two seconds; without the configuration unless as JSON
    #[arg(long)]
    watch: bool,
}

pub(super) async fn status(config: Config, args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let mut options = super::store_options(&config);
    options.timeout = options.timeout.min(DATABASE_PATIENCE);
    let operator = store::open_operator(&config.database_url, options)?;
    let status = Status::new(operator.clone(), config.clone());
    let mut probe = Probe::new(&config);
    loop {
        let (relay, mut broker, about) = tokio::join!(relay(&config), probe.look(&status), about(&config));
        tell(&mut broker, about);
        let report = status.report(relay, broker).await;
        show(&report, args);
        if !args.watch {
            probe.close().await;
            operator.close().await;
            let readable = report["database"]["ok"] == true && report["backlog"]["ok"] == true;
            return Ok(if readable { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// A reader that went away, as `head` does, is no error.
fn show(report: &Value, args: &StatusArgs) {
    let text = match (args.json, args.watch) {
        (true, true) => format!("{report}\n"),
        (true, false) => format!("{report:#}\n"),
        (false, false) => text::text(report) + &text::configuration(report),
        // It does not change while one looks, and would push the rest off the screen.
        (false, true) => text::text(report),
    };
    let clear = if args.watch && !args.json && std::io::stdout().is_terminal() {
        CLEAR
    } else {
        ""
    };
    let mut out = anstream::stdout().lock();
    let _ = out.write_all(format!("{clear}{text}").as_bytes());
    let _ = out.flush();
}

/// What a relay with the same `RELAY_ADMIN_LISTEN` on this machine says of itself.
async fn relay(config: &Config) -> Value {
    match healthcheck::ask(config, "/status/relay", SHORT).await {
        Ok((200, body)) => serde_json::from_str(&body).unwrap_or_else(|_| missing("the answer is not understood")),
        Ok((code, _)) => missing(format!("another program, or another version, answers with {code}")),
        Err(error) => missing(format!("{error:#}")),
    }
}

/// What the management plug-in says of the broker, if there is one to ask.
async fn about(config: &Config) -> Option<Result<About, String>> {
    let url = config.amqp_management_url.as_ref()?;
    let access = Access {
        url,
        tls: &config.amqp_tls,
        timeout: SHORT,
    };
    Some(management::about(access).await)
}

/// Adds product and version, null where nobody could be asked (the client library does not hand out what the broker says of
/// itself), and alarms, which a connection that does not publish is not told of.
fn tell(broker: &mut Value, about: Option<Result<About, String>>) {
    let version = match about {
        None => Value::Null,
        Some(Err(reason)) => format!("unknown ({reason})").into(),
        Some(Ok(About { product, alarms })) => {
            if broker["ok"] == true && !alarms.is_empty() {
                broker["ok"] = false.into();
                broker["reason"] = format!("the broker takes no messages ({})", alarms.join(", ")).into();
            }
            product.into()
        }
    };
    broker["version"] = version;
}

/// Looks whether the broker can be reached, by a connection of its own that is kept while it lasts.
struct Probe {
    broker: Amqp,
    session: Option<Box<dyn Session>>,
}

impl Probe {
    fn new(config: &Config) -> Self {
        let mut options = super::amqp_options(config);
        options.connect_timeout = options.connect_timeout.min(SHORT);
        options.lanes = 1;
        Self {
            broker: Amqp::new(options),
            session: None,
        }
    }

    async fn look(&mut self, status: &Status) -> Value {
        self.session.take_if(|session| session.failure().is_some());
        if self.session.is_none() {
            match self.broker.connect().await {
                Ok(connected) => self.session = Some(connected.session),
                Err(error) => {
                    let mut part = missing(error);
                    part["addresses"] = status.broker_addresses().into();
                    return part;
                }
            }
        }
        match &self.session {
            Some(session) if session.blocked() => {
                let mut part = missing("the broker takes no messages (memory or disk alarm)");
                part["address"] = session.address().into();
                part
            }
            Some(session) => json!({ "ok": true, "address": session.address() }),
            None => missing("not connected"),
        }
    }

    async fn close(&self) {
        if let Some(session) = &self.session {
            session.close().await;
        }
    }
}
