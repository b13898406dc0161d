//! Presets: the routes of backends that people run, each a text that a user could have written.
//!
//! Invariant: `preset = "NAME"` means what the text of the preset means in its place. So a preset
//! can do nothing that a configuration can't, and `seriatim presets NAME` shows all of it.

use super::pattern::{PathPattern, PatternSegment};
use super::reader::{self, ConfigTable, ConfigValue};
use super::routes::LOCK_KEYS;

/// The routes of a backend that people run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    /// What it is called in a configuration.
    pub name: &'static str,
    /// The routes as TOML, with what is to be known of the backend in comments.
    pub toml: &'static str,
}

/// All presets, by name.
pub const PRESETS: [Preset; 15] = [
    preset("a2a", include_str!("presets/a2a.toml")),
    preset("adk", include_str!("presets/adk.toml")),
    preset("ag-ui", include_str!("presets/ag-ui.toml")),
    preset("agno", include_str!("presets/agno.toml")),
    preset("copilotkit", include_str!("presets/copilotkit.toml")),
    preset("dify", include_str!("presets/dify.toml")),
    preset("flowise", include_str!("presets/flowise.toml")),
    preset("langgraph", include_str!("presets/langgraph.toml")),
    preset("letta", include_str!("presets/letta.toml")),
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

/// What begins the line of a preset's text that says what a lock can't do there.
const MIND: &str = "# Mind: ";

/// Below this, two names have nothing in common.
const ALIKE: f64 = 0.75;

/// What a user's entry may say of routes that pass freely; the rest of it is for the others.
const OF_LOCKED_ROUTES: [&str; 4] = ["session_id", "user_id", "busy", "when"];

const fn preset(name: &'static str, toml: &'static str) -> Preset {
    Preset { name, toml }
}

// === impl Preset ===

impl Preset {
    /// The preset of this name.
    ///
    /// # Errors
    /// When there is none, with what may have been meant.
    pub fn find(name: &str) -> Result<Self, String> {
        if let Some(preset) = PRESETS.iter().find(|preset| preset.name == name) {
            return Ok(*preset);
        }
        let near = PRESETS
            .iter()
            .map(|preset| (strsim::jaro_winkler(name, preset.name), preset.name))
            .max_by(|a, b| a.0.total_cmp(&b.0));
        Err(match near.filter(|(likeness, _)| *likeness > ALIKE) {
            Some((_, near)) => format!("no such preset; did you mean {near:?}?"),
            None => {
                let names = PRESETS.map(|preset| preset.name);
                format!("no such preset; there are {}", names.join(", "))
            }
        })
    }

    /// What it is for, in a line.
    pub fn title(&self) -> &'static str {
        let line = self.toml.lines().next().unwrap_or_default();
        line.trim_start_matches("# ")
    }

    /// What a lock can't do before this backend, or what else is to be minded, in a line.
    pub fn mind(&self) -> Option<&'static str> {
        let mut lines = self.toml.lines();
        lines.find_map(|line| line.strip_prefix(MIND))
    }
}

// === expansion ===

/// The tables of the routes that an entry of `[[routes]]` stands for: itself, or one for each route
/// of its preset, with what else it says laid over it.
pub(super) fn expand(mut table: ConfigTable<'_>) -> Vec<ConfigTable<'_>> {
    let (named, prefix) = (table.take("preset"), table.take("prefix"));
    let Some(named) = named else {
        if prefix.is_some() {
            table.note(
                "prefix",
                "is for the paths of a preset: write it in path, or preset = \"...\" beside it",
            );
        }
        return vec![table];
    };
    let Some(preset) = named.parsed(Preset::find) else {
        return Vec::new();
    };
    if table.take("lock").and_then(ConfigValue::boolean) == Some(false) {
        table.note(
            "lock",
            "contradicts `preset`, whose routes say themselves which of them pass; enforce = false \
             only watches",
        );
    }
    let routes = reader::PresetTable::routes(preset.toml);
    let name = table.take("name").and_then(ConfigValue::string);
    let mut paths: Vec<_> = routes.iter().map(|route| route.text("path")).collect();
    paths.dedup();
    if table.has("path") && prefix.is_some() {
        table.note("prefix", "contradicts path: write the whole path there");
        return Vec::new();
    }
    if table.has("path") && paths.len() > 1 {
        let why = format!(
            "the preset has routes for {} paths: write prefix = \"/api\" for what stands before all of \
             them, or put what `seriatim presets {}` prints in place of this entry",
            paths.len(),
            preset.name
        );
        table.note("path", why);
        return Vec::new();
    }
    let prefix = prefix.map(|entry| entry.parsed(|text| check_prefix(text, &paths)));
    let prefix = match prefix {
        Some(None) => return Vec::new(),
        Some(Some(prefix)) => Some(prefix),
        None => None,
    };
    let laid_over = routes.into_iter().map(|mut route| {
        if let Some(name) = &name {
            // `langgraph-wait` of a preset that is called `chat` here is `chat-wait`.
            let own = route.text("name").unwrap_or_default();
            let suffix = own.strip_prefix(preset.name).unwrap_or_default();
            let renamed = format!("{name}{suffix}");
            route.set_text("name", renamed);
        }
        if let Some(prefix) = &prefix {
            let path = behind(prefix, route.text("path"));
            route.set_text("path", path);
        }
        let without = if route.denies("lock") {
            [&OF_LOCKED_ROUTES[..], &LOCK_KEYS].concat()
        } else {
            Vec::new()
        };
        // A route's `busy` is laid over [busy], and so over the preset's: an own sentence leaves the
        // format as it is. A status is for its format.
        table.over(route, ("busy", "format"), &without)
    });
    laid_over.collect()
}

/// A path of a preset, or any, behind a prefix.
fn behind(prefix: &str, path: Option<&str>) -> String {
    format!("{prefix}{}", path.unwrap_or("/{*rest}"))
}

/// A prefix without a slash at its end, if each path can stand behind it.
fn check_prefix(text: &str, paths: &[Option<&str>]) -> Result<String, String> {
    let pattern = PathPattern::parse(text).map_err(|error| error.to_string())?;
    if let Some(PatternSegment::Rest(_)) = pattern.segments.last() {
        return Err(
            "paths stand behind it: write it without {*...}, as \"/agents/{agent}\"".into(),
        );
    }
    let prefix = text.trim_end_matches('/');
    for path in paths {
        // Two segments of one name, one of them the preset's.
        PathPattern::parse(&behind(prefix, *path)).map_err(|error| error.to_string())?;
    }
    Ok(prefix.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_stand_in_the_order_of_their_names() {
        let mut names = PRESETS.map(|preset| preset.name);
        assert!(names.is_sorted(), "a list that can be looked through");
        names.iter_mut().for_each(|name| {
            assert_eq!(
                Preset::find(name).map(|preset| preset.name),
                Ok(*name),
                "each is found by its name"
            );
        });
    }

    #[test]
    fn a_presets_text_opens_with_what_it_is_for() {
        for preset in PRESETS {
            let first = preset.toml.lines().next().unwrap_or_default();
            assert!(
                first.starts_with("# "),
                "{} opens with a comment",
                preset.name
            );
            let routes = reader::PresetTable::routes(preset.toml);
            assert!(!routes.is_empty(), "{} has routes", preset.name);
            let names = routes
                .iter()
                .map(|route| route.text("name").unwrap_or_default());
            let suffixes = names.map(|name| name.strip_prefix(preset.name));
            let (own, others): (Vec<_>, Vec<_>) = suffixes.partition(|suffix| *suffix == Some(""));
            assert_eq!(own.len(), 1, "one route is called as its preset");
            assert!(
                others
                    .iter()
                    .all(|suffix| suffix.is_some_and(|suffix| suffix.starts_with('-'))),
                "and others with a suffix: {others:?}"
            );
        }
    }

    #[test]
    fn what_was_meant_is_guessed() {
        assert_eq!(
            Preset::find("langraph"),
            Err("no such preset; did you mean \"langgraph\"?".into()),
            "a name that is nearly one"
        );
        assert!(
            Preset::find("zzz").is_err_and(|why| why.contains("a2a, adk, ag-ui")),
            "and all of them for one that isn't"
        );
    }
}
