//! Every option, told once: what `seriatim options` prints and `docs/configuration.md` has.
//!
//! Invariant: the options here are those that are read, with the bounds, words and defaults that they
//! are read with. Tests ask the reader for each of them (tests/it/reference.rs); how an option is
//! read stands where it is read.

use std::fmt;
use std::time::Duration;

use process::{ADMIN, LIMITS, LOG, STORE, TELEMETRY, TIMEOUTS, TLS, TOP};
use turns::{BUSY, LOCK, ROUTES};

mod process;
mod turns;

/// A table of the file.
#[derive(Debug)]
pub struct Section {
    /// Its name; empty for what stands before all tables.
    pub table: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// Its options, in the order in which they are best read.
    pub options: &'static [Setting],
}

/// An option.
#[derive(Debug)]
pub struct Setting {
    /// Its key, in its table.
    pub key: &'static str,
    /// What may be written.
    pub value: Kind,
    /// What is so when nobody writes it.
    pub default: Unwritten,
    /// Something else that may be written, as TOML.
    pub example: &'static str,
    /// When a change of it is in force.
    pub change: Change,
    /// What it does.
    pub what: &'static str,
}

/// What may be written for an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text, of this kind.
    Text(&'static str),
    /// One of these words.
    Words(&'static [&'static str]),
    /// `true` or `false`.
    Boolean,
    /// A duration from the one to the other.
    Duration(Duration, Duration),
    /// A whole number from the one to the other.
    Integer(u64, u64),
    /// A number of bytes.
    Size,
    /// A number of bytes, or 0.
    SizeOrZero,
    /// A list of this.
    List(&'static str),
    /// A table of this.
    Table(&'static str),
}

/// What is so when an option isn't written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwritten {
    /// The same as if this TOML were written.
    As(&'static str),
    /// Something that can't be written.
    Otherwise(&'static str),
}

/// When a change of an option is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A moment later, for requests that begin from then on.
    Live,
    /// After a restart.
    Restart,
}

/// All tables, in the order in which they are best read.
pub const SECTIONS: [Section; 11] = [
    TOP, STORE, LOCK, ROUTES, BUSY, LIMITS, TIMEOUTS, TLS, ADMIN, LOG, TELEMETRY,
];

// === impl Section ===

impl Section {
    /// The path of one of its options, as `store.url`.
    pub fn path(&self, option: &Setting) -> String {
        match self.table {
            "" => option.key.into(),
            table => format!("{table}.{}", option.key),
        }
    }
}

// === impl Setting ===

impl Setting {
    /// One whose changes are in force a moment later.
    const fn live(
        key: &'static str,
        value: Kind,
        default: Unwritten,
        example: &'static str,
        what: &'static str,
    ) -> Self {
        Self {
            key,
            value,
            default,
            example,
            change: Change::Live,
            what,
        }
    }

    /// One whose changes take a restart.
    const fn fixed(
        key: &'static str,
        value: Kind,
        default: Unwritten,
        example: &'static str,
        what: &'static str,
    ) -> Self {
        Self {
            change: Change::Restart,
            ..Self::live(key, value, default, example, what)
        }
    }
}

// === impl Kind ===

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(what) => f.write_str(what),
            Self::Words(words) => {
                let words: Vec<_> = words.iter().map(|word| format!("{word:?}")).collect();
                f.write_str(&words.join(", "))
            }
            Self::Boolean => f.write_str("true, false"),
            Self::Duration(least, most) => write!(
                f,
                "duration, {} to {}",
                humantime::format_duration(*least),
                humantime::format_duration(*most)
            ),
            Self::Integer(least, most) => write!(f, "number, {least} to {most}"),
            Self::Size => f.write_str("size"),
            Self::SizeOrZero => f.write_str("size, or 0"),
            Self::List(what) => write!(f, "list of {what}"),
            Self::Table(what) => write!(f, "table of {what}"),
        }
    }
}
