//! Several statements in one transaction, sent as one text.
//!
//! The server runs it to its end by itself, so that a relay that is frozen or cut off meanwhile keeps no locks: no lease would
//! end them, and MySQL has no bound for a transaction that waits for its client.

use std::sync::Arc;

use futures_util::TryStreamExt as _;
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Either, Executor as _};

use super::{MySql, Statement};
use crate::store::StoreError;
use crate::store::migrate::literal;
use crate::store::slot::Slot;

/// What stands for a `?`.
#[derive(Debug, Clone)]
pub(super) enum Argument {
    Text(String),
    Number(i64),
}

impl Argument {
    fn in_sql(&self) -> String {
        match self {
            Self::Text(text) => literal(text),
            Self::Number(number) => number.to_string(),
        }
    }

    fn bind<'q>(&self, query: Statement<'q>) -> Statement<'q> {
        match self {
            Self::Text(text) => query.bind(text.clone()),
            Self::Number(number) => query.bind(*number),
        }
    }
}

/// What the server answered, as far as it came.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// The rows that each statement changed.
    pub(super) changed: Vec<u64>,
    /// Rows that were selected.
    pub(super) selected: usize,
}

impl MySql {
    /// Statements with the same arguments: one by itself, several in one transaction. The rows that each of them changed.
    pub(super) async fn together(
        &self,
        slot: &Slot<MySqlConnection>,
        statements: &[Arc<str>],
        arguments: &[Argument],
    ) -> Result<Vec<u64>, StoreError> {
        if let [only] = statements {
            let query = arguments
                .iter()
                .fold(self.query(only), |query, argument| argument.bind(query));
            return Ok(vec![self.execute(slot, query).await?]);
        }
        let script = transaction(statements, arguments);
        let run = async |connection: &mut MySqlConnection| {
            let (answer, ended) = run(connection, script).await;
            ended.map(|()| answer.changed)
        };
        self.call(slot, run).await
    }
}

/// The text of a transaction; every statement begins with the first of the arguments.
pub(super) fn transaction(statements: &[Arc<str>], arguments: &[Argument]) -> String {
    let arguments: Vec<_> = arguments.iter().map(Argument::in_sql).collect();
    let mut script = "START TRANSACTION".to_owned();
    for sql in statements {
        script.push_str(";\n");
        script.push_str(&filled(sql, &arguments));
    }
    script.push_str(";\nCOMMIT");
    script
}

/// Runs the text of a transaction: what came of it, and how it ended.
pub(super) async fn run(connection: &mut MySqlConnection, script: String) -> (Answer, Result<(), sqlx::Error>) {
    let mut answer = Answer::default();
    let read = async {
        let mut results = (&mut *connection).fetch_many(sqlx::raw_sql(AssertSqlSafe(script)));
        while let Some(result) = results.try_next().await? {
            match result {
                Either::Left(done) => answer.changed.push(done.rows_affected()),
                Either::Right(_) => answer.selected += 1,
            }
        }
        Ok(())
    };
    let ended: Result<(), sqlx::Error> = read.await;
    if ended.is_err() {
        // Whatever failed, the transaction must not stay open on a connection that is kept.
        let _ = connection.execute(sqlx::raw_sql("ROLLBACK")).await;
    }
    // The beginning and the commit changed nothing.
    answer.changed = answer.changed.into_iter().skip(1).collect();
    if ended.is_ok() {
        answer.changed.pop();
    }
    (answer, ended)
}

/// With the arguments in the places of `?`, but for those within texts and names.
fn filled(sql: &str, arguments: &[String]) -> String {
    let (mut text, mut quote, mut arguments) = (String::with_capacity(sql.len()), None, arguments.iter());
    for c in sql.chars() {
        match (quote, c) {
            (None, '?') => {
                text.push_str(arguments.next().map_or("?", String::as_str));
                continue;
            }
            (None, '\'' | '"' | '`') => quote = Some(c),
            // A doubled one ends the text and begins it anew.
            (Some(begun), _) if begun == c => quote = None,
            _ => {}
        }
        text.push(c);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_stand_where_they_are_wanted() {
        let statements = [
            "UPDATE \"a?\"\"?\" SET b = '?''?' WHERE c = ? AND d = ?",
            "DELETE FROM e WHERE f = ?",
        ];
        let arguments = [Argument::Text("it's \\ ?".to_owned()), Argument::Number(7)];
        assert_eq!(
            transaction(&statements.map(Arc::from), &arguments),
            "START TRANSACTION;\nUPDATE \"a?\"\"?\" SET b = '?''?' WHERE c = 'it''s \\ ?' AND d = 7;\n\
             DELETE FROM e WHERE f = 'it''s \\ ?';\nCOMMIT"
        );
    }
}
