//! From a turn that has its lock to its response: the request goes to the backend, and what comes back becomes a body
//! with the turn's lock, or a tunnel. Also the end of a turn that got no response.
//!
//! Invariant: the lock goes along with the response, and is released before the client can see its end.

use std::iter;
use std::sync::Arc;

use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http::{Response, Version};
use http_body_util::{Either, Full};
use hyper::upgrade::OnUpgrade;

use super::body_timer::BodyLimits;
use super::cors::RequestOrigin;
use super::end::{End, leave};
use super::exchange::{self, Exchange};
use super::forward::upgrade::{self, UpgradeRequest};
use super::forward::{Backend, BackendBody, OutgoingBody, ResponseTimeout, headers};
use super::keep_alive;
use super::orphan::Orphans;
use super::record::RequestRecord;
use super::refusal::Refusal;
use super::silence::{FilledResponse, SilenceFiller};
use super::stream::GuardedBody;
use super::tunnel::TunnelEndpoints;
use super::{Proxy, SentBody, TurnBody};
use crate::answer::{AnswerHead, AnswerWriter};
use crate::config::Route;
use crate::listen::ClientConnection;
use crate::lock::LockGuard;

/// The head of a backend's response, and what its turn holds.
pub(super) struct AnsweredTurn {
    pub(super) response: Response<BackendBody>,
    /// `None`: the turn has no lock.
    pub(super) held: Option<LockGuard>,
    /// Where the turn goes on when its client is gone; `None`: it is cancelled.
    pub(super) orphans: Option<Arc<Orphans>>,
    /// The client's side of a connection that leaves HTTP after this response; `None`: it doesn't.
    pub(super) upgraded: Option<OnUpgrade>,
    /// Writes the turn's answer for other requests; `None`: it isn't kept.
    pub(super) answer: Option<Box<AnswerWriter>>,
}

/// A turn that has its lock, or a request that passes without one, on its way to the backend.
pub(super) struct StartedTurn {
    pub(super) backend: Arc<Backend>,
    pub(super) head: Parts,
    pub(super) body: OutgoingBody,
    pub(super) upgrade: Option<UpgradeRequest>,
    /// `None`: the request has no lock.
    pub(super) held: Option<LockGuard>,
    /// Writes the turn's answer for other requests; `None`: it isn't kept.
    pub(super) answer: Option<Box<AnswerWriter>>,
    /// Whether the turn keeps other turns of its session out.
    pub(super) is_enforced: bool,
    /// Whether the turn goes on when its client is gone.
    pub(super) goes_on: bool,
}

// === impl Proxy ===

impl Proxy {
    /// Sends a request to its backend, and waits for the head of the response.
    ///
    /// # Errors
    /// When the backend gives no response. The lock is released then.
    pub(super) async fn send(
        &self,
        client: &ClientConnection,
        turn: StartedTurn,
        record: &mut RequestRecord,
    ) -> Result<AnsweredTurn, Refusal> {
        let StartedTurn {
            backend,
            head,
            mut body,
            upgrade,
            mut held,
            mut answer,
            is_enforced,
            goes_on,
        } = turn;
        // Without a lock a slow body keeps nobody waiting, and an observed turn is never refused.
        let limits = match is_enforced {
            true => self.holder_limits(),
            false => BodyLimits::for_stream(&self.config.timeouts),
        };
        let limit = self.config.timeouts.response_head;
        let timeout = ResponseTimeout::new(limit, limits, &mut body);
        let upgrade = upgrade.filter(|_| backend.can_upgrade());
        let (lock, wanted) = (held.as_ref(), upgrade.as_ref());
        let interim = exchange::interim_for(client, head.version, &backend, record);
        let request = exchange::for_backend(head, body, client, &backend, lock, wanted, record);
        let exchange = Exchange {
            client,
            backend: &backend,
            drain: &self.shared.drain,
            limit,
            timeout: &timeout,
            interim,
        };
        let orphans = goes_on.then_some(&self.orphans);
        let sent = match orphans {
            None => exchange.send(request, &mut held).await,
            Some(orphans) => {
                let sending =
                    exchange.send_detachable(request, &mut held, orphans, record, &mut answer);
                sending.await
            }
        };
        match sent {
            Ok(mut response) => {
                record.response_began(response.status().as_u16());
                let upgraded = upgrade::clean_response(&mut response, upgrade);
                if let Some(answer) = answer.as_mut().filter(|_| upgraded.is_none()) {
                    answer.head(AnswerHead::new(response.status(), response.headers()));
                }
                if let Some(waited) = held.as_ref().and_then(LockGuard::waited) {
                    headers::add_server_timing(response.headers_mut(), waited);
                }
                // Always, because HTTP/1.0 ends a response of unknown length with the connection: one
                // that is cut off would look whole.
                *response.version_mut() = Version::HTTP_11;
                Ok(AnsweredTurn {
                    response,
                    held,
                    orphans: orphans.cloned(),
                    upgraded,
                    answer,
                })
            }
            // Boxed, because it is rare.
            Err(refusal) => Err(Box::pin(self.refuse_turn(client, refusal, held, record)).await),
        }
    }

    /// Remembers what a response of the backend allows to the origin of its request. The response to a preflight
    /// speaks for all routes of that backend to which the preflight announces a request.
    pub(super) fn learn_origin<B>(
        &self,
        origin: &RequestOrigin,
        announced: Option<&[Arc<Route>]>,
        record: &RequestRecord,
        response: &Response<B>,
    ) {
        let own = record.route_name().unwrap_or_default();
        let backend = self.config.backend_of(own);
        let others = announced
            .unwrap_or_default()
            .iter()
            .map(|route| &*route.name);
        let others = others.filter(|name| *name != own && self.config.backend_of(name) == backend);
        let routes = iter::once(own).chain(others);
        self.cors
            .learn(origin, routes, response.status(), response.headers());
    }

    /// Ends a turn that got no response of its backend. The backend's connection is closed already.
    pub(super) async fn refuse_turn(
        &self,
        client: &ClientConnection,
        refusal: Refusal,
        held: Option<LockGuard>,
        record: &mut RequestRecord,
    ) -> Refusal {
        // What looks like the backend's failure may be a request that its client cut off.
        let refusal = match client.bad_body() {
            Some(bad) if matches!(refusal, Refusal::Backend(_)) => Refusal::BadRequest(bad),
            _ => refusal,
        };
        // The end of an error response shows the client that the session is free. That is not so when
        // the lock was lost, and a process that stops has no time to wait.
        let end = match refusal {
            Refusal::LockLost(loss) => End::LockLost(loss),
            Refusal::Draining => End::DrainAborted,
            // The request to the backend was cancelled, or broke off.
            _ => End::UpstreamAborted,
        };
        if held.is_some() {
            let mut drain = self.shared.drain.clone();
            record.hold = leave((), held, end).released(&mut drain).await;
        }
        refusal
    }

    /// Sends the backend's response to the client, with the turn in its body.
    pub(super) async fn respond(
        &self,
        client: &ClientConnection,
        answered: AnsweredTurn,
        mut record: Box<RequestRecord>,
    ) -> Response<TurnBody> {
        let AnsweredTurn {
            mut response,
            held,
            orphans,
            upgraded,
            answer,
        } = answered;
        let unfit = keep_alive::unfit_response(&response);
        let (is_early, is_stream) = (record.is_early(), unfit.is_none());
        // Nothing of another response passes behind an early head. What is told of it follows when the turn is over,
        // even if that is so because the lock was lost.
        if let Some(deadline) = held.as_ref().and_then(LockGuard::deadline)
            && (is_stream || !is_early)
        {
            client.bounds.stop_at(deadline.clone());
        }
        let idle_stream = self.config.timeouts.idle_stream;
        client.bounds.end_when_silent(idle_stream);
        if let Some(upgraded) = upgraded {
            let backend = hyper::upgrade::on(&mut response);
            let (head, body) = response.into_parts();
            let ends = TunnelEndpoints {
                client: upgraded,
                backend,
                connection: body,
                is_websocket: upgrade::is_websocket(&head.headers),
            };
            self.tunnels.run(ends, held, record);
            return Response::from_parts(head, Either::Left(Full::default()));
        }
        let (head, body) = response.into_parts();
        if let Some(unfit) = unfit.filter(|_| is_early) {
            record.note_unfit(unfit, &head.headers);
        }
        let filled = FilledResponse {
            is_stream,
            is_early,
            has_length: head.headers.contains_key(CONTENT_LENGTH),
        };
        let filler = SilenceFiller::for_response(filled, record.keep_alive(), idle_stream);
        let body = GuardedBody::new(body, held, orphans, record, filler, answer);
        let mut body = Box::new(body);
        body.release_if_whole().await;
        Response::from_parts(head, Either::Right(SentBody::Own(body)))
    }
}
