//! What `check` learns from the broker's management plug-in, a real one.

use lapin::ExchangeKind;
use lapin::options::QueueBindOptions;
use lapin::types::FieldTable;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::outbox::{Outbox, SECOND};
use crate::support::{Authority, Kind, Postgres, Rabbit, declare, exchange, replace, unbind, until};

/// A user who may look and nothing else, with the URL of the plug-in.
async fn watcher(rabbit: &Rabbit, scheme: &str) -> String {
    rabbit
        .add_user("watcher", "s3cr3t%2Fword", "/", ["^$", "^$", "^$"])
        .await;
    rabbit.change_password("watcher", "s3cr3t/word").await;
    rabbit.set_tag("watcher", "monitoring").await;
    format!(
        "{scheme}://watcher:s3cr3t%2Fword@localhost:{}",
        rabbit.management().await.port()
    )
}

async fn check(outbox: &Outbox, variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let (code, out, err) = outbox.command(&["check"], variables).await;
    for text in [&out, &err] {
        assert!(!text.contains("s3cr3t"), "{text}");
    }
    (code, out)
}

/// Rows with these exchanges and routing keys.
async fn insert(outbox: &Outbox, rows: &[(&str, &str)]) {
    for (exchange, key) in rows {
        outbox
            .db
            .run(&format!(
                "INSERT INTO outbox (exchange, routing_key, payload) VALUES ({exchange}, '{key}', '{{}}')"
            ))
            .await;
    }
}

async fn said(outbox: &Outbox, variables: &[(&str, &str)], expected: &[&str], code: i32) {
    let (ended, out) = check(outbox, variables).await;
    for text in expected {
        assert!(out.contains(text), "{text:?} is missing: {out}");
    }
    assert_eq!(ended, Some(code), "{out}");
}

#[tokio::test]
async fn check_tells_of_queues_that_can_lose_and_of_rows_that_nobody_takes() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("ours");
    let (ca, file) = (folder.path().join("ca.pem"), folder.path().join("url"));
    replace(&ca, &authority.pem());
    let (certificate, key) = authority.server(&["localhost"]).write(folder.path(), "management");
    let rabbit = Rabbit::start_with_management(Some((&certificate, &key))).await;
    let outbox = Outbox::between(Postgres::shared().await, &rabbit).await;
    replace(&file, &watcher(&rabbit, "https").await);
    let port = free_tls_port(&rabbit, &certificate, &key).await;
    let amqps = format!("amqps://guest:guest@localhost:{port}/%2f");
    let variables = [
        ("RELAY_AMQP_MANAGEMENT_URL_FILE", file.to_str().unwrap()),
        ("RELAY_AMQP_CA_FILE", ca.to_str().unwrap()),
        ("RELAY_AMQP_URL", amqps.as_str()),
    ];
    insert(&outbox, &[("NULL", "good"), ("NULL", "good")]).await;
    let management = format!(
        "ok      management https://localhost:{}: RabbitMQ ",
        rabbit.management().await.port()
    );
    let all_well = [
        management.as_str(),
        "ok      queues of exchange \"events\": \"q\" (quorum)",
        "ok      routing keys of exchange \"events\": a queue takes each of the 1 that 2 unsent rows have",
    ];
    said(&outbox, &variables, &all_well, 0).await;
    let (_, out, err) = outbox.command(&["status", "--json"], &variables).await;
    let report: serde_json::Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
    let version = report["broker"]["version"].as_str().unwrap_or_default();
    let own = rabbit.eval("rabbit_misc:version()").await;
    assert_eq!(format!("\"{}\"", version.trim_start_matches("RabbitMQ ")), own);
    let (_, out, _) = outbox.command(&["status"], &variables).await;
    assert!(out.contains(version) && !out.contains("s3cr3t"), "{out}");

    // A classic queue behind another exchange; an exchange that is not there, and keys without a queue.
    declare(&rabbit.url(), "audit", "ledger", Kind::Classic, &["entry"]).await;
    exchange(&rabbit.url(), "all", ExchangeKind::Fanout, &[], None).await;
    let rows = [
        ("'audit'", "entry"),
        ("'audit'", "page"),
        ("'absent'", "good"),
        ("NULL", "nowhere"),
        ("NULL", "nowhere"),
        ("''", "ledger"),
        ("''", "no such queue"),
        ("'all'", "any"),
    ];
    insert(&outbox, &rows).await;
    let lines = [
        "ok      queues of exchange \"events\": \"q\" (quorum)",
        "FAILED  routing keys of exchange \"events\": no queue takes \"nowhere\" (2 rows)",
        "warning queues of exchange \"audit\": classic: \"ledger\"",
        "x-queue-type: quorum",
        "FAILED  routing keys of exchange \"audit\": no queue takes \"page\" (1 rows)",
        "FAILED  exchange \"absent\": it is not there, and 1 unsent rows go to it",
        "warning queues of the default exchange: classic: \"ledger\"",
        "FAILED  routing keys of the default exchange: no queue takes \"no such queue\" (1 rows)",
        "become dead letters; declare a queue of this name",
        "warning queues of exchange \"all\": none",
        "FAILED  routing keys of exchange \"all\": no queue takes \"any\" (1 rows)",
    ];
    said(&outbox, &variables, &lines, 1).await;

    // What no binding takes goes to an alternate exchange, here by a policy, which not everybody may read.
    rabbit
        .ctl(&[
            "set_policy",
            "rest",
            "^(events|audit)$",
            r#"{"alternate-exchange":"all"}"#,
            "--apply-to",
            "exchanges",
        ])
        .await;
    declare(&rabbit.url(), "rest", "unrouted", Kind::Quorum, &[]).await;
    exchange(&rabbit.url(), "all", ExchangeKind::Fanout, &[], Some("unrouted")).await;
    let hidden = [
        "ok      queues of exchange \"events\": \"q\" (quorum)",
        "ok      routing keys of exchange \"events\": 1 of 2 cannot be judged",
    ];
    said(&outbox, &variables, &hidden, 1).await;
    rabbit.set_tag("watcher", "policymaker, monitoring").await;
    let lines = [
        "ok      queues of exchange \"events\": \"q\" (quorum), \"unrouted\" (quorum)",
        "ok      routing keys of exchange \"events\": a queue takes each",
        "ok      routing keys of exchange \"audit\": a queue takes each",
        "ok      routing keys of exchange \"all\": a queue takes each",
    ];
    said(&outbox, &variables, &lines, 1).await;

    // Another authority, another password, another right.
    let other = folder.path().join("other.pem");
    replace(&other, &Authority::new("others").pem());
    let foreign = [
        variables[0],
        ("RELAY_AMQP_CA_FILE", other.to_str().unwrap()),
        variables[2],
    ];
    said(&outbox, &foreign, &["FAILED  management", "set RELAY_AMQP_CA_FILE"], 1).await;
    rabbit.change_password("watcher", "changed").await;
    said(
        &outbox,
        &variables,
        &["look at user and password in RELAY_AMQP_MANAGEMENT_URL"],
        1,
    )
    .await;
    rabbit.change_password("watcher", "s3cr3t/word").await;
    rabbit.set_tag("watcher", "").await;
    said(&outbox, &variables, &["set_user_tags USER monitoring"], 1).await;
}

/// Makes the broker itself listen with TLS.
async fn free_tls_port(rabbit: &Rabbit, certificate: &std::path::Path, key: &std::path::Path) -> u16 {
    let port = crate::support::free_port();
    rabbit
        .eval(&format!(
            "ok = rabbit_networking:start_ssl_listener({{\"127.0.0.1\", {port}}}, \
             [{{certfile, \"{}\"}}, {{keyfile, \"{}\"}}], 2)",
            certificate.display(),
            key.display()
        ))
        .await;
    port
}

/// As an administrator binds a queue.
async fn bind(rabbit: &Rabbit, exchange: &str, queue: &str, key: &str) {
    let connection = lapin::Connection::connect(&rabbit.url(), lapin::ConnectionProperties::default())
        .await
        .unwrap();
    let channel = connection.create_channel().await.unwrap();
    let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
    channel
        .queue_bind(queue.into(), exchange.into(), key.into(), options, arguments)
        .await
        .unwrap();
    connection.close(200, "done".into()).await.unwrap();
}

/// Over AMQP only a connection that publishes is told of an alarm, which neither `check` nor `status` does.
#[tokio::test]
async fn an_alarm_of_the_broker_is_told_without_a_relay() {
    let rabbit = Rabbit::start_with_management(None).await;
    let url = watcher(&rabbit, "http").await;
    let outbox = Outbox::between(Postgres::shared().await, &rabbit).await;
    let variables = [("RELAY_AMQP_MANAGEMENT_URL", url.as_str())];
    let (_, out, _) = outbox.command(&["status"], &variables).await;
    assert!(out.contains("RabbitMQ") && !out.contains("alarm"), "{out}");
    rabbit.memory_alarm(true).await;
    // The plug-in gathers it every five seconds.
    until("status names it", 60 * SECOND, async || {
        let (_, out, _) = outbox.command(&["status"], &variables).await;
        out.contains("the broker takes no messages (memory alarm of ")
    })
    .await;
    let lines = ["FAILED  alarm: the broker takes no messages (memory alarm of "];
    said(&outbox, &variables, &lines, 1).await;
    rabbit.memory_alarm(false).await;
}

#[tokio::test]
async fn routing_keys_of_every_database_are_compared() {
    let rabbit = Rabbit::start_with_management(None).await;
    let url = watcher(&rabbit, "http").await;
    for outbox in [Outbox::on_mariadb().await, Outbox::on_sqlite().await] {
        declare(&rabbit.url(), "events", "q", Kind::Quorum, &["good"]).await;
        insert(
            &outbox,
            &[
                ("NULL", "good"),
                ("NULL", "Good"),
                ("'events'", "good"),
                ("'absent'", "good"),
            ],
        )
        .await;
        let variables = [
            ("RELAY_AMQP_MANAGEMENT_URL", url.as_str()),
            ("RELAY_AMQP_URL", &rabbit.url()),
        ];
        let lines = [
            "ok      management http://localhost:",
            "FAILED  routing keys of exchange \"events\": no queue takes \"Good\" (1 rows)",
            "FAILED  exchange \"absent\"",
        ];
        said(&outbox, &variables, &lines, 1).await;
        outbox
            .db
            .run("DELETE FROM outbox WHERE exchange = 'absent' OR routing_key <> 'good'")
            .await;
        outbox
            .db
            .run("UPDATE outbox SET routing_key = 'good' WHERE routing_key <> 'good'")
            .await;
    }
    // Where the routing key is made of columns.
    for database in ["postgres", "mariadb", "sqlite"] {
        let outbox = Outbox::without_tables(database, &[]).await;
        outbox
            .db
            .run("CREATE TABLE events (seq bigint NOT NULL PRIMARY KEY, kind varchar(99), body varchar(99), done int NOT NULL DEFAULT 0)")
            .await;
        for (seq, kind) in [(1, "good"), (2, "bad"), (3, "bad")] {
            let row = format!("INSERT INTO events (seq, kind, body) VALUES ({seq}, '{kind}', '{{}}')");
            outbox.db.run(&row).await;
        }
        let variables = [
            ("RELAY_AMQP_MANAGEMENT_URL", url.as_str()),
            ("RELAY_AMQP_URL", &rabbit.url()),
            ("RELAY_AMQP_EXCHANGE", "made"),
            ("RELAY_OUTBOX_TABLE", "events"),
            ("RELAY_OUTBOX_ON_SENT", "delete"),
            ("RELAY_COLUMN_ID", "seq"),
            ("RELAY_COLUMN_PAYLOAD", "body"),
            ("RELAY_ROUTING_KEY", "made.{kind}"),
        ];
        let (_, out, err) = outbox.command(&["migrate"], &variables).await;
        assert!(out.contains("is the application's"), "{out}{err}");
        exchange(&rabbit.url(), "made", ExchangeKind::Topic, &[], None).await;
        declare(&rabbit.url(), "", "made", Kind::Quorum, &[]).await;
        bind(&rabbit, "made", "made", "*.good").await;
        let lines = ["FAILED  routing keys of exchange \"made\": no queue takes \"made.bad\" (2 rows)"];
        said(&outbox, &variables, &lines, 1).await;
        bind(&rabbit, "made", "made", "made.#").await;
        let lines = ["ok      routing keys of exchange \"made\": a queue takes each of the 2 that 3 unsent rows have"];
        said(&outbox, &variables, &lines, 0).await;
        unbind(&rabbit.url(), "made", "made", "made.#").await;
    }
    // On Linux 0.0.0.0 is reached on this machine; by its number alone it is no loopback.
    let outbox = Outbox::on_postgres().await;
    let elsewhere = url.replace("localhost", "0.0.0.0");
    let open = [("RELAY_AMQP_MANAGEMENT_URL", elsewhere.as_str())];
    let (_, out) = check(&outbox, &open).await;
    assert!(out.contains("warning TLS to the management plug-in"), "{out}");
    let (code, out, err) = outbox
        .command(&["check"], &[open[0], ("RELAY_REQUIRE_TLS", "true")])
        .await;
    assert!(
        code == Some(64) && err.contains("RELAY_AMQP_MANAGEMENT_URL") && !err.contains("s3cr3t"),
        "{out}{err}"
    );
}

/// What answers is not the plug-in: nothing is waited for without end, or read without end.
#[tokio::test]
async fn other_servers_are_not_taken_for_the_plug_in() {
    let outbox = Outbox::on_sqlite().await;
    let long = "x".repeat(1 << 20);
    let endless = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        format!("100000\r\n{long}\r\n").repeat(20)
    );
    for (answer, advice) in [
        ("SSH-2.0-s3cr3t\r\n", "is this the port of the management plug-in?"),
        ("", "is this the port of the management plug-in?"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n[s3cr3t]",
            "is not RabbitMQ's management plug-in",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
            "is not RabbitMQ's management plug-in",
        ),
        (
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            "is not RabbitMQ's management plug-in",
        ),
        (
            "HTTP/1.1 302 Found\r\nLocation: http://s3cr3t/\r\nContent-Length: 0\r\n\r\n",
            "302 Found",
        ),
        (&endless, "of more than 16 MiB"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://u:s3cr3t@{}", listener.local_addr().unwrap());
        let answer = answer.to_owned();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            // The client may go in the middle of it.
            let _ = stream.write_all(answer.as_bytes()).await;
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        said(&outbox, &[("RELAY_AMQP_MANAGEMENT_URL", &url)], &[advice], 1).await;
        let request = serving.await.unwrap();
        assert!(request.starts_with("GET /api/overview HTTP/1.1\r\n"), "{request}");
    }
}

#[tokio::test]
async fn a_silent_plug_in_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://u:s3cr3t@{}", listener.local_addr().unwrap());
    let held = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    let outbox = Outbox::on_sqlite().await;
    let variables = [
        ("RELAY_AMQP_MANAGEMENT_URL", url.as_str()),
        ("RELAY_AMQP_CONNECT_TIMEOUT", "3s"),
    ];
    let (code, out) = check(&outbox, &variables).await;
    assert!(code == Some(1) && out.contains("no answer within 3s"), "{out}");
    held.abort();
    until("the listener is closed", 20 * SECOND, async || held.is_finished()).await;
}
