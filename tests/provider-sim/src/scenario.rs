//! The conditions under which a provider works, as one piece of data that can be exchanged while it runs.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::SimTime;
use crate::config::{Limits, Pace, RealtimeLimits, Timing};
use crate::faults::{Fault, Faults, HttpRule, Target, TargetGroup};
use crate::stalls::{Stall, Stalls};

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;

/// How a provider behaves: how long deferred work takes, what it limits, what goes wrong, and what it does not sell.
///
/// As JSON every part may be left out; it is then as it usually is. Times of day are provider milliseconds since the
/// start of the simulation.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scenario {
    /// How long deferred work takes.
    pub timing: Timing,
    /// What is limited.
    pub limits: Limits,
    /// What goes wrong.
    pub faults: Faults,
    /// What is not sold.
    pub not_sold: NotSold,
}

/// Models, by name, that lack an offer; `*` stands for all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NotSold {
    /// Without `service_tier: flex`.
    pub flex: BTreeSet<String>,
    /// Without the 2 h and 8 h windows of background responses.
    pub background_windows: BTreeSet<String>,
}

/// A scenario as the endpoints use it; the faults are with [`crate::FaultControl`].
#[derive(Debug)]
pub(crate) struct Conditions {
    pub(crate) timing: Timing,
    pub(crate) limits: Limits,
    pub(crate) not_sold: NotSold,
    pub(crate) stalls: Stalls,
}

impl Conditions {
    pub(crate) fn of(scenario: Scenario, epoch: SimTime) -> Self {
        let Scenario { timing, limits, not_sold, faults: _ } = scenario;
        Self { stalls: Stalls::new(epoch, &timing.stalls), timing, limits, not_sold }
    }
}

impl NotSold {
    pub(crate) fn names(models: &BTreeSet<String>, model: &str) -> bool {
        models.contains(model) || models.contains("*")
    }
}

/// A scenario with a name, and what it is like.
struct Named {
    name: &'static str,
    make: fn(&mut Scenario),
}

/// Those that can be asked for by name; what they are like is told by [`Scenario::named`].
const NAMED: [Named; 10] = [
    Named { name: "healthy", make: |_| {} },
    Named { name: "slow_tail", make: |it| it.timing.pace = Pace::SlowTail { permille: 50, times: 8 } },
    Named {
        name: "stall",
        make: |it| it.timing.stalls = vec![Stall { from_ms: 10 * MINUTE_MS, until_ms: 6 * HOUR_MS }],
    },
    Named { name: "expiring", make: |it| it.timing.pace = Pace::Expiring { done_permille: 700 } },
    Named {
        name: "tight_quota",
        make: |it| {
            it.limits.realtime =
                RealtimeLimits { requests_per_minute: Some(60), tokens_per_minute: Some(40_000) };
        },
    },
    Named { name: "tight_enqueued", make: |it| it.limits.enqueued_tokens = Some(200_000) },
    Named {
        name: "storm_429",
        make: |it| {
            let fault = Fault::Status { status: 429, retry_after_ms: Some(20_000) };
            it.faults.http = vec![storm(fault, 10 * MINUTE_MS, 40 * MINUTE_MS)];
        },
    },
    Named {
        name: "storm_5xx",
        make: |it| {
            let fault = Fault::Status { status: 503, retry_after_ms: None };
            it.faults.http = vec![storm(fault, 10 * MINUTE_MS, 40 * MINUTE_MS)];
        },
    },
    Named { name: "flex_scarce", make: |it| it.faults.flex_unavailable = 0.8 },
    Named { name: "no_flex", make: |it| it.not_sold.flex = BTreeSet::from(["*".to_owned()]) },
];

fn storm(fault: Fault, from_ms: u64, until_ms: u64) -> HttpRule {
    HttpRule {
        on: Target::Group(TargetGroup::Any),
        fault,
        probability: 0.9,
        from_ms: Some(from_ms),
        until_ms: Some(until_ms),
    }
}

impl Scenario {
    /// A ready scenario:
    /// - `healthy`: the defaults;
    /// - `slow_tail`: one item of twenty takes up to 8 times as long as the batch should;
    /// - `stall`: from minute 10 to hour 6 no batch makes progress;
    /// - `expiring`: of each batch 70 % is done, then nothing until it expires;
    /// - `tight_quota`: 60 requests and 40,000 tokens a minute of each model in real time;
    /// - `tight_enqueued`: 200,000 prompt tokens of a model may wait in batches;
    /// - `storm_429`, `storm_5xx`: from minute 10 to 40 nine calls of ten are refused;
    /// - `flex_scarce`: four flex requests of five are refused for want of resources;
    /// - `no_flex`: no model is sold as flex.
    pub fn named(name: &str) -> Option<Self> {
        let named = NAMED.iter().find(|named| named.name == name)?;
        let mut scenario = Self::default();
        (named.make)(&mut scenario);
        Some(scenario)
    }

    /// The names that [`Scenario::named`] knows.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMED.iter().map(|named| named.name)
    }

    /// The same scenario with all its times of day `by` later: what is written as from the start then counts from there.
    #[must_use]
    pub fn later(mut self, by: Duration) -> Self {
        let by = crate::clock::millis(by);
        for Stall { from_ms, until_ms } in &mut self.timing.stalls {
            *from_ms = from_ms.saturating_add(by);
            *until_ms = until_ms.saturating_add(by);
        }
        for rule in &mut self.faults.http {
            rule.from_ms = rule.from_ms.map(|ms| ms.saturating_add(by));
            rule.until_ms = rule.until_ms.map(|ms| ms.saturating_add(by));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_its_scenario_and_survives_json() {
        assert_eq!(Scenario::named("healthy"), Some(Scenario::default()));
        assert_eq!(Scenario::named("who"), None);
        for name in Scenario::names() {
            let scenario = Scenario::named(name).unwrap();
            assert_eq!(scenario == Scenario::default(), name == "healthy", "{name}");
            let text = serde_json::to_string(&scenario).unwrap();
            assert_eq!(serde_json::from_str::<Scenario>(&text).unwrap(), scenario, "{name}");
        }
    }

    #[test]
    fn a_scenario_reads_from_json() {
        let text = r#"{"timing":{"turnaround_ms":[60000,120000],"pace":{"kind":"slow_tail","permille":10,"times":3},
            "stalls":[{"from_ms":1,"until_ms":2}]},"limits":{"realtime":{"tokens_per_minute":1000},
            "enqueued_tokens_of":{"m":5}},"not_sold":{"flex":["m"]}}"#;
        let scenario: Scenario = serde_json::from_str(text).unwrap();
        assert_eq!(scenario.timing.turnaround, Duration::from_mins(1)..=Duration::from_mins(2));
        assert_eq!(scenario.timing.validation, Timing::default().validation);
        assert_eq!(scenario.limits.realtime.tokens_per_minute, Some(1_000));
        assert!(
            NotSold::names(&scenario.not_sold.flex, "m") && !NotSold::names(&scenario.not_sold.flex, "n")
        );
        assert!(serde_json::from_str::<Scenario>(r#"{"timing":{"turnaround":1}}"#).is_err());
        let later = scenario.later(Duration::from_secs(1));
        assert_eq!(later.timing.stalls, [Stall { from_ms: 1_001, until_ms: 1_002 }]);
    }
}
