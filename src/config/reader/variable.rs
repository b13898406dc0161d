//! The names of environment variables: which option a name sets, and which option a wrong name was meant
//! for.
//!
//! Invariant: a variable that reads like an option, but for its underscores, sets the option or is reported. Other
//! variables that begin with `SERIATIM_` are left alone: Kubernetes sets `SERIATIM_SERVICE_HOST`,
//! `SERIATIM_PORT_8080_TCP` and the like for a service named `seriatim`.

use super::super::problem::{Problem, ProblemLocation};
use super::{ProblemReport, Variables};

/// How every variable of an option begins. Its two underscores keep it apart from Kubernetes's variables.
pub(super) const PREFIX: &str = "SERIATIM__";

/// How every variable begins that may be meant for an option.
pub(super) const MEANT: &str = "SERIATIM_";

/// The path of the key that a variable sets: `SERIATIM__STORE__URL` sets `store.url`. `None`: it sets none.
pub(super) fn path_of(name: &str) -> Option<Vec<String>> {
    let rest = name.strip_prefix(PREFIX)?;
    Some(rest.split("__").map(str::to_lowercase).collect())
}

/// The variable that the user of `name` probably means: it has the same words, with other underscores.
/// `options` are the paths of all options. `None`: no option has these words.
fn meant(name: &str, options: &[String]) -> Option<String> {
    let words = |text: &str| {
        let words = text.split(['_', '.']).filter(|word| !word.is_empty());
        words.map(str::to_lowercase).collect::<Vec<_>>()
    };
    let wanted = words(name.strip_prefix(MEANT)?);
    let mut options = options.iter();
    let option = options.find(|option| words(option) == wanted)?;
    Some(variable_of(option))
}

/// The variable that sets the option with this path.
pub fn variable_of(option: &str) -> String {
    let name = option.replace('.', "__").to_uppercase();
    format!("{PREFIX}{name}")
}

impl ProblemReport {
    /// Tells the report which options can be set by a variable, by their paths.
    pub fn set_options(&mut self, options: Vec<String>) {
        self.options = options;
    }

    /// Reports the variables that set nothing, but read like an option's. One beside the right variable is
    /// left alone: a script may have made the one from the other.
    pub fn check_names(&self, variables: &Variables) {
        let is_set = |wanted: &str| variables.iter().any(|(name, _)| name == wanted);
        let strangers = variables.iter().map(|(name, _)| name);
        for name in strangers.filter(|name| path_of(name).is_none()) {
            let Some(meant) = meant(name, &self.options).filter(|meant| !is_set(meant)) else {
                continue;
            };
            let why =
                format!("sets no option: write {meant}, with two underscores before each key");
            let problem = Problem {
                place: Some(ProblemLocation::Variable(name.clone())),
                ..Problem::new("", why)
            };
            self.problems.borrow_mut().push(problem);
        }
    }

    /// What to write instead of the variable that set the unknown key at `path`; `None`: a variable did not
    /// set it, or it isn't known.
    pub(super) fn meant_by(&self, path: &str) -> Option<String> {
        meant(self.variable(path, false)?, &self.options)
    }
}
