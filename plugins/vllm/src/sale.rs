//! What an engine offers, and how calls to it look. It speaks OpenAI's API, so bodies pass as they are.

use offpeak_plugin::{
    Mode, Offer,
    provider::{Answer, AnswerPlan, BodyPlan, Call, Member, Prepared, Refusal},
};
use serde::Deserialize;

use crate::config::Config;

/// The offer for answers at once.
const STANDARD: &str = "standard";
/// The offer for answers when the engine has nothing better to do.
const IDLE: &str = "idle";

/// The ladder of offers: the same for every model.
pub fn offers(endpoint: &str, config: &Config) -> Vec<Offer> {
    if !config.kind().endpoints.contains(&endpoint) {
        return Vec::new();
    }
    let offer = |name: &str, mode, price_permille, usual_ms| Offer {
        name: name.to_owned(),
        mode,
        price_permille,
        window_ms: 0,
        usual_ms,
    };
    vec![
        offer(STANDARD, Mode::Realtime, 1000, config.standard_usual_ms),
        offer(IDLE, Mode::Engine, config.idle_price_permille, config.idle_usual_ms),
    ]
}

/// What to send.
pub fn prepare(call: &Call, config: &Config) -> Result<Prepared, Refusal> {
    let kind = config.kind();
    let refuse = |code: &str, message: String| Refusal { code: code.to_owned(), message, param: None };
    if !kind.endpoints.contains(&call.endpoint.as_str()) {
        let message = format!("{} is not one of {}.", call.endpoint, kind.endpoints.join(", "));
        return Err(refuse("unsupported_endpoint", message));
    }
    let is_idle = match call.offer.as_str() {
        STANDARD => false,
        IDLE => true,
        other => {
            let message = format!("`{other}` is not offered by an engine; there is {STANDARD}, {IDLE}.");
            return Err(refuse("unknown_offer", message));
        }
    };
    let takes_priority = is_idle && kind.prioritised.contains(&call.endpoint.as_str());
    let body = match config.priority.filter(|_| takes_priority) {
        Some(priority) => {
            BodyPlan::SetMembers(vec![Member { name: "priority".to_owned(), json: priority.to_string() }])
        }
        None => BodyPlan::Unchanged,
    };
    Ok(Prepared {
        path: call.endpoint.clone(),
        set_headers: Vec::new(),
        default_headers: Vec::new(),
        remove_headers: Vec::new(),
        body,
        // Deferred work is kept as an answer for good, so what only looks like one is found out.
        answer: if is_idle { AnswerPlan::Rewrite } else { AnswerPlan::Unchanged },
    })
}

/// vLLM answers what it drops on its way down with status 200 and half a text. That is no answer: it becomes the failure
/// that it is, after which the request is sent again.
pub fn check_answer(answer: Answer) -> Answer {
    #[derive(Deserialize)]
    struct Completion {
        choices: Vec<Choice>,
    }
    #[derive(Deserialize)]
    struct Choice {
        finish_reason: Option<String>,
    }
    const ABORT: &[u8] = b"\"abort\"";
    let may_be = answer.status == 200 && answer.body.windows(ABORT.len()).any(|part| part == ABORT);
    let is_aborted = may_be
        && serde_json::from_slice::<Completion>(&answer.body).is_ok_and(|completion| {
            completion.choices.iter().any(|choice| choice.finish_reason.as_deref() == Some("abort"))
        });
    if !is_aborted {
        return answer;
    }
    let error = serde_json::json!({"error": {
        "message": "The engine stopped while it worked on this request (finish_reason \"abort\").",
        "type": "server_error",
        "param": null,
        "code": "engine_aborted",
    }});
    Answer {
        status: 503,
        content_type: Some("application/json".to_owned()),
        body: error.to_string().into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::KindName;

    fn call(endpoint: &str, offer: &str) -> Call {
        Call { endpoint: endpoint.into(), model: "m".into(), offer: offer.into() }
    }

    fn answer(text: &str) -> Answer {
        Answer { status: 200, content_type: Some("application/json".into()), body: text.into() }
    }

    #[test]
    fn every_endpoint_has_both_offers() {
        let config = Config::default();
        let offers = offers("/v1/embeddings", &config);
        let modes: Vec<_> = offers.iter().map(|offer| (offer.name.as_str(), offer.mode)).collect();
        assert_eq!(modes, [("standard", Mode::Realtime), ("idle", Mode::Engine)]);
        assert!(super::offers("/v1/moderations", &config).is_empty());
    }

    #[test]
    fn deferred_requests_go_last_where_the_engine_knows_priorities() {
        let config = Config { priority: Some(10), ..Config::default() };
        let plan = |endpoint, offer| prepare(&call(endpoint, offer), &config).unwrap().body;
        let priority = Member { name: "priority".into(), json: "10".into() };
        assert_eq!(plan("/v1/completions", "idle"), BodyPlan::SetMembers(vec![priority]));
        assert_eq!(plan("/v1/completions", "standard"), BodyPlan::Unchanged);
        assert_eq!(plan("/v1/embeddings", "idle"), BodyPlan::Unchanged);
        let config = Config { engine: KindName::Llamacpp, ..config };
        assert_eq!(prepare(&call("/v1/completions", "idle"), &config).unwrap().body, BodyPlan::Unchanged);
    }

    #[test]
    fn what_is_not_served_is_refused() {
        let code = |endpoint, offer| prepare(&call(endpoint, offer), &Config::default()).unwrap_err().code;
        assert_eq!(code("/v1/audio/speech", "standard"), "unsupported_endpoint");
        assert_eq!(code("/v1/completions", "batch"), "unknown_offer");
    }

    #[test]
    fn half_an_answer_is_a_failure() {
        let aborted = r#"{"choices":[{"index":0,"text":"Once upon","finish_reason":"abort"}]}"#;
        let failed = check_answer(answer(aborted));
        assert_eq!(failed.status, 503);
        assert!(String::from_utf8(failed.body).unwrap().contains("engine_aborted"));
        for whole in [
            r#"{"choices":[{"message":{"content":"say \"abort\""},"finish_reason":"stop"}]}"#,
            r#"{"choices":[{"finish_reason":"length"}],"note":"abort"}"#,
            r#"{"data":[{"embedding":"abort"}]}"#,
            "\"abort\"",
        ] {
            assert_eq!(check_answer(answer(whole)), answer(whole));
        }
    }
}
