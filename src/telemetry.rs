//! Logging: one line per event on standard error, as text or JSON.

use std::any::Any;
use std::io::{self, IsTerminal as _};
use std::panic::PanicHookInfo;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::level_filters::LevelFilter;
use tracing::{info, warn};
use tracing_subscriber::{
    Registry, filter::Targets, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

use crate::config::{Config, LogFormat};

/// The levels in force, which can be changed while the process runs.
#[derive(Clone)]
pub struct LogLevels {
    filter: reload::Handle<Targets, Registry>,
    /// `RELAY_LOG`.
    at_start: String,
    state: Arc<Mutex<State>>,
}

struct State {
    now: String,
    /// When those of the start come back.
    until: Option<Instant>,
    /// Counts the changes: of several with an end only the last one's counts.
    changes: u64,
}

/// What is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    /// As `RELAY_LOG` is written.
    pub levels: String,
    /// How long yet, if not until the process ends.
    pub ends_in: Option<Duration>,
    /// What comes then.
    pub at_start: String,
}

impl LogLevels {
    /// What is in force now.
    pub fn in_force(&self) -> InForce {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        InForce {
            levels: state.now.clone(),
            ends_in: state.until.map(|until| until.saturating_duration_since(Instant::now())),
            at_start: self.at_start.clone(),
        }
    }

    /// Sets the levels, for a time or until the process ends. `directives` have been checked as `RELAY_LOG` is.
    pub fn set(&self, directives: &str, span: Option<Duration>) {
        // Said by the old levels: by the new ones it might not be heard.
        warn!(levels = directives, ?span, "the log levels are changed");
        let change = self.apply(directives, span);
        if let Some(span) = span {
            let levels = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(span).await;
                levels.end(change);
            });
        }
    }

    fn end(&self, change: u64) {
        if self.state.lock().unwrap_or_else(PoisonError::into_inner).changes == change {
            self.apply(&self.at_start, None);
            info!(levels = self.at_start, "the log levels are those of RELAY_LOG again");
        }
    }

    fn apply(&self, directives: &str, span: Option<Duration>) -> u64 {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // It fails only when logging itself is gone.
        let _ = self.filter.reload(filter(directives));
        state.now = directives.to_owned();
        state.until = span.and_then(|span| Instant::now().checked_add(span));
        state.changes += 1;
        state.changes
    }
}

/// Starts logging for the whole process. A second call changes nothing that is logged.
///
/// Text is coloured on a terminal unless `NO_COLOR` is set. JSON has one object per line with
/// `timestamp` (RFC 3339, UTC), `level`, `target`, `message` and the event's fields beside them.
pub fn init(config: &Config) -> LogLevels {
    let terminal = io::stderr().is_terminal();
    let json = match config.log_format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    // A failed write to standard error must not be reported on standard error: that panics.
    let lines = fmt::layer().with_writer(io::stderr).log_internal_errors(false);
    let lines = if terminal { lines } else { lines.with_ansi(false) };
    let (filter, handle) = reload::Layer::new(filter(&config.log));
    let registry = Registry::default().with(filter);
    // An error means that logging has started already, which is what was asked for.
    let _ = if json {
        registry
            .with(lines.json().flatten_event(true).with_span_list(false))
            .try_init()
    } else {
        registry.with(lines).try_init()
    };
    LogLevels {
        filter: handle,
        at_start: config.log.clone(),
        state: Arc::new(Mutex::new(State {
            now: config.log.clone(),
            until: None,
            changes: 0,
        })),
    }
}

/// Makes a panic one line of the log (before there is one: of standard error) that tells where it was. What it was is told
/// only where the text is part of the program: one that was put together can hold a body or a password. `RUST_BACKTRACE`
/// has no effect.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        if let Some(problem) = output_failed(panic.payload()) {
            // `… | head` has all that it wants.
            if !problem.contains("Broken pipe") {
                eprintln!("outbox-relay: standard output cannot be written to: is its disk full?");
            }
            return;
        }
        let place = place(panic);
        let text = spoken(panic.payload()).unwrap_or("not shown, as it may hold values");
        if tracing::dispatcher::has_been_set() {
            tracing::error!(place, text, "the program has a mistake: please report it");
        } else {
            eprintln!("outbox-relay: the program has a mistake: please report it: {place}: {text}");
        }
    }));
}

/// File and line of the source, and the thread.
fn place(panic: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    match panic.location() {
        Some(location) => format!("{}:{} in the thread {thread}", location.file(), location.line()),
        None => format!("in the thread {thread}"),
    }
}

/// A text that is part of the program.
fn spoken(payload: &(dyn Any + Send)) -> Option<&'static str> {
    payload.downcast_ref::<&'static str>().copied()
}

/// What the standard library says where `println!` fails.
fn output_failed(payload: &(dyn Any + Send)) -> Option<&str> {
    let text = payload.downcast_ref::<String>()?;
    text.strip_prefix("failed printing to stdout: ")
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
        // Prints what triggers say (`RAISE NOTICE`), mostly of the row at hand.
        .with_target("sqlx::postgres::notice", LevelFilter::OFF)
        // Prints lines of ~/.pgpass that it does not understand, passwords included, at WARN.
        .with_target("sqlx_postgres::options::pgpass", LevelFilter::OFF)
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
            "trace,sqlx::postgres::notice=trace,sqlx_postgres::options::pgpass=trace",
        ] {
            let filter = filter(directives);
            assert!(
                !filter.would_enable("lapin::returned_messages", &Level::ERROR),
                "{directives}"
            );
            assert!(!filter.would_enable("lapin::channels", &Level::TRACE), "{directives}");
            for target in [
                "sqlx::query",
                "sqlx::postgres::notice",
                "sqlx_postgres::options::pgpass",
            ] {
                assert!(!filter.would_enable(target, &Level::ERROR), "{directives}: {target}");
            }
        }
    }

    #[test]
    fn of_a_panic_only_what_the_program_says_itself_is_told() {
        let panic = |body: fn()| std::panic::catch_unwind(body).expect_err("it panics");
        let literal = panic(|| panic!("the loop has no owner"));
        assert_eq!(spoken(&*literal), Some("the loop has no owner"));
        let secret = panic(|| {
            let port: Result<u16, _> = "s3cr3t".parse::<u16>().map_err(|_| "s3cr3t".to_owned());
            port.expect("a port");
        });
        assert_eq!(spoken(&*secret), None);
        assert_eq!(output_failed(&*secret), None);
    }

    /// A hook is of the whole process, so that the test runs itself as another one.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "the variable is no setting of the relay")]
    fn a_panic_is_one_line_of_the_log() {
        const CHILD: &str = "OUTBOX_RELAY_TEST_PANICS";
        if std::env::var_os(CHILD).is_some() {
            log_panics();
            let lines = fmt::layer().with_writer(io::stderr).json().flatten_event(true);
            let _ = Registry::default().with(lines).try_init();
            let body = "s3cr3t";
            let ended = std::thread::Builder::new()
                .name("lane".to_owned())
                .spawn(move || panic!("cannot send {body}"));
            assert!(ended.expect("a thread").join().is_err());
            return;
        }
        let child = std::process::Command::new(std::env::current_exe().expect("this test"))
            .args([
                "--exact",
                "telemetry::tests::a_panic_is_one_line_of_the_log",
                "--nocapture",
            ])
            .env(CHILD, "1")
            .env("RUST_BACKTRACE", "full")
            .output()
            .expect("it runs");
        let text = String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success() && !text.contains("s3cr3t"), "{text}");
        let lines: Vec<serde_json::Value> = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let [line] = &lines[..] else { panic!("{text}") };
        assert_eq!(text.lines().count(), 1, "{text}");
        assert_eq!(line["level"], "ERROR");
        let place = line["place"].as_str().expect("a place");
        assert!(
            place.starts_with("src/telemetry.rs:") && place.ends_with("lane"),
            "{place}"
        );
    }

    #[test]
    fn a_module_can_be_heard_alone() {
        let filter = filter("off,outbox_relay=debug");
        assert!(filter.would_enable("outbox_relay::relay", &Level::DEBUG));
        assert!(!filter.would_enable("hyper", &Level::ERROR));
    }
}
