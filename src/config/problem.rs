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

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = match (&*self.key, &self.value) {
            (key, Some(value)) if !key.is_empty() => format!("{key} = {value}"),
            (key, _) => key.to_owned(),
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

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        writeln!(
            f,
            "{}: {count} problem{}",
            self.file,
            if count == 1 { "" } else { "s" }
        )?;
        self.problems
            .iter()
            .try_for_each(|problem| writeln!(f, "  {problem}"))
    }
}

impl std::error::Error for Problems {}
