//! No byte after a deadline: on a connection of its own, and on one that many requests share.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::*;
use crate::deadline::Deadline;

fn pair() -> (Wire, Bounds, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("two sockets");
    let bounds = Bounds::default();
    let wire = Wire::new(ours, bounds.clone()).expect("a live socket");
    (wire, bounds, theirs)
}

fn passed() -> Deadline {
    Deadline::at(Instant::now())
}

fn far() -> Deadline {
    Deadline::at(Instant::now() + Duration::from_secs(60))
}

#[tokio::test]
async fn no_byte_is_written_after_the_deadline() {
    crate::time_limit::limit_this_test();
    let (mut wire, bounds, _theirs) = pair();
    bounds.stop_at(far());
    wire.write_all(b"a").await.expect("it hasn't passed");
    bounds.stop_at(passed());
    let error = wire.write_all(b"b").await.expect_err("it has passed");
    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "and says why");
    bounds.lift_deadline();
    wire.write_all(b"c").await.expect("it was lifted");
}

#[tokio::test]
async fn the_deadline_of_any_request_ends_its_connection() {
    crate::time_limit::limit_this_test();
    let (mut wire, bounds, _theirs) = pair();
    let (one, other) = (bounds.for_stream(), bounds.for_stream());
    one.stop_at(far());
    other.stop_at(passed());
    wire.write_all(b"a")
        .await
        .expect_err("the other's has passed");
    other.retire_deadline();
    wire.write_all(b"a")
        .await
        .expect("nothing is left to write of a response that was cut");
    other.stop_at(passed());
    drop(other);
    wire.write_all(b"a").await.expect("nor of one that is gone");
    one.stop_at(passed());
    one.keep_deadline();
    wire.write_all(b"a")
        .await
        .expect_err("unless it is not known where its bytes are");
    drop(one);
    wire.write_all(b"a").await.expect_err("and that for ever");
}

#[tokio::test]
async fn what_a_full_socket_has_held_back_is_not_written_after_the_deadline() {
    crate::time_limit::limit_this_test();
    let (mut wire, bounds, theirs) = pair();
    let stream = bounds.for_stream();
    stream.stop_at(far());
    // Until the socket is full.
    let full = vec![0; 1 << 20];
    let blocked = tokio::time::timeout(Duration::from_millis(50), wire.write_all(&full)).await;
    assert!(blocked.is_err(), "the socket is full");
    stream.stop_at(passed());
    stream.retire_deadline();
    drop(stream);
    let mut sink = vec![0; 1 << 20];
    theirs.readable().await.expect("there is something");
    while theirs.try_read(&mut sink).is_ok() {}
    wire.write_all(b"a")
        .await
        .expect_err("it may be the rest of the response that was cut");
    wire.flush().await.expect("nothing is held back any more");
    wire.write_all(b"a")
        .await
        .expect("so what comes now is another's");
}
