//! The checked configuration: what the rest of the daemon works with. Field names are the keys of the file.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use offpeak_core::breaker::BreakerTerms;
use offpeak_core::budget::Allowance;
use offpeak_core::money::Money;
use offpeak_core::retry::RetryPolicy;
use offpeak_core::room::Bound;
use offpeak_core::sla::Sla;
use offpeak_core::tempo::TempoLimits;
use offpeak_core::words::{BackendId, Millis, TenantId};
use serde::{Deserialize, Serialize};

use super::amounts::{Least, duration, shown_duration, shown_millis, shown_sla};
use super::patterns::ModelPatterns;
use super::secret::Secret;

/// Everything that can be configured, checked. Serialises to what `offpeak check --json` prints: secrets as the place
/// they come from, durations as text, sizes in bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Config {
    /// The listeners.
    pub server: Server,
    /// Where deferred work is kept.
    pub store: Store,
    /// Who may call.
    pub access: Access,
    /// Where requests go, in the order of preference: the order of the file.
    pub backends: Vec<Backend>,
    /// The WebAssembly components.
    pub plugins: Plugins,
    /// What a failed attempt means.
    #[serde(serialize_with = "shown_retry")]
    pub retry: RetryPolicy,
    /// When a backend is left alone.
    #[serde(serialize_with = "shown_breaker")]
    pub breaker: BreakerTerms,
    /// What is done while a backend is left alone; the first that fits counts.
    pub routes: Vec<Route>,
    /// What things cost.
    pub costs: Costs,
    /// Who is told what should not go unseen.
    pub alerts: Option<Alerts>,
    /// Log lines.
    pub log: Log,
    /// What the operator should know because it may be dangerous or not meant; for the log at start and for `check`.
    pub warnings: Vec<String>,
    /// What was understood otherwise than written, harmlessly; for `check`.
    pub notes: Vec<String>,
}

/// `[server]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Server {
    /// The address of the data plane: where applications send requests.
    pub listen: std::net::SocketAddr,
    /// The address of the admin plane. It has no authentication.
    pub admin: std::net::SocketAddr,
    /// The largest request body, in bytes.
    pub max_body: usize,
    /// Large request bodies that may be in memory at once, in bytes.
    pub body_memory: u64,
    /// Connections to the data plane at once.
    pub max_connections: usize,
    /// Threads that serve the data plane; none for one each core.
    pub threads: Option<std::num::NonZeroUsize>,
    /// Time for work in flight when the daemon is told to stop; may be zero.
    #[serde(serialize_with = "shown_duration")]
    pub drain: Duration,
    /// Held calls at once.
    pub held_max: usize,
    /// Certificates of the data plane; without them it speaks plain text.
    pub tls: Option<TlsFiles>,
    /// How clients reach the data plane, without a slash at the end: for absolute links. Without it links are relative.
    pub public_url: Option<String>,
}

/// `[server.tls]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TlsFiles {
    /// The chain of certificates, in PEM.
    pub certificate: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
    /// Certificates that clients must show one of, or one signed by, in PEM; without it none is asked for.
    pub client_ca: Option<PathBuf>,
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Store {
    /// The data folder.
    pub folder: PathBuf,
    /// How long results can be fetched after they were finished.
    #[serde(serialize_with = "shown_millis")]
    pub keep_results: Millis,
    /// Size of one segment file, in bytes.
    pub segment: u64,
    /// What may wait in all lanes together.
    #[serde(flatten, serialize_with = "shown_queue")]
    pub queue: Bound,
}

/// Who may call: `[tenants.<name>]` or `[access]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Whoever reaches the listener, as this one tenant, which has no keys. Only ever on a loopback listener.
    Open(Box<Tenant>),
    /// Whoever shows a key of one of these; never empty, and each has a key.
    Tenants(Vec<Tenant>),
}

/// One tenant and what it may do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tenant {
    /// The name; "default" with open access.
    pub id: TenantId,
    /// API keys that name it. No two tenants share one.
    pub keys: Vec<Secret>,
    /// The SLA of a request without a tag.
    #[serde(serialize_with = "shown_sla")]
    pub default_sla: Sla,
    /// What the tag `deferrable` stands for.
    #[serde(serialize_with = "shown_millis")]
    pub deferrable: Millis,
    /// How the answer of a deferred request comes back if the caller does not say.
    pub delivery: Delivery,
    /// Its limits in real time.
    #[serde(flatten)]
    pub limits: Limits,
    /// How fast its deferred work leaves.
    pub deferred: DeferredLimits,
    /// What it may spend.
    #[serde(serialize_with = "shown_allowance")]
    pub budget: Allowance,
    /// What becomes of requests for models without a price where the budget is a hard one.
    pub unpriced: Unpriced,
    /// Limits for some of its models, beside those above.
    pub model_limits: Vec<ModelLimits>,
    /// The models it may use.
    pub models: ModelPatterns,
    /// Its share of what backends take, beside the shares of others.
    pub share: u32,
    /// Deferred requests it may have waiting.
    pub max_queued: u64,
    /// Bytes of bodies it may have waiting.
    pub max_queued_bytes: u64,
}

/// Limits of real-time calls; what is not there is not limited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Requests.
    pub requests_per_minute: Option<NonZeroU32>,
    /// Input tokens, reckoned when a request arrives and corrected when it is over.
    pub input_tokens_per_minute: Option<u64>,
    /// Output tokens, likewise.
    pub output_tokens_per_minute: Option<u64>,
    /// Requests at once.
    pub concurrent: Option<u32>,
    /// How much of a rate may be used at once: what it gives in this time.
    #[serde(serialize_with = "shown_millis", deserialize_with = "read_millis")]
    pub burst: Millis,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_per_minute: None,
            input_tokens_per_minute: None,
            output_tokens_per_minute: None,
            concurrent: None,
            burst: Millis::from_mins(1),
        }
    }
}

fn read_millis<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Millis, D::Error> {
    let text = String::deserialize(deserializer)?;
    duration(&text, Least::AboveZero).map_err(serde::de::Error::custom)
}

/// `[tenants.<name>.deferred]`: how fast what can wait leaves. What is beyond that is not refused: it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeferredLimits {
    /// Requests.
    pub requests_per_minute: Option<u64>,
    /// Input tokens, reckoned when a request leaves and corrected when it is over.
    pub input_tokens_per_minute: Option<u64>,
    /// Output tokens, likewise.
    pub output_tokens_per_minute: Option<u64>,
    /// How much of a rate may leave at once: what it gives in this time.
    #[serde(serialize_with = "shown_millis", deserialize_with = "read_millis")]
    pub burst: Millis,
}

impl Default for DeferredLimits {
    fn default() -> Self {
        Self {
            requests_per_minute: None,
            input_tokens_per_minute: None,
            output_tokens_per_minute: None,
            burst: Millis::from_mins(1),
        }
    }
}

impl DeferredLimits {
    /// For the scheduler; none if nothing is limited.
    pub fn tempo(&self) -> Option<TempoLimits> {
        let limits = TempoLimits {
            requests: self.requests_per_minute,
            input: self.input_tokens_per_minute,
            output: self.output_tokens_per_minute,
            burst: self.burst,
        };
        (!limits.is_open()).then_some(limits)
    }
}

/// `[tenants.<name>.model_limits.<name>]`
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelLimits {
    /// What the operator calls them.
    pub name: String,
    /// The models that share these limits.
    pub models: ModelPatterns,
    /// The limits.
    #[serde(flatten)]
    pub limits: Limits,
    /// How fast what can wait leaves of them.
    pub deferred: DeferredLimits,
    /// How much of them may wait.
    #[serde(flatten)]
    pub queue: QueueLimits,
}

/// How much may wait of some models or of an API key, within what the tenant may have waiting; what is not there is not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueLimits {
    /// Deferred requests.
    pub max_queued: Option<u64>,
    /// Bytes of their bodies.
    pub max_queued_bytes: Option<u64>,
}

impl QueueLimits {
    /// None if nothing is limited.
    pub fn bound(&self) -> Option<Bound> {
        let Self { max_queued, max_queued_bytes } = *self;
        (max_queued.is_some() || max_queued_bytes.is_some()).then(|| Bound {
            requests: max_queued.unwrap_or(Bound::NONE.requests),
            bytes: max_queued_bytes.unwrap_or(Bound::NONE.bytes),
        })
    }
}

/// `[tenants.<name>.budget] unpriced`: models that nobody knows a price of cannot be counted against a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unpriced {
    /// A hard budget buys none of them.
    Refuse,
    /// They are bought, and cost nothing in the ledger.
    Allow,
}

impl Tenant {
    /// Only what has a price may be bought, since there is a budget that must not be exceeded.
    pub const fn needs_prices(&self) -> bool {
        let is_limited = self.budget.day.is_some() || self.budget.month.is_some();
        is_limited && self.budget.is_hard && matches!(self.unpriced, Unpriced::Refuse)
    }
}

/// How the answer of a deferred request comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Delivery {
    /// On the same call, which stays open.
    Held,
    /// By a ticket, fetched later.
    Ticket,
}

/// `[backends.<name>]`
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Backend {
    /// The name.
    pub id: BackendId,
    /// The provider plugin: a name of [`Plugins::providers`].
    pub provider: String,
    /// Scheme, host and an optional prefix of the path: no `/v1` and no slash at the end, so that a path of the API
    /// can be appended as it is.
    pub base_url: String,
    /// The credential; without one none is sent.
    pub api_key: Option<Secret>,
    /// The models it serves; never empty.
    pub models: ModelPatterns,
    /// Time to connect, the TLS handshake included.
    #[serde(serialize_with = "shown_duration")]
    pub connect_timeout: Duration,
    /// Longest silence while an answer is awaited or read.
    #[serde(serialize_with = "shown_duration")]
    pub answer_timeout: Duration,
    /// The table of the provider plugin as the text of a JSON object.
    pub config: String,
    /// Its limits for real-time calls, over all tenants.
    pub limits: Limits,
    /// How its lanes leave: its own settings over those of `[lanes]`.
    pub lanes: Lanes,
    /// How much deferred work it gets, if it is an engine.
    pub engine: Engine,
}

/// `[backends.<name>.engine]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Engine {
    /// Something of it stands in the file.
    #[serde(skip)]
    pub is_set: bool,
    /// How often its metrics are read.
    #[serde(serialize_with = "shown_duration")]
    pub look_every: Duration,
    /// Until the answer to a real-time call begins, it should take no longer; deferred work gives way where it does.
    #[serde(serialize_with = "shown_millis")]
    pub latency: Millis,
    /// Deferred requests at once, at most.
    pub concurrency: usize,
    /// Inputs of requests that are merged into one call, at most; 1 for none.
    pub merge: usize,
    /// How long calls in real time wait for others that they can be merged with; zero if they do not.
    #[serde(serialize_with = "shown_millis")]
    pub merge_realtime: Millis,
    /// Completions are merged as well.
    pub merge_completions: bool,
    /// The longest lengths in tokens of the buckets in which inputs are merged, ascending; what is longer has one more. None if
    /// the engine does not pad.
    pub length_buckets: Vec<u64>,
    /// Percent of the room in a bucket's calls, below which it goes with the next longer one.
    pub bucket_utilisation: u32,
    /// Tokens a second at its best; none if that is to be learnt.
    pub peak: Option<NonZeroU32>,
}

/// `[lanes]` and `[backends.<name>.lanes]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lanes {
    /// How long the first request of a lane waits for others; may be zero.
    #[serde(serialize_with = "shown_millis")]
    pub linger: Millis,
    /// Requests that fill a batch, where the plugin's limit is not lower.
    pub max_requests: Option<u64>,
    /// Bytes that fill a batch, where the plugin's limit is not lower.
    pub max_bytes: Option<u64>,
    /// Batches under way at once; at least 1.
    pub max_running: usize,
    /// Requests under way in the background at once; at least 1.
    pub max_background: usize,
    /// Time that a rescue in real time is given before the deadline.
    #[serde(serialize_with = "shown_millis")]
    pub rescue: Millis,
    /// Requests that are rescued at once; at least 1.
    pub rescue_concurrency: usize,
    /// Time that a cancelled batch is given to hand back what ran, before a rescue.
    #[serde(serialize_with = "shown_millis")]
    pub cancel: Millis,
    /// While the backend takes no batches, what waits may go to another one.
    pub elsewhere: bool,
    /// What may wait in one lane.
    #[serde(flatten, serialize_with = "shown_queue")]
    pub queue: Bound,
    /// Tokens that the provider lets be enqueued in batches of one model; without it, that is learnt.
    pub enqueued_tokens: Option<u64>,
}

/// `[plugins]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plugins {
    /// Folder of precompiled components.
    pub cache: PathBuf,
    /// How often the files are looked at, to take a changed one into use; never, if it is not said.
    #[serde(serialize_with = "shown_pause")]
    pub watch: Option<Duration>,
    /// Instances of all plugins together.
    pub instances: u32,
    /// Routers that are asked before the others, in this order.
    pub routers: Vec<NamedRouter>,
    /// The router that is asked about what those have passed on.
    pub router: RouterPlugin,
    /// The retry policy.
    pub retry_policy: Policy,
    /// The cost policy.
    pub cost_policy: Policy,
    /// Every provider plugin that can be named by a backend: the bundled ones and those of the file;
    /// by name.
    pub providers: Vec<ProviderPlugin>,
}

/// `[plugins.router]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouterPlugin {
    /// Where it comes from.
    pub source: PluginSource,
    /// Only the component with this SHA-256, in lower-case hex, is taken into use.
    pub sha256: Option<String>,
    /// Its table as the text of a JSON object.
    pub config: String,
    /// What happens when it fails.
    pub on_failure: OnRouterFailure,
    /// For each of its calls.
    pub limits: PluginLimits,
}

/// `[plugins.routers.<name>]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NamedRouter {
    /// In logs, and in the list of plugins.
    pub name: String,
    /// The tenants about whose requests it is asked.
    pub tenants: ModelPatterns,
    /// Where it fails, the next one is asked.
    pub router: RouterPlugin,
}

/// `[plugins.retry_policy]` and `[plugins.cost_policy]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// Where it comes from. If it fails, the bundled one decides.
    pub source: PluginSource,
    /// Only the component with this SHA-256, in lower-case hex, is taken into use.
    pub sha256: Option<String>,
    /// Its table as the text of a JSON object.
    pub config: String,
    /// For each of its calls.
    pub limits: PluginLimits,
}

/// `[plugins.providers.<name>]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProviderPlugin {
    /// What backends call it.
    pub name: String,
    /// Where it comes from.
    pub source: PluginSource,
    /// Only the component with this SHA-256, in lower-case hex, is taken into use.
    pub sha256: Option<String>,
    /// For each of its calls.
    pub limits: PluginLimits,
}

/// Where a component comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PluginSource {
    /// Out of the daemon's own binary.
    Bundled,
    /// This file.
    File(PathBuf),
}

/// What one plugin may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PluginLimits {
    /// For one call on the way of a request.
    #[serde(serialize_with = "shown_duration")]
    pub time_limit: Duration,
    /// Memory of one instance, in bytes.
    pub memory: usize,
    /// Calls at once, each in an instance of its own. As the role has it, if it is not said.
    pub instances: Option<u32>,
}

/// What happens to a request whose router failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnRouterFailure {
    /// The bundled router decides.
    Bundled,
    /// It is rejected.
    Reject,
}

/// `[routes.<name>]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Route {
    /// What the operator calls it.
    pub name: String,
    /// Whose requests.
    pub tenants: ModelPatterns,
    /// Of which endpoints.
    pub endpoints: ModelPatterns,
    /// For which models.
    pub models: ModelPatterns,
    /// They may go to another backend.
    pub elsewhere: bool,
    /// How long a call in real time waits for the backend; may be zero.
    #[serde(serialize_with = "shown_millis")]
    pub wait: Millis,
    /// What a call in real time gets after that, in place of an error.
    pub answer: Option<RouteAnswer>,
}

/// `[routes.<name>.answer]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteAnswer {
    /// Its HTTP status.
    pub status: u16,
    /// Its body: JSON.
    pub body: String,
    /// The body for callers that asked for a stream: events as the API has them.
    pub stream: Option<String>,
}

/// `[costs]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Costs {
    /// A price file in the form of `model_prices_and_context_window.json`, over the built-in prices.
    pub prices: Option<PathBuf>,
    /// How long the ledger has an entry.
    #[serde(serialize_with = "shown_millis")]
    pub keep: Millis,
}

/// `[alerts]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Alerts {
    /// The webhook's address.
    pub url: String,
    /// What it is signed with: `whsec_<base64>`.
    pub secret: Secret,
    /// The address may be an internal one.
    pub internal: bool,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Log {
    /// How lines look.
    pub format: LogFormat,
    /// What is logged, in the syntax of `tracing_subscriber::EnvFilter`; checked.
    pub level: String,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Access {
    /// The tenants, however they are identified.
    pub fn tenants(&self) -> &[Tenant] {
        match self {
            Self::Open(tenant) => std::slice::from_ref(tenant.as_ref()),
            Self::Tenants(tenants) => tenants,
        }
    }
}

impl Config {
    /// The backend of this name.
    pub fn backend(&self, id: &BackendId) -> Option<&Backend> {
        self.backends.iter().find(|backend| backend.id == *id)
    }
}

impl Plugins {
    /// The provider plugin of this name; there is one for each [`Backend::provider`].
    pub fn provider(&self, name: &str) -> Option<&ProviderPlugin> {
        self.providers.iter().find(|provider| provider.name == name)
    }
}

fn shown_allowance<S: serde::Serializer>(allowance: &Allowance, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Shown {
        day_usd: Option<String>,
        month_usd: Option<String>,
        hard: bool,
    }
    let shown = |money: Option<Money>| money.map(Money::to_decimal);
    let (day_usd, month_usd) = (shown(allowance.day), shown(allowance.month));
    Shown { day_usd, month_usd, hard: allowance.is_hard }.serialize(serializer)
}

#[expect(clippy::ref_option, reason = "serde hands it over so")]
fn shown_pause<S: serde::Serializer>(pause: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match pause {
        Some(pause) => shown_duration(pause, serializer),
        None => serializer.serialize_none(),
    }
}

fn shown_queue<S: serde::Serializer>(queue: &Bound, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Shown {
        max_queued: u64,
        max_queued_bytes: u64,
    }
    Shown { max_queued: queue.requests, max_queued_bytes: queue.bytes }.serialize(serializer)
}

fn shown_retry<S: serde::Serializer>(retry: &RetryPolicy, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Shown {
        max_attempts: u16,
        #[serde(serialize_with = "shown_millis")]
        base: Millis,
        #[serde(serialize_with = "shown_millis")]
        cap: Millis,
    }
    Shown { max_attempts: retry.max_attempts, base: retry.base, cap: retry.cap }.serialize(serializer)
}

fn shown_breaker<S: serde::Serializer>(terms: &BreakerTerms, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Shown {
        failures: u32,
        error_percent: u32,
        bad_batches: u32,
        #[serde(serialize_with = "shown_millis")]
        rest: Millis,
        #[serde(serialize_with = "shown_millis")]
        rest_max: Millis,
    }
    let &BreakerTerms { failures, error_permille, batches, rest, rest_max } = terms;
    Shown { failures, error_percent: error_permille / 10, bad_batches: batches, rest, rest_max }
        .serialize(serializer)
}
