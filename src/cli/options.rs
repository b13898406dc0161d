//! `seriatim options`: the configuration's reference, for a terminal or as `docs/configuration.md`.

use std::fmt::Write as _;

use clap::Args;

use super::{COULD_NOT_START, OK, print, print_error};
use crate::config::reference::{Change, SECTIONS, Section, Setting, Unwritten};

/// Options of `seriatim options`.
#[derive(Debug, Args)]
pub(super) struct OptionsArgs {
    /// Only those whose name begins so, as `store`, `lock.block`; or, if none does, that have it in them
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// All of them as Markdown, as in docs/configuration.md
    #[arg(long, conflicts_with = "name")]
    markdown: bool,
}

/// How wide a terminal is if nothing is known of it.
const WIDTH: usize = 80;

const OPENING: &str = "\
# Configuration

<!-- Written by `seriatim options --markdown`; what it says stands in src/config/reference. -->

Seriatim reads one TOML file, `config.toml` or what `--config` names, and environment variables over
it. `seriatim check` prints what both come to, `seriatim options` what follows here, `seriatim options
lock` a part of it. The file [config.toml](../config.toml) is an example with all of it.

- **Environment.** Every option can be set from it, with two underscores everywhere: `store.url` is
  `SERIATIM__STORE__URL`. A list or a table is written as in the file
  (`SERIATIM__ROUTES='[{ name = \"chat\", ... }]'`).
- **Durations** are numbers of seconds, or `\"250ms\"`, `\"30s\"`, `\"5m\"`, `\"1h 30m\"`.
- **Sizes** are numbers of bytes, or `\"512KiB\"`, `\"10MiB\"`, `\"1GB\"`.
- **Secrets** stand in files of their own: an option that ends in `_file` names one.
- **What is wrong** stops the start with exit code 78, and everything that is wrong is told at once: a
  key that doesn't exist (with what was perhaps meant), a value out of range, two options that
  contradict each other. No option is accepted and then ignored.
- **Changes** of the file are in force a moment later, also behind a symbolic link, which is how
  Kubernetes swaps a ConfigMap; `SIGHUP` has it read at once. A file that is wrong changes nothing, and
  is reported in the log. Options with *restart* in the column *change* take one: a file that changes
  one of them is refused as a whole.
";

const CLOSING: &str = "
## Templates

`session_id` and `user_id` are lists of templates: text with sources in braces. The first template whose
sources all have a value gives the id. [Sessions](sessions.md) says what each source takes, and what is
refused.

| source | takes |
| --- | --- |
| `{body:/json/pointer}` | a member of the JSON body (RFC 6901) |
| `{body:/a\\|/b}` | the one of these members that is there: two spellings of one field |
| `{form:name}` | a field of a urlencoded or multipart body |
| `{header:name}` `{cookie:name}` `{query:name}` `{path:name}` | that part of the request |
| `{uuid:SOURCE}` `{int:SOURCE}` `{lower:SOURCE}` | one text for all spellings of a UUID, of a whole number, of a text in any case |
| `{hash:SOURCE}` | the first 32 hex digits of the SHA-256 of what the source gives, or one of these filters |
";

// === impl Options ===

impl OptionsArgs {
    pub(super) fn show(&self) -> u8 {
        if self.markdown {
            print(markdown().trim_end());
            return OK;
        }
        let name = self.name.as_deref().unwrap_or_default();
        let begins = |path: &str| path.starts_with(name);
        let has = |path: &str| path.contains(name);
        let text = match text(begins) {
            found if found.is_empty() => text(has),
            found => found,
        };
        if text.is_empty() {
            print_error(format!(
                "no option has {name:?} in its name; `seriatim options` lists all"
            ));
            return COULD_NOT_START;
        }
        print(text.trim_end());
        OK
    }
}

/// The options whose path is wanted, for a terminal.
fn text(is_wanted: impl Fn(&str) -> bool) -> String {
    let mut text = String::new();
    for section in &SECTIONS {
        for option in section.options {
            let path = section.path(option);
            if is_wanted(&path) {
                write_option(&mut text, &path, option);
            }
        }
    }
    text
}

fn write_option(text: &mut String, path: &str, option: &Setting) {
    let restart = match option.change {
        Change::Live => "",
        Change::Restart => "; a change takes a restart",
    };
    let default = match option.default {
        Unwritten::As(value) => format!("default {value}"),
        Unwritten::Otherwise(what) => format!("if unwritten: {what}"),
    };
    // Writing to a String can't fail.
    let _ = writeln!(text, "{path}");
    for line in [
        &format!("{}; {default}{restart}", option.value),
        option.what,
        &format!("as {} = {}", option.key, option.example),
    ] {
        wrap(text, line);
    }
    text.push('\n');
}

/// Adds a text in lines that fit, indented.
fn wrap(text: &mut String, words: &str) {
    const INDENT: &str = "    ";
    let mut column = 0;
    for word in words.split(' ') {
        let width = word.chars().count();
        if column > 0 && column + 1 + width > WIDTH {
            text.push('\n');
            column = 0;
        }
        let before = if column == 0 { INDENT } else { " " };
        text.push_str(before);
        text.push_str(word);
        column += before.len() + width;
    }
    text.push('\n');
}

fn markdown() -> String {
    let mut text = OPENING.to_owned();
    for section in &SECTIONS {
        write_section(&mut text, section);
    }
    text + CLOSING
}

fn write_section(text: &mut String, section: &Section) {
    let heading = match section.table {
        "" => "Top level",
        table => table,
    };
    let _ = writeln!(
        text,
        "\n## {heading}\n\n{}\n\n| option | value | default | change | what it does |\n\
         | --- | --- | --- | --- | --- |",
        section.about
    );
    for option in section.options {
        let default = match option.default {
            Unwritten::As(value) => format!("`{value}`"),
            Unwritten::Otherwise(what) => what.into(),
        };
        let change = match option.change {
            Change::Live => "",
            Change::Restart => "restart",
        };
        let _ = writeln!(
            text,
            "| `{}` | {} | {default} | {change} | {} For example `{}`. |",
            section.path(option),
            option.value,
            option.what,
            option.example
        );
    }
}
