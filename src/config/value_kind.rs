//! The kinds of values that options have: how each is read, shown as TOML, and described.
//!
//! Invariant: what a kind shows, it reads as the same value. What only one section has (sentences,
//! templates) is a kind of that section.

use std::convert::Infallible;
use std::fmt::Display;
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::reader::ConfigValue;

/// What may be written for an option.
pub(super) trait Kind {
    /// What the program uses.
    type Value;

    /// Reads a value. One that can't be used is reported, and gives `None`.
    fn read(&self, entry: ConfigValue<'_>) -> Option<Self::Value>;

    /// The value as TOML; `None` if nothing has to be written for it.
    fn show(&self, value: &Self::Value) -> Option<String>;

    /// What may be written, in words.
    fn describe(&self) -> String;

    /// The value as TOML, as a person would write it.
    fn show_briefly(&self, value: &Self::Value) -> Option<String> {
        self.show(value)
    }

    /// Whether a value may hold a password, and is never shown in an error.
    fn is_secret(&self) -> bool {
        false
    }
}

/// An enum whose values are words in the file.
pub(super) trait Words: Copy + PartialEq + 'static {
    /// Each word and what it stands for.
    const WORDS: &'static [(&'static str, Self)];
}

/// Defines an enum and the word of each of its values.
macro_rules! words {
    (
        $(#[$meta:meta])*
        $vis:vis enum $name:ident { $($(#[$about:meta])+ $value:ident = $word:literal,)+ }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $vis enum $name { $($(#[$about])+ $value,)+ }

        impl $crate::config::value_kind::Words for $name {
            const WORDS: &'static [(&'static str, Self)] = &[$(($word, Self::$value)),+];
        }
    };
}
pub(super) use words;

/// `true` or `false`.
pub(super) struct Boolean;

/// A duration between two bounds, which are themselves allowed.
pub(super) struct DurationIn(pub(super) RangeInclusive<Duration>);

/// 0, which gives `None`, or a duration between two bounds, which are themselves allowed.
pub(super) struct ZeroOrDuration {
    pub(super) range: RangeInclusive<Duration>,
    /// Why a shorter duration can't be used.
    pub(super) why: &'static str,
}

/// A whole number between two bounds, which are themselves allowed.
pub(super) struct IntegerIn<T>(pub(super) RangeInclusive<T>);

/// A number of bytes, at least this number.
pub(super) struct SizeFrom(pub(super) usize);

/// One of the words of an enum.
pub(super) struct Word<T>(PhantomData<T>);

/// Text that is parsed.
pub(super) struct Text<T, E> {
    /// What the text is, in a word: `URL`.
    pub(super) what: &'static str,
    /// Parses the text; the error says what to write instead.
    pub(super) parse: fn(&str) -> Result<T, E>,
    /// The text that gives this value.
    pub(super) show: fn(&T) -> String,
}

/// A value that may hold a password.
pub(super) struct Masked<K>(pub(super) K);

/// A value that may be missing.
pub(super) struct Optional<K>(pub(super) K);

/// A list of texts, of which one has to match. An empty list is refused.
pub(super) struct AnyOf<T, E> {
    /// What each text is, in the plural: `methods`.
    pub(super) what: &'static str,
    /// Whether a single text may be written instead of a list.
    pub(super) takes_one: bool,
    /// Parses a text; the error says what to write instead.
    pub(super) parse: fn(&str) -> Result<T, E>,
}

/// The kind of an enum's words.
pub(super) const fn word<T: Words>() -> Word<T> {
    Word(PhantomData)
}

/// Text that is parsed, and shown by its `Display`.
pub(super) const fn text<T: Display, E>(
    what: &'static str,
    parse: fn(&str) -> Result<T, E>,
) -> Text<T, E> {
    Text {
        what,
        parse,
        show: ToString::to_string,
    }
}

/// The path of a file.
pub(super) const PATH: Text<PathBuf, Infallible> = Text {
    what: "path",
    parse: |text| Ok(text.into()),
    show: |path| path.display().to_string(),
};

/// A millisecond.
pub(super) const MS: Duration = Duration::from_millis(1);
/// A second.
pub(super) const SECOND: Duration = Duration::from_secs(1);
/// An hour.
pub(super) const HOUR: Duration = Duration::from_secs(3600);
/// A day.
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);
/// A week: longer than any turn. A longer duration is a mistake in the unit.
pub(super) const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

/// A text as TOML.
pub(super) fn quoted(text: impl ToString) -> String {
    toml_edit::Value::from(text.to_string()).to_string()
}

/// Texts as a TOML list.
pub(super) fn quoted_list(texts: impl IntoIterator<Item: ToString>) -> String {
    let texts: Vec<_> = texts.into_iter().map(quoted).collect();
    format!("[{}]", texts.join(", "))
}

/// Keys and values, which are TOML already, as an inline table.
pub(super) fn inline_table<K: Display>(entries: impl IntoIterator<Item = (K, String)>) -> String {
    let entries = entries.into_iter();
    let entries: Vec<_> = entries
        .map(|(key, value)| format!("{key} = {value}"))
        .collect();
    format!("{{ {} }}", entries.join(", "))
}

// === impls ===

impl Kind for Boolean {
    type Value = bool;

    fn read(&self, entry: ConfigValue<'_>) -> Option<bool> {
        entry.boolean()
    }

    fn show(&self, value: &bool) -> Option<String> {
        Some(value.to_string())
    }

    fn describe(&self) -> String {
        "true, false".into()
    }
}

impl Kind for DurationIn {
    type Value = Duration;

    fn read(&self, entry: ConfigValue<'_>) -> Option<Duration> {
        entry.duration(self.0.clone())
    }

    fn show(&self, value: &Duration) -> Option<String> {
        Some(quoted(humantime::format_duration(*value)))
    }

    fn describe(&self) -> String {
        let [least, most] =
            [self.0.start(), self.0.end()].map(|one| humantime::format_duration(*one));
        format!("duration, {least} to {most}")
    }
}

impl Kind for ZeroOrDuration {
    type Value = Option<Duration>;

    fn read(&self, entry: ConfigValue<'_>) -> Option<Self::Value> {
        let duration = entry.zero_or_duration(self.range.clone(), self.why)?;
        Some((!duration.is_zero()).then_some(duration))
    }

    fn show(&self, value: &Self::Value) -> Option<String> {
        DurationIn(self.range.clone()).show(&value.unwrap_or_default())
    }

    fn describe(&self) -> String {
        format!("{}, or 0", DurationIn(self.range.clone()).describe())
    }
}

impl<T: Copy + ToString + TryFrom<u64> + TryInto<u64>> Kind for IntegerIn<T> {
    type Value = T;

    fn read(&self, entry: ConfigValue<'_>) -> Option<T> {
        let least = (*self.0.start()).try_into().ok()?;
        let most = (*self.0.end()).try_into().ok()?;
        entry.integer(least..=most)?.try_into().ok()
    }

    fn show(&self, value: &T) -> Option<String> {
        Some(value.to_string())
    }

    fn describe(&self) -> String {
        format!(
            "number, {} to {}",
            self.0.start().to_string(),
            self.0.end().to_string()
        )
    }
}

impl Kind for SizeFrom {
    type Value = usize;

    fn read(&self, entry: ConfigValue<'_>) -> Option<usize> {
        entry.size(self.0)
    }

    fn show(&self, value: &usize) -> Option<String> {
        Some(value.to_string())
    }

    fn describe(&self) -> String {
        if self.0 == 0 { "size, or 0" } else { "size" }.into()
    }

    fn show_briefly(&self, value: &usize) -> Option<String> {
        Some(in_units(*value))
    }
}

fn in_units(bytes: usize) -> String {
    match bytes {
        bytes if bytes > 0 && bytes % (1 << 20) == 0 => format!("\"{}MiB\"", bytes >> 20),
        bytes if bytes > 0 && bytes % (1 << 10) == 0 => format!("\"{}KiB\"", bytes >> 10),
        bytes => bytes.to_string(),
    }
}

impl<T: Words> Kind for Word<T> {
    type Value = T;

    fn read(&self, entry: ConfigValue<'_>) -> Option<T> {
        entry.one_of(T::WORDS)
    }

    fn show(&self, value: &T) -> Option<String> {
        let (word, _) = T::WORDS.iter().find(|(_, known)| known == value)?;
        Some(quoted(word))
    }

    fn describe(&self) -> String {
        let words: Vec<_> = T::WORDS.iter().map(|(word, _)| quoted(word)).collect();
        words.join(", ")
    }
}

impl<T, E: ToString> Kind for Text<T, E> {
    type Value = T;

    fn read(&self, entry: ConfigValue<'_>) -> Option<T> {
        entry.parsed(self.parse)
    }

    fn show(&self, value: &T) -> Option<String> {
        Some(quoted((self.show)(value)))
    }

    fn describe(&self) -> String {
        self.what.into()
    }
}

impl<T, E: ToString> Kind for Masked<Text<T, E>> {
    type Value = T;

    fn read(&self, entry: ConfigValue<'_>) -> Option<T> {
        entry.parsed_secret(self.0.parse)
    }

    fn show(&self, value: &T) -> Option<String> {
        self.0.show(value)
    }

    fn describe(&self) -> String {
        self.0.describe()
    }

    fn is_secret(&self) -> bool {
        true
    }
}

impl<K: Kind> Kind for Optional<K> {
    type Value = Option<K::Value>;

    fn read(&self, entry: ConfigValue<'_>) -> Option<Self::Value> {
        self.0.read(entry).map(Some)
    }

    fn show(&self, value: &Self::Value) -> Option<String> {
        self.0.show(value.as_ref()?)
    }

    fn describe(&self) -> String {
        self.0.describe()
    }

    fn is_secret(&self) -> bool {
        self.0.is_secret()
    }
}

impl<T: ToString, E: ToString> Kind for AnyOf<T, E> {
    type Value = Vec<T>;

    fn read(&self, entry: ConfigValue<'_>) -> Option<Vec<T>> {
        let items = match self.takes_one {
            true => entry.one_or_any_of(),
            false => entry.any_of(),
        };
        let items = items?.into_iter();
        Some(items.filter_map(|item| item.parsed(self.parse)).collect())
    }

    fn show(&self, value: &Vec<T>) -> Option<String> {
        (!value.is_empty()).then(|| quoted_list(value.iter().map(T::to_string)))
    }

    fn describe(&self) -> String {
        let or_one = if self.takes_one { ", or one" } else { "" };
        format!("list of {}{or_one}", self.what)
    }
}
