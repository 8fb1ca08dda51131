//! What the relay knows of its own state, for `/livez`, `/readyz` and `status`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::store::Pause;

/// The loop turns at least once a second; one that has not for this long is stuck.
const STUCK: Duration = Duration::from_secs(30);

/// Why something does not work that was not tried yet.
pub const UNKNOWN: &str = "not connected yet";

/// Shared by the parts that know and the endpoints that tell.
pub struct Health {
    started: Instant,
    turned_ms: AtomicU64,
    /// This relay's name among those of its outbox.
    pub member: OnceLock<String>,
    /// The database, as the reader sees it.
    pub database: Part,
    /// The leases in the database.
    pub leases: Part,
    /// The broker.
    pub broker: Part,
    /// The purge of sent rows: behind, or failing.
    pub purge: Part,
    pauses: Mutex<Option<Vec<Pause>>>,
}

/// Something the relay depends on.
pub struct Part(Mutex<Result<(), String>>);

impl Part {
    fn new() -> Self {
        Self(Mutex::new(Err(UNKNOWN.to_owned())))
    }

    /// It works.
    pub fn up(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Ok(());
    }

    /// It does not work; the reason holds no secret.
    pub fn down(&self, reason: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Err(reason.to_owned());
    }

    /// Whether it works, or why not.
    pub fn state(&self) -> Result<(), String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Health {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            turned_ms: AtomicU64::new(0),
            member: OnceLock::new(),
            database: Part::new(),
            leases: Part::new(),
            broker: Part::new(),
            purge: Part::new(),
            pauses: Mutex::default(),
        }
    }

    /// Whether the database works, or why not. A relay that stands by reads no rows: then only the leases tell.
    pub fn database(&self) -> Result<(), String> {
        self.leases.state()?;
        // First what tells the cause, if anything does.
        self.database
            .state()
            .or_else(|reason| if reason == UNKNOWN { Ok(()) } else { Err(reason) })?;
        match self.pauses() {
            Some(_) => Ok(()),
            None => Err("what is paused is not known yet".to_owned()),
        }
    }

    /// Why sent rows stay that are older than the retention, if they do.
    pub fn purge_problem(&self) -> Option<String> {
        self.purge.state().err().filter(|reason| reason != UNKNOWN)
    }

    /// What people have paused; `None`: not known yet.
    pub fn pauses(&self) -> Option<Vec<Pause>> {
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// People have paused this, and nothing else.
    pub fn set_pauses(&self, pauses: Vec<Pause>) {
        *self.pauses.lock().unwrap_or_else(PoisonError::into_inner) = Some(pauses);
    }

    /// Since the relay started.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// The relay's loop turned.
    pub fn turned(&self) {
        let ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.turned_ms.store(ms, Ordering::Relaxed);
    }

    /// Whether the loop still turns.
    pub fn is_alive(&self) -> bool {
        let turned = Duration::from_millis(self.turned_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(turned) < STUCK
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_told_before_what_follows_from_it() {
        let health = Health::new();
        health.leases.up();
        assert_eq!(health.database(), Err("what is paused is not known yet".to_owned()));
        health.database.down("refused");
        assert_eq!(health.database(), Err("refused".to_owned()));
        health.database.up();
        health.set_pauses(Vec::new());
        assert_eq!(health.database(), Ok(()));
    }
}
