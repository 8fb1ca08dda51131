//! Logging: one line per event on standard error, as text or JSON.

use std::io::{self, IsTerminal as _};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{Registry, filter::Targets, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::config::{Config, LogFormat};

/// Starts logging for the whole process. A second call changes nothing.
///
/// Text is coloured on a terminal unless `NO_COLOR` is set. JSON has one object per line with
/// `timestamp` (RFC 3339, UTC), `level`, `target`, `message` and the event's fields beside them.
pub fn init(config: &Config) {
    let terminal = io::stderr().is_terminal();
    let json = match config.log_format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    // A failed write to standard error must not be reported on standard error: that panics.
    let lines = fmt::layer().with_writer(io::stderr).log_internal_errors(false);
    let lines = if terminal { lines } else { lines.with_ansi(false) };
    let registry = Registry::default().with(filter(&config.log));
    // An error means that logging has started already, which is what was asked for.
    let _ = if json {
        registry
            .with(lines.json().flatten_event(true).with_span_list(false))
            .try_init()
    } else {
        registry.with(lines).try_init()
    };
}

/// The levels that are asked for, without what would print payloads or fill the log.
fn filter(directives: &str) -> Targets {
    // Loading has checked the directives; should they fail here, the default is the safe choice.
    let asked: Targets = directives
        .parse()
        .unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO));
    let mut targets = asked.clone();
    if !asked.iter().any(|(target, _)| target == "lapin") {
        targets = targets.with_target("lapin", LevelFilter::OFF);
    }
    for (target, level) in asked.iter().filter(|(target, _)| target.starts_with("lapin")) {
        // At TRACE lapin prints frames: bodies, and the password of the handshake.
        targets = targets.with_target(target, level.min(LevelFilter::DEBUG));
    }
    targets
        // Prints every returned message with its body, at WARN.
        .with_target("lapin::returned_messages", LevelFilter::OFF)
        // Prints statements.
        .with_target("sqlx::query", LevelFilter::OFF)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn lapin_is_not_heard_until_it_is_named() {
        let quiet = filter("debug");
        assert!(quiet.would_enable("outbox_relay::relay", &Level::DEBUG));
        assert!(!quiet.would_enable("lapin::channel", &Level::ERROR));
        let named = filter("info,lapin=debug");
        assert!(named.would_enable("lapin::channel", &Level::DEBUG));
        let one_module = filter("trace,lapin::channel=warn");
        assert!(one_module.would_enable("lapin::channel", &Level::WARN));
        assert!(!one_module.would_enable("lapin::channel", &Level::INFO));
        assert!(!one_module.would_enable("lapin::io_loop", &Level::WARN));
    }

    #[test]
    fn payloads_and_statements_are_never_logged() {
        for directives in [
            "trace",
            "lapin=trace",
            "trace,lapin::returned_messages=trace,sqlx::query=trace",
        ] {
            let filter = filter(directives);
            assert!(
                !filter.would_enable("lapin::returned_messages", &Level::ERROR),
                "{directives}"
            );
            assert!(!filter.would_enable("lapin::channels", &Level::TRACE), "{directives}");
            assert!(!filter.would_enable("sqlx::query", &Level::ERROR), "{directives}");
        }
    }

    #[test]
    fn a_module_can_be_heard_alone() {
        let filter = filter("off,outbox_relay=debug");
        assert!(filter.would_enable("outbox_relay::relay", &Level::DEBUG));
        assert!(!filter.would_enable("hyper", &Level::ERROR));
    }
}
