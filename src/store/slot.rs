//! One named connection: opened when it is needed, and never used again after a doubt.
//!
//! There is no pool. The relay needs a fixed few connections for the whole of its life, and a pool's check before each
//! use costs as much as a query. Neither driver can cancel a query, so that a connection whose query was given up
//! (timeout, caller gone) may still receive the answer to it: it is closed.

use std::future::Future;
use std::time::Duration;

use sqlx::Connection;
use tokio::sync::{Mutex, MutexGuard};

use super::StoreError;

/// How long a polite goodbye may take; after it the socket is simply closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A failed call: what the caller is told, and whether the connection may serve another.
pub(super) struct Verdict {
    pub(super) error: StoreError,
    pub(super) keep_connection: bool,
    /// The server does not take who comes, or the relay does not trust the server: a person must act.
    pub(super) refused: bool,
}

impl Verdict {
    /// The connection is as good as before.
    pub(super) fn kept(error: StoreError) -> Self {
        Self {
            error,
            keep_connection: true,
            refused: false,
        }
    }

    /// The next call gets a new connection.
    pub(super) fn closed(error: StoreError) -> Self {
        Self {
            error,
            keep_connection: false,
            refused: false,
        }
    }

    /// The next call gets a new connection, once [`super::refusals`] has let pass some time.
    pub(super) fn refused(text: String) -> Self {
        Self {
            refused: true,
            ..Self::closed(StoreError::Unavailable(text))
        }
    }
}

/// A place for one connection.
#[derive(Debug)]
pub(super) struct Slot<C> {
    connection: Mutex<Option<C>>,
}

/// The connection while a call uses it. Dropped without [`Lease::keep`], it is closed: this is what happens when the
/// call fails badly, times out, or is given up by its caller.
struct Lease<'slot, C> {
    home: MutexGuard<'slot, Option<C>>,
    connection: C,
}

impl<C: Connection> Slot<C> {
    pub(super) fn new() -> Self {
        Self {
            connection: Mutex::new(None),
        }
    }

    /// Takes the connection, or makes one with `open`. Waits while another call has it.
    async fn lease(&self, open: impl Future<Output = Result<C, StoreError>>) -> Result<Lease<'_, C>, StoreError> {
        let mut home = self.connection.lock().await;
        let connection = match home.take() {
            Some(connection) => connection,
            // On the heap: connecting is rare and its future large.
            None => Box::pin(open).await?,
        };
        Ok(Lease { home, connection })
    }

    /// One piece of work on the connection, bounded, with everything that can go wrong with it sorted by `classify`.
    pub(super) async fn call<T>(
        &self,
        bound: Duration,
        open: impl Future<Output = Result<C, StoreError>>,
        classify: fn(&sqlx::Error) -> Verdict,
        work: impl AsyncFnOnce(&mut C) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        within(bound, async {
            let mut lease = self.lease(open).await?;
            match work(lease.connection()).await {
                Ok(answer) => {
                    lease.keep();
                    Ok(answer)
                }
                Err(error) => {
                    let verdict = classify(&error);
                    if verdict.keep_connection {
                        lease.keep();
                    }
                    Err(verdict.error)
                }
            }
        })
        .await
    }

    /// Says goodbye to the server, if that is quick.
    pub(super) async fn close(&self) {
        let goodbye = async {
            if let Some(connection) = self.connection.lock().await.take() {
                // The connection is gone either way.
                let _ = connection.close().await;
            }
        };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, goodbye).await;
    }
}

impl<C> Lease<'_, C> {
    fn connection(&mut self) -> &mut C {
        &mut self.connection
    }

    /// Puts the connection back for the next call.
    fn keep(mut self) {
        *self.home = Some(self.connection);
    }
}

/// Bounds one call.
pub(super) async fn within<T>(
    bound: Duration,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(bound, work).await {
        Ok(answer) => answer,
        Err(_) => Err(StoreError::Unavailable(format!("no answer within {bound:?}"))),
    }
}
