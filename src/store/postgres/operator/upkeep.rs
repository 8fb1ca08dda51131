//! Whether PostgreSQL has the indexes that reads go through, and how its vacuum keeps up with dead rows.

use std::sync::Arc;

use sqlx::{AssertSqlSafe, Row as _};

use crate::store::StoreError;
use crate::store::operator::{Index, Upkeep, Vacuum};
use crate::store::postgres::rows::text;
use crate::store::postgres::statements::Statements;
use crate::store::postgres::{Postgres, decode, decode_one};
use crate::store::source::Target;
use crate::store::values::{count, span};

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
    pub(super) async fn inspect_upkeep(&self) -> Result<Upkeep, StoreError> {
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
