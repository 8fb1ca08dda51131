//! Migrations of SQLite: all in one transaction, one process at a time.

use std::time::Duration;

use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Connection, Row as _};

use super::connect::Connector;
use super::error::classify;
use super::inspect::check_schema;
use crate::config::{Mapping, TableName};
use crate::store::StoreError;
use crate::store::migrate::{Applied, EXISTING, Migration, book, printed, record, render, wanted};
use crate::store::slot::within;

const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        name: "outbox",
        sql: include_str!("../../../migrations/sqlite/0001_outbox.sql"),
    },
    Migration {
        version: 2,
        name: "leases",
        sql: include_str!("../../../migrations/sqlite/0002_leases.sql"),
    },
    Migration {
        version: EXISTING,
        name: "tables for an existing outbox",
        sql: include_str!("../../../migrations/sqlite/0003_existing.sql"),
    },
    Migration {
        version: 4,
        name: "pauses",
        sql: include_str!("../../../migrations/sqlite/0004_pauses.sql"),
    },
    Migration {
        version: 5,
        name: "errors",
        sql: include_str!("../../../migrations/sqlite/0005_errors.sql"),
    },
];

/// An index on a table that already has rows may take a while.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Runs what is not in the book yet; makes the file where there is none.
pub(super) async fn migrate(
    connector: &Connector,
    table: &TableName,
    mapping: &Mapping,
) -> Result<Vec<Applied>, StoreError> {
    check_schema(table)?;
    within(TIMEOUT, async {
        let mut connection = connector.connect_or_create().await?;
        let applied = in_transaction(&mut connection, table, mapping)
            .await
            .map_err(|error| explain(&error, table))?;
        // The work is committed; a goodbye that fails changes nothing.
        let _ = connection.close().await;
        Ok(applied)
    })
    .await
}

/// `IMMEDIATE`: a transaction that begins by reading cannot wait for another writer any more when it wants to write.
/// Dropped connections roll back.
async fn in_transaction(
    connection: &mut SqliteConnection,
    table: &TableName,
    mapping: &Mapping,
) -> Result<Vec<Applied>, sqlx::Error> {
    run(connection, "BEGIN IMMEDIATE".to_owned()).await?;
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
    run(connection, "COMMIT".to_owned()).await?;
    Ok(applied)
}

async fn run(connection: &mut SqliteConnection, sql: String) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(drop)
}

async fn is_recorded(
    connection: &mut SqliteConnection,
    migration: &Migration,
    table: &TableName,
) -> Result<bool, sqlx::Error> {
    let sql = format!(
        "SELECT EXISTS (SELECT 1 FROM {} WHERE outbox = ?1 AND version = ?2)",
        book(table)
    );
    let query = sqlx::query(AssertSqlSafe(sql))
        .bind(table.name())
        .bind(migration.version);
    query.fetch_one(connection).await?.try_get(0)
}

fn create_book(table: &TableName) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {} (
    outbox TEXT NOT NULL,
    version INTEGER NOT NULL,
    applied_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    PRIMARY KEY (outbox, version)
)",
        book(table)
    )
}

/// See [`super::migration_sql`].
pub(super) fn sql(table: &TableName, mapping: &Mapping) -> String {
    let opening = format!(
        "PRAGMA journal_mode = WAL;\n\nBEGIN IMMEDIATE;\n\n{}",
        create_book(table)
    );
    printed(&opening, wanted(MIGRATIONS, mapping), table, record, "COMMIT")
}

fn explain(error: &sqlx::Error, table: &TableName) -> StoreError {
    match classify(error).error {
        StoreError::SchemaMissing(text) => StoreError::Failed(format!(
            "{text}: a table {table} that the relay did not make is in the way"
        )),
        error => error,
    }
}
