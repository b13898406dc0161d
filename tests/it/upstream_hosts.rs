//! `upstream_host`: which host the requests for a backend name.

use crate::support::app::{App, CHAT};
use crate::support::backend::Backend;
use crate::support::client::{Client, Request};
use crate::support::h2::{Server, whole};

/// The headers `host` and `x-forwarded-host` of the last request that the backend got.
fn hosts(backend: &Backend) -> [String; 2] {
    let request = backend.requests().pop().expect("a request");
    ["host", "x-forwarded-host"].map(|name| {
        let values = request.headers.iter().filter(|(known, _)| known == name);
        let values: Vec<_> = values.map(|(_, value)| &**value).collect();
        values.join(" and ")
    })
}

/// Sends a GET that names `client.example`.
async fn get(app: &App, path: &str) {
    let request = Request::get(path).header("host", "client.example");
    let answer = Client::connect(app.addr()).await.call(&request).await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
}

#[tokio::test]
async fn a_backend_behind_virtual_hosts_gets_its_own_host() {
    let (first, second) = (
        Backend::start("plain:ok").await,
        Backend::start("plain:ok").await,
    );
    let own = |backend: &Backend| [backend.addr().to_string(), "client.example".into()];
    let clients = ["client.example", "client.example"].map(str::to_owned);
    let routes = |first_route: &str| {
        format!(
            "[[routes]]\nname = \"one\"\npath = \"/one\"\nlock = false\nupstream = \"{0}\"\n{first_route}\n\
             [[routes]]\nname = \"two\"\npath = \"/two\"\nlock = false\nupstream = \"{0}\"\n\
             [[routes]]\nname = \"three\"\npath = \"/three\"\nlock = false\n{first_route}\n{CHAT}",
            second.url()
        )
    };

    let app = App::in_memory(&first, &routes("upstream_host = \"upstream\""));
    get(&app, "/x").await;
    assert_eq!(hosts(&first), clients, "by default it gets the client's");
    get(&app, "/one").await;
    assert_eq!(hosts(&second), own(&second), "a route may have its own");
    get(&app, "/two").await;
    assert_eq!(hosts(&second), clients, "which is no other route's");
    get(&app, "/three").await;
    assert_eq!(hosts(&first), own(&first), "also without its own upstream");

    let config = format!(
        "upstream_host = \"upstream\"\n{}",
        routes("upstream_host = \"client\"")
    );
    let app = App::in_memory(&first, &config);
    get(&app, "/x").await;
    assert_eq!(hosts(&first), own(&first), "the top level's");
    get(&app, "/one").await;
    assert_eq!(hosts(&second), clients, "a route overrides it");
    get(&app, "/two").await;
    assert_eq!(hosts(&second), own(&second), "or has it, too");
    get(&app, "/three").await;
    assert_eq!(hosts(&first), clients, "also without its own upstream");
    let mut client = Client::connect(app.addr()).await;
    client.send_raw(b"GET /x HTTP/1.0\r\n\r\n").await;
    client.answer().await;
    let itself = first.addr().to_string();
    assert_eq!(
        hosts(&first),
        [itself.clone(), itself],
        "a client that names no host changes nothing"
    );
}

#[tokio::test]
async fn an_http2_backend_gets_its_own_authority() {
    let server = Server::start(|request| async move {
        let authority = request.uri().authority().map(ToString::to_string);
        let forwarded = request.headers()["x-forwarded-host"].to_str();
        let forwarded = forwarded.expect("text").to_owned();
        let text = format!("{} for {forwarded}", authority.unwrap_or_default());
        http::Response::new(whole(text))
    })
    .await;
    let upstream = server.url();
    let config = format!("upstream_host = \"upstream\"\n{CHAT}");
    let app = App::start(&upstream, "memory:", "", &config);
    let request = Request::get("/").header("host", "client.example");
    let answer = Client::connect(app.addr()).await.call(&request).await;
    let own = upstream.trim_start_matches("h2c://");
    assert_eq!(answer.text(), format!("{own} for client.example"));
}
