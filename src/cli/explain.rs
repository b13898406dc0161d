//! `seriatim explain`: which route takes a request, the value of each of its templates, and which lock it
//! needs. The proxy's own code answers; nothing is sent anywhere, and no store is asked.

use std::fs;
use std::io::{self, Read};

use bytes::Bytes;
use clap::Args;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use serde_json::{Value, json};

use super::terminal::{padded, plain, width};
use super::{
    COULD_NOT_START, ConfigOption, OK, block_on, print, print_error, print_json, with_config,
};
use crate::config::{Config, Route, TurnConfig};
use crate::proxy::{
    self, ExplainedOutcome, ExplainedRequest, KeptClient, SkippedRoute, TemplateResult,
    UnmetCondition,
};

/// Options of `seriatim explain`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 the request takes a lock, 3 it passes without a lock, 4 it is refused; \
                        1 the body can't be read, 2 wrong arguments, 78 wrong configuration."
)]
pub(super) struct ExplainArgs {
    #[command(flatten)]
    pub(super) config: ConfigOption,
    /// The request's method [default: POST with a body, GET without]
    #[arg(long)]
    method: Option<Method>,
    /// The request's path, with its query if it has one
    #[arg(long, value_parser = target)]
    path: Uri,
    /// The request's host [default: localhost, unless a header gives one]
    #[arg(long)]
    host: Option<HeaderValue>,
    /// A request header; may be given several times
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// The request's body: @FILE, @- for standard input, or the text itself. JSON, unless a header
    /// gives another content type
    #[arg(long, value_name = "BODY")]
    body: Option<String>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Exit code: the request passes without a lock.
const PASSES: u8 = 3;
/// Exit code: the request is refused.
const REFUSED: u8 = 4;

// === impl ExplainArgs ===

impl ExplainArgs {
    /// Explains the request, prints the result, and gives the exit code.
    pub(super) fn run(mut self) -> u8 {
        let config = std::mem::take(&mut self.config);
        with_config(&config, |config, _, _| self.show(&config))
    }

    fn show(self, config: &Config) -> u8 {
        let fail = |error: String| {
            print_error(error);
            COULD_NOT_START
        };
        let body = match self.body.as_deref().map(read).transpose() {
            Ok(body) => body,
            Err(error) => return fail(format!("--body: {error}")),
        };
        let body_len = body.as_ref().map(Bytes::len);
        let mut lengths = self
            .headers
            .iter()
            .filter(|(name, _)| name == CONTENT_LENGTH);
        let own = body_len.unwrap_or_default().to_string();
        if let Some((_, length)) = lengths.find(|(_, length)| is_other_number(length, &own)) {
            return fail(format!(
                "the header content-length: {length:?} is not the length of the body, {own}: leave it out"
            ));
        }
        let (json, names_method) = (self.json, self.method.is_some());
        let head = match self.head(body.is_some()) {
            Ok(head) => head,
            Err(error) => return fail(format!("the arguments don't make a request: {error}")),
        };
        block_on(async {
            let report = ExplainReport {
                request: format!("{} {}", head.method, head.uri),
                body_len,
                names_method,
                explained: proxy::explain(config, head, body.unwrap_or_default()).await,
                config,
            };
            match json {
                true => print_json(&report.json()),
                false => print(report.text()),
            }
            match report.explained.outcome {
                ExplainedOutcome::Locks(_)
                | ExplainedOutcome::Attaches(_)
                | ExplainedOutcome::Stops(_) => OK,
                ExplainedOutcome::Passes | ExplainedOutcome::NoSession { .. } => PASSES,
                ExplainedOutcome::Refused { .. } => REFUSED,
            }
        })
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
        let localhost = || HeaderValue::from_static("localhost");
        let host = match head.headers.contains_key(HOST) {
            // A request may have two, and is refused then.
            true => self.host,
            false => self.host.or_else(|| Some(localhost())),
        };
        if let Some(host) = host {
            head.headers.append(HOST, host);
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

/// Whether a `content-length` is a number, and not this one.
fn is_other_number(length: &HeaderValue, number: &str) -> bool {
    let length = length.to_str().unwrap_or_default();
    length.parse::<u64>().is_ok() && length != number
}

fn target(text: &str) -> Result<Uri, String> {
    if text.contains('#') {
        return Err("a browser never sends what follows `#`; a request with it gets 400".into());
    }
    match text.starts_with('/') {
        true => text.parse().map_err(|error| format!("{error}")),
        false => Err("a path starts with `/`; give the host with --host".into()),
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

// === the report ===

/// An explained request, and what is needed to print it.
struct ExplainReport<'c> {
    /// The request's method and target.
    request: String,
    /// The length of the body in bytes; `None` without a body.
    body_len: Option<usize>,
    /// Whether the user gave the method.
    names_method: bool,
    explained: ExplainedRequest,
    config: &'c Config,
}

impl ExplainReport<'_> {
    fn route(&self, name: &str) -> Option<&Route> {
        let mut routes = self.config.routes.iter();
        routes.find(|route| &*route.name == name)
    }

    /// How the route that takes the request locks its turns; `None`: it doesn't.
    fn turn(&self) -> Option<&TurnConfig> {
        self.route(self.explained.route.as_deref()?)?.turn.as_ref()
    }

    fn text(&self) -> String {
        let mut lines = vec![match self.body_len {
            Some(length) => format!("{}, a body of {length} bytes", self.request),
            None => self.request.clone(),
        }];
        self.routes_text(&mut lines);
        self.templates_text(&mut lines);
        lines.push(String::new());
        self.outcome_text(&mut lines);
        // Ids, paths and headers are the client's: no line may be another one's, or control the terminal.
        let lines: Vec<_> = lines.iter().map(|line| plain(line)).collect();
        lines.join("\n")
    }

    fn routes_text(&self, lines: &mut Vec<String>) {
        let explained = &self.explained;
        let taken = explained.route.as_deref();
        let names = explained.skipped.iter().map(|skipped| &*skipped.route);
        let width = widest(names.chain(taken));
        heading(lines, "routes");
        for skipped in &explained.skipped {
            let reason = self.skip_reason(skipped);
            let name = padded(&skipped.route, width);
            lines.push(format!("  · {name}  {reason}"));
        }
        match taken {
            Some(name) => lines.push(format!("  ✓ {}  takes the request", padded(name, width))),
            None => lines.push("    no route takes the request".into()),
        }
    }

    fn templates_text(&self, lines: &mut Vec<String>) {
        let templates = &self.explained.templates;
        let width = widest(templates.iter().map(|one| &*one.template));
        let mut option = "";
        for one in templates {
            if one.option != option {
                option = one.option;
                heading(lines, option);
            }
            let (mark, what) = match &one.result {
                TemplateResult::Found(id) => ('✓', &**id),
                TemplateResult::Missing => ('·', "missing"),
                TemplateResult::Refused(reason) => ('✗', &**reason),
                TemplateResult::NotTried => (' ', "not tried"),
            };
            let template = padded(&one.template, width);
            lines.push(format!("  {mark} {template}  {what}"));
        }
    }

    fn outcome_text(&self, lines: &mut Vec<String>) {
        match &self.explained.outcome {
            ExplainedOutcome::Locks(key) => {
                lines.push(format!("takes the lock {}", key.as_str()));
                lines.extend(self.turn().map(if_busy));
                lines.extend(self.once_text());
                self.kept_text(lines);
                let templates = self.explained.templates.iter();
                let hints = templates.filter_map(|one| one.hint.as_ref());
                lines.extend(hints.map(|hint| format!("hint: {hint}")));
            }
            ExplainedOutcome::Attaches(key) => lines.push(format!(
                "takes no lock: reads the answer of the turn of {}, or gets 204 if there is none",
                key.as_str()
            )),
            ExplainedOutcome::Stops(key) => lines.push(format!(
                "takes no lock: stops the turn that runs in {}, if there is one",
                key.as_str()
            )),
            ExplainedOutcome::Passes => {
                lines.push(format!("passes without a lock: {}", self.pass_reason()));
                lines.extend(self.method_hint());
            }
            ExplainedOutcome::NoSession { code } => {
                let reason = self.pass_reason();
                lines.push(format!("passes without a lock, {code}: {reason}"));
            }
            ExplainedOutcome::Refused {
                status,
                code,
                reason,
            } => {
                let under_200 = match self.turn() {
                    Some(turn) if turn.busy.status == StatusCode::OK => " (sent with status 200)",
                    _ => "",
                };
                lines.push(format!("is refused, {status} {code}{under_200}: {reason}"));
                lines.extend(self.method_hint());
            }
        }
    }

    /// By what a repeat of the request is recognised; `None`: its route recognises none.
    fn once_text(&self) -> Option<String> {
        let turn = self.turn().filter(|turn| !turn.once.is_empty())?;
        Some(match &self.explained.once {
            Some(once) => {
                let kept = humantime::format_duration(turn.lock.once_for);
                let (id, fingerprint) = (&once.id, &once.fingerprint);
                format!(
                    "if repeated: recognised until {kept} after its end, by the once id {id} of the request {fingerprint}"
                )
            }
            None => "if repeated: not recognised, because it has no once id".into(),
        })
    }

    /// What `keep_alive` of the route does for the client.
    fn kept_text(&self, lines: &mut Vec<String>) {
        let Some(lock) = self.turn().map(|turn| &turn.lock) else {
            return;
        };
        let Some(interval) = lock.keep_alive else {
            return;
        };
        let notice = match &lock.queue_events {
            Some(name) => format!("an event {name}"),
            None => "a comment".into(),
        };
        let interval = humantime::format_duration(interval);
        let waiting = self.explained.keeps_client.map(|kept| match kept {
            KeptClient::Kept => {
                format!("while it waits: an event stream begins, with {notice} every {interval}")
            }
            KeptClient::ReadsNoEvents => {
                "while it waits: its client gets nothing, because the header accept does not ask \
                 for text/event-stream (or write stream = \"sse\")"
                    .into()
            }
            KeptClient::HasNoBody => {
                "while it waits: its client gets nothing, because a response to HEAD has no body"
                    .into()
            }
        });
        lines.extend(waiting);
        lines.push(format!(
            "while it runs: a comment every {interval} if the backend's event stream is silent"
        ));
    }

    /// Why a route doesn't take the request, in words.
    fn skip_reason(&self, skipped: &SkippedRoute) -> String {
        let Some(route) = self.route(&skipped.route) else {
            return String::new();
        };
        let path = || route.path.as_ref().map(ToString::to_string);
        match &skipped.reason {
            UnmetCondition::Path => format!("has the path {}", path().unwrap_or_default()),
            UnmetCondition::Methods => format!("has the method {}", listed(&route.methods)),
            UnmetCondition::Host => format!("has the host {}", listed(&route.host)),
            UnmetCondition::Headers => {
                let names = route.headers.iter().map(|(name, _)| name);
                format!("needs other headers: {}", listed(names))
            }
            UnmetCondition::When {
                template,
                values,
                result,
            } => {
                let needs = needs(template, values);
                match result {
                    TemplateResult::Found(found) => format!("{needs}, not {found:?}"),
                    TemplateResult::Missing | TemplateResult::NotTried => {
                        format!("{needs}, and it is missing")
                    }
                    TemplateResult::Refused(reason) => format!("{needs}: {reason}"),
                }
            }
            UnmetCondition::WhenInBatch { template, values } => {
                let which = match route.turn {
                    Some(_) => "no request",
                    None => "not every request",
                };
                let needs = needs(template, values);
                format!("{needs}, and {which} of the batch has it")
            }
            UnmetCondition::Spelling => format!(
                "takes no lock, so the path must be spelled exactly as {}",
                path().unwrap_or_else(|| "a plain path".into())
            ),
        }
    }

    /// A hint for a request that no route takes, if a route would take it with another method than the
    /// default.
    fn method_hint(&self) -> Option<String> {
        let mut skipped = self.explained.skipped.iter();
        let skipped = skipped.find(|skipped| skipped.reason == UnmetCondition::Methods)?;
        let method = self.route(&skipped.route)?.methods.first()?;
        let may_help = !self.names_method && self.explained.route.is_none();
        let name = &skipped.route;
        may_help.then(|| format!("hint: {name} is for another method; try --method {method}"))
    }

    fn pass_reason(&self) -> String {
        let explained = &self.explained;
        let mut templates = explained.templates.iter();
        match (&explained.route, self.turn()) {
            (None, _) => "no route takes it, and unmatched is \"pass\"".into(),
            _ if explained.is_preflight => "a CORS preflight is never a turn".into(),
            (Some(_), None) => "the route has lock = false".into(),
            _ if explained.body_error.is_some() => {
                "its body can't be read, and on_malformed lets it pass".into()
            }
            _ => {
                let has_session =
                    templates.any(|one| matches!(one.result, TemplateResult::Found(_)));
                let id = if has_session { "user" } else { "session" };
                format!("it has no {id} id, and on_missing is \"pass\"")
            }
        }
    }

    fn json(&self) -> Value {
        let explained = &self.explained;
        let skipped = explained.skipped.iter().map(|skipped| {
            let reason = match &skipped.reason {
                UnmetCondition::Path => "path",
                UnmetCondition::Methods => "methods",
                UnmetCondition::Host => "host",
                UnmetCondition::Headers => "headers",
                UnmetCondition::When { .. } | UnmetCondition::WhenInBatch { .. } => "when",
                UnmetCondition::Spelling => "spelling",
            };
            json!({"route": skipped.route, "reason": reason, "detail": self.skip_reason(skipped)})
        });
        let templates = explained.templates.iter().map(|one| {
            let (result, id, reason) = match &one.result {
                TemplateResult::Found(id) => ("found", Some(id), None),
                TemplateResult::Missing => ("missing", None, None),
                TemplateResult::Refused(reason) => ("refused", None, Some(reason)),
                TemplateResult::NotTried => ("not_tried", None, None),
            };
            json!({
                "option": one.option, "template": one.template, "result": result,
                "id": id, "reason": reason, "hint": one.hint,
            })
        });
        let (key, reason) = match &explained.outcome {
            ExplainedOutcome::Locks(key)
            | ExplainedOutcome::Attaches(key)
            | ExplainedOutcome::Stops(key) => (Some(key.as_str()), None),
            ExplainedOutcome::Passes | ExplainedOutcome::NoSession { .. } => {
                (None, Some(self.pass_reason()))
            }
            ExplainedOutcome::Refused { reason, .. } => (None, Some(reason.clone())),
        };
        let (outcome, status, code) = match &explained.outcome {
            ExplainedOutcome::Locks(_) => ("locks", None, None),
            ExplainedOutcome::Attaches(_) => ("attaches", None, None),
            ExplainedOutcome::Stops(_) => ("stops", None, None),
            ExplainedOutcome::Passes => ("passes", None, None),
            ExplainedOutcome::NoSession { code } => ("passes", None, Some(code)),
            ExplainedOutcome::Refused { status, code, .. } => ("refused", Some(status), Some(code)),
        };
        json!({
            "outcome": outcome, "key": key, "status": status, "code": code, "reason": reason,
            "once": explained.once.as_ref().map(|once| {
                json!({"id": once.id, "fingerprint": once.fingerprint})
            }),
            "keeps_client": explained.keeps_client.map(|kept| kept == KeptClient::Kept),
            "request": self.request, "route": explained.route,
            "skipped": skipped.collect::<Value>(), "templates": templates.collect::<Value>(),
        })
    }
}

/// What becomes of a turn whose session is busy.
fn if_busy(turn: &TurnConfig) -> String {
    let lock = &turn.lock.options;
    let status = match turn.busy.status.as_u16() {
        200 => "429 (sent with status 200)".into(),
        status => status.to_string(),
    };
    if !lock.enforce {
        return "if busy: passes all the same, and the overlap is logged (enforce = false)".into();
    }
    match (lock.blocking, lock.interrupt, lock.blocking_timeout) {
        (false, ..) => format!("if busy: refused at once with {status}"),
        (true, true, _) => "if busy: the running turn is interrupted".into(),
        (true, false, None) => "if busy: waits in the queue for as long as the client stays".into(),
        (true, false, Some(limit)) => format!(
            "if busy: waits in the queue for at most {}, and is then refused with {status}",
            humantime::format_duration(limit)
        ),
    }
}

fn heading(lines: &mut Vec<String>, text: &str) {
    lines.extend([String::new(), text.to_owned()]);
}

/// What an entry of `when` asks for.
fn needs(template: &str, values: &[Box<str>]) -> String {
    let values = listed(values.iter().map(|value| format!("{value:?}")));
    format!("needs {template} to be {values}")
}

fn listed(items: impl IntoIterator<Item = impl ToString>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(" or ")
}

fn widest<'t>(texts: impl Iterator<Item = &'t str>) -> usize {
    texts.map(width).max().unwrap_or_default()
}
