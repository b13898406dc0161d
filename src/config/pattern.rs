//! Parses the patterns of paths and hosts.
//!
//! Invariant: a path has at most one `{*rest}`, so that there is one way to match it, and each name is used
//! once. Matching a path is left to `proxy::route`.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use thiserror::Error;

/// A pattern of a path: literals, `{name}` for one segment, and `{*rest}` for any number of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    /// The segments, in order. At most one of them is [`PatternSegment::Rest`].
    pub segments: Vec<PatternSegment>,
}

/// One segment of a [`PathPattern`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatternSegment {
    /// This text, in any case.
    Literal(Box<str>),
    /// One segment of any text, under this name.
    Name(Box<str>),
    /// Any number of segments, or none, under this name.
    Rest(Box<str>),
}

/// A pattern of a host, in any case and with any port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// The host with this name.
    Exactly(Box<str>),
    /// Any host below this domain: `*.example.com` is `.example.com`, with the dot.
    Below(Box<str>),
}

/// Why a pattern can't be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PatternError {
    /// The path doesn't start with `/`.
    #[error("a path starts with `/`: write \"/{0}\"")]
    Relative(String),
    /// A segment has text beside its braces.
    #[error("`{0}` has text beside the braces: write `{{name}}` as a whole segment")]
    Mixed(String),
    /// A segment is `{}` or `{*}`.
    #[error("a segment in braces needs a name: write {{name}} or {{*rest}}")]
    Nameless,
    /// The path has two segments as `{*rest}`.
    #[error(
        "`{{*{0}}}` is the second one of its kind, and a path has at most one: write `{{{0}}}` for one segment"
    )]
    SecondRest(String),
    /// Two segments have the same name.
    #[error("two segments have the name `{{{0}}}`: give each segment its own name")]
    Twice(String),
    /// The path has percent-encoding, a query or a fragment.
    #[error("`{0}` can't be in a path pattern: write the decoded path, without a query")]
    Encoded(char),
    /// The text is not the name of a host.
    #[error(
        "`{0}` is not a host: write \"agent.example.com\" or \"*.example.com\", without a port"
    )]
    Host(String),
}

/// A text in one case. Some letters beyond ASCII are equal only as capitals (`ſ` and `s`).
pub fn fold(text: &str) -> Cow<'_, str> {
    let is_folded = |byte: u8| byte.is_ascii() && !byte.is_ascii_uppercase();
    match text {
        _ if text.bytes().all(is_folded) => text.into(),
        _ if text.is_ascii() => text.to_ascii_lowercase().into(),
        _ => text.to_uppercase().to_lowercase().into(),
    }
}

impl PathPattern {
    /// Parses a pattern, as `/threads/{thread}/runs`. A slash at the end makes no difference.
    ///
    /// # Errors
    /// When the text isn't a pattern of a path.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let path = text
            .strip_prefix('/')
            .ok_or_else(|| PatternError::Relative(text.to_owned()))?;
        if let Some(odd) = path.chars().find(|c| matches!(c, '%' | '?' | '#')) {
            return Err(PatternError::Encoded(odd));
        }
        let segments: Vec<_> = path
            .split('/')
            .filter(|segment| !segment.is_empty())
            .map(PatternSegment::parse)
            .collect::<Result<_, _>>()?;
        for (index, segment) in segments.iter().enumerate() {
            let earlier = &segments[..index];
            if let PatternSegment::Rest(name) = segment
                && earlier.iter().any(PatternSegment::is_rest)
            {
                return Err(PatternError::SecondRest(name.to_string()));
            }
            if let Some(name) = segment.name()
                && earlier.iter().any(|earlier| earlier.name() == Some(name))
            {
                return Err(PatternError::Twice(name.to_owned()));
            }
        }
        Ok(Self { segments })
    }

    /// The segments before `{*rest}` and those behind it; `None` behind: the pattern has no `{*rest}`.
    pub fn around_rest(&self) -> (&[PatternSegment], Option<&[PatternSegment]>) {
        match self.segments.iter().position(PatternSegment::is_rest) {
            Some(rest) => (&self.segments[..rest], Some(&self.segments[rest + 1..])),
            None => (&self.segments, None),
        }
    }

    /// The segments of a path that matches, each with its segment of the pattern. Those that `{*rest}` takes
    /// are left out.
    pub fn align<'a, T>(
        &'a self,
        path: &'a [T],
    ) -> impl Iterator<Item = (&'a PatternSegment, &'a T)> {
        let (before, behind) = self.around_rest();
        let behind = behind.unwrap_or_default().iter().rev();
        before.iter().zip(path).chain(behind.zip(path.iter().rev()))
    }

    /// Where the segment with this name is in a path of `length` segments that matches.
    pub fn find(&self, name: &str, length: usize) -> Option<Range<usize>> {
        let mut segments = self.segments.iter();
        let index = segments.position(|segment| segment.name() == Some(name))?;
        // Counted from the end, since a rest may be before it.
        let end = length.checked_sub(self.segments.len() - index - 1);
        match self.segments[index] {
            PatternSegment::Rest(_) => Some(index..end?),
            _ if self.segments[..index].iter().any(PatternSegment::is_rest) => {
                let end = end?;
                Some(end.checked_sub(1)?..end)
            }
            _ => Some(index..index + 1),
        }
    }

    /// The names of the segments that have one.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(PatternSegment::name)
    }
}

impl PatternSegment {
    fn parse(text: &str) -> Result<Self, PatternError> {
        let inner = text
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'));
        let Some(inner) = inner else {
            return match text.contains(['{', '}']) {
                true => Err(PatternError::Mixed(text.into())),
                false => Ok(Self::Literal(text.into())),
            };
        };
        let (name, segment): (_, fn(Box<str>) -> Self) = match inner.strip_prefix('*') {
            Some(name) => (name, Self::Rest),
            None => (inner, Self::Name),
        };
        match name {
            "" => Err(PatternError::Nameless),
            name if name.contains(['{', '}', '*']) => Err(PatternError::Mixed(text.into())),
            name => Ok(segment(name.into())),
        }
    }

    /// The name in its braces; `None` for a literal.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Literal(_) => None,
            Self::Name(name) | Self::Rest(name) => Some(name),
        }
    }

    fn is_rest(&self) -> bool {
        matches!(self, Self::Rest(_))
    }
}

impl HostPattern {
    /// Parses a host, or `*.` and a domain.
    ///
    /// # Errors
    /// When the text is neither of them.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let name = text.strip_prefix("*.").unwrap_or(text);
        let is_host = !name.is_empty() && !name.contains(['*', ':', '/', '@', ' ']);
        // An IPv6 address has colons, and so it is in brackets, as in a request.
        let is_bracketed = name.starts_with('[') && name.ends_with(']');
        if !is_host && !is_bracketed {
            return Err(PatternError::Host(text.to_owned()));
        }
        let name = text.to_lowercase();
        Ok(match name.strip_prefix('*') {
            Some(below) => Self::Below(below.into()),
            None => Self::Exactly(name.into()),
        })
    }

    /// Whether the pattern matches `host`, which is in lower case and without a port.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exactly(name) => host == &**name,
            Self::Below(domain) => host.len() > domain.len() && host.ends_with(&**domain),
        }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.segments.is_empty() {
            return f.write_str("/");
        }
        self.segments.iter().try_for_each(|segment| match segment {
            PatternSegment::Literal(text) => write!(f, "/{text}"),
            PatternSegment::Name(name) => write!(f, "/{{{name}}}"),
            PatternSegment::Rest(name) => write!(f, "/{{*{name}}}"),
        })
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(name) => f.write_str(name),
            Self::Below(domain) => write!(f, "*{domain}"),
        }
    }
}
