//! Keeps lapin's answer to the close of a channel behind the messages that were given to it before.
//!
//! When the broker closes a channel, lapin answers with a close-ok that overtakes what is not written yet: messages have the
//! lowest rank of all that waits for the socket, and those of a closed channel are not taken out (lapin 4.12.3, `frames.rs`
//! and `Channel::channel_close_ok`). To the broker a message behind the close-ok is one on a channel that was never
//! opened, and it closes the whole connection: `CHANNEL_ERROR - expected 'channel.open'`.
//!
//! That answer is given by a task of its own. So lapin gets an executor whose tasks begin when all that is being written
//! has been written. What is published later lapin refuses by itself, as the channel is closing by then.

use std::sync::Arc;

use async_rs::traits::Executor;
use async_rs::util::{RuntimeParts, Task};
use async_rs::{Runtime, Tokio};
use tokio::sync::{RwLock, RwLockReadGuard};

/// The messages that are being written to one connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Writing(Arc<RwLock<()>>);

/// A batch that is being written.
pub(super) type BeingWritten<'a> = RwLockReadGuard<'a, ()>;

impl Writing {
    /// To be held from before messages are given to lapin until it has written them, or the confirm timeout has passed.
    ///
    /// Whoever holds it must be polled. tokio's lock lets nobody past a writer: once a task of lapin waits for those that
    /// hold it, all other lanes wait here behind that task, and so for the slowest of those.
    pub(super) async fn begin(&self) -> BeingWritten<'_> {
        self.0.read().await
    }

    /// The runtime for lapin, which is the current one but for the wait.
    pub(super) fn runtime(&self) -> Runtime<RuntimeParts<AfterWriting, Tokio>> {
        let tokio = Tokio::current();
        let executor = AfterWriting {
            tokio: tokio.clone(),
            writing: self.clone(),
        };
        Runtime::new(RuntimeParts::new(executor, tokio))
    }
}

/// Begins its tasks when what was being written is written, or given up with the connection.
#[derive(Clone, Debug)]
pub(super) struct AfterWriting {
    tokio: Tokio,
    writing: Writing,
}

impl Executor for AfterWriting {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, future: F) -> T {
        self.tokio.block_on(future)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(&self, future: F) -> Task<Self::Task<T>> {
        let writing = self.writing.clone();
        self.tokio.spawn(async move {
            drop(writing.0.write().await);
            future.await
        })
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(&self, work: F) -> Task<Self::Task<T>> {
        self.tokio.spawn_blocking(work)
    }
}
