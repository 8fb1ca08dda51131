//! What a table that `migrate` did not make asks for besides: the relay's own tables.

use sqlx::Row as _;

use super::statements::{self, Numbering, Statements};
use super::{MAX_WRITE, Sqlite, inspect, lock, source};
use crate::config::{OnSent, TableName};
use crate::store::StoreError;
use crate::store::columns::{Column, explain};
use crate::store::layout::Layout;
use crate::store::pace::{TidyWalk, advise, warn_of_numbers};
use crate::store::values::{decode, decode_one};

/// Rows numbered with one statement: fewer than elsewhere, as it holds that lock.
const NUMBERED_AT_ONCE_HERE: i64 = 5_000;

impl Sqlite {
    /// A table that `migrate` did not make.
    pub(super) async fn inspected_existing(&self) -> Result<Statements, StoreError> {
        let (table, on_sent) = (&self.options.table, self.options.on_sent);
        let query = sqlx::query(inspect::EXISTING).bind(table.name());
        let existing = inspect::existing(&self.rows(&self.read, query).await?, table)?;
        let dialect = source::Sqlite {
            ids_are_given_again: on_sent == OnSent::Delete && !existing.autoincrement,
        };
        let layout = Layout::new(&self.options.mapping, &existing.columns, table, on_sent, &dialect)?;
        if layout.numbered && !existing.has_rowid && !has_text(&layout.key) {
            return Err(StoreError::Failed(format!(
                "table {table} is WITHOUT ROWID, and its key {} is {}: only a key of TEXT can be numbered then; make the table \
                 with row ids",
                layout.key.name, layout.key.kind
            )));
        }
        if layout.numbered {
            warn_of_numbers(table, &layout.key);
        }
        let mut statements = Statements::new(table, on_sent, source::source(table, &layout, &dialect));
        let number = || source::number(table, &layout, &dialect, existing.has_rowid);
        statements.number = layout.numbered.then(number);
        if !existing.autoincrement {
            statements.purge = statements::purge(&statements.source.target, true);
        }
        statements.columns = Some(layout.describe());
        statements.advice = layout.advice;
        advise(table, &statements.advice);
        let read = self.query(&statements.head).bind(i64::MAX).bind(1);
        let touched = self.rows(&self.read, read).await;
        touched.map_err(|error| explain(error, table))?;
        Ok(statements)
    }

    /// Numbers rows that have none yet. Only to write their numbers takes the one lock there is.
    pub(super) async fn number_rows(&self, number: &Numbering) -> Result<(), StoreError> {
        let work = async |hurried: bool| {
            let look = if hurried {
                &number.as_they_come
            } else {
                &number.in_order
            };
            let rows = self
                .rows(&self.read, self.query(look).bind(NUMBERED_AT_ONCE_HERE))
                .await?;
            let found: String = decode_one(&rows, |row| row.try_get(0))?;
            if found == "[]" {
                return Ok(Some(0));
            }
            let numbered = self
                .execute(&self.write, self.query(&number.insert).bind(found))
                .await?;
            Ok(Some(numbered))
        };
        self.numbering.look(NUMBERED_AT_ONCE_HERE, work).await
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
        let seen: Vec<(i64, bool)> = decode(&rows, |row| Ok((row.try_get(0)?, row.try_get(1)?)))?;
        let gone: Vec<i64> = seen.iter().filter(|(_, there)| !there).map(|(id, _)| *id).collect();
        for gone in gone.chunks(MAX_WRITE) {
            self.together(&self.housekeeping, &statements.free, gone).await?;
        }
        lock(&self.tidied).advance(seen.len() as i64, seen.last().map(|(id, _)| *id));
        Ok(())
    }
}

/// What is to be known of a table like the one that `migrate` makes, but for the counting, whose sent rows are deleted.
pub(super) fn ids_given_again(table: &TableName) -> String {
    format!(
        "id has no AUTOINCREMENT, so that SQLite gives it again once the highest row is deleted: such a row may wait for \
         RELAY_POLL_SWEEP_INTERVAL, and go behind later ones of its key; make {table} anew with id INTEGER PRIMARY KEY AUTOINCREMENT, \
         or set RELAY_COLUMN_ID=id and run `outbox-relay migrate`, and the relay numbers the rows itself"
    )
}

/// By SQLite's own rule for a text affinity.
fn has_text(column: &Column) -> bool {
    ["CHAR", "CLOB", "TEXT"].iter().any(|word| column.kind.contains(word))
}
