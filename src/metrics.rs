//! Every metric, by name. Nothing else in the crate spells one.

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::{Duration, SystemTime};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use crate::rates::Rates;
use crate::slowest::Slowest;
use crate::store::Backlog;

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
    /// Every metric at zero, every label value present.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("outbox_relay");
        let r = &mut registry;
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        let build: Family<Label, IntGauge> = add(r, "build_info", "1; the version is in the label", Family::default());
        build.get_or_create(&version).set(1);
        Self {
            published: add(
                r,
                "messages_published",
                "Messages the broker confirmed",
                Counter::default(),
            ),
            failures: add(
                r,
                "publish_failures",
                "Publishes that were not confirmed, by reason; nack, timeout and disconnected are outages, not attempts",
                counters("reason", &FAILURE_REASONS),
            ),
            dead_lettered: add(
                r,
                "messages_dead_lettered",
                "Rows given up, by reason",
                counters("reason", &DEAD_LETTER_REASONS),
            ),
            marks_lost: add(
                r,
                "marks_lost",
                "Confirmed rows that were gone or marked already when they were to be marked",
                Counter::default(),
            ),
            rows_purged: add(
                r,
                "rows_purged",
                "Sent rows deleted because of their age",
                Counter::default(),
            ),
            purge_behind: add(
                r,
                "purge_behind",
                "1 while sent rows older than the retention stay: they are too many, or deleting them fails; aggregate with max",
                IntGauge::default(),
            ),
            polls: add(
                r,
                "polls",
                "Reads for new rows, by outcome",
                counters("outcome", &["rows", "empty", "error"]),
            ),
            in_flight: add(
                r,
                "messages_in_flight",
                "Published and not settled yet",
                IntGauge::default(),
            ),
            batch: add(
                r,
                "batch_messages",
                "Messages published together",
                Histogram::new([1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0]),
            ),
            latency: add(
                r,
                "delivery_latency_seconds",
                "From a row's creation to its confirm, by the database's clock",
                // Up to a day: an outage shows here.
                Histogram::new([
                    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0, 3600.0,
                    86_400.0,
                ]),
            ),
            publish_duration: add(
                r,
                "publish_duration_seconds",
                "From the publish of a batch to its last confirm",
                durations(),
            ),
            store_duration: add(r, "store_operation_duration_seconds", "Time of database operations", {
                let family = Histograms::new_with_constructor(durations);
                for operation in OPERATIONS {
                    drop(family.get_or_create(&[("operation", operation)]));
                }
                family
            }),
            store_errors: add(
                r,
                "store_errors",
                "Database operations that failed",
                counters("operation", &OPERATIONS),
            ),
            backlog: add(
                r,
                "backlog_messages",
                "Rows in the outbox by state, 1000000: that many or more; every replica samples the same table: aggregate with max",
                gauges("state", &["pending", "retrying", "dead"]),
            ),
            oldest_age: add(
                r,
                "backlog_oldest_age_seconds",
                "Age of the oldest unsent row that is due, 0 without one; aggregate with max",
                FloatGauge::default(),
            ),
            backlog_sampled: add(
                r,
                "backlog_sampled_timestamp_seconds",
                "When the backlog was last counted, unix time; aggregate with max",
                FloatGauge::default(),
            ),
            last_poll: add(
                r,
                "last_poll_timestamp_seconds",
                "When the table was last looked at, unix time",
                FloatGauge::default(),
            ),
            last_publish: add(
                r,
                "last_publish_timestamp_seconds",
                "When the broker last confirmed a message, unix time",
                FloatGauge::default(),
            ),
            broker_connected: add(
                r,
                "broker_connected",
                "1 while connected to the broker",
                IntGauge::default(),
            ),
            broker_blocked: add(
                r,
                "broker_blocked",
                "1 while the broker takes no messages (memory or disk alarm)",
                IntGauge::default(),
            ),
            connects: add(
                r,
                "broker_connects",
                "Attempts to connect to the broker",
                counters("outcome", &["success", "failure"]),
            ),
            partitions_owned: add(
                r,
                "partitions_owned",
                "Shares of the rows that this relay owns",
                IntGauge::default(),
            ),
            leases_lost: add(
                r,
                "leases_lost",
                "Shares that another relay took over because their leases had run out",
                Counter::default(),
            ),
            blocked_keys: add(
                r,
                "blocked_keys",
                "Ordering keys whose next row must wait: refused, not due, or behind a dead letter",
                IntGauge::default(),
            ),
            paused: add(
                r,
                "paused",
                "1 while people have paused everything; aggregate with max",
                IntGauge::default(),
            ),
            paused_exchanges: add(
                r,
                "paused_exchanges",
                "Exchanges that people have paused; aggregate with max",
                IntGauge::default(),
            ),
            registry,
            rates: Rates::default(),
            slowest: Slowest::default(),
        }
    }

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

fn add<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

fn counters(label: &'static str, values: &[&'static str]) -> Counters {
    let family = Counters::default();
    for value in values {
        drop(family.get_or_create(&[(label, *value)]));
    }
    family
}

fn gauges(label: &'static str, values: &[&'static str]) -> Family<Label, IntGauge> {
    let family = Family::default();
    for value in values {
        drop(family.get_or_create(&[(label, *value)]));
    }
    family
}

/// Seconds: 0.5 ms to 1 minute and more.
fn durations() -> Histogram {
    Histogram::new([
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    ])
}

fn unix_now() -> f64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
