//! `outbox-relay migrate --print-grants`: the least that database and broker must allow.

use std::process::ExitCode;

use crate::broker::amqp;
use crate::config::Config;
use crate::store;

/// What PostgreSQL keeps of a name.
const MAX_ROLE_BYTES: usize = 63;

/// A role's name as it is given: it also stands in comments, which a line break would end.
pub(super) fn role(text: &str) -> Result<String, String> {
    match text.len() {
        1..=MAX_ROLE_BYTES if !text.chars().any(char::is_control) => Ok(text.to_owned()),
        _ => Err(format!(
            "a role's name has 1 to {MAX_ROLE_BYTES} bytes, and no control characters"
        )),
    }
}

pub(super) async fn print(config: Config, role: &str) -> anyhow::Result<ExitCode> {
    let purges = config.outbox.retention.is_some();
    let options = super::store_options(&config);
    let sql = store::grants_sql(&config.database_url, options, purges, role).await?;
    let (user, _) = role.split_once('@').unwrap_or((role, ""));
    print!("{sql}");
    if let Some(url) = config.amqp_urls.first() {
        let command = amqp::set_permissions(url, user, &config.amqp_exchange)?;
        println!(
            "-- The broker's user needs no more than (all exchanges that rows name belong into the second pattern):\n-- {command}"
        );
    }
    Ok(ExitCode::SUCCESS)
}
