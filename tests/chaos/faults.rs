//! What goes wrong: the kinds, the sequence that a seed gives, and the record of what was done when.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use fastrand::Rng;

/// A copy that arrives so long after a fault may come from it: a lease runs out (3 s), a confirm is given up (5 s) and
/// the connection closed (5 s), a lost mark is found by the next sweep (5 s), with the pauses between tries.
const AFTERMATH: Duration = Duration::from_secs(15);

/// Faults at the same time.
const AT_ONCE: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    RelayKill,
    RelayFreeze,
    RelayTerm,
    BrokerKill,
    BrokerFreeze,
    BrokerStop,
    BrokerAlarm,
    BrokerClose,
    BrokerReject,
    QueueDelete,
    DatabaseKill,
    DatabaseTerminate,
    DatabaseLock,
    BrokerLineCut,
    BrokerLineStall,
    BrokerLineReset,
    DatabaseLineCut,
    DatabaseLineStall,
    DatabaseLineReset,
    /// Not drawn: this process itself did not run for a while, and nor did the others, as far as one can tell.
    MachinePause,
}

use Kind::*;

const DRAWN: [Kind; 19] = [
    RelayKill,
    RelayFreeze,
    RelayTerm,
    BrokerKill,
    BrokerFreeze,
    BrokerStop,
    BrokerAlarm,
    BrokerClose,
    BrokerReject,
    QueueDelete,
    DatabaseKill,
    DatabaseTerminate,
    DatabaseLock,
    BrokerLineCut,
    BrokerLineStall,
    BrokerLineReset,
    DatabaseLineCut,
    DatabaseLineStall,
    DatabaseLineReset,
];

/// Two faults of the same thing never overlap.
#[derive(PartialEq, Eq)]
enum Thing {
    Broker,
    Database,
    Relay(usize),
    BrokerLine(usize),
    DatabaseLine(usize),
    Machine,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            RelayKill => "relay kill -9",
            RelayFreeze => "relay frozen past its lease",
            RelayTerm => "relay SIGTERM",
            BrokerKill => "broker kill -9",
            BrokerFreeze => "broker frozen",
            BrokerStop => "broker stop_app",
            BrokerAlarm => "broker memory alarm",
            BrokerClose => "broker closes all connections",
            BrokerReject => "broker reject-publish policy",
            QueueDelete => "queue deleted and declared again",
            DatabaseKill => "database kill -9",
            DatabaseTerminate => "database closes all connections",
            DatabaseLock => "database table locked as by DDL",
            BrokerLineCut => "line to broker cut",
            BrokerLineStall => "line to broker stalled",
            BrokerLineReset => "line to broker reset",
            DatabaseLineCut => "line to database cut",
            DatabaseLineStall => "line to database stalled",
            DatabaseLineReset => "line to database reset",
            MachinePause => "machine paused",
        }
    }

    /// Whether messages may be published twice because of it: what was in flight or not yet marked may have been sent
    /// by somebody who cannot tell any more. A clean stop, a refusal, an alarm or a wait for the database is no reason.
    fn duplicates(self) -> bool {
        match self {
            RelayKill | RelayFreeze | BrokerKill | BrokerFreeze | BrokerStop | BrokerClose => true,
            BrokerLineCut | BrokerLineStall | BrokerLineReset => true,
            // Marks do not wait for the disk, and are lost with the server; a stalled line costs the lease.
            DatabaseKill | DatabaseLineStall | MachinePause => true,
            RelayTerm | BrokerAlarm | BrokerReject | QueueDelete => false,
            DatabaseTerminate | DatabaseLock | DatabaseLineCut | DatabaseLineReset => false,
        }
    }

    fn thing(self, relay: usize) -> Thing {
        match self {
            RelayKill | RelayFreeze | RelayTerm => Thing::Relay(relay),
            BrokerKill | BrokerFreeze | BrokerStop | BrokerAlarm | BrokerClose | BrokerReject | QueueDelete => {
                Thing::Broker
            }
            DatabaseKill | DatabaseTerminate | DatabaseLock => Thing::Database,
            BrokerLineCut | BrokerLineStall | BrokerLineReset => Thing::BrokerLine(relay),
            DatabaseLineCut | DatabaseLineStall | DatabaseLineReset => Thing::DatabaseLine(relay),
            MachinePause => Thing::Machine,
        }
    }

    /// How long it lasts, in milliseconds.
    fn lasts(self, rng: &mut Rng) -> u64 {
        match self {
            // Long enough for another relay to take the shares over, which are leased for 3 s.
            RelayFreeze | DatabaseLineStall => rng.u64(2_000..8_000),
            BrokerLineStall | BrokerFreeze => rng.u64(500..9_000),
            RelayKill | RelayTerm => rng.u64(0..5_000),
            BrokerLineCut | DatabaseLineCut => rng.u64(0..4_000),
            _ => rng.u64(200..4_000),
        }
    }
}

/// A fault to come.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) kind: Kind,
    /// Which relay, where the kind is about one.
    pub(crate) relay: usize,
    /// After the one before it began.
    pub(crate) gap: Duration,
    pub(crate) lasts: Duration,
}

/// The endless sequence of a seed.
pub(crate) struct Sequence {
    rng: Rng,
    kinds: Vec<Kind>,
    deck: Vec<Kind>,
    relays: usize,
}

impl Sequence {
    /// Of the kinds with this in their name.
    pub(crate) fn new(seed: u64, relays: usize, only: &str) -> Self {
        let kinds: Vec<Kind> = DRAWN.into_iter().filter(|kind| kind.name().contains(only)).collect();
        assert!(!kinds.is_empty(), "no fault is called {only:?}");
        Self {
            rng: Rng::with_seed(seed),
            kinds,
            deck: Vec::new(),
            relays,
        }
    }

    /// Like cards from a shuffled deck: each kind comes before any comes again.
    pub(crate) fn draw(&mut self) -> Planned {
        if self.deck.is_empty() {
            self.deck.clone_from(&self.kinds);
            self.rng.shuffle(&mut self.deck);
        }
        let kind = self.deck.pop().unwrap_or(RelayKill);
        Planned {
            kind,
            relay: self.rng.usize(0..self.relays),
            // Mostly soon, sometimes after a rest.
            gap: Duration::from_millis(self.rng.u64(200..2_000) * if self.rng.u8(0..5) == 0 { 4 } else { 1 }),
            lasts: Duration::from_millis(kind.lasts(&mut self.rng)),
        }
    }
}

/// A fault that began.
#[derive(Clone, Debug)]
pub(crate) struct Struck {
    pub(crate) kind: Kind,
    pub(crate) relay: usize,
    pub(crate) began: Duration,
    pub(crate) ended: Option<Duration>,
    duplicates: bool,
}

/// The record, and the clock of the run.
#[derive(Clone)]
pub(crate) struct Record {
    clock: Instant,
    faults: Arc<Mutex<Vec<Struck>>>,
}

impl Record {
    pub(crate) fn new() -> Self {
        Self {
            clock: Instant::now(),
            faults: Arc::default(),
        }
    }

    pub(crate) fn now(&self) -> Duration {
        self.clock.elapsed()
    }

    pub(crate) fn all(&self) -> MutexGuard<'_, Vec<Struck>> {
        self.faults.lock().expect("no panic while locked")
    }

    /// Whether the fault can begin now.
    pub(crate) fn has_room_for(&self, plan: &Planned) -> bool {
        let faults = self.all();
        let active: Vec<_> = faults.iter().filter(|fault| fault.ended.is_none()).collect();
        let thing = plan.kind.thing(plan.relay);
        active.len() < AT_ONCE && active.iter().all(|fault| fault.kind.thing(fault.relay) != thing)
    }

    /// Returns its number.
    pub(crate) fn began(&self, plan: &Planned) -> usize {
        let began = self.now();
        let mut faults = self.all();
        faults.push(Struck {
            kind: plan.kind,
            relay: plan.relay,
            began,
            ended: None,
            duplicates: plan.kind.duplicates(),
        });
        faults.len() - 1
    }

    pub(crate) fn ended(&self, number: usize) {
        let ended = Some(self.now());
        self.all()[number].ended = ended;
    }

    /// A stop that was not clean, while something else was wrong: like a kill.
    pub(crate) fn was_unclean(&self, number: usize) {
        self.all()[number].duplicates = true;
    }

    pub(crate) fn machine_paused(&self, began: Duration) {
        let ended = Some(self.now());
        self.all().push(Struck {
            kind: MachinePause,
            relay: 0,
            began,
            ended,
            duplicates: true,
        });
    }

    /// Since when nothing is wrong; `None` while something is.
    pub(crate) fn healthy_since(&self) -> Option<Duration> {
        let mut since = Duration::ZERO;
        for fault in self.all().iter() {
            since = since.max(fault.ended?);
        }
        Some(since)
    }

    /// Whether since then something else was wrong that may keep this relay from stopping cleanly.
    pub(crate) fn disturbed_since(&self, since: Duration, relay: usize) -> bool {
        let concerns = |fault: &&Struck| match fault.kind.thing(fault.relay) {
            Thing::Broker | Thing::Database | Thing::Machine => true,
            Thing::BrokerLine(of) | Thing::DatabaseLine(of) => of == relay,
            Thing::Relay(_) => false,
        };
        let faults = self.all();
        let mut concerning = faults.iter().filter(concerns);
        concerning.any(|fault| fault.ended.is_none_or(|ended| ended >= since))
    }

    /// The fault that explains a copy that arrived then: the latest of those that can.
    pub(crate) fn explanation(&self, arrival: Duration) -> Option<Kind> {
        let faults = self.all();
        let explains = |fault: &&Struck| {
            fault.duplicates && fault.began <= arrival && fault.ended.is_none_or(|ended| arrival <= ended + AFTERMATH)
        };
        faults.iter().rev().find(explains).map(|fault| fault.kind)
    }

    pub(crate) fn last(&self, count: usize) -> String {
        let faults = self.all();
        let last = &faults[faults.len().saturating_sub(count)..];
        let lines = last.iter().map(|fault| {
            let ended = fault
                .ended
                .map_or("now".to_owned(), |at| format!("{:.3}", at.as_secs_f64()));
            let began = fault.began.as_secs_f64();
            format!(
                "  {began:.3} to {ended}: {} (relay {})\n",
                fault.kind.name(),
                fault.relay
            )
        });
        lines.collect()
    }
}
