//! The errors of earlier attempts in an SQLite file; see [`crate::store::history`].

use sqlx::Row as _;

use super::statements::{NOW, REFUSED, Statements, held};
use super::{MAX_WRITE, Sqlite, lock};
use crate::message::RowId;
use crate::store::StoreError;
use crate::store::history::{COUNTS, TOLD, errors_table, list, not_kept, page};
use crate::store::pace::{TidyWalk, advise};
use crate::store::values::decode;

impl Sqlite {
    /// From now on refusals are noted, if they can be.
    pub(super) async fn with_history(&self, mut statements: Statements) -> Result<Statements, StoreError> {
        let table = &self.options.table;
        // Who may write to the file may write to all of it: that the table is there is enough.
        let look = list(table, RowId(0));
        if let Err(error) = self.rows(&self.read, self.query(&look.into())).await {
            let Some(why) = not_kept(&error) else {
                return Err(error);
            };
            advise(table, std::slice::from_ref(&why));
            statements.advice.push(why);
            return Ok(statements);
        }
        statements.keep_history(&errors_table(table));
        Ok(statements)
    }

    /// Removes what is noted of rows that were sent or are gone.
    pub(super) async fn tidy_history(&self) -> Result<(), StoreError> {
        let statements = self.statements().await?;
        let Some(forget) = &statements.forget else {
            return Ok(());
        };
        let sql = page(&self.options.table, lock(&self.forgotten).position(), TidyWalk::PAGE);
        let rows = self.rows(&self.housekeeping, self.query(&sql.into())).await?;
        let ids: Vec<i64> = decode(&rows, |row| row.try_get(0))?;
        for ids in ids.chunks(MAX_WRITE) {
            self.together(&self.housekeeping, std::slice::from_ref(forget), ids)
                .await?;
        }
        lock(&self.forgotten).advance(ids.len() as i64, ids.last().copied());
        Ok(())
    }
}

impl Statements {
    fn keep_history(&mut self, errors: &str) {
        let (target, by_id, open) = (&self.source.target, &self.source.by_id, self.source.open());
        let outbox = &target.outbox;
        self.forget = Some(
            format!(
                "DELETE FROM {errors} AS e WHERE e.outbox = {outbox} AND e.id IN (SELECT value FROM json_each(?1))
                   AND NOT {}",
                target.has("e.id")
            )
            .into(),
        );
        // First all failures, then each row by its id.
        let note = format!(
            "INSERT INTO {errors} (outbox, id, failed_at, attempt, error)
             SELECT {outbox}, f.id, {NOW}, f.attempts, f.error FROM {REFUSED} CROSS JOIN {by_id}
             WHERE o.id = f.id AND {open} AND {COUNTS} AND {}
             ON CONFLICT DO NOTHING",
            held(outbox, &self.shares)
        );
        let trim = format!(
            "DELETE FROM {errors} AS e
             WHERE e.outbox = {outbox} AND e.id IN (SELECT value ->> 0 FROM json_each(?1))
               AND e.failed_at < (SELECT x.failed_at FROM {errors} AS x WHERE x.outbox = e.outbox AND x.id = e.id
                                  ORDER BY x.failed_at DESC LIMIT 1 OFFSET {TOLD} - 1)"
        );
        // Before the refusal itself, which changes the attempts so far.
        self.failures.splice(0..0, [note.into(), trim.into()]);
    }
}
