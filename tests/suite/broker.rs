//! The lanes against a real RabbitMQ: what became of each message is known exactly, or said to be unknown.

mod following;
mod unsent;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outbox_relay::broker::amqp::{Amqp, AmqpOptions};
use outbox_relay::broker::{BatchReport, Broker, Connected, Doubt, Lane, Outcome};
use outbox_relay::config::{Secret, Tls};
use outbox_relay::message::{Copies, Headers, Message, OwnHeaders, Properties, RowId};
use uuid::Uuid;

use crate::support::{Consumer, Kind, Proxy, Rabbit, declare, drain_queue, exchange, until};

const SECOND: Duration = Duration::from_secs(1);

fn amqp(urls: &[&str], confirm_timeout: Duration) -> Amqp {
    Amqp::new(options(urls, confirm_timeout))
}

fn options(urls: &[&str], confirm_timeout: Duration) -> AmqpOptions {
    AmqpOptions {
        urls: urls.iter().map(|url| Secret::new(*url)).collect(),
        tls: Tls::default(),
        connect_timeout: 3 * SECOND,
        confirm_timeout,
        lanes: 2,
        own_headers: OwnHeaders::default(),
    }
}

async fn connect(url: &str) -> Connected {
    amqp(&[url], 10 * SECOND).connect().await.expect("the broker is up")
}

fn message(row: i64, exchange: &str, routing_key: &str) -> Arc<Message> {
    Arc::new(Message {
        row: RowId(row),
        message_id: Uuid::new_v4().into(),
        exchange: exchange.to_owned(),
        routing_key: routing_key.to_owned(),
        kind: None,
        content_type: "text/plain".to_owned(),
        timestamp: Some(1),
        headers: Headers::new(),
        properties: Properties::default(),
        body: row.to_string().into(),
        copies: Copies::None,
    })
}

/// Publishes a batch with nothing else under way.
async fn publish(lane: &mut Box<dyn Lane>, batch: &[Arc<Message>]) -> BatchReport {
    lane.begin(batch.to_vec());
    let report = lane.report().await;
    assert_eq!(report.batches, 1);
    report
}

/// The outcomes by row, each row exactly once.
fn by_row(report: BatchReport, batch: &[Arc<Message>]) -> Vec<Outcome> {
    let mut outcomes = report.outcomes;
    outcomes.sort_by_key(|(row, _)| *row);
    let rows: Vec<_> = outcomes.iter().map(|(row, _)| *row).collect();
    assert_eq!(
        rows,
        batch.iter().map(|m| m.row).collect::<Vec<_>>(),
        "every message has one outcome"
    );
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

fn is_confirmed(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Confirmed(_))
}

async fn unroutable_are_told_apart(kind: Kind) {
    let url = Rabbit::shared().await.create_vhost().await;
    declare(&url, "events", "q", kind, &["good"]).await;
    let mut connected = connect(&url).await;
    let mut random = fastrand::Rng::with_seed(7);
    let mut good_rows = 0;
    for round in 0..30 {
        let batch: Vec<_> = (0..250)
            .map(|row| message(row, "events", if random.bool() { "good" } else { "nowhere" }))
            .collect();
        let report = publish(&mut connected.lanes[round % 2], &batch).await;
        assert_eq!(report.broken, None);
        for (outcome, message) in by_row(report, &batch).iter().zip(&batch) {
            if message.routing_key == "good" {
                good_rows += 1;
                assert!(is_confirmed(outcome), "{outcome:?}");
            } else {
                assert!(
                    matches!(outcome, Outcome::Unroutable(text) if text.contains("NO_ROUTE")),
                    "{outcome:?}"
                );
            }
        }
    }
    connected.session.close().await;
    assert_eq!(drain_queue(&url, "q").await.len(), good_rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn unroutable_messages_are_told_apart_exactly_on_a_quorum_queue() {
    unroutable_are_told_apart(Kind::Quorum).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unroutable_messages_are_told_apart_exactly_on_a_classic_queue() {
    unroutable_are_told_apart(Kind::Classic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_duplicates_are_dropped_only_a_copy_of_unknown_fate_that_comes_back_counts_as_delivered() {
    let url = Rabbit::shared().await.create_vhost().await;
    declare(&url, "events", "q", Kind::Quorum, &["good"]).await;
    let broker = Amqp::new(AmqpOptions {
        lanes: 1,
        own_headers: OwnHeaders {
            dedup: Some("x-deduplication-header".to_owned()),
            repeat: Some("outbox-repeat".to_owned()),
        },
        ..options(&[&url], 10 * SECOND)
    });
    let mut connected = broker.connect().await.expect("the broker is up");
    let all = [Copies::None, Copies::Perhaps, Copies::Unknown, Copies::Refused];
    let batch = |routing_key: &str| -> Vec<Arc<Message>> {
        let with = |(row, copies): (i64, Copies)| {
            let mut message = (*message(row, "events", routing_key)).clone();
            message.copies = copies;
            Arc::new(message)
        };
        (0..).zip(all).map(with).collect()
    };
    // A broker that drops a duplicate answers as one that has no queue for it.
    let dropped = batch("nowhere");
    for (outcome, copies) in by_row(publish(&mut connected.lanes[0], &dropped).await, &dropped)
        .iter()
        .zip(all)
    {
        assert_eq!(
            is_confirmed(outcome),
            copies == Copies::Unknown,
            "{copies:?}: {outcome:?}"
        );
    }
    let taken = batch("good");
    assert!(
        by_row(publish(&mut connected.lanes[0], &taken).await, &taken)
            .iter()
            .all(is_confirmed)
    );
    connected.session.close().await;
    let received = drain_queue(&url, "q").await;
    for (message, copies) in received.iter().zip(all) {
        let header = |name: &str| message.headers.inner().get(name).cloned();
        let repeat = Some(lapin::types::AMQPValue::Boolean(copies != Copies::None));
        assert_eq!(header("outbox-repeat"), repeat, "{copies:?}");
        let id = lapin::types::AMQPValue::LongString(message.message_id.as_str().into());
        assert_eq!(
            header("x-deduplication-header"),
            (copies != Copies::Refused).then_some(id),
            "{copies:?}"
        );
    }
    assert_eq!(received.len(), all.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_alternate_exchange_routes_is_delivered_and_what_it_cannot_route_comes_back() {
    let url = Rabbit::shared().await.create_vhost().await;
    declare(&url, "others", "q", Kind::Classic, &["rare"]).await;
    exchange(
        &url,
        "events",
        lapin::ExchangeKind::Direct,
        &[("alternate-exchange", "others")],
        None,
    )
    .await;
    let mut connected = connect(&url).await;
    let batch = ["rare", "nowhere"].map(|key| message(if key == "rare" { 0 } else { 1 }, "events", key));
    let outcomes = by_row(publish(&mut connected.lanes[0], &batch).await, &batch);
    assert!(is_confirmed(&outcomes[0]), "{outcomes:?}");
    assert!(matches!(outcomes[1], Outcome::Unroutable(_)), "{outcomes:?}");
    connected.session.close().await;
    assert_eq!(drain_queue(&url, "q").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_nacks_and_the_lane_goes_on() {
    let rabbit = Rabbit::shared().await;
    let url = rabbit.create_vhost().await;
    declare(&url, "events", "full", Kind::Classic, &["full"]).await;
    declare(&url, "events", "free", Kind::Classic, &["free"]).await;
    rabbit
        .set_policy(&url, "cap", "^full$", r#"{"max-length":1,"overflow":"reject-publish"}"#)
        .await;
    let mut connected = connect(&url).await;
    let lane = &mut connected.lanes[0];
    until("the full queue nacks", 10 * SECOND, async || {
        let batch: Vec<_> = (0..20).map(|row| message(row, "events", "full")).collect();
        let report = publish(lane, &batch).await;
        by_row(report, &batch).contains(&Outcome::Nacked)
    })
    .await;
    let batch: Vec<_> = (0..100)
        .map(|row| message(row, "events", if row % 2 == 0 { "full" } else { "free" }))
        .collect();
    let outcomes = by_row(publish(lane, &batch).await, &batch);
    assert!(outcomes.iter().skip(1).step_by(2).all(is_confirmed), "{outcomes:?}");
    assert!(
        outcomes.iter().step_by(2).all(|outcome| *outcome == Outcome::Nacked),
        "{outcomes:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_exchange_is_found_without_losing_a_confirm() {
    let url = Rabbit::shared().await.create_vhost().await;
    declare(&url, "events", "q", Kind::Classic, &["good"]).await;
    let mut connected = connect(&url).await;
    let lane = &mut connected.lanes[0];
    let exchange = |row: i64| if row % 10 == 3 { "missing" } else { "events" };
    for _ in 0..3 {
        let batch: Vec<_> = (0..100).map(|row| message(row, exchange(row), "good")).collect();
        let report = publish(lane, &batch).await;
        assert_eq!(report.broken, None);
        for (outcome, message) in by_row(report, &batch).iter().zip(&batch) {
            match message.exchange.as_str() {
                "events" => assert!(is_confirmed(outcome), "{outcome:?}"),
                _ => assert!(
                    matches!(outcome, Outcome::NoExchange(text) if text.contains("missing")),
                    "{outcome:?}"
                ),
            }
        }
    }
    assert_eq!(
        drain_queue(&url, "q").await.len(),
        270,
        "no message was published twice"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_deleted_after_it_was_seen_costs_only_its_own_messages() {
    let rabbit = Rabbit::shared().await;
    let url = rabbit.create_vhost().await;
    declare(&url, "events", "q", Kind::Classic, &["good"]).await;
    declare(&url, "gone", "q2", Kind::Classic, &["good"]).await;
    let mut connected = connect(&url).await;
    let lane = &mut connected.lanes[0];
    let exchange = |row: i64| if row % 5 == 0 { "gone" } else { "events" };
    let batch: Vec<_> = (0..50).map(|row| message(row, exchange(row), "good")).collect();
    assert!(by_row(publish(lane, &batch).await, &batch).iter().all(is_confirmed));
    let admin = lapin::Connection::connect(&url, lapin::ConnectionProperties::default())
        .await
        .unwrap();
    let channel = admin.create_channel().await.unwrap();
    channel
        .exchange_delete("gone".into(), lapin::options::ExchangeDeleteOptions::default())
        .await
        .unwrap();
    let report = publish(lane, &batch).await;
    assert_eq!(report.broken, None);
    for (outcome, message) in by_row(report, &batch).iter().zip(&batch) {
        match message.exchange.as_str() {
            "events" => assert!(is_confirmed(outcome), "{outcome:?}"),
            _ => assert!(matches!(outcome, Outcome::NoExchange(_)), "{outcome:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_exchange_costs_only_its_own_messages() {
    let rabbit = Rabbit::shared().await;
    let url = rabbit.create_vhost().await;
    declare(&url, "events", "q", Kind::Classic, &["good"]).await;
    declare(&url, "secret", "q2", Kind::Classic, &["good"]).await;
    let user = format!("u{}", Uuid::new_v4().simple());
    let limited = rabbit.add_user(&user, "pw", &url, ["^$", "^events$", "^$"]).await;
    let mut connected = connect(&limited).await;
    let lane = &mut connected.lanes[0];
    let exchange = |row: i64| if row % 10 == 3 { "secret" } else { "events" };
    for _ in 0..3 {
        let batch: Vec<_> = (0..50).map(|row| message(row, exchange(row), "good")).collect();
        let report = publish(lane, &batch).await;
        assert_eq!(report.broken, None);
        for (outcome, message) in by_row(report, &batch).iter().zip(&batch) {
            match message.exchange.as_str() {
                "events" => assert!(is_confirmed(outcome), "{outcome:?}"),
                _ => assert!(
                    matches!(outcome, Outcome::Refused(text) if text.contains("secret")),
                    "{outcome:?}"
                ),
            }
        }
    }
    connected.session.close().await;
    assert_eq!(drain_queue(&url, "q").await.len(), 3 * 45, "no others go twice for it");
}

/// A connection has 2,047 channels in its life, and a refusal takes one.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_by_the_thousand_costs_neither_the_connection_nor_others_their_time() {
    let rabbit = Rabbit::shared().await;
    let url = rabbit.create_vhost().await;
    declare(&url, "events", "q", Kind::Classic, &["good"]).await;
    declare(&url, "secret", "q2", Kind::Classic, &["good"]).await;
    let user = format!("u{}", Uuid::new_v4().simple());
    let limited = rabbit
        .add_user(&user, "pw", &url, ["^$", "^(events|missing)$", "^$"])
        .await;
    let mut connected = connect(&limited).await;
    let lane = &mut connected.lanes[0];
    for round in 0..30 {
        let batch: Vec<_> = (0..200)
            .map(|row| {
                let exchange = ["events", "secret", "missing", "events"][row as usize % 4];
                let mut message = (*message(row, exchange, "good")).clone();
                message.properties.user_id = (row % 4 == 3).then(|| "somebody-else".to_owned());
                Arc::new(message)
            })
            .collect();
        let report = publish(lane, &batch).await;
        assert_eq!(report.broken, None, "round {round}");
        for (row, outcome) in by_row(report, &batch).iter().enumerate() {
            let expected = match row % 4 {
                0 => is_confirmed(outcome),
                1 => matches!(outcome, Outcome::Refused(text) if text.contains("secret")),
                2 => matches!(outcome, Outcome::NoExchange(_)),
                _ => matches!(outcome, Outcome::Refused(text) if text.contains("user_id")),
            };
            assert!(expected, "{row}: {outcome:?}");
        }
    }
    // Small batches of one that is missing, as they come when nothing else is to be done.
    for _ in 0..2_100 {
        let batch = [message(0, "missing", "good")];
        let report = publish(lane, &batch).await;
        assert_eq!(report.broken, None);
    }
    // What is granted or declared is noticed all the same.
    declare(&url, "missing", "q2", Kind::Classic, &["good"]).await;
    rabbit
        .set_permissions(&user, &url, ["^$", "^(events|missing|secret)$", "^$"])
        .await;
    for exchange in ["secret", "missing"] {
        until("the exchange takes messages", 20 * SECOND, async || {
            let batch = [message(0, exchange, "good")];
            is_confirmed(&by_row(publish(lane, &batch).await, &batch)[0])
        })
        .await;
    }
    connected.session.close().await;
    assert_eq!(drain_queue(&url, "q").await.len(), 30 * 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lane_had_not_begun_when_its_connection_was_lost_was_not_sent() {
    let rabbit = Rabbit::shared().await;
    let url = rabbit.create_vhost().await;
    declare(&url, "events", "q", Kind::Classic, &["good"]).await;
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], rabbit.port()))).await;
    let mut connected = amqp(&[&proxy.through(&url)], 10 * SECOND)
        .connect()
        .await
        .expect("connects");
    let lane = &mut connected.lanes[0];
    assert!(publish(lane, &[message(0, "events", "good")]).await.broken.is_none());
    // The first of a user goes alone, with the others behind it.
    let mut first = (*message(1, "events", "good")).clone();
    first.properties.user_id = Some("guest".to_owned());
    proxy.hold_answers(true);
    for batch in [
        Arc::new(first),
        message(2, "events", "good"),
        message(3, "events", "good"),
    ] {
        lane.begin(vec![batch]);
    }
    let consumer = Consumer::start(&url, "q");
    let cut = async {
        // The broker has the first one.
        consumer.wait_distinct(2, 20 * SECOND).await;
        proxy.cut();
    };
    let (report, ()) = tokio::join!(lane.report(), cut);
    assert!(report.broken.is_some());
    let mut outcomes = report.outcomes;
    outcomes.sort_by_key(|(row, _)| *row);
    let unknown = |row, doubt| (RowId(row), Outcome::Unknown(doubt));
    assert_eq!(
        outcomes,
        [
            unknown(1, Doubt::Disconnected),
            unknown(2, Doubt::Unsent),
            unknown(3, Doubt::Unsent)
        ]
    );
    connected.session.close().await;
    assert_eq!(consumer.count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_id_that_is_not_the_login_is_refused_alone() {
    let url = Rabbit::shared().await.create_vhost().await;
    declare(&url, "events", "q", Kind::Classic, &["good"]).await;
    let mut connected = connect(&url).await;
    let mut batch: Vec<_> = (0..20).map(|row| message(row, "events", "good")).collect();
    let mut forged = (*batch[7]).clone();
    forged.properties.user_id = Some("somebody-else".to_owned());
    batch[7] = Arc::new(forged);
    let report = publish(&mut connected.lanes[0], &batch).await;
    assert_eq!(report.broken, None);
    for (row, outcome) in by_row(report, &batch).iter().enumerate() {
        match row {
            7 => assert!(
                matches!(outcome, Outcome::Refused(text) if text.contains("user_id")),
                "{outcome:?}"
            ),
            _ => assert!(is_confirmed(outcome), "{outcome:?}"),
        }
    }
    connected.session.close().await;
    assert_eq!(drain_queue(&url, "q").await.len(), 19, "no others go twice for it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_broker_is_given_up_after_the_confirm_timeout() {
    let rabbit = Rabbit::shared().await;
    let url = rabbit.create_vhost().await;
    declare(&url, "events", "q", Kind::Classic, &["good"]).await;
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], rabbit.port()))).await;
    let broker = amqp(&[&proxy.through(&url)], SECOND);
    let mut connected = broker.connect().await.expect("connects");
    let batch: Vec<_> = (0..50).map(|row| message(row, "events", "good")).collect();
    assert!(
        by_row(publish(&mut connected.lanes[0], &batch).await, &batch)
            .iter()
            .all(is_confirmed)
    );
    proxy.stall();
    let report = publish(&mut connected.lanes[0], &batch).await;
    assert!(
        report
            .broken
            .as_ref()
            .is_some_and(|reason| reason.contains("no confirm")),
        "{:?}",
        report.broken
    );
    let outcomes = by_row(report, &batch);
    assert!(
        outcomes
            .iter()
            .all(|outcome| *outcome == Outcome::Unknown(Doubt::Timeout)),
        "{outcomes:?}"
    );
    let start = Instant::now();
    connected.session.close().await;
    assert!(
        start.elapsed() < 4 * SECOND,
        "a close that cannot be answered is bounded"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_leaves_every_message_confirmed_or_unknown() {
    let rabbit = Rabbit::shared().await;
    let url = rabbit.create_vhost().await;
    declare(&url, "events", "q", Kind::Quorum, &["good"]).await;
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], rabbit.port()))).await;
    let broker = amqp(&[&proxy.through(&url)], 10 * SECOND);
    let mut arrived_at_least = 0;
    for round in 0..10 {
        let mut connected = broker.connect().await.expect("connects");
        let batch: Vec<_> = (0..2_000).map(|row| message(row, "events", "good")).collect();
        let publishing = publish(&mut connected.lanes[0], &batch);
        let cut = async {
            tokio::time::sleep(Duration::from_millis(5 * round)).await;
            proxy.reset();
        };
        let (report, ()) = tokio::join!(publishing, cut);
        let broken = report.broken.is_some();
        let outcomes = by_row(report, &batch);
        let known = outcomes.iter().filter(|outcome| is_confirmed(outcome)).count();
        let unknown = outcomes
            .iter()
            .filter(|outcome| matches!(outcome, Outcome::Unknown(Doubt::Disconnected | Doubt::Unsent)))
            .count();
        assert_eq!(known + unknown, batch.len(), "{outcomes:?}");
        assert_eq!(broken, unknown > 0);
        arrived_at_least += known;
        connected.session.close().await;
    }
    let arrived = drain_queue(&url, "q").await.len();
    assert!(
        arrived >= arrived_at_least,
        "{arrived} arrived, {arrived_at_least} were confirmed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_alarm_stops_the_clock_of_the_confirm_timeout() {
    let rabbit = Rabbit::start().await;
    let url = rabbit.url();
    declare(&url, "events", "q", Kind::Quorum, &["good"]).await;
    let broker = amqp(&[&url], SECOND);
    let Connected { session, mut lanes } = broker.connect().await.expect("connects");
    rabbit.memory_alarm(true).await;
    let batch: Vec<_> = (0..50).map(|row| message(row, "events", "good")).collect();
    let mut lane = lanes.remove(0);
    let watched = batch.clone();
    let publishing = tokio::spawn(async move { publish(&mut lane, &watched).await });
    until("the connection is blocked", 10 * SECOND, async || session.blocked()).await;
    let blocked_since = Instant::now();
    until("three confirm timeouts pass", 10 * SECOND, async || {
        blocked_since.elapsed() > 3 * SECOND
    })
    .await;
    assert!(!publishing.is_finished(), "an alarm is waited for");
    rabbit.memory_alarm(false).await;
    let report = publishing.await.unwrap();
    assert_eq!(report.broken, None);
    assert!(by_row(report, &batch).iter().all(is_confirmed));
    assert!(!session.blocked());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_never_answers_costs_the_connect_timeout_and_no_thread() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = format!("amqp://guest:hunter2@{}/%2f", listener.local_addr().unwrap());
    let broker = Amqp::new(AmqpOptions {
        connect_timeout: Duration::from_millis(300),
        ..options(&[&silent], SECOND)
    });
    let io_threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        // A thread may end while it is looked at.
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name.starts_with("lapin-io-loop")).count()
    };
    let mut most = 0;
    for _ in 0..5 {
        let error = broker.connect().await.err().expect("nobody answers").to_string();
        assert!(
            error.contains("no answer within") && !error.contains("hunter2"),
            "{error}"
        );
        most = most.max(io_threads());
    }
    // Other tests of this process have connections of their own, so only growth would tell of a leak.
    until("the threads of the failed attempts end", 10 * SECOND, async || {
        io_threads() < most.max(5)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_tried_in_turn_and_errors_hold_no_password() {
    let rabbit = Rabbit::shared().await;
    let url = rabbit.create_vhost().await;
    let dead = format!("amqp://guest:hunter2@127.0.0.1:{}/", crate::support::free_port());
    let connected = amqp(&[&dead, &url], SECOND)
        .connect()
        .await
        .expect("the second one is up");
    assert!(connected.session.address().contains(&rabbit.port().to_string()));
    let wrong = format!("amqp://guest:hunter2@127.0.0.1:{}/", rabbit.port());
    let error = amqp(&[&dead, &wrong], SECOND)
        .connect()
        .await
        .err()
        .expect("wrong password")
        .to_string();
    assert!(!error.contains("hunter2") && error.contains("refused"), "{error}");
}

/// What the order across a change of owner rests on: a confirmed message is in its queue, in front of whatever anybody
/// publishes afterwards, on whatever connection; and it stays there when its own connection dies.
async fn a_confirm_puts_a_message_before_all_later_ones(kind: Kind) {
    let rabbit = Rabbit::shared().await;
    let url = rabbit.create_vhost().await;
    declare(&url, "events", "q", kind, &["good"]).await;
    let (mut old, mut new) = (connect(&url).await, connect(&url).await);
    for row in 0..200 {
        let lanes = if row % 2 == 0 { &mut old.lanes } else { &mut new.lanes };
        let batch = [message(row, "events", "good")];
        assert!(
            by_row(publish(&mut lanes[(row / 2 % 2) as usize], &batch).await, &batch)
                .iter()
                .all(is_confirmed)
        );
    }
    // Cut off while it still has messages on their way, as an owner that does not know that it is none any more.
    let late: Vec<_> = (1_000..1_200).map(|row| message(row, "events", "good")).collect();
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], rabbit.port()))).await;
    let mut zombie = connect(&proxy.through(&url)).await;
    proxy.delay(Duration::from_millis(300));
    let publishing = publish(&mut zombie.lanes[0], &late);
    let overtaking = async {
        let batch = [message(200, "events", "good")];
        assert!(
            by_row(publish(&mut new.lanes[0], &batch).await, &batch)
                .iter()
                .all(is_confirmed)
        );
    };
    tokio::join!(publishing, overtaking);
    old.session.close().await;
    let order: Vec<i64> = drain_queue(&url, "q")
        .await
        .iter()
        .map(|message| message.text().parse().unwrap())
        .collect();
    assert_eq!(order[..201], (0..=200).collect::<Vec<_>>());
    assert!(
        order[201..].is_sorted(),
        "what comes late comes behind, in its own order"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirm_puts_a_message_before_all_later_ones_in_a_quorum_queue() {
    a_confirm_puts_a_message_before_all_later_ones(Kind::Quorum).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirm_puts_a_message_before_all_later_ones_in_a_classic_queue() {
    a_confirm_puts_a_message_before_all_later_ones(Kind::Classic).await;
}
