//! Pages of rows, as reads of every kind bring them.

use std::sync::Arc;
use std::time::Duration;

use super::statements::Statements;
use super::{MySql, Statement, list, rows};
use crate::message::{OutboxRow, RowId};
use crate::store::values::{decode, raw};
use crate::store::{OpenTransactions, Probe, Shares, StoreError, Stub};

/// A transaction that is open for longer may commit rows that are sent behind later ones of their key. Which ones are
/// open only a user with the privilege PROCESS is told here.
const LONGEST_TRANSACTION: Duration = Duration::from_secs(50);

impl MySql {
    pub(super) async fn head_rows(
        &self,
        statements: &Statements,
        after: RowId,
        limit: u32,
        shares: &Shares,
    ) -> Result<Vec<OutboxRow>, StoreError> {
        let query = match shares {
            Shares::All => self.query(&statements.head).bind(after.0),
            Shares::Some { of, owned } => shared(self.query(&statements.head_shares).bind(after.0), *of, owned),
        };
        self.page(query.bind(limit)).await
    }

    pub(super) async fn scan_rows(
        &self,
        after: RowId,
        to: RowId,
        limit: u32,
        shares: &Shares,
    ) -> Result<Vec<Stub>, StoreError> {
        let statements = self.statements().await?;
        let between = |sql: &Arc<str>| self.query(sql).bind(after.0).bind(to.0);
        let query = match shares {
            Shares::All => between(&statements.scan),
            Shares::Some { of, owned } => shared(between(&statements.scan_shares), *of, owned),
        };
        decode(&self.rows(&self.read, query.bind(limit)).await?, rows::stub)
    }

    pub(super) async fn probe_ids(&self, ids: &[RowId]) -> Result<Probe, StoreError> {
        let statements = self.statements().await?;
        // Asked before the rows are looked at: what begins meanwhile is above it.
        let open = self.open_transactions();
        let query = self.query(&statements.probe).bind(list(&raw(ids)));
        let found = decode(&self.rows(&self.read, query).await?, rows::probed)?;
        Ok(Probe {
            present: found.iter().map(|(stub, _)| stub.id).collect(),
            unsent: found
                .into_iter()
                .filter_map(|(stub, unsent)| unsent.then_some(stub))
                .collect(),
            open,
        })
    }

    pub(super) async fn fetch_rows(&self, ids: &[RowId], bytes: u64) -> Result<Vec<OutboxRow>, StoreError> {
        let statements = self.statements().await?;
        let room = i64::try_from(bytes).unwrap_or(i64::MAX);
        let query = self.query(&statements.fetch).bind(room).bind(list(&raw(ids)));
        let mut rows = self.page(query).await?;
        rows.sort_unstable_by_key(|row| row.id);
        Ok(rows)
    }

    async fn page(&self, query: Statement<'_>) -> Result<Vec<OutboxRow>, StoreError> {
        let rows = self.rows(&self.read, query).await?;
        decode(&rows, |row| rows::outbox_row(row, &self.table))
    }

    /// Milliseconds stand for transaction numbers: one that began now has the number `next`, and all that began before
    /// `oldest` are taken to have ended.
    fn open_transactions(&self) -> OpenTransactions {
        // One longest transaction after the start: none had a number before.
        let now = self.started.elapsed() + LONGEST_TRANSACTION;
        let number = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        OpenTransactions {
            oldest: number(now - LONGEST_TRANSACTION),
            next: number(now),
        }
    }
}

fn shared<'q>(query: Statement<'q>, of: u16, owned: &[u16]) -> Statement<'q> {
    let numbers: Vec<_> = owned.iter().map(u16::to_string).collect();
    query.bind(of.max(1)).bind(numbers.join(","))
}
