//! Finds routes that never take a request, because an earlier route takes all of them.
//!
//! Invariant: a route that could take a request in its ordinary spelling is never reported. Which route takes a
//! request is decided by `proxy::route`, whose tests hold this file against it.

use std::iter::repeat;

use http::{HeaderName, HeaderValue, Method};

use super::pattern::{HostPattern, PathPattern, PatternSegment, fold};
use super::routes::Route;

// === impl Route ===

impl Route {
    /// Whether this route takes every request of `later`, which is behind it in the file. Odd spellings don't
    /// count: they avoid a route that doesn't lock.
    pub fn hides(&self, later: &Self) -> bool {
        // A body that can't be read goes past a route that doesn't lock.
        let has_conditions_of = self.when == later.when && (self.locks() || !later.locks());
        (self.when.is_empty() || has_conditions_of)
            && self.has_methods_of(later)
            && self.has_hosts_of(later)
            && self.has_headers_of(later)
            && self.has_paths_of(later)
    }

    /// The first segment of the path that no request of a route that locks has: the text behind a `;` doesn't
    /// count there, because some backends cut it.
    pub fn unmatchable_segment(&self) -> Option<&str> {
        let segments = &self.path.as_ref().filter(|_| self.locks())?.segments;
        segments.iter().find_map(|segment| match segment {
            PatternSegment::Literal(text) if text.contains(';') => Some(&**text),
            _ => None,
        })
    }

    fn locks(&self) -> bool {
        self.turn.is_some()
    }

    fn has_methods_of(&self, later: &Self) -> bool {
        let has = |method: &Method| self.methods.contains(method);
        // A route that locks takes HEAD as GET.
        let takes = |method: &Method| {
            has(method) || self.locks() && *method == Method::HEAD && has(&Method::GET)
        };
        let adds_head = later.locks() && later.methods.contains(&Method::GET);
        self.methods.is_empty()
            || !later.methods.is_empty()
                && later.methods.iter().all(takes)
                && (!adds_head || takes(&Method::HEAD))
    }

    fn has_hosts_of(&self, later: &Self) -> bool {
        let takes = |wanted: &HostPattern| self.host.iter().any(|host| host.covers(wanted));
        self.host.is_empty() || !later.host.is_empty() && later.host.iter().all(takes)
    }

    fn has_headers_of(&self, later: &Self) -> bool {
        let is_implied = |(name, values): &(HeaderName, Vec<HeaderValue>)| {
            let mut wanted = later.headers.iter();
            let wanted = wanted.find(|(wanted, _)| wanted == name);
            wanted.is_some_and(|(_, wanted)| {
                // No values: any value.
                let are_among =
                    !wanted.is_empty() && wanted.iter().all(|value| values.contains(value));
                values.is_empty() || are_among
            })
        };
        self.headers.iter().all(is_implied)
    }

    fn has_paths_of(&self, later: &Self) -> bool {
        // The path `/` ends with a slash, which is an odd spelling for a route that doesn't lock.
        let is_root = |path: &PathPattern| path.segments.is_empty();
        if !self.locks() && later.locks() && later.path.as_ref().is_some_and(is_root) {
            return false;
        }
        match (&self.path, &later.path) {
            (None, _) => true,
            (Some(own), None) => matches!(&*own.segments, [PatternSegment::Rest(_)]),
            (Some(own), Some(later)) => own.covers(later, self.locks()),
        }
    }
}

// === impl HostPattern ===

impl HostPattern {
    /// Whether every host that matches `other` matches this pattern, too.
    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::Exactly(host)) => self.matches(host),
            (Self::Below(domain), Self::Below(other)) => other.ends_with(&**domain),
            (Self::Exactly(_), Self::Below(_)) => false,
        }
    }
}

// === impl PathPattern ===

impl PathPattern {
    /// Whether every path that matches `other` matches this pattern, too. `locks`: as the path of a route that
    /// locks, which takes it in another case and with a format at the end, too.
    fn covers(&self, other: &Self, locks: bool) -> bool {
        let has_format = || {
            let stem = other.without_format()?;
            Some(self.may_have_format_of(&stem) && self.covers_as_spelled(&stem, locks))
        };
        self.covers_as_spelled(other, locks) || locks && has_format().unwrap_or(false)
    }

    fn covers_as_spelled(&self, other: &Self, locks: bool) -> bool {
        let (before, behind) = self.around_rest();
        let (other_before, other_behind) = other.around_rest();
        let Some(behind) = behind else {
            let is_as_long = other_behind.is_none() && before.len() == other_before.len();
            let mut pairs = before.iter().zip(other_before);
            return is_as_long && pairs.all(|(own, other)| own.covers(other, locks));
        };
        // The shortest path of `other` has to be long enough. In a longer one, segments that the rest of `other`
        // takes may be anywhere behind its first segments, and before its last ones.
        let shortest = other_before.len() + other_behind.map_or(0, <[_]>::len);
        let other_end = other_behind.unwrap_or(other_before);
        let covers = |(own, other): (&PatternSegment, Option<&PatternSegment>)| match other {
            Some(other) => own.covers(other, locks),
            None => matches!(own, PatternSegment::Name(_)),
        };
        let first = other_before.iter().map(Some).chain(repeat(None));
        let last = other_end.iter().rev().map(Some).chain(repeat(None));
        shortest >= before.len() + behind.len()
            && before.iter().zip(first).all(covers)
            && behind.iter().rev().zip(last).all(covers)
    }

    /// This pattern without the format of its last segment: `/chat` for `/chat.json`; `None`: it has none.
    fn without_format(&self) -> Option<Self> {
        let mut segments = self.segments.clone();
        let Some(PatternSegment::Literal(last)) = segments.last_mut() else {
            return None;
        };
        *last = last.rsplit_once('.')?.0.into();
        Some(Self { segments })
    }

    /// Whether a format may follow a path of `other` where this pattern takes it: its own last segment is a
    /// literal, or the one before a rest that takes nothing.
    fn may_have_format_of(&self, other: &Self) -> bool {
        let (before, behind) = self.around_rest();
        let last = match behind {
            Some([]) if other.segments.len() == before.len() => before.last(),
            _ => self.segments.last(),
        };
        matches!(last, Some(PatternSegment::Literal(_)))
    }
}

impl PatternSegment {
    /// Whether a segment of a path that matches `other` matches this one, too.
    fn covers(&self, other: &Self, locks: bool) -> bool {
        match (self, other) {
            (Self::Literal(own), Self::Literal(other)) if locks => fold(own) == fold(other),
            // A route that doesn't lock takes the exact spelling alone.
            (Self::Literal(own), Self::Literal(other)) => own == other,
            (Self::Name(_), Self::Literal(_) | Self::Name(_)) => true,
            (Self::Rest(_), _) | (_, Self::Rest(_)) | (Self::Literal(_), Self::Name(_)) => false,
        }
    }
}
