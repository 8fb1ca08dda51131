//! What will not do: `check` and `run` say what, by name, and how to mend it.

use crate::outbox::{Outbox, SECOND};
use crate::support::{Relay, until};

/// What is wrong, the statements that make it so, the variables, and what must be said of it.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);

const SEQ: (&str, &str) = ("RELAY_COLUMN_ID", "seq");
const KEY: (&str, &str) = ("RELAY_ROUTING_KEY", "r");
const DELETE: (&str, &str) = ("RELAY_OUTBOX_ON_SENT", "delete");

/// The statements in a line that `check` prints.
fn statements(line: &str) -> Vec<String> {
    let begins = ["ALTER TABLE ", "CREATE ", "UPDATE ", "GRANT "];
    let parts = line.split("; ").filter_map(|part| {
        let at = begins.iter().filter_map(|word| part.find(word)).min()?;
        Some(part[at..].trim_start_matches("or ").to_owned())
    });
    parts.collect()
}

/// Runs what a line of `check` advises.
async fn mend(outbox: &Outbox, line: &str) {
    for statement in statements(line) {
        println!("{statement}");
        outbox.db.run(&statement).await;
    }
}

/// `check` fails with these words, and `run` says them as well while it waits for the cause to be mended. The statements
/// among them mend it.
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
    let relay = run_says(outbox, &more, words).await;
    if !statements(line).is_empty() {
        mend(outbox, line).await;
        let (_, out, _) = outbox.command(&["check"], &more).await;
        assert!(!out.contains("FAILED  table"), "{sql}: {line}\nthen {out}");
        until("the relay goes on", 20 * SECOND, async || {
            let (_, reasons) = relay.get("/readyz").await;
            !words.iter().all(|word| reasons.contains(&word.replace('"', "\\\"")))
        })
        .await;
    }
    drop(relay);
    outbox.db.run("DROP TABLE IF EXISTS events").await;
}

/// A relay that waits, and has said these words.
async fn run_says(outbox: &Outbox, variables: &[(&str, &str)], words: &[&str]) -> Relay {
    let relay = variables
        .iter()
        .fold(outbox.relay(), |relay, (name, value)| relay.env(name, value))
        // The one before it was killed, and its shares are to be free soon.
        .env("RELAY_LEASE_TTL", "2s")
        .spawn();
    until("the relay says it as well", 20 * SECOND, async || {
        let log = relay.log_text();
        words.iter().all(|word| log.contains(&word.replace('"', "\\\"")))
    })
    .await;
    assert_eq!(relay.get("/livez").await.0, 200, "it waits");
    until("it is not ready", 20 * SECOND, async || {
        relay.get("/readyz").await.0 == 503
    })
    .await;
    assert!(
        !relay.log_text().contains("the program has a mistake"),
        "{}",
        relay.log_text()
    );
    relay
}

/// An index that is missing is made by what `check` says, and then is not missing any more.
async fn an_index_is_told_and_made(outbox: &Outbox, sql: &[String], variables: &[(&str, &str)]) {
    for statement in sql {
        outbox.db.run(statement).await;
    }
    let (_, out, err) = outbox.command(&["check"], variables).await;
    let told = |out: &str| {
        let line = out.lines().find(|line| line.contains("indexes: no index of"))?;
        Some(line.to_owned())
    };
    let line = told(&out).unwrap_or_else(|| panic!("{sql:?}: {out}{err}"));
    mend(outbox, &line).await;
    let (_, out, _) = outbox.command(&["check"], variables).await;
    // Of the dead letters it is told after the other.
    if let Some(line) = told(&out) {
        assert!(line.contains("dead letters"), "{sql:?}: {out}");
        mend(outbox, &line).await;
    }
    let (code, out, _) = outbox.command(&["check"], variables).await;
    assert_eq!(code, Some(0), "{sql:?}: {out}");
    assert_eq!(told(&out), None, "{sql:?}: {out}");
}

async fn indexes_are_made_as_check_says(database: &str) {
    let outbox = Outbox::without_tables(database, &[]).await;
    outbox.command(&["migrate"], &[]).await;
    let drops: Vec<_> = match database {
        "postgres" => vec!["DROP INDEX outbox_relay_unsent, outbox_relay_dead"],
        "mariadb" => vec!["DROP INDEX outbox_relay_unsent ON outbox"],
        _ => vec!["DROP INDEX outbox_relay_unsent", "DROP INDEX outbox_relay_dead"],
    };
    let drops: Vec<_> = drops.into_iter().map(str::to_owned).collect();
    an_index_is_told_and_made(&outbox, &drops, &[]).await;
    let (key, time) = match database {
        // No bigint: a page of them is sorted once more.
        "postgres" => ("serial PRIMARY KEY", "timestamptz"),
        "mariadb" => ("bigint AUTO_INCREMENT PRIMARY KEY", "timestamp NULL DEFAULT NULL"),
        _ => ("INTEGER PRIMARY KEY AUTOINCREMENT", "TEXT"),
    };
    let more = [
        ("RELAY_OUTBOX_TABLE", "events"),
        KEY,
        ("RELAY_COLUMN_ID", "\"Seq No\""),
        ("RELAY_COLUMN_SENT_AT", "\"Sent $1's\""),
        ("RELAY_COLUMN_DEAD_AT", "dead"),
        ("RELAY_COLUMN_ATTEMPTS", "tries"),
        ("RELAY_COLUMN_NEXT_ATTEMPT_AT", "later"),
        ("RELAY_COLUMN_LAST_ERROR", "why"),
    ];
    let quoted = |sql: String| match database {
        "mariadb" => sql.replace('"', "`"),
        _ => sql,
    };
    let flag = if database == "postgres" { "boolean" } else { "tinyint" };
    let nullable_flag = match database {
        "sqlite" => "boolean",
        "mariadb" => "bit(1)",
        _ => flag,
    };
    for sent in [
        time,
        nullable_flag,
        &format!(
            "{flag} NOT NULL DEFAULT {}",
            if database == "postgres" { "false" } else { "0" }
        ),
    ] {
        let table = quoted(format!(
            "CREATE TABLE events (\"Seq No\" {key}, \"Sent $1's\" {sent}, tries int, later {time}, why text, dead {time}, payload text)"
        ));
        outbox.command(&["migrate"], &more).await;
        let filled = "INSERT INTO events (payload) VALUES ('1')".to_owned();
        an_index_is_told_and_made(&outbox, &[table, filled], &more).await;
        outbox.db.run("DROP TABLE events").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_are_made_as_check_says_on_postgres() {
    indexes_are_made_as_check_says("postgres").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_are_made_as_check_says_on_mariadb() {
    indexes_are_made_as_check_says("mariadb").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_are_made_as_check_says_on_sqlite() {
    indexes_are_made_as_check_says("sqlite").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_of_a_partitioned_table_are_made_as_check_says() {
    let outbox = Outbox::without_tables("postgres", &[]).await;
    outbox.command(&["migrate"], &[]).await;
    let parts = [
        "CREATE TABLE parted (LIKE outbox INCLUDING DEFAULTS) PARTITION BY RANGE (id)",
        "CREATE TABLE part PARTITION OF parted FOR VALUES FROM (0) TO (1000)",
        "DROP TABLE outbox",
        "ALTER TABLE parted RENAME TO outbox",
    ];
    an_index_is_told_and_made(&outbox, &parts.map(str::to_owned), &[]).await;
}

const MISSING: Case<'_> = (
    "",
    &[SEQ, KEY, DELETE],
    &[
        "\"events\" does not exist",
        "correct RELAY_OUTBOX_TABLE, or wait for the application's migrations",
    ],
);

#[tokio::test(flavor = "multi_thread")]
async fn on_postgres() {
    let outbox = Outbox::without_tables("postgres", &[]).await;
    outbox
        .command(&["migrate"], &[SEQ, KEY, DELETE, ("RELAY_OUTBOX_TABLE", "events")])
        .await;
    outbox.command(&["migrate"], &[("RELAY_OUTBOX_TABLE", "another")]).await;
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
            "CREATE TABLE events (LIKE another INCLUDING ALL); ALTER TABLE events ALTER message_id DROP DEFAULT;
             ALTER TABLE events ALTER message_id TYPE varchar(40)[] USING ARRAY[''];
             ALTER TABLE events ALTER exchange TYPE int USING 1",
            &[],
            &[
                "message_id is character varying[]",
                "RELAY_COLUMN_MESSAGE_ID=message_id, RELAY_COLUMN_EXCHANGE=exchange",
            ],
        ),
        (
            "CREATE TABLE events (seq bigserial PRIMARY KEY, data text)",
            &[SEQ, KEY, DELETE, ("RELAY_COLUMN_PAYLOAD", "dta")],
            &[
                "RELAY_COLUMN_PAYLOAD names the column dta",
                "did you mean data?",
                "its columns are seq, data: correct the variable, or wait for the application's migrations",
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
            "CREATE TABLE events (seq bigint UNIQUE, payload text)",
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
            "CREATE TABLE events (seq bigserial PRIMARY KEY, payload text, sent_at timestamptz GENERATED ALWAYS AS (NULL) STORED)",
            &[SEQ, KEY],
            &[
                "sent rows could not be marked",
                "\"sent_at\" can only be updated to DEFAULT",
                "RELAY_COLUMN_SENT_AT",
            ],
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
    let words = "is a view: name the table itself in RELAY_OUTBOX_TABLE";
    assert!(code == Some(1) && out.contains(words), "{out}");
    run_says(&outbox, &more, &[words]).await;
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
    let words = "lacks DELETE on \"events\"; it needs SELECT, DELETE: GRANT DELETE";
    assert!(code == Some(1) && out.contains(words), "{out}");
    run_says(&outbox, &as_role, &[words]).await;
    // Of the table itself no more than that is needed.
    let line = out.lines().find(|line| line.contains(words)).expect("a line");
    mend(&outbox, line).await;
    let (code, out, _) = outbox.command(&["check"], &as_role).await;
    let words = ["outbox_relay_failures", "SELECT, INSERT, UPDATE, DELETE"];
    assert!(code == Some(1) && words.iter().all(|word| out.contains(word)), "{out}");
    run_says(&outbox, &as_role, &words).await;
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
    let words = ["takes no writes", "name the primary in RELAY_DATABASE_URL"];
    assert!(code == Some(1) && words.iter().all(|word| out.contains(word)), "{out}");
    // No grant would help.
    assert!(!out.to_lowercase().contains("grant"), "{out}");
    let relay = run_says(&outbox, &as_role, &words).await;
    let (_, reasons) = relay.get("/readyz").await;
    assert!(reasons.contains(words[1]), "{reasons}");
    assert!(
        !relay.log_text().to_lowercase().contains("grant"),
        "{}",
        relay.log_text()
    );
    let (code, _, err) = outbox.command(&["migrate"], &as_role).await;
    assert!(
        code == Some(1) && err.contains(words[1]) && !err.contains("may create"),
        "{err}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn on_postgres_without_the_right_to_use_the_schema() {
    let outbox = Outbox::without_tables("postgres", &[]).await;
    let role = format!("r{}", uuid::Uuid::new_v4().simple());
    outbox
        .db
        .run(&format!(
            "CREATE SCHEMA hidden; CREATE TABLE hidden.events (seq bigserial PRIMARY KEY, payload text);
             CREATE ROLE {role} LOGIN PASSWORD 'pw'"
        ))
        .await;
    let mut url = url::Url::parse(&outbox.database_url).expect("a URL");
    url.set_username(&role).expect("a user");
    url.set_password(Some("pw")).expect("a password");
    let more = [
        ("RELAY_OUTBOX_TABLE", "hidden.events"),
        SEQ,
        KEY,
        DELETE,
        ("RELAY_DATABASE_URL", url.as_str()),
    ];
    let (code, out, _) = outbox.command(&["check"], &more).await;
    let line = out.lines().find(|line| line.starts_with("FAILED  table"));
    assert!(
        code == Some(1) && line.is_some_and(|line| line.contains("GRANT USAGE ON SCHEMA \"hidden\"")),
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
            "CREATE TABLE events (seq bigint UNIQUE, payload text)",
            &[SEQ, KEY, DELETE],
            &["seq (RELAY_COLUMN_ID) may be null", "NOT NULL"],
        ),
        (
            "CREATE TABLE events (id bigint AUTO_INCREMENT PRIMARY KEY, payload json)",
            &[],
            &[
                "no column message_id, exchange",
                "ALTER TABLE `events` ADD COLUMN message_id char(36)",
            ],
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
            "CREATE TABLE events (seq TEXT NOT NULL, payload TEXT)",
            &[SEQ, KEY, DELETE],
            &["seq (RELAY_COLUMN_ID) may be the same in several rows"],
        ),
        (
            "CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, payload TEXT)",
            &[],
            &[
                "no column message_id, exchange",
                "ALTER TABLE \"events\" ADD COLUMN message_id TEXT",
            ],
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
        run_says(&outbox, &all, &[words]).await;
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

/// A role that may read the tables of the leases, and not write them.
async fn leases_that_cannot_be_written(database: &str) {
    let outbox = Outbox::without_tables(database, &[]).await;
    let (_, out, _) = outbox.command(&["check"], &[]).await;
    let line = out.lines().find(|line| line.starts_with("FAILED  leases"));
    assert!(
        line.is_some_and(|line| line.contains("run `outbox-relay migrate`")),
        "{out}"
    );
    outbox.command(&["migrate"], &[]).await;
    let role = format!("r{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
    let (create, user) = match database {
        "mariadb" => (
            format!("CREATE USER {role}@'127.0.0.1' IDENTIFIED BY 'pw'"),
            format!("{role}@'127.0.0.1'"),
        ),
        _ => (format!("CREATE ROLE {role} LOGIN PASSWORD 'pw'"), role.clone()),
    };
    outbox.db.run(&create).await;
    let grant = async |what: &str| outbox.db.run(&format!("GRANT {what} TO {user}")).await;
    grant("SELECT, UPDATE, DELETE ON outbox").await;
    for table in ["outbox_relay_shares", "outbox_relay_members", "outbox_relay_pauses"] {
        grant(&format!("SELECT ON {table}")).await;
    }
    let mut url = url::Url::parse(&outbox.database_url).expect("a URL");
    url.set_username(&role).expect("a user");
    url.set_password(Some("pw")).expect("a password");
    let as_role = ("RELAY_DATABASE_URL", url.as_str());
    let owned = "SELECT count(*) FROM outbox_relay_shares WHERE owner IS NOT NULL";
    for table in ["outbox_relay_shares", "outbox_relay_members"] {
        let (code, out, _) = outbox.command(&["check"], &[as_role]).await;
        let line = out
            .lines()
            .find(|line| line.starts_with("FAILED  leases"))
            .unwrap_or_default();
        assert_eq!(code, Some(1), "{out}");
        assert!(
            line.contains("SELECT, INSERT, UPDATE, DELETE on outbox_relay_shares and outbox_relay_members"),
            "{out}"
        );
        grant(&format!("INSERT, UPDATE, DELETE ON {table}")).await;
    }
    let (code, out, _) = outbox.command(&["check"], &[as_role]).await;
    assert_eq!(code, Some(0), "{out}");
    assert_eq!(outbox.db.number(owned).await, 0, "it takes back what it takes");
    assert_eq!(
        outbox
            .db
            .number("SELECT count(*) FROM outbox_relay_members WHERE member <> ''")
            .await,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_that_cannot_be_written_on_postgres() {
    leases_that_cannot_be_written("postgres").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_that_cannot_be_written_on_mariadb() {
    leases_that_cannot_be_written("mariadb").await;
}
