//! Shell completions and the manual page, from the definition of the command line.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

const NAME: &str = "outbox-relay";

pub(super) fn completions<C: CommandFactory>(shell: Shell) -> ExitCode {
    // In memory first: a pipe that was closed would end the generator with a panic.
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut C::command(), NAME, &mut text);
    written(io::Write::write_all(&mut io::stdout(), &text))
}

/// The page of the program, which has the variables of the environment; or that and one for each command in `folder`.
pub(super) fn man<C: CommandFactory>(folder: Option<&Path>) -> ExitCode {
    if let Some(folder) = folder {
        return written(clap_mangen::generate_to(C::command(), folder));
    }
    let mut text = Vec::new();
    let page = clap_mangen::Man::new(C::command()).render(&mut text);
    written(page.and_then(|()| io::Write::write_all(&mut io::stdout(), &text)))
}

fn written(result: io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("outbox-relay: cannot write: {error}");
            ExitCode::FAILURE
        }
    }
}
