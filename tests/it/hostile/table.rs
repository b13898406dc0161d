//! The table of hostile requests. Each case is the bytes of one connection.

/// The bytes of one connection, and how the proxy must handle them.
pub(super) struct Case {
    pub(super) what: &'static str,
    pub(super) bytes: Vec<u8>,
    pub(super) expected: Expected,
}

/// How the proxy must handle a case.
pub(super) enum Expected {
    /// An error response with this status and reason; the backend gets nothing.
    Refused(u16, &'static str),
    /// The end of the connection, in a protocol other than HTTP/1.1; the backend gets nothing.
    Closed,
    /// The backend gets this number of requests and responds to each.
    Forwarded(usize),
    /// The backend gets this number of requests, and the next one is refused.
    ThenRefused(usize, u16, &'static str),
}

use Expected::{Closed, Forwarded, Refused, ThenRefused};

/// The body of a turn, 36 bytes long.
const TURN: &str = r#"{"session_id":"h","user_id":"u-123"}"#;
const LENGTH: &str = "content-length: 36\r\n";
const HOST: &str = "host: a\r\n";

const BAD: Expected = Refused(400, "bad_request");
/// The head is valid. The body is not, which the proxy sees when it reads the body for the session.
const MALFORMED: Expected = Refused(400, "malformed_body");
const VERSION: Expected = Refused(505, "unsupported_http_version");
const CODING: Expected = Refused(501, "unsupported_transfer_coding");

/// A request with this first line, these header lines and this body; `host` is added.
fn request(line: &str, headers: &str, body: &str) -> Vec<u8> {
    raw(line, &format!("{HOST}{headers}"), body)
}

/// A request with this first line, these header lines and this body; no `host` is added.
fn raw(line: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("{line}\r\n{headers}\r\n{body}").into_bytes()
}

/// A turn with these header lines.
fn turn(headers: &str) -> Vec<u8> {
    request("POST /chat HTTP/1.1", &format!("{LENGTH}{headers}"), TURN)
}

/// A turn whose body is framed by these header lines.
fn framed(headers: &str, body: &str) -> Vec<u8> {
    request("POST /chat HTTP/1.1", headers, body)
}

/// A turn with this chunked body, written as given.
fn chunks(body: &str) -> Vec<u8> {
    framed("transfer-encoding: chunked\r\n", body)
}

/// A GET of this target.
fn get(target: &str) -> Vec<u8> {
    request(&format!("GET {target} HTTP/1.1"), "", "")
}

/// A turn with this body.
fn body(text: &str) -> Vec<u8> {
    let length = format!("content-length: {}\r\n", text.len());
    request("POST /chat HTTP/1.1", &length, text)
}

fn joined(first: Vec<u8>, second: Vec<u8>) -> Vec<u8> {
    [first, second].concat()
}

fn group(cases: Vec<(&'static str, Vec<u8>, Expected)>) -> impl Iterator<Item = Case> {
    cases.into_iter().map(|(what, bytes, expected)| Case {
        what,
        bytes,
        expected,
    })
}

pub(super) fn cases() -> Vec<Case> {
    let all = [
        first_lines(),
        lines(),
        lengths(),
        encodings(),
        chunked(),
        hosts(),
        hops(),
        targets(),
        bodies(),
        smuggled(),
        sizes(),
        other_protocols(),
    ];
    all.into_iter().flat_map(group).collect()
}

type Group = Vec<(&'static str, Vec<u8>, Expected)>;

fn first_lines() -> Group {
    let line = |line: &str| request(line, "", "");
    vec![
        ("no version", line("GET /x"), BAD),
        ("an unknown version", line("GET /x HTTP/1.2"), VERSION),
        ("version 3", line("GET /x HTTP/3.0"), VERSION),
        (
            "version 2 in the form of version 1",
            line("GET /x HTTP/2.0"),
            VERSION,
        ),
        ("a version in small letters", line("GET /x http/1.1"), BAD),
        ("a version with two digits", line("GET /x HTTP/1.10"), BAD),
        ("a version with white space", line("GET /x HTTP/ 1.1"), BAD),
        (
            "white space after the version",
            line("GET /x HTTP/1.1 "),
            BAD,
        ),
        (
            "two spaces before the target",
            line("GET  /x HTTP/1.1"),
            BAD,
        ),
        ("two spaces after the target", line("GET /x  HTTP/1.1"), BAD),
        ("a tab between the words", line("GET\t/x HTTP/1.1"), BAD),
        ("a space before the method", line(" GET /x HTTP/1.1"), BAD),
        ("four words", line("GET /x y HTTP/1.1"), BAD),
        ("no method", line("/x HTTP/1.1"), BAD),
        ("a method with a colon", line("GE:T /x HTTP/1.1"), BAD),
        (
            "a method with a control character",
            line("GE\u{1}T /x HTTP/1.1"),
            BAD,
        ),
        ("a method that is not ASCII", line("GÉT /x HTTP/1.1"), BAD),
        ("a target with NUL", line("GET /x\0y HTTP/1.1"), BAD),
        ("a target with a tab", line("GET /x\ty HTTP/1.1"), BAD),
        ("a target that is a bare word", line("GET x HTTP/1.1"), BAD),
        ("an empty target", line("GET  HTTP/1.1"), BAD),
        ("a fragment", line("GET /x#y HTTP/1.1"), BAD),
        ("a bare CR in the first line", line("GET /x\rHTTP/1.1"), BAD),
        (
            "a bare LF ends the first line",
            b"GET /x HTTP/1.1\nhost: a\r\n\r\n".to_vec(),
            BAD,
        ),
        (
            "an empty line before the request",
            joined(b"\r\n".to_vec(), turn("")),
            Forwarded(1),
        ),
        (
            "a bare LF before the request",
            joined(b"\n".to_vec(), turn("")),
            BAD,
        ),
        (
            "many empty lines before the request",
            joined(
                b"\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n".to_vec(),
                turn(""),
            ),
            BAD,
        ),
        ("an unknown method", line("BREW /x HTTP/1.1"), Forwarded(1)),
        (
            "a method in small letters",
            line("post /x HTTP/1.1"),
            Forwarded(1),
        ),
        (
            "CONNECT",
            raw("CONNECT a:80 HTTP/1.1", "host: a:80\r\n", ""),
            Refused(404, "no_route"),
        ),
        ("CONNECT to a path", line("CONNECT /chat HTTP/1.1"), BAD),
        ("an asterisk without OPTIONS", line("GET * HTTP/1.1"), BAD),
        (
            "OPTIONS for the whole server",
            line("OPTIONS * HTTP/1.1"),
            Forwarded(1),
        ),
    ]
}

fn lines() -> Group {
    vec![
        ("a space before the colon", turn("x-a : b\r\n"), BAD),
        ("a tab before the colon", turn("x-a\t: b\r\n"), BAD),
        ("a space within the name", turn("x a: b\r\n"), BAD),
        ("no colon", turn("x-a\r\n"), BAD),
        ("no name", turn(": b\r\n"), BAD),
        ("a folded line", turn("x-a: b\r\n c\r\n"), BAD),
        ("a line folded with a tab", turn("x-a: b\r\n\tc\r\n"), BAD),
        (
            "a folded first header",
            raw(
                "POST /chat HTTP/1.1",
                &format!(" host: a\r\n{LENGTH}"),
                TURN,
            ),
            BAD,
        ),
        ("a bare LF between lines", turn("x-a: b\nx-c: d\r\n"), BAD),
        ("a bare CR between lines", turn("x-a: b\rx-c: d\r\n"), BAD),
        ("a bare CR at a value's end", turn("x-a: b\r\r\n"), BAD),
        ("NUL in a value", turn("x-a: b\0c\r\n"), BAD),
        (
            "a control character in a value",
            turn("x-a: b\u{1}c\r\n"),
            BAD,
        ),
        ("DEL in a value", turn("x-a: b\u{7f}c\r\n"), BAD),
        ("a vertical tab in a value", turn("x-a: b\u{b}c\r\n"), BAD),
        ("a tab in a value", turn("x-a: b\tc\r\n"), Forwarded(1)),
        (
            "a value that is not ASCII",
            turn("x-a: b\u{e9}c\r\n"),
            Forwarded(1),
        ),
        ("a name that is not ASCII", turn("x-\u{e9}: b\r\n"), BAD),
        ("a name with NUL", turn("x-\0a: b\r\n"), BAD),
        ("a name in brackets", turn("x[a]: b\r\n"), BAD),
        ("a name with a slash", turn("x/a: b\r\n"), BAD),
        ("an empty value", turn("x-a:\r\n"), Forwarded(1)),
        (
            "white space around a value",
            turn("x-a: \t b \t \r\n"),
            Forwarded(1),
        ),
        (
            "a head that ends in bare LFs",
            b"GET /x HTTP/1.1\nhost: a\n\n".to_vec(),
            BAD,
        ),
        (
            "a head whose last line is a bare LF",
            b"GET /x HTTP/1.1\r\nhost: a\r\n\n".to_vec(),
            BAD,
        ),
        (
            "a head that ends in CR CR LF",
            b"GET /x HTTP/1.1\r\nhost: a\r\n\r\r\n".to_vec(),
            BAD,
        ),
    ]
}

fn lengths() -> Group {
    let with = |value: &str| framed(&format!("content-length: {value}\r\n"), TURN);
    vec![
        (
            "two equal lengths",
            framed(&format!("{LENGTH}{LENGTH}"), TURN),
            BAD,
        ),
        (
            "two different lengths",
            framed(&format!("{LENGTH}content-length: 5\r\n"), TURN),
            BAD,
        ),
        ("a list of equal lengths", with("36, 36"), BAD),
        ("a list of different lengths", with("36, 5"), BAD),
        ("a length with a plus", with("+36"), BAD),
        ("a negative length", with("-36"), BAD),
        ("a length in hex", with("0x24"), BAD),
        ("a length with letters", with("36a"), BAD),
        ("a length in quotes", with("\"36\""), BAD),
        ("a length with a fraction", with("36.0"), BAD),
        ("a length with an underscore", with("3_6"), BAD),
        ("a length with white space inside", with("3 6"), BAD),
        ("a length of spaces", with("   "), BAD),
        ("an empty length", with(""), BAD),
        ("a length in Arabic digits", with("٣٦"), BAD),
        ("a length above 64 bits", with("18446744073709551652"), BAD),
        (
            "a length of many digits",
            with("000000000000000000000000000000036"),
            BAD,
        ),
        (
            "a length that exceeds every limit",
            with("9223372036854775807"),
            Refused(413, "body_too_large"),
        ),
        (
            "a length with white space around it",
            with(" \t36\t "),
            Forwarded(1),
        ),
        ("a length after a vertical tab", with("\u{b}36"), BAD),
        (
            "a length with an underscore in its name",
            framed(&format!("{LENGTH}content_length: 5\r\n"), TURN),
            BAD,
        ),
        (
            "a length with a space before the colon",
            framed("content-length : 36\r\n", TURN),
            BAD,
        ),
        (
            "a length in another letter case",
            framed("CONTENT-LENGTH: 36\r\n", TURN),
            Forwarded(1),
        ),
    ]
}

fn encodings() -> Group {
    let with = |value: &str| {
        let body = format!("24\r\n{TURN}\r\n0\r\n\r\n");
        framed(&format!("transfer-encoding: {value}\r\n"), &body)
    };
    let both = |first: &str, second: &str| {
        framed(
            &format!("{first}{second}"),
            &format!("24\r\n{TURN}\r\n0\r\n\r\n"),
        )
    };
    let chunked = "transfer-encoding: chunked\r\n";
    vec![
        ("chunked", with("chunked"), Forwarded(1)),
        (
            "chunked in another letter case",
            with("CHUNKED"),
            Forwarded(1),
        ),
        (
            "a length and then chunks",
            both("content-length: 46\r\n", chunked),
            BAD,
        ),
        (
            "chunks and then a length",
            both(chunked, "content-length: 46\r\n"),
            BAD,
        ),
        (
            "chunks and a length of 0",
            both(chunked, "content-length: 0\r\n"),
            BAD,
        ),
        (
            "chunks and a length that is not a number",
            both(chunked, "content-length: x\r\n"),
            BAD,
        ),
        ("chunked twice", both(chunked, chunked), BAD),
        ("chunked twice in a list", with("chunked, chunked"), BAD),
        ("gzip before chunked", with("gzip, chunked"), CODING),
        ("gzip alone", with("gzip"), BAD),
        (
            "gzip in its own line",
            both("transfer-encoding: gzip\r\n", chunked),
            BAD,
        ),
        ("identity", with("identity"), BAD),
        ("identity behind chunked", with("chunked, identity"), BAD),
        ("identity before chunked", with("identity, chunked"), CODING),
        ("chunked in quotes", with("\"chunked\""), BAD),
        ("chunked with a parameter", with("chunked;q=1"), BAD),
        ("chunked with an extra letter", with("xchunked"), BAD),
        ("chunked without its last letter", with("chunke"), BAD),
        ("chunked with a comma", with(",chunked"), BAD),
        ("chunked after a vertical tab", with("\u{b}chunked"), BAD),
        ("chunked after a CR", with("\rchunked"), BAD),
        ("no coding", with(""), BAD),
        (
            "chunked with white space around it",
            with(" \tchunked\t "),
            Forwarded(1),
        ),
        (
            "a coding with a space before the colon",
            framed(
                "transfer-encoding : chunked\r\n",
                &format!("24\r\n{TURN}\r\n0\r\n\r\n"),
            ),
            BAD,
        ),
        (
            "a coding with an underscore in its name",
            both(LENGTH, "transfer_encoding: chunked\r\n"),
            BAD,
        ),
        (
            "a coding in HTTP/1.0",
            request(
                "POST /chat HTTP/1.0",
                chunked,
                &format!("24\r\n{TURN}\r\n0\r\n\r\n"),
            ),
            BAD,
        ),
    ]
}

fn chunked() -> Group {
    let whole = |size: &str| chunks(&format!("{size}\r\n{TURN}\r\n0\r\n\r\n"));
    vec![
        ("a size with a zero before it", whole("024"), Forwarded(1)),
        ("a size in hex with a prefix", whole("0x24"), MALFORMED),
        ("a size with a plus", whole("+24"), MALFORMED),
        ("a negative size", whole("-24"), MALFORMED),
        ("a size with white space before it", whole(" 24"), MALFORMED),
        ("a size with white space behind it", whole("24 "), MALFORMED),
        ("a size with an underscore", whole("2_4"), MALFORMED),
        ("an empty size", whole(""), MALFORMED),
        ("a size of letters", whole("zz"), MALFORMED),
        (
            "a size above 64 bits",
            whole("10000000000000024"),
            MALFORMED,
        ),
        (
            "a size of many zeros",
            whole("00000000000000000000000000000000024"),
            MALFORMED,
        ),
        ("an extension", whole("24;a=b"), Forwarded(1)),
        ("an extension with a bare LF", whole("24;a\nb"), MALFORMED),
        ("an extension with a bare CR", whole("24;a\rb"), MALFORMED),
        (
            "an extension without an end",
            chunks(&format!("24;{}", "a".repeat(40_000))),
            MALFORMED,
        ),
        (
            "a size ended by a bare LF",
            chunks(&format!("24\n{TURN}\r\n0\r\n\r\n")),
            MALFORMED,
        ),
        (
            "a size ended by a bare CR",
            chunks(&format!("24\r{TURN}\r\n0\r\n\r\n")),
            MALFORMED,
        ),
        (
            "data ended by a bare LF",
            chunks(&format!("24\r\n{TURN}\n0\r\n\r\n")),
            MALFORMED,
        ),
        (
            "data longer than its size",
            chunks(&format!("23\r\n{TURN}\r\n0\r\n\r\n")),
            MALFORMED,
        ),
        (
            "data shorter than its size",
            chunks(&format!("25\r\n{TURN}\r\n0\r\n\r\n")),
            MALFORMED,
        ),
        (
            "a last chunk ended by a bare LF",
            chunks(&format!("24\r\n{TURN}\r\n0\n\r\n")),
            MALFORMED,
        ),
        (
            "trailers ended by a bare LF",
            chunks(&format!("24\r\n{TURN}\r\n0\r\n\n")),
            MALFORMED,
        ),
        (
            "a trailer",
            chunks(&format!("24\r\n{TURN}\r\n0\r\nx-sum: 1\r\n\r\n")),
            Forwarded(1),
        ),
        (
            "a length in the trailers",
            chunks(&format!("24\r\n{TURN}\r\n0\r\ncontent-length: 5\r\n\r\n")),
            MALFORMED,
        ),
        (
            "a coding in the trailers",
            chunks(&format!(
                "24\r\n{TURN}\r\n0\r\ntransfer-encoding: chunked\r\n\r\n"
            )),
            MALFORMED,
        ),
        (
            "a host in the trailers",
            chunks(&format!("24\r\n{TURN}\r\n0\r\nhost: b\r\n\r\n")),
            MALFORMED,
        ),
        (
            "the proxy's header in the trailers",
            chunks(&format!("24\r\n{TURN}\r\n0\r\nx-seriatim-fence: 1\r\n\r\n")),
            MALFORMED,
        ),
        (
            "a forwarding header in the trailers",
            chunks(&format!("24\r\n{TURN}\r\n0\r\nx_forwarded_for: 1\r\n\r\n")),
            MALFORMED,
        ),
        (
            "a session header in the trailers",
            request(
                "POST /header HTTP/1.1",
                "transfer-encoding: chunked\r\n",
                "2\r\nhi\r\n0\r\nx-session: s1\r\n\r\n",
            ),
            Forwarded(1),
        ),
        (
            "a folded trailer",
            chunks(&format!("24\r\n{TURN}\r\n0\r\nx-a: b\r\n c\r\n\r\n")),
            MALFORMED,
        ),
        (
            "a trailer without a colon",
            chunks(&format!("24\r\n{TURN}\r\n0\r\nnonsense\r\n\r\n")),
            MALFORMED,
        ),
        (
            "trailers without an end",
            chunks(&format!("24\r\n{TURN}\r\n0\r\nx-a: {}", "b".repeat(70_000))),
            MALFORMED,
        ),
        (
            "many small chunks",
            chunks(&format!(
                "{}0\r\n\r\n",
                TURN.chars()
                    .map(|c| format!("1\r\n{c}\r\n"))
                    .collect::<String>()
            )),
            Forwarded(1),
        ),
    ]
}

fn hosts() -> Group {
    let with = |headers: &str| raw("POST /chat HTTP/1.1", &format!("{headers}{LENGTH}"), TURN);
    vec![
        ("no host", with(""), BAD),
        (
            "two hosts",
            with("host: a\r\nhost: b\r\n"),
            Refused(400, "ambiguous_key"),
        ),
        (
            "two equal hosts",
            with("host: a\r\nhost: a\r\n"),
            Refused(400, "ambiguous_key"),
        ),
        ("two hosts in a list", with("host: a, b\r\n"), BAD),
        ("a host with a user", with("host: u@a\r\n"), BAD),
        ("a host with a path", with("host: a/b\r\n"), BAD),
        ("a host with white space", with("host: a b\r\n"), BAD),
        (
            "a host with a port that is not a number",
            with("host: a:x\r\n"),
            BAD,
        ),
        ("a host with a query", with("host: a?b\r\n"), BAD),
        ("a host with a backslash", with("host: a\\b\r\n"), BAD),
        ("an empty host", with("host: \r\n"), Forwarded(1)),
        ("a host with a port", with("host: a:80\r\n"), Forwarded(1)),
        (
            "a host that is an IPv6 address",
            with("host: [::1]:80\r\n"),
            Forwarded(1),
        ),
        (
            "no host in HTTP/1.0",
            raw("POST /chat HTTP/1.0", LENGTH, TURN),
            Forwarded(1),
        ),
        (
            "an absolute target of the same host",
            raw(
                "POST http://a/chat HTTP/1.1",
                &format!("host: a\r\n{LENGTH}"),
                TURN,
            ),
            Forwarded(1),
        ),
        (
            "an absolute target of another host",
            raw(
                "POST http://b/chat HTTP/1.1",
                &format!("host: a\r\n{LENGTH}"),
                TURN,
            ),
            Forwarded(1),
        ),
        (
            "an absolute target with a user",
            raw(
                "POST http://u@a/chat HTTP/1.1",
                &format!("host: a\r\n{LENGTH}"),
                TURN,
            ),
            BAD,
        ),
        (
            "an absolute target without a host",
            raw(
                "POST http:///chat HTTP/1.1",
                &format!("host: a\r\n{LENGTH}"),
                TURN,
            ),
            BAD,
        ),
        (
            "an absolute target of a strange scheme",
            raw(
                "POST ftp://a/chat HTTP/1.1",
                &format!("host: a\r\n{LENGTH}"),
                TURN,
            ),
            BAD,
        ),
    ]
}

fn hops() -> Group {
    vec![
        (
            "the proxy's fence from a client",
            turn("x-seriatim-fence: 1\r\n"),
            Forwarded(1),
        ),
        (
            "the proxy's fence with underscores",
            turn("x_seriatim_fence: 1\r\n"),
            Forwarded(1),
        ),
        (
            "any header with the proxy's prefix",
            turn("X-Seriatim-Anything: 1\r\n"),
            Forwarded(1),
        ),
        (
            "connection names the fence",
            turn("connection: x-seriatim-fence\r\n"),
            Forwarded(1),
        ),
        (
            "connection names the host",
            turn("connection: host\r\n"),
            Forwarded(1),
        ),
        (
            "connection names the length",
            turn("connection: content-length\r\n"),
            Forwarded(1),
        ),
        (
            "connection names the coding",
            framed(
                "transfer-encoding: chunked\r\nconnection: transfer-encoding\r\n",
                &format!("24\r\n{TURN}\r\n0\r\n\r\n"),
            ),
            Forwarded(1),
        ),
        (
            "connection names a header",
            turn("connection: x-a\r\nx-a: b\r\n"),
            Forwarded(1),
        ),
        (
            "connection names nonsense",
            turn("connection: ,, @,;\r\n"),
            Forwarded(1),
        ),
        (
            "a session header that connection names",
            request(
                "GET /header HTTP/1.1",
                "connection: x-session\r\nx-session: s1\r\n",
                "",
            ),
            Forwarded(1),
        ),
        (
            "keep-alive and proxy-connection",
            turn("keep-alive: timeout=5\r\nproxy-connection: keep-alive\r\n"),
            Forwarded(1),
        ),
        (
            "te with a list",
            turn("te: gzip, trailers;q=0.5, deflate\r\n"),
            Forwarded(1),
        ),
        ("te with nonsense", turn("te: \u{e9}, ,\r\n"), Forwarded(1)),
        (
            "an announced trailer",
            turn("te: trailers\r\ntrailer: x-sum\r\n"),
            Forwarded(1),
        ),
        (
            "a session header announced as a trailer",
            turn("trailer: x-a, X-Session\r\n"),
            BAD,
        ),
        (
            "a session header with underscores announced as a trailer",
            turn("trailer: x_session\r\n"),
            BAD,
        ),
        (
            "a forwarding header announced as a trailer",
            turn("trailer: X-Forwarded-For\r\n"),
            BAD,
        ),
        (
            "the proxy's header announced as a trailer",
            turn("trailer: x-seriatim-fence\r\n"),
            BAD,
        ),
        (
            "an announcement that connection names",
            turn("connection: trailer\r\ntrailer: x-session\r\n"),
            Forwarded(1),
        ),
        (
            "an upgrade that connection does not name",
            turn("upgrade: websocket\r\n"),
            Forwarded(1),
        ),
        (
            "an upgrade to h2c",
            turn(
                "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
            ),
            Forwarded(1),
        ),
        (
            "an unknown expectation",
            turn("expect: everything\r\n"),
            Forwarded(1),
        ),
        (
            "a session header that occurs twice",
            request(
                "GET /header HTTP/1.1",
                "x-session: s1\r\nx-session: s2\r\n",
                "",
            ),
            Refused(400, "ambiguous_key"),
        ),
        (
            "a session header with an underscore twin",
            request(
                "GET /header HTTP/1.1",
                "x-session: s1\r\nx_session: s2\r\n",
                "",
            ),
            Refused(400, "ambiguous_key"),
        ),
        (
            "a session header that is not UTF-8",
            joined(
                b"GET /header HTTP/1.1\r\nhost: a\r\nx-session: ".to_vec(),
                b"\xff\xfe\r\n\r\n".to_vec(),
            ),
            Refused(400, "bad_session_id"),
        ),
    ]
}

fn targets() -> Group {
    vec![
        (
            "an id with an encoded slash",
            get("/threads/a%2Fb/runs"),
            Refused(400, "ambiguous_key"),
        ),
        (
            "an id after dots",
            get("/threads/x/../a/runs"),
            Refused(400, "ambiguous_key"),
        ),
        (
            "an id after encoded dots",
            get("/threads/x/%2e%2e/a/runs"),
            Refused(400, "ambiguous_key"),
        ),
        (
            "an id after doubled slashes",
            get("//threads//a/runs"),
            Refused(400, "ambiguous_key"),
        ),
        (
            "an id with a parameter",
            get("/threads/a;b/runs"),
            Refused(400, "ambiguous_key"),
        ),
        (
            "an id that is not UTF-8",
            get("/threads/%ff%fe/runs"),
            Refused(400, "bad_session_id"),
        ),
        ("an id with an encoded NUL", get("/threads/a%00b/runs"), BAD),
        (
            "an id with an encoded line end",
            get("/threads/a%0d%0ab/runs"),
            BAD,
        ),
        ("a line end after the path", get("/chat%0A"), BAD),
        (
            "a line end after a path without a route",
            get("/elsewhere%0a"),
            BAD,
        ),
        ("an encoded NUL after the path", get("/chat%00"), BAD),
        ("an encoded DEL in the path", get("/%7fchat"), BAD),
        ("a DEL in the path", get("/\u{7f}chat"), BAD),
        (
            "a line end in the path of an absolute target",
            get("http://a/chat%0A"),
            BAD,
        ),
        (
            "a line end that is encoded twice",
            get("/chat%250A"),
            Forwarded(1),
        ),
        (
            "a control character above ASCII",
            get("/chat%C2%85"),
            Forwarded(1),
        ),
        (
            "a path that is a turn's after removal of its invalid bytes",
            request("POST /ch%ffat HTTP/1.1", "", ""),
            BAD,
        ),
        (
            "half of a character after the path of a turn",
            request("POST /chat%e4%b8 HTTP/1.1", "", ""),
            BAD,
        ),
        (
            "a path that is not UTF-8, and not a turn's",
            get("/caf%e9"),
            Forwarded(1),
        ),
        (
            "an id that tries to be another key",
            get("/threads/a:b%7D%3Aline/runs"),
            Forwarded(1),
        ),
        ("an invalid escape", get("/threads/a%zz/runs"), Forwarded(1)),
        (
            "a query field that occurs twice",
            get("/query?session=a&session=b"),
            Refused(400, "ambiguous_key"),
        ),
        (
            "a query field that occurs twice, once encoded",
            get("/query?session=a&%73ession=b"),
            Refused(400, "ambiguous_key"),
        ),
        (
            "a query field that is not UTF-8",
            get("/query?session=%ff"),
            Refused(400, "bad_session_id"),
        ),
        (
            "a query with many special characters",
            get("/query?session=a&x=%0d%0ay:%20z;{}|^`"),
            Forwarded(1),
        ),
    ]
}

fn bodies() -> Group {
    vec![
        (
            "not JSON",
            body("session_id=h"),
            Refused(400, "malformed_body"),
        ),
        (
            "truncated JSON",
            body("{\"session_id\":\"h\""),
            Refused(400, "malformed_body"),
        ),
        (
            "garbage after the JSON",
            body("{\"session_id\":\"h\"}x"),
            Refused(400, "malformed_body"),
        ),
        (
            "two documents",
            body("{\"session_id\":\"h\"}{\"session_id\":\"i\"}"),
            Refused(400, "malformed_body"),
        ),
        (
            "a member twice",
            body("{\"session_id\":\"h\",\"session_id\":\"i\"}"),
            Refused(400, "ambiguous_key"),
        ),
        (
            "a member twice, once escaped",
            body("{\"session_id\":\"h\",\"session\\u005fid\":\"i\"}"),
            Refused(400, "ambiguous_key"),
        ),
        (
            "a member in two letter cases",
            body("{\"session_id\":\"h\",\"Session_ID\":\"i\"}"),
            Refused(400, "ambiguous_key"),
        ),
        (
            "a byte order mark",
            body("\u{feff}{\"session_id\":\"h\"}"),
            Refused(400, "malformed_body"),
        ),
        (
            "comments",
            body("/**/{\"session_id\":\"h\"}"),
            Refused(400, "malformed_body"),
        ),
        (
            "a trailing comma",
            body("{\"session_id\":\"h\",}"),
            Refused(400, "malformed_body"),
        ),
        (
            "NaN",
            body("{\"session_id\":NaN}"),
            Refused(400, "malformed_body"),
        ),
        (
            "single quotes",
            body("{'session_id':'h'}"),
            Refused(400, "malformed_body"),
        ),
        (
            "an object for an id",
            body("{\"session_id\":{}}"),
            Refused(400, "bad_session_id"),
        ),
        (
            "true for an id",
            body("{\"session_id\":true}"),
            Refused(400, "bad_session_id"),
        ),
        (
            "a fraction for an id",
            body("{\"session_id\":1.5}"),
            Refused(400, "bad_session_id"),
        ),
        (
            "half of a surrogate",
            body("{\"session_id\":\"\\ud800\"}"),
            Refused(400, "bad_session_id"),
        ),
        (
            "an id that is too long",
            body(&format!("{{\"session_id\":\"{}\"}}", "a".repeat(513))),
            Refused(400, "bad_session_id"),
        ),
        (
            "deep nesting",
            body(&"[".repeat(200)),
            Refused(400, "malformed_body"),
        ),
        (
            "deep nesting next to the id",
            body(&format!(
                "{{\"a\":{}{},\"session_id\":\"h\"}}",
                "[".repeat(200),
                "]".repeat(200)
            )),
            Refused(400, "malformed_body"),
        ),
        (
            "a body that is not UTF-8",
            joined(
                b"POST /chat HTTP/1.1\r\nhost: a\r\ncontent-length: 18\r\n\r\n".to_vec(),
                b"{\"session_id\":\"\xff\"}".to_vec(),
            ),
            Refused(400, "malformed_body"),
        ),
        (
            "a body that does not fit its encoding",
            turn("content-encoding: gzip\r\n"),
            Refused(400, "malformed_body"),
        ),
        (
            "an unknown encoding",
            turn("content-encoding: rot13\r\n"),
            Refused(415, "unsupported_encoding"),
        ),
        (
            "too many encodings",
            turn("content-encoding: gzip, gzip, gzip, gzip, gzip, gzip\r\n"),
            Refused(415, "unsupported_encoding"),
        ),
    ]
}

fn smuggled() -> Group {
    let hidden = "POST /chat HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";
    let length = format!("content-length: {}\r\n", hidden.len());
    vec![
        (
            "a request in a body stays a body",
            request("POST /other HTTP/1.1", &length, hidden),
            Forwarded(1),
        ),
        (
            "a request in a chunk stays a chunk",
            request(
                "POST /other HTTP/1.1",
                "transfer-encoding: chunked\r\n",
                &format!("{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len()),
            ),
            Forwarded(1),
        ),
        (
            "a request after a length and chunks",
            request(
                "POST /other HTTP/1.1",
                "content-length: 5\r\ntransfer-encoding: chunked\r\n",
                &format!("0\r\n\r\n{hidden}"),
            ),
            BAD,
        ),
        (
            "a request after chunks and a length",
            request(
                "POST /other HTTP/1.1",
                "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
                &format!("0\r\n\r\n{hidden}"),
            ),
            BAD,
        ),
        (
            "a request after an empty body",
            joined(
                request("POST /other HTTP/1.1", "content-length: 0\r\n", ""),
                turn(""),
            ),
            Forwarded(2),
        ),
        (
            "a request after a GET without a length",
            joined(get("/x"), turn("")),
            Forwarded(2),
        ),
        (
            "a request after a GET with a body",
            joined(
                request("GET /x HTTP/1.1", "content-length: 3\r\n", "abc"),
                turn(""),
            ),
            Forwarded(2),
        ),
        (
            "a request after trailers",
            joined(
                chunks(&format!("24\r\n{TURN}\r\n0\r\nx-a: b\r\n\r\n")),
                turn(""),
            ),
            Forwarded(2),
        ),
        (
            "a malformed request after a valid one",
            joined(turn(""), b"NONSENSE\r\n\r\n".to_vec()),
            ThenRefused(1, 400, "bad_request"),
        ),
        (
            "a body longer than its length",
            joined(turn(""), b"abc\r\n\r\n".to_vec()),
            ThenRefused(1, 400, "bad_request"),
        ),
        (
            "a request after one that closes",
            joined(turn("connection: close\r\n"), turn("")),
            Forwarded(1),
        ),
        (
            "a request after a refused one whose connection ends",
            joined(
                framed("content-length: 8\r\nconnection: close\r\n", "nonsense"),
                turn(""),
            ),
            Refused(400, "malformed_body"),
        ),
        (
            "a bare CR before the end of the head",
            request(
                "POST /chat HTTP/1.1",
                "content-length: 36\r\nx: y\r\n\r",
                hidden,
            ),
            BAD,
        ),
        (
            "a header name that hides a length",
            request(
                "POST /chat HTTP/1.1",
                "x: y\r\ncontent-length\u{a0}: 36\r\n",
                TURN,
            ),
            BAD,
        ),
    ]
}

fn sizes() -> Group {
    let many: String = (0..1000).map(|n| format!("x-{n}: a\r\n")).collect();
    vec![
        (
            "a target that is too long",
            get(&format!("/{}", "a".repeat(100_000))),
            Refused(414, "uri_too_long"),
        ),
        (
            "a header that is too long",
            turn(&format!("x-a: {}\r\n", "b".repeat(200_000))),
            Refused(431, "head_too_large"),
        ),
        (
            "a head without an end",
            joined(
                b"GET /x HTTP/1.1\r\nhost: a\r\nx-a: ".to_vec(),
                vec![b'a'; 200_000],
            ),
            Refused(431, "head_too_large"),
        ),
        (
            "too many headers",
            turn(&many),
            Refused(431, "head_too_large"),
        ),
        (
            "a method without an end",
            vec![b'A'; 200_000],
            Refused(414, "uri_too_long"),
        ),
        (
            "a body announced as too large",
            request("POST /chat HTTP/1.1", "content-length: 2001\r\n", ""),
            Refused(413, "body_too_large"),
        ),
        (
            "a body announced as too large, with expect",
            request(
                "POST /chat HTTP/1.1",
                "content-length: 2001\r\nexpect: 100-continue\r\n",
                "",
            ),
            Refused(413, "body_too_large"),
        ),
        (
            "a body that grows too large",
            chunks(&format!("bb8\r\n{}\r\n0\r\n\r\n", "a".repeat(3000))),
            Refused(413, "body_too_large"),
        ),
    ]
}

fn other_protocols() -> Group {
    vec![
        (
            "a TLS handshake",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(),
            BAD,
        ),
        (
            "an SSH greeting",
            b"SSH-2.0-OpenSSH_9.6\r\n\r\n".to_vec(),
            BAD,
        ),
        ("a Redis command", b"*1\r\n$4\r\nPING\r\n\r\n".to_vec(), BAD),
        ("an SMTP greeting", b"EHLO a\r\n\r\n".to_vec(), BAD),
        (
            "a PROXY protocol line",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET /x HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(),
            BAD,
        ),
        ("HTTP/0.9", b"GET /x\r\n\r\n".to_vec(), BAD),
        (
            "the HTTP/2 preface and then garbage",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnonsense-nonsense-nonsense".to_vec(),
            Closed,
        ),
        (
            "a part of the HTTP/2 preface",
            b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec(),
            VERSION,
        ),
        ("zeros", vec![0; 1000], BAD),
        (
            "random bytes",
            (0..2000_u32)
                .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
                .chain(*b"\r\n\r\n")
                .collect(),
            BAD,
        ),
        (
            "a response",
            b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec(),
            BAD,
        ),
    ]
}
