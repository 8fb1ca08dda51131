//! A private PgBouncer in transaction mode.

use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use super::guard::{Guard, User, free_port};
use super::postgres::PASSWORD;
use super::{Postgres, until};

/// A pooler before a server, with fewer server connections than clients.
pub struct PgBouncer {
    guard: Guard,
    port: u16,
}

impl PgBouncer {
    /// `settings` are lines of the section `[pgbouncer]` beyond the least.
    pub async fn before(server: &Postgres, settings: &str) -> Self {
        let guard = Guard::new("pgbouncer", User::instead_of_root("postgres"));
        let port = free_port();
        let users = guard.dir().join("users.txt");
        std::fs::write(&users, format!("\"relay\" \"{PASSWORD}\"\n")).expect("the folder is writable");
        let configuration = guard.dir().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = plain\nauth_file = {}\npool_mode = transaction\n\
             default_pool_size = 6\nmax_client_conn = 100\n{settings}\n",
            server.port(),
            users.display()
        );
        std::fs::write(&configuration, text).expect("the folder is writable");
        let program = PathBuf::from("/usr/sbin/pgbouncer");
        guard.start(&[], &program, &[&configuration.to_string_lossy()]);
        let pooler = Self { guard, port };
        until("PgBouncer serves", Duration::from_secs(20), async || {
            let log = pooler.guard.log_tail();
            assert!(!log.contains("FATAL"), "{log}");
            log.contains("process up") && TcpStream::connect(("127.0.0.1", port)).is_ok()
        })
        .await;
        pooler
    }

    /// The same URL, through the pooler.
    pub fn through(&self, url: &str) -> String {
        let (start, database) = url.rsplit_once('/').expect("a database's URL");
        let (start, _port) = start.rsplit_once(':').expect("a port in the URL");
        format!("{start}:{}/{database}", self.port)
    }
}
