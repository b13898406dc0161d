//! The headers of requests and responses: hop-by-hop headers are removed, and forwarding headers are added.
//!
//! Invariant: all other headers pass as they arrived, in their order.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, Entry, FORWARDED, HOST, TE, TRAILER,
    TRANSFER_ENCODING,
};
use http::request::Parts;
use http::uri::Scheme;
use http::{HeaderMap, HeaderName, HeaderValue, Uri, Version};
use http_body::Body;

use crate::config::upstream::{UpstreamHost, UpstreamProtocol};
use crate::config::{Forwarded, Upstream};
use crate::http_syntax::{is_alike, is_head_only, list_items};
use crate::lock::{CallChain, Fence, TurnTag};
use crate::trace;

const FENCE: HeaderName = HeaderName::from_static("x-seriatim-fence");
const TURN: HeaderName = HeaderName::from_static("x-seriatim-turn");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const CHUNKED: HeaderValue = HeaderValue::from_static("chunked");

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

const HEX: &[u8; 16] = b"0123456789abcdef";

/// The prefix of the proxy's own headers, which nobody else may set.
const OWN: &[u8] = b"x-seriatim-";

/// The ids of requests. New ones are unique in the process by a counter, and across processes by a random
/// start.
pub(in crate::proxy) struct RequestIds {
    start: String,
    issued: AtomicU64,
}

/// What the proxy adds to a request for the backend.
pub(in crate::proxy) struct ForwardedInfo<'t> {
    /// The client's address; `None` behind a Unix socket.
    pub(in crate::proxy) client: Option<&'t HeaderValue>,
    /// Whether the client came over http or https.
    pub(in crate::proxy) scheme: &'t Scheme,
    /// The request's id.
    pub(in crate::proxy) request_id: &'t str,
    /// The fence of the turn's lock; `None`: the turn has no lock in the store.
    pub(in crate::proxy) fence: Option<Fence>,
    /// The tag of the turn; `None`: the request takes no lock.
    pub(in crate::proxy) turn: Option<TurnTag>,
}

// === impl RequestIds ===

impl RequestIds {
    /// New ids begin with `process`, a number that no other worker has.
    pub(in crate::proxy) fn new(process: u64) -> Self {
        Self {
            start: format!("{process:016x}-"),
            issued: AtomicU64::new(0),
        }
    }

    /// The id of a request: the client's `x-request-id`, if it can stand in a log and in a lock's value as
    /// it is; otherwise a new one.
    pub(in crate::proxy) fn get(&self, headers: &HeaderMap) -> String {
        /// Longer than any id in use.
        const LONGEST: usize = 128;
        let own = headers.get(REQUEST_ID).map(HeaderValue::as_bytes);
        let is_usable =
            |id: &&[u8]| (1..=LONGEST).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic);
        let own = own.filter(is_usable).and_then(|id| str::from_utf8(id).ok());
        own.map_or_else(|| self.next(), str::to_owned)
    }

    fn next(&self) -> String {
        let number = self.issued.fetch_add(1, Ordering::Relaxed);
        let digits = (u64::BITS - number.leading_zeros()).div_ceil(4).max(1);
        let mut id = String::with_capacity(self.start.len() + digits as usize);
        id.push_str(&self.start);
        // Not by the formatter, which costs a thousand instructions.
        for place in (0..digits).rev() {
            let digit = number >> (4 * place) & 0xf;
            id.push(char::from(HEX[digit as usize]));
        }
        id
    }
}

/// Adds the turns that `tracestate` names (`nested_calls = "traceparent"`) to those that are kept with the head.
pub(in crate::proxy) fn keep_traced_callers(head: &mut Parts) {
    for text in trace::callers(&head.headers) {
        let callers = head.extensions.get_or_insert_default::<CallChain>();
        callers.add_text(text);
    }
}

/// Removes the headers of a request that may not pass: hop-by-hop headers and those that `connection`
/// names (RFC 9110 §7.6.1), headers with the proxy's own prefix, and with [`Forwarded::Replace`] the
/// client's forwarding headers. Call this before the request is routed and its session is read, so that
/// both see what the backend will see. Gives the turns that wait for the request, which one of the removed headers
/// names; `None`: no turn does.
pub(in crate::proxy) fn clean_request(
    headers: &mut HeaderMap,
    forwarded: Forwarded,
) -> Option<CallChain> {
    let replaced = [
        FORWARDED_FOR,
        FORWARDED_PROTO,
        FORWARDED_HOST,
        FORWARDED_PORT,
        FORWARDED,
    ];
    let is_replaced = |name: &HeaderName| {
        let name = name.as_str().as_bytes();
        let mut replaced = replaced.iter().map(|replaced| replaced.as_str().as_bytes());
        replaced.any(|replaced| is_alike(name, replaced))
    };
    let replaces = forwarded == Forwarded::Replace;
    let (mut has_coding, mut has_te) = (false, false);
    // `expect` is for this proxy, which asks for the body itself.
    let mut out = hop_by_hop(headers, |name| {
        has_coding |= *name == TRANSFER_ENCODING;
        has_te |= *name == TE;
        *name == EXPECT || replaces && is_replaced(name)
    });
    if has_coding {
        // It overrides `content-length` (RFC 9112 §6.3), and is true of the next hop, too.
        headers.insert(TRANSFER_ENCODING, CHUNKED);
        out.push(CONTENT_LENGTH);
    }
    if has_te {
        if items(headers, &TE).any(|coding| coding.eq_ignore_ascii_case(b"trailers")) {
            // It is true of the next hop, too: the trailers of a response pass.
            headers.insert(TE, HeaderValue::from_static("trailers"));
        } else {
            out.push(TE);
        }
    }
    let callers = out.contains(&TURN).then(|| callers(headers));
    remove_all(headers, &out);
    callers
}

/// The turns that wait for a request, by its header.
fn callers(headers: &HeaderMap) -> CallChain {
    let mut callers = CallChain::default();
    let values = headers.get_all(TURN).iter();
    values.for_each(|value| callers.add_text(value.as_bytes()));
    callers
}

/// Whether a request's trailers pass to a backend: only those of gRPC. Other servers show trailers to the
/// application as headers (uvicorn with httptools), and no route has read its session from trailers.
pub(in crate::proxy) fn passes_trailers(headers: &HeaderMap, upstream: &Upstream) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let is_grpc = |kind: &HeaderValue| {
        let start = kind.as_bytes().get(..GRPC.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(GRPC))
    };
    upstream.protocol == UpstreamProtocol::H2c && headers.get(CONTENT_TYPE).is_some_and(is_grpc)
}

/// Removes the trailers of a request that may only be headers (RFC 9110 §6.5.1), and those that a backend
/// could take for one of the headers in `read`, which routes read.
pub(super) fn clean_trailers(trailers: &mut HeaderMap, read: &[HeaderName]) {
    let is_header = |name: &&HeaderName| {
        let name = name.as_str().as_bytes();
        let mut read = read.iter().map(|read| read.as_str().as_bytes());
        is_head_only(name) || read.any(|read| is_alike(name, read))
    };
    let out: Vec<_> = trailers.keys().filter(is_header).cloned().collect();
    remove_all(trailers, &out);
}

/// Removes the hop-by-hop headers of a response, and those with the proxy's own prefix.
pub(in crate::proxy) fn clean_response_headers(headers: &mut HeaderMap) {
    let mut out = hop_by_hop(headers, |name| *name == TE || *name == TRANSFER_ENCODING);
    if out.contains(&TRANSFER_ENCODING) {
        out.push(CONTENT_LENGTH);
    }
    remove_all(headers, &out);
}

/// Whether a response has no transfer coding but `chunked`: the proxy asks for no other.
pub(super) fn is_framed(response: &HeaderMap) -> bool {
    items(response, &TRANSFER_ENCODING).all(|coding| {
        coding.eq_ignore_ascii_case(b"chunked") || coding.eq_ignore_ascii_case(b"identity")
    })
}

/// Makes one header of a response's `content-length` that is repeated, in a list or on several lines (RFC 9110
/// §8.6). Says whether there is one length at most.
pub(super) fn unite_lengths(response: &mut HeaderMap) -> bool {
    if items(response, &CONTENT_LENGTH).nth(1).is_none() {
        return true;
    }
    let number = |length: &[u8]| -> Option<u64> {
        let is_number = length.iter().all(u8::is_ascii_digit);
        let digits = str::from_utf8(length).ok().filter(|_| is_number)?;
        digits.parse().ok()
    };
    let mut lengths = items(response, &CONTENT_LENGTH).map(number);
    let first = lengths.next().flatten();
    let length = first.filter(|_| lengths.all(|length| length == first));
    drop(lengths);
    if let Some(length) = length {
        response.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    length.is_some()
}

/// The names of the hop-by-hop headers, of those with the proxy's own prefix, and of those for which
/// `also` is true.
fn hop_by_hop(headers: &HeaderMap, mut also: impl FnMut(&HeaderName) -> bool) -> Vec<HeaderName> {
    let mut out = Vec::new();
    // One pass: usually there are few or none, and a look-up for each name costs more.
    for name in headers.keys() {
        match name.as_str() {
            "connection" => {
                let named = items(headers, &CONNECTION);
                let named = named.filter_map(|name| HeaderName::from_bytes(name).ok());
                // A client must not be able to remove what a request is routed or framed by.
                let kept = [HOST, CONTENT_LENGTH, TE, TRANSFER_ENCODING];
                for name in named {
                    // Each once, and only if it exists: a list may have thousands of names.
                    if headers.contains_key(&name) && !kept.contains(&name) && !out.contains(&name)
                    {
                        out.push(name);
                    }
                }
                out.push(CONNECTION);
            }
            "keep-alive" | "proxy-connection" | "upgrade" => out.push(name.clone()),
            other if also(name) || is_own(other.as_bytes()) => out.push(name.clone()),
            _ => {}
        }
    }
    out
}

/// Removes headers and keeps the order of the others. `HeaderMap::remove` would move the last one into the
/// gap.
fn remove_all(headers: &mut HeaderMap, out: &[HeaderName]) {
    let is_there = |name: &HeaderName| headers.contains_key(name);
    if !out.iter().any(is_there) {
        return;
    }
    let mut kept = HeaderMap::with_capacity(headers.keys_len());
    let mut current = None;
    for (name, value) in headers.drain() {
        if let Some(name) = name {
            current = (!out.contains(&name)).then_some(name);
        }
        if let Some(name) = &current {
            kept.append(name.clone(), value);
        }
    }
    *headers = kept;
}

/// The items of a list header, over all its lines.
pub(super) fn items<'h>(
    headers: &'h HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = &'h [u8]> {
    let values = headers.get_all(name).iter();
    values.flat_map(|value| list_items(value.as_bytes()))
}

/// Adds to a response's `server-timing` (W3C Server Timing) for how long its turn waited, in milliseconds.
/// The backend's own entries stay.
pub(in crate::proxy) fn add_server_timing(headers: &mut HeaderMap, waited: Duration) {
    let metric = format!("lock;dur={:.1}", waited.as_secs_f64() * 1000.0);
    // Digits and a point are valid in a header.
    if let Ok(metric) = HeaderValue::try_from(metric) {
        headers.append(SERVER_TIMING, metric);
    }
}

/// Whether a header has the proxy's own prefix, or a backend could take it for one that has.
fn is_own(name: &[u8]) -> bool {
    let start = name.get(..OWN.len());
    start.is_some_and(|start| is_alike(start, OWN))
}

/// Turns the head of a client's request into one for the backend. Hop-by-hop headers are removed already.
pub(in crate::proxy) fn to_backend(
    head: &mut Parts,
    body: &impl Body,
    upstream: &Upstream,
    info: &ForwardedInfo<'_>,
) {
    // The host of an absolute URI overrides `host` (RFC 9112 §3.2.2).
    if let Some(authority) = head.uri.authority() {
        // Without the user information before an `@`.
        let host = authority.as_str().rsplit('@').next().unwrap_or_default();
        if let Ok(host) = HeaderValue::try_from(host) {
            head.headers.insert(HOST, host);
        }
        if let Some(path) = head.uri.path_and_query() {
            head.uri = Uri::from(path.clone());
        }
    }
    let named = head.headers.get(HOST).cloned();
    // HTTP/1.0 may have no host; HTTP/1.1 requires one.
    let needs_own = named.is_none() || upstream.host == UpstreamHost::Upstream;
    let own = || HeaderValue::try_from(upstream.authority.as_str()).ok();
    let own = needs_own.then(own).flatten();
    if let Some(own) = own.clone() {
        head.headers.insert(HOST, own);
    }
    let host = named.or(own);
    if !passes_trailers(&head.headers, upstream) {
        remove_all(&mut head.headers, &[TRAILER]);
    }
    add_forwarded(&mut head.headers, info, host);
    if let Ok(id) = HeaderValue::try_from(info.request_id) {
        head.headers.insert(REQUEST_ID, id);
    }
    if let Some(fence) = info.fence
        // Twice as fast as `HeaderValue::from`.
        && let Ok(fence) = HeaderValue::from_str(itoa::Buffer::new().format(fence.0))
    {
        head.headers.insert(FENCE, fence);
    }
    add_turn(head, info.turn);
    // The backend's HTTP version is independent of the client's.
    match upstream.protocol {
        UpstreamProtocol::Http1 | UpstreamProtocol::Https(_) => {
            head.version = Version::HTTP_11;
            let headers = &mut head.headers;
            // HTTP/2 needs no such header. For HTTP/1.1, hyper would assume that a GET has no body.
            if body.size_hint().exact().is_none() && !headers.contains_key(CONTENT_LENGTH) {
                headers.insert(TRANSFER_ENCODING, CHUNKED);
            }
        }
        UpstreamProtocol::H2c => to_http2(head),
    }
}

/// Adds the tags that the backend passes on in its calls: that of the turn, and those of the turns that wait for
/// the request.
fn add_turn(head: &mut Parts, turn: Option<TurnTag>) {
    let tags = match (turn, head.extensions.get::<CallChain>()) {
        (Some(turn), None) => HeaderValue::from_bytes(&turn.digits()),
        (Some(turn), Some(callers)) => callers.called_by(turn).join(", ").try_into(),
        // A request without a lock may be a step on the way to another turn.
        (None, Some(callers)) if !callers.is_empty() => callers.join(", ").try_into(),
        (None, _) => return,
    };
    // Hex digits and commas are valid in a header.
    if let Ok(tags) = tags {
        head.headers.insert(TURN, tags);
    }
}

/// Moves the host into the URI, where HTTP/2 has it (RFC 9113 §8.3.1).
fn to_http2(head: &mut Parts) {
    head.version = Version::HTTP_2;
    let mut out = vec![TRANSFER_ENCODING];
    let mut uri = std::mem::take(&mut head.uri).into_parts();
    uri.scheme = Some(Scheme::HTTP);
    let host = head.headers.get(HOST);
    uri.authority = host.and_then(|host| host.as_bytes().try_into().ok());
    let path = uri.path_and_query.clone();
    head.uri = match Uri::from_parts(uri) {
        Ok(uri) => {
            out.push(HOST);
            uri
        }
        // A host that is invalid in a URI stays in `host`.
        Err(_) => {
            head.version = Version::HTTP_11;
            path.map(Uri::from).unwrap_or_default()
        }
    };
    remove_all(&mut head.headers, &out);
}

/// Adds the client to `x-forwarded-for`, and sets `x-forwarded-proto` and `-host` unless a proxy before
/// this one has.
fn add_forwarded(headers: &mut HeaderMap, info: &ForwardedInfo<'_>, host: Option<HeaderValue>) {
    if let Some(client) = info.client {
        match headers.entry(FORWARDED_FOR) {
            Entry::Vacant(entry) => drop(entry.insert(client.clone())),
            Entry::Occupied(mut entry) => {
                let hops = entry.iter().chain([client]).map(HeaderValue::as_bytes);
                let hops = hops.collect::<Vec<_>>().join(&b", "[..]);
                if let Ok(hops) = HeaderValue::try_from(hops) {
                    entry.insert(hops);
                }
            }
        }
    }
    let proto = match *info.scheme == Scheme::HTTPS {
        true => "https",
        false => "http",
    };
    headers
        .entry(FORWARDED_PROTO)
        .or_insert(HeaderValue::from_static(proto));
    if let Some(host) = host {
        headers.entry(FORWARDED_HOST).or_insert(host);
    }
}
