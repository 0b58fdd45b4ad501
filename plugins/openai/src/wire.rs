//! The provider's JSON objects, as far as they are used. What is not needed may be missing or odd.

use std::collections::BTreeMap;

use offpeak_plugin::{batch::ErrorBody, provider::Progress};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;

/// A file.
#[derive(Debug, Deserialize)]
pub(crate) struct FileObject {
    #[serde(deserialize_with = "id")]
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) filename: Option<String>,
    /// Seconds since 1970; a text is not read.
    #[serde(default, deserialize_with = "lenient_seconds")]
    created_at: Option<f64>,
}

/// A batch. Other names are those of other dialects.
#[derive(Debug, Deserialize)]
pub(crate) struct BatchObject {
    #[serde(deserialize_with = "id")]
    pub(crate) id: String,
    pub(crate) status: String,
    #[serde(default)]
    input_file_id: Option<String>,
    #[serde(default)]
    input_files: Option<Vec<String>>,
    #[serde(default, deserialize_with = "optional_id")]
    output_file_id: Option<String>,
    #[serde(default, deserialize_with = "optional_id")]
    output_file: Option<String>,
    #[serde(default, deserialize_with = "optional_id")]
    error_file_id: Option<String>,
    #[serde(default, deserialize_with = "optional_id")]
    error_file: Option<String>,
    #[serde(default, deserialize_with = "lenient_errors")]
    errors: Vec<ErrorObject>,
    #[serde(default, deserialize_with = "lenient_error")]
    error: Option<ErrorObject>,
    #[serde(default)]
    request_counts: Option<RequestCounts>,
    #[serde(default)]
    total_requests: Option<u32>,
    #[serde(default)]
    succeeded_requests: Option<u32>,
    #[serde(default)]
    failed_requests: Option<u32>,
    #[serde(default)]
    pub(crate) metadata: Option<BTreeMap<String, Value>>,
    /// Seconds since 1970; a text is not read.
    #[serde(default, deserialize_with = "lenient_seconds")]
    created_at: Option<f64>,
}

/// A batch as a creation shows it: some wrap it.
#[derive(Debug, Deserialize)]
struct WrappedBatch {
    job: BatchObject,
}

/// How far a batch is.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
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
    /// Of the input file, from 1; what is no such number is not read.
    #[serde(default)]
    line: Value,
}

impl ErrorObject {
    /// The line of the input file that is to blame.
    pub(crate) fn line(&self) -> Option<u64> {
        self.line.as_u64().filter(|line| *line > 0)
    }
}

/// One page of a listing, the newest first.
#[derive(Debug, Deserialize)]
pub(crate) struct List<T> {
    pub(crate) data: Vec<T>,
    /// Not everybody tells.
    #[serde(default)]
    pub(crate) has_more: Option<bool>,
}

impl<T: serde::de::DeserializeOwned> List<T> {
    /// Reads a page; where listings are not paged, it may be a plain list.
    pub(crate) fn read(body: &[u8], is_whole: bool) -> Result<Self, serde_json::Error> {
        if is_whole && let Ok(data) = serde_json::from_slice(body) {
            return Ok(Self { data, has_more: Some(false) });
        }
        serde_json::from_slice(body)
    }
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

fn lenient_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    Ok(Value::deserialize(deserializer)?.as_f64())
}

/// An error, or its message alone.
pub(crate) fn lenient_error<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<ErrorObject>, D::Error> {
    Ok(ErrorObject::of_value(Value::deserialize(deserializer)?))
}

/// A list of errors within an object, as it stands, or a message alone.
fn lenient_errors<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ErrorObject>, D::Error> {
    let list = match Value::deserialize(deserializer)? {
        Value::Object(mut object) if object.contains_key("data") => object.remove("data").unwrap_or_default(),
        other => other,
    };
    Ok(match list {
        Value::Array(errors) => errors.into_iter().filter_map(ErrorObject::of_value).collect(),
        one => ErrorObject::of_value(one).into_iter().collect(),
    })
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
    /// A batch as a creation shows it.
    pub(crate) fn created(body: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(body).or_else(|error| match serde_json::from_slice::<WrappedBatch>(body) {
            Ok(WrappedBatch { job }) => Ok(job),
            Err(_) => Err(error),
        })
    }

    /// Whether it is made of this file.
    pub(crate) fn is_made_of(&self, file: &str) -> bool {
        let files = self.input_files.iter().flatten().chain(&self.input_file_id);
        files.into_iter().any(|known| known == file)
    }

    /// Why it failed, where the provider says so.
    pub(crate) fn errors(&self) -> impl Iterator<Item = &ErrorObject> {
        self.errors.iter().chain(&self.error)
    }

    /// The file with answers.
    pub(crate) fn output_file(&self) -> Option<&str> {
        self.output_file_id.as_deref().or(self.output_file.as_deref())
    }

    /// The file with failures.
    pub(crate) fn error_file(&self) -> Option<&str> {
        self.error_file_id.as_deref().or(self.error_file.as_deref())
    }

    /// How many requests it has, and how many of them are done, where the provider says so.
    pub(crate) fn counts(&self) -> Option<RequestCounts> {
        let told = [self.total_requests, self.succeeded_requests, self.failed_requests];
        self.request_counts.or_else(|| {
            told.iter().any(Option::is_some).then(|| RequestCounts {
                total: told[0].unwrap_or(0),
                completed: told[1].unwrap_or(0),
                failed: told[2].unwrap_or(0),
            })
        })
    }

    /// How far it is.
    pub(crate) fn progress(&self) -> Option<Progress> {
        self.counts().map(|counts| Progress { completed: counts.completed, failed: counts.failed })
    }

    /// Whether there may be results, or items that ran.
    pub(crate) fn may_have_run(&self) -> bool {
        let counted = self.counts().is_some_and(|counts| counts.completed > 0 || counts.failed > 0);
        counted || self.output_file().is_some() || self.error_file().is_some()
    }
}

impl ErrorObject {
    fn of_value(value: Value) -> Option<Self> {
        match value {
            Value::Null => None,
            Value::String(message) if message.is_empty() => None,
            Value::String(message) => Some(Self { message: Some(message), ..Self::default() }),
            other => Some(Self::deserialize(other).unwrap_or_default()),
        }
    }

    /// The code, or the type where there is none, or `fallback`.
    pub(crate) fn code_or(&self, fallback: &str) -> String {
        self.code().unwrap_or_else(|| fallback.to_owned())
    }
}

impl ErrorBody for ErrorObject {
    fn of_message(message: String) -> Self {
        Self { message: Some(message), ..Self::default() }
    }

    /// The code, or the type where there is none.
    fn code(&self) -> Option<String> {
        [&self.code, &self.kind].into_iter().find_map(|value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        })
    }

    fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }

    /// An account without means stays so until somebody pays.
    fn is_for_good(&self) -> bool {
        self.code().as_deref() == Some("insufficient_quota")
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
        let quota = ErrorObject::of_body(br#"{"error":{"message":"pay","code":"insufficient_quota"}}"#);
        assert!(quota.is_for_good() && !error.is_for_good());
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
        assert!(batch.errors().next().is_none() && batch.progress().is_none() && !batch.may_have_run());
        assert_eq!(batch.created_at_ms(), None);
    }

    #[test]
    fn a_batch_in_other_words_is_understood() {
        let job = r#"{"id":"b","status":"FAILED","input_files":["f"],"output_file":"o","error_file":null,
            "total_requests":3,"succeeded_requests":1,"failed_requests":2,"created_at":"2026-01-01T00:00:00Z",
            "errors":[{"message":"no","count":2}]}"#;
        let batch = BatchObject::created(job.as_bytes()).unwrap();
        assert!(batch.is_made_of("f") && !batch.is_made_of("g"));
        assert_eq!((batch.output_file(), batch.error_file()), (Some("o"), None));
        assert_eq!(batch.progress(), Some(Progress { completed: 1, failed: 2 }));
        assert_eq!(batch.errors().next().unwrap().message.as_deref(), Some("no"));
        assert_eq!(batch.created_at_ms(), None);

        for error in [r#""error":"no""#, r#""errors":"no""#, r#""errors":{"data":[{"message":"no"}]}"#] {
            let wrapped = format!("{{\"job\":{{\"id\":\"b\",\"status\":\"FAILED\",{error}}}}}");
            let batch = BatchObject::created(wrapped.as_bytes()).unwrap();
            assert_eq!(batch.errors().next().unwrap().message.as_deref(), Some("no"), "{error}");
        }
    }
}
