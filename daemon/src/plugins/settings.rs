//! What a plugin says of its settings, in words that whoever wrote them understands.

use offpeak_host::{HostError, PluginError, PluginErrorKind};
use serde_json::{Map, Value};

/// What a parser in the plugin says of where it was. The text that it has read is ours, in one line, and nobody has seen it.
const PLACE: &str = " at line 1 column ";

/// How the last words of a panic in Rust begin, up to the place in the source; and what the SDK puts around what its parser says.
const PANICKED: &str = "the plugin panicked: panicked at ";
const WRONG: &str = "the plugin's configuration is wrong: ";
const MEND: &str = "; mend its table in the daemon's configuration";

/// A plugin that has settings and crashed when it was asked to describe itself, which is where it reads them: what it said, at
/// which key, and what to do. `starts` tries it with other settings, for a plugin that does not name a key.
pub(super) fn refusal(error: &HostError, config: &str, starts: impl Fn(String) -> bool) -> Option<String> {
    let HostError::FirstCall(PluginError {
        call: "describe",
        kind: PluginErrorKind::Trap { message, said },
        ..
    }) = error
    else {
        return None;
    };
    let settings: Map<String, Value> = serde_json::from_str(config).ok()?;
    if settings.is_empty() {
        return None;
    }
    let said = said.as_deref().map_or_else(|| format!("it crashed ({message})"), own_words);
    let (said, key) = without_column(&said, config);
    Some(if let Some(key) = key {
        format!("{said}, at the key `{key}`; mend that one")
    } else if settings.iter().any(|setting| names(&said, setting)) {
        format!("{said}; mend that")
    } else if let Some(key) = culprit(&settings, starts) {
        format!("{said}; it starts without the key `{key}`: mend that one")
    } else {
        format!("{said}; mend them, or, where that does not say what to mend, ask the author of the plugin")
    })
}

/// The last line that the plugin logged, without what tells where in its source that was.
fn own_words(line: &str) -> String {
    let panicked = line.strip_prefix(PANICKED).and_then(|rest| rest.split_once(": "));
    let words = panicked.map_or(line, |(_, words)| words);
    let words = words.strip_prefix(WRONG).unwrap_or(words);
    words.strip_suffix(MEND).unwrap_or(words).to_owned()
}

/// The same without a column, and the key that stands there.
fn without_column(said: &str, config: &str) -> (String, Option<String>) {
    let Some((before, after)) = said.split_once(PLACE) else { return (said.to_owned(), None) };
    let rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
    let digits = after.strip_suffix(rest).unwrap_or_default();
    let key = digits.parse().ok().and_then(|column| key_at(config, column));
    (format!("{before}{rest}"), key)
}

/// Whether a text has the name of a setting, or of one within it, as a word.
fn names(text: &str, (key, value): (&String, &Value)) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    text.split(|c| !is_part(c)).any(|word| word == key)
        || value.as_object().is_some_and(|within| within.iter().any(|setting| names(text, setting)))
}

/// The one key without which the plugin starts.
fn culprit(settings: &Map<String, Value>, starts: impl Fn(String) -> bool) -> Option<&String> {
    settings.keys().find(|key| {
        let mut others = settings.clone();
        others.remove(*key);
        starts(Value::Object(others).to_string())
    })
}

/// What is open at a place of a JSON text.
enum Open {
    Table(Option<String>),
    List(usize),
}

/// The key at whose value, or in whose name, the text's first so many bytes end.
fn key_at(json: &str, column: usize) -> Option<String> {
    let mut open: Vec<Open> = Vec::new();
    let mut rest = json;
    let position = |rest: &str| json.len().saturating_sub(rest.len());
    while position(rest) < column {
        let mut letters = rest.chars();
        let Some(letter) = letters.next() else { break };
        rest = letters.as_str();
        match letter {
            '{' => open.push(Open::Table(None)),
            '[' => open.push(Open::List(0)),
            // What ends just there is itself what is wrong, and none of its keys.
            '}' | ']' if position(rest) < column => drop(open.pop()),
            '}' | ']' => {
                open.pop();
                open.push(Open::Table(None));
            }
            ',' => {
                if let Some(Open::List(number)) = open.last_mut() {
                    *number += 1;
                }
            }
            '"' => {
                let (text, after) = string(rest)?;
                rest = after;
                if let Some(Open::Table(key)) = open.last_mut()
                    && rest.trim_start().starts_with(':')
                {
                    *key = Some(text.to_owned());
                }
            }
            _ => {}
        }
    }
    let steps = open.iter().filter_map(|open| match open {
        Open::Table(key) => key.clone(),
        Open::List(number) => Some(number.to_string()),
    });
    let path = steps.collect::<Vec<_>>().join(".");
    (!path.is_empty()).then_some(path)
}

/// A string without its quotes, and what stands behind it.
fn string(rest: &str) -> Option<(&str, &str)> {
    let mut is_escaped = false;
    for (at, letter) in rest.char_indices() {
        match letter {
            '"' if !is_escaped => return Some((rest.get(..at)?, rest.get(at + 1..)?)),
            '\\' => is_escaped = !is_escaped,
            _ => is_escaped = false,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "it is only read")]
    struct Settings {
        #[serde(default)]
        hurried: Vec<String>,
        #[serde(default)]
        nights: Option<Nights>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "it is only read")]
    struct Nights {
        begin: u32,
    }

    fn crashed(said: Option<&str>) -> HostError {
        let kind = PluginErrorKind::Trap {
            message: "wasm `unreachable` instruction executed".to_owned(),
            said: said.map(str::to_owned),
        };
        HostError::FirstCall(PluginError { plugin: "router".into(), call: "describe", kind })
    }

    #[test]
    fn the_key_is_named_and_the_column_is_not() {
        for (config, expected) in [
            (
                r#"{"huried":["search"]}"#,
                "unknown field `huried`, expected `hurried` or `nights`, at the key `huried`; mend that one",
            ),
            (
                r#"{"hurried":"search"}"#,
                "invalid type: string \"search\", expected a sequence, at the key `hurried`; mend that one",
            ),
            (
                r#"{"hurried":["a",7],"nights":null}"#,
                "invalid type: integer `7`, expected a string, at the key `hurried.1`; mend that one",
            ),
            (
                r#"{"hurried":["\"}{,\\"],"nights":{"begin":"ten"}}"#,
                "invalid type: string \"ten\", expected u32, at the key `nights.begin`; mend that one",
            ),
            (r#"{"hurried":[],"nights":{}}"#, "missing field `begin`, at the key `nights`; mend that one"),
            (
                r#"{"nights":{"begin":1},"huried":{"begin":2}}"#,
                "unknown field `huried`, expected `hurried` or `nights`, at the key `huried`; mend that one",
            ),
        ] {
            let error = serde_json::from_str::<Settings>(config).unwrap_err();
            let line = format!("{PANICKED}sdk/rust/src/config.rs:53:27: {WRONG}{error}{MEND}");
            let refusal = refusal(&crashed(Some(&line)), config, |_| unreachable!()).unwrap();
            assert_eq!(refusal, expected);
        }
    }

    #[test]
    fn what_is_wrong_with_a_whole_table_is_not_blamed_on_its_last_key() {
        let config = r#"{"first":1,"last":2}"#;
        assert_eq!(key_at(config, config.len()), None);
        let config = r#"{"night":{"begin":9,"end":8},"last":2}"#;
        assert_eq!(key_at(config, config.find("},").unwrap() + 1), Some("night".to_owned()));
        let line = "begin is after end at line 1 column 99999999999999999999 of it";
        let refusal = refusal(&crashed(Some(line)), config, |_| unreachable!()).unwrap();
        assert_eq!(refusal, "begin is after end of it; mend that");
    }

    #[test]
    fn a_key_that_is_not_named_is_found() {
        let config = r#"{"hours":{"begin":"ten"},"tenants":["a"]}"#;
        let without_hours = |tried: String| tried == r#"{"tenants":["a"]}"#;
        let found = refusal(&crashed(Some("that is no number: ten")), config, without_hours).unwrap();
        assert_eq!(found, "that is no number: ten; it starts without the key `hours`: mend that one");
        let silent = refusal(&crashed(None), config, without_hours).unwrap();
        assert!(silent.starts_with("it crashed (wasm `unreachable`"), "{silent}");
        assert!(silent.ends_with("it starts without the key `hours`: mend that one"), "{silent}");
        let never = refusal(&crashed(None), config, |_| false).unwrap();
        assert!(never.ends_with("ask the author of the plugin"), "{never}");
    }

    #[test]
    fn what_names_a_key_is_enough() {
        let config = r#"{"hours":{"begin":"ten"},"a":1}"#;
        let line = "begin: that is no number";
        let found = refusal(&crashed(Some(line)), config, |_| unreachable!()).unwrap();
        assert_eq!(found, "begin: that is no number; mend that");
    }

    #[test]
    fn a_plugin_without_settings_and_another_failure_are_no_refusal() {
        assert_eq!(refusal(&crashed(Some("unknown")), "{}", |_| true), None);
        let kind = PluginErrorKind::NoPlace;
        let error = HostError::FirstCall(PluginError { plugin: "router".into(), call: "describe", kind });
        assert_eq!(refusal(&error, r#"{"hours":1}"#, |_| true), None);
    }
}
