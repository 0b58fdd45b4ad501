//! What a failure means: what passes, what does not, what has no room at this price, and what the account may not spend.
//! By the error bodies that providers and engines send.

mod error_body;

use offpeak_core::outcome::Ending;
use offpeak_core::retry::{self, Class};

use error_body::ErrorBody;

/// The account's money or quota is used up: a 429 of this kind is not one to hammer, and comes without `Retry-After`.
const EXHAUSTED: [&str; 7] = [
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "billing_error",
    "enforced_spend_limit_reached",
    "contract_spend_limit_reached",
    "budget_exceeded",
];

/// The offer has no room, which is not charged.
const NO_ROOM: [&str; 2] = ["resource_unavailable", "flex_resource_unavailable"];

/// How flex processing says so.
const NO_ROOM_WORDS: [&str; 1] = ["resource unavailable"];

/// Names of failures that pass, whatever their status.
const TEMPORARY: [&str; 9] = [
    "rate_limit_exceeded",
    "rate_limit_error",
    "overloaded_error",
    "server_error",
    "internal_error",
    "timeout_error",
    "api_error",
    "conflict_error",
    "lock_timeout",
];

/// Names of failures that do not pass, whatever their status.
const PERMANENT: [&str; 10] = [
    "context_length_exceeded",
    "model_not_found",
    "content_filter",
    "content_policy_violation",
    "invalid_api_key",
    "invalid_prompt",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
];

/// Engines that ran out of memory say so with all kinds of status; with fewer requests beside it the same one runs.
const OUT_OF_MEMORY: [&str; 4] =
    ["out of memory", "outofmemoryerror", "kv cache is full", "no available memory for the cache blocks"];

/// What an attempt means.
pub fn class_of(ending: &Ending, body: &[u8]) -> Class {
    match ending {
        Ending::Answered { status: 200..=299 } => Class::Permanent,
        Ending::Answered { status } => of_answer(*status, &ErrorBody::read(body)),
        Ending::Failed { code, .. } if EXHAUSTED.contains(&code.as_str()) => Class::Exhausted,
        // Whether it ran tells the rest.
        Ending::Failed { .. } => retry::class_of(ending),
    }
}

fn of_answer(status: u16, error: &ErrorBody) -> Class {
    if error.is_named(&EXHAUSTED) || status == 402 {
        return Class::Exhausted;
    }
    if error.is_named(&NO_ROOM) || (status == 429 && error.says(&NO_ROOM_WORDS)) {
        return Class::NoRoom;
    }
    if error.is_named(&PERMANENT) {
        return Class::Permanent;
    }
    if error.says(&OUT_OF_MEMORY) {
        return Class::Temporary;
    }
    match status {
        501 | 505 => Class::Permanent,
        // 409 is a lock that somebody else holds; 425 comes before its time; 529 is an overloaded provider.
        408 | 409 | 425 | 429 | 500..=599 => Class::Temporary,
        _ if error.is_named(&TEMPORARY) => Class::Temporary,
        _ => Class::Permanent,
    }
}

#[cfg(test)]
mod tests {
    use offpeak_core::outcome::DidItRun;

    use super::*;

    const TEMPORARY: Class = Class::Temporary;

    fn answer(status: u16, body: &str) -> Class {
        class_of(&Ending::Answered { status }, body.as_bytes())
    }

    fn failure(ran: DidItRun, code: &str) -> Class {
        class_of(&Ending::Failed { ran, code: code.to_owned(), message: String::new() }, b"")
    }

    #[test]
    fn openai() {
        for (status, body, meaning) in [
            (
                429,
                r#"{"error":{"message":"Rate limit reached for gpt-4o-mini in organization org-x on tokens per min (TPM): Limit 200000, Used 199000, Requested 3000. Please try again in 600ms.","type":"tokens","param":null,"code":"rate_limit_exceeded"}}"#,
                TEMPORARY,
            ),
            (
                429,
                r#"{"error":{"message":"You exceeded your current quota, please check your plan and billing details.","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#,
                Class::Exhausted,
            ),
            (
                429,
                r#"{"error":{"message":"Resource Unavailable: flex processing has no capacity at the moment.","type":"invalid_request_error","param":null,"code":"resource_unavailable"}}"#,
                Class::NoRoom,
            ),
            (
                429,
                r#"{"error":{"message":"Resource Unavailable","type":"requests","param":null,"code":null}}"#,
                Class::NoRoom,
            ),
            (
                400,
                r#"{"error":{"message":"This model's maximum context length is 128000 tokens. However, your messages resulted in 150000 tokens.","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}"#,
                Class::Permanent,
            ),
            (
                400,
                r#"{"error":{"message":"We could not parse the JSON body of your request.","type":"invalid_request_error","param":null,"code":null}}"#,
                Class::Permanent,
            ),
            (
                400,
                r#"{"error":{"message":"The response was filtered.","type":"invalid_request_error","param":"prompt","code":"content_filter"}}"#,
                Class::Permanent,
            ),
            (
                401,
                r#"{"error":{"message":"Incorrect API key provided.","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}"#,
                Class::Permanent,
            ),
            (
                404,
                r#"{"error":{"message":"The model `gpt-9` does not exist or you do not have access to it.","type":"invalid_request_error","param":null,"code":"model_not_found"}}"#,
                Class::Permanent,
            ),
            (
                500,
                r#"{"error":{"message":"The server had an error while processing your request. Sorry about that!","type":"server_error","param":null,"code":null}}"#,
                TEMPORARY,
            ),
            (
                503,
                r#"{"error":{"message":"Slow Down","type":"server_error","param":null,"code":null}}"#,
                TEMPORARY,
            ),
            (408, "", TEMPORARY),
            (
                409,
                r#"{"error":{"message":"Another process is currently operating on this resource.","type":"invalid_request_error","param":null,"code":null}}"#,
                TEMPORARY,
            ),
            (502, "<html><head><title>502 Bad Gateway</title></head></html>", TEMPORARY),
        ] {
            assert_eq!(answer(status, body), meaning, "{status} {body}");
        }
    }

    #[test]
    fn anthropic() {
        for (status, body, meaning) in [
            (
                529,
                r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"req_1"}"#,
                TEMPORARY,
            ),
            (
                429,
                r#"{"type":"error","error":{"type":"rate_limit_error","message":"This request would exceed your organization's rate limit of 50,000 input tokens per minute."}}"#,
                TEMPORARY,
            ),
            (
                429,
                r#"{"type":"error","error":{"type":"rate_limit_error","message":"Spend limit reached.","details":{"error_code":"enforced_spend_limit_reached"}}}"#,
                Class::Exhausted,
            ),
            (
                402,
                r#"{"type":"error","error":{"type":"billing_error","message":"Your credit balance is too low."}}"#,
                Class::Exhausted,
            ),
            (
                400,
                r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 215000 tokens > 200000 maximum"}}"#,
                Class::Permanent,
            ),
            (
                413,
                r#"{"type":"error","error":{"type":"request_too_large","message":"Request exceeds the maximum size"}}"#,
                Class::Permanent,
            ),
            (
                401,
                r#"{"type":"error","error":{"type":"authentication_error","message":"invalid x-api-key"}}"#,
                Class::Permanent,
            ),
            (
                500,
                r#"{"type":"error","error":{"type":"api_error","message":"Internal server error"}}"#,
                TEMPORARY,
            ),
            (
                504,
                r#"{"type":"error","error":{"type":"timeout_error","message":"Request timed out"}}"#,
                TEMPORARY,
            ),
        ] {
            assert_eq!(answer(status, body), meaning, "{status} {body}");
        }
    }

    #[test]
    fn engines() {
        for (status, body, meaning) in [
            (
                500,
                r#"{"error":{"message":"CUDA out of memory. Tried to allocate 2.00 GiB.","type":"InternalServerError","param":null,"code":500}}"#,
                TEMPORARY,
            ),
            (
                400,
                r#"{"object":"error","message":"torch.OutOfMemoryError: CUDA out of memory.","type":"BadRequestError","code":400}"#,
                TEMPORARY,
            ),
            (
                503,
                r#"{"error":{"message":"The server is overloaded: too many queued requests.","type":"ServiceUnavailableError","code":503}}"#,
                TEMPORARY,
            ),
            (400, r#"{"detail":"body is not valid JSON"}"#, Class::Permanent),
            (
                404,
                r#"{"error":{"message":"The model `x` does not exist.","type":"NotFoundError","code":404}}"#,
                Class::Permanent,
            ),
            (429, r#"{"error":"Model is overloaded"}"#, TEMPORARY),
        ] {
            assert_eq!(answer(status, body), meaning, "{status} {body}");
        }
    }

    #[test]
    fn what_never_became_an_answer() {
        for (ran, code, meaning) in [
            (DidItRun::Refused, "batch_expired", TEMPORARY),
            (DidItRun::Refused, "batch_cancelled", TEMPORARY),
            (DidItRun::NotSent, "backend_unreachable", TEMPORARY),
            (DidItRun::Unknown, "backend_timeout", TEMPORARY),
            (DidItRun::Unknown, "result_missing", TEMPORARY),
            (DidItRun::NotSent, "insufficient_quota", Class::Exhausted),
            (DidItRun::Refused, "permanent:model_not_found", Class::Permanent),
            (DidItRun::Refused, "cancelled", Class::Permanent),
            (DidItRun::Ran, "garbage", Class::Permanent),
        ] {
            assert_eq!(failure(ran, code), meaning, "{code}");
        }
    }

    #[test]
    fn a_body_that_is_cut_off_is_still_read_for_words() {
        assert_eq!(answer(400, r#"{"error":{"message":"CUDA out of memory while"#), TEMPORARY);
        assert_eq!(answer(400, "\u{fffd}\0"), Class::Permanent);
    }
}
