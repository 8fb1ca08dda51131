//! What a person asks of an outbox in MariaDB or MySQL.
//!
//! Dead letters are next to each other in the index of unsent rows, but by their time and not by their id: to find the
//! lowest ids all of them are looked through. So that is done in the index alone, and only rows that may be wanted are
//! looked up (300,000 dead letters: 0.1 s for a page, where a filter on the rows themselves takes 1.5 s).

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::Row as _;
use sqlx::mysql::MySqlRow;

use super::inspect::{self, backquoted, in_backquotes};
use super::rows::{self, bytes, message_id, text};
use super::script::Argument;
use super::statements::{AGE, CREATED, DUE, LISTED, Statements, listed};
use super::{MAX_MARK, MySql, lease_dialect, list, micros};
use crate::message::RowId;
use crate::store::operator::rows::{Cells, counted, dead_letter, owner, route, sent_row, waiting_key};
use crate::store::operator::{
    Database, DeadFilter, DeadLetter, Index, Operator, Ownership, PastError, Refused, Route, SentFilter, SentMark,
    SentRow, Upkeep, WAITING_SCAN, WaitingKey, count_reasons, count_routes, reason_of,
};
use crate::store::source::Target;
use crate::store::values::{decode, decode_one, epoch, raw};
use crate::store::{StoreError, history, leases, pauses};

/// With a filter on what is not in the index, so many dead letters at a time are looked up.
const WINDOW: usize = 10_000;

/// Microseconds since it was given up.
const DEAD_FOR: &str = "timestampdiff(MICROSECOND, o.dead_at, now(6))";

/// Keys are compared by their bytes, whatever the collation of the column.
const KEY: &str = "CAST(convert(o.ordering_key USING utf8mb4) AS BINARY)";

impl MySql {
    async fn ask(&self, sql: String) -> Result<Vec<MySqlRow>, StoreError> {
        let sql: Arc<str> = sql.into();
        self.rows(&self.housekeeping, self.query(&sql)).await
    }

    /// In `id` order, as every writer locks rows. The first statement tells how many there were.
    async fn change(&self, statements: &[Arc<str>], ids: &[RowId]) -> Result<u64, StoreError> {
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

    /// Whether a table that `migrate` did not make has the indexes for its reads.
    async fn existing_indexes(&self, statements: &Statements) -> Result<(Index, Index), StoreError> {
        let target = &statements.source.target;
        let table = backquoted(&self.options.table);
        // Whatever the server would do with the few rows that there may be now: is there an index it could use?
        // MySQL 9.7 has another format by default, without these columns.
        let plan = format!(
            "EXPLAIN FORMAT=TRADITIONAL {}",
            statements
                .head
                .replace("o.id > ?", "o.id > 0")
                .replace("LIMIT ?", "LIMIT 1000")
        );
        // By name: MySQL has more columns than MariaDB.
        let cell = |row: &MySqlRow, name: &str| {
            let bytes: Option<&[u8]> = row.try_get_unchecked(name)?;
            Ok::<_, sqlx::Error>(bytes.map(String::from_utf8_lossy).unwrap_or_default().into_owned())
        };
        let steps = decode(&self.ask(plan).await?, |row| {
            Ok((
                cell(row, "table")?,
                cell(row, "possible_keys")? + &cell(row, "key")?,
                cell(row, "Extra")?,
            ))
        })?;
        let scans = steps.iter().any(|(table, keys, _)| table == "a" && keys.is_empty());
        let key = in_backquotes(&target.names.key);
        let Some(sent) = target.names.sent.as_deref().filter(|_| target.positions.is_none()) else {
            let index = Index {
                exists: !scans,
                create: format!("ALTER TABLE {table} ADD INDEX ({key})"),
            };
            return Ok((index.clone(), index));
        };
        let sorts = steps.iter().any(|(_, _, extra)| extra.contains("filesort"));
        let index = self.index_of(&self.housekeeping, target).await?;
        // Where two values say unsent, no index has these rows in one place.
        let sent = in_backquotes(sent);
        let (first, one_value) = match target.unsent_is_one_value() {
            true => (String::new(), String::new()),
            false => (
                format!("UPDATE {table} SET {sent} = 0 WHERE {sent} IS NULL; "),
                format!("MODIFY {sent} {} NOT NULL DEFAULT 0, ", target.names.sent_type),
            ),
        };
        let dead = target
            .names
            .dead
            .as_deref()
            .map(|dead| format!("{}, ", in_backquotes(dead)));
        let index = Index {
            exists: index.is_some() && !scans && !sorts,
            create: format!(
                "{first}ALTER TABLE {table} {one_value}ADD INDEX ({sent}, {}{key})",
                dead.unwrap_or_default()
            ),
        };
        Ok((index.clone(), index))
    }
}

impl MySql {
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
}

#[async_trait]
impl Operator for MySql {
    async fn database(&self) -> Result<Database, StoreError> {
        let sql = format!("SELECT version(), {}", lease_dialect(&self.options.table).now);
        decode_one(&self.ask(sql).await?, |row| {
            let version = rows::name(row)?;
            Ok(Database {
                product: inspect::product(&version),
                version,
                now: row.double(1)?.unwrap_or_default(),
            })
        })
    }

    async fn ownership(&self) -> Result<Ownership, StoreError> {
        let table = &self.options.table;
        let rows = self.ask(leases::ownership(table, &lease_dialect(table))).await;
        Ok(leases::owners(decode(&rows.map_err(leases::explain)?, owner)?))
    }

    async fn dead_reasons(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let statements = self.statements().await?;
        // In no order: it would be sorted for that.
        let dead = format!("{} WHERE {}", statements.source.dead, statements.source.given_up());
        decode(&self.ask(count_reasons("o.last_error", &dead)).await?, counted)
    }

    async fn waiting_keys(&self, key: Option<&str>, limit: u32) -> Result<Vec<WaitingKey>, StoreError> {
        let statements = self.statements().await?;
        let only = if key.is_some() { "AND k = CAST(? AS BINARY)" } else { "" };
        let sql: Arc<str> = format!(
            "SELECT o.ordering_key, CAST(o.id AS SIGNED), CAST(coalesce(o.attempts, 0) AS SIGNED), {DUE} / 1e6, o.last_error,
                    {AGE} / 1e6
             FROM (SELECT k, min(id) AS lowest
                   FROM (SELECT {KEY} AS k, o.id AS id, {DUE} AS due
                         FROM {} WHERE {} ORDER BY o.id LIMIT {WAITING_SCAN}) AS unsent
                   WHERE k IS NOT NULL {only} AND due > 0 GROUP BY k ORDER BY lowest LIMIT {limit}) AS w
             STRAIGHT_JOIN {} ON o.id = w.lowest ORDER BY o.id",
            statements.source.reads,
            statements.source.open(),
            statements.source.by_id
        )
        .into();
        let query = key.into_iter().fold(self.query(&sql), |query, key| query.bind(key));
        decode(&self.rows(&self.housekeeping, query).await?, waiting_key)
    }

    async fn rows_of_keys(&self, keys: &[&str]) -> Result<Vec<(String, u64)>, StoreError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let statements = self.statements().await?;
        let sql: Arc<str> = format!(
            "SELECT k, count(*)
             FROM (SELECT {KEY} AS k FROM {} WHERE {} ORDER BY o.id LIMIT {WAITING_SCAN}) AS unsent
             WHERE k IN ({}) GROUP BY k",
            statements.source.reads,
            statements.source.open(),
            vec!["CAST(? AS BINARY)"; keys.len()].join(", ")
        )
        .into();
        let query = keys.iter().fold(self.query(&sql), |query, key| query.bind(*key));
        decode(&self.rows(&self.housekeeping, query).await?, counted)
    }

    async fn routes(&self, limit: u32) -> Result<Vec<Route>, StoreError> {
        let statements = self.statements().await?;
        let open = format!("{} WHERE {}", statements.source.reads, statements.source.open());
        // Told apart by their bytes, whatever the collation of the columns.
        let bytes = |column: &str| format!("CAST(convert({column} USING utf8mb4) AS BINARY)");
        let sql = count_routes(
            &bytes("o.exchange"),
            &bytes("o.routing_key"),
            &statements.source,
            &open,
            limit,
        );
        decode(&self.ask(sql).await?, route)
    }

    async fn dead_letters(&self, filter: &DeadFilter, after: RowId, limit: u32) -> Result<Vec<DeadLetter>, StoreError> {
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

    async fn past_errors(&self, id: RowId) -> Result<Vec<PastError>, StoreError> {
        let rows = self.ask(history::list(&self.options.table, id)).await;
        decode(&rows.map_err(history::explain)?, history::past_error)
    }

    async fn dead_payload(&self, id: RowId) -> Result<Option<Vec<u8>>, StoreError> {
        let statements = self.statements().await?;
        let source = &statements.source;
        let sql: Arc<str> = format!(
            "SELECT o.payload FROM {} WHERE {} AND o.id = ?",
            source.dead,
            source.given_up()
        )
        .into();
        let rows = self.rows(&self.housekeeping, self.query(&sql).bind(id.0)).await?;
        let bodies = decode(&rows, |row| Ok(bytes(row, 0)?.unwrap_or_default().to_vec()))?;
        Ok(bodies.into_iter().next())
    }

    async fn replay(&self, ids: &[RowId], which: Refused) -> Result<u64, StoreError> {
        let statements = self.statements().await?;
        self.change(&[replay(&statements.source.target, which).into()], ids)
            .await
    }

    async fn discard(&self, ids: &[RowId], which: Refused) -> Result<u64, StoreError> {
        let statements = self.statements().await?;
        let discarded = self.change(&discard(&statements.source.target, which), ids).await?;
        if let Some(history) = &statements.history {
            self.forget(history, &raw(ids)).await?;
        }
        Ok(discarded)
    }

    async fn sent_mark(&self) -> Result<SentMark, StoreError> {
        Ok(self.statements().await?.source.target.mark())
    }

    async fn sent_rows(&self, wanted: &SentFilter, after: RowId, window: u32) -> Result<Vec<SentRow>, StoreError> {
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

    async fn replay_sent(&self, ids: &[RowId], until: Option<f64>) -> Result<u64, StoreError> {
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

    async fn try_lease(&self, partitions: u16) -> Result<(), StoreError> {
        let script = leases::rehearsal(&self.options.table, partitions, lease_dialect(&self.options.table));
        self.leased(script).await.map(drop)
    }

    async fn pause(&self, exchange: Option<&str>, by: &str, reason: &str) -> Result<(), StoreError> {
        let (table, (scope, exchange)) = (&self.options.table, pauses::stored(exchange));
        let now = lease_dialect(table).now;
        let sql: Arc<str> = pauses::begin(
            table,
            now,
            ["?", "?", "?", "?"],
            "ON DUPLICATE KEY UPDATE scope = scope",
        )
        .into();
        let query = self
            .query(&sql)
            .bind(scope)
            .bind(exchange.as_bytes())
            .bind(by)
            .bind(reason);
        let begun = self.execute(&self.write, query).await;
        begun.map(drop).map_err(pauses::explain)
    }

    async fn resume(&self, exchange: Option<&str>) -> Result<bool, StoreError> {
        let (scope, exchange) = pauses::stored(exchange);
        let sql: Arc<str> = pauses::end(&self.options.table, ["?", "?"]).into();
        let query = self.query(&sql).bind(scope).bind(exchange.as_bytes());
        let ended = self.execute(&self.write, query).await;
        Ok(ended.map_err(pauses::explain)? > 0)
    }

    fn is_exposed(&self) -> bool {
        self.connector.is_exposed()
    }

    async fn columns(&self) -> Result<Option<String>, StoreError> {
        Ok(self.statements().await?.columns.clone())
    }

    async fn advice(&self) -> Result<Vec<String>, StoreError> {
        Ok(self.statements().await?.advice.clone())
    }

    /// One index is for both.
    async fn upkeep(&self) -> Result<Upkeep, StoreError> {
        let statements = self.statements().await?;
        if statements.columns.is_some() {
            let (unsent_index, dead_index) = self.existing_indexes(&statements).await?;
            return Ok(Upkeep {
                unsent_index,
                dead_index,
                vacuum: None,
            });
        }
        let index = Index {
            exists: self.unsent_index(&self.housekeeping).await?.is_some(),
            create: format!(
                "ALTER TABLE {} ADD INDEX (sent_at, dead_at)",
                backquoted(&self.options.table)
            ),
        };
        Ok(Upkeep {
            unsent_index: index.clone(),
            dead_index: index,
            vacuum: None,
        })
    }
}

/// Takes row ids.
fn replay(target: &Target, which: Refused) -> String {
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
fn discard(target: &Target, which: Refused) -> Vec<Arc<str>> {
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
fn since_1970(time: &str) -> String {
    format!("timestampdiff(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', {time})")
}

/// That a time has not come.
fn later(time: &str) -> String {
    format!("{time} > now(6)")
}

impl Cells for MySqlRow {
    fn width(&self) -> usize {
        self.len()
    }

    fn text(&self, index: usize) -> Result<Option<String>, sqlx::Error> {
        text(self, index)
    }

    fn integer(&self, index: usize) -> Result<Option<i64>, sqlx::Error> {
        self.try_get(index)
    }

    fn double(&self, index: usize) -> Result<Option<f64>, sqlx::Error> {
        self.try_get(index)
    }
}
