//! The task that listens while the relay sleeps.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::store::{Store, StoreError, Wakeups};

use super::Event;

/// How often it is looked whether there is a wake-up, where there was none.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// How long after an error another try is made; and how often the writers are asked again where another relay has asked
/// them, which may go.
const RETRY: Duration = Duration::from_secs(5);

/// Until the relay ends. Whatever fails here, polling goes on.
pub(super) async fn run(store: Arc<dyn Store>, mut asleep: watch::Receiver<bool>, events: mpsc::Sender<Event>) {
    let mut said = None;
    loop {
        let mut pause = RETRY;
        let reason = match store.wakeups().await {
            Ok(None) => {
                pause = LOOK_INTERVAL;
                None
            }
            Ok(Some(ear)) => {
                info!("listening for inserts while asleep");
                said = None;
                match listen(ear, &mut asleep, &events).await {
                    Ok(()) => return,
                    Err(error) => Some(error.to_string()),
                }
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(reason) = reason
            && said.as_ref() != Some(&reason)
        {
            warn!(
                reason,
                "the wake-up does not work, rows are found by polling only; trying again"
            );
            said = Some(reason);
        }
        tokio::time::sleep(pause).await;
    }
}

/// `Ok` when the relay ends.
async fn listen(
    mut ear: Box<dyn Wakeups>,
    asleep: &mut watch::Receiver<bool>,
    events: &mpsc::Sender<Event>,
) -> Result<(), StoreError> {
    loop {
        if asleep.wait_for(|asleep| *asleep).await.is_err() {
            return Ok(());
        }
        let mut armed = ear.arm().await?;
        // What was committed until now was not told.
        let mut told = true;
        while *asleep.borrow() {
            if told && events.send(Event::Inserted).await.is_err() {
                return Ok(());
            }
            told = tokio::select! {
                told = ear.told() => {
                    told?;
                    true
                }
                changed = asleep.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    false
                }
                () = tokio::time::sleep(RETRY), if !armed => {
                    armed = ear.arm().await?;
                    armed
                }
            };
        }
        if armed {
            ear.disarm().await?;
        }
    }
}
