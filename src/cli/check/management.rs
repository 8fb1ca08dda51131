//! What only the broker's management plug-in tells: queues that can lose what they confirmed, and rows that nobody will take.

use std::collections::{BTreeMap, BTreeSet};

use super::broker::alarm;
use super::{Line, exposed, line, warning};
use crate::broker::amqp;
use crate::broker::management::{self, Access, Queue, Routed, Topology, View};
use crate::config::{Config, Secret, leaves_without_tls, redacted_url};
use crate::store::operator::Route;

/// Names that are written out in one line.
const NAMED: usize = 10;

/// The oldest version that the relay is tested with.
const OLDEST: (u32, u32) = (3, 10);

/// Routing keys of an exchange, with how many rows have each.
type Keys<'a> = BTreeMap<&'a str, u64>;

pub(super) async fn lines(config: &Config, url: &Secret, routes: &[Route]) -> Vec<Line> {
    let mut lines = Vec::new();
    if leaves_without_tls(url.expose()) {
        lines.push(exposed("management plug-in", "`https://` in RELAY_AMQP_MANAGEMENT_URL"));
    }
    let wanted = by_exchange(config, routes);
    let what = format!("management {}", redacted_url(url.expose()));
    let view = match look(config, url, &wanted).await {
        Ok(view) => view,
        Err(error) => {
            lines.push(line(what, Err(error)));
            return lines;
        }
    };
    lines.push(judge_version(what, &view.about.product));
    if !view.about.alarms.is_empty() {
        lines.push(alarm(&format!(" ({})", view.about.alarms.join(", "))));
    }
    for (exchange, keys) in &wanted {
        lines.extend(judge_exchange(config, &view.topology, exchange, keys));
    }
    if view.cut {
        let text =
            "more exchanges or queues are bound than are looked at (100 and 200): the lines above are of some of them";
        lines.push(warning("management", text.to_owned()));
    }
    lines
}

/// Every exchange that is in use.
fn by_exchange<'a>(config: &'a Config, routes: &'a [Route]) -> BTreeMap<&'a str, Keys<'a>> {
    let own = config.amqp_exchange.as_str();
    let mut wanted = BTreeMap::from([(own, Keys::new())]);
    for route in routes {
        let exchange = route.exchange.as_deref().unwrap_or(own);
        let keys = wanted.entry(exchange).or_default();
        *keys.entry(&route.routing_key).or_default() += route.rows;
    }
    wanted
}

async fn look(config: &Config, url: &Secret, wanted: &BTreeMap<&str, Keys<'_>>) -> Result<View, String> {
    let Some(broker) = config.amqp_urls.first() else {
        return Err("RELAY_AMQP_URL names no broker".to_owned());
    };
    let vhost = amqp::vhost(broker).map_err(|error| error.to_string())?;
    let exchanges = wanted.keys().map(|name| (*name).to_owned()).collect();
    // The default exchange knows queues by their names.
    let queues: BTreeSet<String> = wanted
        .get("")
        .into_iter()
        .flatten()
        .map(|(key, _)| (*key).to_owned())
        .collect();
    let access = Access {
        url,
        tls: &config.amqp_tls,
        timeout: config.amqp_connect_timeout,
    };
    management::look(access, &vhost, &exchanges, &queues).await
}

fn judge_version(what: String, product: &str) -> Line {
    let version = product.rsplit(' ').next().unwrap_or_default();
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
    let known = numbers.next().flatten().zip(numbers.next().flatten());
    match known {
        Some(version) if product.starts_with("RabbitMQ ") && version < OLDEST => warning(
            what,
            format!(
                "{product}: older than what the relay is tested with; upgrade to {}.{} or later",
                OLDEST.0, OLDEST.1
            ),
        ),
        _ => line(what, Ok(product.to_owned())),
    }
}

fn judge_exchange(config: &Config, topology: &Topology, exchange: &str, keys: &Keys<'_>) -> Vec<Line> {
    let called = match exchange {
        "" => "the default exchange".to_owned(),
        name => format!("exchange {name:?}"),
    };
    if topology.lacks(exchange) {
        // That of RELAY_AMQP_EXCHANGE has a line of its own.
        let rows: u64 = keys.values().sum();
        let missing = line(
            called,
            Err(format!(
                "it is not there, and {rows} unsent rows go to it: declare it, the relay never does"
            )),
        );
        return if exchange == config.amqp_exchange {
            Vec::new()
        } else {
            vec![missing]
        };
    }
    let mend = match exchange {
        "" => "declare a queue of this name",
        _ => "bind a queue, or give the exchange an alternate exchange",
    };
    let queues = match exchange {
        "" => keys.keys().filter_map(|key| topology.queue(key)).collect(),
        name => topology.queues_of(name),
    };
    let mut lines = Vec::new();
    if !exchange.is_empty() || !keys.is_empty() {
        lines.extend(judge_queues(&format!("queues of {called}"), &queues, mend));
    }
    if !keys.is_empty() {
        lines.push(judge_keys(
            &format!("routing keys of {called}"),
            topology,
            exchange,
            keys,
            mend,
        ));
    }
    lines
}

/// What a confirm of these queues is worth.
fn judge_queues(what: &str, queues: &[(&str, &Queue)], mend: &str) -> Vec<Line> {
    let named = |which: &dyn Fn(&Queue) -> bool| -> Vec<String> {
        let which = queues.iter().filter(|(_, queue)| which(queue));
        which.map(|(name, _)| format!("{name:?}")).collect()
    };
    let transient = named(&|queue| !queue.durable);
    let classic = named(&|queue| queue.durable && queue.kind == "classic");
    let mut lines = Vec::new();
    if queues.is_empty() {
        lines.push(warning(
            what,
            format!("none: every message to it comes back as unroutable and becomes a dead letter; {mend}"),
        ));
    }
    if !transient.is_empty() {
        lines.push(warning(
            what,
            format!(
                "not durable: {}: a restart of the broker loses the queue with messages that are marked sent; declare a durable \
                 one, best a quorum queue",
                listed(&transient)
            ),
        ));
    }
    if !classic.is_empty() {
        lines.push(warning(
            what,
            format!(
                "classic: {}: such a queue confirms before the message is on disk, so a crash of its machine can lose what is \
                 marked sent; declare a quorum queue in its place (x-queue-type: quorum)",
                listed(&classic)
            ),
        ));
    }
    if lines.is_empty() {
        let all: Vec<String> = queues
            .iter()
            .map(|(name, queue)| format!("{name:?} ({})", queue.kind))
            .collect();
        lines.push(line(what, Ok(listed(&all))));
    }
    lines
}

fn judge_keys(what: &str, topology: &Topology, exchange: &str, keys: &Keys<'_>, mend: &str) -> Line {
    let routed = |wanted: Routed| {
        keys.iter()
            .filter(move |(key, _)| topology.route(exchange, key) == wanted)
    };
    let lost: Vec<String> = routed(Routed::No)
        .map(|(key, rows)| format!("{key:?} ({rows} rows)"))
        .collect();
    if !lost.is_empty() {
        return line(
            what,
            Err(format!(
                "no queue takes {}: these rows come back as unroutable and become dead letters; {mend}",
                listed(&lost)
            )),
        );
    }
    let rows: u64 = keys.values().sum();
    let text = match routed(Routed::Unknown).count() {
        0 => format!("a queue takes each of the {} that {rows} unsent rows have", keys.len()),
        unknown => format!(
            "{unknown} of {} cannot be judged: that depends on headers, a plug-in, or a policy that only the tag `policymaker` may read",
            keys.len()
        ),
    };
    line(what, Ok(text))
}

/// The first of some names.
fn listed(names: &[String]) -> String {
    let first = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}
