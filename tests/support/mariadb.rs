//! A private MariaDB server, or a MySQL one where that is what is installed.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, MySqlConnection};
use tokio::sync::OnceCell;

use super::guard::{Guard, User, free_port};
use super::process;

const PASSWORD: &str = "relay-secret";
const START_TIMEOUT: Duration = Duration::from_secs(60);
const LOGIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Which of the two is installed; MariaDB where both are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    MariaDb,
    MySql,
}

/// A server in a temporary folder, with the user `relay` who may do everything.
pub struct MariaDb {
    guard: Guard,
    product: Product,
    port: u16,
    options: Vec<String>,
    pid: AtomicU32,
}

impl MariaDb {
    /// The server that the tests of one process share. Kill or freeze only a private one.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<MariaDb> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With settings (`"innodb-buffer-pool-size=128M"`) in addition to those for quick tests.
    pub async fn start_with(settings: &[&str]) -> Self {
        let mut failures = String::new();
        for _ in 0..5 {
            let failure = match Self::prepare(settings).await {
                Ok(server) => match server.launch().await {
                    Ok(()) => return server,
                    Err(failure) => failure,
                },
                Err(failure) => failure,
            };
            eprintln!("{failure}");
            failures = failure;
        }
        panic!("{failures}");
    }

    pub fn product() -> Product {
        if find("mariadbd").is_none() && find("mysqld").is_some() {
            Product::MySql
        } else {
            Product::MariaDb
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Creates an empty database and returns its URL.
    pub async fn create_database(&self) -> String {
        let name = format!("test_{}", uuid::Uuid::new_v4().simple());
        self.execute(format!("CREATE DATABASE {name}")).await;
        self.url(&name)
    }

    /// Crashes the server.
    pub async fn kill9(&self) {
        process::kill_tree(self.pid()).await;
    }

    /// Starts it again after `kill9`, with the same port and data.
    pub async fn start_again(&self) {
        assert!(!process::alive(self.pid()), "it still runs");
        if let Err(failure) = self.launch().await {
            panic!("{failure}");
        }
    }

    /// Closes the connections that this says of the processes: `user = 'app'`. Fails where the server does not answer.
    pub async fn kill_connections(&self, which: &str) -> Result<(), sqlx::Error> {
        let mut connection = MySqlConnection::connect(&self.url("")).await?;
        let ids = format!(
            "SELECT CAST(id AS SIGNED) FROM information_schema.processlist WHERE id <> connection_id() AND {which}"
        );
        let ids: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(ids))
            .fetch_all(&mut connection)
            .await?;
        for id in ids {
            // One that has ended meanwhile is an error, and as well.
            let kill = sqlx::raw_sql(AssertSqlSafe(format!("KILL {id}")));
            let _ = kill.execute(&mut connection).await;
        }
        let _ = connection.close().await;
        Ok(())
    }

    /// Runs one statement with all rights, in no database.
    pub async fn execute(&self, sql: String) {
        let mut connection = self.connect().await;
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut connection)
            .await
            .unwrap_or_else(|e| panic!("{:?}: {e}\n{}", self.product, self.guard.log_tail()));
        let _ = connection.close().await;
    }

    async fn connect(&self) -> MySqlConnection {
        MySqlConnection::connect(&self.url(""))
            .await
            .unwrap_or_else(|e| panic!("{:?}: {e}\n{}", self.product, self.guard.log_tail()))
    }

    fn url(&self, database: &str) -> String {
        format!("mysql://relay:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Makes the data folder.
    async fn prepare(settings: &[&str]) -> Result<Self, String> {
        let (guard, product) = (Guard::new("mariadb", User::instead_of_root("mysql")), Self::product());
        let data = format!("--datadir={}", guard.dir().join("data").display());
        let (program, args) = match product {
            // The rest is for Debian's own service, and asks for root.
            Product::MariaDb => (
                "mariadb-install-db",
                vec!["--skip-test-db", "--auth-root-authentication-method=normal"],
            ),
            Product::MySql => (
                "mysqld",
                vec!["--initialize-insecure", "--innodb-redo-log-capacity=32M"],
            ),
        };
        let args = [vec!["--no-defaults", &data], args].concat();
        let pid = guard.start(&[], &needed(program), &args);
        process::wait_gone(&[pid], START_TIMEOUT).await;
        let done = match product {
            // It says so before a page of advice.
            Product::MariaDb => guard.log_tail().lines().any(|line| line == "OK"),
            Product::MySql => !guard.log_tail().contains("[ERROR]"),
        };
        if !done {
            return Err(format!("{program} failed:\n{}", guard.log_tail()));
        }
        let user = format!(
            "CREATE USER IF NOT EXISTS relay@'127.0.0.1' IDENTIFIED BY '{PASSWORD}';\n\
             GRANT ALL ON *.* TO relay@'127.0.0.1' WITH GRANT OPTION;\n"
        );
        std::fs::write(guard.dir().join("init.sql"), user).expect("the folder is writable");
        Ok(Self {
            guard,
            product,
            port: free_port(),
            options: settings.iter().map(|setting| format!("--{setting}")).collect(),
            pid: AtomicU32::new(0),
        })
    }

    /// Starts the server and waits until it answers; fails when it ends before.
    async fn launch(&self) -> Result<(), String> {
        let dir = self.guard.dir().display();
        let args = [
            // As a server comes, latin1 included: the relay must not depend on what its operators set.
            "--no-defaults".to_owned(),
            format!("--datadir={dir}/data"),
            format!("--tmpdir={dir}"),
            format!("--socket={dir}/socket"),
            format!("--pid-file={dir}/pid"),
            format!("--init-file={dir}/init.sql"),
            format!("--port={}", self.port),
            "--bind-address=127.0.0.1".to_owned(),
            "--skip-name-resolve".to_owned(),
            "--max-connections=300".to_owned(),
            "--innodb-buffer-pool-size=64M".to_owned(),
            "--max-allowed-packet=64M".to_owned(),
            // As from 11.8 on: a transaction that would change what was changed since it began to read fails (1020).
            // Loose: MySQL does not have it.
            "--loose-innodb-snapshot-isolation=ON".to_owned(),
            // Not to the disk at each commit, but out of the process: nothing is lost when it is killed.
            "--innodb-flush-log-at-trx-commit=2".to_owned(),
            // Nor the binary log, which MySQL writes by default.
            "--sync-binlog=0".to_owned(),
        ];
        let (program, own) = match self.product {
            Product::MariaDb => ("mariadbd", &[][..]),
            // Its second protocol has a port and a socket of its own.
            Product::MySql => ("mysqld", &["--mysqlx=OFF", "--innodb-redo-log-capacity=32M"][..]),
        };
        let args = args.iter().chain(&self.options).map(String::as_str);
        let args: Vec<&str> = args.chain(own.iter().copied()).collect();
        // Of a MySQL that was killed: it holds while its process has not been collected yet.
        let _ = std::fs::remove_file(self.guard.dir().join("socket.lock"));
        let pid = self.guard.start(&[], &needed(program), &args);
        self.pid.store(pid, Ordering::Relaxed);

        let (end, mut last) = (Instant::now() + START_TIMEOUT, String::new());
        while process::alive(pid) && Instant::now() < end {
            let url = self.url("");
            let login = MySqlConnection::connect(&url);
            match tokio::time::timeout(LOGIN_TIMEOUT, login).await {
                // Another server may have taken the port: then ours is about to end.
                Ok(Ok(connection)) => {
                    let _ = connection.close().await;
                    if process::alive(pid) {
                        return Ok(());
                    }
                }
                Ok(Err(error)) => last = error.to_string(),
                Err(_) => last = format!("no answer within {LOGIN_TIMEOUT:?}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let product = self.product;
        Err(format!(
            "{product:?} did not start ({last}):\n{}",
            self.guard.log_tail()
        ))
    }
}

/// The numbers `from` to `to`, as a table `s` with the column `seq`; of both products.
pub fn numbers(from: i64, to: i64) -> String {
    format!(
        "(SELECT {from} - 1 + i AS seq FROM JSON_TABLE(concat('[', repeat('0,', {}), '0]'), '$[*]' COLUMNS (i FOR ORDINALITY)) AS j) AS s",
        to - from
    )
}

/// Where Debian has it, which is not in every user's `PATH`, or in `PATH`.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    ["/usr/sbin", "/usr/bin"]
        .into_iter()
        .chain(path.split(':'))
        .map(|dir| Path::new(dir).join(program))
        .find(|file| file.exists())
}

fn needed(program: &str) -> PathBuf {
    find(program).unwrap_or_else(|| panic!("MariaDB or MySQL is needed: {program} is neither in /usr/sbin nor in PATH"))
}
