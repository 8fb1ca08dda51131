//! Pages of rows, as reads of every kind bring them.

use super::statements::Statements;
use super::{Postgres, rows};
use crate::message::{OutboxRow, RowId};
use crate::store::values::{decode, raw, unreadable};
use crate::store::{Probe, Shares, StoreError, Stub};

impl Postgres {
    pub(super) async fn head_rows(
        &self,
        statements: &Statements,
        after: RowId,
        limit: u32,
        shares: &Shares,
    ) -> Result<Vec<OutboxRow>, StoreError> {
        let query = match shares {
            Shares::All => self.query(&statements.head).bind(after.0).bind(i64::from(limit)),
            Shares::Some { of, owned } => {
                let (of, owned) = shares_arguments(*of, owned);
                self.query(&statements.head_shares)
                    .bind(after.0)
                    .bind(i64::from(limit))
                    .bind(of)
                    .bind(owned)
            }
        };
        let rows = self.rows(&self.read, query).await?;
        decode(&rows, |row| rows::outbox_row(row, &self.table))
    }

    pub(super) async fn scan_rows(
        &self,
        after: RowId,
        to: RowId,
        limit: u32,
        shares: &Shares,
    ) -> Result<Vec<Stub>, StoreError> {
        let statements = self.statements().await?;
        let limit = i64::from(limit);
        let query = match shares {
            Shares::All => self.query(&statements.scan).bind(after.0).bind(to.0).bind(limit),
            Shares::Some { of, owned } => {
                let (of, owned) = shares_arguments(*of, owned);
                self.query(&statements.scan_shares)
                    .bind(after.0)
                    .bind(to.0)
                    .bind(limit)
                    .bind(of)
                    .bind(owned)
            }
        };
        decode(&self.rows(&self.read, query).await?, rows::stub)
    }

    pub(super) async fn probe_ids(&self, ids: &[RowId]) -> Result<Probe, StoreError> {
        let statements = self.statements().await?;
        let rows = self
            .rows(&self.read, self.query(&statements.probe).bind(raw(ids)))
            .await?;
        rows::probe(&rows).map_err(|error| unreadable(&error))
    }

    pub(super) async fn fetch_rows(&self, ids: &[RowId], bytes: u64) -> Result<Vec<OutboxRow>, StoreError> {
        let statements = self.statements().await?;
        let room = i64::try_from(bytes).unwrap_or(i64::MAX);
        let query = self.query(&statements.fetch).bind(raw(ids)).bind(room);
        let rows = self.rows(&self.read, query).await?;
        decode(&rows, |row| rows::outbox_row(row, &self.table))
    }
}

fn shares_arguments(of: u16, owned: &[u16]) -> (i32, Vec<i32>) {
    // Modulo 0 is an error in SQL.
    (
        i32::from(of.max(1)),
        owned.iter().map(|share| i32::from(*share)).collect(),
    )
}
