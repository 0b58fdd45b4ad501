//! `/v1/responses`: in one piece, as a stream, and in the background with a window.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;
use serde_json::{Value, json};

use crate::answer::{Answer, Finish, answer, count_tokens};
use crate::bill::{ExecutionKey, Usage};
use crate::clock::{SimTime, millis};
use crate::error::ApiError;
use crate::ids::scatter;
use crate::prices::Mode;
use crate::provider::Inner;
use crate::reply::{SimResponse, to_json};
use crate::sse::Events;
use crate::wire::{Metadata, ResponseInput, ResponseRequest, check_metadata};
use crate::work::{
    Job, Ran, Run, Streaming, Work, check_max, check_temperature, required_model, tier, tier_name,
};

/// Finished responses kept for `GET`; the oldest go first.
const KEPT: usize = 10_000;
/// How long a background response with `store: false` is kept after its end, in provider milliseconds.
const UNSTORED_MS: u64 = 600_000;

/// A checked request for a response.
pub(crate) struct ResponseWork<'a> {
    prompt: Cow<'a, str>,
    context: String,
    tokens: u64,
    pub(crate) max_output_tokens: Option<u32>,
    instructions: Option<Cow<'a, str>>,
    metadata: Metadata,
    store: bool,
    /// The mode it is billed in when it runs in the background; `Realtime` stands for the window `soonest`.
    pub(crate) background: Option<Mode>,
}

impl<'a> ResponseWork<'a> {
    pub(crate) fn check(request: ResponseRequest<'a>) -> Result<Work<'a>, ApiError> {
        check_metadata(request.metadata.as_ref())?;
        check_temperature(request.temperature)?;
        let max_output_tokens = check_max("max_output_tokens", request.max_output_tokens)?;
        let tier = tier(request.service_tier.as_deref())?;
        let streams = request.stream.unwrap_or(false);
        let window =
            request.background_options.as_ref().and_then(|options| options.completion_window.as_deref());
        let background = check_window(request.background.unwrap_or(false), window, tier, streams)?;
        let instructions = request.instructions.map(|text| text.0);
        let (prompt, context) = match request.input.ok_or_else(|| ApiError::missing("input"))? {
            ResponseInput::Text(text) => (text.0, String::new()),
            ResponseInput::Items(items) => {
                let of_user = items.iter().rposition(|item| item.role.as_deref() == Some("user"));
                let last = of_user
                    .or_else(|| items.len().checked_sub(1))
                    .ok_or_else(|| ApiError::missing("input"))?;
                let texts = || items.iter().enumerate().map(|(n, item)| (n == last, item.content.text()));
                let prompt = texts().find(|(is_last, _)| *is_last).map(|(_, text)| text.into_owned());
                let context = texts().filter(|(is_last, _)| !is_last).map(|(_, text)| text).collect();
                (Cow::Owned(prompt.unwrap_or_default()), context)
            }
        };
        let others = [instructions.as_deref().unwrap_or_default(), &context];
        let tokens =
            others.iter().filter(|text| !text.is_empty()).map(|text| count_tokens(text)).sum::<u64>();
        let response = Self {
            tokens: tokens + count_tokens(&prompt),
            prompt,
            context,
            max_output_tokens,
            instructions,
            metadata: request.metadata.unwrap_or_default(),
            store: request.store.unwrap_or(true),
            background,
        };
        let stream = streams.then_some(Streaming { include_usage: true });
        Ok(Work { model: required_model(request.model)?, stream, tier, job: Job::Responses(response) })
    }

    /// Instructions, the other input items and the prompt, counted one by one.
    pub(crate) fn tokens(&self) -> u64 {
        self.tokens
    }

    pub(crate) fn prefix(&self) -> String {
        [self.instructions.as_deref().unwrap_or_default(), &self.context, &self.prompt].concat()
    }
}

fn check_window(
    background: bool,
    window: Option<&str>,
    tier: Mode,
    streams: bool,
) -> Result<Option<Mode>, ApiError> {
    let param = "background_options.completion_window";
    let mode = match window {
        None | Some("soonest") => return check_soonest(background, tier, streams),
        Some("2h") => Mode::Background2h,
        Some("8h") => Mode::Background8h,
        Some(other) => return Err(ApiError::invalid_value(param, other, "'soonest', '2h' and '8h'")),
    };
    if !background || streams || tier != Mode::Realtime {
        let message = "A completion window of 2h or 8h needs 'background' true, the default service tier and no stream.";
        return Err(ApiError::invalid(message).param(param));
    }
    Ok(Some(mode))
}

fn check_soonest(background: bool, tier: Mode, streams: bool) -> Result<Option<Mode>, ApiError> {
    if background && streams {
        return Err(ApiError::invalid("The simulator does not stream background responses.").param("stream"));
    }
    Ok(background.then_some(tier))
}

/// Everything that a response object shows.
struct View<'a> {
    id: &'a str,
    model: &'a str,
    created: SimTime,
    tier: Mode,
    background: bool,
    status: &'static str,
    completed: Option<SimTime>,
    metadata: &'a Metadata,
    instructions: Option<&'a str>,
    max_output_tokens: Option<u32>,
    /// Answer and usage, once there is one.
    result: Option<(&'a Answer, Usage)>,
}

impl View<'_> {
    fn json(&self) -> Value {
        let cut = self.result.is_some_and(|(answer, _)| answer.finish == Finish::Length);
        let output: Vec<_> = self.result.iter().map(|(answer, _)| item(self.id, answer)).collect();
        let usage = self.result.map(|(_, usage)| ResponseUsage::from(usage));
        let error = (self.status == "failed").then(|| {
            json!({ "code": "server_error", "message": "An error occurred while processing your request." })
        });
        json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created.secs(),
            "status": self.status,
            "background": self.background,
            "completed_at": self.completed.map(SimTime::secs),
            "error": error,
            "incomplete_details": cut.then_some(json!({ "reason": "max_output_tokens" })),
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata,
            "model": self.model,
            "output": output,
            "parallel_tool_calls": true,
            "previous_response_id": null,
            "service_tier": tier_name(self.tier),
            "temperature": 1.0,
            "text": { "format": { "type": "text" } },
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "truncation": "disabled",
            "usage": usage,
        })
    }
}

/// The one output item of a response.
fn item(id: &str, answer: &Answer) -> Value {
    json!({
        "type": "message",
        "id": item_id(id),
        "status": final_status(answer),
        "role": "assistant",
        "content": [part(&answer.text)],
    })
}

fn item_id(response_id: &str) -> String {
    format!("msg_{}", response_id.trim_start_matches("resp_"))
}

fn part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

fn final_status(answer: &Answer) -> &'static str {
    match answer.finish {
        Finish::Stop => "completed",
        Finish::Length => "incomplete",
    }
}

/// `usage` of responses and batches.
#[derive(Serialize, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ResponseUsage {
    input_tokens: u64,
    input_tokens_details: InputDetails,
    output_tokens: u64,
    output_tokens_details: OutputDetails,
    total_tokens: u64,
}

#[derive(Serialize, Debug, Clone, Copy, PartialEq, Eq)]
struct InputDetails {
    cached_tokens: u64,
}

#[derive(Serialize, Debug, Clone, Copy, PartialEq, Eq)]
struct OutputDetails {
    reasoning_tokens: u64,
}

impl From<Usage> for ResponseUsage {
    fn from(usage: Usage) -> Self {
        Self {
            input_tokens: usage.input_tokens,
            input_tokens_details: InputDetails { cached_tokens: usage.cached_tokens },
            output_tokens: usage.output_tokens,
            output_tokens_details: OutputDetails { reasoning_tokens: 0 },
            total_tokens: usage.input_tokens + usage.output_tokens,
        }
    }
}

/// The response of a call that was answered at once.
fn finished(
    work: &Work<'_>,
    response: &ResponseWork<'_>,
    run: &Run<'_>,
    id: &str,
    show: impl FnOnce(&View<'_>, &Answer),
) -> Usage {
    let answer = answer(&work.model, &response.prompt, response.max_output_tokens);
    let usage = Usage {
        input_tokens: response.tokens,
        cached_tokens: run.cached_tokens,
        output_tokens: answer.tokens,
        ..Usage::default()
    };
    let view = View {
        id,
        model: &work.model,
        created: run.now,
        tier: work.tier,
        background: false,
        status: final_status(&answer),
        completed: Some(run.now),
        metadata: &response.metadata,
        instructions: response.instructions.as_deref(),
        max_output_tokens: response.max_output_tokens,
        result: Some((&answer, usage)),
    };
    show(&view, &answer);
    usage
}

/// A response in one piece.
pub(crate) fn response_body(work: &Work<'_>, response: &ResponseWork<'_>, run: &Run<'_>) -> Ran {
    let mut body = Vec::new();
    let id = run.ids.text("resp_");
    let usage = finished(work, response, run, &id, |view, _| body = to_json(&view.json()));
    Ran { usage, body }
}

/// A response as a stream, and in one piece for later retrieval.
pub(crate) fn response_events(work: &Work<'_>, response: &ResponseWork<'_>, run: &Run<'_>) -> (Ran, Events) {
    let mut events = Numbered { events: Events::with_capacity(80), number: 0 };
    let mut body = Vec::new();
    let id = run.ids.text("resp_");
    let usage = finished(work, response, run, &id, |view, answer| {
        let started = View { status: "in_progress", completed: None, result: None, ..*view }.json();
        events.send("response.created", json!({ "response": started }));
        events.send("response.in_progress", json!({ "response": started }));
        text_events(&mut events, &item_id(&id), answer, &item(&id, answer));
        let whole = view.json();
        body = to_json(&whole);
        events.send(&format!("response.{}", view.status), json!({ "response": whole }));
    });
    (Ran { usage, body }, events.events)
}

/// The events of the one output item.
fn text_events(events: &mut Numbered, item_id: &str, answer: &Answer, whole: &Value) {
    let opened = json!({ "type": "message", "id": item_id, "status": "in_progress", "role": "assistant", "content": [] });
    events.send("response.output_item.added", json!({ "output_index": 0, "item": opened }));
    let place = |name: &str, value: Value| {
        let mut fields = json!({ "item_id": item_id, "output_index": 0, "content_index": 0 });
        fields[name] = value;
        fields
    };
    events.send("response.content_part.added", place("part", part("")));
    for word in answer.text.split_inclusive(' ') {
        let mut fields = place("delta", word.into());
        fields["logprobs"] = json!([]);
        events.send("response.output_text.delta", fields);
    }
    let mut fields = place("text", answer.text.as_str().into());
    fields["logprobs"] = json!([]);
    events.send("response.output_text.done", fields);
    events.send("response.content_part.done", place("part", part(&answer.text)));
    events.send("response.output_item.done", json!({ "output_index": 0, "item": whole }));
}

/// Events with their type and sequence number in the data.
struct Numbered {
    events: Events,
    number: u64,
}

impl Numbered {
    fn send(&mut self, name: &str, mut fields: Value) {
        fields["type"] = name.into();
        fields["sequence_number"] = self.number.into();
        self.number += 1;
        self.events.event(name, &fields);
    }
}

/// The responses that can be asked for by id.
#[derive(Debug, Default)]
pub(crate) struct ResponseStore {
    state: Mutex<Store>,
}

#[derive(Debug, Default)]
struct Store {
    finished: HashMap<String, Bytes>,
    order: VecDeque<String>,
    background: HashMap<String, Background>,
}

/// A response in the background. What has become of it follows from the time.
#[derive(Debug)]
struct Background {
    model: usize,
    prompt: String,
    instructions: Option<String>,
    max_output_tokens: Option<u32>,
    metadata: Metadata,
    mode: Mode,
    store: bool,
    input_tokens: u64,
    cached_tokens: u64,
    created: SimTime,
    starts: SimTime,
    ends: SimTime,
    cancelled: Option<SimTime>,
    key: Option<ExecutionKey>,
    charged: bool,
    /// It ends as `failed`, and is not charged.
    fails: bool,
}

impl ResponseStore {
    /// Keeps a finished response, unless its caller did not want that.
    pub(crate) fn keep(&self, response: &ResponseWork<'_>, body: &Bytes) {
        #[derive(serde::Deserialize)]
        struct Id<'a> {
            id: &'a str,
        }
        if !response.store {
            return;
        }
        let Ok(Id { id }) = serde_json::from_slice(body) else { return };
        let mut store = self.state.lock();
        store.order.push_back(id.to_owned());
        store.finished.insert(id.to_owned(), body.clone());
        if store.order.len() > KEPT
            && let Some(oldest) = store.order.pop_front()
        {
            store.finished.remove(&oldest);
        }
    }

    /// Charges every background response that has ended by `now`.
    pub(crate) fn settle(&self, inner: &Inner, now: SimTime) {
        let mut store = self.state.lock();
        for background in store.background.values_mut() {
            background.settle(inner, now);
        }
        store.background.retain(|_, background| !background.is_forgotten(now));
    }
}

impl Background {
    fn end(&self) -> SimTime {
        self.cancelled.unwrap_or(self.ends)
    }

    fn is_forgotten(&self, now: SimTime) -> bool {
        !self.store && now > self.end().plus_millis(UNSTORED_MS)
    }

    fn answer(&self, inner: &Inner) -> (Answer, Usage) {
        let answer = answer(inner.catalog.name(self.model), &self.prompt, self.max_output_tokens);
        let usage = Usage {
            input_tokens: self.input_tokens,
            cached_tokens: self.cached_tokens,
            output_tokens: answer.tokens,
            ..Usage::default()
        };
        (answer, usage)
    }

    fn settle(&mut self, inner: &Inner, now: SimTime) {
        if !self.charged && !self.fails && self.cancelled.is_none() && now >= self.ends {
            self.charged = true;
            inner.ledger.charge(self.model, self.mode, self.answer(inner).1, self.key);
        }
    }

    fn json(&self, inner: &Inner, id: &str, now: SimTime) -> Value {
        let ended = self.cancelled.is_none() && now >= self.ends;
        let result = (ended && !self.fails).then(|| self.answer(inner));
        let status = match (&result, self.cancelled) {
            (_, Some(_)) => "cancelled",
            _ if ended && self.fails => "failed",
            (Some((answer, _)), None) => final_status(answer),
            (None, None) if now < self.starts => "queued",
            (None, None) => "in_progress",
        };
        View {
            id,
            model: inner.catalog.name(self.model),
            created: self.created,
            tier: self.mode,
            background: true,
            status,
            completed: result.as_ref().map(|_| self.ends),
            metadata: &self.metadata,
            instructions: self.instructions.as_deref(),
            max_output_tokens: self.max_output_tokens,
            result: result.as_ref().map(|(answer, usage)| (answer, *usage)),
        }
        .json()
    }
}

/// Accepts a response to be worked out in the background.
pub(crate) fn create_background(
    inner: &Inner,
    work: &Work<'_>,
    response: &ResponseWork<'_>,
    mode: Mode,
    model: usize,
    run: &Run<'_>,
    key: Option<ExecutionKey>,
) -> SimResponse {
    let timing = &inner.conditions().timing;
    let range: &RangeInclusive<Duration> = match mode {
        Mode::Background2h => &timing.background_2h,
        Mode::Background8h => &timing.background_8h,
        _ => &timing.background_soonest,
    };
    let mut rng = StdRng::seed_from_u64(scatter(inner.ids.number()));
    let takes = draw_millis(&mut rng, range);
    let background = Background {
        model,
        prompt: response.prompt.clone().into_owned(),
        instructions: response.instructions.clone().map(Cow::into_owned),
        max_output_tokens: response.max_output_tokens,
        metadata: response.metadata.clone(),
        mode,
        store: response.store,
        input_tokens: work.prompt_tokens(),
        cached_tokens: run.cached_tokens,
        created: run.now,
        starts: run.now.plus_millis(takes / 4 + 1),
        ends: run.now.plus_millis(takes + 2),
        cancelled: None,
        key,
        charged: false,
        fails: inner.faults.background_fails(),
    };
    let id = run.ids.text("resp_");
    let reply = SimResponse::of(&background.json(inner, &id, run.now));
    inner.responses.state.lock().background.insert(id, background);
    reply
}

/// A duration from `range`, in milliseconds.
pub(crate) fn draw_millis(rng: &mut StdRng, range: &RangeInclusive<Duration>) -> u64 {
    let (low, high) = (millis(*range.start()), millis(*range.end()));
    rng.random_range(low..=high.max(low))
}

fn unknown(id: &str) -> ApiError {
    ApiError::not_found(format!("Response with id '{id}' not found."))
}

/// `GET /v1/responses/{id}`
pub(crate) fn get(inner: &Inner, id: &str, now: SimTime) -> Result<SimResponse, ApiError> {
    let mut store = inner.responses.state.lock();
    if let Some(body) = store.finished.get(id) {
        return Ok(SimResponse::json(body.clone()));
    }
    let found = store.background.get_mut(id).filter(|background| !background.is_forgotten(now));
    let background = found.ok_or_else(|| unknown(id))?;
    background.settle(inner, now);
    Ok(SimResponse::of(&background.json(inner, id, now)))
}

/// `POST /v1/responses/{id}/cancel`: stops a background response; one that has ended is returned as it is.
pub(crate) fn cancel(inner: &Inner, id: &str, now: SimTime) -> Result<SimResponse, ApiError> {
    let mut store = inner.responses.state.lock();
    if store.finished.contains_key(id) {
        let message = "Only responses created with the parameter 'background' set to true can be cancelled.";
        return Err(ApiError::invalid(message));
    }
    let background = store.background.get_mut(id).ok_or_else(|| unknown(id))?;
    background.settle(inner, now);
    if now < background.ends {
        background.cancelled.get_or_insert(now);
    }
    Ok(SimResponse::of(&background.json(inner, id, now)))
}

/// `DELETE /v1/responses/{id}`
pub(crate) fn delete(inner: &Inner, id: &str, now: SimTime) -> Result<SimResponse, ApiError> {
    let mut store = inner.responses.state.lock();
    if let Some(background) = store.background.get_mut(id) {
        background.settle(inner, now);
    }
    let found = store.finished.remove(id).is_some() | store.background.remove(id).is_some();
    if !found {
        return Err(unknown(id));
    }
    Ok(SimResponse::of(&json!({ "id": id, "object": "response", "deleted": true })))
}
