//! The demo's client: a mix of requests sent over HTTP, and the answers that came back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

/// The models of the mix.
pub const MODELS: [&str; 3] = ["gpt-4o-mini", "gpt-5-mini", "gpt-6-luna"];

/// Real-time requests under way at once, on each of the two ways.
const REALTIME_AT_ONCE: usize = 4;

/// Deferrable requests that are being handed in at once.
const HAND_IN_AT_ONCE: usize = 64;

/// One in so many deferrable requests is held open instead of taking a ticket.
const HELD_ONE_IN: usize = 20;

/// Between two looks at a ticket.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// After this long an answer counts as missing.
const PATIENCE: Duration = Duration::from_mins(3);

/// One request of the mix.
#[derive(Debug, Clone)]
pub struct Planned {
    /// Its model.
    pub model: &'static str,
    /// Its prompt; no two are alike.
    pub prompt: String,
    /// Its bound on the answer.
    pub max_tokens: u32,
}

/// What will be sent.
pub struct Plan {
    /// Now.
    pub realtime: Vec<Planned>,
    /// Within a day.
    pub deferrable: Vec<Planned>,
}

impl Plan {
    /// A mix that follows from the seed.
    pub fn new(realtime: usize, deferrable: usize, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut mix = |kind: &str, count: usize| -> Vec<Planned> {
            (0..count).map(|number| planned(kind, number, &mut random)).collect()
        };
        Self { realtime: mix("ask", realtime), deferrable: mix("sort", deferrable) }
    }
}

fn planned(kind: &str, number: usize, random: &mut StdRng) -> Planned {
    const WORDS: [&str; 8] =
        ["invoice", "meeting", "refund", "contract", "delivery", "question", "thanks", "urgent"];
    // Most prompts are short, some are long, as in life.
    let words =
        if random.random_ratio(1, 10) { random.random_range(200..600) } else { random.random_range(5..60) };
    let mut prompt = format!("{kind} {number}:");
    for _ in 0..words {
        prompt.push(' ');
        prompt.push_str(WORDS.choose(random).unwrap_or(&"word"));
    }
    let model = MODELS.choose(random).unwrap_or(&MODELS[0]);
    Planned { model, prompt, max_tokens: random.random_range(32..256) }
}

impl Planned {
    fn body(&self) -> Value {
        json!({
            "model": self.model,
            "messages": [
                { "role": "system", "content": "Sort the mail." },
                { "role": "user", "content": self.prompt },
            ],
            "max_tokens": self.max_tokens,
        })
    }

    /// The simulated provider's answers follow from the request, so that a wrong one shows.
    pub fn is_answered_by(&self, body: &Value) -> bool {
        let expected = provider_sim::answer(self.model, &self.prompt, Some(self.max_tokens)).text;
        body["choices"][0]["message"]["content"].as_str() == Some(&expected)
    }
}

/// What came back for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// Its own answer.
    Right,
    /// Another answer, or an error.
    Wrong,
    /// Nothing.
    Missing,
}

/// Everything that came back.
pub struct Seen {
    /// For each real-time request.
    pub realtime: Vec<Came>,
    /// For each deferrable request.
    pub deferrable: Vec<Came>,
    /// How long real-time calls took through the daemon.
    pub through: Vec<Duration>,
    /// How long the same calls took straight to a provider.
    pub straight: Vec<Duration>,
    /// How long the deferrable part took, from its first request to its last answer.
    pub deferred_took: Duration,
}

/// Where to send.
pub struct Traffic {
    /// The daemon's base URL.
    pub daemon: String,
    /// A provider's base URL, for comparison.
    pub straight: String,
    /// Its key.
    pub straight_key: &'static str,
    /// Bars on standard error.
    pub show_progress: bool,
}

impl Traffic {
    /// Sends everything and waits for every answer.
    pub async fn run(&self, plan: &Plan) -> Result<Seen, reqwest::Error> {
        let client = Client::builder().timeout(PATIENCE).build()?;
        let bars = Bars::new(plan, self.show_progress);
        let (realtime, deferrable) =
            tokio::join!(self.realtime(&client, plan, &bars), self.deferrable(&client, plan, &bars));
        bars.finish();
        let (through, straight, came) = realtime;
        let (deferrable, deferred_took) = deferrable;
        Ok(Seen { realtime: came, deferrable, through, straight, deferred_took })
    }

    /// Each real-time request goes through the daemon and, right after it, straight to a provider.
    async fn realtime(
        &self,
        client: &Client,
        plan: &Plan,
        bars: &Bars,
    ) -> (Vec<Duration>, Vec<Duration>, Vec<Came>) {
        let calls = stream::iter(&plan.realtime)
            .map(|planned| async move {
                let (came, through) = self.call(client, &self.daemon, planned).await;
                let (_, straight) = self.call(client, &self.straight, planned).await;
                bars.realtime.inc(1);
                (came, through, straight)
            })
            .buffered(REALTIME_AT_ONCE);
        let done: Vec<_> = calls.collect().await;
        let came = done.iter().map(|(came, _, _)| *came).collect();
        (done.iter().map(|(_, t, _)| *t).collect(), done.iter().map(|(_, _, s)| *s).collect(), came)
    }

    async fn call(&self, client: &Client, base: &str, planned: &Planned) -> (Came, Duration) {
        let begun = Instant::now();
        let sent = client
            .post(format!("{base}/v1/chat/completions"))
            .bearer_auth(self.straight_key)
            .json(&planned.body())
            .send()
            .await;
        let came = match sent {
            Ok(response) => came(planned, response).await,
            Err(_) => Came::Missing,
        };
        (came, begun.elapsed())
    }

    async fn deferrable(&self, client: &Client, plan: &Plan, bars: &Bars) -> (Vec<Came>, Duration) {
        let begun = Instant::now();
        let handing_in = Arc::new(tokio::sync::Semaphore::new(HAND_IN_AT_ONCE));
        let handed_in = AtomicUsize::new(0);
        let (handing_in, handed_in) = (&handing_in, &handed_in);
        let calls = stream::iter(plan.deferrable.iter().enumerate())
            .map(|(number, planned)| async move {
                let came = if number % HELD_ONE_IN == 0 {
                    self.held(client, planned).await
                } else {
                    let place = handing_in.acquire().await;
                    let ticket = self.hand_in(client, planned).await;
                    bars.handed_in(handed_in.fetch_add(1, Ordering::Relaxed) + 1);
                    drop(place);
                    match ticket {
                        Some(ticket) => self.redeem(client, planned, &ticket).await,
                        None => Came::Missing,
                    }
                };
                bars.deferrable.inc(1);
                came
            })
            .buffered(plan.deferrable.len().max(1));
        let came = calls.collect().await;
        (came, begun.elapsed())
    }

    fn deferred(&self, client: &Client, planned: &Planned) -> reqwest::RequestBuilder {
        client
            .post(format!("{}/v1/chat/completions", self.daemon))
            .header("x-offpeak-sla", "24h")
            .json(&planned.body())
    }

    async fn held(&self, client: &Client, planned: &Planned) -> Came {
        match self.deferred(client, planned).send().await {
            Ok(response) => came(planned, response).await,
            Err(_) => Came::Missing,
        }
    }

    /// The ticket's URL.
    async fn hand_in(&self, client: &Client, planned: &Planned) -> Option<String> {
        let sent = self.deferred(client, planned).header("prefer", "respond-async").send().await.ok()?;
        let location = sent.headers().get("location")?.to_str().ok()?;
        (sent.status() == StatusCode::ACCEPTED).then(|| format!("{}{location}", self.daemon))
    }

    async fn redeem(&self, client: &Client, planned: &Planned, ticket: &str) -> Came {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            match client.get(ticket).send().await {
                Ok(response) if response.status() != StatusCode::ACCEPTED => {
                    return came(planned, response).await;
                }
                // Not done, or the connection broke: look again.
                Ok(_) | Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
        Came::Missing
    }
}

async fn came(planned: &Planned, response: reqwest::Response) -> Came {
    let status = response.status();
    let body = response.bytes().await.ok().and_then(|body| serde_json::from_slice::<Value>(&body).ok());
    match body {
        Some(body) if status.is_success() && planned.is_answered_by(&body) => Came::Right,
        Some(_) => Came::Wrong,
        None => Came::Missing,
    }
}

struct Bars {
    realtime: ProgressBar,
    deferrable: ProgressBar,
    tickets: usize,
}

impl Bars {
    fn new(plan: &Plan, show: bool) -> Self {
        let target = if show { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let all = MultiProgress::with_draw_target(target);
        let bar = |name: &'static str, length: usize| {
            let bar = all.add(ProgressBar::new(length as u64)).with_prefix(name);
            if let Ok(style) = ProgressStyle::with_template("{prefix:12} {bar:40} {pos:>6}/{len} {msg}") {
                bar.set_style(style);
            }
            bar
        };
        let held = plan.deferrable.len().div_ceil(HELD_ONE_IN);
        Self {
            realtime: bar("real time", plan.realtime.len()),
            deferrable: bar("deferrable", plan.deferrable.len()),
            tickets: plan.deferrable.len() - held,
        }
    }

    fn handed_in(&self, count: usize) {
        self.deferrable.set_message(format!("({count} of {} tickets handed in)", self.tickets));
    }

    fn finish(&self) {
        self.realtime.finish();
        self.deferrable.finish();
    }
}
