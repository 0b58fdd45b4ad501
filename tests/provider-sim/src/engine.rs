//! Engine mode: the provider as a self-hosted inference server, in the manner of vLLM.
//!
//! [`EngineModel`] is the arithmetic of continuous batching. Here it is put behind the API: a call is read and checked,
//! enters the model, and its answer is delivered when the model says that its tokens are there. The server's
//! [`Engine::drive`] keeps the model in step with the clock.

mod answer;
mod histogram;
mod model;
mod options;
mod request;
mod stats;
mod surface;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Notify, mpsc};

use crate::clock::{Clock, SimTime};
use crate::error::ApiError;
use crate::provider::Inner;
use crate::reply::{SimBody, SimResponse};
use crate::work::Api;

pub use crate::engine::answer::EngineAnswer;
pub use crate::engine::model::{EngineModel, Prompt, Rejection, Submission};
pub use crate::engine::options::EngineOptions;
pub use crate::engine::stats::EngineStats;

pub(crate) use crate::engine::answer::{Piece, Pieces};
pub(crate) use crate::engine::surface::{error_of_status, models, refuse, surface};

use crate::engine::answer::{Ticket, Waiter};
use crate::engine::request::EngineRequest;

/// An engine behind the API.
#[derive(Debug)]
pub(crate) struct Engine {
    options: EngineOptions,
    state: Mutex<State>,
    /// Something happened that the driver should look at.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    model: EngineModel,
    waiters: HashMap<u64, Waiter>,
    next: u64,
    is_up: bool,
}

/// What [`crate::Provider::engine`] tells.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct EngineStatus {
    /// Whether it answers calls.
    pub is_up: bool,
    /// Calls under way.
    pub calls: usize,
    /// Sequences that run.
    pub running: usize,
    /// Sequences that wait.
    pub waiting: usize,
    /// The part of the cache that is in use, 0 to 1.
    pub cache_usage: f64,
    /// Tokens of prompts read.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Microseconds in which at least one sequence ran.
    pub busy_us: u64,
}

impl Engine {
    pub(crate) fn new(options: EngineOptions, clock: &Clock) -> Self {
        let model = EngineModel::new(options.clone(), clock.now_micros());
        let state = State { model, waiters: HashMap::new(), next: 0, is_up: true };
        Self { options, state: Mutex::new(state), changed: Notify::new() }
    }

    /// Reads a call and puts it into the engine. The answer comes when its tokens are there.
    pub(crate) fn submit(
        self: &Arc<Self>,
        inner: &Inner,
        api: Api,
        body: &Bytes,
        now: SimTime,
    ) -> Result<SimResponse, ApiError> {
        let request = EngineRequest::read(inner, &self.options, api, body)?;
        let is_stream = request.stream.is_some();
        let content_type = if is_stream { "text/event-stream; charset=utf-8" } else { "application/json" };
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut waiter = Waiter::new(sender, api, request.body, request.generate, request.ending);
        if let Some(stream) = request.stream {
            waiter = waiter.streaming(inner, stream, now)?;
        }
        let mut state = self.state.lock();
        let call = state.next;
        state.next += 1;
        let (prompts, priority) = (request.prompts, request.priority);
        let submission = Submission { call, prompts, priority, streams: is_stream };
        state.model.submit(submission, inner.clock.now_micros()).map_err(surface::rejected)?;
        state.waiters.insert(call, waiter);
        drop(state);
        self.changed.notify_one();
        let ticket = Ticket { engine: self.clone(), call };
        Ok(SimResponse::new(content_type, SimBody::Engine(EngineAnswer::new(receiver, ticket, is_stream))))
    }

    /// Brings the engine up to date and sends what is there. Gives the time, in provider microseconds, at which
    /// somebody should look again.
    fn turn(&self, inner: &Inner) -> Option<u64> {
        let mut state = self.state.lock();
        let State { model, waiters, .. } = &mut *state;
        model.advance(inner.clock.now_micros());
        for (call, tokens) in model.progress() {
            if let Some(waiter) = waiters.get_mut(&call) {
                waiter.progress(tokens);
            }
        }
        let ended = model.take_finished();
        let ended: Vec<_> = ended.iter().filter_map(|call| waiters.remove(call)).collect();
        let wake_at = model.wake_at();
        drop(state);
        for waiter in ended {
            waiter.finish(inner, inner.clock.now());
        }
        wake_at
    }

    /// Keeps the engine in step with the clock, for ever.
    pub(crate) async fn drive(&self, inner: &Inner) {
        loop {
            let wait = self.turn(inner).and_then(|at| inner.clock.real_until(at));
            tokio::select! {
                () = self.changed.notified() => {}
                () = inner.clock.advanced() => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// Forgets a call whose caller has gone.
    fn cancel(&self, call: u64) {
        let mut state = self.state.lock();
        if state.waiters.remove(&call).is_some() {
            state.model.cancel(call);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Ends the engine as vLLM ends on SIGTERM: calls under way are answered with what they have, as `abort`.
    pub(crate) fn stop(&self, inner: &Inner) {
        self.turn(inner);
        let mut state = self.state.lock();
        state.is_up = false;
        let aborted = state.model.abort_all();
        for (call, tokens) in aborted {
            if let Some(waiter) = state.waiters.remove(&call) {
                waiter.abort(inner, tokens, inner.clock.now());
            }
        }
        state.waiters.clear();
    }

    /// Ends the engine at once: the connections of calls under way break.
    pub(crate) fn crash(&self) {
        let mut state = self.state.lock();
        state.is_up = false;
        state.model.abort_all();
        state.waiters.clear();
    }

    /// Starts it again, empty, with its counters at zero.
    pub(crate) fn start(&self, inner: &Inner) {
        let mut state = self.state.lock();
        state.model = EngineModel::new(self.options.clone(), inner.clock.now_micros());
        state.waiters.clear();
        state.is_up = true;
    }

    pub(crate) fn is_up(&self) -> bool {
        self.state.lock().is_up
    }

    pub(crate) fn status(&self, inner: &Inner) -> EngineStatus {
        self.turn(inner);
        let state = self.state.lock();
        let stats = state.model.stats();
        EngineStatus {
            is_up: state.is_up,
            calls: state.model.load(),
            running: state.model.running(),
            waiting: state.model.waiting(),
            cache_usage: state.model.cache_usage(),
            prompt_tokens: stats.prompt_tokens,
            generated_tokens: stats.generated_tokens,
            busy_us: stats.busy_us,
        }
    }

    /// The text of `/metrics`, for the first of the models.
    fn metrics(&self, inner: &Inner) -> String {
        self.turn(inner);
        let model = inner.catalog.models().first().map_or("", |model| &model.id);
        #[expect(clippy::cast_precision_loss, reason = "a time stamp in seconds")]
        let created = inner.clock.epoch().0 as f64 / 1_000.0;
        stats::metrics(&self.state.lock().model, model, created)
    }

    fn max_model_len(&self) -> u64 {
        self.options.max_model_len
    }
}

/// Sleeps for this long; for ever when nothing is to come.
async fn sleep(wait: Option<std::time::Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

/// Sends one piece; a caller that has gone needs none.
fn send(sender: &mpsc::UnboundedSender<Piece>, piece: Piece) {
    sender.send(piece).ok();
}
