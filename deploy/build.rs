//! Tells `outbox-relay --version` from which commit the program is built, and when that was made.
//!
//! A git checkout says it itself. Where there is none, as in a container build, `OUTBOX_RELAY_COMMIT` (any length) and
//! `OUTBOX_RELAY_COMMIT_DATE` (`2026-11-24`) may say it; in an archive of the sources without both, the version stands alone.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=deploy/build.rs");
    let commit = given("OUTBOX_RELAY_COMMIT").or_else(|| git(&["rev-parse", "HEAD"]));
    let date =
        given("OUTBOX_RELAY_COMMIT_DATE").or_else(|| git(&["log", "-1", "--format=%cd", "--date=format:%Y-%m-%d"]));
    // These files change with each commit and with each change of branch.
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", file]).filter(|path| Path::new(path).exists()) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let mut version = env!("CARGO_PKG_VERSION").to_owned();
    if let Some(commit) = commit {
        let short: String = commit.chars().take(12).collect();
        let date = date.map(|date| format!(" {date}")).unwrap_or_default();
        version = format!("{version} ({short}{date})");
    }
    println!("cargo::rustc-env=OUTBOX_RELAY_VERSION={version}");
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the environment of the build, not of the relay"
)]
fn given(name: &str) -> Option<String> {
    println!("cargo::rerun-if-env-changed={name}");
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// What git says of this checkout; nothing without git, or when the sources lie unpacked within another repository.
fn git(args: &[&str]) -> Option<String> {
    if !Path::new(".git").exists() {
        return None;
    }
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
