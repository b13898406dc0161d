//! Presets: which requests each of them locks, with which key, which it forwards without a lock, and
//! that its printed text means the same; and the formats of error responses.
//!
//! The tests read a turn's route and key in Redis, while its response is kept open.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use seriatim::config::Config;
use seriatim::config::presets::PRESETS;

use crate::support::app::App;
use crate::support::backend::{Backend, event};
use crate::support::client::{Answer, Client, Request};
use crate::support::process::run;
use crate::support::redis::Redis;

const UPSTREAM: &str = "upstream = \"http://127.0.0.1:8000\"\n";

/// The session id by which the backend's script knows a held turn.
const HELD: &str = "held";

/// A session id of a backend whose ids are UUIDs, and what its lock keys contain.
const UUID: &str = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9";
const UNKNOWN_UUID: &str = "unknown:0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9";
const FLOWISE_CHAT: &str = "unknown:0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9/c1";
const FLOWISE_SESSION: &str = "unknown:0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9/s1";

/// The same id in another spelling.
fn uuid_in_another_spelling() -> String {
    UUID.to_uppercase().replace('-', "")
}

/// A request, and how a preset treats it.
struct Case {
    request: Request,
    /// The route and the key of the lock; `None` means that the request takes no lock.
    lock: Option<(&'static str, &'static str)>,
}

fn locked(request: Request, route: &'static str, key: &'static str) -> Case {
    let lock = Some((route, key));
    Case { request, lock }
}

fn free(request: Request) -> Case {
    Case {
        request,
        lock: None,
    }
}

fn post(path: &str) -> Request {
    Request::post(path)
}

fn json(path: &str, text: &str) -> Request {
    post(path).json(text)
}

fn urlencoded(path: &str, text: &str) -> Request {
    post(path)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(text)
}

/// A multipart body with a file before the fields.
fn multipart(path: &str, fields: &[(&str, &str)]) -> Request {
    let mut body = "--x\r\ncontent-disposition: form-data; name=\"files\"; filename=\"a.txt\"\r\n\
                    content-type: text/plain\r\n\r\n{\"not\": a field\r\n"
        .to_owned();
    for (name, value) in fields {
        body.push_str(&format!(
            "--x\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
        ));
    }
    body.push_str("--x--\r\n");
    post(path)
        .header("content-type", "multipart/form-data; boundary=x")
        .body(body)
}

#[test]
fn the_docs_name_the_presets_whose_clients_read_event_streams() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/backends.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let list = page.split("**Streams.**").nth(1).expect("a paragraph");
    let list = list.split("Without `keep_alive`").next().expect("a list");
    let named: BTreeSet<_> = list.split('`').collect();
    for preset in &PRESETS {
        assert_eq!(
            named.contains(preset.name),
            preset.toml.contains("\nstream = \"sse\"\n"),
            "{} stands in the list if a route of it has stream = \"sse\"",
            preset.name
        );
    }
}

/// Requests to the backend of each preset. The first is a turn that is held while all requests
/// without a lock are sent.
fn cases(preset: &str) -> Vec<Case> {
    match preset {
        "a2a" => a2a(),
        "adk" => {
            let body = r#"{"appName": "app", "userId": "u1", "sessionId": "s1", "newMessage": {}}"#;
            let snake = r#"{"app_name": "app", "user_id": "u1", "session_id": "s1"}"#;
            vec![
                locked(json("/run_sse", body), "adk", "u1:s1"),
                locked(json("/run", body), "adk-run", "u1:s1"),
                // The app may be the server's default one, so the key has none.
                locked(json("/run_sse", snake), "adk", "u1:s1"),
                locked(
                    json("/run_sse", r#"{"userId": "u1", "sessionId": "s1"}"#),
                    "adk",
                    "u1:s1",
                ),
                free(Request::get("/apps/app/users/u1/sessions/s1")),
                free(json("/apps/app/users/u1/sessions/s1", "{}")),
            ]
        }
        "ag-ui" => ag_ui("ag-ui"),
        "ag-ui-cancel" => ag_ui("ag-ui-cancel"),
        "agentcore" => {
            let body = r#"{"prompt": "hi"}"#;
            let header = "x-amzn-bedrock-agentcore-runtime-session-id";
            vec![
                locked(
                    json("/invocations", body).header(header, "s1"),
                    "agentcore",
                    "unknown:s1",
                ),
                free(json("/invocations", body)),
                free(Request::get("/ping").header(header, "s1")),
            ]
        }
        "agentscope" => {
            let user = r#"{"input": [], "session_id": "s1", "user_id": "u1"}"#;
            let (alone, same) = (
                r#"{"session_id": "s1"}"#,
                r#"{"session_id": "s1", "user_id": "s1"}"#,
            );
            vec![
                locked(json("/process", user), "agentscope", "u1:s1"),
                // Without a user, the runtime takes the session's id for it.
                locked(json("/process", alone), "agentscope", "s1:s1"),
                locked(json("/process", same), "agentscope", "s1:s1"),
                free(json("/process", r#"{"input": [], "user_id": "u1"}"#)),
                free(json("/process/task", user)),
                free(Request::get("/process/task/t1")),
            ]
        }
        "agno" => agno(),
        "copilotkit" => {
            let run = r#"{"threadId": "t1", "runId": "r1"}"#;
            let single = |method: &str| {
                let call = json!({ "method": method, "body": { "threadId": "t1" } });
                json("/copilot", &call.to_string())
            };
            vec![
                locked(
                    json("/api/copilotkit/agent/default/run", run),
                    "copilotkit",
                    "unknown:t1",
                ),
                // The runtime matches the end of a path; a thread is the same for all agents.
                locked(json("/agent/other/run", run), "copilotkit", "unknown:t1"),
                locked(
                    json("/v2/copilot/agent/default/run/", run),
                    "copilotkit",
                    "unknown:t1",
                ),
                locked(single("agent/run"), "copilotkit-single", "unknown:t1"),
                free(single("agent/stop")),
                free(single("agent/connect")),
                free(single("info")),
                free(json("/api/copilotkit/agent/default/stop/t1", "{}")),
                free(json("/api/copilotkit/agent/default/connect", run)),
                free(json("/api/copilotkit/agent/default/suggest", run)),
                free(single("agent/suggest")),
                free(single("resource/request")),
                free(json("/api/copilotkit", r#"[{"method": "info"}]"#)),
                free(Request::get("/api/copilotkit/info")),
                free(multipart("/upload", &[("method", "put")])),
            ]
        }
        "dify" => {
            let path = "/v1/chat-messages";
            let message = |user: &str, conversation: &str| {
                let message =
                    json!({ "query": "hi", "user": user, "conversation_id": conversation });
                json(path, &message.to_string())
            };
            let token = |request: Request| request.header("authorization", "Bearer app-1");
            let other_key = |request: Request| request.header("authorization", "bearer  app-2");
            vec![
                locked(token(message("u1", UUID)), "dify", UNKNOWN_UUID),
                // One conversation, however the key of the app, the user and the id are spelt.
                locked(other_key(message("u1", UUID)), "dify", UNKNOWN_UUID),
                locked(
                    token(message("U1", &UUID.to_uppercase())),
                    "dify",
                    UNKNOWN_UUID,
                ),
                locked(
                    other_key(message("U1", &uuid_in_another_spelling())),
                    "dify",
                    UNKNOWN_UUID,
                ),
                locked(
                    json(
                        "/api/chat-messages",
                        &format!(r#"{{"conversation_id": "{UUID}"}}"#),
                    ),
                    "dify",
                    UNKNOWN_UUID,
                ),
                free(token(message("u1", ""))),
                free(token(json(path, r#"{"query": "hi", "user": "u1"}"#))),
                free(token(json(
                    "/v1/chat-messages/t1/stop",
                    r#"{"user": "u1"}"#,
                ))),
                free(token(json("/v1/form/human_input/f1", r#"{"user": "u1"}"#))),
                free(token(Request::get(&format!(
                    "/v1/messages?conversation_id={UUID}"
                )))),
            ]
        }
        "flowise" => {
            let (path, internal, webhook) = (
                &*format!("/api/v1/prediction/{UUID}"),
                &*format!("/api/v1/internal-prediction/{}", uuid_in_another_spelling()),
                &*format!("/api/v1/webhook/{UUID}"),
            );
            let (chat, session) = (FLOWISE_CHAT, FLOWISE_SESSION);
            let both = r#"{"chatId": "c1", "overrideConfig": {"sessionId": "s1"}}"#;
            vec![
                locked(json(path, both), "flowise", session),
                locked(
                    json(path, r#"{"question": "hi", "chatId": "c1"}"#),
                    "flowise",
                    chat,
                ),
                locked(
                    multipart(path, &[("question", "hi"), ("chatId", "c1")]),
                    "flowise",
                    chat,
                ),
                locked(
                    multipart(path, &[("chatId", "c1"), ("sessionId", "s1")]),
                    "flowise",
                    session,
                ),
                locked(
                    urlencoded(path, "question=hi&overrideConfig[sessionId]=s1&chatId=c1"),
                    "flowise",
                    session,
                ),
                locked(json(internal, both), "flowise-internal", chat),
                locked(
                    multipart(internal, &[("chatId", "c1"), ("sessionId", "s1")]),
                    "flowise-internal",
                    chat,
                ),
                locked(
                    json(webhook, r#"{"humanInput": {}, "chatId": "c1"}"#),
                    "flowise-webhook",
                    chat,
                ),
                free(json(webhook, r#"{"event": "push"}"#)),
                free(urlencoded(webhook, "payload=x")),
                free(Request::get(webhook)),
                free(json(path, r#"{"question": "hi"}"#)),
                free(Request::new("PUT", "/api/v1/chatmessage/abort/f1/c1")),
            ]
        }
        "langgraph" => {
            let threads = format!("/threads/{UUID}/runs");
            let apart = format!("/threads/{}/runs", uuid_in_another_spelling());
            let run = r#"{"assistant_id": "agent", "input": {}}"#;
            vec![
                locked(
                    json(&format!("{threads}/stream"), run),
                    "langgraph",
                    UNKNOWN_UUID,
                ),
                locked(
                    json(&format!("{apart}/wait"), run),
                    "langgraph-wait",
                    UNKNOWN_UUID,
                ),
                free(json(&threads, run)),
                free(json(
                    &format!("/threads/{UUID}/commands"),
                    r#"{"id": 1, "method": "run.start", "params": {}}"#,
                )),
                free(json(
                    &format!("/threads/{UUID}/stream/events"),
                    r#"{"channels": ["values"]}"#,
                )),
                free(post(&format!("{threads}/r1/cancel"))),
                free(Request::get(&format!("{threads}/r1/join"))),
                free(Request::get(&format!("{threads}/r1/stream"))),
                free(Request::get(&format!("/threads/{UUID}/stream"))),
                free(json("/runs/stream", run)),
            ]
        }
        "langserve" => {
            let session = r#"{"input": {}, "config": {"configurable": {"session_id": "s1"}}}"#;
            let thread = r#"{"config": {"configurable": {"thread_id": "t1"}}}"#;
            let both = r#"{"config": {"configurable": {"thread_id": "t1", "session_id": "s1"}}}"#;
            vec![
                locked(json("/chat/stream", session), "langserve", "unknown:s1"),
                locked(json("/stream", thread), "langserve", "unknown:t1"),
                locked(json("/a/b/stream_log", both), "langserve-log", "unknown:s1"),
                locked(
                    json("/chat/stream_events", session),
                    "langserve-events",
                    "unknown:s1",
                ),
                locked(
                    json("/chat/invoke", session),
                    "langserve-invoke",
                    "unknown:s1",
                ),
                free(json("/chat/invoke", r#"{"input": {}}"#)),
                free(json("/chat/batch", r#"{"inputs": []}"#)),
                free(Request::get("/chat/input_schema")),
            ]
        }
        "letta" => {
            let message = r#"{"messages": []}"#;
            let own = r#"{"messages": [], "agent_id": "agent-1"}"#;
            let chat = r#"{"messages": [], "model": "agent-1", "stream": true}"#;
            vec![
                locked(
                    json("/v1/agents/agent-1/messages", message),
                    "letta",
                    "unknown:agent-1",
                ),
                locked(
                    json("/v1/agents/agent-1/messages/stream", message),
                    "letta-stream",
                    "unknown:agent-1",
                ),
                locked(
                    json("/v1/conversations/default/messages", own),
                    "letta-default",
                    "unknown:agent-1",
                ),
                locked(
                    json("/v1/conversations/agent-1/messages", message),
                    "letta-conversation",
                    "unknown:agent-1",
                ),
                locked(
                    json("/v1/conversations/conv-1/messages", message),
                    "letta-conversation",
                    "unknown:conv-1",
                ),
                // The server has its API at two paths.
                locked(
                    json("/latest/agents/agent-1/messages", message),
                    "letta",
                    "unknown:agent-1",
                ),
                locked(
                    json("/v1/chat/completions", chat),
                    "letta-chat",
                    "unknown:agent-1",
                ),
                free(json("/v1/agents/agent-1/messages/cancel", "{}")),
                free(json("/v1/conversations/conv-1/cancel", "{}")),
                free(json("/v1/conversations/conv-1/stream", "{}")),
                free(json("/v1/agents/agent-1/messages/async", message)),
                free(Request::get("/v1/agents/agent-1/messages")),
            ]
        }
        "llamaindex" => {
            let body = r#"{"handler_id": "h1", "start_event": {}}"#;
            vec![
                locked(json("/workflows/w1/run", body), "llamaindex", "unknown:h1"),
                locked(json("/workflows/w2/run", body), "llamaindex", "unknown:h1"),
                free(json("/workflows/w1/run", r#"{"start_event": {}}"#)),
                free(json("/workflows/w1/run-nowait", body)),
                free(json("/events/h1", r#"{"event": {}}"#)),
                free(Request::get("/events/h1")),
                free(post("/handlers/h1/cancel")),
            ]
        }
        "mastra" => mastra(),
        "mcp" => {
            let call = r#"{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {}}"#;
            let handle = r#"{"id": 1, "method": "tools/call", "params": {"arguments": {"session_id": "h1"}}}"#;
            let session = |request: Request| request.header("mcp-session-id", "s1");
            let protocol_2026 =
                |request: Request| request.header("mcp-protocol-version", "2026-07-28");
            vec![
                locked(session(json("/mcp", call)), "mcp", "unknown:s1"),
                locked(json("/mcp", handle), "mcp", "unknown:h1"),
                // With protocol 2026-07-28, the header names no session, so it can't change the key.
                locked(
                    protocol_2026(json("/mcp", handle)),
                    "mcp-2026",
                    "unknown:h1",
                ),
                locked(
                    protocol_2026(session(json("/mcp", handle))),
                    "mcp-2026",
                    "unknown:h1",
                ),
                free(protocol_2026(json("/mcp", call))),
                free(json("/mcp", call)),
                free(json("/mcp", r#"{"id": 0, "method": "initialize"}"#)),
                free(session(json("/mcp", r#"{"method": "tools/list"}"#))),
                // A batch of calls that need no lock.
                free(session(json(
                    "/mcp",
                    r#"[{"id": 1, "method": "tools/list"}, {"id": 2, "method": "ping"}]"#,
                ))),
                // The response to an elicitation of a tool.
                free(session(json("/mcp", r#"{"id": 7, "result": {}}"#))),
                free(session(json(
                    "/mcp",
                    r#"{"method": "notifications/cancelled"}"#,
                ))),
                free(session(Request::get("/mcp"))),
                free(session(Request::new("DELETE", "/mcp"))),
            ]
        }
        "n8n" => {
            let path = "/webhook/w1/chat";
            let action = |action: &str| {
                let body = json!({ "action": action, "sessionId": "s1", "chatInput": "hi" });
                json(path, &body.to_string())
            };
            let form = |action| multipart(path, &[("action", action), ("sessionId", "s1")]);
            vec![
                locked(action("sendMessage"), "n8n", "unknown:w1/s1"),
                locked(form("sendMessage"), "n8n", "unknown:w1/s1"),
                locked(
                    json(path, r#"{"sessionId": "s1", "chatInput": "hi"}"#),
                    "n8n",
                    "unknown:w1/s1",
                ),
                locked(action("other"), "n8n", "unknown:w1/s1"),
                locked(
                    multipart(path, &[("sessionId", "s1")]),
                    "n8n",
                    "unknown:w1/s1",
                ),
                locked(
                    urlencoded(path, "sessionId=s1&chatInput=hi"),
                    "n8n",
                    "unknown:w1/s1",
                ),
                free(action("loadPreviousSession")),
                free(form("loadPreviousSession")),
                free(urlencoded(path, "action=loadPreviousSession&sessionId=s1")),
                free(Request::get(path)),
            ]
        }
        "openai-chat" => {
            let body = r#"{"model": "agent", "messages": []}"#;
            let streamed = r#"{"model": "agent", "messages": [], "stream": true}"#;
            let session = |request: Request| request.header("x-session-id", "s1");
            let litellm = |request: Request| request.header("x-litellm-session-id", "s1");
            let mount = |mount: &str| format!("{mount}/chat/completions");
            let (key, whole) = ("unknown:s1", "openai-chat-whole");
            vec![
                locked(session(json(&mount("/v1"), streamed)), "openai-chat", key),
                locked(litellm(json(&mount("/v1"), streamed)), "openai-chat", key),
                locked(
                    session(litellm(json(&mount(""), streamed))),
                    "openai-chat",
                    key,
                ),
                locked(session(json(&mount("/v1"), body)), whole, key),
                locked(
                    session(json(&mount("/openai/deployments/vendor/gpt"), body)),
                    whole,
                    key,
                ),
                locked(session(json(&mount("/engines/gpt"), body)), whole, key),
                free(json(&mount("/v1"), body)),
                free(json(&mount("/v1"), streamed)),
                free(session(Request::get("/v1/models"))),
                free(session(Request::get(&mount("/v1")))),
                free(session(post("/v1/chat/completions/c1/cancel"))),
            ]
        }
        "openai-responses" => {
            let text = r#"{"input": "hi", "conversation": "c1"}"#;
            let object = r#"{"input": "hi", "conversation": {"id": "c1"}}"#;
            let (route, key) = ("openai-responses", "unknown:c1");
            vec![
                locked(json("/v1/responses", text), route, key),
                locked(json("/v1/responses", object), route, key),
                locked(json("/responses", text), route, key),
                locked(json("/openai/v1/responses", object), route, key),
                locked(
                    json("/v1/responses", r#"{"stream": true, "conversation": "c1"}"#),
                    "openai-responses-stream",
                    key,
                ),
                free(json("/v1/responses", r#"{"input": "hi"}"#)),
                free(json("/v1/responses", r#"{"input": "hi", "stream": true}"#)),
                free(json("/v1/responses", r#"{"previous_response_id": "r1"}"#)),
                free(post("/v1/responses/r1/cancel")),
                free(json("/openai/v1/responses/compact", text)),
                free(Request::get("/v1/responses/r1")),
                // The WebSocket mode.
                free(Request::get("/v1/responses")),
            ]
        }
        "rasa" => {
            let path = "/webhooks/rest/webhook";
            vec![
                locked(
                    json(path, r#"{"sender": "s1", "message": "hi"}"#),
                    "rasa",
                    "unknown:s1",
                ),
                locked(
                    json(
                        &format!("{path}?stream=true"),
                        r#"{"sender": "s1", "message": "hi"}"#,
                    ),
                    "rasa",
                    "unknown:s1",
                ),
                free(json(path, r#"{"message": "hi"}"#)),
                free(Request::get("/conversations/s1/tracker")),
            ]
        }
        "vercel-ai" => vec![
            locked(
                json("/api/chat", r#"{"id": "c1", "messages": []}"#),
                "vercel-ai",
                "unknown:c1",
            ),
            locked(
                json(
                    "/api/chat",
                    r#"{"id": "c1", "message": {}, "trigger": "regenerate-message"}"#,
                ),
                "vercel-ai",
                "unknown:c1",
            ),
            free(Request::get("/api/chat/c1/stream")),
            free(json("/api/chat/c1/stop", "{}")),
            free(Request::new("DELETE", "/api/chat?id=c1")),
        ],
        unknown => panic!("each preset has cases: {unknown}"),
    }
}

fn mastra() -> Vec<Case> {
    let path = |call: &str| format!("/api/agents/a1/{call}");
    let turn = r#"{"messages": "hi", "memory": {"thread": "t1", "resource": "u1"}}"#;
    let object =
        r#"{"messages": "hi", "memory": {"thread": {"id": "t1", "title": "x"}, "resource": "u2"}}"#;
    let legacy = r#"{"messages": "hi", "threadId": "t1", "resourceId": "u1"}"#;
    let conversation = r#"{"agent_id": "a1", "input": "hi", "conversation_id": "t1"}"#;
    let key = "unknown:t1";
    let mut cases = vec![locked(json(&path("stream"), turn), "mastra", key)];
    for (call, route) in [
        ("generate", "mastra-generate"),
        ("generate/vnext", "mastra-generate-vnext"),
        ("stream-until-idle", "mastra-until-idle"),
        ("network", "mastra-network"),
        ("resume-stream", "mastra-resume"),
        ("resume-stream-until-idle", "mastra-resume-until-idle"),
    ] {
        cases.push(locked(json(&path(call), object), route, key));
        cases.push(free(json(&path(call), r#"{"messages": "hi"}"#)));
    }
    cases.extend([
        locked(json("/agents/a2/stream", object), "mastra", key),
        locked(
            json(&path("stream-legacy"), legacy),
            "mastra-stream-legacy",
            key,
        ),
        locked(
            json(&path("generate-legacy"), legacy),
            "mastra-generate-legacy",
            key,
        ),
        locked(
            json("/api/v1/responses", conversation),
            "mastra-responses",
            key,
        ),
        free(json(&path("threads/abort"), legacy)),
        free(json(&path("threads/subscribe"), legacy)),
        free(json(&path("observe"), r#"{"runId": "r1"}"#)),
        free(json(&path("approve-tool-call"), r#"{"runId": "r1"}"#)),
        free(json(&path("send-message"), legacy)),
        free(Request::get("/api/memory/threads/t1/messages")),
        free(json("/api/v1/responses", r#"{"input": "hi"}"#)),
    ]);
    cases
}

fn ag_ui(route: &'static str) -> Vec<Case> {
    vec![
        locked(
            json("/agent", r#"{"threadId": "t1", "runId": "r1"}"#),
            route,
            "unknown:t1",
        ),
        locked(json("/", r#"{"thread_id": "t1"}"#), route, "unknown:t1"),
        free(Request::get("/health")),
        free(multipart("/upload", &[])),
    ]
}

fn agno() -> Vec<Case> {
    let runs = "/agents/a1/runs";
    // A session without an owner takes any user's runs, so the key has no user.
    let form = "message=hi&session_id=s1&user_id=u1";
    let field = |name| format!("message=hi&session_id=s1&{name}");
    let key = "unknown:s1";
    let next = "/agents/a1/runs/r1/continue";
    vec![
        locked(urlencoded(runs, form), "agno", key),
        locked(
            multipart(runs, &[("message", "hi"), ("session_id", "s1")]),
            "agno",
            key,
        ),
        locked(urlencoded(runs, &field("stream=true")), "agno", key),
        locked(urlencoded(next, form), "agno-agent-continue", key),
        locked(urlencoded("/teams/t1/runs", form), "agno-team", key),
        locked(
            urlencoded("/teams/t1/runs/r1/continue", form),
            "agno-team-continue",
            key,
        ),
        locked(urlencoded("/workflows/w1/runs", form), "agno-workflow", key),
        locked(
            urlencoded("/workflows/w1/runs/r1/continue", form),
            "agno-workflow-continue",
            key,
        ),
        // These continue when their client leaves.
        locked(urlencoded(runs, &field("stream=False")), "agno-whole", key),
        locked(
            urlencoded("/teams/t1/runs", &field("stream=0")),
            "agno-whole",
            key,
        ),
        locked(
            urlencoded(next, &field("stream=false")),
            "agno-whole-continue",
            key,
        ),
        locked(
            urlencoded("/workflows/w1/runs", &field("background=true")),
            "agno-background",
            key,
        ),
        locked(
            urlencoded(next, &field("background=1")),
            "agno-background-continue",
            key,
        ),
        locked(post("/agents/a1/sessions/s1/compact"), "agno-compact", key),
        free(urlencoded(runs, "message=hi")),
        free(urlencoded(runs, "message=hi&stream=false")),
        free(post("/agents/a1/runs/r1/cancel")),
        free(urlencoded("/agents/a1/runs/r1/resume", form)),
        free(post("/teams/t1/runs/r1/cancel")),
        free(post("/agents/a1/sessions/s1/fork")),
        free(json("/tasks/t1/runs", r#"{"session_id": "s1"}"#)),
        free(Request::get(runs)),
    ]
}

fn a2a() -> Vec<Case> {
    let call = |method: &str, field: &str| {
        let params = json!({ "message": { field: "c1" } });
        let call = json!({ "jsonrpc": "2.0", "id": "1", "method": method, "params": params });
        json("/a2a/agent", &call.to_string())
    };
    let message = r#"{"message": {"contextId": "c1", "parts": []}}"#;
    let snake = r#"{"message": {"context_id": "c1"}}"#;
    // With HTTP+JSON, an agent ignores unknown members.
    let decoy = r#"{"method": "message/send", "params": {"message": {"contextId": "x"}}, "message": {"contextId": "c1"}}"#;
    let (id, key) = ("contextId", "unknown:c1");
    vec![
        locked(call("SendMessage", id), "a2a", key),
        locked(call("SendStreamingMessage", id), "a2a", key),
        locked(call("message/send", id), "a2a", key),
        locked(call("message/stream", "context_id"), "a2a", key),
        locked(json("/message:send", message), "a2a-send", key),
        locked(json("/message:send", decoy), "a2a-send", key),
        locked(json("/message:stream", snake), "a2a-stream", key),
        locked(json("/message%3Astream", snake), "a2a-stream", key),
        locked(json("/v1/message:send", message), "a2a-tenant-send", key),
        locked(
            json("/acme/message:stream", message),
            "a2a-tenant-stream",
            key,
        ),
        // A message that names a task only continues it.
        locked(call("SendMessage", "taskId"), "a2a", key),
        locked(call("message/stream", "task_id"), "a2a", key),
        locked(
            json("/message:send", r#"{"message": {"taskId": "c1"}}"#),
            "a2a-send",
            key,
        ),
        locked(
            json("/v1/message:stream", r#"{"message": {"task_id": "c1"}}"#),
            "a2a-tenant-stream",
            key,
        ),
        // The context is the session, whatever the task.
        locked(
            json(
                "/message:send",
                r#"{"message": {"taskId": "t1", "contextId": "c1"}}"#,
            ),
            "a2a-send",
            key,
        ),
        // A new conversation.
        free(call("SendMessage", "messageId")),
        free(json("/message:send", r#"{"message": {"parts": []}}"#)),
        free(call("CancelTask", id)),
        free(json(
            "/a2a/agent",
            r#"[{"id": 1, "method": "GetTask"}, {"id": 2, "method": "CancelTask"}]"#,
        )),
        free(call("GetTask", id)),
        free(call("SubscribeToTask", id)),
        free(call("tasks/cancel", id)),
        free(call("tasks/resubscribe", id)),
        free(json("/tasks/t1:cancel", "{}")),
        free(Request::get("/tasks/t1:subscribe")),
        free(json("/v1/tasks/t1:cancel", "{}")),
        free(Request::get("/.well-known/agent-card.json")),
        free(multipart("/upload", &[("method", "put")])),
    ]
}

/// Starts a turn and waits until its response streams.
async fn hold(app: &App, request: &Request) -> Client {
    let request = request
        .clone()
        .header("x-test-session", HELD)
        .header("x-test-script", "gate");
    let mut client = Client::connect(app.addr()).await;
    client.send(&request).await;
    client.read_until(&event(0)).await;
    client
}

async fn finish(backend: &Backend, mut held: Client) {
    backend.open_gate(HELD);
    assert!(held.answer().await.whole, "a turn runs to its end");
}

/// The route and the key of the only held lock; `None` means that no lock is held.
async fn lock(redis: &Redis) -> Option<(String, String)> {
    let mut keys = redis.keys().await;
    keys.retain(|key| key.starts_with("lock:session:"));
    assert!(keys.len() < 2, "one turn takes one lock: {keys:?}");
    let key = keys.pop()?;
    let who = redis.get(&key).await.expect("the lock is held");
    let who: Value = serde_json::from_str(&who).expect("the lock's value is one line of JSON");
    let route = who["route"]
        .as_str()
        .expect("the lock's value names the route");
    Some((route.to_owned(), key))
}

#[tokio::test]
async fn each_preset_locks_its_turns_and_forwards_the_rest() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    for preset in PRESETS {
        let name = preset.name;
        // Settling would only make the test slow, and a turn that waits would never be busy.
        let config = format!(
            "[[routes]]\npreset = {name:?}\nsettle = 0\nsettle_cancelled = 0\nblocking = false\n"
        );
        let app = App::on_redis(&backend, &redis, &config);
        let cases = cases(name);
        for case in &cases {
            let Some((route, key)) = case.lock else {
                continue;
            };
            let held = hold(&app, &case.request).await;
            assert_eq!(
                lock(&redis).await,
                Some((route.to_owned(), format!("lock:session:{key}"))),
                "{name}: the route and the key of {:?}",
                case.request
            );
            let again = case.request.clone().header("x-test-script", "plain:no");
            let again = Client::connect(app.addr()).await.call(&again).await;
            assert_eq!(
                again.header("x-seriatim-error"),
                Some("session_busy"),
                "{name}: the session is busy: {again:?}"
            );
            finish(&backend, held).await;
        }
        let held = hold(&app, &cases[0].request).await;
        for case in cases.iter().filter(|case| case.lock.is_none()) {
            let before = backend.requests().len();
            let answer = Client::connect(app.addr()).await.call(&case.request).await;
            assert_eq!(
                (answer.status, answer.header("x-seriatim-error")),
                (200, None),
                "{name}: forwarded while a turn runs: {:?}",
                case.request
            );
            let got = backend.requests();
            assert_eq!(
                got[before].header("x-seriatim-fence"),
                None,
                "{name}: takes no lock: {:?}",
                case.request
            );
        }
        finish(&backend, held).await;
        let routes: BTreeSet<_> = cases.iter().filter_map(|case| Some(case.lock?.0)).collect();
        let config = read(&config);
        let all = config.routes.iter().filter(|route| route.turn.is_some());
        assert_eq!(
            routes,
            all.map(|route| &*route.name).collect(),
            "{name}: each locking route has a case"
        );
        app.stop().await;
    }
}

// === presets as text ===

fn read(text: &str) -> Config {
    match Config::read("test", &format!("{UPSTREAM}{text}"), &Vec::new()) {
        Ok(config) => config,
        Err(problems) => panic!("{problems}\n{text}"),
    }
}

#[test]
fn a_preset_means_what_its_printed_text_means() {
    for preset in PRESETS {
        let output = run(&["presets", preset.name]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let printed = String::from_utf8(output.stdout).expect("UTF-8");
        // Between other routes, under defaults that it must not inherit.
        let around = |entry: &str| {
            format!(
                "[lock]\nblocking = true\non_missing = \"reject\"\n[busy]\nformat = \"openai\"\n\
                 [[routes]]\nname = \"a\"\nlock = false\npath = \"/a\"\n{entry}\n\
                 [[routes]]\nname = \"z\"\nlock = false\npath = \"/z\"\n"
            )
        };
        let named = around(&format!("[[routes]]\npreset = {:?}\n", preset.name));
        assert_eq!(
            read(&named).to_string(),
            read(&around(&printed)).to_string(),
            "the printed text of {} means the same as its name",
            preset.name
        );
    }
}

#[test]
fn presets_are_listed_and_a_wrong_name_gets_a_suggestion() {
    let output = run(&["presets"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let list = String::from_utf8(output.stdout).expect("UTF-8");
    let names: Vec<_> = list
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(
        names,
        PRESETS.map(|preset| preset.name),
        "one preset per line"
    );
    for (name, warning) in [
        ("mcp", "continues after its client"),
        ("langgraph", "serializes the runs of a thread itself"),
        ("letta", "work after the response"),
    ] {
        let line = list.lines().find(|line| line.starts_with(name));
        assert!(
            line.is_some_and(|line| line.contains(warning)),
            "a preset's line has its warning: {line:?}"
        );
    }
    let output = run(&["presets", "langraph"]);
    assert_eq!(
        output.status.code(),
        Some(2),
        "an unknown preset is a usage error"
    );
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(
        message.contains("'langgraph'"),
        "the error names the unknown preset: {message}"
    );
}

#[test]
fn options_next_to_a_preset_apply_to_each_of_its_routes() {
    let config = read(
        "[[routes]]\npreset = \"langgraph\"\nname = \"chat\"\nprefix = \"/api/{tenant}/\"\n\
         host = \"agent.example\"\nupstream = \"http://127.0.0.1:9\"\nmethods = [\"POST\", \"PUT\"]\nheaders = { x-kind = \"a\" }\n\
         session_id = [\"{path:tenant}/{path:thread}\"]\nuser_id = [\"{header:x-user}\"]\n\
         blocking = true\nbusy = { error = \"later\" }\n",
    );
    let routes: Vec<_> = config
        .routes
        .iter()
        .map(|route| {
            let path = route
                .path
                .as_ref()
                .expect("the route has a path")
                .to_string();
            (&*route.name, path)
        })
        .collect();
    let path = |last| format!("/api/{{tenant}}/threads/{{thread}}/runs/{last}");
    assert_eq!(
        routes,
        [("chat", path("stream")), ("chat-wait", path("wait"))],
        "the name names the first route and prefixes the others, and the prefix precedes each path"
    );
    for route in &config.routes {
        let printed = route.to_string();
        for line in [
            "host = [\"agent.example\"]",
            "upstream = \"http://127.0.0.1:9\"",
            "methods = [\"POST\", \"PUT\"]",
            "headers = { \"x-kind\" = [\"a\"] }",
            "session_id = [\"{path:tenant}/{path:thread}\"]",
            "user_id = [\"{header:x-user}\"]",
            "blocking = true",
            "on_disconnect = \"continue\"",
            "busy = { status = 409, format = \"json\", error = \"later\", retry_after = \"auto\" }",
        ] {
            assert!(
                printed.lines().any(|printed| printed == line),
                "{line}: written options override the preset, and the others stay: {printed}"
            );
        }
    }
    let config = read(
        "[[routes]]\npreset = \"mcp\"\npath = \"/tools\"\nblocking = true\nmax_waiters = 2\n\
         [[routes]]\npreset = \"ag-ui\"\nprefix = \"/agents/{agent}\"\n",
    );
    let routes: Vec<_> = config
        .routes
        .iter()
        .map(|route| {
            let path = route
                .path
                .as_ref()
                .expect("the route has a path")
                .to_string();
            (&*route.name, path, route.turn.is_some())
        })
        .collect();
    assert_eq!(
        routes,
        [
            ("mcp-2026", "/tools".to_owned(), true),
            ("mcp", "/tools".to_owned(), true),
            ("mcp-rest", "/tools".to_owned(), false),
            ("ag-ui", "/agents/{agent}/{*rest}".to_owned(), true),
        ],
        "a preset of one path takes another path, and its unlocked route takes no lock options"
    );
}

// === formats of error responses ===

/// A route of each error format, and one whose session is in a header.
const FORMS: &str = r#"
[[routes]]
name = "rpc"
path = "/rpc"
session_id = ["{body:/session}"]
busy = { format = "json-rpc", error = "busy" }
[[routes]]
name = "rpc-ok"
path = "/rpc-ok"
session_id = ["{header:x-session}"]
busy = { format = "json-rpc", status = 200, error = "busy" }
[[routes]]
name = "openai"
path = "/openai"
session_id = ["{body:/session}"]
busy = { format = "openai", error = "busy", retry_after = 2 }
"#;

/// Sends `request` while the turn `held` is open.
async fn refused(app: &App, backend: &Backend, held: &Request, request: &Request) -> Answer {
    let held = hold(app, held).await;
    let answer = Client::connect(app.addr()).await.call(request).await;
    finish(backend, held).await;
    answer
}

/// The four members of the contract's body, for a busy session.
fn contract_body(key: &str) -> Value {
    json!({
        "success": false,
        "error": "busy",
        "detail": format!("[lock:session:unknown:{key}] 锁已被占用"),
        "status_code": 429,
    })
}

#[tokio::test]
async fn a_json_rpc_error_response_has_the_id_of_the_request() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, FORMS);
    let call = |id: &str| json("/rpc", &format!(r#"{{"session": "s1"{id}}}"#));
    for (id, expected) in [
        (r#", "id": 7"#, "7"),
        (r#", "id": "a\u0062""#, r#""a\u0062""#),
        (
            r#", "id": 12345678901234567890.0"#,
            "12345678901234567890.0",
        ),
        (r#", "id": null"#, "null"),
        ("", "null"),
        (r#", "id": {"a": 1}"#, "null"),
        (r#", "id": 1, "id": 2"#, "null"),
    ] {
        let answer = refused(&app, &backend, &call(""), &call(id)).await;
        assert_eq!(answer.error(), (429, "session_busy"), "{answer:?}");
        let opening = format!(r#"{{"jsonrpc":"2.0","id":{expected},"error":{{"code":-32000,"#);
        assert!(
            answer.text().starts_with(&opening),
            "{id}: the id is copied from the request literally: {}",
            answer.text()
        );
        assert_eq!(
            answer.json()["error"],
            json!({ "code": -32000, "message": "busy", "data": contract_body("s1") }),
            "the message is the configured one, and the data has the contract's four members"
        );
        assert_eq!(
            (
                answer.headers_named("content-type"),
                answer.header("x-seriatim-queue")
            ),
            (vec!["application/json; charset=utf-8"], Some("0")),
            "the headers are those of every error response"
        );
    }
}

#[tokio::test]
async fn busy_status_200_applies_to_every_error_response_of_its_route() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, FORMS);
    let call = |session: &str, body: &str| json("/rpc-ok", body).header("x-session", session);
    let turn = call("s1", r#"{"id": 1}"#);
    let answer = refused(&app, &backend, &turn, &call("s1", r#"{"id": "x"}"#)).await;
    assert_eq!(answer.error(), (200, "session_busy"), "{answer:?}");
    assert_eq!(
        answer.json(),
        json!({
            "jsonrpc": "2.0",
            "id": "x",
            "error": { "code": -32000, "message": "busy", "data": contract_body("s1") },
        }),
        "the id is read although the session is in a header; the real status is in the data"
    );
    let answer = refused(&app, &backend, &turn, &call("s1", "no JSON")).await;
    assert_eq!(
        (answer.error(), &answer.json()["id"]),
        ((200, "session_busy"), &Value::Null),
        "a body without an id gets the same error response: {answer:?}"
    );
    let backend_breaks = call("s2", r#"{"id": 3}"#).header("x-test-script", "close");
    let answer = Client::connect(app.addr())
        .await
        .call(&backend_breaks)
        .await;
    assert_eq!(answer.error(), (200, "upstream_unreachable"), "{answer:?}");
    let answer = answer.json();
    assert_eq!(
        (&answer["id"], &answer["error"]["data"]["status_code"]),
        (&json!(3), &json!(502)),
        "other error responses have their real status in the data: {answer}"
    );
    let long = "s".repeat(600);
    let answer = Client::connect(app.addr())
        .await
        .call(&call(&long, r#"{"id": 4}"#))
        .await;
    assert_eq!(answer.error(), (200, "bad_session_id"), "{answer:?}");
    assert_eq!(
        answer.json()["error"]["data"]["status_code"],
        400,
        "an invalid session id has its real status in the data: {answer:?}"
    );
    assert_eq!(
        answer.json()["id"],
        4,
        "a request that its head rules out is refused with its id"
    );
    let large = format!(r#"{{"id": 5, "x": "{}"}}"#, "x".repeat(128 << 10));
    let unread = [
        call(&long, &large),
        call(&long, r#"{"id": 6}"#).header("expect", "100-continue"),
        Request::post("/rpc-ok")
            .header("x-session", &long)
            .chunked(&[br#"{"id": 7}"#]),
    ];
    for request in unread {
        let answer = Client::connect(app.addr()).await.call(&request).await;
        assert_eq!(
            (answer.error(), &answer.json()["id"]),
            ((200, "bad_session_id"), &Value::Null),
            "a body that is large, of unknown length, or waited for, isn't read for the id: {answer:?}"
        );
    }
}

#[tokio::test]
async fn an_openai_error_response_has_the_format_of_the_openai_api() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, FORMS);
    let turn = json("/openai", r#"{"session": "s1"}"#);
    let answer = refused(&app, &backend, &turn, &turn).await;
    assert_eq!(answer.error(), (429, "session_busy"), "{answer:?}");
    assert_eq!(
        (
            answer.header("retry-after"),
            answer.header("retry-after-ms")
        ),
        (Some("2"), Some("2000")),
        "retry-after is the configured one"
    );
    let error = |message: &str, kind: &str, code: &str| json!({ "message": message, "type": kind, "param": null, "code": code });
    let mut expected = contract_body("s1");
    expected["error"] = error("busy", "rate_limit_error", "session_busy");
    assert_eq!(
        answer.json(),
        expected,
        "error.code is the reason, and the other members of the contract follow"
    );
    let answer = Client::connect(app.addr())
        .await
        .call(&json("/openai", "{"))
        .await;
    assert_eq!(answer.error(), (400, "malformed_body"), "{answer:?}");
    assert_eq!(
        answer.json()["error"],
        error("无法读取请求体", "invalid_request_error", "malformed_body"),
        "every error response of the route has its format"
    );
}
