//! Reads the few numbers that matter from a page of metrics in Prometheus' text format.

/// What is done with samples that differ in their labels only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fold {
    /// They are parts of a whole.
    Sum,
    /// The fullest one counts.
    Largest,
}

/// The value of the first of these names that the page has.
pub(crate) fn value(page: &str, names: &[&str], fold: Fold) -> Option<f64> {
    names.iter().find_map(|name| {
        samples(page, name).map(|(_, value)| value).reduce(|one, other| match fold {
            Fold::Sum => one + other,
            Fold::Largest => one.max(other),
        })
    })
}

/// The samples of one name: their labels as they are written, and their values. What is no number is passed over.
pub(crate) fn samples<'p>(page: &'p str, name: &str) -> impl Iterator<Item = (&'p str, f64)> {
    page.lines().filter_map(move |line| {
        let rest = line.trim_start().strip_prefix(name)?;
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => split_labels(rest)?,
            None => ("", rest),
        };
        // Another name that begins alike has no space here.
        let rest = rest.strip_prefix([' ', '\t'])?;
        let value: f64 = rest.split_ascii_whitespace().next()?.parse().ok()?;
        value.is_finite().then_some((labels, value))
    })
}

/// Labels and what stands after their bracket, which may also stand within a label's text.
fn split_labels(text: &str) -> Option<(&str, &str)> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b'}' if !is_quoted => return Some((text.get(..at)?, text.get(at + 1..)?)),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: &str = "\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine=\"0\",model_name=\"a } \\\" b\"} 64.0
vllm:num_requests_running{engine=\"1\",model_name=\"tiny\"} 2.0 1795477619512
vllm:num_requests_running_more 7
plain 3
odd NaN
cache{engine=\"0\"} 0.25
cache{engine=\"1\"} 0.5
";

    #[test]
    fn samples_are_found_by_their_whole_name() {
        let running = value(PAGE, &["vllm:num_requests_running"], Fold::Sum);
        assert_eq!(running, Some(66.0));
        assert_eq!(value(PAGE, &["not_there", "plain"], Fold::Sum), Some(3.0));
        assert_eq!(value(PAGE, &["cache"], Fold::Largest), Some(0.5));
        assert_eq!(value(PAGE, &["odd"], Fold::Sum), None);
        assert_eq!(value(PAGE, &[], Fold::Sum), None);
        let labels: Vec<_> = samples(PAGE, "vllm:num_requests_running").map(|(labels, _)| labels).collect();
        assert_eq!(labels, ["engine=\"0\",model_name=\"a } \\\" b\"", "engine=\"1\",model_name=\"tiny\""]);
    }

    proptest! {
        #[test]
        fn any_page_is_read_without_harm(page in "\\PC*(\\n[a-c]\\{?[a-c\"\\\\=}]* ?[0-9.e+-]*){0,5}", name in "[a-c]{1,2}") {
            let _ = value(&page, &[&name], Fold::Sum);
        }
    }
}
