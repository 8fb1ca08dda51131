//! Which database it is, by the scheme of its URL, and what is asked of it before there is a table.

use std::sync::Arc;

use super::{Applied, Operator, Store, StoreError, StoreOptions, mysql, postgres, sqlite};
use crate::config::{Secret, TableName};

/// The store that `url`'s scheme names. Nothing is connected yet.
///
/// # Errors
/// [`StoreError::Failed`] for a URL that is not understood or a database that is not supported.
pub fn open(url: &Secret, options: StoreOptions) -> Result<Arc<dyn Store>, StoreError> {
    Ok(open_operator(url, options)?)
}

/// Like [`open`], with what a person may ask besides.
///
/// # Errors
/// As for [`open`].
pub fn open_operator(url: &Secret, options: StoreOptions) -> Result<Arc<dyn Operator>, StoreError> {
    Ok(match Kind::of(url)? {
        Kind::Postgres => Arc::new(postgres::Postgres::new(url, options)?),
        Kind::MySql => Arc::new(mysql::MySql::new(url, options)?),
        Kind::Sqlite => Arc::new(sqlite::Sqlite::new(url, options)?),
    })
}

/// Creates or upgrades the tables; safe to call from many processes at once. Empty: nothing was to do.
///
/// # Errors
/// As for any call on the store; [`StoreError::Denied`] where the role may not create tables.
pub async fn migrate(url: &Secret, options: StoreOptions) -> Result<Vec<Applied>, StoreError> {
    match Kind::of(url)? {
        Kind::Postgres => postgres::Postgres::new(url, options)?.migrate().await,
        Kind::MySql => mysql::MySql::new(url, options)?.migrate().await,
        Kind::Sqlite => sqlite::Sqlite::new(url, options)?.migrate().await,
    }
}

/// The statements [`migrate`] would run on an empty database, for a person or another tool to run.
///
/// # Errors
/// [`StoreError::Failed`] as for [`open`]; the URL is not connected to.
pub fn migration_sql(url: &Secret, options: &StoreOptions) -> Result<String, StoreError> {
    Ok(match Kind::of(url)? {
        Kind::Postgres => postgres::migration_sql(options),
        Kind::MySql => mysql::migration_sql(options),
        Kind::Sqlite => sqlite::migration_sql(options),
    })
}

/// Makes the trigger that wakes relays which sleep between two polls.
///
/// # Errors
/// [`StoreError::Failed`] for a database that has none; else as for [`migrate`].
pub async fn migrate_wakeup(url: &Secret, options: StoreOptions) -> Result<(), StoreError> {
    match Kind::of(url)? {
        Kind::Postgres => postgres::Postgres::new(url, options)?.migrate_wakeup().await,
        Kind::MySql | Kind::Sqlite => Err(no_wakeup()),
    }
}

/// The statements of [`migrate_wakeup`].
///
/// # Errors
/// [`StoreError::Failed`] for a database that has none.
pub fn wakeup_sql(url: &Secret, table: &TableName) -> Result<String, StoreError> {
    match Kind::of(url)? {
        Kind::Postgres => Ok(postgres::wakeup_sql(table)),
        Kind::MySql | Kind::Sqlite => Err(no_wakeup()),
    }
}

fn no_wakeup() -> StoreError {
    StoreError::Failed("--with-wakeup is for PostgreSQL: in other databases rows are found by polling".to_owned())
}

pub(super) enum Kind {
    Postgres,
    MySql,
    Sqlite,
}

impl Kind {
    pub(super) fn of(url: &Secret) -> Result<Self, StoreError> {
        let scheme = url.expose().split(':').next().unwrap_or_default().to_ascii_lowercase();
        match scheme.as_str() {
            "postgres" | "postgresql" => Ok(Self::Postgres),
            "sqlite" => Ok(Self::Sqlite),
            "mysql" | "mariadb" => Ok(Self::MySql),
            // What stands there instead of a scheme may be a secret.
            _ => Err(StoreError::Failed(
                "the database URL must begin with postgres://, mysql:// or sqlite://".to_owned(),
            )),
        }
    }
}
