//! What the README says of names is what the code has.

use std::collections::BTreeSet;
use std::path::Path;

use outbox_relay::config;
use outbox_relay::metrics::Metrics;

const README: &str = include_str!("../../README.md");

/// Before and behind the table of variables.
const BEGIN: &str = "<!-- configuration: `cargo test --test suite docs -- --ignored` writes this table -->\n";
const END: &str = "<!-- end of configuration -->\n";

/// Tables of the database that begin like a metric.
const TABLES: [&str; 1] = ["outbox_relay_migrations"];

#[test]
fn the_readme_has_the_configuration_table_of_the_code() {
    assert!(
        readme_with_table() == README,
        "the README's configuration table is old: run `cargo test --test suite docs -- --ignored`, which writes it"
    );
}

#[test]
#[ignore = "changes the README; see the test above"]
fn write_the_configuration_table_into_the_readme() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    std::fs::write(path, readme_with_table()).unwrap();
}

fn readme_with_table() -> String {
    let (before, rest) = README.split_once(BEGIN).expect("the README has the first marker");
    let (_, behind) = rest.split_once(END).expect("the README has the second marker");
    format!("{before}{BEGIN}{}{END}{behind}", config::markdown_table())
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
