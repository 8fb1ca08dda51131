//! Logins that the server refuses are tried again after growing pauses, however many calls ask for a connection meanwhile:
//! servers lock accounts, and hosts, that fail too often.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::StoreError;
use super::secure::cut_off;
use super::slot::Verdict;
use crate::config::Tls;

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What is known of the last refusals, by name and password or by a certificate of either side.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<Option<Refused>>);

#[derive(Debug)]
struct Refused {
    text: String,
    tries: u32,
    /// Nobody tries before.
    until: Instant,
}

impl Refusals {
    /// To be called before a connection is opened. Once a pause is over, one call is let through and begins the next one.
    ///
    /// # Errors
    /// The last refusal, while it is too early.
    pub(super) fn wait_over(&self) -> Result<(), StoreError> {
        self.wait_over_at(Instant::now())
    }

    fn wait_over_at(&self, now: Instant) -> Result<(), StoreError> {
        match &mut *self.lock() {
            None => Ok(()),
            Some(refused) if now < refused.until => Err(StoreError::Unavailable(refused.text.clone())),
            Some(refused) => {
                refused.tries = refused.tries.saturating_add(1);
                refused.until = now + pause(refused.tries);
                Ok(())
            }
        }
    }

    /// What is to be made of an attempt to connect; `classify` knows the database's errors.
    ///
    /// # Errors
    /// Why no connection was made.
    pub(super) fn judged<C>(
        &self,
        attempt: Result<C, sqlx::Error>,
        tls: &Tls,
        classify: impl FnOnce(&sqlx::Error) -> Verdict,
    ) -> Result<C, StoreError> {
        match attempt {
            Ok(connection) => {
                self.forget();
                Ok(connection)
            }
            Err(error) => {
                let verdict = cut_off(&error, tls).unwrap_or_else(|| classify(&error));
                if let (true, StoreError::Unavailable(text)) = (verdict.refused, &verdict.error) {
                    self.note_at(text.clone(), Instant::now());
                }
                Err(verdict.error)
            }
        }
    }

    fn note_at(&self, text: String, now: Instant) {
        let mut last = self.lock();
        let tries = last.as_ref().map_or(1, |refused| refused.tries);
        // Of several that were opened together, or after a slow attempt.
        let until = last
            .as_ref()
            .map_or(now, |refused| refused.until)
            .max(now + pause(tries));
        *last = Some(Refused { text, tries, until });
    }

    fn forget(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Refused>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Jittered: replicas that were refused together come one after the other.
fn pause(tries: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << (tries - 1).min(8));
    doubled.min(LONGEST_PAUSE).mul_f64(0.8 + 0.2 * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_logins_are_few_however_many_calls_ask() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        for _ in 0..4 {
            assert!(refusals.wait_over_at(start).is_ok(), "the first ones come together");
        }
        for _ in 0..4 {
            refusals.note_at("login refused".to_owned(), start);
        }
        let mut attempts = Vec::new();
        for milliseconds in 1..=60_000 {
            let now = start + Duration::from_millis(milliseconds);
            for _ in 0..4 {
                match refusals.wait_over_at(now) {
                    Ok(()) => {
                        attempts.push(milliseconds);
                        refusals.note_at("login refused".to_owned(), now);
                    }
                    Err(error) => assert!(error.to_string().contains("login refused"), "{error}"),
                }
            }
        }
        assert!(attempts[0] <= 500, "{attempts:?}");
        assert!((12..=20).contains(&attempts.len()), "{attempts:?}");
        let longest = attempts.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert!(longest.is_some_and(|longest| longest <= 5_000), "{attempts:?}");
        refusals.forget();
        let end = start + Duration::from_secs(60);
        assert!(refusals.wait_over_at(end).is_ok() && refusals.wait_over_at(end).is_ok());
    }
}
