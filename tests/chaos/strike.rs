//! Does what is planned, and undoes it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::database::Session;
use crate::faults::{Kind, Planned, Record};
use crate::ledger::Ledger;
use crate::stage::{Place, QUEUE, Stage};

/// A relay ends within its grace of 20 s, and some seconds to close its connections.
const STOP_TIME: Duration = Duration::from_secs(40);

/// A relay that is asked to stop so soon after something else went wrong may have messages whose fate it cannot settle.
const RECOVERY: Duration = Duration::from_secs(10);

/// From the beginning of the fault to its end.
pub(crate) async fn strike(stage: Arc<Stage>, record: Record, ledger: Ledger, plan: Planned) {
    let number = record.began(&plan);
    let (rabbit, database) = (&stage.rabbit, &stage.database);
    let place = &stage.places[plan.relay];
    match plan.kind {
        Kind::RelayKill => replace(&stage, place, plan.lasts, false).await.map_or((), drop),
        Kind::RelayTerm => {
            let asked = record.now();
            let status = replace(&stage, place, plan.lasts, true).await;
            if status.is_some_and(|status| !status.success()) {
                if record.disturbed_since(asked.saturating_sub(RECOVERY), plan.relay) {
                    record.was_unclean(number);
                } else {
                    ledger.violation(format!("relay {} did not stop cleanly: {status:?}", plan.relay));
                }
            }
        }
        Kind::RelayFreeze => {
            let relay = place.relay.lock().await;
            let relay = relay.as_ref().expect("one runs in each place");
            relay.freeze();
            // At least until the lease is over.
            sleep(plan.lasts.max(Duration::from_millis(3_500))).await;
            relay.thaw();
        }
        Kind::BrokerKill => {
            rabbit.kill9().await;
            sleep(plan.lasts).await;
            rabbit.start_again().await;
        }
        Kind::BrokerFreeze => {
            rabbit.freeze();
            sleep(plan.lasts).await;
            rabbit.thaw();
        }
        Kind::BrokerStop => {
            rabbit.stop_app().await;
            sleep(plan.lasts).await;
            rabbit.start_app().await;
        }
        Kind::BrokerAlarm => {
            rabbit.memory_alarm(true).await;
            sleep(plan.lasts).await;
            rabbit.memory_alarm(false).await;
        }
        Kind::BrokerClose => rabbit.close_all_connections().await,
        Kind::BrokerReject => {
            let url = &stage.amqp_url;
            let definition = r#"{"max-length":1,"overflow":"reject-publish"}"#;
            rabbit
                .set_policy(url, "reject", &format!("^{QUEUE}$"), definition)
                .await;
            sleep(plan.lasts).await;
            rabbit.clear_policy(url, "reject").await;
        }
        Kind::QueueDelete => {
            stage.unbind().await;
            // What the queue still held would be lost with it, by the broker's hand: nothing could be said of it. Where
            // its consumer does not get it empty, only the binding was missing.
            if tokio::time::timeout(STOP_TIME, emptied(&stage)).await.is_ok() {
                rabbit.delete_queue(&stage.amqp_url, QUEUE).await;
            }
            sleep(plan.lasts).await;
            stage.declare().await;
        }
        Kind::DatabaseKill => {
            database.kill9().await;
            sleep(plan.lasts / 4).await;
            database.start_again().await;
        }
        Kind::DatabaseTerminate => database.close_connections().await,
        // Whoever has the table may be away as well, which ends the lock.
        Kind::DatabaseLock => drop(lock_table(&stage, plan.lasts).await),
        Kind::BrokerLineCut => {
            place.broker_line.refuse(true);
            place.broker_line.cut();
            sleep(plan.lasts).await;
            place.broker_line.refuse(false);
        }
        Kind::BrokerLineStall => {
            place.broker_line.stall();
            sleep(plan.lasts).await;
            place.broker_line.resume();
        }
        Kind::BrokerLineReset => place.broker_line.reset(),
        Kind::DatabaseLineCut => {
            place.database_line.refuse(true);
            place.database_line.cut();
            sleep(plan.lasts).await;
            place.database_line.refuse(false);
        }
        Kind::DatabaseLineStall => {
            place.database_line.stall();
            sleep(plan.lasts).await;
            place.database_line.resume();
        }
        Kind::DatabaseLineReset => place.database_line.reset(),
        Kind::MachinePause => {}
    }
    record.ended(number);
}

/// Ends when the queue has been empty for a second: a message that was routed before may still be on its way to it.
async fn emptied(stage: &Stage) {
    let mut empty_since = None;
    while empty_since.is_none_or(|since: Instant| since.elapsed() < Duration::from_secs(1)) {
        match stage.rabbit.messages_in(&stage.amqp_url, QUEUE).await {
            Some(0) => drop(empty_since.get_or_insert_with(Instant::now)),
            _ => empty_since = None,
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Ends the relay of a place and starts another there.
async fn replace(stage: &Stage, place: &Place, pause: Duration, cleanly: bool) -> Option<std::process::ExitStatus> {
    let mut slot = place.relay.lock().await;
    let mut relay = slot.take()?;
    if cleanly {
        relay.sigterm();
    } else {
        relay.kill9();
    }
    let status = relay.wait(STOP_TIME).await;
    stage.ended(place, &relay);
    sleep(pause).await;
    *slot = Some(stage.spawn(place));
    Some(status)
}

async fn lock_table(stage: &Stage, lasts: Duration) -> Result<(), sqlx::Error> {
    let mut session = Session::connect(&stage.application_url, "chaos-ddl").await?;
    session.lock_table(lasts).await
}
