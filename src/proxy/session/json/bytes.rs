//! Searches many bytes at once, in code that the compiler vectorizes; and sets of pointers in a `u64`.

/// How many bytes are checked together in long runs: four SSE2 registers, which every x86-64 has. rustc 1.95
/// vectorizes a loop over an array of this size, and not one over 32 bytes.
const BLOCK: usize = 64;

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

/// How many bytes come before the first special one in a string: a quote, a backslash, or a control
/// character.
#[inline]
pub(super) fn run_of_plain(bytes: &[u8]) -> usize {
    // Most names and short values end within 8 bytes; for the rest a call pays off.
    match bytes.first_chunk().map(|word| find_in_word(*word)) {
        Some(Some(run)) => run,
        Some(None) => 8 + long_run_of_plain(&bytes[8..]),
        None => long_run_of_plain(bytes),
    }
}

#[inline(never)]
fn long_run_of_plain(bytes: &[u8]) -> usize {
    let (blocks, _) = bytes.as_chunks::<BLOCK>();
    let clear = blocks.iter().take_while(|block| !holds_special(block));
    let clear = BLOCK * clear.count();
    let tail = &bytes[clear..];
    let (words, rest) = tail.as_chunks::<8>();
    for (i, word) in words.iter().enumerate() {
        if let Some(place) = find_in_word(*word) {
            return clear + 8 * i + place;
        }
    }
    let last = rest.iter().take_while(|&&byte| !is_special(byte)).count();
    clear + 8 * words.len() + last
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
    let below = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word;
    let quote_or_control = below(word ^ (ONES * 0x02), 0x21);
    let backslash = below(word ^ (ONES * u64::from(b'\\')), 1);
    let special = (quote_or_control | backslash) & (ONES * 0x80);
    (special != 0).then(|| special.trailing_zeros() as usize / 8)
}

/// Whether a byte is a quote, a backslash or a control character. Swapping 0x20 and 0x22 puts the quote right
/// above the control characters, so that one comparison finds them all.
#[inline]
pub(super) fn is_special(byte: u8) -> bool {
    (byte ^ 0x02) < 0x21 || byte == b'\\'
}
