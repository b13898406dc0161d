//! The interface between the HTTP servers and whoever answers requests: [`Serve`], the client of a
//! request, what is refused, and the memory that request heads may take.
//!
//! Invariant: nothing here knows a socket, a protocol's bytes, a route or a lock. `listen`, `http1` and
//! `http2` serve whoever implements [`Serve`].

pub use bad_request::{BadRequest, RejectedRequest, RequestLine};
pub use client::{ClientConnection, InterimResponses};
pub use handler::{DEFAULT_IDLE, FnService, Serve};
pub use head_budget::HeadBudget;

pub(crate) use client::ClientLink;
pub(crate) use connection::{ServedConnection, note_end};
pub(crate) use head_budget::{HEAD_BUDGET_EXCEEDED, HeadReservation};

mod bad_request;
mod client;
mod connection;
mod handler;
mod head_budget;
