//! `[limits]` and `[timeouts]`: how much Seriatim takes from clients, and how long it waits.
//!
//! Invariant: `max_buffered` is at least `max_body`. The limits are enforced by the code that reads
//! clients, not here.

use std::time::Duration;

use super::option::options;
use super::reader::ConfigTable;
use super::value_kind::{DurationIn, HOUR, IntegerIn, MS, SECOND, SizeFrom, WEEK, ZeroOrDuration};

options! {
    /// How much Seriatim takes from clients.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Limits in "limits" {
        /// The largest request body, in bytes, that is read before the lock is taken, for its session or for a once
        /// id; the limit holds for the body as it is sent and for the decoded body. A larger body gets 413. Other
        /// bodies may have any size.
        max_body: usize = 10 << 20, SizeFrom(1), example "\"1MiB\"", Live;
        /// The memory for all request bodies together, in bytes: those that are read for a session
        /// and those that are read ahead. When it is full, the oldest body that is still arriving, or
        /// whose turn waits in the queue, gets 503 `overloaded`; if there is none, the new body does.
        /// Reading ahead stops at half of it. At least `max_body`.
        max_buffered: usize = 256 << 20, SizeFrom(1), example "\"1GiB\"", Live;
        /// Bodies with a `content-length` up to this number of bytes are read completely before the
        /// turn asks for its lock, so a slow client blocks nobody. Larger bodies, and bodies without
        /// a length, are sent while the lock is held. 0: the turn always asks for its lock first. A
        /// body that holds the id is always read first, up to `max_body`.
        read_before_lock: usize = 64 << 10, SizeFrom(0), example "\"1MiB\"", Live;
        /// The minimum upload speed, in bytes per second. It applies to bodies that are read for the
        /// id, or whose request holds a lock, until the response begins. A slower client gets 408
        /// when it is `timeouts.request_body` late. 0: no minimum.
        min_body_rate: usize = 240, SizeFrom(0), example "\"1KiB\"", Live;
        /// The longest user id or session id, in bytes. A longer one gets 400.
        max_id_bytes: usize = 512, SizeFrom(1), example "128", Live;
        /// The most client connections at the same time. One more gets 503; with TLS it is closed.
        max_connections: usize = 10_000, IntegerIn(1..=1 << 20), example "500", Restart;
    }
}

options! {
    /// How long Seriatim waits for clients and backends.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Timeouts in "timeouts" {
        /// The maximum time for the head of a request, from its first byte; for the first request of a
        /// connection, from the beginning of the connection. Then 408; over HTTP/2 the connection is
        /// closed.
        request_head: Duration = SECOND * 10, DurationIn(MS..=HOUR), example "\"5s\"", Restart;
        /// The maximum time without a new byte of the request body, until the response begins; then
        /// 408.
        request_body: Duration = SECOND * 30, DurationIn(MS..=HOUR), example "\"1m\"", Live;
        /// The maximum time for the whole request body, until the response begins; then 408. It
        /// applies to bodies that are read for the id, or whose request holds a lock. Time that a slow
        /// backend takes doesn't count.
        request_body_total: Duration = SECOND * 300, DurationIn(MS..=WEEK), example "\"1h\"", Live;
        /// The maximum time for connecting to the backend, TLS included; then 504.
        connect: Duration = SECOND * 5, DurationIn(MS..=HOUR), example "\"1s\"", Live;
        /// The maximum time until the backend's response begins, once the backend has the whole
        /// request; then 504.
        response_head: Duration = SECOND * 300, DurationIn(MS..=WEEK), example "\"10m\"", Live;
        /// The maximum time without a byte in either direction after a response has begun; then the
        /// response is aborted. Longer than any `settle`.
        idle_stream: Duration = SECOND * 300, DurationIn(MS..=WEEK), example "\"10m\"", Live;
        /// How long a client's connection is kept without a request. If a load balancer keeps its
        /// connections to Seriatim, this must be longer than its own limit.
        keep_alive: Duration = SECOND * 620, DurationIn(MS..=WEEK), example "\"75s\"", Live;
        /// The maximum time in which a client's machine answers nothing, neither what is sent to it nor the
        /// probes that are sent while nothing else is; then the client counts as disconnected. Over
        /// HTTP/2, the client itself has to answer a PING in this time. 0: the limits of the system.
        client_unreachable: Option<Duration> = Some(SECOND * 30),
            ZeroOrDuration {
                range: SECOND..=HOUR,
                why: "the kernel counts these times in whole seconds",
            },
            example "\"1m\"", Restart;
        /// The maximum time for turns to end after SIGTERM; then they are aborted.
        drain: Duration = SECOND * 30, DurationIn(MS..=HOUR), example "\"5m\"", Live;
    }
}

impl Limits {
    /// Reports a memory limit that has no room for the largest body.
    pub(super) fn check(&self, table: &ConfigTable<'_>) {
        if self.max_buffered < self.max_body && !table.is_wrong("max_body") {
            let why = format!(
                "must be at least max_body, which is {} bytes: a larger body could not be read",
                self.max_body
            );
            table.note("max_buffered", why);
        }
    }
}
