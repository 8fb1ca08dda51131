//! `outbox-relay migrate`: creates or upgrades the tables.

use std::process::ExitCode;

use crate::config::Config;
use crate::store;

pub(super) async fn migrate(config: Config, print: bool) -> anyhow::Result<ExitCode> {
    let options = super::store_options(&config);
    if print {
        print!("{}", store::migration_sql(&config.database_url, &options.table)?);
        return Ok(ExitCode::SUCCESS);
    }
    let table = options.table.clone();
    let applied = store::migrate(&config.database_url, options).await?;
    for migration in &applied {
        println!("applied migration {}: {}", migration.version, migration.name);
    }
    println!("{table} is up to date");
    Ok(ExitCode::SUCCESS)
}
