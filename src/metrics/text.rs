//! The two text formats in which a monitoring system may ask for metrics.
//!
//! The library writes OpenMetrics. The classic format has other names in the `HELP` and `TYPE` lines of
//! counters, and no `EOF` line. Each sample is the same line in both.

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::http_syntax::weighted_items;

/// A text format for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpositionFormat {
    /// Prometheus' text format 0.0.4, which every monitoring system reads.
    Classic,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

// === impl ExpositionFormat ===

impl ExpositionFormat {
    /// The format for a value of `accept`: OpenMetrics if it names that with a weight above 0.
    pub fn wanted(accept: Option<&str>) -> Self {
        let mut kinds = weighted_items(accept.unwrap_or_default());
        if kinds.any(|(kind, _)| kind.eq_ignore_ascii_case("application/openmetrics-text")) {
            Self::OpenMetrics
        } else {
            Self::Classic
        }
    }

    /// The `content-type` of a text in this format.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// All registered metrics, in this format.
    pub(super) fn text(self, registry: &Registry) -> String {
        let mut text = String::new();
        // Writing to a string can't fail.
        let _ = encode(&mut text, registry);
        match self {
            Self::OpenMetrics => text,
            Self::Classic => classic(&text),
        }
    }
}

/// Translates OpenMetrics to the classic format.
fn classic(text: &str) -> String {
    let mut classic = String::with_capacity(text.len() + 1024);
    let mut lines = text.lines().peekable();
    let mut is_counter = false;
    while let Some(line) = lines.next() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            // The metric's type is on the next line.
            is_counter = lines.peek().is_some_and(|next| next.ends_with(" counter"));
            push_named(&mut classic, "# HELP ", described, is_counter);
        } else if let Some(typed) = line.strip_prefix("# TYPE ") {
            push_named(&mut classic, "# TYPE ", typed, is_counter);
        } else if !line.starts_with('#') {
            classic.push_str(line);
            classic.push('\n');
        }
    }
    classic
}

/// Adds a `HELP` or `TYPE` line, with the name that the metric's samples have.
fn push_named(text: &mut String, what: &str, described: &str, is_counter: bool) {
    let (name, rest) = described.split_once(' ').unwrap_or((described, ""));
    let ending = if is_counter { "_total " } else { " " };
    text.extend([what, name, ending, rest, "\n"]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_is_for_those_who_ask_for_it() {
        for (accept, format) in [
            (None, ExpositionFormat::Classic),
            (Some("*/*"), ExpositionFormat::Classic),
            (Some("text/plain"), ExpositionFormat::Classic),
            (
                Some("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2"),
                ExpositionFormat::OpenMetrics,
            ),
            (
                Some("text/plain, Application/OpenMetrics-Text"),
                ExpositionFormat::OpenMetrics,
            ),
            (
                Some("application/openmetrics-text; q=0"),
                ExpositionFormat::Classic,
            ),
        ] {
            assert_eq!(ExpositionFormat::wanted(accept), format, "{accept:?}");
        }
    }

    #[test]
    fn the_classic_format_describes_a_counter_under_its_samples_name() {
        let open = "# HELP a A counter.\n# TYPE a counter\na_total{x=\"# y\"} 1\n\
                    # HELP b A gauge.\n# TYPE b gauge\nb 2\n# EOF\n";
        assert_eq!(
            classic(open),
            "# HELP a_total A counter.\n# TYPE a_total counter\na_total{x=\"# y\"} 1\n\
             # HELP b A gauge.\n# TYPE b gauge\nb 2\n",
            "and has no mark at its end"
        );
    }
}
