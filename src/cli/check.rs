//! `outbox-relay check`: everything `run` needs, one line each.

use std::process::ExitCode;
use std::sync::Arc;

use crate::broker::Broker;
use crate::broker::amqp::Amqp;
use crate::config::{Config, redacted_url};
use crate::store::{self, Store, StoreError};

/// One line of the answer.
struct Line {
    what: String,
    result: Result<String, String>,
}

pub(super) async fn check(config: &Config, warnings: &[String]) -> ExitCode {
    let mut lines = vec![configuration(warnings)];
    lines.extend(database(config).await);
    lines.extend(broker(config).await);
    let mut failed = false;
    for Line { what, result } in &lines {
        match result {
            Ok(text) => println!("ok      {what}: {text}"),
            Err(text) => println!("FAILED  {what}: {text}"),
        }
        failed |= result.is_err();
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn line(what: impl Into<String>, result: Result<String, String>) -> Line {
    Line {
        what: what.into(),
        result,
    }
}

fn configuration(warnings: &[String]) -> Line {
    let result = if warnings.is_empty() {
        Ok("every variable is known".to_owned())
    } else {
        Err(warnings.join("; "))
    };
    line("configuration", result)
}

async fn database(config: &Config) -> Vec<Line> {
    let address = redacted_url(config.database_url.expose());
    let store = match store::open(&config.database_url, super::store_options(config)) {
        Ok(store) => store,
        Err(error) => return vec![line(format!("database {address}"), Err(error.to_string()))],
    };
    let lines = vec![
        line(format!("database {address}"), reachable(&store).await),
        line(format!("table {}", config.outbox.table), inspected(&store).await),
        line("leases", leases(&store, config).await),
    ];
    store.close().await;
    lines
}

/// A database that says something about the table is reachable, whatever it says.
async fn reachable(store: &Arc<dyn Store>) -> Result<String, String> {
    match store.inspect().await {
        Err(StoreError::Unavailable(text)) => Err(text),
        _ => Ok("reachable".to_owned()),
    }
}

async fn inspected(store: &Arc<dyn Store>) -> Result<String, String> {
    store.inspect().await.map_err(|error| error.to_string())?;
    Ok("columns, types and privileges fit".to_owned())
}

async fn leases(store: &Arc<dyn Store>, config: &Config) -> Result<String, String> {
    let free = store.has_free_shares(config.partitions).await;
    free.map(|_| "the relay's own tables are there".to_owned())
        .map_err(|error| error.to_string())
}

async fn broker(config: &Config) -> Vec<Line> {
    let connected = match Amqp::new(super::amqp_options(config)).connect().await {
        Ok(connected) => connected,
        Err(error) => return vec![line("broker", Err(error.to_string()))],
    };
    let session = connected.session;
    let mut lines = vec![line(
        format!("broker {}", session.address()),
        Ok("logged in".to_owned()),
    )];
    if session.blocked() {
        lines.push(line(
            "alarm",
            Err("the broker takes no messages (memory or disk alarm)".to_owned()),
        ));
    }
    if !config.amqp_exchange.is_empty() {
        let exists = session.check_exchange(&config.amqp_exchange).await;
        lines.push(line(
            format!("exchange {:?}", config.amqp_exchange),
            exists.map(|()| "exists".to_owned()),
        ));
    }
    session.close().await;
    lines
}
