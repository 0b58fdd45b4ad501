//! What warm calls of the bundled plugins cost: the router on the way of each request, the provider on that of batches. And how
//! long all of them take to start.

use std::hint::black_box;
use std::time::{Duration, Instant};

use offpeak_host::values::provider::{Batch, Call, Item};
use offpeak_host::values::router::{Candidate, Envelope, Header, Mode, Offer, Sla, Tag};
use offpeak_host::{
    AnyPlugin, CostPlugin, Engine, EngineOptions, EnginePlugin, Limits, PluginError, ProviderPlugin,
    RetryPlugin, RouterPlugin, Source,
};
use serde::Serialize;

use crate::error::{Context, Error};
use crate::report::{Table, Target, figure, median, micros};
use crate::talk::chat_body;

/// Any time does.
const NOW_MS: u64 = 1_763_940_000_000;

/// Rounds of which the median counts.
const ROUNDS: usize = 200;

/// Starts of which the median counts.
const STARTS: usize = 21;

/// Calls that are timed together.
const CALLS: u32 = 500;

/// Items that the daemon hands over in one call, about.
const ITEMS: usize = 256;

/// Bytes of an item.
const ITEM_BYTES: usize = 2048;

/// What the bundled provider sells of a chat model, flex included.
const OFFERS: [Offer<'static>; 3] = [
    Offer { name: "standard", mode: Mode::Realtime, price_permille: 1000, window_ms: 0, usual_ms: 5_000 },
    Offer { name: "flex", mode: Mode::Realtime, price_permille: 500, window_ms: 0, usual_ms: 60_000 },
    Offer {
        name: "batch",
        mode: Mode::Batch,
        price_permille: 500,
        window_ms: 86_400_000,
        usual_ms: 3_600_000,
    },
];

const HEADERS: [Header<'static>; 1] = [Header { name: "x-offpeak-sla", value: "24h" }];

const ENVELOPE: Envelope<'static> = Envelope {
    tenant: "acme",
    endpoint: "/v1/chat/completions",
    model: "gpt-5-mini",
    sla: Sla::Within(86_400_000),
    tag: Tag::Header,
    stream: false,
    body_bytes: 2048,
    input_tokens: 512,
    max_output_tokens: Some(256),
    headers: &HEADERS,
    body: None,
};

const BATCH: Batch<'static> = Batch {
    mark: "0123456789abcdef-1f",
    endpoint: "/v1/chat/completions",
    model: "gpt-5-mini",
    offer: "batch",
    items: 50_000,
    waiting: 50_000,
    only: None,
    headers: &[],
    created_at_ms: NOW_MS,
};

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// A call of the router, in microseconds.
    pub route_us: f64,
    /// The provider's answer to how a real-time call is sent; the daemon keeps it.
    pub prepare_us: f64,
    /// Items written for an upload, in megabytes of their bodies a second.
    pub encode_mb_s: f64,
    /// Lines of results read, in megabytes a second.
    pub decode_mb_s: f64,
    /// All bundled plugins, each in all of its worlds, from compiled files to having described themselves; in milliseconds.
    pub start_ms: f64,
}

/// Measures, on one core.
pub fn run() -> Result<Report, Error> {
    let engine = Engine::new(&EngineOptions::default())?;
    let router: RouterPlugin = load(&engine, "sla-router", offpeak_bundled::SLA_ROUTER, Limits::router())?;
    let provider: ProviderPlugin = load(&engine, "openai", offpeak_bundled::OPENAI, Limits::provider())?;

    let candidates = [Candidate { backend: "openai", healthy: true, offers: &OFFERS }];
    let route = timed(CALLS, || router.route(black_box(&ENVELOPE), black_box(&candidates), NOW_MS))?;
    let call = Call { endpoint: "/v1/chat/completions", model: "gpt-5-mini", offer: "standard" };
    let prepare = timed(CALLS, || provider.prepare(black_box(&call), NOW_MS))?;

    let body = chat_body("gpt-5-mini", ITEM_BYTES, false);
    let ids: Vec<String> = (0..ITEMS).map(|number| format!("1f-{number:x}")).collect();
    let items: Vec<Item<'_>> = ids.iter().map(|id| Item { id, body: body.as_bytes() }).collect();
    let encode = timed(1, || provider.encode_items(&BATCH, black_box(&items), NOW_MS))?;
    let lines: Vec<String> = ids.iter().map(|id| result_line(id)).collect();
    let lines: Vec<&[u8]> = lines.iter().map(String::as_bytes).collect();
    let decode = timed(1, || provider.decode_results(&BATCH, "output", black_box(&lines), NOW_MS))?;
    let line_bytes: usize = lines.iter().map(|line| line.len()).sum();
    Ok(Report {
        route_us: micros(route),
        prepare_us: micros(prepare),
        encode_mb_s: megabytes_a_second(ITEMS * body.len(), encode),
        decode_mb_s: megabytes_a_second(line_bytes, decode),
        start_ms: start()?,
    })
}

/// How long a start of all plugins takes whose code is in the cache, wasmtime's own start included.
fn start() -> Result<f64, Error> {
    let folder = tempfile::tempdir().context("making a folder for compiled plugins")?;
    let options = EngineOptions { cache_dir: Some(folder.path().to_owned()), ..EngineOptions::default() };
    start_all(&Engine::new(&options)?)?;
    let mut taken = Vec::with_capacity(STARTS);
    for _ in 0..STARTS {
        let began = Instant::now();
        let engine = Engine::new(&options)?;
        start_all(&engine)?;
        taken.push(began.elapsed().as_secs_f64() * 1e3);
        if engine.compilations() > 0 {
            return Err(Error::WrongAnswer("a plugin was compiled that was in the cache".to_owned()));
        }
    }
    Ok(median(taken))
}

fn start_all(engine: &Engine) -> Result<(), Error> {
    load::<RouterPlugin>(engine, "sla-router", offpeak_bundled::SLA_ROUTER, Limits::router())?;
    load::<RetryPlugin>(engine, "standard-retry", offpeak_bundled::STANDARD_RETRY, Limits::router())?;
    load::<CostPlugin>(engine, "standard-cost", offpeak_bundled::STANDARD_COST, Limits::provider())?;
    for (name, component) in offpeak_bundled::PROVIDERS {
        load::<ProviderPlugin>(engine, name, component, Limits::provider())?;
        if offpeak_bundled::ENGINES.contains(&name) {
            load::<EnginePlugin>(engine, name, component, Limits::provider())?;
        }
    }
    Ok(())
}

fn load<P: AnyPlugin>(engine: &Engine, name: &str, component: &[u8], limits: Limits) -> Result<P, Error> {
    Ok(P::load(engine, name, Source::Bytes(component), "{}".to_owned(), limits, NOW_MS)?)
}

/// The median time of a call.
fn timed<T>(calls: u32, mut call: impl FnMut() -> Result<T, PluginError>) -> Result<Duration, Error> {
    let mut rounds = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let began = Instant::now();
        for _ in 0..calls {
            black_box(call()?);
        }
        rounds.push(began.elapsed().as_secs_f64() / f64::from(calls));
    }
    Ok(Duration::from_secs_f64(median(rounds)))
}

/// A line of a batch's output file, of about the size of a short answer.
fn result_line(id: &str) -> String {
    let text = "The wind turned at four. ".repeat(40);
    format!(
        r#"{{"id":"batch_req_6740d1a2b3","custom_id":"{id}","response":{{"status_code":200,"request_id":"req_5f0c2d1b","body":{{"id":"chatcmpl-BmYxQ2","object":"chat.completion","created":1763940000,"model":"gpt-5-mini-2025-08-07","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":258,"completion_tokens":240,"total_tokens":498}}}}}},"error":null}}"#
    )
}

#[expect(clippy::cast_precision_loss, reason = "a megabyte is far below 2^52")]
fn megabytes_a_second(bytes: usize, took: Duration) -> f64 {
    bytes as f64 / 1e6 / took.as_secs_f64()
}

impl Report {
    /// The figures as Markdown.
    pub fn markdown(&self) -> String {
        let mut table = Table::new(["warm calls of the bundled plugins, one core", "median"]);
        table.row(["router: `route`".to_owned(), format!("{} us", figure(self.route_us))]);
        let prepare = "provider: `prepare` (the daemon keeps the answer)".to_owned();
        table.row([prepare, format!("{} us", figure(self.prepare_us))]);
        let encode = format!("provider: `encode-items`, {ITEMS} items of 2 KB");
        table.row([encode, format!("{} MB/s", figure(self.encode_mb_s))]);
        let decode = format!("provider: `decode-results`, {ITEMS} lines of 1.4 KB");
        table.row([decode, format!("{} MB/s", figure(self.decode_mb_s))]);
        let start = "start of all bundled plugins, from compiled files".to_owned();
        table.row([start, format!("{} ms", figure(self.start_ms))]);
        table.markdown()
    }

    /// What was wanted of these figures.
    pub fn targets(&self) -> Vec<Target> {
        vec![
            Target::at_most("a warm call of the router", self.route_us, 5.0, "us"),
            Target::at_most("start of all bundled plugins, from compiled files", self.start_ms, 100.0, "ms"),
        ]
    }
}
