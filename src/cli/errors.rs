//! `seriatim errors`: lists the error codes, or explains one by its section of `docs/troubleshooting.md`.

use clap::Args;
use clap::builder::PossibleValuesParser;
use serde_json::{Value, json};

use super::terminal::padded;
use super::{OK, print, print_json};
use crate::outcome::ErrorCode;

/// Options of `seriatim errors`.
#[derive(Debug, Args)]
pub(super) struct ErrorsArgs {
    /// The error code to explain, as the header x-seriatim-error has it
    #[arg(
        value_parser = PossibleValuesParser::new(ErrorCode::all().map(|code| code.word)),
        hide_possible_values = true
    )]
    code: Option<String>,
    /// Print one JSON object per code
    #[arg(long)]
    json: bool,
}

/// The page with a section about each code, and with links to others.
const PAGE: &str = include_str!("../../docs/troubleshooting.md");

// === impl ErrorsArgs ===

impl ErrorsArgs {
    pub(super) fn show(&self) -> u8 {
        let is_wanted = |code: &ErrorCode| self.code.as_ref().is_none_or(|it| it == code.word);
        let codes: Vec<_> = ErrorCode::all().filter(is_wanted).collect();
        match &*codes {
            codes if self.json => codes.iter().for_each(|code| print_json(&as_json(code))),
            [code] => print(format!("{}\n\n{}", code.word, help(code.word))),
            codes => {
                let width = codes.iter().map(|code| code.word.len()).max();
                for code in codes {
                    let word = padded(code.word, width.unwrap_or_default());
                    let status = code.status.as_ref().map_or("-", |status| status.as_str());
                    print(format!("{word}  {}  {}", padded(status, 3), code.about));
                }
            }
        }
        OK
    }
}

fn as_json(code: &ErrorCode) -> Value {
    json!({
        "code": code.word, "status": code.status.map(|status| status.as_u16()), "about": code.about,
        "help": help(code.word),
    })
}

/// The text of the section about a code. A test keeps it on the page.
fn help(code: &str) -> String {
    let found = sections(PAGE).find(|(heading, _)| *heading == code);
    without_links(found.map_or("", |(_, text)| text))
}

/// The text with the words of its links alone: their targets are files that a reader of the output doesn't have.
fn without_links(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("](") {
        let link = before.rsplit_once('[').zip(behind.split_once(')'));
        let Some(((before, words), (_, after))) = link else {
            break;
        };
        plain.extend([before, words]);
        rest = after;
    }
    plain + rest
}

/// The sections of a page whose heading of the third level is an error code, with their texts.
fn sections(page: &str) -> impl Iterator<Item = (&str, &str)> {
    page.split("\n### ").skip(1).filter_map(|section| {
        let (heading, rest) = section.split_once('\n')?;
        let heading = heading.trim().trim_matches('`');
        let text = rest.split("\n## ").next()?.trim();
        let is_code = heading
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        is_code.then_some((heading, text))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn every_error_code_has_its_section_and_every_section_its_error_code() {
        let explained: BTreeMap<_, _> = sections(PAGE).collect();
        let missing: Vec<_> = ErrorCode::all()
            .map(|code| code.word)
            .filter(|code| explained.get(code).is_none_or(|text| text.is_empty()))
            .collect();
        assert!(
            missing.is_empty(),
            "docs/troubleshooting.md has no section about {missing:?}"
        );
        let unknown: Vec<_> = explained
            .keys()
            .filter(|heading| ErrorCode::all().all(|code| code.word != **heading))
            .collect();
        assert!(unknown.is_empty(), "{unknown:?} are no error codes");
        assert_eq!(
            sections(PAGE).count(),
            explained.len(),
            "no code has two sections"
        );
    }

    #[test]
    fn of_a_link_only_its_words_are_printed() {
        for (text, plain) in [
            (
                "See [the log](logs.md#fields), or [wait](#wait).",
                "See the log, or wait.",
            ),
            ("`[busy]` and [a](b) and [c]", "`[busy]` and a and [c]"),
            ("{body:/a}[0](", "{body:/a}[0]("),
        ] {
            assert_eq!(without_links(text), plain);
        }
        for code in ErrorCode::all() {
            let help = help(code.word);
            assert!(!help.contains("]("), "{}: {help}", code.word);
        }
    }

    #[test]
    fn a_section_ends_at_the_next_heading_and_keeps_its_comments_in_code() {
        let page = "# Page\n\n## Codes\n\n### session_busy\n\nWait.\n\n```sh\n# look\nls\n```\n\n\
                    ### `lock_lost`\nRetry.\n\n## Symptoms\n\n### Turns overlap\n\nBoth.\n\n### slow\n";
        assert_eq!(
            sections(page).collect::<Vec<_>>(),
            [
                ("session_busy", "Wait.\n\n```sh\n# look\nls\n```"),
                ("lock_lost", "Retry."),
                ("slow", ""),
            ],
            "the headings that are one word of lower case, with their texts"
        );
    }
}
