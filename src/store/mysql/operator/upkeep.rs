//! Whether MariaDB or MySQL has the indexes that reads go through.

use sqlx::Row as _;
use sqlx::mysql::MySqlRow;

use crate::store::StoreError;
use crate::store::mysql::MySql;
use crate::store::mysql::inspect::{backquoted, in_backquotes};
use crate::store::mysql::statements::Statements;
use crate::store::operator::{Index, Upkeep};
use crate::store::values::decode;

impl MySql {
    /// One index is for both.
    pub(super) async fn inspect_upkeep(&self) -> Result<Upkeep, StoreError> {
        let statements = self.statements().await?;
        if statements.columns.is_some() {
            let (unsent_index, dead_index) = self.existing_indexes(&statements).await?;
            return Ok(Upkeep {
                unsent_index,
                dead_index,
                vacuum: None,
            });
        }
        let index = Index {
            exists: self.unsent_index(&self.housekeeping).await?.is_some(),
            create: format!(
                "ALTER TABLE {} ADD INDEX (sent_at, dead_at)",
                backquoted(&self.options.table)
            ),
        };
        Ok(Upkeep {
            unsent_index: index.clone(),
            dead_index: index,
            vacuum: None,
        })
    }

    /// Whether a table that `migrate` did not make has the indexes for its reads.
    async fn existing_indexes(&self, statements: &Statements) -> Result<(Index, Index), StoreError> {
        let target = &statements.source.target;
        let table = backquoted(&self.options.table);
        // Whatever the server would do with the few rows that there may be now: is there an index it could use?
        // MySQL 9.7 has another format by default, without these columns.
        let plan = format!(
            "EXPLAIN FORMAT=TRADITIONAL {}",
            statements
                .head
                .replace("o.id > ?", "o.id > 0")
                .replace("LIMIT ?", "LIMIT 1000")
        );
        // By name: MySQL has more columns than MariaDB.
        let cell = |row: &MySqlRow, name: &str| {
            let bytes: Option<&[u8]> = row.try_get_unchecked(name)?;
            Ok::<_, sqlx::Error>(bytes.map(String::from_utf8_lossy).unwrap_or_default().into_owned())
        };
        let steps = decode(&self.ask(plan).await?, |row| {
            Ok((
                cell(row, "table")?,
                cell(row, "possible_keys")? + &cell(row, "key")?,
                cell(row, "Extra")?,
            ))
        })?;
        let scans = steps.iter().any(|(table, keys, _)| table == "a" && keys.is_empty());
        let key = in_backquotes(&target.names.key);
        let Some(sent) = target.names.sent.as_deref().filter(|_| target.positions.is_none()) else {
            let index = Index {
                exists: !scans,
                create: format!("ALTER TABLE {table} ADD INDEX ({key})"),
            };
            return Ok((index.clone(), index));
        };
        let sorts = steps.iter().any(|(_, _, extra)| extra.contains("filesort"));
        let index = self.index_of(&self.housekeeping, target).await?;
        // Where two values say unsent, no index has these rows in one place.
        let sent = in_backquotes(sent);
        let (first, one_value) = match target.unsent_is_one_value() {
            true => (String::new(), String::new()),
            false => (
                format!("UPDATE {table} SET {sent} = 0 WHERE {sent} IS NULL; "),
                format!("MODIFY {sent} {} NOT NULL DEFAULT 0, ", target.names.sent_type),
            ),
        };
        let dead = target
            .names
            .dead
            .as_deref()
            .map(|dead| format!("{}, ", in_backquotes(dead)));
        let index = Index {
            exists: index.is_some() && !scans && !sorts,
            create: format!(
                "{first}ALTER TABLE {table} {one_value}ADD INDEX ({sent}, {}{key})",
                dead.unwrap_or_default()
            ),
        };
        Ok((index.clone(), index))
    }
}
