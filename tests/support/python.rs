//! Consumers in Python: other libraries than the relay's at the other end of the broker.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::OnceCell;

const REQUIREMENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/requirements.txt");

/// The packages come over the network, once.
const SET_UP: Duration = Duration::from_secs(300);
const STEP: Duration = Duration::from_secs(60);

static VENV: OnceCell<PathBuf> = OnceCell::const_new();

/// Runs a script of `tests/suite` to its end; what it printed.
pub async fn python(script: &str, arguments: &[&str]) -> String {
    let venv = VENV.get_or_init(venv).await;
    let path = format!("{}/tests/suite/{script}", env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(venv.join("bin/python"));
    run(command.arg(path).args(arguments), STEP).await
}

/// A virtual environment in the folder of the build, made anew when the requirements change.
async fn venv() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("python");
    let noted = folder.join("installed.txt");
    let wanted = std::fs::read_to_string(REQUIREMENTS).expect("it is there");
    if std::fs::read_to_string(&noted).ok().as_ref() != Some(&wanted) {
        run(
            Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder),
            SET_UP,
        )
        .await;
        let mut pip = Command::new(folder.join("bin/python"));
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--requirement",
            REQUIREMENTS,
        ]);
        run(&mut pip, SET_UP).await;
        std::fs::write(&noted, wanted).expect("can be written");
    }
    folder
}

async fn run(command: &mut Command, bound: Duration) -> String {
    let child = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(bound, child).await;
    let output = output.unwrap_or_else(|_| panic!("not within {bound:?}: {command:?}"));
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8(output.stdout).expect("UTF-8")
}
