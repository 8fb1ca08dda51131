//! What can go wrong around a MariaDB: late commits, killed connections, a server that crashes, relays that are killed.

use std::collections::HashSet;

use sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection};

use crate::outbox::{Arrived, Outbox, SECOND, judge};
use crate::support::{Consumer, MariaDb, Rabbit, Received, until};

fn distinct(received: &[Received]) -> usize {
    let ids: HashSet<_> = received.iter().map(|message| &message.message_id).collect();
    ids.len()
}

async fn session(url: &str) -> MySqlConnection {
    MySqlConnection::connect(url).await.expect("the server is up")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_commit_goes_before_the_next_row_of_its_key_when_writers_are_serialised() {
    let outbox = Outbox::on_mariadb().await;
    // No sweep comes within the test: the skipped ids themselves are watched.
    let _relay = outbox.relay().env("RELAY_POLL_SWEEP_INTERVAL", "50s").spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    outbox.db.run("CREATE TABLE parents (id int PRIMARY KEY)").await;
    outbox.db.run("INSERT INTO parents VALUES (77)").await;
    let mut expected = 0;
    for round in 0..20 {
        let row = |n: i64| {
            AssertSqlSafe(format!(
                "INSERT INTO outbox (routing_key, ordering_key, payload) VALUES ('good', 'late', '{{\"key\": 77, \"n\": {n}}}')"
            ))
        };
        let (mut first, mut second) = (session(&outbox.database_url).await, session(&outbox.database_url).await);
        let parent = "BEGIN; SELECT id FROM parents WHERE id = 77 FOR UPDATE";
        first.execute(sqlx::raw_sql(parent)).await.expect("locked");
        first.execute(row(2 * round)).await.expect("inserted");
        // The second writer of the key takes its id only when the first has committed; others move the cursor on.
        let next = async move {
            second.execute(sqlx::raw_sql(parent)).await.expect("locked");
            second.execute(row(2 * round + 1)).await.expect("inserted");
            second.execute("COMMIT").await.expect("committed");
        };
        let commit = async {
            outbox.insert(10_000 + round * 10, 10, 10).await;
            consumer.wait_distinct(expected + 10, 30 * SECOND).await;
            first.execute("COMMIT").await.expect("committed");
        };
        tokio::join!(next, commit);
        expected += 12;
        consumer.wait_distinct(expected, 30 * SECOND).await;
    }
    judge(&consumer.snapshot());
}

/// Writers whose transactions overlap, some of them rolled back, while connections and relays are killed.
#[tokio::test(flavor = "multi_thread")]
async fn kills_of_relays_and_connections_lose_nothing_and_keep_the_order_of_each_key() {
    const WRITERS: i64 = 4;
    const TRANSACTIONS: i64 = 400;
    let outbox = Outbox::on_mariadb().await;
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let (user, url) = limited_user(&outbox).await;
    let relay = || outbox.relay().env("RELAY_DATABASE_URL", &url);
    let start = || {
        relay()
            .env("RELAY_LEASE_TTL", "2s")
            .env("RELAY_OUTBOX_RETENTION", "off")
            .spawn()
    };
    let mut relays = vec![start(), start()];
    // Each key has one writer.
    let writers: Vec<_> = (0..WRITERS)
        .map(|key| {
            let url = outbox.database_url.clone();
            tokio::spawn(async move {
                let mut session = session(&url).await;
                for n in 0..TRANSACTIONS {
                    let end = if n % 7 == 3 { "ROLLBACK" } else { "COMMIT" };
                    let sql = format!(
                        "BEGIN; INSERT INTO outbox (routing_key, ordering_key, payload)
                         VALUES ('good', 'k{key}', '{{\"key\": {key}, \"n\": {n}}}'); DO sleep(0.00{key}); {end}"
                    );
                    session
                        .execute(sqlx::raw_sql(AssertSqlSafe(sql)))
                        .await
                        .expect("written");
                }
            })
        })
        .collect();
    for round in 0..12 {
        let before = consumer.count();
        if round % 3 == 2 {
            relays.remove(0).kill9();
            relays.push(start());
        } else {
            let mariadb = MariaDb::shared().await;
            mariadb
                .kill_connections(&format!("user = '{user}'"))
                .await
                .expect("the server answers");
        }
        until("messages arrive, or all have", 30 * SECOND, async || {
            consumer.count() > before + 20 || writers.iter().all(|writer| writer.is_finished())
        })
        .await;
    }
    for writer in writers {
        writer.await.expect("all was written");
    }
    outbox.wait_all_sent(60 * SECOND).await;
    let committed = outbox.db.number("SELECT count(*) FROM outbox").await as usize;
    let received = consumer
        .wait_for(|received| distinct(received) >= committed, 60 * SECOND)
        .await;
    let arrived = judge(&received);
    assert_eq!(arrived.distinct, committed);
    assert_eq!(outbox.db.unsent().await, 0);
}

/// Applications keep the default isolation, and give up on a lock after a second; the relay marks and purges meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn an_insert_storm_under_repeatable_read_waits_for_nobody() {
    const WRITERS: i64 = 12;
    const TRANSACTIONS: i64 = 150;
    let outbox = Outbox::on_mariadb().await;
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let relay = || outbox.relay().env("RELAY_OUTBOX_RETENTION", "1s").spawn();
    let _relays = [relay(), relay()];
    let writers: Vec<_> = (0..WRITERS)
        .map(|key| {
            let url = outbox.database_url.clone();
            tokio::spawn(async move {
                let mut session = session(&url).await;
                let settings = "SET innodb_lock_wait_timeout = 1, lock_wait_timeout = 1;
                                SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ";
                session.execute(sqlx::raw_sql(settings)).await.expect("settings");
                for n in 0..TRANSACTIONS {
                    let row = |n: i64| format!("('good', 'k{key}', '{{\"key\": {key}, \"n\": {n}}}')");
                    // What a transaction reads first is its snapshot: marks and purges go on beside it.
                    let sql = format!(
                        "BEGIN; SELECT count(*) FROM outbox WHERE id < 10;
                         INSERT INTO outbox (routing_key, ordering_key, payload) VALUES {};
                         INSERT INTO outbox (routing_key, ordering_key, payload) VALUES {}; COMMIT",
                        row(2 * n),
                        row(2 * n + 1)
                    );
                    let written = session.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await;
                    written.expect("an insert never waits");
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("all was written");
    }
    let all = (WRITERS * TRANSACTIONS * 2) as usize;
    let received = consumer.wait_distinct(all, 60 * SECOND).await;
    assert_eq!(
        judge(&received),
        Arrived {
            distinct: all,
            duplicates: 0
        }
    );
}

/// A user with the privileges that the README names, and no more; the URL that a relay logs in with.
async fn limited_user(outbox: &Outbox) -> (String, String) {
    let name = format!("r{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
    let user = format!("{name}@'127.0.0.1'");
    outbox
        .db
        .run(&format!(
            "CREATE USER {user} IDENTIFIED BY 'pw';
             GRANT SELECT, UPDATE ON outbox TO {user};
             GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_relay_shares TO {user};
             GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_relay_members TO {user};
             GRANT SELECT ON outbox_relay_pauses TO {user}"
        ))
        .await;
    let mut url = url::Url::parse(&outbox.database_url).expect("a URL");
    url.set_username(&name).expect("a user");
    url.set_password(Some("pw")).expect("a password");
    (name, url.into())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_crashes_is_waited_for_and_nothing_is_lost() {
    let (mariadb, rabbit) = tokio::join!(MariaDb::start(), Rabbit::start());
    let outbox = Outbox::between_mariadb(&mariadb, &rabbit).await;
    let relay = outbox.relay().spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    for round in 0..3 {
        outbox.insert(round * 2_000, 1_000, 100).await;
        consumer
            .wait_for(|received| distinct(received) as i64 > round * 2_000 + 100, 30 * SECOND)
            .await;
        mariadb.kill9().await;
        until("the relay says that the database is away", 20 * SECOND, async || {
            let (status, reasons) = relay.get("/readyz").await;
            status == 503 && reasons.contains("\"database\":{\"ok\":false")
        })
        .await;
        assert_eq!(relay.get("/livez").await.0, 200);
        mariadb.start_again().await;
        outbox.insert(round * 2_000 + 1_000, 1_000, 100).await;
        outbox.wait_all_sent(60 * SECOND).await;
    }
    let received = consumer
        .wait_for(|received| distinct(received) == 6_000, 60 * SECOND)
        .await;
    let Arrived { distinct, duplicates } = judge(&received);
    assert_eq!(distinct, 6_000);
    // What was confirmed and not marked yet when the server crashed.
    assert!(duplicates < 3 * 3_000, "{duplicates}");
}
