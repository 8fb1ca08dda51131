//! Marked secrets are fed through every way an error can take, with all that the libraries say at their loudest, and looked
//! for in all that comes out.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::outbox::{Outbox, SECOND};
use crate::support::{Authority, Consumer, MariaDb, Rabbit, Relay, replace};

/// Every secret of these tests has it within: password, token, key, body.
const MARK: &str = "s3cr3t0mark";

const LOUD: &str = "trace,lapin=trace,sqlx=trace,sqlx::query=trace,sqlx::postgres=trace,rustls=trace,hyper=trace,h2=trace,\
                    tokio=trace,mio=trace,async_rs=trace,tcp_stream=trace,lapin::returned_messages=trace";

/// As text, in base64 (of each alignment, without its ends), and as numbers in a list.
fn reveals(text: &str) -> Option<&str> {
    let numbers: Vec<String> = MARK.bytes().map(|byte| byte.to_string()).collect();
    let hexes: String = MARK.bytes().map(|byte| format!("{byte:02x}")).collect();
    let mut shapes = vec![MARK.to_owned(), numbers.join(", "), numbers.join(","), hexes];
    for padding in 0..3 {
        let encoded = STANDARD.encode(format!("{}{MARK}", "x".repeat(padding)));
        shapes.push(encoded[4..12].to_owned());
    }
    text.lines()
        .find(|line| shapes.iter().any(|shape| line.contains(shape.as_str())))
}

fn clean(what: &str, text: &str) {
    if let Some(line) = reveals(text) {
        panic!("{what} reveals the secret: {line}");
    }
}

/// Runs a command to its end, and looks at what it says.
async fn silent(args: &[&str], variables: &[(&str, &str)]) -> String {
    let mut env = vec![
        ("RELAY_LOG", LOUD),
        ("RELAY_AMQP_URL", "amqp://127.0.0.1:1"),
        ("RELAY_DATABASE_URL", "postgres://nobody@127.0.0.1:1/none"),
        ("RELAY_DATABASE_TIMEOUT", "2s"),
    ];
    env.extend_from_slice(variables);
    let (status, out, err) = Relay::run_to_end(args, &env).await;
    let text = format!("{out}{err}");
    clean(
        &format!("{args:?} ({:?}) of {}", status.code(), without(variables)),
        &text,
    );
    text
}

fn without(variables: &[(&str, &str)]) -> String {
    variables.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

/// Asks for a page with this token.
async fn ask(address: SocketAddr, path: &str, token: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: r\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Runs a relay at its loudest until it says `sign`; looks at its pages, its log, and what commands say of it.
async fn runs_silently(variables: &[(&str, &str)], sign: &str) {
    let token = format!("{MARK}-0123456789");
    let mut env = vec![
        ("RELAY_LOG", LOUD),
        ("RELAY_ADMIN_TOKEN", token.as_str()),
        ("RELAY_DATABASE_TIMEOUT", "5s"),
    ];
    env.extend_from_slice(variables);
    let mut relay = env
        .iter()
        .fold(Relay::command(), |relay, (name, value)| relay.env(name, value))
        .spawn();
    crate::support::until(sign, 60 * SECOND, async || relay.log_text().contains(sign)).await;
    let address = relay.admin().await;
    for path in ["/status", "/metrics", "/readyz", "/livez", "/nothing"] {
        for token in [&token, "wrong-token-of-some-length"] {
            clean(path, &ask(address, path, token).await);
        }
    }
    let listen = address.to_string();
    env.push(("RELAY_ADMIN_LISTEN", &listen));
    for args in [
        &["check"][..],
        &["status", "--json"],
        &["status"],
        &["dead-letters", "list", "--json"],
        &["migrate", "--print-grants"],
        &["healthcheck", "--ready"],
    ] {
        silent(args, &env).await;
    }
    relay.sigterm();
    relay.wait(60 * SECOND).await;
    clean(sign, &format!("{}{}", relay.log_text(), relay.stdout_text()));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_variables_are_not_quoted() {
    for shape in [
        format!("password {MARK}!"),
        format!("{:?}", format!("\0u\0{MARK}").as_bytes()),
        STANDARD.encode(format!("user:{MARK}")),
    ] {
        assert!(reveals(&shape).is_some(), "{shape} would be overlooked");
    }
    let folder = tempfile::tempdir().unwrap();
    let urls = [
        "u:MARK@h/db",
        "postgres:/u:MARK@h/db",
        "postgres://u:MARK/x@h/db",
        "postgres://u:MARK?x@h/db",
        "postgres://u:MARK#x@h/db",
        "postgres://u:MARK@h:port/db",
        "postgres://u:MARK@[::1/db",
        "postgres://u:x@127.0.0.1:1/db?sslmode=MARK",
        "postgres://u:x@127.0.0.1:1/db?password=MARK&port=MARK",
        "postgres://u:x@127.0.0.1:1/db?password=x&MARK&token=MARK",
        "postgres://u:MARK@127.0.0.1:1/db",
        "mysql://u:MARK@127.0.0.1:1",
        "mysql://u:MARK@127.0.0.1:1/db?ssl-mode=MARK",
        "mysql://u:MARK@127.0.0.1:1/db?charset=MARK",
        "mysql://u:MARK@127.0.0.1:1/db",
        "amqp://u:MARK@",
        "amqp://u:MARK/x@h",
        "amqp://u:MARK@h:port",
        "amqp://u:MARK@127.0.0.1:1/a/b/c",
        "amqp://u:MARK@127.0.0.1:1/%zz",
        "amqp://u:x@127.0.0.1:1/v?heartbeat=MARK",
        "amqp://u:x@127.0.0.1:1/v?auth_mechanism=MARK&x=MARK",
        "amqp://u:MARK@127.0.0.1:1,amqp://v:a,MARK@h",
        "amqps://u:MARK@127.0.0.1:1",
        "sqlite:",
    ];
    for url in urls {
        let url = url.replace("MARK", MARK);
        let file = folder.path().join("secret");
        replace(&file, &url);
        let of =
            |name: &'static str, file_name: &'static str| [(name, url.as_str()), (file_name, file.to_str().unwrap())];
        for (variable, in_file) in [
            of("RELAY_DATABASE_URL", "RELAY_DATABASE_URL_FILE"),
            of("RELAY_AMQP_URL", "RELAY_AMQP_URL_FILE"),
        ]
        .map(|[variable, in_file]| (variable, in_file))
        {
            silent(&["check"], &[variable]).await;
            silent(&["migrate"], &[variable]).await;
            silent(&["migrate", "--print-grants"], &[(variable.0, ""), in_file]).await;
        }
    }
    let file = folder.path().join("secret");
    let path = file.to_str().unwrap();
    replace(&file, &format!("{MARK}\n\u{7}\n{MARK}"));
    for variable in [
        ("RELAY_ADMIN_TOKEN", MARK),
        ("RELAY_ADMIN_TOKEN_FILE", path),
        ("RELAY_CONFIG_FILE", path),
        ("RELAY_AMQP_CA_FILE", path),
        ("RELAY_AMQP_CLIENT_KEY_FILE", path),
        ("RELAY_DATABASE_CLIENT_KEY_FILE", path),
        ("RELAY_ADMIN_TLS_KEY_FILE", path),
    ] {
        silent(&["check"], &[variable]).await;
    }
    for url in [
        "u:MARK@h",
        "http://MARK@127.0.0.1:1/?MARK#MARK",
        "http://u:MARK/x@h",
        "https://u:MARK@h:port",
        "http://u:MARK@127.0.0.1:1",
        "https://u:MARK@127.0.0.1:1",
    ] {
        silent(&["check"], &[("RELAY_AMQP_MANAGEMENT_URL", &url.replace("MARK", MARK))]).await;
        replace(&file, &url.replace("MARK", MARK));
        silent(&["status", "--json"], &[("RELAY_AMQP_MANAGEMENT_URL_FILE", path)]).await;
    }
    for toml in [
        "database_url = \"postgres://u:MARK@h/db",
        "database_url = [\"MARK\"]",
        "[database]\nurl = { password = \"MARK\" }",
        "admin_token = \"MARK\"\nadmin_token = \"MARK\"",
        "MARK",
    ] {
        replace(&file, &toml.replace("MARK", MARK));
        silent(&["check"], &[("RELAY_CONFIG_FILE", path)]).await;
    }
    let urls = [
        ("RELAY_DATABASE_URL", format!("postgres://u:{MARK}@127.0.0.1:1/db")),
        ("RELAY_AMQP_URL", format!("amqp://u:{MARK}@127.0.0.1:1")),
    ];
    let urls: Vec<(&str, &str)> = urls.iter().map(|(name, url)| (*name, url.as_str())).collect();
    for args in [
        &["--help"][..],
        &["run", "--help"],
        &["--version"],
        &["run", "--unknown"],
        &["run", &format!("postgres://u:{MARK}@h/db")],
        &["run", &format!("--unknown=amqp://u:{MARK}@h")],
        &["check", "--", &format!("amqp://u:{MARK}@h")],
        &["man"],
        &["status", "--json"],
    ] {
        silent(args, &urls).await;
    }
}

/// Where others than the relay read what may be a secret: the driver its file of passwords, OpenTelemetry its variables.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_libraries_read_by_themselves_is_not_quoted() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pgpass");
    // The first line is a good one for another server, the second has not all its fields.
    replace(&file, &format!("db:5432:app:u:{MARK}\n127.0.0.1:1:{MARK}\n"));
    let variables = [
        ("PGPASSFILE", file.to_str().unwrap()),
        ("RELAY_DATABASE_URL", "postgres://u@127.0.0.1:1/db"),
    ];
    silent(&["check"], &variables).await;
    for endpoint in ["u:MARK@h", "http://u:MARK@[::1"] {
        let endpoint = endpoint.replace("MARK", MARK);
        let headers = format!("authorization=Bearer {MARK},{MARK}%zz,x={MARK}\n");
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_EXPORTER_OTLP_HEADERS", headers.as_str()),
            ("RELAY_DATABASE_URL", "postgres://nobody@127.0.0.1:1/none"),
            ("RELAY_AMQP_URL", "amqp://127.0.0.1:1"),
        ];
        runs_silently(&variables, "OTEL_EXPORTER_OTLP_ENDPOINT is not understood").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_logins_and_failed_handshakes_tell_no_password() {
    let outbox = Outbox::on_postgres().await;
    let mariadb = MariaDb::shared().await.create_database().await;
    let wrong = |url: &str, password: &str| {
        let mut url = url::Url::parse(url).unwrap();
        url.set_password(Some(password)).unwrap();
        String::from(url)
    };
    let (postgres, mariadb) = (wrong(&outbox.database_url, MARK), wrong(&mariadb, MARK));
    let broker = wrong(&outbox.amqp_url, MARK);
    for (database, sign) in [
        (&postgres, "password authentication failed"),
        (&mariadb, "Access denied"),
    ] {
        let urls = [
            ("RELAY_DATABASE_URL", database.as_str()),
            ("RELAY_AMQP_URL", broker.as_str()),
        ];
        runs_silently(&urls, sign).await;
        runs_silently(&urls, "ACCESS_REFUSED").await;
    }
    // Neither server speaks TLS here.
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("ours");
    let ca = folder.path().join("ca.pem");
    replace(&ca, &authority.pem());
    let ca = ca.to_str().unwrap();
    let secured = broker.replace("amqp://", "amqps://");
    runs_silently(
        &[
            ("RELAY_DATABASE_URL", postgres.as_str()),
            ("RELAY_DATABASE_CA_FILE", ca),
            ("RELAY_AMQP_URL", secured.as_str()),
            ("RELAY_AMQP_CA_FILE", ca),
        ],
        "does not speak TLS",
    )
    .await;
}

/// What succeeds is logged as well: passwords in logins, bodies in messages and in rows.
#[tokio::test(flavor = "multi_thread")]
async fn logins_bodies_and_dead_letters_are_not_in_the_log() {
    for outbox in [Outbox::on_postgres().await, Outbox::on_mariadb().await] {
        let user = format!("m{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let password = format!("{MARK}-password");
        let (at, create) = match outbox.database_url.starts_with("mysql") {
            true => (
                "@'127.0.0.1'",
                format!("CREATE USER {user}@'127.0.0.1' IDENTIFIED BY '{password}'"),
            ),
            false => ("", format!("CREATE ROLE {user} LOGIN PASSWORD '{password}'")),
        };
        outbox.db.run(&create).await;
        for table in [
            "outbox",
            "outbox_relay_shares",
            "outbox_relay_members",
            "outbox_relay_pauses",
            "outbox_relay_errors",
        ] {
            let grant = format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {user}{at}");
            outbox.db.run(&grant).await;
        }
        let mut database = url::Url::parse(&outbox.database_url).unwrap();
        database.set_username(&user).unwrap();
        database.set_password(Some(&password)).unwrap();
        let broker = Rabbit::shared()
            .await
            .add_user(&user, &password, &outbox.amqp_url, ["^$", "^events$", "^$"])
            .await;
        for (key, headers) in [("good", "{}"), ("nowhere", "{}"), ("good", "[]")] {
            outbox
                .db
                .run(&format!(
                    "INSERT INTO outbox (routing_key, headers, payload) VALUES ('{key}', '{headers}', '{{\"card\": \"{MARK}\"}}')"
                ))
                .await;
        }
        if at.is_empty() {
            // As debuggers of a database leave them behind: heard by whoever changes a row.
            let loud = "CREATE FUNCTION loud() RETURNS trigger LANGUAGE plpgsql
                            AS $$ BEGIN RAISE WARNING 'row %', NEW.payload; RETURN NEW; END $$;
                        CREATE TRIGGER loud BEFORE UPDATE ON outbox FOR EACH ROW EXECUTE FUNCTION loud()";
            outbox.db.run(loud).await;
        }
        let consumer = Consumer::start(&outbox.amqp_url, "q");
        let variables = [
            ("RELAY_DATABASE_URL", database.as_str()),
            ("RELAY_AMQP_URL", broker.as_str()),
            ("RELAY_AMQP_EXCHANGE", "events"),
            ("RELAY_RETRY_MIN_DELAY", "10ms"),
            ("RELAY_RETRY_MAX_ATTEMPTS", "2"),
        ];
        runs_silently(&variables, "dead letter").await;
        consumer.wait_distinct(1, 30 * SECOND).await;
    }
}

/// The one panic that can be had from outside: `println!` where the disk is full, or nobody reads any more.
#[tokio::test]
async fn an_output_that_cannot_be_written_ends_the_program_with_one_and_at_most_a_line() {
    let run = async |output: std::process::Stdio| {
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_outbox-relay"))
            .arg("check")
            .env_clear()
            .env("RUST_BACKTRACE", "full")
            .env("RELAY_LOG", LOUD)
            .env("RELAY_LOG_FORMAT", "json")
            .env("RELAY_AMQP_URL", format!("amqp://u:{MARK}@127.0.0.1:1"))
            .env("RELAY_DATABASE_URL", format!("postgres://u:{MARK}@127.0.0.1:1/none"))
            .stdout(output)
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .await
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        clean("a panic", &text);
        // The libraries are loud.
        let lines = text.lines().filter(|line| !line.starts_with('{')).map(str::to_owned);
        (output.status.code(), lines.collect::<Vec<_>>())
    };
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let (code, lines) = run(full.into()).await;
    assert!(lines.len() == 1 && lines[0].contains("disk full"), "{lines:?}");
    assert_eq!(code, Some(1));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(run(writer.into()).await, (Some(1), Vec::new()));
}
