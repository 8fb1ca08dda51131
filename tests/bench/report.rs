//! The tables.

use std::time::Duration;

use outbox_relay::metrics::OPERATIONS;

use crate::drain::Pair;
use crate::others::Compared;
use crate::strain::{Purged, Strained};

pub(crate) fn drain_header() {
    println!(
        "| scenario | ceiling msg/s | relay msg/s | ratio | peak MiB | CPU µs/message: relay | database | broker | \
         ceiling: publisher | broker |\n|---|---|---|---|---|---|---|---|---|---|"
    );
}

pub(crate) fn drain_line(name: &str, pairs: &[Pair]) {
    let spread = |value: &dyn Fn(&Pair) -> f64, digits| Spread::of(pairs.iter().map(value)).text(digits);
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    println!(
        "| {name} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
        spread(&|pair| pair.ceiling.rate, 0),
        spread(&|pair| pair.relay.rate, 0),
        spread(&|pair| pair.relay.rate / pair.ceiling.rate, 2),
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
    println!(
        "| relay | msg/s | of the ceiling | CPU µs/message, its start included | peak MiB |\n|---|---|---|---|---|"
    );
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

pub(crate) fn strain_header() {
    println!("| strain | without, msg/s | under it, msg/s | ratio |\n|---|---|---|---|");
}

pub(crate) fn strain_line(name: &str, measured: &[Strained]) {
    let spread = |value: &dyn Fn(&Strained) -> f64, digits| Spread::of(measured.iter().map(value)).text(digits);
    println!(
        "| {name} | {} | {} | {} |",
        spread(&|strained| strained.without, 0),
        spread(&|strained| strained.under, 0),
        spread(&|strained| strained.under / strained.without, 2),
    );
}

/// Below the table: a purge that keeps up deletes as many rows a second as are sent.
pub(crate) fn purge_line(purged: &[Purged]) {
    let spread = |value: &dyn Fn(&Purged) -> f64, digits| Spread::of(purged.iter().map(value)).text(digits);
    println!(
        "purge: {} old rows a second while others were sent; the {} left then went in {} s, {} a second",
        spread(&|purged| purged.meanwhile, 0),
        spread(&|purged| purged.left, 0),
        spread(&|purged| purged.afterwards.as_secs_f64(), 1),
        spread(&|purged| purged.left / purged.afterwards.as_secs_f64(), 0),
    );
}

pub(crate) fn bare_line(rates: &[f64], ordered: &[f64], ceilings: &[f64]) {
    let ratios = ceilings.iter().zip(rates).map(|(ceiling, rate)| ceiling / rate);
    println!(
        "bare socket, prepared frames: {} msg/s; the ceiling is {} of it",
        Spread::of(rates.iter().copied()).text(0),
        Spread::of(ratios).text(2)
    );
    let ratios = ceilings.iter().zip(ordered).map(|(ceiling, rate)| rate / ceiling);
    println!(
        "the same over one channel, which one key needs to keep its order: {} msg/s, {} of the ceiling\n",
        Spread::of(ordered.iter().copied()).text(0),
        Spread::of(ratios).text(2)
    );
}

pub(crate) fn latency_line(name: &str, what: &str, mut latencies: Vec<Duration>) {
    latencies.sort_unstable();
    let at = |share: f64| {
        let index = (latencies.len() as f64 * share) as usize;
        latencies[index.min(latencies.len() - 1)].as_secs_f64() * 1e3
    };
    println!(
        "{name}: {what}: p50 {:.2} ms, p99 {:.2} ms, most {:.2} ms ({} messages)",
        at(0.5),
        at(0.99),
        at(1.0),
        latencies.len()
    );
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
