//! What an error's body says, in the forms that providers and engines use.

use serde::Deserialize;
use serde_json::Value;

/// The parts that tell what happened; empty where the body has none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ErrorBody {
    /// The code, the type and the detailed code, as far as there are any.
    names: Vec<String>,
    /// The message, in lower case.
    message: String,
    /// What of the request it is about.
    param: String,
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
        param: Option<Value>,
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
    pub(crate) fn read(body: &[u8]) -> Self {
        let Ok(outer) = serde_json::from_slice::<Outer>(body) else {
            return Self { message: String::from_utf8_lossy(body).to_lowercase(), ..Self::default() };
        };
        let (message, param, names) = match outer.error {
            Some(Inner::Text(text)) => (Some(Value::String(text)), None, vec![]),
            Some(Inner::Object { message, code, kind, param, details }) => {
                let detailed = details.and_then(|details| details.error_code).map(Value::String);
                (message, param, vec![code, kind, detailed])
            }
            None => (outer.message.or(outer.detail), None, vec![outer.code, outer.kind]),
        };
        Self {
            names: names.into_iter().flatten().filter_map(text).collect(),
            message: message.and_then(text).unwrap_or_default().to_lowercase(),
            param: param.and_then(text).unwrap_or_default(),
        }
    }

    /// It is about this member of the request, or something in it.
    pub(crate) fn is_about(&self, member: &str) -> bool {
        self.param.strip_prefix(member).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    }

    /// One of its names is one of these.
    pub(crate) fn is_named<S: AsRef<str>>(&self, names: &[S]) -> bool {
        self.names.iter().any(|name| names.iter().any(|other| other.as_ref() == name))
    }

    /// The message has one of these in it.
    pub(crate) fn says(&self, words: &[&str]) -> bool {
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
