//! What the README says of names is what the code has.

use std::collections::BTreeSet;

use outbox_relay::config;
use outbox_relay::metrics::Metrics;

const README: &str = include_str!("../../README.md");

/// Before and behind the table of variables.
const BEGIN: &str =
    "<!-- configuration: checked by `cargo test --test suite docs`, which prints this table when it is old -->\n";
const END: &str = "<!-- end of configuration -->\n";

/// Names in the database that begin like a metric.
const IN_DATABASE: [&str; 8] = [
    "outbox_relay_failures",
    "outbox_relay_positions",
    "outbox_relay_migrations",
    "outbox_relay_shares",
    "outbox_relay_members",
    "outbox_relay_pauses",
    "outbox_relay_errors",
    "outbox_relay_wakeup",
];

#[test]
fn the_readme_has_the_configuration_table_of_the_code() {
    let (_, rest) = README.split_once(BEGIN).expect("the README has the first marker");
    let (table, _) = rest.split_once(END).expect("the README has the second marker");
    let expected = config::markdown_table();
    assert!(
        table == expected,
        "the README's configuration table is old; it should be:\n{expected}"
    );
}

#[test]
fn every_metric_of_the_readme_exists_and_every_metric_is_in_it() {
    let text = Metrics::new().encode().unwrap();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let exported: BTreeSet<String> = types
        .map(|line| match line.split_once(' ').expect("a name and a type") {
            (name, "counter") => format!("{name}_total"),
            (name, _) => name.to_owned(),
        })
        .collect();
    let told: BTreeSet<String> = README
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("outbox_relay_") && !IN_DATABASE.contains(word))
        .map(str::to_owned)
        .collect();
    assert_eq!(told, exported);
}

/// Names that users may rely on, with their labels: dashboards and rules are made of them.
const PROMISED: &[(&str, &str, &[&str])] = &[
    ("messages_published_total", "", &[]),
    (
        "publish_failures_total",
        "reason",
        &[
            "nack",
            "unroutable",
            "no_exchange",
            "refused",
            "timeout",
            "disconnected",
            "invalid",
        ],
    ),
    (
        "messages_dead_lettered_total",
        "reason",
        &["unroutable", "no_exchange", "refused", "invalid"],
    ),
    ("marks_lost_total", "", &[]),
    ("rows_purged_total", "", &[]),
    ("polls_total", "outcome", &["rows", "empty", "error"]),
    ("messages_in_flight", "", &[]),
    ("batch_messages_count", "", &[]),
    ("delivery_latency_seconds_count", "", &[]),
    ("publish_duration_seconds_count", "", &[]),
    (
        "store_operation_duration_seconds_count",
        "operation",
        &["head", "mark", "backlog"],
    ),
    ("store_errors_total", "operation", &["head", "mark", "backlog"]),
    ("backlog_messages", "state", &["pending", "retrying", "dead"]),
    ("backlog_oldest_age_seconds", "", &[]),
    ("backlog_sampled_timestamp_seconds", "", &[]),
    ("last_poll_timestamp_seconds", "", &[]),
    ("last_publish_timestamp_seconds", "", &[]),
    ("broker_connected", "", &[]),
    ("broker_blocked", "", &[]),
    ("broker_connects_total", "outcome", &["success", "failure"]),
    ("partitions_owned", "", &[]),
    ("blocked_keys", "", &[]),
    ("build_info", "version", &[env!("CARGO_PKG_VERSION")]),
];

#[test]
fn every_promised_metric_is_there_from_the_start_with_a_help_text() {
    let text = Metrics::new().encode().unwrap();
    for (name, label, values) in PROMISED {
        let series: Vec<String> = match *values {
            [] => vec![format!("outbox_relay_{name} ")],
            values => values
                .iter()
                .map(|value| format!("outbox_relay_{name}{{{label}=\"{value}\"}} "))
                .collect(),
        };
        for series in series {
            let value = text.lines().find_map(|line| line.strip_prefix(&series));
            let expected = if *name == "build_info" { 1.0 } else { 0.0 };
            assert_eq!(value.and_then(|value| value.parse().ok()), Some(expected), "{series}");
        }
        let plain = name.trim_end_matches("_total").trim_end_matches("_count");
        let help = format!("# HELP outbox_relay_{plain} ");
        assert!(
            text.lines()
                .any(|line| line.len() > help.len() && line.starts_with(&help)),
            "{help}"
        );
    }
    for name in ["messages", "oldest_age_seconds", "sampled_timestamp_seconds"] {
        let help = format!("# HELP outbox_relay_backlog_{name} ");
        let said = |line: &str| line.starts_with(&help) && line.contains("max");
        assert!(text.lines().any(said), "every replica samples the same: {name}");
    }
}

#[test]
fn every_label_of_a_metric_is_in_its_line_of_the_readme() {
    let text = Metrics::new().encode().unwrap();
    let samples = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.contains("le=\""));
    for (metric, labels) in samples.filter_map(|line| line.split_once('{')) {
        let (label, value) = labels.split_once("=\"").expect("a label");
        let value = value.split('"').next().unwrap_or_default();
        let metric = metric.trim_end_matches("_sum").trim_end_matches("_count");
        let told = |line: &str| {
            line.starts_with(&format!("| `{metric}`"))
                && line.contains(&format!("`{label}`"))
                && (label == "version" || line.contains(&format!("`{value}`")))
        };
        assert!(
            README.lines().any(told),
            "{metric}: {label}=\"{value}\" is not in the README"
        );
    }
}
