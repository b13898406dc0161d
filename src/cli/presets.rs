//! `seriatim presets`: lists the presets, or prints one as TOML.

use clap::Args;
use clap::builder::PossibleValuesParser;
use serde_json::{Value, json};

use super::terminal::padded;
use super::{OK, print, print_json};
use crate::config::presets::{PRESETS, Preset};

/// Options of `seriatim presets`.
#[derive(Debug, Args)]
pub(super) struct PresetsArgs {
    /// The preset to print as TOML, which can replace `preset = "NAME"` in a configuration
    #[arg(value_parser = PossibleValuesParser::new(PRESETS.map(|preset| preset.name)))]
    name: Option<String>,
    /// Print one JSON object per preset
    #[arg(long)]
    json: bool,
}

// === impl PresetsArgs ===

impl PresetsArgs {
    pub(super) fn show(&self) -> u8 {
        let named = |preset: &&Preset| self.name.as_deref() == Some(preset.name);
        match PRESETS.iter().find(named) {
            Some(preset) if self.json => print_json(&as_json(preset)),
            Some(preset) => print(preset.toml.trim_end()),
            None if self.json => PRESETS.iter().map(as_json).for_each(|one| print_json(&one)),
            None => {
                let width = PRESETS.map(|preset| preset.name.len());
                let width = width.into_iter().max().unwrap_or_default();
                for preset in &PRESETS {
                    let note = preset.note().map(|note| format!("; {note}"));
                    let (name, note) = (padded(preset.name, width), note.unwrap_or_default());
                    print(format!("{name}  {}{note}", preset.title()));
                }
            }
        }
        OK
    }
}

fn as_json(preset: &Preset) -> Value {
    json!({
        "name": preset.name, "title": preset.title(), "note": preset.note(), "toml": preset.toml,
    })
}
