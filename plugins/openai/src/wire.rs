//! The provider's JSON objects, as far as they are used. What is not needed may be missing or odd.

use std::collections::BTreeMap;

use offpeak_plugin::provider::Progress;
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;

/// A file.
#[derive(Debug, Deserialize)]
pub(crate) struct FileObject {
    #[serde(deserialize_with = "id")]
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) filename: Option<String>,
    /// Seconds since 1970.
    #[serde(default)]
    created_at: Option<f64>,
}

/// A batch.
#[derive(Debug, Deserialize)]
pub(crate) struct BatchObject {
    #[serde(deserialize_with = "id")]
    pub(crate) id: String,
    pub(crate) status: String,
    #[serde(default)]
    pub(crate) input_file_id: Option<String>,
    #[serde(default, deserialize_with = "optional_id")]
    pub(crate) output_file_id: Option<String>,
    #[serde(default, deserialize_with = "optional_id")]
    pub(crate) error_file_id: Option<String>,
    #[serde(default)]
    errors: Option<BatchErrors>,
    #[serde(default)]
    pub(crate) request_counts: Option<RequestCounts>,
    #[serde(default)]
    pub(crate) metadata: Option<BTreeMap<String, Value>>,
    /// Seconds since 1970.
    #[serde(default)]
    created_at: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct BatchErrors {
    #[serde(default)]
    data: Option<Vec<ErrorObject>>,
}

/// How far a batch is.
#[derive(Debug, Deserialize)]
pub(crate) struct RequestCounts {
    #[serde(default)]
    pub(crate) total: u32,
    #[serde(default)]
    pub(crate) completed: u32,
    #[serde(default)]
    pub(crate) failed: u32,
}

/// An error, of a call, of a batch or of an item.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct ErrorObject {
    #[serde(default)]
    code: Value,
    #[serde(default, rename = "type")]
    kind: Value,
    #[serde(default)]
    pub(crate) message: Option<String>,
}

/// One page of a listing, the newest first.
#[derive(Debug, Deserialize)]
pub(crate) struct List<T> {
    pub(crate) data: Vec<T>,
    #[serde(default)]
    pub(crate) has_more: bool,
}

/// The longest name that is believed to be one: names are kept in the state, which is small.
const ID_BYTES_MAX: usize = 256;

fn id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let id = String::deserialize(deserializer)?;
    if id.is_empty() || id.len() > ID_BYTES_MAX {
        return Err(D::Error::custom("an id is empty or too long"));
    }
    Ok(id)
}

/// None where there is no file; some providers say so with an empty name.
fn optional_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let id = Option::<String>::deserialize(deserializer)?.filter(|id| !id.is_empty());
    if id.as_ref().is_some_and(|id| id.len() > ID_BYTES_MAX) {
        return Err(D::Error::custom("an id is too long"));
    }
    Ok(id)
}

/// What can be listed.
pub(crate) trait Listed {
    fn id(&self) -> &str;
    /// When it was made, in milliseconds since 1970.
    fn created_at_ms(&self) -> Option<u64>;
}

impl Listed for FileObject {
    fn id(&self) -> &str {
        &self.id
    }

    fn created_at_ms(&self) -> Option<u64> {
        self.created_at.map(to_ms)
    }
}

impl Listed for BatchObject {
    fn id(&self) -> &str {
        &self.id
    }

    fn created_at_ms(&self) -> Option<u64> {
        self.created_at.map(to_ms)
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float's cast saturates")]
fn to_ms(seconds: f64) -> u64 {
    (seconds * 1000.0) as u64
}

impl BatchObject {
    /// Why it failed, where the provider says so.
    pub(crate) fn errors(&self) -> &[ErrorObject] {
        self.errors.as_ref().and_then(|errors| errors.data.as_deref()).unwrap_or_default()
    }

    /// How far it is.
    pub(crate) fn progress(&self) -> Option<Progress> {
        self.request_counts
            .as_ref()
            .map(|counts| Progress { completed: counts.completed, failed: counts.failed })
    }

    /// Whether there may be results, or items that ran.
    pub(crate) fn may_have_run(&self) -> bool {
        let counted =
            self.request_counts.as_ref().is_some_and(|counts| counts.completed > 0 || counts.failed > 0);
        counted || self.output_file_id.is_some() || self.error_file_id.is_some()
    }
}

impl ErrorObject {
    /// The code, or the type where there is none, or `fallback`.
    pub(crate) fn code_or(&self, fallback: &str) -> String {
        [&self.code, &self.kind]
            .into_iter()
            .find_map(|value| match value {
                Value::String(text) => Some(text.clone()),
                Value::Number(number) => Some(number.to_string()),
                _ => None,
            })
            .unwrap_or_else(|| fallback.to_owned())
    }

    /// The error in a refused call's body. Without one, the body's beginning is the message.
    pub(crate) fn of_body(body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Body {
            error: ErrorObject,
        }
        const SHOWN_CHARS: usize = 200;
        match serde_json::from_slice::<Body>(body) {
            Ok(Body { error }) => error,
            Err(_) => Self {
                message: Some(String::from_utf8_lossy(body).chars().take(SHOWN_CHARS).collect()),
                ..Self::default()
            },
        }
    }
}

/// A name from the provider as a part of a path or query: whatever it holds, it stays one part.
pub(crate) fn escape(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~') {
            escaped.push(char::from(byte));
        } else {
            const HEX: &[u8; 16] = b"0123456789ABCDEF";
            escaped.push('%');
            escaped.push(char::from(HEX[usize::from(byte >> 4)]));
            escaped.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_found_in_a_body_or_the_body_is_shown() {
        let error = ErrorObject::of_body(br#"{"error":{"message":"no","type":"t","code":"c"}}"#);
        assert_eq!((error.code_or("x").as_str(), error.message.as_deref()), ("c", Some("no")));
        let error = ErrorObject::of_body(br#"{"error":{"message":"no","type":"t","code":null}}"#);
        assert_eq!(error.code_or("x"), "t");
        let error = ErrorObject::of_body("<html>ö</html>".as_bytes());
        assert_eq!((error.code_or("x").as_str(), error.message.as_deref()), ("x", Some("<html>ö</html>")));
    }

    #[test]
    fn a_name_stays_one_part_of_a_path() {
        assert_eq!(escape("batch_6a-Z"), "batch_6a-Z");
        assert_eq!(escape("../x?y=ü"), "%2E%2E%2Fx%3Fy%3D%C3%BC");
    }

    #[test]
    fn a_batch_with_the_least_is_understood() {
        let batch: BatchObject = serde_json::from_str(r#"{"id":"b","status":"new","errors":null}"#).unwrap();
        assert!(batch.errors().is_empty() && batch.progress().is_none() && !batch.may_have_run());
        assert_eq!(batch.created_at_ms(), None);
    }
}
