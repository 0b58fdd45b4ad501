//! What a failure means, by the error bodies that providers and engines send.

use offpeak_plugin::{
    DidItRun,
    retry_policy::{Attempt, Ending, Failure, Meaning},
};

use crate::{Config, error_body::ErrorBody};

/// The account's money or quota is used up: a 429 of this kind is not one to hammer, and comes without `Retry-After`.
/// So is a credential that the backend does not know: what is wrong is the account, and somebody has to mend it.
const EXHAUSTED: [&str; 8] = [
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "billing_error",
    "enforced_spend_limit_reached",
    "contract_spend_limit_reached",
    "budget_exceeded",
    "backend_refused_credential",
];

/// The same where no name tells it: Anthropic's API calls an account without credit an invalid request.
const EXHAUSTED_WORDS: [&str; 1] = ["credit balance is too low"];

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

/// The offer is not one for this model: the names that batches fail with.
const NOT_SOLD: [&str; 3] = ["offer_not_sold", "model_not_supported", "batch_not_supported"];

/// How OpenAI says so, under the code of a model that is none.
const NOT_SOLD_WORDS: [&str; 1] = ["not supported by the batch api"];

/// The provider found fault with one request of a batch before it ran any. Alone it is told what it is, and the others are rid
/// of it.
const LINE_REFUSED: &str = "line_refused";

/// The members of a request that say how it is bought; an error about one of them is about the offer.
const OFFER_MEMBERS: [&str; 3] = ["service_tier", "background", "background_options"];

/// The offer that every model has: its errors are never about the offer.
const STANDARD: &str = "standard";

/// Provider plugins and the daemon mark with it what would come again.
const MARKED_PERMANENT: &str = "permanent:";

/// The code of what somebody wanted to end.
const CANCELLED: &str = "cancelled";

/// What an attempt that did not succeed means.
pub fn judge(attempt: &Attempt, config: &Config) -> Meaning {
    match &attempt.ending {
        Ending::Answered(status) => of_answer(*status, &attempt.body, &attempt.offer, config),
        Ending::Failed(failure) => of_failure(failure, config),
    }
}

/// What the configuration says of an error's names, if anything.
fn configured(is_named: impl Fn(&[String]) -> bool, config: &Config) -> Option<Meaning> {
    [
        (&config.permanent, Meaning::Permanent),
        (&config.temporary, Meaning::Temporary(None)),
        (&config.elsewhere, Meaning::Elsewhere),
        (&config.run_now, Meaning::RunNow),
    ]
    .into_iter()
    .find_map(|(names, meaning)| is_named(names).then_some(meaning))
}

fn of_answer(status: u16, body: &[u8], offer: &str, config: &Config) -> Meaning {
    let error = ErrorBody::read(body);
    if let Some(meaning) = configured(|names| error.is_named(names), config) {
        return meaning;
    }
    if error.is_named(&EXHAUSTED) || status == 402 || error.says(&EXHAUSTED_WORDS) {
        return Meaning::Exhausted;
    }
    if error.is_named(&NO_ROOM) || (status == 429 && error.says(&NO_ROOM_WORDS)) {
        return Meaning::NoRoom;
    }
    let is_about_the_offer = OFFER_MEMBERS.iter().any(|member| error.is_about(member));
    if offer != STANDARD && matches!(status, 400 | 404 | 422) && is_about_the_offer {
        return Meaning::NotSold;
    }
    if error.is_named(&PERMANENT) {
        return Meaning::Permanent;
    }
    if error.says(&OUT_OF_MEMORY) {
        return Meaning::Temporary(None);
    }
    match status {
        501 | 505 => Meaning::Permanent,
        // 409 is a lock that somebody else holds; 425 comes before its time; 529 is an overloaded provider.
        408 | 409 | 425 | 429 | 500..=599 => Meaning::Temporary(None),
        _ if error.is_named(&TEMPORARY) => Meaning::Temporary(None),
        _ => Meaning::Permanent,
    }
}

fn of_failure(failure: &Failure, config: &Config) -> Meaning {
    let code = failure.code.strip_prefix(MARKED_PERMANENT).unwrap_or(&failure.code);
    if let Some(meaning) = configured(|names| names.iter().any(|name| name == code), config) {
        return meaning;
    }
    let message = failure.message.to_lowercase();
    if EXHAUSTED.contains(&code) || EXHAUSTED_WORDS.iter().any(|words| message.contains(words)) {
        return Meaning::Exhausted;
    }
    if NOT_SOLD.contains(&code) || NOT_SOLD_WORDS.iter().any(|words| message.contains(words)) {
        return Meaning::NotSold;
    }
    if code == LINE_REFUSED {
        return Meaning::RunNow;
    }
    if failure.code.starts_with(MARKED_PERMANENT) || code == CANCELLED {
        return Meaning::Permanent;
    }
    match failure.ran {
        // It never ran: expired, cancelled with its batch, not sent. Or nobody knows: its answer cannot be had any more, and
        // the daemon puts the decision to send it again on record.
        DidItRun::NotSent | DidItRun::Refused | DidItRun::Unknown => Meaning::Temporary(None),
        DidItRun::Ran => Meaning::Permanent,
    }
}

#[cfg(test)]
mod tests {
    use offpeak_plugin::Mode;

    use super::*;

    const TEMPORARY: Meaning = Meaning::Temporary(None);

    fn attempt(offer: &str, ending: Ending, body: &str) -> Attempt {
        Attempt {
            backend: "b".into(),
            endpoint: "/v1/chat/completions".into(),
            model: "m".into(),
            offer: offer.into(),
            mode: Mode::Batch,
            ending,
            body: body.as_bytes().to_vec(),
            attempts: 1,
            retry_after_ms: None,
            left_ms: 3_600_000,
        }
    }

    fn answer(status: u16, body: &str) -> Meaning {
        judge(&attempt("batch", Ending::Answered(status), body), &Config::default())
    }

    fn failure(ran: DidItRun, code: &str) -> Meaning {
        let failure = Failure { ran, code: code.to_owned(), message: String::new() };
        judge(&attempt("batch", Ending::Failed(failure), ""), &Config::default())
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
                Meaning::Exhausted,
            ),
            (
                429,
                r#"{"error":{"message":"Resource Unavailable: flex processing has no capacity at the moment.","type":"invalid_request_error","param":null,"code":"resource_unavailable"}}"#,
                Meaning::NoRoom,
            ),
            (
                429,
                r#"{"error":{"message":"Resource Unavailable","type":"requests","param":null,"code":null}}"#,
                Meaning::NoRoom,
            ),
            (
                400,
                r#"{"error":{"message":"This model's maximum context length is 128000 tokens. However, your messages resulted in 150000 tokens.","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}"#,
                Meaning::Permanent,
            ),
            (
                400,
                r#"{"error":{"message":"We could not parse the JSON body of your request.","type":"invalid_request_error","param":null,"code":null}}"#,
                Meaning::Permanent,
            ),
            (
                400,
                r#"{"error":{"message":"The response was filtered.","type":"invalid_request_error","param":"prompt","code":"content_filter"}}"#,
                Meaning::Permanent,
            ),
            (
                401,
                r#"{"error":{"message":"Incorrect API key provided.","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}"#,
                Meaning::Permanent,
            ),
            (
                404,
                r#"{"error":{"message":"The model `gpt-9` does not exist or you do not have access to it.","type":"invalid_request_error","param":null,"code":"model_not_found"}}"#,
                Meaning::Permanent,
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
            (
                400,
                r#"{"error":{"message":"The response was filtered due to the prompt triggering Azure OpenAI's content management policy. Please modify your prompt and retry.","type":null,"param":"prompt","code":"content_filter","status":400,"innererror":{"code":"ResponsibleAIPolicyViolation","content_filter_result":{"hate":{"filtered":false,"severity":"safe"},"violence":{"filtered":true,"severity":"medium"}}}}}"#,
                Meaning::Permanent,
            ),
            (
                400,
                r#"{"error":{"message":"Invalid prompt: your prompt was flagged as potentially violating our usage policy.","type":"invalid_request_error","param":null,"code":"invalid_prompt"}}"#,
                Meaning::Permanent,
            ),
            (
                403,
                r#"{"error":{"code":"unsupported_country_region_territory","message":"Country, region, or territory not supported","param":null,"type":"request_forbidden"}}"#,
                Meaning::Permanent,
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
                Meaning::Exhausted,
            ),
            (
                402,
                r#"{"type":"error","error":{"type":"billing_error","message":"Your credit balance is too low."}}"#,
                Meaning::Exhausted,
            ),
            (
                400,
                r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 215000 tokens > 200000 maximum"}}"#,
                Meaning::Permanent,
            ),
            (
                400,
                r#"{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or purchase credits."},"request_id":"req_1"}"#,
                Meaning::Exhausted,
            ),
            (
                400,
                r#"{"type":"error","error":{"type":"invalid_request_error","message":"Output blocked by content filtering policy"}}"#,
                Meaning::Permanent,
            ),
            (
                400,
                r#"{"type":"error","error":{"type":"invalid_request_error","message":"messages: at least one message is required"}}"#,
                Meaning::Permanent,
            ),
            (
                403,
                r#"{"type":"error","error":{"type":"permission_error","message":"Your API key does not have permission to use the specified resource."}}"#,
                Meaning::Permanent,
            ),
            (
                404,
                r#"{"type":"error","error":{"type":"not_found_error","message":"model: claude-9"},"request_id":"req_1"}"#,
                Meaning::Permanent,
            ),
            (
                409,
                r#"{"type":"error","error":{"type":"conflict_error","message":"The resource is being changed by another request."}}"#,
                TEMPORARY,
            ),
            (
                413,
                r#"{"type":"error","error":{"type":"request_too_large","message":"Request exceeds the maximum size"}}"#,
                Meaning::Permanent,
            ),
            (
                401,
                r#"{"type":"error","error":{"type":"authentication_error","message":"invalid x-api-key"}}"#,
                Meaning::Permanent,
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
                424,
                r#"{"error":"Request failed during generation: Server error: CUDA out of memory. Tried to allocate 1.50 GiB.","error_type":"generation"}"#,
                TEMPORARY,
            ),
            (
                503,
                r#"{"error":{"message":"The server is overloaded: too many queued requests.","type":"ServiceUnavailableError","code":503}}"#,
                TEMPORARY,
            ),
            (400, r#"{"detail":"body is not valid JSON"}"#, Meaning::Permanent),
            (
                404,
                r#"{"error":{"message":"The model `x` does not exist.","type":"NotFoundError","code":404}}"#,
                Meaning::Permanent,
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
            (DidItRun::NotSent, "insufficient_quota", Meaning::Exhausted),
            (DidItRun::Refused, "permanent:model_not_found", Meaning::Permanent),
            (DidItRun::Refused, "cancelled", Meaning::Permanent),
            (DidItRun::Ran, "garbage", Meaning::Permanent),
        ] {
            assert_eq!(failure(ran, code), meaning, "{code}");
        }
    }

    #[test]
    fn a_batch_of_an_account_without_credit_is_exhausted_and_not_wrong() {
        let message = "Your credit balance is too low to access the Anthropic API.".to_owned();
        let code = "permanent:invalid_request_error".to_owned();
        let failed = Ending::Failed(Failure { ran: DidItRun::Refused, code, message });
        assert_eq!(judge(&attempt("batch", failed, ""), &Config::default()), Meaning::Exhausted);
    }

    #[test]
    fn a_body_that_is_cut_off_is_still_read_for_words() {
        assert_eq!(answer(400, r#"{"error":{"message":"CUDA out of memory while"#), TEMPORARY);
        assert_eq!(answer(400, "\u{fffd}\0"), Meaning::Permanent);
    }

    #[test]
    fn what_is_not_sold_for_a_model_is_told_from_what_the_caller_did_wrong() {
        let flex = r#"{"error":{"message":"Invalid service_tier argument: flex is not available for this model.","type":"invalid_request_error","param":"service_tier","code":"unsupported_value"}}"#;
        let window = r#"{"error":{"message":"This model does not support completion windows.","type":"invalid_request_error","param":"background_options.completion_window","code":"unsupported_value"}}"#;
        let judge_at = |offer, body| judge(&attempt(offer, Ending::Answered(400), body), &Config::default());
        assert_eq!(judge_at("flex", flex), Meaning::NotSold);
        assert_eq!(judge_at("background-8h", window), Meaning::NotSold);
        assert_eq!(judge_at("standard", flex), Meaning::Permanent, "the caller asked for that tier");
        assert_eq!(
            judge_at(
                "flex",
                r#"{"error":{"message":"no","type":"invalid_request_error","param":"background_color","code":null}}"#
            ),
            Meaning::Permanent
        );
        assert_eq!(failure(DidItRun::Refused, "permanent:model_not_supported"), Meaning::NotSold);
        let said = Failure {
            ran: DidItRun::Refused,
            code: "permanent:model_not_found".into(),
            message: "The provided model 'o9' is not supported by the Batch API.".into(),
        };
        assert_eq!(judge(&attempt("batch", Ending::Failed(said), ""), &Config::default()), Meaning::NotSold);
        assert_eq!(failure(DidItRun::Refused, "line_refused"), Meaning::RunNow);
        assert_eq!(failure(DidItRun::Refused, "backend_refused_credential"), Meaning::Exhausted);
    }

    #[test]
    fn the_configuration_has_the_last_word() {
        let config = Config {
            temporary: vec!["odd".into()],
            permanent: vec!["server_error".into()],
            elsewhere: vec!["region_down".into()],
            run_now: vec!["batch_expired".into()],
        };
        let answered = |status, body: &str| judge(&attempt("batch", Ending::Answered(status), body), &config);
        assert_eq!(answered(400, r#"{"error":{"code":"odd","message":""}}"#), TEMPORARY);
        assert_eq!(answered(500, r#"{"error":{"type":"server_error","message":""}}"#), Meaning::Permanent);
        assert_eq!(answered(503, r#"{"error":{"code":"region_down"}}"#), Meaning::Elsewhere);
        let expired =
            Failure { ran: DidItRun::Refused, code: "batch_expired".into(), message: String::new() };
        assert_eq!(judge(&attempt("batch", Ending::Failed(expired), ""), &config), Meaning::RunNow);
    }
}
