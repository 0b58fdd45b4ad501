//! Clients that ask without pause, in every way that there is, and count what they get.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use provider_sim::{Mode, Provider, answer, execution_key};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::runtime::Builder;

use crate::{LIMIT, jobs};

/// Clients at the same time.
const CLIENTS: u64 = 12;

/// An API, by which requests are made and answers read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    /// OpenAI's chat completions.
    Chat,
    /// Anthropic's messages.
    Messages,
}

impl Api {
    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Messages => "/v1/messages",
        }
    }

    pub(crate) fn body(self, prompt: &str) -> Value {
        let messages = json!([{ "role": "user", "content": prompt }]);
        match self {
            Self::Chat => json!({ "model": "gpt-4o-mini", "messages": messages }),
            Self::Messages => {
                json!({ "model": "claude-haiku-5-5", "max_tokens": 1000, "messages": messages })
            }
        }
    }

    /// It is what the model says to this prompt.
    pub(crate) fn is_answer_to(self, body: &Value, prompt: &str) -> bool {
        match self {
            Self::Chat => {
                body["choices"][0]["message"]["content"] == answer("gpt-4o-mini", prompt, None).text
            }
            Self::Messages => {
                body["content"][0]["text"] == answer("claude-haiku-5-5", prompt, Some(1000)).text
            }
        }
    }

    /// How often the provider has run this.
    pub(crate) fn runs(self, provider: &Provider, prompt: &str) -> u32 {
        let body = self.body(prompt).to_string();
        provider.bill().executions.of(execution_key(self.path(), body.as_bytes()).unwrap())
    }
}

/// What all clients share.
pub(crate) struct Load {
    pub(crate) http: Client,
    pub(crate) base: String,
    is_enough: AtomicBool,
    pub(crate) answered: AtomicU64,
    /// Calls that broke off, or found nobody.
    pub(crate) cut_off: AtomicU64,
}

/// Clients at work.
pub(crate) struct Clients {
    pub(crate) load: Arc<Load>,
    all: JoinHandle<Vec<(Api, String)>>,
}

impl Clients {
    /// Lets them begin.
    pub(crate) fn begin(base: String, seed: u64) -> Self {
        let load = Arc::new(Load {
            http: Client::builder().no_proxy().timeout(LIMIT).build().unwrap(),
            base,
            is_enough: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            cut_off: AtomicU64::new(0),
        });
        let shared = load.clone();
        let all = std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            let all = (0..CLIENTS).map(|number| client(shared.clone(), number, seed));
            runtime.block_on(join_all(all)).concat()
        });
        Self { load, all }
    }

    /// Until so many answers more have come.
    pub(crate) async fn get(&self, more: u64) {
        let enough = self.load.answered.load(Ordering::Relaxed) + more;
        crate::until("answers come", || self.load.answered.load(Ordering::Relaxed) >= enough).await;
    }

    /// Lets them come to their end, and holds what they got against the provider's bill.
    pub(crate) async fn count(self, provider: &Provider) {
        let load = self.load.clone();
        load.is_enough.store(true, Ordering::Relaxed);
        let prompts = tokio::task::spawn_blocking(move || self.all.join().unwrap()).await.unwrap();
        let bill = provider.bill();
        let (asked, cut_off) = (prompts.len() as u64, load.cut_off.load(Ordering::Relaxed));
        let batches = bill.requests(Mode::Batch);
        println!("{asked} requests, {cut_off} calls cut off; the provider ran {batches} in batches");
        assert_eq!(load.answered.load(Ordering::Relaxed), asked, "each got its answer");
        assert_eq!(bill.executions.repeated(), [], "nothing was run twice");
        assert!(prompts.iter().all(|(api, prompt)| api.runs(provider, prompt) == 1), "each was run");
        assert_eq!(batches, asked, "and nothing else was");
    }
}

/// Asks one thing after the other until it is enough; returns all that it asked. Half of the clients ask OpenAI's API request
/// by request; of the others, some ask Anthropic's, and some hand in jobs, with files and as message batches.
async fn client(load: Arc<Load>, number: u64, seed: u64) -> Vec<(Api, String)> {
    let mut dice = StdRng::seed_from_u64(seed ^ (number << 32));
    let api = if number.is_multiple_of(3) { Api::Messages } else { Api::Chat };
    let has_jobs = number % 4 == 3;
    let mut asked = Vec::new();
    while !load.is_enough.load(Ordering::Relaxed) {
        let first = asked.len();
        let count = if has_jobs { dice.random_range(1..=8) } else { 1 };
        for question in first..first + count {
            let words = "word ".repeat(dice.random_range(1..200));
            asked.push((api, format!("client {number} question {question} {words}")));
        }
        let new = &asked[first..];
        match (has_jobs, api, new) {
            (true, Api::Chat, _) => jobs::by_file(&load, new).await,
            (true, Api::Messages, _) => jobs::by_message_batch(&load, new).await,
            (false, _, [(api, prompt)]) => {
                let is_held = dice.random_bool(0.5);
                let answer =
                    if is_held { load.held(*api, prompt).await } else { load.by_ticket(*api, prompt).await };
                assert!(api.is_answer_to(&answer, prompt), "the answer to {prompt} is {answer}");
            }
            (false, _, _) => unreachable!("one at a time"),
        }
        load.answered.fetch_add(count as u64, Ordering::Relaxed);
    }
    asked
}

impl Load {
    /// With a key, as one does who wants to be sure; then the ticket is looked at until the answer is there.
    async fn by_ticket(&self, api: Api, prompt: &str) -> Value {
        let location = self.until_it_works(prompt, async |_| self.take_ticket(api, prompt).await).await;
        self.until_it_works(prompt, async |_| self.look(&location).await).await
    }

    async fn take_ticket(&self, api: Api, prompt: &str) -> Option<String> {
        let call = self.post(api, prompt).header("prefer", "respond-async");
        let response = self.send(call.header("idempotency-key", key(prompt))).await?;
        (response.status() == StatusCode::ACCEPTED)
            .then(|| response.headers()["location"].to_str().unwrap().to_owned())
    }

    /// What is there, in the end.
    async fn look(&self, location: &str) -> Option<Value> {
        let response = self.send(self.http.get(format!("{}{location}", self.base))).await?;
        assert_ne!(response.status(), StatusCode::NOT_FOUND, "{location} is not known any more");
        json_of(response).await
    }

    /// As an SDK does: a call that is cut off is made again, and finds its work by its body.
    async fn held(&self, api: Api, prompt: &str) -> Value {
        self.until_it_works(prompt, async |tries| {
            let call = self.post(api, prompt).header("x-stainless-retry-count", tries);
            json_of(self.send(call).await?).await
        })
        .await
    }

    /// Makes a call, and counts one that breaks off or finds nobody.
    pub(crate) async fn send(&self, call: RequestBuilder) -> Option<Response> {
        let answer = call.send().await.ok();
        self.cut_off.fetch_add(answer.is_none().into(), Ordering::Relaxed);
        answer
    }

    fn post(&self, api: Api, prompt: &str) -> RequestBuilder {
        let call = self.http.post(format!("{}{}", self.base, api.path())).header("x-offpeak-sla", "24h");
        call.header("content-type", "application/json").body(api.body(prompt).to_string())
    }

    /// Tries until there is something, with a moment between; fails where nobody but the daemon is to blame for its taking
    /// too long.
    pub(crate) async fn until_it_works<T>(
        &self,
        what: &str,
        mut work: impl AsyncFnMut(u64) -> Option<T>,
    ) -> T {
        let mut since = Instant::now();
        for tries in 0.. {
            if let Some(done) = work(tries).await {
                return done;
            }
            if !self.is_enough.load(Ordering::Relaxed) {
                since = Instant::now();
            }
            assert!(since.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        unreachable!("it tries for ever")
    }
}

async fn json_of(response: Response) -> Option<Value> {
    let is_there = response.status() == StatusCode::OK;
    let answer = response.json().await.ok()?;
    is_there.then_some(answer)
}

/// Header values have no blanks at their ends.
pub(crate) fn key(prompt: &str) -> String {
    prompt.split(" word").next().unwrap_or_default().replace(' ', "-")
}
