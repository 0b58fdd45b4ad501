//! Which offer is bought for a request.

use std::cmp::Reverse;

use offpeak_plugin::{
    Mode, Offer,
    router::{Candidate, Envelope, Sla, Tag},
};

use crate::{Config, Trust};

/// The standard real-time price, in thousandths of itself.
const LIST_PRICE_PERMILLE: u32 = 1000;

/// The offer that stands for the API's own `service_tier: "flex"`.
const FLEX: &str = "flex";

/// An offer, and who makes it.
#[derive(Debug, Clone, Copy)]
pub struct Chosen<'a> {
    /// The backend.
    pub candidate: &'a Candidate,
    /// One of its offers.
    pub offer: &'a Offer,
}

/// Chooses for a request. None if it must be answered now and nobody sells that.
///
/// - Backends that take no work are considered only if the others sell nothing that will do.
/// - An answer that must come now is bought at the list price, at the first backend that sells it.
/// - A request that came with the API's own flex tag gets the flex offer if that keeps the deadline.
/// - All else gets the cheapest offer that keeps the deadline; of equal ones the faster, then the first in the
///   configuration. If none keeps it, the fastest.
/// - An answer that is wanted in pieces cannot be kept for later: deferred offers are not considered for it.
pub fn choose<'a>(envelope: &Envelope, candidates: &'a [Candidate], config: &Config) -> Option<Chosen<'a>> {
    [true, false].into_iter().find_map(|healthy| {
        let now_only = envelope.stream || envelope.sla == Sla::Realtime;
        let usable = candidates
            .iter()
            .filter(|candidate| candidate.healthy == healthy)
            .flat_map(|candidate| candidate.offers.iter().map(move |offer| Chosen { candidate, offer }))
            .filter(|chosen| !now_only || chosen.offer.mode == Mode::Realtime);
        match envelope.sla {
            Sla::Realtime => choose_now(usable, envelope.tag),
            Sla::Within(ms) => choose_within(ms, usable, envelope.tag, config),
        }
    })
}

/// The first backend's offer at the list price. `usable` holds real-time offers only.
fn choose_now<'a>(usable: impl Iterator<Item = Chosen<'a>> + Clone, tag: Tag) -> Option<Chosen<'a>> {
    if tag == Tag::Api
        && let Some(flex) = usable.clone().find(|chosen| chosen.offer.name == FLEX)
    {
        return Some(flex);
    }
    let first = usable.clone().next()?.candidate;
    usable.filter(|chosen| std::ptr::eq(chosen.candidate, first)).min_by_key(|chosen| now_rank(chosen.offer))
}

/// The list price before higher ones, and those before reduced ones, which are slower. Smallest is best.
fn now_rank(offer: &Offer) -> (bool, u64, bool, u32, Reverse<u32>) {
    let reduced = offer.price_permille < LIST_PRICE_PERMILLE;
    let (rising, falling) = if reduced { (0, offer.price_permille) } else { (offer.price_permille, 0) };
    (offer.window_ms > 0, offer.window_ms, reduced, rising, Reverse(falling))
}

/// The cheapest offer that keeps the deadline, or the fastest.
fn choose_within<'a>(
    deadline_ms: u64,
    usable: impl Iterator<Item = Chosen<'a>> + Clone,
    tag: Tag,
    config: &Config,
) -> Option<Chosen<'a>> {
    let fitting =
        usable.clone().filter(|chosen| expected_ms(chosen.offer, config) <= u128::from(deadline_ms));
    if tag == Tag::Api
        && let Some(flex) = fitting.clone().find(|chosen| chosen.offer.name == FLEX)
    {
        return Some(flex);
    }
    fitting.min_by_key(|chosen| (chosen.offer.price_permille, chosen.offer.usual_ms)).or_else(|| {
        usable.min_by_key(|chosen| (expected_ms(chosen.offer, config), chosen.offer.price_permille))
    })
}

/// The time an offer is reckoned to take.
pub(crate) fn expected_ms(offer: &Offer, config: &Config) -> u128 {
    match config.trust {
        Trust::Window if offer.window_ms > 0 => u128::from(offer.window_ms),
        Trust::Window | Trust::Usual => {
            u128::from(offer.usual_ms) * u128::from(config.safety.permille()) / 1000
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1000;
    const HOUR: u64 = 3_600 * SECOND;

    fn offer(name: &str, mode: Mode, price_permille: u32, window_ms: u64, usual_ms: u64) -> Offer {
        Offer { name: name.into(), mode, price_permille, window_ms, usual_ms }
    }

    fn standard() -> Offer {
        offer("standard", Mode::Realtime, 1000, 0, 2 * SECOND)
    }

    fn priority() -> Offer {
        offer("priority", Mode::Realtime, 2000, 0, SECOND)
    }

    fn flex() -> Offer {
        offer("flex", Mode::Realtime, 500, 0, 60 * SECOND)
    }

    fn batch() -> Offer {
        offer("batch", Mode::Batch, 500, 24 * HOUR, HOUR)
    }

    fn backend(name: &str, offers: &[Offer]) -> Candidate {
        Candidate { backend: name.into(), healthy: true, offers: offers.to_vec() }
    }

    fn sick(name: &str, offers: &[Offer]) -> Candidate {
        Candidate { healthy: false, ..backend(name, offers) }
    }

    fn envelope(sla: Sla, tag: Tag, stream: bool) -> Envelope {
        Envelope {
            tenant: "t".into(),
            endpoint: "/v1/chat/completions".into(),
            model: "m".into(),
            sla,
            tag,
            stream,
            body_bytes: 100,
            input_tokens: 25,
            max_output_tokens: None,
            headers: vec![],
            body: None,
        }
    }

    fn pick(envelope: &Envelope, candidates: &[Candidate], config: &Config) -> String {
        choose(envelope, candidates, config)
            .map_or_else(|| "nothing".to_owned(), |c| format!("{}/{}", c.candidate.backend, c.offer.name))
    }

    #[test]
    fn table() {
        type Case = (&'static str, Sla, Tag, bool, Vec<Candidate>, &'static str);

        let ladder = || backend("a", &[priority(), batch(), flex(), standard()]);
        let now = Sla::Realtime;
        let within = Sla::Within;
        let cases: Vec<Case> = vec![
            ("now: list price, not priority", now, Tag::Default, false, vec![ladder()], "a/standard"),
            ("now, streamed", now, Tag::Default, true, vec![ladder()], "a/standard"),
            (
                "now: priority if nothing else",
                now,
                Tag::Header,
                false,
                vec![backend("a", &[flex(), priority()])],
                "a/priority",
            ),
            (
                "now: flex if nothing else",
                now,
                Tag::Header,
                false,
                vec![backend("a", &[batch(), flex()])],
                "a/flex",
            ),
            ("now: nobody sells it", now, Tag::Header, false, vec![backend("a", &[batch()])], "nothing"),
            (
                "now: the first backend in the configuration",
                now,
                Tag::Default,
                false,
                vec![backend("a", &[batch()]), backend("b", &[standard()]), backend("c", &[standard()])],
                "b/standard",
            ),
            (
                "now: a healthy one before a sick one",
                now,
                Tag::Default,
                false,
                vec![sick("a", &[standard()]), backend("b", &[standard()])],
                "b/standard",
            ),
            (
                "now: a sick one before none",
                now,
                Tag::Default,
                false,
                vec![backend("a", &[batch()]), sick("b", &[standard()])],
                "b/standard",
            ),
            ("now, flex asked for", now, Tag::Api, false, vec![ladder()], "a/flex"),
            (
                "a day: cheapest, of equal ones the faster",
                within(24 * HOUR),
                Tag::Header,
                false,
                vec![ladder()],
                "a/flex",
            ),
            (
                "a day, no flex: batch",
                within(24 * HOUR),
                Tag::Header,
                false,
                vec![backend("a", &[standard(), batch()])],
                "a/batch",
            ),
            (
                "an hour and a half: batch just fits",
                within(HOUR + HOUR / 2),
                Tag::Header,
                false,
                vec![backend("a", &[standard(), batch()])],
                "a/batch",
            ),
            (
                "a little less: it does not",
                within(HOUR + HOUR / 2 - 1),
                Tag::Header,
                false,
                vec![backend("a", &[standard(), batch()])],
                "a/standard",
            ),
            (
                "a second: nothing fits, the fastest",
                within(SECOND),
                Tag::Header,
                false,
                vec![ladder()],
                "a/priority",
            ),
            (
                "a day, streamed: never deferred",
                within(24 * HOUR),
                Tag::Header,
                true,
                vec![backend("a", &[standard(), batch()])],
                "a/standard",
            ),
            (
                "a day, streamed, by default: flex counts",
                within(24 * HOUR),
                Tag::Default,
                true,
                vec![ladder()],
                "a/flex",
            ),
            (
                "streamed and only deferred",
                within(24 * HOUR),
                Tag::Default,
                true,
                vec![backend("a", &[batch()])],
                "nothing",
            ),
            (
                "the cheaper backend, whatever the order",
                within(24 * HOUR),
                Tag::Metadata,
                false,
                vec![backend("a", &[standard()]), backend("b", &[batch()])],
                "b/batch",
            ),
            (
                "equal: the first in the configuration",
                within(24 * HOUR),
                Tag::Metadata,
                false,
                vec![backend("a", &[batch()]), backend("b", &[batch()])],
                "a/batch",
            ),
            (
                "flex asked for: not the slower, cheaper one",
                within(24 * HOUR),
                Tag::Api,
                false,
                vec![
                    backend("a", &[offer("batch", Mode::Batch, 400, 24 * HOUR, HOUR)]),
                    backend("b", &[flex()]),
                ],
                "b/flex",
            ),
            (
                "flex asked for, but it is too slow",
                within(30 * SECOND),
                Tag::Api,
                false,
                vec![backend("a", &[flex(), standard()])],
                "a/standard",
            ),
            (
                "all are sick: still the cheapest",
                within(24 * HOUR),
                Tag::Header,
                false,
                vec![sick("a", &[standard()]), sick("b", &[batch()])],
                "b/batch",
            ),
        ];
        for (what, sla, tag, stream, candidates, expected) in cases {
            assert_eq!(
                pick(&envelope(sla, tag, stream), &candidates, &Config::default()),
                expected,
                "{what}"
            );
        }
    }

    #[test]
    fn a_promise_is_held_to_its_word_when_windows_are_trusted() {
        let config = Config { trust: Trust::Window, ..Config::default() };
        let candidates = [backend("a", &[standard(), batch()])];
        let day = envelope(Sla::Within(24 * HOUR), Tag::Header, false);
        assert_eq!(pick(&day, &candidates, &config), "a/batch");
        let less = envelope(Sla::Within(24 * HOUR - 1), Tag::Header, false);
        assert_eq!(pick(&less, &candidates, &config), "a/standard");
    }

    fn any_offer() -> impl Strategy<Value = Offer> {
        let mode =
            prop_oneof![Just(Mode::Realtime), Just(Mode::Background), Just(Mode::Batch), Just(Mode::Engine)];
        let price = prop_oneof![0_u32..3000, Just(500), Just(1000)];
        let time = prop_oneof![0_u64..100_000, any::<u64>()];
        ("[a-c]|flex|standard", mode, price, time.clone(), time)
            .prop_map(|(name, mode, price, window, usual)| offer(&name, mode, price, window, usual))
    }

    fn any_candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let candidate = ("[a-z]", any::<bool>(), proptest::collection::vec(any_offer(), 0..5))
            .prop_map(|(backend, healthy, offers)| Candidate { backend, healthy, offers });
        proptest::collection::vec(candidate, 1..5)
    }

    fn any_envelope() -> impl Strategy<Value = Envelope> {
        let sla = prop_oneof![
            Just(Sla::Realtime),
            (0_u64..200_000).prop_map(Sla::Within),
            any::<u64>().prop_map(Sla::Within)
        ];
        let tag = prop_oneof![Just(Tag::Header), Just(Tag::Metadata), Just(Tag::Api), Just(Tag::Default)];
        (sla, tag, any::<bool>()).prop_map(|(sla, tag, stream)| envelope(sla, tag, stream))
    }

    fn any_config() -> impl Strategy<Value = Config> {
        (any::<bool>(), 1.0_f64..10.0).prop_map(|(usual, safety)| Config {
            trust: if usual { Trust::Usual } else { Trust::Window },
            safety: safety.try_into().unwrap(),
        })
    }

    proptest! {
        #[test]
        fn whatever_is_asked(envelope in any_envelope(), candidates in any_candidates(), config in any_config()) {
            let now_only = envelope.stream || envelope.sla == Sla::Realtime;
            let usable = |candidate: &&Candidate| {
                candidate.offers.iter().any(|offer| !now_only || offer.mode == Mode::Realtime)
            };
            let Some(chosen) = choose(&envelope, &candidates, &config) else {
                prop_assert!(!candidates.iter().any(|c| usable(&c)), "something could have been had");
                return Ok(());
            };

            // What is chosen is on offer, and runs now if it must.
            prop_assert!(candidates.contains(chosen.candidate));
            prop_assert!(chosen.candidate.offers.contains(chosen.offer));
            prop_assert!(!now_only || chosen.offer.mode == Mode::Realtime);

            // The sick only if the healthy have nothing.
            if !chosen.candidate.healthy {
                prop_assert!(!candidates.iter().any(|c| c.healthy && usable(&c)));
            }

            // Nobody else among its equals keeps the deadline for less, and if nobody keeps it, nobody is faster.
            let Sla::Within(deadline) = envelope.sla else { return Ok(()) };
            let fits = |offer: &Offer| expected_ms(offer, &config) <= u128::from(deadline);
            let flex_asked_for = envelope.tag == Tag::Api && chosen.offer.name == FLEX;
            for other in candidates.iter().filter(|c| c.healthy == chosen.candidate.healthy).flat_map(|c| &c.offers) {
                if now_only && other.mode != Mode::Realtime {
                    continue;
                }
                if fits(other) {
                    prop_assert!(fits(chosen.offer), "{other:?} keeps the deadline");
                    let cheaper = other.price_permille < chosen.offer.price_permille;
                    prop_assert!(!cheaper || flex_asked_for, "{other:?} is cheaper and fits");
                } else if !fits(chosen.offer) {
                    prop_assert!(expected_ms(other, &config) >= expected_ms(chosen.offer, &config));
                }
            }
        }
    }
}
