//! One value as the user wrote it, read as what the program wants; what is wrong with it is noted.

use std::convert::Infallible;
use std::time::Duration;

use figment::Figment;
use figment::providers::{Format, Toml};
use figment::value::{Num, Value};

use super::{ConfigTable, ProblemReport};

/// One value, and where it stands.
pub struct ConfigValue<'r> {
    pub(super) report: &'r ProblemReport,
    pub(super) path: String,
    pub(super) value: Value,
}

// === impl Entry ===

impl<'r> ConfigValue<'r> {
    /// Notes what is wrong with it.
    pub fn wrong(&self, why: impl Into<String>) {
        self.report.note(&self.path, Some(show(&self.value)), why);
    }

    fn not(&self, wanted: &str) {
        self.wrong(format!("this is {}; write {wanted}", kind(&self.value)));
    }

    fn is_from_environment(&self) -> bool {
        self.report.is_from_environment(&self.path)
    }

    /// The value as the reader wants it: a variable is text, and is read as TOML where another type
    /// is wanted.
    fn typed(&self) -> Value {
        match &self.value {
            Value::String(_, text) if self.is_from_environment() => {
                let parsed = Figment::from(Toml::string(&format!("value = {text}")));
                parsed
                    .find_value("value")
                    .unwrap_or_else(|_| self.value.clone())
            }
            value => value.clone(),
        }
    }

    /// Text.
    pub fn string(self) -> Option<String> {
        self.parsed(|text| Ok::<_, Infallible>(text.to_owned()))
    }

    /// Text that `parse` makes something of; its error says what is wrong and what to write.
    pub fn parsed<T, E: ToString>(self, parse: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        let Value::String(_, text) = &self.value else {
            self.not("text in quotes");
            return None;
        };
        parse(text)
            .map_err(|error| self.wrong(error.to_string()))
            .ok()
    }

    /// As [`ConfigValue::parsed`], for what must not be shown.
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

    /// One of a few words.
    pub fn one_of<T: Clone>(self, words: &[(&str, T)]) -> Option<T> {
        let list = || {
            words
                .iter()
                .map(|(word, _)| format!("{word:?}"))
                .collect::<Vec<_>>()
                .join(" or ")
        };
        let found = match &self.value {
            Value::String(_, text) => words.iter().find(|(word, _)| word == text),
            _ => None,
        };
        if found.is_none() {
            self.wrong(format!("write {}", list()));
        }
        found.map(|(_, value)| value.clone())
    }

    /// Text, or the text of a whole number, `true` or `false`.
    pub fn scalar(&self) -> Option<String> {
        let text = match &self.value {
            Value::String(_, text) => Some(text.clone()),
            Value::Bool(_, value) => Some(value.to_string()),
            Value::Num(_, number) => number.to_i128().map(|number| number.to_string()),
            _ => None,
        };
        if text.is_none() {
            self.not("text in quotes, a whole number, true or false");
        }
        text
    }

    /// `true` or `false`.
    pub fn boolean(self) -> Option<bool> {
        match self.typed() {
            Value::Bool(_, value) => Some(value),
            _ => {
                self.not("true or false");
                None
            }
        }
    }

    /// A whole number between two bounds, which are themselves allowed.
    pub fn integer(self, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let (least, most) = (range.start(), range.end());
        let wanted = format!("write a whole number from {least} to {most}");
        self.integer_where(|value| range.contains(&value), &wanted)
    }

    /// A whole number that `fits`; otherwise `wanted` is to be written.
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

    /// A number of seconds, or text with a unit, between two bounds, which are themselves allowed.
    pub fn duration(self, range: std::ops::RangeInclusive<Duration>) -> Option<Duration> {
        let duration = match self.typed() {
            Value::Num(_, number) => seconds(number),
            Value::String(_, text) => humantime::parse_duration(&text).ok(),
            _ => None,
        };
        let fits = duration.filter(|duration| range.contains(duration));
        if fits.is_none() {
            let (least, most) = (range.start(), range.end());
            self.wrong(match duration {
                // `Debug` would say 0ns.
                Some(_) if least.is_zero() => format!("write a duration from 0s to {most:?}"),
                Some(_) => format!("write a duration from {least:?} to {most:?}"),
                None => {
                    "write a number of seconds, or a duration as \"250ms\", \"30s\", \"5m\"".into()
                }
            });
        }
        fits
    }

    /// A number of bytes, or text with a unit, of at least one byte.
    pub fn size(self) -> Option<usize> {
        self.size_where(|size| size > 0, "")
    }

    /// A number of bytes, or text with a unit, or 0.
    pub fn size_or_zero(self) -> Option<usize> {
        self.size_where(|_| true, ", or 0")
    }

    /// A number of bytes that `fits`; `others` says what else may be written.
    fn size_where(self, fits: impl FnOnce(usize) -> bool, others: &str) -> Option<usize> {
        let size = match self.typed() {
            Value::Num(_, number) => whole(number).and_then(|number| usize::try_from(number).ok()),
            Value::String(_, text) => bytes(&text),
            _ => None,
        };
        let fitting = size.filter(|size| fits(*size));
        if fitting.is_none() {
            self.wrong(format!(
                "write a number of bytes, or a size as \"512KiB\", \"10MiB\"{others}"
            ));
        }
        fitting
    }

    /// A list.
    pub fn list(self) -> Option<Vec<ConfigValue<'r>>> {
        let Value::Array(_, items) = self.typed() else {
            self.not("a list in square brackets");
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

    /// A list of conditions, of which one has to hold: it isn't empty.
    pub fn any_of(self) -> Option<Vec<ConfigValue<'r>>> {
        if matches!(self.typed(), Value::Array(_, items) if items.is_empty()) {
            self.wrong("an empty list matches nothing: leave the key out to match anything");
            return None;
        }
        self.list()
    }

    /// The same, or a single condition in its stead.
    pub fn one_or_any_of(self) -> Option<Vec<ConfigValue<'r>>> {
        match self.typed() {
            Value::Array(..) => self.any_of(),
            _ => Some(vec![self]),
        }
    }

    /// A table.
    pub fn table(self) -> Option<ConfigTable<'r>> {
        let Value::Dict(_, entries) = self.typed() else {
            self.not("a table");
            return None;
        };
        Some(ConfigTable {
            report: self.report,
            path: self.path,
            entries,
            asked: Vec::new(),
            inherited: Vec::new(),
        })
    }

    /// Whether it is text.
    pub fn is_string(&self) -> bool {
        matches!(self.value, Value::String(..))
    }
}

// === values ===

/// A whole number that isn't negative. figment gives each width of number a way of its own.
fn whole(number: Num) -> Option<u64> {
    let unsigned = || {
        number
            .to_u128()
            .and_then(|number| u64::try_from(number).ok())
    };
    number
        .to_i128()
        .map_or_else(unsigned, |number| u64::try_from(number).ok())
}

fn seconds(number: Num) -> Option<Duration> {
    let fraction = || {
        number
            .to_f64()
            .and_then(|number| Duration::try_from_secs_f64(number).ok())
    };
    whole(number).map(Duration::from_secs).or_else(fraction)
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

/// A value as it would stand in the file, but for what stands where a URL has its password.
fn show(value: &Value) -> String {
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
            format!(
                "[{}]",
                items.iter().map(show).collect::<Vec<_>>().join(", ")
            )
        }
        Value::Dict(..) => "{...}".into(),
        Value::Empty(..) => "nothing".into(),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(..) | Value::Char(..) => "text",
        Value::Bool(..) => "true or false",
        Value::Num(..) => "a number",
        Value::Array(..) => "a list",
        Value::Dict(..) => "a table",
        Value::Empty(..) => "nothing",
    }
}
