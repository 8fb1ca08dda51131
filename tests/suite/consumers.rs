//! What the README tells consumers to do is done here: its SQL by itself, and by the example under `kill -9`.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use outbox_relay::config::redacted_url;
use sqlx::any::install_default_drivers;
use sqlx::{AnyConnection, AssertSqlSafe, Connection as _};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::OnceCell;

use crate::outbox::{Outbox, SECOND};
use crate::support::until;

const README: &str = include_str!("../../README.md");
const EXAMPLE: &str = include_str!("../../deploy/consumer/consumer.rs");

/// The statements of the README for a kind of database.
struct Inbox {
    tables: Vec<String>,
    begin: String,
    note: String,
    purge: String,
}

impl Inbox {
    /// `name` is what the first line of the block says.
    fn of(name: &str) -> Self {
        let (_, rest) = README
            .split_once("<!-- inbox:")
            .expect("the README has the first marker");
        let (text, _) = rest.split_once("<!-- end of inbox -->").expect("and the second");
        let mut blocks = text.split("```sql\n").skip(1);
        let block = blocks.find(|block| block.starts_with(&format!("-- {name}\n")));
        let (block, _) = block.expect(name).split_once("```").expect("an end");
        let lines = block.lines().filter(|line| !line.starts_with("--"));
        let text = lines.collect::<Vec<_>>().join("\n");
        let statements = text.split(';').map(|statement| statement.trim().to_owned());
        let statements: Vec<_> = statements.filter(|statement| !statement.is_empty()).collect();
        let at = statements.iter().position(|statement| statement.starts_with("BEGIN"));
        let at = at.expect("BEGIN");
        assert_eq!(statements[at + 2], "COMMIT");
        assert_eq!(statements.len(), at + 4);
        Self {
            tables: statements[..at].to_vec(),
            begin: statements[at].clone(),
            note: statements[at + 1].clone(),
            purge: statements[at + 3].clone(),
        }
    }
}

/// A consumer's session.
struct Session(AnyConnection);

impl Session {
    async fn open(url: &str) -> Self {
        install_default_drivers();
        let connection = AnyConnection::connect(url).await;
        Self(connection.unwrap_or_else(|error| panic!("{}: {error}", redacted_url(url))))
    }

    /// Rows that were changed.
    async fn run(&mut self, sql: &str) -> u64 {
        let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut self.0).await;
        done.unwrap_or_else(|error| panic!("{sql}: {error}")).rows_affected()
    }

    async fn number(&mut self, sql: &str) -> i64 {
        let number = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()));
        number.fetch_one(&mut self.0).await.expect("a number")
    }
}

async fn the_sql_of_the_readme(outbox: Outbox, name: &str, long_ago: &str) {
    let inbox = Inbox::of(name);
    let mut one = Session::open(&outbox.database_url).await;
    for statement in &inbox.tables {
        one.run(statement).await;
    }
    // Taken, and taken again.
    for noted in [1, 0] {
        one.run(&inbox.begin).await;
        assert_eq!(one.run(&inbox.note).await, noted);
        one.run("COMMIT").await;
    }
    let other_case = inbox.note.replace("7f0c2a9e", "7F0C2A9E");
    assert_ne!(other_case, inbox.note);
    assert_eq!(one.run(&other_case).await, 1, "another message");
    // Two at once, of whom the first comes to an end, or does not.
    for (end, noted) in [("ROLLBACK", 1), ("COMMIT", 0)] {
        one.run("DELETE FROM inbox").await;
        one.run(&inbox.begin).await;
        assert_eq!(one.run(&inbox.note).await, 1);
        let (url, begin, note) = (outbox.database_url.clone(), inbox.begin.clone(), inbox.note.clone());
        let other = tokio::spawn(async move {
            let mut other = Session::open(&url).await;
            other.run(&begin).await;
            let noted = other.run(&note).await;
            other.run("COMMIT").await;
            noted
        });
        // Long enough for it to come to the INSERT, mostly; it must wait there.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!other.is_finished());
        one.run(end).await;
        assert_eq!(other.await.expect("no panic"), noted, "behind {end}");
    }
    assert_eq!(one.run(&inbox.purge).await, 0);
    one.run(&format!("UPDATE inbox SET received_at = {long_ago}")).await;
    assert_eq!(one.run(&inbox.purge).await, 1);
    // And the example does the same.
    let literal = "'7f0c2a9e-4f7b-4f57-9a0e-2f6b0d3c1a55'";
    let in_example = |placeholder| EXAMPLE.contains(&format!("\"{}\"", inbox.note.replace(literal, placeholder)));
    assert!(in_example("$1") || in_example("?"), "{}", inbox.note);
    assert!(EXAMPLE.contains(&format!("\"{}\"", inbox.begin)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inbox_of_the_readme_on_postgres() {
    the_sql_of_the_readme(Outbox::on_postgres().await, "PostgreSQL", "now() - interval '31 days'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inbox_of_the_readme_on_mariadb() {
    let outbox = Outbox::on_mariadb().await;
    the_sql_of_the_readme(outbox, "MariaDB, MySQL", "now() - INTERVAL 31 DAY").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inbox_of_the_readme_on_sqlite() {
    the_sql_of_the_readme(Outbox::on_sqlite().await, "SQLite", "datetime('now', '-31 days')").await;
}

/// The example, built as the tests are.
async fn program() -> PathBuf {
    static BUILT: OnceCell<PathBuf> = OnceCell::const_new();
    let built = BUILT.get_or_init(async || {
        let suite = std::env::current_exe().expect("the suite has a path");
        let target = suite.ancestors().nth(2).expect("it is in deps/").to_owned();
        // Within another release of Debian there is no compiler; it was built before.
        let cargo = PathBuf::from(env!("CARGO"));
        if cargo.exists() {
            let build = ["build", "--locked", "--quiet", "--example", "consumer"];
            let built = Command::new(cargo)
                .args(build)
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .status()
                .await;
            assert!(built.expect("cargo starts").success());
        }
        let program = target.join("examples/consumer");
        assert!(program.exists(), "cargo build --example consumer makes {program:?}");
        program
    });
    built.await.clone()
}

/// The example at work; it is killed when it is dropped.
struct Consumer(Child);

impl Consumer {
    /// Once it consumes.
    async fn start(outbox: &Outbox) -> Self {
        let mut process = Command::new(program().await)
            .args([
                "--queue",
                "q",
                "--amqp",
                &outbox.amqp_url,
                "--database",
                &outbox.database_url,
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        let mut lines = BufReader::new(process.stdout.take().expect("it is piped")).lines();
        let first = tokio::time::timeout(20 * SECOND, lines.next_line()).await;
        assert_eq!(first.expect("in time").expect("UTF-8").as_deref(), Some("consuming"));
        // Read on, so that it never waits for a full pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self(process)
    }

    async fn kill9(mut self) {
        // SIGKILL.
        self.0.kill().await.expect("it runs");
    }
}

/// Orders of ten customers, each with its number as the amount.
async fn take_orders(outbox: &Outbox, from: i64, count: i64) {
    let rows =
        (from..from + count).map(|n| format!("('good', 'c{0}', '{{\"customer\":\"c{0}\",\"cents\":{n}}}')", n % 10));
    let rows = rows.collect::<Vec<_>>().join(", ");
    let insert = format!("INSERT INTO outbox (routing_key, ordering_key, payload) VALUES {rows}");
    outbox.db.run(&insert).await;
}

/// Kills between any two steps of the consumer, and of the relay.
async fn no_kill_makes_an_effect_twice(outbox: Outbox, name: &str) {
    const ROUNDS: i64 = 25;
    const ORDERS: i64 = 60;
    let inbox = Inbox::of(name);
    let mut session = Session::open(&outbox.database_url).await;
    let spent = "CREATE TABLE spent (customer varchar(20) PRIMARY KEY, orders bigint NOT NULL, cents bigint NOT NULL)";
    for statement in inbox.tables.iter().map(String::as_str).chain([spent]) {
        session.run(statement).await;
    }
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let start = || outbox.relay().env("RELAY_LEASE_TTL", "2s").spawn();
    let mut relay = start();
    let noted = "SELECT count(*) FROM inbox";
    for round in 0..ROUNDS {
        take_orders(&outbox, round * ORDERS, ORDERS).await;
        if round % 5 == 4 {
            relay.kill9();
            relay = start();
        }
        let before = session.number(noted).await;
        let consumer = Consumer::start(&outbox).await;
        // In the middle of its work: as many as this are there for sure.
        let enough = before + rng.i64(0..ORDERS / 2);
        until("it has handled some", 60 * SECOND, async || {
            session.number(noted).await >= enough
        })
        .await;
        tokio::time::sleep(Duration::from_micros(rng.u64(0..5_000))).await;
        consumer.kill9().await;
    }
    outbox.wait_all_sent(60 * SECOND).await;
    // A restored backup, say: copies of what was handled long ago.
    let copies = "UPDATE outbox SET sent_at = NULL WHERE id IN (SELECT id FROM (SELECT id FROM outbox ORDER BY id LIMIT 300) AS x)";
    assert_eq!(outbox.db.run(copies).await, 300);
    outbox.wait_all_sent(60 * SECOND).await;
    take_orders(&outbox, ROUNDS * ORDERS, 1).await;

    let _last = Consumer::start(&outbox).await;
    // Behind the copies in the queue.
    let all = ROUNDS * ORDERS + 1;
    until("all are handled", 60 * SECOND, async || {
        session.number(noted).await >= all
    })
    .await;
    let wrong = (0..10).map(|customer| {
        let orders: Vec<_> = (0..all).filter(|n| n % 10 == customer).collect();
        format!(
            "(customer = 'c{customer}' AND (orders <> {} OR cents <> {}))",
            orders.len(),
            orders.iter().sum::<i64>()
        )
    });
    let wrong = wrong.collect::<Vec<_>>().join(" OR ");
    assert_eq!(session.number("SELECT count(*) FROM spent").await, 10);
    assert_eq!(
        session
            .number(&format!("SELECT count(*) FROM spent WHERE {wrong}"))
            .await,
        0
    );
    assert_eq!(session.number(noted).await, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_kill_makes_an_effect_twice_on_postgres() {
    no_kill_makes_an_effect_twice(Outbox::on_postgres().await, "PostgreSQL").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_kill_makes_an_effect_twice_on_mariadb() {
    no_kill_makes_an_effect_twice(Outbox::on_mariadb().await, "MariaDB, MySQL").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_kill_makes_an_effect_twice_on_sqlite() {
    no_kill_makes_an_effect_twice(Outbox::on_sqlite().await, "SQLite").await;
}
