//! Looks on: at the consumer, the processes, the database's locks and transactions, the leases.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::RwLock;
use tokio::time::{sleep, timeout};

use crate::database::Session;
use crate::faults::Record;
use crate::ledger::Ledger;
use crate::stage::Stage;
use crate::support::Consumer;

/// How often the database is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// How exact the times of arrivals are.
const TICK: Duration = Duration::from_millis(10);

/// When this process did not run for so long, the relays may not have run either.
const PAUSE: Duration = Duration::from_secs(1);

/// Once everything is healed, and nobody writes any more, everything is sent within this time.
const DRAIN: Duration = Duration::from_secs(60);

/// Seen from the outside.
#[derive(Default)]
pub(crate) struct Seen {
    /// No arrival, with rows waiting and nothing wrong.
    pub(crate) longest_stall: Duration,
    /// The longest time from the end of the last fault to nothing that waits.
    pub(crate) longest_drain: Duration,
    pub(crate) quiet_points: usize,
    pub(crate) looks: usize,
    /// Shares that went from one owner to the next without being given back.
    pub(crate) take_overs: usize,
    /// Shares that were free, and got an owner.
    pub(crate) taken: usize,
}

#[derive(Clone)]
pub(crate) struct Watcher {
    pub(crate) stage: Arc<Stage>,
    pub(crate) record: Record,
    pub(crate) ledger: Ledger,
    pub(crate) seen: Arc<std::sync::Mutex<Seen>>,
}

impl Watcher {
    /// Takes what arrives, and notices when nothing does.
    pub(crate) async fn watch_arrivals(self, consumer: Consumer) {
        let mut before = self.record.now();
        // Since when something should arrive, and the end of the fault of which all is made up for.
        let (mut expected, mut drained) = (None, None);
        loop {
            sleep(TICK).await;
            let now = self.record.now();
            if now.saturating_sub(before) > PAUSE {
                self.record.machine_paused(before);
            }
            before = now;
            for message in consumer.take() {
                self.ledger.arrived(&message);
            }
            let healthy = self.record.healthy_since();
            let book = self.ledger.book();
            expected = match healthy {
                Some(_) if !book.pending.is_empty() => expected.or(Some(now)),
                _ => None,
            };
            let (last, empty) = (book.last_arrival, book.pending.is_empty());
            drop(book);
            if let Some(healed) = healthy.filter(|_| empty && healthy != drained) {
                drained = healthy;
                let mut seen = self.seen();
                seen.longest_drain = seen.longest_drain.max(now.saturating_sub(healed));
            }
            if let Some(expected) = expected {
                let mut seen = self.seen();
                seen.longest_stall = seen.longest_stall.max(now.saturating_sub(last.max(expected)));
            }
        }
    }

    /// Notices what must not be in the database, and relays that end by themselves.
    pub(crate) async fn watch_database(self) {
        let (mut shares, mut idle) = (HashMap::new(), HashSet::new());
        loop {
            if let Ok(Ok(mut session)) = timeout(5 * PAUSE, self.connect()).await {
                // Until the server is killed, or the connection is.
                while let Ok(Ok(())) = timeout(5 * PAUSE, self.look(&mut session, &mut idle, &mut shares)).await {
                    self.seen().looks += 1;
                    self.look_at_processes();
                    sleep(LOOK).await;
                }
            }
            self.look_at_processes();
            sleep(LOOK).await;
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().expect("no panic while locked")
    }

    fn look_at_processes(&self) {
        for (number, place) in self.stage.places.iter().enumerate() {
            // Locked: somebody is ending it.
            let Ok(relay) = place.relay.try_lock() else { continue };
            if let Some(relay) = relay.as_ref().filter(|relay| relay.has_ended()) {
                let log = relay.log_text();
                let end: Vec<&str> = log.lines().rev().take(5).collect();
                self.ledger
                    .violation(format!("relay {number} ended by itself: {end:#?}"));
            }
        }
    }

    async fn connect(&self) -> Result<Session, sqlx::Error> {
        Session::connect(&self.stage.application_url, "chaos-watcher").await
    }

    async fn look(
        &self,
        session: &mut Session,
        idle: &mut HashSet<String>,
        shares: &mut Shares,
    ) -> Result<(), sqlx::Error> {
        let idle = session.idle_transactions(idle).await?;
        if !idle.is_empty() {
            self.ledger
                .violation(format!("a transaction of a relay is left open: {idle:?}"));
        }
        let blocked = session.blocked_writers().await?;
        if !blocked.is_empty() {
            self.ledger
                .violation(format!("a writer waits for a lock of a relay: {blocked:?}"));
        }
        let rows = session.shares().await?;
        for (layout, share, owner, epoch) in rows {
            self.judge_share(shares, (layout, share), owner, epoch);
        }
        Ok(())
    }

    fn judge_share(&self, shares: &mut Shares, share: (i32, i32), owner: Option<String>, epoch: i64) {
        let (before, epoch_before) = shares.insert(share, (owner.clone(), epoch)).unwrap_or((None, 0));
        let changed = owner.is_some() && owner != before;
        if epoch < epoch_before || (changed && epoch <= epoch_before) {
            let change = format!("{before:?} at {epoch_before} to {owner:?} at {epoch}");
            self.ledger
                .violation(format!("an epoch does not grow: share {share:?} from {change}"));
        }
        if changed {
            let mut seen = self.seen();
            match before {
                Some(_) => seen.take_overs += 1,
                None => seen.taken += 1,
            }
        }
    }

    /// Lets everything heal while nobody writes, and compares the table with the ledger.
    pub(crate) async fn quiet_point(&self, gate: &RwLock<()>) {
        let _nobody_writes = gate.write().await;
        let since = self.record.now();
        let mut state = String::from("the database does not answer");
        while self.record.now() < since + DRAIN {
            if let Ok(Ok(counts)) = timeout(5 * PAUSE, self.count()).await {
                state = match self.compare(counts) {
                    Ok(()) => {
                        self.seen().quiet_points += 1;
                        return;
                    }
                    Err(state) => state,
                };
            }
            if !self.ledger.book().violations.is_empty() {
                return;
            }
            sleep(10 * TICK).await;
        }
        self.ledger.violation(format!("not drained within {DRAIN:?}: {state}"));
        self.explain_pending().await;
    }

    async fn count(&self) -> Result<[i64; 4], sqlx::Error> {
        self.connect().await?.count().await
    }

    fn compare(&self, [all, unsent, dead, tried]: [i64; 4]) -> Result<(), String> {
        if dead > 0 || tried > 0 {
            self.ledger.violation(format!(
                "{dead} dead letters, {tried} rows with attempts for another reason than a missing queue: outages are none"
            ));
        }
        let book = self.ledger.book();
        if book.pending.is_empty() && unsent == 0 && usize::try_from(all) == Ok(book.committed) {
            return Ok(());
        }
        Err(format!(
            "{} of {} committed rows have not arrived; the table has {all} rows, {unsent} of them unsent",
            book.pending.len(),
            book.committed
        ))
    }

    /// What the table says of rows that have not arrived.
    async fn explain_pending(&self) {
        let pending: Vec<uuid::Uuid> = self.ledger.book().pending.iter().copied().take(5).collect();
        let Ok(mut session) = self.connect().await else {
            return;
        };
        for message_id in pending {
            let row = session.describe(message_id).await;
            let now = self.record.now();
            let text = format!("committed, and has not arrived: {row:?}");
            self.ledger.book().violation_of(now, &text, message_id);
        }
    }
}

/// Owner and epoch.
type Shares = HashMap<(i32, i32), (Option<String>, i64)>;
