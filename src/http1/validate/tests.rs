//! What the validator lets pass and what it refuses, in one piece and byte by byte.

use super::fields::MAX_FIELDS;
use super::head::{MAX_HEAD, MAX_TARGET};
use super::*;
use crate::service::{BadRequest, RequestLine};

/// A valid first line and host.
const FIRST: &str = "POST /chat HTTP/1.1\r\nhost: a\r\n";

/// A request with this chunked body.
fn chunked(body: &str) -> String {
    format!("{FIRST}transfer-encoding: chunked\r\n\r\n{body}")
}

/// Offers `bytes` in one piece; gives how many pass and what is refused.
fn at_once(bytes: &[u8]) -> (usize, Option<BadRequest>) {
    let validated = RequestValidator::default().validate(bytes);
    let reason = validated.rejected.map(|rejected| rejected.reason);
    (validated.bytes, reason)
}

/// Offers `bytes` one by one, and what is held back again; gives how many pass and what is refused.
fn byte_by_byte(bytes: &[u8]) -> (usize, Option<BadRequest>) {
    let (mut validator, mut start) = (RequestValidator::default(), 0);
    for end in 1..=bytes.len() {
        let validated = validator.validate(&bytes[start..end]);
        start += validated.bytes;
        if let Some(rejected) = validated.rejected {
            return (start, Some(rejected.reason));
        }
    }
    (start, None)
}

#[track_caller]
fn passes(request: &str) {
    let all = (request.len(), None);
    assert_eq!(at_once(request.as_bytes()), all, "{request:?} passes");
    assert_eq!(
        byte_by_byte(request.as_bytes()),
        all,
        "{request:?} passes, byte by byte"
    );
    let twice = request.repeat(2);
    assert_eq!(
        at_once(twice.as_bytes()),
        (twice.len(), None),
        "{request:?} twice"
    );
}

#[track_caller]
fn is_refused(request: &str, status: u16) {
    for (how, (_, why)) in [
        ("at once", at_once(request.as_bytes())),
        ("byte by byte", byte_by_byte(request.as_bytes())),
    ] {
        let why = why.map(|why| why.status().as_u16());
        assert_eq!(why, Some(status), "{request:?}, {how}");
    }
}

#[test]
fn valid_requests_pass() {
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\nHost:\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nhost: a:80\r\n\r\n",
        "GET http://a/b?c HTTP/1.1\r\nhost: other\r\n\r\n",
        "GET http://a/b?c HTTP/1.1\r\nhost: [::1]:8080\r\n\r\n",
        "CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /%zz//../\"{|}\"?a+b= HTTP/1.1\r\nhost: a\r\n\r\n",
        "POST /é?ü HTTP/1.1\r\nhost: a_b.c\r\nx: é\tü \r\n\r\n",
        "m!#$ / HTTP/1.1\r\nhost: a\r\n\r\n",
    ] {
        passes(request);
    }
    for rest in [
        "content-length: 0\r\n\r\n",
        "content-length: 5 \r\n\r\nhello",
        "CONTENT-LENGTH:\t5\r\n\r\nhello",
        "transfer-encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n0005;a=\"b\\\"\"\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n0\r\nx-sum: 1\r\ny:\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n00000\r\n\r\n",
        "connection: content-length, host\r\ncontent-length: 1\r\n\r\nx",
        "x-empty:\r\nx-empty: \r\n\r\n",
    ] {
        passes(&format!("{FIRST}{rest}"));
    }
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    for request in [
        "GET / HTTP/1.1\nhost: a\n\n",
        "GET / HTTP/1.1\r\nhost: a\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\n\n",
        "GET / HTTP/1.1\rhost: a\r\n\r\n",
        "\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
        " GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET  / HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /  HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET / HTTP/1.1 \r\nhost: a\r\n\r\n",
        "GET\t/ HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /\t HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET / a HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /\r\n\r\n",
        "GET\r\n\r\n",
        "GET / http/1.1\r\nhost: a\r\n\r\n",
        "GET / HTTP/1.10\r\nhost: a\r\n\r\n",
        "G(T / HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET a HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET ?a HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET * HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET http://user@a/ HTTP/1.1\r\nhost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 05\r\n\r\nhello",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent_length: 5\r\n\r\nhello",
        "POST / HTTP/1.1\r\nhost: a\r\nTransfer_Encoding: chunked\r\n\r\n",
        "GET /#a HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /\x7f HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /\0 HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET ftp://a/ HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET http:///a HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET http://a/#b HTTP/1.1\r\nhost: a\r\n\r\n",
        "CONNECT / HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "\x16\x03\x01\x02\0\x01\0\x01",
        "{\"session_id\": \"s\"}",
    ] {
        is_refused(request, 400);
    }
    for rest in [
        "content-length: 1\r\ncontent-length: 1\r\n\r\nx",
        "content-length: 1, 1\r\n\r\nx",
        "content_length: 1\r\n\r\nx",
        "Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n",
        "content-length: 000000000000000000001\r\n\r\nx",
        "content-length: +1\r\n\r\nx",
        "content-length: -1\r\n\r\nx",
        "content-length: 0x1\r\n\r\nx",
        "content-length: 1 1\r\n\r\nx",
        "content-length: \r\n\r\n",
        "content-length: 18446744073709551616\r\n\r\n",
        "content-length: 18446744073709551615\r\n\r\n",
        "content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        "transfer-encoding: gzip\r\n\r\n",
        "transfer-encoding: identity\r\n\r\n",
        "transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
        "transfer-encoding: , chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        "\ttransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "x: a\r\n b\r\n\r\n",
        "x: a\0b\r\n\r\n",
        "x: a\rb\r\n\r\n",
        "x: a\x01b\r\n\r\n",
        "x: a\x7fb\r\n\r\n",
        "x\r\n\r\n",
        ": a\r\n\r\n",
        "x y: a\r\n\r\n",
        "x\u{a0}: a\r\n\r\n",
        "x(: a\r\n\r\n",
    ] {
        is_refused(&format!("{FIRST}{rest}"), 400);
    }
    for host in [
        "a,b", "a b", "a@b", "a/b", "a:b", "a:1:2", "a?b", "a#b", "a\\b", "[::1", "[::1]a", "[]",
        "a:123456", "a%00",
    ] {
        is_refused(&format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n"), 400);
    }
    is_refused(
        "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    );
    is_refused(
        &format!("{FIRST}transfer-encoding: gzip, chunked\r\n\r\n"),
        501,
    );
    is_refused("GET / HTTP/2.0\r\nhost: a\r\n\r\n", 505);
    is_refused("GET / HTTP/1.2\r\nhost: a\r\n\r\n", 505);
}

#[test]
fn a_chunked_body_is_validated_strictly() {
    for body in [
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "5 ;a\r\nhello\r\n0\r\n\r\n",
        "5_0\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        ";a\r\nhello\r\n0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5;\0\r\nhello\r\n0\r\n\r\n",
        "1000000000000005\r\nhello\r\n0\r\n\r\n",
        "0\r\nx: a\n\r\n",
        "0\r\n x: a\r\n\r\n",
        "0\r\nx\r\n\r\n",
        "0\r\ncontent-length: 5\r\n\r\n",
        "0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "0\r\nhost: b\r\n\r\n",
        "0\r\nauthorization: b\r\n\r\n",
        "0\r\nx_seriatim-fence: 7\r\n\r\n",
        "0\r\n\n",
    ] {
        is_refused(&chunked(body), 400);
    }
    let mut validator = RequestValidator::default();
    let head = chunked("");
    let validated = validator.validate(format!("{head}5\r\nhello0").as_bytes());
    assert_eq!(
        validated.bytes,
        head.len(),
        "the valid bytes before the defect pass"
    );
    assert!(
        validated
            .rejected
            .is_some_and(|rejected| rejected.is_in_body),
        "the request is being served already"
    );
    assert_eq!(
        validator.validate(b"\r\n\r\n").bytes,
        0,
        "nothing passes after a defect"
    );
}

#[test]
fn a_head_is_held_back_until_it_is_complete() {
    let mut validator = RequestValidator::default();
    let validated = validator.validate(b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET /b HTTP/1.1\r\nhos");
    assert_eq!(validated.bytes, 27, "the first head passes");
    assert!(validator.is_at_head(), "the second head has begun");
    let validated = validator.validate(b"GET /b HTTP/1.1\r\nhost: a\r\n");
    assert_eq!(validated.bytes, 0, "a head without its end is held back");
    let validated = validator.validate(b"GET /b HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(validated.bytes, 28, "a complete head passes");
}

#[test]
fn heads_are_bounded() {
    let longest = "a".repeat(MAX_TARGET - 1);
    passes(&format!("GET /{longest} HTTP/1.1\r\nhost: a\r\n\r\n"));
    is_refused(&format!("GET /{longest}a HTTP/1.1\r\nhost: a\r\n\r\n"), 414);
    is_refused(&format!("GET /{}", "a".repeat(MAX_HEAD)), 414);
    is_refused(&format!("{FIRST}x: {}", "a".repeat(MAX_HEAD)), 431);
    is_refused(&format!("{FIRST}x: {}\r\n\r\n", "a".repeat(MAX_HEAD)), 431);
    // The host is one of the fields.
    passes(&format!("{FIRST}{}\r\n", "x: y\r\n".repeat(MAX_FIELDS - 1)));
    let fields = "x: y\r\n".repeat(MAX_FIELDS);
    is_refused(&format!("{FIRST}{fields}\r\n"), 431);
    let extensions = format!("1;{}\r\nx\r\n", "a".repeat(1000)).repeat(17);
    is_refused(&chunked(&extensions), 400);
    let trailers = "x: y\r\n".repeat(65);
    is_refused(&chunked(&format!("0\r\n{trailers}\r\n")), 400);
    let trailer = format!("x: {}\r\n", "y".repeat(17_000));
    is_refused(&chunked(&format!("0\r\n{trailer}\r\n")), 400);
}

#[test]
fn what_follows_an_upgrade_request_is_held_back_until_the_response_begins() {
    let upgrade = "GET / HTTP/1.1\r\nhost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let next = "GET /b HTTP/1.1\r\nhost: a\r\n\r\n";
    for is_tunnel in [true, false] {
        let mut validator = RequestValidator::default();
        let validated = validator.validate(format!("{upgrade}\x01\x02").as_bytes());
        assert_eq!(
            validated,
            Validated {
                bytes: upgrade.len(),
                rejected: None
            },
            "the request passes alone"
        );
        assert!(
            validator.is_upgrade_pending(),
            "the response decides what follows"
        );
        validator.on_upgrade_answer(is_tunnel);
        let validated = validator.validate(b"\x01\x02");
        assert_eq!(
            validated.rejected.is_none(),
            is_tunnel,
            "bytes that aren't HTTP pass only in a tunnel"
        );
        let mut validator = RequestValidator::default();
        validator.validate(upgrade.as_bytes());
        validator.on_upgrade_answer(is_tunnel);
        assert_eq!(
            validator.validate(next.as_bytes()).bytes,
            next.len(),
            "a request passes in both"
        );
    }
    let mut validator = RequestValidator::default();
    validator
        .validate(format!("{}content-length: 2\r\n\r\n", &upgrade[..upgrade.len() - 2]).as_bytes());
    validator.on_upgrade_answer(false);
    let validated = validator.validate(format!("xx{next}").as_bytes());
    assert_eq!(
        validated.bytes,
        2 + next.len(),
        "an early response decides, too"
    );
}

#[test]
fn a_refused_request_comes_with_its_first_line_if_that_was_valid() {
    let validated = RequestValidator::default().validate(b"GET /a?b HTTP/1.1\r\nx y\r\n\r\n");
    let line = validated.rejected.and_then(|rejected| rejected.line);
    assert_eq!(
        line,
        Some(RequestLine {
            method: "GET".into(),
            target: "/a?b".into(),
        }),
        "the method and the target are known"
    );
    let validated = RequestValidator::default().validate(b"GET /a b HTTP/1.1\r\n\r\n");
    assert_eq!(
        validated.rejected.and_then(|rejected| rejected.line),
        None,
        "nothing is known of a malformed first line"
    );
}
