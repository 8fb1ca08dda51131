//! The errors of earlier attempts in MariaDB or MySQL; see [`crate::store::history`].

use std::sync::Arc;

use sqlx::Row as _;

use super::statements::{LISTED, REFUSED, Statements, held};
use super::{MySql, lease_dialect, list, lock};
use crate::store::StoreError;
use crate::store::history::{COUNTS, TOLD, errors_table, not_kept, page, touches};
use crate::store::pace::{TidyWalk, advise};
use crate::store::values::decode;

/// Statements about the errors of rows. Rows that are gone are found by themselves: within a DELETE, the server would lock what
/// it reads of the application's table.
#[derive(Debug)]
pub(super) struct History {
    /// Of these rows, those that are sent or gone and of which something is noted.
    gone: Arc<str>,
    /// Removes what is noted of them.
    forget: Arc<str>,
}

impl MySql {
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
        let now = lease_dialect(&self.options.table).now;
        statements.keep_history(&errors_table(&self.options.table), now);
        Ok(statements)
    }

    /// Removes what is noted of rows that were sent or are gone.
    pub(super) async fn tidy_history(&self) -> Result<(), StoreError> {
        let statements = self.statements().await?;
        let Some(history) = &statements.history else {
            return Ok(());
        };
        let sql = page(&self.options.table, lock(&self.forgotten).position(), TidyWalk::PAGE);
        let rows = self.rows(&self.housekeeping, self.query(&sql.into())).await?;
        let ids: Vec<i64> = decode(&rows, |row| row.try_get(0))?;
        self.forget(history, &ids).await?;
        lock(&self.forgotten).advance(ids.len() as i64, ids.last().copied());
        Ok(())
    }

    /// Removes what is noted of those of these rows that were sent or are gone.
    pub(super) async fn forget(&self, history: &History, ids: &[i64]) -> Result<(), StoreError> {
        let look = self.query(&history.gone).bind(list(ids));
        let gone: Vec<i64> = decode(&self.rows(&self.housekeeping, look).await?, |row| row.try_get(0))?;
        if !gone.is_empty() {
            let forget = self.query(&history.forget).bind(list(&gone));
            self.execute(&self.housekeeping, forget).await?;
        }
        Ok(())
    }
}

impl Statements {
    fn keep_history(&mut self, errors: &str, now: &str) {
        let (target, by_id, open) = (&self.source.target, &self.source.by_id, self.source.open());
        let outbox = &target.outbox;
        let noted = format!("{errors} AS e ON e.outbox = {outbox} AND e.id = w.id");
        self.history = Some(History {
            gone: format!(
                "SELECT DISTINCT e.id FROM {LISTED} {noted} WHERE NOT {} ORDER BY e.id",
                target.has("e.id")
            )
            .into(),
            forget: format!("DELETE e FROM {LISTED} {noted}").into(),
        });
        let note = format!(
            "INSERT IGNORE INTO {errors} (outbox, id, failed_at, attempt, error)
             SELECT {outbox}, f.id, {now}, f.attempts, f.error
             FROM {REFUSED} STRAIGHT_JOIN {by_id} ON o.id = f.id
             WHERE {open} AND {COUNTS} AND {}",
            held(outbox, &self.shares)
        );
        let trim = format!(
            "DELETE e FROM (
                 SELECT x.id, x.failed_at, row_number() OVER (PARTITION BY x.id ORDER BY x.failed_at DESC) AS n
                 FROM JSON_TABLE(?, '$[*]' COLUMNS (id bigint PATH '$[0]')) AS f
                 STRAIGHT_JOIN {errors} AS x ON x.outbox = {outbox} AND x.id = f.id) AS old
             STRAIGHT_JOIN {errors} AS e ON e.outbox = {outbox} AND e.id = old.id AND e.failed_at = old.failed_at
             WHERE old.n > {TOLD}"
        );
        // Before the refusal itself, which changes the attempts so far.
        self.failures.splice(0..0, [note.into(), trim.into()]);
    }
}
