//! Programs in Python, with what `tests/run.sh` got from PyPI.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::{Child, Command};

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
