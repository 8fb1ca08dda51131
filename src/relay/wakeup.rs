//! The task that listens while the relay sleeps.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::metrics::Metrics;
use crate::store::{Store, StoreError, Wakeups};

use super::Event;

/// How often it is looked whether there is a wake-up, where there was none.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// How long after an error another try is made.
const RETRY: Duration = Duration::from_secs(5);

/// How soon the writers are asked again where the first try fails; the pause doubles up to [`RETRY`]. Mostly an insert is
/// under way, which ends soon; or another relay has asked them, which wakes up some time.
const FIRST_RETRY: Duration = Duration::from_millis(100);

/// After so many wake-ups that brought no rows the relay sleeps without for [`REST`]: the rows are another's, which is
/// awake, and all writers wait for each other to tell of them.
const FRUITLESS: u32 = 10;
const REST: Duration = Duration::from_secs(5);

/// Only those in quick succession count: seldom ones cost little.
const QUICK: Duration = Duration::from_secs(1);

/// Until the relay ends. Whatever fails here, polling goes on.
pub(super) async fn run(
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    mut asleep: watch::Receiver<bool>,
    events: mpsc::Sender<Event>,
) {
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
                match listen(ear, &metrics, &mut asleep, &events).await {
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
    metrics: &Metrics,
    asleep: &mut watch::Receiver<bool>,
    events: &mpsc::Sender<Event>,
) -> Result<(), StoreError> {
    let looks = || (metrics.polls("rows"), metrics.polls("empty"));
    loop {
        // What others are told of comes here as well. If nobody took it, it would pile up in the database server, whose
        // writers fail once 8 GB of it wait.
        while !*asleep.borrow_and_update() {
            tokio::select! {
                told = ear.told() => told?,
                changed = asleep.changed() => if changed.is_err() {
                    return Ok(());
                },
            }
        }
        let mut asking = Asking::new(looks(), Instant::now());
        asking.tried(ear.arm().await?, Instant::now());
        // What was committed until now was not told.
        let mut told = true;
        while *asleep.borrow_and_update() {
            if told && events.send(Event::Inserted).await.is_err() {
                return Ok(());
            }
            told = tokio::select! {
                told = ear.told() => {
                    told?;
                    if asking.told(looks(), Instant::now()) {
                        ear.disarm().await?;
                    }
                    true
                }
                changed = asleep.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    false
                }
                () = tokio::time::sleep_until(asking.next), if !asking.armed => {
                    asking.tried(ear.arm().await?, Instant::now());
                    asking.armed
                }
            };
        }
        if asking.armed {
            ear.disarm().await?;
        }
    }
}

/// Of one sleep: whether the writers are asked to tell, and when to ask them again.
struct Asking {
    armed: bool,
    /// The next try.
    next: Instant,
    /// Between the next try and the one after it.
    pause: Duration,
    /// Wake-ups that brought nothing, one after the other.
    fruitless: u32,
    /// At the last wake-up: when it was, and how many looks had found rows, and none.
    woken: Instant,
    looks: (u64, u64),
}

impl Asking {
    fn new(looks: (u64, u64), now: Instant) -> Self {
        Self {
            armed: false,
            next: now,
            pause: FIRST_RETRY,
            fruitless: 0,
            woken: now,
            looks,
        }
    }

    /// The writers were asked; false: they could not be.
    fn tried(&mut self, armed: bool, now: Instant) {
        self.armed = armed;
        self.fruitless = 0;
        self.next = now + self.pause;
        self.pause = (self.pause * 2).min(RETRY);
    }

    /// A wake-up. True: the writers are not to tell any more.
    fn told(&mut self, looks: (u64, u64), now: Instant) -> bool {
        let quick = now - std::mem::replace(&mut self.woken, now) < QUICK;
        let before = std::mem::replace(&mut self.looks, looks);
        let rests = self.fruitless == FRUITLESS;
        if !self.armed {
            // Another relay had asked them, and may be awake in a moment.
            if !rests {
                self.pause = FIRST_RETRY;
                self.next = self.next.min(now + FIRST_RETRY);
            }
            return false;
        }
        if looks.0 > before.0 || !quick {
            self.fruitless = 0;
        } else if looks.1 > before.1 {
            self.fruitless += 1;
        }
        let enough = self.fruitless == FRUITLESS;
        if enough {
            self.armed = false;
            self.pause = FIRST_RETRY;
            self.next = now + REST;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    #[test]
    fn the_writers_are_asked_again_soon_and_then_less_and_less_often() {
        let mut now = Instant::now();
        let mut asking = Asking::new((0, 0), now);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            asking.tried(false, now);
            pauses.push((asking.next - now).as_millis());
            now = asking.next;
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
        asking.tried(false, now);
        asking.told((0, 0), now);
        assert_eq!(asking.next - now, FIRST_RETRY, "who had asked them is awake, perhaps");
        let next = asking.next;
        asking.told((0, 1), now + MOMENT);
        assert_eq!(asking.next, next, "it is not put off by what is told meanwhile");
    }

    #[test]
    fn a_relay_that_is_woken_for_nothing_again_and_again_sleeps_without() {
        let mut now = Instant::now();
        let mut asking = Asking::new((0, 0), now);
        asking.tried(true, now);
        for empty in 1..10 {
            assert!(!asking.told((0, empty), now), "{empty} looks");
            assert!(!asking.told((0, empty), now), "no look has ended since");
        }
        assert!(asking.told((0, 10), now), "the tenth");
        assert!(!asking.armed);
        assert_eq!(asking.next - now, REST);
        asking.told((0, 11), now);
        assert_eq!(asking.next - now, REST, "and others do not shorten it");
        now = asking.next;
        asking.tried(true, now);
        assert!(asking.armed);
        assert!(!asking.told((0, 12), now), "counted anew");
    }

    #[test]
    fn wake_ups_that_are_seldom_or_bring_rows_go_on() {
        for (rows, after) in [(0, QUICK), (1, MOMENT)] {
            let mut now = Instant::now();
            let mut asking = Asking::new((0, 0), now);
            asking.tried(true, now);
            for n in 1..100 {
                now += after;
                assert!(!asking.told((n * rows, n), now));
            }
            assert!(asking.armed);
        }
    }

    /// Hears what is sent to it.
    struct Fake(mpsc::Receiver<()>);

    #[async_trait]
    impl Wakeups for Fake {
        async fn arm(&mut self) -> Result<bool, StoreError> {
            Ok(true)
        }

        async fn disarm(&mut self) -> Result<(), StoreError> {
            Ok(())
        }

        async fn told(&mut self) -> Result<(), StoreError> {
            let lost = || StoreError::Unavailable("lost".to_owned());
            self.0.recv().await.ok_or_else(lost)
        }
    }

    #[tokio::test]
    async fn what_is_told_while_awake_is_taken_and_wakes_nobody() {
        let (tell, ear) = mpsc::channel(1);
        let (sleep, mut asleep) = watch::channel(false);
        let (events, mut inbox) = mpsc::channel(8);
        let listening = tokio::spawn(async move {
            let ear = Box::new(Fake(ear));
            listen(ear, &Metrics::new(), &mut asleep, &events).await
        });
        let told = async {
            for _ in 0..100 {
                tell.send(()).await.expect("it listens");
            }
        };
        tokio::time::timeout(Duration::from_secs(20), told)
            .await
            .expect("the ear is read");
        assert!(inbox.try_recv().is_err());
        sleep.send(true).expect("it listens");
        assert!(matches!(inbox.recv().await, Some(Event::Inserted)));
        tell.send(()).await.expect("it listens");
        assert!(matches!(inbox.recv().await, Some(Event::Inserted)));
        drop(sleep);
        assert!(matches!(listening.await, Ok(Ok(()))));
    }
}
