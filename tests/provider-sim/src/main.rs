//! The simulated provider as a program.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;
use provider_sim::{Faults, Limits, Server, Sim, SimTime};
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
    /// 0 stops time, to be moved by POST /sim/clock/advance.
    #[arg(long, default_value_t = 3600)]
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
    /// Calls allowed in a provider minute, for each key.
    #[arg(long)]
    requests_per_minute: Option<u32>,
    /// Prompt tokens of a model that may wait in batches.
    #[arg(long)]
    enqueued_tokens: Option<u64>,
    /// A fault plan to start with, as JSON.
    #[arg(long, value_name = "FILE")]
    faults: Option<PathBuf>,
}

const EXAMPLES: &str = r#"Beside the API there is, without a key:
  GET  /sim/bill            what ran and what it cost at list price, in 10^-12 USD
  GET  /sim/stats           calls and injected faults by endpoint
  GET  /sim/clock           provider time
  POST /sim/clock/advance   {"ms": 3600000}
  POST /sim/faults          {"set": PLAN, "next": [...], "next_batch": [[...]]}

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
    #[error("cannot read the fault plan {0}: {1}; check the path given with --faults")]
    ReadFaults(PathBuf, std::io::Error),
    #[error("the fault plan {0} is not valid: {1}; see --help for its form")]
    ParseFaults(PathBuf, serde_json::Error),
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
    let faults = match args.faults {
        None => Faults::default(),
        Some(path) => {
            let text =
                std::fs::read_to_string(&path).map_err(|error| Failure::ReadFaults(path.clone(), error))?;
            serde_json::from_str(&text).map_err(|error| Failure::ParseFaults(path, error))?
        }
    };
    let limits = Limits {
        requests_per_minute: args.requests_per_minute,
        enqueued_tokens: args.enqueued_tokens,
        ..Limits::default()
    };
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut builder = Sim::builder()
        .seed(args.seed)
        .speed(args.speed)
        .epoch(SimTime(u64::try_from(wall.as_millis()).unwrap_or_default()))
        .keys(args.keys)
        .faults(faults)
        .limits(limits)
        .latency(Duration::from_millis(args.latency_ms))
        .stream_gap(Duration::from_millis(args.stream_gap_ms))
        .track_executions(args.track_executions)
        .prompt_cache(args.prompt_cache);
    if !args.models.is_empty() {
        builder = builder.models(args.models);
    }
    let cannot_listen = |error| Failure::Listen(args.listen, error);
    let listener = TcpListener::bind(args.listen).await.map_err(cannot_listen)?;
    let mut server = Server::start(listener, builder.build()).map_err(cannot_listen)?;
    let mut out = std::io::stdout();
    writeln!(out, "listening on {}", server.url()).and_then(|()| out.flush()).map_err(Failure::Print)?;
    server.wait().await;
    Ok(())
}
