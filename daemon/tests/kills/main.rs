//! The real program, killed with SIGKILL again and again while clients and a provider are at work; then the provider's bill
//! and the clients are counted.
//!
//! `OFFPEAK_KILLS=100 cargo test -p offpeak --test kills -- --nocapture` kills it a hundred times. The moments come from a
//! seed that it prints; what they hit depends on the machine as well.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod daemon;
mod rescue;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use daemon::Daemon;
use provider_sim::{Mode, Provider, Server, Sim, answer, execution_key};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// How often it is killed where nobody says otherwise.
const KILLS: u64 = 15;
/// Clients at the same time.
const CLIENTS: u64 = 12;
/// No request may take longer once nobody kills the daemon any more.
const LIMIT: Duration = Duration::from_mins(2);

const MODEL: &str = "gpt-4o-mini";
const CHAT: &str = "/v1/chat/completions";
const KEY: &str = "sk-of-the-provider";

/// What all clients share.
struct Load {
    http: Client,
    base: String,
    is_enough: AtomicBool,
    answered: AtomicU64,
    /// Calls that broke off because the daemon was killed.
    cut_off: AtomicU64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_it_loses_nothing_and_pays_nothing_twice() {
    let kills: u64 = std::env::var("OFFPEAK_KILLS").ok().map_or(KILLS, |text| text.parse().unwrap());
    let seed =
        std::env::var("OFFPEAK_KILLS_SEED").ok().map_or_else(rand::random, |text| text.parse().unwrap());
    println!(
        "{kills} kills; the same again: OFFPEAK_KILLS={kills} OFFPEAK_KILLS_SEED={seed} cargo test -p offpeak --test kills"
    );
    offpeak::upstream::install_crypto();
    let provider = simulator(seed);
    let server = Server::on_free_port(provider.clone()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::new(folder.path(), &server.url(), KEY, "");
    daemon.start().await;
    let load = Arc::new(Load {
        http: Client::builder().no_proxy().timeout(LIMIT).build().unwrap(),
        base: daemon.url(),
        is_enough: AtomicBool::new(false),
        answered: AtomicU64::new(0),
        cut_off: AtomicU64::new(0),
    });
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        clients.spawn(client(load.clone(), number, seed));
    }

    let mut dice = StdRng::seed_from_u64(seed);
    for _ in 0..kills {
        // From its very first moments on, and well into its work.
        let longest_ms = 1 << dice.random_range(4..=10);
        let life = Duration::from_millis(dice.random_range(0..=longest_ms));
        tokio::time::sleep(life).await;
        daemon.kill();
        daemon.start().await;
    }
    load.is_enough.store(true, Ordering::Relaxed);
    let mut prompts = Vec::new();
    while let Some(asked) = clients.join_next().await {
        prompts.extend(asked.unwrap());
    }

    let bill = provider.bill();
    let (asked, cut_off) = (prompts.len() as u64, load.cut_off.load(Ordering::Relaxed));
    println!(
        "{asked} requests, {cut_off} calls cut off; the provider ran {} in batches",
        bill.requests(Mode::Batch)
    );
    assert_eq!(load.answered.load(Ordering::Relaxed), asked, "each got its answer");
    assert_eq!(bill.executions.repeated(), [], "nothing was run twice");
    assert!(prompts.iter().all(|prompt| runs(&provider, prompt) == 1), "each was run");
    assert_eq!(bill.requests(Mode::Batch), asked, "and nothing else was");
    assert!(cut_off > 0, "the kills came while calls were under way");
    daemon.kill();
}

/// Asks one thing after the other until it is enough; returns all that it asked.
async fn client(load: Arc<Load>, number: u64, seed: u64) -> Vec<String> {
    let mut dice = StdRng::seed_from_u64(seed ^ (number << 32));
    let mut asked = Vec::new();
    while !load.is_enough.load(Ordering::Relaxed) {
        let prompt =
            format!("client {number} question {} {}", asked.len(), "word ".repeat(dice.random_range(1..200)));
        let answer =
            if dice.random_bool(0.5) { load.by_ticket(&prompt).await } else { load.held(&prompt).await };
        assert_eq!(answer["choices"][0]["message"]["content"], answer_to(&prompt), "the answer to {prompt}");
        load.answered.fetch_add(1, Ordering::Relaxed);
        asked.push(prompt);
    }
    asked
}

/// A provider in which an hour takes a second.
fn simulator(seed: u64) -> Provider {
    Sim::builder().seed(seed).speed(3600).keys([KEY]).track_executions(true).build()
}

/// How often the provider has run this.
fn runs(provider: &Provider, prompt: &str) -> u32 {
    provider.bill().executions.of(execution_key(CHAT, &body(prompt)).unwrap())
}

fn answer_to(prompt: &str) -> Value {
    answer(MODEL, prompt, None).text.into()
}

fn body(prompt: &str) -> Vec<u8> {
    json!({ "model": MODEL, "messages": [{ "role": "user", "content": prompt }] }).to_string().into_bytes()
}

impl Load {
    /// With a key, as one does who wants to be sure; then the ticket is looked at until the answer is there.
    async fn by_ticket(&self, prompt: &str) -> Value {
        let mut patience = Patience::new();
        let location = loop {
            match self.take_ticket(prompt).await {
                Some(location) => break location,
                None => self.wait(&mut patience, prompt).await,
            }
        };
        loop {
            match self.look(&location).await {
                Some(answer) => return answer,
                None => self.wait(&mut patience, prompt).await,
            }
        }
    }

    async fn take_ticket(&self, prompt: &str) -> Option<String> {
        let call = self.http.post(format!("{}{CHAT}", self.base)).header("x-offpeak-sla", "24h");
        let call = call.header("prefer", "respond-async").header("idempotency-key", prompt_key(prompt));
        let response =
            call.header("content-type", "application/json").body(body(prompt)).send().await.ok()?;
        (response.status() == StatusCode::ACCEPTED)
            .then(|| response.headers()["location"].to_str().unwrap().to_owned())
    }

    async fn look(&self, location: &str) -> Option<Value> {
        let response = self.http.get(format!("{}{location}", self.base)).send().await.ok()?;
        assert_ne!(response.status(), StatusCode::NOT_FOUND, "{location} is not known any more");
        let is_there = response.status() == StatusCode::OK;
        let answer = response.json().await.ok()?;
        is_there.then_some(answer)
    }

    /// As an SDK does: a call that is cut off is made again, and finds its work by its body.
    async fn held(&self, prompt: &str) -> Value {
        let mut patience = Patience::new();
        loop {
            match self.hold(prompt, patience.tries).await {
                Some(answer) => return answer,
                None => self.wait(&mut patience, prompt).await,
            }
        }
    }

    async fn hold(&self, prompt: &str, tries: u64) -> Option<Value> {
        let call = self.http.post(format!("{}{CHAT}", self.base)).header("x-offpeak-sla", "24h");
        let call = call.header("x-stainless-retry-count", tries).header("content-type", "application/json");
        let response = call.body(body(prompt)).send().await.ok()?;
        let is_there = response.status() == StatusCode::OK;
        let answer = response.json().await.ok()?;
        is_there.then_some(answer)
    }

    /// A moment, unless it took too long in all.
    async fn wait(&self, patience: &mut Patience, prompt: &str) {
        patience.tries += 1;
        self.cut_off.fetch_add(1, Ordering::Relaxed);
        if !self.is_enough.load(Ordering::Relaxed) {
            patience.since = Instant::now();
        }
        assert!(patience.since.elapsed() < LIMIT, "no answer within {LIMIT:?} to {prompt}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How often a client has tried, and since when nobody is to blame for that but the daemon.
struct Patience {
    tries: u64,
    since: Instant,
}

impl Patience {
    fn new() -> Self {
        Self { tries: 0, since: Instant::now() }
    }
}

/// Header values have no blanks at their ends.
fn prompt_key(prompt: &str) -> String {
    prompt.split(" word").next().unwrap_or_default().replace(' ', "-")
}
