//! Who may use the admin API: with the token, or from this machine; and what the log says about each
//! call.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::get;
use crate::support::app::{App, CHAT};
use crate::support::backend::{Backend, event};
use crate::support::client::{Answer, Client, Request, begin_turn};
use crate::support::process::Process;
use crate::support::redis::Redis;

/// A token that no log line and no response may show.
const TOKEN: &str = "geheim-0123456789";

/// The admin calls that need authorization.
const PROTECTED: [(&str, &str); 5] = [
    ("GET", "/locks"),
    ("HEAD", "/locks"),
    ("GET", "/locks/u1/s1"),
    ("DELETE", "/locks/u1/s1"),
    ("POST", "/locks/u1/s1/interrupt"),
];

async fn ask(admin: SocketAddr, method: &str, target: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::new(method, target);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    Client::connect(admin).await.call(&request).await
}

/// A temporary file with this content.
fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("written");
    file
}

fn start_with_token(backend: &Backend, token: &tempfile::NamedTempFile) -> App {
    let admin = format!("token_file = \"{}\"", token.path().display());
    App::start_guarded(&backend.url(), "memory:", "", &admin, CHAT)
}

#[tokio::test]
async fn without_the_token_only_probes_and_metrics_are_served() {
    let backend = Backend::start("plain:ok").await;
    let token = file(&format!("{TOKEN}\n"));
    let app = start_with_token(&backend, &token);
    let mut held = begin_turn(app.addr(), "s1", "gate").await;
    held.read_until(&event(0)).await;
    let right = format!("Bearer {TOKEN}");
    let [short, long, upper, basic, bare] = [
        format!("Bearer {}", &TOKEN[1..]),
        format!("Bearer {TOKEN}0"),
        format!("Bearer {}", TOKEN.to_uppercase()),
        format!("Basic {TOKEN}"),
        TOKEN.to_owned(),
    ];
    for (method, target) in PROTECTED {
        for headers in [
            &[][..],
            &[("authorization", "Bearer")],
            &[("authorization", "Bearer ")],
            &[("authorization", short.as_str())],
            &[("authorization", long.as_str())],
            &[("authorization", upper.as_str())],
            &[("authorization", basic.as_str())],
            &[("authorization", bare.as_str())],
            &[
                ("authorization", right.as_str()),
                ("authorization", right.as_str()),
            ],
            &[("x-authorization", right.as_str())],
        ] {
            let refused = ask(app.admin(), method, target, headers).await;
            assert_eq!(
                refused.error(),
                (401, "unauthorized"),
                "{method} {target} {headers:?}"
            );
            assert_eq!(
                refused.header("www-authenticate"),
                Some("Bearer"),
                "a 401 names the scheme (RFC 9110 §11.6.1)"
            );
            assert!(
                !refused.text().contains("geheim"),
                "the response does not show the token"
            );
        }
    }
    for open in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(
            get(app.admin(), open).await.status,
            200,
            "{open} needs no token"
        );
    }
    backend.open_gate("s1");
    assert!(held.answer().await.whole, "a refused call changes nothing");
}

#[tokio::test]
async fn a_call_with_the_token_is_served_from_any_host_and_origin() {
    let backend = Backend::start("plain:ok").await;
    let token = file(TOKEN);
    let app = start_with_token(&backend, &token);
    let right = format!("Bearer {TOKEN}");
    let lower = format!("bearer  {TOKEN}");
    for headers in [
        &[("authorization", right.as_str())][..],
        &[("authorization", lower.as_str())],
        &[
            ("authorization", right.as_str()),
            ("host", "seriatim.example"),
        ],
        &[
            ("authorization", right.as_str()),
            ("host", "seriatim.example"),
            ("origin", "https://elsewhere.example"),
            ("sec-fetch-site", "cross-site"),
        ],
    ] {
        let answer = ask(app.admin(), "GET", "/locks", headers).await;
        assert_eq!(answer.status, 200, "{headers:?}: {answer:?}");
    }
}

#[tokio::test]
async fn a_replaced_token_applies_at_once_and_a_missing_one_admits_nobody() {
    let backend = Backend::start("plain:ok").await;
    let token = file(TOKEN);
    let app = start_with_token(&backend, &token);
    let with = async |token: &str| {
        let bearer = format!("Bearer {token}");
        let answer = ask(app.admin(), "GET", "/locks", &[("authorization", &bearer)]).await;
        (answer.status, answer.error().1.to_owned())
    };
    assert_eq!(with(TOKEN).await.0, 200, "the first token works");
    std::fs::write(token.path(), "another").expect("the file is written");
    assert_eq!(
        with("another").await.0,
        200,
        "the second token works without a restart"
    );
    assert_eq!(
        with(TOKEN).await,
        (401, "unauthorized".into()),
        "the first token is refused now"
    );
    for useless in ["", "two words"] {
        std::fs::write(token.path(), useless).expect("the file is written");
        for tried in ["another", "", useless] {
            assert_ne!(
                with(tried).await.0,
                200,
                "{useless:?} is not a token: {tried:?}"
            );
        }
    }
    token.close().expect("removed");
    assert_eq!(
        with("another").await,
        (503, "token_unavailable".into()),
        "without a readable token every call is refused"
    );
}

#[tokio::test]
async fn without_a_token_only_this_machine_and_no_other_site_is_served() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    let admin = app.admin();
    let port = admin.port();
    let [own, by_name, six, origin, other_port] = [
        format!("127.0.0.1:{port}"),
        format!("LocalHost:{port}"),
        format!("[::1]:{port}"),
        format!("http://localhost:{port}"),
        "http://localhost:3000".to_owned(),
    ];
    let localhost = format!("localhost:{port}");
    for headers in [
        &[][..],
        &[("host", own.as_str())],
        &[("host", by_name.as_str())],
        &[("host", six.as_str())],
        &[("host", "localhost")],
        &[
            ("host", localhost.as_str()),
            ("origin", origin.as_str()),
            ("sec-fetch-site", "same-origin"),
        ],
        &[("sec-fetch-site", "none")],
        // Without a configured token, a client's token is ignored.
        &[("authorization", "Bearer whatever")],
    ] {
        for (method, target) in PROTECTED {
            let answer = ask(admin, method, target, headers).await;
            assert_ne!(answer.status, 403, "{method} {target} {headers:?}");
        }
    }
    for headers in [
        &[("host", "seriatim.example")][..],
        &[("host", "127.0.0.1.example")],
        &[("host", "localhost.example")],
        &[("host", "0.0.0.0")],
        &[("host", "10.1.2.3")],
        &[("host", "")],
        &[
            ("host", localhost.as_str()),
            ("origin", "https://elsewhere.example"),
        ],
        &[("host", localhost.as_str()), ("origin", "null")],
        &[("host", localhost.as_str()), ("origin", "")],
        // Another port of this machine is another origin.
        &[
            ("host", localhost.as_str()),
            ("origin", other_port.as_str()),
        ],
        &[
            ("host", localhost.as_str()),
            ("origin", origin.as_str()),
            ("origin", "https://x.example"),
        ],
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-site")],
    ] {
        for (method, target) in PROTECTED {
            let refused = ask(admin, method, target, headers).await;
            assert_eq!(
                refused.error(),
                (403, "forbidden"),
                "{method} {target} {headers:?}"
            );
        }
        for open in ["/livez", "/metrics"] {
            let answer = ask(admin, "GET", open, headers).await;
            assert_eq!(answer.status, 200, "{open} is open: {headers:?}");
        }
    }
    let absolute = ask(
        admin,
        "GET",
        "http://seriatim.example/locks",
        &[("host", "localhost")],
    )
    .await;
    assert_eq!(
        absolute.error(),
        (403, "forbidden"),
        "the host of an absolute target counts, too"
    );
}

#[tokio::test]
async fn each_operator_call_and_each_refusal_is_logged() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let folder = tempfile::tempdir().expect("a folder");
    let (path, token) = (
        folder.path().join("config.toml"),
        folder.path().join("token"),
    );
    std::fs::write(&token, TOKEN).expect("a token");
    let text = format!(
        "listen = \"127.0.0.1:0\"\nupstream = \"{}\"\n[store]\nurl = \"{}\"\ninstance = \"pod-1\"\n\
         [admin]\ntoken_file = \"{}\"\n{CHAT}",
        backend.url(),
        redis.url(),
        token.display()
    );
    std::fs::write(&path, text).expect("a file");
    let process = Process::start(&path);
    let right = format!("Bearer {TOKEN}");
    let right = &[("authorization", right.as_str())][..];
    let wrong = &[("authorization", "Bearer falsch-987")][..];
    for (method, target) in [
        ("DELETE", "/locks/u1/s1"),
        ("POST", "/locks/u1/s1/interrupt"),
    ] {
        let mut client = Client::connect(process.addr()).await;
        let request = Request::turn("s1", "gate").header("x-request-id", "r-7");
        client.send(&request).await;
        client.read_until(&event(0)).await;
        let refused = ask(process.admin(), method, target, wrong).await;
        assert_eq!(refused.status, 401, "{refused:?}");
        let done = ask(process.admin(), method, target, right).await;
        assert_eq!(done.status, 200, "{done:?}");
        assert!(!client.answer().await.whole, "the turn is aborted");
    }
    ask(process.admin(), "DELETE", "/locks/u1/s1", right).await;
    ask(process.admin(), "POST", "/locks/u1/s1/interrupt", right).await;
    std::fs::remove_file(&token).expect("removed");
    ask(process.admin(), "GET", "/locks", right).await;
    process.signal("TERM");
    let (_, events) = process.end();
    let audit: Vec<_> = events
        .iter()
        .filter(|event| event["target"] == "seriatim::audit")
        // What the holder's replica logs, at some moment; here it is the same process.
        .filter(|event| !event["message"].to_string().contains("by an operator"))
        .collect();
    let text = |event: &Value, name: &str| event[name].as_str().unwrap_or("-").to_owned();
    let logged = audit.iter().map(|event| {
        let names = [
            "level",
            "message",
            "by",
            "key",
            "instance",
            "request_id",
            "result",
            "reason",
        ];
        names.map(|name| text(event, name)).join(" ")
    });
    let logged: Vec<_> = logged.collect();
    let key = "lock:session:u1:s1";
    assert_eq!(
        logged,
        [
            "WARN access denied 127.0.0.1 - - - - token".to_owned(),
            format!("INFO force release 127.0.0.1 {key} pod-1 r-7 released -"),
            "WARN access denied 127.0.0.1 - - - - token".to_owned(),
            format!("INFO interrupt 127.0.0.1 {key} pod-1 r-7 released -"),
            format!("INFO force release 127.0.0.1 {key} - - not_locked -"),
            format!("INFO interrupt 127.0.0.1 {key} - - not_locked -"),
            "ERROR admin.token_file can't be used; calls that need the token are refused - - - - - -"
                .to_owned(),
            "WARN access denied 127.0.0.1 - - - - token_file".to_owned(),
        ],
        "the log says what was requested, by whom, for which lock, and the result"
    );
    for event in &events {
        let line = event.to_string();
        assert!(
            !line.contains("geheim") && !line.contains("falsch"),
            "no token is logged: {line}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_admin_connection_is_closed() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    let mut client = TcpStream::connect(app.admin()).await.expect("connected");
    let request = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";
    client.write_all(request).await.expect("sent");
    let mut answer = Vec::new();
    let closed = client.read_to_end(&mut answer);
    // The paused clock of the test jumps to the next timer.
    let closed = timeout(Duration::from_secs(3600), closed).await;
    assert!(
        closed.is_ok(),
        "an idle connection is closed within minutes"
    );
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.starts_with("HTTP/1.1 200 "),
        "the request was served before: {answer}"
    );
}
