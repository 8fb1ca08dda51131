//! A wake-up: rows that are inserted while a relay sleeps are told to it, instead of found by its next poll.
//!
//! A hint and no more: whatever is not told is found by polling.

use async_trait::async_trait;

use super::StoreError;

/// One relay's ear, on a connection of its own. After an error it is of no more use.
#[async_trait]
pub trait Wakeups: Send {
    /// Asks writers to tell of each insert from now on. `false`: they could not be asked, as another relay has asked them
    /// already, whose telling is heard here too, or as a transaction with an insert is open, and nobody tells anything.
    async fn arm(&mut self) -> Result<bool, StoreError>;

    /// Writers need not tell any more, which costs them less.
    async fn disarm(&mut self) -> Result<(), StoreError>;

    /// Until something was inserted. May be given up at any time.
    async fn told(&mut self) -> Result<(), StoreError>;
}
