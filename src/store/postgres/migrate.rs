//! Migrations of PostgreSQL: all in one transaction, one process at a time.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Row as _};

use super::connect::Connector;
use super::error::classify;
use crate::config::{Mapping, TableName};
use crate::store::StoreError;
use crate::store::migrate::{Applied, EXISTING, Migration, book, printed, record, render, wanted};
use crate::store::slot::within;

const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        name: "outbox",
        sql: include_str!("../../../migrations/postgres/0001_outbox.sql"),
    },
    Migration {
        version: 2,
        name: "leases",
        sql: include_str!("../../../migrations/postgres/0002_leases.sql"),
    },
    Migration {
        version: EXISTING,
        name: "tables for an existing outbox",
        sql: include_str!("../../../migrations/postgres/0003_existing.sql"),
    },
    Migration {
        version: 4,
        name: "pauses",
        sql: include_str!("../../../migrations/postgres/0004_pauses.sql"),
    },
    Migration {
        version: 5,
        name: "errors",
        sql: include_str!("../../../migrations/postgres/0005_errors.sql"),
    },
];

/// An index on a table that already has rows may take a while.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Held until the transaction ends: "outbox" in ASCII.
const LOCK: &str = "SELECT pg_advisory_xact_lock(122550254464888)";

/// Runs what is not in the book yet.
pub(super) async fn migrate(
    connector: &Connector,
    table: &TableName,
    mapping: &Mapping,
) -> Result<Vec<Applied>, StoreError> {
    within(TIMEOUT, async {
        let mut connection = connector.connect_unbounded().await?;
        let applied = in_transaction(&mut connection, table, mapping)
            .await
            .map_err(|error| explain(&error, table))?;
        // The work is committed; a goodbye that fails changes nothing.
        let _ = connection.close().await;
        Ok(applied)
    })
    .await
}

/// Runs statements in one transaction.
pub(super) async fn run_script(connector: &Connector, sql: String) -> Result<(), StoreError> {
    within(TIMEOUT, async {
        let mut connection = connector.connect_unbounded().await?;
        let script = format!("BEGIN; {LOCK}; {sql}; COMMIT");
        run(&mut connection, script)
            .await
            .map_err(|error| classify(&error).error)?;
        let _ = connection.close().await;
        Ok(())
    })
    .await
}

/// Dropped connections roll back, so that an error needs no hand of its own.
async fn in_transaction(
    connection: &mut PgConnection,
    table: &TableName,
    mapping: &Mapping,
) -> Result<Vec<Applied>, sqlx::Error> {
    run(connection, format!("BEGIN; {LOCK}; {}", create_book(table))).await?;
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

async fn run(connection: &mut PgConnection, sql: String) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(drop)
}

async fn is_recorded(
    connection: &mut PgConnection,
    migration: &Migration,
    table: &TableName,
) -> Result<bool, sqlx::Error> {
    let sql = format!(
        "SELECT EXISTS (SELECT FROM {} WHERE outbox = $1 AND version = $2)",
        book(table)
    );
    let row = sqlx::query(AssertSqlSafe(sql))
        .bind(table.name())
        .bind(migration.version)
        .persistent(false)
        .fetch_one(connection)
        .await?;
    row.try_get(0)
}

fn create_book(table: &TableName) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {} (
    outbox text NOT NULL,
    version integer NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (outbox, version)
)",
        book(table)
    )
}

/// See [`super::migration_sql`].
pub(super) fn sql(table: &TableName, mapping: &Mapping) -> String {
    let opening = format!("BEGIN;\n\n{LOCK};\n\n{}", create_book(table));
    printed(&opening, wanted(MIGRATIONS, mapping), table, record, "COMMIT")
}

fn explain(error: &sqlx::Error, table: &TableName) -> StoreError {
    match (classify(error).error, table.schema()) {
        (StoreError::SchemaMissing(text), Some(schema)) if text.contains("3F000") => StoreError::SchemaMissing(
            format!("schema {schema:?} does not exist; the relay makes tables, not schemas: create it first"),
        ),
        (StoreError::SchemaMissing(text), _) => StoreError::Failed(format!(
            "{text}: a table {table} that the relay did not make is in the way, or no schema is on the search path"
        )),
        (StoreError::Denied(text), _) => StoreError::Denied(format!(
            "{text}: run it as a role that may create tables, or give `outbox-relay migrate --print` to one who can"
        )),
        (error, _) => error,
    }
}
