//! Moments in RFC 3339, as logs and values in the store have them.
//!
//! Each thread keeps the text of the last second: thousands of turns a second write the same one.

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

thread_local! {
    static LAST: RefCell<Second> = const {
        RefCell::new(Second { number: u64::MAX, text: String::new() })
    };
}

/// Appends a moment of after 1970 to a text: `2025-12-11T05:48:20.123Z`.
pub fn push(text: &mut String, moment: SystemTime, precision: Precision) {
    let since = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
    LAST.with_borrow_mut(|last| {
        if last.number != since.as_secs() {
            last.number = since.as_secs();
            last.text =
                format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(last.number)).to_string();
            // The zone.
            last.text.pop();
        }
        text.push_str(&last.text);
    });
    // A one in front keeps the zeros.
    let fraction = match precision {
        Precision::Millis => 1_000 + since.subsec_millis(),
        Precision::Micros => 1_000_000 + since.subsec_micros(),
    };
    text.push('.');
    text.push_str(&itoa::Buffer::new().format(fraction)[1..]);
    text.push('Z');
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
