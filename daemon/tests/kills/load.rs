//! Clients that ask without pause, in every way that there is, and count what they get.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use provider_sim::{ExecutionKey, Provider, answer, execution_key};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::runtime::Builder;

use crate::provider::Bill;
use crate::{LIMIT, jobs};

/// Clients at the same time, of what can wait.
const CLIENTS: u64 = 12;

/// An API, by which requests are made and answers read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    /// OpenAI's chat completions.
    Chat,
    /// OpenAI's responses.
    Responses,
    /// Anthropic's messages.
    Messages,
}

impl Api {
    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Responses => "/v1/responses",
            Self::Messages => "/v1/messages",
        }
    }

    pub(crate) fn body(self, prompt: &str) -> Value {
        let messages = json!([{ "role": "user", "content": prompt }]);
        match self {
            Self::Chat => json!({ "model": "gpt-4o-mini", "messages": messages }),
            Self::Responses => json!({ "model": "gpt-4o-mini", "input": prompt }),
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
            Self::Responses => {
                body["output"][0]["content"][0]["text"] == answer("gpt-4o-mini", prompt, None).text
            }
            Self::Messages => {
                body["content"][0]["text"] == answer("claude-haiku-5-5", prompt, Some(1000)).text
            }
        }
    }

    /// How often the provider has run this.
    pub(crate) fn runs(self, provider: &Provider, prompt: &str) -> u32 {
        Bill::from(provider).runs(self.key(prompt))
    }

    /// By what the provider's bill knows it.
    fn key(self, prompt: &str) -> ExecutionKey {
        execution_key(self.path(), self.body(prompt).to_string().as_bytes()).unwrap()
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
    all: JoinHandle<Vec<Asked>>,
}

/// What a client has asked for.
#[derive(Debug, Clone)]
struct Asked {
    api: Api,
    prompt: String,
    /// In real time: whether it got its answer. What can wait always gets one.
    now: Option<bool>,
}

/// Who asks beside those of what can wait request by request and by job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Company {
    /// Nobody.
    None,
    /// Two who ask in real time, and one who asks for responses in the background.
    All,
}

impl Clients {
    /// Lets them begin.
    pub(crate) fn begin(base: String, seed: u64, company: Company) -> Self {
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
            let (now, later) = match company {
                Company::None => (0..0, 0..0),
                Company::All => (CLIENTS..CLIENTS + 2, CLIENTS + 2..CLIENTS + 3),
            };
            let now = now.map(|number| client_in_real_time(shared.clone(), number, seed));
            let later = later.map(|number| client_in_the_background(shared.clone(), number, seed));
            let all = futures_util::future::join3(join_all(all), join_all(now), join_all(later));
            let (all, now, later) = runtime.block_on(all);
            all.into_iter().chain(now).chain(later).flatten().collect()
        });
        Self { load, all }
    }

    /// Until so many answers more have come.
    pub(crate) async fn get(&self, more: u64) {
        let enough = self.load.answered.load(Ordering::Relaxed) + more;
        crate::until("answers come", || self.load.answered.load(Ordering::Relaxed) >= enough).await;
    }

    /// Lets them come to their end.
    pub(crate) async fn end(self) -> Ended {
        let load = self.load.clone();
        load.is_enough.store(true, Ordering::Relaxed);
        let asked = tokio::task::spawn_blocking(move || self.all.join().unwrap()).await.unwrap();
        Ended { load, asked }
    }

    /// Lets them come to their end, and holds what they got against the provider's bill.
    pub(crate) async fn count(self, provider: &Provider) {
        self.end().await.count(&Bill::from(provider));
    }
}

/// Clients that want nothing more.
pub(crate) struct Ended {
    load: Arc<Load>,
    asked: Vec<Asked>,
}

impl Ended {
    /// Each request was answered and run once; one in real time that was cut off ran once at most.
    pub(crate) fn count(&self, bill: &Bill) {
        let runs = |asked: &Asked| bill.runs(asked.api.key(&asked.prompt));
        let (later, now): (Vec<&Asked>, Vec<&Asked>) =
            self.asked.iter().partition(|asked| asked.now.is_none());
        let (cut, answered): (Vec<&Asked>, Vec<&Asked>) =
            now.into_iter().partition(|asked| asked.now == Some(false));
        let cut_off = self.load.cut_off.load(Ordering::Relaxed);
        let (waited, at_once) = bill.requests();
        println!(
            "{} requests that could wait, {} in real time and {} that were cut; {cut_off} calls cut off in all; the \
             provider ran {waited} of the first and {at_once} of the others",
            later.len(),
            answered.len(),
            cut.len()
        );
        let got = self.load.answered.load(Ordering::Relaxed);
        assert_eq!(got, later.len() as u64, "each of those that could wait got its answer");
        for asked in later.iter().chain(&answered) {
            assert_eq!(runs(asked), 1, "run once: {asked:?}");
        }
        for asked in &cut {
            assert!(runs(asked) <= 1, "run once at most: {asked:?}");
        }
        assert_eq!(waited, later.len() as u64, "and in no other way");
    }

    /// Nobody else has asked for anything, and nothing else ran.
    pub(crate) fn are_all(&self, bill: &Bill) {
        let known = self.asked.iter().map(|asked| asked.api.key(&asked.prompt)).collect();
        assert_eq!(bill.all().difference(&known).next(), None);
    }
}

/// Asks one thing after the other until it is enough; returns all that it asked. Half of the clients ask OpenAI's API request
/// by request; of the others, some ask Anthropic's, and some hand in jobs, with files and as message batches.
async fn client(load: Arc<Load>, number: u64, seed: u64) -> Vec<Asked> {
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
            (_, _, _) => unreachable!("one at a time, or a job"),
        }
        load.answered.fetch_add(count as u64, Ordering::Relaxed);
    }
    asked.into_iter().map(|(api, prompt)| Asked { api, prompt, now: None }).collect()
}

/// Asks in real time, whole or as a stream. What is cut off is not asked again: nobody has promised anything.
async fn client_in_real_time(load: Arc<Load>, number: u64, seed: u64) -> Vec<Asked> {
    let mut dice = StdRng::seed_from_u64(seed ^ (number << 32));
    let api = if number.is_multiple_of(2) { Api::Chat } else { Api::Messages };
    let mut asked = Vec::new();
    while !load.is_enough.load(Ordering::Relaxed) {
        let words = "word ".repeat(dice.random_range(1..200));
        let prompt = format!("client {number} at once {} {words}", asked.len());
        let is_stream = api == Api::Chat && dice.random_bool(0.5);
        let is_answered = load.now(api, &prompt, is_stream).await;
        asked.push(Asked { api, prompt, now: Some(is_answered) });
        tokio::time::sleep(Duration::from_millis(dice.random_range(1..20))).await;
    }
    asked
}

/// Asks for one response in the background after the other.
async fn client_in_the_background(load: Arc<Load>, number: u64, seed: u64) -> Vec<Asked> {
    let mut dice = StdRng::seed_from_u64(seed ^ (number << 32));
    let api = Api::Responses;
    let mut asked = Vec::new();
    while !load.is_enough.load(Ordering::Relaxed) {
        let words = "word ".repeat(dice.random_range(1..200));
        let prompt = format!("client {number} question {} {words}", asked.len());
        let answer = load.in_the_background(&prompt).await;
        assert!(api.is_answer_to(&answer, &prompt), "the answer to {prompt} is {answer}");
        load.answered.fetch_add(1, Ordering::Relaxed);
        asked.push(Asked { api, prompt, now: None });
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

    /// One call; whether it was answered. An answer that came whole is the right one.
    async fn now(&self, api: Api, prompt: &str, is_stream: bool) -> bool {
        let mut body = api.body(prompt);
        if is_stream {
            body["stream"] = true.into();
        }
        let call = self.http.post(format!("{}{}", self.base, api.path())).header("x-offpeak-sla", "realtime");
        let Some(response) = self.send(call.json(&body)).await else { return false };
        let status = response.status();
        let Ok(text) = response.text().await else { return false };
        assert_eq!(status, StatusCode::OK, "{text}");
        if is_stream {
            let Some(said) = whole_stream(&text) else { return false };
            assert_eq!(said, answer("gpt-4o-mini", prompt, None).text, "the answer to {prompt}");
        } else {
            let answer: Value = serde_json::from_str(&text).unwrap();
            assert!(api.is_answer_to(&answer, prompt), "the answer to {prompt} is {answer}");
        }
        true
    }

    /// With a key; then the response is looked at until it is complete.
    async fn in_the_background(&self, prompt: &str) -> Value {
        let path = Api::Responses.path();
        let mut body = Api::Responses.body(prompt);
        body["background"] = true.into();
        let id = self
            .until_it_works(prompt, async |_| {
                let call = self.http.post(format!("{}{path}", self.base)).header("x-offpeak-sla", "24h");
                let call = call.header("idempotency-key", key(prompt)).json(&body);
                let made = json_of(self.send(call).await?).await?;
                Some(made["id"].as_str().unwrap().to_owned())
            })
            .await;
        self.until_it_works(prompt, async |_| {
            let response = self.look(&format!("{path}/{id}")).await?;
            let is_over = !matches!(response["status"].as_str(), Some("queued" | "in_progress"));
            is_over.then_some(response)
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

/// What a stream says, if it has come to its end.
fn whole_stream(text: &str) -> Option<String> {
    let mut said = String::new();
    for data in text.lines().filter_map(|line| line.strip_prefix("data: ")) {
        if data == "[DONE]" {
            return Some(said);
        }
        let event: Value = serde_json::from_str(data).unwrap();
        said += event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
    }
    None
}

/// Header values have no blanks at their ends.
pub(crate) fn key(prompt: &str) -> String {
    prompt.split(" word").next().unwrap_or_default().replace(' ', "-")
}
