//! Ordinary calls of each world, to see how a plugin does: a request of a day, to a backend with three offers.

use offpeak_host::values::{adapter, cost, provider, retry, router};
use offpeak_host::{CostPlugin, EnginePlugin, PluginError, ProviderPlugin, RetryPlugin, RouterPlugin};

const ENDPOINT: &str = "/v1/chat/completions";
const MODEL: &str = "gpt-4o-mini";
const BODY: &[u8] = br#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"no hurry"}]}"#;
const DAY_MS: u64 = 86_400_000;

/// What a call came to, in a few words; none where the words are the plugin's success alone.
pub type Said = Result<String, PluginError>;

const OFFERS: [router::Offer<'static>; 3] = [
    offer("standard", router::Mode::Realtime, 1000, 0, 0),
    offer("flex", router::Mode::Realtime, 500, 0, 60_000),
    offer("batch", router::Mode::Batch, 500, DAY_MS, 3_600_000),
];

/// Those of an engine of one's own.
const ENGINE_OFFERS: [router::Offer<'static>; 2] = [
    offer("standard", router::Mode::Realtime, 1000, 0, 0),
    offer("idle", router::Mode::Engine, 0, 0, 60_000),
];

/// Who asks a router, and what it may choose among: a router may know those of its daemon alone.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    /// The tenant.
    pub tenant: &'a str,
    /// Backends, and whether each is an engine of one's own.
    pub backends: &'a [(&'a str, bool)],
}

const fn offer(
    name: &'static str,
    mode: router::Mode,
    price_permille: u32,
    window_ms: u64,
    usual_ms: u64,
) -> router::Offer<'static> {
    router::Offer { name, mode, price_permille, window_ms, usual_ms }
}

/// What a function's ordinary call asks, in words.
#[must_use]
pub fn asked(function: &str) -> &'static str {
    match function {
        "route" => {
            "POST /v1/chat/completions of gpt-4o-mini with x-offpeak-sla: 24h, by tenant acme to the backend openai (in a daemon: \
             by one of its tenants to all of its backends), with the offers standard, flex and batch"
        }
        "judge" => "a batch at openai ended in 503 server_error at the first attempt, with a day left",
        "assess" => {
            "1,000 tokens in and 100 out of gpt-4o-mini by tenant acme, in a batch at half of 0.15 and 0.60 USD a million"
        }
        "interpret" => "each look was answered with 404 not found",
        "offers" => {
            "what is sold of gpt-4o-mini at the plugin's first endpoint, chat completions if it has them"
        }
        "prepare" => "a call of gpt-4o-mini in real time, offer standard",
        "encode-items" => "one item of a batch of gpt-4o-mini, offer batch",
        _ => "",
    }
}

/// A request that may take a day is routed, to one of no daemon.
pub fn route(plugin: &RouterPlugin, now_ms: u64) -> Said {
    route_in(&Scene { tenant: "acme", backends: &[("openai", false)] }, plugin, now_ms)
}

/// A request that may take a day is routed.
pub fn route_in(scene: &Scene<'_>, plugin: &RouterPlugin, now_ms: u64) -> Said {
    let headers = [router::Header { name: "x-offpeak-sla", value: "24h" }];
    let envelope = router::Envelope {
        tenant: scene.tenant,
        endpoint: ENDPOINT,
        model: MODEL,
        sla: router::Sla::Within(DAY_MS),
        tag: router::Tag::Header,
        stream: false,
        body_bytes: BODY.len() as u64,
        input_tokens: 20,
        max_output_tokens: None,
        headers: &headers,
        body: match plugin.description().body {
            router::BodyNeed::None => None,
            router::BodyNeed::Prefix(bytes) => Some(BODY.get(..bytes as usize).unwrap_or(BODY)),
            router::BodyNeed::Whole => Some(BODY),
        },
    };
    let candidates = scene.backends.iter().map(|&(backend, is_engine)| router::Candidate {
        backend,
        healthy: true,
        offers: if is_engine { &ENGINE_OFFERS } else { &OFFERS },
    });
    let candidates: Vec<_> = candidates.collect();
    Ok(match plugin.route(&envelope, &candidates, now_ms)? {
        router::Decision::Choose(choice) => format!("chose {} at {}", choice.offer, choice.backend),
        router::Decision::Reject(rejection) => format!("rejected with {}", rejection.status),
        router::Decision::Pass => {
            "passed on; --config FILE gives it the settings under which it decides".to_owned()
        }
    })
}

/// An answer of 503 is judged.
pub fn judge(plugin: &RetryPlugin, now_ms: u64) -> Said {
    let attempt = retry::Attempt {
        backend: "openai",
        endpoint: ENDPOINT,
        model: MODEL,
        offer: "batch",
        mode: retry::Mode::Batch,
        ending: retry::Ending::Answered(503),
        body: br#"{"error":{"message":"overloaded","code":"server_error"}}"#,
        attempts: 1,
        retry_after_ms: None,
        left_ms: DAY_MS,
    };
    Ok(match plugin.judge(&attempt, now_ms)? {
        retry::Meaning::Permanent => "503 is permanent".to_owned(),
        retry::Meaning::Temporary(_) => "503 passes".to_owned(),
        retry::Meaning::Elsewhere => "503: elsewhere".to_owned(),
        retry::Meaning::RunNow => "503: run now".to_owned(),
        retry::Meaning::NoRoom => "503: no room".to_owned(),
        retry::Meaning::NotSold => "503: not sold".to_owned(),
        retry::Meaning::Exhausted => "503: quota used up".to_owned(),
    })
}

/// A thousand tokens in and a hundred out are charged.
pub fn assess(plugin: &CostPlugin, now_ms: u64) -> Said {
    // 0.15 and 0.60 dollars a million tokens, in 10^-12 dollars.
    let rates = [
        cost::Rate { name: "input_cost_per_token", price: 150_000 },
        cost::Rate { name: "output_cost_per_token", price: 600_000 },
    ];
    let sale = cost::Sale {
        backend: "openai",
        endpoint: ENDPOINT,
        model: MODEL,
        offer: "batch",
        mode: cost::Mode::Batch,
        price_permille: 500,
        rates: &rates,
    };
    let usage = cost::Usage {
        input: 1000,
        cached: 0,
        cache_written: 0,
        cache_written_one_hour: 0,
        audio_input: 0,
        output: 100,
        reasoning: 0,
        audio_output: 0,
    };
    let outcome = cost::Outcome {
        tenant: "acme",
        purpose: cost::Purpose::First,
        ran: cost::DidItRun::Ran,
        status: Some(200),
        tier: None,
        usage: Some(usage),
        wasted: false,
        took_ms: 1000,
        together: 1,
    };
    let charges = plugin.assess(&sale, &[outcome], now_ms)?;
    let charge = |charge: &cost::Charge| {
        let usd = offpeak_core::money::Money(charge.cost.into()).to_decimal();
        format!("1,000 tokens in and 100 out cost {} {usd} USD", charge.tenant)
    };
    Ok(charges.first().map(charge).unwrap_or_default())
}

/// An engine that answers nothing but 404 is judged.
pub fn interpret(plugin: &EnginePlugin, now_ms: u64) -> Said {
    let sights: Vec<_> =
        plugin.looks().iter().map(|_| adapter::Sight { status: Some(404), body: b"not found" }).collect();
    let load = plugin.interpret(&sights, adapter::UnderWay { realtime: 0, deferred: 0 }, now_ms)?;
    let state = match load.state {
        adapter::State::Ready => "ready",
        adapter::State::Resting => "resting",
        adapter::State::Down => "down",
    };
    Ok(format!("an engine that answers 404 is {state}"))
}

/// The ladder of a model is asked for.
pub fn offers(plugin: &ProviderPlugin, now_ms: u64) -> Said {
    let endpoint = endpoint(plugin);
    let offers = plugin.offers(endpoint, MODEL, now_ms)?;
    if offers.is_empty() {
        return Ok(format!("does not sell {MODEL} at {endpoint}"));
    }
    let names: Vec<_> = offers.iter().map(|offer| offer.name.as_str()).collect();
    Ok(format!("sells {}", names.join(", ")))
}

/// A call in real time is prepared.
pub fn prepare(plugin: &ProviderPlugin, now_ms: u64) -> Said {
    let call = provider::Call { endpoint: endpoint(plugin), model: MODEL, offer: "standard" };
    Ok(match plugin.prepare(&call, now_ms)? {
        Ok(prepared) => format!("sends to {}", prepared.path),
        Err(refusal) => format!("refused: {}", refusal.message),
    })
}

/// An item of a batch is written.
pub fn encode(plugin: &ProviderPlugin, now_ms: u64) -> Said {
    let batch = provider::Batch {
        mark: "0000000000000001-1",
        endpoint: endpoint(plugin),
        model: MODEL,
        offer: "batch",
        items: 1,
        waiting: 1,
        headers: &[],
        only: None,
        created_at_ms: now_ms,
    };
    let encoded = plugin.encode_items(&batch, &[provider::Item { id: "0-0", body: BODY }], now_ms)?;
    Ok(format!("an item of {} bytes makes {}", BODY.len(), encoded.bytes.len()))
}

/// Chat completions, where the provider knows them.
fn endpoint(plugin: &ProviderPlugin) -> &str {
    let endpoints = &plugin.description().endpoints;
    if endpoints.iter().any(|known| known == ENDPOINT) {
        return ENDPOINT;
    }
    endpoints.first().map_or(ENDPOINT, String::as_str)
}
