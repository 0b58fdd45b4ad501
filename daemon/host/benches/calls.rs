//! What a warm call to a router costs: `cargo bench -p offpeak-host`.
//!
//! Plain timing: a round is the time of many calls divided by their number; the least and the median of all rounds are
//! printed. Run without `--bench` (as a test run does) it makes only a few calls.

#![expect(clippy::unwrap_used, reason = "a benchmark may stop at what goes wrong")]

use std::{
    env,
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

use offpeak_host::{
    Engine, EngineOptions, Limits, ProviderPlugin, RouterPlugin, Source,
    values::{
        provider::Call,
        router::{Candidate, Envelope, Header, Mode, Offer, Sla, Tag},
    },
};

const NOW_MS: u64 = 1_700_000_000_000;
const CALLS_A_ROUND: u32 = 1000;

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

const HEADERS: [Header<'static>; 3] = [
    Header { name: "x-offpeak-sla", value: "24h" },
    Header { name: "user-agent", value: "OpenAI/Python 2.0" },
    Header { name: "x-team", value: "search" },
];

const ENVELOPE: Envelope<'static> = Envelope {
    tenant: "acme",
    endpoint: "/v1/chat/completions",
    model: "gpt-5-mini",
    sla: Sla::Within(86_400_000),
    tag: Tag::Header,
    stream: false,
    body_bytes: 2048,
    input_tokens: 500,
    max_output_tokens: Some(256),
    headers: &HEADERS,
    body: None,
};

fn main() {
    let rounds = if env::args().any(|argument| argument == "--bench") { 500 } else { 2 };
    let engine = Engine::new(&EngineOptions::default()).unwrap();
    let limits = Limits { call: Duration::from_secs(1), ..Limits::router() };
    let candidates = [Candidate { backend: "openai", healthy: true, offers: &OFFERS }];

    println!("1 backend x 3 offers, 3 headers; ns a call");
    for (name, component) in
        [("guest", offpeak_guests::router::COMPONENT), ("sla-router", offpeak_bundled::SLA_ROUTER)]
    {
        let source = Source::Bytes(component);
        let router = RouterPlugin::load(&engine, name, source, "{}".into(), limits.clone(), NOW_MS).unwrap();
        let call = || {
            black_box(router.route(black_box(&ENVELOPE), black_box(&candidates), NOW_MS).unwrap());
        };
        report(&format!("{name} route, one thread"), rounds, call);
        thread::scope(|scope| {
            // The other core does the same, so that shared counters and queues show.
            let other = scope.spawn(|| (0..rounds * CALLS_A_ROUND).for_each(|_| call()));
            report(&format!("{name} route, two threads"), rounds / 2, call);
            other.join().unwrap();
        });
    }

    let source = Source::Bytes(offpeak_guests::provider::COMPONENT);
    let provider =
        ProviderPlugin::load(&engine, "guest", source, "{}".into(), Limits::provider(), NOW_MS).unwrap();
    let call = Call { endpoint: "/v1/chat/completions", model: "gpt-5-mini", offer: "flex" };
    report("guest prepare, one thread", rounds, || {
        black_box(provider.prepare(black_box(&call), NOW_MS).unwrap().unwrap());
    });
}

fn report(what: &str, rounds: u32, mut call: impl FnMut()) {
    let mut nanos: Vec<u128> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..CALLS_A_ROUND {
                call();
            }
            start.elapsed().as_nanos() / u128::from(CALLS_A_ROUND)
        })
        .collect();
    nanos.sort_unstable();
    let (least, median) = (nanos.first().unwrap(), nanos.get(nanos.len() / 2).unwrap());
    println!("{what:30} least {least:6}   median {median:6}");
}
