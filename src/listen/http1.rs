//! A connection that speaks HTTP/1, screened.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;

use bytes::{BufMut, Bytes, BytesMut};
use http::Response;
use http_body_util::BodyExt;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::stream::ClientStream;
use super::validate::Screen;
use super::validated_io::{ConnectionState, ValidatedIo};
use super::{BadRequest, ConnectionAlarm, Serve, ServedConnection};
use crate::wire::{Bounds, Ended};

/// What hyper may hold of a connection in each direction, in bytes: the largest head that passes
/// the screen, and a little. hyper's own four hundred thousand would be a lot for each of many
/// clients that send much and read nothing.
const MAX_BUFFER: usize = 72 * 1024;

/// Serves it until it is over, and says whether it ended as its protocol says. `gone` resolves when
/// the client is; `sever` cuts it, whoever has it.
pub(super) async fn serve<H: Serve>(
    stream: ClientStream,
    connection: ServedConnection<'_, H>,
    mut gone: Pin<&mut (impl Future<Output = ()> + Send)>,
    sever: impl FnOnce() + Send,
) -> bool {
    let ServedConnection {
        handler,
        mut client,
        settings,
        head_due,
        mut drain,
        early,
    } = connection;
    let screen = Screen::within(&settings.room);
    let (screened, gate) = ValidatedIo::new(stream, early, screen, head_due, settings.request_head);
    client.gate = Some(gate.clone());
    let (bounds, ip) = (client.bounds.clone(), client.ip);
    let service = {
        let (handler, gate) = (handler.clone(), gate.clone());
        service_fn(move |request| {
            let serving = handler.clone().serve(client.clone(), request);
            let exchange = gate.exchange();
            async move {
                let response = serving.await;
                exchange.begins(response.status());
                let response = response.map(|body| body.map_err(move |e| exchange.pass(e)));
                Ok::<_, Infallible>(response)
            }
        })
    };
    let mut alarm = ConnectionAlarm::default();
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
                    gate.refuse(BadRequest::TooSlow);
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
    gate: &ConnectionState,
    bounds: &Bounds,
    mut alarm: ConnectionAlarm,
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
fn due(bounds: &Bounds, gate: &ConnectionState) -> Option<Instant> {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::super::{
        self as listen, ClientConnection, FnService, HeadRoom, ListenEndpoint, Listener,
        ServeSettings,
    };
    use super::*;
    use crate::drain;

    #[tokio::test]
    async fn a_connection_that_had_a_large_head_makes_way_when_it_is_idle() {
        let any = ListenEndpoint::Tcp(([127, 0, 0, 1], 0).into());
        let listener = Listener::bind(&any).expect("a free port");
        let address = listener.address().tcp().expect("TCP");
        let (room, (_never, watch)) = (HeadRoom::default(), drain::channel());
        let (settings, serving) = (
            ServeSettings {
                room: room.clone(),
                ..ServeSettings::default()
            },
            watch.clone(),
        );
        tokio::spawn(listener.accept(watch, move |accepted| {
            let (settings, watch) = (settings.clone(), serving.clone());
            tokio::spawn(async move {
                let answer = FnService(|_: ClientConnection, _| async {
                    Response::new(http_body_util::Full::new(Bytes::from_static(b"ok")))
                });
                listen::serve(accepted, &settings, watch, answer).await;
            });
        }));
        let mut client = TcpStream::connect(address).await.expect("a connection");
        let large = "a".repeat(40 << 10);
        for _ in 0..2 {
            let head = format!("GET / HTTP/1.1\r\nhost: a\r\nx-large: {large}\r\n\r\n");
            client.write_all(head.as_bytes()).await.expect("it is read");
            let mut answer = Vec::new();
            while !answer.ends_with(b"ok") {
                let read = client.read_buf(&mut answer).await.expect("an answer");
                assert!(read > 0, "it stays open");
            }
        }
        let mut others = Vec::new();
        let all_fit = async {
            while others.len() < 4096 {
                let mut other = room.take();
                match other.fits_request(0) {
                    true => others.push(other),
                    false => tokio::task::yield_now().await,
                }
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(10), all_fit).await;
        in_time.expect("others have all of it");
        let rest = client.read(&mut [0; 1]).await.expect("an orderly end");
        assert_eq!(rest, 0, "the connection makes way");
    }
}
