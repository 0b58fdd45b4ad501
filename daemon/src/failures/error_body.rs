//! What an error's body says, in the forms that providers and engines use.

use serde::Deserialize;
use serde_json::Value;

/// The parts that tell what happened; empty where the body has none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ErrorBody {
    /// The code, the type and the detailed code, as far as there are any.
    names: Vec<String>,
    /// The message, in lower case.
    message: String,
}

#[derive(Deserialize)]
struct Outer {
    error: Option<Inner>,
    // vLLM before it took OpenAI's form, and frameworks around engines.
    detail: Option<Value>,
    message: Option<Value>,
    code: Option<Value>,
    #[serde(rename = "type")]
    kind: Option<Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Inner {
    Object {
        message: Option<Value>,
        code: Option<Value>,
        #[serde(rename = "type")]
        kind: Option<Value>,
        details: Option<Details>,
    },
    Text(String),
}

#[derive(Deserialize)]
struct Details {
    error_code: Option<String>,
}

impl ErrorBody {
    /// Reads a body, or as much of one as there is. A body that is cut off, or no JSON at all, is a message.
    pub(super) fn read(body: &[u8]) -> Self {
        let Ok(outer) = serde_json::from_slice::<Outer>(body) else {
            return Self { names: Vec::new(), message: String::from_utf8_lossy(body).to_lowercase() };
        };
        let (message, names) = match outer.error {
            Some(Inner::Text(text)) => (Some(Value::String(text)), vec![]),
            Some(Inner::Object { message, code, kind, details }) => {
                let detailed = details.and_then(|details| details.error_code).map(Value::String);
                (message, vec![code, kind, detailed])
            }
            None => (outer.message.or(outer.detail), vec![outer.code, outer.kind]),
        };
        Self {
            names: names.into_iter().flatten().filter_map(text).collect(),
            message: message.and_then(text).unwrap_or_default().to_lowercase(),
        }
    }

    /// One of its names is one of these.
    pub(super) fn is_named<S: AsRef<str>>(&self, names: &[S]) -> bool {
        self.names.iter().any(|name| names.iter().any(|other| other.as_ref() == name))
    }

    /// The message has one of these in it.
    pub(super) fn says(&self, words: &[&str]) -> bool {
        words.iter().any(|words| self.message.contains(words))
    }
}

/// Engines write numbers for codes.
fn text(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}
