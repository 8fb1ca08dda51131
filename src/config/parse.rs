//! From text to type, with every problem noted and none thrown.

use std::{fmt::Display, ops::RangeInclusive, path::PathBuf, str::FromStr, time::Duration};

use config::Config as Layered;

use super::{
    findings::{Findings, shown},
    secret::{self, DATABASE_SCHEMES, Secret, check_token, check_url, redacted_url},
    sources::read_file,
    tls::Tls,
    variables,
};

/// Reads variables by name.
///
/// After a problem a method hands out a placeholder, so that reading goes on and the next problem
/// is found; a load with problems never returns a configuration.
pub(super) struct Reader<'a> {
    texts: Layered,
    findings: &'a mut Findings,
}

impl<'a> Reader<'a> {
    pub(super) fn new(texts: Layered, findings: &'a mut Findings) -> Self {
        Self { texts, findings }
    }

    /// The text as given, spaces included; `None` when there is not even a default.
    fn text(&self, name: &str) -> Option<String> {
        let key = variables::find(name)?.key();
        self.texts.get_string(&key).ok()
    }

    /// Every variable with its text, as it may be shown.
    pub(super) fn in_force(&self) -> Vec<(&'static str, String)> {
        let shown = |name: &str, text: String, secret: bool| match secret {
            true if text.is_empty() => text,
            // The only list. In another URL a comma belongs to the password, whose beginning would pass for a port.
            true if name == "RELAY_AMQP_URL" => text.split(',').map(redacted_url).collect::<Vec<_>>().join(", "),
            true if name.ends_with("_URL") => redacted_url(&text),
            true => Secret::new(text).to_string(),
            false => text,
        };
        variables::VARIABLES
            .iter()
            .map(|variable| {
                (
                    variable.name,
                    shown(
                        variable.name,
                        self.text(variable.name).unwrap_or_default(),
                        variable.secret,
                    ),
                )
            })
            .collect()
    }

    /// The value that `parse` makes of the trimmed text; its error follows the variable's name.
    pub(super) fn parsed<T>(&mut self, name: &str, placeholder: T, parse: impl FnOnce(&str) -> Result<T, String>) -> T {
        if self.findings.failed(name) {
            return placeholder;
        }
        let Some(text) = self.text(name) else {
            self.missing(name);
            return placeholder;
        };
        parse(text.trim()).unwrap_or_else(|message| {
            self.findings.problem_of_value(name, &message);
            placeholder
        })
    }

    /// The value that `parse` makes of the trimmed text; `None` where it is not set, or has a problem.
    pub(super) fn optional<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        self.text(name)?;
        self.parsed(name, None, |text| parse(text).map(Some))
    }

    /// Whether anything is said, be it by a default.
    pub(super) fn is_set(&self, name: &str) -> bool {
        self.text(name).is_some()
    }

    /// Something odd, that the relay can work with.
    pub(super) fn warning(&mut self, message: String) {
        self.findings.warning(message);
    }

    /// A problem that shows in several variables together; only the first of a variable is noted.
    pub(super) fn problem(&mut self, name: &str, message: String) {
        if !self.findings.failed(name) {
            self.findings.problem(name, message);
        }
    }

    fn missing(&mut self, name: &str) {
        // The value may well stand in a configuration file that could not be read.
        if self.findings.failed(variables::CONFIG_FILE) {
            return;
        }
        let others = variables::find(name).and_then(|variable| {
            let (file, alias) = (variable.file_name()?, variable.alias?);
            Some(format!(", {alias}, or {file} with the path of a file that holds it"))
        });
        let others = others.unwrap_or_default();
        self.findings.problem(name, format!("is required; set {name}{others}"));
    }

    /// One URL of a database.
    pub(super) fn database_url(&mut self, name: &str) -> Secret {
        let file = self.findings.file(name);
        self.parsed(name, Secret::default(), |text| {
            check_url(text, DATABASE_SCHEMES).map(|()| Secret::new(text).read_in(file))
        })
    }

    /// One or more URLs, separated by commas.
    pub(super) fn broker_urls(&mut self, name: &str, tls: &Tls) -> Vec<Secret> {
        let file = self.findings.file(name);
        self.parsed(name, Vec::new(), |text| {
            let urls = Secret::new(text).read_in(file);
            secret::broker_urls(&urls, tls)
        })
    }

    /// The URL of a broker's management plug-in.
    pub(super) fn management_url(&mut self, name: &str, tls: &Tls) -> Option<Secret> {
        let file = self.findings.file(name);
        self.optional(name, |text| {
            secret::check_management_url(text, tls).map(|()| Secret::new(text).read_in(file))
        })
    }

    /// A secret that can stand in an HTTP header.
    pub(super) fn token(&mut self, name: &str) -> Option<Secret> {
        let file = self.findings.file(name);
        self.optional(name, |text| check_token(text).map(|()| Secret::new(text).read_in(file)))
    }

    /// The path of a PEM file, which `check` must be content with.
    pub(super) fn pem_file(&mut self, name: &str, check: impl FnOnce(&[u8]) -> Result<(), String>) -> Option<PathBuf> {
        self.optional(name, |path| {
            let pem = read_file(path)?;
            check(pem.as_bytes()).map_err(|problem| format!("the file {path} {problem}"))?;
            Ok(PathBuf::from(path))
        })
    }

    /// A text as given, spaces included, of at most 255 bytes as AMQP's short strings; unset is
    /// empty.
    pub(super) fn short_text(&mut self, name: &str) -> String {
        let text = self.text(name).unwrap_or_default();
        if text.len() > 255 {
            self.findings.problem_of_value(name, "must be at most 255 bytes long");
        }
        text
    }

    /// One of the words in `choices`.
    pub(super) fn choice<T: Copy>(&mut self, name: &str, first: T, choices: &[(&str, T)]) -> T {
        self.parsed(name, first, |text| {
            let chosen = choices.iter().find(|(word, _)| *word == text);
            chosen.map(|(_, value)| *value).ok_or_else(|| {
                let words: Vec<_> = choices.iter().map(|(word, _)| format!("`{word}`")).collect();
                format!("must be {}, but {}", either(&words), shown(text))
            })
        })
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, name: &str) -> bool {
        self.choice(name, false, &[("true", true), ("false", false)])
    }

    /// A whole number within `bounds`.
    pub(super) fn integer<T>(&mut self, name: &str, bounds: RangeInclusive<T>) -> T
    where
        T: FromStr + PartialOrd + Display + Copy,
    {
        self.parsed(name, *bounds.start(), |text| {
            let number = text.parse().ok().filter(|number| bounds.contains(number));
            number.ok_or_else(|| {
                let (low, high) = (bounds.start(), bounds.end());
                format!("must be a whole number, {low} to {high}, but {}", shown(text))
            })
        })
    }

    /// A duration with a unit, within `bounds`.
    pub(super) fn duration(&mut self, name: &str, bounds: RangeInclusive<Duration>) -> Duration {
        self.parsed(name, *bounds.start(), |text| duration(text, &bounds))
    }

    /// A size with a unit, in bytes; the bounds come with the words for them.
    pub(super) fn bytes(&mut self, name: &str, low: (u64, &str), high: (u64, &str)) -> u64 {
        self.parsed(name, low.0, |text| {
            let size = parse_bytes(text)?;
            if (low.0..=high.0).contains(&size) {
                Ok(size)
            } else {
                Err(format!("must be {} to {}, but {}", low.1, high.1, shown(text)))
            }
        })
    }

    /// Notes a problem when `low` is above `high`, unless one of them has a problem already.
    pub(super) fn ordered(&mut self, low: (&str, Duration), high: (&str, Duration)) {
        let failed = self.findings.failed(low.0) || self.findings.failed(high.0);
        if !failed && low.1 > high.1 {
            let (low_text, high_text) = (words(low.1), words(high.1));
            self.findings.problem(
                low.0,
                format!(
                    "is {low_text}, above {} with {high_text}; lower it or raise that",
                    high.0
                ),
            );
        }
    }
}

/// A duration with a unit, within `bounds`.
pub(super) fn duration(text: &str, bounds: &RangeInclusive<Duration>) -> Result<Duration, String> {
    // The library takes a bare `0`; here every duration has a unit.
    let parsed = humantime::parse_duration(text).ok().filter(|_| text != "0");
    let Some(parsed) = parsed else {
        let shown = shown(text);
        return Err(format!(
            "must be a number with a unit, like `500ms`, `30s` or `7d`, but {shown}"
        ));
    };
    if bounds.contains(&parsed) {
        return Ok(parsed);
    }
    let (low, high) = (words(*bounds.start()), words(*bounds.end()));
    // `5M` is five months to the library, so what was understood is said too.
    let understood = words(parsed);
    Err(format!("must be {low} to {high}, but {} ({understood})", shown(text)))
}

/// A whole number with one of the units.
fn parse_bytes(text: &str) -> Result<u64, String> {
    const UNITS: &[(&str, u64)] = &[
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1), // last, since the others end with it
    ];
    let unit = UNITS
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)));
    unit.and_then(|(number, factor)| {
        let digits = number.trim_end();
        let plain = digits.chars().all(|c| c.is_ascii_digit());
        digits.parse::<u64>().ok().filter(|_| plain)?.checked_mul(*factor)
    })
    .ok_or_else(|| {
        let units = "`B`, `KiB`, `MiB`, `GiB`, `kB`, `MB` or `GB`";
        format!("must be a whole number with a unit, {units}, but {}", shown(text))
    })
}

/// The shortest exact way to write a duration, in days at most.
fn words(duration: Duration) -> String {
    const UNITS: &[(u128, &str)] = &[
        (86_400_000_000_000, "d"),
        (3_600_000_000_000, "h"),
        (60_000_000_000, "m"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1_000, "us"),
    ];
    let nanos = duration.as_nanos();
    let whole = UNITS.iter().find(|(unit, _)| nanos > 0 && nanos.is_multiple_of(*unit));
    whole.map_or_else(
        || format!("{nanos}ns"),
        |(unit, name)| format!("{}{name}", nanos / unit),
    )
}

/// `a`, `a or b`, `a, b or c`.
pub(super) fn either(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// Checks a list of levels: `info`, or `info,outbox_relay=debug`.
///
/// A bare word must be a level. The filter would take `inof` for a module and log nothing.
///
/// # Errors
/// A sentence about the entry that is none, to follow the variable's name.
pub fn log_directives(text: &str) -> Result<String, String> {
    const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |word: &str| LEVELS.contains(&word);
    let is_module =
        |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "_:-.".contains(c));
    let mut directives = Vec::new();
    for (index, directive) in text.split(',').map(str::trim).enumerate() {
        let understood = match directive.split_once('=') {
            Some((module, level)) => is_module(module) && is_level(level),
            None => is_level(directive),
        };
        if !understood {
            return Err(format!(
                "entry {} must be a level or `module=level`, but {}; levels are {}",
                index + 1,
                shown(directive),
                LEVELS.join(", ")
            ));
        }
        directives.push(directive);
    }
    Ok(directives.join(","))
}
