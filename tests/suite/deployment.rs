//! Rules, panels, manifests and units name what the code has, and every alert has its heading in the README.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use outbox_relay::config::VARIABLES;
use outbox_relay::metrics::Metrics;
use tokio::process::Command;

use crate::outbox::{SECOND, migrate};
use crate::support::{Postgres, Rabbit, Relay, until};

const README: &str = include_str!("../../README.md");
const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Every file under the folder, links not followed.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let entry = entry.unwrap();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => found.extend(files(&entry.path())),
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

/// The rules, their tests and the dashboard, with the quotes of JSON undone.
fn monitoring() -> Vec<(PathBuf, String)> {
    let folders = ["deploy/monitoring", "tests/deploy/monitoring"];
    let paths = folders.iter().flat_map(|folder| files(&Path::new(ROOT).join(folder)));
    paths
        .map(|path| {
            (
                path.clone(),
                std::fs::read_to_string(path).unwrap().replace("\\\"", "\""),
            )
        })
        .collect()
}

/// Names as they are in queries: a colon is part of a recorded one.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':')
        .filter(|word| word.contains("outbox_relay_"))
}

/// Every series that a scrape has.
fn exported() -> BTreeSet<String> {
    let text = Metrics::new().encode().unwrap();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types
        .flat_map(|line| match line.split_once(' ').expect("a name and a type") {
            (name, "counter") => vec![format!("{name}_total")],
            (name, "histogram") => ["bucket", "count", "sum"].map(|part| format!("{name}_{part}")).to_vec(),
            (name, _) => vec![name.to_owned()],
        })
        .collect()
}

#[test]
fn rules_and_panels_name_only_what_is_exported_or_recorded() {
    let files = monitoring();
    let recorded: BTreeSet<&str> = files
        .iter()
        .flat_map(|(_, text)| text.lines().filter_map(|line| line.trim().strip_prefix("- record: ")))
        .collect();
    let exported = exported();
    let mut count = 0;
    for (path, text) in &files {
        for name in names(text) {
            let known = exported.contains(name) || recorded.contains(name);
            assert!(known, "{}: nobody exports or records {name}", path.display());
            count += 1;
        }
    }
    assert!(count > 50 && recorded.len() > 3, "the files are read: {count} names");
}

/// `reason="nack"` of a rule is a label and a value that the metric has; expressions like `=~` are left out.
#[test]
fn rules_and_panels_ask_for_values_of_labels_that_exist() {
    let text = Metrics::new().encode().unwrap();
    let mut count = 0;
    for (path, asked) in monitoring() {
        for label in ["reason", "state", "operation", "outcome"] {
            for (at, _) in asked.match_indices(&format!("{label}=\"")) {
                let pair = &asked[at..];
                let end = pair.match_indices('"').nth(1).expect("a closing quote").0;
                let pair = &pair[..=end];
                assert!(text.contains(pair), "{}: no metric has {pair}", path.display());
                count += 1;
            }
        }
    }
    assert!(count > 5, "the files are read: {count} labels");
}

#[test]
fn every_alert_has_its_heading_in_the_readme() {
    let rules = std::fs::read_to_string(Path::new(ROOT).join("deploy/monitoring/alerts.yaml")).unwrap();
    let alerts: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    let links = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("runbook_url: "));
    let expected = alerts.iter().map(|alert| format!("README.md#{}", alert.to_lowercase()));
    assert!(links.eq(expected), "each alert links to the heading of its name");
    let headings: BTreeSet<&str> = README.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    for alert in alerts {
        assert!(headings.contains(alert), "the README has no heading ### {alert}");
    }
}

#[test]
fn every_variable_that_a_deployment_sets_exists() {
    let mut known: BTreeSet<String> = VARIABLES.iter().map(|variable| variable.name.to_owned()).collect();
    known.extend(VARIABLES.iter().filter_map(outbox_relay::config::Variable::file_name));
    let mut count = 0;
    for path in files(&Path::new(ROOT).join("deploy")) {
        let text = std::fs::read_to_string(&path).unwrap();
        let words = text.split(|c: char| !c.is_ascii_uppercase() && c != '_');
        // A name that ends with "_" is a part of one, RELAY_PORT is what Kubernetes makes of a Service.
        for name in words.filter(|word| word.starts_with("RELAY_") && !word.ends_with('_') && *word != "RELAY_PORT") {
            assert!(known.contains(name), "{}: there is no {name}", path.display());
            count += 1;
        }
    }
    assert!(count > 20, "the files are read: {count} variables");
}

/// Its parts without the containers: the broker's definitions with their passwords and permissions, the shop's SQL.
#[tokio::test(flavor = "multi_thread")]
async fn the_example_of_compose_sends_its_orders() {
    let folder = Path::new(ROOT).join("deploy/compose");
    let (rabbit, database_url) = tokio::join!(Rabbit::start(), async {
        Postgres::shared().await.create_database().await
    });
    let definitions = folder.join("broker/definitions.json");
    rabbit.ctl(&["import_definitions", definitions.to_str().unwrap()]).await;
    let amqp_url = std::fs::read_to_string(folder.join("secrets/amqp-url")).unwrap();
    let amqp_url = amqp_url
        .trim()
        .replace("broker:5672", &format!("127.0.0.1:{}", rabbit.port()));
    migrate(&database_url, &[]).await;
    for file in ["table.sql", "order.sql", "order.sql", "order.sql"] {
        let mut psql = Command::new("psql");
        psql.args([
            "--no-psqlrc",
            "--quiet",
            "--set",
            "ON_ERROR_STOP=1",
            &database_url,
            "--file",
        ]);
        let output = psql
            .arg(folder.join("shop").join(file))
            .output()
            .await
            .expect("psql starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let _relay = Relay::command()
        .env("RELAY_DATABASE_URL", &database_url)
        .env("RELAY_AMQP_URL", &amqp_url)
        .env("RELAY_AMQP_EXCHANGE", "events")
        .spawn();
    until("the orders are in the queue", 60 * SECOND, async || {
        rabbit.messages_in("/", "orders").await == Some(3)
    })
    .await;
}
