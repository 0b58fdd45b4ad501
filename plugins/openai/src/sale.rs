//! What the provider sells, and how a real-time call is sent.

use offpeak_plugin::{
    Mode, Offer,
    provider::{BatchLimits, BodyPlan, Call, Member, Prepared, Refusal},
};

use crate::{config::Config, dialect::Dialect, lines};

/// The offer for answers at once, at the list price.
const STANDARD: &str = "standard";
/// The offer for answers at once, as far as there is room, at half of it.
const FLEX: &str = "flex";
/// The offer for many answers within a day, at half of it.
const BATCH: &str = "batch";

const LIST_PRICE_PERMILLE: u32 = 1000;
const HALF_PRICE_PERMILLE: u32 = 500;

/// The ladder of offers for a model at an endpoint.
pub(crate) fn offers(endpoint: &str, model: &str, config: &Config, dialect: &Dialect) -> Vec<Offer> {
    if !dialect.endpoints.contains(&endpoint) {
        return Vec::new();
    }
    let now = |name: &str, price_permille, usual_ms| Offer {
        name: name.to_owned(),
        mode: Mode::Realtime,
        price_permille,
        window_ms: 0,
        usual_ms,
    };
    let mut offers = vec![now(STANDARD, LIST_PRICE_PERMILLE, config.standard_usual.ms())];
    if dialect.tiered_endpoints.contains(&endpoint) && config.flex.covers(model) {
        offers.push(now(FLEX, HALF_PRICE_PERMILLE, config.flex_usual.ms()));
    }
    if config.batch {
        offers.push(Offer {
            name: BATCH.to_owned(),
            mode: Mode::Batch,
            price_permille: HALF_PRICE_PERMILLE,
            window_ms: dialect.window_ms,
            usual_ms: config.batch_usual.ms(),
        });
    }
    offers
}

/// The limits of a batch; none for other offers.
pub(crate) fn limits(endpoint: &str, offer: &str, config: &Config, dialect: &Dialect) -> Option<BatchLimits> {
    (config.batch && offer == BATCH && dialect.endpoints.contains(&endpoint)).then(|| BatchLimits {
        max_requests: config.max_requests.unwrap_or(dialect.max_requests),
        max_bytes: config.max_bytes.unwrap_or(dialect.max_bytes),
        item_overhead_bytes: lines::overhead_bytes(endpoint),
        max_batches_an_hour: config.max_batches_an_hour.unwrap_or(dialect.max_batches_an_hour),
    })
}

/// What to send for a real-time call.
pub(crate) fn prepare(call: &Call, config: &Config, dialect: &Dialect) -> Result<Prepared, Refusal> {
    if !dialect.endpoints.contains(&call.endpoint.as_str()) {
        return Err(Refusal {
            code: "unsupported_endpoint".to_owned(),
            message: format!("{} is not one of {}.", call.endpoint, dialect.endpoints.join(", ")),
        });
    }
    let offers = offers(&call.endpoint, &call.model, config, dialect);
    let offer = offers.iter().find(|offer| offer.name == call.offer && offer.mode == Mode::Realtime);
    let Some(offer) = offer else {
        let names =
            offers.iter().filter(|offer| offer.mode == Mode::Realtime).map(|offer| offer.name.as_str());
        return Err(Refusal {
            code: "unknown_offer".to_owned(),
            message: format!(
                "`{}` is not sold in real time for `{}` at {}; there is {}.",
                call.offer,
                call.model,
                call.endpoint,
                names.collect::<Vec<_>>().join(", ")
            ),
        });
    };
    let body = if offer.name == FLEX {
        BodyPlan::SetMembers(vec![Member { name: "service_tier".to_owned(), json: "\"flex\"".to_owned() }])
    } else {
        BodyPlan::Unchanged
    };
    Ok(Prepared { path: call.endpoint.clone(), set_headers: Vec::new(), remove_headers: Vec::new(), body })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Flex, dialect::OPENAI};

    const CHAT: &str = "/v1/chat/completions";

    fn names(offers: &[Offer]) -> Vec<&str> {
        offers.iter().map(|offer| offer.name.as_str()).collect()
    }

    fn call(endpoint: &str, offer: &str) -> Call {
        Call { endpoint: endpoint.into(), model: "m".into(), offer: offer.into() }
    }

    #[test]
    fn the_ladder_follows_the_configuration() {
        let config = Config::default();
        assert_eq!(names(&offers(CHAT, "m", &config, &OPENAI)), ["standard", "batch"]);
        let config = Config { flex: Flex::All(true), ..config };
        assert_eq!(names(&offers(CHAT, "m", &config, &OPENAI)), ["standard", "flex", "batch"]);
        assert_eq!(names(&offers("/v1/embeddings", "m", &config, &OPENAI)), ["standard", "batch"]);
        assert!(offers("/v1/audio/speech", "m", &config, &OPENAI).is_empty());
        let config = Config { batch: false, flex: Flex::Models(vec!["n".into()]), ..config };
        assert_eq!(names(&offers(CHAT, "m", &config, &OPENAI)), ["standard"]);
        assert_eq!(names(&offers(CHAT, "n", &config, &OPENAI)), ["standard", "flex"]);
    }

    #[test]
    fn only_batches_have_limits_and_they_can_be_lowered() {
        let config = Config { max_requests: Some(7), ..Config::default() };
        let limits_of = |offer| limits(CHAT, offer, &config, &OPENAI);
        assert_eq!(limits_of("standard"), None);
        let limits = limits_of("batch").unwrap();
        assert_eq!((limits.max_requests, limits.max_bytes), (7, 200_000_000));
    }

    #[test]
    fn flex_sets_the_tier_and_standard_changes_nothing() {
        let config = Config { flex: Flex::All(true), ..Config::default() };
        let standard = prepare(&call(CHAT, "standard"), &config, &OPENAI).unwrap();
        assert_eq!((standard.path.as_str(), &standard.body), (CHAT, &BodyPlan::Unchanged));
        let flex = prepare(&call(CHAT, "flex"), &config, &OPENAI).unwrap();
        let tier = Member { name: "service_tier".into(), json: "\"flex\"".into() };
        assert_eq!(flex.body, BodyPlan::SetMembers(vec![tier]));
    }

    #[test]
    fn what_is_not_sold_in_real_time_is_refused_with_the_reason() {
        let config = Config::default();
        for (call, code) in [
            (call("/v1/audio/speech", "standard"), "unsupported_endpoint"),
            (call(CHAT, "batch"), "unknown_offer"),
            (call(CHAT, "flex"), "unknown_offer"),
        ] {
            let refusal = prepare(&call, &config, &OPENAI).unwrap_err();
            assert_eq!(refusal.code, code, "{}", refusal.message);
        }
    }
}
