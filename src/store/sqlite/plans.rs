//! What SQLite makes of the statements on a table whose rows are numbered: nothing walks over all numbers.

use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Executor as _, Row as _};

use super::{Sqlite, inspect};
use crate::config::{self, OnSent, Secret};
use crate::store::StoreOptions;

/// `NUMERIC` by SQLite's rules, as the type says nothing to it.
const TABLE: &str =
    "CREATE TABLE outboxevent (id UUID NOT NULL PRIMARY KEY, aggregatetype TEXT, aggregateid TEXT, type TEXT,
                         payload TEXT)";

async fn plan(connection: &mut SqliteConnection, sql: &str) -> Vec<String> {
    let sql = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
    let steps = connection.fetch_all(sql).await.expect("a plan");
    steps.iter().map(|step| step.get(3)).collect()
}

async fn open(file: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(file).create_if_missing(true);
    options.connect().await.expect("a connection")
}

#[tokio::test]
async fn numbers_are_looked_up_and_not_walked_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("app.db");
    let url = format!("sqlite://{}", file.display());
    let variables = [
        ("RELAY_DATABASE_URL", url.as_str()),
        ("RELAY_AMQP_URL", "amqp://h"),
        ("RELAY_PRESET", "debezium"),
    ];
    let config = config::load(variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let options = StoreOptions {
        table: "outboxevent".parse().expect("a name"),
        on_sent: OnSent::Delete,
        timeout: std::time::Duration::from_secs(5),
        tls: config::Tls::default(),
        mapping: config.expect("good variables").config.outbox.mapping,
    };
    let mut connection = open(&file).await;
    connection.execute(TABLE).await.expect("a table");
    inspect::check_schema(&options.table).expect("a schema");
    let store = Sqlite::new(&Secret::new(url.as_str()), options).expect("a store");
    store.migrate().await.expect("migrations");
    let statements = store.statements().await.expect("a table");
    let number = statements.number.as_ref().expect("numbered");
    let walks_of_positions = async |connection: &mut SqliteConnection, sql: &str| {
        let steps = plan(connection, sql).await;
        let walks = |step: &&String| {
            let all = step.starts_with("SCAN p") || step.contains("(outbox=?)");
            (step.contains(" p") || step.contains("outbox_relay_positions")) && all
        };
        assert_eq!(steps.iter().find(walks), None, "{sql}: {steps:#?}");
        steps
    };
    for sql in statements
        .mark
        .iter()
        .chain(&statements.free)
        .chain([&statements.fetch, &statements.probe])
        .chain(&statements.failures)
        .chain([&statements.head_of, &number.in_order])
    {
        walks_of_positions(&mut connection, sql).await;
    }
    let look = plan(&mut connection, &number.as_they_come).await;
    assert!(
        look.iter().any(|step| step.contains("(outbox=? AND row_key=?)")),
        "{look:#?}"
    );
    let sorts = |steps: &[String]| steps.iter().any(|step| step.contains("TEMP B-TREE"));
    assert!(!sorts(&look), "it can end early: {look:#?}");
    let head = plan(&mut connection, &statements.head).await;
    let in_order = |step: &String| step.starts_with("SEARCH p USING INTEGER PRIMARY KEY (rowid>?)");
    assert!(head.iter().any(in_order), "{head:#?}");
    assert!(!head.iter().any(|step| step.starts_with("SCAN a")), "{head:#?}");
}
