//! What an option is. One definition gives its key, its type, its default and its documentation.
//!
//! Invariant: [`options!`] turns a definition into all that is known of the option: the reader, the
//! line of `seriatim check`, the row of `seriatim options`, and whether a change needs a restart. No
//! other file repeats any of it. What may be written for an option is its kind ([`super::value_kind`]);
//! options that contradict each other are found by the section that has them.

use super::reader::ConfigTable;
use super::value_kind::Kind;

/// An option, as `seriatim options` and `docs/configuration.md` describe it.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Its key in its table.
    pub key: &'static str,
    /// What may be written, in words: `duration, 1ms to 1h`.
    pub value: String,
    /// What holds if the option is not written.
    pub default: DefaultValue,
    /// Another value that may be written, as TOML.
    pub example: &'static str,
    /// When a change of the option takes effect.
    pub change: Change,
    /// What the option does.
    pub what: &'static str,
}

/// What holds if an option is not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DefaultValue {
    /// The default, as the TOML that a user would write for it.
    Toml(String),
    /// Something that no value stands for, in words.
    Text(&'static str),
}

/// When a change of an option takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A moment later, for new requests.
    Live,
    /// After a restart.
    Restart,
}

/// A struct whose fields are options. [`options!`] implements it.
pub(super) trait Options: Default {
    /// The table of the file that has these options; empty for the top level.
    const TABLE: &'static str;

    /// The descriptions of the options, in the order in which they are read and shown.
    fn settings() -> Vec<Setting>;

    /// Sets each option that `table` has. A value that can't be used is reported, and changes nothing.
    fn read(&mut self, table: &mut ConfigTable<'_>);

    /// The key of each option and its value as TOML. An option without a value is left out.
    fn show(&self) -> Vec<(&'static str, String)>;

    /// The keys of the options that differ in `new` and can't change while the process runs.
    fn needing_restart(&self, new: &Self) -> Vec<&'static str>;

    /// Whether the option `key` has another value than its default.
    fn differs_from_default(&self, key: &str) -> bool {
        let value = |options: &Self| options.show().into_iter().find(|(shown, _)| *shown == key);
        value(self) != value(&Self::default())
    }
}

/// Defines options. Each field is one option:
///
/// ```text
/// /// What it does: the documentation of the field and of the option.
/// key: Type = default, kind, [unset "what holds without it",] example "TOML", Live | Restart;
/// ```
///
/// `beside` adds fields that are no options, each with its first value. With `impl` in place of
/// `struct` the struct is one that another module has.
macro_rules! options {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident in $table:literal {
            $($(#[doc = $what:literal])+ $key:ident: $type:ty = $default:expr, $kind:expr,
                $(unset $unset:literal,)? example $example:literal, $change:ident;)+
        }
        $(beside { $($(#[doc = $about:literal])+ $field:ident: $field_type:ty = $first:expr;)+ })?
    ) => {
        $(#[$meta])*
        $vis struct $name {
            $($(#[doc = $what])+ pub $key: $type,)+
            $($($(#[doc = $about])+ pub $field: $field_type,)+)?
        }

        $crate::config::option::options! {
            impl $name in $table {
                $($(#[doc = $what])+ $key: $type = $default, $kind,
                    $(unset $unset,)? example $example, $change;)+
            }
            $(beside { $($field = $first;)+ })?
        }
    };
    (
        impl $name:ident in $table:literal {
            $($(#[doc = $what:literal])+ $key:ident: $type:ty = $default:expr, $kind:expr,
                $(unset $unset:literal,)? example $example:literal, $change:ident;)+
        }
        $(beside { $($field:ident = $first:expr;)+ })?
    ) => {
        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)+ $($($field: $first,)+)? }
            }
        }

        impl $crate::config::option::Options for $name {
            const TABLE: &'static str = $table;

            fn settings() -> Vec<$crate::config::option::Setting> {
                vec![$({
                    let (default, unset): ($type, Option<&'static str>) =
                        ($default, None$(.or(Some($unset)))?);
                    let (value, default) = $crate::config::option::describe(&$kind, &default, unset);
                    $crate::config::option::Setting {
                        key: stringify!($key),
                        value,
                        default,
                        example: $example,
                        change: $crate::config::option::Change::$change,
                        what: concat!($($what),+).trim_ascii(),
                    }
                },)+]
            }

            fn read(&mut self, table: &mut $crate::config::reader::ConfigTable<'_>) {
                $(
                    let value = $crate::config::option::read_value(table, stringify!($key), &$kind);
                    if let Some(value) = value {
                        self.$key = value;
                    }
                )+
            }

            fn show(&self) -> Vec<(&'static str, String)> {
                let mut shown = Vec::new();
                $(
                    let value = $crate::config::value_kind::Kind::show(&$kind, &self.$key);
                    shown.extend(value.map(|value| (stringify!($key), value)));
                )+
                shown
            }

            fn needing_restart(&self, new: &Self) -> Vec<&'static str> {
                use $crate::config::option::Change::{self, *};
                let changed: &[(&'static str, Change, bool)] =
                    &[$((stringify!($key), $change, self.$key != new.$key)),+];
                let fixed = changed.iter().filter(|(_, change, differs)| *differs && *change == Restart);
                fixed.map(|(key, ..)| *key).collect()
            }
        }
    };
}
pub(super) use options;

/// The value of the option `key` in `table`; `None` if it isn't written or can't be used, which is
/// reported.
pub(super) fn read_value<K: Kind>(
    table: &mut ConfigTable<'_>,
    key: &'static str,
    kind: &K,
) -> Option<K::Value> {
    let entry = if kind.is_secret() {
        table.take_secret(key)
    } else {
        table.take(key)
    };
    kind.read(entry?)
}

/// What may be written for an option, and its default: `unset`, or the value as TOML.
pub(super) fn describe<K: Kind>(
    kind: &K,
    default: &K::Value,
    unset: Option<&'static str>,
) -> (String, DefaultValue) {
    let default = match unset {
        Some(text) => DefaultValue::Text(text),
        None => DefaultValue::Toml(kind.show_briefly(default).unwrap_or_default()),
    };
    (kind.describe(), default)
}
