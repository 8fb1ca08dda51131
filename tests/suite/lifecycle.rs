//! A relay next to an application, in the order and with the signals that Kubernetes gives a native sidecar: the relay
//! starts first, the application comes and ends, and only then the relay gets SIGTERM, with the rest of the pod's grace.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use tokio::process::Command;

use crate::outbox::{Arrived, Outbox, SECOND, judge, migrate};
use crate::support::{Consumer, Relay, until};

/// `terminationGracePeriodSeconds` as Kubernetes sets it when nobody does.
const POD_GRACE: Duration = Duration::from_secs(30);

/// Rows of one application, in ten transactions of which the last ends right before the application does.
const ROWS: i64 = 5_000;

/// A pod's processes: the relay runs, the application is still to come.
struct Pod {
    relay: Relay,
}

impl Pod {
    /// The sidecar's probe holds the application back until the relay has started, and only until then: of database and
    /// table there is nothing to be had yet.
    async fn start(outbox: &Outbox, drain: &str, in_flight: &str) -> Self {
        let relay = outbox
            .relay()
            .env("RELAY_SHUTDOWN_DRAIN", drain)
            .env("RELAY_PUBLISH_IN_FLIGHT", in_flight)
            .spawn();
        until("the startup probe succeeds", 20 * SECOND, async || {
            relay.get("/startupz").await.0 == 200
        })
        .await;
        Self { relay }
    }

    async fn wait_for_missing_table(&self) {
        until("the relay names the missing table", 20 * SECOND, async || {
            let (status, reasons) = self.relay.get("/readyz").await;
            status == 503 && reasons.contains("outbox-relay migrate")
        })
        .await;
        assert_eq!(self.relay.get("/livez").await.0, 200, "nobody may restart it for that");
    }

    /// The application has ended: SIGTERM, then SIGKILL when the rest of the grace is over.
    async fn end(mut self, since: Instant) {
        self.relay.sigterm();
        let rest = POD_GRACE.saturating_sub(since.elapsed());
        let status = self.relay.wait(rest).await;
        assert!(status.success(), "{status}\n{}", self.relay.log_text());
    }
}

/// A process of its own that commits its rows from number `from` on, and ends.
async fn application(outbox: &Outbox, from: i64) {
    let mut psql = Command::new("psql");
    psql.args([
        "--no-psqlrc",
        "--quiet",
        "--set",
        "ON_ERROR_STOP=1",
        &outbox.database_url,
    ]);
    for part in 0..10 {
        let (first, last) = (from + part * ROWS / 10, from + (part + 1) * ROWS / 10 - 1);
        psql.arg("--command").arg(format!(
            "INSERT INTO outbox (routing_key, ordering_key, payload)
             SELECT 'good', 'k' || (n % 20), json_build_object('key', n % 20, 'n', n)
             FROM generate_series({first}, {last}) AS n"
        ));
    }
    let output = psql.kill_on_drop(true).output().await.expect("psql starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

async fn without_table() -> Outbox {
    let outbox = Outbox::on_postgres().await;
    let tables = "outbox, outbox_relay_migrations, outbox_relay_shares, outbox_relay_members, outbox_relay_pauses, \
                  outbox_relay_errors";
    outbox.db.run(&format!("DROP TABLE {tables}")).await;
    outbox
}

/// Two pods, one after the other, each with an application that ends by itself; the first makes the table.
async fn two_jobs(outbox: &Outbox, drain: &str, after_each: impl AsyncFn(i64)) {
    for number in 0..2 {
        // Without drain the first is to leave rows behind, on a machine however quick.
        let in_flight = if drain == "false" && number == 0 { "1" } else { "1000" };
        let pod = Pod::start(outbox, drain, in_flight).await;
        if number == 0 {
            pod.wait_for_missing_table().await;
            migrate(&outbox.database_url, &[]).await;
        }
        application(outbox, number * ROWS).await;
        if drain == "false" {
            // In the midst of it.
            let published = "outbox_relay_messages_published_total";
            pod.relay.wait_metric(published, |count| count > 0.0, 20 * SECOND).await;
        }
        pod.end(Instant::now()).await;
        after_each((number + 1) * ROWS).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_drain_on_no_row_of_a_job_stays_behind_its_pod() {
    let outbox = without_table().await;
    two_jobs(&outbox, "true", async |committed| {
        let sent = "SELECT count(*) FROM outbox WHERE sent_at IS NOT NULL";
        assert_eq!(outbox.db.number(sent).await, committed);
    })
    .await;
    let all = Arrived {
        distinct: 2 * ROWS as usize,
        duplicates: 0,
    };
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let received = consumer.wait_distinct(all.distinct, 60 * SECOND).await;
    assert_eq!(judge(&received), all);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_drain_off_the_next_pod_sends_the_rest_and_nothing_twice() {
    let outbox = without_table().await;
    two_jobs(&outbox, "false", async |committed| {
        if committed == ROWS {
            assert!(outbox.db.unsent().await > 0, "the first pod left nothing to the next");
        }
    })
    .await;
    let last = Pod::start(&outbox, "false", "1000").await;
    outbox.wait_all_sent(60 * SECOND).await;
    last.end(Instant::now()).await;
    let all = Arrived {
        distinct: 2 * ROWS as usize,
        duplicates: 0,
    };
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let received = consumer.wait_distinct(all.distinct, 60 * SECOND).await;
    assert_eq!(judge(&received), all);
}

/// What systemd would read, until a datagram says `wanted`.
async fn told(socket: &UnixDatagram, wanted: &str) {
    let mut all = String::new();
    until(wanted, 20 * SECOND, async || {
        let mut datagram = [0; 256];
        while let Ok(length) = socket.recv(&mut datagram) {
            all.push_str(&String::from_utf8_lossy(&datagram[..length]));
        }
        all.lines().any(|line| line == wanted)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_is_told_of_start_life_and_stop_without_database_and_broker() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut relay = Relay::command()
        .env("RELAY_DATABASE_URL", "postgres://nobody@127.0.0.1:1/none")
        .env("RELAY_AMQP_URL", "amqp://127.0.0.1:1")
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "400000")
        .spawn();
    told(&socket, "READY=1").await;
    assert_eq!(relay.get("/startupz").await.0, 200, "the listener is bound by then");
    told(&socket, "WATCHDOG=1").await;
    told(&socket, "WATCHDOG=1").await;
    relay.sigterm();
    told(&socket, "STOPPING=1").await;
    assert!(relay.wait(10 * SECOND).await.success(), "{}", relay.log_text());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_version_names_the_commit_if_the_sources_are_a_checkout() {
    let (status, out, err) = Relay::run_to_end(&["--version"], &[]).await;
    assert!(status.success(), "{err}");
    let expected = concat!("outbox-relay ", env!("CARGO_PKG_VERSION"));
    let commit = out.trim().strip_prefix(expected).unwrap_or_else(|| panic!("{out}"));
    if std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.git")).exists() {
        let (hash, date) = commit.trim_matches([' ', '(', ')']).split_once(' ').expect("two words");
        assert!(hash.chars().all(|c| c.is_ascii_hexdigit()) && hash.len() == 12, "{out}");
        assert!(date.len() == 10 && date.starts_with("20"), "{out}");
    }
}
