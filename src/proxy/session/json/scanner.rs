//! Passes over a body once: checks the JSON grammar strictly, and follows the pointers.
//!
//! Invariant: no body exhausts the stack. Recursion follows only the pointers' paths; all else is skipped in a
//! loop.

use super::bytes::{BLOCK, find_in_word, is_escapable, is_hex_digit, ones, plain_blocks, specials};
use super::names::{LAST, MemberMatch, MemberName, compare, index, is_of_element, may_begin_alike};
use super::{JsonError, JsonMember};
use crate::key::Pointer;
use crate::proxy::session::ambiguity::Ambiguity;

/// How many arrays and objects may be open at once. Readers stop at different depths (serde_json
/// at 127, Python near 1000, Go at 10000); no chat request comes near the lowest of them. Also the
/// number of bits in the `u128` that [`Scanner::skip`] keeps the open ones in.
pub(super) const MAX_DEPTH: usize = 128;

/// The state of one pass over a body.
pub(super) struct Scanner<'b, 'p> {
    /// The body as text, from which members are cut.
    text: &'b str,
    /// The bytes of `text`.
    body: &'b [u8],
    /// The position of the next byte.
    at: usize,
    /// The wanted pointers. A set of them is a `u64` with a bit for each.
    pointers: &'p [Pointer],
    /// The member for each pointer so far. [`Scanner::ambiguous`] overrules it.
    members: Vec<JsonMember<'b>>,
    ambiguous: AmbiguousPointers,
}

/// The sets of ambiguous pointers. A bit stays set to the end of the body.
#[derive(Default)]
struct AmbiguousPointers {
    /// A name on the path is there twice.
    twice: u64,
    /// A name on the path is there in another case.
    in_another_case: u64,
    /// A name on the path is another pointer's name in another case.
    of_another: u64,
    /// The member is in a request of a batch.
    in_batch: u64,
}

// === impl Scanner ===

impl<'b, 'p> Scanner<'b, 'p> {
    pub(super) fn new(text: &'b str, pointers: &'p [Pointer]) -> Self {
        let members = vec![JsonMember::Missing; pointers.len()];
        Self {
            text,
            body: text.as_bytes(),
            at: 0,
            pointers,
            members,
            ambiguous: AmbiguousPointers::default(),
        }
    }

    /// The member for each pointer in the value that was read.
    pub(super) fn found(&mut self) -> &mut Vec<JsonMember<'b>> {
        let AmbiguousPointers {
            twice,
            in_another_case,
            of_another,
            in_batch,
        } = std::mem::take(&mut self.ambiguous);
        for (set, ambiguity) in [
            (of_another, Ambiguity::MemberOfAnother),
            (in_another_case, Ambiguity::MemberCase),
            (twice, Ambiguity::MemberTwice),
            (in_batch, Ambiguity::MemberInBatch),
        ] {
            for i in ones(set) {
                self.members[i] = JsonMember::Ambiguous(ambiguity);
            }
        }
        &mut self.members
    }

    /// Reads a body that is a list of objects. Calls `see` with the members in each of them: their pointers
    /// begin there. Ends early when `see` says so, and returns whether it didn't.
    ///
    /// # Errors
    /// When the body isn't such a list.
    pub(super) fn requests(
        &mut self,
        all: u64,
        mut see: impl FnMut(&[JsonMember<'b>]) -> bool,
    ) -> Result<bool, JsonError> {
        self.white_space();
        if !self.eat(b'[') {
            return Err(self.expected("a list"));
        }
        if self.closes(b']') {
            return Ok(true);
        }
        loop {
            if self.peek() != Some(b'{') {
                return Err(self.expected("an object"));
            }
            self.members.fill(JsonMember::Missing);
            self.value(all, 0)?;
            if !see(self.found()) {
                return Ok(false);
            }
            if !self.has_next(b']')? {
                return Ok(true);
            }
        }
    }

    /// Reads the whole body: one value with white space around it. `all` is the set of all pointers.
    pub(super) fn document(&mut self, all: u64) -> Result<(), JsonError> {
        self.white_space();
        self.value(all, 0)?;
        self.white_space();
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.expected("the end of the body")),
        }
    }

    /// Reads the first value; anything may follow it.
    pub(super) fn first_value(&mut self) -> Result<&'b str, JsonError> {
        self.white_space();
        let start = self.at;
        self.skip(0)?;
        Ok(&self.text[start..self.at])
    }

    /// Reads a value inside `level` arrays and objects. The first `level` tokens of the pointers in `alive`
    /// lead to it, so a pointer of `level` tokens ends here.
    ///
    /// Calls itself through [`Self::object`] and [`Self::array`], at most once for each token and never deeper
    /// than [`MAX_DEPTH`].
    fn value(&mut self, alive: u64, level: usize) -> Result<(), JsonError> {
        let start = self.at;
        let ending = self.filter(alive, |tokens| tokens.len() == level);
        let going_on = alive & !ending;
        match self.peek() {
            Some(b'{') if going_on != 0 => self.object(going_on, level)?,
            Some(b'[') if going_on != 0 => self.array(going_on, level)?,
            _ => self.skip(level)?,
        }
        if ending != 0 {
            // A value begins and ends with ASCII, so this doesn't cut a character.
            let text = &self.text[start..self.at];
            for i in ones(ending) {
                self.members[i] = JsonMember::Found(text);
            }
        }
        Ok(())
    }

    /// Reads an object on the path of the pointers in `alive`.
    fn object(&mut self, alive: u64, level: usize) -> Result<(), JsonError> {
        self.open(level)?;
        if self.closes(b'}') {
            return Ok(());
        }
        let mut seen = 0;
        loop {
            let name = self.name()?;
            let (same, case_apart) = self.compare(name, alive, level);
            self.ambiguous.twice |= same & seen;
            // A name that is one pointer's token and a case variant of another's is ambiguous for both.
            if case_apart != 0 {
                self.ambiguous.in_another_case |= case_apart;
                self.ambiguous.of_another |= same;
            }
            seen |= same;
            match same {
                0 => self.skip(level + 1)?,
                _ => self.value(same, level + 1)?,
            }
            if !self.has_next(b'}')? {
                return Ok(());
            }
        }
    }

    /// Reads an array on the path of the pointers in `alive`.
    fn array(&mut self, alive: u64, level: usize) -> Result<(), JsonError> {
        self.open(level)?;
        if self.closes(b']') {
            return Ok(());
        }
        let wanted = |scanner: &Self, from: usize| {
            let indices = ones(alive).filter_map(|i| index(&scanner.pointers[i].tokens()[level]));
            indices.filter(|&index| index >= from).min()
        };
        // Only the next wanted element is known, so that most elements cost one comparison.
        let mut next = wanted(self, 0);
        // A body that is a list may be a batch of requests (JSON-RPC 2.0 §6). Each may have the member, and
        // no pointer says which of them.
        let in_batch = match level {
            0 => self.filter(alive, |tokens| !is_of_element(&tokens[0])),
            _ => 0,
        };
        let mut start = self.at;
        for element in 0.. {
            start = self.at;
            let is_wanted = next == Some(element);
            let is_request = in_batch != 0 && self.peek() == Some(b'{');
            if is_request {
                self.request(in_batch)?;
                if is_wanted {
                    self.at = start;
                }
            }
            if is_wanted {
                let led_on = self.filter(alive, |tokens| index(&tokens[level]) == next);
                self.value(led_on, level + 1)?;
                next = wanted(self, element + 1);
            } else if !is_request {
                self.skip(level + 1)?;
            }
            if !self.has_next(b']')? {
                break;
            }
        }
        // An element is known as the last one when it has been read, so it is read once more.
        let of_last = self.filter(alive, |tokens| &*tokens[level] == LAST);
        if of_last != 0 {
            let end = std::mem::replace(&mut self.at, start);
            self.value(of_last, level + 1)?;
            self.at = end;
        }
        Ok(())
    }

    /// Reads an object of a list that is the body. Its members that pointers in `alive` lead to are
    /// ambiguous.
    fn request(&mut self, alive: u64) -> Result<(), JsonError> {
        self.open(1)?;
        if self.closes(b'}') {
            return Ok(());
        }
        loop {
            let name = self.name()?;
            let (same, case_apart) = self.compare(name, alive, 0);
            self.ambiguous.in_batch |= same | case_apart;
            self.skip(2)?;
            if !self.has_next(b'}')? {
                return Ok(());
            }
        }
    }

    /// Checks a value that no pointer leads into, without recursion. The bits of a number say whether each
    /// open array or object is an object, the innermost in the lowest bit.
    fn skip(&mut self, level: usize) -> Result<(), JsonError> {
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
            // A value has ended. Arrays and objects around it may end here, too.
            loop {
                if open == 0 {
                    return Ok(());
                }
                let in_object = kinds & 1 == OBJECT;
                if self.has_next(if in_object { b'}' } else { b']' })? {
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

    /// Reads a member's name and the colon behind it, up to the member's value.
    // Always inlined, as is `string`: the calls would be a fifth of a small body's time.
    #[inline(always)]
    fn name(&mut self) -> Result<MemberName<'b>, JsonError> {
        if self.peek() != Some(b'"') {
            return Err(self.expected("a member's name in double quotes"));
        }
        let start = self.at + 1;
        let is_escaped = self.string()?;
        let raw = &self.text[start..self.at - 1];
        self.white_space();
        if !self.eat(b':') {
            return Err(self.expected("a colon"));
        }
        self.white_space();
        Ok(MemberName { raw, is_escaped })
    }

    /// Reads a string with its quotes. Returns whether it has escapes.
    #[inline(always)]
    fn string(&mut self) -> Result<bool, JsonError> {
        self.at += 1;
        // Most names and short values end within two words; for the rest a call pays off.
        for word in self.body[self.at..].as_chunks().0.iter().take(2) {
            match find_in_word(*word) {
                None => self.at += word.len(),
                Some(place) => {
                    self.at += place;
                    match self.eat(b'"') {
                        true => return Ok(false),
                        false => break,
                    }
                }
            }
        }
        self.rest_of_string()
    }

    /// Reads a string from here to its closing quote. Returns whether it has escapes.
    #[inline(never)]
    fn rest_of_string(&mut self) -> Result<bool, JsonError> {
        let mut is_escaped = false;
        loop {
            let rest = &self.body[self.at..];
            let mut specials = specials(rest);
            if specials == 0 {
                self.at += plain_blocks(rest);
                continue;
            }
            let mut behind = BLOCK;
            while specials != 0 {
                let place = specials.trailing_zeros() as usize;
                let escape = match &rest[place..] {
                    [b'"', ..] => {
                        self.at += place + 1;
                        return Ok(is_escaped);
                    }
                    [b'\\', b'u', a, b, c, d, ..]
                        if [a, b, c, d].into_iter().all(|digit| is_hex_digit(*digit)) =>
                    {
                        6
                    }
                    [b'\\', escaped, ..] if is_escapable(*escaped) => 2,
                    _ => {
                        self.at += place;
                        return Err(self.broken_string());
                    }
                };
                is_escaped = true;
                behind = place + escape;
                // The escaped byte isn't special, either.
                specials &= !(0b11 << place);
            }
            self.at += behind.max(BLOCK);
        }
    }

    /// Reads a number, up to the first byte that can't belong to it. The caller checks that byte, so `01`
    /// fails as a `1` where a comma should be.
    fn number(&mut self) -> Result<(), JsonError> {
        self.eat(b'-');
        if !self.eat(b'0') {
            self.digits()?;
        }
        if self.eat(b'.') {
            self.digits()?;
        }
        if self.eat(b'e') || self.eat(b'E') {
            let _ = self.eat(b'+') || self.eat(b'-');
            self.digits()?;
        }
        Ok(())
    }

    /// Reads one digit or more.
    fn digits(&mut self) -> Result<(), JsonError> {
        let rest = &self.body[self.at..];
        match rest.iter().take_while(|byte| byte.is_ascii_digit()).count() {
            0 => Err(self.expected("a digit")),
            count => {
                self.at += count;
                Ok(())
            }
        }
    }

    /// Reads `true`, `false` or `null`.
    fn word(&mut self, word: &str, expected: &'static str) -> Result<(), JsonError> {
        if !self.body[self.at..].starts_with(word.as_bytes()) {
            let at = self.at;
            return Err(JsonError::Syntax { at, expected });
        }
        self.at += word.len();
        Ok(())
    }

    /// Reads the bracket that opens an array or object inside `level` others.
    fn open(&mut self, level: usize) -> Result<(), JsonError> {
        if level >= MAX_DEPTH {
            return Err(JsonError::TooDeep { at: self.at });
        }
        self.at += 1;
        Ok(())
    }

    /// Whether the array or object that has just opened is empty. Reads its closing bracket then.
    fn closes(&mut self, close: u8) -> bool {
        self.white_space();
        self.eat(close)
    }

    /// Whether another value follows in an array or object. Reads the comma or the closing bracket.
    fn has_next(&mut self, close: u8) -> Result<bool, JsonError> {
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

    /// Reads this byte if it comes next. Returns whether it did.
    fn eat(&mut self, byte: u8) -> bool {
        let here = self.peek() == Some(byte);
        // Not `+= usize::from(here)`: a branch is predicted, a sum is waited for.
        if here {
            self.at += 1;
        }
        here
    }

    fn peek(&self) -> Option<u8> {
        self.body.get(self.at).copied()
    }

    /// The pointers of a set whose tokens pass a test.
    fn filter(&self, set: u64, test: impl Fn(&[Box<str>]) -> bool) -> u64 {
        ones(set)
            .filter(|&i| test(self.pointers[i].tokens()))
            .fold(0, |passed, i| passed | 1 << i)
    }

    /// The pointers in `alive` whose next token is this name, and those whose next token differs only in
    /// case.
    fn compare(&self, name: MemberName<'_>, alive: u64, level: usize) -> (u64, u64) {
        let token = |i: usize| &*self.pointers[i].tokens()[level];
        let (mut same, mut case_apart, mut unclear) = (0, 0, 0);
        for i in ones(alive) {
            if !name.is_escaped && name.raw == token(i) {
                same |= 1 << i;
            } else if may_begin_alike(name.raw, token(i)) {
                unclear |= 1 << i;
            }
        }
        for i in ones(unclear) {
            match compare(name.raw, token(i)) {
                MemberMatch::Same => same |= 1 << i,
                MemberMatch::CaseApart => case_apart |= 1 << i,
                MemberMatch::Other => {}
            }
        }
        (same, case_apart)
    }

    #[cold]
    fn expected(&self, expected: &'static str) -> JsonError {
        let at = self.at;
        match self.peek() {
            Some(_) => JsonError::Syntax { at, expected },
            None => JsonError::Cut { at, expected },
        }
    }

    /// The error for a string that can't go on here.
    #[cold]
    fn broken_string(&mut self) -> JsonError {
        match self.peek() {
            None => return self.expected("the closing quote of a string"),
            Some(b'\\') => self.at += 1,
            Some(_) => return self.expected("no control character but as an escape"),
        }
        match self.eat(b'u') {
            true => self.expected("four hexadecimal digits"),
            false => self.expected("one of \" \\ / b f n r t u after the backslash"),
        }
    }

    #[cold]
    fn no_value(&self) -> JsonError {
        if self.body[self.at..].starts_with("\u{FEFF}".as_bytes()) {
            return self.expected("a value, not a byte order mark");
        }
        self.expected("a value")
    }
}
