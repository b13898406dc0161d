//! What commands write on the terminal: lines of text without control characters, columns, and JSON.
//!
//! Invariant: no text from a request, a client or the store can control the terminal.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process;

use serde_json::Value;
use unicode_width::UnicodeWidthStr;

/// Writes lines to standard output. Ends the process if that fails: half an output in a file must not look whole.
pub(super) fn print(text: impl Display) {
    write_line(&plain_lines(&text.to_string()));
}

/// Writes lines to standard error.
pub(super) fn print_error(text: impl Display) {
    let _ = writeln!(io::stderr(), "{}", plain_lines(&text.to_string()));
}

/// Writes a JSON value as one line of standard output. Ends the process if that fails, as [`print()`] does.
pub(super) fn print_json(value: &Value) {
    write_line(&json_line(value));
}

fn write_line(line: &str) {
    match writeln!(io::stdout(), "{line}") {
        // A reader that has closed its end, such as `head`, needs no more.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            print_error(format!("can't write to standard output: {error}"));
            process::exit(1);
        }
        _ => {}
    }
}

/// Escapes control characters and changes of text direction in text from clients.
pub(super) fn plain(text: &str) -> String {
    escaped(text, is_harmless, in_rust)
}

/// A cell of a table: its text and the spaces up to `columns`. Chinese characters are two columns wide.
pub(super) fn padded(text: &str, columns: usize) -> String {
    let missing = columns.saturating_sub(width(text));
    format!("{text}{:missing$}", "")
}

/// How many columns of a terminal a text takes.
pub(super) fn width(text: &str) -> usize {
    text.width()
}

fn plain_lines(text: &str) -> String {
    let is_kept = |character| character == '\n' || is_harmless(character);
    escaped(text, is_kept, in_rust)
}

/// A character's escape as in a Rust string.
fn in_rust(character: char) -> String {
    character.escape_unicode().to_string()
}

/// JSON in one line. serde_json escapes the control characters of ASCII only.
fn json_line(value: &Value) -> String {
    // What is left of them stands in strings, and is below U+10000.
    escaped(&value.to_string(), is_harmless, |character| {
        format!("\\u{:04x}", u32::from(character))
    })
}

fn escaped(text: &str, is_kept: impl Fn(char) -> bool, escape: impl Fn(char) -> String) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match is_kept(character) {
            true => shown.push(character),
            false => shown += &escape(character),
        }
    }
    shown
}

/// Whether a character neither controls the terminal nor ends a line nor changes the direction of text.
fn is_harmless(character: char) -> bool {
    let is_direction = matches!(
        character,
        '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    !character.is_control() && !is_direction && !matches!(character, '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_controls_the_terminal() {
        let hostile = "a\u{1b}[2J\u{9b}2J\r\u{202e}b\nc";
        assert_eq!(
            plain(hostile),
            "a\\u{1b}[2J\\u{9b}2J\\u{d}\\u{202e}b\\u{a}c",
            "a line of text"
        );
        assert_eq!(
            plain_lines(hostile),
            "a\\u{1b}[2J\\u{9b}2J\\u{d}\\u{202e}b\nc",
            "lines"
        );
        let json = Value::from(hostile);
        let line = json_line(&json);
        assert!(line.chars().all(is_harmless), "JSON: {line}");
        let read: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(read, json, "it reads as the same text");
    }

    #[test]
    fn a_chinese_character_is_two_columns_wide() {
        assert_eq!(padded("会话a", 7), "会话a  ", "a cell is filled up");
        assert_eq!(padded("会话", 3), "会话", "a longer text stays whole");
    }
}
