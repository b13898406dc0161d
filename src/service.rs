//! The interface between the HTTP servers and the handler of requests: the trait [`Serve`], the client of
//! a request, the reasons to refuse a request, and the memory that request heads may take.
//!
//! Invariant: nothing here knows a socket, the bytes of a protocol, a route or a lock. `listen`, `http1`
//! and `http2` are the servers; `proxy`, `app` and the demo agent have handlers.

pub use bad_request::{BadRequest, RejectedRequest, RequestLine};
pub use client::{ClientConnection, InterimResponses};
pub use handler::{DEFAULT_IDLE, FnService, Serve};
pub use head_budget::HeadBudget;

pub(crate) use client::ClientLink;
pub(crate) use connection::{ServedConnection, drain_signals, note_end};
pub(crate) use head_budget::{HEAD_BUDGET_EXCEEDED, HeadReservation};

mod bad_request;
mod client;
mod connection;
mod handler;
mod head_budget;
