//! What a table that `migrate` did not make asks for besides: the relay's own tables.

use std::sync::PoisonError;

use sqlx::Row as _;

use super::source;
use super::statements::{Numbering, Statements};
use super::{Postgres, inspect};
use crate::store::columns::explain;
use crate::store::grants::Access;
use crate::store::migrate::quoted;
use crate::store::pace::{NUMBERED_AT_ONCE, TidyWalk, advise, warn_of_numbers};
use crate::store::source::Source;
use crate::store::values::{FailureColumns, count, decode_one};
use crate::store::{Holder, StoreError};

impl Postgres {
    pub(super) async fn inspected(&self) -> Result<Statements, StoreError> {
        let query = sqlx::query(inspect::QUERY).bind(self.table.as_str());
        let rows = self.rows(&self.read, query).await.map_err(|error| self.schema(error))?;
        let (table, on_sent, mapping) = (&self.options.table, self.options.on_sent, &self.options.mapping);
        if mapping.is_default() {
            let found = inspect::judge(&rows, &self.options)?;
            let mut source = Source::standard(table, &format!("{table} AS o"));
            source.target.error_chars = found.error_chars;
            source.header_columns = found.header_columns;
            return Ok(Statements::new(table, on_sent, found.size, source, None));
        }
        let layout = inspect::judge_mapped(&rows, &self.options)?;
        if layout.numbered {
            warn_of_numbers(table, &layout.key);
        }
        let number = layout.numbered.then(|| source::number(table, &layout));
        let (size, source) = (source::size(&layout), source::source(table, &layout));
        let statements = Statements::new(table, on_sent, size, source, number).described(&layout);
        advise(table, &statements.advice);
        self.touch_own_tables(&statements)
            .await
            .map_err(|error| explain(error, table))?;
        Ok(statements)
    }

    /// A schema that may not be used.
    fn schema(&self, error: StoreError) -> StoreError {
        match (error, self.options.table.schema()) {
            (StoreError::Denied(text), Some(schema)) => {
                let schema = quoted(schema);
                StoreError::Denied(format!("{text}: GRANT USAGE ON SCHEMA {schema} TO the relay's role"))
            }
            (error, _) => error,
        }
    }

    /// What the relay does with a table that `migrate` did not make.
    pub(in crate::store) async fn access(&self) -> Result<Access, StoreError> {
        let statements = self.statements().await?;
        Ok(Access::mapped(&statements.source.target, self.options.on_sent))
    }

    /// Fails where the relay's own tables are not there, or may not be used.
    async fn touch_own_tables(&self, statements: &Statements) -> Result<(), StoreError> {
        let nobody = Holder {
            member: String::new(),
            partitions: 1,
        };
        // A column that cannot be set (generated) must be known before anything is published.
        let mark = self.query(&statements.mark).bind(Vec::<i64>::new());
        self.execute(&self.read, mark).await.map_err(unmarkable)?;
        let head = self
            .rows(&self.read, self.query(&statements.head).bind(i64::MAX).bind(1_i64))
            .await;
        head.map_err(|error| self.whole_table(error))?;
        if let Some(sql) = source::without_places(&statements.source.target) {
            self.execute(&self.read, self.query(&sql.into())).await?;
        }
        self.write_failures(statements, FailureColumns::default(), &nobody)
            .await?;
        if let Some(tidy) = &statements.tidy {
            self.rows(&self.read, self.query(tidy).bind(0_i64).bind(i64::MAX))
                .await?;
        }
        if let Some(number) = &statements.number {
            let touched = self.rows(&self.write, self.query(&number.in_order).bind(0_i64)).await;
            touched.map_err(|error| self.whole_table(error))?;
        }
        Ok(())
    }

    /// The order of rows without a number is told by columns of the system, for which grants on single columns do not hold.
    fn whole_table(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Denied(text) if !text.contains("outbox_relay_") => {
                let table = &self.table;
                StoreError::Denied(format!(
                    "{text}: to number rows the relay reads their system columns (xmin, cmin, ctid) as well, for which it needs \
                     SELECT on the whole table: GRANT SELECT ON {table} to its role, or name a column of whole numbers in \
                     RELAY_COLUMN_ID"
                ))
            }
            error => error,
        }
    }

    /// Numbers rows that have none yet.
    pub(super) async fn number_rows(&self, number: &Numbering) -> Result<(), StoreError> {
        let work = async |hurried: bool| {
            let query = match hurried {
                true => self.query(&number.as_they_come),
                false => self.query(&number.in_order).bind(NUMBERED_AT_ONCE),
            };
            let rows = self.rows(&self.read, query).await?;
            let (mine, numbered): (bool, i64) = decode_one(&rows, |row| Ok((row.try_get(0)?, row.try_get(1)?)))?;
            Ok(mine.then(|| count(numbered)))
        };
        self.numbering.look(NUMBERED_AT_ONCE, work).await
    }

    pub(super) async fn tidy_own_tables(&self) -> Result<(), StoreError> {
        let statements = self.statements().await?;
        let Some(tidy) = &statements.tidy else {
            return Ok(());
        };
        let after = self.tidied.lock().unwrap_or_else(PoisonError::into_inner).position();
        let query = self.query(tidy).bind(TidyWalk::PAGE).bind(after);
        let rows = self.rows(&self.housekeeping, query).await?;
        let (seen, last) = decode_one(&rows, |row| Ok((row.try_get(0)?, row.try_get(1)?)))?;
        self.tidied
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .advance(seen, last);
        Ok(())
    }
}

fn unmarkable(error: StoreError) -> StoreError {
    match error {
        StoreError::Failed(text) => StoreError::Failed(format!(
            "sent rows could not be marked: {text}: name another column in RELAY_COLUMN_SENT_AT, or see what refuses it"
        )),
        error => error,
    }
}
