//! What the README says of names is what the code has.

use std::collections::BTreeSet;

use outbox_relay::config;
use outbox_relay::metrics::Metrics;

const README: &str = include_str!("../../README.md");

/// Before and behind the table of variables.
const BEGIN: &str =
    "<!-- configuration: checked by `cargo test --test suite docs`, which prints this table when it is old -->\n";
const END: &str = "<!-- end of configuration -->\n";

/// Tables of the database that begin like a metric.
const TABLES: [&str; 3] = ["outbox_relay_migrations", "outbox_relay_shares", "outbox_relay_members"];

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
        .filter(|word| word.starts_with("outbox_relay_") && !TABLES.contains(word))
        .map(str::to_owned)
        .collect();
    assert_eq!(told, exported);
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
