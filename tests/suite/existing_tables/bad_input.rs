//! What will not do: `check` and `run` say what, by name, and how to mend it.

use crate::outbox::{Outbox, SECOND};
use crate::support::until;

/// What is wrong, the statements that make it so, the variables, and what must be said of it.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);

const SEQ: (&str, &str) = ("RELAY_COLUMN_ID", "seq");
const KEY: (&str, &str) = ("RELAY_ROUTING_KEY", "r");
const DELETE: (&str, &str) = ("RELAY_OUTBOX_ON_SENT", "delete");

/// `check` fails with these words, and `run` says them as well while it waits for the cause to be mended.
async fn is_told(outbox: &Outbox, (sql, variables, words): Case<'_>) {
    for statement in sql.split(';').filter(|statement| !statement.trim().is_empty()) {
        outbox.db.run(statement).await;
    }
    let more = [&[("RELAY_OUTBOX_TABLE", "events")], variables].concat();
    let (code, out, err) = outbox.command(&["check"], &more).await;
    let line = out
        .lines()
        .find(|line| line.starts_with("FAILED  table"))
        .unwrap_or_default();
    assert_eq!(code, Some(1), "{sql}: {out}{err}");
    for word in words {
        assert!(line.contains(word), "{sql}: {word:?} is not in {line}\n{out}");
    }
    assert!(
        !err.contains("the program has a mistake") && !out.contains("stack backtrace"),
        "{err}"
    );
    let relay = more
        .iter()
        .fold(outbox.relay(), |relay, (name, value)| relay.env(name, value))
        .spawn();
    until("the relay says it as well", 20 * SECOND, async || {
        let log = relay.log_text();
        words.iter().all(|word| log.contains(&word.replace('"', "\\\"")))
    })
    .await;
    assert_eq!(relay.get("/livez").await.0, 200, "it waits");
    drop(relay);
    outbox.db.run("DROP TABLE IF EXISTS events").await;
}

const MISSING: Case<'_> = (
    "",
    &[SEQ, KEY, DELETE],
    &["\"events\" does not exist", "outbox-relay migrate"],
);

#[tokio::test(flavor = "multi_thread")]
async fn on_postgres() {
    let outbox = Outbox::without_tables("postgres", &[]).await;
    outbox
        .command(&["migrate"], &[SEQ, KEY, DELETE, ("RELAY_OUTBOX_TABLE", "events")])
        .await;
    let cases: &[Case<'_>] = &[
        MISSING,
        (
            "CREATE TABLE events (id bigserial PRIMARY KEY, payload json)",
            &[],
            &[
                "no column message_id, exchange",
                "ALTER TABLE \"events\" ADD COLUMN message_id uuid; ALTER TABLE \"events\" ADD COLUMN exchange text",
                "RELAY_PRESET or RELAY_COLUMN_",
            ],
        ),
        (
            "CREATE TABLE events (seq bigserial PRIMARY KEY, data text)",
            &[SEQ, KEY, DELETE, ("RELAY_COLUMN_PAYLOAD", "dta")],
            &[
                "RELAY_COLUMN_PAYLOAD names the column dta",
                "did you mean data?",
                "its columns are seq, data",
            ],
        ),
        (
            "CREATE TABLE events (seq bigserial PRIMARY KEY, payload text)",
            &[SEQ, DELETE, ("RELAY_ROUTING_KEY", "{kind}.x")],
            &["RELAY_ROUTING_KEY names the column kind, which is not there"],
        ),
        (
            "CREATE TABLE events (seq bigserial PRIMARY KEY, payload text)",
            &[SEQ, DELETE],
            &[
                "there is no column routing_key",
                "RELAY_COLUMN_ROUTING_KEY",
                "RELAY_ROUTING_KEY",
            ],
        ),
        (
            "CREATE TABLE events (seq bigserial PRIMARY KEY, payload point, created_at text)",
            &[SEQ, KEY, DELETE],
            &[
                "payload is point",
                "created_at is text",
                "RELAY_COLUMN_CREATED_AT",
                "`-` for none",
            ],
        ),
        (
            "CREATE TABLE events (seq bigserial PRIMARY KEY, payload text)",
            &[SEQ, KEY],
            &[
                "RELAY_COLUMN_SENT_AT",
                "RELAY_OUTBOX_ON_SENT=delete",
                "ALTER TABLE \"events\" ADD COLUMN sent_at timestamptz",
            ],
        ),
        (
            "CREATE TABLE events (seq bigint, payload text)",
            &[SEQ, KEY, DELETE],
            &["seq (RELAY_COLUMN_ID) may be null", "NOT NULL"],
        ),
        (
            "CREATE TABLE events (seq bigint NOT NULL, payload text)",
            &[SEQ, KEY, DELETE],
            &["CREATE UNIQUE INDEX ON \"events\" (\"seq\")"],
        ),
        (
            "CREATE TABLE events (payload text)",
            &[KEY, DELETE],
            &["ALTER TABLE \"events\" ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY UNIQUE"],
        ),
        (
            "CREATE TABLE events (seq bigserial PRIMARY KEY, payload text, sent_at timestamptz NOT NULL)",
            &[SEQ, KEY],
            &["sent_at (RELAY_COLUMN_SENT_AT) is NOT NULL"],
        ),
        (
            "CREATE TABLE events (seq bigserial PRIMARY KEY, payload text, attempts int, next_attempt_at timestamptz, last_error int,
                 dead_at timestamptz)",
            &[SEQ, KEY, DELETE],
            &["last_error is integer", "allowed are text, character varying"],
        ),
        (
            "CREATE TABLE events (seq bigserial PRIMARY KEY, payload text, tries int)",
            &[SEQ, KEY, DELETE, ("RELAY_COLUMN_ATTEMPTS", "tries")],
            &[
                "RELAY_COLUMN_ATTEMPTS",
                "RELAY_COLUMN_DEAD_AT",
                "only some have a column",
            ],
        ),
        (
            "CREATE TABLE events (seq bigserial PRIMARY KEY, payload text); ALTER TABLE outbox_relay_failures RENAME TO f",
            &[SEQ, KEY, DELETE],
            &["outbox_relay_failures", "does not exist", "outbox-relay migrate"],
        ),
    ];
    for case in cases {
        is_told(&outbox, *case).await;
    }
    outbox.db.run("CREATE TABLE t (seq bigint, payload text)").await;
    let view = "CREATE VIEW events AS SELECT * FROM t";
    outbox.db.run(view).await;
    let more = [("RELAY_OUTBOX_TABLE", "events"), SEQ, KEY, DELETE];
    let (code, out, _) = outbox.command(&["check"], &more).await;
    assert!(
        code == Some(1) && out.contains("is a view: name the table itself in RELAY_OUTBOX_TABLE"),
        "{out}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn on_postgres_without_privileges_or_writes() {
    let outbox = Outbox::without_tables("postgres", &[]).await;
    let more = [("RELAY_OUTBOX_TABLE", "events"), SEQ, KEY, DELETE];
    let (_, out, err) = outbox.command(&["migrate"], &more).await;
    assert!(out.contains("up to date"), "{out}{err}");
    let role = format!("r{}", uuid::Uuid::new_v4().simple());
    outbox
        .db
        .run(&format!(
            "CREATE TABLE events (seq bigserial PRIMARY KEY, payload text); CREATE ROLE {role} LOGIN PASSWORD 'pw';
             GRANT SELECT ON events TO {role}"
        ))
        .await;
    let mut url = url::Url::parse(&outbox.database_url).expect("a URL");
    url.set_username(&role).expect("a user");
    url.set_password(Some("pw")).expect("a password");
    let as_role = [&more[..], &[("RELAY_DATABASE_URL", url.as_str())]].concat();
    let (code, out, _) = outbox.command(&["check"], &as_role).await;
    assert!(
        code == Some(1) && out.contains("lacks DELETE on \"events\"; it needs SELECT, DELETE: GRANT DELETE"),
        "{out}"
    );
    // Of the table itself no more than that is needed.
    outbox.db.run(&format!("GRANT DELETE ON events TO {role}")).await;
    let (code, out, _) = outbox.command(&["check"], &as_role).await;
    assert!(
        code == Some(1) && out.contains("outbox_relay_failures") && out.contains("SELECT, INSERT, UPDATE, DELETE"),
        "{out}"
    );
    outbox
        .db
        .run(&format!(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_relay_failures, outbox_relay_positions, outbox_relay_shares,
                 outbox_relay_members, outbox_relay_pauses TO {role}"
        ))
        .await;
    let (code, out, _) = outbox.command(&["check"], &as_role).await;
    assert_eq!(code, Some(0), "{out}");
    outbox
        .db
        .run(&format!("ALTER ROLE {role} SET default_transaction_read_only = on"))
        .await;
    let (code, out, _) = outbox.command(&["check"], &as_role).await;
    assert!(
        code == Some(1) && out.contains("takes no writes") && out.contains("RELAY_DATABASE_URL"),
        "{out}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn on_mariadb() {
    let outbox = Outbox::without_tables("mariadb", &[]).await;
    outbox
        .command(&["migrate"], &[SEQ, KEY, DELETE, ("RELAY_OUTBOX_TABLE", "events")])
        .await;
    let cases: &[Case<'_>] = &[
        MISSING,
        (
            "CREATE TABLE events (seq bigint AUTO_INCREMENT PRIMARY KEY, data text)",
            &[SEQ, KEY, DELETE, ("RELAY_COLUMN_PAYLOAD", "dta")],
            &["RELAY_COLUMN_PAYLOAD names the column dta", "did you mean data?"],
        ),
        (
            "CREATE TABLE events (seq bigint AUTO_INCREMENT PRIMARY KEY, payload text, created_at text)",
            &[SEQ, KEY, DELETE],
            &["created_at is text", "allowed are timestamp, datetime"],
        ),
        (
            "CREATE TABLE events (seq bigint AUTO_INCREMENT PRIMARY KEY, payload text)",
            &[SEQ, KEY],
            &[
                "RELAY_COLUMN_SENT_AT",
                "ALTER TABLE `events` ADD COLUMN sent_at timestamp(6)",
            ],
        ),
        (
            "CREATE TABLE events (seq bigint NOT NULL, payload text)",
            &[SEQ, KEY, DELETE],
            &["may be the same in several rows"],
        ),
        (
            "CREATE TABLE events (seq varchar(300) PRIMARY KEY, payload text) CHARACTER SET utf8mb4",
            &[SEQ, KEY, DELETE],
            &["seq (RELAY_COLUMN_ID) can be longer than the 255"],
        ),
        (
            "CREATE TABLE events (payload text)",
            &[KEY, DELETE],
            &["ALTER TABLE `events` ADD COLUMN id bigint NOT NULL AUTO_INCREMENT UNIQUE"],
        ),
        (
            "CREATE TABLE events (seq bigint AUTO_INCREMENT PRIMARY KEY, payload text, sent_at datetime NOT NULL)",
            &[SEQ, KEY],
            &["sent_at (RELAY_COLUMN_SENT_AT) is NOT NULL"],
        ),
        (
            "CREATE TABLE events (seq bigint AUTO_INCREMENT PRIMARY KEY, payload text) ENGINE=MyISAM",
            &[SEQ, KEY, DELETE],
            &["stored by MyISAM", "ENGINE=InnoDB"],
        ),
        (
            "CREATE TABLE events (seq bigint AUTO_INCREMENT PRIMARY KEY, payload text);
             RENAME TABLE outbox_relay_failures TO f",
            &[SEQ, KEY, DELETE],
            &["outbox_relay_failures", "doesn't exist", "outbox-relay migrate"],
        ),
    ];
    for case in cases {
        is_told(&outbox, *case).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_sqlite() {
    let outbox = Outbox::without_tables("sqlite", &[]).await;
    outbox
        .command(&["migrate"], &[SEQ, KEY, DELETE, ("RELAY_OUTBOX_TABLE", "events")])
        .await;
    let cases: &[Case<'_>] = &[
        MISSING,
        (
            "CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, data TEXT)",
            &[SEQ, KEY, DELETE, ("RELAY_COLUMN_PAYLOAD", "dta")],
            &["RELAY_COLUMN_PAYLOAD names the column dta", "did you mean data?"],
        ),
        (
            "CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, payload TEXT)",
            &[SEQ, KEY],
            &["RELAY_COLUMN_SENT_AT", "ADD COLUMN sent_at TEXT"],
        ),
        (
            "CREATE TABLE events (payload TEXT)",
            &[KEY, DELETE],
            &[
                "there is no column id",
                "made anew with id INTEGER PRIMARY KEY AUTOINCREMENT",
            ],
        ),
        (
            "CREATE TABLE events (seq INTEGER PRIMARY KEY, payload TEXT, sent_at TEXT NOT NULL)",
            &[SEQ, KEY],
            &["sent_at (RELAY_COLUMN_SENT_AT) is NOT NULL"],
        ),
        (
            "CREATE TABLE events (seq BLOB PRIMARY KEY, payload TEXT) WITHOUT ROWID",
            &[SEQ, KEY, DELETE],
            &["WITHOUT ROWID", "only a key of TEXT can be numbered"],
        ),
        (
            "CREATE TABLE events (seq INTEGER, payload TEXT)",
            &[SEQ, KEY, DELETE],
            &["seq (RELAY_COLUMN_ID) may be null"],
        ),
        (
            "CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, payload TEXT);
             ALTER TABLE outbox_relay_failures RENAME TO f",
            &[SEQ, KEY, DELETE],
            &["outbox_relay_failures", "outbox-relay migrate"],
        ),
    ];
    for case in cases {
        is_told(&outbox, *case).await;
    }
    let more = [("RELAY_OUTBOX_TABLE", "events"), SEQ, KEY, DELETE];
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("app.db");
    let url = format!("sqlite://{}", file.display());
    let told = async |more: &[(&str, &str)], words: &str| {
        let all = [more, &[("RELAY_DATABASE_URL", url.as_str())]].concat();
        let (code, out, err) = outbox.command(&["check"], &all).await;
        assert!(code == Some(1) && out.contains(words), "{words}: {out}{err}");
    };
    told(&more, "does not exist").await;
    std::fs::write(&file, "no database".repeat(1_000)).expect("written");
    told(&more, "the file is not an SQLite database").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_configuration_alone_tells_ends_with_64() {
    let outbox = Outbox::without_tables("sqlite", &[]).await;
    for (name, value, words) in [
        (
            "RELAY_PRESET",
            "debezum",
            "RELAY_PRESET: must be `debezium` or `watermill`",
        ),
        ("RELAY_COLUMN_SENT_AT", "-", "RELAY_OUTBOX_ON_SENT=delete"),
        ("RELAY_COLUMN_ID", "a.b", "RELAY_COLUMN_ID: must be a column's name"),
        ("RELAY_ROUTING_KEY", "{a", "RELAY_ROUTING_KEY: has a single brace"),
    ] {
        for command in ["run", "check", "migrate"] {
            let (code, out, err) = outbox.command(&[command], &[(name, value)]).await;
            assert!(code == Some(64) && err.contains(words), "{command} {name}: {out}{err}");
        }
    }
}
