//! The servers, and what stands on them: one outbox table, one exchange, one queue at a time.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::support::{Kind, Postgres, Rabbit, Relay, RelayCommand, declare};

pub(crate) const EXCHANGE: &str = "events";
pub(crate) const ROUTING_KEY: &str = "bench";

/// Bytes of a body.
pub(crate) const BODY: usize = 256;

/// After a queue was deleted and rows were loaded, the servers clean up: not to be measured.
const SETTLE: Duration = Duration::from_millis(500);

pub(crate) struct Stage {
    _postgres: Postgres,
    rabbit: Rabbit,
    pub(crate) database_url: String,
    pub(crate) amqp_url: String,
    pub(crate) db: PgConnection,
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
        let env = [
            ("RELAY_DATABASE_URL", database_url.as_str()),
            ("RELAY_AMQP_URL", amqp_url.as_str()),
        ];
        let (status, out, err) = Relay::run_to_end(&["migrate"], &env).await;
        assert!(status.success(), "{out}{err}");
        let db = PgConnection::connect(&database_url).await.expect("the server is up");
        Self {
            _postgres: postgres,
            rabbit,
            database_url,
            amqp_url,
            db,
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
        self.run("TRUNCATE outbox RESTART IDENTITY").await;
        self.run("CHECKPOINT").await;
        if rows > 0 {
            self.run(&format!(
                "INSERT INTO outbox (routing_key, ordering_key, payload)
                 SELECT '{ROUTING_KEY}', 'key-' || n % {keys}, (rpad('{{\"n\":' || n || ',\"pad\":\"', {}, 'x') || '\"}}')::json
                 FROM generate_series(1, {rows}) AS n",
                BODY - 2
            ))
            .await;
        }
        self.run("ANALYZE outbox").await;
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
