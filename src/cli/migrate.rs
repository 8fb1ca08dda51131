//! `outbox-relay migrate`: creates or upgrades the tables.

use std::process::ExitCode;

use crate::config::Config;
use crate::store;

pub(super) async fn migrate(config: Config, print: bool, with_wakeup: bool) -> anyhow::Result<ExitCode> {
    let (url, options) = (&config.database_url, super::store_options(&config));
    if print {
        let wakeup = match with_wakeup {
            true => format!("\n{}", store::wakeup_sql(url, &options.table)?),
            false => String::new(),
        };
        print!("{}{wakeup}", store::migration_sql(url, &options)?);
        return Ok(ExitCode::SUCCESS);
    }
    let (table, mapped) = (options.table.clone(), !options.mapping.is_default());
    let applied = store::migrate(url, options.clone()).await?;
    for migration in &applied {
        println!("applied migration {}: {}", migration.version, migration.name);
    }
    if with_wakeup {
        store::migrate_wakeup(url, options).await?;
        println!("a trigger wakes relays when rows are inserted");
    }
    match mapped {
        false => println!("{table} is up to date"),
        true => println!(
            "the relay's own tables beside {table} are up to date; {table} itself is the application's, and is left as it is"
        ),
    }
    Ok(ExitCode::SUCCESS)
}
