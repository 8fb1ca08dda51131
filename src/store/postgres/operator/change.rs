//! What a person changes in rows of PostgreSQL: dead letters and waiting rows are replayed or discarded, sent rows
//! replayed.

use std::sync::Arc;

use crate::message::RowId;
use crate::store::StoreError;
use crate::store::operator::{Refused, SentMark};
use crate::store::postgres::Postgres;
use crate::store::postgres::source::is_gone;
use crate::store::source::{Source, Target};
use crate::store::values::raw;

impl Postgres {
    pub(super) async fn change(&self, sql: String, ids: &[RowId]) -> Result<u64, StoreError> {
        let mut ids = raw(ids);
        // Two writers lock rows in the same order.
        ids.sort_unstable();
        let sql: Arc<str> = sql.into();
        self.execute(&self.write, self.query(&sql).bind(ids)).await
    }

    pub(super) async fn change_sent(&self, ids: &[RowId], until: Option<f64>) -> Result<u64, StoreError> {
        let statements = self.statements().await?;
        let target = &statements.source.target;
        let before = match (target.mark(), &target.sent) {
            (SentMark::Time, Some(sent)) => format!("($2::float8 IS NULL OR date_part('epoch', o.{sent}) < $2)"),
            _ => "$2::float8 IS NULL".to_owned(),
        };
        let sql: Arc<str> = format!(
            "UPDATE {} AS o SET {} WHERE o.{} = ANY($1) AND NOT ({}) AND {before}",
            target.table,
            target.unsend("", "false"),
            target.key,
            target.unsent
        )
        .into();
        let mut ids = raw(ids);
        ids.sort_unstable();
        self.execute(&self.write, self.query(&sql).bind(ids).bind(until)).await
    }
}

/// `$1`: row ids.
pub(super) fn replay(source: &Source, which: Refused) -> String {
    let Target {
        table,
        key,
        outbox,
        failures,
        bookkeeping,
        ..
    } = &source.target;
    match bookkeeping {
        Some(columns @ [attempts, next, _, dead]) => format!(
            "UPDATE {table} AS o SET {dead} = NULL, {attempts} = 0, {next} = NULL WHERE o.{key} = ANY($1) AND {}{}",
            Target::refused(columns, which, later),
            source.target.and_unsent()
        ),
        None => format!(
            "DELETE FROM {failures} AS b WHERE b.outbox = {outbox} AND b.id = ANY($1) AND {}
               AND EXISTS (SELECT FROM {} WHERE o.id = b.id AND {})",
            Target::refused_there(which, later),
            source.by_id,
            match which {
                Refused::GivenUp => source.given_up(),
                Refused::Waiting => source.open(),
            }
        ),
    }
}

/// `$1`: row ids.
pub(super) fn discard(source: &Source, which: Refused) -> String {
    let Target {
        table,
        key,
        outbox,
        failures,
        bookkeeping,
        positions,
        ..
    } = &source.target;
    let unsent = source.target.and_unsent();
    if let Some(columns) = bookkeeping {
        let refused = Target::refused(columns, which, later);
        return format!("DELETE FROM {table} AS o WHERE o.{key} = ANY($1) AND {refused}{unsent}");
    }
    let freed = format!(
        "WITH freed AS (DELETE FROM {failures} AS b WHERE b.outbox = {outbox} AND b.id = ANY($1) AND {}
                        RETURNING b.id)",
        Target::refused_there(which, later)
    );
    match positions {
        None => format!("{freed} DELETE FROM {table} AS o WHERE o.{key} = ANY(ARRAY(SELECT id FROM freed)){unsent}"),
        Some(positions) => format!(
            "{freed}, gone AS (DELETE FROM {positions} AS p WHERE p.outbox = {outbox}
                                AND p.position = ANY(ARRAY(SELECT id FROM freed)) RETURNING p.row_key)
             DELETE FROM {table} AS o WHERE {}{unsent}",
            is_gone(&source.target)
        ),
    }
}

/// That a time has not come.
fn later(time: &str) -> String {
    format!("{time} > clock_timestamp()")
}
