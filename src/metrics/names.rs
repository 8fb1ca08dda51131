//! Every metric's name, with its help text and the label values it begins with.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use super::{
    Counters, DEAD_LETTER_REASONS, FAILURE_REASONS, FloatGauge, Histograms, IntGauge, Label, Metrics, OPERATIONS,
};
use crate::rates::Rates;
use crate::slowest::Slowest;

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
                "1 while sent rows older than the retention stay: too many for 25 seconds, or deleting them fails; aggregate with max",
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
