//! Who may call the parts of the admin interface that aren't open to everyone.
//!
//! With `admin.token_file`: whoever sends the token. Without it: local requests only. The listener's address
//! and the request's Host must be loopback, because a web page can point a domain of its own to this
//! machine's address (DNS rebinding), and the browser must not have been sent here by another site.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{AUTHORIZATION, HOST, HeaderName, ORIGIN, WWW_AUTHENTICATE};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderValue, StatusCode};

use super::response::{AdminError, AdminResponse};
use crate::secret::{SecretError, SecretFile, SecretReader};

/// The rule that decides who may call the admin interface.
#[derive(Debug)]
pub struct AccessPolicy {
    /// The token that a caller needs; `None` allows local requests only.
    token: Option<SecretReader>,
    /// Whether the listener's address is loopback.
    is_loopback: bool,
}

/// Why a call is denied.
#[derive(Debug)]
pub(super) enum AccessDenied {
    /// The call has no token, or a wrong one.
    Token,
    /// The file with the token can't be used at the moment.
    NoToken(Arc<SecretError>),
    /// Other machines can reach the listener, and no token is configured.
    Open,
    /// The request's Host is not loopback.
    Host,
    /// A page of another site made the browser send the request.
    CrossSite,
}

/// The header in which a browser says which site a request comes from (W3C Fetch Metadata).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

// === impl AccessPolicy ===

impl AccessPolicy {
    /// The policy of a listener at `address`. With `token`, callers need the token in that file.
    pub fn new(address: IpAddr, token: Option<SecretFile>) -> Self {
        Self {
            token: token.map(SecretReader::new),
            is_loopback: address.to_canonical().is_loopback(),
        }
    }

    /// Decides on one request. Reads the token's file.
    ///
    /// # Errors
    /// When the call is denied.
    pub(super) async fn check(&self, head: &Parts) -> Result<(), AccessDenied> {
        let Some(file) = &self.token else {
            return match self.is_loopback {
                true => check_local(head),
                false => Err(AccessDenied::Open),
            };
        };
        let mut given = head.headers.get_all(AUTHORIZATION).iter();
        let (Some(given), None) = (given.next(), given.next()) else {
            return Err(AccessDenied::Token);
        };
        let given = bearer(given.as_bytes()).ok_or(AccessDenied::Token)?;
        match file.read().await {
            Ok(secret) if secret.matches(given) => Ok(()),
            Ok(_) => Err(AccessDenied::Token),
            Err(error) => Err(AccessDenied::NoToken(error)),
        }
    }
}

/// The token in `Bearer <token>` (RFC 6750 §2.1), in any case of the scheme (RFC 9110 §11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let at = value.iter().position(|byte| *byte == b' ')?;
    let (scheme, token) = value.split_at(at);
    scheme
        .eq_ignore_ascii_case(b"bearer")
        .then(|| token.trim_ascii())
}

fn check_local(head: &Parts) -> Result<(), AccessDenied> {
    // The authority of the target, which HTTP/2 clients and proxies send, and that of each Host header.
    let hosts = head.headers.get_all(HOST).iter();
    let hosts = hosts.map(|value| Authority::try_from(value.as_bytes()).ok());
    let target = head.uri.authority().cloned().map(Some);
    let hosts: Vec<_> = target.into_iter().chain(hosts).collect();
    let is_own = |host: &Option<Authority>| host.as_ref().is_some_and(is_loopback);
    if hosts.is_empty() || !hosts.iter().all(is_own) {
        return Err(AccessDenied::Host);
    }
    let site = head.headers.get_all(SEC_FETCH_SITE).iter();
    // `none`: a person typed the address. `same-site` includes other ports of this machine.
    let is_sent = |site: &HeaderValue| !matches!(site.as_bytes(), b"same-origin" | b"none");
    let origins = head.headers.get_all(ORIGIN).iter();
    let is_foreign = |origin: &HeaderValue| {
        let origin = origin.as_bytes();
        let authority = origin.strip_prefix(b"http://");
        let authority = authority.or_else(|| origin.strip_prefix(b"https://"));
        let authority = authority.and_then(|text| Authority::try_from(text).ok());
        !hosts.iter().all(|host| *host == authority)
    };
    if site.into_iter().any(is_sent) || origins.into_iter().any(is_foreign) {
        return Err(AccessDenied::CrossSite);
    }
    Ok(())
}

/// Whether an authority is `localhost` or a loopback address, without asking a resolver.
fn is_loopback(authority: &Authority) -> bool {
    let host = authority.host();
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let address = bare.unwrap_or(host).parse::<IpAddr>();
    let is_named = !authority.as_str().contains('@') && host.eq_ignore_ascii_case("localhost");
    is_named || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

// === impl AccessDenied ===

impl AccessDenied {
    /// The reason as a code for the log.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::NoToken(_) => "token_file",
            Self::Open => "no_token_set",
            Self::Host => "host",
            Self::CrossSite => "cross_site",
        }
    }

    /// The response to the denied call.
    pub(super) fn response(&self) -> AdminResponse {
        let forbidden = |error, detail| (StatusCode::FORBIDDEN, "forbidden", error, detail);
        let (status, code, error, detail) = match self {
            Self::Token => (
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "Token required",
                "send the token of admin.token_file in the header authorization: Bearer <token>",
            ),
            Self::NoToken(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "token_unavailable",
                "The token can't be checked",
                "admin.token_file can't be used at the moment; the log says why",
            ),
            Self::Open => forbidden(
                "Token required, but none is configured",
                "other machines can reach admin.listen: set admin.token_file",
            ),
            Self::Host => forbidden(
                "Only local requests are allowed",
                "without admin.token_file the Host must be localhost, 127.0.0.1 or [::1]",
            ),
            Self::CrossSite => forbidden(
                "Cross-site requests are not allowed",
                "without admin.token_file a browser's request must come from the admin page",
            ),
        };
        let error = AdminError {
            status,
            code,
            error,
            detail: detail.into(),
        };
        let mut response = error.response();
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(host: &str) -> bool {
        Authority::try_from(host).is_ok_and(|authority| is_loopback(&authority))
    }

    #[test]
    fn only_localhost_and_loopback_addresses_are_local() {
        for host in [
            "localhost",
            "LocalHost:9901",
            "127.0.0.1",
            "127.0.0.1:1",
            "127.3.2.1:9901",
            "[::1]",
            "[::1]:9901",
            "[::ffff:127.0.0.1]:9901",
        ] {
            assert!(own(host), "{host} is this machine");
        }
        for host in [
            "",
            "localhost.example",
            "example.localhost",
            "127.0.0.1.example",
            "0.0.0.0:9901",
            "10.0.0.1",
            "[::]:9901",
            "[fe80::1]",
            "localhost@example.com",
            "example.com@localhost",
            "2130706433",
        ] {
            assert!(!own(host), "{host} is not");
        }
    }

    #[tokio::test]
    async fn a_listener_that_other_machines_can_reach_needs_a_token() {
        crate::time_limit::limit_this_test();
        let (head, ()) = http::Request::get("/locks")
            .header(HOST, "localhost")
            .body(())
            .expect("a request")
            .into_parts();
        for (address, is_open) in [
            ("127.0.0.1", true),
            ("127.8.0.1", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("0.0.0.0", false),
            ("::", false),
            ("10.0.0.1", false),
            ("fe80::1", false),
        ] {
            let access = AccessPolicy::new(address.parse().expect("an address"), None);
            let checked = access.check(&head).await;
            assert_eq!(checked.is_ok(), is_open, "at {address}");
            if let Err(denied) = checked {
                let status = denied.response().status();
                assert_eq!(status, StatusCode::FORBIDDEN, "at {address}");
                assert!(
                    matches!(denied, AccessDenied::Open),
                    "whatever the Host says"
                );
            }
        }
    }

    #[test]
    fn a_bearer_token_follows_the_scheme() {
        assert_eq!(bearer(b"Bearer abc"), Some(&b"abc"[..]), "as it is written");
        assert_eq!(bearer(b"bEARER  abc"), Some(&b"abc"[..]), "in any case");
        for none in [&b"Bearer"[..], b"Basic abc", b"abc", b"", b"Bearerabc x"] {
            assert_eq!(bearer(none), None, "{none:?} has none");
        }
    }
}
