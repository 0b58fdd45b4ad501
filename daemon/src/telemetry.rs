//! Metrics and log lines. A metric is a method here, so that its name stands in one place.

mod plugin_use;

use std::sync::atomic::AtomicU64;

use offpeak_core::buckets::Fill;
use offpeak_core::depart::Reason;
use offpeak_core::money::Money;
use offpeak_core::usage::Usage;
use offpeak_core::words::{BackendId, Mode};
use offpeak_host::PluginReport;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use self::plugin_use::PluginUse;
use crate::config::{Log, LogFormat};

/// Money in the ledger, as counters show it: in dollars.
type Dollars = Family<CostLabels, Counter<f64, AtomicU64>>;

/// How a request was run and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// `realtime` or `deferred`.
    pub mode: &'static str,
    /// Status class: `2xx`, `4xx`, `5xx`, or `broken`.
    pub status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendLabels {
    backend: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BucketLabels {
    backend: String,
    /// The longest length in it.
    up_to: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SealedLabels {
    backend: String,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndedLabels {
    backend: String,
    ending: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LineLabels {
    backend: String,
    kind: Line,
}

/// Tenants and backends stand in the configuration, and there are few modes: models, which clients name, are left to the
/// ledger.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CostLabels {
    tenant: String,
    backend: String,
    mode: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenLabels {
    tenant: String,
    backend: String,
    mode: &'static str,
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModeLabels {
    backend: String,
    mode: &'static str,
}

fn mode_labels(backend: &str, mode: Mode) -> ModeLabels {
    ModeLabels { backend: backend.to_owned(), mode: mode.as_str() }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EscalatedLabels {
    backend: String,
    how: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfferLabels {
    backend: String,
    offer: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct JobLabels {
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PluginLabels {
    plugin: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabels {
    result: &'static str,
}

/// What a line of results turned out to be, beyond the one outcome that each item should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Line {
    /// An item's first result.
    Taken,
    /// Another result for an item that has one; dropped.
    Duplicate,
    /// A result for no item of the batch; dropped.
    Unknown,
    /// Not a result at all; dropped.
    Garbage,
}

impl prometheus_client::encoding::EncodeLabelValue for Line {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        use std::fmt::Write as _;
        encoder.write_str(match self {
            Self::Taken => "taken",
            Self::Duplicate => "duplicate",
            Self::Unknown => "unknown",
            Self::Garbage => "garbage",
        })
    }
}

/// What was seen at a look at an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineSeen {
    /// It takes calls.
    pub is_ready: bool,
    /// Requests that it works on, if it tells.
    pub running: Option<u32>,
    /// Requests that wait within it, if it tells.
    pub waiting: Option<u32>,
    /// How much of its cache is in use, in thousandths, if it tells.
    pub cache_permille: Option<u32>,
    /// Real-time calls since the look before.
    pub realtime: u64,
    /// Deferred requests under way.
    pub deferred: u64,
    /// Deferred requests that may be under way until the next look.
    pub ceiling: u64,
    /// Deferred requests that were taken back for real-time calls that waited behind them.
    pub taken_back: u64,
    /// Tokens a second since the look before, if it tells.
    pub speed: Option<u64>,
    /// The highest of those.
    pub peak: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AtEngineLabels {
    backend: String,
    kind: &'static str,
}

/// What is known of engines of one's own.
struct Engines {
    ready: Family<BackendLabels, Gauge>,
    requests: Family<AtEngineLabels, Gauge>,
    ceiling: Family<BackendLabels, Gauge>,
    taken_back: Family<BackendLabels, Counter>,
    cache: Family<BackendLabels, Gauge<f64, AtomicU64>>,
    speed: Family<BackendLabels, Gauge>,
    peak: Family<BackendLabels, Gauge>,
    efficiency: Family<BackendLabels, Gauge<f64, AtomicU64>>,
    seconds: Family<BackendLabels, Counter<f64, AtomicU64>>,
    busy_seconds: Family<BackendLabels, Counter<f64, AtomicU64>>,
    sizes: Family<BackendLabels, Histogram, fn() -> Histogram>,
    merged: Family<BackendLabels, Histogram, fn() -> Histogram>,
    buckets: BucketCounters,
}

/// How well calls fill, and how alike their inputs are in length.
#[derive(Default)]
struct BucketCounters {
    inputs: Family<BucketLabels, Counter>,
    room: Family<BucketLabels, Counter>,
    tokens: Family<BucketLabels, Counter>,
    padded: Family<BucketLabels, Counter>,
}

/// 1 to 1024 requests.
fn sizes() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 11))
}

impl Engines {
    fn new() -> Self {
        Self {
            ready: Family::default(),
            requests: Family::default(),
            ceiling: Family::default(),
            taken_back: Family::default(),
            cache: Family::default(),
            speed: Family::default(),
            peak: Family::default(),
            efficiency: Family::default(),
            seconds: Family::default(),
            busy_seconds: Family::default(),
            sizes: Family::new_with_constructor(sizes as fn() -> Histogram),
            merged: Family::new_with_constructor(sizes as fn() -> Histogram),
            buckets: BucketCounters::default(),
        }
    }

    fn describe(&self, r: &mut Registry) {
        r.register("engine_ready", "1 while an engine takes calls", self.ready.clone());
        r.register(
            "engine_requests",
            "Requests at an engine: running and waiting as it says, realtime and deferred as offpeak sent them",
            self.requests.clone(),
        );
        r.register(
            "engine_deferred_at_once",
            "Deferred requests that an engine is given at once",
            self.ceiling.clone(),
        );
        r.register("engine_taken_back", "Requests taken back for real-time calls", self.taken_back.clone());
        r.register("engine_cache_usage", "The share of an engine's cache that is in use", self.cache.clone());
        r.register("engine_tokens_per_second", "Tokens read and made in the last second", self.speed.clone());
        r.register("engine_peak_tokens_per_second", "The highest of those", self.peak.clone());
        r.register(
            "engine_batch_efficiency",
            "Tokens a second as a share of the highest that was seen",
            self.efficiency.clone(),
        );
        r.register_with_unit(
            "engine_looked",
            "Time that an engine was looked at and ready",
            Unit::Seconds,
            self.seconds.clone(),
        );
        r.register_with_unit(
            "engine_busy",
            "Of that, time in which it had work: its utilisation",
            Unit::Seconds,
            self.busy_seconds.clone(),
        );
        r.register(
            "engine_batch_size",
            "Requests that an engine ran at once, at each look",
            self.sizes.clone(),
        );
        r.register(
            "engine_merged_requests",
            "Requests in a call with the inputs of several",
            self.merged.clone(),
        );
        let buckets = &self.buckets;
        r.register("engine_bucket_inputs", "Inputs sent in calls of a length bucket", buckets.inputs.clone());
        r.register(
            "engine_bucket_room",
            "Inputs for which there was room in these calls: the bucket's utilisation is the share that was used",
            buckets.room.clone(),
        );
        r.register("engine_bucket_tokens", "Tokens of these inputs, estimated", buckets.tokens.clone());
        r.register(
            "engine_bucket_padded_tokens",
            "The same if each input is padded to the longest of its call",
            buckets.padded.clone(),
        );
    }
}

/// Everything that is counted.
pub struct Metrics {
    registry: Registry,
    engines: Engines,
    requests: Family<RequestLabels, Counter>,
    overhead: Histogram,
    accepted: Counter,
    attached: Counter,
    held: Gauge,
    sealed: Family<SealedLabels, Counter>,
    sealed_requests: Family<SealedLabels, Counter>,
    ended: Family<EndedLabels, Counter>,
    lines: Family<LineLabels, Counter>,
    retried: Family<BackendLabels, Counter>,
    delivered: Family<BackendLabels, Counter>,
    jobs: Gauge,
    jobs_ended: Family<JobLabels, Counter>,
    plugin_errors: Family<PluginLabels, Counter>,
    plugin_reloads: Family<ReloadLabels, Counter>,
    plugin_use: PluginUse,
    wasted: Family<ModeLabels, Counter>,
    breakers: Family<ModeLabels, Gauge>,
    escalated: Family<EscalatedLabels, Counter>,
    stepped_up: Family<OfferLabels, Counter>,
    offers_lost: Family<OfferLabels, Gauge>,
    cost: Dollars,
    realtime_cost: Dollars,
    tokens: Family<TokenLabels, Counter>,
    unwritten: Counter,
    waiting: Gauge,
    waiting_bytes: Gauge<i64>,
    oldest_seconds: Gauge<f64, AtomicU64>,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        // 10 us to about 0.3 s.
        let overhead = Histogram::new(exponential_buckets(0.000_01, 2.0, 16));
        let mut metrics = Self {
            requests: Family::default(),
            overhead,
            accepted: Counter::default(),
            attached: Counter::default(),
            held: Gauge::default(),
            sealed: Family::default(),
            sealed_requests: Family::default(),
            ended: Family::default(),
            lines: Family::default(),
            retried: Family::default(),
            delivered: Family::default(),
            jobs: Gauge::default(),
            jobs_ended: Family::default(),
            plugin_errors: Family::default(),
            plugin_reloads: Family::default(),
            plugin_use: PluginUse::default(),
            wasted: Family::default(),
            breakers: Family::default(),
            escalated: Family::default(),
            stepped_up: Family::default(),
            offers_lost: Family::default(),
            cost: Dollars::default(),
            realtime_cost: Dollars::default(),
            tokens: Family::default(),
            unwritten: Counter::default(),
            waiting: Gauge::default(),
            waiting_bytes: Gauge::default(),
            oldest_seconds: Gauge::default(),
            engines: Engines::new(),
            registry: Registry::with_prefix("offpeak"),
        };
        let mut registry = std::mem::take(&mut metrics.registry);
        metrics.describe_work(&mut registry);
        metrics.describe_batches(&mut registry);
        metrics.describe_costs(&mut registry);
        metrics.engines.describe(&mut registry);
        metrics.describe_plugins(&mut registry);
        Self { registry, ..metrics }
    }

    /// Requests, from their arrival to their outcome.
    fn describe_work(&self, r: &mut Registry) {
        r.register("requests", "Requests answered on the data plane", self.requests.clone());
        r.register_with_unit(
            "decision_duration",
            "From a real-time request's body being read to its being sent on",
            Unit::Seconds,
            self.overhead.clone(),
        );
        r.register("deferred_accepted", "Deferred requests kept durably", self.accepted.clone());
        r.register("deferred_attached", "Calls attached to work already under way", self.attached.clone());
        r.register("held_calls", "Calls held open for their answer", self.held.clone());
        r.register(
            "requests_retried",
            "Deferred requests put back for another attempt",
            self.retried.clone(),
        );
        r.register("deferred_finished", "Deferred requests with their outcome", self.delivered.clone());
        r.register("open_jobs", "Jobs that have not ended", self.jobs.clone());
        r.register("jobs_ended", "Jobs that ended, by how", self.jobs_ended.clone());
        r.register("waiting_requests", "Deferred requests waiting in lanes", self.waiting.clone());
        r.register_with_unit(
            "waiting",
            "Bytes of requests waiting in lanes",
            Unit::Bytes,
            self.waiting_bytes.clone(),
        );
        r.register_with_unit(
            "oldest_waiting",
            "Age of the oldest request waiting in a lane",
            Unit::Seconds,
            self.oldest_seconds.clone(),
        );
    }

    /// How the work was bought: batches, their ends, and the ways around them.
    fn describe_batches(&self, r: &mut Registry) {
        r.register("batches_sealed", "Batches that left, by why", self.sealed.clone());
        r.register("batch_requests_sealed", "Requests in batches that left", self.sealed_requests.clone());
        r.register("batches_ended", "Batches that ended, by how", self.ended.clone());
        r.register("result_lines", "Lines of results, by what they were", self.lines.clone());
        r.register(
            "wasted_requests",
            "Answers that were paid for and dropped, since the request had its answer by another way",
            self.wasted.clone(),
        );
        r.register("breaker_open", "1 while a backend takes no work of this mode", self.breakers.clone());
        r.register(
            "escalated_requests",
            "Requests of batches that threatened a deadline, by what was done",
            self.escalated.clone(),
        );
        r.register(
            "offer_without_room",
            "Requests for which an offer had no room, so that the next one was bought",
            self.stepped_up.clone(),
        );
        r.register(
            "offers_lost",
            "Models for which a provider refused to sell an offer, so that it is off the ladder",
            self.offers_lost.clone(),
        );
    }

    /// How plugins do.
    fn describe_plugins(&self, r: &mut Registry) {
        r.register("plugin_errors", "Calls of plugins that failed", self.plugin_errors.clone());
        r.register(
            "plugin_reloads",
            "How often all plugins were loaded anew, and whether they were taken into use",
            self.plugin_reloads.clone(),
        );
        self.plugin_use.describe(r);
    }

    /// What it cost.
    fn describe_costs(&self, r: &mut Registry) {
        r.register("cost_dollars", "What providers charge, by the ledger", self.cost.clone());
        r.register(
            "realtime_cost_dollars",
            "What the same would have cost in standard real time",
            self.realtime_cost.clone(),
        );
        r.register("tokens", "Tokens that providers counted", self.tokens.clone());
        r.register(
            "ledger_unwritten",
            "Real-time calls that are missing in the ledger, because the store did not take them in time",
            self.unwritten.clone(),
        );
    }

    /// The Prometheus text.
    pub fn render(&self, held: usize, plugins: &[(PluginReport, Option<BackendId>)]) -> String {
        self.held.set(i64::try_from(held).unwrap_or(i64::MAX));
        self.plugin_use.with(plugins, || {
            let mut text = String::new();
            if encode(&mut text, &self.registry).is_err() {
                tracing::error!("the metrics could not be written as text; please report this");
            }
            text
        })
    }

    /// A request was answered.
    pub fn answered(&self, mode: &'static str, status: u16) {
        let status = match status {
            0 => "broken",
            100..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            _ => "5xx",
        };
        self.requests.get_or_create(&RequestLabels { mode, status }).inc();
    }

    /// How long the decision took for a request that was sent on.
    pub fn decided(&self, took: std::time::Duration) {
        self.overhead.observe(took.as_secs_f64());
    }

    /// A deferred request is kept.
    pub fn accepted(&self) {
        self.accepted.inc();
    }

    /// A call was attached to work under way.
    pub fn attached(&self) {
        self.attached.inc();
    }

    /// A batch left.
    pub fn sealed(&self, backend: &str, reason: Reason, requests: u64) {
        let labels = SealedLabels { backend: backend.to_owned(), reason: reason.as_str() };
        self.sealed.get_or_create(&labels).inc();
        self.sealed_requests.get_or_create(&labels).inc_by(requests);
    }

    /// Answers came for requests that had theirs.
    pub fn wasted(&self, backend: &str, mode: Mode, requests: u64) {
        if requests > 0 {
            self.wasted.get_or_create(&mode_labels(backend, mode)).inc_by(requests);
        }
    }

    /// A backend stopped taking work of a mode, or does again.
    pub fn breaker(&self, backend: &str, mode: Mode, is_open: bool) {
        self.breakers.get_or_create(&mode_labels(backend, mode)).set(i64::from(is_open));
    }

    /// A batch threatened a deadline.
    pub fn escalated(&self, backend: &str, how: &'static str, requests: u64) {
        self.escalated.get_or_create(&EscalatedLabels { backend: backend.to_owned(), how }).inc_by(requests);
    }

    /// An offer had no room for a request.
    pub fn stepped_up(&self, backend: &str, offer: &str) {
        self.stepped_up
            .get_or_create(&OfferLabels { backend: backend.to_owned(), offer: offer.to_owned() })
            .inc();
    }

    /// So many models have lost an offer.
    pub fn offers_lost(&self, backend: &str, offer: &str, models: usize) {
        let labels = OfferLabels { backend: backend.to_owned(), offer: offer.to_owned() };
        self.offers_lost.get_or_create(&labels).set(i64::try_from(models).unwrap_or(i64::MAX));
    }

    /// A batch ended.
    pub fn ended(&self, backend: &str, ending: &str) {
        self.ended
            .get_or_create(&EndedLabels { backend: backend.to_owned(), ending: ending.to_owned() })
            .inc();
    }

    /// Lines of results were read.
    pub fn lines(&self, backend: &str, kind: Line, count: u64) {
        if count > 0 {
            self.lines.get_or_create(&LineLabels { backend: backend.to_owned(), kind }).inc_by(count);
        }
    }

    /// Outcomes were recorded.
    pub fn recorded(&self, backend: &str, finished: u64, retried: u64) {
        let labels = BackendLabels { backend: backend.to_owned() };
        self.delivered.get_or_create(&labels).inc_by(finished);
        self.retried.get_or_create(&labels).inc_by(retried);
    }

    /// A job began, or goes on.
    pub fn job_opened(&self) {
        self.jobs.inc();
    }

    /// A job ended.
    pub fn job_ended(&self, status: &'static str) {
        self.jobs.dec();
        self.jobs_ended.get_or_create(&JobLabels { status }).inc();
    }

    /// Several requests were sent to an engine as one call.
    #[expect(clippy::cast_precision_loss, reason = "a few thousand at most")]
    pub fn merged(&self, backend: &str, requests: usize) {
        let labels = BackendLabels { backend: backend.to_owned() };
        self.engines.merged.get_or_create(&labels).observe(requests as f64);
    }

    /// A call from one of an engine's length buckets was sent.
    pub fn filled(&self, backend: &str, fill: &Fill) {
        let up_to = fill.up_to.map_or_else(|| "+Inf".to_owned(), |bound| bound.to_string());
        let labels = BucketLabels { backend: backend.to_owned(), up_to };
        let buckets = &self.engines.buckets;
        buckets.inputs.get_or_create(&labels).inc_by(fill.inputs);
        buckets.room.get_or_create(&labels).inc_by(fill.room);
        buckets.tokens.get_or_create(&labels).inc_by(fill.tokens);
        buckets.padded.get_or_create(&labels).inc_by(fill.padded);
    }

    /// An engine was looked at, so long after the look before.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52; a gauge is for a graph")]
    pub fn looked(&self, backend: &str, seen: &EngineSeen, since: std::time::Duration) {
        let labels = BackendLabels { backend: backend.to_owned() };
        let engines = &self.engines;
        let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        engines.ready.get_or_create(&labels).set(i64::from(seen.is_ready));
        engines.ceiling.get_or_create(&labels).set(count(seen.ceiling));
        engines.taken_back.get_or_create(&labels).inc_by(seen.taken_back);
        let told = [("running", seen.running), ("waiting", seen.waiting)];
        let told = told.into_iter().filter_map(|(kind, requests)| Some((kind, u64::from(requests?))));
        for (kind, requests) in told.chain([("realtime", seen.realtime), ("deferred", seen.deferred)]) {
            let labels = AtEngineLabels { backend: backend.to_owned(), kind };
            engines.requests.get_or_create(&labels).set(count(requests));
        }
        if let Some(cache) = seen.cache_permille {
            engines.cache.get_or_create(&labels).set(f64::from(cache) / 1000.0);
        }
        if let Some(speed) = seen.speed {
            engines.speed.get_or_create(&labels).set(count(speed));
            engines.peak.get_or_create(&labels).set(count(seen.peak));
            if seen.peak > 0 {
                engines.efficiency.get_or_create(&labels).set(speed as f64 / seen.peak as f64);
            }
        }
        if !seen.is_ready {
            return;
        }
        engines.seconds.get_or_create(&labels).inc_by(since.as_secs_f64());
        let running = seen.running.map_or(seen.realtime + seen.deferred, u64::from);
        if running > 0 {
            engines.busy_seconds.get_or_create(&labels).inc_by(since.as_secs_f64());
            engines.sizes.get_or_create(&labels).observe(running as f64);
        }
    }

    /// All plugins were loaded anew, and taken into use or not.
    pub fn plugins_reloaded(&self, taken: bool) {
        let result = if taken { "taken" } else { "refused" };
        self.plugin_reloads.get_or_create(&ReloadLabels { result }).inc();
    }

    /// A plugin's call failed.
    pub fn plugin_failed(&self, plugin: &str) {
        self.plugin_errors.get_or_create(&PluginLabels { plugin: plugin.to_owned() }).inc();
    }

    /// An outcome was charged.
    #[expect(clippy::cast_precision_loss, reason = "the ledger is exact; a counter is for a graph")]
    pub fn charged(
        &self,
        tenant: &str,
        backend: &str,
        mode: &'static str,
        (cost, realtime): (Money, Money),
        usage: Usage,
    ) {
        let labels = || CostLabels { tenant: tenant.to_owned(), backend: backend.to_owned(), mode };
        self.cost.get_or_create(&labels()).inc_by(cost.0 as f64 / 1e12);
        self.realtime_cost.get_or_create(&labels()).inc_by(realtime.0 as f64 / 1e12);
        let fresh = usage.input.saturating_sub(usage.cached);
        for (kind, count) in [("input", fresh), ("cached", usage.cached), ("output", usage.output)] {
            if count > 0 {
                let CostLabels { tenant, backend, mode } = labels();
                self.tokens.get_or_create(&TokenLabels { tenant, backend, mode, kind }).inc_by(count);
            }
        }
    }

    /// Calls are missing in the ledger.
    pub fn unwritten(&self, calls: u64) {
        self.unwritten.inc_by(calls);
    }

    /// What waits in all lanes.
    #[expect(clippy::cast_precision_loss, reason = "an age in milliseconds is far below 2^52")]
    pub fn waiting(&self, requests: u64, bytes: u64, oldest_ms: u64) {
        self.waiting.set(i64::try_from(requests).unwrap_or(i64::MAX));
        self.waiting_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.oldest_seconds.set(oldest_ms as f64 / 1000.0);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Starts logging to standard error, as configured. A second call in one process changes nothing.
pub fn init_logging(log: &Log) {
    use tracing_subscriber::EnvFilter;

    let filter = EnvFilter::try_new(&log.level).unwrap_or_else(|_| EnvFilter::new("info"));
    // Where a line cannot be written, on a full disk say, telling so on the same stream would fail as well, and with a panic:
    // the call that it was about would break off.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(is_coloured())
        .log_internal_errors(false);
    let started = match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    if let Err(error) = started {
        tracing::debug!(%error, "logging was started before");
    }
}

/// Colours are for people at a terminal who have not asked to be spared them; in files they are litter.
fn is_coloured() -> bool {
    use std::io::IsTerminal as _;

    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
