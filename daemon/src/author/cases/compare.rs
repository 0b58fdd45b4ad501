//! What is expected against what came out.

use serde::Serialize;
use serde_json::Value;

/// One place where they differ.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Difference {
    /// Such as `choose.offer` or `[2].cost`.
    pub(super) at: String,
    pub(super) expected: Value,
    /// None if there is nothing there.
    pub(super) got: Option<Value>,
}

/// Everything that is expected must be there. Members of a table that are not named are not looked at; a list must be the very
/// list; an `error` needs only have the expected text in it.
pub(super) fn differences(expected: &Value, got: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    compare("", expected, Some(got), &mut found);
    found
}

fn compare(at: &str, expected: &Value, got: Option<&Value>, found: &mut Vec<Difference>) {
    let within = |name: &str| if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
    match (expected, got) {
        (Value::Object(expected), Some(Value::Object(got))) => {
            for (name, value) in expected {
                match (name.as_str(), value, got.get(name)) {
                    ("error", Value::String(part), Some(Value::String(whole))) if whole.contains(part) => {}
                    (_, value, got) => compare(&within(name), value, got, found),
                }
            }
        }
        (Value::Array(expected), Some(Value::Array(got))) if expected.len() == got.len() => {
            for (number, (expected, got)) in expected.iter().zip(got).enumerate() {
                compare(&format!("{at}[{number}]"), expected, Some(got), found);
            }
        }
        (expected, Some(got)) if expected == got => {}
        (expected, got) => {
            let at = if at.is_empty() { "the answer" } else { at }.to_owned();
            found.push(Difference { at, expected: expected.clone(), got: got.cloned() });
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn places(expected: &Value, got: &Value) -> Vec<String> {
        differences(expected, got).into_iter().map(|difference| difference.at).collect()
    }

    #[test]
    fn what_is_not_named_is_not_looked_at() {
        let got = json!({ "choose": { "backend": "openai", "offer": "batch", "lane": "" } });
        assert!(places(&json!({ "choose": { "offer": "batch" } }), &got).is_empty());
        assert_eq!(
            places(&json!({ "choose": { "offer": "flex", "lane": "x" } }), &got),
            ["choose.lane", "choose.offer"]
        );
        assert_eq!(places(&json!({ "reject": {} }), &got), ["reject"]);
        assert_eq!(places(&json!("pass"), &got), ["the answer"]);
    }

    #[test]
    fn a_list_is_the_very_list() {
        let got = json!([{ "cost": 1 }, { "cost": 2 }]);
        assert_eq!(places(&json!([{ "cost": 1 }, { "cost": 3 }]), &got), ["[1].cost"]);
        assert_eq!(places(&json!([{ "cost": 1 }]), &got), ["the answer"]);
    }

    #[test]
    fn of_an_error_a_part_will_do() {
        let got = json!({ "error": "describe: it crashed: unknown setting `huried`" });
        assert!(places(&json!({ "error": "huried" }), &got).is_empty());
        assert_eq!(places(&json!({ "error": "hurried" }), &got), ["error"]);
    }
}
