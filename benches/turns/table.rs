//! Tables in plain text: aligned columns, and figures with only their significant digits.

use super::statistics::{median, spread};

/// A table whose first column is text and whose other columns are figures.
#[derive(Debug)]
pub(crate) struct Table {
    title: String,
    rows: Vec<Vec<String>>,
}

// === impl Table ===

impl Table {
    pub(crate) fn new<'a>(title: &str, columns: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            title: title.to_owned(),
            rows: vec![columns.into_iter().map(str::to_owned).collect()],
        }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Prints the table, unless it has no rows.
    pub(crate) fn print(&self) {
        if self.rows.len() < 2 {
            return;
        }
        let mut widths = Vec::new();
        for row in &self.rows {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                // Counts characters and not bytes: µ, × and ± have two bytes.
                *width = cell.chars().count().max(*width);
            }
        }
        println!("\n{}", self.title);
        for row in &self.rows {
            let mut line = String::from(" ");
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let padding = " ".repeat(width - cell.chars().count());
                let (before, after) = if column == 0 {
                    ("", padding.as_str())
                } else {
                    (padding.as_str(), "")
                };
                line.push_str(&format!(" {before}{cell}{after} "));
            }
            println!("{}", line.trim_end());
        }
    }
}

/// A figure with its significant digits; a dash: there is none.
pub(crate) fn figure(value: f64) -> String {
    match value {
        value if !value.is_finite() => "-".to_owned(),
        value if value.abs() < 10.0 => format!("{value:.2}"),
        value if value.abs() < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

/// The median of a series, and its ratio to the baseline, round by round.
pub(crate) fn beside(series: &[f64], baseline: &[f64]) -> String {
    let ratios: Vec<f64> = series
        .iter()
        .zip(baseline)
        .map(|(value, yard)| value / yard)
        .collect();
    let (ratio, off) = spread(&ratios);
    if ratio.is_finite() {
        format!("{}  ×{ratio:.2} ±{off:.2}", figure(median(series)))
    } else {
        format!("{}             ", figure(median(series)))
    }
}
