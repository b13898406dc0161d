//! Moments in RFC 3339, as logs and values in the store have them.
//!
//! Each thread keeps the texts of two seconds, the latest one and the last other one. Thousands of turns a second write the
//! present, and a turn that is refused writes since when its session is busy, too.

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

/// The latest second that a thread has written, and the last other one.
struct Written {
    latest: Second,
    other: Second,
}

thread_local! {
    static WRITTEN: RefCell<Written> = const {
        RefCell::new(Written { latest: Second::EPOCH, other: Second::EPOCH })
    };
}

/// Appends a moment of after 1970 to a text: `2025-12-11T05:48:20.123Z`.
pub fn push(text: &mut String, moment: SystemTime, precision: Precision) {
    let since = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
    WRITTEN.with_borrow_mut(|written| text.push_str(written.text(since.as_secs())));
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
    /// The first one, which has no text yet.
    const EPOCH: Self = Self {
        number: 0,
        text: String::new(),
    };

    fn write(&mut self, number: u64) {
        self.number = number;
        let moment = UNIX_EPOCH + Duration::from_secs(number);
        self.text = format_rfc3339_seconds(moment).to_string();
        // The zone.
        self.text.pop();
    }
}

// === impl Written ===

impl Written {
    /// The text of a second.
    fn text(&mut self, number: u64) -> &str {
        let second = match number >= self.latest.number {
            true => &mut self.latest,
            false => &mut self.other,
        };
        if second.number != number || second.text.is_empty() {
            second.write(number);
        }
        &second.text
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
