//! Medians, and ratios taken pair by pair.

use std::time::Duration;

/// A duration in µs.
pub(crate) fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// The value below which `share` of the sample lies, between neighbours by distance; NaN for an empty sample.
pub(crate) fn quantile(sample: &mut [f64], share: f64) -> f64 {
    sample.sort_by(f64::total_cmp);
    let Some(last) = sample.len().checked_sub(1) else {
        return f64::NAN;
    };
    let position = share * last as f64;
    let below = position as usize;
    let above = (below + 1).min(last);
    sample[below] + (sample[above] - sample[below]) * position.fract()
}

pub(crate) fn median(sample: &[f64]) -> f64 {
    quantile(&mut sample.to_vec(), 0.5)
}

/// The median, and half the distance between the quartiles: how far the next run may be off.
pub(crate) fn spread(sample: &[f64]) -> (f64, f64) {
    let mut sample = sample.to_vec();
    let middle = quantile(&mut sample, 0.5);
    (
        middle,
        (quantile(&mut sample, 0.75) - quantile(&mut sample, 0.25)) / 2.0,
    )
}
