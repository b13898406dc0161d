//! Every rule about encodings by name.

use std::io::Write as _;

use super::*;
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use http::Request;

/// Brotli of [`JSON`], put together by hand: a window of 22 bits, one block that is not compressed, an
/// empty last one (RFC 7932 §9).
const BROTLI: &[u8] = b"\x0b\x09\x80{\"session_id\":\"s1\"}\x03";

/// Brotli of 10 MiB of spaces and of 60,000, by hand: a window of 24 bits, one space, and a copy of it.
const SPACES: &[u8] = b"\x9f\xff\xff\x9f\x00\x20\x40\xe2\xb1\x80\x72\xef\x3f\x01";
const FEWER: &[u8] = b"\x1f\x5f\xea\x00\x20\x40\xe2\xb1\x80\x32\xc4\x01\x00";
const JSON: &[u8] = br#"{"session_id":"s1"}"#;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn raw_deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ::zstd::bulk::compress(bytes, 3).unwrap()
}

/// Bytes that say little again.
fn noise(length: u32) -> Vec<u8> {
    let bytes = (0..length).map(|n| (n.wrapping_mul(n) >> 7) as u8);
    bytes.collect()
}

fn all(values: &[&str]) -> Result<Vec<Encoding>, SessionError> {
    let mut request = Request::builder();
    for value in values {
        request = request.header("content-encoding", *value);
    }
    Encoding::all(&request.body(()).unwrap().into_parts().0)
}

fn decode(encoding: &str, body: &[u8], max: usize) -> Result<Vec<u8>, SessionError> {
    let mut decoding = Decoding::new(&all(&[encoding])?, body, max)?;
    while !decoding.step()?.1 {}
    Ok(decoding.finish())
}

#[test]
fn encodings_are_undone_from_the_last_to_the_first() {
    use Encoding::{Brotli, Deflate, Gzip, Zstd};
    for (values, expected) in [
        (&["gzip"][..], vec![Gzip]),
        (&["X-GZip"], vec![Gzip]),
        (&["identity", "", " deflate ,"], vec![Deflate]),
        (&["gzip, br"], vec![Brotli, Gzip]),
        (&["zstd", "gzip"], vec![Gzip, Zstd]),
        (&["identity"], vec![]),
        (&[], vec![]),
    ] {
        assert_eq!(all(values), Ok(expected), "{values:?}");
    }
    for values in [
        &["compress"][..],
        &["gzip, compress"],
        &["gzip;q=1"],
        &["gzip, gzip, gzip"],
        &["gzip br"],
    ] {
        let unsupported = matches!(all(values), Err(SessionError::Encoding { .. }));
        assert!(unsupported, "{values:?} can't be read");
    }
}

#[test]
fn what_was_encoded_comes_back() {
    let long = noise(1 << 20);
    for bytes in [JSON, b"", &long] {
        for (encoding, body) in [
            ("gzip", gzip(bytes)),
            ("deflate", zlib(bytes)),
            ("zstd", zstd(bytes)),
            ("gzip, deflate", zlib(&gzip(bytes))),
            ("zstd, gzip", gzip(&zstd(bytes))),
        ] {
            let decoded = decode(encoding, &body, 2 << 20);
            assert_eq!(decoded.as_deref(), Ok(bytes), "{encoding}");
        }
    }
    assert_eq!(decode("br", BROTLI, 100).as_deref(), Ok(JSON), "br");
    assert_eq!(
        decode("br, gzip", &gzip(BROTLI), 100).as_deref(),
        Ok(JSON),
        "br in gzip"
    );
}

#[test]
fn broken_and_cut_data_is_refused() {
    let short = zstd(JSON);
    for (encoding, body) in [
        ("gzip", gzip(JSON)),
        ("deflate", zlib(JSON)),
        ("br", BROTLI.to_vec()),
        ("zstd", short),
        ("gzip, zstd", zstd(&gzip(JSON))),
    ] {
        for end in 0..body.len() {
            let decoded = decode(encoding, &body[..end], 1 << 20);
            let refused = matches!(decoded, Err(SessionError::Malformed { .. }));
            assert!(refused, "{encoding}, cut after {end} bytes: {decoded:?}");
        }
        for more in [&b"\0"[..], b"\n", &body] {
            let decoded = decode(encoding, &[&body, more].concat(), 1 << 20);
            let refused = matches!(decoded, Err(SessionError::Malformed { .. }));
            assert!(
                refused,
                "{encoding}, and {more:?} behind its end: {decoded:?}"
            );
        }
    }
    let mut checked = gzip(JSON);
    *checked.last_mut().unwrap() ^= 1;
    for (case, encoding, body) in [
        ("a checksum that is wrong", "gzip", checked),
        ("gzip as br", "br", gzip(JSON)),
        ("JSON", "gzip", JSON.to_vec()),
        ("JSON as br", "br", JSON.to_vec()),
        (
            "deflate without zlib's header",
            "deflate",
            raw_deflate(JSON),
        ),
        (
            "a frame to be skipped first",
            "zstd",
            [b"\x50\x2a\x4d\x18\x01\0\0\0x", &*zstd(JSON)].concat(),
        ),
        (
            "one of zstd's windows of 2 GiB",
            "zstd",
            b"\x28\xb5\x2f\xfd\x04\xa8\x01\0\0".to_vec(),
        ),
        (
            "one of brotli's windows of 1 GiB",
            "br",
            b"\x11\x1e\x06".to_vec(),
        ),
    ] {
        let decoded = decode(encoding, &body, 1 << 20);
        let refused = matches!(decoded, Err(SessionError::Malformed { .. }));
        assert!(refused, "{case}: {decoded:?}");
    }
}

#[test]
fn nothing_longer_than_a_body_may_be_comes_out_of_any_stage() {
    let zeros = vec![0; 64 << 20];
    let inner = gzip(b"");
    for (encoding, body) in [
        ("gzip", gzip(&zeros)),
        ("deflate", zlib(&zeros)),
        ("zstd", zstd(&zeros)),
        ("gzip, gzip", gzip(&gzip(&zeros))),
        ("identity, zstd, gzip", gzip(&zstd(&zeros))),
        // The outer stage alone is too long.
        ("gzip, zstd", zstd(&[&*inner, &zeros].concat())),
    ] {
        let mut decoding = Decoding::new(&all(&[encoding]).unwrap(), &body, 1 << 20).unwrap();
        let error = loop {
            match decoding.step() {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        let is_expected = match encoding {
            // What follows the inner end is seen first.
            "gzip, zstd" => matches!(error, SessionError::Malformed { .. }),
            "gzip" | "deflate" => error == SessionError::TooLarge { max: 1 << 20 },
            // Of so few bytes not even that much comes out.
            _ => matches!(error, SessionError::TooDense { .. }),
        };
        assert!(is_expected, "{encoding}: {error:?}");
        assert!(
            decoding.decoded.capacity() <= 4 << 20,
            "{encoding}: no memory for more"
        );
    }
    let exact = [&[7; 1 << 19][..], &noise(1 << 19)].concat();
    for (encoding, body) in [("gzip", gzip(&exact)), ("zstd", zstd(&exact))] {
        assert!(
            decode(encoding, &body, 1 << 20).is_ok(),
            "{encoding}: max_body itself is read"
        );
        let less = decode(encoding, &body, (1 << 20) - 1);
        assert_eq!(
            less,
            Err(SessionError::TooLarge { max: (1 << 20) - 1 }),
            "{encoding}"
        );
    }
}

#[test]
fn what_comes_out_is_in_proportion_to_what_came() {
    for (encoding, encode) in [("gzip", gzip as fn(&[u8]) -> Vec<u8>), ("zstd", zstd)] {
        let few = encode(&vec![b' '; FREE]);
        let decoded = decode(encoding, &few, 10 << 20);
        assert_eq!(
            decoded.map(|decoded| decoded.len()),
            Ok(FREE),
            "{encoding}: a short text may say the same again and again"
        );
        let many = encode(&vec![b' '; 4 << 20]);
        assert_eq!(
            decode(encoding, &many, 10 << 20),
            Err(SessionError::TooDense {
                max_ratio: MAX_RATIO
            }),
            "{encoding}: a long one may not"
        );
        // A hundred times the same kilobytes, which is what a history comes to at the worst.
        let history = noise(20_000).repeat(100);
        let decoded = decode(encoding, &encode(&history), 10 << 20);
        assert_eq!(decoded, Ok(history), "{encoding}: a history passes");
    }
}

#[test]
fn brotli_does_not_work_ahead_of_what_may_come_out() {
    let mut codec = Brotli::new(FREE);
    let (mut output, mut at) = ([0; 100], 0);
    while at < SPACES.len() {
        let (used, made, is_over) = codec.run(&SPACES[at..], &mut output).unwrap();
        assert!(!is_over, "there are 10 MiB of it");
        at += used;
        if made > 0 {
            break;
        }
    }
    assert_eq!(
        codec.state.ringbuffer_size,
        128 << 10,
        "its window is cut down"
    );
    assert_eq!(
        decode("br", SPACES, 20 << 20),
        Err(SessionError::TooDense {
            max_ratio: MAX_RATIO
        }),
        "it is refused"
    );
    let decoded = decode("br", FEWER, 20 << 20);
    assert!(
        decoded.is_ok_and(|decoded| decoded == [b' '; 60_000]),
        "what may come out does, whatever its window is"
    );
}
