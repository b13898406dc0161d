//! Seriatim, a sidecar reverse proxy that runs the turns of each AI chat session one at a time.
//!
//! # Layers
//!
//! A module uses modules below it, never above it. `tests/it/architecture.rs` has the exact table.
//!
//! ```text
//! cli                              commands and their arguments
//! app                              starts and stops everything
//! admin   proxy    reload          operators, the path of a request, new configurations
//! answer                           kept answers of turns
//! listen  lock     trace           client connections, locks in the store, spans
//! http2                            HTTP/2 of clients, with HTTP/1's rules for fields
//! http1                            HTTP/1 of clients
//! service config   journal         the interface to HTTP, options, recent events
//! wire    key      pem_files       the bytes of one connection, session keys and templates, certificates
//! cipher                           encryption with a key from a file
//! metrics redact outcome budget deadline drain secret logging client_tls dial http_syntax header_names
//! ```
//!
//! # The path of a request
//!
//! 1. [`listen`] accepts the connection. `http1` or `http2` validates the request's bytes and passes the
//!    request to the worker's [`proxy::Proxy`].
//! 2. The proxy selects the first route of the [`config`] that matches the request.
//! 3. The proxy reads the user id and the session id, from the body only if necessary, and makes the
//!    session's [`key`].
//! 4. [`lock`] acquires the lock with this key, waits for it in a queue, or refuses.
//! 5. The proxy sends the request to the backend once, with the lock's fence and the turn's tag in headers.
//! 6. The response streams back without buffering. Its body owns the lock.
//! 7. When the backend's response has ended, the lock is released. Only then does the client see the end.
//!
//! The proxy reports once how each request ended: to the log ([`logging`]), to [`metrics`], to the
//! [`journal`] and to [`trace`]. [`admin`] shows this to operators, who change locks through
//! [`lock::Operator`].
//!
//! # Invariants
//!
//! - At most one turn of a session is between "request sent to the backend" and "response ended", as long as
//!   the store keeps its promises.
//! - No byte moves after a turn's monotonic [`deadline`], whether or not the store is reachable: [`wire`]
//!   checks it at every write.
//! - No lock outlives its turn. The handler's future owns the turn first, the response's body later. Dropping
//!   either closes the backend's request and then releases the lock, unless the route lets turns go on
//!   without their client.
//! - Waiting turns are served in order of arrival. Messages only speed this up: a lost message costs time and
//!   nothing else.
//! - The proxy never reads another session than the backend does: an ambiguous request is refused.

pub mod admin;
pub mod answer;
pub mod app;
pub mod budget;
pub mod cipher;
pub mod cli;
pub mod client_tls;
pub mod config;
pub mod deadline;
mod dial;
pub mod drain;
mod header_names;
mod http1;
mod http2;
pub mod http_syntax;
pub mod journal;
pub mod key;
pub mod listen;
pub mod lock;
pub mod logging;
pub mod metrics;
pub mod outcome;
pub mod pem_files;
pub mod proxy;
pub mod redact;
pub mod reload;
pub mod secret;
pub mod service;
pub mod timestamp;
pub mod trace;
pub mod wire;

#[cfg(test)]
#[path = "../tests/it/support/time_limit.rs"]
mod time_limit;
