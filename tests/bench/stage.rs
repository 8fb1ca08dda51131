//! The servers, and what stands on them: an outbox table in each database, one exchange, one queue at a time.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, MySqlConnection, PgConnection, SqliteConnection};

use outbox_relay::config::Config;

use crate::procfs;
use crate::support::{Kind, MariaDb, Postgres, Rabbit, Relay, RelayCommand, declare, numbers};

pub(crate) const EXCHANGE: &str = "events";
pub(crate) const ROUTING_KEY: &str = "bench";

/// Bytes of a body.
pub(crate) const BODY: usize = 256;

/// Settings of the caller that relays and ceiling are tried with. No others: they may be of servers of the caller's.
const TRIED: [&str; 2] = ["RELAY_PUBLISH_", "RELAY_POLL_"];

/// After a queue was deleted and rows were loaded, the servers clean up: not to be measured.
const SETTLE: Duration = Duration::from_millis(500);

/// Where the rows are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Postgres,
    MariaDb,
    Sqlite,
}

/// Processor time, user and system.
#[derive(Clone, Copy)]
pub(crate) struct ServersCpu {
    pub(crate) database: Duration,
    pub(crate) broker: Duration,
}

/// Started when it is needed first.
struct Maria {
    server: MariaDb,
    url: String,
    db: MySqlConnection,
}

pub(crate) struct Stage {
    postgres: Postgres,
    pub(crate) rabbit: Rabbit,
    pub(crate) database_url: String,
    pub(crate) amqp_url: String,
    pub(crate) db: PgConnection,
    maria: Option<Maria>,
    sqlite_url: String,
    sqlite: SqliteConnection,
    _folder: tempfile::TempDir,
    queues: usize,
}

impl Stage {
    pub(crate) async fn start() -> Self {
        // As PostgreSQL comes; the tests' own settings are for quick tests.
        let (postgres, rabbit) = tokio::join!(
            Postgres::start_with(&["fsync=on", "shared_buffers=128MB"]),
            Rabbit::start()
        );
        let database_url = postgres.create_database().await;
        let amqp_url = rabbit.url();
        let folder = tempfile::tempdir().expect("a folder");
        let sqlite_url = format!("sqlite://{}", folder.path().join("bench.db").display());
        for url in [&database_url, &sqlite_url] {
            migrate(url, &amqp_url, &["migrate"]).await;
        }
        let db = PgConnection::connect(&database_url).await.expect("the server is up");
        let sqlite = SqliteConnection::connect(&sqlite_url).await.expect("the file is there");
        Self {
            postgres,
            rabbit,
            database_url,
            amqp_url,
            db,
            maria: None,
            sqlite_url,
            sqlite,
            _folder: folder,
            queues: 0,
        }
    }

    pub(crate) async fn versions(&mut self) -> String {
        let postgres: String = sqlx::query_scalar("SHOW server_version")
            .fetch_one(&mut self.db)
            .await
            .expect("it answers");
        let rabbit = self.rabbit.eval("rabbit_misc:version()").await;
        format!(
            "PostgreSQL {postgres} (fsync on), RabbitMQ {}",
            rabbit.trim_matches('"')
        )
    }

    /// The relay's configuration, as far as it is the same in all scenarios.
    pub(crate) fn config(&self) -> Config {
        let urls = [
            ("RELAY_DATABASE_URL", &self.database_url),
            ("RELAY_AMQP_URL", &self.amqp_url),
        ];
        let urls = urls.map(|(name, url)| (name.to_owned(), url.clone()));
        outbox_relay::config::load(tried().chain(urls))
            .expect("good settings")
            .config
    }

    /// A relay between database and broker, not started yet.
    pub(crate) fn relay(&self, source: Source) -> RelayCommand {
        let url = match source {
            Source::Postgres => &self.database_url,
            Source::MariaDb => &self.maria.as_ref().expect("rows were loaded").url,
            Source::Sqlite => &self.sqlite_url,
        };
        tried()
            .fold(Relay::command(), |command, (name, value)| command.env(&name, &value))
            .env("RELAY_DATABASE_URL", url)
            .env("RELAY_AMQP_URL", &self.amqp_url)
            .env("RELAY_AMQP_EXCHANGE", EXCHANGE)
            .env("RELAY_ORDERING", "strict")
    }

    /// Processor time of the servers so far. A database in a file has no server.
    pub(crate) fn cpu(&self, source: Source) -> ServersCpu {
        let database = match source {
            Source::Postgres => procfs::cpu_of_tree(self.postgres.pid()),
            Source::MariaDb => procfs::cpu_of_tree(self.maria.as_ref().expect("rows were loaded").server.pid()),
            Source::Sqlite => Duration::ZERO,
        };
        ServersCpu {
            database,
            broker: procfs::cpu_of_tree(self.rabbit.pid()),
        }
    }

    /// Deletes the queue with all that is in it, and makes a new one in its place. Nobody consumes from it: on a small
    /// machine a consumer takes more from the broker than a queue that grows for some seconds.
    pub(crate) async fn new_queue(&mut self, kind: Kind) -> String {
        if self.queues > 0 {
            self.rabbit.delete_queue("/", &format!("bench-{}", self.queues)).await;
        }
        self.queues += 1;
        let name = format!("bench-{}", self.queues);
        declare(&self.amqp_url, EXCHANGE, &name, kind, &[ROUTING_KEY]).await;
        tokio::time::sleep(SETTLE).await;
        name
    }

    /// Empties the table and fills it. The checkpoint comes before, as for rows that were written a moment ago.
    pub(crate) async fn load(&mut self, source: Source, rows: usize, keys: usize) {
        match source {
            Source::Postgres => {
                self.clear().await;
                self.insert(&Rows {
                    count: rows,
                    keys,
                    ..Rows::default()
                })
                .await;
                self.run("ANALYZE outbox").await;
            }
            Source::MariaDb => {
                let fill = format!(
                    "INSERT INTO outbox (routing_key, ordering_key, payload)
                     SELECT '{ROUTING_KEY}', concat('key-', seq % {keys}),
                            concat(rpad(concat('{{\"n\":', seq, ',\"pad\":\"'), {}, 'x'), '\"}}')
                     FROM {}",
                    BODY - 2,
                    numbers(1, rows as i64)
                );
                let db = self.maria().await;
                for statement in ["TRUNCATE outbox", &fill, "ANALYZE TABLE outbox"] {
                    let done = sqlx::raw_sql(AssertSqlSafe(statement.to_owned()))
                        .execute(&mut *db)
                        .await;
                    done.expect("it runs");
                }
            }
            Source::Sqlite => {
                // As `body` writes it.
                let insert = format!(
                    "DELETE FROM outbox; PRAGMA wal_checkpoint(TRUNCATE);
                     WITH RECURSIVE s (n) AS (SELECT 1 WHERE {rows} > 0 UNION ALL SELECT n + 1 FROM s WHERE n < {rows})
                     INSERT INTO outbox (routing_key, ordering_key, payload)
                     SELECT '{ROUTING_KEY}', 'key-' || (n % {keys}),
                            substr('{{\"n\":' || n || ',\"pad\":\"' || replace(hex(zeroblob({BODY})), '00', 'x'), 1, {}) || '\"}}'
                     FROM s; PRAGMA wal_checkpoint(TRUNCATE)",
                    BODY - 2
                );
                let done = sqlx::raw_sql(AssertSqlSafe(insert)).execute(&mut self.sqlite).await;
                done.expect("it runs");
            }
        }
    }

    /// As the server comes; the tests' own settings are for quick tests.
    async fn maria(&mut self) -> &mut MySqlConnection {
        if self.maria.is_none() {
            let settings = ["innodb-flush-log-at-trx-commit=1", "innodb-buffer-pool-size=128M"];
            let server = MariaDb::start_with(&settings).await;
            let url = server.create_database().await;
            migrate(&url, &self.amqp_url, &["migrate"]).await;
            let db = MySqlConnection::connect(&url).await.expect("the server is up");
            self.maria = Some(Maria { server, url, db });
        }
        &mut self.maria.as_mut().expect("just made").db
    }

    pub(crate) async fn clear(&mut self) {
        self.run("TRUNCATE outbox RESTART IDENTITY").await;
        self.run("CHECKPOINT").await;
    }

    /// Adds rows to the table in PostgreSQL.
    pub(crate) async fn insert(&mut self, rows: &Rows) {
        let Rows {
            count,
            key,
            keys,
            bytes,
            sent_ago,
            delay,
        } = rows;
        if *count == 0 {
            return;
        }
        let interval = |text: &Option<&str>, sign: char| match text {
            Some(text) => format!("now() {sign} interval '{text}'"),
            None => "NULL".to_owned(),
        };
        self.run(&format!(
            "INSERT INTO outbox (routing_key, ordering_key, payload, sent_at, available_at)
             SELECT '{ROUTING_KEY}', '{key}-' || n % {keys},
                    (rpad('{{\"n\":' || n || ',\"pad\":\"', {}, 'x') || '\"}}')::json, {}, {}
             FROM generate_series(1, {count}) AS n",
            bytes - 2,
            interval(sent_ago, '-'),
            interval(delay, '+')
        ))
        .await;
    }

    /// Makes the trigger of the wake-up, or takes it away.
    pub(crate) async fn wake_up(&mut self, on: bool) {
        if on {
            migrate(&self.database_url, &self.amqp_url, &["migrate", "--with-wakeup"]).await;
        } else {
            self.run("DROP TRIGGER outbox_relay_wakeup ON outbox").await;
        }
    }

    pub(crate) async fn run(&mut self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&mut self.db)
            .await
            .expect("it runs");
    }

    pub(crate) async fn number(&mut self, sql: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
            .fetch_one(&mut self.db)
            .await
            .expect("a number")
    }

    /// Rows that are neither sent nor dead.
    pub(crate) async fn unsent(&mut self, source: Source) -> i64 {
        const COUNT: &str = "SELECT count(*) FROM outbox WHERE sent_at IS NULL AND dead_at IS NULL";
        match source {
            Source::Postgres => self.number(COUNT).await,
            Source::MariaDb => {
                let db = self.maria().await;
                sqlx::query_scalar(COUNT).fetch_one(db).await.expect("a number")
            }
            Source::Sqlite => sqlx::query_scalar(COUNT)
                .fetch_one(&mut self.sqlite)
                .await
                .expect("a number"),
        }
    }
}

fn tried() -> impl Iterator<Item = (String, String)> {
    std::env::vars().filter(|(name, _)| TRIED.iter().any(|start| name.starts_with(start)))
}

async fn migrate(database_url: &str, amqp_url: &str, command: &[&str]) {
    let env = [("RELAY_DATABASE_URL", database_url), ("RELAY_AMQP_URL", amqp_url)];
    let (status, out, err) = Relay::run_to_end(command, &env).await;
    assert!(status.success(), "{out}{err}");
}

/// Rows to insert.
pub(crate) struct Rows {
    pub(crate) count: usize,
    pub(crate) key: &'static str,
    pub(crate) keys: usize,
    /// Of a body, at least 32.
    pub(crate) bytes: usize,
    /// Sent so long ago; `None`: to be sent.
    pub(crate) sent_ago: Option<&'static str>,
    /// Not to be sent before.
    pub(crate) delay: Option<&'static str>,
}

impl Default for Rows {
    fn default() -> Self {
        Self {
            count: 0,
            key: "key",
            keys: 10_000,
            bytes: BODY,
            sent_ago: None,
            delay: None,
        }
    }
}

/// The body of the `n`th row, as `load` writes it.
pub(crate) fn body(n: usize) -> Vec<u8> {
    format!("{:x<width$}\"}}", format!("{{\"n\":{n},\"pad\":\""), width = BODY - 2).into_bytes()
}

/// The `n` of a body.
pub(crate) fn number_in(body: &[u8]) -> usize {
    let digits = body.iter().skip(5).take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |n, digit| n * 10 + usize::from(digit - b'0'))
}
