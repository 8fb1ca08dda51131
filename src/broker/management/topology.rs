//! Which queues an exchange leads to, and whether a routing key gets to one: what the broker would do, without asking it for
//! each message.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde_json::Value;

/// Exchanges, bindings and queues.
#[derive(Debug, Default)]
pub struct Topology {
    exchanges: HashMap<String, Option<Exchange>>,
    queues: HashMap<String, Option<Queue>>,
}

#[derive(Debug)]
struct Exchange {
    kind: Kind,
    bindings: Vec<Binding>,
    /// Where messages go that no binding takes.
    alternate: Alternate,
}

/// An alternate exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Alternate {
    None,
    Exchange(String),
    /// There may be one, by a policy that may not be read.
    Hidden,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Direct,
    Topic,
    Fanout,
    /// Headers, or a plug-in's: the routing key alone does not tell.
    Other,
}

#[derive(Debug)]
struct Binding {
    key: String,
    to: Destination,
}

#[derive(Debug)]
enum Destination {
    Queue(String),
    Exchange(String),
}

/// A queue, as far as it matters to what was confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// `classic`, `quorum`, `stream` or a plug-in's.
    pub kind: String,
    /// It outlives a restart of the broker.
    pub durable: bool,
}

/// What becomes of a routing key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Routed {
    /// No binding takes it: the message comes back.
    No,
    /// It depends on more than the routing key.
    Unknown,
    /// A queue takes it.
    Yes,
}

impl Topology {
    /// Adds an exchange as the plug-in tells of it, with its bindings; returns the exchanges that it leads to.
    pub(super) fn add_exchange(
        &mut self,
        name: String,
        exchange: &Value,
        bindings: &Value,
        alternate: Alternate,
    ) -> Vec<String> {
        let kind = match exchange["type"].as_str().unwrap_or_default() {
            "direct" => Kind::Direct,
            "topic" => Kind::Topic,
            "fanout" => Kind::Fanout,
            _ => Kind::Other,
        };
        let bindings: Vec<Binding> = bindings.as_array().into_iter().flatten().filter_map(binding).collect();
        let behind = bindings.iter().filter_map(|binding| match &binding.to {
            Destination::Exchange(name) => Some(name.clone()),
            Destination::Queue(_) => None,
        });
        let mut behind: Vec<String> = behind.collect();
        if let Alternate::Exchange(name) = &alternate {
            behind.push(name.clone());
        }
        let exchange = Exchange {
            kind,
            bindings,
            alternate,
        };
        self.exchanges.insert(name, Some(exchange));
        behind
    }

    /// There is no exchange of this name.
    pub(super) fn no_exchange(&mut self, name: String) {
        self.exchanges.insert(name, None);
    }

    /// Adds a queue as the plug-in tells of it; `None`: there is none of this name.
    pub(super) fn add_queue(&mut self, name: String, queue: Option<&Value>) {
        let queue = queue.map(|queue| Queue {
            kind: queue["type"].as_str().unwrap_or("classic").to_owned(),
            durable: queue["durable"].as_bool().unwrap_or(true),
        });
        self.queues.insert(name, queue);
    }

    pub(super) fn has_exchange(&self, name: &str) -> bool {
        self.exchanges.contains_key(name)
    }

    pub(super) fn exchanges(&self) -> usize {
        self.exchanges.len()
    }

    /// The queues that any exchange leads to.
    pub(super) fn bound_queues(&self) -> BTreeSet<String> {
        let exchanges = self.exchanges.values().flatten();
        let bindings = exchanges.flat_map(|exchange| &exchange.bindings);
        bindings
            .filter_map(|binding| match &binding.to {
                Destination::Queue(name) => Some(name.clone()),
                Destination::Exchange(_) => None,
            })
            .collect()
    }

    /// Whether an exchange was looked for, and is not there.
    pub fn lacks(&self, exchange: &str) -> bool {
        matches!(self.exchanges.get(exchange), Some(None))
    }

    /// The queues that an exchange can lead to, by name; those that were not looked at are not among them.
    pub fn queues_of(&self, exchange: &str) -> Vec<(&str, &Queue)> {
        let (mut seen, mut ahead, mut found) = (HashSet::new(), vec![exchange], BTreeSet::new());
        while let Some(name) = ahead.pop() {
            let Some(Some(exchange)) = self.exchanges.get(name).filter(|_| seen.insert(name)) else {
                continue;
            };
            if let Alternate::Exchange(name) = &exchange.alternate {
                ahead.push(name);
            }
            for binding in &exchange.bindings {
                match &binding.to {
                    Destination::Queue(name) => {
                        found.insert(name.as_str());
                    }
                    Destination::Exchange(name) => ahead.push(name),
                }
            }
        }
        found.into_iter().filter_map(|name| self.queue(name)).collect()
    }

    /// A queue, with its name.
    pub fn queue(&self, name: &str) -> Option<(&str, &Queue)> {
        let (name, queue) = self.queues.get_key_value(name)?;
        queue.as_ref().map(|queue| (name.as_str(), queue))
    }

    /// Whether a message with this routing key gets to a queue. The default exchange (``) leads to the queue of that name.
    pub fn route(&self, exchange: &str, key: &str) -> Routed {
        if exchange.is_empty() {
            return match self.queues.get(key) {
                None => Routed::Unknown,
                Some(None) => Routed::No,
                Some(Some(_)) => Routed::Yes,
            };
        }
        self.follow(exchange, key, &mut HashSet::new())
    }

    fn follow<'a>(&'a self, name: &'a str, key: &str, seen: &mut HashSet<&'a str>) -> Routed {
        let exchange = match self.exchanges.get(name) {
            // A circle of exchanges leads nowhere else the second time.
            _ if !seen.insert(name) => return Routed::No,
            None => return Routed::Unknown,
            Some(None) => return Routed::No,
            Some(Some(exchange)) => exchange,
        };
        let (mut best, mut taken) = (Routed::No, Routed::No);
        for binding in &exchange.bindings {
            let takes = exchange.kind.takes(&binding.key, key);
            if takes == Routed::No {
                continue;
            }
            taken = taken.max(takes);
            let end = match &binding.to {
                Destination::Queue(_) => Routed::Yes,
                Destination::Exchange(next) => self.follow(next, key, seen),
            };
            best = best.max(end.min(takes));
        }
        // What a binding takes does not go there, even where it leads to no queue.
        match &exchange.alternate {
            Alternate::Exchange(alternate) if taken != Routed::Yes => best.max(self.follow(alternate, key, seen)),
            Alternate::Hidden if taken != Routed::Yes => best.max(Routed::Unknown),
            _ => best,
        }
    }
}

fn binding(value: &Value) -> Option<Binding> {
    let name = value["destination"].as_str()?.to_owned();
    let to = match value["destination_type"].as_str()? {
        "queue" => Destination::Queue(name),
        _ => Destination::Exchange(name),
    };
    Some(Binding {
        key: value["routing_key"].as_str().unwrap_or_default().to_owned(),
        to,
    })
}

impl Kind {
    /// Whether a binding takes a message.
    fn takes(self, binding: &str, key: &str) -> Routed {
        let takes = match self {
            Kind::Direct => binding == key,
            Kind::Topic => {
                let words = |text: &str| match text {
                    "" => Vec::new(),
                    text => text.split('.').map(str::to_owned).collect::<Vec<_>>(),
                };
                matches(&words(binding), &words(key))
            }
            Kind::Fanout => true,
            Kind::Other => return Routed::Unknown,
        };
        if takes { Routed::Yes } else { Routed::No }
    }
}

/// `*` is a word, `#` any number of words.
fn matches(pattern: &[String], words: &[String]) -> bool {
    // Whether what was seen of the pattern takes the first `n` words, for each `n`: no more work than both lengths multiplied.
    let mut takes = vec![false; words.len() + 1];
    takes[0] = true;
    for part in pattern {
        let before = takes;
        takes = vec![false; words.len() + 1];
        for n in 0..=words.len() {
            takes[n] = match part.as_str() {
                "#" => before[n] || (n > 0 && takes[n - 1]),
                "*" => n > 0 && before[n - 1],
                word => n > 0 && before[n - 1] && words[n - 1] == word,
            };
        }
    }
    takes[words.len()]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn add(topology: &mut Topology, name: &str, kind: &str, bindings: &[(&str, &str)], alternate: Option<&str>) {
        let bindings: Vec<Value> = bindings
            .iter()
            .map(|(key, to)| {
                let (kind, to) = to.split_once(' ').expect("a kind and a name");
                json!({ "destination_type": kind, "destination": to, "routing_key": key })
            })
            .collect();
        let exchange = json!({ "type": kind });
        let alternate = match alternate {
            None => Alternate::None,
            Some("?") => Alternate::Hidden,
            Some(name) => Alternate::Exchange(name.to_owned()),
        };
        topology.add_exchange(name.to_owned(), &exchange, &bindings.into(), alternate);
    }

    #[test]
    fn keys_go_where_the_broker_would_send_them() {
        let mut topology = Topology::default();
        add(&mut topology, "d", "direct", &[("a", "queue q")], None);
        add(&mut topology, "f", "fanout", &[("", "exchange d")], None);
        add(
            &mut topology,
            "t",
            "topic",
            &[("a.*.#", "queue q"), ("b", "exchange d")],
            None,
        );
        add(&mut topology, "h", "headers", &[("", "queue q")], None);
        add(&mut topology, "none", "x-consistent-hash", &[], None);
        add(&mut topology, "round", "fanout", &[("", "exchange round")], None);
        add(
            &mut topology,
            "with",
            "direct",
            &[("a", "queue q"), ("lost", "exchange d")],
            Some("f2"),
        );
        add(&mut topology, "f2", "fanout", &[("", "queue rest")], None);
        add(&mut topology, "hidden", "direct", &[("a", "queue q")], Some("?"));
        topology.no_exchange("gone".to_owned());
        let all = [
            ("d", "a", Routed::Yes),
            ("d", "b", Routed::No),
            ("f", "a", Routed::Yes),
            ("f", "b", Routed::No),
            ("t", "a.x", Routed::Yes),
            ("t", "a.x.y.z", Routed::Yes),
            ("t", "a", Routed::No),
            ("t", "b", Routed::No),
            ("h", "a", Routed::Unknown),
            ("none", "a", Routed::No),
            ("round", "a", Routed::No),
            ("with", "a", Routed::Yes),
            ("with", "z", Routed::Yes),
            ("with", "lost", Routed::No),
            ("hidden", "a", Routed::Yes),
            ("hidden", "z", Routed::Unknown),
            ("gone", "a", Routed::No),
            ("never seen", "a", Routed::Unknown),
        ];
        for (exchange, key, expected) in all {
            assert_eq!(topology.route(exchange, key), expected, "{exchange} {key}");
        }
    }

    #[test]
    fn the_default_exchange_leads_to_the_queue_of_the_keys_name() {
        let mut topology = Topology::default();
        topology.add_queue("q".to_owned(), Some(&json!({ "type": "quorum", "durable": true })));
        topology.add_queue("gone".to_owned(), None);
        assert_eq!(topology.route("", "q"), Routed::Yes);
        assert_eq!(topology.route("", "gone"), Routed::No);
        assert_eq!(topology.route("", "never asked"), Routed::Unknown);
    }

    #[test]
    fn all_queues_behind_an_exchange_are_found_once() {
        let mut topology = Topology::default();
        add(
            &mut topology,
            "a",
            "topic",
            &[("x", "queue q1"), ("y", "exchange b"), ("z", "queue q1")],
            Some("c"),
        );
        add(
            &mut topology,
            "b",
            "direct",
            &[("x", "queue q2"), ("", "exchange a")],
            None,
        );
        add(&mut topology, "c", "fanout", &[("", "queue q3")], None);
        for name in topology.bound_queues() {
            topology.add_queue(name, Some(&json!({ "type": "classic", "durable": false })));
        }
        let names = topology.queues_of("a").into_iter().map(|(name, _)| name);
        assert_eq!(names.collect::<Vec<_>>(), ["q1", "q2", "q3"]);
    }

    #[test]
    fn patterns_take_words_as_the_broker_does() {
        let takes = |pattern: &str, key: &str| Kind::Topic.takes(pattern, key) == Routed::Yes;
        for (pattern, key) in [
            ("#", ""),
            ("#", "a.b"),
            ("*", "a"),
            ("a.#", "a"),
            ("#.b", "a.b"),
            ("#.#", "a"),
            ("", ""),
        ] {
            assert!(takes(pattern, key), "{pattern} {key}");
        }
        for (pattern, key) in [
            ("*", ""),
            ("*", "a.b"),
            ("a", "a.b"),
            ("#.a", "b"),
            ("a.*", "a"),
            ("", "a"),
        ] {
            assert!(!takes(pattern, key), "{pattern} {key}");
        }
        // No pattern takes longer than its length allows.
        assert!(!takes(&format!("{}z", "#.".repeat(100)), &"a.".repeat(100)));
    }
}
