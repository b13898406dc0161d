//! Compares names of members, unescaped, as the loosest readers do.

/// A member's name in the body.
#[derive(Clone, Copy)]
pub(super) struct MemberName<'b> {
    /// The text between the quotes, with its escapes.
    pub(super) raw: &'b str,
    /// Whether the text has escapes.
    pub(super) is_escaped: bool,
}

/// How a member's name compares with a name on a pointer's path.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum MemberMatch {
    /// The names are equal.
    Same,
    /// The names differ only in case; some readers take them for equal.
    CaseApart,
    /// The names differ for every reader.
    Other,
}

/// The token of an array's last element. In an object it is a name as any other.
pub(super) const LAST: &str = "-1";

/// A `\uXXXX` escape that is one half of a surrogate pair without the other.
pub(super) struct LoneSurrogate;

/// The characters of a string's raw text, unescaped. The text has passed `Scanner::string`, so it has no
/// broken escapes.
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
    /// The character of the four digits after `\u`; it takes a second `\uXXXX` if the two are a surrogate
    /// pair.
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

/// Whether a name may be the token or a case variant of it, judged by its first byte. That rules out most
/// names of an object at almost no cost.
pub(super) fn may_begin_alike(raw: &str, token: &str) -> bool {
    match (raw.as_bytes().first(), token.as_bytes().first()) {
        (Some(b'\\'), _) => true,
        (Some(a), Some(b)) if a.is_ascii() && b.is_ascii() => a.eq_ignore_ascii_case(b),
        _ => true,
    }
}

/// Compares a name's raw text, unescaped, with a token.
pub(super) fn compare(raw: &str, token: &str) -> MemberMatch {
    let mut wanted = token.chars();
    let mut result = MemberMatch::Same;
    for c in Unescaped(raw.chars()) {
        match (c, wanted.next()) {
            (Ok(c), Some(w)) if c == w => {}
            (Ok(c), Some(w)) if fold_alike(c, w) => result = MemberMatch::CaseApart,
            // Go puts U+FFFD in the place of a lone surrogate, other readers keep it.
            (Err(LoneSurrogate), Some('\u{FFFD}')) => result = MemberMatch::CaseApart,
            _ => return MemberMatch::Other,
        }
    }
    match wanted.next() {
        None => result,
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

/// One form for all case variants of a character. Lower, upper and lower case again maps each class of
/// Unicode's simple folding to one form (s S ſ, k K K, ß ẞ, σ ς Σ). It also joins a few that Go keeps apart
/// (i and ı), which only makes more names ambiguous.
fn folded(c: char) -> impl Iterator<Item = char> {
    // İ alone has two lower-case characters; its first, i, is what Java takes it for.
    let upper = c.to_lowercase().take(1).flat_map(char::to_uppercase);
    upper.flat_map(char::to_lowercase)
}

/// Whether a token is that of an element, in an array: an index, or [`LAST`].
pub(super) fn is_of_element(token: &str) -> bool {
    token == LAST || index(token).is_some()
}

/// A token as an array index; `None`: it isn't one, or too large for any body.
pub(super) fn index(token: &str) -> Option<usize> {
    match token.as_bytes() {
        [b'0'] => Some(0),
        [b'1'..=b'9', rest @ ..] if rest.iter().all(u8::is_ascii_digit) => token.parse().ok(),
        _ => None,
    }
}
