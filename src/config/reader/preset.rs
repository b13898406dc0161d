//! A route of a preset with what the user wrote beside `preset` laid over it: one table, as if the
//! user had written both.
//!
//! Invariant: what is wrong is said of the user's entry, since the preset's text is no file of
//! theirs. Which keys mean what is not known here.

use figment::Figment;
use figment::providers::{Format, Toml};
use figment::value::{Dict, Value};

use super::ConfigTable;

/// A route as a preset has it.
pub struct PresetTable(Dict);

// === impl Preset ===

impl PresetTable {
    /// The entries of `[[routes]]` in a text; none if it is no TOML.
    pub fn routes(text: &str) -> Vec<Self> {
        let routes = Figment::from(Toml::string(text)).find_value("routes");
        let Ok(Value::Array(_, routes)) = routes else {
            return Vec::new();
        };
        let route = |value| match value {
            Value::Dict(_, entries) => Some(Self(entries)),
            _ => None,
        };
        routes.into_iter().filter_map(route).collect()
    }

    /// The text under `key`, if there is one.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.as_str()
    }

    /// Writes a text under `key`.
    pub fn set_text(&mut self, key: &str, text: String) {
        self.0.insert(key.into(), text.into());
    }

    /// Whether it says `key = false`.
    pub fn denies(&self, key: &str) -> bool {
        self.0.get(key).and_then(Value::to_bool) == Some(false)
    }
}

// === impl Table ===

impl<'r> ConfigTable<'r> {
    /// Whether the user has written `key`, taken or not.
    pub fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key) || self.wrote(key)
    }

    /// What is left of this table, but for the keys `without`, laid over a preset's route. Tables
    /// under the key `merged` are laid over each other, unless they differ in `kind`: then the rest
    /// of the preset's is for another kind. All else stands in place of the preset's.
    pub fn over(
        &self,
        preset: PresetTable,
        (merged, kind): (&str, &str),
        without: &[&str],
    ) -> ConfigTable<'r> {
        let mut entries = preset.0;
        let mut inherited: Vec<_> = entries.keys().cloned().collect();
        for (key, value) in &self.entries {
            if without.contains(&&**key) {
                continue;
            }
            inherited.retain(|other| other != key);
            match (entries.get_mut(key), value) {
                (Some(Value::Dict(_, below)), Value::Dict(_, above))
                    if key == merged && are_of_a_kind(below, above, kind) =>
                {
                    below.extend(above.clone());
                }
                _ => {
                    entries.insert(key.clone(), value.clone());
                }
            }
        }
        ConfigTable {
            report: self.report,
            path: self.path.clone(),
            entries,
            asked: self.asked.clone(),
            inherited,
        }
    }

    /// Whom to blame for what `key` comes to: the key itself, unless the value is a preset's; then
    /// the first of `others` that the user wrote, or the preset.
    pub fn blamed(&self, key: &'static str, others: &[&'static str]) -> &'static str {
        let inherits = |key: &str| self.inherited.iter().any(|inherited| inherited == key);
        if !inherits(key) {
            return key;
        }
        let written = |other: &&&str| self.wrote(other) && !inherits(other);
        others.iter().find(written).copied().unwrap_or("preset")
    }
}

/// Whether two tables don't contradict each other in what is under `kind`.
fn are_of_a_kind(a: &Dict, b: &Dict, kind: &str) -> bool {
    let text = |table: &Dict| table.get(kind).and_then(Value::as_str).map(str::to_owned);
    match (text(a), text(b)) {
        (Some(a), Some(b)) => a == b,
        _ => true,
    }
}
