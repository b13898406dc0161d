//! The page at `/`: one HTML file in the binary, and its security headers.
//!
//! Invariants: the page contains no data and sends requests only to the replica that it came from. Its
//! content security policy allows the file's one style and one script, by their hashes, and nothing else.
//! The page's script gets its data from the other paths of the admin interface, with the operator's token.

use std::sync::LazyLock;

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderValue, Response};
use http_body_util::Full;
use sha2::{Digest, Sha256};

use super::response::AdminResponse;

const PAGE: &str = include_str!("page.html");

/// The page's content security policy.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let (style, script) = (hash(inline("style")), hash(inline("script")));
    // `data:` is for the icon. The script never turns text into markup; trusted types make the browser
    // refuse it if a later change tries.
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; \
         connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    );
    // This is always valid text for a header; if it weren't, the page would be allowed nothing.
    HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

/// The digits of base64 (RFC 4648 §4).
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The response with the page.
pub(super) fn response() -> AdminResponse {
    let mut response = Response::new(Full::new(Bytes::from_static(PAGE.as_bytes())));
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, POLICY.clone());
    let fixed = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        // Another replica may have another version of the page at the same address.
        (CACHE_CONTROL, "no-cache"),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The exact text inside the page's only element with this name, which is what a browser hashes.
fn inline(element: &str) -> &'static str {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let after = PAGE.split_once(&open).map_or("", |(_, after)| after);
    after.split_once(&close).map_or("", |(within, _)| within)
}

/// The SHA-256 of a text in base64, as a content security policy has it.
fn hash(text: &str) -> String {
    base64(&Sha256::digest(text))
}

fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut bits = [0; 4];
        bits[1..=group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes(bits);
        for digit in 0..4 {
            text.push(match digit {
                // A group of n bytes has n + 1 digits.
                digit if digit > group.len() => '=',
                digit => char::from(DIGITS[(bits >> (18 - 6 * digit) & 63) as usize]),
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        let known = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("\u{7f}~~", "f35+"),
        ];
        for (text, encoded) in known {
            assert_eq!(base64(text.as_bytes()), encoded, "{text:?}");
        }
        assert_eq!(
            hash("alert('Hello, world.');"),
            "qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng=",
            "a policy's hash is that of the example in the standard"
        );
    }

    #[test]
    fn the_policy_allows_the_pages_style_and_script_and_nothing_else() {
        let response = response();
        let policy = response.headers()[CONTENT_SECURITY_POLICY].to_str();
        let policy = policy.expect("a policy is text");
        for element in ["style", "script"] {
            let (opened, closed) = (format!("<{element}"), format!("</{element}"));
            assert_eq!(PAGE.matches(&opened).count(), 1, "one {element}");
            assert_eq!(PAGE.matches(&closed).count(), 1, "with one end");
            let within = inline(element);
            assert!(within.len() > 1000, "{element} is found, and all of it");
            let allowed = format!("{element}-src 'sha256-{}'", hash(within));
            assert!(policy.contains(&allowed), "its hash is allowed: {policy}");
        }
        for forbidden in [
            " style=",
            " onclick=",
            " src=",
            "@import",
            "innerHTML",
            "://",
        ] {
            assert!(
                !PAGE
                    .replace("http://www.w3.org/2000/svg", "")
                    .contains(forbidden),
                "the page needs nothing that the policy forbids, and no other server: {forbidden}"
            );
        }
    }

    #[test]
    fn the_page_is_small() {
        // A quarter of it are its words, in two languages, with one for each outcome.
        let most = 90 * 1024;
        assert!(
            PAGE.len() < most,
            "people read it as source; it has {} bytes",
            PAGE.len()
        );
    }
}
