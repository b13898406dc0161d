//! Prepares the head of a response for h2. h2 keeps header values for later responses (RFC 7541
//! §2.3.2), and without a copy a single `date` would keep a backend's whole read buffer in memory.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};

/// Copies all header values into one new buffer of exactly their size.
pub(super) fn detach(headers: &mut HeaderMap) {
    let length = headers.values().map(HeaderValue::len).sum();
    let mut all = BytesMut::with_capacity(length);
    for value in headers.values() {
        all.put_slice(value.as_bytes());
    }
    let mut all = all.freeze();
    for value in headers.values_mut() {
        let own: Bytes = all.split_to(value.len());
        // Can't fail: the bytes are those of a header value.
        if let Ok(mut own) = HeaderValue::from_maybe_shared(own) {
            own.set_sensitive(value.is_sensitive());
            *value = own;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_keeps_the_buffer_that_it_was_read_into() {
        let buffer = Bytes::from(vec![b'a'; 8192]);
        let mut headers = HeaderMap::new();
        for (name, range) in [("date", 10..40), ("etag", 50..60), ("x-empty", 70..70)] {
            let value = HeaderValue::from_maybe_shared(buffer.slice(range));
            headers.append(name, value.expect("a value"));
        }
        headers.append("date", HeaderValue::from_static("b"));
        let etag = headers.get_mut("etag").expect("it was put in");
        etag.set_sensitive(true);
        let before = headers.clone();
        detach(&mut headers);
        assert_eq!(headers, before, "the values are the same");
        assert!(
            headers["etag"].is_sensitive(),
            "a sensitive value stays sensitive"
        );
        drop(before);
        assert!(buffer.is_unique(), "no value keeps the buffer");
    }
}
