//! Tables in Markdown, as the documentation has them.

/// A table whose first column is text and whose other columns are figures.
pub(crate) struct Table {
    columns: usize,
    lines: Vec<String>,
}

// === impl Table ===

impl Table {
    pub(crate) fn new<const N: usize>(columns: [&str; N]) -> Self {
        Self {
            columns: N,
            lines: vec![line(&columns)],
        }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        let cells: [&str; N] = std::array::from_fn(|at| cells[at].as_str());
        self.lines.push(line(&cells));
    }

    pub(crate) fn print(&self, title: &str) {
        let (head, rows) = self.lines.split_at(1);
        println!("\n**{title}**\n\n{}", head[0]);
        println!("{}", line(&vec!["---"; self.columns]));
        for row in rows {
            println!("{row}");
        }
    }
}

fn line(cells: &[&str]) -> String {
    format!("| {} |", cells.join(" | "))
}

/// A whole number with commas.
pub(crate) fn count(value: f64) -> String {
    let digits = format!("{:.0}", value.max(0.0));
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A time in µs, with two significant digits at least.
pub(crate) fn micros(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2}"),
        value => format!("{value:.1}"),
    }
}

pub(crate) fn bytes(value: f64) -> String {
    count(value)
}
