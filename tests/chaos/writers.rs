//! The application: several writers, each with its own habits. What a writer does is drawn from its own seed, before it
//! is tried: the faults change only how it ends.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tokio::sync::RwLock;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::database::{NewRow, Session, WRITER};
use crate::ledger::{Fate, Ledger};
use crate::stage::ROUTING_KEY;

#[derive(Clone, Copy, Debug)]
enum Habit {
    /// Few keys, many rows each.
    Hot,
    /// Many keys and rows without one, now and then many rows at once.
    Cold,
    /// Commits seconds after its inserts.
    Late,
    /// Holds a transaction open for a minute.
    Long,
}

const WRITERS: [Habit; 7] = [
    Habit::Hot,
    Habit::Hot,
    Habit::Cold,
    Habit::Cold,
    Habit::Late,
    Habit::Late,
    Habit::Long,
];

/// What a writer is about to do.
struct Draft {
    rows: Vec<(Option<u32>, Uuid, usize)>,
    /// Before the end of the transaction.
    hold: Duration,
    roll_back: bool,
    /// Afterwards.
    rest: Duration,
}

struct Writer {
    number: i32,
    habit: Habit,
    rng: Rng,
    longest_hold: Duration,
    database_url: String,
    ledger: Ledger,
    /// Held for reading during a transaction; whoever holds it for writing has the writers stand still.
    gate: Arc<RwLock<()>>,
}

/// Starts all writers; they end when the set is dropped.
pub(crate) fn start(
    seed: u64,
    database_url: &str,
    longest_hold: Duration,
    ledger: &Ledger,
    gate: &Arc<RwLock<()>>,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for (number, habit) in (1..).zip(WRITERS) {
        let writer = Writer {
            number,
            habit,
            // Far from the seeds of the faults.
            rng: Rng::with_seed(seed ^ (0x5eed << 32) ^ number as u64),
            longest_hold,
            database_url: database_url.to_owned(),
            ledger: ledger.clone(),
            gate: gate.clone(),
        };
        tasks.spawn(writer.run());
    }
    tasks
}

impl Writer {
    async fn run(mut self) {
        let mut connection = None;
        loop {
            let draft = self.draft();
            let gate = self.gate.clone();
            // One that is open for a minute goes on whatever the others do.
            let _open = match self.habit {
                Habit::Long => None,
                _ => Some(gate.read().await),
            };
            let mut session = match connection.take() {
                Some(session) => session,
                None => self.connect().await,
            };
            if self.transaction(&mut session, &draft).await.is_ok() {
                connection = Some(session);
            }
            drop(_open);
            tokio::time::sleep(draft.rest).await;
        }
    }

    fn draft(&mut self) -> Draft {
        let rng = &mut self.rng;
        let count = match self.habit {
            Habit::Hot => rng.usize(1..=5),
            Habit::Cold if rng.u8(0..100) == 0 => 300,
            Habit::Cold => rng.usize(1..=10),
            Habit::Late | Habit::Long => rng.usize(1..=4),
        };
        let mut rows = Vec::with_capacity(count);
        for _ in 0..count {
            let key = match self.habit {
                Habit::Hot => Some(rng.u32(0..4)),
                Habit::Cold => (rng.u8(0..10) > 2).then(|| rng.u32(100..600)),
                // Now and then it keeps the others from a hot key.
                Habit::Late if rng.u8(0..20) == 0 => Some(rng.u32(0..4)),
                Habit::Late => (rng.u8(0..10) > 1).then(|| rng.u32(20..40)),
                Habit::Long => Some(rng.u32(50..53)),
            };
            let message_id = uuid::Builder::from_random_bytes(rng.u128(..).to_be_bytes()).into_uuid();
            rows.push((key, message_id, rng.usize(0..300)));
        }
        let millis = Duration::from_millis;
        let (hold, rest) = match self.habit {
            Habit::Hot | Habit::Cold => (millis(rng.u64(0..10).pow(2) / 4), millis(rng.u64(40..160))),
            Habit::Late => (millis(rng.u64(200..5_000)), millis(rng.u64(0..500))),
            Habit::Long => (self.longest_hold, self.longest_hold / 3),
        };
        Draft {
            rows,
            hold,
            roll_back: rng.u8(0..100) < 8,
            rest,
        }
    }

    async fn connect(&self) -> Session {
        loop {
            match Session::connect(&self.database_url, WRITER).await {
                Ok(connection) => return connection,
                Err(_away) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// An error means that the connection is of no more use; the ledger knows how the transaction ended.
    async fn transaction(&self, session: &mut Session, draft: &Draft) -> Result<(), sqlx::Error> {
        let ids: Vec<Uuid> = draft.rows.iter().map(|(_, message_id, _)| *message_id).collect();
        let inserted = self.insert(session, draft).await;
        if inserted.is_err() || draft.roll_back {
            // Without a COMMIT nothing can be committed, however this ends.
            self.ledger.decided(&ids, Fate::RolledBack);
            inserted?;
            return session.run("ROLLBACK").await;
        }
        let committed = session.run("COMMIT").await;
        let fate = match committed {
            Ok(()) => Fate::Committed,
            Err(_) => self.ask(draft).await,
        };
        self.ledger.decided(&ids, fate);
        committed
    }

    async fn insert(&self, session: &mut Session, draft: &Draft) -> Result<(), sqlx::Error> {
        session.begin(self.number, &keys(draft)).await?;
        for (key, message_id, padding) in &draft.rows {
            let (n, payload) = self.ledger.write(*message_id, *key, *padding);
            let row = NewRow {
                message_id: *message_id,
                routing_key: ROUTING_KEY,
                ordering_key: key.map(|key| format!("k{key}")),
                headers: format!(r#"{{"writer": {}, "n": {n}, "hot": {}}}"#, self.number, n > 100),
                payload,
            };
            let id = session.insert(row).await?;
            self.ledger.inserted(*message_id, id);
        }
        tokio::time::sleep(draft.hold).await;
        Ok(())
    }

    /// The answer to a COMMIT was lost: whoever gets its locks finds it ended, one way or the other.
    async fn ask(&self, draft: &Draft) -> Fate {
        loop {
            let mut session = self.connect().await;
            let answer = async {
                session.begin(self.number, &keys(draft)).await?;
                session.has(draft.rows[0].1).await
            };
            match answer.await {
                Ok(true) => return Fate::Committed,
                Ok(false) => return Fate::RolledBack,
                Err(_away) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

/// In order.
fn keys(draft: &Draft) -> Vec<u32> {
    let mut keys: Vec<u32> = draft.rows.iter().filter_map(|(key, _, _)| *key).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}
