//! All that is wrong with a configuration, at once: the key, its value, why, and what to write.

use std::fmt;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key's path, as `routes[0].session_id[1]`; empty for the file as a whole.
    pub key: String,
    /// The value as it was written, unless it is missing or may be a secret.
    pub value: Option<String>,
    /// Where it was written.
    pub place: Option<ProblemLocation>,
    /// What is wrong, and what to write instead.
    pub why: String,
}

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProblemLocation {
    /// On this line of the file, counted from 1.
    Line(usize),
    /// In this environment variable.
    Variable(String),
}

/// Everything that is wrong with one configuration. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    /// The file's name, for the heading.
    pub file: String,
    /// What is wrong, in the order in which it was found.
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
