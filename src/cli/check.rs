//! `seriatim check`: reports all problems of a configuration, or prints it with all defaults.

use clap::Args;
use serde_json::{Value, json};

use super::{BAD_CONFIGURATION, ConfigOption, OK, print, print_error, print_json};
use crate::config::Config;
use crate::config::problem::{Problem, ProblemLocation};

/// Options of `seriatim check`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 the configuration is valid, 2 wrong arguments, 78 invalid configuration."
)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    pub(super) config: ConfigOption,
    /// Print a JSON object, with the configuration or with its problems
    #[arg(long)]
    json: bool,
}

// === impl CheckArgs ===

impl CheckArgs {
    /// Checks the configuration, prints the result, and returns the exit code.
    pub(super) fn run(&self) -> u8 {
        let loaded = Config::load(self.config.path());
        match (&loaded, self.json) {
            (Ok((config, _)), false) => {
                print(config);
                for remark in config.remarks() {
                    let file = self.config.path().display();
                    print_error(format!("note: {file}: {remark}"));
                }
            }
            (Ok((config, _)), true) => {
                let notes = listed(&config.remarks());
                print_json(&json!({"valid": true, "config": config.to_json(), "notes": notes}));
            }
            (Err(problems), false) => print_error(problems.to_string().trim_end()),
            (Err(problems), true) => {
                print_json(&json!({"valid": false, "problems": listed(&problems.problems)}));
            }
        }
        match loaded {
            Ok(_) => OK,
            Err(_) => BAD_CONFIGURATION,
        }
    }
}

fn listed(problems: &[Problem]) -> Value {
    let problems = problems.iter().map(|problem| {
        let (line, variable) = match &problem.place {
            Some(ProblemLocation::Line(line)) => (Some(line), None),
            Some(ProblemLocation::Variable(name)) => (None, Some(name)),
            None => (None, None),
        };
        json!({
            "key": problem.key, "value": problem.value, "line": line, "variable": variable,
            "reason": problem.why,
        })
    });
    problems.collect()
}
