//! `/sim/...`: the bill, the statistics, the fault plan and the clock, for tests in other processes.

use std::time::Duration;

use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::bill::EachExecution;
use crate::clock::SimTime;
use crate::error::ApiError;
use crate::faults::{BatchFault, FaultOrder, Faults};
use crate::provider::Provider;
use crate::reply::SimResponse;
use crate::route::Endpoint;
use crate::scenario::Scenario;
use crate::wire::parse;

/// Body of `POST /sim/faults`. What is left out stays as it is.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultsRequest {
    /// Replaces the rules.
    set: Option<Faults>,
    /// Orders single faults of calls.
    #[serde(default)]
    next: Vec<FaultOrder>,
    /// Orders the faults of coming batches, one list a batch.
    #[serde(default)]
    next_batch: Vec<Vec<BatchFault>>,
}

/// Body of `POST /sim/scenario`: one of `name` and `set`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ScenarioRequest {
    name: Option<String>,
    set: Option<Scenario>,
    /// Whether its times of day count from now on instead of from the start.
    #[serde(default)]
    from_now: bool,
}

/// Body of `POST /sim/engine`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EngineRequest {
    r#do: EngineOrder,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum EngineOrder {
    Start,
    Stop,
    Crash,
}

/// Body of `POST /sim/clock/advance`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AdvanceRequest {
    /// Provider milliseconds.
    ms: u64,
}

/// Answers a call to `/sim/{path}`.
pub(crate) fn handle(
    provider: &Provider,
    method: &Method,
    path: &str,
    body: &[u8],
) -> Result<SimResponse, ApiError> {
    match (method.as_str(), path) {
        ("GET", "bill") => Ok(SimResponse::of(&provider.bill())),
        ("GET", "executions") => Ok(SimResponse::of(&EachExecution(provider.bill().executions))),
        ("GET", "stats") => Ok(SimResponse::of(&stats(provider))),
        ("POST", "faults") => {
            let request: FaultsRequest = parse(body)?;
            if let Some(faults) = request.set {
                provider.faults().set(faults);
            }
            for FaultOrder { endpoint, fault } in request.next {
                provider.faults().next(endpoint, fault);
            }
            for faults in request.next_batch {
                provider.faults().next_batch(faults);
            }
            Ok(SimResponse::of(&json!({ "ok": true })))
        }
        ("GET", "scenario") => Ok(SimResponse::of(&provider.scenario())),
        ("POST", "scenario") => {
            provider.set_scenario(scenario(provider, parse(body)?)?);
            Ok(SimResponse::of(&provider.scenario()))
        }
        ("GET", "engine") => engine(provider),
        ("POST", "engine") => {
            match parse::<EngineRequest>(body)?.r#do {
                EngineOrder::Start => provider.start_engine(),
                EngineOrder::Stop => provider.stop_engine(),
                EngineOrder::Crash => provider.crash_engine(),
            }
            engine(provider)
        }
        ("GET", "clock") => Ok(clock(provider)),
        ("POST", "clock/advance") => {
            let AdvanceRequest { ms } = parse(body)?;
            provider.clock().advance(Duration::from_millis(ms));
            Ok(clock(provider))
        }
        _ => Err(ApiError::not_found(format!(
            "No {method} /sim/{path}. There are GET /sim/bill, GET /sim/executions, GET /sim/stats, POST /sim/faults, GET \
             and POST /sim/scenario, GET and POST /sim/engine, GET /sim/clock and POST /sim/clock/advance."
        ))),
    }
}

fn scenario(provider: &Provider, request: ScenarioRequest) -> Result<Scenario, ApiError> {
    let scenario = match (request.name, request.set) {
        (Some(name), None) => Scenario::named(&name).ok_or_else(|| {
            let names: Vec<_> = Scenario::names().collect();
            ApiError::invalid_value("name", &name, &names.join(", "))
        })?,
        (None, Some(scenario)) => scenario,
        _ => return Err(ApiError::invalid("Give either the 'name' of a scenario or one to 'set'.")),
    };
    if !request.from_now {
        return Ok(scenario);
    }
    let clock = provider.clock();
    Ok(scenario.later(Duration::from_millis(clock.now().millis_since(clock.epoch()))))
}

fn engine(provider: &Provider) -> Result<SimResponse, ApiError> {
    let none = || ApiError::not_found("This simulator is no engine; start it with --engine.");
    provider.engine().map(|status| SimResponse::of(&status)).ok_or_else(none)
}

fn clock(provider: &Provider) -> SimResponse {
    let SimTime(ms) = provider.clock().now();
    SimResponse::of(&json!({ "now_ms": ms, "speed": provider.clock().speed() }))
}

fn stats(provider: &Provider) -> Value {
    let by_endpoint = |count: &dyn Fn(Endpoint) -> u64| -> Value {
        let name =
            |endpoint| serde_json::to_value(endpoint).ok().and_then(|name| name.as_str().map(str::to_owned));
        let row = |endpoint| Some((name(endpoint)?, count(endpoint).into()));
        Value::Object(Endpoint::ALL.into_iter().filter_map(row).collect())
    };
    json!({
        "calls": by_endpoint(&|endpoint| provider.calls(endpoint)),
        "faults": by_endpoint(&|endpoint| provider.faults().injected(endpoint)),
    })
}
