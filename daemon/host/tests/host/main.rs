//! The plugin host against real components: bundled ones, misbehaving ones, and some that are none.

#![expect(clippy::unwrap_used, reason = "a test stops at what goes wrong")]

mod cache;
mod calls;
mod dreams;
mod first_version;
mod handmade;
mod hostile;
mod loading;
mod misbehaving;

use std::{
    path::Path,
    sync::LazyLock,
    time::{Duration, Instant},
};

use offpeak_guests as guests;
use offpeak_host::{
    Engine, EngineOptions, Limits, PluginError, ProviderPlugin, RouterPlugin, Source,
    values::{
        provider::{Batch, Call},
        router::{Candidate, Decision, Envelope, Header, Mode, Offer, Sla, Tag},
    },
};

/// Noon of some day.
const NOW_MS: u64 = 1_700_000_000_000;

/// All tests share an engine, and its compiled guests from run to run.
static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
    let cache_dir = Some(Path::new(env!("CARGO_TARGET_TMPDIR")).join("compiled-guests"));
    Engine::new(&EngineOptions { cache_dir, tick: Duration::from_millis(1), ..EngineOptions::default() })
        .unwrap()
});

const OFFERS: [Offer<'static>; 3] = [
    Offer { name: "standard", mode: Mode::Realtime, price_permille: 1000, window_ms: 0, usual_ms: 0 },
    Offer { name: "flex", mode: Mode::Realtime, price_permille: 500, window_ms: 0, usual_ms: 60_000 },
    Offer {
        name: "batch",
        mode: Mode::Batch,
        price_permille: 500,
        window_ms: 86_400_000,
        usual_ms: 3_600_000,
    },
];

const HEADERS: [Header<'static>; 1] = [Header { name: "x-mood", value: "fine" }];

/// Time limits that no busy test machine exceeds by itself.
fn unhurried(mut limits: Limits) -> Limits {
    limits.call = Duration::from_secs(30);
    limits.step = Duration::from_secs(30);
    limits
}

fn router_with(config: &str, limits: Limits) -> RouterPlugin {
    let source = Source::Bytes(guests::router::COMPONENT);
    RouterPlugin::load(&ENGINE, "misfit", source, config.to_owned(), limits, NOW_MS).unwrap()
}

fn router() -> RouterPlugin {
    router_with("{}", unhurried(Limits::router()))
}

fn provider_with(limits: Limits) -> ProviderPlugin {
    let source = Source::Bytes(guests::provider::COMPONENT);
    ProviderPlugin::load(&ENGINE, "misfit", source, "{}".to_owned(), limits, NOW_MS).unwrap()
}

fn provider() -> ProviderPlugin {
    provider_with(unhurried(Limits::provider()))
}

fn envelope(model: &str) -> Envelope<'_> {
    Envelope {
        tenant: "acme",
        endpoint: "/v1/chat/completions",
        model,
        sla: Sla::Within(86_400_000),
        tag: Tag::Header,
        stream: false,
        body_bytes: 1234,
        input_tokens: 300,
        max_output_tokens: Some(100),
        headers: &HEADERS,
        body: Some(b"{\"model\":"),
    }
}

fn candidates() -> [Candidate<'static>; 1] {
    [Candidate { backend: "openai", healthy: true, offers: &OFFERS }]
}

fn route(router: &RouterPlugin, model: &str) -> Result<Decision, PluginError> {
    router.route(&envelope(model), &candidates(), NOW_MS)
}

/// The lane that the guest chose, in which it tells things.
fn lane(router: &RouterPlugin, model: &str) -> String {
    match route(router, model).unwrap() {
        Decision::Choose(choice) => {
            assert_eq!((choice.backend.as_str(), choice.offer.as_str()), ("openai", "standard"));
            choice.lane
        }
        other => panic!("{other:?}"),
    }
}

fn batch(model: &str) -> Batch<'_> {
    Batch {
        mark: "mark-1",
        endpoint: "/v1/chat/completions",
        model,
        offer: "batch",
        items: 2,
        waiting: 2,
        only: None,
        headers: &[],
        created_at_ms: NOW_MS,
    }
}

fn call(model: &str) -> Call<'_> {
    Call { endpoint: "/v1/chat/completions", model, offer: "standard" }
}

/// Waits for something another thread does.
fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited in vain until {what}");
        std::thread::yield_now();
    }
}
