//! The provider: the life of a call, from request and time to response.
//!
//! Count it, check the key, the rate limit and the fault plan, find the endpoint, let it do its work, and spoil the
//! answer if the fault plan says so. No sockets here, and no waiting.

use std::cell::Cell;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use parking_lot::{Mutex, RwLock};

use crate::anthropic::{self, MessageBatches, Version};
use crate::batches::{self, Shelf};
use crate::bill::{Bill, Ledger};
use crate::clock::{Clock, SimTime};
use crate::config::{Builder, Catalog, RealtimeLimits};
use crate::dialect::Dialect;
use crate::engine::{self, Engine, EngineStatus};
use crate::error::ApiError;
use crate::faults::{Fault, FaultControl};
use crate::ids::Ids;
use crate::prompt_cache::{Cached, PromptCache};
use crate::quota::{Caller, Quota};
use crate::reply::{Delivery, SimBody, SimResponse};
use crate::responses::{self, ResponseStore};
use crate::route::{Endpoint, Route, route};
use crate::scenario::{Conditions, Scenario};
use crate::work::{Api, Work};
use crate::{admin, files, pace, realtime};

/// How long a prefix stays in OpenAI's prompt cache after its last use, in provider milliseconds: 10 minutes.
const CACHE_STAYS_MS: u64 = 600_000;

/// A simulated provider; clones share its state.
#[derive(Debug, Clone)]
pub struct Provider {
    inner: Arc<Inner>,
}

/// What the endpoints work with.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) seed: u64,
    pub(crate) clock: Clock,
    pub(crate) catalog: Catalog,
    pub(crate) lines_for_cancelled: bool,
    pub(crate) stream_gap: Duration,
    pub(crate) ids: Ids,
    pub(crate) ledger: Ledger,
    pub(crate) faults: FaultControl,
    pub(crate) responses: ResponseStore,
    pub(crate) shelf: Mutex<Shelf>,
    pub(crate) message_batches: Mutex<MessageBatches>,
    conditions: RwLock<Arc<Conditions>>,
    engine: Option<Arc<Engine>>,
    cache: Option<PromptCache>,
    keys: HashSet<String>,
    latency: Duration,
    quota: Quota,
    calls: [AtomicU64; Endpoint::ALL.len()],
}

impl Inner {
    /// Prompt tokens of `work` that the prompt cache has; 0 when prompt caching is off.
    pub(crate) fn cached_tokens(&self, model: usize, work: &Work<'_>, now: SimTime) -> u64 {
        if self.cache.is_none() {
            return 0;
        }
        self.look_in_cache(model, &work.prefix(), now, CACHE_STAYS_MS).read.min(work.prompt_tokens())
    }

    /// What the prompt cache does for a prompt; nothing when prompt caching is off.
    pub(crate) fn look_in_cache(&self, model: usize, prompt: &str, now: SimTime, stays_ms: u64) -> Cached {
        self.cache.as_ref().map_or_else(Cached::default, |cache| cache.look(model, prompt, now, stays_ms))
    }

    /// The conditions of this moment.
    pub(crate) fn conditions(&self) -> Arc<Conditions> {
        self.conditions.read().clone()
    }

    /// Takes a request to a model, by place and name, from what the caller may run in real time.
    pub(crate) fn take_request(
        &self,
        conditions: &Conditions,
        caller: &Caller<'_>,
        model: (usize, &str),
        now: SimTime,
        tokens: impl FnOnce() -> u64,
    ) -> Result<(), ApiError> {
        let limits = conditions.limits.realtime_of(model.1);
        if *limits == RealtimeLimits::default() {
            return Ok(());
        }
        self.quota.take_request(caller, limits, model, tokens(), &self.clock, now)
    }

    /// Exchanges the conditions. What has run by now has run under the old ones; batches under way are moved by the new
    /// stalls, and keep what else was drawn for them.
    fn change(&self, scenario: Scenario) {
        let now = self.clock.now();
        let (mut shelf, mut batches) = (self.shelf.lock(), self.message_batches.lock());
        shelf.settle_all(self, now);
        batches.settle_all(self, now);
        self.faults.set(scenario.faults.clone());
        let new = Arc::new(Conditions::of(scenario, self.clock.epoch()));
        let old = std::mem::replace(&mut *self.conditions.write(), new.clone());
        let to = |at| pace::moved(&old.stalls, &new.stalls, now, at);
        shelf.move_items(to);
        batches.move_items(to);
    }

    /// Runs and charges whatever is due at `now`.
    pub(crate) fn settle(&self, now: SimTime) {
        self.shelf.lock().settle_all(self, now);
        self.message_batches.lock().settle_all(self, now);
        self.responses.settle(self, now);
    }
}

impl Provider {
    pub(crate) fn new(builder: Builder) -> Self {
        let mut catalog = Catalog::new(builder.models.iter().cloned());
        if builder.engine.is_some() {
            catalog = catalog.for_nothing();
        }
        let clock = builder.clock();
        let inner = Inner {
            engine: builder.engine.map(|options| Arc::new(Engine::new(options, &clock))),
            clock,
            ledger: Ledger::new(catalog.models().len(), builder.track_executions),
            ids: Ids::new(builder.seed),
            faults: FaultControl::new(builder.seed, builder.epoch, builder.scenario.faults.clone()),
            conditions: RwLock::new(Arc::new(Conditions::of(builder.scenario, builder.epoch))),
            cache: builder.prompt_cache.then(PromptCache::default),
            seed: builder.seed,
            catalog,
            lines_for_cancelled: builder.lines_for_cancelled,
            stream_gap: builder.stream_gap,
            keys: builder.keys,
            latency: builder.latency,
            responses: ResponseStore::default(),
            shelf: Mutex::default(),
            message_batches: Mutex::default(),
            quota: Quota::default(),
            calls: [const { AtomicU64::new(0) }; Endpoint::ALL.len()],
        };
        Self { inner: Arc::new(inner) }
    }

    /// The clock, to read or to advance.
    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    /// The fault plan, to read or to change.
    pub fn faults(&self) -> &FaultControl {
        &self.inner.faults
    }

    /// The scenario as it is now.
    pub fn scenario(&self) -> Scenario {
        let conditions = self.inner.conditions();
        Scenario {
            timing: conditions.timing.clone(),
            limits: conditions.limits.clone(),
            not_sold: conditions.not_sold.clone(),
            faults: self.inner.faults.rules(),
        }
    }

    /// Exchanges the scenario. Batches under way are moved by the new stalls; how fast else they are was drawn when
    /// they were created, and stays.
    pub fn set_scenario(&self, scenario: Scenario) {
        self.inner.change(scenario);
    }

    /// The engine's state, if it is one.
    pub fn engine(&self) -> Option<EngineStatus> {
        self.inner.engine.as_ref().map(|engine| engine.status(&self.inner))
    }

    /// Stops the engine as SIGTERM stops vLLM: calls under way are answered with what they have, their finish reason
    /// being `abort`, and later ones find nobody.
    pub fn stop_engine(&self) {
        if let Some(engine) = &self.inner.engine {
            engine.stop(&self.inner);
        }
    }

    /// Ends the engine at once: the connections of calls under way break, and later ones find nobody.
    pub fn crash_engine(&self) {
        if let Some(engine) = &self.inner.engine {
            engine.crash();
        }
    }

    /// Starts the engine again, empty.
    pub fn start_engine(&self) {
        if let Some(engine) = &self.inner.engine {
            engine.start(&self.inner);
        }
    }

    /// Keeps the engine in step with the clock, for ever; without one there is nothing to do.
    pub(crate) async fn drive(&self) {
        match &self.inner.engine {
            Some(engine) => engine.drive(&self.inner).await,
            None => std::future::pending().await,
        }
    }

    /// The bill, with everything that has run by now.
    pub fn bill(&self) -> Bill {
        self.inner.settle(self.inner.clock.now());
        self.inner.ledger.bill(&self.inner.catalog)
    }

    /// How many calls `endpoint` got, refused ones included.
    pub fn calls(&self, endpoint: Endpoint) -> u64 {
        self.inner.calls.get(endpoint as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Answers one call at the clock's time. Never waits; the response says how it is to be delivered.
    pub fn handle(&self, request: Request<Bytes>) -> SimResponse {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        if let Some(rest) = path.strip_prefix("/sim/") {
            return admin::handle(self, &parts.method, rest, &body).unwrap_or_else(SimResponse::from);
        }
        if let Some(engine) = &self.inner.engine {
            if !engine.is_up() {
                return SimResponse::broken();
            }
            if let Some(answered) = engine::surface(engine, &self.inner, &parts.method, path, &body) {
                return answered.unwrap_or_else(engine::refuse);
            }
        }
        let request_id = self.inner.ids.text("req_");
        let dialect = Dialect::of(path, &parts.headers);
        let call = Call {
            method: &parts.method,
            path,
            uri: &parts.uri,
            headers: &parts.headers,
            dialect: if self.inner.engine.is_some() { Dialect::Engine } else { dialect },
            request_id: &request_id,
        };
        self.inner.handle(&call, body)
    }

    /// Whether the call may take a while (files and batches), so that a server should not run it among quick ones.
    pub fn is_slow(method: &Method, path: &str) -> bool {
        let realtime =
            route(method, path).is_ok_and(|route| !route.endpoint.is_files() && !route.endpoint.is_batches());
        !realtime
    }
}

/// A call without its body.
struct Call<'a> {
    method: &'a Method,
    path: &'a str,
    uri: &'a Uri,
    headers: &'a HeaderMap,
    dialect: Dialect,
    request_id: &'a str,
}

impl Call<'_> {
    fn refuse(&self, error: ApiError) -> SimResponse {
        self.dialect.refuse(error, self.request_id)
    }

    /// The call as Anthropic's endpoints need it.
    fn of_anthropic<'c>(
        &'c self,
        caller: &'c Caller<'c>,
        now: SimTime,
    ) -> Result<anthropic::Call<'c>, ApiError> {
        let host = self.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let host = host.or_else(|| self.uri.authority().map(http::uri::Authority::as_str));
        Ok(anthropic::Call {
            version: Version::of(self.headers)?,
            caller,
            query: self.uri.query(),
            base_url: host.map_or_else(String::new, |host| format!("http://{host}")),
            now,
        })
    }
}

impl Inner {
    fn handle(&self, call: &Call<'_>, body: Bytes) -> SimResponse {
        let now = self.clock.now();
        let caller = Caller { key: call.dialect.key(call.headers), readings: Cell::default() };
        let answered = self.answer(call, &caller, body, now);
        let mut response = answered.unwrap_or_else(|error| call.refuse(error));
        call.dialect.mark(&mut response.headers, call.request_id);
        caller.readings.get().show(call.dialect, &mut response.headers, &self.clock, now);
        response
    }

    fn answer(
        &self,
        call: &Call<'_>,
        caller: &Caller<'_>,
        body: Bytes,
        now: SimTime,
    ) -> Result<SimResponse, ApiError> {
        let route = route(call.method, call.path)?;
        if let Some(count) = self.calls.get(route.endpoint as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if !self.keys.is_empty() && !self.keys.contains(caller.key) {
            return Err(call.dialect.wrong_key(caller.key));
        }
        let limit = self.conditions().limits.requests_per_minute;
        self.quota.take_call(caller, limit, &self.clock, now)?;
        let fault = self.faults.draw(route.endpoint, now);
        match fault {
            Some(Fault::Status { status, retry_after_ms }) => {
                return Err(call.dialect.error_of_status(valid_status(status), retry_after_ms));
            }
            Some(Fault::DropBeforeEffect) => {
                return Ok(SimResponse::broken());
            }
            _ => {}
        }
        let answered = self.dispatch(route, call, caller, body, now);
        let mut response = answered.unwrap_or_else(|error| call.refuse(error));
        if route.endpoint.is_realtime() {
            response.delivery.after = self.latency;
        }
        if let Some(fault) = fault {
            spoil(call, &mut response, fault);
        }
        Ok(response)
    }

    fn dispatch(
        &self,
        route: Route<'_>,
        call: &Call<'_>,
        caller: &Caller<'_>,
        body: Bytes,
        now: SimTime,
    ) -> Result<SimResponse, ApiError> {
        let Route { endpoint, id } = route;
        if endpoint.takes_json() {
            check_json(call.headers)?;
        }
        if let Some(engine) = &self.engine {
            return match endpoint {
                Endpoint::ChatCompletions => engine.submit(self, Api::Chat, &body, now),
                Endpoint::Completions => engine.submit(self, Api::Completions, &body, now),
                Endpoint::Embeddings => engine.submit(self, Api::Embeddings, &body, now),
                Endpoint::Models if id.is_empty() => Ok(engine::models(engine, self)),
                _ => Err(ApiError::not_found("Not Found")),
            };
        }
        if call.dialect == Dialect::Anthropic {
            let call = call.of_anthropic(caller, now)?;
            return match endpoint {
                Endpoint::Models => anthropic::list_models(self, &call, id),
                _ => anthropic::dispatch(self, route, &call, &body),
            };
        }
        let query = call.uri.query();
        let run = |api| realtime::create(self, api, caller, &body, now);
        match endpoint {
            Endpoint::ChatCompletions => run(Api::Chat),
            Endpoint::Completions => run(Api::Completions),
            Endpoint::Embeddings => run(Api::Embeddings),
            Endpoint::Responses => run(Api::Responses),
            Endpoint::Moderations => run(Api::Moderations),
            Endpoint::GetResponse => responses::get(self, id, now),
            Endpoint::CancelResponse => responses::cancel(self, id, now),
            Endpoint::DeleteResponse => responses::delete(self, id, now),
            Endpoint::Models => self.models(id),
            Endpoint::UploadFile => files::upload(self, call.headers, body, now),
            Endpoint::ListFiles => files::list(self, query, now),
            Endpoint::GetFile => files::get(self, id, now),
            Endpoint::FileContent => files::content(self, id, now),
            Endpoint::DeleteFile => files::delete(self, id, now),
            Endpoint::CreateBatch => batches::create(self, &body, now),
            Endpoint::ListBatches => batches::list(self, query, now),
            Endpoint::GetBatch => batches::get(self, id, now),
            Endpoint::CancelBatch => batches::cancel(self, id, now),
            // Everything under /v1/messages speaks the other dialect.
            Endpoint::Messages
            | Endpoint::CountTokens
            | Endpoint::CreateMessageBatch
            | Endpoint::ListMessageBatches
            | Endpoint::GetMessageBatch
            | Endpoint::CancelMessageBatch
            | Endpoint::DeleteMessageBatch
            | Endpoint::MessageBatchResults => Err(ApiError::not_found("Not found")),
        }
    }

    /// `GET /v1/models` and `GET /v1/models/{id}`
    fn models(&self, id: &str) -> Result<SimResponse, ApiError> {
        let created = self.clock.epoch().secs();
        let view = |id: &str| serde_json::json!({ "id": id, "object": "model", "created": created, "owned_by": "sim" });
        if id.is_empty() {
            let models = self.catalog.models().iter().filter(|model| model.is_openais());
            let data: Vec<_> = models.map(|model| view(&model.id)).collect();
            return Ok(SimResponse::of(&serde_json::json!({ "object": "list", "data": data })));
        }
        self.catalog.find(id).ok_or_else(|| ApiError::model_not_found(id))?;
        Ok(SimResponse::of(&view(id)))
    }
}

/// Refuses bodies that say they are not JSON.
fn check_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = format!(
        "Unsupported content type: '{value}'. This API method only accepts 'application/json' requests."
    );
    Err(ApiError::invalid(message).code("unsupported_content_type"))
}

fn valid_status(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// Does to a finished answer what the fault says.
fn spoil(call: &Call<'_>, response: &mut SimResponse, fault: Fault) {
    let half = response.body.bytes().len() / 2;
    match fault {
        Fault::Status { .. } | Fault::DropBeforeEffect => {}
        Fault::DropResponseAfterEffect => response.delivery.cut = Some(0),
        Fault::StatusAfterEffect { status } => {
            let delivery = response.delivery;
            *response = call.refuse(call.dialect.error_of_status(valid_status(status), None));
            response.delivery = delivery;
        }
        Fault::Slow { ms } => {
            response.delivery =
                Delivery { after: response.delivery.after + Duration::from_millis(ms), cut: None };
        }
        Fault::Garbage => {
            response.status = StatusCode::OK;
            response.body = SimBody::Full(Bytes::from_static(b"<html><body>It works!</body></html>"));
        }
        Fault::TruncateBody => response.body.truncate(half),
        Fault::CutBody => response.delivery.cut = Some(half.max(1)),
        Fault::ErrorInStream { status } => {
            let error = call.dialect.error_of_status(valid_status(status), None);
            if response.body.is_pieces() {
                response
                    .body
                    .break_off(|sent| call.dialect.error_event(call.path, error, call.request_id, sent));
            } else {
                let delivery = response.delivery;
                *response = call.refuse(error);
                response.delivery = delivery;
            }
        }
    }
}
