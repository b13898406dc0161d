//! Messages that leave HTTP on their connection (RFC 9110 §7.8), and say so in `upgrade`.

use http::header::{CONNECTION, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version};
use hyper::upgrade::OnUpgrade;

use super::headers::{clean_response_headers, items};

/// A request that would like to go on in another protocol, if the backend speaks it.
pub(in crate::proxy) struct UpgradeRequest {
    protocol: HeaderValue,
    client: OnUpgrade,
}

// === impl Wish ===

impl UpgradeRequest {
    /// That of a request, if it is one that may be fulfilled: not HTTP/2, which would be spoken past
    /// this proxy. To be asked before the request is cleaned.
    pub(in crate::proxy) fn take_from(head: &mut Parts) -> Option<Self> {
        let protocol = protocol(head)?;
        let client = head.extensions.remove()?;
        Some(Self { protocol, client })
    }

    /// Has the backend know of it.
    pub(in crate::proxy) fn add_to(&self, headers: &mut HeaderMap) {
        set(headers, self.protocol.clone());
    }
}

/// Takes out of an answer what may not pass; if it fulfils the wish, it goes on saying so. Gives
/// what waits for the client's connection then.
pub(in crate::proxy) fn clean_response<B>(
    answer: &mut Response<B>,
    wish: Option<UpgradeRequest>,
) -> Option<OnUpgrade> {
    let wish = wish.filter(|_| answer.status() == StatusCode::SWITCHING_PROTOCOLS);
    let protocol = answer.headers().get(UPGRADE).cloned();
    clean_response_headers(answer.headers_mut());
    let UpgradeRequest {
        protocol: wished,
        client,
    } = wish?;
    set(answer.headers_mut(), protocol.unwrap_or(wished));
    Some(client)
}

/// Whether what follows is a WebSocket.
pub(in crate::proxy) fn is_websocket(headers: &HeaderMap) -> bool {
    items(headers, &UPGRADE).any(|protocol| protocol.eq_ignore_ascii_case(b"websocket"))
}

fn set(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

fn protocol(head: &Parts) -> Option<HeaderValue> {
    let wanted = head.headers.get(UPGRADE)?;
    let asks = head.version == Version::HTTP_11
        && items(&head.headers, &CONNECTION).any(|option| option.eq_ignore_ascii_case(b"upgrade"));
    let is_http = |item: &[u8]| item.is_empty() || item.eq_ignore_ascii_case(b"h2c");
    let offered = || items(&head.headers, &UPGRADE);
    if !asks || offered().all(is_http) {
        return None;
    }
    let is_single = head.headers.get_all(UPGRADE).iter().nth(1).is_none();
    if is_single && !offered().any(is_http) {
        return Some(wanted.clone());
    }
    let others: Vec<_> = offered().filter(|item| !is_http(item)).collect();
    HeaderValue::from_bytes(&others.join(&b", "[..])).ok()
}
