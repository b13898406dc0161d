//! SIGTERM to a process that is at work: what ends in time ends well, the rest is cut and seen to be,
//! and nothing is left behind.

use tempfile::TempDir;

use crate::support::app::{CHAT, is_quiet};
use crate::support::backend::{Backend, event};
use crate::support::client::begin_turn;
use crate::support::process::Process;
use crate::support::redis::Redis;
use crate::support::wait_for;

#[tokio::test(flavor = "multi_thread")]
async fn of_a_hundred_streams_those_end_that_end_in_time_and_the_rest_is_aborted() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let folder = TempDir::new().expect("a folder for the configuration");
    let path = folder.path().join("config.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\nupstream = \"{}\"\n[store]\nurl = \"{}\"\n\
         [timeouts]\ndrain = \"3s\"\n{CHAT}",
        backend.url(),
        redis.url()
    );
    std::fs::write(&path, text).expect("it can be written");
    let process = Process::start(&path);
    let mut streams = Vec::new();
    for n in 0..100 {
        let mut stream = begin_turn(process.addr(), &format!("s{n}"), "gate").await;
        stream.read_until(&event(0)).await;
        streams.push(stream);
    }
    process.signal("TERM");
    wait_for(|| process.told("draining"), "it says that it drains").await;
    for n in 0..80 {
        backend.open_gate(&format!("s{n}"));
    }
    for (n, stream) in streams.iter_mut().enumerate() {
        assert_eq!(
            stream.answer().await.whole,
            n < 80,
            "a turn that ends in time ends well, and one that doesn't is seen to be cut: {n}"
        );
    }
    let (status, events) = process.end();
    assert_eq!(status.code(), Some(0), "stopping is no failure");
    let outcomes = |outcome: &str| {
        let events = events.iter();
        events.filter(|event| event["outcome"] == outcome).count()
    };
    assert_eq!(
        (outcomes("complete"), outcomes("drain_aborted")),
        (80, 20),
        "each of them is told of, with how it ended"
    );
    is_quiet(&redis).await;
    assert_eq!(
        redis.instances().await,
        Vec::<String>::new(),
        "nor the process' own"
    );
    assert_eq!(backend.overlaps(), [], "turns never overlapped");
}
