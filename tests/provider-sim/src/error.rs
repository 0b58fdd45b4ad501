//! Errors as the API words them.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use serde::Serialize;

use crate::reply::SimResponse;

/// An error answer: status and the four fields of the wire's error object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {message}")]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) kind: &'static str,
    pub(crate) code: Option<Cow<'static, str>>,
    pub(crate) param: Option<Cow<'static, str>>,
    pub(crate) message: String,
    /// Real milliseconds after which to try again.
    pub(crate) retry_after_ms: Option<u64>,
}

#[derive(Serialize)]
struct Body<'a> {
    error: Fields<'a>,
}

#[derive(Serialize)]
struct Fields<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: Option<&'a str>,
}

impl ApiError {
    /// A 400 with type `invalid_request_error`.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            kind: "invalid_request_error",
            code: None,
            param: None,
            message: message.into(),
            retry_after_ms: None,
        }
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::invalid(message).status(StatusCode::NOT_FOUND)
    }

    pub(crate) fn missing(param: &'static str) -> Self {
        Self::invalid(format!("Missing required parameter: '{param}'."))
            .param(param)
            .code("missing_required_parameter")
    }

    pub(crate) fn invalid_value(param: &'static str, got: &str, supported: &str) -> Self {
        Self::invalid(format!("Invalid value: '{got}'. Supported values are: {supported}."))
            .param(param)
            .code("invalid_value")
    }

    pub(crate) fn model_not_found(model: &str) -> Self {
        Self::not_found(format!("The model `{model}` does not exist or you do not have access to it."))
            .code("model_not_found")
    }

    pub(crate) fn rate_limited(message: impl Into<String>, retry_after_ms: Option<u64>) -> Self {
        let mut error =
            Self::invalid(message).status(StatusCode::TOO_MANY_REQUESTS).code("rate_limit_exceeded");
        error.kind = "requests";
        error.retry_after_ms = retry_after_ms;
        error
    }

    /// The usual error object for `status`, as an injected fault answers.
    pub(crate) fn of_status(status: StatusCode, retry_after_ms: Option<u64>) -> Self {
        let mut error = match status.as_u16() {
            429 => Self::rate_limited("Rate limit reached for requests. Please try again later.", None),
            503 => Self::server(status, "The engine is currently overloaded, please try again later."),
            500..600 => Self::server(
                status,
                "The server had an error while processing your request. Sorry about that!",
            ),
            _ => Self::invalid("The request was refused by the simulator's fault plan.").status(status),
        };
        error.retry_after_ms = retry_after_ms;
        error
    }

    fn server(status: StatusCode, message: &str) -> Self {
        let mut error = Self::invalid(message).status(status);
        error.kind = "server_error";
        error
    }

    pub(crate) fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    pub(crate) fn code(mut self, code: impl Into<Cow<'static, str>>) -> Self {
        self.code = Some(code.into());
        self
    }

    pub(crate) fn param(mut self, param: impl Into<Cow<'static, str>>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// The JSON body.
    pub(crate) fn body(&self) -> Vec<u8> {
        let body = Body {
            error: Fields {
                message: &self.message,
                r#type: self.kind,
                param: self.param.as_deref(),
                code: self.code.as_deref(),
            },
        };
        crate::reply::to_json(&body)
    }
}

impl From<ApiError> for SimResponse {
    fn from(error: ApiError) -> Self {
        let mut response = Self::json(Bytes::from(error.body()));
        response.status = error.status;
        if let Some(ms) = error.retry_after_ms {
            response.headers.insert("retry-after", HeaderValue::from(ms.div_ceil(1000)));
            response.headers.insert("retry-after-ms", HeaderValue::from(ms));
        }
        response
    }
}
