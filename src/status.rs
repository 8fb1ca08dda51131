//! The report of `outbox-relay status` and `/status`. What cannot be had says so, and takes nothing else with it.
//!
//! Every question to the database has a bound on the rows it looks at ([`crate::store::BACKLOG_CAP`] and others); a
//! count that stopped there is marked `at_least`.

pub mod blocked;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use crate::config::{Config, redacted_url};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::store::operator::{DEAD_REASONS_CAP, Database, Operator, Ownership};
use crate::store::{Backlog, Pause, StoreError};

use blocked::BlockedKey;

/// Blocked keys that are listed.
const KEYS: u32 = 100;

/// What the database knows, and the configuration in force.
pub struct Status {
    operator: Arc<dyn Operator>,
    config: Config,
}

impl Status {
    /// A report on the outbox of this configuration.
    pub fn new(operator: Arc<dyn Operator>, config: Config) -> Self {
        Self { operator, config }
    }

    /// The report, with what the caller knows of relay and broker.
    pub async fn report(&self, relay: Value, broker: Value) -> Value {
        let mut report = json!({
            "at": time(SystemTime::now()),
            "version": env!("CARGO_PKG_VERSION"),
            "table": self.config.outbox.table.to_string(),
        });
        let database = self.operator.database().await;
        let ahead = database.as_ref().map_or(0.0, |database| database.now - unix_now());
        let parts: [(&str, Value); 5] = match &database {
            Ok(_) => [
                ("backlog", self.backlog().await),
                ("dead_letters", self.dead_letters().await),
                ("blocked_keys", self.blocked_keys().await),
                ("owners", self.owners().await),
                ("paused", self.paused().await),
            ],
            // Not asked one after the other: each would wait for its time to be up.
            Err(error) => {
                ["backlog", "dead_letters", "blocked_keys", "owners", "paused"].map(|part| (part, missing(error)))
            }
        };
        report["database"] = self.database(database, ahead);
        report["broker"] = broker;
        report["relay"] = relay;
        for (name, value) in parts {
            report[name] = value;
        }
        report["configuration"] = self.configuration();
        report
    }

    /// `ahead`: the database's clock against this machine's, in seconds, when it was asked.
    fn database(&self, database: Result<Database, StoreError>, ahead: f64) -> Value {
        let mut part = match database {
            Ok(database) => {
                json!({
                    "ok": true,
                    "product": database.product,
                    "version": database.version,
                    "clock_ahead_seconds": rounded(ahead),
                })
            }
            Err(error) => missing(&error),
        };
        part["address"] = redacted_url(self.config.database_url.expose()).into();
        part
    }

    async fn paused(&self) -> Value {
        match self.operator.pauses().await {
            Ok(found) => json!({ "ok": true, "pauses": pauses(&found) }),
            Err(error) => missing(&error),
        }
    }

    async fn backlog(&self) -> Value {
        match self.operator.backlog().await {
            Ok(Backlog {
                pending,
                retrying,
                dead,
                oldest_age,
                capped,
            }) => json!({
                "ok": true,
                "pending": pending,
                "retrying": retrying,
                "dead": dead,
                "oldest_age_seconds": oldest_age.map(seconds),
                "at_least": capped,
            }),
            Err(error) => missing(&error),
        }
    }

    async fn dead_letters(&self) -> Value {
        match self.operator.dead_reasons().await {
            Ok(reasons) => {
                let sum: u64 = reasons.iter().map(|(_, count)| count).sum();
                let by_reason: Map<String, Value> = reasons
                    .into_iter()
                    .map(|(reason, count)| (reason, count.into()))
                    .collect();
                json!({ "ok": true, "by_reason": by_reason, "at_least": sum >= u64::from(DEAD_REASONS_CAP) })
            }
            Err(error) => missing(&error),
        }
    }

    /// Keys that wait for a row's time, and with `block` those behind a dead letter.
    async fn blocked_keys(&self) -> Value {
        match blocked::blocked_keys(&*self.operator, &self.config, None, KEYS).await {
            Ok((keys, more)) => {
                let keys: Vec<Value> = keys.iter().map(BlockedKey::json).collect();
                json!({ "ok": true, "keys": keys, "more": more })
            }
            Err(error) => missing(&error),
        }
    }

    async fn owners(&self) -> Value {
        let Ownership {
            shares,
            members,
            silent,
        } = match self.operator.ownership().await {
            Ok(ownership) => ownership,
            Err(error) => return missing(&error),
        };
        let now = SystemTime::now();
        let partitions = crate::relay::partitions(&self.config);
        let owned = shares.iter().filter(|share| share.partitions == partitions).count();
        let shares: Vec<Value> = shares
            .iter()
            .map(|share| {
                json!({
                    "share": share.share,
                    "partitions": share.partitions,
                    "owner": share.owner,
                    "since": time(now.checked_sub(share.held).unwrap_or(SystemTime::UNIX_EPOCH)),
                    "expires_in_seconds": seconds(share.expires_in),
                })
            })
            .collect();
        let members: Vec<Value> = members
            .iter()
            .map(|member| {
                json!({
                    "member": member.name,
                    "partitions": member.partitions,
                    "expires_in_seconds": seconds(member.expires_in),
                })
            })
            .collect();
        json!({
            "ok": true,
            "partitions": partitions,
            "free": usize::from(partitions).saturating_sub(owned),
            "shares": shares,
            "members": members,
            "silent": silent
                .iter()
                .map(|(member, span)| json!({ "member": member, "seconds": seconds(*span) }))
                .collect::<Vec<_>>(),
        })
    }

    fn configuration(&self) -> Value {
        let pairs = self.config.in_force.iter();
        pairs
            .map(|(name, text)| ((*name).to_owned(), Value::from(text.as_str())))
            .collect::<Map<_, _>>()
            .into()
    }

    /// The broker's addresses, without credentials.
    pub fn broker_addresses(&self) -> Vec<String> {
        let urls = self.config.amqp_urls.iter();
        urls.map(|url| redacted_url(url.expose())).collect()
    }
}

/// What people have paused, for people; `exchange` is null where it is everything.
pub fn pauses(pauses: &[Pause]) -> Value {
    let pauses = pauses.iter().map(|pause| {
        json!({
            "exchange": pause.exchange,
            "by": pause.by,
            "reason": pause.reason,
            "since": time(unix(pause.at)),
        })
    });
    pauses.collect()
}

/// What a running relay knows of itself.
pub fn relay(health: &Health, metrics: &Metrics) -> Value {
    let totals = metrics.totals();
    let rates = metrics.rates.per_second(totals);
    let slow = metrics.slowest.of_late();
    json!({
        "ok": health.is_alive(),
        "version": env!("CARGO_PKG_VERSION"),
        "member": health.member.get(),
        "uptime_seconds": seconds(health.uptime()),
        "ready": health.database().is_ok() && health.broker.state().is_ok(),
        "database": health.database().err(),
        "broker": health.broker.state().err(),
        "published": totals.published,
        "failures": totals.failures,
        "failures_by_reason": metrics.failures_by_reason().into_iter().collect::<BTreeMap<_, _>>(),
        "dead_lettered": totals.dead_lettered,
        "published_per_second": rounded(rates.published),
        "failures_per_second": rounded(rates.failures),
        "rates_over_seconds": seconds(rates.over),
        "in_flight": metrics.in_flight.get(),
        "partitions_owned": metrics.partitions_owned.get(),
        "blocked_keys": metrics.blocked_keys.get(),
        "purge_problem": health.purge_problem(),
        "slow_database": slow.map(|slow| json!({ "operation": slow.operation, "seconds": seconds(slow.took) })),
    })
}

/// A part that cannot be had.
pub fn missing(reason: impl std::fmt::Display) -> Value {
    json!({ "ok": false, "reason": reason.to_string() })
}

fn seconds(span: Duration) -> f64 {
    rounded(span.as_secs_f64())
}

/// To milliseconds.
fn rounded(number: f64) -> f64 {
    (number * 1_000.0).round() / 1_000.0
}

fn time(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// Seconds since 1970 as a time; nothing beyond the year 9999.
fn unix(seconds: f64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.clamp(0.0, 253_402_300_799.0) as u64)
}

/// This machine's clock, in seconds since 1970.
pub(crate) fn unix_now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}
