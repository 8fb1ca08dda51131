//! Which rows in an SQLite file a person's filter picks out: dead letters, and rows that were sent.

use std::sync::Arc;

use crate::message::RowId;
use crate::store::StoreError;
use crate::store::operator::rows::{Cells as _, dead_letter, sent_row};
use crate::store::operator::{DeadFilter, DeadLetter, SentFilter, SentRow, reason_of};
use crate::store::sqlite::rows::{message_id, to_the_millisecond};
use crate::store::sqlite::statements::{NOW, epoch};
use crate::store::sqlite::{Sqlite, decode, list};
use crate::store::values::{self, raw, seconds};

impl Sqlite {
    pub(super) async fn find_dead(
        &self,
        filter: &DeadFilter,
        after: RowId,
        limit: u32,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        let (dead, created) = (epoch("o.dead_at"), epoch("o.created_at"));
        let statements = self.statements().await?;
        let more = statements.source.more_columns();
        let sql: Arc<str> = format!(
            "SELECT o.id, o.message_id, o.exchange, o.routing_key, o.ordering_key, o.type, o.content_type, o.headers,
                    o.properties, octet_length(o.payload), CAST(coalesce(o.attempts, 0) AS INTEGER), o.last_error,
                    {created}, {dead}{more}
             FROM {}
             WHERE {} AND o.id > ?1 AND (?2 = '[]' OR o.id IN (SELECT value FROM json_each(?2)))
               AND (?3 IS NULL OR {} = ?3)
               AND (?4 IS NULL OR coalesce(CAST(o.exchange AS TEXT), ?5) = ?4)
               AND (?6 IS NULL OR CAST(o.ordering_key AS TEXT) = ?6)
               AND (?7 IS NULL OR {NOW} - {dead} > ?7) AND (?8 IS NULL OR {NOW} - {dead} < ?8)
             ORDER BY o.id LIMIT ?9",
            self.dead_rows(&statements).await?,
            statements.source.given_up(),
            reason_of("CAST(o.last_error AS TEXT)")
        )
        .into();
        let query = self
            .query(&sql)
            .bind(after.0)
            .bind(list(&raw(&filter.ids)))
            .bind(filter.reason.as_deref())
            .bind(filter.exchange.as_deref())
            .bind(filter.default_exchange.as_str())
            .bind(filter.key.as_deref())
            .bind(filter.older_than.map(seconds))
            .bind(filter.newer_than.map(seconds))
            .bind(i64::from(limit));
        decode(&self.rows(&self.housekeeping, query).await?, |row| {
            let created = values::epoch(row.double(12)?.map(to_the_millisecond));
            let id = message_id(row, &format!("{}:{}:{created}", self.table, row.number(0)?))?;
            dead_letter(row, Some(id))
        })
    }

    pub(super) async fn find_sent(
        &self,
        wanted: &SentFilter,
        after: RowId,
        window: u32,
    ) -> Result<Vec<SentRow>, StoreError> {
        let statements = self.statements().await?;
        let source = &statements.source;
        let sent = epoch("o.sent_at");
        let listed = match wanted.ids.is_empty() {
            true => "?3 IS NOT NULL",
            false => "o.id IN (SELECT value FROM json_each(?3))",
        };
        let sql: Arc<str> = format!(
            "SELECT o.id,
                    NOT ({}) AND (?4 IS NULL OR {sent} >= ?4) AND (?5 IS NULL OR {sent} < ?5)
                      AND (?6 IS NULL OR coalesce(CAST(o.exchange AS TEXT), ?7) = ?6)
                      AND (?8 IS NULL OR CAST(o.routing_key AS TEXT) = ?8)
                      AND (?9 IS NULL OR coalesce(CAST(o.ordering_key AS TEXT) = ?9, 0)),
                    o.ordering_key IS NOT NULL
             FROM {} WHERE o.id > ?1 AND {listed} ORDER BY o.id LIMIT ?2",
            source.unsent, source.by_id
        )
        .into();
        let query = self
            .query(&sql)
            .bind(after.0)
            .bind(i64::from(window))
            .bind(list(&raw(&wanted.ids)))
            .bind(wanted.since)
            .bind(wanted.until)
            .bind(wanted.exchange.as_deref())
            .bind(wanted.default_exchange.as_str())
            .bind(wanted.routing_key.as_deref())
            .bind(wanted.key.as_deref());
        decode(&self.rows(&self.housekeeping, query).await?, sent_row)
    }
}
