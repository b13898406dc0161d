//! Requests that ask to leave HTTP on their connection by `upgrade` (RFC 9110 §7.8), and the responses
//! that agree.
//!
//! Invariant: an upgrade to HTTP/2 (`h2c`) never passes, because it would hide requests from the proxy.

use http::header::{CONNECTION, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version};
use hyper::upgrade::OnUpgrade;

use super::headers::{clean_response_headers, items};

/// What a request asks for that wants to switch to another protocol.
pub(in crate::proxy) struct UpgradeRequest {
    /// The protocols, as in `upgrade`.
    protocol: HeaderValue,
    client: OnUpgrade,
}

// === impl UpgradeRequest ===

impl UpgradeRequest {
    /// Takes the upgrade out of a request; `None`: it asks for none that may pass. Call this before the
    /// hop-by-hop headers are removed.
    pub(in crate::proxy) fn take_from(head: &mut Parts) -> Option<Self> {
        // First, because hyper gives it to few requests.
        let client = head.extensions.remove()?;
        let protocol = protocol(head)?;
        Some(Self { protocol, client })
    }

    /// Adds the upgrade to the headers for the backend.
    pub(in crate::proxy) fn add_to(&self, headers: &mut HeaderMap) {
        set(headers, self.protocol.clone());
    }
}

/// Removes the hop-by-hop headers of a response, but for those that agree to `upgrade`. Gives the
/// client's side of the connection if the response agrees.
pub(in crate::proxy) fn clean_response<B>(
    response: &mut Response<B>,
    upgrade: Option<UpgradeRequest>,
) -> Option<OnUpgrade> {
    let status = response.status();
    let headers = response.headers_mut();
    let upgrade = upgrade.filter(|_| status == StatusCode::SWITCHING_PROTOCOLS);
    let agreed = upgrade.map(|UpgradeRequest { protocol, client }| {
        let protocol = headers.get(UPGRADE).cloned().unwrap_or(protocol);
        (protocol, client)
    });
    clean_response_headers(headers);
    let (protocol, client) = agreed?;
    set(headers, protocol);
    Some(client)
}

/// Whether these headers switch to WebSocket.
pub(in crate::proxy) fn is_websocket(headers: &HeaderMap) -> bool {
    items(headers, &UPGRADE).any(|protocol| protocol.eq_ignore_ascii_case(b"websocket"))
}

fn set(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

fn protocol(head: &Parts) -> Option<HeaderValue> {
    let wanted = head.headers.get(UPGRADE)?;
    let is_asked = head.version == Version::HTTP_11
        && items(&head.headers, &CONNECTION).any(|option| option.eq_ignore_ascii_case(b"upgrade"));
    let is_http = |item: &[u8]| item.is_empty() || item.eq_ignore_ascii_case(b"h2c");
    let offered = || items(&head.headers, &UPGRADE);
    if !is_asked || offered().all(is_http) {
        return None;
    }
    let is_single = head.headers.get_all(UPGRADE).iter().nth(1).is_none();
    if is_single && !offered().any(is_http) {
        return Some(wanted.clone());
    }
    let others: Vec<_> = offered().filter(|item| !is_http(item)).collect();
    HeaderValue::from_bytes(&others.join(&b", "[..])).ok()
}
