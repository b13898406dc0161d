//! Reads a request body once and picks the raw JSON text of a few members by RFC 6901 pointers.
//!
//! Owns the proxy's whole notion of JSON: which bodies it takes for JSON ([`pick`]), when a pointer
//! has one clear answer ([`Member`]), and which values can be a session or user id ([`id`]).
//!
//! The invariant: where [`pick`] says [`Member::Found`], every reasonable JSON reader that gets the
//! same body finds this very text there. Readers differ on a name that stands twice (first or last
//! one wins) and on names that differ in case only (Go's `encoding/json` takes `SESSION_ID` for
//! `session_id`), so either makes the pointer [`Member::Ambiguous`], never a guess. They also differ
//! on what they let pass, so a body that is not JSON to the letter of RFC 8259 is refused whole, with
//! the members that nobody asked for checked as strictly as the others.
//!
//! It leaves out: building values, which pointers to ask for, and what to do about an ambiguous or
//! malformed body. Objects that are on no pointer's path may repeat names; nobody reads an id there.

use std::borrow::Cow;
use std::fmt;

use crate::key::Pointer;

/// How many arrays and objects may be open at once. Readers stop at different depths (serde_json
/// at 127, Python near 1000, Go at 10000); no chat request comes near the lowest of them. Also the
/// number of bits in the `u128` that [`Scanner::skip`] keeps the open ones in.
const MAX_DEPTH: usize = 128;

/// How many pointers one [`pick`] follows: the bits of the `u64` sets it keeps them in.
const MAX_POINTERS: usize = u64::BITS as usize;

/// Bytes looked at together in long runs: four SSE2 registers, which every x86-64 has. Of a loop
/// over an array of this size rustc 1.95 makes vector code, of one over 32 bytes it doesn't.
const BLOCK: usize = 64;

/// Bytes whose UTF-8 [`check_utf8`] judges at a time. Enough for the call to cost nothing beside
/// the work, and few enough that one emoji sends little of the text down the slower road.
const STRETCH: usize = 4 * BLOCK;

/// The bytes before one that decide whether it may stand there: a character's first byte is at
/// most three before its last.
const LOOK_BACK: usize = 3;

/// What stands at a pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Member<'b> {
    /// Nothing: a name or an element on the way isn't there, or a scalar is in the way.
    Missing,
    /// Readers would disagree: on the way a name stands twice, or one that differs in case only.
    Ambiguous,
    /// The member's raw JSON text, without white space around it.
    Found(&'b str),
}

/// Why a body is not JSON that the proxy reads. `at` counts bytes from the body's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Malformed {
    /// The bytes from `at` on are not UTF-8.
    NotUtf8 { at: usize },
    /// Something other than `expected` stands at `at`.
    Syntax { at: usize, expected: &'static str },
    /// The body ends at `at`, where `expected` should follow.
    Cut { at: usize, expected: &'static str },
    /// The array or object that opens at `at` is nested deeper than [`MAX_DEPTH`].
    TooDeep { at: usize },
}

/// What a JSON text comes to as a session or user id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Id<'b> {
    /// A value that says there is none: `null`, `false`, `""`, `0`, `-0`.
    Missing,
    /// The characters of a string, or the digits of an integer as they were written.
    Text(Cow<'b, str>),
    /// A value that is no id, and what it is instead, in words.
    Unfit(&'static str),
}

/// A member's name as it stands in the body, between its quotes.
#[derive(Clone, Copy)]
struct Name<'b> {
    raw: &'b [u8],
    /// Whether there is a backslash in it.
    escaped: bool,
}

/// How a member's name compares with a name on a pointer's path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Likeness {
    Same,
    /// Not the same, but some readers would take it for the same.
    CaseApart,
    Other,
}

/// A `\uXXXX` escape that is one half of a surrogate pair without the other.
struct LoneSurrogate;

/// The characters of a string's raw text, with escapes undone. The text has passed
/// [`Scanner::string`], so what can't occur there is not looked for again.
struct Unescaped<'b>(std::str::Chars<'b>);

/// One pass over a body.
struct Scanner<'b, 'p> {
    body: &'b [u8],
    at: usize,
    pointers: &'p [Pointer],
    /// What was found so far; [`Scanner::ambiguous`] overrules it.
    members: Vec<Member<'b>>,
    /// The pointers that proved ambiguous, by bit. Once set, nothing later in the body clears it.
    ambiguous: u64,
}

/// Picks what stands at each of the pointers, in their order.
///
/// At most 64 pointers can be followed; every further one is answered [`Member::Ambiguous`], so that
/// a mistake there can't pass for a missing id.
pub(super) fn pick<'b>(body: &'b [u8], pointers: &[Pointer]) -> Result<Vec<Member<'b>>, Malformed> {
    debug_assert!(
        pointers.len() <= MAX_POINTERS,
        "at most {MAX_POINTERS} pointers"
    );
    check_utf8(body)?;
    let mut scanner = Scanner {
        body,
        at: 0,
        pointers,
        members: vec![Member::Missing; pointers.len()],
        ambiguous: 0,
    };
    let all = (0..pointers.len().min(MAX_POINTERS)).fold(0, |set, i| set | 1 << i);
    scanner.document(all)?;

    let Scanner {
        mut members,
        ambiguous,
        ..
    } = scanner;
    for (i, member) in members.iter_mut().enumerate() {
        if i >= MAX_POINTERS || ambiguous >> i & 1 == 1 {
            *member = Member::Ambiguous;
        }
    }
    Ok(members)
}

/// Reads the text of a [`Member::Found`] as a session or user id.
pub(super) fn id(text: &str) -> Id<'_> {
    if is_missing(text) {
        return Id::Missing;
    }
    match text.as_bytes() {
        [b'"', .., b'"'] => {
            let raw = &text[1..text.len() - 1];
            if !raw.contains('\\') {
                return Id::Text(Cow::Borrowed(raw));
            }
            match Unescaped(raw.chars()).collect::<Result<String, LoneSurrogate>>() {
                Ok(characters) => Id::Text(Cow::Owned(characters)),
                Err(LoneSurrogate) => Id::Unfit("a lone surrogate"),
            }
        }
        // To some readers 1000.0 and 1e3 are 1000, to others they are three different texts.
        [b'-' | b'0'..=b'9', ..] if text.contains('.') => Id::Unfit("a fraction"),
        [b'-' | b'0'..=b'9', ..] if text.contains(['e', 'E']) => {
            Id::Unfit("a number with an exponent")
        }
        [b'-' | b'0'..=b'9', ..] => Id::Text(Cow::Borrowed(text)),
        [b't', ..] => Id::Unfit("true"),
        [b'{', ..] => Id::Unfit("an object"),
        [b'[', ..] => Id::Unfit("an array"),
        _ => Id::Unfit("no JSON value"),
    }
}

/// Whether a [`Member::Found`] text counts as if nothing stood there. These are the values that
/// backends in scripting languages test as false and then make up an id of their own.
pub(super) fn is_missing(text: &str) -> bool {
    matches!(text, "null" | "false" | "\"\"" | "0" | "-0")
}

// === impl Scanner ===

impl<'b> Scanner<'b, '_> {
    /// The whole body: one value with nothing but white space around it.
    fn document(&mut self, all: u64) -> Result<(), Malformed> {
        self.white_space();
        self.value(all, 0)?;
        self.white_space();
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.expected("the end of the body")),
        }
    }

    /// A value that the pointers of `alive` have led to, inside `level` arrays and objects. As
    /// many of their tokens are used up, so a pointer of just that many ends here.
    ///
    /// Calls itself, by way of [`Self::object`] and [`Self::array`], once per token at most and
    /// never deeper than [`MAX_DEPTH`].
    fn value(&mut self, alive: u64, level: usize) -> Result<(), Malformed> {
        let start = self.at;
        let ending = self.those(alive, |tokens| tokens.len() == level);
        let going_on = alive & !ending;
        match self.peek() {
            Some(b'{') if going_on != 0 => self.object(going_on, level)?,
            Some(b'[') if going_on != 0 => self.array(going_on, level)?,
            _ => self.skip(level)?,
        }
        if ending != 0 {
            let text = checked(&self.body[start..self.at], start)?;
            for i in ones(ending) {
                self.members[i] = Member::Found(text);
            }
        }
        Ok(())
    }

    /// An object on the way of the pointers of `alive`.
    fn object(&mut self, alive: u64, level: usize) -> Result<(), Malformed> {
        self.open(level)?;
        if self.closes(b'}') {
            return Ok(());
        }
        let mut seen = 0;
        loop {
            let name = self.name()?;
            let (same, case_apart) = self.compare(name, alive, level)?;
            // A name that is one pointer's token and a case variant of another's is either's
            // member, depending on the reader: none of them gets it.
            let doubtful = if case_apart != 0 {
                same | case_apart
            } else {
                same & seen
            };
            self.ambiguous |= doubtful;
            seen |= same;
            match same & !doubtful {
                0 => self.skip(level + 1)?,
                led_on => self.value(led_on, level + 1)?,
            }
            if !self.goes_on(b'}')? {
                return Ok(());
            }
        }
    }

    /// An array on the way of the pointers of `alive`.
    fn array(&mut self, alive: u64, level: usize) -> Result<(), Malformed> {
        self.open(level)?;
        if self.closes(b']') {
            return Ok(());
        }
        let wanted = |scanner: &Self, from: usize| {
            let indices = ones(alive).filter_map(|i| index(&scanner.pointers[i].tokens()[level]));
            indices.filter(|&index| index >= from).min()
        };
        // Only the next wanted element is kept in mind: most elements are then one comparison.
        let mut next = wanted(self, 0);
        for element in 0.. {
            if next == Some(element) {
                let led_on = self.those(alive, |tokens| index(&tokens[level]) == next);
                self.value(led_on, level + 1)?;
                next = wanted(self, element + 1);
            } else {
                self.skip(level + 1)?;
            }
            if !self.goes_on(b']')? {
                break;
            }
        }
        Ok(())
    }

    /// A value that no pointer leads into, checked without recursion: the kinds of the arrays and
    /// objects that are open sit in the bits of a number, the innermost lowest.
    fn skip(&mut self, level: usize) -> Result<(), Malformed> {
        const OBJECT: u128 = 1;
        let mut kinds: u128 = 0;
        let mut open = 0;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.string()?;
                }
                Some(b'{') => {
                    self.open(level + open)?;
                    if !self.closes(b'}') {
                        kinds = kinds << 1 | OBJECT;
                        open += 1;
                        self.name()?;
                        continue;
                    }
                }
                Some(b'[') => {
                    self.open(level + open)?;
                    if !self.closes(b']') {
                        kinds <<= 1;
                        open += 1;
                        continue;
                    }
                }
                Some(b'-' | b'0'..=b'9') => self.number()?,
                Some(b't') => self.word("true", "the word true")?,
                Some(b'f') => self.word("false", "the word false")?,
                Some(b'n') => self.word("null", "the word null")?,
                _ => return Err(self.no_value()),
            }
            // A value has ended, and with it perhaps some of the arrays and objects around it.
            loop {
                if open == 0 {
                    return Ok(());
                }
                let in_object = kinds & 1 == OBJECT;
                if self.goes_on(if in_object { b'}' } else { b']' })? {
                    if in_object {
                        self.name()?;
                    }
                    break;
                }
                kinds >>= 1;
                open -= 1;
            }
        }
    }

    /// A member's name and the colon after it, up to the member's value.
    // Inlined by force, as is `string`: the calls would be a fifth of a small body's time.
    #[inline(always)]
    fn name(&mut self) -> Result<Name<'b>, Malformed> {
        if self.peek() != Some(b'"') {
            return Err(self.expected("a member's name in double quotes"));
        }
        let start = self.at + 1;
        let escaped = self.string()?;
        let raw = &self.body[start..self.at - 1];
        self.white_space();
        if self.peek() != Some(b':') {
            return Err(self.expected("a colon"));
        }
        self.at += 1;
        self.white_space();
        Ok(Name { raw, escaped })
    }

    /// A string, from its opening quote past its closing one. Tells whether it has escapes.
    #[inline(always)]
    fn string(&mut self) -> Result<bool, Malformed> {
        self.at += 1;
        let mut escaped = false;
        loop {
            self.at += run_of_plain(&self.body[self.at..]);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(escaped);
                }
                Some(b'\\') => {
                    escaped = true;
                    self.escapes()?;
                }
                Some(_) => return Err(self.expected("no control character but as an escape")),
                None => return Err(self.expected("the closing quote of a string")),
            }
        }
    }

    /// A backslash and what belongs to it, and any more that follow at once: text in which every
    /// character is escaped is common (Python's `json.dumps` writes Chinese so).
    fn escapes(&mut self) -> Result<(), Malformed> {
        while self.peek() == Some(b'\\') {
            self.at += 1;
            match self.peek() {
                Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
                Some(b'u') => {
                    self.at += 1;
                    let digits = self.body[self.at..].first_chunk::<4>();
                    if !digits.is_some_and(|four| four.iter().all(u8::is_ascii_hexdigit)) {
                        return Err(self.expected("four hexadecimal digits"));
                    }
                    self.at += 4;
                }
                _ => return Err(self.expected("one of \" \\ / b f n r t u after the backslash")),
            }
        }
        Ok(())
    }

    /// A number, up to the first byte that can't belong to it. Whether that byte may follow is
    /// for whatever comes next to say, so `01` fails as a `1` where a comma should be.
    fn number(&mut self) -> Result<(), Malformed> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    /// One digit or more.
    fn digits(&mut self) -> Result<(), Malformed> {
        let rest = &self.body[self.at..];
        match rest.iter().take_while(|byte| byte.is_ascii_digit()).count() {
            0 => Err(self.expected("a digit")),
            count => {
                self.at += count;
                Ok(())
            }
        }
    }

    /// One of the three words of JSON.
    fn word(&mut self, word: &str, expected: &'static str) -> Result<(), Malformed> {
        if !self.body[self.at..].starts_with(word.as_bytes()) {
            return Err(Malformed::Syntax {
                at: self.at,
                expected,
            });
        }
        self.at += word.len();
        Ok(())
    }

    /// The bracket that opens an array or object inside `level` others.
    fn open(&mut self, level: usize) -> Result<(), Malformed> {
        if level >= MAX_DEPTH {
            return Err(Malformed::TooDeep { at: self.at });
        }
        self.at += 1;
        Ok(())
    }

    /// Whether the array or object that has just opened closes at once, as empty.
    fn closes(&mut self, close: u8) -> bool {
        self.white_space();
        let closes = self.peek() == Some(close);
        self.at += usize::from(closes);
        closes
    }

    /// Whether, after a value in an array or object, another one is to come.
    fn goes_on(&mut self, close: u8) -> Result<bool, Malformed> {
        self.white_space();
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                self.white_space();
                Ok(true)
            }
            Some(byte) if byte == close => {
                self.at += 1;
                Ok(false)
            }
            _ if close == b'}' => Err(self.expected("a comma or }")),
            _ => Err(self.expected("a comma or ]")),
        }
    }

    #[inline]
    fn white_space(&mut self) {
        if self.peek().is_some_and(|byte| byte > b' ') {
            return;
        }
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.body.get(self.at).copied()
    }

    /// Those pointers of a set whose tokens are as asked.
    fn those(&self, set: u64, ask: impl Fn(&[Box<str>]) -> bool) -> u64 {
        ones(set)
            .filter(|&i| ask(self.pointers[i].tokens()))
            .fold(0, |those, i| those | 1 << i)
    }

    /// Which pointers of `alive` have this name next, and which one that differs in case only.
    fn compare(&self, name: Name<'_>, alive: u64, level: usize) -> Result<(u64, u64), Malformed> {
        let token = |i: usize| &*self.pointers[i].tokens()[level];
        let (mut same, mut case_apart, mut unclear) = (0, 0, 0);
        for i in ones(alive) {
            if !name.escaped && name.raw == token(i).as_bytes() {
                same |= 1 << i;
            } else if may_begin_alike(name.raw, token(i)) {
                unclear |= 1 << i;
            }
        }
        if unclear != 0 {
            let raw = checked(name.raw, self.at)?;
            for i in ones(unclear) {
                match likeness(raw, token(i)) {
                    Likeness::Same => same |= 1 << i,
                    Likeness::CaseApart => case_apart |= 1 << i,
                    Likeness::Other => {}
                }
            }
        }
        Ok((same, case_apart))
    }

    #[cold]
    fn expected(&self, expected: &'static str) -> Malformed {
        if self.at < self.body.len() {
            Malformed::Syntax {
                at: self.at,
                expected,
            }
        } else {
            Malformed::Cut {
                at: self.body.len(),
                expected,
            }
        }
    }

    #[cold]
    fn no_value(&self) -> Malformed {
        if self.body[self.at..].starts_with("\u{FEFF}".as_bytes()) {
            return self.expected("a value, not a byte order mark");
        }
        self.expected("a value")
    }
}

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

// === impl Malformed ===

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::NotUtf8 { at } => {
                write!(
                    f,
                    "the body is not UTF-8: no character starts with what stands at byte {at}"
                )
            }
            Malformed::Syntax { at, expected } => {
                write!(
                    f,
                    "the body is not JSON: at byte {at} there should be {expected}"
                )
            }
            Malformed::Cut { at, expected } => write!(
                f,
                "the body ends after {at} bytes, before its JSON does: {expected} should follow"
            ),
            Malformed::TooDeep { at } => write!(
                f,
                "the body nests arrays and objects more than {MAX_DEPTH} deep at byte {at}"
            ),
        }
    }
}

impl std::error::Error for Malformed {}

// === names ===

/// Whether a name's raw text, by its first byte, can come to the token or a case variant of it.
/// Sends most names of an object away before they cost anything.
fn may_begin_alike(raw: &[u8], token: &str) -> bool {
    match (raw.first(), token.as_bytes().first()) {
        (Some(b'\\'), _) => true,
        (Some(a), Some(b)) if a.is_ascii() && b.is_ascii() => a.eq_ignore_ascii_case(b),
        _ => true,
    }
}

/// Compares a name's raw text, escapes undone, with a token, character by character.
fn likeness(raw: &str, token: &str) -> Likeness {
    let mut wanted = token.chars();
    let mut likeness = Likeness::Same;
    for c in Unescaped(raw.chars()) {
        match (c, wanted.next()) {
            (Ok(c), Some(w)) if c == w => {}
            (Ok(c), Some(w)) if fold_alike(c, w) => likeness = Likeness::CaseApart,
            // Go puts U+FFFD in the place of a lone surrogate, other readers keep it.
            (Err(LoneSurrogate), Some('\u{FFFD}')) => likeness = Likeness::CaseApart,
            _ => return Likeness::Other,
        }
    }
    if wanted.next().is_some() {
        Likeness::Other
    } else {
        likeness
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
    let lower = c.to_lowercase().take(1);
    lower
        .flat_map(char::to_uppercase)
        .flat_map(char::to_lowercase)
}

/// A token as an array index. One too large for a `usize` is no element of any body.
fn index(token: &str) -> Option<usize> {
    match token.as_bytes() {
        [b'0'] => Some(0),
        [b'1'..=b'9', rest @ ..] if rest.iter().all(u8::is_ascii_digit) => token.parse().ok(),
        _ => None,
    }
}

// === bytes ===

/// The places of a set's members, lowest first.
fn ones(mut set: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let place = set.trailing_zeros() as usize;
        (set != 0).then(|| {
            set &= set - 1;
            place
        })
    })
}

/// How many bytes pass before one that means something in a string: a quote, a backslash, or a
/// control character, which is an error.
#[inline]
fn run_of_plain(bytes: &[u8]) -> usize {
    // Most names and short values end within a word; the rest is worth a call.
    match bytes.first_chunk().map(|word| find_in_word(*word)) {
        Some(Some(run)) => run,
        Some(None) => 8 + long_run_of_plain(&bytes[8..]),
        None => long_run_of_plain(bytes),
    }
}

#[inline(never)]
fn long_run_of_plain(bytes: &[u8]) -> usize {
    let (blocks, _) = bytes.as_chunks::<BLOCK>();
    let clear = BLOCK
        * blocks
            .iter()
            .take_while(|block| !holds_special(block))
            .count();
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

/// Whether a special byte stands in the block: written so that the compiler makes it a dozen
/// vector instructions, which is why it doesn't stop at the first.
fn holds_special(block: &[u8; BLOCK]) -> bool {
    block
        .iter()
        .fold(0, |found, &byte| found | u8::from(is_special(byte)))
        != 0
}

/// The place of the first special byte.
#[inline]
fn find_in_word(word: [u8; 8]) -> Option<usize> {
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

/// Swapping 0x20 and 0x22 puts the quote right above the control characters and leaves these
/// among themselves, so that one comparison finds them all.
#[inline]
fn is_special(byte: u8) -> bool {
    (byte ^ 0x02) < 0x21 || byte == b'\\'
}

/// Checks that the body is UTF-8. [`std::str::from_utf8`] is quick on ASCII only: 256 KiB of Chinese
/// take it 140 µs and more, four times as long as all the rest of a [`pick`]. So it is asked about
/// the ends, and about what [`is_utf8_stretch`] doesn't pass: its answer is what a refusal reports.
fn check_utf8(body: &[u8]) -> Result<(), Malformed> {
    // Always where a character starts: a stretch needs LOOK_BACK bytes before it that end one.
    let mut at = body
        .iter()
        .take(LOOK_BACK)
        .take_while(|byte| byte.is_ascii())
        .count();
    while at < body.len() {
        let end = body.len().min(at + STRETCH);
        let stretch = &body[at..end];
        if end < body.len() && (stretch.is_ascii() || is_utf8_stretch(body, at)) {
            // Nobody has seen yet whether its last character is whole: go on from where that starts.
            at = end - 1;
            while is_continuation(body[at]) {
                at -= 1;
            }
            continue;
        }
        match std::str::from_utf8(stretch) {
            Ok(_) => at = end,
            // A character is cut in two by the stretch's end, not by the body's.
            Err(e) if e.error_len().is_none() && end < body.len() => at += e.valid_up_to(),
            Err(e) => {
                return Err(Malformed::NotUtf8 {
                    at: at + e.valid_up_to(),
                });
            }
        }
    }
    Ok(())
}

/// Whether the [`STRETCH`] bytes from `at` on, where a character starts, are UTF-8 as far as they
/// go: what the last of them starts may be left unfinished. Both tests look at each byte in the
/// light of the three before it, without a branch, so that the compiler makes them vector code.
fn is_utf8_stretch(body: &[u8], at: usize) -> bool {
    let Some(window) = at
        .checked_sub(LOOK_BACK)
        .and_then(|from| body[from..].first_chunk())
    else {
        return false;
    };
    // Nearly all text makes do with lead bytes that any continuation may follow.
    let unusual = any(window, |[_, b2, b1, byte]| {
        let due = (b1 >= 0xC0) | (b2 >= 0xE0);
        let special_lead = (byte == 0xE0) | (byte == 0xED) | (byte >= 0xF0);
        (due != is_continuation(byte)) | (byte & 0xFE == 0xC0) | special_lead
    });
    // Emoji, Thai, part of Korean: the same with all leads, four of which narrow what may follow:
    // E0 and F0 against overlong forms, ED against surrogates, F4 against what is past U+10FFFF.
    !unusual
        || !any(window, |[b3, b2, b1, byte]| {
            let due = (b1 >= 0xC0) | (b2 >= 0xE0) | (b3 >= 0xF0);
            let never = (byte & 0xFE == 0xC0) | (byte >= 0xF5);
            let out_of_three = b1 == if byte < 0xA0 { 0xE0 } else { 0xED };
            let out_of_four = b1 == if byte < 0x90 { 0xF0 } else { 0xF4 };
            (due != is_continuation(byte)) | never | out_of_three | out_of_four
        })
}

/// Whether any byte of the stretch, seen with the three before it, is wrong.
#[inline]
fn any(window: &[u8; LOOK_BACK + STRETCH], wrong: impl Fn([u8; 4]) -> bool) -> bool {
    let last = |i: usize| [window[i], window[i + 1], window[i + 2], window[i + 3]];
    (0..STRETCH).fold(0, |found, i| found | u8::from(wrong(last(i)))) != 0
}

/// A piece of the body that has passed [`check_utf8`], as text. Asking again is how safe code gets
/// the `str`; it also means that no text leaves this file but on the word of the standard library.
fn checked(piece: &[u8], at: usize) -> Result<&str, Malformed> {
    std::str::from_utf8(piece).map_err(|_| Malformed::NotUtf8 { at })
}

fn is_continuation(byte: u8) -> bool {
    byte & 0xC0 == 0x80
}
