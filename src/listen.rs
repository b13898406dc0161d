//! Sockets and connections of clients: HTTP/1 and HTTP/2, over TCP, TLS or a Unix socket. Serves whoever
//! implements [`Serve`]; knows no route and no lock.
//!
//! Invariant: when a connection is over, for whatever reason, everything that served it is dropped at
//! once: the handler's future, or the response's body. Whoever must give something back does it in
//! `Drop`. The same holds for each request of an HTTP/2 connection.

pub use crate::service::{
    BadRequest, ClientConnection, FnService, HeadBudget, InterimResponses, RejectedRequest,
    RequestLine, Serve,
};
pub use accept::{AcceptedConnection, ListenEndpoint, Listener};
pub use serve::{ServeSettings, serve};
pub use tls::TlsServer;

mod accept;
mod serve;
pub mod shed;
mod stream;
mod tls;
