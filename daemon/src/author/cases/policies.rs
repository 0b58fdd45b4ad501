//! Cases of retry policies, cost policies and engines' adapters: one call each.

use std::collections::BTreeMap;

use offpeak_host::values::{adapter, cost, retry};
use offpeak_host::{CostPlugin, EnginePlugin, RetryPlugin};
use serde::Deserialize;
use serde_json::{Value, json};

use super::file::Case;
use super::words::{Body, DAY_MS, ENDPOINT, Fate, MODEL, Mode, Span};
use super::{CaseProblem, Given, outcome};

fn given(case: &Case, gave: Value) -> Result<Vec<Given>, CaseProblem> {
    Ok(vec![Given { step: None, expected: case.gives()?, gave }])
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Judged {
    attempt: Attempt,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Attempt {
    backend: String,
    endpoint: String,
    model: String,
    offer: String,
    mode: Mode,
    /// It was answered with this,
    status: Option<u16>,
    /// or not at all.
    failure: Option<Failure>,
    body: Body,
    attempts: u32,
    retry_after: Option<Span>,
    left: Span,
}

impl Default for Attempt {
    fn default() -> Self {
        Self {
            backend: "openai".into(),
            endpoint: ENDPOINT.into(),
            model: MODEL.into(),
            offer: "batch".into(),
            mode: Mode::Batch,
            status: None,
            failure: None,
            body: Body::default(),
            attempts: 1,
            retry_after: None,
            left: Span(DAY_MS),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Failure {
    ran: Fate,
    code: String,
    #[serde(default)]
    message: String,
}

/// Asks a retry policy once.
pub(super) fn judge(plugin: &RetryPlugin, case: &Case) -> Result<Vec<Given>, CaseProblem> {
    let Judged { attempt } = case.input()?;
    let ending = match (attempt.status, &attempt.failure) {
        (Some(status), None) => retry::Ending::Answered(status),
        (None, Some(Failure { ran, code, message })) => {
            retry::Ending::Failed(retry::Failure { ran: (*ran).into(), code, message })
        }
        _ => return Err("an attempt has either a `status` or a `failure`".to_owned()),
    };
    let view = retry::Attempt {
        backend: &attempt.backend,
        endpoint: &attempt.endpoint,
        model: &attempt.model,
        offer: &attempt.offer,
        mode: attempt.mode.into(),
        ending,
        body: &attempt.body.0,
        attempts: attempt.attempts,
        retry_after_ms: attempt.retry_after.map(|span| span.0),
        left_ms: attempt.left.0,
    };
    given(case, outcome(plugin.judge(&view, case.now_ms), shown_meaning))
}

fn shown_meaning(meaning: retry::Meaning) -> Value {
    json!(match meaning {
        retry::Meaning::Temporary(Some(after_ms)) => return json!({ "temporary": { "after_ms": after_ms } }),
        retry::Meaning::Temporary(None) => "temporary",
        retry::Meaning::Permanent => "permanent",
        retry::Meaning::Elsewhere => "elsewhere",
        retry::Meaning::RunNow => "run_now",
        retry::Meaning::NoRoom => "no_room",
        retry::Meaning::NotSold => "not_sold",
        retry::Meaning::Exhausted => "exhausted",
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Assessed {
    #[serde(default)]
    sale: Sale,
    outcomes: Vec<Outcome>,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Sale {
    backend: String,
    endpoint: String,
    model: String,
    offer: String,
    mode: Mode,
    price_permille: u32,
    /// In 10^-12 dollars.
    rates: BTreeMap<String, i64>,
}

impl Default for Sale {
    fn default() -> Self {
        // 0.15 and 0.60 dollars a million tokens.
        let rates = [("input_cost_per_token", 150_000), ("output_cost_per_token", 600_000)];
        Self {
            backend: "openai".into(),
            endpoint: ENDPOINT.into(),
            model: MODEL.into(),
            offer: "batch".into(),
            mode: Mode::Batch,
            price_permille: 500,
            rates: rates.into_iter().map(|(name, price)| (name.to_owned(), price)).collect(),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Purpose {
    First,
    Retry,
    Rescue,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Outcome {
    tenant: String,
    purpose: Purpose,
    ran: Fate,
    status: u16,
    tier: Option<String>,
    usage: Option<Usage>,
    wasted: bool,
    took: Span,
    together: u32,
}

impl Default for Outcome {
    fn default() -> Self {
        Self {
            tenant: "acme".into(),
            purpose: Purpose::First,
            ran: Fate::Ran,
            status: 200,
            tier: None,
            usage: None,
            wasted: false,
            took: Span(1000),
            together: 1,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Usage {
    input: u64,
    cached: u64,
    cache_written: u64,
    cache_written_one_hour: u64,
    audio_input: u64,
    output: u64,
    reasoning: u64,
    audio_output: u64,
}

impl Usage {
    const fn view(&self) -> cost::Usage {
        cost::Usage {
            input: self.input,
            cached: self.cached,
            cache_written: self.cache_written,
            cache_written_one_hour: self.cache_written_one_hour,
            audio_input: self.audio_input,
            output: self.output,
            reasoning: self.reasoning,
            audio_output: self.audio_output,
        }
    }
}

/// Asks a cost policy once.
pub(super) fn assess(plugin: &CostPlugin, case: &Case) -> Result<Vec<Given>, CaseProblem> {
    let Assessed { sale, outcomes } = case.input()?;
    let rates: Vec<_> = sale.rates.iter().map(|(name, price)| cost::Rate { name, price: *price }).collect();
    let view = cost::Sale {
        backend: &sale.backend,
        endpoint: &sale.endpoint,
        model: &sale.model,
        offer: &sale.offer,
        mode: sale.mode.into(),
        price_permille: sale.price_permille,
        rates: &rates,
    };
    let outcomes: Vec<_> = outcomes.iter().map(Outcome::view).collect();
    let gave = outcome(plugin.assess(&view, &outcomes, case.now_ms), |charges| {
        charges.iter().map(shown_charge).collect()
    });
    given(case, gave)
}

impl Outcome {
    fn view(&self) -> cost::Outcome<'_> {
        cost::Outcome {
            tenant: &self.tenant,
            purpose: match self.purpose {
                Purpose::First => cost::Purpose::First,
                Purpose::Retry => cost::Purpose::Retry,
                Purpose::Rescue => cost::Purpose::Rescue,
            },
            ran: self.ran.into(),
            status: Some(self.status),
            tier: self.tier.as_deref(),
            usage: self.usage.as_ref().map(Usage::view),
            wasted: self.wasted,
            took_ms: self.took.0,
            together: self.together,
        }
    }
}

fn shown_charge(charge: &cost::Charge) -> Value {
    json!({
        "tenant": charge.tenant,
        "cost": charge.cost,
        "realtime_cost": charge.realtime_cost,
        "priced": charge.priced,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Looked {
    /// What was read, one for each look.
    sights: Vec<Sight>,
    #[serde(default)]
    realtime: u32,
    #[serde(default)]
    deferred: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sight {
    status: Option<u16>,
    #[serde(default)]
    body: Body,
}

/// Asks an engine's adapter once. What it wants to read is part of what it gives.
pub(super) fn interpret(plugin: &EnginePlugin, case: &Case) -> Result<Vec<Given>, CaseProblem> {
    let Looked { sights, realtime, deferred } = case.input()?;
    if sights.len() != plugin.looks().len() {
        let paths: Vec<_> = plugin.looks().iter().map(|look| look.path.as_str()).collect();
        return Err(format!(
            "there are {} sights, and the plugin reads {}: {}",
            sights.len(),
            paths.len(),
            paths.join(", ")
        ));
    }
    let sights: Vec<_> =
        sights.iter().map(|sight| adapter::Sight { status: sight.status, body: &sight.body.0 }).collect();
    let under_way = adapter::UnderWay { realtime, deferred };
    let gave = outcome(plugin.interpret(&sights, under_way, case.now_ms), |load| {
        json!({
            "state": match load.state {
                adapter::State::Ready => "ready",
                adapter::State::Resting => "resting",
                adapter::State::Down => "down",
            },
            "running": load.running,
            "waiting": load.waiting,
            "cache_permille": load.cache_permille,
            "prompt_tokens": load.prompt_tokens,
            "generated_tokens": load.generated_tokens,
            "room": load.room,
        })
    });
    given(case, gave)
}
