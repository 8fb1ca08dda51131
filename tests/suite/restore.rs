//! A dump, restored into a new server behind the same name.

use std::net::SocketAddr;
use std::process::Stdio;

use sqlx::{AssertSqlSafe, Executor};
use tokio::process::Command;

use crate::outbox::{Outbox, SECOND, judge, session};
use crate::support::{Consumer, MariaDb, Postgres, Proxy, until};

/// Copies a database with Debian's own tools.
async fn copy(from: &str, to: &str) {
    let mut dump = Command::new("pg_dump")
        .arg(from)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("pg_dump starts");
    let text: Stdio = dump.stdout.take().expect("piped").try_into().expect("a pipe");
    let psql = Command::new("psql")
        .args(["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", to])
        .stdin(text)
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .output();
    let (dump, psql) = tokio::join!(dump.wait(), psql);
    let psql = psql.expect("psql starts");
    assert!(dump.expect("pg_dump ends").success());
    assert!(psql.status.success(), "{}", String::from_utf8_lossy(&psql.stderr));
}

/// Ids begin anew, below those that the relay has seen: no cursor finds them, and nothing of the old server is asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_goes_on_after_a_restore_into_a_new_server_whose_ids_begin_anew() {
    let (old, new) = tokio::join!(Postgres::start(), Postgres::start());
    let outbox = Outbox::on(old.create_database().await).await;
    let address = |server: &Postgres| SocketAddr::from(([127, 0, 0, 1], server.port()));
    let line = Proxy::start(address(&old)).await;
    let relay = outbox
        .relay()
        .env("RELAY_DATABASE_URL", line.through(&outbox.database_url))
        .env("RELAY_POLL_SWEEP_INTERVAL", "1s")
        .env("RELAY_OUTBOX_ON_SENT", "delete")
        .spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    outbox.insert(0, 2_000, 20).await;
    outbox.wait_all_sent(30 * SECOND).await;
    // Unsent at the time of the dump.
    outbox
        .db
        .run("ALTER TABLE outbox ALTER available_at SET DEFAULT now() + interval '1 hour'")
        .await;
    outbox.insert(2_000, 100, 20).await;

    line.refuse(true);
    line.cut();
    let name = outbox.database_url.rsplit('/').next().expect("a name");
    let create = AssertSqlSafe(format!("CREATE DATABASE {name}"));
    session(&new.admin_url()).await.execute(create).await.expect("created");
    let there = new.admin_url().replace("/postgres", &format!("/{name}"));
    copy(&outbox.database_url, &there).await;
    old.stop().await;
    let anew = "ALTER TABLE outbox ALTER available_at DROP DEFAULT; ALTER TABLE outbox ALTER id RESTART WITH 1;
                UPDATE outbox SET available_at = NULL;
                INSERT INTO outbox (routing_key, ordering_key, payload)
                SELECT 'good', 'new' || n % 20, json_build_object('key', 1000 + n % 20, 'n', n) FROM generate_series(1, 200) AS n";
    let mut owner = session(&there).await;
    owner.execute(sqlx::raw_sql(anew)).await.expect("restored");
    line.retarget(address(&new));
    line.refuse(false);

    let received = consumer
        .wait_for(|received| judge(received).distinct == 2_300, 60 * SECOND)
        .await;
    assert_eq!(judge(&received).duplicates, 0);
    until("nothing is left", 30 * SECOND, async || {
        let left = owner.fetch_all("SELECT 1 FROM outbox").await.expect("an answer");
        left.is_empty()
    })
    .await;
    assert_eq!(relay.get("/readyz").await.0, 200);
}

/// Copies a database of MariaDB or MySQL into another server, where it is made.
async fn copy_mariadb(from: &str, to: &MariaDb) {
    let url = url::Url::parse(from).expect("a URL");
    let name = url.path().trim_start_matches('/').to_owned();
    to.execute(format!("CREATE DATABASE {name}")).await;
    let program = |name: &str, port: u16| {
        let mut command = Command::new(name);
        command
            .args(["--no-defaults", "--protocol=tcp", "--host=127.0.0.1"])
            .arg(format!("--port={port}"))
            .arg(format!("--user={}", url.username()))
            .env("MYSQL_PWD", url.password().unwrap_or_default())
            .kill_on_drop(true);
        command
    };
    let mut dump = program("mysqldump", url.port().expect("a port"))
        .args(["--single-transaction", &name])
        .stdout(Stdio::piped())
        .spawn()
        .expect("mysqldump starts");
    let text: Stdio = dump.stdout.take().expect("piped").try_into().expect("a pipe");
    let read = program("mysql", to.port()).arg(&name).stdin(text).output();
    let (dump, read) = tokio::join!(dump.wait(), read);
    let read = read.expect("mysql starts");
    assert!(dump.expect("mysqldump ends").success());
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
}

/// The same in MariaDB, of the table that `migrate` makes, and of one whose refusals are in a table of the relay's own.
async fn a_relay_goes_on_after_a_restore_of_mariadb(variables: &[(&str, &str)]) {
    let (old, new) = tokio::join!(MariaDb::start(), MariaDb::start());
    let outbox = Outbox::on(old.create_database().await).await;
    let (code, out, err) = outbox.command(&["migrate"], variables).await;
    assert_eq!(code, Some(0), "{out}{err}");
    let address = |server: &MariaDb| SocketAddr::from(([127, 0, 0, 1], server.port()));
    let line = Proxy::start(address(&old)).await;
    let relay = variables
        .iter()
        .fold(outbox.relay(), |relay, (name, value)| relay.env(name, value))
        .env("RELAY_DATABASE_URL", line.through(&outbox.database_url))
        .env("RELAY_POLL_SWEEP_INTERVAL", "1s")
        .env("RELAY_OUTBOX_ON_SENT", "delete")
        .spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    outbox.insert(0, 500, 20).await;
    consumer
        .wait_for(|received| judge(received).distinct == 500, 60 * SECOND)
        .await;
    until("they are gone", 30 * SECOND, async || {
        outbox.db.number("SELECT count(*) FROM outbox").await == 0
    })
    .await;
    outbox
        .db
        .run("ALTER TABLE outbox ALTER available_at SET DEFAULT '2037-01-01 00:00:00'")
        .await;
    outbox.insert(500, 100, 20).await;

    line.refuse(true);
    line.cut();
    copy_mariadb(&outbox.database_url, &new).await;
    let name = outbox.database_url.rsplit('/').next().expect("a name");
    for sql in [
        format!("ALTER TABLE {name}.outbox ALTER available_at SET DEFAULT NULL"),
        format!("UPDATE {name}.outbox SET available_at = NULL"),
        format!(
            "INSERT INTO {name}.outbox (id, routing_key, ordering_key, payload)
             SELECT seq, 'good', concat('new', seq % 20), json_object('key', 1000 + seq % 20, 'n', seq) FROM {}",
            crate::support::numbers(1, 200)
        ),
    ] {
        new.execute(sql).await;
    }
    line.retarget(address(&new));
    line.refuse(false);

    let received = consumer
        .wait_for(|received| judge(received).distinct == 800, 60 * SECOND)
        .await;
    assert_eq!(judge(&received).duplicates, 0);
    until("it is ready", 30 * SECOND, async || relay.get("/readyz").await.0 == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_goes_on_after_a_restore_of_mariadb_whose_ids_begin_anew() {
    a_relay_goes_on_after_a_restore_of_mariadb(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_goes_on_after_a_restore_of_a_mapped_table() {
    a_relay_goes_on_after_a_restore_of_mariadb(&[
        ("RELAY_COLUMN_ATTEMPTS", "-"),
        ("RELAY_COLUMN_NEXT_ATTEMPT_AT", "-"),
        ("RELAY_COLUMN_LAST_ERROR", "-"),
        ("RELAY_COLUMN_DEAD_AT", "-"),
    ])
    .await;
}
