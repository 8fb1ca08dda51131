//! Everything wrong with a configuration, collected so that one start shows all of it.

use std::{collections::HashMap, fmt, path::Path, sync::Arc};

use super::variables::VARIABLES;

/// One thing that must be changed before the relay starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The variable to change.
    pub variable: String,
    /// What is wrong and what to do, without quoting a secret.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.variable, self.message)
    }
}

/// Every problem of a configuration, in the order of [`VARIABLES`], never empty.
///
/// `Display` writes one line each: the variable, what is wrong, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigErrors(Vec<Problem>);

impl ConfigErrors {
    /// The problems one by one.
    pub fn problems(&self) -> &[Problem] {
        &self.0
    }
}

/// What has been found while reading.
#[derive(Debug, Default)]
pub(super) struct Findings {
    problems: Vec<Problem>,
    warnings: Vec<String>,
    /// How a variable was given, where that is not under its own name in the environment.
    origins: HashMap<&'static str, String>,
    /// The files that secrets were read from.
    files: HashMap<&'static str, Arc<Path>>,
}

impl Findings {
    pub(super) fn problem(&mut self, variable: &str, message: impl Into<String>) {
        self.problems.push(Problem {
            variable: variable.to_owned(),
            message: message.into(),
        });
    }

    /// A problem of the value itself, which says where the value came from.
    pub(super) fn problem_of_value(&mut self, variable: &str, message: &str) {
        let origin = self.origins.get(variable);
        let origin = origin.map(|origin| format!(" (given {origin})"));
        self.problem(variable, format!("{message}{}", origin.unwrap_or_default()));
    }

    pub(super) fn origin(&mut self, variable: &'static str, origin: String) {
        self.origins.insert(variable, origin);
    }

    pub(super) fn read_from(&mut self, variable: &'static str, path: &str) {
        self.files.insert(variable, Path::new(path).into());
    }

    /// The file that this secret was read from.
    pub(super) fn file(&self, variable: &str) -> Option<Arc<Path>> {
        self.files.get(variable).cloned()
    }

    pub(super) fn warning(&mut self, message: String) {
        self.warnings.push(message);
    }

    /// Whether a problem of this variable is already known; a second one would only confuse.
    pub(super) fn failed(&self, variable: &str) -> bool {
        self.problems.iter().any(|problem| problem.variable == variable)
    }

    /// The warnings, unless there is a problem.
    pub(super) fn finish(mut self) -> Result<Vec<String>, ConfigErrors> {
        if self.problems.is_empty() {
            return Ok(self.warnings);
        }
        let place = |problem: &Problem| VARIABLES.iter().position(|v| v.name == problem.variable);
        self.problems
            .sort_by_key(|problem| place(problem).unwrap_or(VARIABLES.len()));
        Err(ConfigErrors(self.problems))
    }
}

/// Quotes a value that is no secret by itself, unless it looks like one put in the wrong place.
pub(super) fn shown(value: &str) -> String {
    let suspicious = |c: char| c.is_control() || matches!(c, '@' | '/' | '=');
    if value.chars().count() > 40 || value.contains(suspicious) {
        "is something else (not shown: it might hold a secret)".to_owned()
    } else {
        format!("is `{value}`")
    }
}
