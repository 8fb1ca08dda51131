//! What systemd is told by a service of `Type=notify`; nothing where it did not ask (no `NOTIFY_SOCKET`).
//!
//! The protocol's variables (`NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`) are systemd's, not settings of the relay:
//! the crate reads them.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::MissedTickBehavior;
use tracing::warn;

use crate::health::Health;

/// The configuration was read and the listener is bound: what depends on the relay may start.
pub async fn ready() {
    tell(NotifyState::Ready).await;
}

/// The relay was asked to stop, by whomever.
pub async fn stopping() {
    tell(NotifyState::Stopping).await;
}

/// Answers the watchdog (`WatchdogSec=`) for as long as the relay's loop turns; ends at once where there is none.
///
/// It says what `/livez` says: an outage of database or broker lets nobody restart the relay.
pub async fn answer_watchdog(health: Arc<Health>) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    // Twice within the limit, as sd_watchdog_enabled(3) asks for; at least something, as a clock must not stand still.
    let mut clock = tokio::time::interval((limit / 2).max(Duration::from_millis(1)));
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        if health.is_alive() {
            tell(NotifyState::Watchdog).await;
        }
    }
}

/// On a thread of its own: a datagram to a systemd that does not read would hold up the relay.
async fn tell(state: NotifyState<'static>) {
    let told = tokio::task::spawn_blocking(move || sd_notify::notify(&[state])).await;
    if let Ok(Err(error)) = told {
        warn!(%error, "systemd could not be told of the relay's state (NOTIFY_SOCKET)");
    }
}
