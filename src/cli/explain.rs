//! `seriatim explain`: which route takes a request, what its alternatives come to, and which lock it
//! needs. Asked of the code that would carry it; nothing is sent anywhere, and no store is asked.

use std::fs;
use std::io::{self, Read};

use bytes::Bytes;
use clap::Args;
use http::header::{CONTENT_TYPE, HOST};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use serde_json::{Value, json};

use super::{COULD_NOT_START, OK, complain, say};
use crate::config::{Config, Route, TurnConfig};
use crate::proxy::{
    self, ExplainedOutcome, ExplainedRequest, ExplainedTemplate, SkippedRoute, TemplateResult,
    UnmetCondition,
};

/// Options of `seriatim explain`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 it takes a lock, 3 it passes without one, 4 it is refused; \
                        1 the body can't be read, 2 wrong arguments, 78 the configuration is wrong."
)]
pub(super) struct ExplainArgs {
    /// The method; POST with a body, and GET without one, if it isn't given
    #[arg(long)]
    method: Option<Method>,
    /// The path, and perhaps a query, as the client sends them
    #[arg(long, value_parser = target)]
    path: Uri,
    /// The host that is asked for
    #[arg(long, default_value = "localhost")]
    host: HeaderValue,
    /// A header; may be given several times
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// The body: @FILE, @- for standard input, or the text itself. JSON, if no header says otherwise
    #[arg(long, value_name = "BODY")]
    body: Option<String>,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

/// An alternative's part in what the request comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AlternativeResult {
    /// It gives the id.
    Taken,
    /// It gives nothing, and the next one is asked.
    Missing,
    /// The request is refused for it.
    Refused,
    /// Nobody asks it any more.
    NotAsked,
}

/// It passes without a lock.
const PASSES: u8 = 3;
/// It is refused.
const REFUSED: u8 = 4;

// === impl Explain ===

impl ExplainArgs {
    pub(super) fn show(self, config: &Config) -> u8 {
        let body = match self.body.as_deref().map(read).transpose() {
            Ok(body) => body,
            Err(error) => {
                complain(format!("--body: {error}"));
                return COULD_NOT_START;
            }
        };
        let length = body.as_ref().map(Bytes::len);
        let (json, names_method) = (self.json, self.method.is_some());
        let head = match self.head(body.is_some()) {
            Ok(head) => head,
            Err(error) => {
                complain(format!("this is no request: {error}"));
                return COULD_NOT_START;
            }
        };
        let told = ExplainReport {
            asked: format!("{} {}", head.method, head.uri),
            length,
            names_method,
            explained: proxy::explain(config, head, &body.unwrap_or_default()),
            config,
        };
        match json {
            true => say(format!("{:#}", told.json())),
            false => say(told.text()),
        }
        match told.explained.outcome {
            ExplainedOutcome::Locks(_) => OK,
            ExplainedOutcome::Passes => PASSES,
            ExplainedOutcome::Refused { .. } => REFUSED,
        }
    }

    fn head(self, has_body: bool) -> http::Result<Parts> {
        let method = match has_body {
            true => Method::POST,
            false => Method::GET,
        };
        let request = Request::builder()
            .method(self.method.unwrap_or(method))
            .uri(self.path);
        let mut head = request.body(())?.into_parts().0;
        for (name, value) in self.headers {
            head.headers.append(name, value);
        }
        if !head.headers.contains_key(HOST) {
            head.headers.insert(HOST, self.host);
        }
        if has_body && !head.headers.contains_key(CONTENT_TYPE) {
            let json = HeaderValue::from_static("application/json");
            head.headers.insert(CONTENT_TYPE, json);
        }
        Ok(head)
    }
}

/// The body that an argument names.
fn read(argument: &str) -> io::Result<Bytes> {
    let Some(file) = argument.strip_prefix('@') else {
        return Ok(Bytes::copy_from_slice(argument.as_bytes()));
    };
    if file == "-" {
        let mut bytes = Vec::new();
        io::stdin().read_to_end(&mut bytes)?;
        return Ok(bytes.into());
    }
    let named = |error| io::Error::other(format!("{file} can't be read: {error}"));
    fs::read(file).map(Bytes::from).map_err(named)
}

fn target(text: &str) -> Result<Uri, String> {
    if text.contains('#') {
        return Err(
            "what stands behind `#` is the browser's alone: a request with it gets 400".into(),
        );
    }
    match text.starts_with('/') {
        true => text.parse().map_err(|error| format!("{error}")),
        false => Err("a path starts with `/`; --host names the host".into()),
    }
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text
        .split_once(':')
        .ok_or("write a name, a colon and a value, as 'x-session-id: s1'")?;
    let name = name.parse().map_err(|error| format!("{error}"))?;
    // What HTTP itself takes off (RFC 9110 §5.5), and no more.
    let value = value.trim_matches([' ', '\t']);
    let value = value.parse().map_err(|error| format!("{error}"))?;
    Ok((name, value))
}

// === telling ===

/// What a request comes to, by which configuration.
struct ExplainReport<'c> {
    asked: String,
    /// Of its body.
    length: Option<usize>,
    /// Whether the method was asked for, not only taken by default.
    names_method: bool,
    explained: ExplainedRequest,
    config: &'c Config,
}

impl ExplainReport<'_> {
    fn route(&self, name: &str) -> Option<&Route> {
        let mut routes = self.config.routes.iter();
        routes.find(|route| &*route.name == name)
    }

    /// How the turns of the route that takes it are locked.
    fn turn(&self) -> Option<&TurnConfig> {
        self.route(self.explained.route.as_deref()?)?.turn.as_ref()
    }

    /// Each alternative's part, in their order.
    fn parts(&self) -> Vec<AlternativeResult> {
        let names_user = self.turn().is_some_and(|turn| turn.lock.key.names_user());
        let (mut session, mut user) = (None, None);
        let part = |one: &ExplainedTemplate| {
            let decided = match one.option {
                "session_id" => &mut session,
                // Asked for when there is a session, and where the key has a place for it.
                _ if session == Some(AlternativeResult::Taken) && names_user => &mut user,
                _ => return AlternativeResult::NotAsked,
            };
            if decided.is_some() {
                return AlternativeResult::NotAsked;
            }
            let part = match &one.came_to {
                TemplateResult::Missing => return AlternativeResult::Missing,
                TemplateResult::Id(id) if id.len() <= self.config.limits.max_id_bytes => {
                    AlternativeResult::Taken
                }
                TemplateResult::Id(_) | TemplateResult::Refused(_) => AlternativeResult::Refused,
            };
            *decided = Some(part);
            part
        };
        self.explained.alternatives.iter().map(part).collect()
    }

    fn text(&self) -> String {
        let explained = &self.explained;
        let mut lines = vec![match self.length {
            Some(length) => format!("{}, a body of {length} bytes", self.asked),
            None => self.asked.clone(),
        }];
        let taken = explained.route.as_deref();
        let routes = explained.passed_over.iter().map(|over| &*over.route);
        let name_width = width(routes.chain(taken));
        heading(&mut lines, "routes");
        for over in &explained.passed_over {
            let why = self.why_not(over);
            lines.push(format!("  · {:name_width$}  {why}", over.route));
        }
        match taken {
            Some(name) => lines.push(format!("  ✓ {name:name_width$}  takes it")),
            None => lines.push("    none takes it".into()),
        }
        let templates = explained.alternatives.iter();
        let width = width(templates.map(|one| &*one.template));
        let mut option = "";
        for (one, part) in explained.alternatives.iter().zip(self.parts()) {
            if one.option != option {
                option = one.option;
                heading(&mut lines, option);
            }
            let (mark, what) = match (part, &one.came_to) {
                (AlternativeResult::NotAsked, _) => (' ', "isn't asked"),
                (AlternativeResult::Missing, _) => ('·', "missing"),
                (AlternativeResult::Taken, TemplateResult::Id(id)) => ('✓', &**id),
                (_, TemplateResult::Id(_)) => ('✗', "too long"),
                (_, TemplateResult::Refused(why)) => ('✗', &**why),
                (_, TemplateResult::Missing) => ('✗', "missing"),
            };
            lines.push(format!("  {mark} {:width$}  {what}", one.template));
        }
        lines.push(String::new());
        match &explained.outcome {
            ExplainedOutcome::Locks(key) => {
                lines.push(format!("takes the lock {}", key.as_str()));
                lines.extend(self.turn().map(if_busy));
                let taken = explained.alternatives.iter().zip(self.parts());
                let hints = taken.filter(|(_, part)| *part == AlternativeResult::Taken);
                let hints = hints.filter_map(|(one, _)| one.hint.as_ref());
                lines.extend(hints.map(|hint| format!("hint: {hint}")));
            }
            ExplainedOutcome::Passes => {
                lines.push(format!("passes without a lock: {}", self.why_it_passes()));
                lines.extend(self.other_method());
            }
            ExplainedOutcome::Refused {
                status,
                reason,
                why,
            } => {
                let says_200 = self
                    .turn()
                    .is_some_and(|turn| turn.busy.status == StatusCode::OK);
                let said = if says_200 {
                    ", in an answer that says 200"
                } else {
                    ""
                };
                lines.push(format!("is refused, {status} {reason}{said}: {why}"));
                lines.extend(self.other_method());
            }
        }
        lines.join("\n")
    }

    /// Why a route was passed over, for a person.
    fn why_not(&self, over: &SkippedRoute) -> String {
        let Some(route) = self.route(&over.route) else {
            return String::new();
        };
        let path = || route.path.as_ref().map(ToString::to_string);
        match &over.why {
            UnmetCondition::Path => format!("is for {}", path().unwrap_or_default()),
            UnmetCondition::Methods => format!("is for {}", listed(&route.methods)),
            UnmetCondition::Host => format!("is for the host {}", listed(&route.host)),
            UnmetCondition::Headers => {
                let names = route.headers.iter().map(|(name, _)| name);
                format!("asks for other headers: {}", listed(names))
            }
            UnmetCondition::When {
                template,
                wanted,
                came_to,
            } => {
                let wanted = listed(wanted.iter().map(|value| format!("{value:?}")));
                match came_to {
                    TemplateResult::Id(found) => {
                        format!("asks {template} to be {wanted}, not {found:?}")
                    }
                    TemplateResult::Missing => {
                        format!("asks {template} to be {wanted}; nothing is there")
                    }
                    TemplateResult::Refused(why) => {
                        format!("asks {template} to be {wanted}; {why}")
                    }
                }
            }
            UnmetCondition::Spelling => format!(
                "passes only what is spelt as {}",
                path().unwrap_or_else(|| "a plain path".into())
            ),
        }
    }

    /// A hint where no route takes it, and one would perhaps if it had another method than the default.
    fn other_method(&self) -> Option<String> {
        let mut passed_over = self.explained.passed_over.iter();
        let over = passed_over.find(|over| over.why == UnmetCondition::Methods)?;
        let method = self.route(&over.route)?.methods.first()?;
        let is_open = !self.names_method && self.explained.route.is_none();
        let name = &over.route;
        is_open.then(|| format!("hint: {name} is for another method: ask with --method {method}"))
    }

    fn why_it_passes(&self) -> &'static str {
        let explained = &self.explained;
        let names_session = || self.parts().contains(&AlternativeResult::Taken);
        let unreadable =
            |one: &ExplainedTemplate| matches!(one.came_to, TemplateResult::Refused(_));
        match (&explained.route, self.turn()) {
            (None, _) => "no route takes it, and unmatched is \"pass\"",
            _ if explained.is_preflight => "a CORS preflight is never a turn",
            (Some(_), None) => "the route says lock = false",
            _ if explained.alternatives.iter().any(unreadable) => {
                "its body can't be read, and on_malformed lets it pass"
            }
            _ if names_session() => "it names no user, and on_missing is \"pass\"",
            _ => "it names no session, and on_missing is \"pass\"",
        }
    }

    fn json(&self) -> Value {
        let explained = &self.explained;
        let over = explained.passed_over.iter().map(|over| {
            let why = match &over.why {
                UnmetCondition::Path => "path",
                UnmetCondition::Methods => "methods",
                UnmetCondition::Host => "host",
                UnmetCondition::Headers => "headers",
                UnmetCondition::When { .. } => "when",
                UnmetCondition::Spelling => "spelling",
            };
            json!({"route": over.route, "why": why, "detail": self.why_not(over)})
        });
        let alternatives = explained.alternatives.iter().zip(self.parts());
        let alternatives = alternatives.map(|(one, part)| {
            let (came_to, id, why) = match (part, &one.came_to) {
                (AlternativeResult::NotAsked, _) => ("not_asked", None, None),
                (_, TemplateResult::Missing) => ("missing", None, None),
                (AlternativeResult::Refused, TemplateResult::Id(id)) => ("refused", Some(id), None),
                (_, TemplateResult::Id(id)) => ("id", Some(id), None),
                (_, TemplateResult::Refused(why)) => ("refused", None, Some(why)),
            };
            json!({
                "option": one.option, "template": one.template, "came_to": came_to,
                "id": id, "why": why, "taken": part == AlternativeResult::Taken, "hint": one.hint,
            })
        });
        let (outcome, key, refused) = match &explained.outcome {
            ExplainedOutcome::Locks(key) => ("locks", Some(key.as_str()), None),
            ExplainedOutcome::Passes => ("passes", None, None),
            ExplainedOutcome::Refused {
                status,
                reason,
                why,
            } => ("refused", None, Some((status, reason, &**why))),
        };
        let why = match refused {
            Some((_, _, why)) => Some(why),
            None if outcome == "passes" => Some(self.why_it_passes()),
            None => None,
        };
        json!({
            "request": self.asked,
            "route": explained.route,
            "passed_over": over.collect::<Vec<_>>(),
            "alternatives": alternatives.collect::<Vec<_>>(),
            "outcome": outcome,
            "key": key,
            "status": refused.map(|(status, _, _)| status),
            "reason": refused.map(|(_, reason, _)| reason),
            "why": why,
        })
    }
}

/// What becomes of a turn whose session is busy.
fn if_busy(turn: &TurnConfig) -> String {
    let lock = &turn.lock;
    let status = match turn.busy.status.as_u16() {
        200 => "429, in an answer that says 200".into(),
        status => status.to_string(),
    };
    if !lock.options.enforce {
        return "if it is busy: passes all the same, and the overlap is logged (enforce = false)"
            .into();
    }
    match (
        lock.options.blocking,
        lock.options.interrupt,
        lock.options.blocking_timeout,
    ) {
        (false, ..) => format!("if it is busy: refused at once, with {status}"),
        (true, true, _) => "if it is busy: the running turn is interrupted".into(),
        (true, false, None) => "if it is busy: waits in line, as long as its client stays".into(),
        (true, false, Some(limit)) => format!(
            "if it is busy: waits in line for {} at most, and is then refused with {status}",
            humantime::format_duration(limit)
        ),
    }
}

fn heading(lines: &mut Vec<String>, text: &str) {
    lines.extend([String::new(), text.to_owned()]);
}

fn listed(items: impl IntoIterator<Item = impl ToString>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(" or ")
}

fn width<'t>(texts: impl Iterator<Item = &'t str>) -> usize {
    texts
        .map(|text| text.chars().count())
        .max()
        .unwrap_or_default()
}
