//! `[errors]`: the language of error responses, and where their reader finds help. The texts are in `proxy::refusal`.

use std::fmt;

use http::HeaderValue;

use super::option::options;
use super::upstream::{ParsedUrl, parse_url};
use super::value_kind::{Optional, text, word, words};

options! {
    /// Error responses, whatever their reason.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct ErrorsConfig in "errors" {
        /// The language of the sentence for the user (`error`) in every error response: `zh` is Chinese, `en` is
        /// English, and `auto` is whichever of the two the client prefers (`accept-language`), Chinese if it
        /// prefers neither. `busy.error` replaces the sentence of a busy session.
        language: ErrorLanguage = ErrorLanguage::Chinese, word(), example "\"auto\"", Live;
        /// The page that explains the error codes, for whoever reads an error response. Each error response then
        /// has the header `link: <URL#session_busy>; rel="help"`, with its code. The page has an anchor for each
        /// code, as docs/troubleshooting.md has.
        help_url: Option<HelpUrl> = None, Optional(text("URL", HelpUrl::parse)), unset "no header",
            example "\"https://seriatim.example.com/troubleshooting.html\"", Live;
    }
}

words! {
    /// The language of error responses.
    pub enum ErrorLanguage {
        /// Chinese.
        Chinese = "zh",
        /// English.
        English = "en",
        /// The one of both that the client prefers.
        Auto = "auto",
    }
}

/// The URL of a page that explains the error codes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelpUrl(Box<str>);

/// The most characters of a [`HelpUrl`].
const MAX_LENGTH: usize = 1000;

// === impl HelpUrl ===

impl HelpUrl {
    /// The value of the header `link` (RFC 8288 §3) that leads to the section about an error code; `None`: the code
    /// has a character that a header can't have, which no code does.
    pub fn link_to(&self, code: &str) -> Option<HeaderValue> {
        let link = format!("<{}#{code}>; rel=\"help\"", self.0);
        link.try_into().ok()
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        const WANTED: &str = "write \"https://host/path\"";
        let ParsedUrl { uri, authority, .. } = parse_url(text, WANTED)?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(WANTED);
        }
        if authority.as_str().contains('@') {
            return Err("can't have a user and a password, since every client can read it");
        }
        // It is in the head of each error response, which proxies in front limit to a few KiB.
        if text.len() > MAX_LENGTH {
            return Err("is longer than 1,000 characters");
        }
        if !text.is_ascii() || text.contains(['<', '>', '"']) {
            return Err("has a character that no URL has: write it percent-encoded");
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for HelpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_leads_to_the_section_of_the_code() {
        for url in [
            "https://seriatim.example.com/troubleshooting.html",
            "http://127.0.0.1:8000",
            "https://wiki.example/page?id=7",
        ] {
            let link = HelpUrl::parse(url).expect(url).link_to("session_busy");
            let expected = format!("<{url}#session_busy>; rel=\"help\"");
            assert_eq!(link.expect("a header's value"), expected.as_str(), "{url}");
        }
        for wrong in [
            "",
            "docs/troubleshooting.md",
            "//wiki.example/page",
            "ftp://wiki.example/page",
            "https://",
            "https://wiki.example/page#codes",
            "https://u:p@wiki.example/page",
            "https://wiki.example/a b",
            "https://wiki.example/>;",
            "https://wiki.example/\"",
            "https://wiki.example/错误",
            "https://wiki.example:0/",
            "https://wiki.example/\r\nx: y",
        ] {
            assert!(HelpUrl::parse(wrong).is_err(), "{wrong:?} is no such URL");
        }
    }
}
