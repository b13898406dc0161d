//! Encoded bodies: decoded to find the session, and forwarded as they came.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};

use crate::support::app::CHAT;
use crate::support::bench::{Bench, chat};
use crate::support::client::Request;

/// A conversation of 200 kB in Brotli, by Node's encoder. Like all text of 64 KiB to 1 MiB in one
/// block, it begins with `[`.
const HISTORY: &[u8] = include_bytes!("encodings/history.json.br");

/// An error response names the JSON-RPC call; the session is in a header.
const CALLS: &str = r#"
[[routes]]
name = "calls"
path = "/mcp"
session_id = ["{header:x-session}"]
user_id = ["u"]
busy = { format = "json-rpc" }
[limits]
max_body = "64KiB"
"#;

/// The start of a body that says two things: a list of ones in Brotli, and without decoding the list
/// `[ "...`. Behind these 19 bytes each byte `D` is `,1,1`.
const BROTLI_THAT_BEGINS_AS_JSON: &[u8; 19] =
    b"\x5b\x20\x22\x8a\x31\x3a\xa6\x6b\x8b\x45\xf0\x97\xf2\x80\xa6\xfc\x4e\x4e\x48";

const JSON: &[u8] = br#"{"session_id":"s1","user_id":"u1"}"#;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 3).expect("memory")
}

fn encoded(encoding: &str, body: Vec<u8>) -> Request {
    chat(body).header("content-encoding", encoding)
}

#[tokio::test]
async fn an_encoded_body_is_decoded_for_its_session_and_forwarded_as_it_came() {
    let bench = Bench::start(CHAT).await;
    for (encoding, body) in [
        ("gzip", gzip(JSON)),
        ("x-gzip", gzip(JSON)),
        ("deflate", zlib(JSON)),
        ("zstd", zstd(JSON)),
        (
            "br",
            b"\x8b\x10\x80{\"session_id\":\"s1\",\"user_id\":\"u1\"}\x03".to_vec(),
        ),
        ("br", HISTORY.to_vec()),
        ("zstd, gzip", gzip(&zstd(JSON))),
    ] {
        let request = encoded(encoding, body.clone());
        assert_eq!(
            bench.key(&request).await.as_deref(),
            Some("lock:session:u1:s1"),
            "{encoding}: the session is found"
        );
        let got = bench.end(bench.open(&request).await).await;
        assert_eq!(
            (&*got.body, got.header("content-encoding")),
            (&*body, Some(encoding)),
            "{encoding}: the backend gets the bytes that the client sent"
        );
    }
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn a_body_that_decodes_to_garbage_or_too_much_is_refused() {
    let bench = Bench::start(&format!("{CHAT}\n[limits]\nmax_body = \"64KiB\"\n")).await;
    let zeros = vec![b' '; 32 << 20];
    for (encoding, body) in [
        ("gzip", gzip(&zeros)),
        ("deflate", zlib(&zeros)),
        ("zstd", zstd(&zeros)),
        ("gzip, gzip", gzip(&gzip(&zeros))),
    ] {
        bench
            .refused(encoding, &encoded(encoding, body), 413, "body_too_large")
            .await;
    }
    let whole = gzip(JSON);
    for (case, encoding, body) in [
        ("truncated", "gzip", whole[..whole.len() - 1].to_vec()),
        ("not encoded", "gzip", JSON.to_vec()),
        ("bytes after the end", "gzip", [&*whole, b"x"].concat()),
        ("a second member", "gzip", [&*whole, &whole].concat()),
        ("another encoding", "br", zstd(JSON)),
        ("invalid JSON", "zstd", zstd(b"{")),
    ] {
        bench
            .refused(case, &encoded(encoding, body), 400, "malformed_body")
            .await;
    }
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn a_body_that_is_read_only_for_the_call_id_is_never_refused() {
    let bench = Bench::start(CALLS).await;
    let request = |body: Vec<u8>| Request::post("/mcp").header("x-session", "s1").body(body);
    let truncated = gzip(br#"{"id":1}"#)[..12].to_vec();
    for (case, request) in [
        ("a body over max_body", request(vec![b' '; 100 << 10])),
        ("not JSON", request(b"a=b".to_vec())),
        (
            "another encoding",
            request(JSON.to_vec()).header("content-encoding", "compress"),
        ),
        (
            "a truncated body",
            request(truncated).header("content-encoding", "gzip"),
        ),
        (
            "a body that decodes to more than max_body",
            request(gzip(&[b' '; 100 << 10])).header("content-encoding", "gzip"),
        ),
    ] {
        let answer = bench.call(&request).await;
        assert_eq!(answer.status, 200, "{case}: {}", answer.text());
    }
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn a_body_that_expands_out_of_proportion_is_refused() {
    let bench = Bench::start(CHAT).await;
    let json = |blanks: usize| [JSON, &vec![b' '; blanks]].concat();
    for (encoding, body) in [
        ("gzip", gzip(&json(4 << 20))),
        ("zstd", zstd(&json(4 << 20))),
        ("gzip, zstd", zstd(&gzip(&json(4 << 20)))),
    ] {
        bench
            .refused(encoding, &encoded(encoding, body), 413, "body_too_large")
            .await;
    }
    let short = encoded("zstd", zstd(&json(60 << 10)));
    let answer = bench.call(&short).await;
    assert_eq!(answer.status, 200, "a small body may expand by any factor");
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn an_encoded_body_that_is_json_without_decoding_is_refused() {
    let route = CHAT.replace("/session_id}", "/0}");
    let bench = Bench::start(&route).await;
    // As long as its head says, and its last byte ends the list.
    let ones = vec![b'D'; 166_043 - BROTLI_THAT_BEGINS_AS_JSON.len() - 1];
    let body = [BROTLI_THAT_BEGINS_AS_JSON, &*ones, b"\x1c"].concat();
    let case = "JSON in two ways";
    bench
        .refused(case, &encoded("br", body), 400, "malformed_body")
        .await;
    let answer = bench.call(&encoded("gzip", gzip(b"[1,1]"))).await;
    assert_eq!(answer.status, 200, "in another encoding it says one thing");
    bench.assert_still_serves().await;
}
