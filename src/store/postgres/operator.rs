//! What a person asks of an outbox in PostgreSQL.
//!
//! The texts are made when they are needed: a person asks seldom.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row as _, TypeInfo as _, ValueRef as _};

use super::rows::{message_id, text};
use super::source::is_gone;
use super::statements::{AGE, DUE, Size, Statements, dead, open};
use super::{Postgres, decode, decode_one, lease_dialect};
use crate::message::RowId;
use crate::store::leases::{self, Dialect};
use crate::store::operator::rows::{Cells, counted, dead_letter, owner, route, sent_row, waiting_key};
use crate::store::operator::{
    Database, DeadFilter, DeadLetter, Index, Operator, Ownership, PastError, Refused, Route, SentFilter, SentMark,
    SentRow, Upkeep, Vacuum, WAITING_SCAN, WaitingKey, count_reasons, count_routes, reason_of,
};
use crate::store::source::{Source, Target};
use crate::store::values::{count, raw, seconds, span};
use crate::store::{StoreError, history, pauses};

/// Any index of the right rows will do, whatever its name.
const INDEXES: &str = "\
SELECT coalesce(bool_or(i.predicate LIKE '%sent_at IS NULL%dead_at IS NULL%'), false),
       coalesce(bool_or(i.predicate LIKE '%dead_at IS NOT NULL%'), false)
FROM (SELECT pg_get_expr(x.indpred, x.indrelid) AS predicate
      FROM pg_catalog.pg_index AS x
      JOIN pg_catalog.pg_attribute AS a ON a.attrelid = x.indrelid AND a.attnum = x.indkey[0] AND a.attname = 'id'
      WHERE x.indrelid = to_regclass($1) AND x.indisvalid) AS i";

/// Whether an index of `$1` has the column `$2` in its condition, or first among its own.
const INDEX_OF: &str = "\
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_index AS x
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = x.indrelid AND a.attnum = x.indkey[0]
    WHERE x.indrelid = to_regclass($1) AND x.indisvalid
      AND (a.attname = $2 OR position(quote_ident($2) IN pg_get_expr(x.indpred, x.indrelid)) > 0))";

/// The table's own settings stand in `reloptions`, the server's hold where there are none. Of a partitioned table: the
/// partition with the most dead rows.
const VACUUM: &str = "\
SELECT coalesce((o.own ->> 'autovacuum_enabled')::boolean, true) AND current_setting('autovacuum')::boolean,
       coalesce(pg_stat_get_dead_tuples(c.oid), 0)::bigint,
       (coalesce((o.own ->> 'autovacuum_vacuum_threshold')::float8, current_setting('autovacuum_vacuum_threshold')::float8)
        + coalesce((o.own ->> 'autovacuum_vacuum_scale_factor')::float8, current_setting('autovacuum_vacuum_scale_factor')::float8)
        * greatest(c.reltuples, 0))::bigint,
       date_part('epoch', now() - greatest(pg_stat_get_last_vacuum_time(c.oid), pg_stat_get_last_autovacuum_time(c.oid)))
FROM pg_catalog.pg_class AS c,
     LATERAL (SELECT jsonb_object_agg(option_name, option_value) AS own FROM pg_options_to_table(c.reloptions)) AS o
WHERE (c.oid = to_regclass($1) AND c.relkind <> 'p')
   OR c.oid IN (SELECT relid FROM pg_partition_tree(to_regclass($1)) WHERE isleaf)
ORDER BY 2 DESC LIMIT 1";

impl Postgres {
    async fn ask(&self, sql: String) -> Result<Vec<PgRow>, StoreError> {
        let sql: Arc<str> = sql.into();
        self.rows(&self.housekeeping, self.query(&sql)).await
    }

    async fn change(&self, sql: String, ids: &[RowId]) -> Result<u64, StoreError> {
        let mut ids = raw(ids);
        // Two writers lock rows in the same order.
        ids.sort_unstable();
        let sql: Arc<str> = sql.into();
        self.execute(&self.write, self.query(&sql).bind(ids)).await
    }

    async fn payload_size(&self) -> Result<&'static str, StoreError> {
        Ok(match self.statements().await?.size {
            Size::OfColumn => "octet_length(o.payload)",
            Size::OfText => "octet_length(o.payload::text)",
        })
    }
}

impl Postgres {
    /// Whether a table that `migrate` did not make has the indexes for its reads: by the plan of a poll, without regard to
    /// how few rows there are now.
    async fn existing_indexes(&self, statements: &Statements) -> Result<(Index, Index), StoreError> {
        let Target {
            key,
            names,
            bookkeeping,
            unsent_here,
            ..
        } = &statements.source.target;
        // Several statements in one message are one transaction.
        let poll = filled(&statements.head, &["0", "1000"]);
        let script = format!(
            "SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
                    set_config('enable_sort', 'off', true);
             EXPLAIN (COSTS OFF) {poll}"
        );
        let plan = self
            .call(&self.housekeeping, async |connection| {
                sqlx::raw_sql(AssertSqlSafe(script)).fetch_all(connection).await
            })
            .await?;
        let lines = decode(&plan, |row| Ok(text(row, 0)?.unwrap_or_default()))?;
        // An index that is read from one end to the other, to be sorted then, is no better. Above the limit only a page is
        // sorted, as it is where the key is no `bigint`.
        let numbered = statements.source.target.positions.is_some();
        let scans = lines
            .iter()
            .any(|line| line.contains("Seq Scan on ") && is_outbox(line));
        let mut limited = lines.iter().skip_while(|line| !line.ends_with("Limit"));
        let scans = scans || (!numbered && limited.any(|line| line.ends_with("Sort")));
        let mut good = !scans;
        if let Some(sent) = &names.sent {
            good &= self.has_index_of(sent).await?;
        }
        let concurrently = self.concurrently().await?;
        let index = |exists, of: String| Index {
            exists,
            create: format!("CREATE INDEX{concurrently} ON {} ({key}){of}", self.table),
        };
        let of_unsent = match unsent_here.as_str() {
            "" => String::new(),
            unsent => format!(" WHERE {unsent}"),
        };
        let dead = match (bookkeeping, &names.dead) {
            (Some([.., column]), Some(name)) => {
                index(self.has_index_of(name).await?, format!(" WHERE {column} IS NOT NULL"))
            }
            // They are few, and in a table of their own.
            _ => index(true, String::new()),
        };
        Ok((index(good, of_unsent), dead))
    }

    /// How an index is made without stopping the application; not to be had for all partitions at once.
    async fn concurrently(&self) -> Result<&'static str, StoreError> {
        let sql: Arc<str> = "SELECT relkind = 'p' FROM pg_catalog.pg_class WHERE oid = to_regclass($1)".into();
        let kind = self.query(&sql).bind(self.table.as_str());
        let rows = self.rows(&self.housekeeping, kind).await?;
        let partitioned = decode_one(&rows, |row| row.try_get::<bool, _>(0))?;
        Ok(if partitioned { "" } else { " CONCURRENTLY" })
    }

    /// Whether an index has the column of this name in its condition, or first among its own.
    async fn has_index_of(&self, name: &str) -> Result<bool, StoreError> {
        let sql: Arc<str> = INDEX_OF.into();
        let query = self.query(&sql).bind(self.table.as_str()).bind(name);
        decode_one(&self.rows(&self.housekeeping, query).await?, |row| row.try_get(0))
    }
}

/// With the arguments in the places of `$1` to `$9`, but for those within texts and names.
fn filled(sql: &str, arguments: &[&str]) -> String {
    let (mut text, mut quote, mut chars) = (String::with_capacity(sql.len()), None, sql.chars().peekable());
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, '$') => {
                let number = chars.next_if(char::is_ascii_digit).and_then(|digit| digit.to_digit(10));
                let index = number.and_then(|number| usize::try_from(number).ok()?.checked_sub(1));
                text.push_str(index.and_then(|index| arguments.get(index)).unwrap_or(&"$"));
                continue;
            }
            (None, '\'' | '"') => quote = Some(c),
            // A doubled one ends the text and begins it anew.
            (Some(begun), _) if begun == c => quote = None,
            _ => {}
        }
        text.push(c);
    }
    text
}

/// Whether a line of a plan is about the application's table, or a partition of it (`a_1`).
fn is_outbox(line: &str) -> bool {
    let alias = line.rsplit(' ').next().unwrap_or_default();
    let (name, partition) = alias.split_once('_').unwrap_or((alias, "1"));
    ["a", "r"].contains(&name) && partition.bytes().all(|digit| digit.is_ascii_digit())
}

#[async_trait]
impl Operator for Postgres {
    async fn database(&self) -> Result<Database, StoreError> {
        let sql = "SELECT current_setting('server_version'), date_part('epoch', clock_timestamp())".to_owned();
        decode_one(&self.ask(sql).await?, |row| {
            Ok(Database {
                product: "PostgreSQL",
                version: row.try_get(0)?,
                now: row.try_get(1)?,
            })
        })
    }

    async fn ownership(&self) -> Result<Ownership, StoreError> {
        let rows = self.ask(leases::ownership(&self.options.table, &lease_dialect())).await;
        Ok(leases::owners(decode(&rows.map_err(leases::explain)?, owner)?))
    }

    async fn dead_reasons(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let statements = self.statements().await?;
        let source = &statements.source;
        let dead = format!("{} WHERE {} ORDER BY o.id", source.dead, dead(source));
        decode(&self.ask(count_reasons("o.last_error", &dead)).await?, counted)
    }

    async fn waiting_keys(&self, key: Option<&str>, limit: u32) -> Result<Vec<WaitingKey>, StoreError> {
        let statements = self.statements().await?;
        let (from, open) = (&statements.source.reads, open(&statements.source));
        let sql: Arc<str> = format!(
            "SELECT k, id, attempts, due, last_error, age
             FROM (SELECT DISTINCT ON (k) k, id, attempts, due, last_error, age
                   FROM (SELECT o.ordering_key AS k, o.id::bigint AS id, coalesce(o.attempts, 0)::bigint AS attempts, {DUE} AS due,
                                o.last_error, {AGE} AS age
                         FROM {from} WHERE {open} ORDER BY o.id LIMIT {WAITING_SCAN}) AS unsent
                   WHERE k IS NOT NULL AND ($1::text IS NULL OR k = $1) AND due > 0 ORDER BY k, id) AS keys
             ORDER BY id LIMIT {limit}"
        )
        .into();
        let rows = self.rows(&self.housekeeping, self.query(&sql).bind(key)).await?;
        decode(&rows, waiting_key)
    }

    async fn rows_of_keys(&self, keys: &[&str]) -> Result<Vec<(String, u64)>, StoreError> {
        let statements = self.statements().await?;
        let (from, open) = (&statements.source.reads, open(&statements.source));
        let sql: Arc<str> = format!(
            "SELECT k, count(*)
             FROM (SELECT o.ordering_key AS k FROM {from} WHERE {open} ORDER BY o.id LIMIT {WAITING_SCAN}) AS unsent
             WHERE k = ANY($1) GROUP BY k"
        )
        .into();
        let query = self.query(&sql).bind(keys.to_vec());
        decode(&self.rows(&self.housekeeping, query).await?, counted)
    }

    async fn routes(&self, limit: u32) -> Result<Vec<Route>, StoreError> {
        let statements = self.statements().await?;
        let open = format!("{} WHERE {}", statements.source.reads, open(&statements.source));
        let sql = count_routes(
            "o.exchange::text",
            "o.routing_key::text",
            &statements.source,
            &open,
            limit,
        );
        decode(&self.ask(sql).await?, route)
    }

    async fn dead_letters(&self, filter: &DeadFilter, after: RowId, limit: u32) -> Result<Vec<DeadLetter>, StoreError> {
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

    async fn past_errors(&self, id: RowId) -> Result<Vec<PastError>, StoreError> {
        let rows = self.ask(history::list(&self.options.table, id)).await;
        decode(&rows.map_err(history::explain)?, history::past_error)
    }

    async fn dead_payload(&self, id: RowId) -> Result<Option<Vec<u8>>, StoreError> {
        let body = match self.statements().await?.size {
            Size::OfText => "convert_to(o.payload::text, 'UTF8')",
            Size::OfColumn => "o.payload",
        };
        let statements = self.statements().await?;
        let source = &statements.source;
        let sql: Arc<str> = format!(
            "SELECT {body} FROM {} WHERE {} AND o.id = $1",
            source.dead,
            dead(source)
        )
        .into();
        let rows = self.rows(&self.housekeeping, self.query(&sql).bind(id.0)).await?;
        let bodies = decode(&rows, |row| {
            let value = row.try_get_raw(0)?;
            Ok(value.as_bytes().map(<[u8]>::to_vec).unwrap_or_default())
        })?;
        Ok(bodies.into_iter().next())
    }

    async fn replay(&self, ids: &[RowId], which: Refused) -> Result<u64, StoreError> {
        let statements = self.statements().await?;
        self.change(replay(&statements.source, which), ids).await
    }

    async fn discard(&self, ids: &[RowId], which: Refused) -> Result<u64, StoreError> {
        let statements = self.statements().await?;
        let discarded = self.change(discard(&statements.source, which), ids).await?;
        if let Some(forget) = &statements.forget {
            self.change(forget.to_string(), ids).await?;
        }
        Ok(discarded)
    }

    async fn sent_mark(&self) -> Result<SentMark, StoreError> {
        Ok(self.statements().await?.source.target.mark())
    }

    async fn sent_rows(&self, wanted: &SentFilter, after: RowId, window: u32) -> Result<Vec<SentRow>, StoreError> {
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

    async fn replay_sent(&self, ids: &[RowId], until: Option<f64>) -> Result<u64, StoreError> {
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

    async fn try_lease(&self, partitions: u16) -> Result<(), StoreError> {
        let dialect = lease_dialect();
        // Not the end of a transaction that nobody has begun, which the server would warn of.
        let dialect = Dialect {
            begin: format!("BEGIN; {}", dialect.begin),
            ..dialect
        };
        let tried = self
            .leased(leases::rehearsal(&self.options.table, partitions, dialect))
            .await;
        if tried.is_err() {
            // What failed has left its transaction open, on a connection that is kept.
            self.leases.close().await;
        }
        tried.map(drop)
    }

    async fn pause(&self, exchange: Option<&str>, by: &str, reason: &str) -> Result<(), StoreError> {
        let (table, (scope, exchange)) = (&self.options.table, pauses::stored(exchange));
        let now = lease_dialect().now;
        let sql: Arc<str> = pauses::begin(table, now, ["$1", "$2", "$3", "$4"], "ON CONFLICT DO NOTHING").into();
        let query = self.query(&sql).bind(scope).bind(exchange).bind(by).bind(reason);
        let begun = self.execute(&self.write, query).await;
        begun.map(drop).map_err(pauses::explain)
    }

    async fn resume(&self, exchange: Option<&str>) -> Result<bool, StoreError> {
        let (scope, exchange) = pauses::stored(exchange);
        let sql: Arc<str> = pauses::end(&self.options.table, ["$1", "$2"]).into();
        let query = self.query(&sql).bind(scope).bind(exchange);
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

    async fn upkeep(&self) -> Result<Upkeep, StoreError> {
        let ask = async |sql: &'static str| {
            let sql: Arc<str> = sql.into();
            self.rows(&self.housekeeping, self.query(&sql).bind(self.table.as_str()))
                .await
        };
        let statements = self.statements().await?;
        let (unsent_index, dead_index) = match &statements.columns {
            None => {
                let (unsent, dead) = decode_one(&ask(INDEXES).await?, |row| Ok((row.try_get(0)?, row.try_get(1)?)))?;
                let concurrently = self.concurrently().await?;
                let index = |exists: bool, of: &str| Index {
                    exists,
                    create: format!("CREATE INDEX{concurrently} ON {} (id) WHERE {of}", self.table),
                };
                (
                    index(unsent, "sent_at IS NULL AND dead_at IS NULL"),
                    index(dead, "dead_at IS NOT NULL"),
                )
            }
            Some(_) => self.existing_indexes(&statements).await?,
        };
        let vacuum = decode(&ask(VACUUM).await?, |row| {
            Ok(Vacuum {
                enabled: row.try_get(0)?,
                dead_rows: count(row.try_get(1)?),
                threshold: count(row.try_get(2)?),
                last: row.try_get::<Option<f64>, _>(3)?.map(|age| span(Some(age))),
            })
        })?;
        Ok(Upkeep {
            unsent_index,
            dead_index,
            vacuum: vacuum.into_iter().next(),
        })
    }
}

/// `$1`: row ids.
fn replay(source: &Source, which: Refused) -> String {
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
fn discard(source: &Source, which: Refused) -> String {
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

impl Cells for PgRow {
    fn width(&self) -> usize {
        self.len()
    }

    fn text(&self, index: usize) -> Result<Option<String>, sqlx::Error> {
        text(self, index)
    }

    fn integer(&self, index: usize) -> Result<Option<i64>, sqlx::Error> {
        match self.try_get_raw(index)?.type_info().name() {
            "INT4" => Ok(self.try_get::<Option<i32>, _>(index)?.map(i64::from)),
            _ => self.try_get(index),
        }
    }

    fn double(&self, index: usize) -> Result<Option<f64>, sqlx::Error> {
        self.try_get(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_stand_where_they_are_wanted() {
        assert_eq!(
            filled(
                "SELECT \"a $1's\", '$2 \"$1' WHERE \"b\"\"$1\" > $1 LIMIT $2 -- $3",
                &["0", "1000"]
            ),
            "SELECT \"a $1's\", '$2 \"$1' WHERE \"b\"\"$1\" > 0 LIMIT 1000 -- $"
        );
    }
}
