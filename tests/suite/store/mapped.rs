//! Tables of the application's own making, with what only some of them have.

use std::sync::Arc;
use std::time::Duration;

use outbox_relay::config::OnSent;
use outbox_relay::message::{Message, MessageRules, RowId};
use outbox_relay::store::{self, Operator, Shares, Store, StoreError, StoreOptions};

use crate::store::existing::mapping;
use crate::store::harness::{Harness, confirmed, failure, head, head_ids, nobody, options};
use crate::store::{mariadb::MariaDb, postgres::Postgres, sqlite::Sqlite};
use crate::support::until;

/// The table `events`, and a store on it.
async fn made(db: &impl Harness, sql: &str, on_sent: OnSent, variables: &[(&str, &str)]) -> Arc<dyn Operator> {
    db.execute(sql).await;
    let variables = [&[("RELAY_ROUTING_KEY", "r")], variables].concat();
    let options = StoreOptions {
        mapping: mapping(&variables),
        ..options("events", on_sent)
    };
    store::migrate(&db.url(), options.clone()).await.expect("migrations");
    store::open_operator(&db.url(), options).expect("a good URL")
}

/// Marks the first row, and returns what is unsent then, beside what was.
async fn before_and_after_a_mark(store: Arc<dyn Operator>) -> (Vec<i64>, Vec<i64>) {
    let store: Arc<dyn Store> = store;
    let before = head_ids(&store).await;
    store
        .mark_sent(&confirmed(before.first().copied()))
        .await
        .expect("marked");
    (before, head_ids(&store).await)
}

#[tokio::test]
async fn flags_and_times_that_are_numbers_are_told_apart_on_sqlite() {
    for (kind, marked) in [
        ("INTEGER DEFAULT 0", "published = 1"),
        ("INTEGER NOT NULL DEFAULT 0", "published = 1"),
        ("BOOLEAN", "published = 1"),
        // Seconds since 1970; what is 0 is not sent either.
        ("INTEGER", "published > 1000000000"),
    ] {
        let db = Sqlite::fresh().await;
        let sql = format!(
            "CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, payload TEXT, published {kind});
             INSERT INTO events (payload, published) VALUES ('a', 0), ('b', 0)"
        );
        let store = made(&db, &sql, OnSent::Mark, &[("RELAY_COLUMN_SENT_AT", "published")]).await;
        assert_eq!(
            before_and_after_a_mark(store).await,
            (vec![1, 2], vec![2]),
            "INTEGER {kind}"
        );
        let sql = format!("SELECT count(*) FROM events WHERE {marked}");
        assert_eq!(db.number(&sql).await, 1, "{kind}");
    }
}

/// The highest row stays, as SQLite would give its id again; the word in the comment is none.
#[tokio::test]
async fn a_purge_keeps_the_last_id_without_autoincrement() {
    let db = Sqlite::fresh().await;
    let sql = "CREATE TABLE events (id INTEGER PRIMARY KEY /* no AUTOINCREMENT */, payload TEXT, sent_at TEXT);
               INSERT INTO events (payload) VALUES ('a'), ('b'), ('c')";
    let store = made(&db, sql, OnSent::Mark, &[]).await;
    store.mark_sent(&confirmed([1, 2, 3])).await.expect("marked");
    // What was marked in this very millisecond is not older than now.
    let mut purged = 0;
    until("they are purged", Duration::from_secs(20), async || {
        purged += store.purge(Duration::ZERO, 10).await.expect("purged");
        purged > 0
    })
    .await;
    assert_eq!(purged, 2);
    db.execute("INSERT INTO events (payload) VALUES ('d')").await;
    let rows = store.head(RowId(3), 10, &Shares::All).await.expect("a head");
    assert_eq!(rows[0].id, RowId(4));
}

/// An infinite number is none that AMQP or JSON has: the row is refused for it, rather than sent without the header.
#[tokio::test]
async fn headers_that_cannot_be_made_are_seen() {
    let db = Sqlite::fresh().await;
    let sql = "CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, payload TEXT, weight REAL);
               INSERT INTO events (payload, weight) VALUES ('a', 9e999)";
    let store: Arc<dyn Store> = made(&db, sql, OnSent::Delete, &[("RELAY_COLUMN_HEADERS", "weight")]).await;
    let row = head(&store).await.remove(0);
    let headers = row.headers.clone();
    let rules = MessageRules {
        max_body_bytes: 100,
        ..MessageRules::default()
    };
    let refused = Message::from_row(row, &rules)
        .expect_err("the header is no number")
        .to_string();
    assert!(
        headers.contains("weight") && refused.contains("weight"),
        "{headers}: {refused}"
    );
}

async fn a_long_error_is_cut(db: &impl Harness, key: &str, time: &str) {
    let sql = format!(
        "CREATE TABLE events (id {key} PRIMARY KEY, payload text, sent_at {time}, attempts int, next_attempt_at {time},
             last_error varchar(10), dead_at {time});
         INSERT INTO events (payload) VALUES ('a')"
    );
    // With one of the columns named, all four are taken.
    let store = made(db, &sql, OnSent::Mark, &[("RELAY_COLUMN_SENT_AT", "sent_at")]).await;
    let failure = failure(1, 1, store::NextStep::RetryIn(Duration::ZERO));
    let written = store.record_failures(&[failure], &nobody()).await;
    assert_eq!(written.expect("written"), 1);
    let cut = db
        .number("SELECT count(*) FROM events WHERE last_error = 'it''s \"refu'")
        .await;
    assert_eq!(cut, 1);
}

#[tokio::test]
async fn a_long_error_is_cut_on_postgres() {
    a_long_error_is_cut(&Postgres::fresh().await, "bigserial", "timestamptz").await;
}

#[tokio::test]
async fn a_long_error_is_cut_on_mariadb() {
    let db = MariaDb::fresh().await;
    a_long_error_is_cut(&db, "bigint AUTO_INCREMENT", "timestamp(6) NULL").await;
}

/// As it is between the two statements of a refusal on the one hand, and of a mark on the other.
#[tokio::test]
async fn a_refusal_whose_row_has_no_number_any_more_is_tidied_on_mariadb() {
    let db = MariaDb::fresh().await;
    let sql = "CREATE TABLE events (id varchar(40) PRIMARY KEY, payload text)";
    let store = made(&db, sql, OnSent::Delete, &[]).await;
    db.execute("INSERT INTO outbox_relay_failures (outbox, id, attempts) VALUES ('events', 77, 1), ('other', 77, 1)")
        .await;
    store.tidy().await.expect("tidied");
    let left = "SELECT count(*) FROM outbox_relay_failures WHERE outbox = 'events'";
    assert_eq!(db.number(left).await, 0);
    assert_eq!(db.number("SELECT count(*) FROM outbox_relay_failures").await, 1);
}

#[tokio::test]
async fn only_an_index_in_the_order_of_rows_will_do_on_mariadb() {
    for (more, good) in [
        ("sent_at timestamp(6) NULL, kind int, INDEX (sent_at, kind)", false),
        ("sent_at timestamp(6) NULL, INDEX (sent_at)", true),
        ("sent_at timestamp(6) NULL, INDEX (sent_at, id)", true),
        ("sent_at timestamp(6) NULL, kind int, INDEX (kind, sent_at)", false),
        ("sent_at boolean NOT NULL DEFAULT 0, INDEX (sent_at)", true),
        // Unsent by two values: in two places.
        ("sent_at boolean DEFAULT 0, INDEX (sent_at)", false),
    ] {
        let db = MariaDb::fresh().await;
        let sql = format!("CREATE TABLE events (id bigint AUTO_INCREMENT PRIMARY KEY, payload text, {more})");
        let store = made(&db, &sql, OnSent::Mark, &[]).await;
        let upkeep = store.upkeep().await.expect("upkeep");
        assert_eq!(upkeep.unsent_index.exists, good, "{more}");
        if good {
            continue;
        }
        db.execute(&upkeep.unsent_index.create.replace('`', "\"")).await;
        store.inspect().await.expect("a table");
        let upkeep = store.upkeep().await.expect("upkeep");
        assert!(
            upkeep.unsent_index.exists,
            "{more}: what it advises helps: {}",
            upkeep.unsent_index.create
        );
    }
}

#[tokio::test]
async fn a_scan_of_partitions_is_noticed_and_the_advice_helps() {
    let db = Postgres::fresh().await;
    let sql = "CREATE TABLE events (\"info.sent\" timestamptz, id bigint GENERATED ALWAYS AS IDENTITY, payload text, at date NOT NULL)
                   PARTITION BY RANGE (at);
               CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
               CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM ('2021-01-01') TO ('2031-01-01')";
    let store = made(&db, sql, OnSent::Mark, &[("RELAY_COLUMN_SENT_AT", "\"info.sent\"")]).await;
    let index = store.upkeep().await.expect("upkeep").unsent_index;
    assert!(!index.exists);
    assert_eq!(
        index.create,
        "CREATE INDEX ON \"events\" (\"id\") WHERE \"info.sent\" IS NULL"
    );
    db.execute(&index.create).await;
    let index = store.upkeep().await.expect("upkeep").unsent_index;
    assert!(index.exists, "{}", index.create);
}

#[tokio::test]
async fn a_key_that_only_a_sequence_keeps_apart_is_good_enough() {
    let db = Postgres::fresh().await;
    let sql = "CREATE TABLE events (id bigserial NOT NULL, payload text)";
    made(&db, sql, OnSent::Delete, &[])
        .await
        .inspect()
        .await
        .expect("a table");
}

#[tokio::test]
async fn grants_on_single_columns_do_not_number_rows_and_the_error_says_so() {
    let db = Postgres::fresh().await;
    let role = format!("r{}", uuid::Uuid::new_v4().simple());
    let sql = format!(
        "CREATE TABLE events (id uuid PRIMARY KEY, payload text); CREATE ROLE {role} LOGIN PASSWORD 'pw';
         GRANT SELECT (id, payload), DELETE ON events TO {role}"
    );
    drop(made(&db, &sql, OnSent::Delete, &[]).await);
    db.execute(&format!(
        "GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_relay_failures, outbox_relay_positions, outbox_relay_shares TO {role}"
    ))
    .await;
    let options = StoreOptions {
        mapping: mapping(&[("RELAY_ROUTING_KEY", "r")]),
        ..options("events", OnSent::Delete)
    };
    let store = store::open(&db.url_as(&role), options).expect("a good URL");
    let error = store.inspect().await.expect_err("no system columns");
    assert!(
        matches!(&error, StoreError::Denied(text) if text.contains("xmin, cmin, ctid") && text.contains("GRANT SELECT ON")),
        "{error:?}"
    );
}

/// By the column's type, not by what is in it.
#[tokio::test]
async fn sixteen_bytes_are_a_uuid_where_the_column_is_of_bytes() {
    for (kind, id) in [
        ("binary(16)", "30313233-3435-3637-3839-616263646566"),
        (
            "varchar(16) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
            "0123456789abcdef",
        ),
    ] {
        let db = MariaDb::fresh().await;
        let sql = format!(
            "CREATE TABLE events (id bigint AUTO_INCREMENT PRIMARY KEY, message_id {kind}, payload text);
             INSERT INTO events (message_id, payload) VALUES ('0123456789abcdef', 'a')"
        );
        let store: Arc<dyn Store> = made(&db, &sql, OnSent::Delete, &[]).await;
        assert_eq!(head(&store).await[0].message_id.as_str(), id, "{kind}");
        let db = MariaDb::fresh().await;
        let store = db.migrated().await;
        db.execute(&format!("ALTER TABLE outbox MODIFY message_id {kind}"))
            .await;
        db.execute("INSERT INTO outbox (message_id, routing_key, payload) VALUES ('0123456789abcdef', 'r', '{}')")
            .await;
        assert_eq!(head(&store).await[0].message_id.as_str(), id, "{kind}");
    }
}

/// The table of row numbers has every key as UTF-8.
#[tokio::test]
async fn keys_of_any_character_set_are_found_again_on_mariadb() {
    for charset in ["latin1", "utf16", "utf8mb4"] {
        let db = MariaDb::fresh().await;
        let sql = format!(
            "CREATE TABLE events (id varchar(40) CHARACTER SET {charset} PRIMARY KEY, payload text, sent_at timestamp(6) NULL);
             INSERT INTO events (id, payload) VALUES ('caf\u{e9}', 'a'), ('plain', 'b'), ('\u{fc}ber', 'c')"
        );
        let store = made(&db, &sql, OnSent::Mark, &[]).await;
        let (before, after) = before_and_after_a_mark(store).await;
        assert_eq!((before.len(), after.len()), (3, 2), "{charset}");
    }
}

/// What Hibernate makes of a boolean.
#[tokio::test]
async fn a_bit_is_a_flag_and_a_number_on_mariadb() {
    for kind in ["bit(1) NOT NULL DEFAULT b'0'", "bit(1)"] {
        let db = MariaDb::fresh().await;
        let sql = format!(
            "CREATE TABLE events (id bigint AUTO_INCREMENT PRIMARY KEY, payload text, published {kind}, urgent bit(1));
             INSERT INTO events (payload, urgent, published) VALUES ('a', b'1', b'0'), ('b', b'0', b'0')"
        );
        let variables = [
            ("RELAY_COLUMN_SENT_AT", "published"),
            ("RELAY_COLUMN_HEADERS", "urgent"),
            ("RELAY_TYPE", "{urgent}"),
        ];
        let operator = made(&db, &sql, OnSent::Mark, &variables).await;
        let store: Arc<dyn Store> = operator.clone();
        let rows = head(&store).await;
        let told: Vec<_> = rows
            .iter()
            .map(|row| (row.kind.as_deref(), row.headers.as_str()))
            .collect();
        assert_eq!(told, [(Some("1"), "{\"urgent\":1}"), (Some("0"), "{\"urgent\":0}")]);
        assert_eq!(
            before_and_after_a_mark(operator.clone()).await,
            (vec![1, 2], vec![2]),
            "{kind}"
        );
        let index = operator.upkeep().await.expect("looked").unsent_index;
        assert!(!index.exists, "{kind}");
        db.execute(&index.create).await;
        store.inspect().await.expect("a table");
        assert!(
            operator.upkeep().await.expect("looked").unsent_index.exists,
            "{}",
            index.create
        );
        assert_eq!(head_ids(&store).await, [2], "{kind}");
    }
}

/// They would be taken for negative ones, and sent again and again, as no mark finds them.
#[tokio::test]
async fn ids_that_only_an_unsigned_column_has_are_told_and_not_read_on_mariadb() {
    let db = MariaDb::fresh().await;
    let sql = "CREATE TABLE events (id bigint unsigned PRIMARY KEY, payload text);
               INSERT INTO events VALUES (1, 'a'), (9223372036854775807, 'b')";
    let operator = made(&db, sql, OnSent::Delete, &[("RELAY_COLUMN_MESSAGE_ID", "-")]).await;
    let store: Arc<dyn Store> = operator.clone();
    assert_eq!(head_ids(&store).await, [1, i64::MAX]);
    assert!(operator.advice().await.expect("looked").is_empty());
    db.execute("INSERT INTO events VALUES (9223372036854775808, 'c'), (18446744073709551615, 'd')")
        .await;
    assert_eq!(head_ids(&store).await, [1, i64::MAX]);
    assert_eq!(
        store.backlog().await.expect("counted").pending,
        4,
        "they are seen to wait"
    );
    // They stop no others.
    store.inspect().await.expect("a table");
    let advice = operator.advice().await.expect("looked");
    assert!(
        advice.iter().any(|text| text.contains("above 9223372036854775807")),
        "{advice:?}"
    );
}

/// Ids that are made of those of the rows are told, with what makes better ones.
async fn made_message_ids_are_told(db: &impl Harness, key: &str, time: &str) {
    let sql = format!("CREATE TABLE events (id {key} PRIMARY KEY, payload text, made {time})");
    let operator = made(db, &sql, OnSent::Delete, &[]).await;
    let told = async |operator: &Arc<dyn Operator>| {
        let advice = operator.advice().await.expect("looked");
        advice.into_iter().find(|text| text.contains("rows have no message id"))
    };
    let advice = told(&operator).await.expect("advice");
    assert!(!advice.contains("second"), "{advice}");
    let columns = operator.columns().await.expect("looked").expect("named");
    assert!(columns.contains("message_id ← made of"), "{columns}");
    let open = |variables: &[(&str, &str)]| {
        let variables = [&[("RELAY_ROUTING_KEY", "r")], variables].concat();
        let options = StoreOptions {
            mapping: mapping(&variables),
            ..options("events", OnSent::Delete)
        };
        store::open_operator(&db.url(), options).expect("a good URL")
    };
    let timed = open(&[("RELAY_COLUMN_CREATED_AT", "made")]);
    assert!(
        told(&timed)
            .await
            .is_some_and(|advice| advice.contains("in the same second"))
    );
    assert_eq!(
        told(&open(&[("RELAY_COLUMN_MESSAGE_ID", "-")])).await,
        None,
        "it is known"
    );
    let Some((_, mend)) = advice.split_once(", or ALTER TABLE") else {
        return;
    };
    db.execute(&format!("ALTER TABLE{mend}")).await;
    operator.inspect().await.expect("a table");
    assert_eq!(told(&operator).await, None);
}

#[tokio::test]
async fn made_message_ids_are_told_on_postgres() {
    made_message_ids_are_told(&Postgres::fresh().await, "bigserial", "timestamptz").await;
}

#[tokio::test]
async fn made_message_ids_are_told_on_mariadb() {
    made_message_ids_are_told(&MariaDb::fresh().await, "bigint AUTO_INCREMENT", "timestamp NULL").await;
}

#[tokio::test]
async fn made_message_ids_are_told_on_sqlite() {
    let db = Sqlite::fresh().await;
    let sql = "CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, payload TEXT)";
    let operator = made(&db, sql, OnSent::Delete, &[]).await;
    let advice = operator.advice().await.expect("looked");
    assert!(
        advice.iter().any(|text| text.contains("rows have no message id")),
        "{advice:?}"
    );
}
