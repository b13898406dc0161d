//! HTTP/1 for clients: one connection, whose requests are validated before hyper reads them.

use std::convert::Infallible;
use std::error::Error;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use http::header::EXPECT;
use http::uri::PathAndQuery;
use http::{Method, Request, Response, Uri};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::deadline::Alarm;
use crate::http_syntax;
use crate::service::{BadRequest, ClientBody, ClientConnection, Serve, ServedConnection, note_end};
use crate::wire::{Bounds, Ended};
use connection_state::ConnectionState;
use unread_rest::DiscardedBody;
use validate::{OptionsTarget, RequestValidator};
use validated_io::ValidatedIo;

mod connection_state;
#[cfg(test)]
mod tests;
mod unread_rest;
pub(crate) mod validate;
mod validated_io;

/// How many bytes hyper may buffer of a connection in each direction: the largest head that passes
/// validation, and a little more. hyper's default of 400 KiB would be much for each of many clients
/// that send a lot and read nothing.
const MAX_BUFFER: usize = 72 * 1024;

/// Serves a connection until it is over, and returns whether its end was orderly. `gone` resolves when
/// the client has disconnected; `sever` shuts the connection down, also if a tunnel owns it by then.
pub(crate) async fn serve<H: Serve>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    connection: ServedConnection<'_, H>,
    mut gone: Pin<&mut (impl Future<Output = ()> + Send)>,
    sever: impl FnOnce() + Send,
) -> bool {
    let validator = RequestValidator::new(connection.heads);
    let state = ConnectionState::new(&connection);
    let ServedConnection {
        handler,
        mut client,
        mut drain,
        early,
        ..
    } = connection;
    let io = ValidatedIo::new(stream, early, validator, state.clone());
    client.link = Some(state.link().clone());
    let (bounds, ip) = (client.bounds.clone(), client.ip);
    let mut alarm = Alarm::default();
    let mut abort = drain.clone();
    let (mut draining, mut aborting) = (pin!(drain.draining()), pin!(abort.aborting()));
    let mut is_draining = false;
    let mut discarded = None;
    let end = {
        let service = request_service(handler.clone(), client, state.clone());
        let conn = builder().serve_connection(TokioIo::new(io), service);
        let mut conn = pin!(conn.with_upgrades());
        let end = poll_fn(|cx| {
            let mut was_polled = false;
            loop {
                // First, because no byte may move once a deadline has passed. Silence is judged when the connection had
                // its turn: if the process was stopped, it has bytes to write that ended the silence.
                match bounds.reached(Instant::now()) {
                    Some(Ended::Silent) if !was_polled => {}
                    Some(why) => return Poll::Ready(Err(why)),
                    None => {}
                }
                if let Poll::Ready(result) = conn.as_mut().poll(cx) {
                    return Poll::Ready(Ok(result));
                }
                // Not before the response, which says what becomes of the connection.
                if state.has_response_begun()
                    && let Some(rest) = state.link().poll_unread(cx)
                {
                    // Dropping it closes the connection, as its response says.
                    discarded = (!state.is_last_request()).then(|| DiscardedBody::new(rest));
                    continue;
                }
                let read_away = discarded.as_mut().map(|rest| rest.poll(cx));
                if let Some(Poll::Ready(is_over)) = read_away {
                    if !is_over {
                        state.set_lingered();
                    }
                    discarded = None;
                    continue;
                }
                if let Some(rejected) = state.take_rejected() {
                    let response = handler.refuse(ip, &rejected);
                    // Where the close ends a response, the client would take it for a part of the body.
                    if !bounds.is_close_the_end() {
                        state.set_last_response(encode_last_response(&response));
                    }
                    // The running request ends; then the connection is closed with the response.
                    conn.as_mut().graceful_shutdown();
                    continue;
                }
                if gone.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Err(Ended::PeerGone));
                }
                if is_draining {
                    if aborting.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(Err(Ended::Aborted));
                    }
                } else if draining.as_mut().poll(cx).is_ready() {
                    is_draining = true;
                    state.set_draining();
                    discarded = None;
                    conn.as_mut().graceful_shutdown();
                    continue;
                }
                let due = || bounds.due().into_iter().chain(state.head_due()).min();
                ready!(alarm.poll(cx, due));
                was_polled = true;
                if state.head_due().is_some_and(|due| Instant::now() >= due) {
                    if !state.has_head_begun() {
                        return Poll::Ready(Err(Ended::Silent));
                    }
                    state.reject(BadRequest::TooSlow);
                }
            }
        })
        .await;
        // Before the handler's future or the response's body is dropped: it reads the reason.
        note_end(end, &bounds, ip)
    };
    if end && state.is_tunnel() {
        watch_tunnel(&state, &bounds, alarm, aborting.as_mut(), sever).await;
    }
    end
}

fn builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        // The proxy adds nothing to a response that passes through.
        .auto_date_header(false)
        .max_buf_size(MAX_BUFFER);
    builder
}

/// Answers the requests of one connection.
fn request_service<H: Serve>(
    handler: H,
    client: ClientConnection,
    state: ConnectionState,
) -> impl Service<
    Request<Incoming>,
    Response = Response<
        impl Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
    >,
    Error = Infallible,
    Future: Send,
> {
    service_fn(move |mut request: Request<Incoming>| {
        restore_target(&mut request, &state);
        let waits = request.headers().contains_key(EXPECT);
        let mut request = request.map(|body| ClientBody::new(body, state.link(), waits));
        if let Some(names) = state.take_request_names() {
            request.extensions_mut().insert(names);
        }
        // Boxed on its own, because it is large, and would move once more with the future around it.
        let response = Box::pin(handler.clone().serve(client.clone(), request));
        let exchange = state.begin_exchange();
        let state = state.clone();
        // Boxed, because hyper keeps the room of this future for as long as the connection is open.
        Box::pin(async move {
            let mut response = response.await;
            let status = response.status();
            unread_rest::announce(&state, status, response.headers_mut()).await;
            exchange.on_response(response.status());
            if let Some(names) = response.extensions_mut().remove() {
                state.set_response_names(names);
            }
            let response = response.map(|body| body.map_err(move |error| exchange.pass(error)));
            Ok::<_, Infallible>(response)
        })
    })
}

/// Gives an OPTIONS request for the server as a whole the target `*` (RFC 9112 §3.2.4). hyper makes `/` of a
/// target without a path.
fn restore_target<B>(request: &mut Request<B>, state: &ConnectionState) {
    let uri = request.uri();
    let may_be_lost = request.method() == Method::OPTIONS
        && uri.scheme().is_some()
        && uri.path() == "/"
        && uri.query().is_none();
    if may_be_lost && state.next_options_target() == Some(OptionsTarget::Server) {
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = Some(PathAndQuery::from_static("*"));
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
}

/// Enforces the bounds of a connection that has become a tunnel, until its stream is dropped.
async fn watch_tunnel(
    state: &ConnectionState,
    bounds: &Bounds,
    mut alarm: Alarm,
    mut aborting: Pin<&mut (impl Future<Output = ()> + Send)>,
    sever: impl FnOnce(),
) {
    let ended = poll_fn(|cx| {
        if state.poll_stream_dropped(cx).is_ready() {
            return Poll::Ready(None);
        }
        if aborting.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Ended::Aborted));
        }
        let due = alarm.poll(cx, || bounds.due());
        due.map(|()| bounds.reached(Instant::now()))
    });
    if let Some(why) = ended.await {
        bounds.end(why);
        sever();
        poll_fn(|cx| state.poll_stream_dropped(cx)).await;
    }
}

/// The bytes of the last response on a connection.
pub(crate) fn encode_last_response(response: &Response<Bytes>) -> Bytes {
    let mut bytes = BytesMut::new();
    http_syntax::write_head(response.status(), response.headers(), &mut bytes);
    bytes.put_slice(b"connection: close\r\n\r\n");
    bytes.put_slice(response.body());
    bytes.freeze()
}
