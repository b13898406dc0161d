//! Unusual spellings that pass as they were sent, and those that are refused with a remedy.

use http::Request as H2Request;
use tokio::io::AsyncWriteExt;

use crate::support::app::{App, CHAT};
use crate::support::backend::Backend;
use crate::support::client::{Answer, Client, Request};
use crate::support::h2_client::{H2, full};
use crate::support::raw::{RawBackend, read_head};

/// The response that the client gets when the backend sends these pieces, one after another.
async fn passed(request: &Request, pieces: &[&[u8]]) -> Answer {
    let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
    let backend = RawBackend::start(move |mut socket, _| {
        let pieces = pieces.clone();
        async move {
            read_head(&mut socket).await;
            socket.set_nodelay(true).expect("a connected socket");
            for piece in pieces {
                // An error means that the proxy has left.
                let _ = socket.write_all(&piece).await;
                tokio::task::yield_now().await;
            }
            read_head(&mut socket).await;
        }
    })
    .await;
    let app = App::start(&backend.url(), "memory:", "", CHAT);
    Client::connect(app.addr()).await.call(request).await
}

/// The target of the last request that the backend got.
fn last_target(backend: &Backend) -> String {
    backend.requests().pop().expect("a request").target
}

#[tokio::test]
async fn what_the_usual_servers_take_in_a_query_passes_unchanged() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    let mut h2 = H2::connect(app.addr()).await;
    for target in ["/a?q={}", "/a?`", "/a?{`}|^\\~[]", "/a{b}?c", "/a\"b"] {
        let answer = Client::connect(app.addr()).await.get(target).await;
        assert_eq!((answer.status, last_target(&backend)), (200, target.into()));
        let request = H2Request::get(format!("http://agent.example{target}"));
        let answer = h2.call(request.body(full("")).expect("a request")).await;
        assert_eq!(
            (answer.head.status().as_u16(), last_target(&backend)),
            (200, target.into()),
            "over HTTP/2"
        );
    }
    let before = backend.requests().len();
    for target in ["/a?\"", "/a?<", "/a?>", "/a<b", "/a>b", "/a`b"] {
        let answer = Client::connect(app.addr()).await.get(target).await;
        assert_eq!(answer.error(), (400, "bad_request"), "{target}");
        assert!(
            answer.text().contains("percent-encoded"),
            "the response says what to send instead: {answer:?}"
        );
    }
    assert_eq!(backend.requests().len(), before, "the backend gets none");
}

#[tokio::test]
async fn a_content_length_that_is_repeated_passes_once_and_two_are_a_502() {
    let (get, head) = (Request::get("/"), Request::new("HEAD", "/"));
    for (request, lengths, passes) in [
        (&get, "Content-Length: 4, 4\r\n", true),
        (&get, "Content-Length: 4,4,4\r\n", true),
        (&get, "Content-Length: 4\r\nContent-Length: 4\r\n", true),
        (&get, "Content-Length: 4, 4\r\ncontent-length: 4\r\n", true),
        (&head, "Content-Length: 4, 4\r\n", true),
        (&get, "Content-Length: 4, 5\r\n", false),
        (&head, "Content-Length: 4, 5\r\n", false),
        (&head, "Content-Length: 4\r\nContent-Length: 5\r\n", false),
        (&head, "Content-Length: 4, +4\r\n", false),
        (&head, "Content-Length: 4, \r\n", false),
    ] {
        let response = format!("HTTP/1.1 200 OK\r\n{lengths}\r\n");
        let answer = passed(request, &[response.as_bytes(), b"four"]).await;
        match passes {
            true => assert_eq!(
                (answer.status, answer.headers_named("content-length")),
                (200, vec!["4"]),
                "one length (RFC 9110 §8.6): {lengths}"
            ),
            false => assert_eq!(answer.status, 502, "{lengths}"),
        }
    }
}

#[tokio::test]
async fn a_reason_phrase_in_utf8_passes_unchanged() {
    let get = Request::get("/");
    let rest = "content-length: 2\r\n\r\nok";
    let line = "HTTP/1.1 200 成功\r\n";
    for (pieces, expected) in [
        (vec![format!("{line}{rest}")], line),
        (
            vec!["HTTP/1.1 2".into(), format!("00 成功\r\n{rest}")],
            line,
        ),
        (
            vec![format!("HTTP/1.1 200 OK\r\n{rest}")],
            "HTTP/1.1 200 OK\r\n",
        ),
        (
            vec![format!("HTTP/1.1 418 Short and stout\r\n{rest}")],
            "HTTP/1.1 418 Short and stout\r\n",
        ),
        // The phrase of an interim response is not the final one's.
        (
            vec![format!(
                "HTTP/1.1 103 提示\r\n\r\nHTTP/1.1 200 OK\r\n{rest}"
            )],
            "HTTP/1.1 200 OK\r\n",
        ),
    ] {
        let bytes: Vec<_> = pieces.iter().map(String::as_bytes).collect();
        let answer = passed(&get, &bytes).await;
        let head = String::from_utf8_lossy(&answer.raw_head).into_owned();
        assert!(head.starts_with(expected), "{pieces:?}: {head}");
        assert_eq!(answer.text(), "ok", "the body follows");
    }
}

#[tokio::test]
async fn an_options_request_for_the_whole_server_stays_one() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    let targets = [
        ("OPTIONS http://a", "*"),
        ("OPTIONS http://a/", "/"),
        ("OPTIONS HTTP://a:80", "*"),
        ("OPTIONS http://a?", "/?"),
        ("OPTIONS http://a/b", "/b"),
        ("OPTIONS /", "/"),
        ("OPTIONS *", "*"),
        ("GET http://a", "/"),
        ("OPTIONS https://a", "*"),
    ];
    let mut client = Client::connect(app.addr()).await;
    // All at once: the targets have to be told apart in their order.
    let all = targets.map(|(line, _)| format!("{line} HTTP/1.1\r\nhost: a\r\n\r\n"));
    client.send_raw(all.concat().as_bytes()).await;
    for (line, _) in targets {
        assert_eq!(client.answer().await.status, 200, "{line}");
    }
    let requests = backend.requests();
    let seen: Vec<_> = requests.iter().map(|request| &*request.target).collect();
    assert_eq!(
        seen,
        targets.map(|(_, target)| target),
        "RFC 9112 §3.2.4: a target without a path is `*`"
    );
}

#[tokio::test]
async fn an_ipv6_zone_in_host_passes() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    for host in ["[fe80::1%25eth0]", "[fe80::1%25en-1.2_~]:8080"] {
        let request = Request::get("/a").header("host", host);
        let answer = Client::connect(app.addr()).await.call(&request).await;
        assert_eq!(answer.status, 200, "RFC 6874: {host}");
        let request = H2Request::get(format!("http://{host}/a"));
        let mut h2 = H2::connect(app.addr()).await;
        let answer = h2.call(request.body(full("")).expect("a request")).await;
        assert_eq!(answer.head.status(), 200, "over HTTP/2: {host}");
        let requests = backend.requests();
        let heads = requests.iter().rev().take(2);
        for head in heads.map(|request| String::from_utf8_lossy(&request.raw_head)) {
            let line = format!("host: {host}\r\n");
            assert!(head.contains(&line), "it is unchanged: {head}");
        }
    }
    for host in [
        "[fe80::1%eth0]",
        "[fe80::1%25]",
        "[fe80::1%25e%20]",
        "[fe80::1%25e/x]",
        "[%25eth0]",
        "fe80%25eth0",
    ] {
        let request = Request::get("/a").header("host", host);
        let answer = Client::connect(app.addr()).await.call(&request).await;
        assert_eq!(answer.error(), (400, "bad_request"), "{host}");
    }
}
