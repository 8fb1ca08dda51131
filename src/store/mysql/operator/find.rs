//! Which rows in MariaDB or MySQL a person's filter picks out: dead letters, and rows that were sent.
//!
//! Dead letters are next to each other in the index of unsent rows, but by their time and not by their id: to find the
//! lowest ids all of them are looked through. So that is done in the index alone, and only rows that may be wanted are
//! looked up (300,000 dead letters: 0.1 s for a page, where a filter on the rows themselves takes 1.5 s).

use std::collections::BTreeSet;
use std::sync::Arc;

use sqlx::Row as _;

use crate::message::RowId;
use crate::store::StoreError;
use crate::store::mysql::rows::message_id;
use crate::store::mysql::statements::{CREATED, LISTED};
use crate::store::mysql::{MySql, list, micros};
use crate::store::operator::rows::{Cells as _, dead_letter, sent_row};
use crate::store::operator::{DeadFilter, DeadLetter, SentFilter, SentRow, reason_of};
use crate::store::values::{decode, epoch, raw};

/// With a filter on what is not in the index, so many dead letters at a time are looked up.
const WINDOW: usize = 10_000;

/// Microseconds since it was given up.
const DEAD_FOR: &str = "timestampdiff(MICROSECOND, o.dead_at, now(6))";

impl MySql {
    pub(super) async fn find_dead(
        &self,
        filter: &DeadFilter,
        after: RowId,
        limit: u32,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        let wanted = Wanted::of(filter);
        let (mut after, limit) = (after.0, limit as usize);
        let mut letters = Vec::new();
        loop {
            let room = limit - letters.len();
            let (ids, more) = if filter.ids.is_empty() {
                let window = if wanted.texts.is_empty() { room } else { WINDOW };
                let ids = self.dead_ids(&wanted.ages, after, window).await?;
                let more = ids.len() == window;
                (ids, more)
            } else {
                let ids: BTreeSet<i64> = raw(&filter.ids).into_iter().filter(|id| *id > after).collect();
                (ids.into_iter().collect(), false)
            };
            letters.extend(self.dead_among(&ids, &wanted, room).await?);
            match ids.last() {
                Some(last) if more && letters.len() < limit => after = *last,
                _ => return Ok(letters),
            }
        }
    }

    /// The lowest ids of dead letters above `after`, from the index alone.
    async fn dead_ids(&self, ages: &str, after: i64, limit: usize) -> Result<Vec<i64>, StoreError> {
        let statements = self.statements().await?;
        let sql: Arc<str> = format!(
            "SELECT CAST(o.id AS SIGNED) FROM {} WHERE {}{ages} AND o.id > ? ORDER BY o.id LIMIT {limit}",
            statements.source.dead,
            statements.source.given_up()
        )
        .into();
        let query = self.query(&sql).bind(after);
        decode(&self.rows(&self.housekeeping, query).await?, |row| row.try_get(0))
    }

    /// The lowest of these rows that are wanted dead letters.
    async fn dead_among(&self, ids: &[i64], wanted: &Wanted, limit: usize) -> Result<Vec<DeadLetter>, StoreError> {
        let statements = self.statements().await?;
        let source = &statements.source;
        let by_id = &source.by_id;
        let more = source.more_columns();
        // The rows are found first, and then read: to be sorted they must be small, see `fetch`.
        let sql: Arc<str> = format!(
            "SELECT CAST(o.id AS SIGNED), {}, o.exchange, o.routing_key, o.ordering_key, o.type, o.content_type,
                    o.headers, o.properties, CAST(octet_length(o.payload) AS SIGNED),
                    CAST(coalesce(o.attempts, 0) AS SIGNED), o.last_error, {CREATED} / 1e6, {} / 1e6{more}
             FROM (SELECT o.id FROM {LISTED} {by_id} ON o.id = w.id
                   WHERE {}{}{} ORDER BY o.id LIMIT {limit}) AS d STRAIGHT_JOIN {by_id} ON o.id = d.id",
            source.message_id,
            since_1970("o.dead_at"),
            source.given_up(),
            wanted.ages,
            wanted.others
        )
        .into();
        let texts = wanted.texts.iter();
        let query = texts.fold(self.query(&sql).bind(list(ids)), |query, text| {
            query.bind(text.as_str())
        });
        let mut letters = decode(&self.rows(&self.housekeeping, query).await?, |row| {
            let created = epoch(row.double(12)?);
            let id = message_id(row, &format!("{}:{}:{created}", self.table, row.number(0)?))?;
            dead_letter(row, Some(id))
        })?;
        letters.sort_unstable_by_key(|letter| letter.id);
        Ok(letters)
    }

    pub(super) async fn find_sent(
        &self,
        wanted: &SentFilter,
        after: RowId,
        window: u32,
    ) -> Result<Vec<SentRow>, StoreError> {
        let statements = self.statements().await?;
        let source = &statements.source;
        let mut conditions = format!("NOT ({})", source.unsent);
        let mut texts = Vec::new();
        let sent = since_1970("o.sent_at");
        for (time, than) in [(wanted.since, ">="), (wanted.until, "<")] {
            if let Some(time) = time {
                conditions.push_str(&format!(" AND {sent} {than} {}", (time * 1e6) as i64));
            }
        }
        let exchange = match wanted.exchange.as_ref() == Some(&wanted.default_exchange) {
            true => format!("(o.exchange IS NULL OR {})", is("o.exchange")),
            false => is("o.exchange"),
        };
        for (text, condition) in [
            (&wanted.exchange, exchange),
            (&wanted.routing_key, is("o.routing_key")),
            (&wanted.key, is("o.ordering_key")),
        ] {
            if let Some(text) = text {
                conditions.push_str(&format!(" AND coalesce({condition}, 0)"));
                texts.push(text.as_str());
            }
        }
        let ids: Vec<String> = wanted.ids.iter().map(ToString::to_string).collect();
        let listed = match ids.is_empty() {
            true => String::new(),
            false => format!("AND o.id IN ({})", ids.join(", ")),
        };
        let sql: Arc<str> = format!(
            "SELECT CAST(o.id AS SIGNED), CAST({conditions} AS SIGNED), CAST(o.ordering_key IS NOT NULL AS SIGNED)
             FROM {} WHERE o.id > ? {listed} ORDER BY o.id LIMIT {window}",
            source.by_id
        )
        .into();
        let query = texts.into_iter().fold(self.query(&sql), |query, text| query.bind(text));
        decode(&self.rows(&self.housekeeping, query.bind(after.0)).await?, sent_row)
    }
}

/// Conditions, each with its `AND`.
struct Wanted {
    /// On what stands in the index.
    ages: String,
    /// On other columns.
    others: String,
    /// What is bound to these, in their order.
    texts: Vec<String>,
}

impl Wanted {
    fn of(filter: &DeadFilter) -> Self {
        let (mut ages, mut others, mut texts) = (String::new(), String::new(), Vec::new());
        if let Some(span) = filter.older_than {
            ages.push_str(&format!(" AND {DEAD_FOR} > {}", micros(span)));
        }
        if let Some(span) = filter.newer_than {
            ages.push_str(&format!(" AND {DEAD_FOR} < {}", micros(span)));
        }
        let mut want = |condition: String, text: &str| {
            others.push_str(&format!(" AND {condition}"));
            texts.push(text.to_owned());
        };
        if let Some(reason) = &filter.reason {
            want(is(&reason_of("o.last_error")), reason);
        }
        match &filter.exchange {
            Some(exchange) if *exchange == filter.default_exchange => {
                want(format!("(o.exchange IS NULL OR {})", is("o.exchange")), exchange);
            }
            Some(exchange) => want(is("o.exchange"), exchange),
            None => {}
        }
        if let Some(key) = &filter.key {
            want(is("o.ordering_key"), key);
        }
        Self { ages, others, texts }
    }
}

/// That a text is the one that is bound, by their bytes, whatever the collation of the column.
fn is(what: &str) -> String {
    format!("CAST(convert({what} USING utf8mb4) AS BINARY) = CAST(? AS BINARY)")
}

/// Microseconds since 1970 of a time in UTC, as every connection is.
pub(super) fn since_1970(time: &str) -> String {
    format!("timestampdiff(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', {time})")
}
