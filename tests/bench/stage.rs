//! The servers, and what stands on them: one outbox table, one exchange, one queue at a time.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, MySqlConnection, PgConnection};

use crate::support::{Kind, MariaDb, Postgres, Rabbit, Relay, RelayCommand, declare};

pub(crate) const EXCHANGE: &str = "events";
pub(crate) const ROUTING_KEY: &str = "bench";

/// Bytes of a body.
pub(crate) const BODY: usize = 256;

/// After a queue was deleted and rows were loaded, the servers clean up: not to be measured.
const SETTLE: Duration = Duration::from_millis(500);

/// Which database is drained.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Database {
    Postgres,
    MariaDb,
}

/// A server with a connection to it.
enum Db {
    Postgres { db: PgConnection, _server: Postgres },
    MariaDb { db: MySqlConnection, _server: MariaDb },
}

pub(crate) struct Stage {
    rabbit: Rabbit,
    pub(crate) database_url: String,
    pub(crate) amqp_url: String,
    db: Db,
    queues: usize,
}

impl Db {
    /// As the server comes; the tests' own settings are for quick tests.
    async fn start(database: Database) -> (Self, String) {
        match database {
            Database::Postgres => {
                let server = Postgres::start_with(&["fsync=on", "shared_buffers=128MB"]).await;
                let url = server.create_database().await;
                let db = PgConnection::connect(&url).await.expect("the server is up");
                (Self::Postgres { db, _server: server }, url)
            }
            Database::MariaDb => {
                let settings = ["innodb-flush-log-at-trx-commit=1", "innodb-buffer-pool-size=128M"];
                let server = MariaDb::start_with(&settings).await;
                let url = server.create_database().await;
                let db = MySqlConnection::connect(&url).await.expect("the server is up");
                (Self::MariaDb { db, _server: server }, url)
            }
        }
    }
}

impl Stage {
    pub(crate) async fn start(database: Database) -> Self {
        let ((db, database_url), rabbit) = tokio::join!(Db::start(database), Rabbit::start());
        let amqp_url = rabbit.url();
        let env = [
            ("RELAY_DATABASE_URL", database_url.as_str()),
            ("RELAY_AMQP_URL", amqp_url.as_str()),
        ];
        let (status, out, err) = Relay::run_to_end(&["migrate"], &env).await;
        assert!(status.success(), "{out}{err}");
        Self {
            rabbit,
            database_url,
            amqp_url,
            db,
            queues: 0,
        }
    }

    pub(crate) async fn versions(&mut self) -> String {
        let database = match &mut self.db {
            Db::Postgres { db, .. } => {
                let version: String = sqlx::query_scalar("SHOW server_version")
                    .fetch_one(db)
                    .await
                    .expect("it answers");
                format!("PostgreSQL {version} (fsync on)")
            }
            Db::MariaDb { db, .. } => {
                let version: String = sqlx::query_scalar("SELECT version()")
                    .fetch_one(db)
                    .await
                    .expect("it answers");
                format!("MariaDB {version} (flushed at each commit)")
            }
        };
        let rabbit = self.rabbit.eval("rabbit_misc:version()").await;
        format!("{database}, RabbitMQ {}", rabbit.trim_matches('"'))
    }

    /// A relay between the servers, not started yet.
    pub(crate) fn relay(&self) -> RelayCommand {
        Relay::command()
            .env("RELAY_DATABASE_URL", &self.database_url)
            .env("RELAY_AMQP_URL", &self.amqp_url)
            .env("RELAY_AMQP_EXCHANGE", EXCHANGE)
            .env("RELAY_ORDERING", "strict")
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
    pub(crate) async fn load(&mut self, rows: usize, keys: usize) {
        let pad = BODY - 2;
        let into = "INSERT INTO outbox (routing_key, ordering_key, payload)";
        let (empty, fill, analyze) = match self.db {
            Db::Postgres { .. } => (
                "TRUNCATE outbox RESTART IDENTITY; CHECKPOINT",
                format!(
                    "{into} SELECT '{ROUTING_KEY}', 'key-' || n % {keys}, (rpad('{{\"n\":' || n || ',\"pad\":\"', {pad}, 'x') || '\"}}')::json
                     FROM generate_series(1, {rows}) AS n"
                ),
                "ANALYZE outbox",
            ),
            Db::MariaDb { .. } => (
                "TRUNCATE outbox",
                format!(
                    "{into} SELECT '{ROUTING_KEY}', concat('key-', seq % {keys}), concat(rpad(concat('{{\"n\":', seq, ',\"pad\":\"'), {pad}, 'x'), '\"}}')
                     FROM seq_1_to_{rows}"
                ),
                "ANALYZE TABLE outbox",
            ),
        };
        for statement in empty.split(';') {
            self.run(statement).await;
        }
        if rows > 0 {
            self.run(&fill).await;
        }
        self.run(analyze).await;
    }

    /// The connection to PostgreSQL, where a measurement is for it alone.
    pub(crate) fn postgres(&mut self) -> &mut PgConnection {
        match &mut self.db {
            Db::Postgres { db, .. } => db,
            Db::MariaDb { .. } => panic!("this is measured on PostgreSQL"),
        }
    }

    pub(crate) async fn run(&mut self, sql: &str) {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        match &mut self.db {
            Db::Postgres { db, .. } => sql.execute(db).await.map(drop),
            Db::MariaDb { db, .. } => sql.execute(db).await.map(drop),
        }
        .expect("it runs");
    }

    pub(crate) async fn number(&mut self, sql: &str) -> i64 {
        let sql = AssertSqlSafe(sql.to_owned());
        match &mut self.db {
            Db::Postgres { db, .. } => sqlx::query_scalar(sql).fetch_one(db).await,
            Db::MariaDb { db, .. } => sqlx::query_scalar(sql).fetch_one(db).await,
        }
        .expect("a number")
    }

    /// Rows that are neither sent nor dead.
    pub(crate) async fn unsent(&mut self) -> i64 {
        self.number("SELECT count(*) FROM outbox WHERE sent_at IS NULL AND dead_at IS NULL")
            .await
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
