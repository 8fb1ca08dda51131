//! The errors of earlier attempts in PostgreSQL; see [`crate::store::history`].

use std::sync::PoisonError;

use sqlx::Row as _;

use super::Postgres;
use super::statements::Statements;
use crate::store::StoreError;
use crate::store::history::{COUNTS, TOLD, errors_table, not_kept, page, touches};
use crate::store::pace::{TidyWalk, advise};
use crate::store::values::decode;

impl Postgres {
    /// From now on refusals are noted, if they can be.
    pub(super) async fn with_history(&self, mut statements: Statements) -> Result<Statements, StoreError> {
        for sql in touches(&self.options.table) {
            if let Err(error) = self.execute(&self.read, self.query(&sql.into())).await {
                let Some(why) = not_kept(&error) else {
                    return Err(error);
                };
                advise(&self.options.table, std::slice::from_ref(&why));
                statements.advice.push(why);
                return Ok(statements);
            }
        }
        statements.keep_history(&errors_table(&self.options.table));
        Ok(statements)
    }

    /// Removes what is noted of rows that were sent or are gone.
    pub(super) async fn tidy_history(&self) -> Result<(), StoreError> {
        let statements = self.statements().await?;
        let Some(forget) = &statements.forget else {
            return Ok(());
        };
        let after = self.forgotten.lock().unwrap_or_else(PoisonError::into_inner).position();
        let sql = page(&self.options.table, after, TidyWalk::PAGE);
        let rows = self.rows(&self.housekeeping, self.query(&sql.into())).await?;
        let ids: Vec<i64> = decode(&rows, |row| row.try_get(0))?;
        let (seen, last) = (ids.len() as i64, ids.last().copied());
        if !ids.is_empty() {
            self.execute(&self.housekeeping, self.query(forget).bind(ids)).await?;
        }
        self.forgotten
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .advance(seen, last);
        Ok(())
    }
}

impl Statements {
    fn keep_history(&mut self, errors: &str) {
        let (outbox, by_id) = (&self.source.target.outbox, &self.source.by_id);
        let unsent = match self.source.unsent.as_str() {
            "" => String::new(),
            unsent => format!(" AND {unsent}"),
        };
        self.forget = Some(
            format!(
                "DELETE FROM {errors} AS e WHERE e.outbox = {outbox} AND e.id = ANY($1)
                   AND NOT EXISTS (SELECT FROM {by_id} WHERE o.id = e.id{unsent})"
            )
            .into(),
        );
        // All parts of a statement see the table as it was before: the row with its attempts so far, and of the errors those
        // that were noted earlier. Each row is looked up by its id, as the rest of the statement does.
        self.failures = format!(
            "WITH noted AS (
                 INSERT INTO {errors} (outbox, id, failed_at, attempt, error)
                 SELECT {outbox}, f.id, date_part('epoch', clock_timestamp()), f.attempts, f.error
                 FROM {}
                 CROSS JOIN LATERAL (SELECT o.attempts FROM {by_id} WHERE o.id = f.id AND {} OFFSET 0) AS o
                 WHERE {COUNTS} AND {}
                 ON CONFLICT DO NOTHING),
             trimmed AS (
                 DELETE FROM {errors} AS e
                 USING (SELECT x.id, x.failed_at, row_number() OVER (PARTITION BY x.id ORDER BY x.failed_at DESC) AS n
                        FROM {errors} AS x WHERE x.outbox = {outbox} AND x.id = ANY($1)) AS old
                 WHERE e.outbox = {outbox} AND e.id = old.id AND e.failed_at = old.failed_at AND old.n >= {TOLD})
             {}",
            super::statements::REFUSED,
            self.source.open(),
            super::statements::held(outbox, &self.shares),
            self.failures
        )
        .into();
    }
}
