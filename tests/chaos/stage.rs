//! The servers, and the relays with their lines.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Mutex;

use crate::database::{Choice, Server, Session};
use crate::support::{Consumer, Kind, Proxy, Rabbit, Relay, declare, unbind};

pub(crate) const ROUTING_KEY: &str = "chaos";
pub(crate) const QUEUE: &str = "chaos";
const EXCHANGE: &str = "events";

/// RabbitMQ 3.10 notes a new quorum queue lazily, and loses it when it is killed before.
const REGISTRATION: Duration = Duration::from_secs(8);

/// Waits and leases are short, so that a run sees many of them end.
const SETTINGS: [(&str, &str); 10] = [
    ("RELAY_AMQP_EXCHANGE", EXCHANGE),
    ("RELAY_LEASE_TTL", "3s"),
    ("RELAY_POLL_SWEEP_INTERVAL", "5s"),
    ("RELAY_DATABASE_TIMEOUT", "5s"),
    ("RELAY_AMQP_CONNECT_TIMEOUT", "5s"),
    ("RELAY_PUBLISH_CONFIRM_TIMEOUT", "5s"),
    ("RELAY_RETRY_MIN_DELAY", "100ms"),
    ("RELAY_RETRY_MAX_DELAY", "2s"),
    // A queue that is away for seconds makes no dead letter.
    ("RELAY_RETRY_MAX_ATTEMPTS", "1000"),
    ("RELAY_SHUTDOWN_GRACE", "20s"),
];

pub(crate) struct Stage {
    pub(crate) database: Server,
    pub(crate) rabbit: Rabbit,
    pub(crate) database_url: String,
    /// The same database, as others than relays log in.
    pub(crate) application_url: String,
    pub(crate) amqp_url: String,
    pub(crate) places: Vec<Place>,
    /// Where the relays' logs are written to.
    pub(crate) logs: PathBuf,
    pub(crate) tally: std::sync::Mutex<Tally>,
}

/// Where a relay runs, one process after the other.
pub(crate) struct Place {
    number: usize,
    starts: AtomicU32,
    /// Locked by whoever starts and ends it.
    pub(crate) relay: Mutex<Option<Relay>>,
    pub(crate) broker_line: Proxy,
    pub(crate) database_line: Proxy,
}

/// What the relays' logs tell.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) starts: u32,
    pub(crate) lost_leases: usize,
    pub(crate) handed_over: usize,
    pub(crate) errors: Vec<String>,
}

impl Stage {
    pub(crate) async fn start(choice: Choice, relays: usize, seed: u64) -> Self {
        let (database, rabbit) = tokio::join!(Server::start(choice), Rabbit::start());
        let ([database_url, application_url], amqp_url) = (database.create_database().await, rabbit.url());
        let env = [
            ("RELAY_DATABASE_URL", database_url.as_str()),
            ("RELAY_AMQP_URL", amqp_url.as_str()),
        ];
        let (status, out, err) = Relay::run_to_end(&["migrate"], &env).await;
        assert!(status.success(), "{out}{err}");
        let mut session = Session::connect(&application_url, "chaos").await.expect("it is up");
        session.prepare().await.expect("it runs");
        let line = |port| Proxy::start(SocketAddr::from(([127, 0, 0, 1], port)));
        let mut places = Vec::new();
        for number in 0..relays {
            places.push(Place {
                number,
                starts: AtomicU32::new(0),
                relay: Mutex::new(None),
                broker_line: line(rabbit.port()).await,
                database_line: line(database.port()).await,
            });
        }
        let logs = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{seed}"));
        std::fs::create_dir_all(&logs).expect("the target folder is writable");
        let stage = Self {
            database,
            rabbit,
            database_url,
            application_url,
            amqp_url,
            places,
            logs,
            tally: std::sync::Mutex::default(),
        };
        stage.declare().await;
        for place in &stage.places {
            *place.relay.lock().await = Some(stage.spawn(place));
        }
        stage
    }

    /// Exchange, queue and binding, and the time until the broker may be killed.
    pub(crate) async fn declare(&self) {
        declare(&self.amqp_url, EXCHANGE, QUEUE, Kind::Quorum, &[ROUTING_KEY]).await;
        tokio::time::sleep(REGISTRATION).await;
    }

    /// Takes the binding away.
    pub(crate) async fn unbind(&self) {
        unbind(&self.amqp_url, EXCHANGE, QUEUE, ROUTING_KEY).await;
    }

    pub(crate) fn consumer(&self) -> Consumer {
        Consumer::start(&self.amqp_url, QUEUE)
    }

    pub(crate) fn spawn(&self, place: &Place) -> Relay {
        place.starts.fetch_add(1, Ordering::Relaxed);
        let command = Relay::command()
            .env("RELAY_DATABASE_URL", place.database_line.through(&self.database_url))
            .env("RELAY_AMQP_URL", place.broker_line.through(&self.amqp_url));
        let command = SETTINGS
            .iter()
            .fold(command, |command, (name, value)| command.env(name, value));
        command.spawn()
    }

    /// A relay has ended: keeps its log, and counts what it tells.
    pub(crate) fn ended(&self, place: &Place, relay: &Relay) {
        let start = place.starts.load(Ordering::Relaxed);
        let name = format!("relay-{}-{start}.log", place.number);
        std::fs::write(self.logs.join(name), relay.log_text()).expect("the folder is writable");
        let mut tally = self.tally.lock().expect("no panic while locked");
        tally.starts += 1;
        for line in relay.logs() {
            let text = message(&line);
            if text.starts_with("lost leases") {
                tally.lost_leases += shares(&line);
            } else if text.starts_with("handing over") {
                tally.handed_over += shares(&line);
            }
            if line["level"] == "ERROR" {
                tally.errors.push(line.to_string());
            }
        }
    }

    /// Ends all relays cleanly; returns those that did not.
    pub(crate) async fn stop(&self) -> Vec<usize> {
        let mut unclean = Vec::new();
        for place in &self.places {
            if let Some(mut relay) = place.relay.lock().await.take() {
                relay.sigterm();
                if !relay.wait(Duration::from_secs(40)).await.success() {
                    unclean.push(place.number);
                }
                self.ended(place, &relay);
            }
        }
        unclean
    }

    /// Keeps the logs of relays that still run.
    pub(crate) async fn keep_logs(&self) {
        for place in &self.places {
            if let Some(relay) = place.relay.lock().await.as_ref() {
                self.ended(place, relay);
            }
        }
    }
}

fn message(line: &Value) -> &str {
    let text = line["message"].as_str().or_else(|| line["fields"]["message"].as_str());
    text.unwrap_or_default()
}

/// How many shares a line of the log names: `[1, 5]`.
fn shares(line: &Value) -> usize {
    let list = line["shares"].as_str().or_else(|| line["fields"]["shares"].as_str());
    list.map_or(0, |list| list.split(',').count())
}
