//! Where values come from: defaults, beneath the configuration file, beneath the environment.
//!
//! Everything stays text here: a password `007` must not become the number 7.

use std::{collections::HashMap, fs, path::Path};

use config::{Config as Layered, ConfigError, Environment, File, FileFormat, Source, Value, ValueKind};

use super::{
    findings::Findings,
    presets,
    variables::{self, CONFIG_FILE, PREFIX, PRESET, VARIABLES, Variable},
};

/// Texts by variable name, or by file key once resolved.
type Texts = HashMap<String, String>;

/// The text of every variable that has one, by [`Variable::key`].
pub(super) fn layered(environment: &Texts, findings: &mut Findings) -> Layered {
    let defaults = VARIABLES
        .iter()
        .filter_map(|variable| Some((variable.key(), variable.default?.to_owned())))
        .collect();
    warn_of_unknown_variables(environment, findings);
    let above = resolve(environment, None, &Texts::new(), findings);
    let path = environment.get(CONFIG_FILE).filter(|path| !path.is_empty());
    let beneath = path.map_or_else(Texts::new, |path| {
        let file = config_file(path, findings);
        resolve(&file, Some(path), &above, findings)
    });
    let preset = preset(&beneath, &above, findings);
    [defaults, preset, beneath, above]
        .into_iter()
        .fold(Layered::builder(), |layers, texts| layers.add_source(layer(texts)))
        .build()
        .unwrap_or_else(|_| {
            // Not reached with keys from the table. The error is dropped: it may quote a value.
            findings.problem(CONFIG_FILE, "the configuration cannot be put together");
            Layered::default()
        })
}

/// What `RELAY_PRESET` sets, but for what is set by hand in another way.
fn preset(beneath: &Texts, above: &Texts, findings: &mut Findings) -> Texts {
    let given = |variable: &str| {
        let key = variables::find(variable).map(Variable::key).unwrap_or_default();
        above.get(&key).or_else(|| beneath.get(&key))
    };
    let Some(name) = given(PRESET) else {
        return Texts::new();
    };
    match presets::preset(name.trim()) {
        Ok(preset) => preset
            .variables
            .iter()
            .filter(|(variable, _)| presets::counterpart(variable).and_then(given).is_none())
            .filter_map(|(variable, text)| Some((variables::find(variable)?.key(), (*text).to_owned())))
            .collect(),
        Err(message) => {
            findings.problem_of_value(PRESET, &message);
            Texts::new()
        }
    }
}

/// `Environment` is the crate's source of plain texts; `try_parsing` stays off.
fn layer(texts: Texts) -> Environment {
    Environment::default().source(Some(texts.into_iter().collect()))
}

fn warn_of_unknown_variables(environment: &Texts, findings: &mut Findings) {
    let mut unknown: Vec<_> = environment
        .iter()
        .filter(|(name, value)| name.starts_with(PREFIX) && !value.is_empty())
        .map(|(name, _)| name)
        .filter(|name| variables::known(name).is_none() && !variables::is_injected(name))
        .collect();
    unknown.sort();
    for name in unknown {
        let nearest = variables::nearest(name);
        findings.warning(format!("{name} is unknown and ignored; did you mean {nearest}?"));
    }
}

/// Replaces aliases and `_FILE` variables by what they stand for.
///
/// `path` is the configuration file that gave them, `None` the environment. Variables in `above`
/// are skipped: a value that is overridden need not be right.
fn resolve(given: &Texts, path: Option<&str>, above: &Texts, findings: &mut Findings) -> Texts {
    let mut texts = Texts::new();
    for variable in VARIABLES {
        if above.contains_key(&variable.key()) {
            continue;
        }
        for name in [Some(variable.name), variable.alias].into_iter().flatten() {
            if findings.failed(variable.name) {
                break;
            }
            let Some((text, name)) = value_or_file(variable, name, given, findings) else {
                continue;
            };
            if let Some(path) = given.get(&name).filter(|_| variable.secret && name.ends_with("_FILE")) {
                findings.read_from(variable.name, path);
            }
            match path {
                Some(path) => findings.origin(variable.name, format!("in the file {path}")),
                None if name != variable.name => {
                    findings.origin(variable.name, format!("as {name}"));
                }
                None => {}
            }
            texts.insert(variable.key(), text);
            break;
        }
    }
    texts
}

/// The value and the name it was found under: `name`, or `name` with `_FILE`.
fn value_or_file(variable: &Variable, name: &str, given: &Texts, findings: &mut Findings) -> Option<(String, String)> {
    let get = |name: &str| given.get(name).filter(|text| !text.is_empty());
    let file_name = format!("{name}_FILE");
    let path = get(&file_name).filter(|_| variable.secret);
    match (get(name), path) {
        (Some(_), Some(_)) => {
            let message = format!("{name} and {file_name} are both given; remove one of them");
            findings.problem(variable.name, message);
            None
        }
        (None, Some(path)) => match read_secret(path) {
            Ok(text) => Some((text, file_name)),
            Err(message) => {
                findings.problem(variable.name, format!("{file_name}: {message}"));
                None
            }
        },
        (text, None) => Some((text?.clone(), name.to_owned())),
    }
}

/// The file's content without the newline that editors and `echo` put at its end.
pub(super) fn read_secret(path: &str) -> Result<String, String> {
    match read_file(path)?.trim_end_matches(['\r', '\n']) {
        "" => Err(format!("the file {path} is empty; write the value into it")),
        text => Ok(text.to_owned()),
    }
}

/// The file's content, or what to do about the file.
pub(super) fn read_file(path: &str) -> Result<String, String> {
    let looks_secret = path.contains("://") || path.contains(':') && path.contains('@');
    if looks_secret || path.contains('\n') {
        // Someone gave the secret itself: the path must not be quoted.
        return Err("must be the path of a file, but is a URL or a file's content".to_owned());
    }
    fs::read_to_string(Path::new(path))
        .map_err(|error| format!("cannot read the file {path}: {error}; correct path or permissions"))
}

/// The configuration file's values under their variable names.
fn config_file(path: &str, findings: &mut Findings) -> Texts {
    let parsed = read_file(path).and_then(|text| {
        File::from_str(&text, FileFormat::Toml)
            .collect()
            .map_err(|error| syntax_problem(path, &error))
    });
    let mut entries = Vec::new();
    match parsed {
        Ok(table) => flatten("", table, &mut entries),
        Err(message) => findings.problem(CONFIG_FILE, message),
    }
    named(path, entries, findings)
}

/// Names file and line only: the parser's own message quotes the line, which may hold a password.
fn syntax_problem(path: &str, error: &ConfigError) -> String {
    let message = error.to_string();
    let line: String = message
        .split_once("at line ")
        .map(|(_, rest)| rest.chars().take_while(char::is_ascii_digit).collect())
        .unwrap_or_default();
    if line.is_empty() {
        format!("the file {path} is not valid TOML")
    } else {
        format!("the file {path} is not valid TOML at line {line}; correct that line")
    }
}

/// `[poll] batch_size` becomes `poll_batch_size`; a list has no text.
fn flatten(prefix: &str, table: config::Map<String, Value>, entries: &mut Vec<(String, Option<String>)>) {
    for (key, value) in table {
        let key = if prefix.is_empty() {
            key
        } else {
            format!("{prefix}_{key}")
        };
        match value.kind {
            ValueKind::Table(inner) => flatten(&key, inner, entries),
            ValueKind::Array(_) | ValueKind::Nil => entries.push((key, None)),
            _ => entries.push((key, value.into_string().ok())),
        }
    }
}

/// The entries under the names they have in the environment.
fn named(path: &str, mut entries: Vec<(String, Option<String>)>, findings: &mut Findings) -> Texts {
    entries.sort();
    let mut texts = Texts::new();
    for (key, text) in entries {
        let name = format!("{PREFIX}{}", key.to_ascii_uppercase());
        let lower_case = key == key.to_ascii_lowercase();
        let variable = variables::known(&name).filter(|_| lower_case && name != CONFIG_FILE);
        let Some(variable) = variable else {
            warn_of_unknown_key(path, &key, &name, findings);
            continue;
        };
        let Some(text) = text else {
            let advice = "must be one text in quotes, not a list; separate several by commas";
            findings.problem(variable.name, format!("`{key}` in the file {path} {advice}"));
            continue;
        };
        if texts.insert(name, text).is_some() {
            let message = format!("`{key}` is given twice in the file {path}; remove one");
            findings.problem(variable.name, message);
        }
    }
    texts
}

fn warn_of_unknown_key(path: &str, key: &str, name: &str, findings: &mut Findings) {
    // A quoted key can be anything, even a URL put in the wrong place.
    let plain = |c: char| c.is_alphanumeric() || "_-.".contains(c);
    let shown = if key.chars().all(plain) { key } else { "(not shown)" };
    let nearest = variables::nearest(name);
    let key = nearest.trim_start_matches(PREFIX).to_ascii_lowercase();
    findings.warning(format!(
        "the key `{shown}` in the file {path} is unknown and ignored; did you mean `{key}` ({nearest})?"
    ));
}
