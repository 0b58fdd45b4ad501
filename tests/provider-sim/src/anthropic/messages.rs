//! `/v1/messages` and `/v1/messages/count_tokens`.

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;
use serde_json::json;

use crate::answer::{Finish, answer, count_tokens as count};
use crate::anthropic::wire::{MessageWork, Use};
use crate::anthropic::{CACHE_STAYS_MS, Call};
use crate::bill::Usage;
use crate::clock::SimTime;
use crate::error::ApiError;
use crate::prices::Mode;
use crate::provider::Inner;
use crate::reply::{SimResponse, to_json};
use crate::sse::Events;

/// What the model said.
pub(super) struct Said {
    text: String,
    /// It calls this tool with the text, instead of saying it.
    calls: Option<String>,
    tokens: u64,
    stop_reason: &'static str,
    stop_sequence: Option<String>,
}

/// `POST /v1/messages`: check, answer, charge.
pub(super) fn create(inner: &Inner, call: &Call<'_>, body: &Bytes) -> Result<SimResponse, ApiError> {
    let conditions = inner.conditions();
    check_size(body, conditions.limits.message_bytes)?;
    let work = MessageWork::parse(body, call.version, Use::Call)?;
    let model = find(inner, &work.model)?;
    inner.take_request(&conditions, call.caller, (model, &work.model), call.now, || {
        work.tokens().max(work.max_tokens.into())
    })?;
    let said = say(&work);
    let usage = usage_of(inner, model, &work, &said, call.now);
    let id = inner.ids.text("msg_");
    let response = if work.stream {
        stream(&id, &work, &said, usage).response(inner.stream_gap)
    } else {
        SimResponse::json(message(&id, &work, &said, usage, "standard"))
    };
    inner.ledger.charge(model, Mode::Realtime, usage, inner.ledger.key("/v1/messages", body));
    Ok(response)
}

/// `POST /v1/messages/count_tokens`: free.
pub(super) fn count_tokens(inner: &Inner, call: &Call<'_>, body: &Bytes) -> Result<SimResponse, ApiError> {
    check_size(body, inner.conditions().limits.message_bytes)?;
    let work = MessageWork::parse(body, call.version, Use::Count)?;
    find(inner, &work.model)?;
    Ok(SimResponse::of(&json!({ "input_tokens": work.tokens() })))
}

pub(super) fn check_size(body: &Bytes, most: u64) -> Result<(), ApiError> {
    if body.len() as u64 > most {
        let message = format!("Request exceeds the maximum size: {} bytes, the limit is {most}", body.len());
        return Err(ApiError::invalid(message).status(StatusCode::PAYLOAD_TOO_LARGE));
    }
    Ok(())
}

/// The place of a model in the catalogue.
pub(super) fn find(inner: &Inner, model: &str) -> Result<usize, ApiError> {
    inner.catalog.find(model).ok_or_else(|| ApiError::not_found(format!("model: {model}")))
}

/// The answer within the caller's limits. Its text is a prefix of [`crate::expected_answer`]; where a tool has to be called,
/// that is what it is called with, as the member `said`.
pub(super) fn say(work: &MessageWork<'_>) -> Said {
    let answer = answer(&work.model, &work.prompt(), Some(work.max_tokens));
    if let Some(tool) = &work.calls {
        let stop_reason = match answer.finish {
            Finish::Stop => "tool_use",
            Finish::Length => "max_tokens",
        };
        let (text, tokens) = (answer.text, answer.tokens);
        return Said { text, calls: Some(tool.to_string()), tokens, stop_reason, stop_sequence: None };
    }
    let stops = work.stop_sequences.iter().filter(|stop| !stop.is_empty());
    let first = stops.filter_map(|stop| answer.text.find(stop).map(|at| (at, stop))).min();
    if let Some((at, stop)) = first {
        let mut text = answer.text;
        text.truncate(at);
        let tokens = count(&text);
        let stop_sequence = Some(stop.clone());
        return Said { text, calls: None, tokens, stop_reason: "stop_sequence", stop_sequence };
    }
    let stop_reason = match answer.finish {
        Finish::Stop => "end_turn",
        Finish::Length => "max_tokens",
    };
    Said { text: answer.text, calls: None, tokens: answer.tokens, stop_reason, stop_sequence: None }
}

/// What the answer takes, with the help of the prompt cache where the caller asked for it.
pub(super) fn usage_of(
    inner: &Inner,
    model: usize,
    work: &MessageWork<'_>,
    said: &Said,
    now: SimTime,
) -> Usage {
    let input_tokens = work.tokens();
    let look = || inner.look_in_cache(model, &work.prefix(), now, CACHE_STAYS_MS);
    let cached = if work.caches { look() } else { crate::prompt_cache::Cached::default() };
    let cached_tokens = cached.read.min(input_tokens);
    Usage {
        input_tokens,
        cached_tokens,
        cache_written_tokens: cached.written.min(input_tokens - cached_tokens),
        output_tokens: said.tokens,
    }
}

#[derive(Serialize)]
struct Message<'a> {
    id: &'a str,
    r#type: &'static str,
    role: &'static str,
    model: &'a str,
    content: &'a [Block<'a>],
    stop_reason: Option<&'static str>,
    stop_sequence: Option<&'a str>,
    usage: MessageUsage,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block<'a> {
    Text { text: &'a str },
    ToolUse { id: String, name: &'a str, input: Input<'a> },
}

/// What a tool is called with.
#[derive(Serialize)]
struct Input<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    said: Option<&'a str>,
}

impl Said {
    /// The block of the message `id`, whole or as a stream begins it.
    fn block(&self, id: &str, whole: bool) -> Block<'_> {
        let text = Some(self.text.as_str()).filter(|_| whole);
        match &self.calls {
            None => Block::Text { text: text.unwrap_or_default() },
            Some(name) => {
                let id = format!("toolu_{}", id.trim_start_matches("msg_"));
                Block::ToolUse { id, name, input: Input { said: text } }
            }
        }
    }

    /// The same piece by piece.
    fn deltas(&self) -> Vec<Delta> {
        let pieces = |text: &str| text.split_inclusive(' ').map(str::to_owned).collect::<Vec<_>>();
        if self.calls.is_none() {
            return pieces(&self.text).into_iter().map(|text| Delta::TextDelta { text }).collect();
        }
        let input = String::from_utf8(to_json(&Input { said: Some(&self.text) })).unwrap_or_default();
        pieces(&input).into_iter().map(|partial_json| Delta::InputJsonDelta { partial_json }).collect()
    }
}

/// `usage` of a message; `input_tokens` are those that the cache had no part in.
#[derive(Serialize, Clone, Copy)]
struct MessageUsage {
    input_tokens: u64,
    cache_creation_input_tokens: u64,
    cache_read_input_tokens: u64,
    cache_creation: CacheCreation,
    output_tokens: u64,
    service_tier: &'static str,
}

#[derive(Serialize, Clone, Copy)]
struct CacheCreation {
    ephemeral_5m_input_tokens: u64,
    ephemeral_1h_input_tokens: u64,
}

impl MessageUsage {
    fn of(usage: Usage, service_tier: &'static str) -> Self {
        let (read, written) = (usage.cached_tokens, usage.cache_written_tokens);
        Self {
            input_tokens: usage.input_tokens.saturating_sub(read + written),
            cache_creation_input_tokens: written,
            cache_read_input_tokens: read,
            cache_creation: CacheCreation {
                ephemeral_5m_input_tokens: written,
                ephemeral_1h_input_tokens: 0,
            },
            output_tokens: usage.output_tokens,
            service_tier,
        }
    }
}

/// A message in one piece.
pub(super) fn message(
    id: &str,
    work: &MessageWork<'_>,
    said: &Said,
    usage: Usage,
    service_tier: &'static str,
) -> Vec<u8> {
    to_json(&Message {
        id,
        r#type: "message",
        role: "assistant",
        model: &work.model,
        content: &[said.block(id, true)],
        stop_reason: Some(said.stop_reason),
        stop_sequence: said.stop_sequence.as_deref(),
        usage: MessageUsage::of(usage, service_tier),
    })
}

#[derive(Serialize)]
struct DeltaEvent {
    r#type: &'static str,
    index: u32,
    delta: Delta,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Delta {
    TextDelta { text: String },
    InputJsonDelta { partial_json: String },
}

/// A message as a stream: start, one block in one event a word, stop reason and usage, stop.
fn stream(id: &str, work: &MessageWork<'_>, said: &Said, usage: Usage) -> Events {
    let mut events = Events::with_capacity(72);
    let begun = Message {
        id,
        r#type: "message",
        role: "assistant",
        model: &work.model,
        content: &[],
        stop_reason: None,
        stop_sequence: None,
        usage: MessageUsage::of(Usage { output_tokens: 1, ..usage }, "standard"),
    };
    events.event("message_start", &json!({ "type": "message_start", "message": begun }));
    let start = json!({ "type": "content_block_start", "index": 0, "content_block": said.block(id, false) });
    events.event("content_block_start", &start);
    events.event("ping", &json!({ "type": "ping" }));
    for delta in said.deltas() {
        events.event("content_block_delta", &DeltaEvent { r#type: "content_block_delta", index: 0, delta });
    }
    events.event("content_block_stop", &json!({ "type": "content_block_stop", "index": 0 }));
    let delta = json!({
        "type": "message_delta",
        "delta": { "stop_reason": said.stop_reason, "stop_sequence": said.stop_sequence },
        "usage": MessageUsage::of(usage, "standard"),
    });
    events.event("message_delta", &delta);
    events.event("message_stop", &json!({ "type": "message_stop" }));
    events
}
