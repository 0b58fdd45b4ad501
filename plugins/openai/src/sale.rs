//! What the provider sells, and how a real-time call is sent.

use offpeak_plugin::{
    Duration, Mode, Offer,
    provider::{AnswerPlan, BatchLimits, BodyPlan, Call, Member, Prepared, Refusal},
};

use crate::{config::Config, dialect::Line, lines, protocol::background};

/// The offer for answers at once, at the list price.
const STANDARD: &str = "standard";
/// The offer for answers at once, as far as there is room, at half of it.
const FLEX: &str = "flex";
/// The offer for many answers within a day or so, at a part of it.
const BATCH: &str = "batch";

const LIST_PRICE_PERMILLE: u32 = 1000;

/// The ladder of offers for a model at an endpoint.
pub(crate) fn offers(endpoint: &str, model: &str, config: &Config) -> Vec<Offer> {
    let dialect = config.dialect();
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
    if dialect.tiered_endpoints.contains(&endpoint) {
        let flex = dialect.flex_price_permille.filter(|_| config.flex.covers(model));
        if let Some(price_permille) = flex.filter(|_| !config.tiers.contains_key(FLEX)) {
            offers.push(now(FLEX, price_permille, config.flex_usual.ms()));
        }
        let tiers = config.tiers.iter().filter(|(_, tier)| tier.models.covers(model));
        offers.extend(tiers.map(|(name, tier)| now(name, tier.price_permille, tier.usual.ms())));
    }
    offers.extend(windows(endpoint, model, config).map(|window| Offer {
        name: window.offer.to_owned(),
        mode: Mode::Background,
        price_permille: window.price_permille,
        window_ms: window.ms,
        usual_ms: config.background_usual.map_or(window.ms / 4, Duration::ms),
    }));
    if let Some((api, price_permille)) =
        config.batches(model).filter(|(api, _)| api.endpoints.contains(&endpoint))
    {
        offers.push(Offer {
            name: BATCH.to_owned(),
            mode: Mode::Batch,
            price_permille,
            window_ms: config.window(api).1,
            usual_ms: config.batch_usual.ms(),
        });
    }
    offers
}

/// The windows that responses in the background are sold with.
fn windows(endpoint: &str, model: &str, config: &Config) -> impl Iterator<Item = background::Window> {
    let is_sold =
        config.dialect().has_windows && endpoint == background::ENDPOINT && config.background.covers(model);
    background::WINDOWS.into_iter().filter(move |_| is_sold)
}

/// The limits of a batch, or of what is run in the background; none for other offers.
pub(crate) fn limits(endpoint: &str, model: &str, offer: &str, config: &Config) -> Option<BatchLimits> {
    if windows(endpoint, model, config).any(|window| window.offer == offer) {
        return Some(background::limits());
    }
    let (api, _) = config.batches(model)?;
    if offer != BATCH || !api.endpoints.contains(&endpoint) {
        return None;
    }
    let name = config.batch_model_name(model).filter(|_| api.line != Line::BareWithoutModel);
    Some(BatchLimits {
        max_requests: config.max_requests.unwrap_or(api.max_requests),
        max_bytes: config.max_bytes.unwrap_or(api.max_bytes),
        item_overhead_bytes: lines::overhead_bytes(endpoint, name),
        max_batches_an_hour: config.max_batches_an_hour.unwrap_or(api.max_batches_an_hour),
    })
}

/// What to send for a real-time call.
pub(crate) fn prepare(call: &Call, config: &Config) -> Result<Prepared, Refusal> {
    let endpoints = config.dialect().endpoints;
    if !endpoints.contains(&call.endpoint.as_str()) {
        return Err(Refusal {
            code: "unsupported_endpoint".to_owned(),
            message: format!("{} is not one of {}.", call.endpoint, endpoints.join(", ")),
            param: None,
        });
    }
    let offers = offers(&call.endpoint, &call.model, config);
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
            param: None,
        });
    };
    let member = |name: &str, value: &str| Member {
        name: name.to_owned(),
        json: serde_json::Value::from(value).to_string(),
    };
    let tier = (offer.name != STANDARD).then(|| member("service_tier", &offer.name));
    let model = config.model_name(&call.model).map(|name| member("model", name));
    let members: Vec<Member> = tier.into_iter().chain(model).collect();
    let body = if members.is_empty() { BodyPlan::Unchanged } else { BodyPlan::SetMembers(members) };
    Ok(Prepared {
        path: config.path(&call.endpoint),
        set_headers: Vec::new(),
        default_headers: Vec::new(),
        remove_headers: Vec::new(),
        body,
        answer: AnswerPlan::Unchanged,
    })
}

#[cfg(test)]
mod tests {
    use offpeak_plugin::parse_config;

    use super::*;
    use crate::config::{Checked, Flex};

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
        assert_eq!(names(&offers(CHAT, "m", &config)), ["standard", "batch"]);
        let config = Config { flex: Flex::All(true), ..config };
        assert_eq!(names(&offers(CHAT, "m", &config)), ["standard", "flex", "batch"]);
        assert_eq!(names(&offers("/v1/embeddings", "m", &config)), ["standard", "batch"]);
        assert!(offers("/v1/audio/speech", "m", &config).is_empty());
        let config = Config { batch: false, flex: Flex::Models(vec!["n".into()]), ..config };
        assert_eq!(names(&offers(CHAT, "m", &config)), ["standard"]);
        assert_eq!(names(&offers(CHAT, "n", &config)), ["standard", "flex"]);
    }

    #[test]
    fn responses_in_the_background_are_sold_with_their_windows_where_it_says_so() {
        let config = Config { background: Flex::Models(vec!["m".into()]), ..Config::default() };
        let sold = |endpoint, model| {
            let offers = offers(endpoint, model, &config).into_iter();
            let background = offers.filter(|offer| offer.mode == Mode::Background);
            background.map(|offer| (offer.name, offer.price_permille)).collect::<Vec<_>>()
        };
        let both = [("background-2h".to_owned(), 700), ("background-8h".to_owned(), 600)];
        assert_eq!(sold("/v1/responses", "m"), both);
        assert_eq!((sold("/v1/responses", "n"), sold(CHAT, "m")), (vec![], vec![]));
        let limits = limits("/v1/responses", "m", "background-8h", &config).unwrap();
        assert_eq!(limits.max_requests, 1);
    }

    #[test]
    fn only_batches_have_limits_and_they_can_be_lowered() {
        let config = Config { max_requests: Some(7), ..Config::default() };
        let limits_of = |offer| limits(CHAT, "m", offer, &config);
        assert_eq!(limits_of("standard"), None);
        let limits = limits_of("batch").unwrap();
        assert_eq!((limits.max_requests, limits.max_bytes), (7, 200_000_000));
    }

    #[test]
    fn flex_sets_the_tier_and_standard_changes_nothing() {
        let config = Config { flex: Flex::All(true), ..Config::default() };
        let standard = prepare(&call(CHAT, "standard"), &config).unwrap();
        assert_eq!((standard.path.as_str(), &standard.body), (CHAT, &BodyPlan::Unchanged));
        let flex = prepare(&call(CHAT, "flex"), &config).unwrap();
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
            let refusal = prepare(&call, &config).unwrap_err();
            assert_eq!(refusal.code, code, "{}", refusal.message);
        }
    }

    fn configured(json: &str) -> Config {
        parse_config::<Checked>(json).unwrap().config().clone()
    }

    fn batch_offer(json: &str, endpoint: &str, model: &str) -> Option<Offer> {
        offers(endpoint, model, &configured(json)).into_iter().find(|offer| offer.mode == Mode::Batch)
    }

    #[test]
    fn each_provider_sells_batches_at_its_price_and_in_its_time() {
        let own_name = r#""batch_model_names": {"m": "m-batch"}"#;
        for (json, expected) in [
            (r#"{"dialect": "openai"}"#.to_owned(), Some((500, 24))),
            (format!(r#"{{"dialect": "azure", {own_name}}}"#), Some((500, 24))),
            (r#"{"dialect": "azure"}"#.to_owned(), None),
            (r#"{"dialect": "deepinfra"}"#.to_owned(), Some((800, 24))),
            (r#"{"dialect": "gemini"}"#.to_owned(), None),
            (r#"{"dialect": "groq", "window": "7d"}"#.to_owned(), Some((500, 168))),
            (r#"{"dialect": "mistral", "window": "2h"}"#.to_owned(), Some((500, 2))),
            (r#"{"dialect": "novita"}"#.to_owned(), Some((500, 48))),
            (r#"{"dialect": "openrouter"}"#.to_owned(), None),
            (r#"{"dialect": "together"}"#.to_owned(), Some((500, 24))),
            (r#"{"dialect": "together", "batch": false}"#.to_owned(), None),
        ] {
            let offer = batch_offer(&json, CHAT, "m");
            let sold = offer.map(|offer| (offer.price_permille, offer.window_ms / 3_600_000));
            assert_eq!(sold, expected, "{json}");
        }
        assert!(batch_offer(r#"{"dialect": "groq"}"#, "/v1/embeddings", "m").is_none());
        let priced = r#"{"dialect": "perplexity", "batch_price_permille": 700}"#;
        assert_eq!(batch_offer(priced, "/v1/responses", "m").unwrap().price_permille, 700);
        assert!(batch_offer(priced, CHAT, "m").is_none(), "its batches take responses alone");
        assert!(
            batch_offer(r#"{"dialect": "perplexity"}"#, "/v1/responses", "m").is_none(),
            "without a price"
        );
    }

    #[test]
    fn classes_of_service_are_offers_where_their_price_is_told() {
        let config = configured(
            r#"{"dialect": "groq", "tiers": {"flex": {"price_permille": 900, "usual": "1s"},
                "performance": {"price_permille": 2000, "models": ["n"]}}}"#,
        );
        assert_eq!(names(&offers(CHAT, "m", &config)), ["standard", "flex", "batch"]);
        assert_eq!(names(&offers(CHAT, "n", &config)), ["standard", "flex", "performance", "batch"]);
        let call = Call { endpoint: CHAT.into(), model: "n".into(), offer: "performance".into() };
        let tier = Member { name: "service_tier".into(), json: "\"performance\"".into() };
        assert_eq!(prepare(&call, &config).unwrap().body, BodyPlan::SetMembers(vec![tier]));
    }

    #[test]
    fn a_call_goes_to_the_providers_path_under_the_providers_name() {
        let config = configured(r#"{"dialect": "azure", "model_names": {"m": "my \"m\""}}"#);
        let prepared = prepare(&call(CHAT, "standard"), &config).unwrap();
        assert_eq!(prepared.path, "/openai/v1/chat/completions");
        let model = Member { name: "model".into(), json: r#""my \"m\"""#.into() };
        assert_eq!(prepared.body, BodyPlan::SetMembers(vec![model]));
    }

    #[test]
    fn a_longer_name_is_reckoned_with() {
        let overhead = |json| limits(CHAT, "m", "batch", &configured(json)).unwrap().item_overhead_bytes;
        let plain = overhead("{}");
        assert!(overhead(r#"{"batch_model_names": {"m": "0123456789"}}"#) >= plain + 12);
    }
}
