//! The one map from what went wrong to a status and a body in the caller's dialect.

use std::borrow::Cow;
use std::time::{Duration, UNIX_EPOCH};

use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use offpeak_core::words::Timestamp;
use serde::Serialize;

use crate::body::ReplyBody;

/// The header that tells which request an answer belongs to.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-offpeak-request-id");
/// The header that tells how a request was run.
pub const MODE: HeaderName = HeaderName::from_static("x-offpeak-mode");
/// The header that tells how many attempts it took.
pub const ATTEMPTS: HeaderName = HeaderName::from_static("x-offpeak-attempts");
/// The header that tells what an answer cost, in US dollars.
pub const COST: HeaderName = HeaderName::from_static("x-offpeak-cost-usd");
/// The header that tells what it would have cost in standard real time.
pub const REALTIME_COST: HeaderName = HeaderName::from_static("x-offpeak-cost-realtime-usd");
/// The header by which SDKs are told whether another try makes sense.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Whose API a caller speaks: its errors come in that form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// OpenAI's, and whatever follows it.
    OpenAi,
    /// Anthropic's.
    Anthropic,
}

impl Dialect {
    /// By the path alone: what lies at or under `/v1/messages` is Anthropic's.
    pub fn of(path: &str) -> Self {
        match path.strip_prefix("/v1/messages") {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => Self::Anthropic,
            _ => Self::OpenAi,
        }
    }

    /// The header in which its SDKs look for the request's name.
    pub const fn request_id(self) -> HeaderName {
        match self {
            Self::OpenAi => HeaderName::from_static("x-request-id"),
            Self::Anthropic => HeaderName::from_static("request-id"),
        }
    }

    /// The type of an error with this status.
    pub const fn error_type(self, status: u16) -> &'static str {
        match (self, status) {
            (_, 401) => "authentication_error",
            (_, 403) => "permission_error",
            (_, 429) => "rate_limit_error",
            (Self::Anthropic, 402) => "billing_error",
            (Self::Anthropic, 404) => "not_found_error",
            (Self::Anthropic, 409) => "conflict_error",
            (Self::Anthropic, 413) => "request_too_large",
            (_, 400..=499) => "invalid_request_error",
            (Self::OpenAi, _) => "server_error",
            (Self::Anthropic, 504) => "timeout_error",
            (Self::Anthropic, 529) => "overloaded_error",
            (Self::Anthropic, _) => "api_error",
        }
    }
}

/// The code that says that nobody has the model which a request names, in OpenAI's words.
pub const MODEL_NOT_FOUND: &str = "model_not_found";

/// An error as it is written.
#[derive(Debug, Clone, Copy)]
pub struct ErrorText<'a> {
    /// The HTTP status that goes with it.
    pub status: u16,
    /// For programs.
    pub code: &'a str,
    /// For people.
    pub message: &'a str,
    /// The request's member that was wrong.
    pub param: Option<&'a str>,
    /// The name of the request that it answers.
    pub id: &'a str,
}

/// A request that offpeak itself answers with an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: StatusCode,
    /// For programs.
    pub code: Cow<'static, str>,
    /// For people: what was wrong and what to do.
    pub message: String,
    /// The request's member that was wrong.
    pub param: Option<Cow<'static, str>>,
    /// Seconds after which it is worth trying again.
    pub retry_after_s: Option<u64>,
    /// Further headers of the answer.
    pub headers: Option<Box<HeaderMap>>,
}

impl Refusal {
    /// The request is at fault.
    pub fn bad_request(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// There is nothing of that name, for this tenant.
    pub fn not_found(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    /// The path takes other methods: these.
    pub fn method_not_allowed(message: impl Into<String>, allow: &'static str) -> Self {
        let refusal = Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message);
        let allow = (http::header::ALLOW, HeaderValue::from_static(allow));
        Self { headers: Some(Box::new(HeaderMap::from_iter([allow]))), ..refusal }
    }

    /// Not now.
    pub fn unavailable(code: &'static str, message: impl Into<String>, retry_after_s: u64) -> Self {
        let refusal = Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message);
        Self { retry_after_s: Some(retry_after_s), ..refusal }
    }

    /// Any other status.
    pub fn new(status: StatusCode, code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.into(),
            message: message.into(),
            param: None,
            retry_after_s: None,
            headers: None,
        }
    }

    /// Names the member that was wrong.
    #[must_use]
    pub fn param(self, param: impl Into<Cow<'static, str>>) -> Self {
        Self { param: Some(param.into()), ..self }
    }

    /// The answer in the caller's dialect; `id` is the request's name.
    pub fn into_response(self, dialect: Dialect, id: &str) -> Response<ReplyBody> {
        let text = ErrorText {
            status: self.status.as_u16(),
            code: &self.code,
            message: &self.message,
            param: self.param.as_deref(),
            id,
        };
        let body = error_body(dialect, text);
        let mut response = json(self.status, body);
        let headers = response.headers_mut();
        if let Some(further) = self.headers {
            headers.extend(*further);
        }
        // SDKs try again on 409 and on every 5xx by themselves; where that cannot help, they are told so.
        if self.retry_after_s.is_none()
            && (self.status == StatusCode::CONFLICT || self.status.is_server_error())
        {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// OpenAI's form; all four members are required there.
#[derive(Serialize)]
struct OpenAiError<'a> {
    error: OpenAiMembers<'a>,
}

#[derive(Serialize)]
struct OpenAiMembers<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: &'a str,
}

/// Anthropic's form.
#[derive(Serialize)]
struct AnthropicError<'a> {
    r#type: &'static str,
    error: AnthropicMembers<'a>,
    #[serde(skip_serializing_if = "str::is_empty")]
    request_id: &'a str,
}

#[derive(Serialize)]
struct AnthropicMembers<'a> {
    r#type: &'a str,
    message: &'a str,
    details: Details<'a>,
}

#[derive(Serialize)]
struct Details<'a> {
    error_code: &'a str,
}

/// The body of an error.
pub fn error_body(dialect: Dialect, text: ErrorText<'_>) -> Vec<u8> {
    let ErrorText { status, code, message, param, id } = text;
    let r#type = dialect.error_type(status);
    let body = match dialect {
        Dialect::OpenAi => {
            serde_json::to_vec(&OpenAiError { error: OpenAiMembers { message, r#type, param, code } })
        }
        Dialect::Anthropic => serde_json::to_vec(&AnthropicError {
            r#type: "error",
            error: AnthropicMembers { r#type, message, details: Details { error_code: code } },
            request_id: id,
        }),
    };
    body.unwrap_or_default()
}

/// Marks an answer with its request's name and how it was run.
pub fn stamp(response: &mut Response<ReplyBody>, id: &str, mode: &'static str) {
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::try_from(id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(MODE, HeaderValue::from_static(mode));
}

/// An answer whose body is JSON.
pub fn json(status: StatusCode, body: impl Into<bytes::Bytes>) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An answer made from a value.
pub fn json_of(status: StatusCode, value: &impl Serialize) -> Response<ReplyBody> {
    json(status, serde_json::to_vec(value).unwrap_or_default())
}

/// A time as Anthropic's API writes it.
pub fn rfc3339(at: Timestamp) -> String {
    // The last second that has four digits for its year.
    let seconds = (at.0 / 1000).min(253_402_300_799);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_sdk_is_told_when_trying_again_cannot_help() {
        let answer = |refusal: Refusal| refusal.into_response(Dialect::OpenAi, "r");
        let conflict = answer(Refusal::new(StatusCode::CONFLICT, "x", "y"));
        assert_eq!(conflict.headers()[SHOULD_RETRY], "false");
        let busy = answer(Refusal::unavailable("x", "y", 3));
        assert_eq!(busy.headers()[RETRY_AFTER], "3");
        assert!(!busy.headers().contains_key(SHOULD_RETRY));
    }

    #[test]
    fn an_error_has_the_form_of_the_callers_api() {
        let text = ErrorText { status: 404, code: "c", message: "m", param: None, id: "r" };
        let body = |path| -> serde_json::Value {
            serde_json::from_slice(&error_body(Dialect::of(path), text)).unwrap()
        };
        assert_eq!(
            body("/v1/chat/completions"),
            serde_json::json!({"error": {"message": "m", "type": "invalid_request_error", "param": null, "code": "c"}})
        );
        let error =
            serde_json::json!({"type": "not_found_error", "message": "m", "details": {"error_code": "c"}});
        let expected = serde_json::json!({"type": "error", "error": error, "request_id": "r"});
        for path in ["/v1/messages", "/v1/messages/batches/msgbatch_1/results"] {
            assert_eq!(body(path), expected, "{path}");
        }
        assert_eq!(Dialect::of("/v1/messages_of_another_kind"), Dialect::OpenAi);
    }
}
