//! The simulated provider as a program.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;
use provider_sim::{EngineOptions, Provider, Scenario, Server, Sim, SimTime};
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;

/// A simulated provider, with the APIs of OpenAI and of Anthropic, that keeps the bill.
///
/// It answers chat completions, completions, embeddings, responses and moderations, with files and batches, and messages
/// with message batches, on `http://ADDRESS/v1`. Answers are a function of the request. When it is ready it prints one line:
/// `listening on http://ADDRESS`.
#[derive(Debug, Parser)]
#[command(version, after_long_help = EXAMPLES)]
struct Args {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// How many times faster than real time the provider lives: with 3600 a batch of 30 minutes takes half a second.
    /// 0 stops time, to be moved by POST /sim/clock/advance. An engine lives in real time when nothing is said.
    #[arg(long, default_value_if("engine", "true", "1"), default_value_t = 3600)]
    speed: u32,
    /// Seed of all that is drawn: how long batches take, the order of their results, faults.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// An API key to accept (may be given several times). Without one every call is let in.
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<String>,
    /// A model to offer (may be given several times), instead of those on the price list.
    #[arg(long = "model", value_name = "MODEL")]
    models: Vec<String>,
    /// Real milliseconds before each real-time answer.
    #[arg(long, default_value_t = 0)]
    latency_ms: u64,
    /// Real milliseconds between two events of a stream.
    #[arg(long, default_value_t = 0)]
    stream_gap_ms: u64,
    /// Count how often each request ran, to find what was paid twice (shown in the bill).
    #[arg(long)]
    track_executions: bool,
    /// Simulate prompt caching.
    #[arg(long)]
    prompt_cache: bool,
    /// Calls of any kind allowed in a provider minute, for each key.
    #[arg(long)]
    requests_per_minute: Option<u32>,
    /// Requests to a model in real time allowed in a provider minute, for each key.
    #[arg(long)]
    realtime_requests_per_minute: Option<u32>,
    /// Tokens of a model in real time allowed in a provider minute, for each key.
    #[arg(long)]
    realtime_tokens_per_minute: Option<u64>,
    /// Prompt tokens of a model that may wait in batches.
    #[arg(long)]
    enqueued_tokens: Option<u64>,
    /// The scenario to start with: the name of a ready one, or a file of JSON. Options of their own go before it.
    #[arg(long, value_name = "NAME|FILE")]
    scenario: Option<String>,
    /// Be a self-hosted engine with vLLM's surface instead of a provider.
    #[arg(long)]
    engine: bool,
    /// The engine's speed and limits, as JSON.
    #[arg(long, value_name = "FILE", requires = "engine")]
    engine_options: Option<PathBuf>,
    /// A fault plan to start with, as JSON.
    #[arg(long, value_name = "FILE")]
    faults: Option<PathBuf>,
}

/// The model of an engine when none is named.
const ENGINE_MODEL: &str = "sim-7b";
/// How long an engine that was told to end has for its last answers to go out.
const LAST_WORDS: Duration = Duration::from_millis(300);

const EXAMPLES: &str = r#"Beside the API there is, without a key:
  GET  /sim/bill            what ran and what it cost at list price, in 10^-12 USD
  GET  /sim/executions      how often each request ran, with --track-executions
  GET  /sim/stats           calls and injected faults by endpoint
  GET  /sim/clock           provider time
  POST /sim/clock/advance   {"ms": 3600000}
  POST /sim/faults          {"set": PLAN, "next": [...], "next_batch": [[...]]}
  GET  /sim/scenario        the scenario as it is now
  POST /sim/scenario        {"name": NAME, "from_now": true} or {"set": SCENARIO}; batches under way feel new stalls

Ready scenarios: healthy, slow_tail, stall, expiring, tight_quota, tight_enqueued, storm_429, storm_5xx, flex_scarce,
no_flex. A scenario (SCENARIO), every part optional; times of day are milliseconds since the start:
  {"timing":   {"turnaround_ms": [600000, 2400000], "pace": {"kind": "slow_tail", "permille": 50, "times": 8},
                "stalls": [{"from_ms": 3600000, "until_ms": 18000000}]},
   "limits":   {"realtime": {"requests_per_minute": 60, "tokens_per_minute": 40000}, "enqueued_tokens": 200000},
   "faults":   PLAN,
   "not_sold": {"flex": ["gpt-6-astra"], "background_windows": ["*"]}}

An engine (--engine) answers under /v1/chat/completions, /v1/completions, /v1/embeddings and /v1/models, and has /metrics,
/health, /load, /tokenize and /version. When it is told to end (SIGTERM) it answers what is under way with what it has.
  GET  /sim/engine          what runs, what waits, how busy it was
  POST /sim/engine          {"do": "stop"}, {"do": "crash"} or {"do": "start"}
Its options (--engine-options), every part optional (the defaults stand for one GPU of the A100 class):
  {"step_us": [[1, 2500], [32, 16000], [256, 96000]], "prefill_us": 40, "pooling_us": 380, "call_us": 500,
   "max_num_seqs": 256, "max_num_batched_tokens": 8192, "kv_cache_tokens": 200000, "max_model_len": 32768,
   "priority_scheduling": false, "max_num_queued_reqs": 1000, "max_num_queued_tokens": 1000000, "poison": "boom"}

A fault plan (PLAN), every part optional:
  {"http":    [{"on": "realtime", "probability": 0.01,
                "fault": {"kind": "status", "status": 429, "retry_after_ms": 1000}}],
   "batches": [{"probability": 0.1, "fault": {"kind": "stall"}}],
   "items":   [{"probability": 0.02, "fault": {"kind": "status", "status": 500}, "times": 1}]}

The answer to the next creation of a batch is lost, but the batch exists:
  {"next": [{"endpoint": "create_batch", "fault": {"kind": "drop_response_after_effect"}}]}
"#;

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot read the {0} {1}: {2}; check the path given with --{0}")]
    Read(&'static str, PathBuf, std::io::Error),
    #[error("the {0} {1} is not valid: {2}; see --help for its form")]
    Parse(&'static str, PathBuf, serde_json::Error),
    #[error("cannot listen on {0}: {1}; choose another address with --listen")]
    Listen(SocketAddr, std::io::Error),
    #[error("cannot write to the standard output: {0}")]
    Print(std::io::Error),
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("provider-sim: {failure}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<(), Failure> {
    let scenario = scenario(&args)?;
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut builder = Sim::builder()
        .seed(args.seed)
        .speed(args.speed)
        .epoch(SimTime(u64::try_from(wall.as_millis()).unwrap_or_default()))
        .keys(args.keys)
        .scenario(scenario)
        .latency(Duration::from_millis(args.latency_ms))
        .stream_gap(Duration::from_millis(args.stream_gap_ms))
        .track_executions(args.track_executions)
        .prompt_cache(args.prompt_cache);
    if args.engine {
        let options = match &args.engine_options {
            None => EngineOptions::default(),
            Some(path) => read("engine-options", path)?,
        };
        builder = builder.engine(options).models([ENGINE_MODEL]);
    }
    if !args.models.is_empty() {
        builder = builder.models(args.models);
    }
    let provider = builder.build();
    let cannot_listen = |error| Failure::Listen(args.listen, error);
    let listener = TcpListener::bind(args.listen).await.map_err(cannot_listen)?;
    let mut server = Server::start(listener, provider.clone()).map_err(cannot_listen)?;
    let mut out = std::io::stdout();
    writeln!(out, "listening on {}", server.url()).and_then(|()| out.flush()).map_err(Failure::Print)?;
    tokio::select! {
        () = server.wait() => {}
        () = terminated() => end(&provider).await,
    }
    Ok(())
}

/// Waits for SIGTERM; for ever where it cannot be waited for.
async fn terminated() {
    #[cfg(unix)]
    if let Ok(mut signal) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        signal.recv().await;
        return;
    }
    std::future::pending::<()>().await;
}

/// Lets an engine answer what is under way.
async fn end(provider: &Provider) {
    if provider.engine().is_some() {
        provider.stop_engine();
        tokio::time::sleep(LAST_WORDS).await;
    }
}

/// The scenario that the arguments describe.
fn scenario(args: &Args) -> Result<Scenario, Failure> {
    let mut scenario = match &args.scenario {
        None => Scenario::default(),
        Some(name) => match Scenario::named(name) {
            Some(ready) => ready,
            None => read("scenario", name.as_ref())?,
        },
    };
    if let Some(path) = &args.faults {
        scenario.faults = read("faults", path)?;
    }
    let limits = &mut scenario.limits;
    limits.requests_per_minute = args.requests_per_minute.or(limits.requests_per_minute);
    limits.enqueued_tokens = args.enqueued_tokens.or(limits.enqueued_tokens);
    let realtime = &mut limits.realtime;
    realtime.requests_per_minute = args.realtime_requests_per_minute.or(realtime.requests_per_minute);
    realtime.tokens_per_minute = args.realtime_tokens_per_minute.or(realtime.tokens_per_minute);
    Ok(scenario)
}

fn read<T: DeserializeOwned>(what: &'static str, path: &Path) -> Result<T, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| Failure::Read(what, path.into(), error))?;
    serde_json::from_str(&text).map_err(|error| Failure::Parse(what, path.into(), error))
}
