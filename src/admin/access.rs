//! Who may ask for what isn't open to everybody.
//!
//! With a token, whoever has it. Without one, whoever is on this machine: the listener's address and
//! the name that was asked for have to be the loopback's, for a web page elsewhere may give a name of
//! its own this machine's address (DNS rebinding), and a browser must not have been sent here by
//! another site.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{AUTHORIZATION, HOST, HeaderName, ORIGIN, WWW_AUTHENTICATE};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderValue, StatusCode};

use super::answer::{AdminError, AdminResponse};
use crate::secret::{SecretError, SecretFile, SecretReader};

/// What opens the rest.
#[derive(Debug)]
pub struct AccessPolicy {
    token: Option<SecretReader>,
    is_loopback: bool,
}

/// Why somebody may not.
#[derive(Debug)]
pub(super) enum AccessDenied {
    /// The token is missing, or another.
    Token,
    /// The file with the token is of no use at the moment.
    NoToken(Arc<SecretError>),
    /// Others can reach the listener, and no token is set.
    Open,
    /// It was asked for under a name that isn't this machine's own.
    Host,
    /// Another site has sent the browser here.
    CrossSite,
}

/// What a browser says of where a request comes from (W3C Fetch Metadata).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

// === impl Access ===

impl AccessPolicy {
    /// To a listener at `address`, for whoever has the token, if there is one.
    pub fn new(address: IpAddr, token: Option<SecretFile>) -> Self {
        Self {
            token: token.map(SecretReader::new),
            is_loopback: address.to_canonical().is_loopback(),
        }
    }

    pub(super) async fn check(&self, head: &Parts) -> Result<(), AccessDenied> {
        let Some(file) = &self.token else {
            return match self.is_loopback {
                true => comes_from_here(head),
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

/// The token of `Bearer <token>` (RFC 6750 §2.1); the scheme's case doesn't matter (RFC 9110 §11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let at = value.iter().position(|byte| *byte == b' ')?;
    let (scheme, token) = value.split_at(at);
    scheme
        .eq_ignore_ascii_case(b"bearer")
        .then(|| token.trim_ascii())
}

fn comes_from_here(head: &Parts) -> Result<(), AccessDenied> {
    // The target's own, as HTTP/2 and proxies send it, and the header's: each that is there.
    let hosts = head.headers.get_all(HOST).iter();
    let hosts = hosts.map(|value| Authority::try_from(value.as_bytes()).ok());
    let hosts: Vec<_> = head
        .uri
        .authority()
        .map(|own| Some(own.clone()))
        .into_iter()
        .chain(hosts)
        .collect();
    let is_own = |host: &Option<Authority>| host.as_ref().is_some_and(is_loopback);
    if hosts.is_empty() || !hosts.iter().all(is_own) {
        return Err(AccessDenied::Host);
    }
    let site = head.headers.get_all(SEC_FETCH_SITE).iter();
    // `none`: the person has typed the address. Another port of this machine is another site's, too.
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

/// Whether a name or an address is this machine's own, whatever a resolver says.
fn is_loopback(authority: &Authority) -> bool {
    let host = authority.host();
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let address = bare.unwrap_or(host).parse::<IpAddr>();
    let is_named = !authority.as_str().contains('@') && host.eq_ignore_ascii_case("localhost");
    is_named || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

// === impl Denied ===

impl AccessDenied {
    /// In a word, for the log.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::NoToken(_) => "token_file",
            Self::Open => "no_token_set",
            Self::Host => "host",
            Self::CrossSite => "cross_site",
        }
    }

    /// What they get.
    pub(super) fn answer(&self) -> AdminResponse {
        let (status, reason, error, detail) = match self {
            Self::Token => (
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "A token is needed",
                "send authorization: Bearer and the token that is in admin.token_file",
            ),
            Self::NoToken(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "token_unavailable",
                "The token can't be checked",
                "admin.token_file can't be used at the moment; the log says why",
            ),
            Self::Open => (
                StatusCode::FORBIDDEN,
                "forbidden",
                "This needs a token, and none is set",
                "admin.listen can be reached from elsewhere: set admin.token_file",
            ),
            Self::Host => (
                StatusCode::FORBIDDEN,
                "forbidden",
                "This is answered on this machine only",
                "without admin.token_file the Host has to be localhost, 127.0.0.1 or [::1]",
            ),
            Self::CrossSite => (
                StatusCode::FORBIDDEN,
                "forbidden",
                "Another site has asked for this",
                "without admin.token_file a browser's request has to come from this page itself",
            ),
        };
        let fault = AdminError {
            status,
            reason,
            error,
            detail: detail.into(),
        };
        let mut answer = fault.answer();
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            answer.headers_mut().insert(WWW_AUTHENTICATE, scheme);
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(host: &str) -> bool {
        Authority::try_from(host).is_ok_and(|authority| is_loopback(&authority))
    }

    #[test]
    fn only_the_loopbacks_names_and_addresses_are_this_machines() {
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
    async fn a_listener_that_others_can_reach_needs_a_token_set() {
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
                let answer = denied.answer();
                assert_eq!(answer.status(), StatusCode::FORBIDDEN, "at {address}");
                assert!(
                    matches!(denied, AccessDenied::Open),
                    "whatever the Host says"
                );
            }
        }
    }

    #[test]
    fn a_bearers_token_is_what_follows_the_word() {
        assert_eq!(bearer(b"Bearer abc"), Some(&b"abc"[..]), "as it is written");
        assert_eq!(bearer(b"bEARER  abc"), Some(&b"abc"[..]), "in any case");
        for none in [&b"Bearer"[..], b"Basic abc", b"abc", b"", b"Bearerabc x"] {
            assert_eq!(bearer(none), None, "{none:?} has none");
        }
    }
}
