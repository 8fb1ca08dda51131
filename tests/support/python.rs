//! Programs in Python, with what `tests/run.sh` got from PyPI.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

/// For a program that ends by itself.
const RUN: Duration = Duration::from_secs(60);

/// Starts `tests/python/<program>` with its standard output piped; it is killed when it is dropped.
pub fn start(program: &str, arguments: &[&str]) -> Child {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(program);
    Command::new("python3")
        .arg(program)
        .args(arguments)
        .env("PYTHONPATH", packages())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("python3 is installed: see ./tests/run.sh --install-only")
}

/// Runs `tests/python/<program>` to its end; what it printed.
pub async fn run(program: &str, arguments: &[&str]) -> String {
    let ended = tokio::time::timeout(RUN, start(program, arguments).wait_with_output()).await;
    let output = ended.unwrap_or_else(|_| panic!("{program} does not end within {RUN:?}"));
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {}", output.status);
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Where the packages are; any version of Python can use them.
fn packages() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("the target folder");
    let libraries = std::fs::read_dir(target.join("tests-python/lib")).into_iter().flatten();
    let mut folders = libraries.filter_map(|version| Some(version.ok()?.path().join("site-packages")));
    folders
        .find(|folder| folder.join("pika").is_dir())
        .expect("pika is needed: run ./tests/run.sh --install-only")
}
