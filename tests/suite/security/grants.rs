//! Under exactly the rights that `migrate --print-grants` prints, database and broker, everything that a relay does works.

use crate::outbox::{Outbox, SECOND, migrate};
use crate::support::{Consumer, Rabbit, until};

/// A role and a broker's user with the rights that are printed, and nothing else; the URLs to log in with.
async fn granted(outbox: &Outbox, database: &str, variables: &[(&str, &str)]) -> (String, String) {
    let role = format!("r{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
    let (create, given) = match database {
        "mariadb" => (
            format!("CREATE USER {role}@'127.0.0.1' IDENTIFIED BY 'pw'"),
            format!("{role}@127.0.0.1"),
        ),
        _ => (format!("CREATE ROLE {role} LOGIN PASSWORD 'pw'"), role.clone()),
    };
    outbox.db.run(&create).await;
    let asked = format!("--print-grants={given}");
    let (code, sql, err) = outbox.command(&["migrate", &asked], variables).await;
    assert_eq!(code, Some(0), "{sql}{err}");
    println!("{sql}");
    outbox.db.run(&sql).await;
    let mut url = url::Url::parse(&outbox.database_url).expect("a URL");
    url.set_username(&role).expect("a user");
    url.set_password(Some("pw")).expect("a password");
    let words = sql
        .lines()
        .find_map(|line| line.strip_prefix("-- rabbitmqctl set_permissions -p "));
    let words: Vec<&str> = words
        .expect("the broker's")
        .split(' ')
        .map(|word| word.trim_matches('\''))
        .collect();
    let [_vhost, user, configure, write, read] = words[..] else {
        panic!("{sql}")
    };
    assert_eq!(user, role);
    let rabbit = Rabbit::shared().await;
    let amqp_url = rabbit
        .add_user(user, "pw", &outbox.amqp_url, [configure, write, read])
        .await;
    (url.into(), amqp_url)
}

async fn all_works(outbox: &Outbox, database: &str, variables: &[(&str, &str)], rows: &Rows) {
    let (database_url, amqp_url) = granted(outbox, database, variables).await;
    let urls = [
        ("RELAY_DATABASE_URL", database_url.as_str()),
        ("RELAY_AMQP_URL", amqp_url.as_str()),
    ];
    let limited = [variables, &urls].concat();
    let (code, out, err) = outbox.command(&["check"], &limited).await;
    assert_eq!(code, Some(0), "{out}{err}");
    for _ in 0..20 {
        outbox.db.run(&(rows.insert)("good")).await;
    }
    outbox.db.run(&(rows.insert)("nowhere")).await;
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let mut relay = limited
        .iter()
        .fold(outbox.relay(), |relay, (name, value)| relay.env(name, value))
        .env("RELAY_RETRY_MIN_DELAY", "10ms")
        .env("RELAY_RETRY_MAX_ATTEMPTS", "2")
        .env("RELAY_OUTBOX_RETENTION", "1s")
        .spawn();
    consumer.wait_distinct(20, 60 * SECOND).await;
    until("all but the dead letter is gone", 60 * SECOND, async || {
        outbox.db.number(&rows.count).await == 1 && outbox.db.number(&rows.dead).await == 1
    })
    .await;
    let metrics = relay.get("/metrics").await.1;
    let failed = metrics
        .lines()
        .filter(|line| line.starts_with("outbox_relay_store_errors_total") && !line.ends_with(" 0"));
    assert_eq!(failed.collect::<Vec<_>>(), Vec::<&str>::new(), "{}", relay.log_text());
    let owned = "SELECT count(*) FROM outbox_relay_shares WHERE owner IS NOT NULL";
    let owned = owned.replace("outbox_relay_shares", &rows.shares);
    assert_ne!(outbox.db.number(&owned).await, 0);
    for args in [&["status", "--json"][..], &["dead-letters", "replay", "--all"]] {
        let (code, out, err) = outbox.command(args, &limited).await;
        assert_eq!(code, Some(0), "{args:?}: {out}{err}");
    }
    relay.sigterm();
    assert!(relay.wait(30 * SECOND).await.success(), "{}", relay.log_text());
    assert_eq!(outbox.db.number(&owned).await, 0, "given back");
    // And no more than that.
    for sql in &rows.forbidden {
        assert!(refused(&database_url, sql).await, "{sql}");
    }
    without_history(outbox, database, &limited, rows).await;
}

/// As it is for a role whose rights are from before there was that table: refusals are written all the same.
async fn without_history(outbox: &Outbox, database: &str, limited: &[(&str, &str)], rows: &Rows) {
    let errors = rows.shares.replace("shares", "errors");
    let noted = format!("SELECT count(*) FROM {errors}");
    assert_ne!(outbox.db.number(&noted).await, 0);
    let (_, url) = limited.iter().rfind(|(name, _)| *name == "RELAY_DATABASE_URL").unwrap();
    let role = url::Url::parse(url).unwrap().username().to_owned();
    let at = if database == "mariadb" { "@'127.0.0.1'" } else { "" };
    let revoke = format!("REVOKE INSERT, DELETE ON {errors} FROM {role}{at}; DELETE FROM {errors}");
    outbox.db.run(&revoke).await;
    let (code, out, err) = outbox.command(&["check"], limited).await;
    let warned = |line: &str| line.starts_with("warning table: ") && line.contains("on outbox_relay_errors");
    assert!(code == Some(0) && out.lines().any(warned), "{out}{err}");
    let before = outbox.db.number(&rows.dead).await;
    outbox.db.run(&(rows.insert)("nowhere")).await;
    let relay = limited
        .iter()
        .fold(outbox.relay(), |relay, (name, value)| relay.env(name, value))
        .env("RELAY_RETRY_MIN_DELAY", "10ms")
        .env("RELAY_RETRY_MAX_ATTEMPTS", "2")
        .spawn();
    until("there is a dead letter more", 60 * SECOND, async || {
        outbox.db.number(&rows.dead).await > before
    })
    .await;
    assert_eq!(outbox.db.number(&noted).await, 0);
    assert!(relay.log_text().contains("outbox_relay_errors"), "{}", relay.log_text());
}

/// What differs between the tables.
struct Rows {
    insert: Box<dyn Fn(&str) -> String + Send + Sync>,
    count: String,
    dead: String,
    shares: String,
    forbidden: Vec<String>,
}

async fn refused(url: &str, sql: &str) -> bool {
    use sqlx::{AssertSqlSafe, Connection, MySqlConnection, PgConnection};
    let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
    let error = match url.starts_with("mysql") {
        true => sql
            .execute(&mut MySqlConnection::connect(url).await.unwrap())
            .await
            .err(),
        false => sql.execute(&mut PgConnection::connect(url).await.unwrap()).await.err(),
    };
    error.is_some_and(|error| error.to_string().contains("denied"))
}

async fn a_table_of_migrate(database: &str) {
    let outbox = Outbox::without_tables(database, &["good"]).await;
    migrate(&outbox.database_url, &[]).await;
    let rows = Rows {
        insert: Box::new(|key| {
            format!("INSERT INTO outbox (routing_key, ordering_key, payload) VALUES ('{key}', '{key}', '{{}}')")
        }),
        count: "SELECT count(*) FROM outbox".to_owned(),
        dead: "SELECT count(*) FROM outbox WHERE dead_at IS NOT NULL".to_owned(),
        shares: "outbox_relay_shares".to_owned(),
        forbidden: vec![
            "INSERT INTO outbox (routing_key, payload) VALUES ('r', '{}')".to_owned(),
            "UPDATE outbox SET payload = '{}'".to_owned(),
            "SELECT * FROM outbox_relay_migrations".to_owned(),
        ],
    };
    all_works(&outbox, database, &[], &rows).await;
}

/// Numbered by the relay, and deleted when sent: every table of the relay's own is used.
async fn a_table_of_the_application(database: &str) {
    let outbox = Outbox::without_tables(database, &["good.made"]).await;
    let (schema, id, new_id) = match database {
        "mariadb" => ("", "varchar(36)", "uuid()"),
        _ => ("app.", "uuid", "gen_random_uuid()"),
    };
    if !schema.is_empty() {
        outbox.db.run("CREATE SCHEMA app").await;
    }
    let table = format!("{schema}events");
    outbox
        .db
        .run(&format!(
            "CREATE TABLE {table} (id {id} PRIMARY KEY, aggregatetype varchar(99) NOT NULL, aggregateid varchar(99) NOT NULL,
                 type varchar(99) NOT NULL, payload text)"
        ))
        .await;
    let variables = [("RELAY_PRESET", "debezium"), ("RELAY_OUTBOX_TABLE", table.as_str())];
    migrate(&outbox.database_url, &variables).await;
    let (insert, count) = (table.clone(), format!("SELECT count(*) FROM {table}"));
    let rows = Rows {
        insert: Box::new(move |key| format!("INSERT INTO {insert} VALUES ({new_id}, '{key}', 'k', 'made', '{{}}')")),
        count,
        dead: format!("SELECT count(*) FROM {schema}outbox_relay_failures WHERE dead_at IS NOT NULL"),
        shares: format!("{schema}outbox_relay_shares"),
        forbidden: vec![
            format!("INSERT INTO {table} VALUES ({new_id}, 'a', 'k', 'made', '{{}}')"),
            format!("UPDATE {table} SET payload = '{{}}'"),
        ],
    };
    all_works(&outbox, database, &variables, &rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_printed_for_postgres_is_enough_and_no_more() {
    a_table_of_migrate("postgres").await;
    a_table_of_the_application("postgres").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_printed_for_mariadb_is_enough_and_no_more() {
    a_table_of_migrate("mariadb").await;
    a_table_of_the_application("mariadb").await;
}

#[tokio::test]
async fn what_is_not_needed_is_not_printed() {
    let printed = async |variables: &[(&str, &str)]| {
        let (code, out, err) = crate::support::Relay::run_to_end(&["migrate", "--print-grants"], &{
            let mut env = vec![("RELAY_AMQP_URL", "amqp://u:s3cr3t@localhost")];
            env.extend_from_slice(variables);
            env
        })
        .await;
        assert!(code.success() && !out.contains("s3cr3t"), "{out}{err}");
        out
    };
    let postgres = ("RELAY_DATABASE_URL", "postgres://u:s3cr3t@127.0.0.1:1/app");
    let kept = printed(&[postgres, ("RELAY_OUTBOX_RETENTION", "off")]).await;
    let table = "ON \"outbox\" TO \"outbox_relay\"";
    assert!(!kept.contains(&format!("DELETE {table};\nGRANT")), "{kept}");
    assert!(kept.contains(&format!("last_error) {table}")), "{kept}");
    assert!(printed(&[postgres]).await.contains(&format!(", DELETE {table}")));
    assert!(kept.contains(r"'^amq\.default$'"), "{kept}");
    let sqlite = printed(&[("RELAY_DATABASE_URL", "sqlite:///no/such.db")]).await;
    assert!(sqlite.contains("SQLite has no roles"), "{sqlite}");
}
