//! Options that hold templates: `session_id`, `user_id`, `once` and `when`.
//!
//! Invariant: a list of templates keeps its order and its length, also with a template that can't be
//! used, so that a later check reports the right one. What a request gives for a template is left to
//! `proxy::session`.

use super::pattern::PathPattern;
use super::reader::{ConfigTable, ConfigValue};
use super::value_kind::{Kind, inline_table, quoted, quoted_list};
use crate::key::{Source, Template};

/// A value that a request must have for a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Where the value is in the request.
    pub template: Template,
    /// The values that match. Never empty.
    pub values: Vec<Box<str>>,
}

/// A list of templates, of which the first with a value is used.
pub(super) struct Templates;

/// A table of templates and the values that they must have.
pub(super) struct Conditions;

impl Kind for Templates {
    type Value = Vec<Template>;

    fn read(&self, entry: ConfigValue<'_>) -> Option<Vec<Template>> {
        if entry.is_empty_list() {
            entry.wrong(
                "an empty list never has a value: write a source, as [\"{header:x-session-id}\"]",
            );
            return None;
        }
        let items = entry.list()?;
        let last = items.len().saturating_sub(1);
        let parsed = items.into_iter().enumerate().map(|(index, item)| {
            let parsed = item.parsed(|text| match Template::parse(text) {
                Ok(constant) if is_constant(&constant) => match source_without_braces(text) {
                    Some(meant) => Err(format!(
                        "has no braces, so every request would have this text as its id: write {meant:?}"
                    )),
                    None if index < last => Err(
                        "always has a value, so the templates after it are never used: write it last"
                            .to_owned(),
                    ),
                    None => Ok(constant),
                },
                parsed => parsed.map_err(|error| error.to_string()),
            });
            parsed.or_else(|| Template::parse("wrong").ok())
        });
        parsed.collect()
    }

    fn show(&self, value: &Vec<Template>) -> Option<String> {
        (!value.is_empty()).then(|| quoted_list(value))
    }

    fn describe(&self) -> String {
        "list of templates".into()
    }
}

impl Kind for Conditions {
    type Value = Vec<Condition>;

    fn read(&self, entry: ConfigValue<'_>) -> Option<Vec<Condition>> {
        if entry.is_empty_table() {
            entry.wrong("an empty table has no effect: leave it out");
            return None;
        }
        let mut conditions = Vec::new();
        for (key, entry) in entry.table()?.drain() {
            let template = condition_template(&key).map_err(|why| entry.wrong(why));
            let items = entry.one_or_any_of().unwrap_or_default().into_iter();
            let values = items.filter_map(condition_value).collect();
            if let Ok(template) = template {
                conditions.push(Condition { template, values });
            }
        }
        Some(conditions)
    }

    fn show(&self, value: &Vec<Condition>) -> Option<String> {
        let one =
            |condition: &Condition| (quoted(&condition.template), quoted_list(&condition.values));
        (!value.is_empty()).then(|| inline_table(value.iter().map(one)))
    }

    fn describe(&self) -> String {
        "table of templates and their values".into()
    }
}

/// Whether a template gives the same text for every request.
pub(super) fn is_constant(template: &Template) -> bool {
    template.sources().next().is_none()
}

/// The template that the user of a constant means, if the constant is a source without its braces.
fn source_without_braces(text: &str) -> Option<String> {
    let meant = format!("{{{text}}}");
    Template::parse(&meant).is_ok().then_some(meant)
}

/// A template that gives what the request has, as it is.
fn condition_template(text: &str) -> Result<Template, String> {
    let template = Template::parse(text).map_err(|error| error.to_string())?;
    if is_constant(&template) {
        let meant = source_without_braces(text);
        let wanted = meant.map_or("one, as \"{body:/method}\"".into(), |meant| {
            format!("{meant:?}")
        });
        return Err(format!("has no source in braces: write {wanted}"));
    }
    if let Some(one) = template.placeholders().find(|one| !one.is_plain()) {
        return Err(format!(
            "a condition takes no filter: write {{{}}}",
            one.source
        ));
    }
    Ok(template)
}

fn condition_value(entry: ConfigValue<'_>) -> Option<Box<str>> {
    let text = entry.scalar()?;
    if text.is_empty() {
        entry.wrong("an empty value counts as missing and never matches: write a value");
        return None;
    }
    Some(text.into())
}

/// Reports templates under `key` with a `{path:name}` that isn't in the route's path.
pub(super) fn check_segments(
    table: &ConfigTable<'_>,
    key: &str,
    templates: &[Template],
    path: Option<&PathPattern>,
) {
    for (index, template) in templates.iter().enumerate() {
        if let Some(why) = unknown_segment(template, path) {
            table.note_item(key, index, why);
        }
    }
}

/// Reports conditions with a `{path:name}` that isn't in the route's path.
pub(super) fn check_conditions(
    table: &ConfigTable<'_>,
    conditions: &[Condition],
    path: Option<&PathPattern>,
) {
    for condition in conditions {
        if let Some(why) = unknown_segment(&condition.template, path) {
            table.note(&format!("when.{}", condition.template), why);
        }
    }
}

fn unknown_segment(template: &Template, path: Option<&PathPattern>) -> Option<String> {
    let is_known = |name: &str| path.is_some_and(|path| path.names().any(|known| known == name));
    let name = template.sources().find_map(|source| match source {
        Source::Path(name) if !is_known(name) => Some(name),
        _ => None,
    })?;
    Some(match moved_filter(name) {
        Some(moved) => {
            format!("the filter in `{{path:{name}}}` comes before the source: write {moved}")
        }
        None => format!(
            "`{{path:{name}}}` is not a segment of the route's path: write `{{{name}}}` in the path"
        ),
    })
}

/// A segment's name with a filter in it, as `uuid:thread`, as the user meant it: `{uuid:path:thread}`.
fn moved_filter(name: &str) -> Option<String> {
    let (filter, name) = name.rsplit_once(':')?;
    let moved = format!("{{{filter}:path:{name}}}");
    let template = Template::parse(&moved).ok()?;
    let mut sources = template.sources();
    sources
        .any(|source| matches!(source, Source::Path(_)))
        .then_some(moved)
}
