//! Prints a configuration as TOML: the file and the environment together, secrets masked.
//!
//! Invariant: what is printed reads as the same configuration, but for the masked secrets. An option
//! that has no use beside the others is left out.

use std::fmt;

use super::Config;
use super::lock::{ON_REPEAT, ONCE_FOR};
use super::option::Options;
use super::reader;
use super::routes::{Route, SessionAction};
use super::store::StoreConfig;
use super::value_kind::inline_table;

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        lines(f, &self.show())?;
        if let Some(tls) = &self.tls {
            section(f, &tls.files)?;
        }
        writeln!(f, "\n[{}]", StoreConfig::TABLE)?;
        lines(f, &self.store.show_used())?;
        section(f, &self.errors)?;
        if !self.cors.allow_origins.is_empty() {
            section(f, &self.cors)?;
        }
        section(f, &self.limits)?;
        section(f, &self.timeouts)?;
        if self.keeps_answers() {
            section(f, &self.replay)?;
        }
        section(f, &self.admin)?;
        section(f, &self.log)?;
        if self.tracing.otlp.is_some() {
            section(f, &self.tracing)?;
        }
        self.routes
            .iter()
            .try_for_each(|route| write!(f, "\n[[routes]]\n{route}"))
    }
}

impl Config {
    /// The configuration as it is printed, as JSON: tables are objects, and options have their names.
    pub fn to_json(&self) -> serde_json::Value {
        reader::as_json(&self.to_string())
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        lines(f, &self.show())?;
        let Some(turn) = &self.turn else {
            return writeln!(f, "lock = false");
        };
        let mut own = turn.show();
        own.retain(|(key, _)| match *key {
            "attach" | "attach_ended" => turn.attach,
            "stop" => turn.stop,
            _ => true,
        });
        lines(f, &own)?;
        let mut lock = turn.lock.show_used();
        if turn.action() != SessionAction::Turn {
            lock.retain(|(key, _)| turn.uses(key));
        }
        lock.retain(|(key, _)| *key != ONCE_FOR || !turn.once.is_empty());
        lock.retain(|(key, _)| *key != ON_REPEAT || turn.may_join());
        for (key, value) in &mut lock {
            if *key == "on_missing" {
                *value += "  # ";
                *value += turn.lock.on_missing.in_words();
            }
        }
        lines(f, &lock)?;
        writeln!(f, "busy = {}", inline_table(turn.busy.show()))
    }
}

fn section<T: Options>(f: &mut fmt::Formatter<'_>, options: &T) -> fmt::Result {
    writeln!(f, "\n[{}]", T::TABLE)?;
    lines(f, &options.show())
}

fn lines(f: &mut fmt::Formatter<'_>, options: &[(&'static str, String)]) -> fmt::Result {
    options
        .iter()
        .try_for_each(|(key, value)| writeln!(f, "{key} = {value}"))
}
