//! Histograms as Prometheus writes them.

/// A histogram with fixed bounds.
#[derive(Debug, Clone)]
pub(super) struct Histogram {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    bounds: &'static [f64],
    /// One count for each bound, and one for what is beyond the last.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    pub(super) fn new(name: &'static str, help: &'static str, bounds: &'static [f64]) -> Self {
        Self { name, help, bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    /// Notes `times` observations of `value`.
    pub(super) fn observe(&mut self, value: f64, times: u64) {
        let place = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get_mut(place) {
            *count += times;
        }
        #[expect(clippy::cast_precision_loss, reason = "a count of observations")]
        let times = times as f64;
        self.sum += value * times;
    }

    /// Appends the family's text. `labels` are those of the engine, as `name="value",..`; in a bucket `le` stands
    /// between the first of them and the rest, as the names' alphabetical order has it.
    pub(super) fn write(&self, text: &mut String, engine: &str, model: &str, created: &str) {
        use std::fmt::Write;
        let Self { name, help, .. } = self;
        let mut below = 0;
        let bounds = self.bounds.iter().map(|bound| float(*bound)).chain(["+Inf".to_owned()]);
        // Writing into a string cannot fail.
        let mut put = |line: std::fmt::Arguments<'_>| text.write_fmt(line).ok();
        put(format_args!("# HELP {name} {help}\n# TYPE {name} histogram\n"));
        for (bound, count) in bounds.zip(&self.counts) {
            below += count;
            put(format_args!("{name}_bucket{{{engine},le=\"{bound}\",{model}}} {below}.0\n"));
        }
        put(format_args!("{name}_count{{{engine},{model}}} {below}.0\n"));
        put(format_args!("{name}_sum{{{engine},{model}}} {}\n", float(self.sum)));
        put(format_args!("# HELP {name}_created {help}\n# TYPE {name}_created gauge\n"));
        put(format_args!("{name}_created{{{engine},{model}}} {created}\n"));
    }
}

/// A number as Python's client library writes it: always with a point.
pub(super) fn float(value: f64) -> String {
    format!("{value:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let mut histogram = Histogram::new("x", "help", &[1.0, 2.5]);
        histogram.observe(1.0, 2);
        histogram.observe(2.0, 1);
        histogram.observe(9.0, 1);
        let mut text = String::new();
        histogram.write(&mut text, "engine=\"0\"", "model_name=\"m\"", "1.0");
        let want = r#"# HELP x help
# TYPE x histogram
x_bucket{engine="0",le="1.0",model_name="m"} 2.0
x_bucket{engine="0",le="2.5",model_name="m"} 3.0
x_bucket{engine="0",le="+Inf",model_name="m"} 4.0
x_count{engine="0",model_name="m"} 4.0
x_sum{engine="0",model_name="m"} 13.0
# HELP x_created help
# TYPE x_created gauge
x_created{engine="0",model_name="m"} 1.0
"#;
        assert_eq!(text, want);
    }
}
