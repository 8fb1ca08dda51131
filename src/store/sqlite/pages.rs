//! Pages of rows, as reads of every kind bring them. Shares SQL cannot tell here: their ids are filtered after reading.

use super::statements::Statements;
use super::{Sqlite, Statement, list, rows};
use crate::message::{OrderingKey, OutboxRow, RowId};
use crate::store::values::{decode, raw};
use crate::store::{OpenTransactions, Probe, Shares, StoreError, Stub};

/// Ids read at a time when shares are filtered.
const MIN_KEYS: u32 = 1_000;

impl Sqlite {
    pub(super) async fn head_rows(
        &self,
        statements: &Statements,
        after: RowId,
        limit: u32,
        shares: &Shares,
    ) -> Result<Vec<OutboxRow>, StoreError> {
        if let Shares::Some { .. } = shares {
            let ids = self.ids_of_shares(after, limit, shares).await?;
            return self.page(self.query(&statements.head_of).bind(list(&raw(&ids)))).await;
        }
        self.page(self.query(&statements.head).bind(after.0).bind(limit)).await
    }

    /// The ids of the next `limit` rows of some shares.
    async fn ids_of_shares(&self, after: RowId, limit: u32, shares: &Shares) -> Result<Vec<RowId>, StoreError> {
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

    pub(super) async fn scan_rows(
        &self,
        after: RowId,
        to: RowId,
        limit: u32,
        shares: &Shares,
    ) -> Result<Vec<Stub>, StoreError> {
        let statements = self.statements().await?;
        let (mut found, mut after) = (Vec::new(), after);
        loop {
            let query = self.query(&statements.scan).bind(after.0).bind(to.0).bind(limit);
            let stubs = decode(&self.rows(&self.read, query).await?, rows::stub)?;
            let (full, last) = (stubs.len() == limit as usize, stubs.last().map(|stub| stub.id));
            let mine = |stub: &Stub| shares.contain(stub.id, stub.ordering_key.as_ref().map(OrderingKey::as_str));
            let room = limit as usize - found.len();
            found.extend(stubs.into_iter().filter(mine).take(room));
            match last {
                Some(last) if full && found.len() < limit as usize => after = last,
                _ => return Ok(found),
            }
        }
    }

    pub(super) async fn probe_ids(&self, ids: &[RowId]) -> Result<Probe, StoreError> {
        let statements = self.statements().await?;
        let rows = self
            .rows(&self.read, self.query(&statements.probe).bind(list(&raw(ids))))
            .await?;
        let found = decode(&rows, rows::probed)?;
        Ok(Probe {
            present: found.iter().map(|(stub, _)| stub.id).collect(),
            unsent: found
                .into_iter()
                .filter_map(|(stub, unsent)| unsent.then_some(stub))
                .collect(),
            // Writers come one at a time: nothing that is open can commit below what was seen.
            open: OpenTransactions { oldest: 0, next: 0 },
        })
    }

    pub(super) async fn fetch_rows(&self, ids: &[RowId], bytes: u64) -> Result<Vec<OutboxRow>, StoreError> {
        let statements = self.statements().await?;
        let room = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.page(self.query(&statements.fetch).bind(list(&raw(ids))).bind(room))
            .await
    }

    async fn page(&self, query: Statement<'_>) -> Result<Vec<OutboxRow>, StoreError> {
        let rows = self.rows(&self.read, query).await?;
        decode(&rows, |row| rows::outbox_row(row, &self.table))
    }
}
