//! How the reader of an error response finds what its code means: the header `link` (`errors.help_url`) and
//! `seriatim errors`.

use std::collections::BTreeMap;

use seriatim::outcome::ErrorCode;

use crate::support::app::CHAT;
use crate::support::bench::{Bench, Replicas, chat};
use crate::support::client::{Answer, Client, Request};
use crate::support::h2_client::{H2, turn};
use crate::support::process::{Process, run};
use crate::support::wait_for;

const HELP: &str = "[errors]\nhelp_url = \"https://seriatim.example.com/troubleshooting.html\"\n";

/// One route for each format of an error response.
fn routes() -> String {
    let route = |(path, busy): (&str, &str)| {
        format!(
            "[[routes]]\nname = \"{path}\"\npath = \"/{path}\"\nsession_id = [\"{{body:/s}}\"]\nbusy = {{ {busy} }}\n"
        )
    };
    let formats = [
        ("json", "status = 503"),
        ("openai", "format = \"openai\""),
        ("a2a", "format = \"json-rpc\", status = 200"),
        ("ai-sdk", "format = \"ai-sdk\""),
        ("ag-ui", "format = \"ag-ui\""),
    ];
    formats.map(route).concat()
}

/// The header that leads to the section about a code.
fn link_to(code: &str) -> String {
    format!("<https://seriatim.example.com/troubleshooting.html#{code}>; rel=\"help\"")
}

/// What an error response says of its code: the code, and the link to its section.
fn told(answer: &Answer) -> (Option<&str>, Vec<&str>) {
    (
        answer.header("x-seriatim-error"),
        answer.headers_named("link"),
    )
}

/// Asserts that the response has this code, and a link to its section.
fn assert_links(case: &str, answer: &Answer, code: &str) {
    let link = link_to(code);
    assert_eq!(told(answer), (Some(code), vec![&*link]), "{case}");
}

// === the header ===

#[tokio::test]
async fn every_error_response_links_to_the_section_of_its_code() {
    let bench = Bench::start(&format!("{HELP}{CHAT}{}", routes())).await;
    for path in ["json", "openai", "a2a", "ai-sdk", "ag-ui"] {
        let request = Request::post(&format!("/{path}")).json("{");
        assert_links(path, &bench.call(&request).await, "malformed_body");
    }
    let _held = bench.hold("s1").await;
    let busy = bench.call(&Request::turn("s1", "plain:x")).await;
    assert_links("a busy session", &busy, "session_busy");
    let broken = bench.call(&Request::turn("s2", "close")).await;
    assert_links("a broken backend", &broken, "upstream_unreachable");
    let mut client = bench.client().await;
    client.send_raw(b"GET / HTTP/1.1\r\nhost : a\r\n\r\n").await;
    assert_links("no HTTP", &client.answer().await, "bad_request");

    let mut client = H2::connect(bench.replica(0)).await;
    let busy = client.call(turn("s1", "plain:x")).await;
    assert_eq!(
        busy.head.headers()["link"],
        link_to("session_busy"),
        "over HTTP/2"
    );
    let served = bench.call(&Request::turn("s3", "plain:x")).await;
    assert_eq!(
        (served.status, told(&served)),
        (200, (None, vec![])),
        "a response of the backend doesn't change"
    );
}

#[tokio::test]
async fn a_connection_beyond_the_limit_gets_the_link() {
    let limit = "[limits]\nmax_connections = 1\n";
    let bench = Bench::start(&format!("{HELP}{limit}{CHAT}")).await;
    let refused = bench.answer_beyond_the_limit().await;
    assert_links("the second", &refused, "overloaded");
}

#[tokio::test]
async fn an_error_inside_an_event_stream_has_its_code_and_no_header() {
    let lock = "[lock]\nblocking = true\nblocking_timeout = \"300ms\"\nkeep_alive = \"100ms\"\nstream = \"sse\"\n";
    let bench = Bench::start(&format!("{HELP}{lock}{CHAT}")).await;
    let _held = bench.hold("s1").await;
    let waited = bench.call(&Request::turn("s1", "plain:x")).await;
    assert_eq!(
        (waited.status, told(&waited)),
        (200, (None, vec![])),
        "the head was sent before the error: {waited:?}"
    );
    let text = waited.text();
    assert!(text.contains("\"reason\":\"wait_timeout\""), "{text}");
}

#[tokio::test]
async fn without_the_option_no_error_response_has_a_link() {
    let bench = Bench::start(CHAT).await;
    let refused = bench.call(&chat("{")).await;
    assert_eq!(told(&refused), (Some("malformed_body"), vec![]), "no link");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_sets_changes_and_removes_the_link() {
    const APPLIED: &str = "new configuration applied";
    let replicas = Replicas::on_redis().await;
    let path = replicas.config("", "");
    let text = std::fs::read_to_string(&path).expect("the configuration");
    let process = Process::start(&path);
    // A connection that is open all the time.
    let mut kept = Client::connect(process.addr()).await;
    let other = HELP.replace("seriatim.example.com", "wiki.example.com");
    for (applied, table) in ["", HELP, &other, ""].into_iter().enumerate() {
        if applied > 0 {
            std::fs::write(&path, format!("{text}{table}")).expect("the file is written");
            let is_applied = || process.times_logged(APPLIED) >= applied;
            wait_for(is_applied, "the configuration is applied").await;
        }
        let link = table.lines().nth(1).map(|line| {
            let url = line.split('"').nth(1).expect("a URL");
            format!("<{url}#malformed_body>; rel=\"help\"")
        });
        let refused = kept.call(&chat("{")).await;
        assert_eq!(
            refused.header("link"),
            link.as_deref(),
            "after {applied} reloads"
        );
    }
}

// === the command ===

#[test]
fn errors_lists_every_code_with_its_status() {
    let output = run(&["errors"]);
    assert_eq!(output.status.code(), Some(0), "it is listed");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), ErrorCode::all().count(), "a line each: {text}");
    for expected in [
        "session_busy                 429  Another turn of the session runs, and this one doesn't wait.",
        "lock_lost                    503  The lock was lost, before the response began or in the middle of it.",
    ] {
        assert!(lines.contains(&expected), "{expected:?} is one: {text}");
    }
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("upstream_error               -    ")),
        "a code without a status of its own: {text}"
    );
}

#[test]
fn errors_explains_one_code_by_the_documentation() {
    let page = include_str!("../../docs/troubleshooting.md");
    let output = run(&["errors", "session_busy"]);
    assert_eq!(output.status.code(), Some(0), "it is explained");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let (heading, section) = text.split_once("\n\n").expect("a heading and a text");
    assert_eq!(heading, "session_busy", "its heading");
    let (_, of_page) = page
        .split_once("### session_busy\n\n")
        .expect("the section");
    let (first, _) = of_page.split_once('\n').expect("its first line");
    assert!(
        section.starts_with(first) && section.contains("429 for ever") && !section.contains("\n#"),
        "its section and no other: {section}"
    );
    assert!(!section.contains("]("), "no link to a file: {section}");

    let one = run(&["errors", "session_busy", "--json"]);
    let one: serde_json::Value = serde_json::from_slice(&one.stdout).expect("one JSON object");
    assert_eq!(
        (&one["code"], &one["status"], &one["help"]),
        (
            &"session_busy".into(),
            &429.into(),
            &section.trim_end().into()
        ),
        "the same as JSON"
    );
    let all = run(&["errors", "--json"]);
    let all = String::from_utf8(all.stdout).expect("UTF-8");
    let line = all.lines().find(|line| line.contains("\"upstream_error\""));
    let line: serde_json::Value =
        serde_json::from_str(line.expect("one line per code")).expect("JSON");
    assert_eq!(line["status"], serde_json::Value::Null, "no status: {line}");
}

#[test]
fn an_unknown_code_exits_with_2_and_names_the_one_that_was_meant() {
    let output = run(&["errors", "sesion_busy"]);
    assert_eq!(output.status.code(), Some(2), "wrong arguments");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("'session_busy'"), "did you mean: {text}");
}

// === the documentation ===

/// The codes of errors that occur inside event streams alone.
const ONLY_IN_STREAMS: [&str; 4] = [
    "upstream_error",
    "not_an_event_stream",
    "upstream_aborted",
    "idle_timeout",
];

#[test]
fn the_reference_has_every_code_with_its_status() {
    let page = include_str!("../../docs/error-responses.md");
    let rows = page.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        Some((cells.next()?.strip_suffix('`')?, cells.next()?))
    });
    let rows: BTreeMap<_, _> = rows.collect();
    for code in ErrorCode::all() {
        let Some(status) = rows.get(code.word) else {
            assert!(
                ONLY_IN_STREAMS.contains(&code.word),
                "{} has a row",
                code.word
            );
            let named = format!("`{}`", code.word);
            assert!(page.contains(&named), "{named} is in the text");
            continue;
        };
        let status = match *status {
            "as `session_busy`" => rows["session_busy"],
            status => status,
        };
        let expected = code.status.map(|status| status.as_str().to_owned());
        assert_eq!(
            Some(&status[..3]),
            expected.as_deref(),
            "the status of {}",
            code.word
        );
    }
}
