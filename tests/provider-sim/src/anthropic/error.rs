//! Errors in Anthropic's form and words.

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::error::Category;

use crate::error::ApiError;
use crate::reply::{SimResponse, to_json};

/// The wire's error object.
#[derive(Serialize)]
pub(super) struct Body<'a> {
    r#type: &'static str,
    error: Fields<'a>,
    request_id: &'a str,
}

#[derive(Serialize)]
struct Fields<'a> {
    r#type: &'static str,
    message: &'a str,
}

impl<'a> Body<'a> {
    pub(super) fn of(error: &'a ApiError, request_id: &'a str) -> Self {
        let fields = Fields { r#type: kind(error.status), message: &error.message };
        Self { r#type: "error", error: fields, request_id }
    }
}

/// The type that goes with a status.
fn kind(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        409 => "conflict_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        504 => "timeout_error",
        529 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

/// `error` as an answer.
pub(crate) fn refuse(error: &ApiError, request_id: &str) -> SimResponse {
    let mut response = SimResponse::json(Bytes::from(to_json(&Body::of(error, request_id))));
    response.status = error.status;
    if let Some(ms) = error.retry_after_ms {
        response.headers.insert("retry-after", HeaderValue::from(ms.div_ceil(1000)));
    }
    response
}

/// The usual error for `status`, as an injected fault answers.
pub(crate) fn error_of_status(status: StatusCode, retry_after_ms: Option<u64>) -> ApiError {
    let message = match status.as_u16() {
        429 => "This request would exceed your organization's rate limit. Please try again later.",
        504 => "The request timed out while being processed.",
        529 => "Overloaded",
        500..600 => "Internal server error",
        _ => "The request was refused by the simulator's fault plan.",
    };
    let mut error = ApiError::invalid(message).status(status);
    error.retry_after_ms = retry_after_ms;
    error
}

/// A 400 about one field.
pub(super) fn invalid(field: impl std::fmt::Display, problem: &str) -> ApiError {
    ApiError::invalid(format!("{field}: {problem}"))
}

pub(super) fn required(field: impl std::fmt::Display) -> ApiError {
    invalid(field, "Field required")
}

pub(super) fn extra(field: impl std::fmt::Display) -> ApiError {
    invalid(field, "Extra inputs are not permitted")
}

/// Reads a body, with the API's words for what is wrong with it.
pub(super) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        let text = error.to_string();
        let unknown = text.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`'));
        match (error.classify(), unknown) {
            (Category::Data, Some((name, _))) => extra(name),
            (Category::Data, None) => ApiError::invalid(format!("Input should be valid: {text}")),
            _ => ApiError::invalid(format!("The request body is not valid JSON: {text}")),
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_type_follows_from_the_status() {
        let shown = |status: u16| {
            let error = error_of_status(StatusCode::from_u16(status).unwrap(), Some(1_500));
            let response = refuse(&error, "req_1");
            let body: Value = serde_json::from_slice(response.body.bytes()).unwrap();
            assert_eq!((&body["type"], &body["request_id"]), (&json!("error"), &json!("req_1")));
            assert_eq!(response.headers["retry-after"], "2");
            body["error"]["type"].as_str().unwrap().to_owned()
        };
        let got = [400, 401, 404, 413, 429, 500, 503, 504, 529].map(shown);
        let want = [
            "invalid_request_error",
            "authentication_error",
            "not_found_error",
            "request_too_large",
            "rate_limit_error",
            "api_error",
            "api_error",
            "timeout_error",
            "overloaded_error",
        ];
        assert_eq!(got, want);
    }
}
