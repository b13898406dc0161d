//! A backend closes a kept connection just when a request is sent on it: which requests are sent again.

use std::sync::{Arc, Mutex};

use tokio::io::AsyncWriteExt;

use crate::support::app::{App, CHAT};
use crate::support::client::{Answer, Client, Request};
use crate::support::raw::{RawBackend, read_head};

/// What a connection does with a request.
#[derive(Clone, Copy)]
enum Reaction {
    /// Sends a response and stays open.
    Answers,
    /// Closes without a byte.
    Closes,
    /// Sends a part of the first line and closes.
    BreaksOff,
}

use Reaction::{Answers, BreaksOff, Closes};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Sends a GET, and then `request`, over one connection of the client. `reactions` has a list for each
/// connection of the backend. Gives the response to `request`, and how often the backend got it.
async fn second(request: &Request, reactions: &'static [&'static [Reaction]]) -> (Answer, usize) {
    let seen = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&seen);
    let backend = RawBackend::start(move |mut socket, number| {
        let seen = Arc::clone(&counted);
        async move {
            for reaction in reactions.get(number).copied().unwrap_or_default() {
                if read_head(&mut socket).await.is_none() {
                    return;
                }
                *seen.lock().expect("no panic") += 1;
                // An error means that the proxy has left.
                let _ = match reaction {
                    Answers => socket.write_all(OK).await,
                    Closes => return,
                    BreaksOff => return drop(socket.write_all(&OK[..10]).await),
                };
            }
            // Keeps the connection open as long as the proxy does.
            read_head(&mut socket).await;
        }
    })
    .await;
    let app = App::start(&backend.url(), "memory:", "", CHAT);
    let mut client = Client::connect(app.addr()).await;
    assert_eq!(client.get("/first").await.status, 200, "the first one");
    let answer = client.call(request).await;
    let seen = *seen.lock().expect("no panic");
    (answer, seen - 1)
}

#[tokio::test]
async fn an_idempotent_request_without_a_lock_is_sent_once_more() {
    for method in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"] {
        let request = Request::new(method, "/second");
        let (answer, sent) = second(&request, &[&[Answers, Closes], &[Answers]]).await;
        assert_eq!(
            (answer.status, sent),
            (200, 2),
            "{method}: the backend had closed the connection (RFC 9110 §9.2.2)"
        );
    }
}

#[tokio::test]
async fn a_body_of_no_bytes_is_no_body() {
    let request = Request::new("PUT", "/second").header("content-length", "0");
    let (answer, sent) = second(&request, &[&[Answers, Closes], &[Answers]]).await;
    assert_eq!(
        (answer.status, sent),
        (200, 2),
        "clients send this length with a PUT that has no body"
    );
}

#[tokio::test]
async fn what_may_have_an_effect_twice_is_sent_once() {
    for (what, request) in [
        ("POST isn't idempotent", Request::post("/second")),
        ("nor is PATCH", Request::new("PATCH", "/second")),
        ("a body", Request::new("PUT", "/second").body("x")),
        ("a turn", Request::turn("s1", "plain:x")),
        (
            "an upgrade",
            Request::get("/second")
                .header("connection", "upgrade")
                .header("upgrade", "x"),
        ),
    ] {
        let (answer, sent) = second(&request, &[&[Answers, Closes], &[Answers]]).await;
        assert_eq!(
            (answer.error(), sent),
            ((502, "upstream_unreachable"), 1),
            "{what}"
        );
    }
}

#[tokio::test]
async fn a_turn_is_never_repeated_whatever_its_method() {
    let route = "[[routes]]\nname = \"get\"\npath = \"/turn\"\nsession_id = [\"{header:x-s}\"]\n";
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&seen);
    let backend = RawBackend::start(move |mut socket, _| {
        let noted = Arc::clone(&noted);
        async move {
            while let Some(head) = read_head(&mut socket).await {
                let is_turn = head.starts_with("GET /turn");
                noted.lock().expect("no panic").push(is_turn);
                if is_turn {
                    return;
                }
                // An error means that the proxy has left.
                let _ = socket.write_all(OK).await;
            }
        }
    })
    .await;
    let app = App::start(&backend.url(), "memory:", "", route);
    let mut client = Client::connect(app.addr()).await;
    assert_eq!(client.get("/first").await.status, 200, "the first one");
    let turn = client.call(&Request::get("/turn").header("x-s", "1")).await;
    assert_eq!(turn.error(), (502, "upstream_unreachable"), "{turn:?}");
    assert_eq!(
        *seen.lock().expect("no panic"),
        [false, true],
        "the backend gets a turn once"
    );
}

#[tokio::test]
async fn a_request_is_sent_twice_at_most_and_only_if_no_response_has_begun() {
    let get = Request::get("/second");
    let broken = (502, "upstream_unreachable");
    let (answer, sent) = second(&get, &[&[Answers, Closes], &[Closes], &[Answers]]).await;
    assert_eq!((answer.error(), sent), (broken, 2), "once more, no oftener");
    let (answer, sent) = second(&get, &[&[Answers, BreaksOff], &[Answers]]).await;
    assert_eq!((answer.error(), sent), (broken, 1), "a byte has arrived");
    let close = Request::get("/first").header("connection", "close");
    let (answer, sent) = second(&close, &[&[Answers], &[Answers]]).await;
    assert_eq!((answer.status, sent), (200, 1), "a good one is sent once");
}
