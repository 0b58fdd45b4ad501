//! The one map from what went wrong to a status and a body in the caller's dialect.

use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use serde::Serialize;

use crate::body::ReplyBody;

/// The header that tells which request an answer belongs to.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-offpeak-request-id");
/// The header that tells how a request was run.
pub const MODE: HeaderName = HeaderName::from_static("x-offpeak-mode");
/// The header that tells how many attempts it took.
pub const ATTEMPTS: HeaderName = HeaderName::from_static("x-offpeak-attempts");
/// The header by which SDKs are told whether another try makes sense.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// A request that offpeak itself answers with an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: StatusCode,
    /// For programs.
    pub code: &'static str,
    /// For people: what was wrong and what to do.
    pub message: String,
    /// The request's member that was wrong.
    pub param: Option<&'static str>,
    /// Seconds after which it is worth trying again.
    pub retry_after_s: Option<u64>,
}

impl Refusal {
    /// The request is at fault.
    pub fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// There is nothing of that name, for this tenant.
    pub fn not_found(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    /// Not now.
    pub fn unavailable(code: &'static str, message: impl Into<String>, retry_after_s: u64) -> Self {
        let refusal = Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message);
        Self { retry_after_s: Some(retry_after_s), ..refusal }
    }

    /// Any other status.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), param: None, retry_after_s: None }
    }

    /// Names the member that was wrong.
    #[must_use]
    pub fn param(self, param: &'static str) -> Self {
        Self { param: Some(param), ..self }
    }

    /// The answer in the form of OpenAI's API.
    pub fn into_response(self) -> Response<ReplyBody> {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        };
        let body = error_body(&self.message, kind, self.param, self.code);
        let mut response = json(self.status, body);
        let headers = response.headers_mut();
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

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: ErrorMembers<'a>,
}

#[derive(Serialize)]
struct ErrorMembers<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: &'a str,
}

/// An error body as OpenAI's API has it; all four members are required there.
pub fn error_body(message: &str, kind: &str, param: Option<&str>, code: &str) -> Vec<u8> {
    let body = ErrorBody { error: ErrorMembers { message, r#type: kind, param, code } };
    serde_json::to_vec(&body).unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_sdk_is_told_when_trying_again_cannot_help() {
        let conflict = Refusal::new(StatusCode::CONFLICT, "x", "y").into_response();
        assert_eq!(conflict.headers()[SHOULD_RETRY], "false");
        let busy = Refusal::unavailable("x", "y", 3).into_response();
        assert_eq!(busy.headers()[RETRY_AFTER], "3");
        assert!(!busy.headers().contains_key(SHOULD_RETRY));
    }

    #[test]
    fn all_four_members_are_there() {
        let body: serde_json::Value = serde_json::from_slice(&error_body("m", "t", None, "c")).unwrap();
        assert_eq!(
            body,
            serde_json::json!({"error": {"message": "m", "type": "t", "param": null, "code": "c"}})
        );
    }
}
