//! Private servers and helpers for tests.
//!
//! Every server is real, started by the test process on free ports in a temporary folder, and ends
//! with that process in whatever way it ends. A server that cannot be had fails the test.

// Each test file is a crate of its own and uses its share of this module.
#![allow(dead_code, unused_imports, unreachable_pub, missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod authority;
mod consumer;
mod guard;
pub mod http;
mod mariadb;
mod pgbouncer;
mod postgres;
pub mod process;
mod proxy;
pub mod python;
mod rabbit;
mod relay;

use std::time::{Duration, Instant};

pub use authority::{Authority, Pair, replace};
pub use consumer::{Consumer, Kind, PREFETCH, Received, arrivals, declare, drain_queue, exchange, unbind};
pub use guard::{User, free_port};
pub use mariadb::{MariaDb, Product, numbers};
pub use pgbouncer::PgBouncer;
pub use postgres::Postgres;
pub use proxy::Proxy;
pub use rabbit::Rabbit;
pub use relay::{Relay, RelayCommand};

/// Waits until the condition holds; panics with what it waited for.
pub async fn until(what: &str, timeout: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + timeout;
    while !condition().await {
        assert!(Instant::now() < end, "not within {timeout:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
