//! Tables in Markdown, with aligned columns, and figures with only their significant digits.

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
        print!("{}", self.markdown());
    }

    /// The table as Markdown; empty: it has no rows.
    pub(crate) fn markdown(&self) -> String {
        let [head, rows @ ..] = &self.rows[..] else {
            return String::new();
        };
        if rows.is_empty() {
            return String::new();
        }
        let mut widths = vec![0; head.len()];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                // Counts characters and not bytes: µ, × and ± have two bytes.
                *width = cell.chars().count().max(*width);
            }
        }
        let marks = widths
            .iter()
            .enumerate()
            .map(|(column, width)| match column {
                0 => "-".repeat(*width),
                _ => format!("{}:", "-".repeat(width.saturating_sub(1))),
            });
        let mut text = format!("\n**{}**\n\n", self.title);
        text.push_str(&line(head, &widths));
        text.push_str(&line(&marks.collect::<Vec<_>>(), &widths));
        for row in rows {
            text.push_str(&line(row, &widths));
        }
        text
    }
}

fn line(cells: &[String], widths: &[usize]) -> String {
    let mut line = String::from("|");
    for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
        let padding = " ".repeat(width - cell.chars().count());
        match column {
            0 => line.push_str(&format!(" {cell}{padding} |")),
            _ => line.push_str(&format!(" {padding}{cell} |")),
        }
    }
    line + "\n"
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
    let (ratio, off) = ratio(series, baseline);
    let value = figure(median(series));
    match (ratio.is_finite(), series.len()) {
        (false, _) => value,
        // One ratio has no spread.
        (true, 1) => format!("{value} ×{ratio:.2}"),
        (true, _) => format!("{value} ×{ratio:.2} ±{off:.2}"),
    }
}

/// The median of the ratios to the baseline, round by round, and how far the next run may be off.
pub(crate) fn ratio(series: &[f64], baseline: &[f64]) -> (f64, f64) {
    let ratios: Vec<f64> = series
        .iter()
        .zip(baseline)
        .map(|(value, yard)| value / yard)
        .collect();
    spread(&ratios)
}
