//! `outbox-relay check`: everything `run` needs, one line each.

mod broker;
mod management;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Config, OnSent, TableName, redacted_url};
use crate::message::RowId;
use crate::status::unix_now;
use crate::store::operator::{Refused, Route, SentMark, Upkeep, Vacuum};
use crate::store::{self, Operator, Store, StoreError};

/// Clocks further apart than this, in seconds, are worth a word.
const CLOCK_SKEW: f64 = 5.0;

/// Autovacuum begins at its threshold; at so many times of it, it does not keep up.
const VACUUM_LAG: u64 = 5;

/// So many places that unsent rows go to are compared with what the broker has.
const ROUTES: u32 = 1_000;

/// One line of the answer.
struct Line {
    what: String,
    result: Result<String, Trouble>,
}

/// What is wrong, why it matters, how to mend it.
struct Trouble {
    text: String,
    /// The relay works, only not as well as it could.
    bearable: bool,
}

impl From<String> for Trouble {
    fn from(text: String) -> Self {
        Self { text, bearable: false }
    }
}

pub(super) async fn check(config: &Config, warnings: &[String]) -> ExitCode {
    let mut lines = vec![configuration(warnings)];
    let (of_database, routes) = database(config).await;
    lines.extend(of_database);
    lines.extend(broker::lines(config, &routes).await);
    if let Some(url) = &config.amqp_management_url {
        lines.extend(management::lines(config, url, &routes).await);
    }
    let mut failed = false;
    for Line { what, result } in &lines {
        match result {
            Ok(text) => println!("ok      {what}: {text}"),
            Err(trouble) if trouble.bearable => println!("warning {what}: {}", trouble.text),
            Err(trouble) => {
                failed = true;
                println!("FAILED  {what}: {}", trouble.text);
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn line(what: impl Into<String>, result: Result<String, String>) -> Line {
    Line {
        what: what.into(),
        result: result.map_err(Trouble::from),
    }
}

fn warning(what: impl Into<String>, text: String) -> Line {
    Line {
        what: what.into(),
        result: Err(Trouble { text, bearable: true }),
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

/// With where the unsent rows go.
async fn database(config: &Config) -> (Vec<Line>, Vec<Route>) {
    let address = redacted_url(config.database_url.expose());
    let operator = match store::open_operator(&config.database_url, super::store_options(config)) {
        Ok(operator) => operator,
        Err(error) => {
            return (
                vec![line(format!("database {address}"), Err(error.to_string()))],
                Vec::new(),
            );
        }
    };
    let store: Arc<dyn Store> = operator.clone();
    let mut lines = vec![
        line(format!("database {address}"), reachable(&store).await),
        line(format!("table {}", config.outbox.table), inspected(&store).await),
        line("leases", leases(&*operator, config).await),
    ];
    let mut routes = Vec::new();
    if lines.iter().all(|line| line.result.is_ok()) {
        if let Ok(Some(columns)) = operator.columns().await {
            lines.push(line("columns", Ok(columns)));
        }
        let advice = operator.advice().await.unwrap_or_default();
        lines.extend(advice.into_iter().map(|text| warning("table", text)));
        lines.extend(purging(&*operator, config).await);
        lines.extend(clock(&*operator).await);
        lines.extend(upkeep(&*operator, config).await);
        match operator.routes(ROUTES).await {
            Ok(found) => routes = found,
            Err(error) => lines.push(line("routing keys", Err(error.to_string()))),
        }
    }
    if operator.is_exposed() {
        lines.push(exposed("database", "RELAY_DATABASE_CA_FILE, or RELAY_REQUIRE_TLS=true"));
    }
    operator.close().await;
    (lines, routes)
}

/// The relay works without the right to delete; only the table grows.
async fn purging(operator: &dyn Operator, config: &Config) -> Option<Line> {
    let marked = config.outbox.on_sent == OnSent::Mark && matches!(operator.sent_mark().await, Ok(SentMark::Time));
    config.outbox.retention.filter(|_| marked)?;
    // No row has this id. Whether the statement may be run is told all the same.
    match operator.discard(&[RowId(i64::MIN)], Refused::GivenUp).await {
        Err(StoreError::Denied(text)) => Some(warning(
            "purge",
            format!(
                "{text}: sent rows stay when RELAY_OUTBOX_RETENTION is over, and dead letters cannot be discarded; grant DELETE \
                 (`outbox-relay migrate --print-grants=ROLE` writes it), or set RELAY_OUTBOX_RETENTION=off"
            ),
        )),
        _ => None,
    }
}

fn exposed(what: &str, variables: &str) -> Line {
    warning(
        format!("TLS to the {what}"),
        format!("what is sent to another machine, the password included, may go without it: set {variables}"),
    )
}

/// Leases and delays go by the database's clock alone, so a difference breaks nothing; but it misleads people.
async fn clock(operator: &dyn Operator) -> Vec<Line> {
    let before = unix_now();
    let database = match operator.database().await {
        Ok(database) => database,
        Err(error) => return vec![line("version", Err(error.to_string()))],
    };
    // The answer was made at some time in between.
    let ahead = database.now - (before + unix_now()) / 2.0;
    let text = format!(
        "the database's is {:.1} s {} this machine's",
        ahead.abs(),
        if ahead < 0.0 { "behind" } else { "ahead of" }
    );
    vec![
        line("version", Ok(format!("{} {}", database.product, database.version))),
        if ahead.abs() < CLOCK_SKEW {
            line("clock", Ok(text))
        } else {
            warning(
                "clock",
                format!(
                    "{text}: logs, alerts on timestamps and the AMQP timestamp will not fit; let both follow the same NTP servers"
                ),
            )
        },
    ]
}

async fn upkeep(operator: &dyn Operator, config: &Config) -> Vec<Line> {
    let table = &config.outbox.table;
    let Upkeep {
        unsent_index,
        dead_index,
        vacuum,
    } = match operator.upkeep().await {
        Ok(upkeep) => upkeep,
        Err(error) => return vec![line("indexes", Err(error.to_string()))],
    };
    let mut lines = Vec::new();
    if !unsent_index.exists {
        lines.push(line(
            "indexes",
            Err(format!(
                "no index of unsent rows: every read walks over all rows ever sent; make it: {}",
                unsent_index.create
            )),
        ));
    } else if !dead_index.exists {
        lines.push(warning(
            "indexes",
            format!(
                "no index of dead letters: counting and listing them reads the whole table; make it: {}",
                dead_index.create
            ),
        ));
    } else {
        lines.push(line(
            "indexes",
            Ok("unsent rows and dead letters have theirs".to_owned()),
        ));
    }
    lines.extend(vacuum.map(|vacuum| judge_vacuum(&vacuum, table)));
    lines
}

fn judge_vacuum(vacuum: &Vacuum, table: &TableName) -> Line {
    let Vacuum {
        enabled,
        dead_rows,
        threshold,
        last,
    } = vacuum;
    let last = match last {
        Some(last) => format!(
            "the last was {} ago",
            humantime::format_duration(Duration::from_secs(last.as_secs()))
        ),
        None => "there was none yet".to_owned(),
    };
    if !enabled {
        return warning(
            "autovacuum",
            format!(
                "it is off for {table}, and every row sent leaves a dead version: reads become slow and the table grows; \
                 ALTER TABLE {table} RESET (autovacuum_enabled), and autovacuum = on in the server"
            ),
        );
    }
    if *dead_rows > VACUUM_LAG * (*threshold).max(1) {
        return warning(
            "autovacuum",
            format!(
                "{dead_rows} dead row versions, {last}: it does not keep up, reads become slow and the table grows; look for old \
                 transactions (SELECT pid, xact_start, state, query FROM pg_stat_activity ORDER BY xact_start), raise \
                 autovacuum_vacuum_cost_limit, or run VACUUM {table}"
            ),
        );
    }
    line(
        "autovacuum",
        Ok(format!("{dead_rows} dead row versions, begins at {threshold}; {last}")),
    )
}

/// The operating system's words for a server that is not there: they do not say what to do.
fn is_unanswered(text: &str) -> bool {
    ["onnection refused", "lookup address", "No route to host", "unreachable"]
        .iter()
        .any(|words| text.contains(words))
}

/// A database that says something about the table is reachable, whatever it says.
async fn reachable(store: &Arc<dyn Store>) -> Result<String, String> {
    match store.inspect().await {
        Err(StoreError::Unavailable(text)) if is_unanswered(&text) => Err(format!(
            "{text}: look at host and port in RELAY_DATABASE_URL, whether the server runs, and at firewalls between"
        )),
        Err(StoreError::Unavailable(text)) => Err(text),
        _ => Ok("reachable".to_owned()),
    }
}

async fn inspected(store: &Arc<dyn Store>) -> Result<String, String> {
    store.inspect().await.map_err(|error| error.to_string())?;
    Ok("columns, types and privileges fit".to_owned())
}

/// What is read and written as a relay does it, but taken back.
async fn leases(operator: &dyn Operator, config: &Config) -> Result<String, String> {
    let work = async {
        operator.has_free_shares(config.partitions).await?;
        operator.pauses().await?;
        operator.try_lease(config.partitions).await
    };
    let done: Result<(), StoreError> = work.await;
    done.map(|()| "the relay's own tables are there, and can be written".to_owned())
        .map_err(|error| error.with_advice())
}
