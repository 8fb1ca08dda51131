//! What the cases need of a database besides the store itself.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use outbox_relay::broker::Confirmed;
use outbox_relay::config::{Mapping, OnSent, Secret, Tls};
use outbox_relay::message::{OutboxRow, Payload, RowId};
use outbox_relay::store::{self, Failure, Holder, NextStep, Operator, Shares, Store, StoreOptions};

/// A fresh database.
#[async_trait]
pub(crate) trait Harness: Send + Sync + Sized {
    async fn fresh() -> Self;
    fn url(&self) -> Secret;
    /// Runs raw SQL.
    async fn execute(&self, sql: &str);
    /// One number.
    async fn number(&self, sql: &str) -> i64;
    /// A time from now, as SQL.
    fn in_seconds(&self, seconds: i64) -> String;
    /// A time in seconds since 1970, as SQL.
    fn at(&self, unix: i64) -> String;
    /// A random text, as SQL.
    fn random(&self) -> &'static str {
        "gen_random_uuid()::text"
    }

    /// The type of a time.
    fn time(&self) -> &'static str {
        "timestamptz"
    }

    /// Statements by which inserts into a table fail, until [`Harness::allow_inserts`].
    fn refuse_inserts(&self, table: &str) -> Vec<String> {
        vec![
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$".to_owned(),
            format!("CREATE TRIGGER refused BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()"),
        ]
    }

    /// A trigger on inserts into a table, each of which takes longer than two seconds while there is a row in `slow`.
    fn slow_inserts(&self, table: &str) -> Vec<String> {
        vec![
            "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM pg_sleep(3) FROM slow; RETURN NEW; END $$"
                .to_owned(),
            format!("CREATE TRIGGER slow BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION wait()"),
        ]
    }

    fn allow_inserts(&self) -> &'static str {
        "DROP TRIGGER refused"
    }

    /// Where a view cannot be written to by itself: makes that of the table with these columns (there, and in the view) such.
    async fn make_writable(&self, _table: &str, _columns: &[(&str, &str)]) {}

    /// The version of the UUIDs that rows get by default.
    fn uuid_version(&self) -> usize {
        4
    }

    /// The index that dead letters have to themselves.
    fn dead_index(&self) -> Option<&'static str> {
        Some("outbox_relay_dead")
    }

    async fn drop_index(&self, name: &str) {
        self.execute(&format!("DROP INDEX {name}")).await;
    }

    /// Whether the server ends a transaction whose client has given it up. Else what it did may show later.
    fn ends_what_is_given_up(&self) -> bool {
        true
    }

    /// Lets the payload's column be renamed.
    async fn free_payload(&self) {}

    fn store(&self) -> Arc<dyn Store> {
        self.store_with(options("outbox", OnSent::Mark))
    }

    fn store_with(&self, options: StoreOptions) -> Arc<dyn Store> {
        store::open(&self.url(), options).expect("a good URL")
    }

    fn operator(&self) -> Arc<dyn Operator> {
        store::open_operator(&self.url(), options("outbox", OnSent::Mark)).expect("a good URL")
    }

    /// The table, and a store on it.
    async fn migrated(&self) -> Arc<dyn Store> {
        store::migrate(&self.url(), options("outbox", OnSent::Mark))
            .await
            .expect("migrations");
        self.store()
    }

    /// Rows with these keys; an empty one stands for none.
    async fn insert(&self, keys: &[&str]) {
        let rows: Vec<String> = keys
            .iter()
            .map(|key| match *key {
                "" => "('r', '{}', NULL)".to_owned(),
                key => format!("('r', '{{}}', '{key}')"),
            })
            .collect();
        self.execute(&format!(
            "INSERT INTO outbox (routing_key, payload, ordering_key) VALUES {}",
            rows.join(",")
        ))
        .await;
    }
}

pub(crate) fn options(table: &str, on_sent: OnSent) -> StoreOptions {
    StoreOptions {
        table: table.parse().expect("a table name"),
        on_sent,
        timeout: Duration::from_secs(5),
        tls: Tls::default(),
        mapping: Mapping::default(),
    }
}

#[expect(clippy::disallowed_methods, reason = "there is no broker in these tests")]
pub(crate) fn confirmed(ids: impl IntoIterator<Item = i64>) -> Vec<Confirmed> {
    ids.into_iter().map(|id| Confirmed::attest(RowId(id))).collect()
}

pub(crate) fn failure(id: i64, attempts: u32, next: NextStep) -> Failure {
    Failure {
        row: RowId(id),
        attempts,
        error: "it's \"refused\"".to_owned(),
        next,
        lease: None,
    }
}

/// Somebody who owns nothing.
pub(crate) fn nobody() -> Holder {
    Holder {
        member: "nobody".to_owned(),
        partitions: 16,
    }
}

pub(crate) async fn head(store: &Arc<dyn Store>) -> Vec<OutboxRow> {
    store.head(RowId(0), 10_000, &Shares::All).await.expect("a head")
}

pub(crate) async fn head_ids(store: &Arc<dyn Store>) -> Vec<i64> {
    head(store).await.iter().map(|row| row.id.0).collect()
}

pub(crate) fn body(row: &OutboxRow) -> &[u8] {
    match &row.payload {
        Payload::Loaded(bytes) => bytes,
        other => panic!("the body was not loaded: {other:?}"),
    }
}
