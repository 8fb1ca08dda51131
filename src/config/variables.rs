//! What parsing, `--help` and the README take from the table of every variable.

mod table;

use std::fmt::Write as _;

pub use table::VARIABLES;

/// What every variable's name starts with.
pub(super) const PREFIX: &str = "RELAY_";

/// The variable that names the TOML file beneath the environment.
pub(super) const CONFIG_FILE: &str = "RELAY_CONFIG_FILE";

/// The variable that sets others, for tables that are well known.
pub(super) const PRESET: &str = "RELAY_PRESET";

/// One variable of the environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variable {
    /// The name in the environment.
    pub name: &'static str,
    /// The text used when the variable is not set.
    pub default: Option<&'static str>,
    /// Whether the relay refuses to start without it.
    pub required: bool,
    /// Whether its value is never shown; it may then be given as `<name>_FILE` too.
    pub secret: bool,
    /// One line for `--help` and the README, with unit and bounds.
    pub help: &'static str,
    /// A name without the prefix that is accepted when `name` is not set.
    pub alias: Option<&'static str>,
}

impl Variable {
    /// The key in the configuration file: the name without its prefix, in lower case.
    pub fn key(&self) -> String {
        self.name.trim_start_matches(PREFIX).to_ascii_lowercase()
    }

    /// The variable that names a file with the value, for secrets.
    pub fn file_name(&self) -> Option<String> {
        self.secret.then(|| format!("{}_FILE", self.name))
    }

    /// What the table of `--help` and of the README shows as the default.
    pub(super) fn default_text(&self) -> &'static str {
        match self.default {
            Some(text) => text,
            None if self.required => "required",
            None => "empty",
        }
    }
}

/// The variables as aligned text for `--help`: a line with name and default, then the help.
pub fn help_text() -> String {
    let mut text = String::new();
    for variable in VARIABLES {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {} [{}]", variable.name, variable.default_text());
        let _ = writeln!(text, "      {}", variable.help);
        if let (Some(file), Some(alias)) = (variable.file_name(), variable.alias) {
            let _ = writeln!(text, "      also {alias}, or {file}: a file that holds it");
        }
    }
    text.push_str("  OTEL_EXPORTER_OTLP_ENDPOINT and others of OpenTelemetry\n      send a span for each publish: see the README\n");
    text
}

/// The variables as a Markdown table for the README.
pub fn markdown_table() -> String {
    let mut text = String::from("| variable | default | |\n|---|---|---|\n");
    for variable in VARIABLES {
        let default = match variable.default {
            Some(value) => format!("`{value}`"),
            None => variable.default_text().to_owned(),
        };
        let _ = writeln!(text, "| `{}` | {default} | {} |", variable.name, variable.help);
    }
    text
}

/// The variable of this name; the name must be one of the table.
pub(super) fn find(name: &str) -> Option<&'static Variable> {
    VARIABLES.iter().find(|variable| variable.name == name)
}

/// The variable that `name` sets, as itself or as a secret's file; aliases do not count.
pub(super) fn known(name: &str) -> Option<&'static Variable> {
    let of_file = || {
        name.strip_suffix("_FILE")
            .and_then(find)
            .filter(|variable| variable.secret)
    };
    find(name).or_else(of_file)
}

/// The variable to blame for `name`: the one it sets, or itself when it is meant for the relay.
pub(super) fn concerned(name: &str) -> Option<&str> {
    let meant = name.starts_with(PREFIX) && !is_injected(name);
    meant.then(|| known(name).map_or(name, |variable| variable.name))
}

/// Whether Kubernetes injects `name` into every pod beside a Service called `relay`.
pub(super) fn is_injected(name: &str) -> bool {
    name == "RELAY_PORT" || name.starts_with("RELAY_PORT_") || name.starts_with("RELAY_SERVICE_")
}

/// The known variable whose name resembles `name` most.
pub(super) fn nearest(name: &str) -> &'static str {
    // Common letter pairs find `RELAY_TABLE` → `RELAY_OUTBOX_TABLE`; edits find `RELAY_LGO`.
    let score = |known: &str| {
        let (a, b) = (strip(name), strip(known));
        strsim::sorensen_dice(a, b) + strsim::normalized_damerau_levenshtein(a, b)
    };
    VARIABLES
        .iter()
        .map(|variable| variable.name)
        .max_by(|a, b| score(a).total_cmp(&score(b)))
        .unwrap_or(CONFIG_FILE)
}

fn strip(name: &str) -> &str {
    name.strip_prefix(PREFIX).unwrap_or(name)
}
