//! What a simulation is made from.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::{Clock, SimTime};
use crate::engine::EngineOptions;
use crate::faults::Faults;
use crate::prices::{LIST, Prices, price_of};
use crate::provider::Provider;
use crate::scenario::Scenario;
use crate::stalls::Stall;

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

/// The provider's limits. The defaults are the published ones, those of an account (`None`) are off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of one uploaded file: 512 MB.
    pub file_bytes: u64,
    /// Bytes of one batch input file: 200 MB.
    pub batch_file_bytes: u64,
    /// Lines of one batch input file: 50,000.
    pub batch_requests: usize,
    /// Inputs in all lines of one embeddings batch: 50,000.
    pub batch_embedding_inputs: usize,
    /// Batches created in an hour: 2,000.
    pub batches_per_hour: usize,
    /// Prompt tokens of a model in batches that have not ended, over all batches.
    pub enqueued_tokens: Option<u64>,
    /// As `enqueued_tokens`, for single models.
    pub enqueued_tokens_of: HashMap<String, u64>,
    /// Bytes of one call for a message: 32 MB.
    pub message_bytes: u64,
    /// Bytes of one message batch: 256 MB.
    pub message_batch_bytes: u64,
    /// Requests of one message batch: 100,000.
    pub message_batch_requests: usize,
    /// Requests waiting in message batches, over all batches.
    pub message_batch_queue: Option<usize>,
    /// Calls to `/v1` in a provider minute, for each key.
    pub requests_per_minute: Option<u32>,
    /// What each key may run of each model in real time. Windowed background responses do not count.
    pub realtime: RealtimeLimits,
    /// As `realtime`, for single models.
    pub realtime_of: HashMap<String, RealtimeLimits>,
}

/// What may run in real time in a provider minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RealtimeLimits {
    /// Requests.
    pub requests_per_minute: Option<u32>,
    /// Tokens: of each request those of the prompt, or its limit on output where that is more.
    pub tokens_per_minute: Option<u64>,
}

impl Limits {
    /// The limits of `model` in real time.
    pub(crate) fn realtime_of(&self, model: &str) -> &RealtimeLimits {
        self.realtime_of.get(model).unwrap_or(&self.realtime)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            file_bytes: 512 << 20,
            batch_file_bytes: 200 << 20,
            batch_requests: 50_000,
            batch_embedding_inputs: 50_000,
            batches_per_hour: 2_000,
            enqueued_tokens: None,
            enqueued_tokens_of: HashMap::new(),
            message_bytes: 32 << 20,
            message_batch_bytes: 256 << 20,
            message_batch_requests: 100_000,
            message_batch_queue: None,
            requests_per_minute: None,
            realtime: RealtimeLimits::default(),
            realtime_of: HashMap::new(),
        }
    }
}

/// How long deferred work takes, in provider time. Ranges are drawn from with the seed. As JSON the names end in `_ms`,
/// and a range is a pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timing {
    /// Checking a batch's input file.
    #[serde(rename = "validation_ms", with = "as_millis")]
    pub validation: Duration,
    /// A batch from creation to its end, validation and writing of results included.
    #[serde(rename = "turnaround_ms", with = "as_pair")]
    pub turnaround: RangeInclusive<Duration>,
    /// How the items of a batch share that time.
    pub pace: Pace,
    /// When no batch makes progress.
    pub stalls: Vec<Stall>,
    /// Writing a batch's results.
    #[serde(rename = "finalizing_ms", with = "as_millis")]
    pub finalizing: Duration,
    /// How long one item is in flight: what started this long before a cancel still finishes.
    #[serde(rename = "in_flight_ms", with = "as_millis")]
    pub in_flight: Duration,
    /// A background response without a window.
    #[serde(rename = "background_soonest_ms", with = "as_pair")]
    pub background_soonest: RangeInclusive<Duration>,
    /// A background response with the 2 h window.
    #[serde(rename = "background_2h_ms", with = "as_pair")]
    pub background_2h: RangeInclusive<Duration>,
    /// A background response with the 8 h window.
    #[serde(rename = "background_8h_ms", with = "as_pair")]
    pub background_8h: RangeInclusive<Duration>,
}

/// How the items of a batch share its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Pace {
    /// They finish evenly until the turnaround is over.
    #[default]
    Even,
    /// Most finish evenly, and the batch waits for the rest.
    SlowTail {
        /// Items of a thousand that are slow; one at least.
        permille: u16,
        /// They finish between the turnaround and this many times as much.
        times: u32,
    },
    /// A part finishes, the rest never does, and the batch expires.
    Expiring {
        /// Items of a thousand that finish.
        done_permille: u16,
    },
}

/// A duration as a number of milliseconds.
mod as_millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(crate::clock::millis(*duration))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

/// A range of durations as a pair of numbers of milliseconds.
mod as_pair {
    use std::ops::RangeInclusive;
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        range: &RangeInclusive<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        [*range.start(), *range.end()].map(crate::clock::millis).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<RangeInclusive<Duration>, D::Error> {
        let [from, to] = <[u64; 2]>::deserialize(deserializer)?.map(Duration::from_millis);
        Ok(from..=to)
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            validation: Duration::from_secs(10),
            turnaround: 10 * MINUTE..=40 * MINUTE,
            pace: Pace::Even,
            stalls: Vec::new(),
            finalizing: Duration::from_secs(20),
            in_flight: Duration::from_secs(30),
            background_soonest: Duration::from_secs(2)..=Duration::from_secs(30),
            background_2h: 5 * MINUTE..=110 * MINUTE,
            background_8h: 15 * MINUTE..=7 * HOUR,
        }
    }
}

/// The entry point of the library.
#[derive(Debug)]
pub struct Sim;

impl Sim {
    /// A builder with the defaults: seed 0, time by hand, every listed model, no keys asked for, no faults.
    pub fn builder() -> Builder {
        Builder {
            seed: 0,
            speed: 0,
            epoch: SimTime(1_795_000_000_000),
            models: LIST.iter().map(|(id, _)| (*id).to_owned()).collect(),
            keys: HashSet::new(),
            scenario: Scenario::default(),
            engine: None,
            latency: Duration::ZERO,
            stream_gap: Duration::ZERO,
            track_executions: false,
            prompt_cache: false,
            lines_for_cancelled: true,
        }
    }
}

/// Collects what a simulation is made from.
#[derive(Debug, Clone)]
pub struct Builder {
    pub(crate) seed: u64,
    pub(crate) speed: u32,
    pub(crate) epoch: SimTime,
    pub(crate) models: Vec<String>,
    pub(crate) keys: HashSet<String>,
    pub(crate) scenario: Scenario,
    pub(crate) engine: Option<EngineOptions>,
    pub(crate) latency: Duration,
    pub(crate) stream_gap: Duration,
    pub(crate) track_executions: bool,
    pub(crate) prompt_cache: bool,
    pub(crate) lines_for_cancelled: bool,
}

impl Builder {
    /// The seed of everything drawn: turnarounds, order of results, faults, identifiers.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Provider seconds in a real second; 0 stops time, to be moved by [`Clock::advance`].
    #[must_use]
    pub fn speed(mut self, speed: u32) -> Self {
        self.speed = speed;
        self
    }

    /// The provider time at the start. The default is fixed, so that runs can be repeated.
    #[must_use]
    pub fn epoch(mut self, epoch: SimTime) -> Self {
        self.epoch = epoch;
        self
    }

    /// The models there are, instead of those on the price list.
    #[must_use]
    pub fn models<S: Into<String>>(mut self, models: impl IntoIterator<Item = S>) -> Self {
        self.models = models.into_iter().map(Into::into).collect();
        self
    }

    /// Adds API keys. With at least one, every call under `/v1` must carry one of them.
    #[must_use]
    pub fn keys<S: Into<String>>(mut self, keys: impl IntoIterator<Item = S>) -> Self {
        self.keys.extend(keys.into_iter().map(Into::into));
        self
    }

    /// The scenario to start with; it brings limits, timing and faults.
    #[must_use]
    pub fn scenario(mut self, scenario: Scenario) -> Self {
        self.scenario = scenario;
        self
    }

    /// Makes it a self-hosted engine with vLLM's surface instead of a provider: chat completions, completions and
    /// embeddings run on a model of continuous batching, and cost nothing by the token. Needs a [`crate::Server`].
    #[must_use]
    pub fn engine(mut self, options: EngineOptions) -> Self {
        self.engine = Some(options);
        self
    }

    /// The fault plan to start with.
    #[must_use]
    pub fn faults(mut self, faults: Faults) -> Self {
        self.scenario.faults = faults;
        self
    }

    /// The limits.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.scenario.limits = limits;
        self
    }

    /// How long deferred work takes.
    #[must_use]
    pub fn timing(mut self, timing: Timing) -> Self {
        self.scenario.timing = timing;
        self
    }

    /// Real time before each real-time answer.
    #[must_use]
    pub fn latency(mut self, latency: Duration) -> Self {
        self.latency = latency;
        self
    }

    /// Real time between two pieces of a stream.
    #[must_use]
    pub fn stream_gap(mut self, gap: Duration) -> Self {
        self.stream_gap = gap;
        self
    }

    /// Counts how often each request ran (see [`crate::execution_key`]). Costs a second parse of every body.
    #[must_use]
    pub fn track_executions(mut self, on: bool) -> Self {
        self.track_executions = on;
        self
    }

    /// Simulates prompt caching: prefixes of 1,024 tokens and more, in steps of 128, that the same model saw in the
    /// last 10 provider minutes count as cached.
    #[must_use]
    pub fn prompt_cache(mut self, on: bool) -> Self {
        self.prompt_cache = on;
        self
    }

    /// Whether the error file of a cancelled batch names the requests that did not run (default), with code
    /// `batch_cancelled`. Reports differ on what the real provider does.
    #[must_use]
    pub fn lines_for_cancelled(mut self, on: bool) -> Self {
        self.lines_for_cancelled = on;
        self
    }

    /// Makes the provider and starts its clock.
    pub fn build(self) -> Provider {
        Provider::new(self)
    }

    pub(crate) fn clock(&self) -> Clock {
        Clock::new(self.epoch, self.speed)
    }
}

/// A model on offer.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) id: String,
    pub(crate) prices: Prices,
}

impl Model {
    /// Whether Anthropic's listing names it: all but those on OpenAI's price list.
    pub(crate) fn is_anthropics(&self) -> bool {
        self.id.starts_with("claude") || !LIST.iter().any(|(name, _)| *name == self.id)
    }

    /// Whether OpenAI's listing names it: all but Anthropic's.
    pub(crate) fn is_openais(&self) -> bool {
        !self.id.starts_with("claude")
    }
}

/// The models on offer, found by name.
#[derive(Debug)]
pub(crate) struct Catalog {
    models: Vec<Model>,
    index: HashMap<String, usize>,
}

impl Catalog {
    pub(crate) fn new(ids: impl IntoIterator<Item = String>) -> Self {
        let models: Vec<_> = ids.into_iter().map(|id| Model { prices: price_of(&id), id }).collect();
        let index = models.iter().enumerate().map(|(n, model)| (model.id.clone(), n)).collect();
        Self { models, index }
    }

    /// The same models, for nothing.
    pub(crate) fn for_nothing(mut self) -> Self {
        for model in &mut self.models {
            model.prices = Prices { input: 0, cached: 0, cache_write: 0, output: 0, priority: (1, 1) };
        }
        self
    }

    pub(crate) fn models(&self) -> &[Model] {
        &self.models
    }

    pub(crate) fn find(&self, id: &str) -> Option<usize> {
        self.index.get(id).copied()
    }

    /// The name of a model that `find` found.
    pub(crate) fn name(&self, model: usize) -> &str {
        self.models.get(model).map_or("", |model| &model.id)
    }
}
