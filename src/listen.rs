//! Sockets and connections of clients: HTTP/1 and HTTP/2, over TCP, TLS or a Unix socket. An
//! implementation of [`Serve`] answers the requests. Routes and locks are not known here.
//!
//! Invariant: when a connection is over, for any reason, everything that served it is dropped at once:
//! the handler's future, or the response's body. A handler gives back what it holds in `Drop`. Each
//! request of an HTTP/2 connection ends in this way, too.

pub(crate) use crate::http1::validate::check_head;
pub use crate::service::{
    BadRequest, ClientBody, ClientConnection, FnService, HeadBudget, InterimResponses,
    RejectedRequest, RequestLine, Serve,
};
pub use accept::{AcceptedConnection, ListenEndpoint, Listener};
pub use limit::{ConnectionLimit, ConnectionPermit};
pub use serve::{ServeSettings, serve};
pub use tls::TlsServer;

mod accept;
mod limit;
mod serve;
pub mod shed;
mod stream;
mod tls;
