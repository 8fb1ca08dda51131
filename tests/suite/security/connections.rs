//! Connections over TLS: who is not trusted is refused, with what to do about it, and taken once it is mended, without a
//! restart.

use std::path::Path;

use crate::outbox::{Outbox, SECOND};
use crate::support::{Authority, MariaDb, Pair, Postgres, Rabbit, User, free_port, replace, until};

/// A folder whose files the server of this account can read.
pub(super) fn folder_of(account: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    if let Some(user) = User::instead_of_root(account) {
        std::os::unix::fs::chown(folder.path(), Some(user.uid), Some(user.gid)).unwrap();
    }
    folder
}

/// Makes the shared broker listen with this certificate on one more port, and returns the port.
pub(super) async fn listen(rabbit: &Rabbit, folder: &Path, pair: &Pair, more: &str) -> u16 {
    let port = free_port();
    let (certificate, key) = pair.write(folder, &format!("broker-{port}"));
    rabbit
        .eval(&format!(
            "ok = rabbit_networking:start_ssl_listener({{\"127.0.0.1\", {port}}}, \
             [{{certfile, \"{}\"}}, {{keyfile, \"{}\"}}{more}], 2)",
            certificate.display(),
            key.display()
        ))
        .await;
    port
}

/// The URL of the same virtual host over TLS.
pub(super) fn amqps(outbox: &Outbox, host: &str, port: u16) -> String {
    let (_, vhost) = outbox.amqp_url.rsplit_once('/').unwrap();
    format!("amqps://guest:guest@{host}:{port}/{vhost}")
}

#[tokio::test]
async fn a_broker_that_cannot_be_trusted_is_refused_and_taken_once_mended() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    let (ca, rabbit) = (folder.path().join("ca.pem"), Rabbit::shared().await);
    replace(&ca, &ours.pem());
    let outbox = Outbox::on_postgres().await;
    let good = listen(
        rabbit,
        folder.path(),
        &ours.server(&["localhost", "broker.example"]),
        "",
    )
    .await;
    let expired = listen(rabbit, folder.path(), &ours.expired_server(&["localhost"]), "").await;
    let elsewhere = listen(rabbit, folder.path(), &ours.server(&["broker.example"]), "").await;
    let foreign = listen(rabbit, folder.path(), &others.server(&["localhost"]), "").await;
    let client_ca = format!(
        ", {{cacertfile, \"{}\"}}, {{verify, verify_peer}}, {{fail_if_no_peer_cert, true}}",
        ca.display()
    );
    let strict = listen(rabbit, folder.path(), &ours.server(&["localhost"]), &client_ca).await;
    let ca_file = ("RELAY_AMQP_CA_FILE", ca.to_str().unwrap());

    for (port, advice) in [
        (expired, "has expired; renew it"),
        (elsewhere, "RELAY_AMQP_SERVER_NAME"),
        (foreign, "set RELAY_AMQP_CA_FILE"),
        (strict, "RELAY_AMQP_CLIENT_CERT_FILE"),
    ] {
        let url = amqps(&outbox, "localhost", port);
        let (code, out, err) = outbox.command(&["check"], &[("RELAY_AMQP_URL", &url), ca_file]).await;
        assert!(code == Some(1) && out.contains(advice), "{advice}: {out}{err}");
        assert!(!out.contains("guest:guest"), "{out}");
    }
    let (client, key) = ours.client("relay").write(folder.path(), "client");
    let named = [
        (good, ("RELAY_AMQP_SERVER_NAME", "broker.example")),
        (elsewhere, ("RELAY_AMQP_SERVER_NAME", "broker.example")),
        (strict, ("RELAY_AMQP_CLIENT_CERT_FILE", client.to_str().unwrap())),
    ];
    for (port, variable) in named {
        let url = amqps(&outbox, "localhost", port);
        let mut more = vec![("RELAY_AMQP_URL", url.as_str()), ca_file, variable];
        if port == strict {
            more.push(("RELAY_AMQP_CLIENT_KEY_FILE", key.to_str().unwrap()));
        }
        let (_, out, err) = outbox.command(&["check"], &more).await;
        assert!(out.contains("logged in"), "{variable:?}: {out}{err}");
    }

    // A running relay meets the foreign broker first, with a bounded number of attempts; then the file is put right.
    outbox.insert(1, 20, 3).await;
    let relay = outbox
        .relay()
        .env("RELAY_AMQP_URL", amqps(&outbox, "localhost", foreign))
        .env(ca_file.0, ca_file.1)
        .env("RELAY_REQUIRE_TLS", "true")
        .spawn();
    let failures = "outbox_relay_broker_connects_total{outcome=\"failure\"}";
    relay.wait_metric(failures, |count| count >= 3.0, 60 * SECOND).await;
    assert_eq!(outbox.db.unsent().await, 20);
    replace(&ca, &others.pem());
    outbox.wait_all_sent(60 * SECOND).await;
    let attempts = relay.metric(failures).await.unwrap();
    assert!(attempts < 100.0, "{attempts} attempts");
}

#[tokio::test]
async fn a_database_server_that_cannot_be_trusted_is_refused_and_taken_once_mended() {
    let folder = folder_of("postgres");
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    let ca = folder.path().join("ca.pem");
    replace(&ca, &ours.pem());
    let (certificate, key) = ours.expired_server(&["127.0.0.1"]).write(folder.path(), "server");
    let settings = [
        "ssl=on".to_owned(),
        format!("ssl_cert_file={}", certificate.display()),
        format!("ssl_key_file={}", key.display()),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let postgres = Postgres::start_with(&settings).await;
    let outbox = Outbox::between(&postgres, Rabbit::shared().await).await;
    // A role of its own: this test must not lose its connections with the old password.
    outbox
        .db
        .run("CREATE ROLE rotated LOGIN SUPERUSER PASSWORD 'relay-secret'")
        .await;
    let url = outbox.database_url.replace("//relay:", "//rotated:");
    assert_ne!(url, outbox.database_url);
    // The URL is in a file, so that a new password needs no restart.
    let url_file = folder.path().join("url");
    replace(&url_file, &url);
    let variables = [
        ("RELAY_DATABASE_URL", ""),
        ("RELAY_DATABASE_URL_FILE", url_file.to_str().unwrap()),
        ("RELAY_DATABASE_CA_FILE", ca.to_str().unwrap()),
    ];
    let refused = async |advice: &str| {
        let (code, out, err) = outbox.command(&["check"], &variables).await;
        assert!(code == Some(1) && out.contains(advice), "{advice}: {out}{err}");
        assert!(!out.contains("relay-secret"), "{out}");
    };
    let serve = async |pair: &Pair| {
        pair.write(folder.path(), "server");
        outbox.db.run("SELECT pg_reload_conf()").await;
    };
    refused("has expired; renew it").await;
    serve(&ours.server(&["db.example"])).await;
    until(
        "the server has the certificate for another name",
        20 * SECOND,
        async || {
            let (_, out, _) = outbox.command(&["check"], &variables).await;
            out.contains("connect by a name that is in it")
        },
    )
    .await;
    serve(&others.server(&["127.0.0.1"])).await;
    outbox.insert(1, 10, 2).await;
    let relay = variables
        .iter()
        .fold(outbox.relay(), |relay, (name, value)| relay.env(name, value))
        .spawn();
    until("the relay says what to do", 60 * SECOND, async || {
        relay.get("/readyz").await.1.contains("set RELAY_DATABASE_CA_FILE")
    })
    .await;
    assert_eq!(outbox.db.unsent().await, 10);
    serve(&ours.server(&["127.0.0.1"])).await;
    outbox.wait_all_sent(60 * SECOND).await;

    // A new password, in the server and then in the file.
    outbox.db.run("ALTER ROLE rotated PASSWORD 'relay-renewed'").await;
    outbox
        .db
        .run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'outbox-relay'")
        .await;
    until("the relay is refused", 60 * SECOND, async || {
        relay.get("/readyz").await.1.contains("look at user and password")
    })
    .await;
    outbox.insert(11, 10, 2).await;
    replace(&url_file, &url.replace("relay-secret", "relay-renewed"));
    outbox.wait_all_sent(60 * SECOND).await;
    for secret in ["relay-secret", "relay-renewed"] {
        assert!(!relay.log_text().contains(secret), "{}", relay.log_text());
    }
}

/// `SSL_CERT_FILE` stands for the system's authorities.
#[tokio::test]
async fn a_mode_in_the_url_goes_by_the_systems_authorities_or_by_those_of_the_url() {
    let folder = folder_of("mysql");
    let ours = Authority::new("ours");
    let (certificate, key) = ours.server(&["127.0.0.1"]).write(folder.path(), "server");
    let (ca, others) = (folder.path().join("ca.pem"), folder.path().join("others.pem"));
    replace(&ca, &ours.pem());
    replace(&others, &Authority::new("others").pem());
    let [ca, others] = [&ca, &others].map(|file| file.to_str().unwrap());
    let settings = [
        format!("ssl-cert={}", certificate.display()),
        format!("ssl-key={}", key.display()),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let mariadb = MariaDb::start_with(&settings).await;
    let outbox = Outbox::between_mariadb(&mariadb, Rabbit::shared().await).await;
    let check = async |query: &str, system: &str, required: &str| {
        let url = format!("{}?{query}", outbox.database_url);
        let variables = [
            ("RELAY_DATABASE_URL", url.as_str()),
            ("SSL_CERT_FILE", system),
            ("RELAY_REQUIRE_TLS", required),
        ];
        outbox.command(&["check"], &variables).await
    };
    let of_url = format!("ssl-ca={ca}");
    for (query, system, required) in [
        ("ssl-mode=VERIFY_IDENTITY", ca, "false"),
        (&*format!("ssl-mode=VERIFY_IDENTITY&{of_url}"), others, "false"),
        (&*format!("ssl-mode=VERIFY_CA&{of_url}"), others, "true"),
    ] {
        let (code, out, err) = check(query, system, required).await;
        assert_eq!(code, Some(0), "{query}: {out}{err}");
    }
    let (code, out, _) = check("ssl-mode=VERIFY_IDENTITY", others, "false").await;
    assert!(code == Some(1) && out.contains("set RELAY_DATABASE_CA_FILE"), "{out}");
}

#[tokio::test]
async fn without_tls_nothing_leaves_the_machine_where_it_is_required() {
    let outbox = Outbox::on_postgres().await;
    for (name, url) in [
        ("RELAY_AMQP_URL", "amqp://guest:s3cr3t-guest@broker.example/%2f"),
        (
            "RELAY_DATABASE_URL",
            "postgres://u:s3cr3t-guest@db.example/app?sslmode=prefer",
        ),
        (
            "RELAY_DATABASE_URL",
            "mysql://u:s3cr3t-guest@db.example/app?ssl-mode=DISABLED",
        ),
    ] {
        let (code, out, err) = outbox
            .command(
                &["run"],
                &[
                    (name, url),
                    ("RELAY_REQUIRE_TLS", "true"),
                    ("RELAY_ADMIN_LISTEN", "127.0.0.1:0"),
                ],
            )
            .await;
        assert!(code == Some(64) && err.contains("RELAY_REQUIRE_TLS"), "{out}{err}");
        assert!(!err.contains("s3cr3t"), "{err}");
    }
    let (code, out, err) = outbox.command(&["check"], &[("RELAY_REQUIRE_TLS", "true")]).await;
    assert_eq!(code, Some(0), "the loopback may: {out}{err}");
}

/// On Linux 0.0.0.0 is reached on this machine; by its number alone it is no loopback.
#[tokio::test]
async fn check_warns_of_connections_to_another_machine_without_tls() {
    for outbox in [Outbox::on_postgres().await, Outbox::on_mariadb().await] {
        let elsewhere = |url: &str| url.replace("127.0.0.1", "0.0.0.0");
        let (database, broker) = (elsewhere(&outbox.database_url), elsewhere(&outbox.amqp_url));
        let urls = [
            ("RELAY_DATABASE_URL", database.as_str()),
            ("RELAY_AMQP_URL", broker.as_str()),
        ];
        let (code, out, err) = outbox.command(&["check"], &urls).await;
        assert_eq!(code, Some(0), "{out}{err}");
        for what in ["database", "broker"] {
            assert!(out.contains(&format!("warning TLS to the {what}")), "{out}");
        }
        let (_, out, _) = outbox.command(&["check"], &[]).await;
        assert!(!out.contains("TLS to"), "{out}");
    }
}

#[tokio::test]
async fn a_mariadb_server_that_cannot_be_trusted_is_refused_and_taken_once_mended() {
    let folder = folder_of("mysql");
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    let ca = folder.path().join("ca.pem");
    replace(&ca, &others.pem());
    let (certificate, key) = ours.server(&["127.0.0.1"]).write(folder.path(), "server");
    let settings = [
        format!("ssl-cert={}", certificate.display()),
        format!("ssl-key={}", key.display()),
        "require-secure-transport=ON".to_owned(),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let mariadb = MariaDb::start_with(&settings).await;
    let outbox = Outbox::between_mariadb(&mariadb, Rabbit::shared().await).await;
    let ca_file = ("RELAY_DATABASE_CA_FILE", ca.to_str().unwrap());
    let (code, out, err) = outbox.command(&["check"], &[ca_file]).await;
    assert!(
        code == Some(1) && out.contains("set RELAY_DATABASE_CA_FILE"),
        "{out}{err}"
    );
    assert!(!out.contains("relay-secret"), "{out}");
    outbox.insert(1, 10, 2).await;
    let relay = outbox
        .relay()
        .env(ca_file.0, ca_file.1)
        .env("RELAY_REQUIRE_TLS", "true")
        .spawn();
    until("the relay says what to do", 60 * SECOND, async || {
        relay.get("/readyz").await.1.contains("set RELAY_DATABASE_CA_FILE")
    })
    .await;
    assert_eq!(outbox.db.unsent().await, 10);
    replace(&ca, &ours.pem());
    outbox.wait_all_sent(60 * SECOND).await;
}

/// SASL EXTERNAL: who the relay is, is in its certificate, and there is no password.
#[tokio::test]
async fn a_certificate_can_take_the_place_of_the_brokers_password() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, ca) = (Authority::new("ours"), folder.path().join("ca.pem"));
    replace(&ca, &ours.pem());
    let rabbit = Rabbit::shared().await;
    rabbit.allow_external().await;
    let outbox = Outbox::on_postgres().await;
    let user = format!("by-certificate-{}", uuid::Uuid::new_v4().simple());
    rabbit
        .add_user(&user, "unused", &outbox.amqp_url, ["^$", "^events$", "^$"])
        .await;
    let verify = format!(", {{cacertfile, \"{}\"}}, {{verify, verify_peer}}", ca.display());
    let port = listen(rabbit, folder.path(), &ours.server(&["localhost"]), &verify).await;
    let (_, vhost) = outbox.amqp_url.rsplit_once('/').unwrap();
    let url = format!("amqps://localhost:{port}/{vhost}?auth_mechanism=external");
    let (known, known_key) = ours.client(&user).write(folder.path(), "known");
    let (stranger, stranger_key) = ours.client("stranger").write(folder.path(), "stranger");
    let variables = [
        ("RELAY_AMQP_URL", url.as_str()),
        ("RELAY_AMQP_CA_FILE", ca.to_str().unwrap()),
        ("RELAY_AMQP_CLIENT_CERT_FILE", stranger.to_str().unwrap()),
        ("RELAY_AMQP_CLIENT_KEY_FILE", stranger_key.to_str().unwrap()),
    ];
    let (code, out, err) = outbox.command(&["check"], &variables).await;
    assert!(code == Some(1) && out.contains("ACCESS_REFUSED"), "{out}{err}");
    assert!(out.contains("the user is the name in the relay's certificate"), "{out}");
    let named = [
        variables[0],
        variables[1],
        ("RELAY_AMQP_CLIENT_CERT_FILE", known.to_str().unwrap()),
        ("RELAY_AMQP_CLIENT_KEY_FILE", known_key.to_str().unwrap()),
    ];
    let (code, out, err) = outbox.command(&["check"], &named).await;
    assert_eq!(code, Some(0), "{out}{err}");
    outbox.insert(1, 10, 2).await;
    let _relay = named
        .iter()
        .fold(outbox.relay(), |relay, (name, value)| relay.env(name, value))
        .spawn();
    outbox.wait_all_sent(60 * SECOND).await;
}
