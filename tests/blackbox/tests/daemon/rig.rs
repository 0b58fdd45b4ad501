//! A running daemon, a running provider, a client, and the calls that most tests make.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use http::{HeaderMap, Method, StatusCode};
use offpeak::app::{App, Reloads};
use offpeak::config::Config;
use provider_sim::{Builder, Endpoint, Handle, Mode, Provider, Server, Sim, answer};
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

pub(crate) const MODEL: &str = "gpt-4o-mini";
pub(crate) const CHAT: &str = "/v1/chat/completions";

/// The key that the provider asks for.
pub(crate) const PROVIDER_KEY: &str = "sk-of-the-provider";

/// The tenants and their keys.
const TENANTS: [(&str, &str); 2] = [("search", "sk-of-search"), ("mail", "sk-of-mail")];

/// Long enough for a loaded machine with two cores; nothing takes that long when all is well.
const LIMIT: Duration = Duration::from_mins(1);

/// Lanes leave only when they are flushed.
pub(crate) const BY_HAND: &str = "[lanes]\nlinger = \"1h\"";

/// What every test starts from, with waits that fit a provider whose hours are seconds.
const BASE: &str = r#"
server = { listen = "127.0.0.1:0", admin = "127.0.0.1:0", drain = "1s" }
lanes = { linger = "100ms" }
retry = { base = "20ms", cap = "200ms" }
# The tests share two cores with each other.
plugins.router.time_limit = "5s"
plugins.providers.openai.time_limit = "5s"

[tenants]
search.keys = [{ env = "SEARCH_KEY" }]
mail.keys = [{ env = "MAIL_KEY" }]

[backends.simulated]
provider = "openai"
api_key = { env = "PROVIDER_KEY" }
models = ["*"]
config = { poll_ms = 30, poll_max_ms = 60, retry_ms = 20, retry_max_ms = 500, settle_ms = 150 }
"#;

/// A simulator in which an hour takes a second.
pub(crate) fn sim() -> Builder {
    Sim::builder().seed(7).speed(3600).keys([PROVIDER_KEY]).track_executions(true)
}

/// The first value that `look` finds; fails when there is none within the limit.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(started.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The daemon with the simulator behind it.
pub(crate) struct Rig {
    pub(crate) daemon: Daemon,
    pub(crate) provider: Provider,
    /// Where the provider is, for whoever else calls it.
    pub(crate) upstream: String,
    _server: Handle,
}

impl Rig {
    /// `settings` is TOML that goes over the base configuration.
    pub(crate) async fn start(sim: Builder, settings: &str) -> Self {
        let provider = sim.build();
        let server = Server::on_free_port(provider.clone()).await.unwrap();
        let upstream = server.url();
        let daemon = Daemon::start(&upstream, settings).await;
        Self { daemon, provider, upstream, _server: server }
    }

    pub(crate) fn billed(&self, mode: Mode) -> u64 {
        self.provider.bill().requests(mode)
    }

    /// Requests that ran more than once.
    pub(crate) fn ran_twice(&self) -> usize {
        self.provider.bill().executions.repeated().len()
    }

    pub(crate) fn batches(&self) -> u64 {
        self.provider.calls(Endpoint::CreateBatch)
    }

    /// Waits for the answers to all of these, and checks that each is its own.
    pub(crate) async fn all_answered(&self, tickets: &[Ticket]) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(tickets.len());
        for ticket in tickets {
            let answer = self.daemon.redeem(ticket).await;
            assert!(answer.is_to(ticket), "{ticket:?} got {answer:?}");
            answers.push(answer);
        }
        answers
    }
}

/// A running daemon on a data folder of its own.
pub(crate) struct Daemon {
    pub(crate) data: SocketAddr,
    pub(crate) admin: SocketAddr,
    client: Client,
    stop: CancellationToken,
    reloads: Reloads,
    running: tokio::task::JoinHandle<()>,
    folder: TempDir,
}

/// A deferred request whose answer will be fetched.
#[derive(Debug, Clone)]
pub(crate) struct Ticket {
    pub(crate) prompt: String,
    pub(crate) tenant: &'static str,
    pub(crate) location: String,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    async fn of(response: Response) -> Self {
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await.unwrap();
        Self { status, headers, body: serde_json::from_slice(&body).unwrap_or(Value::Null) }
    }

    /// It is the model's answer to this prompt.
    pub(crate) fn answers(&self, model: &str, prompt: &str) -> bool {
        self.status == StatusCode::OK
            && self.body["choices"][0]["message"]["content"] == answer(model, prompt, None).text
    }

    pub(crate) fn is_to(&self, ticket: &Ticket) -> bool {
        self.answers(MODEL, &ticket.prompt)
    }

    /// The status and the code of an error.
    pub(crate) fn error(&self) -> (u16, &str) {
        (self.status.as_u16(), self.body["error"]["code"].as_str().unwrap_or("(no code)"))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

impl Daemon {
    pub(crate) async fn start(provider: &str, settings: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), provider, settings).await
    }

    /// On the folder of one that was stopped.
    pub(crate) async fn start_in(folder: TempDir, provider: &str, settings: &str) -> Self {
        let app = App::open(&configuration(folder.path(), provider, settings)).await.unwrap();
        let (data, admin) = (app.data_address().unwrap(), app.admin_address().unwrap());
        let (stop, reloads) = (CancellationToken::new(), app.reloads());
        let stopped = app.run(stop.clone());
        let running = tokio::spawn(async move { stopped.await.unwrap() });
        let client = Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
        Self { data, admin, client, stop, reloads, running, folder }
    }

    /// Has it take in other settings while it runs.
    pub(crate) async fn reload(&self, provider: &str, settings: &str) {
        self.reloads.apply(&configuration(self.folder.path(), provider, settings)).await.unwrap();
    }

    /// What is wrong with other settings, which it then does not take in.
    pub(crate) async fn refused_reload(&self, provider: &str, settings: &str) -> String {
        let configuration = configuration(self.folder.path(), provider, settings);
        self.reloads.apply(&configuration).await.unwrap_err().to_string()
    }

    /// Stops it and starts another on the same data folder.
    pub(crate) async fn restart(self, provider: &str, settings: &str) -> Self {
        let folder = self.stop().await;
        Self::start_in(folder, provider, settings).await
    }

    /// Stops it and returns its folder.
    pub(crate) async fn stop(self) -> TempDir {
        self.stop.cancel();
        tokio::time::timeout(LIMIT, self.running).await.expect("it stops").unwrap();
        self.folder
    }

    /// Asks it to stop, and goes on.
    pub(crate) fn begin_to_stop(&self) {
        self.stop.cancel();
    }

    // === The data plane ===

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.data)
    }

    /// A call of the first tenant.
    pub(crate) fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.post_as("search", path, body)
    }

    pub(crate) fn post_as(&self, tenant: &str, path: &str, body: &Value) -> RequestBuilder {
        self.client.post(self.url(path)).bearer_auth(key_of(tenant)).json(body)
    }

    /// Real time.
    pub(crate) async fn ask(&self, model: &str, prompt: &str) -> Answer {
        send(self.post(CHAT, &chat(model, prompt))).await
    }

    /// Deferred by a day, and held.
    pub(crate) async fn hold(&self, prompt: &str) -> Answer {
        send(self.post(CHAT, &chat(MODEL, prompt)).header("x-offpeak-sla", "24h")).await
    }

    /// Deferred, for a ticket; whatever comes back.
    pub(crate) async fn defer(&self, tenant: &'static str, model: &str, prompt: &str, sla: &str) -> Answer {
        let request = self.post_as(tenant, CHAT, &chat(model, prompt));
        send(request.header("x-offpeak-sla", sla).header("prefer", "respond-async")).await
    }

    pub(crate) async fn ticket(&self, prompt: &str) -> Ticket {
        self.ticket_of("search", prompt, "24h").await
    }

    pub(crate) async fn ticket_of(&self, tenant: &'static str, prompt: &str, sla: &str) -> Ticket {
        let answer = self.defer(tenant, MODEL, prompt, sla).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
        Ticket { prompt: prompt.to_owned(), tenant, location: answer.header("location").to_owned() }
    }

    /// Many, some at once, in the order of their numbers.
    pub(crate) async fn tickets(&self, count: usize, prompt: impl Fn(usize) -> String) -> Vec<Ticket> {
        let taking = (0..count).map(|n| {
            let prompt = prompt(n);
            async move { self.ticket(&prompt).await }
        });
        stream::iter(taking).buffered(64).collect().await
    }

    /// What the ticket's address says now.
    pub(crate) async fn look(&self, ticket: &Ticket) -> Answer {
        send(self.client.get(self.url(&ticket.location)).bearer_auth(key_of(ticket.tenant))).await
    }

    pub(crate) async fn cancel(&self, ticket: &Ticket) -> Answer {
        send(self.client.delete(self.url(&ticket.location)).bearer_auth(key_of(ticket.tenant))).await
    }

    /// Waits for the ticket's answer.
    pub(crate) async fn redeem(&self, ticket: &Ticket) -> Answer {
        eventually(&format!("the answer to {ticket:?}"), async || {
            let answer = self.look(ticket).await;
            (answer.status != StatusCode::ACCEPTED).then_some(answer)
        })
        .await
    }

    /// Any other call of a tenant.
    pub(crate) fn call(&self, tenant: &str, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.url(path)).bearer_auth(key_of(tenant))
    }

    /// Files that clients uploaded, whole or not.
    pub(crate) fn files_on_disk(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("data/files")).unwrap().count()
    }

    // === The admin plane ===

    pub(crate) fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    pub(crate) async fn admin(&self, path: &str) -> Answer {
        send(self.client.get(self.admin_url(path))).await
    }

    pub(crate) async fn admin_post(&self, path: &str) -> Answer {
        send(self.client.post(self.admin_url(path))).await
    }

    pub(crate) async fn lanes(&self) -> Vec<Value> {
        self.admin("/admin/v1/lanes").await.body["data"].as_array().unwrap().clone()
    }

    /// Requests that wait in lanes.
    pub(crate) async fn waiting(&self) -> u64 {
        self.lanes().await.iter().map(|lane| lane["waiting_requests"].as_u64().unwrap()).sum()
    }

    pub(crate) async fn wait_for_waiting(&self, count: u64) {
        eventually(&format!("{count} requests wait"), async || (self.waiting().await == count).then_some(()))
            .await;
    }

    /// Lets everything leave that waits.
    pub(crate) async fn flush(&self) {
        for lane in self.lanes().await {
            let flushed = self.admin_post(&format!("/admin/v1/lanes/{}/flush", lane["id"])).await;
            assert_eq!(flushed.status, StatusCode::OK);
        }
    }

    pub(crate) async fn metrics(&self) -> String {
        let response = self.client.get(self.admin_url("/metrics")).send().await.unwrap();
        response.text().await.unwrap()
    }

    /// The sum of a metric's samples whose labels contain `label`.
    pub(crate) async fn metric(&self, name: &str, label: &str) -> u64 {
        let text = self.metrics().await;
        let samples = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
        });
        samples.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    /// Lines of results of a kind, as `/metrics` counts them.
    pub(crate) async fn lines(&self, kind: &str) -> u64 {
        self.metric("offpeak_result_lines_total", &format!("kind=\"{kind}\"")).await
    }
}

/// Sends a request and reads the whole answer.
pub(crate) async fn send(request: RequestBuilder) -> Answer {
    Answer::of(request.send().await.unwrap()).await
}

pub(crate) fn chat(model: &str, prompt: &str) -> Value {
    json!({ "model": model, "messages": [{ "role": "user", "content": prompt }] })
}

pub(crate) fn key_of(tenant: &str) -> &'static str {
    TENANTS.iter().find(|(name, _)| *name == tenant).expect("a tenant of the rig").1
}

/// Compiled plugins, shared by all tests and all runs.
fn plugin_cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("plugins")
}

fn configuration(folder: &Path, provider: &str, settings: &str) -> Config {
    let mut table: toml::Table = BASE.parse().unwrap();
    let places = json!({
        "store": { "folder": folder.join("data") },
        "plugins": { "cache": plugin_cache() },
        "backends": { "simulated": { "base_url": provider } },
    });
    merge(&mut table, toml::Table::try_from(places).unwrap());
    merge(&mut table, settings.parse().unwrap());
    let mut env: BTreeMap<String, String> = TENANTS
        .iter()
        .map(|(name, key)| (format!("{}_KEY", name.to_uppercase()), (*key).to_owned()))
        .collect();
    env.insert("ALERTS_SECRET".to_owned(), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned());
    env.insert("PROVIDER_KEY".to_owned(), PROVIDER_KEY.to_owned());
    Config::from_text("offpeak.toml", &toml::to_string(&table).unwrap(), &env)
        .unwrap_or_else(|errors| panic!("{errors}"))
}

/// Lays one table over another, key by key.
fn merge(table: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (table.get_mut(&key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => merge(below, above),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}
