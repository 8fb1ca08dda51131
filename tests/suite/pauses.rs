//! Pause and resume, by the real binary: while a relay runs, and while none does.

use serde_json::Value;

use crate::outbox::{Outbox, SECOND, judge};
use crate::support::{Consumer, until};

async fn done(outbox: &Outbox, args: &[&str]) -> String {
    let (code, out, err) = outbox.command(args, &[]).await;
    assert_eq!(code, Some(0), "{args:?}: {out}{err}");
    out
}

async fn a_paused_exchange_waits_with_its_keys_while_others_flow_and_a_restart_remembers(outbox: Outbox) {
    // While no relay runs. Of key 0 the second row goes to the paused exchange, and the third waits behind it.
    let paused = done(&outbox, &["pause", "--exchange", "other", "--reason", "being mended"]).await;
    assert!(paused.contains("is paused"), "{paused}");
    let again = done(&outbox, &["pause", "--exchange", "other"]).await;
    assert!(again.contains("already") && again.contains("being mended"), "{again}");
    outbox.insert(1, 20, 1).await;
    outbox.insert(101, 20, 5).await;
    outbox.db.run("UPDATE outbox SET exchange = 'other' WHERE id = 2").await;
    outbox
        .db
        .run("UPDATE outbox SET ordering_key = 'apart' WHERE id <= 20")
        .await;
    let relay = outbox.relay().env("RELAY_POLL_SWEEP_INTERVAL", "300ms").spawn();
    relay
        .wait_metric("outbox_relay_paused_exchanges", |value| value == 1.0, 20 * SECOND)
        .await;
    let published = "outbox_relay_messages_published_total";
    relay.wait_metric(published, |value| value == 21.0, 30 * SECOND).await;
    let (code, ready) = relay.get("/readyz").await;
    assert!(code == 200 && ready.contains("being mended"), "{ready}");
    let report: Value = serde_json::from_str(&done(&outbox, &["status", "--json"]).await).unwrap();
    assert_eq!(report["paused"]["pauses"][0]["exchange"], "other", "{report:#}");
    drop(relay);

    // Everything, over a restart.
    done(&outbox, &["pause"]).await;
    let relay = outbox.relay().spawn();
    relay
        .wait_metric("outbox_relay_paused", |value| value == 1.0, 20 * SECOND)
        .await;
    outbox.db.run("UPDATE outbox SET exchange = NULL WHERE id = 2").await;
    assert!(
        done(&outbox, &["resume", "--exchange", "other"])
            .await
            .contains("still paused: everything")
    );
    relay
        .wait_metric("outbox_relay_paused_exchanges", |value| value == 0.0, 20 * SECOND)
        .await;
    assert_eq!(relay.metric(published).await, Some(0.0));
    assert_eq!(outbox.db.unsent().await, 19);

    // Resumed under way.
    done(&outbox, &["resume"]).await;
    outbox.wait_all_sent(30 * SECOND).await;
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let received = consumer.wait_distinct(40, 30 * SECOND).await;
    let apart: Vec<_> = received
        .iter()
        .filter(|message| number(&message.body) <= 20)
        .cloned()
        .collect();
    assert_eq!(judge(&apart).distinct, 20);
    until("nothing is paused", 20 * SECOND, async || {
        done(&outbox, &["resume"]).await.contains("was not paused")
    })
    .await;
}

fn number(body: &[u8]) -> i64 {
    let body: Value = serde_json::from_slice(body).unwrap();
    body["n"].as_i64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_exchange_waits_on_postgres() {
    a_paused_exchange_waits_with_its_keys_while_others_flow_and_a_restart_remembers(Outbox::on_postgres().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_exchange_waits_on_mariadb() {
    a_paused_exchange_waits_with_its_keys_while_others_flow_and_a_restart_remembers(Outbox::on_mariadb().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_exchange_waits_on_sqlite() {
    a_paused_exchange_waits_with_its_keys_while_others_flow_and_a_restart_remembers(Outbox::on_sqlite().await).await;
}
