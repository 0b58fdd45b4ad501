//! What the provider sells, and how a real-time call is sent.

use offpeak_plugin::{
    Header, Mode, Offer,
    provider::{AnswerPlan, BatchLimits, BodyPlan, Call, Prepared, Refusal},
};

use crate::{config::Config, lines};

/// Messages in Anthropic's own words.
pub(crate) const MESSAGES: &str = "/v1/messages";
/// How many tokens a message has. It costs nothing and is answered at once.
pub(crate) const COUNT_TOKENS: &str = "/v1/messages/count_tokens";

/// Chat completions in OpenAI's words, which are translated.
pub(crate) const CHAT: &str = "/v1/chat/completions";

/// The endpoints that are answered.
pub(crate) const ENDPOINTS: [&str; 3] = [MESSAGES, COUNT_TOKENS, CHAT];

/// The header that names the version of the API; the API asks for it.
pub(crate) const VERSION: &str = "anthropic-version";

/// Headers that change what a request means, or who pays for it.
pub(crate) const KEPT_HEADERS: [&str; 4] =
    [VERSION, "anthropic-beta", "anthropic-workspace-id", "anthropic-user-profile-id"];

/// The offer for answers at once, at the list price.
const STANDARD: &str = "standard";
/// The offer for many answers within a day, at half of it.
const BATCH: &str = "batch";

const LIST_PRICE_PERMILLE: u32 = 1000;
const HALF_PRICE_PERMILLE: u32 = 500;

/// Bytes by which a small body grows when it is translated; large ones grow by less than an eighth.
const TRANSLATION_BYTES: u32 = 128;

/// A batch that has not ended by then expires.
const WINDOW_MS: u64 = 24 * 3_600_000;

/// The ladder of offers at an endpoint.
pub(crate) fn offers(endpoint: &str, config: &Config) -> Vec<Offer> {
    if !ENDPOINTS.contains(&endpoint) {
        return Vec::new();
    }
    let mut offers = vec![Offer {
        name: STANDARD.to_owned(),
        mode: Mode::Realtime,
        price_permille: LIST_PRICE_PERMILLE,
        window_ms: 0,
        usual_ms: config.standard_usual.ms(),
    }];
    if has_batches(endpoint, config) {
        offers.push(Offer {
            name: BATCH.to_owned(),
            mode: Mode::Batch,
            price_permille: HALF_PRICE_PERMILLE,
            window_ms: WINDOW_MS,
            usual_ms: config.batch_usual.ms(),
        });
    }
    offers
}

fn has_batches(endpoint: &str, config: &Config) -> bool {
    config.batch && endpoint != COUNT_TOKENS && ENDPOINTS.contains(&endpoint)
}

/// The limits of a batch; none for other offers.
pub(crate) fn limits(endpoint: &str, offer: &str, config: &Config) -> Option<BatchLimits> {
    let (max_bytes, item_overhead_bytes) = if endpoint == CHAT {
        (config.max_bytes / 8 * 7, lines::overhead_bytes() + TRANSLATION_BYTES)
    } else {
        (config.max_bytes, lines::overhead_bytes())
    };
    (offer == BATCH && has_batches(endpoint, config)).then_some(BatchLimits {
        max_requests: config.max_requests,
        max_bytes,
        item_overhead_bytes,
        max_batches_an_hour: config.max_batches_an_hour,
    })
}

/// What to send for a real-time call.
pub(crate) fn prepare(call: &Call, config: &Config) -> Result<Prepared, Refusal> {
    if !ENDPOINTS.contains(&call.endpoint.as_str()) {
        return Err(Refusal {
            code: "unsupported_endpoint".to_owned(),
            message: format!("{} is not one of {}.", call.endpoint, ENDPOINTS.join(", ")),
            param: None,
        });
    }
    if call.offer != STANDARD {
        return Err(Refusal {
            code: "unknown_offer".to_owned(),
            message: format!("`{}` is not sold in real time; there is {STANDARD}.", call.offer),
            param: None,
        });
    }
    let version = vec![Header { name: VERSION.to_owned(), value: config.version.clone() }];
    let unchanged = Prepared {
        path: call.endpoint.clone(),
        set_headers: Vec::new(),
        default_headers: version.clone(),
        remove_headers: Vec::new(),
        body: BodyPlan::Unchanged,
        answer: AnswerPlan::Unchanged,
    };
    if call.endpoint != CHAT {
        return Ok(unchanged);
    }
    // What is written here is written for one version of the API.
    Ok(Prepared {
        path: MESSAGES.to_owned(),
        set_headers: version,
        default_headers: Vec::new(),
        body: BodyPlan::Rewrite,
        answer: AnswerPlan::Rewrite,
        ..unchanged
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(offers: &[Offer]) -> Vec<&str> {
        offers.iter().map(|offer| offer.name.as_str()).collect()
    }

    fn call(endpoint: &str, offer: &str) -> Call {
        Call { endpoint: endpoint.into(), model: "m".into(), offer: offer.into() }
    }

    #[test]
    fn tokens_are_counted_in_real_time_only() {
        let config = Config::default();
        assert_eq!(names(&offers(MESSAGES, &config)), ["standard", "batch"]);
        assert_eq!(names(&offers(COUNT_TOKENS, &config)), ["standard"]);
        assert!(offers("/v1/embeddings", &config).is_empty());
        assert!(limits(MESSAGES, "batch", &config).is_some());
        assert_eq!(limits(MESSAGES, "standard", &config), None);
        assert_eq!(limits(COUNT_TOKENS, "batch", &config), None);
        let config = Config { batch: false, ..config };
        assert_eq!(names(&offers(MESSAGES, &config)), ["standard"]);
        assert_eq!(limits(MESSAGES, "batch", &config), None);
    }

    #[test]
    fn messages_pass_as_they_are_with_a_version() {
        let prepared = prepare(&call(MESSAGES, "standard"), &Config::default()).unwrap();
        assert_eq!((prepared.body, prepared.answer), (BodyPlan::Unchanged, AnswerPlan::Unchanged));
        let [version] = &prepared.default_headers[..] else { panic!("{:?}", prepared.default_headers) };
        assert_eq!((version.name.as_str(), version.value.as_str()), (VERSION, "2023-06-01"));
        assert!(prepared.set_headers.is_empty(), "the client's own version counts");
    }

    #[test]
    fn chat_completions_become_messages() {
        let prepared = prepare(&call(CHAT, "standard"), &Config::default()).unwrap();
        assert_eq!(prepared.path, MESSAGES);
        assert_eq!((prepared.body, prepared.answer), (BodyPlan::Rewrite, AnswerPlan::Rewrite));
        assert_eq!(prepared.set_headers[0].name, VERSION);
        assert_eq!(names(&offers(CHAT, &Config::default())), ["standard", "batch"]);
    }

    #[test]
    fn what_is_not_sold_in_real_time_is_refused_with_the_reason() {
        for (call, code) in [
            (call("/v1/embeddings", "standard"), "unsupported_endpoint"),
            (call(MESSAGES, "batch"), "unknown_offer"),
            (call(MESSAGES, "flex"), "unknown_offer"),
        ] {
            assert_eq!(prepare(&call, &Config::default()).unwrap_err().code, code);
        }
    }
}
