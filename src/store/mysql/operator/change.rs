//! What a person changes in rows of MariaDB or MySQL: dead letters and waiting rows are replayed or discarded, sent
//! rows replayed.

use std::sync::Arc;

use super::find::since_1970;
use crate::message::RowId;
use crate::store::StoreError;
use crate::store::mysql::script::Argument;
use crate::store::mysql::statements::{LISTED, listed};
use crate::store::mysql::{MAX_MARK, MySql, list};
use crate::store::operator::Refused;
use crate::store::source::Target;
use crate::store::values::raw;

impl MySql {
    /// In `id` order, as every writer locks rows. The first statement tells how many there were.
    pub(super) async fn change(&self, statements: &[Arc<str>], ids: &[RowId]) -> Result<u64, StoreError> {
        let mut ids = raw(ids);
        ids.sort_unstable();
        let mut changed = 0;
        for ids in ids.chunks(MAX_MARK) {
            let counts = self
                .together(&self.write, statements, &[Argument::Text(list(ids))])
                .await?;
            changed += counts.first().copied().unwrap_or_default();
        }
        Ok(changed)
    }

    pub(super) async fn change_sent(&self, ids: &[RowId], until: Option<f64>) -> Result<u64, StoreError> {
        let statements = self.statements().await?;
        let target = &statements.source.target;
        let before = match (until, &target.sent) {
            (Some(until), Some(sent)) => {
                format!("AND {} < {}", since_1970(&format!("o.{sent}")), (until * 1e6) as i64)
            }
            _ => String::new(),
        };
        let sql = format!(
            "UPDATE {} SET {} WHERE NOT ({}) {before}",
            listed(target),
            target.unsend("o.", "0"),
            target.unsent
        );
        self.change(&[sql.into()], ids).await
    }
}

/// Takes row ids.
pub(super) fn replay(target: &Target, which: Refused) -> String {
    let Target { outbox, failures, .. } = target;
    match &target.bookkeeping {
        Some(columns @ [attempts, next, _, dead]) => format!(
            "UPDATE {} SET o.{dead} = NULL, o.{attempts} = 0, o.{next} = NULL WHERE {}{}",
            listed(target),
            Target::refused(columns, which, later),
            target.and_unsent()
        ),
        None => format!(
            "DELETE b FROM {LISTED} {failures} AS b ON b.outbox = {outbox} AND b.id = w.id
             WHERE {} AND {}",
            Target::refused_there(which, later),
            target.has("b.id")
        ),
    }
}

/// Take row ids, one after the other; the first tells how many there were.
pub(super) fn discard(target: &Target, which: Refused) -> Vec<Arc<str>> {
    let Target { outbox, failures, .. } = target;
    let (rows, unsent) = (listed(target), target.and_unsent());
    if let Some(columns) = &target.bookkeeping {
        let is_refused = Target::refused(columns, which, later);
        return vec![format!("DELETE o FROM {rows} WHERE {is_refused}{unsent}").into()];
    }
    let is_refused = Target::refused_there(which, later);
    let refused = format!("{failures} AS b ON b.outbox = {outbox} AND b.id = w.id");
    let mut statements: Vec<Arc<str>> =
        vec![format!("DELETE o FROM {rows} STRAIGHT_JOIN {refused} WHERE {is_refused}{unsent}").into()];
    if let Some(positions) = &target.positions {
        statements.push(
            format!(
                "DELETE p FROM {LISTED} {positions} AS p ON p.outbox = {outbox} AND p.position = w.id
                 STRAIGHT_JOIN {refused} WHERE {is_refused}"
            )
            .into(),
        );
    }
    statements.push(format!("DELETE b FROM {LISTED} {refused} WHERE {is_refused}").into());
    statements
}

/// That a time has not come.
fn later(time: &str) -> String {
    format!("{time} > now(6)")
}
