//! The tables.

use std::time::Duration;

use outbox_relay::metrics::OPERATIONS;

use crate::drain::Pair;
use crate::others::Compared;
use crate::shape::{Shape, Shapes};
use crate::strain::{Measured, Purged, Strained};

pub(crate) fn drain_header() {
    println!(
        "| scenario | ceiling msg/s | relay msg/s | ratio | in flight | peak MiB | CPU µs/message: relay | database | broker | \
         ceiling: publisher | broker |\n|---|---|---|---|---|---|---|---|---|---|---|"
    );
}

pub(crate) fn drain_line(name: &str, pairs: &[Pair]) {
    let spread = |value: &dyn Fn(&Pair) -> f64, digits| Spread::of(pairs.iter().map(value)).text(digits);
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    println!(
        "| {name} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
        spread(&|pair| pair.ceiling.rate, 0),
        spread(&|pair| pair.relay.rate, 0),
        spread(&|pair| pair.relay.rate / pair.ceiling.rate, 2),
        spread(&|pair| pair.relay.in_flight, 0),
        spread(&|pair| pair.relay.peak_mib, 0),
        spread(&|pair| micros(pair.relay.cpu_a_message), 1),
        spread(&|pair| micros(pair.relay.servers_a_message.database), 1),
        spread(&|pair| micros(pair.relay.servers_a_message.broker), 1),
        spread(&|pair| micros(pair.ceiling.cpu_a_message), 1),
        spread(&|pair| micros(pair.ceiling.broker_cpu_a_message), 1),
    );
}

/// How often the relay asks the database, all together and by kind; kinds that are hardly ever asked for are left out.
pub(crate) fn operations_line(name: &str, pairs: &[Pair]) {
    let all = |pair: &Pair| pair.relay.operations_a_thousand.iter().sum();
    let mut kinds: Vec<(&str, f64)> = OPERATIONS
        .into_iter()
        .enumerate()
        .map(|(index, kind)| {
            let values = pairs.iter().map(|pair| pair.relay.operations_a_thousand[index]);
            (kind, Spread::of(values).median())
        })
        .filter(|(_, median)| *median >= 0.01)
        .collect();
    kinds.sort_by(|one, other| other.1.total_cmp(&one.1));
    let kinds: Vec<_> = kinds
        .iter()
        .map(|(kind, median)| format!("{kind} {median:.2}"))
        .collect();
    println!(
        "{name}: {} ({})",
        Spread::of(pairs.iter().map(all)).text(2),
        kinds.join(", ")
    );
}

pub(crate) fn compared(relays: &[(&str, Vec<Compared>)]) {
    println!("| relay | msg/s | of the ceiling | CPU µs/message | peak MiB |\n|---|---|---|---|---|");
    for (name, drains) in relays {
        let spread = |value: &dyn Fn(&Compared) -> f64, digits| Spread::of(drains.iter().map(value)).text(digits);
        println!(
            "| {name} | {} | {} | {} | {} |",
            spread(&|drain| drain.relay.rate, 0),
            spread(&|drain| drain.relay.rate / drain.ceiling, 2),
            spread(&|drain| drain.relay.cpu_a_message.as_secs_f64() * 1e6, 1),
            spread(&|drain| drain.relay.peak_mib, 0),
        );
    }
}

/// A line, and what it was: the same without and under a strain.
pub(crate) fn strained(name: &str, pairs: &[Strained]) {
    let spread = |value: &dyn Fn(&Strained) -> f64, digits| Spread::of(pairs.iter().map(value)).text(digits);
    println!(
        "{name}: {} a second without, {} under it, ratio {}",
        spread(&|strained| strained.without, 0),
        spread(&|strained| strained.under, 0),
        spread(&|strained| strained.under / strained.without, 2),
    );
}

/// A purge that keeps up deletes as many rows a second as are sent.
pub(crate) fn strain(name: &str, measured: &Measured) {
    strained(name, &measured.pairs);
    let seconds = measured.began_after.iter().map(Duration::as_secs_f64);
    println!(
        "{name}: the first messages {} s after its start",
        Spread::of(seconds).text(1)
    );
    let purged = &measured.purged;
    if !purged.is_empty() {
        let spread = |value: &dyn Fn(&Purged) -> f64, digits| Spread::of(purged.iter().map(value)).text(digits);
        println!(
            "{name}: {} old rows a second went while others were sent; the {} left then in {} s",
            spread(&|purged| purged.meanwhile, 0),
            spread(&|purged| purged.left, 0),
            spread(&|purged| purged.afterwards.as_secs_f64(), 1),
        );
    }
    println!();
}

/// `kept`: the sent rows that were swept over.
pub(crate) fn shape(shape: &Shape, shapes: &Shapes, kept: usize) {
    let Shape { name, what, .. } = shape;
    strained(&format!("{name} ({what})"), &shapes.drains);
    let [hot, otherwise] = shapes.left.each_ref().map(|left| left.hot);
    println!("{name}: HOT updates of all marks {hot:.2} as shipped, {otherwise:.2} otherwise");
    let [index, otherwise] = shapes.left.each_ref().map(|left| left.index as f64 / 1e6);
    println!("{name}: the index of unsent rows has {index:.1} MB afterwards as shipped, {otherwise:.1} MB otherwise");
    let [sweep, otherwise] = shapes.sweeps.map(|took| took.as_secs_f64() * 1e3);
    println!("{name}: a sweep over {kept} sent rows takes {sweep:.1} ms as shipped, {otherwise:.1} ms otherwise\n");
}

/// Messages a second.
pub(crate) struct Bare {
    pub(crate) rate: f64,
    /// Over one channel.
    pub(crate) ordered: f64,
    /// The mean of right before and right after.
    pub(crate) ceiling: f64,
}

pub(crate) fn bare_line(measured: &[Bare]) {
    let spread = |value: &dyn Fn(&Bare) -> f64, digits| Spread::of(measured.iter().map(value)).text(digits);
    println!(
        "bare socket, prepared frames: {} msg/s; the ceiling is {} of it",
        spread(&|bare| bare.rate, 0),
        spread(&|bare| bare.ceiling / bare.rate, 2)
    );
    println!(
        "the same over one channel, which one key needs to keep its order: {} msg/s, {} of the ceiling\n",
        spread(&|bare| bare.ordered, 0),
        spread(&|bare| bare.ordered / bare.ceiling, 2)
    );
}

/// In milliseconds.
#[derive(Clone, Copy)]
pub(crate) struct Latency {
    p50: f64,
    p99: f64,
}

/// Returns what it printed; `direct`: of the same messages without relay.
pub(crate) fn latency_line(name: &str, what: &str, mut latencies: Vec<Duration>, direct: Option<Latency>) -> Latency {
    latencies.sort_unstable();
    let at = |share: f64| {
        let index = (latencies.len() as f64 * share) as usize;
        latencies[index.min(latencies.len() - 1)].as_secs_f64() * 1e3
    };
    let Latency { p50, p99 } = Latency {
        p50: at(0.5),
        p99: at(0.99),
    };
    let ratio = direct.map_or(String::new(), |direct| {
        format!("; {:.1} and {:.1} times as long", p50 / direct.p50, p99 / direct.p99)
    });
    println!(
        "{name}: {what}: p50 {p50:.2} ms, p99 {p99:.2} ms, most {:.2} ms ({} messages){ratio}",
        at(1.0),
        latencies.len()
    );
    Latency { p50, p99 }
}

/// Median, least and most.
struct Spread {
    sorted: Vec<f64>,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_unstable_by(f64::total_cmp);
        Self { sorted }
    }

    fn median(&self) -> f64 {
        let middle = self.sorted.len() / 2;
        if self.sorted.len().is_multiple_of(2) {
            f64::midpoint(self.sorted[middle - 1], self.sorted[middle])
        } else {
            self.sorted[middle]
        }
    }

    fn text(&self, digits: usize) -> String {
        let median = format!("{:.digits$}", self.median());
        match self.sorted.as_slice() {
            [least, .., most] => format!("{median} [{least:.digits$}–{most:.digits$}]"),
            _ => median,
        }
    }
}
