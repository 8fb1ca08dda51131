//! Whether an SQLite file has the indexes that reads go through.

use sqlx::Row as _;

use crate::store::StoreError;
use crate::store::migrate::{dead_index, quoted, unsent_index};
use crate::store::operator::{Index, Upkeep};
use crate::store::source::Target;
use crate::store::sqlite::rows::text;
use crate::store::sqlite::statements::Statements;
use crate::store::sqlite::{Sqlite, Statement, decode, decode_one};

impl Sqlite {
    pub(super) async fn inspect_upkeep(&self) -> Result<Upkeep, StoreError> {
        let table = &self.options.table;
        let statements = self.statements().await?;
        if statements.columns.is_some() {
            let (unsent_index, dead_index) = self.existing_indexes(&statements).await?;
            return Ok(Upkeep {
                unsent_index,
                dead_index,
                vacuum: None,
            });
        }
        Ok(Upkeep {
            unsent_index: self
                .index(unsent_index(table), "sent_at IS NULL AND dead_at IS NULL")
                .await?,
            dead_index: self.index(dead_index(table), "dead_at IS NOT NULL").await?,
            vacuum: None,
        })
    }

    pub(super) async fn has_index(&self, name: &str) -> Result<bool, StoreError> {
        let query: Statement<'_> = sqlx::query(
            "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'index' AND name = ?1 AND tbl_name = ?2 COLLATE NOCASE)",
        );
        let query = query.bind(name).bind(self.options.table.name());
        decode_one(&self.rows(&self.housekeeping, query).await?, |row| row.try_get(0))
    }

    /// Only under its own name, by which reads are bound to it.
    async fn index(&self, name: String, of: &str) -> Result<Index, StoreError> {
        Ok(Index {
            exists: self.has_index(&name).await?,
            create: format!("CREATE INDEX {} ON {} (id) WHERE {of}", quoted(&name), self.table),
        })
    }

    /// Whether a table that `migrate` did not make has the indexes for its reads, by the plan of a poll.
    async fn existing_indexes(&self, statements: &Statements) -> Result<(Index, Index), StoreError> {
        let Target {
            key,
            names,
            bookkeeping,
            unsent_here,
            ..
        } = &statements.source.target;
        let plan = statements.head.replace("?1", "0").replace("?2", "1000");
        let steps = decode(&self.ask(format!("EXPLAIN QUERY PLAN {plan}")).await?, |row| {
            text(row, 3)
        })?;
        let step = steps
            .into_iter()
            .flatten()
            .find(|step| step.starts_with("SCAN a") || step.starts_with("SEARCH a"));
        let step = step.unwrap_or_default();
        let index = |exists, of: String| Index {
            exists,
            create: format!(
                "CREATE INDEX {} ON {} ({key}){of}",
                quoted(&unsent_index(&self.options.table)),
                self.table
            ),
        };
        let partial = match unsent_here.as_str() {
            "" => String::new(),
            unsent => format!(" WHERE {unsent}"),
        };
        // Through the key alone, a read goes over every row ever sent.
        let mut good = step.starts_with("SEARCH a");
        if let Some(sent) = &names.sent {
            good &= self.has_index_of(sent).await?;
        }
        let dead = match (bookkeeping, &names.dead) {
            (Some([.., dead]), Some(name)) => Index {
                exists: self.has_index_of(name).await?,
                create: format!(
                    "CREATE INDEX {} ON {} ({key}) WHERE {dead} IS NOT NULL",
                    quoted(&dead_index(&self.options.table)),
                    self.table
                ),
            },
            // They are few, and in a table of their own.
            _ => index(true, String::new()),
        };
        Ok((index(good, partial), dead))
    }

    /// Whether an index has this column in its condition, or first among its own.
    async fn has_index_of(&self, name: &str) -> Result<bool, StoreError> {
        let query: Statement<'_> = sqlx::query(
            "SELECT EXISTS (
                 SELECT 1 FROM sqlite_schema AS s WHERE s.type = 'index' AND s.tbl_name = ?1 COLLATE NOCASE
                   AND (lower(s.sql) LIKE '%where%' || lower(?2) || '%'
                        OR (SELECT lower(c.name) FROM pragma_index_info(s.name) AS c WHERE c.seqno = 0) = lower(?2)))",
        );
        let query = query.bind(self.options.table.name()).bind(name);
        decode_one(&self.rows(&self.housekeeping, query).await?, |row| row.try_get(0))
    }
}
