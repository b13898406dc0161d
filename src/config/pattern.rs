//! Patterns of paths and hosts, parsed. Matching them is `proxy::route`'s work.

use std::fmt;

use thiserror::Error;

/// A path of literals, `{name}` for one segment, and `{*rest}` for all that follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    /// The segments, in order. [`Segment::Rest`] stands only at the end.
    pub segments: Vec<PatternSegment>,
}

/// One segment of a [`PathPattern`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatternSegment {
    /// Stands for itself, whatever the case.
    Literal(Box<str>),
    /// Any one segment, under this name.
    Name(Box<str>),
    /// Any number of segments, none included, under this name.
    Rest(Box<str>),
}

/// A host's name, whatever the case and the port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// This host.
    Exactly(Box<str>),
    /// Any host below this domain, which starts with a dot: `*.example.com`.
    Below(Box<str>),
}

/// Why a pattern can't be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PatternError {
    /// A path that is not absolute.
    #[error("a path starts with `/`: write \"/{0}\"")]
    Relative(String),
    /// Braces in the middle of a segment.
    #[error("`{0}` mixes text and braces: a `{{name}}` takes a whole segment")]
    Mixed(String),
    /// `{}` or `{*}`.
    #[error("a segment in braces needs a name: write {{name}} or {{*rest}}")]
    Nameless,
    /// `{*rest}` with something behind it.
    #[error("`{{*{0}}}` takes all that follows: nothing can stand behind it")]
    RestNotLast(String),
    /// Two segments of one name.
    #[error("`{{{0}}}` stands there twice: give each segment a name of its own")]
    Twice(String),
    /// Percent-encoding, a query or a fragment.
    #[error("`{0}` has no place in a path pattern: write the path decoded, without a query")]
    Encoded(char),
    /// Not a host.
    #[error("`{0}` is no host: write \"agent.example.com\" or \"*.example.com\", without a port")]
    Host(String),
}

impl PathPattern {
    /// Parses `/threads/{thread}/runs` and its like. A slash at the end makes no difference.
    ///
    /// # Errors
    /// When it isn't a pattern.
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
                    if segments[..index]
                        .iter()
                        .any(|earlier| earlier.name() == Some(name))
                    {
                        return Err(PatternError::Twice(name.to_string()));
                    }
                }
                PatternSegment::Literal(_) => {}
            }
        }
        Ok(Self { segments })
    }

    /// The names that it gives to segments.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(PatternSegment::name)
    }
}

impl PatternSegment {
    fn parse(text: &str) -> Result<Self, PatternError> {
        let Some(inner) = text
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'))
        else {
            return if text.contains(['{', '}']) {
                Err(PatternError::Mixed(text.into()))
            } else {
                Ok(Self::Literal(text.into()))
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
    /// When it is neither.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let name = text.strip_prefix("*.").unwrap_or(text);
        let is_host = !name.is_empty() && !name.contains(['*', ':', '/', '@', ' ']);
        // An IPv6 address, which has colons, stands in brackets as it does in a request.
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

    /// Whether `host`, in lower case and without a port, is meant.
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
