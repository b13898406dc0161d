//! `seriatim options`: the reference of the configuration, for a terminal or as `docs/configuration.md`.
//!
//! What is said of each option comes from its definition in `crate::config`.

use std::fmt::Write as _;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use serde_json::{Value, json};

use super::terminal::width;
use super::{COULD_NOT_START, OK, print, print_error, print_json};
use crate::config::reference::{Change, DefaultValue, Section, Setting, sections};

/// Options of `seriatim options`.
#[derive(Debug, Args)]
pub(super) struct OptionsArgs {
    /// Only options whose name starts with this, as `store` or `lock.block`; if there is none, options
    /// whose name contains it
    #[arg(value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// All options as Markdown, as in docs/configuration.md
    #[arg(long, conflicts_with_all = ["name", "json"])]
    markdown: bool,
    /// Print one JSON object per option
    #[arg(long)]
    json: bool,
}

/// The width of a line on a terminal, in characters.
const WIDTH: usize = 80;

const OPENING: &str = "\
# Configuration

<!-- Written by `seriatim options --markdown`. The definitions of the options are in src/config. -->

Seriatim reads one TOML file: `config.toml`, or the file that `--config` names. Environment variables
override it. `seriatim check` prints the result of both. `seriatim options` prints this page, and
`seriatim options lock` a part of it. The file [config.toml](../config.toml) is an example with all
options.

- **Environment.** An environment variable can set each option. Its name has two underscores between its
  parts: `SERIATIM__STORE__URL` sets `store.url`. A list or a table is written as in the file
  (`SERIATIM__ROUTES='[{ name = \"chat\", ... }]'`).
- **Durations** are numbers of seconds, or `\"250ms\"`, `\"30s\"`, `\"5m\"`, `\"1h 30m\"`.
- **Sizes** are numbers of bytes, or `\"512KiB\"`, `\"10MiB\"`, `\"1GB\"`.
- **Secrets** are in files of their own: an option whose name ends in `_file` names a file.
- **Errors.** If something is wrong, Seriatim doesn't start, and exits with code 78. It reports all
  problems at once: an unknown key (with the key that was probably meant), a value out of range, two
  options that contradict each other, a route that never takes a request. No option is accepted and
  then ignored. `seriatim check` also prints notes on values that are allowed, but perhaps not meant.
- **Changes** of the file take effect a moment later, without a restart. This also holds for a symbolic
  link, which is how Kubernetes replaces a ConfigMap. `SIGHUP` makes Seriatim read the file at once. A
  file with a problem changes nothing; the log reports it. Options with *restart* in the column *change*
  need a restart: a file that changes one of them is refused as a whole.
";

const CLOSING: &str = "
## Templates

`session_id`, `user_id` and `once` are lists of templates. A template is text with sources in braces. The
first template whose sources all have a value gives the id. [Sessions](sessions.md) says which values each
source gives, and which it refuses.

| source | gives |
| --- | --- |
| `{body:/json/pointer}` | a member of the JSON body (RFC 6901) |
| `{body:/list/-1/id}` | a member of the last element of a list; in an object, `-1` is the member of this name |
| `{body:/a\\|/b}` | whichever of these members the body has: two spellings of one field |
| `{form:name}` | a field of a urlencoded or multipart body |
| `{header:name}` `{cookie:name}` `{query:name}` `{path:name}` | this part of the request |
| `{uuid:SOURCE}` `{int:SOURCE}` `{lower:SOURCE}` | one text for all spellings of a UUID, of a whole number, of a text in any case |
| `{hash:SOURCE}` | the first 32 hex digits of the SHA-256 of what the source, or one of these filters, gives |
";

// === impl OptionsArgs ===

impl OptionsArgs {
    pub(super) fn show(&self) -> u8 {
        if self.markdown {
            print(markdown().trim_end());
            return OK;
        }
        let name = self.name.as_deref().unwrap_or_default();
        let begins = |path: &str| path.starts_with(name);
        let has = |path: &str| path.contains(name);
        let wanted = match wanted(begins) {
            found if found.is_empty() => wanted(has),
            found => found,
        };
        if wanted.is_empty() {
            print_error(format!(
                "no option has {name:?} in its name; `seriatim options` lists all options"
            ));
            return COULD_NOT_START;
        }
        if self.json {
            wanted.iter().for_each(|one| print_json(&one.json()));
            return OK;
        }
        let mut text = String::new();
        for one in wanted {
            write_option(&mut text, &one.path, &one.setting);
        }
        print(text.trim_end());
        OK
    }
}

/// An option and its path, as `store.url`.
struct NamedOption {
    path: String,
    setting: Setting,
    /// The environment variable that sets it; `None` for an option of a route.
    variable: Option<String>,
}

// === impl NamedOption ===

impl NamedOption {
    fn json(&self) -> Value {
        let Setting {
            value,
            default,
            example,
            change,
            what,
            ..
        } = &self.setting;
        let default = match default {
            DefaultValue::Toml(value) => value.as_str(),
            DefaultValue::Text(text) => text,
        };
        json!({
            "name": self.path, "value": value, "default": default, "example": example,
            "restart": *change == Change::Restart, "variable": self.variable, "about": what,
        })
    }
}

/// The options with a wanted path.
fn wanted(is_wanted: impl Fn(&str) -> bool) -> Vec<NamedOption> {
    let mut named = Vec::new();
    for section in sections() {
        for setting in &section.options {
            let path = section.path(setting);
            if is_wanted(&path) {
                named.push(NamedOption {
                    variable: section.variable(setting),
                    setting: setting.clone(),
                    path,
                });
            }
        }
    }
    named
}

fn write_option(text: &mut String, path: &str, option: &Setting) {
    let restart = match option.change {
        Change::Live => "",
        Change::Restart => "; a change needs a restart",
    };
    let default = match &option.default {
        DefaultValue::Toml(value) => format!("default {value}"),
        DefaultValue::Text(what) => format!("default: {what}"),
    };
    // Writing to a String can't fail.
    let _ = writeln!(text, "{path}");
    for line in [
        &format!("{}; {default}{restart}", option.value),
        option.what,
        &format!("for example {} = {}", option.key, option.example),
    ] {
        wrap(text, line);
    }
    text.push('\n');
}

/// Adds words in indented lines that fit the terminal.
fn wrap(text: &mut String, words: &str) {
    const INDENT: &str = "    ";
    let mut column = 0;
    for word in words.split(' ') {
        let width = width(word);
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
    for section in sections() {
        write_section(&mut text, &section);
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
    for option in &section.options {
        let default = match &option.default {
            DefaultValue::Toml(value) => format!("`{value}`"),
            DefaultValue::Text(what) => (*what).into(),
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
