//! Which rows in PostgreSQL a person's filter picks out: dead letters, and rows that were sent.

use std::sync::Arc;

use crate::message::RowId;
use crate::store::StoreError;
use crate::store::operator::rows::{dead_letter, sent_row};
use crate::store::operator::{DeadFilter, DeadLetter, SentFilter, SentMark, SentRow, reason_of};
use crate::store::postgres::rows::message_id;
use crate::store::postgres::statements::{Size, dead};
use crate::store::postgres::{Postgres, decode};
use crate::store::values::{raw, seconds};

impl Postgres {
    pub(super) async fn find_dead(
        &self,
        filter: &DeadFilter,
        after: RowId,
        limit: u32,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        let octets = self.payload_size().await?;
        let statements = self.statements().await?;
        let source = &statements.source;
        let more = source.more_columns();
        let age = "date_part('epoch', clock_timestamp()) - date_part('epoch', o.dead_at)";
        let sql: Arc<str> = format!(
            "SELECT o.id::bigint, o.message_id, o.exchange, o.routing_key, o.ordering_key, o.type, o.content_type, o.headers::text,
                    o.properties::text, {octets}::bigint, coalesce(o.attempts, 0)::bigint, o.last_error,
                    date_part('epoch', o.created_at), date_part('epoch', o.dead_at){more}
             FROM {}
             WHERE {} AND o.id > $1 AND ($2::bigint[] = '{{}}' OR o.id = ANY($2))
               AND ($3::text IS NULL OR {} = $3)
               AND ($4::text IS NULL OR coalesce(o.exchange, $5) = $4)
               AND ($6::text IS NULL OR o.ordering_key = $6)
               AND ($7::float8 IS NULL OR {age} > $7) AND ($8::float8 IS NULL OR {age} < $8)
             ORDER BY o.id LIMIT $9",
            source.dead,
            dead(source),
            reason_of("o.last_error")
        )
        .into();
        let query = self
            .query(&sql)
            .bind(after.0)
            .bind(raw(&filter.ids))
            .bind(filter.reason.as_deref())
            .bind(filter.exchange.as_deref())
            .bind(filter.default_exchange.as_str())
            .bind(filter.key.as_deref())
            .bind(filter.older_than.map(seconds))
            .bind(filter.newer_than.map(seconds))
            .bind(i64::from(limit));
        decode(&self.rows(&self.housekeeping, query).await?, |row| {
            dead_letter(row, message_id(row)?)
        })
    }

    async fn payload_size(&self) -> Result<&'static str, StoreError> {
        Ok(match self.statements().await?.size {
            Size::OfColumn => "octet_length(o.payload)",
            Size::OfText => "octet_length(o.payload::text)",
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
        // A flag has no time.
        let times = match source.target.mark() {
            SentMark::Time => {
                "AND ($4::float8 IS NULL OR date_part('epoch', o.sent_at) >= $4)
                 AND ($5::float8 IS NULL OR date_part('epoch', o.sent_at) < $5)"
            }
            _ => "AND $4::float8 IS NULL AND $5::float8 IS NULL",
        };
        let listed = match wanted.ids.is_empty() {
            true => "$3::bigint[] IS NOT NULL",
            false => "o.id = ANY($3)",
        };
        let sql: Arc<str> = format!(
            "SELECT o.id::bigint,
                    (NOT ({}) {times}
                     AND ($6::text IS NULL OR coalesce(o.exchange, $7) = $6)
                     AND ($8::text IS NULL OR o.routing_key = $8)
                     AND ($9::text IS NULL OR coalesce(o.ordering_key = $9, false)))::int,
                    (o.ordering_key IS NOT NULL)::int
             FROM {} WHERE o.id > $1 AND {listed} ORDER BY o.id LIMIT $2",
            source.unsent, source.by_id
        )
        .into();
        let query = self
            .query(&sql)
            .bind(after.0)
            .bind(i64::from(window))
            .bind(raw(&wanted.ids))
            .bind(wanted.since)
            .bind(wanted.until)
            .bind(wanted.exchange.as_deref())
            .bind(wanted.default_exchange.as_str())
            .bind(wanted.routing_key.as_deref())
            .bind(wanted.key.as_deref());
        decode(&self.rows(&self.housekeeping, query).await?, sent_row)
    }
}
