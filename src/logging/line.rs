//! One line of the log, built field by field without tracing.
//!
//! Invariant: the line equals, byte for byte, what tracing-subscriber writes for an event with these fields.

use std::fmt::{self, Write};
use std::time::SystemTime;

use crate::timestamp::{self, Precision};

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineFormat {
    /// Text for a file or a collector.
    Text,
    /// Text with colors for a terminal.
    ColoredText,
    /// One JSON object.
    Json,
}

/// A line of the access log, to which [`fields!`] adds the fields of an event.
#[derive(Debug)]
pub(crate) struct EventLine {
    text: String,
    format: LineFormat,
}

/// The name of a field, with all that stands between the value before it and its own value.
#[derive(Debug)]
pub(crate) struct FieldName {
    pub(crate) text: &'static str,
    pub(crate) colored: &'static str,
    pub(crate) json: &'static str,
}

/// A value of a field.
pub(crate) trait FieldValue {
    /// Adds the value to a line, under this name.
    fn add_to(self, line: &mut EventLine, name: &'static FieldName);
}

/// Adds fields to an [`EventLine`], as the macros of tracing do: `fields!(line, name = value, ...)`. A field whose
/// value is `None` is left out.
macro_rules! fields {
    ($line:expr, $($name:ident = $value:expr),+ $(,)?) => {
        $($crate::logging::FieldValue::add_to(
            $value,
            $line,
            &$crate::logging::FieldName {
                text: concat!(" ", stringify!($name), "="),
                colored: concat!(" \x1b[3m", stringify!($name), "\x1b[0m\x1b[2m=\x1b[0m"),
                json: concat!(",\"", stringify!($name), "\":"),
            },
        );)+
    };
}
pub(crate) use fields;

// === impl EventLine ===

impl EventLine {
    /// Begins the line of an event of the access log that happens now. `text` is an empty text whose memory is used.
    pub(super) fn begin(text: String, format: LineFormat) -> Self {
        let (before_time, after_time) = match format {
            LineFormat::Text => ("", "  INFO seriatim::access:"),
            LineFormat::ColoredText => (
                "\x1b[2m",
                "\x1b[0m \x1b[32m INFO\x1b[0m \x1b[2mseriatim::access\x1b[0m\x1b[2m:\x1b[0m",
            ),
            LineFormat::Json => ("{\"timestamp\":\"", "\",\"level\":\"INFO\""),
        };
        let mut line = Self { text, format };
        line.text.push_str(before_time);
        timestamp::push(&mut line.text, SystemTime::now(), Precision::Micros);
        line.text.push_str(after_time);
        line
    }

    /// The whole line.
    pub(super) fn end(mut self) -> String {
        self.text.push_str(match self.format {
            LineFormat::Text | LineFormat::ColoredText => "\n",
            LineFormat::Json => ",\"target\":\"seriatim::access\"}\n",
        });
        self.text
    }

    // Inlined like the values: a name that is a constant is stored, and not copied by a call.
    #[inline(always)]
    fn name(&mut self, name: &'static FieldName) {
        match self.format {
            LineFormat::Text => self.text.push_str(name.text),
            LineFormat::ColoredText => self.text.push_str(name.colored),
            LineFormat::Json => self.text.push_str(name.json),
        }
    }

    #[inline(never)]
    fn quoted(&mut self, value: &str) {
        // Most values need no escapes, and are added without the formatter. All bytes are looked at, many at a time.
        let is_plain = value.bytes().fold(true, |is_plain, byte| {
            is_plain & matches!(byte, b' '..=b'~') & (byte != b'"') & (byte != b'\\')
        });
        if is_plain {
            self.text.push('"');
            self.text.push_str(value);
            self.text.push('"');
            return;
        }
        // Writing into a string doesn't fail.
        let _ = match self.format {
            LineFormat::Text | LineFormat::ColoredText => write!(self.text, "{value:?}"),
            LineFormat::Json => write!(self.text, "{}", serde_json::Value::from(value)),
        };
    }
}

// === impl FieldValue ===

impl FieldValue for &str {
    #[inline(always)]
    fn add_to(self, line: &mut EventLine, name: &'static FieldName) {
        line.name(name);
        line.quoted(self);
    }
}

impl FieldValue for u64 {
    #[inline(always)]
    fn add_to(self, line: &mut EventLine, name: &'static FieldName) {
        line.name(name);
        line.text.push_str(itoa::Buffer::new().format(self));
    }
}

impl FieldValue for u16 {
    #[inline(always)]
    fn add_to(self, line: &mut EventLine, name: &'static FieldName) {
        u64::from(self).add_to(line, name);
    }
}

impl FieldValue for bool {
    #[inline(always)]
    fn add_to(self, line: &mut EventLine, name: &'static FieldName) {
        line.name(name);
        line.text.push_str(if self { "true" } else { "false" });
    }
}

/// A text of the program, which is not quoted in a line of text.
impl FieldValue for fmt::Arguments<'_> {
    fn add_to(self, line: &mut EventLine, name: &'static FieldName) {
        line.name(name);
        if line.format == LineFormat::Json {
            return line.quoted(&self.to_string());
        }
        // Writing into a string doesn't fail.
        let _ = line.text.write_fmt(self);
    }
}

impl<V: FieldValue> FieldValue for Option<V> {
    #[inline(always)]
    fn add_to(self, line: &mut EventLine, name: &'static FieldName) {
        if let Some(value) = self {
            value.add_to(line, name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use tracing::dispatcher;
    use tracing::level_filters::LevelFilter;

    use super::*;
    use crate::logging::dispatch;

    /// What tracing-subscriber writes for the events of `log`.
    fn written_by_tracing(format: LineFormat, log: impl FnOnce()) -> String {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let writer = Arc::new(File::create(file.path()).expect("it can be written"));
        let is_terminal = format == LineFormat::ColoredText;
        let dispatch = dispatch(format, is_terminal, LevelFilter::INFO, writer);
        dispatcher::with_default(&dispatch, log);
        std::fs::read_to_string(file.path()).expect("text")
    }

    /// The line with a word in place of its time.
    fn without_time(line: &str) -> String {
        let year = line.find("20").expect("every line has its time");
        let (before, time) = line.split_at(year);
        let (time, after) = time.split_once('Z').expect("the time is in UTC");
        assert_eq!(
            time.len(),
            "2026-12-01T10:20:30.123456".len(),
            "in {line:?}"
        );
        format!("{before}TIME{after}")
    }

    /// Panics if a line with these fields differs in any format from the one of tracing-subscriber.
    macro_rules! assert_same {
        ($($name:ident = $value:expr),+) => {
            for format in [LineFormat::Text, LineFormat::ColoredText, LineFormat::Json] {
                let expected = written_by_tracing(format, || {
                    tracing::info!(target: "seriatim::access", $($name = $value),+);
                });
                let mut line = EventLine::begin(String::new(), format);
                fields!(&mut line, $($name = $value),+);
                assert_eq!(
                    without_time(&line.end()),
                    without_time(&expected),
                    "a line equals that of tracing-subscriber as {format:?}"
                );
            }
        };
    }

    #[test]
    fn a_line_equals_that_of_tracing_subscriber() {
        assert_same!(
            outcome = "complete",
            status = 200_u16,
            early = true,
            overlap = false,
            fence = u64::MAX,
            bytes = 0_u64,
            error = format_args!("{} of {}", "the \"first\"", 2)
        );
        assert_same!(
            continued = None::<&str>,
            status = Some(429_u16),
            wait_us = None::<u64>,
            total_us = Some(1_234_567_u64)
        );
    }

    #[test]
    fn a_text_is_escaped_as_by_tracing_subscriber() {
        let ascii: String = (0..0x80).map(char::from).collect();
        for text in ["", "~ !", "a\"b", "a\\b", "it's", "\u{7f}", &ascii] {
            assert_same!(key = text);
        }
        for text in [
            "会话",
            "é",
            "e\u{301}",
            "\u{301}",
            "\u{85}",
            "\u{200b}",
            "\u{2028}",
            "\u{feff}",
            "🙂",
            "\u{10ffff}",
        ] {
            assert_same!(key = text, path = &*format!("/{text}/"));
        }
    }

    #[test]
    fn each_single_byte_is_escaped_wherever_it_stands() {
        for at in [0, 15, 16, 40] {
            for byte in 0..0x80 {
                let mut text = "x".repeat(41);
                text.replace_range(at..=at, &char::from(byte).to_string());
                let mut line = EventLine::begin(String::new(), LineFormat::Json);
                fields!(&mut line, key = &*text);
                let line = line.end();
                let read: serde_json::Value = serde_json::from_str(&line).expect("JSON");
                assert_eq!(read["key"], *text, "{line}");
                assert_eq!(
                    line.trim_end().lines().count(),
                    1,
                    "an event is one line: {line}"
                );
            }
        }
    }
}
