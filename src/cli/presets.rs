//! `seriatim presets`: what presets there are, and each as TOML.

use clap::Args;
use clap::builder::PossibleValuesParser;

use super::{OK, say};
use crate::config::presets::{PRESETS, Preset};

/// Options of `seriatim presets`.
#[derive(Debug, Args)]
pub(super) struct PresetsArgs {
    /// Print this one as TOML, for the place of `preset = "NAME"` in a configuration
    #[arg(value_parser = PossibleValuesParser::new(PRESETS.map(|preset| preset.name)))]
    name: Option<String>,
}

// === impl Presets ===

impl PresetsArgs {
    pub(super) fn show(&self) -> u8 {
        let named = |preset: &&Preset| self.name.as_deref() == Some(preset.name);
        match PRESETS.iter().find(named) {
            Some(preset) => say(preset.toml.trim_end()),
            None => {
                let width = PRESETS.map(|preset| preset.name.len());
                let width = width.into_iter().max().unwrap_or_default();
                for preset in &PRESETS {
                    let mind = preset.mind().map(|mind| format!("; {mind}"));
                    let mind = mind.unwrap_or_default();
                    say(format!("{:width$}  {}{mind}", preset.name, preset.title()));
                }
            }
        }
        OK
    }
}
