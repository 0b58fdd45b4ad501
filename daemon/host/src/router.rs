//! The world `router`: decides how a request is run.

use crate::{
    Engine, HostError, Limits, PluginError, Source,
    bindings::router::{Router, RouterPre},
    plugin::{Pace, Plugin, plugin_of},
    values::router::{Candidate, Decision, Description, Envelope},
};

plugin_of!(RouterPlugin, world Router, "router", "offpeak:plugin/routing@0.1.0", RouterPre);

/// A plugin of the world `router`, loaded and ready. Calls may come from many threads at once; to swap a plugin, load
/// the new one beside it and replace the handle.
pub struct RouterPlugin {
    plugin: Plugin<Router>,
    description: Description,
}

impl RouterPlugin {
    /// Loads a router and asks it to describe itself. `config_json` is the plugin's own table as the text of one JSON
    /// object; `now_ms` is the time in milliseconds since 1970.
    pub fn load(
        engine: &Engine,
        name: &str,
        source: Source<'_>,
        config_json: String,
        limits: Limits,
        now_ms: u64,
    ) -> Result<Self, HostError> {
        let plugin = Plugin::<Router>::load(engine, name, source, config_json, limits)?;
        let description = plugin.call(
            "describe",
            Pace::Step,
            now_ms,
            |store, world| world.offpeak_plugin_routing().call_describe(store),
            |_| Ok(()),
        )?;
        Ok(Self { plugin, description })
    }

    /// Of late its decisions took so long that others on the same thread notice it: ask it where nobody waits behind it.
    pub fn is_slow(&self, now_ms: u64) -> bool {
        self.plugin.is_slow(now_ms)
    }

    /// Decides how one request is run. What it chose is among the candidates, and a rejection has a status that is one.
    pub fn route(
        &self,
        envelope: &Envelope<'_>,
        candidates: &[Candidate<'_>],
        now_ms: u64,
    ) -> Result<Decision, PluginError> {
        self.plugin.call(
            "route",
            Pace::Request,
            now_ms,
            |store, world| world.offpeak_plugin_routing().call_route(store, envelope.clone(), candidates),
            |decision| check(decision, candidates),
        )
    }
}

/// The longest that a choice may give a request: what a caller may say, too.
const WITHIN_MAX_MS: u64 = 365 * 24 * 3_600_000;

/// Bytes of a lane's name: it is kept in one record, with much else that tells lanes apart.
const LANE_MAX: usize = 4096;

/// Whether a decision can be followed.
fn check(decision: &Decision, candidates: &[Candidate<'_>]) -> Result<(), String> {
    match decision {
        Decision::Choose(choice) if choice.within_ms.is_some_and(|within| within > WITHIN_MAX_MS) => {
            Err("it gave the request more than 365 days".to_owned())
        }
        Decision::Choose(choice) if choice.lane.len() > LANE_MAX => {
            Err(format!("it named a lane by {} bytes; {LANE_MAX} are the most", choice.lane.len()))
        }
        Decision::Choose(choice) => {
            let seller = candidates.iter().find(|candidate| candidate.backend == choice.backend);
            let offers = seller.map(|seller| seller.offers).unwrap_or_default();
            if offers.iter().any(|offer| offer.name == choice.offer) {
                return Ok(());
            }
            // A plugin's words may be as long as its answers.
            let shown = |text: &str| text.chars().take(100).collect::<String>();
            let (backend, offer) = (shown(&choice.backend), shown(&choice.offer));
            Err(format!(
                "it chose the offer {offer:?} of the backend {backend:?}, which is not among the candidates: {}",
                listed(candidates)
            ))
        }
        Decision::Reject(rejection) if !(400..600).contains(&rejection.status) => {
            Err(format!("it rejected with the status {}; that is one from 400 to 599", rejection.status))
        }
        Decision::Reject(_) | Decision::Pass => Ok(()),
    }
}

/// What there is to choose from, so far as a line holds it.
fn listed(candidates: &[Candidate<'_>]) -> String {
    const MOST: usize = 10;
    let pairs =
        candidates.iter().flat_map(|seller| seller.offers.iter().map(|offer| (seller.backend, offer.name)));
    let count = pairs.clone().count();
    let shown: Vec<String> =
        pairs.take(MOST).map(|(backend, offer)| format!("{offer:?} of {backend:?}")).collect();
    match (shown.as_slice(), count.saturating_sub(MOST)) {
        ([], _) => "there are none".to_owned(),
        (shown, 0) => shown.join(", "),
        (shown, more) => format!("{}, and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::router::{Choice, Mode, Offer};

    #[test]
    fn what_is_chosen_is_among_the_candidates_and_its_time_and_lane_are_bounded() {
        let offers = ["standard", "flex"].map(|name| Offer {
            name,
            mode: Mode::Realtime,
            price_permille: 1000,
            window_ms: 0,
            usual_ms: 0,
        });
        let candidates = [Candidate { backend: "openai", healthy: true, offers: &offers }];
        let said = |offer: &str, within_ms, lane: &str| {
            let choice =
                Choice { backend: "openai".into(), offer: offer.into(), within_ms, lane: lane.into() };
            check(&Decision::Choose(choice), &candidates).err().unwrap_or_default()
        };
        assert_eq!(said("flex", Some(WITHIN_MAX_MS), &"é".repeat(LANE_MAX / 2)), "");
        let unknown = "it chose the offer \"gratis\" of the backend \"openai\", which is not among the candidates: \
                       \"standard\" of \"openai\", \"flex\" of \"openai\"";
        assert_eq!(said("gratis", None, ""), unknown);
        assert!(said("flex", Some(WITHIN_MAX_MS + 1), "").contains("365 days"));
        assert_eq!(
            said("flex", None, &"x".repeat(LANE_MAX + 1)),
            "it named a lane by 4097 bytes; 4096 are the most"
        );
        let many = [(); 6].map(|()| Candidate { backend: "b", healthy: true, offers: &offers });
        assert!(listed(&many).ends_with(", and 2 more"), "{}", listed(&many));
        assert_eq!(listed(&[]), "there are none");
    }
}
