//! Reads one value of the file as the type that the program wants, and reports what is wrong with it.
//!
//! Invariant: an error says what to write. What the value means is left to the section.

use std::convert::Infallible;
use std::ops::RangeInclusive;
use std::time::Duration;

use figment::Figment;
use figment::providers::{Format, Toml};
use figment::value::{Num, Value};

use super::{ConfigTable, ProblemReport};

/// A value that the user wrote, and the path of its key.
pub struct ConfigValue<'r> {
    pub(super) report: &'r ProblemReport,
    pub(super) path: String,
    pub(super) value: Value,
}

/// The most items of a list that an error shows.
const MOST_ITEMS: usize = 8;

// === impl ConfigValue ===

impl<'r> ConfigValue<'r> {
    /// Reports a problem of the value.
    pub fn wrong(&self, why: impl Into<String>) {
        self.report.note(&self.path, Some(show(&self.value)), why);
    }

    fn has_wrong_type(&self, wanted: &str) {
        self.wrong(format!("write {wanted}, not {}", type_name(&self.value)));
    }

    /// The value; one from a variable is parsed as TOML, since variables are always text.
    fn typed(&self) -> Value {
        match &self.value {
            Value::String(_, text) if self.report.variables.contains_key(&self.path) => {
                let parsed = Figment::from(Toml::string(&format!("value = {text}")));
                parsed
                    .find_value("value")
                    .unwrap_or_else(|_| self.value.clone())
            }
            value => value.clone(),
        }
    }

    /// Reads text.
    pub fn string(self) -> Option<String> {
        self.parsed(|text| Ok::<_, Infallible>(text.to_owned()))
    }

    /// Reads text with `parse`, whose error says what is wrong and what to write.
    pub fn parsed<T, E: ToString>(self, parse: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        let Value::String(_, text) = &self.value else {
            self.has_wrong_type("text in quotes");
            return None;
        };
        parse(text)
            .map_err(|error| self.wrong(error.to_string()))
            .ok()
    }

    /// Reads text with `parse`; an error doesn't show the text, which may hold a password.
    pub fn parsed_secret<T, E: ToString>(
        self,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let why = match &self.value {
            Value::String(_, text) => match parse(text) {
                Ok(value) => return Some(value),
                Err(error) => error.to_string(),
            },
            _ => "write text in quotes".into(),
        };
        self.report.note(&self.path, None, why);
        None
    }

    /// Reads one of these words.
    pub fn one_of<T: Clone>(self, words: &[(&str, T)]) -> Option<T> {
        let found = match &self.value {
            Value::String(_, text) => words.iter().find(|(word, _)| word == text),
            _ => None,
        };
        if found.is_none() {
            let quoted: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            self.wrong(match &*quoted {
                [others @ .., last] if !others.is_empty() => {
                    format!("write {} or {last}", others.join(", "))
                }
                words => format!("write {}", words.join(", ")),
            });
        }
        found.map(|(_, value)| value.clone())
    }

    /// Reads text; a whole number, `true` or `false` is read as its text.
    pub fn scalar(&self) -> Option<String> {
        let text = match &self.value {
            Value::String(_, text) => Some(text.clone()),
            Value::Bool(_, value) => Some(value.to_string()),
            Value::Num(_, number) => number.to_i128().map(|number| number.to_string()),
            _ => None,
        };
        if text.is_none() {
            self.has_wrong_type("text in quotes, a whole number, true or false");
        }
        text
    }

    /// Reads `true` or `false`.
    pub fn boolean(self) -> Option<bool> {
        match self.typed() {
            Value::Bool(_, value) => Some(value),
            _ => {
                self.has_wrong_type("true or false");
                None
            }
        }
    }

    /// Reads a whole number between two bounds, which are themselves allowed.
    pub fn integer(self, range: RangeInclusive<u64>) -> Option<u64> {
        let (least, most) = (range.start(), range.end());
        let wanted = format!("write a whole number from {least} to {most}");
        self.integer_where(|value| range.contains(&value), &wanted)
    }

    /// Reads a whole number for which `fits` is true; otherwise the error is `wanted`.
    pub fn integer_where(self, fits: impl FnOnce(u64) -> bool, wanted: &str) -> Option<u64> {
        let value = match self.typed() {
            Value::Num(_, number) => whole(number),
            _ => None,
        };
        let fitting = value.filter(|value| fits(*value));
        if fitting.is_none() {
            self.wrong(wanted);
        }
        fitting
    }

    /// Reads a number of seconds, or text with a unit, between two bounds, which are themselves allowed.
    pub fn duration(self, range: RangeInclusive<Duration>) -> Option<Duration> {
        self.duration_that(
            |duration| range.contains(duration),
            |_| format!("write a duration from {}", bounds(&range)),
        )
    }

    /// Reads a duration that is 0 or in `range`. `why` says why a shorter one can't be used.
    pub fn zero_or_duration(self, range: RangeInclusive<Duration>, why: &str) -> Option<Duration> {
        self.duration_that(
            |duration| duration.is_zero() || range.contains(duration),
            |duration| {
                let wanted = format!("write a duration from {}, or 0", bounds(&range));
                match duration < *range.start() {
                    true => format!("{wanted}: {why}"),
                    false => wanted,
                }
            },
        )
    }

    /// Reads a duration that `fits`; `wanted` says what to write in place of one that doesn't.
    fn duration_that(
        self,
        fits: impl FnOnce(&Duration) -> bool,
        wanted: impl FnOnce(Duration) -> String,
    ) -> Option<Duration> {
        let duration = match self.typed() {
            Value::Num(_, number) => seconds(number),
            Value::String(_, text) => humantime::parse_duration(&text).ok(),
            _ => None,
        };
        let fitting = duration.filter(fits);
        if fitting.is_none() {
            self.wrong(match duration {
                Some(duration) => wanted(duration),
                None => {
                    "write a number of seconds, or a duration as \"250ms\", \"30s\", \"5m\"".into()
                }
            });
        }
        fitting
    }

    /// Reads a number of bytes, or text with a unit, that is at least `least` bytes.
    pub fn size(self, least: usize) -> Option<usize> {
        let size = match self.typed() {
            Value::Num(_, number) => whole(number).and_then(|number| usize::try_from(number).ok()),
            Value::String(_, text) => bytes(&text),
            _ => None,
        };
        let fitting = size.filter(|size| *size >= least);
        if fitting.is_none() {
            let or_zero = if least == 0 { ", or 0" } else { "" };
            self.wrong(format!(
                "write a number of bytes, or a size as \"512KiB\", \"10MiB\"{or_zero}"
            ));
        }
        fitting
    }

    /// Reads a list.
    pub fn list(self) -> Option<Vec<ConfigValue<'r>>> {
        let Value::Array(_, items) = self.typed() else {
            self.has_wrong_type("a list in square brackets");
            return None;
        };
        let path = |index| format!("{}[{index}]", self.path);
        let item = |(index, value)| ConfigValue {
            report: self.report,
            path: path(index),
            value,
        };
        Some(items.into_iter().enumerate().map(item).collect())
    }

    /// Reads a list of conditions, one of which has to hold. An empty list is refused.
    pub fn any_of(self) -> Option<Vec<ConfigValue<'r>>> {
        if self.is_empty_list() {
            self.wrong(
                "an empty list matches nothing: write at least one value, or leave the key out",
            );
            return None;
        }
        self.list()
    }

    /// Reads a list of conditions, one of which has to hold, or a single condition.
    pub fn one_or_any_of(self) -> Option<Vec<ConfigValue<'r>>> {
        match self.typed() {
            Value::Array(..) => self.any_of(),
            _ => Some(vec![self]),
        }
    }

    /// Reads a table.
    pub fn table(self) -> Option<ConfigTable<'r>> {
        let Value::Dict(_, entries) = self.typed() else {
            self.has_wrong_type("a table");
            return None;
        };
        Some(ConfigTable::new(self.report, self.path, entries))
    }

    /// Whether the value is a list without items.
    pub fn is_empty_list(&self) -> bool {
        matches!(self.typed(), Value::Array(_, items) if items.is_empty())
    }

    /// Whether the value is a table without entries.
    pub fn is_empty_table(&self) -> bool {
        matches!(self.typed(), Value::Dict(_, entries) if entries.is_empty())
    }

    /// Whether the value is a table.
    pub fn is_table(&self) -> bool {
        matches!(self.typed(), Value::Dict(..))
    }

    /// Whether the value is this text.
    pub fn is(&self, text: &str) -> bool {
        matches!(&self.value, Value::String(_, value) if value == text)
    }

    /// Whether the value is text.
    pub fn is_string(&self) -> bool {
        matches!(self.value, Value::String(..))
    }
}

// === values ===

/// The number, if it is whole and not negative. figment has a method for each width of number.
fn whole(number: Num) -> Option<u64> {
    match number.to_i128() {
        Some(signed) => u64::try_from(signed).ok(),
        None => u64::try_from(number.to_u128()?).ok(),
    }
}

/// The bounds of a duration, in words.
fn bounds(range: &RangeInclusive<Duration>) -> String {
    let [least, most] = [range.start(), range.end()].map(|one| humantime::format_duration(*one));
    format!("{least} to {most}")
}

fn seconds(number: Num) -> Option<Duration> {
    match whole(number) {
        Some(seconds) => Some(Duration::from_secs(seconds)),
        None => Duration::try_from_secs_f64(number.to_f64()?).ok(),
    }
}

fn bytes(text: &str) -> Option<usize> {
    const UNITS: [(&str, usize); 7] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
    ];
    let (digits, unit) = UNITS
        .iter()
        .find_map(|(unit, bytes)| text.strip_suffix(unit).map(|digits| (digits, *bytes)))
        .unwrap_or((text, 1));
    digits.trim().parse::<usize>().ok()?.checked_mul(unit)
}

/// A value as TOML, for an error. User and password of a URL are masked.
pub(super) fn show(value: &Value) -> String {
    match value {
        Value::String(_, text) => match text.rsplit_once('@') {
            Some((before, address)) => {
                let scheme = before.find("://").map_or("", |end| &before[..end + 3]);
                format!("{:?}", format!("{scheme}***@{address}"))
            }
            None => format!("{text:?}"),
        },
        Value::Char(_, character) => format!("{:?}", character.to_string()),
        Value::Bool(_, value) => value.to_string(),
        Value::Num(_, number) => match (number.to_i128(), number.to_f64()) {
            (Some(whole), _) => whole.to_string(),
            (None, Some(fraction)) => fraction.to_string(),
            (None, None) => "a number".into(),
        },
        Value::Array(_, items) => {
            let mut shown: Vec<_> = items.iter().take(MOST_ITEMS).map(show).collect();
            shown.extend((items.len() > MOST_ITEMS).then(|| "...".into()));
            format!("[{}]", shown.join(", "))
        }
        Value::Dict(_, entries) if entries.is_empty() => "{}".into(),
        Value::Dict(..) => "{...}".into(),
        Value::Empty(..) => "nothing".into(),
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::String(..) | Value::Char(..) => "text",
        Value::Bool(..) => "true or false",
        Value::Num(..) => "a number",
        Value::Array(..) => "a list",
        Value::Dict(..) => "a table",
        Value::Empty(..) => "nothing",
    }
}
