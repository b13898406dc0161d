//! A backend that responds before it has the request, and closes the connection with the rest unread. Its
//! kernel then resets the connection, behind the response.

use tokio::io::AsyncWriteExt;

use crate::support::app::{App, CHAT};
use crate::support::client::{Client, Request};
use crate::support::raw::{RawBackend, read_head};

/// The size of the uploads: more than the buffers between client, proxy and backend hold.
const UPLOAD: usize = 3_000_000;

/// A backend that reads a request's head, sends `response`, and closes at once.
async fn closing_early(response: &'static str) -> (RawBackend, App) {
    let backend = RawBackend::start(move |mut socket, _| async move {
        if read_head(&mut socket).await.is_some() {
            // It fails if the proxy has left.
            let _ = socket.write_all(response.as_bytes()).await;
        }
    })
    .await;
    let app = App::start(&backend.url(), "memory:", "", CHAT);
    (backend, app)
}

#[tokio::test]
async fn the_response_to_an_upload_that_the_backend_does_not_read_arrives_whole() {
    let response = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 6\r\n\r\ndenied";
    let (_backend, app) = closing_early(response).await;
    // Each attempt is a race between the response and the reset.
    for attempt in 0..40 {
        let upload = Request::post("/up").body(vec![b'x'; UPLOAD]);
        let answer = Client::connect(app.addr()).await.call(&upload).await;
        assert!(
            answer.whole && answer.status == 401 && answer.text() == "denied",
            "what the backend has sent reaches the client, attempt {attempt}: {answer:?}"
        );
    }
}

#[tokio::test]
async fn a_response_that_only_the_close_ends_is_not_completed_by_a_reset() {
    let (_backend, app) = closing_early("HTTP/1.0 200 OK\r\n\r\na part").await;
    for attempt in 0..20 {
        let upload = Request::post("/up").body(vec![b'x'; UPLOAD]);
        let answer = Client::connect(app.addr()).await.call(&upload).await;
        assert!(
            !answer.whole || answer.status == 502,
            "nobody knows whether it is whole, attempt {attempt}: {answer:?}"
        );
    }
}
