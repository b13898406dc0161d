//! `seriatim explain`: what it prints for people, and what it prints as JSON.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use crate::support::process::seriatim;

/// A folder with a configuration.
struct Folder(tempfile::TempDir);

impl Folder {
    fn with(routes: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let text = format!("upstream = \"http://127.0.0.1:1\"\n{routes}");
        std::fs::write(folder.path().join("config.toml"), text).expect("the file can be written");
        Self(folder)
    }

    fn preset(name: &str) -> Self {
        Self::with(&format!("[[routes]]\npreset = {name:?}\n"))
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).expect("the file can be written");
        path
    }

    fn explain(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = seriatim()
            .arg("explain")
            .args(arguments)
            .current_dir(self.0.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        // A command that reads no body exits without reading stdin.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        child.wait_with_output().expect("the command ends")
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A request to a preset, and what `explain` must say about it.
struct Case {
    preset: &'static str,
    arguments: &'static [&'static str],
    route: &'static str,
    /// The routes before the matching one, and why each does not match.
    skipped: &'static [(&'static str, &'static str)],
    /// Option, template, its result, and the id.
    templates: &'static [(
        &'static str,
        &'static str,
        &'static str,
        Option<&'static str>,
    )],
    /// The key; `None`: the request passes without a lock.
    key: Option<&'static str>,
}

const SESSION: &str = "session_id";
const USER: &str = "user_id";
/// The user id of presets that name no user.
const UNKNOWN: (&str, &str, &str, Option<&str>) = (USER, "unknown", "found", Some("unknown"));

const CASES: [Case; 16] = [
    Case {
        preset: "adk",
        arguments: &[
            "--path",
            "/run_sse",
            "--body",
            r#"{"app_name": "weather", "user_id": "u1", "session_id": "s:1", "new_message": {}}"#,
        ],
        route: "adk",
        skipped: &[],
        templates: &[
            (
                SESSION,
                "{body:/sessionId|/session_id}",
                "found",
                Some("s:1"),
            ),
            (USER, "{body:/userId|/user_id}", "found", Some("u1")),
            (USER, "unknown", "not_tried", None),
        ],
        key: Some("lock:session:u1:s%3A1"),
    },
    Case {
        preset: "adk",
        arguments: &[
            "--path",
            "/run",
            "--body",
            r#"{"userId": 7, "sessionId": "s1"}"#,
        ],
        route: "adk-run",
        skipped: &[("adk", "path")],
        templates: &[
            (
                SESSION,
                "{body:/sessionId|/session_id}",
                "found",
                Some("s1"),
            ),
            (USER, "{body:/userId|/user_id}", "found", Some("7")),
            (USER, "unknown", "not_tried", None),
        ],
        key: Some("lock:session:7:s1"),
    },
    Case {
        preset: "agno",
        arguments: &[
            "--path",
            "/agents/web/runs",
            "--header",
            "content-type: application/x-www-form-urlencoded",
            "--body",
            "message=hi&session_id=s+1&user_id=",
        ],
        route: "agno",
        skipped: &[
            ("agno-whole", "when"),
            ("agno-whole-continue", "path"),
            ("agno-background", "when"),
            ("agno-background-continue", "path"),
        ],
        templates: &[
            (SESSION, "{form:session_id}", "found", Some("s 1")),
            UNKNOWN,
        ],
        key: Some("lock:session:unknown:s%201"),
    },
    Case {
        preset: "agentscope",
        arguments: &[
            "--path",
            "/process",
            "--body",
            r#"{"session_id": "s1", "user_id": ""}"#,
        ],
        route: "agentscope",
        skipped: &[],
        templates: &[
            (SESSION, "{body:/session_id}", "found", Some("s1")),
            (USER, "{body:/user_id}", "missing", None),
            (USER, "{body:/session_id}", "found", Some("s1")),
        ],
        key: Some("lock:session:s1:s1"),
    },
    Case {
        preset: "ag-ui",
        arguments: &[
            "--path",
            "/agent",
            "--body",
            r#"{"threadId": "t1", "runId": "r1"}"#,
        ],
        route: "ag-ui",
        skipped: &[],
        templates: &[
            (SESSION, "{body:/threadId|/thread_id}", "found", Some("t1")),
            UNKNOWN,
        ],
        key: Some("lock:session:unknown:t1"),
    },
    Case {
        preset: "langgraph",
        arguments: &[
            "--path",
            "/threads/0A1B2C3D4E5F60718293A4B5C6D7E8F9/runs/wait?x=1",
            "--body",
            r#"{"assistant_id": "agent"}"#,
        ],
        route: "langgraph-wait",
        skipped: &[("langgraph", "path")],
        templates: &[
            (
                SESSION,
                "{uuid:path:thread}",
                "found",
                Some("0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"),
            ),
            UNKNOWN,
        ],
        key: Some("lock:session:unknown:0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"),
    },
    Case {
        preset: "a2a",
        arguments: &[
            "--path",
            "/",
            "--body",
            r#"{"jsonrpc":"2.0","id":1,"method":"message/stream","params":{"message":{"contextId":"c1"}}}"#,
        ],
        route: "a2a",
        skipped: &[
            ("a2a-send", "path"),
            ("a2a-stream", "path"),
            ("a2a-tenant-send", "path"),
            ("a2a-tenant-stream", "path"),
        ],
        templates: &[
            (
                SESSION,
                "{body:/params/message/contextId|/params/message/context_id}",
                "found",
                Some("c1"),
            ),
            (
                SESSION,
                "{body:/params/message/taskId|/params/message/task_id}",
                "not_tried",
                None,
            ),
            UNKNOWN,
        ],
        key: Some("lock:session:unknown:c1"),
    },
    Case {
        preset: "mcp",
        arguments: &[
            "--path",
            "/mcp",
            "--header",
            "Mcp-Session-Id: m1",
            "--body",
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#,
        ],
        route: "mcp-rest",
        skipped: &[("mcp-2026", "headers"), ("mcp", "when")],
        templates: &[],
        key: None,
    },
    Case {
        preset: "openai-responses",
        arguments: &[
            "--path",
            "/v1/responses",
            "--body",
            r#"{"model": "m", "conversation": "conv_1", "input": "hi"}"#,
        ],
        route: "openai-responses",
        skipped: &[("openai-responses-stream", "when")],
        templates: &[
            (SESSION, "{body:/conversation/id}", "missing", None),
            (SESSION, "{body:/conversation}", "found", Some("conv_1")),
            UNKNOWN,
        ],
        key: Some("lock:session:unknown:conv_1"),
    },
    Case {
        preset: "vercel-ai",
        arguments: &[
            "--path",
            "/api/chat",
            "--body",
            r#"{"id": "chat-1", "messages": []}"#,
        ],
        route: "vercel-ai",
        skipped: &[],
        templates: &[(SESSION, "{body:/id}", "found", Some("chat-1")), UNKNOWN],
        key: Some("lock:session:unknown:chat-1"),
    },
    Case {
        preset: "dify",
        arguments: &[
            "--path",
            "/v1/chat-messages",
            "--header",
            "authorization: Bearer app-key",
            "--body",
            r#"{"query": "hi", "user": "u1", "conversation_id": ""}"#,
        ],
        route: "dify",
        skipped: &[],
        templates: &[
            (SESSION, "{uuid:body:/conversation_id}", "missing", None),
            (USER, "unknown", "not_tried", None),
        ],
        key: None,
    },
    Case {
        preset: "flowise",
        arguments: &[
            "--path",
            "/api/v1/prediction/0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9",
            "--body",
            r#"{"question": "hi", "chatId": "c1"}"#,
        ],
        route: "flowise",
        skipped: &[],
        templates: &[
            (
                SESSION,
                "{uuid:path:flow}/{body:/overrideConfig/sessionId}",
                "missing",
                None,
            ),
            (
                SESSION,
                "{uuid:path:flow}/{body:/chatId}",
                "found",
                Some("0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9/c1"),
            ),
            (
                SESSION,
                "{uuid:path:flow}/{form:overrideConfig[sessionId]}",
                "not_tried",
                None,
            ),
            (
                SESSION,
                "{uuid:path:flow}/{form:sessionId}",
                "not_tried",
                None,
            ),
            (SESSION, "{uuid:path:flow}/{form:chatId}", "not_tried", None),
            UNKNOWN,
        ],
        key: Some("lock:session:unknown:0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9/c1"),
    },
    Case {
        preset: "copilotkit",
        arguments: &[
            "--path",
            "/api/copilotkit",
            "--body",
            r#"{"method": "agent/run", "body": {"threadId": "t1"}}"#,
        ],
        route: "copilotkit-single",
        skipped: &[("copilotkit", "path")],
        templates: &[
            (SESSION, "{body:/body/threadId}", "found", Some("t1")),
            UNKNOWN,
        ],
        key: Some("lock:session:unknown:t1"),
    },
    Case {
        preset: "n8n",
        arguments: &[
            "--path",
            "/webhook/w1/chat",
            "--header",
            "content-type: application/x-www-form-urlencoded",
            "--body",
            "action=sendMessage&sessionId=s1&chatInput=hi",
        ],
        route: "n8n",
        skipped: &[("n8n-history", "when"), ("n8n-history-form", "when")],
        templates: &[
            (SESSION, "{path:webhook}/{body:/sessionId}", "missing", None),
            (
                SESSION,
                "{path:webhook}/{form:sessionId}",
                "found",
                Some("w1/s1"),
            ),
            UNKNOWN,
        ],
        key: Some("lock:session:unknown:w1/s1"),
    },
    Case {
        preset: "letta",
        arguments: &[
            "--path",
            "/v1/conversations/default/messages",
            "--body",
            r#"{"agent_id": "agent-1", "messages": []}"#,
        ],
        route: "letta-default",
        skipped: &[("letta", "path"), ("letta-stream", "path")],
        templates: &[
            (SESSION, "{body:/agent_id}", "found", Some("agent-1")),
            UNKNOWN,
        ],
        key: Some("lock:session:unknown:agent-1"),
    },
    Case {
        preset: "rasa",
        arguments: &[
            "--path",
            "/webhooks/rest/webhook",
            "--body",
            r#"{"sender": "anna", "message": "hi"}"#,
        ],
        route: "rasa",
        skipped: &[],
        templates: &[(SESSION, "{body:/sender}", "found", Some("anna")), UNKNOWN],
        key: Some("lock:session:unknown:anna"),
    },
];

#[test]
fn what_keeps_a_client_is_explained() {
    let comment = "while it waits: an event stream begins, with a comment every 5s\n";
    let event = "while it waits: an event stream begins, with an event my.queue every 5s\n";
    let running = "while it runs: a comment every 5s if the backend's event stream is silent\n";
    for (lock, expected, others) in [
        ("blocking = true", [comment, running], &["my.queue"][..]),
        (
            "blocking = true\nqueue_events = \"my.queue\"",
            [event, running],
            &[comment],
        ),
        ("blocking = false", ["", running], &["while it waits"]),
        (
            "blocking = true\nblocking_timeout = 5",
            ["", running],
            &["while it waits"],
        ),
    ] {
        let folder = Folder::with(&format!(
            "[lock]\nkeep_alive = 5\n{lock}\n[[routes]]\nsession_id = [\"{{query:s}}\"]\n"
        ));
        let accept = "accept: text/event-stream";
        let output = folder.explain(&["--path", "/?s=1", "-H", accept], "");
        let text = text(&output);
        for line in expected {
            assert!(text.contains(line), "{lock}: {line} in {text}");
        }
        for other in others {
            assert!(!text.contains(other), "{lock}: no {other} in {text}");
        }
    }
}

#[test]
fn requests_of_presets_are_explained_by_route_templates_and_key() {
    for case in CASES {
        let folder = Folder::preset(case.preset);
        let output = folder.explain(&[case.arguments, &["--json"]].concat(), "");
        let report: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{}: {error}: {output:?}", case.preset));
        assert_eq!(report["route"], case.route, "the route: {report:#}");
        let skipped: Vec<_> = case
            .skipped
            .iter()
            .map(|(route, why)| (json!(route), json!(why)))
            .collect();
        let printed = report["skipped"].as_array().expect("a list").iter();
        let printed: Vec<_> = printed
            .map(|skipped| (skipped["route"].clone(), skipped["reason"].clone()))
            .collect();
        assert_eq!(printed, skipped, "the routes before it: {report:#}");
        let expected: Vec<_> = case
            .templates
            .iter()
            .map(|(option, template, result, id)| json!([option, template, result, id]))
            .collect();
        let printed = report["templates"].as_array().expect("a list").iter();
        let printed: Vec<_> = printed
            .map(|one| json!([one["option"], one["template"], one["result"], one["id"]]))
            .collect();
        assert_eq!(printed, expected, "its templates, in order: {report:#}");
        assert_eq!(report["key"], json!(case.key), "the key: {report:#}");
        let (outcome, code) = match case.key {
            Some(_) => ("locks", 0),
            None => ("passes", 3),
        };
        assert_eq!(report["outcome"], outcome, "the outcome: {report:#}");
        assert_eq!(
            output.status.code(),
            Some(code),
            "the exit code: {report:#}"
        );
    }
}

#[test]
fn the_text_lists_what_was_tried_in_order_and_marks_the_result() {
    let folder = Folder::with(
        r#"
[[routes]]
name = "stop"
path = "/chat/stop"
lock = false
[[routes]]
name = "tool"
path = "/chat"
when = { "{body:/kind}" = ["tool", "call"] }
lock = false
[[routes]]
name = "chat"
path = "/chat"
methods = ["POST"]
session_id = ["{body:/session_id}", "session_{hash:body:/input}"]
user_id = ["{body:/user_id}", "unknown"]
blocking = true
blocking_timeout = 90
"#,
    );
    folder.file("turn.json", r#"{"user_id": "", "input": "hello"}"#);
    let output = folder.explain(&["--path", "/chat", "--body", "@turn.json"], "");
    assert_eq!(
        text(&output),
        "\
POST /chat, a body of 33 bytes

routes
  · stop  has the path /chat/stop
  · tool  needs {body:/kind} to be \"tool\" or \"call\", and it is missing
  ✓ chat  takes the request

session_id
  · {body:/session_id}          missing
  ✓ session_{hash:body:/input}  session_5aa762ae383fbb727af3c7a36d4940a5

user_id
  · {body:/user_id}             missing
  ✓ unknown                     unknown

takes the lock lock:session:unknown:session_5aa762ae383fbb727af3c7a36d4940a5
if busy: waits in the queue for at most 1m 30s, and is then refused with 429
",
        "the columns are aligned, and the result is marked"
    );
    assert_eq!(
        output.status.code(),
        Some(0),
        "a request that takes a lock is exit code 0"
    );

    let output = folder.explain(
        &["--path", "/chat", "--body", "@-"],
        r#"{"session_id": true}"#,
    );
    let printed = text(&output);
    for expected in [
        "  ✗ {body:/session_id}          {body:/session_id} is true; it takes text or a whole number\n",
        "    session_{hash:body:/input}  not tried\n",
        "    unknown                     not tried\n",
        "is refused, 400 bad_session_id: the session id can't be used",
    ] {
        assert!(
            printed.contains(expected),
            "the output has {expected}: {printed}"
        );
    }
    assert_eq!(
        output.status.code(),
        Some(4),
        "a refused request is exit code 4: {printed}"
    );

    let output = folder.explain(
        &["--path", "/chat", "--body", "@-"],
        r#"[{"kind": "tool"}, {"kind": "x"}]"#,
    );
    let printed = text(&output);
    let expected = "  · tool  needs {body:/kind} to be \"tool\" or \"call\", and not every request of the batch has it\n";
    assert!(
        printed.contains(expected),
        "a route without a lock needs the value in each request: {printed}"
    );
    let reads = [
        "--method",
        "POST",
        "--path",
        "/mcp",
        "--body",
        r#"[{"method": "ping"}]"#,
    ];
    let printed = text(&Folder::preset("mcp").explain(&reads, ""));
    for expected in [
        "needs {body:/method} to be \"tools/call\", and no request of the batch has it\n",
        "passes without a lock: the route has lock = false\n",
    ] {
        assert!(printed.contains(expected), "a batch of reads: {printed}");
    }

    let output = folder.explain(&["--path", "/chat"], "");
    let printed = text(&output);
    for expected in [
        "GET /chat\n",
        "  · chat  has the method POST\n",
        "    no route takes the request\n",
        "passes without a lock: no route takes it, and unmatched is \"pass\"\n",
        "hint: chat is for another method; try --method POST\n",
    ] {
        assert!(
            printed.contains(expected),
            "the output has {expected}: {printed}"
        );
    }
    assert_eq!(
        output.status.code(),
        Some(3),
        "a request that passes is exit code 3: {printed}"
    );
}

#[test]
fn unmet_conditions_on_the_head_are_named() {
    let folder = Folder::with(
        r#"
[[routes]]
name = "host"
host = "a.example"
lock = false
[[routes]]
name = "headers"
headers = { x-kind = "chat" }
lock = false
[[routes]]
name = "free"
path = "/free"
lock = false
[[routes]]
name = "all"
session_id = ["{query:s}"]
"#,
    );
    let output = folder.explain(&["--path", "/FREE?s=a%20b", "--host", "b.example:80"], "");
    let printed = text(&output);
    for expected in [
        "  · host     has the host a.example\n",
        "  · headers  needs other headers: x-kind\n",
        "  · free     takes no lock, so the path must be spelled exactly as /free\n",
        "  ✓ all      takes the request\n",
        "takes the lock lock:session:unknown:a%20b\n",
    ] {
        assert!(
            printed.contains(expected),
            "the output has {expected}: {printed}"
        );
    }
    let arguments = [
        "--path",
        "/free",
        "--host",
        "a.example",
        "-H",
        "x-kind: chat",
    ];
    let printed = text(&folder.explain(&arguments, ""));
    assert!(
        printed.contains("✓ host  takes the request"),
        "the route matches by its host: {printed}"
    );
    assert!(
        printed.ends_with("passes without a lock: the route has lock = false\n"),
        "the reason is printed: {printed}"
    );
}

#[test]
fn the_output_says_which_id_is_missing() {
    let folder = Folder::with(
        r#"
[[routes]]
path = "/chat"
session_id = ["{query:s}"]
user_id = ["{header:x-user}"]
"#,
    );
    for (path, expected) in [
        (
            "/chat?s=s1",
            "passes without a lock, no_session: it has no user id, and on_missing is \"pass\"\n",
        ),
        (
            "/chat",
            "passes without a lock, no_session: it has no session id, and on_missing is \"pass\"\n",
        ),
    ] {
        let printed = text(&folder.explain(&["--path", path], ""));
        assert!(printed.ends_with(expected), "{path}: {printed}");
        let printed = text(&folder.explain(&["--path", path, "--json"], ""));
        let report: Value = serde_json::from_str(&printed).expect("JSON");
        let said = (&report["outcome"], &report["code"]);
        assert_eq!(said, (&json!("passes"), &json!("no_session")), "{path}");
    }
    let printed = text(&folder.explain(&["--path", "/chat", "-H", "x-user: u1"], ""));
    assert!(
        printed.contains("it has no session id"),
        "a user id alone is not enough: {printed}"
    );
}

#[test]
fn an_id_that_may_have_other_spellings_gets_a_hint() {
    let folder = Folder::with(
        r#"
[[routes]]
name = "chat"
path = "/chat/{thread}"
session_id = ["{query:s}", "t/{path:thread}"]
user_id = ["{uuid:header:x-user}", "{hash:header:x-name}", "{header:x-number}", "unknown"]
"#,
    );
    const UUID: &str = "0A1B2C3D4E5F60718293A4B5C6D7E8F9";
    let hint = |whose: &str, template: &str, what: &str, filter: &str| {
        format!(
            "hint: {{{template}}} looks like a {what}: if the backend treats its other spellings as the \
             same {whose}, write {{{filter}:{template}}}\n"
        )
    };
    let in_path = hint("session", "path:thread", "UUID", "uuid");
    let header = |name: &str, value: &str| format!("{name}: {value}");
    for (path, header, expected) in [
        (format!("/chat/{UUID}"), None, &*in_path),
        (
            "/chat/7?s=07".into(),
            None,
            &*hint(
                "session",
                "query:s",
                "whole number in decimal digits",
                "int",
            ),
        ),
        (
            "/chat/7".into(),
            Some(header("x-number", "+7")),
            &*hint(
                "user",
                "header:x-number",
                "whole number in decimal digits",
                "int",
            ),
        ),
        ("/chat/7".into(), Some(header("x-user", UUID)), ""),
        ("/chat/7".into(), Some(header("x-name", UUID)), ""),
        (format!("/chat/{UUID}?s=a"), None, ""),
    ] {
        let mut arguments = vec!["--path", &*path];
        arguments.extend(header.iter().flat_map(|header| ["-H", &**header]));
        let printed = text(&folder.explain(&arguments, ""));
        let hints = printed
            .split_inclusive('\n')
            .filter(|line| line.starts_with("hint"));
        let hints = hints.collect::<String>();
        assert_eq!(hints, expected, "{path} {header:?}: {printed}");
        arguments.push("--json");
        let report: Value =
            serde_json::from_slice(&folder.explain(&arguments, "").stdout).expect("JSON");
        let taken = report["templates"].as_array().expect("a list").iter();
        let with_hint = taken
            .filter(|one| one["result"] == "found" && !one["hint"].is_null())
            .count();
        assert_eq!(
            with_hint == 0,
            expected.is_empty(),
            "the JSON has the same hints: {report:#}"
        );
    }
}

#[test]
fn the_once_id_is_shown_beside_the_hash_that_the_store_gets() {
    let folder = Folder::with(
        "[[routes]]\nname = \"chat\"\nsession_id = [\"{header:x-session}\"]\n\
         once = [\"{header:idempotency-key}\", \"{query:k}\"]\nonce_for = \"1h\"\n",
    );
    const SESSION: &str = "x-session: s1";
    const KEY: &str = "idempotency-key: 0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9";
    let arguments = |more: &[&'static str]| {
        let own = [
            "--path",
            "/chat?a=1",
            "--method",
            "POST",
            "-H",
            SESSION,
            "--body",
            "x",
        ];
        [&own[..], more].concat()
    };
    let output = text(&folder.explain(&arguments(&["-H", KEY]), ""));
    // printf %s 0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9 | sha256sum | cut -c1-32
    let (id, fingerprint) = ("a93f0ce95a6f5278da2a46e7b2b80304", "0330c9069c1f22e8");
    for line in [
        "\nonce\n  ✓ {header:idempotency-key}  0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9\n    {query:k}                 not tried\n",
        &format!(
            "\nif repeated: recognised until 1h after its end, by the once id {id} of the request {fingerprint}\n"
        ),
    ] {
        assert!(output.contains(line), "{line}\nis missing in\n{output}");
    }
    assert!(
        !output.contains("hint"),
        "a once id has one spelling: {output}"
    );
    let json = folder.explain(&arguments(&["-H", KEY, "--json"]), "");
    let json: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(json["once"], json!({"id": id, "fingerprint": fingerprint}));
    let output = text(&folder.explain(&arguments(&[]), ""));
    let line = "\nif repeated: not recognised, because it has no once id";
    assert!(output.contains(line), "{line}\nis missing in\n{output}");
    let json = folder.explain(&arguments(&["--json"]), "");
    let json: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(json["once"], Value::Null, "there is none");
}

#[test]
fn a_result_that_depends_only_on_the_head_is_explained() {
    let folder = Folder::with(
        r#"
[[routes]]
name = "events"
path = "/events"
methods = ["GET"]
session_id = ["{header:x-session}"]
"#,
    );
    for (arguments, code, expected) in [
        (
            &["--path", "/x%0A"][..],
            4,
            "is refused, 400 bad_request: a control character in the path",
        ),
        (
            &["--path", "/ev%ffents"],
            4,
            "is refused, 400 bad_request: a path that isn't UTF-8",
        ),
        (
            &["--path", "/x", "-H", "trailer: x-session"],
            4,
            "is refused, 400 bad_request: a trailer that must be a header",
        ),
        (
            &[
                "--method",
                "HEAD",
                "--path",
                "/events.json",
                "-H",
                "x-session: s",
            ],
            0,
            "takes the lock lock:session:unknown:s",
        ),
        (
            &[
                "--method",
                "OPTIONS",
                "--path",
                "/events",
                "-H",
                "origin: https://a.example",
                "-H",
                "access-control-request-method: GET",
            ],
            3,
            "passes without a lock: a CORS preflight is never a turn",
        ),
    ] {
        let output = folder.explain(arguments, "");
        let printed = text(&output);
        assert!(
            printed.contains(expected),
            "the output has {expected}: {printed}"
        );
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn a_refusal_with_status_200_is_explained_as_a_refusal() {
    let folder = Folder::with(
        r#"
[[routes]]
name = "rpc"
session_id = ["{body:/s}"]
busy = { status = 200, format = "json-rpc" }
"#,
    );
    let printed = text(&folder.explain(&["--path", "/", "--body", "{"], ""));
    let expected = "is refused, 400 malformed_body (sent with status 200): ";
    assert!(
        printed.contains(expected),
        "the output has {expected}: {printed}"
    );
}

#[test]
fn an_invalid_call_of_explain_gets_an_error() {
    let folder = Folder::preset("adk");
    for (arguments, code, expected) in [
        (
            &["--path", "/run", "--body", "@nowhere.json"][..],
            1,
            "nowhere.json can't be read",
        ),
        (&["--path", "run"], 2, "a path starts with `/`"),
        (&["--path", "/run#top"], 2, "a request with it gets 400"),
        (&["--path", "/run", "-H", "nothing"], 2, "a name, a colon"),
        (&["--method", "POST"], 2, "--path"),
        (
            &["--path", "/run", "--config", "nowhere.toml"],
            78,
            "nowhere.toml",
        ),
    ] {
        let output = folder.explain(arguments, "");
        let printed = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {printed}");
        assert!(
            printed.contains(expected),
            "the error has {expected}: {printed}"
        );
    }
}

#[test]
fn what_a_request_contains_does_not_reach_the_terminal_as_a_command() {
    let folder = Folder::with(
        "[[routes]]\npath = \"/chat\"\nsession_id = [\"{body:/s}\"]\nuser_id = [\"u\"]\n",
    );
    // C1's "control sequence introducer" in the target, and a change of text direction in the id.
    let target = "/chat?x=\u{9b}2J";
    let body = "{\"s\": \"\u{202e}2J\"}";
    for arguments in [&[][..], &["--json"]] {
        let request = ["--path", target, "--body", body];
        let output = folder.explain(&[&request, arguments].concat(), "");
        let printed = text(&output);
        assert_eq!(output.status.code(), Some(0), "it takes a lock: {printed}");
        let is_command = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        let commands = printed.matches("2J").count();
        assert!(commands >= 2, "target and id are printed: {printed}");
        assert!(!printed.contains(is_command), "escaped: {printed:?}");
    }
}

#[test]
fn what_the_http_layer_refuses_is_explained() {
    let folder =
        Folder::with("[[routes]]\npath = \"/chat\"\nsession_id = [\"{header:x-session}\"]\n");
    let fields: Vec<_> = (0..100).map(|n| format!("x-{n}: a")).collect();
    let mut many = vec!["-H", "x-session: s1"];
    fields.iter().for_each(|field| many.extend(["-H", field]));
    let large = format!("x-large: {}", "a".repeat(70_000));
    let long = format!("/chat?{}", "a".repeat(40_000));
    for (arguments, code, status) in [
        (&["--host", "a b"][..], "bad_request", 400),
        (&["-H", "host: a@b"], "bad_request", 400),
        (&["--host", "a", "-H", "host: b"], "ambiguous_key", 400),
        (
            &["-H", "transfer-encoding: gzip, chunked"],
            "unsupported_transfer_coding",
            501,
        ),
        (
            &[
                "--body",
                "{}",
                "-H",
                "content-length: 2",
                "-H",
                "transfer-encoding: chunked",
            ],
            "bad_request",
            400,
        ),
        (&["-H", "content_length: 2"], "bad_request", 400),
        (&["-H", &large], "head_too_large", 431),
        (&many, "head_too_large", 431),
        (&["--path", &long], "uri_too_long", 414),
    ] {
        let mut all = vec!["-H", "x-session: s1", "--json"];
        if !arguments.contains(&"--path") {
            all.extend(["--path", "/chat"]);
        }
        all.extend(arguments);
        let output = folder.explain(&all, "");
        assert_eq!(output.status.code(), Some(4), "{code}: {}", text(&output));
        let printed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(
            (&printed["outcome"], &printed["code"], &printed["status"]),
            (&"refused".into(), &code.into(), &status.into()),
            "as the proxy refuses it: {printed}"
        );
    }
    let request = ["--path", "/chat", "--body", "{}", "-H", "content-length: 5"];
    let output = folder.explain(&request, "");
    assert_eq!(
        output.status.code(),
        Some(1),
        "the lengths contradict each other"
    );
}
