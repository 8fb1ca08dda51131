//! What the broker says over AMQP.

use std::collections::BTreeMap;

use super::{Line, exposed, is_unanswered, line};
use crate::broker::Broker;
use crate::broker::amqp::Amqp;
use crate::config::{Config, leaves_without_tls};
use crate::store::operator::Route;

/// So many exchanges are asked for one by one.
const EXCHANGES: usize = 20;

/// The broker takes no messages, for these reasons.
pub(super) fn alarm(reasons: &str) -> Line {
    line(
        "alarm",
        Err(format!(
            "the broker takes no messages{reasons}, all of them wait: let consumers catch up, or give it memory or disk"
        )),
    )
}

/// Exchanges that unsent rows name, with how many rows each: the configured one and the default one are not among them.
fn named_exchanges<'a>(config: &Config, routes: &'a [Route]) -> BTreeMap<&'a str, u64> {
    let mut named = BTreeMap::new();
    for route in routes {
        if let Some(exchange) = route.exchange.as_deref() {
            *named.entry(exchange).or_default() += route.rows;
        }
    }
    named.retain(|name, _| !name.is_empty() && *name != config.amqp_exchange);
    named
}

pub(super) async fn lines(config: &Config, routes: &[Route]) -> Vec<Line> {
    let mut lines = Vec::new();
    if config.amqp_urls.iter().any(|url| leaves_without_tls(url.expose())) {
        lines.push(exposed("broker", "`amqps://` in RELAY_AMQP_URL"));
    }
    let connected = match Amqp::new(crate::cli::amqp_options(config)).connect().await {
        Ok(connected) => connected,
        Err(error) => {
            let mut text = error.to_string();
            if is_unanswered(&text) {
                text.push_str(
                    ": look at host and port in RELAY_AMQP_URL, whether the broker runs, and at firewalls between",
                );
            }
            lines.push(line("broker", Err(text)));
            return lines;
        }
    };
    let session = connected.session;
    lines.push(line(
        format!("broker {}", session.address()),
        Ok("logged in".to_owned()),
    ));
    if session.blocked() {
        lines.push(alarm(" (memory or disk alarm)"));
    }
    if !config.amqp_exchange.is_empty() {
        let exists = session.check_exchange(&config.amqp_exchange).await;
        lines.push(line(
            format!("exchange {:?}", config.amqp_exchange),
            exists.map(|()| "exists".to_owned()),
        ));
    }
    // The management plug-in tells it of all of them, and more.
    if config.amqp_management_url.is_none() {
        for (exchange, rows) in named_exchanges(config, routes).into_iter().take(EXCHANGES) {
            let exists = session.check_exchange(exchange).await;
            lines.push(line(
                format!("exchange {exchange:?}"),
                match exists {
                    Ok(()) => Ok(format!("exists; {rows} unsent rows go to it")),
                    Err(problem) => Err(format!("{problem}; {rows} unsent rows go to it")),
                },
            ));
        }
    }
    session.close().await;
    lines
}
