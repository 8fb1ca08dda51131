//! Which messages may share a channel. The broker refuses a message by closing the channel on all that are on it, whose
//! confirms are then lost; and a connection has some two thousand channels in its life, as lapin cannot use a number again
//! under which one was closed.
//!
//! So what may be refused goes alone: the first message of an exchange and of a `user_id`, and all of those that refused one.
//! And what was refused a moment ago is not asked again: the broker's word holds for some seconds, for all lanes.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::message::{Message, RowId};

use super::connection::{ACCESS_REFUSED, lock};

/// How long what the broker refused, or has not, is not asked for again.
pub(super) const HOLDS: Duration = Duration::from_secs(3);

/// Refusals that are remembered: above it the oldest are forgotten, and asked for again.
const MOST_REFUSALS: usize = 64;

/// Names that are remembered of a kind: rows can bring any number of them.
pub(super) const MOST_NAMES: usize = 10_000;

/// Kept from one connection to the next, as many refusals use one up.
pub(super) type Refusals = Arc<Mutex<Refused>>;

/// What the broker refused.
#[derive(Default)]
pub(super) struct Refused {
    /// Exchanges that refused a message, and have taken none since.
    suspects: HashSet<String>,
    /// What all messages have in common that are refused for it, oldest first.
    known: VecDeque<Refusal>,
}

struct Refusal {
    what: What,
    /// For a person.
    text: String,
    until: Instant,
    /// A message is on its way to find out whether it still holds.
    asked: bool,
}

/// What a refusal is about.
#[derive(PartialEq, Eq)]
enum What {
    /// No permission, or an internal one.
    Exchange(String),
    /// No permission for a routing key of a topic exchange.
    Topic(String, String),
    /// Not the user that the relay is logged in as.
    User(String),
    /// So many bytes, or more.
    Size(usize),
}

impl What {
    /// `None`: it may be about this message alone.
    fn of(message: &Message, code: u16, text: &str) -> Option<Self> {
        let exchange = || message.exchange.clone();
        match &message.properties.user_id {
            _ if code == ACCESS_REFUSED && text.contains("access to topic") => {
                Some(Self::Topic(exchange(), message.routing_key.clone()))
            }
            _ if code == ACCESS_REFUSED => Some(Self::Exchange(exchange())),
            Some(user) if text.contains("user_id") => Some(Self::User(user.clone())),
            _ if text.contains("message size") => Some(Self::Size(message.body.len())),
            _ => None,
        }
    }

    fn is_about(&self, message: &Message) -> bool {
        match self {
            Self::Exchange(name) => *name == message.exchange,
            Self::Topic(name, key) => *name == message.exchange && *key == message.routing_key,
            Self::User(user) => message.properties.user_id.as_ref() == Some(user),
            Self::Size(bytes) => message.body.len() >= *bytes,
        }
    }
}

impl Refused {
    fn concern(&self, message: &Message) -> bool {
        let known = || self.known.iter().any(|refusal| refusal.what.is_about(message));
        self.suspects.contains(&message.exchange) || known()
    }
}

/// What took a message.
#[derive(Default)]
struct Proven {
    exchanges: HashSet<String>,
    users: HashSet<String>,
}

impl Proven {
    fn exchange(&self, message: &Message) -> bool {
        self.exchanges.contains(&message.exchange)
    }

    fn user(&self, message: &Message) -> bool {
        let user = message.properties.user_id.as_ref();
        user.is_none_or(|user| self.users.contains(user))
    }

    fn add(&mut self, message: &Message) {
        insert(&mut self.exchanges, &message.exchange);
        if let Some(user) = &message.properties.user_id {
            insert(&mut self.users, user);
        }
    }
}

fn insert(names: &mut HashSet<String>, name: &str) {
    if names.contains(name) {
        return;
    }
    if names.len() >= MOST_NAMES {
        names.clear();
    }
    names.insert(name.to_owned());
}

/// What is known on a connection.
pub(super) struct Trust {
    refused: Refusals,
    proven: Mutex<Proven>,
}

impl Trust {
    pub(super) fn new(refused: Refusals) -> Self {
        Self {
            refused,
            proven: Mutex::default(),
        }
    }

    /// Whether all of these can go with whatever is under way.
    pub(super) fn has(&self, batch: &[Arc<Message>]) -> bool {
        let (refused, proven) = (lock(&self.refused), lock(&self.proven));
        let calm = refused.suspects.is_empty() && refused.known.is_empty();
        let mut last: Option<&str> = None;
        batch.iter().all(|message| {
            let same = last == Some(&message.exchange);
            last = Some(&message.exchange);
            (same || proven.exchange(message)) && proven.user(message) && (calm || !refused.concern(message))
        })
    }

    /// For each of these, whether it has to go alone.
    pub(super) fn alone(&self, messages: &[Arc<Message>]) -> Vec<bool> {
        let (refused, proven) = (lock(&self.refused), lock(&self.proven));
        // Where the first of an exchange or user is taken, so are the others.
        let mut tried = Proven::default();
        let alone = |message: &Arc<Message>| {
            let first = !(proven.exchange(message) || tried.exchange(message))
                || !(proven.user(message) || tried.user(message));
            if first {
                tried.add(message);
            }
            first || refused.concern(message)
        };
        messages.iter().map(alone).collect()
    }

    /// Takes those out that would be refused, and why.
    pub(super) fn refuse(&self, messages: &mut Vec<Arc<Message>>) -> Vec<(RowId, String)> {
        let refused = lock(&self.refused);
        let mut told = Vec::new();
        if refused.known.is_empty() {
            return told;
        }
        let now = Instant::now();
        messages.retain(|message| {
            let holds = |refusal: &&Refusal| now < refusal.until && refusal.what.is_about(message);
            let refusal = refused.known.iter().find(holds);
            told.extend(refusal.map(|refusal| (message.row, refusal.text.clone())));
            refusal.is_none()
        });
        told
    }

    /// This one goes to find out what is still refused: other lanes need not.
    pub(super) fn ask(&self, message: &Message) {
        let mut refused = lock(&self.refused);
        let about = |refusal: &&mut Refusal| refusal.what.is_about(message);
        for refusal in refused.known.iter_mut().filter(about) {
            refusal.asked = true;
            refusal.until = Instant::now() + HOLDS;
        }
    }

    /// The broker refused one of the messages to this exchange.
    pub(super) fn suspect(&self, exchange: &str) {
        insert(&mut lock(&self.refused).suspects, exchange);
    }

    /// The broker refused this message, which had gone alone.
    pub(super) fn refused(&self, message: &Message, code: u16, text: &str) {
        let Some(what) = What::of(message, code, text) else {
            return;
        };
        let mut refused = lock(&self.refused);
        refused.known.retain(|refusal| refusal.what != what);
        if refused.known.len() >= MOST_REFUSALS {
            refused.known.pop_front();
        }
        refused.known.push_back(Refusal {
            what,
            text: text.to_owned(),
            until: Instant::now() + HOLDS,
            asked: false,
        });
    }

    /// The broker took this message. What it has refused since that was sent still holds.
    pub(super) fn taken(&self, message: &Message) {
        lock(&self.proven).add(message);
        let mut refused = lock(&self.refused);
        refused.suspects.remove(&message.exchange);
        let now = Instant::now();
        let over = |refusal: &Refusal| refusal.asked || now >= refusal.until;
        refused
            .known
            .retain(|refusal| !(over(refusal) && refusal.what.is_about(message)));
    }
}
