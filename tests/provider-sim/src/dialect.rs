//! Whose API a call speaks: where its key stands, and in whose words it is answered.

use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::json;

use crate::error::ApiError;
use crate::reply::SimResponse;
use crate::{anthropic, engine};

/// The API that a call speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    OpenAi,
    Anthropic,
    /// vLLM's form of OpenAI's API.
    Engine,
}

impl Dialect {
    /// What is under `/v1/messages` is Anthropic's; both have models, and there the version header tells.
    pub(crate) fn of(path: &str, headers: &HeaderMap) -> Self {
        let is_under = |folder: &str| {
            let rest = path.strip_prefix(folder);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let is_anthropics =
            is_under("/v1/messages") || (headers.contains_key(anthropic::VERSION) && is_under("/v1/models"));
        if is_anthropics { Self::Anthropic } else { Self::OpenAi }
    }

    /// The caller's key, empty when there is none. Anthropic's callers send it in either of two headers.
    pub(crate) fn key(self, headers: &HeaderMap) -> &str {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let of_anthropic = || text(http::HeaderName::from_static("x-api-key"));
        let bearer = text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
        let key = match self {
            Self::OpenAi | Self::Engine => bearer,
            Self::Anthropic => of_anthropic().or(bearer),
        };
        key.unwrap_or_default().trim()
    }

    /// The refusal of a key that is not among the configured ones.
    pub(crate) fn wrong_key(self, key: &str) -> ApiError {
        let refused = |message: String| ApiError::invalid(message).status(StatusCode::UNAUTHORIZED);
        let shown: String = key.chars().take(8).collect();
        match (self, key.is_empty()) {
            (Self::OpenAi, true) => refused(
                "You didn't provide an API key. Provide it in an Authorization header using Bearer auth (i.e. \
                 Authorization: Bearer YOUR_KEY)."
                    .to_owned(),
            ),
            (Self::OpenAi, false) => {
                refused(format!("Incorrect API key provided: {shown}***.")).code("invalid_api_key")
            }
            (Self::Engine, _) => refused("Unauthorized".to_owned()),
            (Self::Anthropic, true) => refused("x-api-key header is required".to_owned()),
            (Self::Anthropic, false) => refused("invalid x-api-key".to_owned()),
        }
    }

    /// The usual error for `status`, as an injected fault answers.
    pub(crate) fn error_of_status(self, status: StatusCode, retry_after_ms: Option<u64>) -> ApiError {
        match self {
            Self::OpenAi => ApiError::of_status(status, retry_after_ms),
            Self::Anthropic => anthropic::error_of_status(status, retry_after_ms),
            Self::Engine => engine::error_of_status(status, retry_after_ms),
        }
    }

    /// `error` as an answer.
    pub(crate) fn refuse(self, error: ApiError, request_id: &str) -> SimResponse {
        match self {
            Self::OpenAi => error.into(),
            Self::Anthropic => anthropic::refuse(&error, request_id),
            Self::Engine => engine::refuse(error),
        }
    }

    /// `error` as the event that ends a stream of the endpoint at `path`, after `sent` others.
    pub(crate) fn error_event(self, path: &str, error: ApiError, request_id: &str, sent: usize) -> Vec<u8> {
        if self == Self::OpenAi && path == "/v1/responses" {
            let data = json!({ "type": "error", "code": error.kind, "message": error.message, "param": error.param,
                "sequence_number": sent });
            return format!("event: error\ndata: {data}\n\n").into_bytes();
        }
        let head: &[u8] = if self == Self::Anthropic { b"event: error\ndata: " } else { b"data: " };
        [head, self.refuse(error, request_id).body.bytes(), b"\n\n"].concat()
    }

    /// Adds the headers that every answer has.
    pub(crate) fn mark(self, headers: &mut HeaderMap, request_id: &str) {
        let name = match self {
            Self::OpenAi => "x-request-id",
            Self::Anthropic => "request-id",
            Self::Engine => return,
        };
        if let Ok(id) = HeaderValue::from_str(request_id) {
            headers.insert(name, id);
        }
        match self {
            Self::OpenAi => {
                headers.insert("openai-version", HeaderValue::from_static("2020-10-01"));
                headers.insert("openai-organization", HeaderValue::from_static("org-sim"));
                headers.insert("openai-processing-ms", HeaderValue::from_static("1"));
            }
            Self::Anthropic => {
                headers.insert("anthropic-organization-id", HeaderValue::from_static("org-sim"));
            }
            Self::Engine => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_or_version_tell_whose_it_is() {
        let none = HeaderMap::new();
        let mut some = HeaderMap::new();
        some.insert(anthropic::VERSION, HeaderValue::from_static("2023-06-01"));
        assert_eq!(Dialect::of("/v1/messages", &none), Dialect::Anthropic);
        assert_eq!(Dialect::of("/v1/messages/batches", &none), Dialect::Anthropic);
        assert_eq!(Dialect::of("/v1/messagesque", &none), Dialect::OpenAi);
        assert_eq!(Dialect::of("/v1/models", &none), Dialect::OpenAi);
        assert_eq!(Dialect::of("/v1/models", &some), Dialect::Anthropic);
        assert_eq!(Dialect::of("/v1/chat/completions", &some), Dialect::OpenAi);
    }

    #[test]
    fn the_key_stands_where_the_dialect_puts_it() {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", HeaderValue::from_static("Bearer one"));
        assert_eq!(Dialect::Anthropic.key(&headers), "one");
        headers.insert("x-api-key", HeaderValue::from_static("two"));
        assert_eq!((Dialect::OpenAi.key(&headers), Dialect::Anthropic.key(&headers)), ("one", "two"));
    }
}
