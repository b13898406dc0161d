//! The budget: what a turn may cost. It is a file in the repository, so a change that costs more also changes the file.

use super::totals::Counted;

/// How much a count may differ from its figure, as a fraction of the figure. The noise is less than a fifth of it.
const TOLERANCE: f64 = 0.03;

/// What may be counted for one subject.
#[derive(Debug, PartialEq)]
pub(crate) struct Budget {
    /// The name of the subject.
    pub(crate) subject: String,
    /// The figure for one turn of each count that has one.
    pub(crate) figures: Vec<(Counted, f64)>,
}

/// How a count compares with its figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Above,
    Within,
    Below,
    /// Nothing was counted. That is no saving, but calls that callgrind doesn't see.
    Missing,
}

// === impl Budget ===

impl Budget {
    /// Reads the file's text: a table for each subject, with the figure of each count under the count's name.
    pub(crate) fn read_all(text: &str) -> Result<Vec<Self>, String> {
        let document = text.parse::<toml_edit::ImDocument<String>>();
        let document = document.map_err(|error| error.to_string())?;
        let mut budgets = Vec::new();
        for (subject, figures) in document.iter() {
            let figures = figures
                .as_table()
                .ok_or_else(|| format!("{subject} is no table of a subject's figures"))?;
            let figures = figures.iter().map(|(key, value)| {
                let counted = Counted::ALL.into_iter().find(|kind| kind.name() == key);
                let counted =
                    counted.ok_or_else(|| format!("{subject}: nothing counts {key:?}"))?;
                let whole = value.as_integer().map(|figure| figure as f64);
                match value.as_float().or(whole) {
                    Some(figure) if figure.is_finite() && figure > 0.0 => Ok((counted, figure)),
                    _ => Err(format!(
                        "{subject}: the figure of {key:?} is no positive number"
                    )),
                }
            });
            budgets.push(Self {
                subject: subject.to_owned(),
                figures: figures.collect::<Result<_, String>>()?,
            });
        }
        Ok(budgets)
    }

    pub(crate) fn figure(&self, counted: Counted) -> Option<f64> {
        let found = self.figures.iter().find(|(kind, _)| *kind == counted);
        found.map(|(_, figure)| *figure)
    }
}

// === impl Verdict ===

impl Verdict {
    pub(crate) fn new(count: f64, figure: f64) -> Self {
        match count / figure - 1.0 {
            _ if count == 0.0 => Self::Missing,
            excess if excess > TOLERANCE => Self::Above,
            excess if excess < -TOLERANCE => Self::Below,
            _ => Self::Within,
        }
    }

    /// Whether the change under test may stay as it is.
    pub(crate) fn passes(self) -> bool {
        matches!(self, Self::Within | Self::Below)
    }

    /// What to do about it; `None`: nothing.
    pub(crate) fn advice(self, file: &str) -> Option<String> {
        match self {
            Self::Above => Some(format!(
                "Find what costs, or raise the figure in {file} in the same commit and say why."
            )),
            Self::Within => None,
            Self::Below => Some(format!("The figure in {file} can be lowered.")),
            Self::Missing => Some("callgrind does not see them in this program.".to_owned()),
        }
    }
}

/// A count in few digits: "104.9 k", "41.0".
pub(crate) fn short(count: f64) -> String {
    if count < 10_000.0 {
        format!("{count:.1}")
    } else {
        format!("{:.1} k", count / 1000.0)
    }
}
