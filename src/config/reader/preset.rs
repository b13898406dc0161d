//! Merges a route of a preset with the options that the user wrote beside `preset`, into one table.
//!
//! Invariant: problems are reported at the user's entry, since the user can't edit the preset's text.
//! What the keys mean is left to `config::presets`.

use figment::Figment;
use figment::providers::{Format, Toml};
use figment::value::{Dict, Value};

use super::ConfigTable;

/// A route of a preset, before it is merged with the user's options.
pub struct PresetTable(Dict);

/// How two tables under one key are merged.
#[derive(Clone, Copy)]
pub struct MergedTable {
    /// The key of the tables.
    pub key: &'static str,
    /// A key in them. Tables with different values of it are not merged: the user's replaces the
    /// preset's.
    pub kind: &'static str,
}

// === impl PresetTable ===

impl PresetTable {
    /// The entries of `[[routes]]` in a preset's text; none if the text isn't valid TOML.
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

    /// The text of `key`, if it has one.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.as_str()
    }

    /// Sets the text of `key`.
    pub fn set_text(&mut self, key: &str, text: String) {
        self.0.insert(key.into(), text.into());
    }

    /// Whether `key` is true.
    pub fn is_true(&self, key: &str) -> bool {
        self.0.get(key).and_then(Value::to_bool) == Some(true)
    }

    /// Takes a boolean out of the table.
    pub fn take_bool(&mut self, key: &str) -> Option<bool> {
        self.0.remove(key)?.to_bool()
    }
}

// === impl ConfigTable ===

impl<'r> ConfigTable<'r> {
    /// Whether the user has written `key`, taken or not.
    pub fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key) || self.wrote(key)
    }

    /// A preset's route in which the entries of this table, except the keys `without`, replace those of
    /// the preset. The tables under `merged.key` are merged entry by entry.
    pub fn over(
        &self,
        preset: PresetTable,
        merged: MergedTable,
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
                    if key == merged.key && are_of_a_kind(below, above, merged.kind) =>
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

    /// The key that the user has to change for `key` to change: `key` itself, unless its value comes
    /// from a preset; then the first of `others` that the user wrote, or `preset`.
    pub fn blamed(&self, key: &'static str, others: &[&'static str]) -> &'static str {
        let inherits = |key: &str| self.inherited.iter().any(|inherited| inherited == key);
        if !inherits(key) {
            return key;
        }
        let written = |other: &&&str| self.wrote(other) && !inherits(other);
        others.iter().find(written).copied().unwrap_or("preset")
    }
}

/// Whether not both tables have a text under `kind`, or both have the same one.
fn are_of_a_kind(a: &Dict, b: &Dict, kind: &str) -> bool {
    let text = |table: &Dict| table.get(kind).and_then(Value::as_str).map(str::to_owned);
    match (text(a), text(b)) {
        (Some(a), Some(b)) => a == b,
        _ => true,
    }
}
