//! The same cases over tables that `migrate` did not make: with every column under another name, and without columns for
//! refusals.

use std::sync::Arc;

use async_trait::async_trait;
use outbox_relay::config::{self, Mapping, OnSent, Secret};
use outbox_relay::message::RowId;
use outbox_relay::store::{self, Operator, Shares, Store, StoreOptions};

use crate::store::harness::{Harness, options};

/// What these variables say of the columns.
pub(crate) fn mapping(variables: &[(&str, &str)]) -> Mapping {
    let urls = [
        ("RELAY_DATABASE_URL", "postgres://h/d"),
        ("RELAY_AMQP_URL", "amqp://h"),
        // Whether sent rows can be marked is seen when the table is.
        ("RELAY_OUTBOX_ON_SENT", "delete"),
    ];
    let all = urls.iter().chain(variables);
    let loaded = config::load(all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    loaded.expect("good variables").config.outbox.mapping
}

const NAMES: &[(&str, &str)] = &[
    ("id", "Seq No"),
    ("message_id", "uid"),
    ("exchange", "ex"),
    ("routing_key", "topic"),
    ("ordering_key", "aggregate"),
    ("type", "select"),
    ("content_type", "mime"),
    ("headers", "meta"),
    ("properties", "props"),
    ("payload", "Body"),
    ("created_at", "occurred"),
    ("available_at", "not_before"),
    ("attempts", "tries"),
    ("next_attempt_at", "retry_at"),
    ("last_error", "why"),
    ("sent_at", "published_at"),
    ("dead_at", "buried_at"),
];

const RENAMED: &str = "Events Out";

/// Every column under another name, some of which must be quoted; the cases see it through a view called `outbox`.
pub(crate) struct Renamed<H>(H);

/// No columns for refusals.
pub(crate) struct Bare<H>(pub(crate) H);

const BARE: &[(&str, &str)] = &[
    ("RELAY_COLUMN_ATTEMPTS", "-"),
    ("RELAY_COLUMN_NEXT_ATTEMPT_AT", "-"),
    ("RELAY_COLUMN_LAST_ERROR", "-"),
    ("RELAY_COLUMN_DEAD_AT", "-"),
];

impl<H> Renamed<H> {
    fn options(options: StoreOptions) -> StoreOptions {
        let variables: Vec<(String, String)> = NAMES
            .iter()
            .map(|(name, other)| {
                let name = if *name == "headers" { "headers_json" } else { name };
                (
                    format!("RELAY_COLUMN_{}", name.to_ascii_uppercase()),
                    format!("\"{other}\""),
                )
            })
            .collect();
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        StoreOptions {
            table: format!("\"{RENAMED}\"").parse().expect("a name"),
            mapping: mapping(&variables),
            ..options
        }
    }
}

impl<H> Bare<H> {
    fn options(options: StoreOptions) -> StoreOptions {
        StoreOptions {
            mapping: mapping(BARE),
            ..options
        }
    }
}

/// No number to order by, and no columns for refusals: rows are in the order of their insertion.
pub(crate) struct Numbered<H>(pub(crate) H);

impl<H> Numbered<H> {
    fn options(options: StoreOptions) -> StoreOptions {
        Bare::<H>::options(options)
    }
}

impl<H: Harness> Numbered<H> {
    /// Another table of the same database.
    pub(crate) async fn migrated_with(&self, options: StoreOptions) -> Arc<dyn Store> {
        let options = Self::options(options);
        store::migrate(&self.url(), options.clone()).await.expect("migrations");
        self.store_with(options)
    }
}

/// The same where nothing keeps two rows from having the same key.
pub(crate) struct Keyless<H>(pub(crate) H);

impl<H> Keyless<H> {
    fn options(options: StoreOptions) -> StoreOptions {
        Bare::<H>::options(options)
    }
}

macro_rules! wrapped {
    ($wrapper:ident, $make:ident) => {
        #[async_trait]
        impl<H: Harness> Harness for $wrapper<H> {
            async fn fresh() -> Self {
                Self(H::fresh().await)
            }

            fn url(&self) -> Secret {
                self.0.url()
            }

            async fn execute(&self, sql: &str) {
                self.0.execute(sql).await;
            }

            async fn number(&self, sql: &str) -> i64 {
                self.0.number(sql).await
            }

            fn in_seconds(&self, seconds: i64) -> String {
                self.0.in_seconds(seconds)
            }

            fn at(&self, unix: i64) -> String {
                self.0.at(unix)
            }

            fn random(&self) -> &'static str {
                self.0.random()
            }

            fn refuse_inserts(&self, table: &str) -> Vec<String> {
                self.0.refuse_inserts(table)
            }

            fn slow_inserts(&self, table: &str) -> Vec<String> {
                self.0.slow_inserts(table)
            }

            fn allow_inserts(&self) -> &'static str {
                self.0.allow_inserts()
            }

            fn ends_what_is_given_up(&self) -> bool {
                self.0.ends_what_is_given_up()
            }

            fn time(&self) -> &'static str {
                self.0.time()
            }

            fn uuid_version(&self) -> usize {
                self.0.uuid_version()
            }

            async fn insert(&self, keys: &[&str]) {
                self.0.insert(keys).await;
                // Numbered, where the relay numbers rows: that is done by a read which comes to the end.
                let end = RowId(i64::MAX);
                self.store().head(end, 1, &Shares::All).await.expect("a head");
            }

            fn store_with(&self, options: StoreOptions) -> Arc<dyn Store> {
                store::open(&self.url(), Self::options(options)).expect("a good URL")
            }

            fn operator(&self) -> Arc<dyn Operator> {
                let options = Self::options(options("outbox", OnSent::Mark));
                store::open_operator(&self.url(), options).expect("a good URL")
            }

            async fn migrated(&self) -> Arc<dyn Store> {
                self.0.migrated().await;
                $make(&self.0).await;
                let options = Self::options(options("outbox", OnSent::Mark));
                store::migrate(&self.url(), options.clone())
                    .await
                    .expect("migrations");
                self.store_with(options)
            }
        }
    };
}

wrapped!(Renamed, rename);
wrapped!(Bare, strip);
wrapped!(Numbered, without_numbers);
wrapped!(Keyless, without_keys);

async fn rename(db: &impl Harness) {
    db.free_payload().await;
    for (name, other) in NAMES {
        db.execute(&format!("ALTER TABLE outbox RENAME COLUMN {name} TO \"{other}\""))
            .await;
    }
    db.execute(&format!("ALTER TABLE outbox RENAME TO \"{RENAMED}\"")).await;
    let columns: Vec<_> = NAMES
        .iter()
        .map(|(name, other)| format!("\"{other}\" AS {name}"))
        .collect();
    let columns = columns.join(", ");
    db.execute(&format!("CREATE VIEW outbox AS SELECT {columns} FROM \"{RENAMED}\""))
        .await;
    let columns: Vec<_> = NAMES.iter().map(|(name, other)| (*other, *name)).collect();
    db.make_writable(RENAMED, &columns).await;
}

async fn strip(db: &impl Harness) {
    db.drop_index("outbox_relay_unsent").await;
    if let Some(index) = db.dead_index() {
        db.drop_index(index).await;
    }
    for column in ["attempts", "next_attempt_at", "last_error", "dead_at"] {
        db.execute(&format!("ALTER TABLE outbox DROP COLUMN {column}")).await;
    }
}

async fn without_numbers(db: &impl Harness) {
    strip(db).await;
    db.execute("ALTER TABLE outbox RENAME TO another").await;
    let now = db.in_seconds(0);
    db.execute(&format!(
        "CREATE TABLE outbox (
             id varchar(40) NOT NULL PRIMARY KEY DEFAULT ({}), exchange text, routing_key text NOT NULL, ordering_key text, type text,
             content_type text NOT NULL DEFAULT ('application/json'), headers text NOT NULL DEFAULT ('{{}}'),
             properties text NOT NULL DEFAULT ('{{}}'), payload text NOT NULL, created_at {} DEFAULT ({now}), available_at {1}, sent_at {1})",
        db.random(),
        db.time()
    ))
    .await;
}

async fn without_keys(db: &impl Harness) {
    without_numbers(db).await;
    db.execute("ALTER TABLE outbox RENAME TO keyed").await;
    db.execute("CREATE TABLE outbox (LIKE keyed INCLUDING DEFAULTS)").await;
}

/// Cases against a kind of table.
macro_rules! cases {
    ($name:ident: $harness:ty: $($room:ident: $($case:ident)*;)*) => {
        mod $name {
            $($(#[tokio::test]
            async fn $case() {
                crate::store::$room::$case(&<$harness as crate::store::harness::Harness>::fresh().await).await;
            })*)*
        }
    };
}

/// All that reads and writes.
macro_rules! renamed {
    ($name:ident: $harness:ty) => {
        cases! {
            $name: crate::store::existing::Renamed<$harness>:
            reading:
                a_minimal_insert_gets_defaults
                every_column_is_read
                the_head_follows_cursor_and_limit
                delayed_rows_say_how_long
                large_bodies_are_left_and_fetched
                shares_divide_the_rows
                a_scan_leaves_out_what_nobody_waits_for
                a_probe_tells_what_is_there
                a_fetch_gives_unsent_rows_only;
            writing:
                a_row_is_marked_once
                a_row_is_deleted_once
                five_thousand_rows_are_marked
                a_retry_is_seen_as_a_wait
                a_dead_letter_leaves_the_head
                a_late_failure_takes_nothing
                a_dead_letter_that_was_confirmed_is_sent
                dead_keys_come_with_their_lowest_row
                a_purge_respects_age_and_limit
                a_purge_passes_what_stays
                the_backlog_is_counted;
            leasing:
                a_failure_under_a_lost_lease_takes_nothing;
            operating:
                dead_letters_are_listed_by_filter
                dead_letters_are_replayed_and_discarded_once
                waiting_keys_name_the_row_they_wait_for
                a_row_that_waits_is_released_once
                sent_rows_are_unsent_again_once;
        }
    };
}

/// All that does not look at the columns that are not there.
macro_rules! bare {
    ($name:ident: $harness:ty) => {
        cases! {
            $name: crate::store::existing::Bare<$harness>:
            reading:
                a_minimal_insert_gets_defaults
                the_head_follows_cursor_and_limit
                large_bodies_are_left_and_fetched
                shares_divide_the_rows
                a_scan_leaves_out_what_nobody_waits_for
                a_probe_tells_what_is_there
                a_fetch_gives_unsent_rows_only;
            writing:
                a_row_is_marked_once
                a_row_is_deleted_once
                five_thousand_rows_are_marked
                a_dead_letter_that_was_confirmed_is_sent
                dead_keys_come_with_their_lowest_row
                a_purge_respects_age_and_limit
                the_backlog_is_counted;
            leasing:
                a_failure_under_a_lost_lease_takes_nothing;
            operating:
                waiting_keys_name_the_row_they_wait_for
                a_row_that_waits_is_released_once
                sent_rows_are_unsent_again_once;
        }
    };
}

/// What does not look at the ids in the table.
macro_rules! numbered {
    ($name:ident: $harness:ty) => {
        numbered!($name: $harness, Numbered);
    };
    ($name:ident: $harness:ty, $table:ident) => {
        cases! {
            $name: crate::store::existing::$table<$harness>:
            reading:
                the_head_follows_cursor_and_limit
                shares_divide_the_rows
                a_fetch_gives_unsent_rows_only;
            writing:
                a_row_is_marked_once
                five_thousand_rows_are_marked
                a_dead_letter_that_was_confirmed_is_sent
                dead_keys_come_with_their_lowest_row;
            leasing:
                a_failure_under_a_lost_lease_takes_nothing;
            operating:
                a_row_that_waits_is_released_once;
        }
    };
}

numbered!(numbered_on_postgres: crate::store::postgres::Postgres);
numbered!(keyless_on_postgres: crate::store::postgres::Postgres, Keyless);
numbered!(numbered_on_mariadb: crate::store::mariadb::MariaDb);
numbered!(numbered_on_sqlite: crate::store::sqlite::Sqlite);
renamed!(renamed_on_postgres: crate::store::postgres::Postgres);
renamed!(renamed_on_mariadb: crate::store::mariadb::MariaDb);
renamed!(renamed_on_sqlite: crate::store::sqlite::Sqlite);
bare!(bare_on_postgres: crate::store::postgres::Postgres);
bare!(bare_on_mariadb: crate::store::mariadb::MariaDb);
bare!(bare_on_sqlite: crate::store::sqlite::Sqlite);
