//! Moments in RFC 3339, as logs and values in the store have them.
//!
//! Each thread keeps the texts of two seconds: thousands of turns a second write the present one, and those that are refused also
//! write since when their session is busy.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use humantime::format_rfc3339_seconds;

/// How precisely a moment is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// To the millisecond.
    Millis,
    /// To the microsecond.
    Micros,
}

/// A second and its text, `2025-12-11T05:48:20`.
struct Second {
    number: u64,
    text: String,
}

/// The two seconds that a thread has written last, the last one first.
struct SecondCache([Second; 2]);

thread_local! {
    static CACHE: RefCell<SecondCache> = const { RefCell::new(SecondCache([Second::UNWRITTEN; 2])) };
}

/// Appends a moment of after 1970 to a text: `2025-12-11T05:48:20.123Z`.
pub fn push(text: &mut String, moment: SystemTime, precision: Precision) {
    let since = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
    CACHE.with_borrow_mut(|cache| text.push_str(cache.text(since.as_secs())));
    // A one in front keeps the zeros.
    let fraction = match precision {
        Precision::Millis => 1_000 + since.subsec_millis(),
        Precision::Micros => 1_000_000 + since.subsec_micros(),
    };
    text.push('.');
    text.push_str(&itoa::Buffer::new().format(fraction)[1..]);
    text.push('Z');
}

// === impl Second ===

impl Second {
    /// A second whose text isn't known.
    const UNWRITTEN: Self = Self {
        number: u64::MAX,
        text: String::new(),
    };

    fn new(number: u64) -> Self {
        let moment = UNIX_EPOCH + Duration::from_secs(number);
        let mut text = format_rfc3339_seconds(moment).to_string();
        // The zone.
        text.pop();
        Self { number, text }
    }
}

// === impl SecondCache ===

impl SecondCache {
    /// The text of a second.
    fn text(&mut self, number: u64) -> &str {
        if self.0[0].number != number {
            self.0.swap(0, 1);
            if self.0[0].number != number {
                self.0[0] = Second::new(number);
            }
        }
        &self.0[0].text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_written_as_humantime_writes_it() {
        let at = |micros| UNIX_EPOCH + Duration::from_micros(micros);
        for moment in [
            at(0),
            at(1_765_432_100_123_456),
            at(1_765_432_100_999_999),
            at(1_765_432_101_000_000),
            at(1_765_432_100_000_001),
            at(1_765_432_101_000_001),
            at(1_765_432_099_000_001),
            at(0),
            at(4_102_444_799_000_999),
        ] {
            for (precision, expected) in [
                (
                    Precision::Millis,
                    humantime::format_rfc3339_millis(moment).to_string(),
                ),
                (
                    Precision::Micros,
                    humantime::format_rfc3339_micros(moment).to_string(),
                ),
            ] {
                let mut text = String::from("at ");
                push(&mut text, moment, precision);
                assert_eq!(text, format!("at {expected}"), "to the {precision:?}");
            }
        }
    }
}
