//! What is read in a kept event stream (WHATWG HTML, "Parsing an event stream"): where events begin, and their ids.

/// The number of the first byte behind the last event that is whole; `None`: no event is. Lines end with CR LF, LF or
/// CR, and an empty line ends an event.
pub(super) fn behind_last_event(text: &[u8]) -> Option<usize> {
    let ends = Lines::new(text).filter(|line| line.text.is_empty());
    ends.last().map(|line| line.next)
}

/// Where an event with some id is in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EventPlace {
    /// The number of the first byte behind the first event that sets the id.
    pub(super) behind: usize,
    /// Whether a later event sets the id, too.
    pub(super) comes_again: bool,
}

/// Where the event is that sets this id; `None`: no event does. Of several, a reader may have got only the first, so
/// it gets the others again. So it does with those that set no id.
pub(super) fn find_event(text: &[u8], id: &[u8]) -> Option<EventPlace> {
    let mut event_id = None;
    let mut found: Option<EventPlace> = None;
    for line in Lines::new(text) {
        if line.text.is_empty() {
            if event_id.take() == Some(id) {
                found = Some(EventPlace {
                    behind: found.map_or(line.next, |first| first.behind),
                    comes_again: found.is_some(),
                });
            }
        } else if let Some(value) = value_of(line.text, b"id").filter(|id| !id.contains(&0)) {
            event_id = Some(value);
        }
    }
    found
}

/// Whether the text has an event that its reader sees: one with data.
pub(super) fn has_event(text: &[u8]) -> bool {
    Lines::new(text).any(|line| value_of(line.text, b"data").is_some())
}

/// The value that a line gives to a field; `None`: it doesn't.
fn value_of<'t>(line: &'t [u8], field: &[u8]) -> Option<&'t [u8]> {
    let rest = line.strip_prefix(field)?;
    match rest.strip_prefix(b":") {
        Some(value) => Some(value.strip_prefix(b" ").unwrap_or(value)),
        None => rest.is_empty().then_some(rest),
    }
}

/// A line that is whole.
struct Line<'t> {
    /// Without its end.
    text: &'t [u8],
    /// The number of the first byte behind its end.
    next: usize,
}

/// The whole lines of a text.
struct Lines<'t> {
    text: &'t [u8],
    at: usize,
}

impl<'t> Lines<'t> {
    fn new(text: &'t [u8]) -> Self {
        // A byte order mark counts only at the very beginning.
        let at = if text.starts_with("\u{feff}".as_bytes()) {
            3
        } else {
            0
        };
        Self { text, at }
    }
}

impl<'t> Iterator for Lines<'t> {
    type Item = Line<'t>;

    fn next(&mut self) -> Option<Line<'t>> {
        let rest = &self.text[self.at..];
        let end = memchr::memchr2(b'\r', b'\n', rest)?;
        let is_pair = rest[end..].starts_with(b"\r\n");
        // A CR at the end of what there is may be the first half of a CR LF. Then the LF is an empty line of its own,
        // which readers of event streams ignore.
        self.at += end + if is_pair { 2 } else { 1 };
        Some(Line {
            text: &rest[..end],
            next: self.at,
        })
    }
}
