//! Prints a configuration as TOML: the file and the environment together, secrets masked.
//!
//! Invariant: what is printed reads as the same configuration, but for the masked secrets. An option
//! that has no use beside the others is left out.

use std::fmt;

use super::Config;
use super::option::Options;
use super::routes::{Route, TurnConfig};

type ShownOptions = Vec<(&'static str, String)>;

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        lines(f, &self.show())?;
        if let Some(tls) = &self.tls {
            section(f, &tls.files, |files| files.show())?;
        }
        section(f, &self.store, |store| store.show_used())?;
        section(f, &self.limits, Options::show)?;
        section(f, &self.timeouts, Options::show)?;
        section(f, &self.admin, Options::show)?;
        section(f, &self.log, Options::show)?;
        if self.tracing.otlp.is_some() {
            section(f, &self.tracing, Options::show)?;
        }
        self.routes
            .iter()
            .try_for_each(|route| write!(f, "\n[[routes]]\n{route}"))
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        lines(f, &self.show())?;
        match &self.turn {
            None => writeln!(f, "lock = false"),
            Some(turn) => turn.fmt(f),
        }
    }
}

impl fmt::Display for TurnConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        lines(f, &self.show())?;
        lines(f, &self.lock.show_used())?;
        let busy = self.busy.show().into_iter();
        let busy: Vec<_> = busy
            .map(|(key, value)| format!("{key} = {value}"))
            .collect();
        writeln!(f, "busy = {{ {} }}", busy.join(", "))
    }
}

fn section<T: Options>(
    f: &mut fmt::Formatter<'_>,
    options: &T,
    show: impl FnOnce(&T) -> ShownOptions,
) -> fmt::Result {
    writeln!(f, "\n[{}]", T::TABLE)?;
    lines(f, &show(options))
}

fn lines(f: &mut fmt::Formatter<'_>, options: &[(&'static str, String)]) -> fmt::Result {
    options
        .iter()
        .try_for_each(|(key, value)| writeln!(f, "{key} = {value}"))
}
