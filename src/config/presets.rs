//! Presets: the routes of well-known backends, as TOML that a user could have written.
//!
//! Invariant: `preset = "NAME"` means the same as the text of the preset in its place. So a preset
//! can do nothing that a configuration can't, and `seriatim presets NAME` shows all of it.

use super::lock::LockConfig;
use super::option::{Options, options};
use super::pattern::{PathPattern, PatternError};
use super::problem::nearest;
use super::reader::{ConfigTable, ConfigValue, MergedTable, PresetTable};
use super::value_kind::{Boolean, Optional, Text, text};

/// The routes of a well-known backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    /// The name of the preset in a configuration.
    pub name: &'static str,
    /// The routes as TOML, with comments on the backend.
    pub toml: &'static str,
}

/// All presets, by name.
pub const PRESETS: [Preset; 21] = [
    preset("a2a", include_str!("presets/a2a.toml")),
    preset("adk", include_str!("presets/adk.toml")),
    preset("ag-ui", include_str!("presets/ag-ui.toml")),
    preset("ag-ui-cancel", include_str!("presets/ag-ui-cancel.toml")),
    preset("agentcore", include_str!("presets/agentcore.toml")),
    preset("agentscope", include_str!("presets/agentscope.toml")),
    preset("agno", include_str!("presets/agno.toml")),
    preset("copilotkit", include_str!("presets/copilotkit.toml")),
    preset("dify", include_str!("presets/dify.toml")),
    preset("flowise", include_str!("presets/flowise.toml")),
    preset("langgraph", include_str!("presets/langgraph.toml")),
    preset("langserve", include_str!("presets/langserve.toml")),
    preset("letta", include_str!("presets/letta.toml")),
    preset("llamaindex", include_str!("presets/llamaindex.toml")),
    preset("mastra", include_str!("presets/mastra.toml")),
    preset("mcp", include_str!("presets/mcp.toml")),
    preset("n8n", include_str!("presets/n8n.toml")),
    preset("openai-chat", include_str!("presets/openai-chat.toml")),
    preset(
        "openai-responses",
        include_str!("presets/openai-responses.toml"),
    ),
    preset("rasa", include_str!("presets/rasa.toml")),
    preset("vercel-ai", include_str!("presets/vercel-ai.toml")),
];

options! {
    /// The options that say what an entry of `[[routes]]` stands for.
    #[derive(Clone, Debug)]
    pub(super) struct RouteEntry in "routes" {
        /// The routes of a well-known backend, in place of this entry. Other options of the entry
        /// override the preset's. `seriatim presets` lists all presets.
        preset: Option<Preset> = None, Optional(PRESET), unset "none", example "\"langgraph\"", Live;
        /// A path in front of all paths of the preset, also with one `{*rest}`. Used with `preset`.
        prefix: Option<String> = None, Optional(text("path pattern", check_prefix)), unset "none",
            example "\"/agents/{agent}\"", Live;
        /// Whether the route locks. With false, its requests are forwarded without a lock: stop,
        /// cancel, history.
        lock: bool = true, Boolean, example "false", Live;
    }
}

const PRESET: Text<Preset, String> = Text {
    what: "name",
    parse: Preset::find,
    show: |preset| preset.name.to_owned(),
};

/// An entry of `[[routes]]`, or one route of its preset.
pub(super) struct RouteTable<'r> {
    /// The options of the route.
    pub(super) table: ConfigTable<'r>,
    /// Whether the route locks.
    pub(super) locks: bool,
    /// Whether `preset`, `prefix` and `path` are right. Otherwise the real path and the missing options
    /// of the route are unknown, and no problem of them is reported.
    pub(super) is_complete: bool,
}

/// The beginning of the line of a preset that says what a lock can't do for this backend.
const NOTE: &str = "# Note: ";

/// The options of a user's entry that don't override those of a preset's route without a lock, in
/// addition to the options of `[lock]`.
const FOR_LOCKED_ROUTES: [&str; 5] = ["session_id", "user_id", "once", "busy", "when"];

/// A route's `busy` overrides `[busy]`, and so the preset's: a sentence of the user leaves the preset's
/// format as it is. A status is for its format.
const BUSY: MergedTable = MergedTable {
    key: "busy",
    kind: "format",
};

const fn preset(name: &'static str, toml: &'static str) -> Preset {
    Preset { name, toml }
}

// === impl Preset ===

impl Preset {
    /// The preset with this name.
    ///
    /// # Errors
    /// When there is none; the error suggests the nearest name.
    pub fn find(name: &str) -> Result<Self, String> {
        if let Some(preset) = PRESETS.iter().find(|preset| preset.name == name) {
            return Ok(*preset);
        }
        let names = PRESETS.map(|preset| preset.name);
        Err(match nearest(name, names) {
            Some(near) => format!("unknown preset; did you mean {near:?}?"),
            None => format!("unknown preset; write one of {}", names.join(", ")),
        })
    }

    /// The first line of the text: which backend the preset is for.
    pub fn title(&self) -> &'static str {
        let line = self.toml.lines().next().unwrap_or_default();
        line.trim_start_matches("# ")
    }

    /// What a lock can't do for this backend, or another warning; a line.
    pub fn note(&self) -> Option<&'static str> {
        let mut lines = self.toml.lines();
        lines.find_map(|line| line.strip_prefix(NOTE))
    }
}

// === expansion ===

/// The routes of an entry of `[[routes]]`: itself, or one for each route of its preset, with the
/// entry's other options in place of the preset's.
pub(super) fn expand(mut table: ConfigTable<'_>) -> Vec<RouteTable<'_>> {
    let mut entry = RouteEntry::default();
    entry.read(&mut table);
    let Some(preset) = entry.preset else {
        let names_preset = table.wrote("preset");
        if table.wrote("prefix") && !names_preset {
            table.note(
                "prefix",
                "is used only with a preset: write it in path, or write preset = \"...\" too",
            );
        }
        return vec![RouteTable {
            table,
            locks: entry.lock,
            is_complete: !names_preset,
        }];
    };
    if !entry.lock {
        table.note(
            "lock",
            "contradicts `preset`, which says which of its routes lock: leave it out, or write \
             enforce = false to only watch",
        );
    }
    let routes = PresetTable::routes(preset.toml);
    let is_complete = check_paths(&table, preset, &routes, entry.prefix.as_deref());
    let prefix = entry.prefix.filter(|_| is_complete);
    let name = table.take("name").and_then(ConfigValue::string);
    let merged = routes.into_iter().map(|mut route| {
        if let Some(name) = &name {
            // `langgraph-wait` of a preset whose entry has the name `chat` is `chat-wait`.
            let own = route.text("name").unwrap_or_default();
            let suffix = own.strip_prefix(preset.name).unwrap_or_default();
            let renamed = format!("{name}{suffix}");
            route.set_text("name", renamed);
        }
        if let Some(prefix) = &prefix {
            let path = behind(prefix, route.text("path"));
            route.set_text("path", path);
        }
        let locks = route.take_bool("lock").unwrap_or(true);
        let without = match locks {
            true => Vec::new(),
            false => [&FOR_LOCKED_ROUTES[..], &LockConfig::keys()].concat(),
        };
        RouteTable {
            table: table.over(route, BUSY, &without),
            locks,
            is_complete,
        }
    });
    merged.collect()
}

/// Whether the paths of the preset's routes are known. Reports a `prefix` and a `path` that can't be
/// used with this preset.
fn check_paths(
    table: &ConfigTable<'_>,
    preset: Preset,
    routes: &[PresetTable],
    prefix: Option<&str>,
) -> bool {
    let mut paths: Vec<_> = routes.iter().map(|route| route.text("path")).collect();
    paths.dedup();
    let (has_path, has_prefix) = (table.has("path"), table.wrote("prefix"));
    if has_path && has_prefix {
        table.note("prefix", "contradicts path: write the whole path into path");
        return false;
    }
    if has_path && paths.len() > 1 {
        let why = format!(
            "the preset has routes for {} paths: write prefix = \"/api\" to put a path in front of all \
             of them, or replace this entry by the output of `seriatim presets {}`",
            paths.len(),
            preset.name
        );
        table.note("path", why);
        return false;
    }
    let Some(prefix) = prefix else {
        return !has_prefix;
    };
    // The prefix and the preset's path may have segments of one name.
    let wrong = paths
        .iter()
        .find_map(|path| PathPattern::parse(&behind(prefix, *path)).err());
    if let Some(error) = &wrong {
        let why = match error {
            PatternError::SecondRest(_) => {
                "a path of the preset has a {*...} of its own, and a path has at most one: write the \
                 prefix without, as \"/agents/{agent}\""
                    .to_owned()
            }
            error => error.to_string(),
        };
        table.note("prefix", why);
    }
    wrong.is_none()
}

/// A path of a preset behind a prefix. A preset's route without a path takes any path behind it.
fn behind(prefix: &str, path: Option<&str>) -> String {
    format!("{prefix}{}", path.unwrap_or("/{*rest}"))
}

/// A prefix without a slash at its end.
pub(super) fn check_prefix(text: &str) -> Result<String, PatternError> {
    PathPattern::parse(text)?;
    Ok(text.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_stand_in_the_order_of_their_names() {
        let names = PRESETS.map(|preset| preset.name);
        assert!(names.is_sorted(), "a list that can be looked through");
        for preset in PRESETS {
            assert_eq!(
                Preset::find(preset.name),
                Ok(preset),
                "each is found by its name"
            );
        }
    }

    #[test]
    fn a_presets_text_opens_with_what_it_is_for() {
        for preset in PRESETS {
            let name = preset.name;
            assert!(preset.toml.starts_with("# "), "{name} opens with a comment");
            let routes = PresetTable::routes(preset.toml);
            assert!(!routes.is_empty(), "{name} has routes");
            let names = routes
                .iter()
                .map(|route| route.text("name").unwrap_or_default());
            let suffixes = names.map(|route| route.strip_prefix(name));
            let (own, others): (Vec<_>, Vec<_>) = suffixes.partition(|suffix| *suffix == Some(""));
            assert_eq!(own.len(), 1, "one route is called as its preset");
            let has_dash = |suffix: &Option<&str>| suffix.is_some_and(|text| text.starts_with('-'));
            assert!(
                others.iter().all(has_dash),
                "and others with a suffix: {others:?}"
            );
        }
    }

    #[test]
    fn what_was_meant_is_guessed() {
        assert_eq!(
            Preset::find("langraph"),
            Err("unknown preset; did you mean \"langgraph\"?".into()),
            "a name that is nearly one"
        );
        assert!(
            Preset::find("zzz").is_err_and(|why| why.contains("a2a, adk, ag-ui")),
            "and all of them for one that isn't"
        );
    }
}
