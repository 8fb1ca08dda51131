//! What the relay writes into the table: marks, refusals, and the purge of what was sent long ago.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection as _, Executor as _};

use super::{MAX_WRITE, Sqlite, Statement, list, lock, rows};
use crate::broker::Confirmed;
use crate::store::purge::{PurgeWalk, Window};
use crate::store::slot::Slot;
use crate::store::values::{FailureColumns, decode_one, seconds, sorted};
use crate::store::{Failure, Holder, StoreError};

impl Sqlite {
    pub(super) async fn mark_rows(&self, rows: &[Confirmed]) -> Result<u64, StoreError> {
        let statements = self.statements().await?;
        let mut marked = 0;
        for ids in sorted(rows).chunks(MAX_WRITE) {
            marked += self.together(&self.write, &statements.mark, ids).await?;
        }
        Ok(marked)
    }

    pub(super) async fn write_all_failures(&self, failures: &[Failure], holder: &Holder) -> Result<u64, StoreError> {
        let statements = self.statements().await?;
        let columns = FailureColumns::of(failures);
        let failures: Vec<_> = (0..columns.ids.len())
            .map(|i| {
                json!([
                    columns.ids[i],
                    columns.attempts[i],
                    columns.errors[i],
                    columns.delays[i],
                    columns.shares[i],
                    columns.epochs[i]
                ])
            })
            .collect();
        let mut written = 0;
        for failures in failures.chunks(MAX_WRITE) {
            let failures = json!(failures).to_string();
            let bound = |sql: &Arc<str>| {
                let query = self.query(sql).bind(failures.clone());
                query.bind(holder.partitions).bind(holder.member.clone())
            };
            let changed = self.in_one(&self.write, &statements.failures, bound).await?;
            written += changed.last().copied().unwrap_or_default();
        }
        Ok(written)
    }

    /// One look of a purge, and the deletion of what it found; whether there may be more.
    pub(super) async fn purge_window(&self, older_than: Duration, wanted: u64) -> Result<(u64, bool), StoreError> {
        let statements = self.statements().await?;
        let Some(purge_window) = &statements.purge_window else {
            return Ok((0, false));
        };
        let (size, age) = (PurgeWalk::size(wanted), seconds(older_than));
        let position = lock(&self.walk).position();
        let query = self.query(purge_window).bind(position).bind(size as i64).bind(age);
        let rows = self.rows(&self.housekeeping, query).await?;
        let (seen, mut old) = decode_one(&rows, rows::window)?;
        old.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
        let mut deleted = 0;
        for ids in old.chunks(MAX_WRITE) {
            deleted += self
                .execute(
                    &self.housekeeping,
                    self.query(&statements.purge).bind(list(ids)).bind(age),
                )
                .await?;
        }
        let found = Window {
            deleted,
            last_deleted: old.last().copied(),
            ..seen
        };
        let more = lock(&self.walk).advance(found, size, wanted);
        Ok((deleted, more))
    }

    /// Statements on a list of ids: one by itself, several in one transaction. The rows that the first of them changed.
    pub(super) async fn together(
        &self,
        slot: &Slot<SqliteConnection>,
        statements: &[Arc<str>],
        ids: &[i64],
    ) -> Result<u64, StoreError> {
        let ids = list(ids);
        let changed = self
            .in_one(slot, statements, |sql| self.query(sql).bind(ids.clone()))
            .await?;
        Ok(changed.first().copied().unwrap_or_default())
    }

    /// Statements with their arguments: one by itself, several in one transaction. The rows that each of them changed.
    async fn in_one<'q>(
        &self,
        slot: &Slot<SqliteConnection>,
        statements: &[Arc<str>],
        bound: impl Fn(&Arc<str>) -> Statement<'q>,
    ) -> Result<Vec<u64>, StoreError> {
        if let [only] = statements {
            return Ok(vec![self.execute(slot, bound(only)).await?]);
        }
        self.call(slot, async |connection| {
            // A transaction that begins by reading cannot wait for another writer any more when it wants to write.
            let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
            let mut changed = Vec::new();
            for sql in statements {
                changed.push(transaction.execute(bound(sql)).await?.rows_affected());
            }
            transaction.commit().await?;
            Ok(changed)
        })
        .await
    }
}
