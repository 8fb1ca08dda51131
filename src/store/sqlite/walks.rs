//! What takes several statements: shares, which SQL cannot tell here, and the purge.

use std::time::Duration;

use super::{MAX_WRITE, Sqlite, list, lock, rows};
use crate::message::RowId;
use crate::store::purge::{PurgeWalk, Window};
use crate::store::values::{decode, decode_one, seconds};
use crate::store::{Shares, StoreError};

/// Ids read at a time when shares are filtered.
const MIN_KEYS: u32 = 1_000;

impl Sqlite {
    /// The ids of the next `limit` rows of some shares.
    pub(super) async fn ids_of_shares(
        &self,
        after: RowId,
        limit: u32,
        shares: &Shares,
    ) -> Result<Vec<RowId>, StoreError> {
        let statements = self.statements().await?;
        let page = limit.max(MIN_KEYS);
        let (mut ids, mut after) = (Vec::new(), after);
        loop {
            let query = self.query(&statements.open_keys).bind(after.0).bind(page);
            let keys = decode(&self.rows(&self.read, query).await?, rows::id_and_key)?;
            let last = keys.last().map(|(id, _)| *id);
            let mine = keys.iter().filter(|(id, key)| shares.contain(*id, key.as_deref()));
            ids.extend(mine.map(|(id, _)| *id).take(limit as usize - ids.len()));
            match last {
                Some(last) if ids.len() < limit as usize && keys.len() == page as usize => after = last,
                _ => return Ok(ids),
            }
        }
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
}
