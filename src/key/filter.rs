//! Placeholders, `{hash:uuid:header:x-thread}`, and the filters in them.
//!
//! A filter gives all spellings of one id the same text, because a backend that reads the id as a UUID,
//! as a number or without case takes them for one session. Invariant: applying a filter twice gives the
//! same text as applying it once, and an ambiguous id is rejected, never guessed. The hash of `hash:` is
//! computed in `proxy::session`.

use std::borrow::Cow;
use std::fmt;

use super::error::TemplateError;
use super::source::Source;

/// A source in braces, with the filters before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placeholder {
    /// Where in the request the value is read.
    pub source: Source,
    /// The filter that normalises the value; `None` leaves the value as it is.
    pub filter: Option<IdFilter>,
    /// Whether the first 32 hex digits of the value's SHA-256 replace the value.
    pub is_hashed: bool,
}

/// How an id is normalised, so that all spellings that the backend takes for one id give the same text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdFilter {
    /// A UUID (RFC 9562 §4).
    Uuid,
    /// A whole number in decimal digits.
    Int,
    /// A text without case.
    Lower,
}

// === impl Placeholder ===

impl Placeholder {
    /// Parses the text between the braces.
    pub(super) fn parse(text: &str) -> Result<Self, TemplateError> {
        let hashed = text.strip_prefix("hash:");
        let (filter, source) = IdFilter::split(hashed.unwrap_or(text));
        Ok(Self {
            source: Source::parse(source)?,
            filter,
            is_hashed: hashed.is_some(),
        })
    }

    /// Whether the source's value is inserted as the request has it, without filter and hash.
    pub fn is_plain(&self) -> bool {
        self.filter.is_none() && !self.is_hashed
    }
}

impl fmt::Display for Placeholder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_hashed { "hash:" } else { "" })?;
        if let Some(filter) = self.filter {
            write!(f, "{}:", filter.word())?;
        }
        self.source.fmt(f)
    }
}

// === impl IdFilter ===

impl IdFilter {
    const ALL: [Self; 3] = [Self::Uuid, Self::Int, Self::Lower];

    /// The filter with which a placeholder's text begins, and the rest of the text.
    fn split(text: &str) -> (Option<Self>, &str) {
        let behind = |filter: Self| text.strip_prefix(filter.word())?.strip_prefix(':');
        let mut all = Self::ALL.into_iter();
        all.find_map(|filter| Some((Some(filter), behind(filter)?)))
            .unwrap_or((None, text))
    }

    /// The filter that an id of this form may need: `uuid` for a UUID, `int` for a padded number, otherwise
    /// `None`.
    pub fn suggested(id: &str) -> Option<Self> {
        match (uuid(id), int(id)) {
            (Some(_), _) => Some(Self::Uuid),
            (None, Some(number)) if number != id => Some(Self::Int),
            _ => None,
        }
    }

    /// The filter's name in a template.
    pub fn word(self) -> &'static str {
        match self {
            Self::Uuid => "uuid",
            Self::Int => "int",
            Self::Lower => "lower",
        }
    }

    /// The kind of id that the filter accepts, as a noun for error texts.
    pub fn what(self) -> &'static str {
        match self {
            Self::Uuid => "UUID",
            Self::Int => "whole number in decimal digits",
            Self::Lower => "text",
        }
    }

    /// The normalised spelling of an id; `None` if the id is not of the filter's kind.
    pub fn apply<'t>(self, id: Cow<'t, str>) -> Option<Cow<'t, str>> {
        match self {
            Self::Uuid => uuid(&id).map(Cow::Owned),
            Self::Int => int(&id).map(Cow::Owned),
            Self::Lower => Some(lower(id)),
        }
    }
}

/// Normalises a UUID to 36 characters in lower case. Accepts every spelling that libraries commonly accept:
/// upper case, braces, the prefix `urn:uuid:`, hyphens anywhere or nowhere (Python ignores them). Rejects
/// spellings that only some libraries accept: short groups (Java), underscores and a sign (Python).
fn uuid(text: &str) -> Option<String> {
    const URN: &str = "urn:uuid:";
    let urn = text.split_at_checked(URN.len());
    let urn = urn.filter(|(urn, _)| urn.eq_ignore_ascii_case(URN));
    let text = urn.map_or(text, |(_, rest)| rest);
    let braced = text
        .strip_prefix('{')
        .and_then(|text| text.strip_suffix('}'));
    let mut canonical = String::with_capacity(36);
    let digits = braced.unwrap_or(text).chars().filter(|digit| *digit != '-');
    for digit in digits {
        if !digit.is_ascii_hexdigit() || canonical.len() == 36 {
            return None;
        }
        if matches!(canonical.len(), 8 | 13 | 18 | 23) {
            canonical.push('-');
        }
        canonical.push(digit.to_ascii_lowercase());
    }
    (canonical.len() == 36).then_some(canonical)
}

/// Normalises a whole number to decimal digits without padding, with a `-` if it is negative. Rejects
/// texts that languages read as different numbers: `1_000`, digits of other scripts, `5.0`, `0x5`, and
/// numbers beyond 64 bits (PHP takes the largest number instead).
fn int(text: &str) -> Option<String> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: i64 = text.parse().ok()?;
    Some(number.to_string())
}

/// Normalises a text to Unicode lower case by way of upper case, which approximates Unicode case folding:
/// `ß` gives `ss`, the Kelvin sign gives `k`, and the long s gives `s`.
fn lower(text: Cow<'_, str>) -> Cow<'_, str> {
    if !text.is_ascii() {
        let lower = text.chars().flat_map(char::to_lowercase);
        let upper = lower.flat_map(char::to_uppercase);
        return upper.flat_map(char::to_lowercase).collect();
    }
    match text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => text.to_ascii_lowercase().into(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn applied(filter: IdFilter, id: &str) -> Option<String> {
        filter.apply(id.into()).map(Cow::into_owned)
    }

    proptest! {
        #[test]
        fn what_a_filter_gives_comes_to_itself(
            id in "[-+]{0,2}[0-9]{0,40}|[{]?[-0-9a-fA-F]{30,38}[}]?|.*",
        ) {
            for filter in IdFilter::ALL {
                if let Some(one) = applied(filter, &id) {
                    prop_assert_eq!(applied(filter, &one), Some(one), "{:?} of {}", filter, id);
                }
            }
        }
    }

    #[test]
    fn every_spelling_of_a_uuid_comes_to_one_text() {
        const ONE: &str = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9";
        for spelling in [
            ONE,
            "0A1B2C3D-4E5F-6071-8293-A4B5C6D7E8F9",
            "{0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9}",
            "0a1b2c3d4e5f60718293a4b5c6d7e8f9",
            "{0A1b2C3d4E5f60718293a4b5c6d7e8f9}",
            "urn:uuid:0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9",
            "URN:UUID:0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9",
            "0a1b-2c3d-4e5f-6071-8293-a4b5-c6d7-e8f9",
            "-0a1b2c3d4e5f60718293a4b5c6d7e8f9-",
            "urn:uuid:{0a1b2c3d4e5f60718293a4b5c6d7e8f9}",
        ] {
            let found = applied(IdFilter::Uuid, spelling);
            assert_eq!(found.as_deref(), Some(ONE), "{spelling} is one UUID");
        }
        for other in [
            "",
            "-",
            "t1",
            "0a1b2c3d4e5f60718293a4b5c6d7e8f",
            "0a1b2c3d4e5f60718293a4b5c6d7e8f90",
            "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8fg",
            "{0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9",
            "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9}",
            "{{0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9}}",
            "(0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9)",
            "a-1-1-1-1",
            "0a1b2c3d_4e5f_6071_8293_a4b5c6d7e8f9",
            "+a1b2c3d4e5f60718293a4b5c6d7e8f9",
            "0xb2c3d4e5f60718293a4b5c6d7e8f90",
            "0a1b2c3d4e5f60718293a4b5c6d7e8f\u{ff19}",
            "урн:uuid:0a1b2c3d4e5f60718293a4b5c6d7e8f9",
        ] {
            assert_eq!(applied(IdFilter::Uuid, other), None, "{other:?} is no UUID");
        }
    }

    #[test]
    fn every_spelling_of_a_number_comes_to_one_text() {
        let long = i64::MAX.to_string();
        for (spelling, number) in [
            ("5", "5"),
            ("05", "5"),
            ("0005", "5"),
            ("+5", "5"),
            ("+005", "5"),
            ("-5", "-5"),
            ("-05", "-5"),
            ("50", "50"),
            ("0", "0"),
            ("00", "0"),
            ("-0", "0"),
            ("+0", "0"),
            (&*format!("00{long}"), &*long),
        ] {
            let found = applied(IdFilter::Int, spelling);
            assert_eq!(found.as_deref(), Some(number), "{spelling}");
        }
        for other in [
            "",
            "+",
            "-",
            "--5",
            "+-5",
            "- 5",
            " 5",
            "5 ",
            "1_000",
            "5.0",
            "5.",
            "0x5",
            "5e0",
            "5a",
            "\u{665}",
            "\u{ff15}",
            "\u{2212}5",
            "1,000",
            "9223372036854775808",
            "-9223372036854775809",
        ] {
            assert_eq!(
                applied(IdFilter::Int, other),
                None,
                "{other:?} is no number"
            );
        }
    }

    #[test]
    fn texts_that_differ_in_case_only_come_to_one() {
        for (spelling, lower) in [
            ("anna@example.com", "anna@example.com"),
            ("Anna@EXAMPLE.com", "anna@example.com"),
            ("ÉÇÄ用户", "éçä用户"),
            ("Straße", "strasse"),
            ("STRASSE", "strasse"),
            ("STRAẞE", "strasse"),
            ("\u{212a}ey", "key"),
            ("\u{17f}1", "s1"),
            ("ΟΔΟΣ", "οδοσ"),
            ("οδος", "οδοσ"),
            ("", ""),
        ] {
            let found = applied(IdFilter::Lower, spelling);
            assert_eq!(found.as_deref(), Some(lower), "{spelling}");
        }
        for character in '\0'..='\u{1ffff}' {
            let text = character.to_string();
            let found = applied(IdFilter::Lower, &text);
            for other in [text.to_lowercase(), text.to_uppercase()] {
                let other = applied(IdFilter::Lower, &other);
                assert_eq!(other, found, "{text} in another case");
            }
            let again = applied(IdFilter::Lower, found.as_deref().unwrap_or_default());
            assert_eq!(again, found, "what {text} comes to comes to itself");
        }
    }

    #[test]
    fn a_filter_is_suggested_by_an_ids_look() {
        for (id, filter) in [
            ("0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9", Some(IdFilter::Uuid)),
            ("0A1B2C3D4E5F60718293A4B5C6D7E8F9", Some(IdFilter::Uuid)),
            ("05", Some(IdFilter::Int)),
            ("+5", Some(IdFilter::Int)),
            ("-0", Some(IdFilter::Int)),
            ("5", None),
            ("-5", None),
            ("0", None),
            ("s05", None),
            ("Anna", None),
        ] {
            assert_eq!(IdFilter::suggested(id), filter, "{id}");
        }
    }
}
