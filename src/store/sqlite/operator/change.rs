//! What a person changes in rows of an SQLite file: dead letters and waiting rows are replayed or discarded, sent rows
//! replayed.

use std::sync::Arc;

use crate::message::RowId;
use crate::store::StoreError;
use crate::store::operator::Refused;
use crate::store::source::Target;
use crate::store::sqlite::statements::{NOW, epoch, target_listed};
use crate::store::sqlite::{MAX_WRITE, Sqlite};
use crate::store::values::raw;

impl Sqlite {
    /// In short transactions, as each holds the only write lock.
    pub(super) async fn change(&self, statements: &[Arc<str>], ids: &[RowId]) -> Result<u64, StoreError> {
        let mut changed = 0;
        for ids in raw(ids).chunks(MAX_WRITE) {
            changed += self.together(&self.write, statements, ids).await?;
        }
        Ok(changed)
    }

    pub(super) async fn change_sent(&self, ids: &[RowId], until: Option<f64>) -> Result<u64, StoreError> {
        let statements = self.statements().await?;
        let target = &statements.source.target;
        let before = match (until, &target.sent) {
            (Some(until), Some(sent)) => format!("AND {} < {until}", epoch(&format!("o.{sent}"))),
            _ => String::new(),
        };
        let sql = format!(
            "UPDATE {} AS o SET {} WHERE {} AND NOT ({}) {before}",
            target.table,
            target.unsend("", "0"),
            target_listed(target),
            target.unsent
        );
        self.change(&[sql.into()], ids).await
    }
}

/// `?1`: row ids.
pub(super) fn replay(target: &Target, which: Refused) -> String {
    let Target {
        outbox,
        failures,
        table,
        ..
    } = target;
    match &target.bookkeeping {
        Some(columns @ [attempts, next, _, dead]) => format!(
            "UPDATE {table} AS o SET {dead} = NULL, {attempts} = 0, {next} = NULL WHERE {} AND {}{}",
            target_listed(target),
            Target::refused(columns, which, later),
            target.and_unsent()
        ),
        None => format!(
            "DELETE FROM {failures} AS b WHERE b.outbox = {outbox} AND b.id IN (SELECT value FROM json_each(?1))
               AND {} AND {}",
            Target::refused_there(which, later),
            target.has("b.id")
        ),
    }
}

/// Take row ids, one after the other; the first tells how many there were.
pub(super) fn discard(target: &Target, which: Refused) -> Vec<Arc<str>> {
    let Target {
        outbox,
        failures,
        table,
        key,
        ..
    } = target;
    let unsent = target.and_unsent();
    if let Some(columns) = &target.bookkeeping {
        let (listed, refused) = (target_listed(target), Target::refused(columns, which, later));
        return vec![format!("DELETE FROM {table} AS o WHERE {listed} AND {refused}{unsent}").into()];
    }
    let refused = format!(
        "SELECT b.id FROM {failures} AS b WHERE b.outbox = {outbox} AND {}
           AND b.id IN (SELECT value FROM json_each(?1))",
        Target::refused_there(which, later)
    );
    let mut statements: Vec<Arc<str>> = Vec::new();
    match &target.positions {
        None => statements.push(format!("DELETE FROM {table} AS o WHERE o.{key} IN ({refused}){unsent}").into()),
        Some(positions) => {
            let keys = format!(
                "SELECT p.row_key FROM {positions} AS p WHERE +p.outbox = {outbox} AND p.position IN ({refused})"
            );
            statements.push(format!("DELETE FROM {table} AS o WHERE o.{key} IN ({keys}){unsent}").into());
            statements
                .push(format!("DELETE FROM {positions} WHERE +outbox = {outbox} AND position IN ({refused})").into());
        }
    }
    statements.push(format!("DELETE FROM {failures} WHERE outbox = {outbox} AND id IN ({refused})").into());
    statements
}

/// That a time has not come.
fn later(time: &str) -> String {
    format!("{} > {NOW}", epoch(time))
}
