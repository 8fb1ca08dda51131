//! Every metric. Their names are in `metrics/names.rs`: nothing else in the crate spells one.

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::{Duration, SystemTime};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::rates::Rates;
use crate::slowest::Slowest;
use crate::store::Backlog;

mod names;

/// One label with one of a few values known in advance.
type Label = [(&'static str, &'static str); 1];
type Counters = Family<Label, Counter>;
type IntGauge = Gauge<i64, AtomicI64>;
type FloatGauge = Gauge<f64, AtomicU64>;
type Histograms = Family<Label, Histogram, fn() -> Histogram>;

/// Why a publish failed; the values of `publish_failures_total{reason}`.
pub const FAILURE_REASONS: [&str; 7] = [
    "nack",
    "unroutable",
    "no_exchange",
    "refused",
    "timeout",
    "disconnected",
    "invalid",
];

/// Why a row was given up; the values of `messages_dead_lettered_total{reason}`.
pub const DEAD_LETTER_REASONS: [&str; 4] = ["unroutable", "no_exchange", "refused", "invalid"];

/// What the store is asked to do; the values of `{operation}`.
pub const OPERATIONS: [&str; 12] = [
    "lease",
    "inspect",
    "head",
    "scan",
    "probe",
    "fetch",
    "mark",
    "fail",
    "dead_keys",
    "purge",
    "backlog",
    "pauses",
];

/// What has been counted since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Messages the broker confirmed.
    pub published: u64,
    /// Publishes without success.
    pub failures: u64,
    /// Rows given up.
    pub dead_lettered: u64,
}

/// All metrics and their registry.
pub struct Metrics {
    registry: Registry,
    /// Recent totals, for rates.
    pub rates: Rates,
    /// Slow database operations.
    pub slowest: Slowest,
    published: Counter,
    failures: Counters,
    dead_lettered: Counters,
    /// Rows that were confirmed but no longer there, or already marked, when they were to be marked.
    pub marks_lost: Counter,
    /// Sent rows deleted because of their age.
    pub rows_purged: Counter,
    /// 1 while old sent rows stay for want of time or of a privilege.
    pub purge_behind: IntGauge,
    polls: Counters,
    /// Published and not settled.
    pub in_flight: IntGauge,
    batch: Histogram,
    latency: Histogram,
    publish_duration: Histogram,
    store_duration: Histograms,
    store_errors: Counters,
    backlog: Family<Label, IntGauge>,
    oldest_age: FloatGauge,
    backlog_sampled: FloatGauge,
    last_poll: FloatGauge,
    last_publish: FloatGauge,
    /// 1 while connected.
    pub broker_connected: IntGauge,
    /// 1 while the broker takes nothing (alarm).
    pub broker_blocked: IntGauge,
    connects: Counters,
    /// Shares this relay owns.
    pub partitions_owned: IntGauge,
    /// Shares another relay took over without their being given.
    pub leases_lost: Counter,
    /// Keys whose next row must wait.
    pub blocked_keys: IntGauge,
    paused: IntGauge,
    paused_exchanges: IntGauge,
}

impl Metrics {
    /// What has been counted since the start.
    pub fn totals(&self) -> Totals {
        let sum = |counters: &Counters, values: &[&'static str]| {
            values
                .iter()
                .map(|value| counters.get_or_create(&[("reason", *value)]).get())
                .sum()
        };
        Totals {
            published: self.published.get(),
            failures: sum(&self.failures, &FAILURE_REASONS),
            dead_lettered: sum(&self.dead_lettered, &DEAD_LETTER_REASONS),
        }
    }

    /// The whole registry in the OpenMetrics text format.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// A message was confirmed this long after its row was created.
    pub fn published(&self, latency: Duration) {
        self.published.inc();
        self.latency.observe(latency.as_secs_f64());
        self.last_publish.set(unix_now());
    }

    /// A publish failed.
    pub fn failed(&self, reason: &'static str) {
        self.failures.get_or_create(&[("reason", reason)]).inc();
    }

    /// Publishes without success since the start, by reason; those that there were none of are left out.
    pub fn failures_by_reason(&self) -> Vec<(&'static str, u64)> {
        let count = |reason| self.failures.get_or_create(&[("reason", reason)]).get();
        let counts = FAILURE_REASONS.map(|reason| (reason, count(reason)));
        counts.into_iter().filter(|(_, count)| *count > 0).collect()
    }

    /// A row was given up.
    pub fn dead_lettered(&self, reason: &'static str) {
        self.dead_lettered.get_or_create(&[("reason", reason)]).inc();
    }

    /// A batch of messages was published and settled.
    pub fn batch(&self, messages: usize, took: Duration) {
        self.batch.observe(messages as f64);
        self.publish_duration.observe(took.as_secs_f64());
    }

    /// The table was read for new rows: how many came, or `None` after an error.
    pub fn polled(&self, rows: Option<usize>) {
        let outcome = match rows {
            None => "error",
            Some(0) => "empty",
            Some(_) => "rows",
        };
        self.polls.get_or_create(&[("outcome", outcome)]).inc();
        if rows.is_some() {
            self.looked();
        }
    }

    /// How many polls ended with `rows`, or `empty`.
    pub fn polls(&self, outcome: &'static str) -> u64 {
        self.polls.get_or_create(&[("outcome", outcome)]).get()
    }

    /// The table was looked at, be it only to learn that nothing changed.
    pub fn looked(&self) {
        self.last_poll.set(unix_now());
    }

    /// A database operation ended.
    pub fn store_operation(&self, operation: &'static str, took: Duration, failed: bool) {
        let label = [("operation", operation)];
        self.store_duration.get_or_create(&label).observe(took.as_secs_f64());
        if failed {
            self.store_errors.get_or_create(&label).inc();
        }
    }

    /// The backlog was counted.
    pub fn backlog(&self, backlog: &Backlog) {
        let counts = [
            ("pending", backlog.pending),
            ("retrying", backlog.retrying),
            ("dead", backlog.dead),
        ];
        for (state, count) in counts {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.backlog.get_or_create(&[("state", state)]).set(count);
        }
        self.oldest_age
            .set(backlog.oldest_age.unwrap_or_default().as_secs_f64());
        self.backlog_sampled.set(unix_now());
    }

    /// People have paused everything, or so many exchanges.
    pub fn paused(&self, everything: bool, exchanges: usize) {
        self.paused.set(i64::from(everything));
        self.paused_exchanges.set(i64::try_from(exchanges).unwrap_or(i64::MAX));
    }

    /// An attempt to connect to the broker ended.
    pub fn connect(&self, connected: bool) {
        let outcome = if connected { "success" } else { "failure" };
        self.connects.get_or_create(&[("outcome", outcome)]).inc();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn unix_now() -> f64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
