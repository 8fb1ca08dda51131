//! A private PostgreSQL server.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};
use tokio::sync::OnceCell;

use super::guard::{Guard, User, free_port};
use super::process;

pub(super) const PASSWORD: &str = "relay-secret";
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A cluster in a temporary folder, with the superuser `relay`.
pub struct Postgres {
    guard: Guard,
    bin: PathBuf,
    port: u16,
    options: Vec<String>,
    pid: AtomicU32,
}

impl Postgres {
    /// The server that the tests of one process share. Kill or freeze only a private one.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Postgres> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With settings (`"fsync=on"`) in addition to those for quick tests.
    pub async fn start_with(settings: &[&str]) -> Self {
        let mut failures = String::new();
        for _ in 0..5 {
            let server = Self::prepare(settings).await;
            match server.launch().await {
                Ok(()) => return server,
                Err(failure) => failures = failure,
            }
        }
        panic!("{failures}");
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn admin_url(&self) -> String {
        self.url("postgres")
    }

    /// Creates an empty database and returns its URL.
    pub async fn create_database(&self) -> String {
        let name = format!("test_{}", uuid::Uuid::new_v4().simple());
        self.execute(format!("CREATE DATABASE {name}")).await;
        self.url(&name)
    }

    /// Crashes the server: no process of it runs a clean-up.
    pub async fn kill9(&self) {
        process::kill_tree(self.pid()).await;
    }

    /// Stops it cleanly; open connections are closed ("fast").
    pub async fn stop(&self) {
        let pids = process::tree(self.pid());
        process::signal("INT", &[self.pid()]);
        process::wait_gone(&pids, Duration::from_secs(30)).await;
    }

    /// Starts it again after `kill9` or `stop`, with the same port and data.
    pub async fn start_again(&self) {
        assert!(!process::alive(self.pid()), "PostgreSQL still runs");
        if let Err(failure) = self.launch().await {
            panic!("{failure}");
        }
    }

    /// Stops all its processes in their tracks: connections stay open, nothing answers.
    pub fn freeze(&self) {
        process::signal("STOP", &process::tree(self.pid()));
    }

    pub fn thaw(&self) {
        process::signal("CONT", &process::tree(self.pid()));
    }

    /// Closes every client's connection.
    pub async fn terminate_backends(&self) {
        self.terminate("true").await;
    }

    /// Closes the connections to the database of this URL only.
    pub async fn terminate_backends_of(&self, url: &str) {
        let name = url.rsplit('/').next().unwrap_or_default();
        self.terminate(&format!("datname = '{name}'")).await;
    }

    async fn terminate(&self, which: &str) {
        self.execute(format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND {which}"
        ))
        .await;
    }

    /// Runs one statement as superuser, in the database `postgres`.
    async fn execute(&self, sql: String) {
        let mut connection = PgConnection::connect(&self.admin_url())
            .await
            .unwrap_or_else(|e| panic!("PostgreSQL: {e}\n{}", self.guard.log_tail()));
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
            .execute(&mut connection)
            .await
            .unwrap_or_else(|e| panic!("PostgreSQL: {e}\n{}", self.guard.log_tail()));
        let _ = connection.close().await;
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://relay:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// Of the server's first process; all others descend from it.
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Makes the data folder.
    async fn prepare(settings: &[&str]) -> Self {
        let bin = find_bin();
        let guard = Guard::new("postgres", User::instead_of_root("postgres"));
        let password_file = guard.dir().join("password");
        std::fs::write(&password_file, PASSWORD).expect("the folder is writable");
        let data = guard.dir().join("data");
        let data = data.to_string_lossy();
        let password_file = format!("--pwfile={}", password_file.to_string_lossy());
        // "password": really checked, yet cheap for a client built without optimisation.
        let args = [
            "-D",
            &data,
            "-U",
            "relay",
            "--auth=password",
            &password_file,
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ];
        let pid = guard.start(&[], &bin.join("initdb"), &args);
        process::wait_gone(&[pid], START_TIMEOUT).await;
        assert!(
            guard.log_tail().contains("Success."),
            "initdb failed:\n{}",
            guard.log_tail()
        );
        let port = free_port();
        let mut options: Vec<String> = [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "max_connections=300",
            "shared_buffers=64MB",
            "fsync=off",
            &format!("port={port}"),
        ]
        .map(String::from)
        .to_vec();
        options.extend(settings.iter().map(|s| (*s).to_string()));
        Self {
            guard,
            bin,
            port,
            options,
            pid: AtomicU32::new(0),
        }
    }

    /// Starts the server and waits until it answers a query; fails when it ends before.
    async fn launch(&self) -> Result<(), String> {
        let data = self.guard.dir().join("data");
        let mut args = vec!["-D".to_string(), data.to_string_lossy().into_owned()];
        for option in &self.options {
            args.extend(["-c".to_string(), option.clone()]);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let pid = self.guard.start(&[], &self.bin.join("postgres"), &args);
        self.pid.store(pid, Ordering::Relaxed);

        let end = Instant::now() + START_TIMEOUT;
        while process::alive(pid) && Instant::now() < end {
            if let Ok(mut connection) = PgConnection::connect(&self.admin_url()).await {
                let answer = connection.ping().await;
                let _ = connection.close().await;
                // Another server may have taken the port: then ours is about to end.
                if answer.is_ok() && process::alive(pid) {
                    return Ok(());
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(format!("PostgreSQL did not start:\n{}", self.guard.log_tail()))
    }
}

/// The folder of `initdb` and `postgres`: the newest version of Debian's layout, or that of `PATH`.
fn find_bin() -> PathBuf {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let version = path.file_name()?.to_str()?.parse().ok()?;
            Some((version, path.join("bin")))
        })
        .filter(|(_, bin)| bin.join("initdb").exists())
        .collect();
    found.sort();
    if let Some((_, bin)) = found.pop() {
        return bin;
    }
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .map(|dir| Path::new(dir).to_path_buf())
        .find(|dir| dir.join("initdb").exists())
        .expect("PostgreSQL is needed: initdb is neither in /usr/lib/postgresql/*/bin nor in PATH")
}
