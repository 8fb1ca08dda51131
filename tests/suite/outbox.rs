//! A database with an outbox, a broker with a queue, and relays between them: what most tests begin with.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use sqlx::mysql::{MySqlPool, MySqlPoolOptions};
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
use sqlx::sqlite::{SqlitePool, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, Connection};

use crate::support::{
    Kind, MariaDb, Postgres, Product, Rabbit, Received, Relay, RelayCommand, arrivals, declare, numbers, until,
};

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// Where the relays of a test read, and where they publish.
pub(crate) struct Outbox {
    pub(crate) database_url: String,
    pub(crate) amqp_url: String,
    pub(crate) db: Database,
    _folder: Option<tempfile::TempDir>,
}

#[derive(Clone)]
pub(crate) enum Database {
    Postgres(PgPool),
    MariaDb(MySqlPool),
    Sqlite(SqlitePool),
}

impl Outbox {
    /// A migrated database of the shared PostgreSQL, a virtual host of the shared RabbitMQ with the exchange `events`
    /// and the quorum queue `q` bound by `good`.
    pub(crate) async fn on_postgres() -> Self {
        Self::on(Postgres::shared().await.create_database().await).await
    }

    /// An empty database of any server; what is to be there before the migrations can be.
    pub(crate) async fn on(database_url: String) -> Self {
        Self::new(database_url, Rabbit::shared().await.create_vhost().await, None).await
    }

    pub(crate) async fn on_mariadb() -> Self {
        Self::on(MariaDb::shared().await.create_database().await).await
    }

    pub(crate) async fn on_sqlite() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let database_url = format!("sqlite://{}", folder.path().join("app.db").display());
        Self::new(database_url, Rabbit::shared().await.create_vhost().await, Some(folder)).await
    }

    /// The three kinds of database without any table; with the exchange `events` and the queue `q` bound by these keys.
    pub(crate) async fn without_tables(database: &str, routing_keys: &[&str]) -> Self {
        let amqp_url = Rabbit::shared().await.create_vhost().await;
        declare(&amqp_url, "events", "q", Kind::Quorum, routing_keys).await;
        let (database_url, folder) = match database {
            "postgres" => (Postgres::shared().await.create_database().await, None),
            "mariadb" => (MariaDb::shared().await.create_database().await, None),
            _ => {
                let folder = tempfile::tempdir().expect("a folder");
                let url = format!("sqlite://{}", folder.path().join("app.db").display());
                (url, Some(folder))
            }
        };
        // An application has its file in WAL mode before the relay comes.
        let db = Database::connect(&format!(
            "{database_url}{}",
            if folder.is_some() { "?mode=rwc" } else { "" }
        ))
        .await;
        Self {
            database_url,
            amqp_url,
            db,
            _folder: folder,
        }
    }

    /// Runs a command to its end with these variables: exit code, standard output, standard error.
    pub(crate) async fn command(&self, args: &[&str], more: &[(&str, &str)]) -> (Option<i32>, String, String) {
        let mut env = vec![
            ("RELAY_DATABASE_URL", self.database_url.as_str()),
            ("RELAY_AMQP_URL", self.amqp_url.as_str()),
            ("RELAY_AMQP_EXCHANGE", "events"),
        ];
        env.extend_from_slice(more);
        let (status, out, err) = Relay::run_to_end(args, &env).await;
        (status.code(), out, err)
    }

    /// With servers of its own.
    pub(crate) async fn between(postgres: &Postgres, rabbit: &Rabbit) -> Self {
        Self::new(postgres.create_database().await, rabbit.url(), None).await
    }

    /// With servers of its own.
    pub(crate) async fn between_mariadb(mariadb: &MariaDb, rabbit: &Rabbit) -> Self {
        Self::new(mariadb.create_database().await, rabbit.url(), None).await
    }

    async fn new(database_url: String, amqp_url: String, folder: Option<tempfile::TempDir>) -> Self {
        migrate(&database_url, &[]).await;
        declare(&amqp_url, "events", "q", Kind::Quorum, &["good"]).await;
        let db = Database::connect(&database_url).await;
        Self {
            database_url,
            amqp_url,
            db,
            _folder: folder,
        }
    }

    /// A relay between them, not started yet.
    pub(crate) fn relay(&self) -> RelayCommand {
        Relay::command()
            .env("RELAY_DATABASE_URL", &self.database_url)
            .env("RELAY_AMQP_URL", &self.amqp_url)
            .env("RELAY_AMQP_EXCHANGE", "events")
    }

    /// Inserts `count` rows over `keys` keys; the payload tells key and number within the key.
    pub(crate) async fn insert(&self, from: i64, count: i64, keys: i64) {
        self.db.insert(from, count, keys).await;
    }

    /// Waits until nothing is unsent; dead letters may be left.
    pub(crate) async fn wait_all_sent(&self, timeout: Duration) {
        until("every row is sent or dead", timeout, async || {
            self.db.unsent().await == 0
        })
        .await;
    }
}

/// Runs `outbox-relay migrate`, which must succeed.
pub(crate) async fn migrate(database_url: &str, more: &[(&str, &str)]) {
    let mut env = vec![
        ("RELAY_DATABASE_URL", database_url),
        ("RELAY_AMQP_URL", "amqp://localhost"),
    ];
    env.extend_from_slice(more);
    succeed(&["migrate"], &env).await;
}

/// The same with the wake-up.
pub(crate) async fn migrate_with_wakeup(database_url: &str) {
    let env = [
        ("RELAY_DATABASE_URL", database_url),
        ("RELAY_AMQP_URL", "amqp://localhost"),
    ];
    succeed(&["migrate", "--with-wakeup"], &env).await;
}

async fn succeed(args: &[&str], env: &[(&str, &str)]) {
    let (status, out, err) = Relay::run_to_end(args, env).await;
    assert!(status.success(), "{out}{err}");
}

impl Database {
    async fn connect(url: &str) -> Self {
        if url.starts_with("sqlite") {
            let pool = SqlitePoolOptions::new().max_connections(1).connect(url).await;
            Self::Sqlite(pool.expect("the file is there"))
        } else if url.starts_with("mysql") {
            let pool = MySqlPoolOptions::new().max_connections(4).connect(url).await;
            Self::MariaDb(pool.expect("the server is up"))
        } else {
            let pool = PgPoolOptions::new().max_connections(4).connect(url).await;
            Self::Postgres(pool.expect("the server is up"))
        }
    }

    pub(crate) async fn run(&self, sql: &str) -> u64 {
        let sql = AssertSqlSafe(sql.to_owned());
        match self {
            Self::Postgres(pool) => sqlx::raw_sql(sql).execute(pool).await.expect("runs").rows_affected(),
            Self::MariaDb(pool) => sqlx::raw_sql(sql).execute(pool).await.expect("runs").rows_affected(),
            Self::Sqlite(pool) => sqlx::raw_sql(sql).execute(pool).await.expect("runs").rows_affected(),
        }
    }

    pub(crate) async fn number(&self, sql: &str) -> i64 {
        let sql = AssertSqlSafe(sql.to_owned());
        match self {
            Self::Postgres(pool) => sqlx::query_scalar(sql).fetch_one(pool).await.expect("a number"),
            Self::MariaDb(pool) => sqlx::query_scalar(sql).fetch_one(pool).await.expect("a number"),
            Self::Sqlite(pool) => sqlx::query_scalar(sql).fetch_one(pool).await.expect("a number"),
        }
    }

    pub(crate) async fn text(&self, sql: &str) -> Option<String> {
        let sql = AssertSqlSafe(sql.to_owned());
        match self {
            Self::Postgres(pool) => sqlx::query_scalar(sql).fetch_one(pool).await.expect("a text"),
            Self::MariaDb(pool) => sqlx::query_scalar(sql).fetch_one(pool).await.expect("a text"),
            Self::Sqlite(pool) => sqlx::query_scalar(sql).fetch_one(pool).await.expect("a text"),
        }
    }

    /// Makes `payload` a column for any bytes. SQLite's is one already.
    pub(crate) async fn take_any_body(&self) {
        let alter = match self {
            Self::Postgres(_) => "ALTER TABLE outbox ALTER payload TYPE bytea USING convert_to(payload::text, 'UTF8')",
            Self::MariaDb(_) if MariaDb::product() == Product::MySql => {
                "ALTER TABLE outbox DROP CHECK outbox_chk_1, MODIFY payload longblob NOT NULL"
            }
            Self::MariaDb(_) => "ALTER TABLE outbox MODIFY payload longblob NOT NULL",
            Self::Sqlite(_) => return,
        };
        self.run(alter).await;
    }

    /// A time from now, as SQL.
    pub(crate) fn in_seconds(&self, seconds: i64) -> String {
        match self {
            Self::Postgres(_) => format!("now() + interval '{seconds} seconds'"),
            Self::MariaDb(_) => format!("now(6) + INTERVAL {seconds} SECOND"),
            Self::Sqlite(_) => format!("strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '{seconds} seconds')"),
        }
    }

    /// Neither sent nor dead.
    pub(crate) async fn unsent(&self) -> i64 {
        self.number("SELECT count(*) FROM outbox WHERE sent_at IS NULL AND dead_at IS NULL")
            .await
    }

    async fn insert(&self, from: i64, count: i64, keys: i64) {
        let end = from + count - 1;
        let sql = match self {
            Self::Postgres(_) => format!(
                "INSERT INTO outbox (routing_key, ordering_key, payload)
                 SELECT 'good', 'k' || (n % {keys}), json_build_object('key', n % {keys}, 'n', n)
                 FROM generate_series({from}, {end}) AS n"
            ),
            Self::MariaDb(_) => format!(
                "INSERT INTO outbox (routing_key, ordering_key, payload)
                 SELECT 'good', concat('k', seq % {keys}), json_object('key', seq % {keys}, 'n', seq) FROM {}",
                numbers(from, end)
            ),
            Self::Sqlite(_) => format!(
                "WITH RECURSIVE s(n) AS (SELECT {from} UNION ALL SELECT n + 1 FROM s WHERE n < {end})
                 INSERT INTO outbox (routing_key, ordering_key, payload)
                 SELECT 'good', 'k' || (n % {keys}), json_object('key', n % {keys}, 'n', n) FROM s"
            ),
        };
        self.run(&sql).await;
    }
}

/// A connection of the test's own, for transactions.
pub(crate) async fn session(url: &str) -> PgConnection {
    PgConnection::connect(url).await.expect("the server is up")
}

/// What arrived, judged.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Arrived {
    pub(crate) distinct: usize,
    /// Copies beyond the first, without the consumer's own redeliveries.
    pub(crate) duplicates: usize,
}

/// Checks that first copies came in the order of `n` within each key, and that copies are alike.
///
/// What the broker delivers a second time was delivered at some earlier moment to a connection that has ended since: of
/// such a copy it is only known that none of its key may come after it that should have come before.
pub(crate) fn judge(received: &[Received]) -> Arrived {
    let received = arrivals(received);
    let mut first: HashMap<&str, &Received> = HashMap::new();
    let mut last_of_key: HashMap<i64, (i64, &Received)> = HashMap::new();
    for message in &received {
        if let Some(earlier) = first.get(message.message_id.as_str()) {
            assert_eq!(earlier.body, message.body, "copies are alike");
            assert_eq!(earlier.headers, message.headers, "copies are alike");
            continue;
        }
        first.insert(&message.message_id, message);
        let body: serde_json::Value = serde_json::from_slice(&message.body).expect("json");
        let (key, n) = (body["key"].as_i64().expect("key"), body["n"].as_i64().expect("n"));
        let (last, earlier) = last_of_key.entry(key).or_insert((n, message));
        let in_order = *last <= n || (message.redelivered && !earlier.redelivered);
        assert!(
            in_order,
            "key {key}: {n} came after {last}: {message:?} after {earlier:?}"
        );
        if *last < n {
            (*last, *earlier) = (n, message);
        }
    }
    let bodies: HashSet<&[u8]> = first.values().map(|message| message.body.as_slice()).collect();
    assert_eq!(bodies.len(), first.len(), "one row, one message_id");
    Arrived {
        distinct: first.len(),
        duplicates: received.len() - first.len(),
    }
}
