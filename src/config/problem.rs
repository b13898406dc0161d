//! The problems of a configuration, all of them at once: key, value, place, reason and remedy.
//!
//! Invariant: a problem is one line, and shows no secret. Finding problems is left to the reader and to
//! the sections.

use std::fmt;

/// One problem of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The path of the key, as `routes[0].session_id[1]`; empty for the whole file.
    pub key: String,
    /// The value as TOML; `None` if it is missing or may be a secret.
    pub value: Option<String>,
    /// Where the value was written; `None` if it was not.
    pub place: Option<ProblemLocation>,
    /// What is wrong, and what to write instead.
    pub why: String,
}

/// The place where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProblemLocation {
    /// A line of the file, counted from 1.
    Line(usize),
    /// The name of an environment variable.
    Variable(String),
}

/// All problems of one configuration. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    /// The name of the file, for the heading.
    pub file: String,
    /// The problems, in the order in which they were found.
    pub problems: Vec<Problem>,
}

/// The path of `key` in a table; the top level has the path "".
pub(super) fn path_in(table: &str, key: &str) -> String {
    match table {
        "" => key.into(),
        table => format!("{table}.{key}"),
    }
}

/// Whether `inner` is the path `outer`, or the path of a value in it.
pub(super) fn is_within(inner: &str, outer: &str) -> bool {
    let rest = inner.strip_prefix(outer);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// The name that `text` may be a misspelling of; `None` if no name is similar to it.
pub(super) fn nearest<'n>(text: &str, names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    // Names that are less alike than this have nothing in common.
    const ALIKE: f64 = 0.75;
    let rated = names
        .into_iter()
        .map(|name| (strsim::jaro_winkler(text, name), name));
    let best = rated.max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(likeness, _)| *likeness > ALIKE)
        .map(|(_, name)| name)
}

// === impl Problem ===

impl Problem {
    /// A problem of the key with this path, without its value and place.
    pub(super) fn new(key: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            value: None,
            place: None,
            why: why.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = match &self.value {
            Some(value) if !self.key.is_empty() => format!("{} = {value}", self.key),
            _ => self.key.clone(),
        };
        let place = match &self.place {
            Some(ProblemLocation::Line(line)) => format!("line {line}"),
            Some(ProblemLocation::Variable(name)) => format!("environment variable {name}"),
            None => String::new(),
        };
        match (&*key, &*place) {
            ("", "") => {}
            (key, "") => write!(f, "{key}: ")?,
            ("", place) => write!(f, "{place}: ")?,
            (key, place) => write!(f, "{key} ({place}): ")?,
        }
        f.write_str(&self.why)
    }
}

// === impl Problems ===

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        let plural = if count == 1 { "" } else { "s" };
        writeln!(f, "{}: {count} problem{plural}", self.file)?;
        self.problems
            .iter()
            .try_for_each(|problem| writeln!(f, "  {problem}"))
    }
}

impl std::error::Error for Problems {}
