//! Names of members: escapes undone, and compared as the readers behind the proxy compare them.

/// A member's name as it stands in the body, between its quotes.
#[derive(Clone, Copy)]
pub(super) struct MemberName<'b> {
    pub(super) raw: &'b str,
    /// Whether there is a backslash in it.
    pub(super) escaped: bool,
}

/// How a member's name compares with a name on a pointer's path.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum MemberMatch {
    Same,
    /// Not the same, but some readers would take it for the same.
    CaseApart,
    Other,
}

/// A `\uXXXX` escape that is one half of a surrogate pair without the other.
pub(super) struct LoneSurrogate;

/// The characters of a string's raw text, with escapes undone. The text has passed
/// `Scanner::string`, so what can't occur there is not looked for again.
pub(super) struct Unescaped<'b>(pub(super) std::str::Chars<'b>);

// === impl Unescaped ===

impl Iterator for Unescaped<'_> {
    type Item = Result<char, LoneSurrogate>;

    fn next(&mut self) -> Option<Self::Item> {
        let c = self.0.next()?;
        if c != '\\' {
            return Some(Ok(c));
        }
        Some(match self.0.next()? {
            'b' => Ok('\u{8}'),
            'f' => Ok('\u{c}'),
            'n' => Ok('\n'),
            'r' => Ok('\r'),
            't' => Ok('\t'),
            'u' => self.code_unit(),
            itself => Ok(itself),
        })
    }
}

impl Unescaped<'_> {
    /// The character of the four digits after `\u`, together with a second `\uXXXX` if the two
    /// are a surrogate pair. What only looks like a second half is left in place.
    fn code_unit(&mut self) -> Result<char, LoneSurrogate> {
        let first = self.hex().ok_or(LoneSurrogate)?;
        if let Some(c) = char::from_u32(first) {
            return Ok(c);
        }
        let mut ahead = Unescaped(self.0.clone());
        if (ahead.0.next(), ahead.0.next()) != (Some('\\'), Some('u')) {
            return Err(LoneSurrogate);
        }
        match (first, ahead.hex()) {
            (0xD800..=0xDBFF, Some(second @ 0xDC00..=0xDFFF)) => {
                *self = ahead;
                let c = 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
                char::from_u32(c).ok_or(LoneSurrogate)
            }
            _ => Err(LoneSurrogate),
        }
    }

    fn hex(&mut self) -> Option<u32> {
        (0..4).try_fold(0, |number, _| {
            Some(number << 4 | self.0.next()?.to_digit(16)?)
        })
    }
}

// === comparing ===

/// Whether a name's raw text, by its first byte, can come to the token or a case variant of it.
/// Sends most names of an object away before they cost anything.
pub(super) fn may_begin_alike(raw: &str, token: &str) -> bool {
    match (raw.as_bytes().first(), token.as_bytes().first()) {
        (Some(b'\\'), _) => true,
        (Some(a), Some(b)) if a.is_ascii() && b.is_ascii() => a.eq_ignore_ascii_case(b),
        _ => true,
    }
}

/// Compares a name's raw text, escapes undone, with a token, character by character.
pub(super) fn likeness(raw: &str, token: &str) -> MemberMatch {
    let mut wanted = token.chars();
    let mut likeness = MemberMatch::Same;
    for c in Unescaped(raw.chars()) {
        match (c, wanted.next()) {
            (Ok(c), Some(w)) if c == w => {}
            (Ok(c), Some(w)) if fold_alike(c, w) => likeness = MemberMatch::CaseApart,
            // Go puts U+FFFD in the place of a lone surrogate, other readers keep it.
            (Err(LoneSurrogate), Some('\u{FFFD}')) => likeness = MemberMatch::CaseApart,
            _ => return MemberMatch::Other,
        }
    }
    match wanted.next() {
        None => likeness,
        Some(_) => MemberMatch::Other,
    }
}

/// Whether two characters are case variants of each other for some reader.
fn fold_alike(a: char, b: char) -> bool {
    if a.is_ascii() && b.is_ascii() {
        a.eq_ignore_ascii_case(&b)
    } else {
        folded(a).eq(folded(b))
    }
}

/// What all case variants of a character have in common. Lower, upper and lower again is what
/// brings every orbit of Unicode's simple folding together (s S ſ, k K K, ß ẞ, σ ς Σ); it joins a
/// few more that Go keeps apart (i and ı), which only makes more names ambiguous.
fn folded(c: char) -> impl Iterator<Item = char> {
    // İ alone has two lower-case characters; its first, i, is what Java takes it for.
    let upper = c.to_lowercase().take(1).flat_map(char::to_uppercase);
    upper.flat_map(char::to_lowercase)
}

/// A token as an array index. One too large for a `usize` is no element of any body.
pub(super) fn index(token: &str) -> Option<usize> {
    match token.as_bytes() {
        [b'0'] => Some(0),
        [b'1'..=b'9', rest @ ..] if rest.iter().all(u8::is_ascii_digit) => token.parse().ok(),
        _ => None,
    }
}
