//! Headers on the way: what concerns one hop only is taken out, what the backend may want to know
//! is put in. All else passes as it came.

use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::Scheme;
use http::{HeaderMap, HeaderName, HeaderValue, Uri, Version};

use crate::config::Upstream;
use crate::lock::Fence;

const FENCE: HeaderName = HeaderName::from_static("x-seriatim-fence");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// The proxy's own headers, which nobody else may set.
const OWN: &str = "x-seriatim-";

/// What the proxy tells the backend about a request.
pub(in crate::proxy) struct Told<'t> {
    /// Its address; `None` behind a Unix socket.
    pub(in crate::proxy) client: Option<&'t str>,
    /// How it came.
    pub(in crate::proxy) scheme: &'t Scheme,
    pub(in crate::proxy) request_id: &'t str,
    pub(in crate::proxy) fence: Option<Fence>,
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

/// Takes out what may not pass the proxy, in either direction: what concerns one connection only
/// (RFC 9110 §7.6.1), what `connection` names, and headers in the proxy's own name. Done before a
/// request is routed and its session is read, so that both see what the backend will see.
pub(in crate::proxy) fn clean(headers: &mut HeaderMap) {
    let mut out: Vec<HeaderName> = Vec::new();
    // One pass, for there is little or nothing to be found: a look-up for each name costs more.
    for name in headers.keys() {
        match name.as_str() {
            "connection" => {
                let values = headers.get_all(CONNECTION).iter();
                let options = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
                let named =
                    options.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok());
                // A request is not to lose what it is routed or framed by to such a trick.
                out.extend(named.filter(|name| *name != HOST && *name != CONTENT_LENGTH));
                out.push(CONNECTION);
            }
            // Of two framings it is the one that counts (RFC 9112 §6.3).
            "transfer-encoding" => out.extend([TRANSFER_ENCODING, CONTENT_LENGTH]),
            "keep-alive" | "proxy-connection" | "te" | "upgrade" => out.push(name.clone()),
            other if is_own(other) => out.push(name.clone()),
            _ => {}
        }
    }
    let takes_trailers = headers.get_all(TE).iter().any(|value| {
        let codings = value.as_bytes().split(|byte| *byte == b',');
        codings
            .into_iter()
            .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    });
    for name in out {
        headers.remove(name);
    }
    if takes_trailers {
        // True of this hop too: trailers pass.
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
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

/// Whether a header is in the proxy's own name. Backends behind WSGI and CGI read
/// `x_seriatim_fence` as `x-seriatim-fence`.
fn is_own(name: &str) -> bool {
    let folded = name
        .bytes()
        .map(|byte| if byte == b'_' { b'-' } else { byte });
    name.len() >= OWN.len() && folded.zip(OWN.bytes()).all(|(byte, own)| byte == own)
}

/// Makes a client's request, which is clean, one for the backend.
pub(in crate::proxy) fn to_backend(head: &mut Parts, upstream: &Upstream, told: &Told<'_>) {
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
    // Of another HTTP version's connection, nothing is left behind the proxy.
    head.version = Version::HTTP_11;
    // It was for this proxy, which has asked for the body where it wanted it.
    head.headers.remove(EXPECT);
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
    forwarded(&mut head.headers, told, host);
    if let Ok(id) = HeaderValue::try_from(told.request_id) {
        head.headers.insert(REQUEST_ID, id);
    }
    if let Some(fence) = told.fence {
        head.headers.insert(FENCE, HeaderValue::from(fence.0));
    }
}

/// Adds this hop to `x-forwarded-for`, and says how the client came, where no proxy before has.
fn forwarded(headers: &mut HeaderMap, told: &Told<'_>, host: Option<HeaderValue>) {
    if let Some(client) = told.client {
        let hops = headers.get_all(FORWARDED_FOR).iter();
        let mut hops = hops.fold(String::new(), |mut hops, hop| {
            hops.push_str(&String::from_utf8_lossy(hop.as_bytes()));
            hops.push_str(", ");
            hops
        });
        hops.push_str(client);
        if let Ok(hops) = HeaderValue::try_from(hops) {
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
