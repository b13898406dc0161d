//! A connection that speaks HTTP/1, screened.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;

use bytes::{BufMut, Bytes, BytesMut};
use http::Response;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::gate::{Gate, Screened};
use super::screen::Screen;
use super::stream::Stream;
use super::{Alarm, Connection, Serve, Unfit};
use crate::wire::{Bounds, Ended};

/// What hyper may hold of a connection in each direction, in bytes: the largest head that passes
/// the screen, and a little. hyper's own four hundred thousand would be a lot for each of many
/// clients that send much and read nothing.
const MAX_BUFFER: usize = 72 * 1024;

/// Serves it until it is over, and says whether it ended as its protocol says. `gone` resolves when
/// the client is; `sever` cuts it, whoever has it.
pub(super) async fn serve<H: Serve>(
    stream: Stream,
    connection: Connection<'_, H>,
    mut gone: Pin<&mut (impl Future<Output = ()> + Send)>,
    sever: impl FnOnce() + Send,
) -> bool {
    let Connection {
        handler,
        mut client,
        settings,
        head_due,
        mut drain,
        early,
    } = connection;
    let screen = Screen::within(&settings.room);
    let (screened, gate) = Screened::new(stream, early, screen, head_due, settings.request_head);
    client.gate = Some(gate.clone());
    let (bounds, ip) = (client.bounds.clone(), client.ip);
    let service = {
        let (handler, gate) = (handler.clone(), gate.clone());
        service_fn(move |request| {
            let serving = handler.clone().serve(client.clone(), request);
            let gate = gate.clone();
            async move {
                let response = serving.await;
                gate.answered(response.status());
                Ok::<_, Infallible>(response)
            }
        })
    };
    let mut alarm = Alarm::default();
    let mut stopping = pin!({
        let mut drain = drain.clone();
        async move { drain.draining().await }
    });
    let mut told_to_stop = false;
    let served = {
        let mut conn = pin!(
            http1::Builder::new()
                // An answer that passes through gets nothing added.
                .auto_date_header(false)
                .preserve_header_case(true)
                .max_buf_size(MAX_BUFFER)
                .serve_connection(TokioIo::new(screened), service)
                .with_upgrades()
        );
        let mut aborting = pin!(drain.aborting());
        // What still serves is dropped behind this, and can see the reason.
        let end = |why| {
            bounds.end(why);
            Poll::Ready(Err(why))
        };
        poll_fn(|cx| {
            loop {
                // First, because nothing may move once the bounds are reached.
                if let Some(why) = bounds.reached(Instant::now()) {
                    return end(why);
                }
                if let Poll::Ready(result) = conn.as_mut().poll(cx) {
                    return Poll::Ready(Ok(result));
                }
                if let Some(refused) = gate.take_refused() {
                    let response = handler.refuse(ip, &refused);
                    // It would be part of an answer that ends with the connection.
                    if !bounds.close_is_end() {
                        gate.answer(in_bytes(&response));
                    }
                    // What runs comes to its end; then the stream is closed, with the answer.
                    conn.as_mut().graceful_shutdown();
                    continue;
                }
                if gone.as_mut().poll(cx).is_ready() {
                    return end(Ended::PeerGone);
                }
                if told_to_stop {
                    if aborting.as_mut().poll(cx).is_ready() {
                        return end(Ended::Aborted);
                    }
                } else if stopping.as_mut().poll(cx).is_ready() {
                    told_to_stop = true;
                    conn.as_mut().graceful_shutdown();
                    continue;
                }
                if alarm.poll(cx, || due(&bounds, &gate)).is_pending() {
                    return Poll::Pending;
                }
                if gate.head_due().is_some_and(|due| Instant::now() >= due) {
                    if gate.is_silent() {
                        return end(Ended::Silent);
                    }
                    gate.refuse(Unfit::TooSlow);
                }
            }
        })
        .await
    };
    match served {
        Ok(Ok(())) => {
            if gate.is_tunnel() {
                let aborting = pin!(drain.aborting());
                watch_tunnel(&gate, &bounds, alarm, aborting, sever).await;
            }
            true
        }
        Ok(Err(error)) => {
            tracing::debug!(?ip, %error, "connection ended with an error");
            false
        }
        Err(why) => {
            tracing::debug!(?ip, ?why, "connection ended");
            false
        }
    }
}

/// Keeps the bounds of a connection that carries something else by now, until nobody has it any more.
async fn watch_tunnel(
    gate: &Gate,
    bounds: &Bounds,
    mut alarm: Alarm,
    mut aborting: Pin<&mut (impl Future<Output = ()> + Send)>,
    sever: impl FnOnce(),
) {
    let ended = poll_fn(|cx| {
        if gate.poll_gone(cx).is_ready() {
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
        poll_fn(|cx| gate.poll_gone(cx)).await;
    }
}

/// When something is to be looked at: the connection's bounds, or the head that is coming in.
fn due(bounds: &Bounds, gate: &Gate) -> Option<Instant> {
    bounds.due().into_iter().chain(gate.head_due()).min()
}

/// An answer as it stands on the wire. It is the last one of its connection.
pub(super) fn in_bytes(response: &Response<Bytes>) -> Bytes {
    let status = response.status();
    let mut bytes = BytesMut::new();
    let reason = status.canonical_reason().unwrap_or_default();
    bytes.put_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).as_bytes());
    for (name, value) in response.headers() {
        bytes.put_slice(name.as_str().as_bytes());
        bytes.put_slice(b": ");
        bytes.put_slice(value.as_bytes());
        bytes.put_slice(b"\r\n");
    }
    bytes.put_slice(b"connection: close\r\n\r\n");
    bytes.put_slice(response.body());
    bytes.freeze()
}
