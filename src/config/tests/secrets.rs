//! No secret is ever shown.

use super::*;

/// Part of every password below; it must appear nowhere.
const MARKER: &str = "Hunter2x";

/// URLs that hold the marker, most of them wrong in some way.
fn marked_urls() -> Vec<String> {
    let odd = [
        "postgres://u:MARK@db/app",
        "postgres://u:MARK@db:port/app",
        "postgres://u:MA/RK/MARK@db/app",
        "postgres://u:12/MARK@db/app",
        "postgres://u:12#MARK@db/app",
        "postgres://u:12?MARK@db/app",
        "postgres://u:?MARK=1@db/app",
        "postgres://u:MARK@@db/app",
        "postgres://u:MARK",
        "postgres://u:MARK@",
        "postgres://db/app?password=MARK&user=u#MARK",
        "postgres://db/app?MARK",
        "postgres://[u:MARK@db",
        "postgres:u:MARK@db",
        "Postgres://u:MARK@db/app",
        "amqp://u:MARK@mq/v",
        "amqp://u:a,MARK@mq/v",
        "amqp://u:MARK@mq,amqp://u:MARK@mq2:port",
        "amqp://u:MARK@/v",
        "amqp://u:MARK@mq:99999/v",
        "amqp://u:MARK@m q/v\u{7}",
        "amqps://u:%MARK@mq",
        "sqlite:",
        "sqlite://u:MARK@x",
        "http://u:MARK@mq",
        "http://u:MARK@mq/?MARK",
        "https://MARK@mq/api#MARK",
        "MARK://u:MARK@mq",
        "u:MARK@db",
        "host=db password=MARK",
        "://MARK",
        ":MARK",
        "MARK",
    ];
    odd.iter().map(|url| url.replace("MARK", MARKER)).collect()
}

fn assert_unseen(result: &Result<Loaded, ConfigErrors>, context: &str) {
    let shown = match result {
        Ok(loaded) => format!("{loaded:?} {:#?} {}", loaded.config, loaded.config.database_url),
        Err(errors) => format!("{errors} {errors:?} {:#?}", errors.problems()),
    };
    assert!(!shown.contains(MARKER), "{context}: {shown}");
}

#[test]
fn no_variable_however_wrong_is_quoted_when_it_may_hold_a_secret() {
    for url in marked_urls() {
        for variable in VARIABLES.iter().filter(|variable| variable.secret) {
            for name in [Some(variable.name), variable.alias].into_iter().flatten() {
                assert_unseen(&load_these(&[(name, &url)]), name);
                let (_file, path) = file_with(&url);
                assert_unseen(&load_these(&[(&format!("{name}_FILE"), &path)]), name);
                let both = [(name, url.as_str()), (&format!("{name}_FILE"), &path)];
                assert_unseen(&load_these(&both), name);
            }
            let key = variable.key();
            for line in [
                format!("{key} = '{url}'"),
                format!("{key} = ['{url}']"),
                format!("{key} = {url}"),
                format!("{key} = '{url}"),
                format!("'key {url}' = 1"),
                format!("'{url}'"),
                format!("{key} = '{url}'\n{key} = '{url}'"),
            ] {
                let (_file, path) = file_with(&line);
                assert_unseen(&load_these(&[("RELAY_CONFIG_FILE", &path)]), &line);
            }
        }
    }
}

#[test]
fn a_url_put_into_the_wrong_variable_is_not_quoted() {
    for url in marked_urls()
        .iter()
        .filter(|url| url.contains("://") || url.contains('@'))
    {
        // The one text that is free: it is no secret and is kept as it is.
        let others = VARIABLES
            .iter()
            .filter(|variable| variable.name != "RELAY_AMQP_EXCHANGE");
        for variable in others {
            assert_unseen(&load_with(&[(variable.name, url)]), variable.name);
            assert_unseen(&load_with(&[(&format!("{}_FILE", variable.name), url)]), variable.name);
        }
        assert_unseen(&load_with(&[("RELAY_UNKNOWN", url)]), "RELAY_UNKNOWN");
    }
}

#[test]
fn a_secret_prints_as_stars() {
    let secret = Secret::new(MARKER);
    assert_eq!(
        format!("{secret} {secret:?} {secret:#?} {:?}", Some(&secret)),
        "*** *** *** Some(***)"
    );
    assert_eq!(secret.expose(), MARKER);
}

#[test]
fn a_redacted_url_never_shows_a_password() {
    for url in marked_urls() {
        let shown = redacted_url(&url);
        assert!(!shown.contains(MARKER), "{shown}");
    }
}

/// `/status` shows it to all. What is before a comma looks like a host and its port, if it has digits only.
#[test]
fn a_comma_in_a_password_does_not_show_what_is_before_it() {
    for (name, url) in [
        ("RELAY_DATABASE_URL", "postgres://u:4711,x@db/app"),
        ("RELAY_AMQP_MANAGEMENT_URL", "https://u:4711,x@mq:15671"),
    ] {
        let config = config_with(&[(name, url)]);
        let (_, shown) = config.in_force.iter().find(|(variable, _)| *variable == name).unwrap();
        assert!(shown.contains("://") && !shown.contains("4711"), "{shown}");
    }
    let brokers = config_with(&[("RELAY_AMQP_URL", "amqp://u:4711@a,amqps://u:4711@b/v")]);
    let shown = ("RELAY_AMQP_URL", "amqp://a, amqps://b/v".to_owned());
    assert!(brokers.in_force.contains(&shown), "{:?}", brokers.in_force);
}

#[test]
fn a_redacted_url_keeps_what_tells_where_it_leads() {
    for (url, shown) in [
        ("postgres://u:p@db:5432/app", "postgres://db:5432/app"),
        (
            "postgres://db/app?sslmode=require&password=p",
            "postgres://db/app?sslmode=***&password=***",
        ),
        ("postgres:///app?host=/run", "postgres:///app?host=***"),
        ("amqps://u:p@[::1]:5671/%2f", "amqps://[::1]:5671/%2f"),
        ("amqp://u:p%40@mq", "amqp://mq"),
        ("AMQP://u@mq/", "amqp://mq/"),
        ("sqlite:///data/app.db", "sqlite:///data/app.db"),
        ("mysql://u:p/w@db/app", "mysql://***"),
        ("mysql://db/a?x", "mysql://db/a?***"),
        ("https://u:p@mq:15671/prefix", "https://mq:15671/prefix"),
        ("ftp://u:p@mq", "<not a URL>"),
        ("", "<not a URL>"),
        ("é", "<not a URL>"),
    ] {
        assert_eq!(redacted_url(url), shown);
    }
}

#[test]
fn the_url_of_the_management_plug_in_is_checked_while_loading() {
    for (value, advice) in [
        ("amqp://u:p@mq", "must start with `https://` or `http://`"),
        ("https://mq:15671", "names no user"),
        ("https://u:p@mq:15671/?x=1", "has a `?`"),
        ("https://u:p/w@mq", "`@` behind its host"),
    ] {
        let problem = problem_of("RELAY_AMQP_MANAGEMENT_URL", value);
        assert!(problem.contains(advice), "{problem}");
    }
    let plain = ("RELAY_AMQP_MANAGEMENT_URL", "http://u:p@mq:15672");
    assert!(load_with(&[plain]).is_ok());
    assert!(load_with(&[("RELAY_AMQP_MANAGEMENT_URL", "https://u:p@mq:15671/prefix")]).is_ok());
    let errors = load_with(&[plain, ("RELAY_REQUIRE_TLS", "true")])
        .unwrap_err()
        .to_string();
    assert!(
        errors.contains("RELAY_AMQP_MANAGEMENT_URL: is `http://`, without TLS"),
        "{errors}"
    );
    let loopback = ("RELAY_AMQP_MANAGEMENT_URL", "http://u:p@127.0.0.1:15672");
    let required = [
        loopback,
        ("RELAY_REQUIRE_TLS", "true"),
        ("RELAY_AMQP_URL", "amqps://mq"),
        ("RELAY_DATABASE_URL", "sqlite:a.db"),
    ];
    assert!(load_these(&required).is_ok());
}

/// Both are read again while the relay runs: what was no good at the start is none later.
#[test]
fn management_url_and_token_are_checked_whenever_they_are_read() {
    let (url, token) = (NamedTempFile::new().unwrap(), NamedTempFile::new().unwrap());
    let write = |file: &NamedTempFile, text: &str| std::fs::write(file, text).unwrap();
    write(&url, "https://u:p@mq:15671\n");
    write(&token, "0123456789abcdef \n");
    let config = load_these(&[
        ("RELAY_AMQP_MANAGEMENT_URL_FILE", url.path().to_str().unwrap()),
        ("RELAY_ADMIN_TOKEN_FILE", token.path().to_str().unwrap()),
        ("RELAY_REQUIRE_TLS", "true"),
        ("RELAY_AMQP_URL", "amqps://mq"),
        ("RELAY_DATABASE_URL", "sqlite:a.db"),
    ]);
    let config = config.unwrap().config;
    let (held, tls) = (config.amqp_management_url.unwrap(), config.amqp_tls);
    assert!(management_url_now(&held, &tls).is_ok());
    write(&url, "http://u:s3cr3t@mq:15672\n");
    let problem = management_url_now(&held, &tls).unwrap_err();
    assert!(
        problem.contains("RELAY_REQUIRE_TLS forbids") && !problem.contains("s3cr3t"),
        "{problem}"
    );
    let held = config.admin_token.unwrap();
    assert_eq!(token_now(&held).unwrap().expose(), "0123456789abcdef");
    write(&token, "s3cr3t");
    let problem = token_now(&held).unwrap_err();
    assert!(
        problem.starts_with("RELAY_ADMIN_TOKEN_FILE: must have 16") && !problem.contains("s3cr3t"),
        "{problem}"
    );
}

#[test]
fn urls_are_checked_while_loading() {
    for (value, advice) in [
        ("redis://db", "must start with `postgres://`, `postgresql://`"),
        ("amqp://mq", "must start with `postgres://`"),
        ("postgres:db", "must start with"),
        ("postgres://u:a/b@db/app", "`@` behind its host"),
        ("postgres://u:p@db:port/app", "invalid port number"),
        ("sqlite://", "names no file"),
    ] {
        let errors = load_these(&[BROKER, ("RELAY_DATABASE_URL", value)])
            .unwrap_err()
            .to_string();
        assert!(
            errors.starts_with("RELAY_DATABASE_URL: ") && errors.contains(advice),
            "{errors}"
        );
    }
    let good = [
        "postgresql://u@db",
        "postgres:///app?host=/run/postgresql",
        "mysql://u:p@db:3306/app",
        "mariadb://db/app",
        "sqlite:app.db",
        "sqlite::memory:",
        "sqlite:///var/lib/a b/app.db?mode=rwc",
    ];
    for value in good {
        assert!(load_these(&[BROKER, ("RELAY_DATABASE_URL", value)]).is_ok(), "{value}");
    }
    for value in ["amqp://", "amqp:///v", "amqp://u:p@/v"] {
        let errors = load_these(&[DATABASE, ("RELAY_AMQP_URL", value)])
            .unwrap_err()
            .to_string();
        assert!(
            errors.contains("names no host") || errors.contains("empty host"),
            "{errors}"
        );
    }
    assert!(problem_of("RELAY_AMQP_URL", "postgres://mq").contains("`amqp://` or `amqps://`"));
}
