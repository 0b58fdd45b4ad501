//! Where requests go.

use std::time::Duration;

use offpeak_core::room::Bound;
use offpeak_core::words::{BackendId, Millis};
use reqwest::Url;

use super::access::{limits, queue};
use super::amounts::Least;
use super::field::Field;
use super::patterns::ModelPatterns;
use super::section::{Section, nearest};
use super::tree::{Backend, Engine, Lanes, Plugins};

/// The version that users write behind a base URL because SDKs want it there; here plugins give the whole path.
const VERSION: &str = "/v1";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Pauses between calls, as provider plugins have them in their `config`: the bundled ones, and those made with the SDK's batch
/// protocol. The plugin says what else is wrong with its settings, and not on which line.
const PAUSES: [&str; 3] = ["poll_ms", "retry_ms", "retry_max_ms"];

/// As long as SDKs wait by default: models that think are silent for minutes.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(10);

/// How often engines are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The beginning of an answer that takes no longer feels like one at once.
const LATENCY: Millis = Millis::from_secs(2);

/// More than engines run at once; what they can take is found out.
const CONCURRENCY: usize = 512;

/// Where one call with many inputs has gained most of what it can.
const MERGE: usize = 32;

/// Percent: calls that are less than half full cost more by their number than they save by what they do not pad.
const BUCKET_UTILISATION: u32 = 50;

pub(super) fn backends(section: &Section<'_>, lanes: &Lanes, plugins: &Plugins) -> Vec<Backend> {
    if section.is_empty() {
        section.context.problem_of_all(
            "backends",
            "there is no backend, so no request could be answered: add [backends.<name>] with base_url = \
             \"https://api.openai.com\", models = [\"gpt-*\"] and api_key = { env = \"OPENAI_API_KEY\" }",
        );
    }
    section.named().into_iter().filter_map(|(name, section)| backend(name, section, lanes, plugins)).collect()
}

fn backend(name: &str, section: Section<'_>, defaults: &Lanes, plugins: &Plugins) -> Option<Backend> {
    let base_url =
        section.required("base_url", "\"https://api.openai.com\"").and_then(|f| base_url(&f, &section));
    let models = section.required("models", "[\"gpt-*\"]").and_then(|f| f.texts());
    let api_key = section.get("api_key").and_then(|f| f.secret());
    let provider =
        section.get("provider").and_then(|f| provider(&f, plugins)).unwrap_or_else(|| "openai".to_owned());
    let connect_timeout = section.get("connect_timeout").and_then(|f| f.duration(Least::AboveZero));
    let answer_timeout = section.get("answer_timeout").and_then(|f| f.duration(Least::AboveZero));
    let config = section.get("config");
    if let Some(config) = &config {
        config.refuse_zeros(&PAUSES, "without a pause the provider would be called in a loop; leave it out for the usual pause, or give milliseconds");
    }
    let config = config.and_then(|f| f.json()).unwrap_or_else(|| "{}".to_owned());
    let lanes = lanes(section.section("lanes"), Some(defaults));
    let engine = engine(section.section("engine"));
    let own_limits = section.section("limits");
    let backend_limits = limits(&own_limits);
    own_limits.finish();
    if api_key.is_some() && base_url.as_deref().is_some_and(is_in_the_clear) {
        section.context.warn(format!(
            "{}: the API key goes over the network unencrypted: use https",
            section.path_of("base_url")
        ));
    }
    section.finish();
    Some(Backend {
        id: BackendId::from(name),
        provider,
        base_url: base_url?,
        api_key,
        models: ModelPatterns::new(models?),
        connect_timeout: connect_timeout.unwrap_or(CONNECT_TIMEOUT),
        answer_timeout: answer_timeout.unwrap_or(ANSWER_TIMEOUT),
        config,
        limits: backend_limits,
        lanes,
        engine,
    })
}

/// `[backends.<name>.engine]`
fn engine(section: Section<'_>) -> Engine {
    let engine = Engine {
        is_set: section.is_there(),
        look_every: section
            .get("look_every")
            .and_then(|f| f.duration(Least::AboveZero))
            .unwrap_or(LOOK_EVERY),
        latency: section.get("latency").and_then(|f| f.millis(Least::AboveZero)).unwrap_or(LATENCY),
        concurrency: section.get("concurrency").and_then(|f| f.number(1..=10_000)).unwrap_or(CONCURRENCY),
        merge: section.get("merge").and_then(|f| f.number(1..=2048)).unwrap_or(MERGE),
        merge_realtime: section
            .get("merge_realtime")
            .and_then(|f| f.millis(Least::Zero))
            .unwrap_or(Millis(0)),
        merge_completions: section.get("merge_completions").and_then(|f| f.flag()).unwrap_or(false),
        length_buckets: section.get("length_buckets").and_then(|f| f.ascending()).unwrap_or_default(),
        bucket_utilisation: section
            .get("bucket_utilisation")
            .and_then(|f| f.number(0..=100))
            .unwrap_or(BUCKET_UTILISATION),
        peak: section.get("peak_tokens_per_second").and_then(|f| f.non_zero()),
    };
    section.finish();
    engine
}

/// `[lanes]`, or those of a backend, which take the rest from `[lanes]`.
pub(super) fn lanes(section: Section<'_>, defaults: Option<&Lanes>) -> Lanes {
    let defaults = defaults.cloned().unwrap_or(Lanes {
        linger: Millis::from_secs(10),
        max_requests: None,
        max_bytes: None,
        max_running: 20,
        max_background: 100,
        rescue: Millis::from_mins(10),
        rescue_concurrency: 16,
        cancel: Millis::from_mins(10),
        elsewhere: true,
        enqueued_tokens: None,
        queue: Bound { requests: 1_000_000, bytes: 8 << 30 },
    });
    let lanes = Lanes {
        linger: section.get("linger").and_then(|f| f.millis(Least::Zero)).unwrap_or(defaults.linger),
        max_requests: section
            .get("max_requests")
            .and_then(|f| f.number(1..=1_000_000))
            .or(defaults.max_requests),
        max_bytes: section.get("max_bytes").and_then(|f| f.size(1 << 10..=1 << 40)).or(defaults.max_bytes),
        max_running: section
            .get("max_running")
            .and_then(|f| f.number(1..=10_000))
            .unwrap_or(defaults.max_running),
        max_background: section
            .get("max_background")
            .and_then(|f| f.number(1..=10_000))
            .unwrap_or(defaults.max_background),
        rescue: section.get("rescue").and_then(|f| f.millis(Least::Zero)).unwrap_or(defaults.rescue),
        rescue_concurrency: section
            .get("rescue_concurrency")
            .and_then(|f| f.number(1..=10_000))
            .unwrap_or(defaults.rescue_concurrency),
        cancel: section.get("cancel").and_then(|f| f.millis(Least::Zero)).unwrap_or(defaults.cancel),
        elsewhere: section.get("elsewhere").and_then(|f| f.flag()).unwrap_or(defaults.elsewhere),
        enqueued_tokens: section
            .get("enqueued_tokens")
            .and_then(|f| f.number(1..=1_000_000_000_000_000))
            .or(defaults.enqueued_tokens),
        queue: queue(&section, defaults.queue),
    };
    section.finish();
    lanes
}

fn provider(field: &Field<'_>, plugins: &Plugins) -> Option<String> {
    let name = field.text()?;
    if plugins.provider(name).is_some() {
        return Some(name.to_owned());
    }
    let known: Vec<&str> = plugins.providers.iter().map(|provider| provider.name.as_str()).collect();
    let near = nearest(name, &known).map_or_else(
        || {
            format!(
                "there are {}; others come from a file named in [plugins.providers.<name>]",
                known.join(", ")
            )
        },
        |near| format!("did you mean `{near}`?"),
    );
    field.refuse(format!("there is no provider plugin \"{name}\"; {near}"))
}

fn base_url(field: &Field<'_>, section: &Section<'_>) -> Option<String> {
    let url = url(field, "https://api.openai.com")?;
    match url.strip_suffix(VERSION) {
        Some(without) => {
            let path = section.path_of("base_url");
            section
                .context
                .note(format!("{path}: {VERSION} at the end is left off, since provider plugins add it"));
            Some(without.to_owned())
        }
        None => Some(url),
    }
}

/// Scheme, host, port and path, without a slash at the end.
pub(super) fn url(field: &Field<'_>, example: &str) -> Option<String> {
    let text = field.text()?;
    let Ok(url) = Url::parse(text) else {
        return field.refuse(format!("must be a URL such as \"{example}\""));
    };
    if !matches!(url.scheme(), "http" | "https") {
        return field.refuse(format!("must begin with http:// or https://, such as \"{example}\""));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return field.refuse("must not hold credentials: a backend's credential is its api_key");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return field.refuse("must end with the path: leave out what follows ? or #");
    }
    Some(format!("{}{}", url.origin().ascii_serialization(), url.path().trim_end_matches('/')))
}

fn is_in_the_clear(url: &str) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    let loopback = match url.host_str() {
        Some("localhost") => true,
        Some(host) => {
            host.trim_matches(['[', ']']).parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
        }
        None => false,
    };
    url.scheme() == "http" && !loopback
}
