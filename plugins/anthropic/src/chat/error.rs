//! Statuses and error bodies.

use serde::Deserialize;

use super::json::Out;

/// An error in OpenAI's form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translated {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// Anthropic's error object.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ErrorObject {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    details: Option<Details>,
}

#[derive(Debug, Default, Deserialize)]
struct Details {
    #[serde(default)]
    error_code: Option<String>,
}

/// The HTTP status that belongs to the type of an error, for errors that come without one: in a stream or in the results
/// of a batch.
pub fn status_of(kind: &str) -> u16 {
    match kind {
        "invalid_request_error" => 400,
        "authentication_error" => 401,
        "billing_error" => 402,
        "permission_error" => 403,
        "not_found_error" => 404,
        "conflict_error" => 409,
        "request_too_large" => 413,
        "rate_limit_error" => 429,
        "timeout_error" => 504,
        "overloaded_error" => 529,
        _ => 500,
    }
}

/// Translates the answer to a call that failed.
pub fn translate(status: u16, body: &[u8]) -> Translated {
    let error = read(body);
    let mut out = Out::with_capacity(body.len() + 128);
    out.raw("{\"error\":");
    error.write(status, &mut out);
    out.raw("}");
    // 529 is Anthropic's own.
    Translated { status: if status == 529 { 503 } else { status }, body: out.into_bytes() }
}

/// The error in a body. Without one, the body's beginning is the message.
fn read(body: &[u8]) -> ErrorObject {
    #[derive(Deserialize)]
    struct Body {
        error: ErrorObject,
    }
    const SHOWN_CHARS: usize = 200;
    match serde_json::from_slice::<Body>(body) {
        Ok(Body { error }) => error,
        Err(_) => ErrorObject {
            message: Some(String::from_utf8_lossy(body).chars().take(SHOWN_CHARS).collect()),
            ..ErrorObject::default()
        },
    }
}

impl ErrorObject {
    /// The status that it would have had outside of a stream.
    pub(super) fn status(&self) -> u16 {
        status_of(self.kind.as_deref().unwrap_or_default())
    }

    /// Writes OpenAI's error object.
    pub(super) fn write(&self, status: u16, out: &mut Out) {
        let message = self.message.as_deref().filter(|message| !message.trim().is_empty());
        let (kind, code) = self.kind_and_code(status);
        write_error(message.unwrap_or("The provider gave no reason."), kind, code, out);
    }

    /// OpenAI's type and code.
    fn kind_and_code(&self, status: u16) -> (&'static str, Option<&str>) {
        const REQUEST: &str = "invalid_request_error";
        const SERVER: &str = "server_error";
        let kind = self.kind.as_deref();
        match status {
            400 if self.is_too_long() => (REQUEST, Some("context_length_exceeded")),
            400 => (REQUEST, None),
            401 => (REQUEST, Some("invalid_api_key")),
            402 => ("insufficient_quota", Some("insufficient_quota")),
            404 => (REQUEST, Some("model_not_found")),
            429 if self.is_spent() => ("insufficient_quota", Some("insufficient_quota")),
            429 => ("requests", Some("rate_limit_exceeded")),
            408 | 504 => (SERVER, Some("timeout")),
            503 | 529 => (SERVER, Some("overloaded")),
            ..500 => (REQUEST, kind.filter(|kind| *kind != REQUEST)),
            _ => (SERVER, None),
        }
    }

    /// Clients look for this by its code and then shorten their prompt.
    fn is_too_long(&self) -> bool {
        self.message.as_deref().is_some_and(|message| message.starts_with("prompt is too long"))
    }

    /// The limit is one of money, and waiting a minute does not help.
    fn is_spent(&self) -> bool {
        let code = self.details.as_ref().and_then(|details| details.error_code.as_deref());
        code.is_some_and(|code| code.contains("spend_limit"))
    }
}

/// Writes an error object with what all of them have.
pub(super) fn write_error(message: &str, kind: &str, code: Option<&str>, out: &mut Out) {
    out.raw("{\"message\":");
    out.text(message);
    out.member("type");
    out.text(kind);
    out.member("param");
    out.raw("null");
    out.member("code");
    match code {
        Some(code) => out.text(code),
        None => out.raw("null"),
    }
    out.raw("}");
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn translated(status: u16, body: &Value) -> (u16, Value) {
        let Translated { status, body } = translate(status, body.to_string().as_bytes());
        (status, serde_json::from_slice(&body).unwrap())
    }

    #[test]
    fn each_status_becomes_the_one_that_clients_of_openai_know() {
        for (status, kind, expected, expected_type, code) in [
            (400, "invalid_request_error", 400, "invalid_request_error", Value::Null),
            (401, "authentication_error", 401, "invalid_request_error", json!("invalid_api_key")),
            (402, "billing_error", 402, "insufficient_quota", json!("insufficient_quota")),
            (403, "permission_error", 403, "invalid_request_error", json!("permission_error")),
            (404, "not_found_error", 404, "invalid_request_error", json!("model_not_found")),
            (409, "conflict_error", 409, "invalid_request_error", json!("conflict_error")),
            (413, "request_too_large", 413, "invalid_request_error", json!("request_too_large")),
            (429, "rate_limit_error", 429, "requests", json!("rate_limit_exceeded")),
            (500, "api_error", 500, "server_error", Value::Null),
            (504, "timeout_error", 504, "server_error", json!("timeout")),
            (529, "overloaded_error", 503, "server_error", json!("overloaded")),
        ] {
            assert_eq!(status_of(kind), status, "{kind}");
            let body = json!({"type": "error", "error": {"type": kind, "message": "why \"it\" failed"},
                "request_id": "req_1"});
            let expected_body = json!({"error": {"message": "why \"it\" failed", "type": expected_type,
                "param": null, "code": code}});
            assert_eq!(translated(status, &body), (expected, expected_body), "{kind}");
        }
        assert_eq!(status_of("brand_new_error"), 500);
    }

    #[test]
    fn clients_find_the_errors_that_they_act_on() {
        let body = json!({"type": "error", "error": {"type": "invalid_request_error",
            "message": "prompt is too long: 210000 tokens > 200000 maximum"}});
        assert_eq!(translated(400, &body).1["error"]["code"], "context_length_exceeded");
        let body = json!({"type": "error", "error": {"type": "rate_limit_error", "message": "spent",
            "details": {"error_code": "enforced_spend_limit_reached"}}});
        assert_eq!(translated(429, &body).1["error"]["code"], "insufficient_quota");
    }

    #[test]
    fn what_is_no_error_object_is_shown() {
        for (body, message) in [
            (&b"<html>bad gateway</html>"[..], "<html>bad gateway</html>"),
            (b"", "The provider gave no reason."),
            (b"{\"error\":\"text\"}", "{\"error\":\"text\"}"),
            (b"\xff\xfe", "\u{fffd}\u{fffd}"),
        ] {
            let Translated { status, body } = translate(502, body);
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!((status, body["error"]["message"].as_str()), (502, Some(message)));
            assert_eq!(body["error"]["type"], "server_error");
        }
    }
}
