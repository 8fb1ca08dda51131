//! The server of a run, and what is asked of it, in the SQL of each.

use std::collections::HashSet;
use std::time::Duration;

use clap::ValueEnum;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor};
use tokio::time::sleep;
use uuid::Uuid;

use crate::support::{MariaDb, Postgres, Product};

/// What PostgreSQL knows the writers by, and who they are in MariaDB.
pub(crate) const WRITER: &str = "chaos-writer";

/// First half of PostgreSQL's advisory locks, one for keys, one for writers of rows without one.
const KEY_LOCK: i32 = 7;
const WRITER_LOCK: i32 = 8;

/// Ids of rows that stand for a writer in MariaDB; below them are keys.
const WRITER_ROWS: u32 = 1_000;

/// How long DDL waits for the table before it gives up; until then everybody waits behind it.
const LOCK_SECONDS: u32 = 4;

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Choice {
    Postgres,
    /// Or MySQL, where that is what is installed
    Mariadb,
}

impl Choice {
    /// As it is written on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Mariadb => "mariadb",
        }
    }
}

pub(crate) enum Server {
    Postgres(Postgres),
    MariaDb(MariaDb),
}

impl Server {
    pub(crate) async fn start(choice: Choice) -> Self {
        match choice {
            // What was committed stays, whatever is killed; as a server is run.
            Choice::Postgres => Self::Postgres(Postgres::start_with(&["fsync=on"]).await),
            Choice::Mariadb => Self::MariaDb(MariaDb::start().await),
        }
    }

    /// The URLs of an empty database, for the relays and for the application.
    pub(crate) async fn create_database(&self) -> [String; 2] {
        match self {
            Self::Postgres(server) => {
                let url = server.create_database().await;
                [url.clone(), url]
            }
            Self::MariaDb(server) => {
                let url = server.create_database().await;
                let user = format!("CREATE USER '{WRITER}'@'127.0.0.1' IDENTIFIED BY 'pw'");
                let grant = format!("GRANT ALL ON *.* TO '{WRITER}'@'127.0.0.1'");
                server.execute(format!("{user}; {grant}")).await;
                let mut application = url::Url::parse(&url).expect("a URL");
                application.set_username(WRITER).expect("a user");
                application.set_password(Some("pw")).expect("a password");
                [url, application.into()]
            }
        }
    }

    pub(crate) fn port(&self) -> u16 {
        match self {
            Self::Postgres(server) => server.port(),
            Self::MariaDb(server) => server.port(),
        }
    }

    pub(crate) async fn kill9(&self) {
        match self {
            Self::Postgres(server) => server.kill9().await,
            Self::MariaDb(server) => server.kill9().await,
        }
    }

    pub(crate) async fn start_again(&self) {
        match self {
            Self::Postgres(server) => server.start_again().await,
            Self::MariaDb(server) => server.start_again().await,
        }
    }

    /// Closes every client's connection.
    pub(crate) async fn close_connections(&self) {
        match self {
            Self::Postgres(server) => server.terminate_backends().await,
            Self::MariaDb(server) => {
                let clients = format!("user IN ('relay', '{WRITER}')");
                // A server that does not answer is a fault of its own, and serves nobody meanwhile.
                let _ = server.kill_connections(&clients).await;
            }
        }
    }
}

/// A row that a writer inserts.
pub(crate) struct NewRow<'a> {
    pub(crate) message_id: Uuid,
    pub(crate) routing_key: &'a str,
    pub(crate) ordering_key: Option<String>,
    pub(crate) headers: String,
    pub(crate) payload: String,
}

/// Layout, share, owner, epoch.
pub(crate) type ShareRow = (i32, i32, Option<String>, i64);

/// A connection.
pub(crate) enum Session {
    Postgres(PgConnection),
    MariaDb(MySqlConnection),
}

/// The same text for both.
macro_rules! ask {
    ($session:expr, $method:ident, $sql:expr) => {
        match $session {
            Session::Postgres(session) => sqlx::query_as(AssertSqlSafe($sql)).$method(session).await,
            Session::MariaDb(session) => sqlx::query_as(AssertSqlSafe($sql)).$method(session).await,
        }
    };
}

impl Session {
    pub(crate) async fn connect(url: &str, name: &str) -> Result<Self, sqlx::Error> {
        if url.starts_with("mysql") {
            let options: MySqlConnectOptions = url.parse().expect("a URL");
            return options.disable_statement_logging().connect().await.map(Self::MariaDb);
        }
        let options: PgConnectOptions = url.parse().expect("a URL");
        let options = options.application_name(name).disable_statement_logging();
        options.connect().await.map(Self::Postgres)
    }

    pub(crate) async fn run(&mut self, sql: &str) -> Result<(), sqlx::Error> {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        match self {
            Self::Postgres(session) => session.execute(sql).await.map(drop),
            Self::MariaDb(session) => session.execute(sql).await.map(drop),
        }
    }

    /// What the writers need besides the outbox.
    pub(crate) async fn prepare(&mut self) -> Result<(), sqlx::Error> {
        match self {
            Self::Postgres(_) => Ok(()),
            Self::MariaDb(_) => {
                let rows: Vec<String> = (0..WRITER_ROWS + 100).map(|id| format!("({id})")).collect();
                let table = "CREATE TABLE turns (id int PRIMARY KEY) ENGINE=InnoDB";
                self.run(&format!("{table}; INSERT INTO turns VALUES {}", rows.join(",")))
                    .await
            }
        }
    }

    /// Begins a transaction of this writer on these keys (sorted, so that none deadlock). Writers of one key come one
    /// after the other, before they take an id.
    pub(crate) async fn begin(&mut self, writer: i32, keys: &[u32]) -> Result<(), sqlx::Error> {
        let locks = match self {
            Self::Postgres(_) => {
                let keys = keys
                    .iter()
                    .map(|key| format!(", pg_advisory_xact_lock({KEY_LOCK}, {key})"));
                let own = format!("pg_advisory_xact_lock({WRITER_LOCK}, {writer})");
                format!("SELECT {own}{}", keys.collect::<String>())
            }
            Self::MariaDb(_) => {
                let own = WRITER_ROWS + writer.unsigned_abs();
                let ids: Vec<String> = keys.iter().chain([&own]).map(u32::to_string).collect();
                format!(
                    "SELECT id FROM turns WHERE id IN ({}) ORDER BY id FOR UPDATE",
                    ids.join(", ")
                )
            }
        };
        self.run("BEGIN").await?;
        self.run(&locks).await
    }

    /// Its id.
    pub(crate) async fn insert(&mut self, row: NewRow<'_>) -> Result<i64, sqlx::Error> {
        match self {
            Self::Postgres(session) => {
                let insert = "INSERT INTO outbox (message_id, routing_key, ordering_key, headers, payload)
                              VALUES ($1, $2, $3, $4::json, $5::json) RETURNING id";
                sqlx::query_scalar(insert)
                    .bind(row.message_id)
                    .bind(row.routing_key)
                    .bind(row.ordering_key)
                    .bind(row.headers)
                    .bind(row.payload)
                    .fetch_one(session)
                    .await
            }
            Self::MariaDb(session) => {
                let insert = "INSERT INTO outbox (message_id, routing_key, ordering_key, headers, payload)
                              VALUES (?, ?, ?, ?, ?)";
                let inserted = sqlx::query(insert)
                    .bind(row.message_id.to_string())
                    .bind(row.routing_key)
                    .bind(row.ordering_key)
                    .bind(row.headers)
                    .bind(row.payload)
                    .execute(session)
                    .await?;
                Ok(i64::try_from(inserted.last_insert_id()).expect("a small number"))
            }
        }
    }

    pub(crate) async fn has(&mut self, message_id: Uuid) -> Result<bool, sqlx::Error> {
        let sql = format!("SELECT count(*) FROM outbox WHERE message_id = '{message_id}' AND id > 0");
        let (count,): (i64,) = ask!(self, fetch_one, sql)?;
        Ok(count > 0)
    }

    /// As DDL does.
    pub(crate) async fn lock_table(&mut self, lasts: Duration) -> Result<(), sqlx::Error> {
        let (lock, unlock) = match self {
            Self::Postgres(_) => (
                format!("SET lock_timeout = '{LOCK_SECONDS}s'; BEGIN; LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE"),
                "COMMIT",
            ),
            Self::MariaDb(_) => (
                format!("SET lock_wait_timeout = {LOCK_SECONDS}; LOCK TABLES outbox WRITE"),
                "UNLOCK TABLES",
            ),
        };
        self.run(&lock).await?;
        sleep(lasts).await;
        self.run(unlock).await
    }

    /// Transactions of relays that are open while nothing is done in them. MariaDB and MySQL tell of transactions and of
    /// connections at different moments: there, one older than a second that was so at the last look, too. It is told by
    /// its connection and its start, since all that only read have the same id.
    pub(crate) async fn idle_transactions(&mut self, before: &mut HashSet<String>) -> Result<Vec<String>, sqlx::Error> {
        if let Self::MariaDb(_) = self {
            // Starts are told in the server's time zone.
            self.run("SET time_zone = 'SYSTEM'").await?;
        }
        let sql = match self {
            Self::Postgres(_) => {
                "SELECT query FROM pg_stat_activity
                 WHERE application_name = 'outbox-relay' AND state LIKE 'idle in transaction%'"
            }
            Self::MariaDb(_) => {
                "SELECT CAST(concat('connection ', p.id, ' since ', t.trx_started) AS CHAR)
                 FROM information_schema.innodb_trx AS t
                 JOIN information_schema.processlist AS p ON p.id = t.trx_mysql_thread_id
                 WHERE p.command = 'Sleep' AND p.user = 'relay' AND t.trx_started < now() - INTERVAL 1 SECOND"
            }
        };
        let found: Vec<(String,)> = ask!(self, fetch_all, sql.to_owned())?;
        let found: HashSet<String> = found.into_iter().map(|(text,)| text).collect();
        let again = std::mem::replace(before, found.clone());
        Ok(match self {
            Self::Postgres(_) => found.into_iter().collect(),
            Self::MariaDb(_) => found.intersection(&again).cloned().collect(),
        })
    }

    /// Writers that wait for a lock of a relay: kind of lock, their statement and the relay's.
    pub(crate) async fn blocked_writers(&mut self) -> Result<Vec<(String, String, String)>, sqlx::Error> {
        let sql = match self {
            // Whoever makes the table longer holds a lock for that moment, application or relay: that is no wait for a row.
            Self::Postgres(_) => format!(
                "SELECT l.locktype, w.query, b.query FROM pg_stat_activity AS w
                 JOIN pg_locks AS l ON l.pid = w.pid AND NOT l.granted AND l.locktype <> 'extend'
                 CROSS JOIN LATERAL unnest(pg_blocking_pids(w.pid)) AS p (pid)
                 JOIN pg_stat_activity AS b ON b.pid = p.pid
                 WHERE w.application_name = '{WRITER}' AND b.application_name = 'outbox-relay'"
            ),
            Self::MariaDb(_) => {
                let (waits, waiting, blocking) = match MariaDb::product() {
                    Product::MariaDb => (
                        "information_schema.innodb_lock_waits",
                        "requesting_trx_id",
                        "blocking_trx_id",
                    ),
                    Product::MySql => (
                        "performance_schema.data_lock_waits",
                        "requesting_engine_transaction_id",
                        "blocking_engine_transaction_id",
                    ),
                };
                format!(
                    "SELECT 'row', CAST(coalesce(w.trx_query, '') AS CHAR), CAST(coalesce(b.trx_query, '') AS CHAR)
                     FROM {waits} AS l
                     JOIN information_schema.innodb_trx AS w ON w.trx_id = l.{waiting}
                     JOIN information_schema.innodb_trx AS b ON b.trx_id = l.{blocking}
                     JOIN information_schema.processlist AS wp ON wp.id = w.trx_mysql_thread_id
                     JOIN information_schema.processlist AS bp ON bp.id = b.trx_mysql_thread_id
                     WHERE wp.user = '{WRITER}' AND bp.user = 'relay'"
                )
            }
        };
        ask!(self, fetch_all, sql)
    }

    pub(crate) async fn shares(&mut self) -> Result<Vec<ShareRow>, sqlx::Error> {
        let sql = "SELECT layout, share, owner, epoch FROM outbox_relay_shares".to_owned();
        ask!(self, fetch_all, sql)
    }

    /// Rows of the table: all, unsent, dead, and those with attempts that were not spent because the queue was away.
    pub(crate) async fn count(&mut self) -> Result<[i64; 4], sqlx::Error> {
        let sql = "SELECT count(*), count(CASE WHEN sent_at IS NULL AND dead_at IS NULL THEN 1 END), count(dead_at),
                          count(CASE WHEN attempts > 0 AND last_error NOT LIKE '%unroutable%' THEN 1 END) FROM outbox";
        let (all, unsent, dead, tried): (i64, i64, i64, i64) = ask!(self, fetch_one, sql.to_owned())?;
        Ok([all, unsent, dead, tried])
    }

    /// What the table says of a row.
    pub(crate) async fn describe(&mut self, message_id: Uuid) -> Option<String> {
        let sql = format!(
            "SELECT concat_ws(' ', 'id', id, 'key', ordering_key, 'attempts', attempts, 'next', next_attempt_at, last_error,
                              'sent', sent_at, 'dead', dead_at) FROM outbox WHERE message_id = '{message_id}'"
        );
        let found: Result<Option<(String,)>, _> = ask!(self, fetch_optional, sql);
        found.ok().flatten().map(|(text,)| text)
    }
}
