//! `seriatim presets`: lists the presets, or prints one as TOML.

use clap::Args;
use clap::builder::PossibleValuesParser;

use super::{OK, print};
use crate::config::presets::{PRESETS, Preset};

/// Options of `seriatim presets`.
#[derive(Debug, Args)]
pub(super) struct PresetsArgs {
    /// The preset to print as TOML, which can replace `preset = "NAME"` in a configuration
    #[arg(value_parser = PossibleValuesParser::new(PRESETS.map(|preset| preset.name)))]
    name: Option<String>,
}

// === impl PresetsArgs ===

impl PresetsArgs {
    pub(super) fn show(&self) -> u8 {
        let named = |preset: &&Preset| self.name.as_deref() == Some(preset.name);
        match PRESETS.iter().find(named) {
            Some(preset) => print(preset.toml.trim_end()),
            None => {
                let width = PRESETS.map(|preset| preset.name.len());
                let width = width.into_iter().max().unwrap_or_default();
                for preset in &PRESETS {
                    let mind = preset.mind().map(|mind| format!("; {mind}"));
                    let mind = mind.unwrap_or_default();
                    print(format!("{:width$}  {}{mind}", preset.name, preset.title()));
                }
            }
        }
        OK
    }
}
