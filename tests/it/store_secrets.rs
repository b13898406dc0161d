//! Redis's password: as it is written, and as it changes.

use std::fs;
use std::process::Output;

use crate::support::app::{App, CHAT};
use crate::support::backend::Backend;
use crate::support::client::{Client, turn};
use crate::support::process::run;
use crate::support::redis::Redis;
use crate::support::wait_for_async;

/// A password with every character that means something in a URL.
const HARD: &str = " p@s#s/w?r:d%41%zz中\"\\";

/// [`HARD`], percent-encoded.
const HARD_IN_URL: &str = "%20p%40s%23s%2Fw%3Fr%3Ad%2541%25zz%E4%B8%AD%22%5C";

/// Sets the password that new connections need. The test's own connection stays logged in.
async fn set_password(redis: &Redis, password: &str) {
    redis
        .command(&["CONFIG", "SET", "requirepass", password])
        .await;
}

/// Ends all connections but the test's own.
async fn cut_connections(redis: &Redis) {
    for kind in ["normal", "pubsub"] {
        let kill = ["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"];
        redis.command(&kill).await;
    }
}

async fn status(app: &App) -> u16 {
    turn(app.addr(), "s1", "plain:x").await.status
}

#[tokio::test]
async fn a_new_password_in_the_file_needs_no_restart() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let file = tempfile::NamedTempFile::new().expect("a file");
    let write = |password: &str| fs::write(file.path(), password).expect("written");
    set_password(&redis, HARD).await;
    // Without the line break that an editor adds.
    write(&format!("{HARD}\n"));
    let store = format!("password_file = {:?}", file.path());
    let app = App::start(&backend.url(), &redis.url(), &store, CHAT);
    let served = async || status(&app).await == 200;
    wait_for_async(served, "turns are served with the file's password").await;

    set_password(&redis, "second").await;
    cut_connections(&redis).await;
    let refused = async || status(&app).await == 503;
    wait_for_async(refused, "new connections are refused with the old password").await;
    write("second");
    wait_for_async(served, "turns are served with the file's new password").await;

    set_password(&redis, "third").await;
    fs::remove_file(file.path()).expect("removed");
    cut_connections(&redis).await;
    wait_for_async(refused, "there is no password at all").await;
    let path = file.path().display().to_string();
    let told = [
        "can't log in to the store",
        &path,
        "can't be read: No such file",
    ];
    let is_told = async || {
        let answer = Client::connect(app.admin()).await.get("/readyz").await;
        told.iter().all(|text| answer.text().contains(text))
    };
    wait_for_async(is_told, "the error names the file").await;
    write("third\r\n");
    wait_for_async(served, "the file is back").await;
}

#[tokio::test]
async fn a_password_in_the_url_is_percent_decoded() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    set_password(&redis, HARD).await;
    let url = format!("redis://:{HARD_IN_URL}@{}/0", redis.addr());
    let app = App::start(&backend.url(), &url, "", CHAT);
    let served = async || status(&app).await == 200;
    wait_for_async(served, "turns are served").await;
}

#[test]
fn check_and_run_refuse_the_same_urls_and_say_what_to_write() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().to_str().expect("its name is text");
    // A process that accepted the URL would end here, too, with another error.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let listen = taken.local_addr().expect("its address");
    for (character, encoded) in [("#", "%23"), ("/", "%2F"), ("?", "%3F")] {
        let url = format!("redis://:gehe{character}im@127.0.0.1:6379/0");
        let text = format!(
            "listen = \"{listen}\"\nupstream = \"http://127.0.0.1:8000\"\n[store]\nurl = {url:?}\n"
        );
        fs::write(file.path(), text).expect("written");
        let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
        let checked = run(&["check", "--config", path]);
        let ran = run(&["--config", path]);
        for output in [&checked, &ran] {
            let said = said(output);
            assert!(
                !output.status.success() && said.contains(&format!("write `{encoded}`")),
                "{said}"
            );
            assert!(!said.contains("gehe"), "the password is not shown: {said}");
        }
        assert_eq!(checked.status.code(), ran.status.code(), "one reading");
    }
}
