//! Every rule of reading the configuration.

use std::{io::Write as _, time::Duration};

use tempfile::NamedTempFile;

use super::*;

mod cloudevents;
mod headers;
mod secrets;
mod sources;
mod traces;

const DATABASE: (&str, &str) = ("RELAY_DATABASE_URL", "postgres://app:pw@db/app");
const BROKER: (&str, &str) = ("RELAY_AMQP_URL", "amqp://app:pw@mq:5672/%2f");

fn load_these(pairs: &[(&str, &str)]) -> Result<Loaded, ConfigErrors> {
    load(
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
    )
}

/// Loads `pairs` beside the required variables.
fn load_with(pairs: &[(&str, &str)]) -> Result<Loaded, ConfigErrors> {
    load_these(&[&[DATABASE, BROKER], pairs].concat())
}

fn config_with(pairs: &[(&str, &str)]) -> Config {
    load_with(pairs).unwrap().config
}

/// The only problem of `name` set to `value`, as one line.
fn problem_of(name: &str, value: &str) -> String {
    match load_with(&[(name, value)]) {
        Ok(_) => panic!("{name}={value} was accepted"),
        Err(errors) => {
            assert_eq!(errors.problems().len(), 1, "{errors}");
            assert_eq!(errors.problems()[0].variable, name);
            errors.to_string()
        }
    }
}

fn file_with(content: impl AsRef<[u8]>) -> (NamedTempFile, String) {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(content.as_ref()).unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    (file, path)
}

#[test]
fn the_defaults_are_those_of_the_contract() {
    let Loaded { config, warnings } = load_with(&[]).unwrap();
    assert!(warnings.is_empty());
    assert_eq!(config.database_url.expose(), DATABASE.1);
    assert_eq!(config.amqp_urls, [Secret::new(BROKER.1)]);
    assert_eq!(config.amqp_exchange, "");
    assert_eq!(config.amqp_connect_timeout, Duration::from_secs(10));
    assert_eq!(config.database_timeout, Duration::from_secs(30));
    assert_eq!(config.outbox.table.to_string(), "\"outbox\"");
    assert_eq!(config.outbox.on_sent, OnSent::Mark);
    assert_eq!(config.outbox.retention, Some(Duration::from_secs(7 * 86_400)));
    assert_eq!(config.ordering, Ordering::Strict);
    assert_eq!(config.on_dead_letter, OnDeadLetter::Continue);
    assert_eq!(config.partitions, 16);
    assert_eq!(config.lease_ttl, Duration::from_secs(10));
    assert_eq!(config.poll.min_interval, Duration::from_millis(2));
    assert_eq!(config.poll.max_interval, Duration::from_millis(100));
    assert_eq!(config.poll.sweep_interval, Duration::from_secs(15));
    assert_eq!(config.poll.batch_size, 1000);
    assert_eq!(config.publish.in_flight, 1000);
    assert_eq!(config.publish.in_flight_bytes, 16 << 20);
    assert_eq!(config.publish.confirm_timeout, Duration::from_secs(30));
    assert_eq!(config.publish.max_message_bytes, 16 << 20);
    assert_eq!(config.retry.min_delay, Duration::from_secs(1));
    assert_eq!(config.retry.max_delay, Duration::from_secs(300));
    assert_eq!(config.retry.max_attempts, 10);
    assert_eq!(config.shutdown.grace, Duration::from_secs(25));
    assert!(!config.shutdown.drain);
    assert_eq!(config.admin_listen.to_string(), "0.0.0.0:9464");
    assert_eq!((config.log.as_str(), config.log_format), ("info", LogFormat::Auto));
}

#[test]
fn every_problem_is_shown_at_once_one_line_each_in_the_order_of_the_table() {
    let errors = load_these(&[
        ("RELAY_LOG", "inof"),
        ("RELAY_PARTITIONS", "0"),
        ("RELAY_POLL_BATCH_SIZE", "many"),
        ("RELAY_AMQP_URL", "http://mq"),
    ])
    .unwrap_err();
    let named: Vec<_> = errors.problems().iter().map(|p| p.variable.as_str()).collect();
    let expected = [
        "RELAY_DATABASE_URL",
        "RELAY_AMQP_URL",
        "RELAY_PARTITIONS",
        "RELAY_POLL_BATCH_SIZE",
        "RELAY_LOG",
    ];
    assert_eq!(named, expected);
    let text = errors.to_string();
    assert_eq!(text.lines().count(), expected.len());
    assert!(
        text.lines().zip(expected).all(|(line, name)| line.starts_with(name)),
        "{text}"
    );
    assert!(
        text.contains("is required; set RELAY_DATABASE_URL, DATABASE_URL, or"),
        "{text}"
    );
}

#[test]
fn enumerations_and_booleans_list_what_is_allowed() {
    let all = config_with(&[
        ("RELAY_OUTBOX_ON_SENT", "delete"),
        ("RELAY_ORDERING", "pipelined"),
        ("RELAY_ON_DEAD_LETTER", "block"),
        ("RELAY_SHUTDOWN_DRAIN", "true"),
        ("RELAY_LOG_FORMAT", "json"),
    ]);
    assert_eq!(all.outbox.on_sent, OnSent::Delete);
    assert_eq!(all.ordering, Ordering::Pipelined);
    assert_eq!(all.on_dead_letter, OnDeadLetter::Block);
    assert!(all.shutdown.drain);
    assert_eq!(all.log_format, LogFormat::Json);
    assert_eq!(
        problem_of("RELAY_ORDERING", "Strict"),
        "RELAY_ORDERING: must be `strict`, `pipelined` or `none`, but is `Strict`"
    );
    for word in ["yes", "1", "TRUE", "on"] {
        let text = problem_of("RELAY_SHUTDOWN_DRAIN", word);
        assert!(text.contains("must be `true` or `false`"), "{text}");
    }
}

#[test]
fn durations_need_a_unit_and_stay_within_the_bounds_that_help_states() {
    for (name, below, above, bounds) in [
        ("RELAY_AMQP_CONNECT_TIMEOUT", "0s", "11m", "1ms to 10m"),
        ("RELAY_DATABASE_TIMEOUT", "0s", "61m", "1ms to 1h"),
        ("RELAY_OUTBOX_RETENTION", "0s", "11y", "1s to 3650d"),
        ("RELAY_LEASE_TTL", "1999ms", "61m", "2s to 1h"),
        ("RELAY_POLL_MIN_INTERVAL", "0ms", "61m", "1ms to 1h"),
        ("RELAY_POLL_MAX_INTERVAL", "0ms", "61m", "1ms to 1h"),
        ("RELAY_POLL_SWEEP_INTERVAL", "0ms", "51s", "1ms to 50s"),
        ("RELAY_PUBLISH_CONFIRM_TIMEOUT", "0s", "61m", "1ms to 1h"),
        ("RELAY_RETRY_MIN_DELAY", "0s", "2d", "1ms to 1d"),
        ("RELAY_RETRY_MAX_DELAY", "0s", "5M", "1ms to 30d"),
        ("RELAY_SHUTDOWN_GRACE", "0s", "61m", "1ms to 1h"),
    ] {
        assert_bounds(name, [below, above], bounds);
        for value in ["30", "0", "-1s", "soon", "1 lightyear", "99999999999999999999d"] {
            let text = problem_of(name, value);
            assert!(text.contains("must be a number with a unit"), "{text}");
            assert!(text.contains(value), "{text}");
        }
    }
    assert_eq!(config_with(&[("RELAY_OUTBOX_RETENTION", "off")]).outbox.retention, None);
    assert_eq!(config_with(&[("RELAY_LEASE_TTL", " 1m 30s ")]).lease_ttl.as_secs(), 90);
}

#[test]
fn numbers_and_sizes_stay_within_the_bounds_that_help_states() {
    for (name, outside, bounds) in [
        ("RELAY_PARTITIONS", ["0", "257"], "1 to 256"),
        ("RELAY_POLL_BATCH_SIZE", ["0", "10001"], "1 to 10000"),
        ("RELAY_PUBLISH_IN_FLIGHT", ["-1", "65536"], "1 to 65535"),
        (
            "RELAY_RETRY_MAX_ATTEMPTS",
            ["0", "99999999999999999999"],
            "1 to 1000000",
        ),
        ("RELAY_PUBLISH_IN_FLIGHT_BYTES", ["1023B", "17GiB"], "1KiB to 16GiB"),
        ("RELAY_MESSAGE_MAX_BYTES", ["0B", "129MiB"], "1B to 128MiB"),
    ] {
        assert_bounds(name, outside, bounds);
    }
    for (text, bytes) in [
        ("5B", 5),
        ("2KiB", 2048),
        ("3MiB", 3 << 20),
        ("2kB", 2000),
        ("3 MB", 3_000_000),
    ] {
        let config = config_with(&[("RELAY_MESSAGE_MAX_BYTES", text)]);
        assert_eq!(config.publish.max_message_bytes, bytes);
    }
    let config = config_with(&[("RELAY_PUBLISH_IN_FLIGHT_BYTES", "2GiB")]);
    assert_eq!(config.publish.in_flight_bytes, 2 << 30);
    for value in [
        "1024",
        "1.5MiB",
        "16mib",
        "MiB",
        "+1MiB",
        "99999999999999999999GiB",
        "99999999999GiB",
    ] {
        let text = problem_of("RELAY_MESSAGE_MAX_BYTES", value);
        assert!(text.contains("`B`, `KiB`, `MiB`, `GiB`, `kB`, `MB` or `GB`"), "{text}");
    }
}

fn assert_bounds(name: &str, outside: [&str; 2], bounds: &str) {
    let help = variables::find(name).unwrap().help;
    assert!(help.contains(bounds), "{name}: {help}");
    for value in outside {
        let text = problem_of(name, value);
        assert!(text.contains(bounds) && text.contains(value), "{text}");
    }
}

#[test]
fn the_lower_of_two_may_not_be_above_the_higher() {
    let text = problem_of("RELAY_POLL_MIN_INTERVAL", "200ms");
    assert!(
        text.contains("200ms, above RELAY_POLL_MAX_INTERVAL with 100ms"),
        "{text}"
    );
    assert!(problem_of("RELAY_RETRY_MIN_DELAY", "10m").contains("RELAY_RETRY_MAX_DELAY"));
    let errors = load_with(&[("RELAY_RETRY_MIN_DELAY", "1h"), ("RELAY_RETRY_MAX_DELAY", "x")]);
    assert_eq!(
        errors.unwrap_err().problems().len(),
        1,
        "no second problem from the first one"
    );
}

#[test]
fn log_levels_are_checked_and_a_bare_word_must_be_a_level() {
    for good in ["debug", "off", "warn, outbox_relay=trace", "info,a::b-c=off"] {
        config_with(&[("RELAY_LOG", good)]);
    }
    for bad in [
        "inof",
        "info,",
        "outbox_relay=loud",
        "=info",
        "info;lapin",
        "lapin",
        "a[b]=info",
    ] {
        assert!(problem_of("RELAY_LOG", bad).contains("must be a level or `module=level`"));
    }
}

#[test]
fn the_other_values_are_checked() {
    let config = config_with(&[
        ("RELAY_ADMIN_LISTEN", "[::1]:0"),
        ("RELAY_OUTBOX_TABLE", "app.\"Out box\""),
        ("RELAY_AMQP_EXCHANGE", " a, b é "),
    ]);
    assert_eq!(config.admin_listen.to_string(), "[::1]:0");
    assert_eq!(config.outbox.table.to_string(), "\"app\".\"Out box\"");
    assert_eq!(config.amqp_exchange, " a, b é ", "a text keeps its spaces");
    for bad in ["9464", "localhost:9464", ":9464", "0.0.0.0:99999"] {
        assert!(problem_of("RELAY_ADMIN_LISTEN", bad).contains("like `0.0.0.0:9464`"));
    }
    assert!(problem_of("RELAY_OUTBOX_TABLE", "my-outbox").contains("double quotes"));
    assert!(problem_of("RELAY_AMQP_EXCHANGE", &"x".repeat(256)).contains("255 bytes"));
}

#[test]
fn help_and_readme_name_every_variable_with_its_default() {
    let (help, table) = (help_text(), markdown_table());
    for variable in VARIABLES {
        let default = variable.default_text();
        assert!(help.contains(&format!("  {} [{default}]\n", variable.name)));
        assert!(table.contains(&format!("| `{}` | ", variable.name)));
        assert!(
            !variable.help.contains(['\n', '|']),
            "one line, one cell: {}",
            variable.name
        );
        assert!(variable.name.starts_with("RELAY_"));
    }
    assert!(help.contains("also DATABASE_URL, or RELAY_DATABASE_URL_FILE"));
    assert_eq!(table.lines().count(), VARIABLES.len() + 2);
}

#[test]
fn columns_are_named_one_by_one_or_by_a_preset() {
    assert!(config_with(&[]).outbox.mapping.is_default());
    let config = config_with(&[("RELAY_PRESET", "debezium")]);
    let origin = |config: &Config, field| config.outbox.mapping.origin(field).cloned();
    let column = |name: &str| Some(Origin::Column(name.parse().unwrap()));
    assert_eq!(config.outbox.on_sent, OnSent::Delete);
    assert_eq!(origin(&config, Field::MessageId), column("id"));
    assert!(matches!(origin(&config, Field::RoutingKey), Some(Origin::Template(pieces)) if pieces.len() == 3));
    assert_eq!(origin(&config, Field::SentAt), None);
    // What is set by hand goes before it, in whatever way.
    let config = config_with(&[
        ("RELAY_PRESET", "debezium"),
        ("RELAY_OUTBOX_ON_SENT", "mark"),
        ("RELAY_COLUMN_ROUTING_KEY", "\"My Key\""),
        ("RELAY_COLUMN_ORDERING_KEY", "-"),
        ("RELAY_COLUMN_CREATED_AT", ""),
    ]);
    assert_eq!(config.outbox.on_sent, OnSent::Mark);
    assert_eq!(origin(&config, Field::RoutingKey), column("\"My Key\""));
    assert_eq!(origin(&config, Field::OrderingKey), Some(Origin::Nowhere));
    assert_eq!(origin(&config, Field::CreatedAt), None);
}

#[test]
fn columns_that_cannot_be_are_refused() {
    for (name, value, words) in [
        ("RELAY_PRESET", "debezum", "`debezium` or `watermill`"),
        ("RELAY_COLUMN_ID", "a.b", "must be a column's name"),
        ("RELAY_COLUMN_ID", "-", "cannot do without"),
        ("RELAY_COLUMN_SENT_AT", "-", "RELAY_OUTBOX_ON_SENT=delete"),
        ("RELAY_COLUMN_TYPE", &"x".repeat(64), "over 63 bytes"),
        ("RELAY_ROUTING_KEY", "{a", "single brace"),
        ("RELAY_ROUTING_KEY", " ", "is blank"),
        ("RELAY_COLUMN_HEADERS", "a,b:a", "twice"),
    ] {
        let problem = problem_of(name, value);
        assert!(problem.contains(words), "{problem}");
    }
    let both = load_with(&[("RELAY_ROUTING_KEY", "a"), ("RELAY_COLUMN_ROUTING_KEY", "b")]);
    assert!(
        both.unwrap_err()
            .to_string()
            .contains("RELAY_ROUTING_KEY: is given beside RELAY_COLUMN_ROUTING_KEY")
    );
}
