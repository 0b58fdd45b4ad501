//! What goes wrong, and when: rules with probabilities, and single faults ordered in advance.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::clock::SimTime;
use crate::ids::hits;
use crate::route::Endpoint;

/// What can happen to one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// An error answer; nothing was done.
    Status {
        /// The HTTP status, such as 429, 500 or 503.
        status: u16,
        /// Real milliseconds for `Retry-After` (rounded up to seconds) and `retry-after-ms`.
        #[serde(default)]
        retry_after_ms: Option<u64>,
    },
    /// The connection breaks before anything was done.
    DropBeforeEffect,
    /// The work is done and billed, and the connection breaks before the answer.
    DropResponseAfterEffect,
    /// The work is done and billed, and the answer is an error all the same.
    StatusAfterEffect {
        /// The HTTP status, such as 500 or 504.
        status: u16,
    },
    /// The answer comes late.
    Slow {
        /// Real milliseconds.
        ms: u64,
    },
    /// The work is done and billed, and the body is not what was asked for (HTML under status 200).
    Garbage,
    /// The work is done and billed, and the answer ends half-way as if complete: a stream without its end marker.
    TruncateBody,
    /// The work is done and billed, and the connection breaks half-way through the body.
    CutBody,
    /// The work is done and billed, and a stream ends half-way with an error event; an answer in one piece is this error.
    ErrorInStream {
        /// The HTTP status that the error would have had, such as 500 or 529.
        status: u16,
    },
}

/// What can happen to a batch; drawn (or taken from those ordered) once, when the batch is created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum BatchFault {
    /// Half of the items never run, so that the batch expires.
    Stall,
    /// This many of a thousand items never run, so that the batch expires.
    LoseItems {
        /// Items of a thousand, at random.
        permille: u16,
    },
    /// The batch fails validation; where there is none (Anthropic), its creation is refused.
    FailValidation {
        /// The error's code, such as `token_limit_exceeded`.
        code: String,
    },
    /// Validation finds fault with these lines, from 1, whatever is in them.
    RefuseLines {
        /// Their numbers.
        lines: Vec<usize>,
    },
    /// The batch takes this long from creation to completion.
    Turnaround {
        /// Provider milliseconds.
        ms: u64,
    },
    /// The output file stops half-way through its last line kept.
    OutputTruncated,
    /// One line of the output file is not JSON.
    OutputGarbageLine,
    /// The output file has a line for a `custom_id` that nobody sent.
    OutputUnknownId,
    /// One line of the output file comes twice.
    OutputDuplicateId,
    /// One line of the output file is missing, though its item ran and is billed.
    OutputLostLine,
}

/// What can happen to an item of a batch; decided when the item runs. None of them is billed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ItemFault {
    /// The item is answered with this status, such as 400, 429 or 500.
    Status {
        /// The HTTP status.
        status: u16,
    },
    /// The item never became a response.
    NoResponse {
        /// The code in the line's `error`, such as `request_timeout`.
        code: String,
    },
}

/// Groups of endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetGroup {
    /// All of them.
    Any,
    /// Those that run a model on the same call.
    Realtime,
    /// Those under `/v1/files`.
    Files,
    /// Those under `/v1/batches` and `/v1/messages/batches`.
    Batches,
}

/// The calls that a rule is about: a group or one endpoint, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Target {
    /// A group of endpoints.
    Group(TargetGroup),
    /// One endpoint.
    Endpoint(Endpoint),
}

impl Target {
    fn covers(self, endpoint: Endpoint) -> bool {
        match self {
            Self::Group(TargetGroup::Any) => true,
            Self::Group(TargetGroup::Realtime) => endpoint.is_realtime(),
            Self::Group(TargetGroup::Files) => endpoint.is_files(),
            Self::Group(TargetGroup::Batches) => endpoint.is_batches(),
            Self::Endpoint(one) => one == endpoint,
        }
    }
}

fn always() -> f64 {
    1.0
}

/// A fault of calls. The first rule that hits decides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpRule {
    /// Which calls.
    pub on: Target,
    /// What happens.
    pub fault: Fault,
    /// How likely, 0 to 1; 1 when left out.
    #[serde(default = "always")]
    pub probability: f64,
    /// From when, in provider milliseconds since the start.
    #[serde(default)]
    pub from_ms: Option<u64>,
    /// Until when (exclusive), in provider milliseconds since the start.
    #[serde(default)]
    pub until_ms: Option<u64>,
}

/// A fault of batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchRule {
    /// What happens.
    pub fault: BatchFault,
    /// How likely, 0 to 1; 1 when left out.
    #[serde(default = "always")]
    pub probability: f64,
}

/// A fault of items. The first rule that hits decides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ItemRule {
    /// What happens.
    pub fault: ItemFault,
    /// How likely, 0 to 1; 1 when left out.
    #[serde(default = "always")]
    pub probability: f64,
    /// Only items whose `custom_id` contains this.
    #[serde(default)]
    pub custom_id: Option<String>,
    /// Only items whose body's text contains this.
    #[serde(default)]
    pub body: Option<String>,
    /// At most this often for each item: over all batches, it then succeeds. An item is told by its body when `body`
    /// is set, else by its `custom_id`.
    #[serde(default)]
    pub times: Option<u32>,
}

/// A fault plan. The default is none.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Faults {
    /// Faults of calls.
    pub http: Vec<HttpRule>,
    /// Faults of batches.
    pub batches: Vec<BatchRule>,
    /// Faults of items.
    pub items: Vec<ItemRule>,
    /// How long a new batch is missing from the listing, in provider milliseconds.
    pub listing_lag_ms: u64,
    /// How likely a flex request is refused for want of resources (429, not billed).
    pub flex_unavailable: f64,
    /// How likely a background response ends as `failed` (not billed); drawn when it is created.
    pub background_fails: f64,
}

/// A single fault, ordered in advance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultOrder {
    /// Which endpoint's next call.
    pub endpoint: Endpoint,
    /// What happens to it.
    pub fault: Fault,
}

/// The fault plan of a running simulation; may be changed at any time.
#[derive(Debug)]
pub struct FaultControl {
    seed: u64,
    epoch: SimTime,
    /// False while nothing can go wrong with calls, so that real-time calls need not take the lock.
    armed: AtomicBool,
    draws: AtomicU64,
    injected: [AtomicU64; Endpoint::ALL.len()],
    plan: Mutex<Plan>,
}

#[derive(Debug, Default)]
struct Plan {
    faults: Faults,
    calls: HashMap<Endpoint, VecDeque<Fault>>,
    batches: VecDeque<Vec<BatchFault>>,
    hits: HashMap<(usize, String), u32>,
    counts: BTreeMap<&'static str, u64>,
}

impl Plan {
    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }
}

impl Fault {
    const fn name(&self) -> &'static str {
        match self {
            Self::Status { status: 429, .. } => "call: 429",
            Self::Status { .. } => "call: 5xx",
            Self::DropBeforeEffect => "call: dropped before its effect",
            Self::DropResponseAfterEffect => "call: dropped after its effect",
            Self::StatusAfterEffect { .. } => "call: 5xx after its effect",
            Self::Slow { .. } => "call: slow",
            Self::Garbage => "call: garbage for an answer",
            Self::TruncateBody => "call: answer cut unnoticed",
            Self::CutBody => "call: answer broken off",
            Self::ErrorInStream { .. } => "call: error in its stream",
        }
    }
}

impl BatchFault {
    const fn name(&self) -> &'static str {
        match self {
            Self::Stall => "batch: stalls and expires",
            Self::LoseItems { .. } => "batch: items never run, expires",
            Self::FailValidation { .. } => "batch: refused at validation",
            Self::RefuseLines { .. } => "batch: refused for some lines",
            Self::Turnaround { .. } => "batch: takes its time",
            Self::OutputTruncated => "results: file cut off",
            Self::OutputGarbageLine => "results: a line is garbage",
            Self::OutputUnknownId => "results: a line of nobody",
            Self::OutputDuplicateId => "results: a line twice",
            Self::OutputLostLine => "results: a line missing",
        }
    }
}

impl ItemFault {
    const fn name(&self) -> &'static str {
        match self {
            Self::Status { status: 429 } => "item: 429",
            Self::Status { status: 500..=599 } => "item: 5xx",
            Self::Status { .. } => "item: 400",
            Self::NoResponse { .. } => "item: without a response",
        }
    }
}

impl FaultControl {
    pub(crate) fn new(seed: u64, epoch: SimTime, faults: Faults) -> Self {
        let control = Self {
            seed,
            epoch,
            armed: AtomicBool::new(false),
            draws: AtomicU64::new(0),
            injected: [const { AtomicU64::new(0) }; Endpoint::ALL.len()],
            plan: Mutex::default(),
        };
        control.set(faults);
        control
    }

    /// Replaces the rules. Faults that were ordered stay ordered.
    pub fn set(&self, faults: Faults) {
        let mut plan = self.plan.lock();
        plan.faults = faults;
        plan.hits.clear();
        self.arm(&plan);
    }

    /// Changes the rules in place.
    pub fn update(&self, change: impl FnOnce(&mut Faults)) {
        let mut plan = self.plan.lock();
        change(&mut plan.faults);
        self.arm(&plan);
    }

    /// Orders `fault` for the next call of `endpoint`. Several orders are served one call each, in order, and go before
    /// the rules.
    pub fn next(&self, endpoint: Endpoint, fault: Fault) {
        let mut plan = self.plan.lock();
        plan.calls.entry(endpoint).or_default().push_back(fault);
        self.arm(&plan);
    }

    /// Orders `faults` for the next batch that is created, in place of what the rules say.
    pub fn next_batch(&self, faults: Vec<BatchFault>) {
        self.plan.lock().batches.push_back(faults);
    }

    /// How many faults hit calls of `endpoint` so far.
    pub fn injected(&self, endpoint: Endpoint) -> u64 {
        self.injected.get(endpoint as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// How often each kind of fault has hit so far, by a name for people.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.plan.lock().counts.clone()
    }

    fn arm(&self, plan: &Plan) {
        let armed = !plan.faults.http.is_empty()
            || plan.faults.flex_unavailable > 0.0
            || plan.calls.values().any(|queue| !queue.is_empty());
        self.armed.store(armed, Ordering::Release);
    }

    /// What happens to this call.
    pub(crate) fn draw(&self, endpoint: Endpoint, now: SimTime) -> Option<Fault> {
        if !self.armed.load(Ordering::Acquire) {
            return None;
        }
        let mut plan = self.plan.lock();
        let ordered = plan.calls.get_mut(&endpoint).and_then(VecDeque::pop_front);
        let since = now.millis_since(self.epoch);
        let drawn = ordered.or_else(|| {
            plan.faults.http.iter().find(|rule| self.rule_hits(rule, endpoint, since)).map(|rule| rule.fault)
        });
        if ordered.is_some() {
            self.arm(&plan);
        }
        if let Some(fault) = &drawn {
            plan.count(fault.name());
        }
        drop(plan);
        if let (Some(_), Some(count)) = (drawn, self.injected.get(endpoint as usize)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        drawn
    }

    fn rule_hits(&self, rule: &HttpRule, endpoint: Endpoint, since: u64) -> bool {
        let during =
            rule.from_ms.is_none_or(|from| since >= from) && rule.until_ms.is_none_or(|until| since < until);
        during && rule.on.covers(endpoint) && self.chance(rule.probability)
    }

    fn chance(&self, probability: f64) -> bool {
        probability > 0.0 && hits([self.seed, 1, self.draws.fetch_add(1, Ordering::Relaxed)], probability)
    }

    /// Whether this flex request is refused for want of resources.
    pub(crate) fn flex_unavailable(&self) -> bool {
        if !self.armed.load(Ordering::Acquire) {
            return false;
        }
        let probability = self.plan.lock().faults.flex_unavailable;
        self.chance(probability)
    }

    /// Whether the background response that is being created fails.
    pub(crate) fn background_fails(&self) -> bool {
        let probability = self.plan.lock().faults.background_fails;
        self.chance(probability)
    }

    /// The rules.
    pub fn rules(&self) -> Faults {
        self.plan.lock().faults.clone()
    }

    /// What happens to the batch with this serial number.
    pub(crate) fn for_batch(&self, serial: u64) -> Vec<BatchFault> {
        let mut plan = self.plan.lock();
        let ordered = plan.batches.pop_front();
        let drawn: Vec<BatchFault> = ordered.unwrap_or_else(|| {
            let rules = plan.faults.batches.iter().zip(0_u64..);
            rules
                .filter(|(rule, n)| hits([self.seed, 2 + (n << 8), serial], rule.probability))
                .map(|(rule, _)| rule.fault.clone())
                .collect()
        });
        for fault in &drawn {
            plan.count(fault.name());
        }
        drawn
    }

    /// How long a batch created now is missing from the listing, in provider milliseconds.
    pub(crate) fn listing_lag_ms(&self) -> u64 {
        self.plan.lock().faults.listing_lag_ms
    }

    /// What happens to an item that runs now. `number` is its place in the whole simulation's order of items.
    pub(crate) fn for_item(&self, number: [u64; 2], custom_id: &str, body: &str) -> Option<ItemFault> {
        let mut plan = self.plan.lock();
        let Plan { faults, hits: counts, counts: names, .. } = &mut *plan;
        for (n, rule) in faults.items.iter().enumerate() {
            let applies = rule.custom_id.as_ref().is_none_or(|part| custom_id.contains(part.as_str()))
                && rule.body.as_ref().is_none_or(|part| body.contains(part.as_str()))
                && hits([self.seed ^ ((n as u64) << 32), number[0], number[1]], rule.probability);
            if !applies {
                continue;
            }
            if let Some(times) = rule.times {
                let item = if rule.body.is_some() { body } else { custom_id };
                let count = counts.entry((n, item.to_owned())).or_insert(0);
                if *count >= times {
                    continue;
                }
                *count += 1;
            }
            *names.entry(rule.fault.name()).or_default() += 1;
            return Some(rule.fault.clone());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(faults: Faults) -> FaultControl {
        FaultControl::new(7, SimTime(1_000), faults)
    }

    const ERROR: Fault = Fault::Status { status: 503, retry_after_ms: None };

    #[test]
    fn orders_are_served_once_and_before_the_rules() {
        let control = control(Faults::default());
        assert_eq!(control.draw(Endpoint::GetBatch, SimTime(0)), None);
        control.next(Endpoint::GetBatch, Fault::Garbage);
        control.next(Endpoint::GetBatch, ERROR);
        assert_eq!(control.draw(Endpoint::ListBatches, SimTime(0)), None);
        assert_eq!(control.draw(Endpoint::GetBatch, SimTime(0)), Some(Fault::Garbage));
        assert_eq!(control.draw(Endpoint::GetBatch, SimTime(0)), Some(ERROR));
        assert_eq!(control.draw(Endpoint::GetBatch, SimTime(0)), None);
        assert_eq!(control.injected(Endpoint::GetBatch), 2);
    }

    #[test]
    fn a_storm_has_a_beginning_and_an_end() {
        let on = Target::Group(TargetGroup::Batches);
        let rule = HttpRule { on, fault: ERROR, probability: 1.0, from_ms: Some(10), until_ms: Some(20) };
        let control = control(Faults { http: vec![rule], ..Faults::default() });
        let at = |ms: u64| control.draw(Endpoint::GetBatch, SimTime(1_000 + ms)).is_some();
        assert_eq!([at(9), at(10), at(19), at(20)], [false, true, true, false]);
        assert_eq!(control.draw(Endpoint::ChatCompletions, SimTime(1_015)), None);
    }

    #[test]
    fn an_item_fails_so_many_times_and_then_succeeds() {
        let fault = ItemFault::Status { status: 500 };
        let rule = ItemRule {
            fault: fault.clone(),
            probability: 1.0,
            custom_id: None,
            body: Some("poison".into()),
            times: Some(2),
        };
        let control = control(Faults { items: vec![rule], ..Faults::default() });
        assert_eq!(control.for_item([0, 0], "a", "fine"), None);
        assert_eq!(control.for_item([0, 1], "a", "poison 1"), Some(fault.clone()));
        assert_eq!(control.for_item([1, 0], "b", "poison 1"), Some(fault.clone()));
        assert_eq!(control.for_item([2, 0], "c", "poison 1"), None);
        assert_eq!(control.for_item([2, 1], "c", "poison 2"), Some(fault));
    }

    #[test]
    fn a_plan_reads_from_json() {
        let text = r#"{"http":[{"on":"realtime","fault":{"kind":"status","status":429,"retry_after_ms":1500},
            "probability":0.5},{"on":"create_batch","fault":{"kind":"drop_response_after_effect"}}],
            "batches":[{"fault":{"kind":"stall"},"probability":0.1}],
            "items":[{"fault":{"kind":"no_response","code":"request_timeout"},"custom_id":"x","times":1}]}"#;
        let faults: Faults = serde_json::from_str(text).unwrap();
        assert_eq!(faults.http[1].on, Target::Endpoint(Endpoint::CreateBatch));
        assert!(serde_json::from_str::<Faults>(r#"{"htp":[]}"#).is_err());
    }
}
