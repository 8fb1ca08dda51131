//! Where values come from, and which one wins.

use std::os::unix::ffi::OsStringExt as _;

use super::*;

#[test]
fn the_relays_own_name_wins_over_the_alias() {
    let aliases = [("DATABASE_URL", "mysql://alias/a"), ("AMQP_URL", "amqps://alias")];
    let config = load_these(&aliases).unwrap().config;
    assert_eq!(config.database_url.expose(), "mysql://alias/a");
    assert_eq!(config.amqp_urls[0].expose(), "amqps://alias");
    let config = config_with(&aliases);
    assert_eq!(config.database_url.expose(), DATABASE.1);
    let (_file, path) = file_with("sqlite:///data/a.db");
    let pairs = [&aliases[..], &[("RELAY_DATABASE_URL_FILE", &path)]].concat();
    assert_eq!(
        load_these(&pairs).unwrap().config.database_url.expose(),
        "sqlite:///data/a.db"
    );
}

#[test]
fn empty_means_unset() {
    let config = config_with(&[("RELAY_PARTITIONS", ""), ("RELAY_DATABASE_URL_FILE", "")]);
    assert_eq!(config.partitions, 16);
    let errors = load_these(&[("RELAY_DATABASE_URL", ""), BROKER]).unwrap_err();
    assert!(errors.to_string().starts_with("RELAY_DATABASE_URL: is required"));
    let config = load_these(&[("RELAY_AMQP_URL", ""), ("AMQP_URL", "amqp://mq"), DATABASE]);
    assert_eq!(config.unwrap().config.amqp_urls[0].expose(), "amqp://mq");
}

#[test]
fn values_stay_texts() {
    for password in ["007", "1e3", "true", "a b", "pässwörd", "a%2Cb", "[x]"] {
        let url = format!("amqp://user:{password}@mq/v");
        let config = config_with(&[("RELAY_AMQP_URL", &url)]);
        assert_eq!(config.amqp_urls[0].expose(), url);
        let (_file, path) = file_with(format!("[amqp]\nurl = \"{url}\""));
        let config = load_these(&[DATABASE, ("RELAY_CONFIG_FILE", &path)]).unwrap().config;
        assert_eq!(config.amqp_urls[0].expose(), url);
    }
    let config = config_with(&[("RELAY_AMQP_EXCHANGE", "007")]);
    assert_eq!(config.amqp_exchange, "007");
}

#[test]
fn several_brokers_are_separated_by_commas() {
    let config = config_with(&[("RELAY_AMQP_URL", "amqp://a , amqps://u:x%2Cy@b:5671/v,amqp://c")]);
    let urls: Vec<_> = config.amqp_urls.iter().map(Secret::expose).collect();
    assert_eq!(urls, ["amqp://a", "amqps://u:x%2Cy@b:5671/v", "amqp://c"]);
    assert!(problem_of("RELAY_AMQP_URL", "amqp://a,").contains("URL 2 is empty"));
    assert!(problem_of("RELAY_AMQP_URL", "amqp://a,,amqp://b").contains("URL 2 is empty"));
    let text = problem_of("RELAY_AMQP_URL", "amqp://u:x,y@b");
    assert!(text.contains("`%2C`"), "{text}");
}

#[test]
fn secrets_can_be_read_from_files() {
    let (_file, path) = file_with("amqp://u:p @mq/v\r\n");
    let config = load_these(&[DATABASE, ("RELAY_AMQP_URL_FILE", &path)]).unwrap().config;
    assert_eq!(config.amqp_urls[0].expose(), "amqp://u:p @mq/v");
    let config = load_these(&[DATABASE, ("AMQP_URL_FILE", &path)]).unwrap().config;
    assert_eq!(config.amqp_urls[0].expose(), "amqp://u:p @mq/v");

    let both = load_with(&[("RELAY_AMQP_URL_FILE", &path)]).unwrap_err().to_string();
    assert!(
        both.contains("RELAY_AMQP_URL and RELAY_AMQP_URL_FILE are both given"),
        "{both}"
    );
    let missing = load_these(&[DATABASE, ("RELAY_AMQP_URL_FILE", "/no/such")]).unwrap_err();
    assert_eq!(missing.problems().len(), 1, "{missing}");
    let missing = missing.to_string();
    assert!(missing.starts_with("RELAY_AMQP_URL: RELAY_AMQP_URL_FILE: cannot read the file /no/such"));
    let (_file, path) = file_with("\n");
    let empty = load_these(&[DATABASE, ("RELAY_AMQP_URL_FILE", &path)])
        .unwrap_err()
        .to_string();
    assert!(empty.contains(&format!("the file {path} is empty")), "{empty}");
}

#[test]
fn unknown_variables_are_warnings_that_name_the_nearest() {
    for (unknown, nearest) in [
        ("RELAY_DATABSE_URL", "RELAY_DATABASE_URL"),
        ("RELAY_TABLE", "RELAY_OUTBOX_TABLE"),
        ("RELAY_LGO", "RELAY_LOG"),
        ("RELAY_BATCH_SIZE", "RELAY_POLL_BATCH_SIZE"),
        ("RELAY_PUBLISH_INFLIGHT", "RELAY_PUBLISH_IN_FLIGHT"),
        ("RELAY_PARTITIONS_FILE", "RELAY_PARTITIONS"),
    ] {
        let warnings = load_with(&[(unknown, "x")]).unwrap().warnings;
        assert_eq!(
            warnings,
            [format!("{unknown} is unknown and ignored; did you mean {nearest}?")]
        );
    }
    let injected = [
        ("RELAY_PORT", "tcp://10.0.0.1:80"),
        ("RELAY_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("RELAY_SERVICE_HOST", "10.0.0.1"),
        ("RELAY_SERVICE_PORT_HTTP", "80"),
        ("RELAYED", "x"),
        ("PATH", "/bin"),
    ];
    assert!(load_with(&injected).unwrap().warnings.is_empty());
}

#[test]
fn the_environment_lies_above_the_file_above_the_defaults() {
    let (_file, path) = file_with(
        "database_url = \"sqlite://file.db\"\npartitions = 4\nshutdown_drain = true\n\
         amqp_exchange = ''\n\
         [amqp]\nurl = 'amqp://from-file'\n[publish]\nin_flight = 1_000\n\
         [retry.max]\ndelay = '1m'\nattempts = 3\n",
    );
    let pairs = [("RELAY_CONFIG_FILE", path.as_str()), ("RELAY_PARTITIONS", "8"), BROKER];
    let Loaded { config, warnings } = load_these(&pairs).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(config.database_url.expose(), "sqlite://file.db");
    assert_eq!(config.amqp_urls[0].expose(), BROKER.1);
    assert_eq!((config.partitions, config.shutdown.drain), (8, true));
    assert_eq!(config.publish.in_flight, 1000);
    assert_eq!((config.retry.max_delay.as_secs(), config.retry.max_attempts), (60, 3));
    assert_eq!(config.lease_ttl.as_secs(), 10);
}

#[test]
fn a_file_may_name_the_files_of_secrets() {
    let (_secret, secret) = file_with("sqlite://x.db\n");
    let (_file, path) = file_with(format!("[database]\nurl_file = '{secret}'"));
    let config = load_these(&[BROKER, ("RELAY_CONFIG_FILE", &path)]).unwrap().config;
    assert_eq!(config.database_url.expose(), "sqlite://x.db");
    // What the environment overrides need not be right.
    let (_file, path) = file_with("database_url_file = '/no/such'");
    assert_eq!(
        config_with(&[("RELAY_CONFIG_FILE", &path)]).database_url.expose(),
        DATABASE.1
    );
}

#[test]
fn problems_of_the_file_name_it() {
    let errors_of = |text: &str| {
        let (_file, path) = file_with(text);
        let text = load_with(&[("RELAY_CONFIG_FILE", &path)]).unwrap_err().to_string();
        assert!(text.contains(&path), "{text}");
        text
    };
    let syntax = errors_of("partitions = 4\n\ndatabase_url = sqlite:///hunter2\n");
    assert!(
        syntax.starts_with("RELAY_CONFIG_FILE: ") && syntax.contains("at line 3"),
        "{syntax}"
    );
    assert!(!syntax.contains("hunter2"), "{syntax}");
    assert!(errors_of("x = 99999999999999999999").contains("is not valid TOML"));
    assert!(errors_of("log = 'info'\nlog = 'warn'").contains("at line 2"));
    let twice = errors_of("poll_batch_size = 1\n[poll]\nbatch_size = 2");
    assert!(
        twice.starts_with("RELAY_POLL_BATCH_SIZE: ") && twice.contains("twice"),
        "{twice}"
    );
    assert!(errors_of("partitions = [1]").starts_with("RELAY_PARTITIONS: "));

    let missing = load_these(&[("RELAY_CONFIG_FILE", "/no/such")]).unwrap_err();
    assert_eq!(missing.problems().len(), 1, "what it may hold is not missed: {missing}");
    assert!(
        missing
            .to_string()
            .contains("RELAY_CONFIG_FILE: cannot read the file /no/such")
    );
}

#[test]
fn unknown_keys_of_the_file_are_warnings() {
    let (_file, path) =
        file_with("config_file = 'x'\nPartitions = 3\nport = 1\n'amqp://u:hunter2@h' = 1\n[pol]\nbatch_size = [1]");
    let Loaded { config, warnings } = load_with(&[("RELAY_CONFIG_FILE", &path)]).unwrap();
    assert_eq!(config.partitions, 16);
    assert_eq!(warnings.len(), 5, "{warnings:?}");
    let all = warnings.join("\n");
    assert!(
        all.contains("`pol_batch_size`") && all.contains("`poll_batch_size`"),
        "{all}"
    );
    assert!(all.contains(&path) && !all.contains("hunter2"), "{all}");
}

#[test]
fn a_problem_says_how_the_value_was_given() {
    let text = load_these(&[BROKER, ("DATABASE_URL", "x")]).unwrap_err().to_string();
    assert!(text.starts_with("RELAY_DATABASE_URL: must"), "{text}");
    assert!(text.ends_with(" (given as DATABASE_URL)"), "{text}");
    let (_file, path) = file_with("x");
    let text = load_these(&[BROKER, ("RELAY_DATABASE_URL_FILE", &path)]).unwrap_err();
    assert!(
        text.to_string().ends_with(" (given as RELAY_DATABASE_URL_FILE)"),
        "{text}"
    );
    let (_file, path) = file_with("partitions = 0");
    let text = load_with(&[("RELAY_CONFIG_FILE", &path)]).unwrap_err().to_string();
    assert!(text.ends_with(&format!(" (given in the file {path})")), "{text}");
    assert!(!problem_of("RELAY_PARTITIONS", "0").contains("given"));
}

#[test]
fn values_that_are_not_utf_8_are_problems() {
    let odd = || std::ffi::OsString::from_vec(vec![b'x', 0xff]);
    let errors = load_os([
        ("RELAY_DATABASE_URL_FILE".into(), odd()),
        ("RELAY_AMQP_URL".into(), odd()),
        ("RELAY_NEW".into(), odd()),
        ("RELAY_SERVICE_HOST".into(), odd()),
        ("OTHER".into(), odd()),
    ])
    .unwrap_err();
    let lines: Vec<_> = errors.problems().iter().map(Problem::to_string).collect();
    assert_eq!(lines.len(), 3, "{errors}");
    assert!(lines[0].starts_with("RELAY_DATABASE_URL: the value of RELAY_DATABASE_URL_FILE is not"));
    assert!(lines[1].starts_with("RELAY_AMQP_URL: "));
    assert!(lines[2].starts_with("RELAY_NEW: "));
}
