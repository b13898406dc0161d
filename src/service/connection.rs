//! A connection that is ready for its protocol.

use std::net::IpAddr;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::Instant;

use super::client::ClientConnection;
use super::head_budget::HeadBudget;
use crate::drain::DrainWatch;
use crate::wire::{Bounds, Ended};

/// Everything that serves a connection, apart from its stream.
pub(crate) struct ServedConnection<'c, H> {
    /// Answers the requests; each request gets a clone.
    pub(crate) handler: H,
    /// The client; each request gets a clone.
    pub(crate) client: ClientConnection,
    /// How long a request head may take, from its first byte.
    pub(crate) request_head: Duration,
    /// How long a connection without a request is kept.
    pub(crate) idle: Duration,
    /// The memory for large heads and concurrent requests.
    pub(crate) heads: &'c HeadBudget,
    /// When the first request head must be complete.
    pub(crate) first_head_due: Instant,
    /// Says when to take no more requests, and when to abort those that run.
    pub(crate) drain: DrainWatch,
    /// The bytes that have been read from the stream already.
    pub(crate) early: BytesMut,
}

/// Two futures that resolve when draining begins, and when the requests that still run must be aborted.
pub(crate) fn drain_signals(
    drain: &DrainWatch,
) -> (
    impl Future<Output = ()> + Send + use<>,
    impl Future<Output = ()> + Send + use<>,
) {
    let (mut draining, mut aborting) = (drain.clone(), drain.clone());
    (async move { draining.draining().await }, async move {
        aborting.aborting().await
    })
}

/// Notes and logs how a connection ended: by its protocol, or for a reason of this side. Returns
/// whether the end was orderly.
pub(crate) fn note_end(
    end: Result<hyper::Result<()>, Ended>,
    bounds: &Bounds,
    ip: Option<IpAddr>,
) -> bool {
    match end {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::debug!(?ip, %error, "connection failed");
            false
        }
        Err(why) => {
            tracing::debug!(?ip, ?why, "connection ended");
            bounds.end(why);
            false
        }
    }
}
