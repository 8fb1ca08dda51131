//! The application's table as it is written to.

use super::columns::Column;
use super::layout::Layout;
use super::migrate::literal;
use super::operator::{Refused, SentMark};
use super::source::{Dialect, failures_table, positions_table, unsent};
use crate::config::TableName;

/// Names of columns without quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) key: String,
    pub(super) sent: Option<String>,
    /// The type of what is marked, where a statement needs it to change something else of it.
    pub(super) sent_type: String,
    pub(super) dead: Option<String>,
}

/// The table that is written to, with the names of its columns.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// The application's table.
    pub(super) table: String,
    /// What rows are told apart by.
    pub(super) key: String,
    /// What is marked, a time or a flag.
    pub(super) sent: Option<String>,
    pub(super) sent_is_flag: bool,
    /// What is marked is declared a number: in SQLite, a time in seconds.
    pub(super) sent_is_number: bool,
    /// That a row, named `o`, is not marked; empty: rows are not marked.
    pub(super) unsent: String,
    /// The same as it stands in the condition of an index.
    pub(super) unsent_here: String,
    /// Attempts, next attempt, last error, dead; `None`: see `failures`.
    pub(super) bookkeeping: Option<[String; 4]>,
    /// How many characters of an error fit into its column; `None`: all.
    pub(super) error_chars: Option<u32>,
    /// The columns' names as the catalogue has them.
    pub(super) names: Names,
    /// The outbox as the relay's own tables name it.
    pub(super) outbox: String,
    /// The relay's own table of refusals.
    pub(super) failures: String,
    /// The relay's own table of row numbers, where it numbers the rows.
    pub(super) positions: Option<String>,
    /// Numbered rows are told apart by their place in the table, too.
    pub(super) by_place: bool,
    /// The key as that table, named `p`, has it.
    pub(super) key_there: String,
}

impl Target {
    /// Rows with a column of their own to tell when they were sent can be purged by it.
    pub(super) fn can_purge(&self) -> bool {
        self.sent.is_some() && !self.sent_is_flag && self.positions.is_none()
    }

    /// `AND`, and that the row `o` is not marked; nothing where rows are not marked.
    pub(super) fn and_unsent(&self) -> String {
        match self.unsent.as_str() {
            "" => String::new(),
            unsent => format!(" AND {unsent}"),
        }
    }

    /// Whether what is marked has one value in all rows that are not.
    pub(super) fn unsent_is_one_value(&self) -> bool {
        !self.unsent.contains(" OR ")
    }

    /// `SQL` for an error's text as long as its column.
    pub(super) fn cut(&self, error: &str) -> String {
        match self.error_chars {
            Some(chars) => format!("left({error}, {chars})"),
            None => error.to_owned(),
        }
    }

    /// That the row with this id is in its table, unsent; what was refused does not matter.
    pub(super) fn has(&self, id: &str) -> String {
        let Self {
            table,
            key,
            outbox,
            key_there,
            ..
        } = self;
        let unsent = self.and_unsent();
        match &self.positions {
            None => format!("EXISTS (SELECT 1 FROM {table} AS o WHERE o.{key} = {id}{unsent})"),
            Some(positions) => format!(
                "EXISTS (SELECT 1 FROM {positions} AS p JOIN {table} AS o ON o.{key} = {key_there}
                         WHERE p.outbox = {outbox} AND p.position = {id}{unsent})"
            ),
        }
    }

    /// What tells that a row was sent.
    pub(super) fn mark(&self) -> SentMark {
        match (&self.positions, &self.sent) {
            (_, None) => SentMark::Deleted,
            (Some(_), _) => SentMark::Numbered,
            (None, Some(_)) if self.sent_is_flag => SentMark::Flag,
            (None, Some(_)) => SentMark::Time,
        }
    }

    /// What is set of a sent row so that it is unsent again. `of` stands before each column; `unset`: a flag that is not set.
    pub(super) fn unsend(&self, of: &str, unset: &str) -> String {
        let unset = if self.sent_is_flag { unset } else { "NULL" };
        let mark = self.sent.iter().map(|sent| format!("{of}{sent} = {unset}"));
        let columns = self.bookkeeping.iter();
        let columns = columns.map(|[attempts, next, _, _]| format!("{of}{attempts} = 0, {of}{next} = NULL"));
        mark.chain(columns).collect::<Vec<_>>().join(", ")
    }

    /// That a row, named `o`, was refused, by its own columns. `later`: SQL for a time that has not come. One that has come may
    /// be on its way to the broker.
    pub(super) fn refused(
        [attempts, next, _, dead]: &[String; 4],
        which: Refused,
        later: fn(&str) -> String,
    ) -> String {
        match which {
            Refused::GivenUp => format!("o.{dead} IS NOT NULL"),
            Refused::Waiting => format!(
                "o.{dead} IS NULL AND o.{attempts} > 0 AND {}",
                later(&format!("o.{next}"))
            ),
        }
    }

    /// The same of a row `b` in the relay's own table of refusals.
    pub(super) fn refused_there(which: Refused, later: fn(&str) -> String) -> String {
        match which {
            Refused::GivenUp => "b.dead_at IS NOT NULL".to_owned(),
            Refused::Waiting => format!(
                "b.dead_at IS NULL AND b.attempts > 0 AND {}",
                later("b.next_attempt_at")
            ),
        }
    }

    /// The application's table by what the layout says.
    pub(super) fn new(table: &TableName, layout: &Layout, dialect: &dyn Dialect) -> Self {
        Self {
            table: table.to_string(),
            key: layout.key.quoted(),
            sent: layout.sent.as_ref().map(Column::quoted),
            sent_is_flag: layout.sent_is_flag,
            sent_is_number: layout.sent.as_ref().is_some_and(|sent| sent.kind.contains("INT")),
            unsent: unsent(layout, dialect, |column| format!("o.{}", column.quoted())),
            unsent_here: unsent(layout, dialect, Column::quoted),
            error_chars: layout.bookkeeping.as_ref().and_then(|[_, _, error, _]| error.length),
            names: Names {
                key: layout.key.name.clone(),
                sent: layout.sent.as_ref().map(|sent| sent.name.clone()),
                sent_type: layout
                    .sent
                    .as_ref()
                    .map(|sent| sent.declared.clone())
                    .unwrap_or_default(),
                dead: layout.bookkeeping.as_ref().map(|[.., dead]| dead.name.clone()),
            },
            bookkeeping: layout
                .bookkeeping
                .as_ref()
                .map(|columns| columns.each_ref().map(Column::quoted)),
            outbox: literal(table.name()),
            failures: failures_table(table),
            positions: layout.numbered.then(|| positions_table(table)),
            by_place: layout.by_place,
            key_there: dialect.stored_key(&layout.key, "p.row_key"),
        }
    }
}
