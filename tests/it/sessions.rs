//! From a request to its session, through the whole proxy: unusual and invalid input, and what of it
//! reaches the backend.
//!
//! The tests see the lock from outside ([`Bench::key`]): while a turn of a request is held open,
//! the same request is either refused with the lock's name, or forwarded, which means that there is
//! no lock.

use crate::support::app::CHAT;
use crate::support::bench::{Bench, assert_error_response, chat};
use crate::support::client::Request;

/// The first 32 hex digits of the SHA-256 of `"hi"`, quotes included, by `sha256sum`.
const HASH_OF_HI: &str = "b49177e05868b7af8e82a644c1ce20e5";

/// A route for each source other than the body.
const ELSEWHERE: &str = r#"
[[routes]]
name = "header"
path = "/header"
session_id = ["{header:X-Session}"]
[[routes]]
name = "cookie"
path = "/cookie"
session_id = ["{cookie:sid}"]
[[routes]]
name = "query"
path = "/query"
session_id = ["{query:session id}"]
[[routes]]
name = "path"
path = "/threads/{thread}/{*rest}"
session_id = ["{path:thread}"]
user_id = ["{path:rest}"]
[[routes]]
name = "hash"
path = "/hash/{thread}"
session_id = ["h-{hash:header:x-session}", "h-{hash:cookie:sid}", "h-{hash:query:s}", "h-{hash:path:thread}"]
"#;

/// A body whose `session_id` is this JSON text.
fn with_id(json: &str) -> String {
    format!(r#"{{"user_id": "u1", "session_id": {json}, "input": "hi"}}"#)
}

/// `depth` nested arrays.
fn nested(depth: usize) -> String {
    "[".repeat(depth) + &"]".repeat(depth)
}

// === ids in the body ===

#[tokio::test]
async fn strings_and_integers_are_session_ids() {
    let bench = Bench::start(CHAT).await;
    for (json, id) in [
        (r#""s1""#, "s1"),
        ("7", "7"),
        (r#""7""#, "7"),
        ("-7", "-7"),
        (
            "123456789012345678901234567890",
            "123456789012345678901234567890",
        ),
        (r#""0""#, "0"),
        (r#""false""#, "false"),
        (r#""s\u0031""#, "s1"),
        (r#""a\/b""#, "a/b"),
        (r#""\uD83D\ude00""#, "😀"),
        (r#""用户-é""#, "用户-é"),
    ] {
        let key = bench.key(&chat(with_id(json))).await;
        let expected = format!("lock:session:u1:{id}");
        assert_eq!(
            key,
            Some(expected),
            "{json}: a string counts as its characters, an integer as its digits"
        );
    }
    let key = bench
        .key(&chat("\r\n\t{ \"session\\u005Fid\" :\n\"s1\" }\t"))
        .await;
    assert_eq!(
        key.as_deref(),
        Some("lock:session:unknown:s1"),
        "an escaped member name is decoded, white space doesn't matter, and a missing user id takes the last template"
    );
    let key = bench.key(&chat(r#"{"session_id":"s1","user_id":7}"#)).await;
    assert_eq!(
        key.as_deref(),
        Some("lock:session:7:s1"),
        "a user id is read like a session id"
    );
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn falsy_values_of_python_count_as_a_missing_id() {
    let bench = Bench::start(CHAT).await;
    let hashed = format!("lock:session:u1:session_{HASH_OF_HI}");
    for json in ["null", "\"\"", "0", "-0", "false"] {
        let key = bench.key(&chat(with_id(json))).await;
        assert_eq!(
            key.as_deref(),
            Some(&*hashed),
            "{json}: the next template is used, which is the hash of the input's JSON text"
        );
    }
    let absent = r#"{"user_id":"u1","input":"hi"}"#;
    assert_eq!(
        bench.key(&chat(absent)).await,
        Some(hashed),
        "an absent member counts as missing"
    );
    for body in [
        "{}",
        r#"{"session_id": null}"#,
        r#"{"session_id": "", "input": 0}"#,
        r#"{"session_id": 0, "input": ""}"#,
        r#"{"session_id": -0, "input": null}"#,
        r#"{"session_id": false, "input": false}"#,
        "[1, 2]",
        "\"session_id\"",
        "null",
        "",
    ] {
        assert_eq!(
            bench.key(&chat(body)).await,
            None,
            "{body}: without any template a turn is forwarded and takes no lock"
        );
    }
    assert_eq!(
        bench.key(&Request::post("/chat")).await,
        None,
        "a request without a body is forwarded without a lock"
    );
    let key = bench
        .key(&chat(r#"{"session_id":"s1","user_id":null}"#))
        .await;
    assert_eq!(
        key.as_deref(),
        Some("lock:session:unknown:s1"),
        "a null user id counts as missing"
    );
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn other_json_values_are_invalid_ids() {
    let bench = Bench::start(CHAT).await;
    for json in [
        "true",
        "7.5",
        "7.0",
        "0.0",
        "-0.0",
        "1e3",
        "1E3",
        "0e0",
        "{}",
        "[]",
        r#"{"id": "s1"}"#,
        r#"["s1"]"#,
        r#""\ud800""#,
        r#""\udc00\ud800""#,
        r#""a\ud83dA""#,
    ] {
        let request = chat(with_id(json));
        bench.refused(json, &request, 400, "bad_session_id").await;
    }
    let request = chat(r#"{"session_id":"s1","user_id":true}"#);
    bench
        .refused("a user", &request, 400, "bad_session_id")
        .await;
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn an_id_that_two_parsers_may_read_differently_is_refused() {
    let bench = Bench::start(CHAT).await;
    for body in [
        r#"{"session_id":"s1","session_id":"s2"}"#,
        r#"{"session_id":"s1","session_id":"s1"}"#,
        r#"{"session_id":"s1","session_id":null}"#,
        r#"{"session_id":null,"input":"hi","session_id":"s1"}"#,
        r#"{"session_id":"s1","session\u005fid":"s2"}"#,
        r#"{"Session_ID":"s2","session_id":"s1"}"#,
        r#"{"session_id":"s1","SESSION_ID":"s1"}"#,
        r#"{"Session_ID":"s1"}"#,
        r#"{"Session_ID":"s1","input":"hi"}"#,
        r#"{"\u0053ession_id":"s1"}"#,
        // Go's parser folds a long s to an s.
        r#"{"ſession_id":"s1"}"#,
        r#"{"session_id":"s1","user_id":"u1","user_id":"u2"}"#,
        r#"{"session_id":"s1","User_Id":"u1"}"#,
        r#"{"session_id":null,"input":"hi","input":"ho"}"#,
    ] {
        bench.refused(body, &chat(body), 400, "ambiguous_key").await;
    }
    for body in [
        r#"{"session_id":"s1","x":1,"x":2}"#,
        r#"{"session_id":"s1","x":{"session_id":"s2","Session_ID":"s3"}}"#,
        r#"{"session_id":"s1","session-id":"s2","sessionid":"s3"}"#,
    ] {
        assert_eq!(
            bench.key(&chat(body)).await.as_deref(),
            Some("lock:session:unknown:s1"),
            "{body}: only members on the path to the id matter"
        );
    }
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn a_body_that_is_not_json_in_utf8_is_refused() {
    let bench = Bench::start(CHAT).await;
    let utf16 = |to_bytes: fn(u16) -> [u8; 2]| {
        let units = "\u{feff}{\"session_id\":\"s1\"}".encode_utf16();
        units.flat_map(to_bytes).collect::<Vec<_>>()
    };
    let deep = |levels: usize| {
        format!(
            r#"{{"session_id":"s1","nobody asked":{}}}"#,
            nested(levels - 1)
        )
    };
    let cases: [(&str, Vec<u8>); _] = [
        ("UTF-16, little endian", utf16(u16::to_le_bytes)),
        ("UTF-16, big endian", utf16(u16::to_be_bytes)),
        (
            "a byte order mark",
            "\u{feff}{\"session_id\":\"s1\"}".into(),
        ),
        ("trailing text", br#"{"session_id":"s1"}x"#.into()),
        ("a trailing NUL", b"{\"session_id\":\"s1\"}\0".into()),
        (
            "a second document",
            br#"{"session_id":"s1"}{"session_id":"s2"}"#.into(),
        ),
        ("cut within a string", br#"{"session_id":"s1"#.into()),
        ("cut before the end", br#"{"session_id":"s1""#.into()),
        (
            "cut within another member",
            br#"{"session_id":"s1","x":[1,"#.into(),
        ),
        ("200 levels deep", deep(200).into()),
        ("129 levels deep", deep(129).into()),
        (
            "invalid UTF-8 in another member",
            b"{\"session_id\":\"s1\",\"x\":\"\xff\"}".into(),
        ),
        (
            "invalid UTF-8 in the id",
            b"{\"session_id\":\"\xc0\xaf\"}".into(),
        ),
        (
            "a line break in a string",
            b"{\"session_id\":\"s1\",\"x\":\"\n\"}".into(),
        ),
        (
            "an unknown escape",
            br#"{"session_id":"s1","x":"\x41"}"#.into(),
        ),
        (
            "a number with a leading zero",
            br#"{"session_id":007}"#.into(),
        ),
        ("an invalid number", br#"{"session_id":NaN}"#.into()),
        ("a trailing comma", br#"{"session_id":"s1",}"#.into()),
        ("a comment", br#"{"session_id":"s1"/**/}"#.into()),
        ("single quotes", b"{'session_id':'s1'}".into()),
        ("a form", b"session_id=s1".into()),
        ("white space only", b" \r\n".into()),
    ];
    for (case, body) in cases {
        bench
            .refused(case, &chat(body), 400, "malformed_body")
            .await;
    }
    let fits = [
        deep(128),
        r#"{"session_id":"s1","x":"\ud800"}"#.to_owned(),
        r#"{"session_id":"s1","x":1e999}"#.to_owned(),
    ];
    for body in fits {
        assert_eq!(
            bench.key(&chat(&*body)).await.as_deref(),
            Some("lock:session:unknown:s1"),
            "{body}: 128 levels are allowed, and so is any strictly valid JSON"
        );
    }
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn a_body_beyond_max_body_is_refused() {
    const MIB: usize = 1 << 20;
    let bench = Bench::start(CHAT).await;
    let announced = Request::post("/chat").header("content-length", &(11 * MIB).to_string());
    let asking = announced.clone().header("expect", "100-continue");
    for head in [announced, asking] {
        let mut client = bench.client().await;
        client.send_head(&head).await;
        let answer = client.answer().await;
        assert_error_response("announced", &answer, 413, "body_too_large");
        assert_eq!(
            answer.interim, [0; 0],
            "a body whose announced length is too large is refused before it is sent"
        );
    }

    let mib = vec![b' '; MIB];
    let whole = chat([&*mib; 11].concat());
    bench
        .refused("announced and sent", &whole, 413, "body_too_large")
        .await;
    let chunked = Request::post("/chat").chunked(&[&*mib; 11]);
    bench
        .refused("in chunks", &chunked, 413, "body_too_large")
        .await;
    assert_eq!(
        bench.backend.requests().len(),
        0,
        "a refused body never reaches the backend"
    );
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn a_body_of_max_body_is_read_and_one_byte_more_is_refused() {
    const MAX: usize = 64 << 10;
    let bench = Bench::start(&format!("{CHAT}\n[limits]\nmax_body = \"64KiB\"\n")).await;
    let body = |size: usize| {
        let id = br#"{"session_id": "s1"}"#;
        [&id[..], &vec![b' '; size - id.len()]].concat()
    };
    let (fits, too_large) = (body(MAX), body(MAX + 1));
    let halves = |body: &[u8]| {
        let (a, b) = body.split_at(body.len() / 2);
        Request::post("/chat").chunked(&[a, b])
    };
    for request in [chat(&*fits), halves(&fits)] {
        let open = bench.open(&request).await;
        let got = bench.end(open).await;
        assert_eq!(
            got.body, fits,
            "the largest body reaches the backend byte for byte"
        );
        assert!(
            got.header("x-seriatim-fence").is_some(),
            "the session of the largest body is locked"
        );
    }
    for request in [chat(&*too_large), halves(&too_large)] {
        bench
            .refused("one byte more", &request, 413, "body_too_large")
            .await;
    }
    // The proxy doesn't read the body of a request whose session is in its head, or that has none.
    let answer = bench
        .call(&Request::post("/elsewhere").body(too_large.clone()))
        .await;
    assert_eq!(
        answer.status, 200,
        "a body that isn't read has no limit: {answer:?}"
    );
    let requests = bench.backend.requests();
    assert_eq!(
        requests.last().map(|request| &*request.body),
        Some(&*too_large),
        "an unread body is forwarded byte for byte"
    );
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn a_body_in_an_unsupported_encoding_is_refused() {
    let bench = Bench::start(&format!("{CHAT}{ELSEWHERE}")).await;
    let gzip = b"\x1f\x8b\x08\x00not really".to_vec();
    for encoding in [
        "compress",
        "gzip, compress",
        "aes128gcm",
        "gzip, gzip, gzip",
    ] {
        let request = chat(gzip.clone()).header("content-encoding", encoding);
        bench
            .refused(encoding, &request, 415, "unsupported_encoding")
            .await;
    }
    let identity = chat(with_id("\"s1\"")).header("content-encoding", "identity");
    assert_eq!(
        bench.key(&identity).await.as_deref(),
        Some("lock:session:u1:s1"),
        "`identity` means no encoding"
    );
    let elsewhere = Request::post("/header")
        .header("x-session", "s1")
        .header("content-encoding", "gzip")
        .body(gzip.clone());
    let got = bench.end(bench.open(&elsewhere).await).await;
    assert_eq!(
        (&*got.body, got.header("content-encoding")),
        (&*gzip, Some("gzip")),
        "a body that isn't read is forwarded in any encoding"
    );
    bench.assert_still_serves().await;
}

// === keys ===

#[tokio::test]
async fn an_id_is_escaped_in_the_lock_key() {
    let bench = Bench::start(CHAT).await;
    for (json, id) in [
        (r#""a:b""#, "a%3Ab"),
        (r#""{a}""#, "%7Ba%7D"),
        (r#""a%3Ab""#, "a%253Ab"),
        (r#""a b  c""#, "a%20b%20%20c"),
        (r#""\"]*?\\""#, "\"]*?\\"),
    ] {
        let key = bench.key(&chat(with_id(json))).await;
        assert_eq!(
            key,
            Some(format!("lock:session:u1:{id}")),
            "{json}: bytes with a meaning in a key are percent-encoded, and all others stay"
        );
        let body = format!(r#"{{"session_id":"s1","user_id":{json}}}"#);
        assert_eq!(
            bench.key(&chat(body)).await,
            Some(format!("lock:session:{id}:s1")),
            "{json}: a user id is escaped in the same way"
        );
    }

    for json in [r#""a\r\nb""#, r#""a\u0000b""#, r#""a\u007fb""#] {
        let request = chat(with_id(json));
        bench.refused(json, &request, 400, "bad_session_id").await;
    }

    let one = chat(r#"{"user_id":"a:b","session_id":"c"}"#);
    let other = chat(r#"{"user_id":"a","session_id":"b:c"}"#);
    let (one, other) = (bench.open(&one).await, bench.open(&other).await);
    let fences = [bench.end(one).await, bench.end(other).await]
        .map(|got| got.header("x-seriatim-fence").map(str::to_owned));
    assert!(
        fences.iter().all(Option::is_some),
        "user a:b with session c and user a with session b:c have different locks: {fences:?}"
    );
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn an_id_longer_than_max_id_bytes_is_refused() {
    let bench = Bench::start(&format!("{CHAT}{ELSEWHERE}")).await;
    let id = |text: &str| format!("{{\"session_id\":\"{text}\",\"user_id\":\"u1\"}}");
    let fits = ["x".repeat(512), "中".repeat(170), "\\u0078".repeat(512)];
    for text in fits {
        assert!(
            bench.key(&chat(id(&text))).await.is_some(),
            "512 bytes after unescaping are allowed: {text}"
        );
    }
    let too_long = ["x".repeat(513), "中".repeat(171), "9".repeat(513)];
    for text in too_long {
        bench
            .refused(&text, &chat(id(&text)), 400, "bad_session_id")
            .await;
    }
    let long = "x".repeat(513);
    let user = chat(format!(r#"{{"session_id":"s1","user_id":"{long}"}}"#));
    bench
        .refused("a long user", &user, 400, "bad_session_id")
        .await;
    let header = Request::get("/header").header("x-session", &long);
    bench
        .refused("a long header", &header, 400, "bad_session_id")
        .await;

    let short = Bench::start(&format!("{CHAT}\n[limits]\nmax_id_bytes = 4\n")).await;
    short
        .refused(
            "five bytes where four are allowed",
            &chat(id("12345")),
            400,
            "bad_session_id",
        )
        .await;
    assert_eq!(
        short.key(&chat(id("1234"))).await.as_deref(),
        Some("lock:session:u1:1234"),
        "max_id_bytes sets the limit"
    );
    bench.assert_still_serves().await;
}

// === ids outside the body ===

#[tokio::test]
async fn headers_cookies_and_queries_name_the_session() {
    let bench = Bench::start(ELSEWHERE).await;
    let header = |values: &[&str]| {
        let request = Request::get("/header");
        values
            .iter()
            .fold(request, |request, value| request.header("X-SESSION", value))
    };
    let cookie = |values: &[&str]| {
        let request = Request::get("/cookie");
        values
            .iter()
            .fold(request, |request, value| request.header("cookie", value))
    };
    let query = |query: &str| Request::get(&format!("/query{query}"));
    for (case, request, id) in [
        ("a header", header(&["s1"]), Some("s1")),
        ("no header", header(&[]), None),
        ("an empty header", header(&[""]), None),
        (
            "a header isn't decoded",
            header(&["a%20b+c"]),
            Some("a%2520b+c"),
        ),
        ("a header with a comma", header(&["a, b"]), Some("a,%20b")),
        ("0 in a header is text", header(&["0"]), Some("0")),
        ("a cookie", cookie(&["a=b; sid=s1; c=d"]), Some("s1")),
        ("no cookie", cookie(&["a=b; s-id=s1; xsid=s2"]), None),
        ("an empty cookie", cookie(&["sid="]), None),
        ("a cookie in quotes", cookie(&["sid=\"s1\""]), Some("s1")),
        (
            "a cookie is decoded, as some backends do",
            cookie(&["sid=a%3Fb"]),
            Some("a?b"),
        ),
        ("a query", query("?a=b&session+id=s1&c"), Some("s1")),
        ("no query", query(""), None),
        (
            "another query",
            query("?session=s1&session-id=s2&id=s3"),
            None,
        ),
        ("an empty query", query("?session+id="), None),
        ("a query without a value", query("?session+id"), None),
        (
            "a query is decoded",
            query("?session+id=%e7%94%a8"),
            Some("用"),
        ),
        (
            "a query is decoded once",
            query("?session+id=a%2520b"),
            Some("a%2520b"),
        ),
        (
            "+ is a space in a query",
            query("?session+id=a+b"),
            Some("a%20b"),
        ),
        (
            "%2B is a + in a query",
            query("?session+id=a%2Bb"),
            Some("a+b"),
        ),
        (
            "a value in a query may contain =",
            query("?session+id=a=b"),
            Some("a=b"),
        ),
    ] {
        let expected = id.map(|id| format!("lock:session:unknown:{id}"));
        assert_eq!(bench.key(&request).await, expected, "the key of {case}");
    }
    for (case, request) in [
        ("headers that differ", header(&["s1", "s2"])),
        ("a header twice the same", header(&["s1", "s1"])),
        ("a header and an empty one", header(&["s1", ""])),
        ("an empty header and one", header(&["", "s1"])),
        ("cookies that differ", cookie(&["sid=s1; sid=s2"])),
        ("a cookie twice the same", cookie(&["sid=s1; sid=s1"])),
        ("a cookie in another case", cookie(&["SID=s1"])),
        ("cookies in two headers", cookie(&["sid=s1", "sid=s2"])),
        ("a cookie and an empty one", cookie(&["sid=s1; sid="])),
        ("queries that differ", query("?session+id=s1&session+id=s2")),
        (
            "a query twice the same",
            query("?session%20id=s1&session+id=%731"),
        ),
        (
            "queries in two spellings",
            query("?session+id=s1&session%20id=s2"),
        ),
        (
            "a query and an empty one",
            query("?session+id=s1&session+id"),
        ),
    ] {
        bench.refused(case, &request, 400, "ambiguous_key").await;
    }
    let odd = query("?session+id=%ff");
    let case = "a query that isn't UTF-8";
    bench.refused(case, &odd, 400, "bad_session_id").await;
    let odd = Request::get("/threads/%ff/u");
    let case = "a path that isn't UTF-8 and matches a route without its invalid bytes";
    bench.refused(case, &odd, 400, "bad_request").await;
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn a_percent_decoded_path_segment_names_the_session() {
    let bench = Bench::start(ELSEWHERE).await;
    for (target, key) in [
        ("/threads/t1/u1", "lock:session:u1:t1"),
        ("/threads/T1/runs/stream/", "lock:session:runs/stream:T1"),
        ("/threads/a%3Ab+/u1?x=1", "lock:session:u1:a%3Ab+"),
        ("/threads/a%2520/u1", "lock:session:u1:a%2520"),
        ("/threads/%E7%94%A8/u1", "lock:session:u1:用"),
    ] {
        assert_eq!(
            bench.key(&Request::get(target)).await.as_deref(),
            Some(key),
            "{target}: the path is decoded once"
        );
    }
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn a_path_that_backends_read_differently_is_refused() {
    let bench = Bench::start(ELSEWHERE).await;
    for target in [
        "/threads/a%2Fb/u1",
        "/threads/a%5Cb/u1",
        "/threads/x/../t1/u1",
        "/threads/./t1/u1",
        "/threads/%2e/t1/u1",
        "//threads/t1/u1",
        "/threads/t1;v=1/u1",
        "/threads/t1%3Bv=1/u1",
        "/threads/a%20b/u1",
    ] {
        bench
            .refused(target, &Request::get(target), 400, "ambiguous_key")
            .await;
    }
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn a_route_matches_any_spelling_of_method_and_host() {
    let route = "[[routes]]\nname = \"x\"\nhost = \"agent.example\"\nmethods = [\"POST\"]\n\
                 path = \"/x\"\nsession_id = [\"absent_{header:x-none}\"]\non_missing = \"reject\"\n";
    let bench = Bench::start(&format!("{route}{CHAT}")).await;
    let head = |line: &str, host: &str| format!("{line} HTTP/1.1\r\nhost: {host}\r\n\r\n");
    for (line, host) in [
        ("POST /x", "agent.example"),
        ("post /x", "Agent.Example:8080"),
        ("POST /x", "agent.example."),
        ("POST http://agent.example/x", "other"),
    ] {
        let mut client = bench.client().await;
        client.send_raw(head(line, host).as_bytes()).await;
        let reason = client
            .answer()
            .await
            .header("x-seriatim-error")
            .map(str::to_owned);
        assert_eq!(
            reason.as_deref(),
            Some("missing_session"),
            "{line} to {host} matches the route"
        );
    }
    let mut client = bench.client().await;
    client
        .send_raw(head("POST /x", "a\r\nhost: agent.example").as_bytes())
        .await;
    let reason = client
        .answer()
        .await
        .header("x-seriatim-error")
        .map(str::to_owned);
    assert_eq!(
        reason.as_deref(),
        Some("ambiguous_key"),
        "two host headers are ambiguous (RFC 9112 §3.2)"
    );
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn equal_text_has_an_equal_hash_on_every_replica() {
    let bench = Bench::start(&format!("{CHAT}{ELSEWHERE}")).await;
    let input = |json: &str| chat(format!("{{ \"user_id\":\"u1\", \"input\" : {json} }}"));
    for (json, hash) in [
        ("\"hi\"", HASH_OF_HI),
        ("\"h\\u0069\"", "7feb5e24a39aa6709a5435636c3b4bb4"),
        ("{\"a\": 1}", "f9d86028c6e0d64e225186f96acb6933"),
    ] {
        let expected = format!("lock:session:u1:session_{hash}");
        for _ in 0..2 {
            assert_eq!(
                bench.key(&input(json)).await.as_deref(),
                Some(&*expected),
                "{json}: the hash covers the member's JSON text as sent"
            );
        }
    }
    let other_replica = Bench::start(CHAT).await;
    assert_eq!(
        other_replica.key(&input("\"hi\"")).await,
        Some(format!("lock:session:u1:session_{HASH_OF_HI}")),
        "the hash is the same on every replica"
    );
    for request in [
        Request::get("/hash/other").header("x-session", "hi"),
        Request::get("/hash/other").header("cookie", "sid=hi"),
        Request::get("/hash/other?s=h%69"),
        Request::get("/hash/h%69"),
    ] {
        assert_eq!(
            bench.key(&request).await.as_deref(),
            Some("lock:session:unknown:h-8f434346648f6b96df89dda901c5176b"),
            "a source other than JSON is hashed by its value: {request:?}"
        );
    }
    let twice = Request::get("/hash/other")
        .header("x-session", "a")
        .header("x-session", "b");
    bench
        .refused("a hash of two values", &twice, 400, "ambiguous_key")
        .await;
    bench.assert_still_serves().await;
}

// === options of a route ===

#[tokio::test]
async fn on_missing_reject_refuses_a_request_without_a_session() {
    let config =
        format!("{CHAT}on_missing = \"reject\"\n{ELSEWHERE}\n[lock]\non_missing = \"reject\"");
    let bench = Bench::start(&config).await;
    for (case, request) in [
        ("no session in the body", chat(r#"{"session_id":null}"#)),
        ("no JSON object", chat("[]")),
        ("an empty body", chat("")),
        ("no body", Request::post("/chat")),
        ("no header", Request::get("/header")),
        ("no user in the path", Request::get("/threads/t1")),
    ] {
        bench.refused(case, &request, 400, "missing_session").await;
    }
    assert_eq!(
        bench.key(&chat(with_id("\"s1\""))).await.as_deref(),
        Some("lock:session:u1:s1"),
        "a request with a session takes its lock"
    );
    let elsewhere = bench.call(&Request::post("/elsewhere")).await;
    assert_eq!(
        elsewhere.status, 200,
        "a request without a route is forwarded: {elsewhere:?}"
    );
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn unmatched_reject_refuses_a_request_without_a_route() {
    let bench = Bench::start(&format!("unmatched = \"reject\"\n{CHAT}")).await;
    for request in [Request::get("/chat"), Request::post("/chatter")] {
        bench.refused("no route", &request, 404, "no_route").await;
    }
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn on_malformed_pass_forwards_a_body_that_cannot_be_read() {
    let bench = Bench::start(&format!("{CHAT}on_malformed = \"pass\"\n")).await;
    let cases: [&[u8]; _] = [
        b"\xff\xfe{\0}\0",
        br#"{"session_id":"s1"} and more"#,
        b"{\"session_id\":\"s1\"",
        nested(200).leak().as_bytes(),
        b" ",
    ];
    for body in cases {
        let request = chat(body);
        assert_eq!(
            bench.key(&request).await,
            None,
            "an unreadable body has no session"
        );
        let got = bench.end(bench.open(&request).await).await;
        assert_eq!(
            got.body, body,
            "an unreadable body reaches the backend byte for byte"
        );
    }
    let gzip = chat(&b"\x1f\x8b"[..]).header("content-encoding", "gzip");
    let got = bench.end(bench.open(&gzip).await).await;
    assert_eq!(
        (&*got.body, got.header("content-encoding")),
        (&b"\x1f\x8b"[..], Some("gzip")),
        "an unsupported encoding is forwarded"
    );
    for (body, reason) in [
        (r#"{"session_id":"s1","session_id":"s2"}"#, "ambiguous_key"),
        (r#"{"session_id":true}"#, "bad_session_id"),
    ] {
        bench.refused(body, &chat(body), 400, reason).await;
    }
    bench.assert_still_serves().await;
}

// === what reaches the backend ===

#[tokio::test]
async fn a_body_reaches_the_backend_byte_for_byte() {
    let bench = Bench::start(CHAT).await;
    for body in [
        r#"{"session_id":"s1"}"#,
        "\n\t{ \"input\" : [ 1.0 ,2e0,\"\\u4e2d\\/\" ] ,\r\n \"session_id\":\"s1\" , \"session_ID2\":{}}\r\n ",
        r#"{"x":1,"x":2,"session_id":"s1","z":9007199254740993}"#,
        r#"{"no session": true}"#,
        r#"[ "no object" ]"#,
    ] {
        let bytes = body.as_bytes();
        let (start, end) = bytes.split_at(bytes.len() / 2);
        let chunked = Request::post("/chat").chunked(&[start, end]);
        for request in [chat(body), chunked] {
            let got = bench.end(bench.open(&request).await).await;
            assert_eq!(
                got.text(),
                body,
                "the backend gets the body that the client sent"
            );
        }
    }
    let bytes: Vec<u8> = (0..=255).collect();
    let got = bench
        .end(
            bench
                .open(&Request::post("/elsewhere").body(bytes.clone()))
                .await,
        )
        .await;
    assert_eq!(
        got.body, bytes,
        "a body that isn't read is forwarded byte for byte"
    );
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn the_proxy_sets_its_own_headers_and_describes_the_client() {
    let bench = Bench::start(CHAT).await;
    let plain = chat(with_id("\"s1\""));
    let forged = plain
        .clone()
        .header("host", "agent.example:8080")
        .header("X-Seriatim-Fence", "18446744073709551615")
        .header("x-seriatim-anything", "else")
        .header("x-forwarded-for", "192.0.2.1")
        .header("x-request-id", "mine");
    let named = plain.clone().header(
        "connection",
        "x-seriatim-fence, x-request-id, x-forwarded-for, x-forwarded-proto, x-forwarded-host, host, content-length",
    );
    let mut fences = Vec::new();
    for request in [&plain, &forged, &named, &plain] {
        let got = bench.end(bench.open(request).await).await;
        let count = |name: &str| {
            let names = got.headers.iter();
            names
                .filter(|(other, _)| other.eq_ignore_ascii_case(name))
                .count()
        };
        let fence = got.header("x-seriatim-fence").map(str::parse::<u64>);
        match fence {
            Some(Ok(fence)) => fences.push(fence),
            _ => panic!("a turn has a numeric fence: {got:?}"),
        }
        for name in [
            "x-seriatim-fence",
            "x-seriatim-turn",
            "x-request-id",
            "x-forwarded-for",
            "x-forwarded-proto",
            "x-forwarded-host",
            "host",
        ] {
            assert_eq!(count(name), 1, "the backend gets one {name}: {got:?}");
        }
        assert_eq!(
            count("x-seriatim-anything"),
            0,
            "a client's x-seriatim-* never reaches the backend"
        );
        let (id, proto) = (got.header("x-request-id"), got.header("x-forwarded-proto"));
        assert!(
            id.is_some_and(|id| !id.is_empty()),
            "a request has an id: {got:?}"
        );
        assert_eq!(
            proto,
            Some("http"),
            "x-forwarded-proto has the client's scheme"
        );
        assert_eq!(
            got.header("x-forwarded-host"),
            got.header("host"),
            "x-forwarded-host has the client's host"
        );
    }
    assert!(
        fences.is_sorted_by(|a, b| a < b),
        "the fence rises with every turn of a session: {fences:?}"
    );

    let requests = bench.backend.requests();
    let header = |index: usize, name: &str| requests[index].header(name).map(str::to_owned);
    let client = header(0, "x-forwarded-for");
    assert_eq!(
        client.as_deref(),
        Some("127.0.0.1"),
        "x-forwarded-for has the client's address"
    );
    assert_eq!(
        header(1, "x-forwarded-for").as_deref(),
        Some("192.0.2.1, 127.0.0.1"),
        "the address is appended to x-forwarded-for"
    );
    assert_eq!(
        header(1, "host").as_deref(),
        Some("agent.example:8080"),
        "the host is the client's"
    );
    assert_eq!(
        header(1, "x-request-id").as_deref(),
        Some("mine"),
        "a client's request id is kept"
    );
    assert_ne!(
        header(0, "x-request-id"),
        header(3, "x-request-id"),
        "a generated request id is new for each request"
    );
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn a_header_named_in_connection_is_neither_a_source_nor_forwarded() {
    let bench = Bench::start(&format!("{CHAT}{ELSEWHERE}")).await;
    let request = |connection: &str| {
        Request::get("/header")
            .header("connection", connection)
            .header("x-session", "s1")
            .header("x-other", "stays")
    };
    for connection in ["x-session", "keep-alive, X-Session", ",x-session ,"] {
        let request = request(connection);
        assert_eq!(
            bench.key(&request).await,
            None,
            "connection: {connection}: a header that isn't forwarded names no session"
        );
        let got = bench.end(bench.open(&request).await).await;
        assert_eq!(
            (got.header("x-session"), got.header("connection")),
            (None, None),
            "connection: {connection}: the header isn't forwarded"
        );
        assert_eq!(
            got.header("x-other"),
            Some("stays"),
            "other headers are forwarded: {got:?}"
        );
    }
    let kept = request("keep-alive");
    assert_eq!(
        bench.key(&kept).await.as_deref(),
        Some("lock:session:unknown:s1"),
        "a header that isn't named in connection names the session"
    );
    let body = with_id("\"s1\"");
    let framing = chat(&*body).header("connection", "content-length, content-type");
    let got = bench.end(bench.open(&framing).await).await;
    assert_eq!(
        got.text(),
        body,
        "naming the framing headers in connection doesn't drop the body"
    );
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn no_spelling_of_the_path_bypasses_the_lock() {
    let bench = Bench::start(CHAT).await;
    let at = |target: &str| Request::post(target).json(r#"{"session_id":"s1"}"#);
    for target in [
        "/chat",
        "/CHAT/?q=%41&x=a+b&&",
        "//x/%2e%2E/ch%61t?",
        "/chat;v=1?/../",
        "/%2Fchat",
    ] {
        assert_eq!(
            bench.key(&at(target)).await.as_deref(),
            Some("lock:session:unknown:s1"),
            "{target} takes the lock, as some backends read it as /chat"
        );
        let open = bench.open(&at("/chat")).await;
        let refused = bench.call(&at(target)).await;
        assert_error_response(target, &refused, 429, "session_busy");
        bench.end(open).await;

        let got = bench.end(bench.open(&at(target)).await).await;
        assert_eq!(
            got.target, target,
            "path and query are forwarded as they were sent"
        );
    }
    let host = bench.app.addr();
    let got = bench
        .end(bench.open(&at(&format!("http://{host}/chat?x"))).await)
        .await;
    assert!(
        got.target == "/chat?x" && got.header("x-seriatim-fence").is_some(),
        "an absolute target is reduced to its path: {got:?}"
    );
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn a_header_that_backends_may_confuse_with_the_source_is_refused() {
    let bench = Bench::start(&format!("{CHAT}{ELSEWHERE}")).await;
    // WSGI and CGI turn all of them into HTTP_X_SESSION.
    for twin in ["x_session", "X_Session", "x.session", "x~session"] {
        let alone = Request::get("/header").header(twin, "s1");
        let both = Request::get("/header")
            .header("x-session", "s1")
            .header(twin, "s2");
        for request in [alone, both] {
            bench.refused(twin, &request, 400, "ambiguous_key").await;
        }
    }
    for forged in ["X_Seriatim_Fence", "x.seriatim.fence"] {
        let request = chat(&*with_id("\"s1\"")).header(forged, "1");
        let got = bench.end(bench.open(&request).await).await;
        assert_eq!(
            got.header(forged),
            None,
            "a client can't forge the fence: {forged}"
        );
    }
    bench.assert_still_serves().await;
}
