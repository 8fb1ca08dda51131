//! Variables and a configuration file of any text give a configuration or a list of what is wrong, and never a password.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::{Corpus, fuzz_target};
use outbox_relay::config::{self, VARIABLES};

/// Must not be seen again. Digits only: what is cut off before it may then pass for a host, and this for its port.
const PASSWORD: &str = "47110815";

/// In memory, one for each process.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let name = format!("outbox-relay-fuzz-{}.toml", std::process::id());
    PathBuf::from("/dev/shm").join(name)
});

// Two lines of text around the passwords, `NAME=value` lines, an empty line, and the file.
fuzz_target!(|data: &[u8]| -> Corpus {
    let text = String::from_utf8_lossy(data);
    // It would have to be told from the one that was hidden. A device need not end.
    if text.contains(PASSWORD) || text.contains("/dev/") || text.contains("/proc/") {
        return Corpus::Reject;
    }
    let (variables, file) = text.split_once("\n\n").unwrap_or((&text, ""));
    let mut lines = variables.lines();
    let (before, behind) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let password = format!("{before}{PASSWORD}{behind}");
    let mut env = vec![
        (
            "RELAY_DATABASE_URL".to_owned(),
            format!("postgres://app:{password}@db/app"),
        ),
        (
            "RELAY_AMQP_URL".to_owned(),
            format!("amqps://relay:{password}@rabbit/%2f"),
        ),
        ("RELAY_ADMIN_TOKEN".to_owned(), password),
    ];
    let given = lines.filter_map(|line| line.split_once('='));
    env.extend(given.map(|(name, value)| (name.to_owned(), value.to_owned())));
    if !file.is_empty() {
        fs::write(&*FILE, file).expect("room in /dev/shm");
        env.push(("RELAY_CONFIG_FILE".to_owned(), FILE.display().to_string()));
    }
    let told = match config::load(env) {
        Ok(loaded) => format!("{:?} {:?}", loaded.config, loaded.warnings),
        Err(errors) => {
            for problem in errors.problems() {
                let known = VARIABLES.iter().any(|variable| variable.name == problem.variable);
                assert!(known, "a problem of {:?}", problem.variable);
            }
            errors.to_string()
        }
    };
    assert!(!told.contains(PASSWORD), "{told}");
    Corpus::Keep
});
