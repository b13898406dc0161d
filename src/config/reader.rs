//! Reads what the user wrote: one tree of the file's values, overridden by environment variables.
//!
//! Invariants: reading reports every problem and goes on; no other file reads the environment. The keys
//! that exist are the keys that are asked for: [`ConfigTable::finish`] reports every other key as
//! unknown, and suggests the nearest key that was asked for. What the keys mean is left to the sections.

use std::cell::RefCell;
use std::collections::BTreeMap;

use figment::providers::{Env, Format, Serialized, Toml};
use figment::value::{Dict, Value};
use figment::{Figment, Profile, Provider};
use toml_edit::{ImDocument, Item, TomlError};

use super::problem::{Problem, ProblemLocation, Problems, is_within, nearest, path_in};
pub use preset::{MergedTable, PresetTable};
pub use value::ConfigValue;
use variable::path_of;
pub use variable::variable_of;

mod preset;
mod value;
mod variable;

/// Environment variables that may be meant for an option: name and value.
pub type Variables = Vec<(String, String)>;

/// Collects the problems of a configuration, and finds where each value was written.
pub struct ProblemReport {
    file: String,
    document: ImDocument<String>,
    /// The paths that environment variables set, and the names of the variables.
    variables: BTreeMap<String, String>,
    /// The paths of the options that a variable can set.
    options: Vec<String>,
    problems: RefCell<Vec<Problem>>,
    /// Values that are allowed, but perhaps not meant.
    warnings: RefCell<Vec<Problem>>,
}

/// A table of the file, from which the keys are taken one by one.
pub struct ConfigTable<'r> {
    report: &'r ProblemReport,
    path: String,
    entries: Dict,
    asked: Vec<AskedKey>,
    /// The keys whose values come from a preset.
    inherited: Vec<String>,
}

/// A key that was taken from a table.
#[derive(Clone)]
struct AskedKey {
    key: &'static str,
    is_written: bool,
    /// The value for errors; `None` if there is none, or if it may be a secret.
    value: Option<Value>,
}

/// TOML as JSON; null if it is not valid.
pub fn as_json(text: &str) -> serde_json::Value {
    let read = Figment::from(Toml::string(text)).extract();
    read.unwrap_or_default()
}

// === reading ===

/// The environment variables of this process that start with `SERIATIM_`.
pub fn environment() -> Variables {
    let variables = Env::raw().lowercase(false);
    let own = variables
        .iter()
        .filter(|(name, _)| name.as_str().starts_with(variable::MEANT));
    own.map(|(name, value)| (name.into_string(), value))
        .collect()
}

/// Parses the file, and overrides its values with the variables.
///
/// # Errors
/// When the file isn't valid TOML. Other problems of such a file can't be found.
pub fn parse(
    file: &str,
    text: &str,
    variables: &Variables,
) -> Result<(ProblemReport, Dict), Problems> {
    let broken = |place, why| Problems {
        file: file.into(),
        problems: vec![Problem {
            place,
            ..Problem::new("", why)
        }],
    };
    let document = ImDocument::parse(text.to_owned()).map_err(|error| {
        let line = line_at(text, error.span().map_or(0, |span| span.start));
        broken(line.map(ProblemLocation::Line), not_toml(&error))
    })?;
    let figment = Figment::from(Toml::string(text)).merge(variables_provider(variables));
    let mut data = figment
        .data()
        .map_err(|error| broken(None, error.to_string()))?;
    let report = ProblemReport {
        file: file.into(),
        document,
        variables: variables
            .iter()
            .filter_map(|(name, _)| Some((path_of(name)?.join("."), name.clone())))
            .collect(),
        options: Vec::new(),
        problems: RefCell::default(),
        warnings: RefCell::default(),
    };
    Ok((report, data.remove(&Profile::Default).unwrap_or_default()))
}

/// Sets the places of problems that were found after `text` was read, over the environment of this process.
pub fn locate(text: &str, problems: &mut [Problem]) {
    let Ok((report, _)) = parse("", text, &environment()) else {
        return;
    };
    for problem in problems {
        problem.place = report.place(&problem.key);
    }
}

/// Why a file isn't valid TOML. The error's `Display` would show the line, and a password in it.
fn not_toml(error: &TomlError) -> String {
    let what = error.message().lines().collect::<Vec<_>>();
    format!("the file is not valid TOML: {}", what.join(", "))
}

/// The number of the line that has the byte at this offset, counted from 1.
fn line_at(text: &str, byte: usize) -> Option<usize> {
    Some(text.get(..byte)?.matches('\n').count() + 1)
}

/// The variables as strings. figment's own provider guesses types: a password of digits would become a
/// number and lose its zeros. The reader of an option knows which type it wants. Line breaks at the end, which
/// a Secret made from a file has, are not part of a value.
fn variables_provider(variables: &Variables) -> Figment {
    let set = variables
        .iter()
        .filter_map(|(name, value)| Some((path_of(name)?, value)));
    set.fold(Figment::new(), |all, (path, value)| {
        let leaf = Value::from(value.trim_end_matches(['\r', '\n']));
        let keys = path.into_iter().rev();
        let nested = keys.fold(leaf, |inner, key| Dict::from([(key, inner)]).into());
        all.merge(Serialized::defaults(nested))
    })
}

// === impl ProblemReport ===

impl ProblemReport {
    /// The top level of the file.
    pub fn root(&self, entries: Dict) -> ConfigTable<'_> {
        ConfigTable::new(self, String::new(), entries)
    }

    /// Reports a problem of the key at `path`. `value` is `None` where the value may be a secret.
    pub fn note(&self, path: &str, value: Option<String>, why: impl Into<String>) {
        self.add_to(&self.problems, path, value, why.into());
    }

    /// Warns about a value of the key at `path` that is allowed, but perhaps not meant.
    fn warn(&self, path: &str, value: Option<String>, why: impl Into<String>) {
        self.add_to(&self.warnings, path, value, why.into());
    }

    fn add_to(
        &self,
        found: &RefCell<Vec<Problem>>,
        path: &str,
        value: Option<String>,
        why: String,
    ) {
        let problem = Problem {
            value,
            place: self.place(path),
            ..Problem::new(path, why)
        };
        let mut found = found.borrow_mut();
        // An option beside a preset is read once for each route of the preset, and reported once.
        if !found.contains(&problem) {
            found.push(problem);
        }
    }

    /// Every warning.
    ///
    /// # Errors
    /// When a problem was reported, with all problems.
    pub fn finish(self) -> Result<Vec<Problem>, Problems> {
        let problems = self.problems.into_inner();
        match problems.is_empty() {
            true => Ok(self.warnings.into_inner()),
            false => Err(Problems {
                file: self.file,
                problems,
            }),
        }
    }

    fn place(&self, path: &str) -> Option<ProblemLocation> {
        // `routes[0].name` is split into `routes`, `0`, `name`.
        let steps = path
            .split(['.', '['])
            .map(|step| step.trim_end_matches(']'));
        let mut item = Some(self.document.as_item());
        let mut line = None;
        for step in steps {
            item = item.and_then(|item| match step.parse::<usize>() {
                Ok(index) => item.get(index),
                Err(_) => item.get(step),
            });
            let own = item.and_then(|item| line_at(self.document.raw(), item.span()?.start));
            line = own.or(line);
        }
        // A variable hides the file's value. A table may have keys from both.
        let is_files = item.is_some_and(Item::is_table_like);
        self.variable(path, is_files)
            .map(|name| ProblemLocation::Variable(name.into()))
            .or(line.map(ProblemLocation::Line))
    }

    /// The variable that set the value at `path` or a table that contains it; or, if the file doesn't
    /// have this table, a value in it.
    fn variable(&self, path: &str, is_files: bool) -> Option<&str> {
        let mut outer = self.variables.iter();
        let outer = outer.find(|(set, _)| is_within(path, set));
        let mut inner = self.variables.iter();
        let found = outer.or_else(|| inner.find(|(set, _)| !is_files && is_within(set, path)));
        found.map(|(_, name)| &**name)
    }
}

// === impl ConfigTable ===

impl<'r> ConfigTable<'r> {
    fn new(report: &'r ProblemReport, path: String, entries: Dict) -> Self {
        Self {
            report,
            path,
            entries,
            asked: Vec::new(),
            inherited: Vec::new(),
        }
    }

    /// The value of `key`, if it is written.
    pub fn take(&mut self, key: &'static str) -> Option<ConfigValue<'r>> {
        let value = self.entries.remove(key);
        self.asked_for(key, value.is_some(), value.clone());
        value.map(|value| self.entry(key, value))
    }

    /// The value of `key`, if it is written; no error shows it.
    pub fn take_secret(&mut self, key: &'static str) -> Option<ConfigValue<'r>> {
        let value = self.entries.remove(key);
        self.asked_for(key, value.is_some(), None);
        value.map(|value| self.entry(key, value))
    }

    fn asked_for(&mut self, key: &'static str, is_written: bool, value: Option<Value>) {
        match self.asked.iter_mut().find(|asked| asked.key == key) {
            // `name` is taken before the table is merged with the routes of a preset, and again after.
            Some(asked) => {
                asked.is_written |= is_written;
                asked.value = asked.value.take().or(value);
            }
            None => self.asked.push(AskedKey {
                key,
                is_written,
                value,
            }),
        }
    }

    fn entry(&self, key: &str, value: Value) -> ConfigValue<'r> {
        ConfigValue {
            report: self.report,
            path: path_in(&self.path, key),
            value,
        }
    }

    /// The table of `key`; an empty one if it isn't written.
    pub fn table(&mut self, key: &'static str) -> ConfigTable<'r> {
        let empty = Self::new(self.report, path_in(&self.path, key), Dict::new());
        self.take(key).and_then(ConfigValue::table).unwrap_or(empty)
    }

    /// Reports a problem of `key`, or of `key.entry`, with its value.
    pub fn note(&self, key: &str, why: impl Into<String>) {
        let value = match key.split_once('.') {
            Some((own, entry)) => self
                .value(own)
                .and_then(|value| value.as_dict()?.get(entry)),
            None => self.value(key),
        };
        self.report
            .note(&path_in(&self.path, key), value.map(value::show), why);
    }

    /// Reports a problem of `key`, whose value is shown as `value`.
    pub fn note_as(&self, key: &str, value: String, why: impl Into<String>) {
        let path = path_in(&self.path, key);
        self.report.note(&path, Some(value), why);
    }

    /// Reports a problem of an item of the list `key`, with the item.
    pub fn note_item(&self, key: &str, index: usize, why: impl Into<String>) {
        let (path, item) = self.item(key, index);
        self.report.note(&path, item, why);
    }

    /// Warns about an item of the list `key` that is allowed, but perhaps not meant.
    pub fn warn_item(&self, key: &str, index: usize, why: impl Into<String>) {
        let (path, item) = self.item(key, index);
        self.report.warn(&path, item, why);
    }

    /// The path of an item of the list `key`, and the item as an error shows it.
    fn item(&self, key: &str, index: usize) -> (String, Option<String>) {
        let item = self.value(key).and_then(|list| list.as_array()?.get(index));
        let path = format!("{}[{index}]", path_in(&self.path, key));
        (path, item.map(value::show))
    }

    fn value(&self, key: &str) -> Option<&Value> {
        let asked = self.asked.iter().find(|asked| asked.key == key);
        match asked {
            Some(asked) => asked.value.as_ref(),
            None => self.entries.get(key),
        }
    }

    /// Whether `key` was taken and is written, by the user or by the preset.
    pub fn wrote(&self, key: &str) -> bool {
        let mut asked = self.asked.iter();
        asked.any(|asked| asked.key == key && asked.is_written)
    }

    /// Whether a problem of `key`, or of a value in it, was reported.
    pub fn is_wrong(&self, key: &str) -> bool {
        let path = path_in(&self.path, key);
        let problems = self.report.problems.borrow();
        problems
            .iter()
            .any(|problem| is_within(&problem.key, &path))
    }

    /// All entries, for a table whose keys are not known in advance.
    pub fn drain(&mut self) -> Vec<(String, ConfigValue<'r>)> {
        let entries = std::mem::take(&mut self.entries).into_iter();
        entries
            .map(|(key, value)| (key.clone(), self.entry(&key, value)))
            .collect()
    }

    /// Reports every key that was not asked for as unknown.
    pub fn finish(self) {
        for key in self.entries.keys() {
            let path = path_in(&self.path, key);
            let known: Vec<_> = self.asked.iter().map(|asked| asked.key).collect();
            let near = nearest(key, known.iter().copied());
            let why = match (self.report.meant_by(&path), near) {
                (Some(meant), _) => format!("unknown key; did you mean {meant}?"),
                (None, Some(near)) => format!("unknown key; did you mean `{near}`?"),
                (None, None) => format!("unknown key; the keys here are {}", known.join(", ")),
            };
            // Without the value: it may be a secret under a misspelt name.
            self.report.note(&path, None, why);
        }
    }
}
