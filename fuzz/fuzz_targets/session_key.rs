//! Reads any bytes as a request. Checks that the session key that the proxy finds is well-formed and
//! within its limits, and that other readers of JSON and of forms find the same session.
//!
//! The first four lines are the target, the content type, the content encoding and the cookie; an empty
//! line leaves its header out. The rest is the body. A `+` before an encoding has it applied here.
//! `explain` calls the code that serves: the loader of the body and the decision.

#![no_main]

use std::io::Write as _;
use std::sync::OnceLock;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use http::Request;
use http::request::Parts;
use libfuzzer_sys::fuzz_target;
use seriatim::config::Config;
use seriatim::proxy::{ExplainedOutcome, ExplainedRequest, TemplateResult, explain};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

const CONFIG: &str = r#"
upstream = "http://127.0.0.1:1"
[limits]
max_body = 65536
max_id_bytes = 64
[[routes]]
name = "json"
path = "/json"
session_id = ["{body:/session_id}"]
[[routes]]
name = "form"
path = "/form"
session_id = ["{form:session_id}"]
[[routes]]
name = "spelt"
path = "/spelt"
session_id = ["{body:/sessionId|/session_id|/meta/0/id}", "{form:sessionId}", "h-{hash:body:/input|/in}", "{cookie:sid}"]
user_id = ["{body:/user}:{query:u}", "{form:user}", "{query:u}", "unknown"]
[[routes]]
name = "last"
path = "/last"
session_id = ["{body:/messages/-1/session_id}"]
once = ["{body:/messages/-1/id}", "{hash:body:/messages/-1}", "{query:k}"]
[[routes]]
name = "send"
path = "/rpc"
when = { "{body:/method|/action}" = ["send", 7, true], "{query:q}" = "1" }
session_id = ["{body:/params/id}", "{query:s}"]
[[routes]]
name = "form send"
path = "/rpc"
when = { "{form:action}" = "send" }
session_id = ["{form:id}"]
[[routes]]
name = "stop"
path = "/rpc"
when = { "{body:/method}" = "stop" }
lock = false
[[routes]]
name = "filters"
path = "/filters"
session_id = ["{uuid:body:/uuid}", "{int:body:/int}/{lower:query:s}", "{uuid:form:uuid}", "{hash:lower:cookie:sid}", "{lower:query:s}"]
[[routes]]
name = "lax"
path = "/{thread}/lax"
session_id = ["{body:/a}-{path:thread}", "{form:a}-{path:thread}"]
on_malformed = "pass"
"#;

const MAX_BODY: usize = 65536;
const MAX_ID: usize = 64;

fn config() -> &'static Config {
    static CONFIG_READ: OnceLock<Config> = OnceLock::new();
    CONFIG_READ.get_or_init(|| match Config::read("fuzz", CONFIG, &Vec::new()) {
        Ok(config) => config,
        Err(problems) => panic!("{problems}"),
    })
}

/// Runs the loader, which waits only for its own work here.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let runtime = Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime takes no resources but memory")
    })
}

/// A request, if the bytes can be one.
fn request(bytes: &[u8]) -> Option<(Parts, Vec<u8>)> {
    let mut lines = bytes.splitn(5, |byte| *byte == b'\n');
    let mut line = || lines.next();
    let (target, kind, encoding, cookie) = (line()?, line()?, line()?, line()?);
    let body = line().unwrap_or_default();
    let mut request = Request::builder().method("POST").uri(target).header("host", "localhost");
    let (encoding, body) = match encoding {
        b"+gzip" => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(body).ok()?;
            (&b"gzip"[..], encoder.finish().ok()?)
        }
        b"+deflate" => {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(body).ok()?;
            (&b"deflate"[..], encoder.finish().ok()?)
        }
        other => (other, body.to_vec()),
    };
    let headers = [("content-type", kind), ("content-encoding", encoding), ("cookie", cookie)];
    for (name, value) in headers {
        if !value.is_empty() {
            request = request.header(name, value);
        }
    }
    Some((request.body(()).ok()?.into_parts().0, body))
}

/// The two ids in a key, decoded.
fn ids(key: &str) -> (String, String) {
    let rest = key.strip_prefix("lock:session:").expect("the key's own text");
    let is_plain = |c: char| !matches!(c, '{' | '}' | ' ' | '\0'..='\x1f' | '\x7f');
    assert!(rest.chars().all(is_plain), "special bytes are encoded: {key:?}");
    let ids: Vec<_> = rest.split(':').collect();
    let [user, session] = ids[..] else {
        panic!("an id can't write a key of its own: {key:?}");
    };
    let id = |text: &str| {
        let id = percent_encoding::percent_decode_str(text).decode_utf8();
        let id = id.expect("an id is text").into_owned();
        assert!((1..=MAX_ID).contains(&id.len()), "an id within its bounds: {key:?}");
        assert_eq!(id.trim(), id, "no white space at an end: {key:?}");
        id
    };
    (id(user), id(session))
}

/// The session in a JSON body, by another reader. `Err`: the value can't be a session id.
fn in_json(body: &[u8]) -> Result<Option<String>, ()> {
    in_member(serde_json::from_slice(body).map_err(drop)?)
}

/// The session in the last message of a JSON body, by another reader.
fn in_last_message(body: &[u8]) -> Result<Option<String>, ()> {
    let mut body: Value = serde_json::from_slice(body).map_err(drop)?;
    let last = match body.get_mut("messages") {
        Some(Value::Array(messages)) => messages.pop(),
        Some(Value::Object(messages)) => messages.remove("-1"),
        _ => None,
    };
    in_member(last.unwrap_or_default())
}

fn in_member(value: Value) -> Result<Option<String>, ()> {
    match value.get("session_id") {
        None | Some(Value::Null | Value::Bool(false)) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
        Some(Value::Number(number)) if number.is_i64() || number.is_u64() => {
            Ok(Some(number.to_string()).filter(|digits| digits != "0"))
        }
        Some(_) => Err(()),
    }
}

/// The sessions in a form or a query, by another reader.
fn in_form(text: &[u8]) -> Vec<Option<String>> {
    let pairs = form_urlencoded::parse(text);
    let values = pairs.filter(|(name, _)| name == "session_id");
    let values = values.map(|(_, value)| Some(value.into_owned()).filter(|v| !v.is_empty()));
    values.collect()
}

fn compare(explained: &ExplainedRequest, body: &[u8], theirs: &[Option<String>]) {
    let text = String::from_utf8_lossy(body);
    match &explained.outcome {
        ExplainedOutcome::Locks(key) => {
            let (_, session) = ids(key.as_str());
            for theirs in theirs {
                assert_eq!(theirs.as_ref(), Some(&session), "another reader's session of {text:?}");
            }
        }
        ExplainedOutcome::Passes | ExplainedOutcome::NoSession { .. } => {
            for theirs in theirs {
                assert_eq!(theirs, &None, "another reader finds a session in {text:?}");
            }
        }
        ExplainedOutcome::Refused { .. } => {}
        ExplainedOutcome::Attaches(_) | ExplainedOutcome::Stops(_) => {
            panic!("no route has `attach` or `stop`")
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((head, body)) = request(bytes) else {
        return;
    };
    let (kind, is_encoded) = (
        head.headers.get("content-type").cloned(),
        head.headers.contains_key("content-encoding"),
    );
    let query = head.uri.query().unwrap_or_default().to_owned();
    let explained = runtime().block_on(explain(config(), head, body.clone().into()));
    assert!(explained.decoded <= MAX_BODY, "what is decoded is bounded");
    if let ExplainedOutcome::Locks(key) = &explained.outcome {
        let (user, session) = ids(key.as_str());
        let is_found = |option: &str, id: &str| {
            let mut tried = explained.templates.iter().filter(|one| one.option == option);
            tried.any(|one| one.result == TemplateResult::Found(id.to_owned()))
        };
        assert!(is_found("session_id", &session), "a template has the session: {explained:?}");
        assert!(is_found("user_id", &user), "a template has the user: {explained:?}");
    }
    if is_encoded || body.is_empty() {
        return;
    }
    let is_passed_on = !matches!(explained.outcome, ExplainedOutcome::Refused { .. });
    // Some frameworks read a form whatever the body is declared as.
    let reads_forms = kind.is_none_or(|kind| kind == "application/x-www-form-urlencoded");
    match explained.route.as_deref() {
        Some("json") if is_passed_on => {
            // This reader takes long digits for a float; to the proxy they are an id.
            let theirs = in_json(&body).ok();
            compare(&explained, &body, theirs.as_slice());
            if reads_forms {
                let theirs = in_form(&body);
                assert!(theirs.is_empty(), "JSON that passes has no field of this name");
            }
            let theirs = in_form(query.as_bytes());
            assert!(theirs.is_empty(), "nor has the query, which some read before the body");
        }
        Some("last") if is_passed_on => {
            let theirs = in_last_message(&body).ok();
            compare(&explained, &body, theirs.as_slice());
        }
        Some("form") if is_passed_on && reads_forms => {
            let mut theirs = in_form(&body);
            assert!(theirs.len() <= 1, "a field is there once");
            if theirs.is_empty() {
                theirs.push(None);
            }
            compare(&explained, &body, &theirs);
            if let Ok(member) = in_json(&body) {
                assert_eq!(member, None, "a form that passes is no JSON with such a member");
            }
        }
        _ => {}
    }
});
