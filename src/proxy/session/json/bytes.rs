//! Searches many bytes at once, in code that the compiler vectorizes; and sets of pointers in a `u64`.

/// How many bytes are checked together in long strings: four SSE2 registers, which every x86-64 has. rustc 1.95
/// vectorizes a loop over an array of this size, and not one over 32 bytes.
pub(super) const BLOCK: usize = 64;

/// The positions of the bits that are set, lowest first.
pub(super) fn ones(mut set: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let place = set.trailing_zeros() as usize;
        (set != 0).then(|| {
            set &= set - 1;
            place
        })
    })
}

/// A set of the special bytes in the first 64 of a string's rest, the first one in the lowest bit: quotes,
/// backslashes, and control characters. Behind the end of the rest stand quotes.
#[inline]
pub(super) fn specials(rest: &[u8]) -> u64 {
    let mut padded = [b'"'; BLOCK];
    let block = match rest.first_chunk() {
        Some(block) => block,
        None => {
            padded[..rest.len()].copy_from_slice(rest);
            &padded
        }
    };
    // Plain loops, which the compiler vectorizes in every profile.
    let mut marks = [0; BLOCK];
    for (mark, byte) in marks.iter_mut().zip(block) {
        *mark = u8::from(is_special(*byte));
    }
    let mut set = 0;
    for word in marks.as_chunks().0.iter().rev() {
        // The product has the marks of the word in its top byte, in their order.
        let marks = u64::from_le_bytes(*word).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        set = set << 8 | marks;
    }
    set
}

/// How many bytes of blocks without a special byte come first.
#[inline(never)]
pub(super) fn plain_blocks(bytes: &[u8]) -> usize {
    let (blocks, _) = bytes.as_chunks();
    let plain = blocks.iter().take_while(|block| !holds_special(block));
    BLOCK * plain.count()
}

/// Whether the block has a special byte. The loop doesn't stop at the first, so that the compiler makes a
/// dozen vector instructions of it.
fn holds_special(block: &[u8; BLOCK]) -> bool {
    let special = block.iter().map(|&byte| u8::from(is_special(byte)));
    special.fold(0, |found, special| found | special) != 0
}

/// The position of the first special byte; `None`: there is none.
#[inline]
pub(super) fn find_in_word(word: [u8; 8]) -> Option<usize> {
    const ONES: u64 = u64::MAX / 0xFF;
    let word = u64::from_le_bytes(word);
    // Subtracting borrows into the top bit of each byte that was below the number taken off.
    // A borrow can spill into bytes above such a one, never below: the lowest bit is right.
    let quote_or_control = (word ^ (ONES * 0x02)).wrapping_sub(ONES * 0x21);
    let backslash = (word ^ (ONES * u64::from(b'\\'))).wrapping_sub(ONES);
    let special = (quote_or_control | backslash) & !word & (ONES * 0x80);
    (special != 0).then(|| special.trailing_zeros() as usize / 8)
}

/// Whether a byte is a quote, a backslash or a control character. Swapping 0x20 and 0x22 puts the quote right
/// above the control characters, so that one comparison finds them all.
#[inline]
pub(super) fn is_special(byte: u8) -> bool {
    (byte ^ 0x02) < 0x21 || byte == b'\\'
}

/// Whether a byte behind a backslash is an escape of its own (RFC 8259 §7).
#[inline]
pub(super) fn is_escapable(byte: u8) -> bool {
    static ESCAPABLE: [bool; 256] = table(br#""\/bfnrt"#);
    ESCAPABLE[usize::from(byte)]
}

/// Whether a byte is a hexadecimal digit.
#[inline]
pub(super) fn is_hex_digit(byte: u8) -> bool {
    static HEX_DIGITS: [bool; 256] = table(b"0123456789abcdefABCDEF");
    HEX_DIGITS[usize::from(byte)]
}

/// A table of these bytes: some text is nothing but escapes, and a load is faster than comparisons.
const fn table(bytes: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut at = 0;
    while at < bytes.len() {
        table[bytes[at] as usize] = true;
        at += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_two_specials_and_control_characters_are_special() {
        for byte in 0..=u8::MAX {
            let expected = byte < 0x20 || byte == b'"' || byte == b'\\';
            assert_eq!(is_special(byte), expected, "{byte:#x} alone");
            for place in 0..8 {
                // 0x20 and 0x23 are the nearest to special ones, for borrows to go wrong on.
                for around in [b' ', b'#', b'[', b']', 0x80, 0xFF] {
                    let mut word = [around; 8];
                    word[place] = byte;
                    let found = expected.then_some(place);
                    assert_eq!(
                        find_in_word(word),
                        found,
                        "{byte:#x} in a word of {around:#x}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_special_bytes_of_a_block_are_found_together() {
        for around in [b' ', b'#', b'[', b']', 0x80, 0xFF] {
            for byte in 0..=u8::MAX {
                for place in 0..BLOCK {
                    let mut block = [around; BLOCK];
                    block[place] = byte;
                    block[BLOCK - 1 - place] = byte;
                    let ends = 1 << place | 1 << (BLOCK - 1 - place);
                    let expected = if is_special(byte) { ends } else { 0 };
                    assert_eq!(specials(&block), expected, "{byte:#x} at both ends");
                    let (shorter, behind) = (specials(&block[..place]), u64::MAX << place);
                    assert_eq!(
                        shorter,
                        expected & !behind | behind,
                        "{byte:#x} in {place} bytes"
                    );
                }
            }
        }
    }
}
