//! What the user wrote: the file, with the environment over it, as one tree; and the typed reading
//! of it, which notes every problem and goes on. The only reader of the environment.
//!
//! The keys that exist are the keys that are asked for: what nobody has asked a [`ConfigTable`] for by
//! the time it is finished is an unknown key, and the names asked for are what it is compared with.

use std::cell::RefCell;
use std::collections::BTreeMap;

use figment::providers::{Env, Format, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use toml_edit::{ImDocument, Item, TomlError};

use super::problem::{Problem, ProblemLocation, Problems};
pub use preset::PresetTable;
pub use value::ConfigValue;

mod preset;
mod value;

/// The prefix of every variable. Two underscores, because Kubernetes puts `SERIATIM_SERVICE_HOST`
/// and the like into pods by itself.
const PREFIX: &str = "SERIATIM__";

/// Environment variables: name and value.
pub type Variables = Vec<(String, String)>;

/// Where problems are noted, and how a value's place is found.
pub struct ProblemReport {
    file: String,
    document: ImDocument<String>,
    /// Paths that the environment has set, and the variables that did.
    variables: BTreeMap<String, String>,
    problems: RefCell<Vec<Problem>>,
}

/// A table of the file, of which one key after the other is taken.
pub struct ConfigTable<'r> {
    report: &'r ProblemReport,
    path: String,
    entries: Dict,
    asked: Vec<(&'static str, bool)>,
    /// Keys whose values are a preset's.
    inherited: Vec<String>,
}

// === reading ===

/// The variables of this process that are meant for the configuration, by figment's reading.
pub fn environment() -> Variables {
    let variables = Env::raw().lowercase(false);
    let own = variables
        .iter()
        .filter(|(name, _)| name.as_str().starts_with(PREFIX));
    own.map(|(name, value)| (name.into_string(), value))
        .collect()
}

/// Parses the file and lays the variables over it.
///
/// # Errors
/// When the file isn't TOML: then nothing else can be said of it.
pub fn parse(
    file: &str,
    text: &str,
    variables: &Variables,
) -> Result<(ProblemReport, Dict), Problems> {
    let broken = |place, why| Problems {
        file: file.into(),
        problems: vec![Problem {
            key: String::new(),
            value: None,
            place,
            why,
        }],
    };
    let document = ImDocument::parse(text.to_owned()).map_err(|error| {
        let line = line_at(text, error.span().map_or(0, |span| span.start));
        broken(line.map(ProblemLocation::Line), not_toml(&error))
    })?;
    let figment = Figment::from(Toml::string(text)).merge(VariablesProvider(variables));
    let mut data = figment
        .data()
        .map_err(|error| broken(None, error.to_string()))?;
    let report = ProblemReport {
        file: file.into(),
        document,
        variables: variables
            .iter()
            .map(|(name, _)| (path_of(name).join("."), name.clone()))
            .collect(),
        problems: RefCell::default(),
    };
    Ok((report, data.remove(&Profile::Default).unwrap_or_default()))
}

/// What is wrong with a file that is no TOML. The error's own text would show the line, and a
/// password in it.
fn not_toml(error: &TomlError) -> String {
    let what = error.message().lines().collect::<Vec<_>>();
    format!("this is no TOML: {}", what.join(", "))
}

/// The line in which a byte stands, counted from 1.
fn line_at(text: &str, byte: usize) -> Option<usize> {
    Some(text.get(..byte)?.matches('\n').count() + 1)
}

/// The key's path that a variable stands for: `SERIATIM__STORE__URL` is `store.url`.
fn path_of(name: &str) -> Vec<String> {
    let rest = name.strip_prefix(PREFIX).unwrap_or(name);
    rest.split("__").map(str::to_lowercase).collect()
}

/// The variables as strings. figment's own provider guesses types: a password of digits would
/// become a number and lose its zeros. Here the reader knows which type it wants.
struct VariablesProvider<'v>(&'v Variables);

impl Provider for VariablesProvider<'_> {
    fn metadata(&self) -> Metadata {
        Metadata::named("environment variables")
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let nested = self.0.iter().map(|(name, value)| {
            let leaf = Value::from(value.as_str());
            path_of(name)
                .into_iter()
                .rev()
                .fold(leaf, |inner, key| Dict::from([(key, inner)]).into())
        });
        let merged = nested.fold(Figment::new(), |all, one| match one {
            Value::Dict(_, dict) => all.merge(figment::providers::Serialized::defaults(dict)),
            _ => all,
        });
        merged.data()
    }
}

// === impl Report ===

impl ProblemReport {
    /// The whole tree.
    pub fn root(&self, entries: Dict) -> ConfigTable<'_> {
        ConfigTable {
            report: self,
            path: String::new(),
            entries,
            asked: Vec::new(),
            inherited: Vec::new(),
        }
    }

    /// Notes a problem of the value at `path`; `value` is left out where it may be a secret.
    pub fn note(&self, path: &str, value: Option<String>, why: impl Into<String>) {
        let place = self.place(path);
        let problem = Problem {
            key: path.into(),
            value,
            place,
            why: why.into(),
        };
        let mut problems = self.problems.borrow_mut();
        // What stands beside a preset is read for each of its routes, and told of once.
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    }

    /// Everything that was noted; `None` if nothing was.
    pub fn problems(self) -> Option<Problems> {
        let problems = self.problems.into_inner();
        (!problems.is_empty()).then_some(Problems {
            file: self.file,
            problems,
        })
    }

    fn is_from_environment(&self, path: &str) -> bool {
        self.variables.contains_key(path)
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
            line = item.and_then(|item| self.line(item)).or(line);
        }
        // A variable hides what the file says there. A table is of both.
        let is_files = item.is_some_and(Item::is_table_like);
        self.variable(path, is_files)
            .map(|name| ProblemLocation::Variable(name.into()))
            .or(line.map(ProblemLocation::Line))
    }

    /// The variable that has set the value at `path`, or a value around it; or, if it isn't the
    /// file's, one in it.
    fn variable(&self, path: &str, is_files: bool) -> Option<&str> {
        let within = |inner: &str, outer: &str| {
            inner
                .strip_prefix(outer)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        let set = self.variables.iter();
        let found = set
            .clone()
            .find(|(set, _)| within(path, set))
            .or_else(|| set.clone().find(|(set, _)| !is_files && within(set, path)));
        found.map(|(_, name)| &**name)
    }

    fn line(&self, item: &Item) -> Option<usize> {
        line_at(self.document.raw(), item.span()?.start)
    }
}

// === impl Table ===

impl<'r> ConfigTable<'r> {
    /// The value under `key`, if there is one.
    pub fn take(&mut self, key: &'static str) -> Option<ConfigValue<'r>> {
        let value = self.entries.remove(key);
        match self.asked.iter_mut().find(|(asked, _)| *asked == key) {
            // What a preset's route is laid under has been asked for its name before.
            Some((_, written)) => *written |= value.is_some(),
            None => self.asked.push((key, value.is_some())),
        }
        let value = value?;
        Some(ConfigValue {
            report: self.report,
            path: self.path_to(key),
            value,
        })
    }

    /// The value under `key`, read with `read`; `default` if there is none, or none that can be read.
    pub fn or<T>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl FnOnce(ConfigValue<'r>) -> Option<T>,
    ) -> T {
        self.take(key).and_then(read).unwrap_or(default)
    }

    /// The table under `key`; an empty one if there is none.
    pub fn table(&mut self, key: &'static str) -> ConfigTable<'r> {
        let empty = |path| ConfigTable {
            report: self.report,
            path,
            entries: Dict::new(),
            asked: Vec::new(),
            inherited: Vec::new(),
        };
        let path = self.path_to(key);
        self.take(key)
            .and_then(ConfigValue::table)
            .unwrap_or_else(|| empty(path))
    }

    /// The path of `key` in here.
    pub fn path_to(&self, key: &str) -> String {
        match &*self.path {
            "" => key.into(),
            path => format!("{path}.{key}"),
        }
    }

    /// Notes a problem of `key`, which has no value of its own to show.
    pub fn note(&self, key: &str, why: impl Into<String>) {
        self.report.note(&self.path_to(key), None, why);
    }

    /// Notes a problem of the table as a whole.
    pub fn note_whole(&self, why: impl Into<String>) {
        self.report.note(&self.path, None, why);
    }

    /// Whether the user has written `key`, which has been taken.
    pub fn wrote(&self, key: &str) -> bool {
        self.asked
            .iter()
            .any(|(asked, written)| *asked == key && *written)
    }

    /// All entries, for a table whose keys are the user's own.
    pub fn drain(&mut self) -> Vec<(String, ConfigValue<'r>)> {
        let entries = std::mem::take(&mut self.entries);
        let entry = |(key, value): (String, Value)| {
            let path = self.path_to(&key);
            (
                key,
                ConfigValue {
                    report: self.report,
                    path,
                    value,
                },
            )
        };
        entries.into_iter().map(entry).collect()
    }

    /// Notes every key that nobody has asked for.
    pub fn finish(self) {
        for key in self.entries.keys() {
            let near = self
                .asked
                .iter()
                .map(|(known, _)| (strsim::jaro_winkler(key, known), *known));
            let best = near.max_by(|a, b| a.0.total_cmp(&b.0));
            // Below this, the nearest name is a name with nothing in common.
            let why = match best.filter(|(likeness, _)| *likeness > 0.75) {
                Some((_, known)) => format!("no such key; did you mean `{known}`?"),
                None => {
                    let known: Vec<_> = self.asked.iter().map(|(known, _)| *known).collect();
                    format!("no such key; here stand {}", known.join(", "))
                }
            };
            // Not its value: it may be a secret under a misspelt name.
            self.report.note(&self.path_to(key), None, why);
        }
    }
}
