//! The statements that give a role what the relay needs of the tables, and no more.

use super::by_url::Kind;
use super::history::errors_table;
use super::leases::{members_table, shares_table};
use super::migrate::{literal, quoted};
use super::pauses::pauses_table;
use super::source::{Target, failures_table, positions_table};
use super::{StoreError, StoreOptions, columns, mysql, postgres};
use crate::config::{OnSent, Secret, TableName};

/// What the relay does with the application's table. Names are as they stand in SQL.
#[derive(Debug)]
pub(super) struct Access {
    /// Columns that it writes.
    written: Vec<String>,
    /// Sent rows can be purged.
    purged: bool,
    /// The table is not one that `migrate` makes.
    mapped: bool,
}

impl Access {
    /// Of the table that `migrate` makes.
    fn standard() -> Self {
        Self {
            written: columns::WRITTEN.iter().map(|name| (*name).to_owned()).collect(),
            purged: true,
            mapped: false,
        }
    }

    /// Of another one.
    pub(super) fn mapped(target: &Target, on_sent: OnSent) -> Self {
        let sent = target.sent.iter().filter(|_| on_sent == OnSent::Mark);
        Self {
            written: sent.chain(target.bookkeeping.iter().flatten()).cloned().collect(),
            purged: target.can_purge(),
            mapped: true,
        }
    }
}

/// The grants for `role` (in MariaDB and MySQL `user` or `user@host`). `purges`: rows have a retention. A table that
/// `migrate` did not make is looked at: what the relay writes depends on its columns.
///
/// # Errors
/// As for [`super::open`], and for a table that is looked at as for [`super::Store::inspect`].
pub async fn grants_sql(url: &Secret, options: StoreOptions, purges: bool, role: &str) -> Result<String, StoreError> {
    let kind = Kind::of(url)?;
    let (table, on_sent) = (options.table.clone(), options.on_sent);
    let access = match (&kind, options.mapping.is_default()) {
        (Kind::Sqlite, _) => {
            return Ok(
                "-- SQLite has no roles: who may write to the file and its folder may do everything with the outbox.\n"
                    .to_owned(),
            );
        }
        (_, true) => Access::standard(),
        (Kind::Postgres, false) => postgres::Postgres::new(url, options)?.access().await?,
        (Kind::MySql, false) => mysql::MySql::new(url, options)?.access().await?,
    };
    let deletes = on_sent == OnSent::Delete || (purges && access.purged);
    if matches!(kind, Kind::MySql) {
        let (name, host) = role.rsplit_once('@').unwrap_or((role, "%"));
        let user = format!("{}@{}", literal(name), literal(host));
        let sql = mysql::in_standard_quotes(&of_tables(&table, &access, deletes, &user));
        return Ok(format!(
            "-- Once, as somebody who may: CREATE USER {user} IDENTIFIED BY '...';\n{sql}"
        ));
    }
    let role = quoted(role);
    let schema = match table.schema() {
        Some(schema) => format!("GRANT USAGE ON SCHEMA {} TO {role};\n", quoted(schema)),
        None => String::new(),
    };
    let sql = of_tables(&table, &access, deletes, &role);
    Ok(format!(
        "-- Once, as somebody who may: CREATE ROLE {role} LOGIN PASSWORD '...';\n{schema}{sql}"
    ))
}

/// `role` is as it stands in SQL.
fn of_tables(table: &TableName, access: &Access, deletes: bool, role: &str) -> String {
    let mut rights = vec!["SELECT".to_owned()];
    if !access.written.is_empty() {
        rights.push(format!("UPDATE ({})", access.written.join(", ")));
    }
    if deletes {
        rights.push("DELETE".to_owned());
    }
    let mut sql = format!("GRANT {} ON {table} TO {role};\n", rights.join(", "));
    let mut own = vec![
        shares_table(table),
        members_table(table),
        pauses_table(table),
        errors_table(table),
    ];
    if access.mapped {
        own.extend([failures_table(table), positions_table(table)]);
    }
    // One table a statement: MariaDB and MySQL take no list.
    for own in own {
        sql.push_str(&format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {own} TO {role};\n"));
    }
    if !deletes {
        sql.push_str(&format!(
            "-- Only for `dead-letters discard`: GRANT DELETE ON {table} TO {role};\n"
        ));
    }
    sql
}
