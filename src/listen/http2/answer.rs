//! The head of an answer, before h2 has it: h2 keeps values for later answers (RFC 7541 §2.3.2), and
//! each would keep a backend's whole read buffer with it, for the sake of a `date`.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};

/// Puts all values into memory of their own, which has room for nothing else.
pub(super) fn detach(headers: &mut HeaderMap) {
    let length = headers.values().map(HeaderValue::len).sum();
    let mut all = BytesMut::with_capacity(length);
    for value in headers.values() {
        all.put_slice(value.as_bytes());
    }
    let mut all = all.freeze();
    for value in headers.values_mut() {
        let own: Bytes = all.split_to(value.len());
        // Of bytes that could stand in headers before.
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
        assert_eq!(headers, before, "they say the same");
        assert!(headers["etag"].is_sensitive(), "to the same few");
        drop(before);
        assert!(buffer.is_unique(), "and nothing else has the buffer");
    }
}
