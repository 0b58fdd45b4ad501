//! Clients: they ask, lose their connections, ask again, and remember what they were promised.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use offpeak::body::RequestBody;
use offpeak::gateway::Gateway;
use offpeak::ingress;
use parking_lot::Mutex;
use serde_json::Value;

use crate::api::{Api, error_code};
use crate::job::Report;
use crate::plan::{Script, Way};
use crate::record::Record;
use crate::world::Life;

/// The tenants.
pub(crate) const TENANTS: [&str; 2] = ["search", "mail"];

/// The tenants' keys.
pub(crate) const TENANT_KEYS: [&str; 2] = ["sk-of-search", "sk-of-mail"];

/// How often what is on record is looked for while the disk fails.
const LOOKS: u32 = 60;

/// What a client knows.
#[derive(Debug, Default, Clone)]
pub(crate) struct Client {
    /// Calls made. Without a key, each stands for another request, but for those of a held call.
    pub(crate) calls: u64,
    /// When its first call was made, in true milliseconds.
    pub(crate) began_ms: Option<u64>,
    /// Calls that were refused.
    refusals: u32,
    /// The prompts of all its calls, each once.
    pub(crate) asked: Vec<String>,
    /// What is on record of its request, or of its job's by their names, once they are over.
    pub(crate) records: BTreeMap<String, Record>,
    /// The prompt of the request that counts.
    pub(crate) prompt: String,
    /// Its file with a job's requests.
    pub(crate) file: Option<String>,
    /// Where the answer will be: a ticket, or the id of a background response or a job.
    pub(crate) ticket: Option<String>,
    /// What came of its job.
    pub(crate) report: Option<Report>,
    /// What it got in the end.
    pub(crate) answer: Option<Answer>,
    /// It was told that its request is cancelled.
    pub(crate) is_withdrawn: bool,
    /// It wants nothing more.
    pub(crate) is_done: bool,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) mode: String,
    pub(crate) attempts: Option<u32>,
    /// The daemon's name for the request.
    id: Option<String>,
    location: Option<String>,
    retry_after_s: Option<u64>,
    pub(crate) body: Bytes,
    /// It ended before its end.
    pub(crate) is_broken: bool,
}

impl Answer {
    /// It is a model's answer to this prompt.
    pub(crate) fn is_to(&self, api: Api, prompt: &str) -> bool {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or(Value::Null);
        self.status == StatusCode::OK && api.is_answer_to(&body, prompt)
    }

    /// It was run in real time, or was tried.
    pub(crate) fn is_in_real_time(&self) -> bool {
        let broke_off = matches!(self.status, StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT);
        self.mode == "realtime" || (self.mode == "refused" && broke_off)
    }

    pub(crate) const fn says_when_to_come_again(&self) -> bool {
        self.retry_after_s.is_some()
    }

    /// For programs.
    pub(crate) fn code(&self) -> String {
        error_code(&serde_json::from_slice(&self.body).unwrap_or(Value::Null))
    }
}

/// A client's life within one life of the daemon.
pub(crate) struct Session {
    pub(crate) life: Arc<Life>,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) client: Arc<Mutex<Client>>,
    pub(crate) number: usize,
    pub(crate) script: Script,
}

impl Session {
    /// Until it has what it wants.
    pub(crate) async fn run(self) {
        let wait = self.script.arrives_ms.saturating_sub(self.life.now_ms());
        tokio::time::sleep(Duration::from_millis(wait)).await;
        while !self.knows(|client| client.is_done) {
            match self.script.way {
                Way::Ticket if self.knows(|client| client.ticket.is_some()) => self.look().await,
                Way::Ticket => self.take_ticket().await,
                Way::Held => self.hold().await,
                Way::Realtime => self.ask_now().await,
                Way::Background if self.knows(|client| client.ticket.is_some()) => {
                    self.look_at_response().await;
                }
                Way::Background => self.begin_response().await,
                Way::Job => self.work_on_job().await,
            }
        }
        self.life.bell.notify_one();
    }

    pub(crate) fn knows<T>(&self, look: impl FnOnce(&Client) -> T) -> T {
        look(&self.client.lock())
    }

    pub(crate) fn learns(&self, change: impl FnOnce(&mut Client)) {
        change(&mut self.client.lock());
    }

    pub(crate) fn violation(&self, what: &str) {
        let client = self.knows(Client::clone);
        self.life.world.notes.violation(format!("client {}: {what}: {client:?}", self.number));
    }

    /// The prompt of the next call. Calls that are one request to the daemon have the same.
    fn next_prompt(&self) -> String {
        let script = &self.script;
        let now = self.life.now_ms();
        let call = self.knows(|client| client.calls);
        let is_same = match script.way {
            Way::Ticket | Way::Background => script.has_key,
            Way::Held => true,
            Way::Realtime | Way::Job => false,
        };
        let call_name = if is_same { 0 } else { call };
        let words = "word ".repeat(usize::try_from(script.words).unwrap_or(1));
        let prompt =
            format!("seed {} client {} call {call_name} {words}", self.life.world.plan.seed, self.number);
        self.learns(|client| {
            client.calls += 1;
            client.began_ms.get_or_insert(now);
            if client.prompt != prompt {
                client.asked.push(prompt.clone());
            }
            client.prompt.clone_from(&prompt);
        });
        prompt
    }

    /// It makes its first call.
    pub(crate) fn begins(&self) {
        let now = self.life.now_ms();
        self.learns(|client| {
            client.began_ms.get_or_insert(now);
        });
    }

    /// It has had enough of waiting.
    pub(crate) fn is_time_to_withdraw(&self) -> bool {
        self.until_withdrawal(1) == 0
    }

    /// A pause, which the wish to cancel may make shorter.
    pub(crate) fn until_withdrawal(&self, pause_ms: u64) -> u64 {
        let began = self.knows(|client| client.began_ms).unwrap_or(0);
        match self.script.withdraws_after_ms {
            Some(after) if !self.knows(|client| client.is_withdrawn) => {
                (began + after).saturating_sub(self.life.now_ms()).min(pause_ms)
            }
            _ => pause_ms,
        }
    }

    async fn take_ticket(&self) {
        let prompt = self.next_prompt();
        let answer = self.post(&prompt, true, None).await;
        match (answer.status, answer.location.clone()) {
            (StatusCode::ACCEPTED, Some(location)) => self.learns(|client| client.ticket = Some(location)),
            // It was bought in real time: whatever the provider says is its answer.
            _ if answer.is_in_real_time() => self.done(answer).await,
            (StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS, _) => {
                self.wait_after(&answer).await;
            }
            _ => self.surprise("a ticket was refused", answer).await,
        }
    }

    async fn look(&self) {
        if self.is_time_to_withdraw() {
            return self.withdraw().await;
        }
        let ticket = self.knows(|client| client.ticket.clone()).unwrap_or_default();
        let answer = self.send(Method::GET, &ticket, Bytes::new(), &[]).await;
        match answer.status {
            StatusCode::ACCEPTED => {
                let pause = self.until_withdrawal(self.script.patience_ms);
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            StatusCode::SERVICE_UNAVAILABLE if answer.mode == "refused" => self.wait_after(&answer).await,
            _ if answer.mode == "deferred" => {
                let again = self.send(Method::GET, &ticket, Bytes::new(), &[]).await;
                if again.status != StatusCode::SERVICE_UNAVAILABLE && again != answer {
                    self.violation(&format!("two answers to one request: {answer:?} and {again:?}"));
                }
                let other =
                    self.send_as(1 - self.script.tenant, Method::GET, &ticket, Bytes::new(), &[]).await;
                if other.status != StatusCode::NOT_FOUND {
                    self.violation(&format!("another tenant gets to see it: {other:?}"));
                }
                self.done(answer).await;
            }
            _ => self.surprise("a ticket was not honoured", answer).await,
        }
    }

    async fn withdraw(&self) {
        let ticket = self.knows(|client| client.ticket.clone()).unwrap_or_default();
        let answer = self.send(Method::DELETE, &ticket, Bytes::new(), &[]).await;
        match answer.status {
            // It has its answer already.
            StatusCode::OK | StatusCode::CONFLICT => {
                self.life.world.count("client: cancels");
                self.learns(|client| client.is_withdrawn = true);
            }
            StatusCode::SERVICE_UNAVAILABLE => self.wait_after(&answer).await,
            _ => self.surprise("a request could not be cancelled", answer).await,
        }
    }

    async fn hold(&self) {
        let calls = self.knows(|client| client.calls);
        let prompt = self.next_prompt();
        let patience = Duration::from_millis(self.script.patience_ms);
        let Ok(answer) = tokio::time::timeout(patience, self.post(&prompt, false, Some(calls))).await else {
            self.life.note(&|| format!("client {} hangs up", self.number));
            self.life.world.count("client: hangs up");
            tokio::time::sleep(Duration::from_secs(1)).await;
            return;
        };
        match answer.mode.as_str() {
            "deferred" => self.done(answer).await,
            _ if answer.is_in_real_time() => self.done(answer).await,
            "refused" if answer.status == StatusCode::SERVICE_UNAVAILABLE => {
                self.wait_after(&answer).await;
            }
            _ => self.surprise("a held call was refused", answer).await,
        }
    }

    async fn begin_response(&self) {
        let prompt = self.next_prompt();
        let mut body = self.script.api.body(&prompt);
        body["background"] = true.into();
        let key = format!("key-{}", self.number);
        let mut headers = vec![("x-offpeak-sla", self.script.sla)];
        if self.script.has_key {
            headers.push(("idempotency-key", &key));
        }
        let answer = self.send(Method::POST, Api::Responses.path(), body.to_string().into(), &headers).await;
        let created: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
        match (answer.status, created["id"].as_str()) {
            (StatusCode::OK, Some(id)) => self.learns(|client| client.ticket = Some(id.to_owned())),
            (StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS, _) => {
                self.wait_after(&answer).await;
            }
            _ => self.surprise("a background response was refused", answer).await,
        }
    }

    async fn look_at_response(&self) {
        let id = self.knows(|client| client.ticket.clone()).unwrap_or_default();
        let path = format!("{}/{id}", Api::Responses.path());
        if self.is_time_to_withdraw() {
            let answer = self.send(Method::POST, &format!("{path}/cancel"), Bytes::new(), &[]).await;
            return match answer.status {
                StatusCode::OK | StatusCode::CONFLICT | StatusCode::BAD_REQUEST => {
                    self.life.world.count("client: cancels");
                    self.learns(|client| client.is_withdrawn = true);
                }
                StatusCode::SERVICE_UNAVAILABLE => self.wait_after(&answer).await,
                _ => self.surprise("a response could not be cancelled", answer).await,
            };
        }
        let answer = self.send(Method::GET, &path, Bytes::new(), &[]).await;
        let response: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
        match (answer.status, response["status"].as_str()) {
            (StatusCode::OK, Some("queued" | "in_progress")) => {
                let pause = self.until_withdrawal(self.script.patience_ms);
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            (StatusCode::OK, Some(_)) => {
                let other = self.send_as(1 - self.script.tenant, Method::GET, &path, Bytes::new(), &[]).await;
                if other.status != StatusCode::NOT_FOUND {
                    self.violation(&format!("another tenant gets to see a response: {other:?}"));
                }
                self.done(answer).await;
            }
            (StatusCode::SERVICE_UNAVAILABLE, _) => self.wait_after(&answer).await,
            _ => self.surprise("a background response was not honoured", answer).await,
        }
    }

    async fn ask_now(&self) {
        let prompt = self.next_prompt();
        let answer = self.post_tagged(&prompt, &[("x-offpeak-sla", "realtime")]).await;
        // Real time is passed on as it is: whatever the provider says is its answer.
        self.done(answer).await;
    }

    async fn done(&self, answer: Answer) {
        self.life.note(&|| format!("client {} has {} {}", self.number, answer.status, answer.code()));
        if let Some(id) = answer.id.clone().filter(|_| !answer.is_in_real_time()) {
            let record = self.until_readable(|| Record::of(&self.gateway.store, &id)).await.flatten();
            self.learns(|client| client.records.extend(record.map(|record| (client.prompt.clone(), record))));
        }
        self.learns(|client| {
            client.answer = Some(answer);
            client.is_done = true;
        });
    }

    /// What the store has on record; the disk may fail for a while.
    pub(crate) async fn until_readable<T, E, F>(&self, read: impl Fn() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, E>>,
    {
        for _ in 0..LOOKS {
            self.life.alive().await;
            if let Ok(read) = read().await {
                return Some(read);
            }
            tokio::time::sleep(Duration::from_mins(1)).await;
        }
        None
    }

    pub(crate) async fn surprise(&self, what: &str, answer: Answer) {
        self.violation(&format!("{what}: {answer:?} {:?}", answer.body));
        self.done(answer).await;
    }

    pub(crate) async fn wait_after(&self, answer: &Answer) {
        if answer.retry_after_s.is_none() {
            self.violation(&format!("a refusal does not say when to come again: {answer:?}"));
        }
        self.life.note(&|| format!("client {} is refused: {}", self.number, answer.code()));
        // Longer and longer, as all good clients do.
        let refusals = self.knows(|client| client.refusals).min(7);
        self.learns(|client| client.refusals += 1);
        tokio::time::sleep(Duration::from_secs(answer.retry_after_s.unwrap_or(60) << refusals)).await;
    }

    async fn post(&self, prompt: &str, for_ticket: bool, retry: Option<u64>) -> Answer {
        let key = format!("key-{}", self.number);
        let retry = retry.map(|count| count.to_string());
        let mut headers = vec![("x-offpeak-sla", self.script.sla)];
        if for_ticket {
            headers.push(("prefer", "respond-async"));
        }
        if self.script.has_key {
            headers.push(("idempotency-key", &key));
        }
        if let Some(retry) = &retry {
            headers.push(("x-stainless-retry-count", retry));
        }
        self.post_tagged(prompt, &headers).await
    }

    async fn post_tagged(&self, prompt: &str, headers: &[(&str, &str)]) -> Answer {
        self.send(Method::POST, self.script.api.path(), self.script.api.bytes(prompt), headers).await
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        headers: &[(&str, &str)],
    ) -> Answer {
        self.send_as(self.script.tenant, method, path, body, headers).await
    }

    /// A call, as the client sees it: a daemon that dies meanwhile gives no answer.
    pub(crate) async fn send_as(
        &self,
        tenant: usize,
        method: Method,
        path: &str,
        body: Bytes,
        headers: &[(&str, &str)],
    ) -> Answer {
        self.life.alive().await;
        let mut request = Request::new(RequestBody::Whole((!body.is_empty()).then_some(body)));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().unwrap_or_default();
        let key = TENANT_KEYS.get(tenant).copied().unwrap_or_default();
        let authorization = format!("Bearer {key}");
        let own = [("authorization", authorization.as_str()), ("content-type", "application/json")];
        // What the call itself says comes last, and holds.
        let all = own.into_iter().chain(headers.iter().copied());
        for (name, value) in all {
            if let (Ok(name), Ok(value)) =
                (http::HeaderName::try_from(name), http::HeaderValue::try_from(value))
            {
                request.headers_mut().insert(name, value);
            }
        }
        let response = ingress::handle(self.gateway.clone(), request).await;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map(http_body_util::Collected::to_bytes);
        let is_broken = body.is_err();
        let body = body.unwrap_or_default();
        self.life.alive().await;
        let header =
            |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Answer {
            status: head.status,
            mode: header("x-offpeak-mode").unwrap_or_default(),
            attempts: header("x-offpeak-attempts").and_then(|text| text.parse().ok()),
            id: header("x-offpeak-request-id"),
            location: header("location"),
            retry_after_s: header("retry-after").and_then(|text| text.parse().ok()),
            body,
            is_broken,
        }
    }
}
