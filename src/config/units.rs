//! Units of time, for the ranges and defaults of options.

use std::time::Duration;

/// A millisecond.
pub(super) const MS: Duration = Duration::from_millis(1);
/// A second.
pub(super) const SECOND: Duration = Duration::from_secs(1);
/// An hour.
pub(super) const HOUR: Duration = Duration::from_secs(3600);
/// A week: longer than any turn. A longer duration is a mistake in the unit.
pub(super) const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
