//! Headers on the way: what concerns one hop only is taken out, what the backend may want to know
//! is put in. All else passes as it came, in its order.

use std::time::Duration;

use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, FORWARDED, HOST, TE, TRAILER,
    TRANSFER_ENCODING,
};
use http::request::Parts;
use http::uri::Scheme;
use http::{HeaderMap, HeaderName, HeaderValue, Uri, Version};
use http_body::Body;

use crate::config::upstream::UpstreamProtocol;
use crate::config::{Forwarded, Upstream};
use crate::http_syntax::{is_alike, is_head_only};
use crate::lock::Fence;

const FENCE: HeaderName = HeaderName::from_static("x-seriatim-fence");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const CHUNKED: HeaderValue = HeaderValue::from_static("chunked");

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// The proxy's own headers, which nobody else may set.
const OWN: &[u8] = b"x-seriatim-";

/// What the proxy tells the backend about a request.
pub(in crate::proxy) struct ForwardedInfo<'t> {
    /// Its address; `None` behind a Unix socket.
    pub(in crate::proxy) client: Option<&'t HeaderValue>,
    /// How it came.
    pub(in crate::proxy) scheme: &'t Scheme,
    pub(in crate::proxy) request_id: &'t str,
    pub(in crate::proxy) fence: Option<Fence>,
    /// Whether its trailers pass.
    pub(in crate::proxy) trailers: bool,
}

/// The id of a request: the client's own, if it is one that can stand in a log and in a lock's
/// value as it is; a new one otherwise.
pub(in crate::proxy) fn request_id(headers: &HeaderMap, new: impl FnOnce() -> String) -> String {
    /// Longer than any id in use; what is longer isn't one.
    const LONGEST: usize = 128;
    let own = headers
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok());
    let usable =
        |id: &&str| (1..=LONGEST).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
    own.filter(usable).map_or_else(new, str::to_owned)
}

/// Takes out of a request what may not pass the proxy: what concerns one connection only (RFC 9110
/// §7.6.1), what `connection` names, headers in the proxy's own name, and, if it is not to be
/// trusted, what the client says of the request's way. Done before a request is routed and its
/// session is read, so that both see what the backend will see.
pub(in crate::proxy) fn clean_request(headers: &mut HeaderMap, forwarded: Forwarded) {
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
    // `expect` was for this proxy, which has asked for the body where it wanted it.
    let mut out = hop_by_hop(headers, |name| {
        *name == EXPECT || replaces && is_replaced(name)
    });
    if headers.contains_key(TRANSFER_ENCODING) {
        // Of two framings it is the one that counts (RFC 9112 §6.3), and is this hop's too.
        headers.insert(TRANSFER_ENCODING, CHUNKED);
        out.push(CONTENT_LENGTH);
    }
    if items(headers, &TE).any(|coding| coding.eq_ignore_ascii_case(b"trailers")) {
        // True of this hop too: an answer's trailers pass.
        headers.insert(TE, HeaderValue::from_static("trailers"));
    } else if headers.contains_key(TE) {
        out.push(TE);
    }
    take_out(headers, &out);
}

/// Whether a request's trailers pass to a backend: those of gRPC only. Other servers show them to the
/// application as headers (uvicorn with httptools), and no route has read its session in them.
pub(in crate::proxy) fn passes_trailers(headers: &HeaderMap, upstream: &Upstream) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let is_grpc = |kind: &HeaderValue| {
        let start = kind.as_bytes().get(..GRPC.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(GRPC))
    };
    upstream.protocol == UpstreamProtocol::H2c && headers.get(CONTENT_TYPE).is_some_and(is_grpc)
}

/// Takes out of a request's trailers what may only stand before its body (RFC 9110 §6.5.1), and the
/// headers that routes read, where a backend could take it for one of its headers.
pub(super) fn clean_trailers(trailers: &mut HeaderMap, read: &[HeaderName]) {
    let is_header = |name: &&HeaderName| {
        let name = name.as_str().as_bytes();
        let mut read = read.iter().map(|read| read.as_str().as_bytes());
        is_head_only(name) || read.any(|read| is_alike(name, read))
    };
    let out: Vec<_> = trailers.keys().filter(is_header).cloned().collect();
    take_out(trailers, &out);
}

/// Takes out of an answer what may not pass, as of a request.
pub(in crate::proxy) fn clean_answer(headers: &mut HeaderMap) {
    let mut out = hop_by_hop(headers, |name| *name == TE || *name == TRANSFER_ENCODING);
    if headers.contains_key(TRANSFER_ENCODING) {
        out.push(CONTENT_LENGTH);
    }
    take_out(headers, &out);
}

/// Whether an answer's framing is one that can be undone: no coding was asked for, so none but
/// chunks can be in it.
pub(super) fn is_framed(answer: &HeaderMap) -> bool {
    items(answer, &TRANSFER_ENCODING).all(|coding| {
        coding.eq_ignore_ascii_case(b"chunked") || coding.eq_ignore_ascii_case(b"identity")
    })
}

/// The names of what concerns one connection only, of what is in the proxy's own name, and of what
/// else has to go.
fn hop_by_hop(headers: &HeaderMap, also: impl Fn(&HeaderName) -> bool) -> Vec<HeaderName> {
    let mut out = Vec::new();
    // One pass, for there is little or nothing to be found: a look-up for each name costs more.
    for name in headers.keys() {
        match name.as_str() {
            "connection" => {
                let named = items(headers, &CONNECTION);
                let named = named.filter_map(|name| HeaderName::from_bytes(name).ok());
                // A request is not to lose what it is routed or framed by to such a trick.
                let kept = [HOST, CONTENT_LENGTH, TE, TRANSFER_ENCODING];
                for name in named {
                    // Each once, and none that isn't there: a list may have thousands.
                    if headers.contains_key(&name) && !kept.contains(&name) && !out.contains(&name)
                    {
                        out.push(name);
                    }
                }
                out.push(CONNECTION);
            }
            "keep-alive" | "proxy-connection" | "upgrade" => out.push(name.clone()),
            other if is_own(other.as_bytes()) || also(name) => out.push(name.clone()),
            _ => {}
        }
    }
    out
}

/// Takes headers out, and leaves the others in their order: `remove` would put the last one into
/// the gap.
fn take_out(headers: &mut HeaderMap, out: &[HeaderName]) {
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

/// The items of a header that is a list, over all its lines.
pub(super) fn items<'h>(
    headers: &'h HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = &'h [u8]> {
    let values = headers.get_all(name).iter();
    values.flat_map(|value| {
        value
            .as_bytes()
            .split(|byte| *byte == b',')
            .map(<[u8]>::trim_ascii)
    })
}

/// Says in an answer how long its turn stood in line, in milliseconds (Server Timing, W3C), beside
/// what the backend says there of itself.
pub(in crate::proxy) fn say_waited(headers: &mut HeaderMap, waited: Duration) {
    let metric = format!("lock;dur={:.1}", waited.as_secs_f64() * 1000.0);
    // Digits and a point can stand in a header.
    if let Ok(metric) = HeaderValue::try_from(metric) {
        headers.append(SERVER_TIMING, metric);
    }
}

/// Whether a header is in the proxy's own name, or a backend could read it so.
fn is_own(name: &[u8]) -> bool {
    let start = name.get(..OWN.len());
    start.is_some_and(|start| is_alike(start, OWN))
}

/// Makes a client's request, which is clean, one for the backend.
pub(in crate::proxy) fn to_backend(
    head: &mut Parts,
    body: &impl Body,
    upstream: &Upstream,
    told: &ForwardedInfo<'_>,
) {
    // An absolute URI names the host that is meant (RFC 9112 §3.2.2).
    if let Some(authority) = head.uri.authority() {
        // Without what may stand before an `@`.
        let host = authority.as_str().rsplit('@').next().unwrap_or_default();
        if let Ok(host) = HeaderValue::try_from(host) {
            head.headers.insert(HOST, host);
        }
    }
    if let Some(path) = head.uri.path_and_query() {
        head.uri = Uri::from(path.clone());
    }
    let host = match head.headers.get(HOST) {
        Some(host) => Some(host.clone()),
        None => {
            // HTTP/1.0 knows no Host; HTTP/1.1 demands one.
            let own = HeaderValue::try_from(upstream.authority.as_str()).ok();
            if let Some(own) = own.clone() {
                head.headers.insert(HOST, own);
            }
            own
        }
    };
    if !told.trailers {
        take_out(&mut head.headers, &[TRAILER]);
    }
    forwarded(&mut head.headers, told, host);
    if let Ok(id) = HeaderValue::try_from(told.request_id) {
        head.headers.insert(REQUEST_ID, id);
    }
    if let Some(fence) = told.fence {
        head.headers.insert(FENCE, HeaderValue::from(fence.0));
    }
    // Of another HTTP version's connection, nothing is left behind the proxy.
    match upstream.protocol {
        UpstreamProtocol::Http1 | UpstreamProtocol::Https(_) => {
            head.version = Version::HTTP_11;
            let headers = &mut head.headers;
            // Said by HTTP/2 in other ways. hyper would guess that a GET has no body.
            if body.size_hint().exact().is_none() && !headers.contains_key(CONTENT_LENGTH) {
                headers.insert(TRANSFER_ENCODING, CHUNKED);
            }
        }
        UpstreamProtocol::H2c => to_http2(head),
    }
}

/// Names the host where HTTP/2 does (RFC 9113 §8.3.1).
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
        // A host that no URI can have stays where it was.
        Err(_) => {
            head.version = Version::HTTP_11;
            path.map(Uri::from).unwrap_or_default()
        }
    };
    take_out(&mut head.headers, &out);
}

/// Adds this hop to `x-forwarded-for`, and says how the client came, where no proxy before has.
fn forwarded(headers: &mut HeaderMap, told: &ForwardedInfo<'_>, host: Option<HeaderValue>) {
    if let Some(client) = told.client {
        let hops = match headers.contains_key(FORWARDED_FOR) {
            false => Ok(client.clone()),
            true => {
                let before = headers.get_all(FORWARDED_FOR).iter();
                let hops = before.chain([client]).map(HeaderValue::as_bytes);
                HeaderValue::try_from(hops.collect::<Vec<_>>().join(&b", "[..]))
            }
        };
        if let Ok(hops) = hops {
            headers.insert(FORWARDED_FOR, hops);
        }
    }
    let proto = match *told.scheme == Scheme::HTTPS {
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
