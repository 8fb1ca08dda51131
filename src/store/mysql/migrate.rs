//! Migrations of MariaDB and MySQL: one process at a time. Each statement that makes a table commits by itself, and can
//! be run again: after an end in the middle, the next run goes on.

use std::time::Duration;

use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection, Row as _};

use super::connect::Connector;
use super::error::classify;
use crate::config::{Mapping, TableName};
use crate::store::StoreError;
use crate::store::migrate::{Applied, EXISTING, Migration, book, literal, printed, render, wanted};
use crate::store::slot::within;

const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        name: "outbox",
        sql: include_str!("../../../migrations/mysql/0001_outbox.sql"),
    },
    Migration {
        version: 2,
        name: "leases",
        sql: include_str!("../../../migrations/mysql/0002_leases.sql"),
    },
    Migration {
        version: EXISTING,
        name: "tables for an existing outbox",
        sql: include_str!("../../../migrations/mysql/0003_existing.sql"),
    },
    Migration {
        version: 4,
        name: "pauses",
        sql: include_str!("../../../migrations/mysql/0004_pauses.sql"),
    },
    Migration {
        version: 5,
        name: "errors",
        sql: include_str!("../../../migrations/mysql/0005_errors.sql"),
    },
];

/// An index on a table that already has rows may take a while.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Names stand in standard quotes after it; undone by [`OWN_QUOTES`].
const STANDARD_QUOTES: &str =
    "SET @outbox_relay_mode = @@sql_mode, sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,STRICT_TRANS_TABLES'";

const OWN_QUOTES: &str = "SET sql_mode = @outbox_relay_mode";

/// The server's lock of this name; it goes with the session, so that a dropped connection gives it back.
const LOCK: &str = "'outbox_relay_migrate'";

/// Runs what is not in the book yet.
pub(super) async fn migrate(
    connector: &Connector,
    table: &TableName,
    mapping: &Mapping,
) -> Result<Vec<Applied>, StoreError> {
    within(TIMEOUT, async {
        let mut connection = connector.connect_unbounded().await?;
        let applied = under_lock(&mut connection, table, mapping)
            .await
            .map_err(|error| explain(&error, table))?;
        // The work is done; a goodbye that fails changes nothing.
        let _ = connection.close().await;
        Ok(applied)
    })
    .await
}

async fn under_lock(
    connection: &mut MySqlConnection,
    table: &TableName,
    mapping: &Mapping,
) -> Result<Vec<Applied>, sqlx::Error> {
    run(connection, format!("DO get_lock({LOCK}, {})", TIMEOUT.as_secs())).await?;
    run(connection, create_book(table)).await?;
    let mut applied = Vec::new();
    for migration in wanted(MIGRATIONS, mapping) {
        if is_recorded(connection, migration, table).await? {
            continue;
        }
        run(connection, render(migration, table)).await?;
        run(connection, record(migration, table)).await?;
        applied.push(Applied {
            version: migration.version,
            name: migration.name,
        });
    }
    Ok(applied)
}

async fn run(connection: &mut MySqlConnection, sql: String) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(drop)
}

async fn is_recorded(
    connection: &mut MySqlConnection,
    migration: &Migration,
    table: &TableName,
) -> Result<bool, sqlx::Error> {
    let sql = format!("SELECT count(*) FROM {} WHERE outbox = ? AND version = ?", book(table));
    let query = sqlx::query(AssertSqlSafe(sql))
        .bind(table.name())
        .bind(migration.version);
    Ok(query.fetch_one(connection).await?.try_get::<i64, _>(0)? > 0)
}

fn create_book(table: &TableName) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {} (
    outbox varchar(63) NOT NULL,
    version int NOT NULL,
    applied_at timestamp(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
    PRIMARY KEY (outbox, version)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
        book(table)
    )
}

fn record(migration: &Migration, table: &TableName) -> String {
    format!(
        "INSERT INTO {} (outbox, version) VALUES ({}, {}) ON DUPLICATE KEY UPDATE version = version",
        book(table),
        literal(table.name()),
        migration.version
    )
}

/// See [`super::migration_sql`]. Names stand in standard quotes, whatever the mode of the session that runs it.
pub(super) fn sql(table: &TableName, mapping: &Mapping) -> String {
    let opening = format!(
        "{STANDARD_QUOTES};\n\nDO get_lock({LOCK}, {});\n\n{}",
        TIMEOUT.as_secs(),
        create_book(table)
    );
    let closing = format!("DO release_lock({LOCK});\n\n{OWN_QUOTES}");
    printed(&opening, wanted(MIGRATIONS, mapping), table, record, &closing)
}

/// Statements with names in standard quotes, whatever the mode of the session that runs them.
pub(super) fn in_standard_quotes(sql: &str) -> String {
    format!("{STANDARD_QUOTES};\n{sql}{OWN_QUOTES};\n")
}

fn explain(error: &sqlx::Error, table: &TableName) -> StoreError {
    match (classify(error).error, table.schema()) {
        (StoreError::Unavailable(text), Some(schema)) if text.contains("(error 1049)") => StoreError::SchemaMissing(
            format!("database {schema:?} does not exist; the relay makes tables, not databases: create it first"),
        ),
        (StoreError::SchemaMissing(text), _) => StoreError::Failed(format!(
            "{text}: a table {table} that the relay did not make is in the way"
        )),
        (StoreError::Denied(text), _) => StoreError::Denied(format!(
            "{text}: run it as a user who may create tables, or give `outbox-relay migrate --print` to one who can"
        )),
        (error, _) => error,
    }
}
