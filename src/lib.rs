//! Seriatim, a sidecar reverse proxy that lets each chat session of an AI agent through one turn at a
//! time.
//!
//! # The path of a request
//!
//! 1. [`listen`] accepts the connection. `http1` or `http2` validates the request's bytes, and hands the
//!    request to the worker's [`proxy::Proxy`].
//! 2. The first route that matches the request says whether and how its turns are locked ([`config`]).
//! 3. The user's and the session's id are read from the request, and from its body only if necessary.
//!    They make the session's [`key`].
//! 4. [`lock`] acquires the session's lock in the store, waits for it in the queue, or says why not.
//! 5. The request goes to the backend, once, with the fence of its lock.
//! 6. The response streams back, unbuffered, with the lock inside its body.
//! 7. When the backend's response is over, the lock is released; then the client sees the end.
//!
//! The proxy records once how each request ended: in the log ([`logging`]), in [`metrics`], in the
//! [`journal`] and in [`trace`]. [`admin`] shows this to operators; [`lock::Operator`] does what they ask
//! for.
//!
//! # Invariants
//!
//! - Between "request sent to the backend" and "response over" a session has one turn at most, as long
//!   as the store keeps its word.
//! - No byte moves after a turn's own monotonic [`deadline`], whether or not the store can be reached:
//!   [`wire`] checks the deadline at every write.
//! - No lock outlives its turn. The handler's future owns the turn first, and the response's body later.
//!   Dropping either leaves the backend and then releases the lock, unless the route lets the turn go on
//!   without its client.
//! - Turns that wait are served in the order of arrival. A message is a hint: losing one costs time and
//!   nothing else.
//! - The proxy never sees another session than the backend does: what could be read in two ways is
//!   refused.

pub mod cli;

pub mod app;

pub mod drain;
pub mod reload;

mod http1;
mod http2;
pub mod listen;
pub mod service;
pub mod wire;

pub mod proxy;

pub mod admin;

pub mod key;

pub mod budget;
pub mod client_tls;
pub mod deadline;
pub mod http_syntax;
pub mod lock;

pub mod config;
pub mod journal;
pub mod logging;
pub mod metrics;
pub mod outcome;
pub mod secret;
pub mod trace;
