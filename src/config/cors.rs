//! `[cors]`: which pages of other origins may read error responses.
//!
//! Invariant: credentials are never allowed to any origin at once, because browsers refuse that. Adding
//! the headers is left to `proxy::cors`.

use std::fmt;

use super::option::options;
use super::reader::ConfigTable;
use super::upstream::{ParsedUrl, parse_url};
use super::value_kind::{AnyOf, Boolean};

options! {
    /// Which pages of other origins may read error responses.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct CorsConfig in "cors" {
        /// The origins whose pages may read the error responses of Seriatim, as a browser writes them
        /// in the header `origin`; `*` is any origin. They replace what Seriatim learns from the
        /// backend. The responses of the backend never change.
        allow_origins: Vec<AllowedOrigin> = Vec::new(),
            AnyOf { what: "origins", takes_one: true, parse: AllowedOrigin::parse },
            unset "those that the backend allows", example "[\"https://app.example.com\"]", Live;
        /// Whether these pages may send cookies and other credentials with requests whose error
        /// responses they read. Used with `allow_origins`; contradicts `*`.
        allow_credentials: bool = false, Boolean, example "true", Live;
    }
}

/// An origin that may read error responses: `*`, or one origin as browsers write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedOrigin(Box<str>);

// === impl CorsConfig ===

impl CorsConfig {
    /// Reports origins beside `*`, and credentials that no browser would use.
    pub(super) fn check(&self, table: &ConfigTable<'_>) {
        let has_any = self.allow_origins.iter().any(AllowedOrigin::is_any);
        if has_any && self.allow_origins.len() > 1 {
            table.note(
                "allow_origins",
                "* is any origin, so the others have no use: write [\"*\"], or leave the * out",
            );
        }
        const KEY: &str = "allow_credentials";
        if !self.allow_credentials || table.is_wrong("allow_origins") {
            return;
        }
        if self.allow_origins.is_empty() {
            table.note(
                KEY,
                "is used only with allow_origins: write allow_origins = [\"https://...\"] too, or leave \
                 allow_credentials out",
            );
        } else if has_any {
            table.note(
                KEY,
                "contradicts the * in allow_origins, because browsers refuse both together: write the \
                 origins in place of *, or leave allow_credentials out",
            );
        }
    }
}

// === impl AllowedOrigin ===

impl AllowedOrigin {
    /// Whether this is `*`.
    pub fn is_any(&self) -> bool {
        &*self.0 == "*"
    }

    /// The text: `*`, or the origin as it is in the header `origin`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Parses an origin. It becomes what browsers send: in lower case, without the scheme's own port (RFC
    /// 6454 §6.2).
    fn parse(text: &str) -> Result<Self, &'static str> {
        const WANTED: &str =
            "write an origin as \"https://app.example.com\", without a path, or \"*\"";
        if text == "*" {
            return Ok(Self(text.into()));
        }
        let ParsedUrl {
            uri,
            authority,
            port,
        } = parse_url(text, WANTED)?;
        let scheme = uri.scheme_str().ok_or(WANTED)?;
        if authority.as_str().contains(['@', '*']) || uri.path() != "/" || uri.query().is_some() {
            return Err(WANTED);
        }
        let own_port = match scheme {
            "http" => Some(80),
            "https" => Some(443),
            _ => None,
        };
        let host = authority.host().to_lowercase();
        let port = port.filter(|port| Some(*port) != own_port);
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        let scheme = scheme.to_lowercase();
        Ok(Self(format!("{scheme}://{host}{port}").into()))
    }
}

impl fmt::Display for AllowedOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_read_as_browsers_send_it() {
        for (written, sent) in [
            ("https://app.example.com", "https://app.example.com"),
            ("HTTPS://App.Example.com:443/", "https://app.example.com"),
            ("http://localhost:80", "http://localhost"),
            ("http://localhost:3000", "http://localhost:3000"),
            ("https://[::1]:8443", "https://[::1]:8443"),
            ("capacitor://localhost", "capacitor://localhost"),
            ("*", "*"),
        ] {
            let origin = AllowedOrigin::parse(written).expect(written);
            assert_eq!(origin.as_str(), sent, "the origin of {written}");
        }
        for wrong in [
            "",
            "app.example.com",
            "https://",
            "https://a.example/chat",
            "https://a.example/?x",
            "https://u:p@a.example",
            "https://*.example.com",
            "https://a.example:65536",
            "https://a.example:",
            "https://a.example:+1",
            "https://a.example/#x",
            "https://[::1]1",
            "null",
        ] {
            assert!(
                AllowedOrigin::parse(wrong).is_err(),
                "{wrong:?} is no origin"
            );
        }
    }
}
