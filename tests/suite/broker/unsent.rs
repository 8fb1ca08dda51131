//! What a lane did not get to write is told from what it may have sent. Where duplicates are dropped that is the difference
//! between a message that comes back as unroutable and one that counts as delivered.

use futures_util::FutureExt;

use super::*;

/// Three lanes whose line can be stalled, and a confirm timeout of a second.
async fn three_lanes(url: &str, port: u16) -> (Proxy, Connected) {
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], port))).await;
    let broker = Amqp::new(AmqpOptions {
        lanes: 3,
        ..options(&[&proxy.through(url)], SECOND)
    });
    let connected = broker.connect().await.expect("connects");
    (proxy, connected)
}

/// The outcomes of all that a lane had when the confirm timeout passed.
async fn given_up(lane: &mut Box<dyn Lane>, batch: &[Arc<Message>]) -> Vec<Outcome> {
    let report = lane.report().await;
    assert!(report.broken.as_ref().is_some_and(|why| why.contains("no confirm")));
    by_row(report, batch)
}

/// A task of the client library waits for what one lane writes, and the other lanes for that task.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_lane_could_not_begin_to_write_within_the_confirm_timeout_was_not_sent() {
    let rabbit = Rabbit::shared().await;
    let url = rabbit.create_vhost().await;
    declare(&url, "events", "q", Kind::Classic, &["good"]).await;
    declare(&url, "others", "q", Kind::Classic, &["good"]).await;
    let (proxy, mut connected) = three_lanes(&url, rabbit.port()).await;
    let [writes, waits, waits_alone] = &mut connected.lanes[..] else {
        panic!("three lanes")
    };
    let session = &connected.session;
    assert_eq!(session.check_exchange("others").await, Ok(()));
    assert!(publish(writes, &[message(0, "events", "good")]).await.broken.is_none());
    // Sent and answered, though not judged yet.
    let confirmed = message(1, "events", "good");
    waits.begin(vec![confirmed.clone()]);
    waits.wait().await;

    proxy.stall();
    let mut large = (*message(2, "events", "good")).clone();
    large.body = vec![b'x'; 16 * 1024 * 1024].into();
    let large = Arc::new(large);
    writes.begin(vec![large.clone()]);
    assert!(writes.wait().now_or_never().is_none(), "it is being written");
    assert_eq!(session.check_exchange("unseen").await, Err("no answer".to_owned()));

    let unknown = |doubt| Outcome::Unknown(doubt);
    let unsent = message(3, "events", "good");
    waits.begin(vec![unsent.clone()]);
    let outcomes = given_up(waits, &[confirmed, unsent]).await;
    assert!(is_confirmed(&outcomes[0]), "{outcomes:?}");
    assert_eq!(outcomes[1], unknown(Doubt::Unsent));
    // The first of its exchange.
    let alone = message(4, "others", "good");
    waits_alone.begin(vec![alone.clone()]);
    assert_eq!(given_up(waits_alone, &[alone]).await, [unknown(Doubt::Unsent)]);
    assert_eq!(given_up(writes, &[large]).await, [unknown(Doubt::Timeout)]);
    connected.session.close().await;
    assert_eq!(drain_queue(&url, "q").await.len(), 2, "those that were confirmed");
}

/// An exchange that was missing is looked for again after some seconds, in front of the messages that wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn what_waited_on_a_lane_for_a_look_at_its_exchange_until_the_confirm_timeout_was_not_sent() {
    let rabbit = Rabbit::shared().await;
    let url = rabbit.create_vhost().await;
    declare(&url, "gone", "q", Kind::Classic, &["good"]).await;
    let (proxy, mut connected) = three_lanes(&url, rabbit.port()).await;
    let lane = &mut connected.lanes[0];
    let batch = [message(0, "gone", "good")];
    assert!(by_row(publish(lane, &batch).await, &batch).iter().all(is_confirmed));
    let admin = lapin::Connection::connect(&url, lapin::ConnectionProperties::default())
        .await
        .unwrap();
    let channel = admin.create_channel().await.unwrap();
    channel
        .exchange_delete("gone".into(), lapin::options::ExchangeDeleteOptions::default())
        .await
        .unwrap();
    let missing = by_row(publish(lane, &batch).await, &batch);
    assert!(matches!(missing[..], [Outcome::NoExchange(_)]), "{missing:?}");

    proxy.stall();
    let mut outcome = missing[0].clone();
    until("the exchange is looked for again", 20 * SECOND, async || {
        let report = publish(lane, &batch).await;
        let looked = report.broken.is_some();
        outcome = by_row(report, &batch).remove(0);
        looked
    })
    .await;
    assert_eq!(outcome, Outcome::Unknown(Doubt::Unsent));
    connected.session.close().await;
}
