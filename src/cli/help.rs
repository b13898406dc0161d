//! `seriatim completions` and `seriatim man`: made from the definitions that also make the help.

use std::io::{self, Write as _};

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Arguments, COULD_NOT_START, OK, print_error};

/// Options of `seriatim completions`.
#[derive(Debug, Args)]
#[command(
    after_help = "For example: seriatim completions bash > ~/.local/share/bash-completion/completions/seriatim"
)]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Options of `seriatim man`.
#[derive(Debug, Args)]
#[command(after_help = "For example: seriatim man locks list | man -l -")]
pub(super) struct ManArgs {
    /// The command whose page is printed, such as "locks list" [default: seriatim itself]
    #[arg(value_name = "COMMAND", value_parser = NonEmptyStringValueParser::new())]
    path: Vec<String>,
}

// === impl CompletionsArgs ===

impl CompletionsArgs {
    pub(super) fn show(&self) -> u8 {
        let mut command = Arguments::command();
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "seriatim", &mut script);
        // Ignores errors, as `print` does.
        let _ = io::stdout().write_all(&script);
        OK
    }
}

// === impl ManArgs ===

impl ManArgs {
    pub(super) fn show(&self) -> u8 {
        let mut command = Arguments::command();
        command.build();
        let found = self.path.iter().try_fold(&command, |command, name| {
            command.find_subcommand(name).ok_or(name)
        });
        match found {
            Ok(command) => {
                // Ignores errors, as `print` does.
                let _ = Man::new(command.clone()).render(&mut io::stdout());
                OK
            }
            Err(name) => {
                print_error(format!("there is no command {name:?}"));
                COULD_NOT_START
            }
        }
    }
}
