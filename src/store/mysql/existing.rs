//! What a table that `migrate` did not make asks for besides: the relay's own tables.

use std::sync::Arc;

use sqlx::Row as _;
use sqlx::mysql::MySqlConnection;
use tracing::warn;

use super::error::is_locked;
use super::script::{self, Argument};
use super::statements::{self, Numbering, Statements};
use super::{MySql, inspect, list, lock, rows, source};
use crate::store::columns::{Column, error_chars, explain};
use crate::store::grants::Access;
use crate::store::layout::{Layout, headers};
use crate::store::pace::{NUMBERED_AT_ONCE, TidyWalk, advise, warn_of_numbers};
use crate::store::slot::Slot;
use crate::store::source::{Dialect as _, Target, header_object};
use crate::store::values::{decode, decode_one};
use crate::store::{Holder, StoreError};

impl MySql {
    pub(super) async fn inspected(&self) -> Result<Statements, StoreError> {
        let (table, on_sent) = (&self.options.table, self.options.on_sent);
        let rows = self.catalogue(&self.read, inspect::COLUMNS_QUERY).await?;
        let mut columns = inspect::columns(&rows, table, !self.options.mapping.is_default())?;
        let layout = match self.options.mapping.is_default() {
            true => inspect::check_columns(&columns, table).map(|()| None)?,
            false => {
                let unique = self.catalogue(&self.read, inspect::UNIQUE_QUERY).await?;
                let unique = decode(&unique, rows::name)?;
                for column in &mut columns {
                    column.unique |= unique.contains(&column.name);
                }
                Some(Layout::new(
                    &self.options.mapping,
                    &columns,
                    table,
                    on_sent,
                    &source::MySql,
                )?)
            }
        };
        let key = match &layout {
            Some(layout) => Some(&layout.key),
            None => columns.iter().find(|column| column.name.eq_ignore_ascii_case("id")),
        };
        let headers = headers(&self.options.mapping, &columns, table, &source::MySql)?;
        let (read, written) = match &layout {
            Some(layout) => (layout.read(), layout.written(on_sent)),
            None => inspect::standard_columns(&headers),
        };
        let user = inspect::user(&rows)?;
        let mut lacking = Vec::new();
        for (privilege, sql) in inspect::touches(table, &read, &written) {
            match self.execute(&self.read, self.query(&sql.into())).await {
                Ok(_) => {}
                Err(StoreError::Denied(_)) => lacking.push(privilege),
                Err(error) => return Err(error),
            }
        }
        inspect::check_privileges(&lacking, &user, table, on_sent)?;
        let beyond = match key {
            Some(key) => self.ids_beyond_reach(key).await?,
            None => None,
        };
        let Some(layout) = layout else {
            let index = self.unsent_index(&self.read).await?;
            let mut source = statements::standard(table, index.as_deref());
            source.target.error_chars = error_chars(columns.iter());
            if let Some(column) = columns.iter().find(|column| column.name == "message_id") {
                source.message_id = source::MySql.message_id(column, &source.message_id);
            }
            source.header_columns = header_object(&headers, &source::MySql, "o");
            let mut statements = Statements::new(table, on_sent, source);
            statements.advice.extend(beyond);
            advise(table, &statements.advice);
            return Ok(statements);
        };
        if layout.numbered {
            warn_of_numbers(table, &layout.key);
            self.warn_of_forgotten_numbers().await?;
        }
        let target = Target::new(table, &layout, &source::MySql);
        let index = match layout.numbered {
            true => None,
            false => self.index_of(&self.read, &target).await?,
        };
        let source = source::source(table, &layout, index.as_deref());
        let mut statements = Statements::new(table, on_sent, source);
        statements.number = layout.numbered.then(|| source::number(table, &layout));
        statements.columns = Some(layout.describe());
        statements.advice = layout.advice;
        statements.advice.extend(beyond);
        advise(table, &statements.advice);
        let touched = self.touch_own_tables(&statements).await;
        touched.map_err(|error| explain(error, table))?;
        Ok(statements)
    }

    /// For a person: rows that are not read for their ids are not left out in silence.
    async fn ids_beyond_reach(&self, key: &Column) -> Result<Option<String>, StoreError> {
        let Some(sql) = inspect::beyond_reach(key, &self.options.table) else {
            return Ok(None);
        };
        let rows = self.rows(&self.read, self.query(&sql.into())).await?;
        Ok((!rows.is_empty()).then(|| inspect::too_high(key, &self.options.table)))
    }

    /// What the relay does with a table that `migrate` did not make.
    pub(in crate::store) async fn access(&self) -> Result<Access, StoreError> {
        let statements = self.statements().await?;
        Ok(Access::mapped(&statements.source.target, self.options.on_sent))
    }

    /// Fails where the relay's own tables are not there, or may not be used.
    async fn touch_own_tables(&self, statements: &Statements) -> Result<(), StoreError> {
        let nothing = self.query(&statements.head).bind(i64::MAX).bind(1);
        self.rows(&self.read, nothing).await?;
        for sql in &statements.free {
            self.execute(&self.read, self.query(sql).bind("[]")).await?;
        }
        let nobody = Holder {
            member: String::new(),
            partitions: 1,
        };
        self.write_failures(statements, &[], &nobody).await?;
        if let Some(number) = &statements.number {
            self.make_lock(number).await?;
            self.execute(&self.read, self.query(&number.in_order).bind(0)).await?;
        }
        Ok(())
    }

    /// The name of the index that reads of unsent rows go through, of a table that `migrate` did not make.
    pub(super) async fn index_of(
        &self,
        slot: &Slot<MySqlConnection>,
        target: &Target,
    ) -> Result<Option<String>, StoreError> {
        let rows = self.catalogue(slot, inspect::INDEXES).await?;
        let columns = decode(&rows, |row| Ok((rows::word(row, 0)?, rows::word(row, 1)?)))?;
        Ok(inspect::index_of_unsent(&columns, target))
    }

    /// A number that is given twice, because the server forgot the first time in a crash, marks a row that was not sent.
    async fn warn_of_forgotten_numbers(&self) -> Result<(), StoreError> {
        let asked = sqlx::query("SELECT CAST(@@innodb_flush_log_at_trx_commit AS SIGNED)");
        let at_commit: i64 = decode_one(&self.rows(&self.read, asked).await?, |row| row.try_get(0))?;
        if at_commit != 1 {
            warn!(
                innodb_flush_log_at_trx_commit = at_commit,
                "a crash of the server can make it give a row's number to another one, which would then count as sent: set it to 1, \
                 or name a column of whole numbers in RELAY_COLUMN_ID"
            );
        }
        Ok(())
    }

    /// Makes the row that is locked by who numbers, in a transaction of its own: if it is there, its lock is not waited for.
    async fn make_lock(&self, number: &Numbering) -> Result<(), StoreError> {
        let there = self.rows(&self.read, self.query(&number.see_lock)).await?;
        if there.is_empty() {
            self.execute(&self.read, self.query(&number.make_lock)).await?;
        }
        Ok(())
    }

    /// Numbers rows that have none yet.
    pub(super) async fn number_rows(&self, number: &Numbering) -> Result<(), StoreError> {
        let work = async |hurried: bool| {
            let sql = if hurried {
                &number.as_they_come
            } else {
                &number.in_order
            };
            let sql = [Arc::clone(&number.lock), Arc::clone(sql)];
            let script = script::transaction(&sql, &[Argument::Number(NUMBERED_AT_ONCE)]);
            let run = async |connection: &mut MySqlConnection| {
                let (answer, ended) = script::run(connection, script).await;
                match ended {
                    Ok(()) => Ok(Some(answer)),
                    Err(error) if is_locked(&error) && answer.selected == 0 => Ok(None),
                    Err(error) => Err(error),
                }
            };
            let Some(answer) = self.call(&self.read, run).await? else {
                return Ok(None);
            };
            if answer.selected == 0 {
                // Somebody took it away: the next look waits for it again.
                self.make_lock(number).await?;
            }
            Ok(Some(answer.changed.last().copied().unwrap_or_default()))
        };
        self.numbering.look(NUMBERED_AT_ONCE, work).await
    }

    pub(super) async fn tidy_own_tables(&self) -> Result<(), StoreError> {
        let statements = self.statements().await?;
        let Some(look) = &statements.tidy_look else {
            return Ok(());
        };
        let query = self
            .query(look)
            .bind(lock(&self.tidied).position())
            .bind(TidyWalk::PAGE);
        let rows = self.rows(&self.housekeeping, query).await?;
        let seen: Vec<(i64, bool)> = decode(&rows, |row| Ok((row.try_get(0)?, row.try_get::<i64, _>(1)? != 0)))?;
        let gone: Vec<i64> = seen.iter().filter(|(_, there)| !there).map(|(id, _)| *id).collect();
        if !gone.is_empty() {
            self.together(&self.housekeeping, &statements.free, &[Argument::Text(list(&gone))])
                .await?;
        }
        lock(&self.tidied).advance(seen.len() as i64, seen.last().map(|(id, _)| *id));
        let Some(numberless) = &statements.numberless_failures else {
            return Ok(());
        };
        let rows = self
            .rows(&self.housekeeping, self.query(numberless).bind(TidyWalk::PAGE))
            .await?;
        let gone: Vec<i64> = decode(&rows, |row| row.try_get(0))?;
        if !gone.is_empty() {
            self.together(&self.housekeeping, &statements.free, &[Argument::Text(list(&gone))])
                .await?;
        }
        Ok(())
    }
}
