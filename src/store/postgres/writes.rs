//! What the relay writes into the table: marks, refusals, and the purge of what was sent long ago.

use std::sync::PoisonError;
use std::time::Duration;

use super::statements::Statements;
use super::{Postgres, rows};
use crate::broker::Confirmed;
use crate::store::purge::PurgeWalk;
use crate::store::values::{FailureColumns, decode_one, seconds, sorted};
use crate::store::{Holder, StoreError};

/// More rows in one statement gain nothing (measured), and hold their locks longer.
const MAX_MARK: usize = 4_000;

impl Postgres {
    pub(super) async fn mark_rows(&self, rows: &[Confirmed]) -> Result<u64, StoreError> {
        let statements = self.statements().await?;
        let mut marked = 0;
        for ids in sorted(rows).chunks(MAX_MARK) {
            marked += self
                .execute(&self.write, self.query(&statements.mark).bind(ids.to_vec()))
                .await?;
        }
        Ok(marked)
    }

    pub(super) async fn write_failures(
        &self,
        statements: &Statements,
        columns: FailureColumns,
        holder: &Holder,
    ) -> Result<u64, StoreError> {
        let query = self
            .query(&statements.failures)
            .bind(columns.ids)
            .bind(columns.attempts)
            .bind(columns.errors)
            .bind(columns.delays)
            .bind(columns.shares)
            .bind(columns.epochs)
            .bind(i32::from(holder.partitions))
            .bind(holder.member.as_str());
        self.execute(&self.write, query).await
    }

    pub(super) async fn purge_window(&self, older_than: Duration, wanted: u64) -> Result<(u64, bool), StoreError> {
        let statements = self.statements().await?;
        let Some(purge) = &statements.purge else {
            return Ok((0, false));
        };
        let size = PurgeWalk::size(wanted);
        let position = self.walk.lock().unwrap_or_else(PoisonError::into_inner).position();
        let query = self
            .query(purge)
            .bind(position)
            .bind(size as i64)
            .bind(seconds(older_than))
            .bind(wanted as i64);
        let rows = self.rows(&self.housekeeping, query).await?;
        let found = decode_one(&rows, rows::window)?;
        let more = self
            .walk
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .advance(found, size, wanted);
        Ok((found.deleted, more))
    }
}
