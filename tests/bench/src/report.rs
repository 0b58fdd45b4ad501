//! Figures as people read them.

use std::time::Duration;

/// A table of a report.
#[derive(Debug, Clone)]
pub struct Table {
    columns: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

/// A figure beside what it should be.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Target {
    /// What was measured.
    pub what: &'static str,
    /// The figure.
    pub measured: f64,
    /// What it should be.
    pub target: f64,
    /// Whether more is better.
    pub at_least: bool,
    /// Its unit; empty for ratios.
    pub unit: &'static str,
}

impl Table {
    /// A table without rows.
    pub fn new(columns: impl Into<Vec<&'static str>>) -> Self {
        Self { columns: columns.into(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl Into<Vec<String>>) {
        self.rows.push(cells.into());
    }

    /// As Markdown. The first column holds names, the others numbers.
    pub fn markdown(&self) -> String {
        let mut text = line(self.columns.iter().copied());
        let rule =
            self.columns.iter().enumerate().map(|(column, _)| if column == 0 { "---" } else { "---:" });
        text += &line(rule);
        for row in &self.rows {
            text += &line(row.iter().map(String::as_str));
        }
        text
    }
}

impl Target {
    /// More is better.
    pub const fn at_least(what: &'static str, measured: f64, target: f64, unit: &'static str) -> Self {
        Self { what, measured, target, at_least: true, unit }
    }

    /// Less is better.
    pub const fn at_most(what: &'static str, measured: f64, target: f64, unit: &'static str) -> Self {
        Self { what, measured, target, at_least: false, unit }
    }

    /// Whether it is what it should be.
    pub fn is_met(&self) -> bool {
        if self.at_least { self.measured >= self.target } else { self.measured <= self.target }
    }

    /// All of them as Markdown.
    pub fn table(targets: &[Self]) -> String {
        let mut table = Table::new(["against the targets", "measured", "target", "met"]);
        for target in targets {
            let Self { what, measured, target: wanted, at_least, unit } = target;
            let wanted = format!("{} {}{}", if *at_least { "≥" } else { "≤" }, figure(*wanted), after(unit));
            let met = if target.is_met() { "yes" } else { "no" };
            let measured = format!("{}{}", figure(*measured), after(unit));
            table.row([(*what).to_owned(), measured, wanted, met.to_owned()]);
        }
        table.markdown()
    }
}

fn after(unit: &str) -> String {
    if unit.is_empty() { String::new() } else { format!(" {unit}") }
}

fn line<'a>(cells: impl Iterator<Item = &'a str>) -> String {
    let mut line = "|".to_owned();
    for cell in cells {
        line.extend([" ", cell, " |"]);
    }
    line.push('\n');
    line
}

/// A number with three significant digits, or all digits before its point.
pub fn figure(number: f64) -> String {
    match number.abs() {
        size if size >= 100.0 => thousands(number),
        size if size >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

/// A number without its fraction, its thousands apart.
pub fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits.as_str()), |digits| ("-", digits));
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).unwrap_or_default())
        .collect();
    format!("{sign}{}", groups.join(","))
}

/// A time in microseconds.
pub fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Bytes in megabytes.
#[expect(clippy::cast_precision_loss, reason = "memory is far below 2^52 bytes")]
pub fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// The middle of some figures; of two middle ones, the mean.
pub fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.get(middle.saturating_sub(1)..=middle) {
        Some([below, above]) if figures.len().is_multiple_of(2) => f64::midpoint(*below, *above),
        _ => figures.get(middle).copied().unwrap_or(f64::NAN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert!((median([3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median([4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!((median([7.0]) - 7.0).abs() < 1e-9);
        assert!(median([]).is_nan());
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(figure(0.987_6), "0.99");
        assert_eq!(figure(45.678), "45.7");
        assert_eq!(figure(1_234_567.8), "1,234,568");
        assert_eq!(thousands(-1234.0), "-1,234");
        assert_eq!(thousands(12.0), "12");
    }

    #[test]
    fn a_table_is_markdown() {
        let mut table = Table::new(["a", "b"]);
        table.row(["x".to_owned(), "1".to_owned()]);
        assert_eq!(table.markdown(), "| a | b |\n| --- | ---: |\n| x | 1 |\n");
    }
}
