//! The calls of the two scripts of a turn, written into a connection's buffer as Redis receives them. The redis crate
//! makes all other commands: it copies each of them twice, which only a turn notices.
//!
//! Source: Redis docs, "Redis serialization protocol specification".

/// A call of a script that is being written.
pub(super) struct CallWriter<'b> {
    buffer: &'b mut Vec<u8>,
    /// How many of its keys and arguments are missing.
    missing: usize,
}

// === impl CallWriter ===

impl<'b> CallWriter<'b> {
    /// Begins a call with as many keys and arguments. `name_and_hash` are its first two arguments, as
    /// [`push_argument`] writes them.
    pub(super) fn new(
        buffer: &'b mut Vec<u8>,
        name_and_hash: &[u8],
        keys: usize,
        arguments: usize,
    ) -> Self {
        push_header(buffer, b'*', 3 + keys + arguments);
        buffer.extend_from_slice(name_and_hash);
        let mut call = Self {
            buffer,
            missing: 1 + keys + arguments,
        };
        call.number(keys as u64);
        call
    }

    /// Adds a key or an argument, which consists of these parts.
    pub(super) fn parts<const N: usize>(&mut self, parts: [&[u8]; N]) {
        debug_assert!(self.missing > 0, "the call has as many as it announced");
        self.missing -= 1;
        push_argument(self.buffer, parts);
    }

    /// Adds a key or an argument.
    pub(super) fn text(&mut self, text: &str) {
        self.parts([text.as_bytes()]);
    }

    /// Adds a number as an argument.
    pub(super) fn number(&mut self, number: u64) {
        self.text(itoa::Buffer::new().format(number));
    }

    /// Ends the call.
    pub(super) fn finish(self) {
        debug_assert_eq!(
            self.missing, 0,
            "the call has as many keys and arguments as it announced"
        );
    }
}

/// Writes an argument of a command, which consists of these parts.
#[inline]
pub(super) fn push_argument<const N: usize>(buffer: &mut Vec<u8>, parts: [&[u8]; N]) {
    push_header(buffer, b'$', parts.iter().map(|part| part.len()).sum());
    for part in parts {
        buffer.extend_from_slice(part);
    }
    buffer.extend_from_slice(b"\r\n");
}

/// Writes how many arguments or bytes follow. The usual numbers are written at once: a turn has twenty of them.
fn push_header(buffer: &mut Vec<u8>, kind: u8, count: usize) {
    let digit = |place: usize| b'0' + (count / place % 10) as u8;
    match count {
        0..10 => buffer.extend_from_slice(&[kind, digit(1), b'\r', b'\n']),
        10..100 => buffer.extend_from_slice(&[kind, digit(10), digit(1), b'\r', b'\n']),
        100..1000 => {
            let digits = [digit(100), digit(10), digit(1)];
            buffer.extend_from_slice(&[kind, digits[0], digits[1], digits[2], b'\r', b'\n']);
        }
        _ => {
            buffer.push(kind);
            buffer.extend_from_slice(itoa::Buffer::new().format(count).as_bytes());
            buffer.extend_from_slice(b"\r\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_written_as_the_redis_crate_writes_it() {
        let (mut written, mut expected) = (Vec::new(), Vec::new());
        for key in [
            "k",
            "",
            &"k".repeat(98),
            &"k".repeat(123),
            &"k".repeat(1234),
        ] {
            let mut begin = Vec::new();
            push_argument(&mut begin, [b"EVALSHA"]);
            push_argument(&mut begin, [b"ab", b"", b"12"]);
            let mut call = CallWriter::new(&mut written, &begin, 2, 3);
            call.text(key);
            call.parts([b"{", key.as_bytes(), b"}"]);
            call.number(0);
            call.number(u64::MAX);
            call.text("你好\r\n");
            call.finish();
            let mut command = redis::cmd("EVALSHA");
            command
                .arg("ab12")
                .arg(2)
                .arg(key)
                .arg(format!("{{{key}}}"));
            command.arg(0).arg(u64::MAX).arg("你好\r\n");
            command.write_packed_command(&mut expected);
        }
        assert_eq!(written, expected, "behind one another");
    }
}
