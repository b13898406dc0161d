//! Parses the patterns of paths and hosts.
//!
//! Invariant: `{*rest}` is only at the end of a path, and each name is used once. Matching a path is left
//! to `proxy::route`.

use std::fmt;

use thiserror::Error;

/// A pattern of a path: literals, `{name}` for one segment, and `{*rest}` for all that follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    /// The segments, in order. [`PatternSegment::Rest`] is only at the end.
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
    /// A segment comes after `{*rest}`.
    #[error("`{{*{0}}}` takes all segments that follow: write it last")]
    RestNotLast(String),
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
            let last = index + 1 == segments.len();
            match segment {
                PatternSegment::Rest(name) if !last => {
                    return Err(PatternError::RestNotLast(name.to_string()));
                }
                PatternSegment::Name(name) | PatternSegment::Rest(name) => {
                    let mut earlier = segments[..index].iter();
                    if earlier.any(|earlier| earlier.name() == Some(name)) {
                        return Err(PatternError::Twice(name.to_string()));
                    }
                }
                PatternSegment::Literal(_) => {}
            }
        }
        Ok(Self { segments })
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

    fn name(&self) -> Option<&str> {
        match self {
            Self::Literal(_) => None,
            Self::Name(name) | Self::Rest(name) => Some(name),
        }
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
