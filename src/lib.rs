//! Seriatim, a sidecar reverse proxy that lets each chat session of an AI agent through one turn at
//! a time.
//!
//! # The life of a request
//!
//! 1. [`listen`] accepts the connection, and hands the request to its worker's [`proxy::Proxy`].
//! 2. The first route that takes it says whether and how its turns are locked ([`config`]).
//! 3. The user's and the session's id are read from the request, from its body only if need be, and
//!    make the session's [`key`].
//! 4. [`lock`] takes the lock of that name in the store, waits for it in line, or says why not.
//! 5. The request goes to the backend, once, with the fence of its lock.
//! 6. The answer streams back, unbuffered, with the lock inside its body.
//! 7. When the backend's answer is over, the lock is released; then the client sees the end.
//!
//! How each of them ended is told once, by the proxy: to the log ([`logging`]), to what counts
//! ([`metrics`]), to the [`journal`] and to [`trace`]. [`admin`] shows that to operators, and what they do
//! to a lock is [`lock::Operator`]'s.
//!
//! # Invariants
//!
//! - Between "request sent to the backend" and "answer over" a session has one turn at most, as long
//!   as the store keeps its word.
//! - No byte moves after a turn's own monotonic [`deadline`], whether the store can be reached or
//!   not: [`wire`] asks it at every write.
//! - No lock outlives its turn. A turn is owned by the handler's future first and by the answer's
//!   body later; dropping either lets go of the backend and then of the lock, unless its route says
//!   that it goes on without its client.
//! - A turn that waits is served in the order of arrival; a message is a hint, and nothing is lost
//!   with it but time.
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
pub mod secret;
pub mod trace;
