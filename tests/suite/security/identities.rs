//! Who the relay is, told by a certificate. A missing, foreign or expired one is refused, with what to do; and the files of a
//! relay that runs can be replaced.

use std::path::Path;

use crate::outbox::{Outbox, SECOND};
use crate::support::{Authority, MariaDb, Pair, Postgres, Rabbit, Relay, replace, until};

use super::connections::{amqps, folder_of, listen};

const CERTIFICATE: &str = "RELAY_DATABASE_CLIENT_CERT_FILE";
const KEY: &str = "RELAY_DATABASE_CLIENT_KEY_FILE";

/// Failed operations on the database, of all kinds.
async fn database_errors(relay: &Relay) -> f64 {
    let metrics = relay.get("/metrics").await.1;
    let counts = metrics
        .lines()
        .filter(|line| line.starts_with("outbox_relay_store_errors_total{"));
    counts
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

/// The user `certified` of this database must show a certificate by `ours` with that name.
async fn the_database_takes_nobody_else(outbox: &Outbox, url: &str, ours: &Authority, folder: &Path) {
    let (ca, others) = (folder.join("ca.pem"), Authority::new("others"));
    let write = |pair: &Pair| pair.write(folder, "client");
    let (certificate, key) = write(&ours.expired_client("certified"));
    let variables = [
        ("RELAY_DATABASE_URL", url),
        ("RELAY_DATABASE_CA_FILE", ca.to_str().unwrap()),
        (CERTIFICATE, certificate.to_str().unwrap()),
        (KEY, key.to_str().unwrap()),
    ];
    let refused = async |variables: &[(&str, &str)], advice: &str| {
        let (code, out, err) = outbox.command(&["check"], variables).await;
        assert!(code == Some(1) && out.contains(advice), "{advice}: {out}{err}");
        assert!(!out.contains("relay-secret"), "{out}");
    };
    refused(&variables[..2], CERTIFICATE).await;
    refused(&variables, "renew the files of RELAY_DATABASE_CLIENT_CERT_FILE").await;
    write(&others.client("certified"));
    refused(&variables, "renew the files of RELAY_DATABASE_CLIENT_CERT_FILE").await;
    write(&ours.client("stranger"));
    refused(&variables, "login refused").await;

    // A relay that runs with an expired one, until it is renewed.
    write(&ours.expired_client("certified"));
    outbox.insert(1, 10, 2).await;
    let relay = variables
        .iter()
        .fold(outbox.relay(), |relay, (name, value)| relay.env(name, value))
        .spawn();
    until("the relay says what to do", 60 * SECOND, async || {
        let ready = relay.get("/readyz").await.1;
        ready.contains("renew the files of RELAY_DATABASE_CLIENT_CERT_FILE") && database_errors(&relay).await >= 6.0
    })
    .await;
    assert_eq!(outbox.db.unsent().await, 10);
    write(&ours.client("certified"));
    outbox.wait_all_sent(60 * SECOND).await;
    let errors = database_errors(&relay).await;
    assert!(errors < 200.0, "{errors} attempts");
}

#[tokio::test]
async fn postgres_takes_the_relay_by_its_certificate_and_without_a_password() {
    let folder = folder_of("postgres");
    let ours = Authority::new("ours");
    let (ca, hba) = (folder.path().join("ca.pem"), folder.path().join("hba.conf"));
    replace(&ca, &ours.pem());
    replace(
        &hba,
        "hostssl all certified 127.0.0.1/32 cert\nhost all certified 127.0.0.1/32 reject\nhost all all 127.0.0.1/32 password\n",
    );
    let (certificate, key) = ours.server(&["127.0.0.1"]).write(folder.path(), "server");
    let settings = [
        "ssl=on".to_owned(),
        format!("ssl_cert_file={}", certificate.display()),
        format!("ssl_key_file={}", key.display()),
        format!("ssl_ca_file={}", ca.display()),
        format!("hba_file={}", hba.display()),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let postgres = Postgres::start_with(&settings).await;
    let outbox = Outbox::between(&postgres, Rabbit::shared().await).await;
    outbox.db.run("CREATE ROLE certified LOGIN SUPERUSER").await;
    let url = outbox.database_url.replace("//relay:relay-secret@", "//certified@");
    assert_ne!(url, outbox.database_url);
    the_database_takes_nobody_else(&outbox, &url, &ours, folder.path()).await;
}

/// Here the certificate comes beside the password.
#[tokio::test]
async fn mariadb_takes_the_relay_by_its_certificate() {
    let folder = folder_of("mysql");
    let ours = Authority::new("ours");
    let ca = folder.path().join("ca.pem");
    replace(&ca, &ours.pem());
    let (certificate, key) = ours.server(&["127.0.0.1"]).write(folder.path(), "server");
    let settings = [
        format!("ssl-cert={}", certificate.display()),
        format!("ssl-key={}", key.display()),
        format!("ssl-ca={}", ca.display()),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let mariadb = MariaDb::start_with(&settings).await;
    let outbox = Outbox::between_mariadb(&mariadb, Rabbit::shared().await).await;
    outbox
        .db
        .run(
            "CREATE USER certified@'127.0.0.1' IDENTIFIED BY 'relay-secret' REQUIRE SUBJECT '/CN=certified';
             GRANT ALL ON *.* TO certified@'127.0.0.1'",
        )
        .await;
    let url = outbox.database_url.replace("//relay:", "//certified:");
    assert_ne!(url, outbox.database_url);
    the_database_takes_nobody_else(&outbox, &url, &ours, folder.path()).await;
}

#[tokio::test]
async fn the_broker_takes_a_relay_whose_certificate_was_renewed() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    let ca = folder.path().join("ca.pem");
    replace(&ca, &ours.pem());
    let outbox = Outbox::on_postgres().await;
    let client_ca = format!(
        ", {{cacertfile, \"{}\"}}, {{verify, verify_peer}}, {{fail_if_no_peer_cert, true}}",
        ca.display()
    );
    let port = listen(
        Rabbit::shared().await,
        folder.path(),
        &ours.server(&["localhost"]),
        &client_ca,
    )
    .await;
    let url = amqps(&outbox, "localhost", port);
    let write = |pair: &Pair| pair.write(folder.path(), "client");
    let (certificate, key) = write(&others.client("relay"));
    let variables = [
        ("RELAY_AMQP_URL", url.as_str()),
        ("RELAY_AMQP_CA_FILE", ca.to_str().unwrap()),
        ("RELAY_AMQP_CLIENT_CERT_FILE", certificate.to_str().unwrap()),
        ("RELAY_AMQP_CLIENT_KEY_FILE", key.to_str().unwrap()),
    ];
    let advice = "renew the files of RELAY_AMQP_CLIENT_CERT_FILE";
    let (code, out, err) = outbox.command(&["check"], &variables).await;
    assert!(code == Some(1) && out.contains(advice), "{out}{err}");
    assert!(!out.contains("guest:guest"), "{out}");

    write(&ours.expired_client("relay"));
    outbox.insert(1, 10, 2).await;
    let relay = variables
        .iter()
        .fold(outbox.relay(), |relay, (name, value)| relay.env(name, value))
        .spawn();
    let failures = "outbox_relay_broker_connects_total{outcome=\"failure\"}";
    relay.wait_metric(failures, |count| count >= 3.0, 60 * SECOND).await;
    let ready = relay.get("/readyz").await.1;
    assert!(ready.contains(advice), "{ready}");
    assert_eq!(outbox.db.unsent().await, 10);
    write(&ours.client("relay"));
    outbox.wait_all_sent(60 * SECOND).await;
    let attempts = relay.metric(failures).await.unwrap();
    assert!(attempts < 100.0, "{attempts} attempts");
}

/// As it is planned: first the relay trusts both authorities, then the broker has the new certificate. And as it happens: the
/// broker first.
#[tokio::test]
async fn a_certificate_of_the_broker_by_a_new_authority_is_taken_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let authorities = [Authority::new("old"), Authority::new("new"), Authority::new("newer")];
    let [old, new, newer] = &authorities;
    let ca = folder.path().join("ca.pem");
    replace(&ca, &old.pem());
    let (outbox, rabbit) = (Outbox::on_postgres().await, Rabbit::shared().await);
    let port = listen(rabbit, folder.path(), &old.server(&["localhost"]), "").await;
    let relay = outbox
        .relay()
        .env("RELAY_AMQP_URL", amqps(&outbox, "localhost", port))
        .env("RELAY_AMQP_CA_FILE", &ca)
        .spawn();
    outbox.insert(1, 10, 2).await;
    outbox.wait_all_sent(60 * SECOND).await;
    // As a restart of the broker would do it, with the new files.
    let serve = async |authority: &Authority| {
        authority
            .server(&["localhost"])
            .write(folder.path(), &format!("broker-{port}"));
        rabbit.forget_certificates().await;
        rabbit.close_connections_of(&outbox.amqp_url).await;
    };
    let connects = |outcome: &str| format!("outbox_relay_broker_connects_total{{outcome=\"{outcome}\"}}");

    replace(&ca, &format!("{}{}", old.pem(), new.pem()));
    serve(new).await;
    relay
        .wait_metric(&connects("success"), |count| count >= 2.0, 60 * SECOND)
        .await;
    assert_eq!(relay.metric(&connects("failure")).await, Some(0.0));
    replace(&ca, &new.pem());
    outbox.insert(11, 10, 2).await;
    outbox.wait_all_sent(60 * SECOND).await;

    serve(newer).await;
    relay
        .wait_metric(&connects("failure"), |count| count >= 3.0, 60 * SECOND)
        .await;
    let ready = relay.get("/readyz").await.1;
    assert!(ready.contains("set RELAY_AMQP_CA_FILE"), "{ready}");
    outbox.insert(21, 10, 2).await;
    assert_eq!(outbox.db.unsent().await, 10);
    replace(&ca, &newer.pem());
    outbox.wait_all_sent(60 * SECOND).await;
    let attempts = relay.metric(&connects("failure")).await.unwrap();
    assert!(attempts < 100.0, "{attempts} attempts");
}
