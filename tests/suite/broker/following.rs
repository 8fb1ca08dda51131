//! Batches that follow each other on one lane before the first is confirmed.

use std::collections::HashSet;

use super::*;

const UNDER_WAY: usize = 4;

/// A `reply_to` that closes the channel, as nobody consumes answers on it. Rows cannot have it.
const REFUSED: &str = "amq.rabbitmq.reply-to";

/// Publishes all batches with up to four under way. Returns the outcome of each message, in order.
async fn publish_all(lane: &mut Box<dyn Lane>, batches: &[Vec<Arc<Message>>]) -> (Vec<Outcome>, Option<String>) {
    let (mut begun, mut told) = (0, 0);
    let mut all = Vec::new();
    let mut most = 0;
    while told < batches.len() {
        while begun < batches.len() && begun - told < UNDER_WAY {
            lane.begin(batches[begun].clone());
            begun += 1;
            // A lane that is asked while batches come sends them all the same.
            if begun % 3 == 0 {
                let _ = tokio::time::timeout(Duration::from_micros(200), lane.wait()).await;
            }
        }
        let report = lane.report().await;
        most = most.max(report.batches);
        let expected = batches[told..told + report.batches].concat();
        told += report.batches;
        let broken = report.broken.clone();
        all.extend(by_row(report, &expected));
        if broken.is_some() {
            assert_eq!(told, begun, "a lane that is of no more use tells of all it was given");
            return (all, broken);
        }
    }
    assert!(most <= UNDER_WAY);
    (all, None)
}

/// Batches of different messages, whose rows count up.
fn batches(count: i64, size: i64, mut one: impl FnMut(i64) -> Arc<Message>) -> Vec<Vec<Arc<Message>>> {
    (0..count)
        .map(|batch| (batch * size..(batch + 1) * size).map(&mut one).collect())
        .collect()
}

async fn unroutable_among_following_batches(kind: Kind) {
    let url = Rabbit::shared().await.create_vhost().await;
    declare(&url, "events", "q", kind, &["good"]).await;
    let mut connected = connect(&url).await;
    let mut random = fastrand::Rng::with_seed(11);
    let mut good = 0;
    // From none to half of them; one in a thousand leaves most batches without any.
    for odds in [0, 1, 1, 50, 500] {
        let batches = batches(40, 100, |row| {
            let routable = random.u32(0..1_000) >= odds;
            message(row, "events", if routable { "good" } else { "nowhere" })
        });
        let (outcomes, broken) = publish_all(&mut connected.lanes[0], &batches).await;
        assert_eq!(broken, None);
        for (outcome, message) in outcomes.iter().zip(batches.iter().flatten()) {
            if message.routing_key == "good" {
                good += 1;
                assert!(is_confirmed(outcome), "{odds}: {outcome:?}");
            } else {
                assert!(matches!(outcome, Outcome::Unroutable(_)), "{odds}: {outcome:?}");
            }
        }
    }
    connected.session.close().await;
    assert_eq!(drain_queue(&url, "q").await.len(), good);
}

#[tokio::test(flavor = "multi_thread")]
async fn unroutable_messages_are_told_apart_exactly_while_batches_follow_on_a_quorum_queue() {
    unroutable_among_following_batches(Kind::Quorum).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unroutable_messages_are_told_apart_exactly_while_batches_follow_on_a_classic_queue() {
    unroutable_among_following_batches(Kind::Classic).await;
}

/// Confirms of two queues come in another order than the messages were published in.
#[tokio::test(flavor = "multi_thread")]
async fn unroutable_messages_are_told_apart_exactly_while_a_slow_and_a_fast_queue_confirm() {
    let url = Rabbit::shared().await.create_vhost().await;
    declare(&url, "events", "slow", Kind::Quorum, &["slow"]).await;
    declare(&url, "events", "fast", Kind::Classic, &["fast"]).await;
    let mut connected = connect(&url).await;
    let mut random = fastrand::Rng::with_seed(12);
    let batches = batches(200, 20, |row| {
        let routing_key = match random.u8(0..100) {
            0 => "nowhere",
            1..50 => "slow",
            _ => "fast",
        };
        message(row, "events", routing_key)
    });
    let (outcomes, broken) = publish_all(&mut connected.lanes[0], &batches).await;
    assert_eq!(broken, None);
    for (outcome, message) in outcomes.iter().zip(batches.iter().flatten()) {
        let unroutable = matches!(outcome, Outcome::Unroutable(_));
        assert_eq!(unroutable, message.routing_key == "nowhere", "{outcome:?}");
        assert!(unroutable || is_confirmed(outcome), "{outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_message_costs_none_of_the_batches_around_it_its_confirm_or_its_order() {
    let url = Rabbit::shared().await.create_vhost().await;
    declare(&url, "events", "q", Kind::Quorum, &["good"]).await;
    let mut connected = connect(&url).await;
    let forged = [70, 71, 130, 399];
    let batches = batches(20, 20, |row| {
        let mut message = (*message(row, "events", "good")).clone();
        if forged.contains(&row) {
            message.properties.reply_to = Some(REFUSED.to_owned());
        }
        Arc::new(message)
    });
    let (outcomes, broken) = publish_all(&mut connected.lanes[0], &batches).await;
    assert_eq!(broken, None);
    for (row, outcome) in (0..).zip(&outcomes) {
        let refused = matches!(outcome, Outcome::Refused(text) if text.contains("PRECONDITION_FAILED"));
        assert_eq!(refused, forged.contains(&row), "{row}: {outcome:?}");
        assert!(refused || is_confirmed(outcome), "{row}: {outcome:?}");
    }
    connected.session.close().await;
    let mut seen = HashSet::new();
    let arrived = drain_queue(&url, "q").await;
    let first: Vec<i64> = arrived
        .iter()
        .map(|message| message.text().parse().expect("a row"))
        .filter(|row| seen.insert(*row))
        .collect();
    let expected: Vec<i64> = (0..400).filter(|row| !forged.contains(row)).collect();
    assert_eq!(first, expected, "first copies came in order");
}

/// The line is slow: when the broker closes the channel, most of its messages still wait to be written.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_message_among_large_ones_costs_only_its_channel() {
    const FORGED: i64 = 1;
    let rabbit = Rabbit::shared().await;
    let url = rabbit.create_vhost().await;
    declare(&url, "events", "q", Kind::Classic, &["good"]).await;
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], rabbit.port()))).await;
    let mut connected = connect(&proxy.through(&url)).await;
    proxy.delay(Duration::from_millis(30));
    let large: bytes::Bytes = vec![b'x'; 2 * 1024 * 1024].into();
    let batches = batches(1, 20, |row| {
        let mut message = (*message(row, "events", "good")).clone();
        message.body = large.clone();
        if row == FORGED {
            message.properties.reply_to = Some(REFUSED.to_owned());
        }
        Arc::new(message)
    });
    let (outcomes, broken) = publish_all(&mut connected.lanes[0], &batches).await;
    assert_eq!(broken, None);
    for (row, outcome) in (0..).zip(&outcomes) {
        let refused = matches!(outcome, Outcome::Refused(_));
        assert_eq!(refused, row == FORGED, "{row}: {outcome:?}");
        assert!(refused || is_confirmed(outcome), "{row}: {outcome:?}");
    }
}

/// Consumers may rely on the header: what was perhaps taken before is marked.
#[tokio::test(flavor = "multi_thread")]
async fn what_goes_again_after_a_refusal_is_marked_as_a_repetition() {
    let url = Rabbit::shared().await.create_vhost().await;
    declare(&url, "events", "q", Kind::Quorum, &["good"]).await;
    let broker = Amqp::new(AmqpOptions {
        lanes: 1,
        own_headers: OwnHeaders {
            dedup: None,
            repeat: Some("outbox-repeat".to_owned()),
        },
        ..options(&[&url], 10 * SECOND)
    });
    let mut connected = broker.connect().await.expect("the broker is up");
    let batches = batches(3, 50, |row| {
        let mut message = (*message(row, "events", "good")).clone();
        if row == 70 {
            message.properties.reply_to = Some(REFUSED.to_owned());
        }
        Arc::new(message)
    });
    let (_, broken) = publish_all(&mut connected.lanes[0], &batches).await;
    assert_eq!(broken, None);
    connected.session.close().await;
    let mut seen = HashSet::new();
    for message in drain_queue(&url, "q").await {
        let mark = message.headers.inner().get("outbox-repeat").cloned();
        let marked = mark == Some(lapin::types::AMQPValue::Boolean(true));
        let first = seen.insert(message.message_id.clone());
        assert!(marked || first, "{}: a second copy without the mark", message.text());
        // Nobody could know that the broker took nothing behind the refused one.
        let row: i64 = message.text().parse().expect("a row");
        assert!(marked || !(71..100).contains(&row), "{row}");
    }
    assert_eq!(seen.len(), 149);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_leaves_every_message_of_all_batches_confirmed_or_unknown() {
    let rabbit = Rabbit::shared().await;
    let url = rabbit.create_vhost().await;
    declare(&url, "events", "q", Kind::Quorum, &["good"]).await;
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], rabbit.port()))).await;
    let broker = amqp(&[&proxy.through(&url)], 10 * SECOND);
    let mut confirmed = HashSet::new();
    for round in 0..10 {
        let mut connected = broker.connect().await.expect("connects");
        let batches = batches(40, 100, |row| message(round * 10_000 + row, "events", "good"));
        let publishing = publish_all(&mut connected.lanes[0], &batches);
        let cut = async {
            tokio::time::sleep(Duration::from_millis(5 * round.unsigned_abs())).await;
            proxy.reset();
        };
        let ((outcomes, _broken), ()) = tokio::join!(publishing, cut);
        for (outcome, message) in outcomes.iter().zip(batches.iter().flatten()) {
            if is_confirmed(outcome) {
                confirmed.insert(message.row.0.to_string());
            } else {
                assert!(
                    matches!(outcome, Outcome::Unknown(Doubt::Disconnected | Doubt::Unsent)),
                    "{outcome:?}"
                );
            }
        }
        connected.session.close().await;
    }
    let arrived: HashSet<_> = drain_queue(&url, "q")
        .await
        .iter()
        .map(|message| message.text().to_owned())
        .collect();
    assert!(confirmed.is_subset(&arrived), "what was confirmed is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_broker_is_given_up_with_all_batches() {
    let rabbit = Rabbit::shared().await;
    let url = rabbit.create_vhost().await;
    declare(&url, "events", "q", Kind::Classic, &["good"]).await;
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], rabbit.port()))).await;
    let broker = amqp(&[&proxy.through(&url)], SECOND);
    let mut connected = broker.connect().await.expect("connects");
    let lane = &mut connected.lanes[0];
    assert!(publish(lane, &[message(0, "events", "good")]).await.broken.is_none());
    proxy.stall();
    let (outcomes, broken) = publish_all(lane, &batches(4, 50, |row| message(row, "events", "good"))).await;
    assert!(broken.is_some_and(|why| why.contains("no confirm")));
    assert_eq!(outcomes.len(), 200);
    let unknown = |outcome: &Outcome| matches!(outcome, Outcome::Unknown(_));
    assert!(outcomes.iter().all(unknown), "{outcomes:?}");
    connected.session.close().await;
}
