//! SIGTERM to a busy process: turns that end in time are complete, the others are visibly cut,
//! and no key is left.

use tempfile::TempDir;

use crate::support::app::{CHAT, wait_until_no_keys};
use crate::support::backend::{Backend, event};
use crate::support::client::begin_turn;
use crate::support::process::Process;
use crate::support::redis::Redis;
use crate::support::wait_for;

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_completes_streams_that_end_in_time_and_aborts_the_others() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let folder = TempDir::new().expect("a folder for the configuration");
    let path = folder.path().join("config.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\nupstream = \"{}\"\n[store]\nurl = \"{}\"\n\
         [timeouts]\ndrain = \"3s\"\n{CHAT}",
        backend.url(),
        redis.url()
    );
    std::fs::write(&path, text).expect("the file is written");
    let process = Process::start(&path);
    let mut streams = Vec::new();
    for n in 0..100 {
        let mut stream = begin_turn(process.addr(), &format!("s{n}"), "gate").await;
        stream.read_until(&event(0)).await;
        streams.push(stream);
    }
    process.signal("TERM");
    wait_for(
        || process.has_logged("draining"),
        "the process logs that it drains",
    )
    .await;
    for n in 0..80 {
        backend.open_gate(&format!("s{n}"));
    }
    for (n, stream) in streams.iter_mut().enumerate() {
        assert_eq!(
            stream.answer().await.whole,
            n < 80,
            "a turn that ends in time is complete, and any other is cut: {n}"
        );
    }
    let (status, events) = process.end();
    assert_eq!(status.code(), Some(0), "a stop exits with 0");
    let outcomes = |outcome: &str| {
        let events = events.iter();
        events.filter(|event| event["outcome"] == outcome).count()
    };
    assert_eq!(
        (outcomes("complete"), outcomes("drain_aborted")),
        (80, 20),
        "each turn is logged with its outcome"
    );
    wait_until_no_keys(&redis).await;
    assert_eq!(
        redis.instances().await,
        Vec::<String>::new(),
        "no key of the instance is left"
    );
    assert_eq!(backend.overlaps(), [], "turns never overlapped");
}
