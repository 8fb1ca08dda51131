//! What the relay writes into the table: marks, refusals, and the purge of what was sent long ago.

use std::time::Duration;

use serde_json::json;

use super::script::Argument;
use super::statements::Statements;
use super::{MAX_MARK, MySql, list, lock, micros, rows};
use crate::broker::Confirmed;
use crate::store::purge::{PurgeWalk, Window};
use crate::store::values::{FailureColumns, sorted};
use crate::store::{Failure, Holder, StoreError};

/// Error texts are up to 8,000 bytes each and stand in a script twice, and one packet may be limited to 16 MB or less
/// (`max_allowed_packet`).
const MAX_FAILURES: usize = 250;

/// `timestamp` ends in 2038; a longer wait is written as this one.
const LONGEST_DELAY: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl MySql {
    pub(super) async fn mark_rows(&self, rows: &[Confirmed]) -> Result<u64, StoreError> {
        let statements = self.statements().await?;
        let mut marked = 0;
        for ids in sorted(rows).chunks(MAX_MARK) {
            let counts = self
                .together(&self.write, &statements.mark, &[Argument::Text(list(ids))])
                .await?;
            marked += counts.first().copied().unwrap_or_default();
        }
        Ok(marked)
    }

    pub(super) async fn write_all_failures(&self, failures: &[Failure], holder: &Holder) -> Result<u64, StoreError> {
        let statements = self.statements().await?;
        let columns = FailureColumns::of(failures);
        let failures: Vec<_> = (0..columns.ids.len())
            .map(|i| {
                let delay = columns.delays[i].map(|delay| micros(Duration::from_secs_f64(delay).min(LONGEST_DELAY)));
                json!([
                    columns.ids[i],
                    columns.attempts[i],
                    columns.errors[i],
                    delay,
                    columns.shares[i],
                    columns.epochs[i]
                ])
            })
            .collect();
        let mut written = 0;
        for failures in failures.chunks(MAX_FAILURES) {
            written += self.write_failures(&statements, failures, holder).await?;
        }
        Ok(written)
    }

    pub(super) async fn write_failures(
        &self,
        statements: &Statements,
        failures: &[serde_json::Value],
        holder: &Holder,
    ) -> Result<u64, StoreError> {
        let arguments = [
            Argument::Text(json!(failures).to_string()),
            Argument::Number(holder.partitions.into()),
            Argument::Text(holder.member.clone()),
        ];
        let written = self.together(&self.write, &statements.failures, &arguments).await?;
        Ok(written.last().copied().unwrap_or_default())
    }

    pub(super) async fn purge_window(&self, older_than: Duration, wanted: u64) -> Result<(u64, bool), StoreError> {
        let statements = self.statements().await?;
        let Some(purge_window) = &statements.purge_window else {
            return Ok((0, false));
        };
        let (size, age) = (PurgeWalk::size(wanted), micros(older_than));
        let position = lock(&self.walk).position();
        let look = self.query(purge_window).bind(age).bind(position).bind(size);
        let (seen, mut old) = rows::window(&self.rows(&self.housekeeping, look).await?)?;
        old.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
        let mut deleted = 0;
        for ids in old.chunks(MAX_MARK) {
            let purge = self.query(&statements.purge).bind(list(ids)).bind(age);
            deleted += self.execute(&self.housekeeping, purge).await?;
        }
        let found = Window {
            deleted,
            last_deleted: old.last().copied(),
            ..seen
        };
        let more = lock(&self.walk).advance(found, size, wanted);
        Ok((deleted, more))
    }
}
