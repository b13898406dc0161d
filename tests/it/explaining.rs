//! `explain`: its result is that of the proxy's own code, for single requests and for hundreds of them.

use std::collections::BTreeMap;
use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use http::Request;
use http::request::Parts;
use seriatim::config::Config;
use seriatim::proxy::{ExplainedOutcome, TemplateResult, explain};

use crate::support::bench::Bench;
use crate::support::client;

const CONFIG: &str = r#"
upstream = "http://127.0.0.1:1"
[[routes]]
name = "send"
path = "/rpc"
when = { "{body:/method}" = "send" }
session_id = ["{header:x-session}", "{body:/a|/b}"]
[[routes]]
name = "stop"
path = "/rpc"
lock = false
"#;

fn head(path: &str) -> Parts {
    let request = Request::post(path).header("host", "localhost").body(());
    request.expect("a request").into_parts().0
}

#[tokio::test]
async fn a_request_is_explained_by_route_templates_and_key() {
    let config = Config::read("test", CONFIG, &Vec::new()).expect("the configuration is valid");
    let explained = explain(
        &config,
        head("/rpc"),
        br#"{"method":"send","b":"x:y"}"#[..].into(),
    )
    .await;
    assert_eq!(
        explained.route.as_deref(),
        Some("send"),
        "the route that matches"
    );
    let ExplainedOutcome::Locks(key) = &explained.outcome else {
        panic!("the request must take a lock: {explained:?}");
    };
    assert_eq!(key.as_str(), "lock:session:unknown:x%3Ay", "its key");
    let templates = explained.templates.iter();
    let results: Vec<_> = templates
        .map(|one| (one.option, &*one.template, one.result.clone()))
        .collect();
    assert_eq!(
        results,
        [
            ("session_id", "{header:x-session}", TemplateResult::Missing),
            (
                "session_id",
                "{body:/a|/b}",
                TemplateResult::Found("x:y".into())
            ),
            (
                "user_id",
                "unknown",
                TemplateResult::Found("unknown".into())
            ),
        ],
        "the value of each template"
    );
    for (path, body, route, outcome) in [
        ("/rpc", r#"{"method":"stop"}"#, Some("stop"), None),
        ("/rpc", "", Some("stop"), None),
        ("/elsewhere", "", None, None),
        (
            "/rpc",
            r#"{"method":"#,
            Some("send"),
            Some("malformed_body"),
        ),
        (
            "/rpc",
            r#"{"method":"send","a":1,"b":2}"#,
            Some("send"),
            Some("ambiguous_key"),
        ),
    ] {
        let explained = explain(&config, head(path), body.into()).await;
        let code = match &explained.outcome {
            ExplainedOutcome::Refused { code, .. } => Some(*code),
            ExplainedOutcome::Passes => None,
            ExplainedOutcome::NoSession { code } => Some(*code),
            ExplainedOutcome::Locks(_) => Some("locks"),
            ExplainedOutcome::Attaches(_) | ExplainedOutcome::Stops(_) => Some("no turn"),
        };
        assert_eq!(
            (explained.route.as_deref(), code),
            (route, outcome),
            "{path} {body}"
        );
    }
}

/// Routes for each place of an id, each kind of body, and each way to treat a body that can't be read.
const ROUTES: &str = r#"
unmatched = "reject"
[limits]
max_body = "8KiB"
max_buffered = "12KiB"
max_id_bytes = 64
[[routes]]
name = "header"
path = "/header"
session_id = ["{header:x-session}", "{cookie:sid}"]
[[routes]]
name = "query"
path = "/query"
session_id = ["{query:s}"]
on_missing = "reject"
[[routes]]
name = "path"
path = "/thread/{thread}"
session_id = ["{path:thread}"]
[[routes]]
name = "json"
path = "/json"
session_id = ["{body:/session_id|/sessionId}", "h-{hash:body:/input}"]
user_id = ["{body:/user}", "unknown"]
on_missing = "reject"
[[routes]]
name = "form"
path = "/form"
session_id = ["{form:session_id}"]
[[routes]]
name = "either"
path = "/either"
session_id = ["{body:/session_id}", "{form:session_id}"]
[[routes]]
name = "lax"
path = "/lax"
session_id = ["{body:/session_id}"]
on_malformed = "pass"
[[routes]]
name = "lax but for JSON"
path = "/files"
session_id = ["{body:/session_id}"]
on_malformed = "pass_non_json"
[[routes]]
name = "call, session in the head"
path = "/rpc-head"
session_id = ["{header:x-session}"]
busy = { format = "json-rpc" }
[[routes]]
name = "call, session in the body"
path = "/rpc"
session_id = ["{body:/session_id}"]
busy = { format = "json-rpc", status = 200 }
[[routes]]
name = "chat"
path = "/when"
when = { "{body:/action}" = "chat" }
session_id = ["{body:/session_id}"]
[[routes]]
name = "chat by a form"
path = "/when"
when = { "{form:action}" = "chat" }
session_id = ["{form:session_id}"]
[[routes]]
name = "anything else"
path = "/when"
lock = false
"#;

/// What the proxy does with a request, as seen from outside.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Locks(String),
    Passes,
    /// The status in the body of the error response, and the code in its header.
    Refused(u64, String),
}

/// A request that can be sent and explained.
#[derive(Clone, Debug)]
struct Sample {
    target: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    is_chunked: bool,
}

/// A small generator of numbers that gives the same ones in each run (Lehmer).
struct Numbers(u64);

// === impl Numbers ===

impl Numbers {
    fn pick<'l, T>(&mut self, list: &'l [T]) -> &'l T {
        self.0 = self.0 * 48_271 % 0x7fff_ffff;
        &list[self.0 as usize % list.len()]
    }
}

// === impl Sample ===

impl Sample {
    /// A mix of routes, heads, bodies, content types and encodings.
    fn new(numbers: &mut Numbers) -> Self {
        const TARGETS: [&str; 12] = [
            "/header",
            "/query?s=q1",
            "/query?s=q1&s=q2",
            "/thread/t1",
            "/json",
            "/form",
            "/either",
            "/lax",
            "/files",
            "/rpc-head",
            "/rpc",
            "/when",
        ];
        const ODD_TARGETS: [&str; 5] = [
            "/query",
            "/thread/a%2Fb",
            "/json?session_id=s9",
            "/JSON/",
            "/nowhere",
        ];
        let targets = match numbers.pick(&[0, 1, 2, 3, 4]) {
            0 => &ODD_TARGETS[..],
            _ => &TARGETS[..],
        };
        let mut headers = Vec::new();
        for (name, value) in *numbers.pick(&[
            &[][..],
            &[("x-session", "h1")],
            &[("x-session", "h1")],
            &[("x-session", "h1"), ("x-session", "h2")],
            &[("x_session", "h1")],
            &[("cookie", "sid=c1; a=b")],
            &[("cookie", "sid=c1; SID=c2")],
        ]) {
            headers.push((*name, (*value).to_owned()));
        }
        let kinds = [
            "application/json",
            "application/json",
            "application/json; charset=utf-7",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=b",
            "multipart/form-data",
            "text/plain",
            "",
        ];
        let kind = (*numbers.pick(&kinds)).to_owned();
        if !kind.is_empty() {
            headers.push(("content-type", kind));
        }
        let mut body = numbers.pick(&bodies()).clone();
        let encoding =
            *numbers.pick(&["", "", "", "", "gzip", "+gzip", "+gzip", "zip", "identity"]);
        if encoding == "+gzip" {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(&body).expect("memory");
            body = encoder.finish().expect("memory");
        }
        if !encoding.is_empty() {
            let name = encoding.trim_start_matches('+').to_owned();
            headers.push(("content-encoding", name));
        }
        Self {
            target: (*numbers.pick(targets)).to_owned(),
            headers,
            is_chunked: !body.is_empty() && *numbers.pick(&[false, false, true]),
            body,
        }
    }

    /// The request as a client sends it.
    fn to_send(&self) -> client::Request {
        let mut request = client::Request::post(&self.target);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        match self.is_chunked {
            true => request.chunked(&[&self.body]),
            false => request.body(self.body.clone()),
        }
    }

    /// What `explain` says about the request.
    async fn explained(&self, config: &Config) -> Seen {
        let mut request = Request::post(&self.target).header("host", "localhost");
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let head = request.body(()).expect("a request").into_parts().0;
        match explain(config, head, self.body.clone().into())
            .await
            .outcome
        {
            ExplainedOutcome::Locks(key) => Seen::Locks(key.as_str().to_owned()),
            ExplainedOutcome::Attaches(_) | ExplainedOutcome::Stops(_) => {
                panic!("no route of these tests has `attach` or `stop`")
            }
            ExplainedOutcome::Passes | ExplainedOutcome::NoSession { .. } => Seen::Passes,
            ExplainedOutcome::Refused { status, code, .. } => {
                Seen::Refused(status.into(), code.to_owned())
            }
        }
    }

    /// What the proxy does with the request.
    async fn sent(&self, bench: &Bench, tag: &str) -> Seen {
        let request = self.to_send().header("x-test-session", tag);
        let answer = bench.call(&request).await;
        if let Some(code) = answer.header("x-seriatim-error") {
            let json = answer.json();
            let own = json.get("status_code");
            let status = own.unwrap_or_else(|| &json["error"]["data"]["status_code"]);
            return Seen::Refused(status.as_u64().expect("a status"), code.to_owned());
        }
        assert_eq!(answer.status, 200, "it is served: {answer:?}");
        let turns = bench.backend.turns(tag);
        if turns[0].header("x-seriatim-fence").is_none() {
            return Seen::Passes;
        }
        // While the turn runs, the error response to another one names the lock.
        let open = bench.open(&self.to_send()).await;
        let busy = bench.call(&request).await;
        bench.end(open).await;
        let text = busy.text();
        let key = text.split_once("] 锁已被占用").map(|(before, _)| before);
        let key = key.and_then(|before| Some(before.rsplit_once('[')?.1));
        Seen::Locks(key.unwrap_or_else(|| panic!("no key: {busy:?}")).to_owned())
    }
}

/// Bodies with a session, without one, with more than one, and with none that can be read; of sizes around
/// `max_body` and `max_buffered`.
fn bodies() -> Vec<Vec<u8>> {
    let sized = |length: usize| {
        let start = r#"{"session_id":"s1","id":1,"action":"chat","x":""#;
        format!("{start}{}\"}}", "x".repeat(length - start.len() - 2))
    };
    let part = "--b\r\ncontent-disposition: form-data; name=\"session_id\"\r\n\r\ns1\r\n--b--\r\n";
    let mut bodies: Vec<Vec<u8>> = [
        "",
        r#"{"session_id":"s1","action":"chat","jsonrpc":"2.0","id":7}"#,
        r#"{"session_id":"s1","action":"chat","jsonrpc":"2.0","id":7}"#,
        r#"{"session_id":"s1","user":"u:1","action":"stop"}"#,
        r#"{"input":"hello","action":"chat"}"#,
        r#"{"session_id":"s1","Session_Id":"s1"}"#,
        r#"{"session_id":"s1","sessionId":"s2"}"#,
        r#"{"session_id":true}"#,
        r#"{"session_id":"s1","x":"&session_id=s2&action=chat&"}"#,
        r#"[{"session_id":"s1"}]"#,
        r#"[{"action":"stop"},{"id":1}]"#,
        r#"[{"action":"stop"},{"action":"chat"}]"#,
        r#"{"session_id":"#,
        "session_id=s1&action=chat",
        "session_id=s1&session_id=s2",
        "a=b",
        part,
        "plain text",
        "\u{feff}{\"session_id\":\"s1\"}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into();
    let long = format!(r#"{{"session_id":"{}"}}"#, "s".repeat(65));
    bodies.extend(
        [long, sized(8 << 10), sized((8 << 10) + 1), sized(7 << 10)].map(String::into_bytes),
    );
    bodies.extend([sized(20 << 10).into_bytes(), vec![b' '; 200 << 10]]);
    bodies.push(
        "{\"session_id\":\"s1\"}"
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect(),
    );
    bodies
}

#[tokio::test]
async fn explain_says_of_hundreds_of_requests_what_the_proxy_does() {
    let text = format!("upstream = \"http://127.0.0.1:1\"\n{ROUTES}");
    let config = Config::read("test", &text, &Vec::new());
    let config = config.unwrap_or_else(|problems| panic!("{problems}"));
    let bench = Bench::start(ROUTES).await;
    let mut numbers = Numbers(20_261_130);
    let mut seen = BTreeMap::<String, usize>::new();
    for number in 0..400 {
        let sample = Sample::new(&mut numbers);
        let explained = sample.explained(&config).await;
        let sent = sample.sent(&bench, &format!("sample {number}")).await;
        let target = &sample.target;
        let body = sample.body[..sample.body.len().min(100)].escape_ascii();
        assert_eq!(
            explained,
            sent,
            "explain (left) says what the proxy (right) does with {target} {:?} {} bytes: {body}",
            sample.headers,
            sample.body.len()
        );
        let name = match explained {
            Seen::Locks(_) => "locks".to_owned(),
            Seen::Passes => "passes".to_owned(),
            Seen::Refused(_, code) => code,
        };
        *seen.entry(name).or_default() += 1;
    }
    let outcomes: Vec<_> = seen.keys().collect();
    assert_eq!(
        outcomes,
        [
            "ambiguous_key",
            "bad_session_id",
            "body_too_large",
            "locks",
            "malformed_body",
            "missing_session",
            "no_route",
            "overloaded",
            "passes",
            "unsupported_encoding",
        ],
        "the mix has every outcome that a request alone can have: {seen:?}"
    );
}
