//! Events become `chat.completion.chunk`s, whatever the cuts between the bytes.
//!
//! [`Stream`] is the whole state; it is small, stays below 1 MiB whatever comes, and can be stored between two pieces. Thoughts travel as
//! `reasoning_content`, as in whole answers; a ping becomes a comment, so that whoever watches the connection sees that it
//! lives. A stream that breaks off ends with an error and without `[DONE]`, so that nobody takes half an answer for a
//! whole one.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    answer::{StopDetails, finish_reason, is_refusal},
    error::{ErrorObject, write_error},
    json::{Out, Text},
    sse::{Broken, Events},
    usage::Usage,
};

/// A stream under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    events: Events,
    /// What stands in every chunk.
    head: Head,
    phase: Phase,
    usage: Usage,
    /// Calls of tools that have begun.
    calls: u32,
    block: Block,
    /// The reason for the end has been told.
    has_finished: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    id: String,
    model: String,
    created_s: u64,
    include_usage: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    /// Before the message.
    Waiting,
    /// In it.
    Running,
    /// After `[DONE]` or an error: what follows is not read.
    Over,
}

/// The content block that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Block {
    None,
    /// Text or thought.
    Words,
    /// A tool's call. Its arguments come in pieces; if none comes, they are what stood at the beginning.
    Call {
        index: u32,
        has_arguments: bool,
        input: String,
    },
}

/// An event, as far as it is passed on.
#[derive(Debug, Deserialize)]
struct Event<'a> {
    #[serde(rename = "type", borrow)]
    kind: Text<'a>,
    #[serde(default, borrow)]
    message: Option<&'a RawValue>,
    #[serde(default, borrow)]
    content_block: Option<&'a RawValue>,
    #[serde(default, borrow)]
    delta: Option<&'a RawValue>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<ErrorObject>,
}

#[derive(Debug, Deserialize)]
struct Started {
    id: String,
    model: String,
    #[serde(default)]
    usage: Usage,
}

#[derive(Debug, Deserialize)]
struct StartedBlock<'a> {
    #[serde(rename = "type", borrow)]
    kind: Text<'a>,
    #[serde(default, borrow)]
    text: Option<Text<'a>>,
    #[serde(default, borrow)]
    thinking: Option<Text<'a>>,
    #[serde(default, borrow)]
    id: Option<Text<'a>>,
    #[serde(default, borrow)]
    name: Option<Text<'a>>,
    #[serde(default, borrow)]
    input: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
struct Delta<'a> {
    #[serde(rename = "type", borrow)]
    kind: Text<'a>,
    #[serde(default, borrow)]
    text: Option<Text<'a>>,
    #[serde(default, borrow)]
    thinking: Option<Text<'a>>,
    #[serde(default, borrow)]
    partial_json: Option<Text<'a>>,
}

#[derive(Debug, Deserialize)]
struct MessageDelta {
    #[serde(default)]
    stop_reason: Option<String>,
    #[serde(default)]
    stop_details: Option<StopDetails>,
}

impl Stream {
    /// Before the first byte. `created_s` is the time, in seconds since 1970; `include_usage` is what the request asked for.
    pub fn new(created_s: u64, include_usage: bool) -> Self {
        Self {
            events: Events::default(),
            head: Head { id: String::new(), model: String::new(), created_s, include_usage },
            phase: Phase::Waiting,
            usage: Usage::default(),
            calls: 0,
            block: Block::None,
            has_finished: false,
        }
    }

    /// Translates the next bytes; all that can be said by now comes back.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Out::with_capacity(bytes.len() * 2);
        if self.phase == Phase::Over {
            return out.into_bytes();
        }
        let mut events = std::mem::take(&mut self.events);
        let pushed = events.push(bytes, |data| self.event(data, &mut out));
        match pushed {
            Ok(()) if self.phase != Phase::Over => self.events = events,
            Ok(()) => {}
            Err(Broken::TooLarge) => self.fail("an event is too large", &mut out),
            Err(Broken::ControlCharacter) => self.fail("it is not text", &mut out),
        }
        out.into_bytes()
    }

    /// The end of the bytes. If the answer is not whole, this says so.
    pub fn finish(&mut self) -> Vec<u8> {
        let mut out = Out::default();
        self.fail("it ended before the answer did", &mut out);
        out.into_bytes()
    }

    /// Whether the answer, or an error, has been told to its end.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    fn event(&mut self, data: &str, out: &mut Out) {
        if self.phase == Phase::Over {
            return;
        }
        let event: Event<'_> = match serde_json::from_str(data) {
            Ok(event) => event,
            Err(_) => return self.fail("an event cannot be read", out),
        };
        let understood = match &*event.kind.0 {
            "message_start" => self.message_start(event.message, out),
            "content_block_start" => self.block_start(event.content_block, out),
            "content_block_delta" => self.block_delta(event.delta, out),
            "content_block_stop" => {
                self.block_stop(out);
                Some(())
            }
            "message_delta" => self.message_delta(event.delta, event.usage, out),
            "message_stop" => {
                self.message_stop(out);
                Some(())
            }
            "error" => {
                self.error(&event.error.unwrap_or_default(), out);
                Some(())
            }
            "ping" => {
                out.raw(": ping\n\n");
                Some(())
            }
            _ => Some(()), // the API may learn further ones
        };
        if understood.is_none() {
            self.fail("an event cannot be read", out);
        }
    }

    fn message_start(&mut self, message: Option<&RawValue>, out: &mut Out) -> Option<()> {
        const NAME_BYTES_MAX: usize = 1024;
        let started: Started = read(message?)?;
        let is_named = started.id.len() <= NAME_BYTES_MAX && started.model.len() <= NAME_BYTES_MAX;
        if self.phase == Phase::Running || !is_named {
            return None;
        }
        self.head.id = started.id;
        self.head.model = started.model;
        self.usage = started.usage;
        self.phase = Phase::Running;
        self.delta(out, |out| out.raw(r#""role":"assistant","content":"","refusal":null"#));
        Some(())
    }

    fn block_start(&mut self, block: Option<&RawValue>, out: &mut Out) -> Option<()> {
        let block: StartedBlock<'_> = read(block?)?;
        self.running()?;
        self.block_stop(out);
        self.block = Block::Words;
        match &*block.kind.0 {
            "text" => self.words("content", block.text.as_ref(), out),
            "thinking" => self.words("reasoning_content", block.thinking.as_ref(), out),
            "tool_use" => {
                let (id, name) = (block.id?, block.name?);
                let index = self.calls;
                self.calls = self.calls.saturating_add(1);
                let input = block.input.map_or("{}", RawValue::get).to_owned();
                self.block = Block::Call { index, has_arguments: false, input };
                self.delta(out, |out| {
                    out.raw("\"tool_calls\":[{\"index\":");
                    out.number(index.into());
                    out.raw(",\"id\":");
                    out.text(&id.0);
                    out.raw(",\"type\":\"function\",\"function\":{\"name\":");
                    out.text(&name.0);
                    out.raw(",\"arguments\":\"\"}}]");
                });
            }
            _ => {}
        }
        Some(())
    }

    fn block_delta(&mut self, delta: Option<&RawValue>, out: &mut Out) -> Option<()> {
        let delta: Delta<'_> = read(delta?)?;
        self.running()?;
        match &*delta.kind.0 {
            "text_delta" => self.words("content", delta.text.as_ref(), out),
            "thinking_delta" => self.words("reasoning_content", delta.thinking.as_ref(), out),
            "input_json_delta" => {
                let json = delta.partial_json?;
                let Block::Call { index, has_arguments, .. } = &mut self.block else {
                    return Some(()); // of a tool that runs at the provider
                };
                if !json.0.is_empty() {
                    *has_arguments = true;
                    let index = *index;
                    self.arguments(index, &json.0, out);
                }
            }
            _ => {} // signatures, citations
        }
        Some(())
    }

    fn block_stop(&mut self, out: &mut Out) {
        let block = std::mem::replace(&mut self.block, Block::None);
        if let Block::Call { index, has_arguments: false, input } = block {
            self.arguments(index, &input, out);
        }
    }

    fn message_delta(&mut self, delta: Option<&RawValue>, usage: Option<Usage>, out: &mut Out) -> Option<()> {
        self.running()?;
        if let Some(usage) = usage {
            self.usage.update(usage);
        }
        let Some(delta) = delta else { return Some(()) };
        let delta: MessageDelta = read(delta)?;
        let Some(reason) = delta.stop_reason.filter(|_| !self.has_finished) else { return Some(()) };
        self.block_stop(out);
        if is_refusal(&reason) {
            let words = StopDetails::refusal(delta.stop_details.as_ref());
            self.delta(out, |out| {
                out.raw("\"refusal\":");
                out.text(words);
            });
        }
        self.finished(finish_reason(&reason), out);
        Some(())
    }

    fn message_stop(&mut self, out: &mut Out) {
        if self.phase != Phase::Running {
            return self.fail("it ended before it began", out);
        }
        self.block_stop(out);
        if !self.has_finished {
            self.finished(finish_reason(""), out);
        }
        if self.head.include_usage {
            self.begin_chunk(out);
            out.raw("[]");
            out.member("usage");
            self.usage.write(out);
            end_chunk(out);
        }
        out.raw("data: [DONE]\n\n");
        self.phase = Phase::Over;
    }

    fn running(&self) -> Option<()> {
        (self.phase == Phase::Running).then_some(())
    }

    // --- What is said ---

    fn words(&mut self, member: &str, words: Option<&Text<'_>>, out: &mut Out) {
        if let Some(words) = words.filter(|words| !words.0.is_empty()) {
            self.delta(out, |out| {
                out.text(member);
                out.raw(":");
                out.text(&words.0);
            });
        }
    }

    fn arguments(&self, index: u32, json: &str, out: &mut Out) {
        self.delta(out, |out| {
            out.raw("\"tool_calls\":[{\"index\":");
            out.number(index.into());
            out.raw(",\"function\":{\"arguments\":");
            out.text(json);
            out.raw("}}]");
        });
    }

    fn delta(&self, out: &mut Out, members: impl FnOnce(&mut Out)) {
        self.choice(out, None, members);
    }

    fn finished(&mut self, reason: &str, out: &mut Out) {
        self.has_finished = true;
        self.choice(out, Some(reason), |_| {});
    }

    fn choice(&self, out: &mut Out, finish: Option<&str>, members: impl FnOnce(&mut Out)) {
        self.begin_chunk(out);
        out.raw("[{\"index\":0,\"delta\":{");
        members(out);
        out.raw("},\"logprobs\":null,\"finish_reason\":");
        match finish {
            Some(reason) => out.text(reason),
            None => out.raw("null"),
        }
        out.raw("}]");
        if self.head.include_usage {
            out.raw(",\"usage\":null");
        }
        end_chunk(out);
    }

    /// A chunk up to its choices.
    fn begin_chunk(&self, out: &mut Out) {
        out.raw("data: {\"id\":");
        out.text(&self.head.id);
        out.raw(",\"object\":\"chat.completion.chunk\",\"created\":");
        out.number(self.head.created_s);
        out.raw(",\"model\":");
        out.text(&self.head.model);
        if let Some(tier) = self.usage.service_tier() {
            out.raw(",\"service_tier\":");
            out.text(tier);
        }
        out.raw(",\"choices\":");
    }

    fn error(&mut self, error: &ErrorObject, out: &mut Out) {
        out.raw("data: {\"error\":");
        error.write(error.status(), out);
        end_chunk(out);
        self.phase = Phase::Over;
    }

    /// The stream is not what it should be, and nothing more can be said.
    fn fail(&mut self, why: &str, out: &mut Out) {
        if self.phase != Phase::Over {
            out.raw("data: {\"error\":");
            let message = format!("The provider's answer broke off: {why}.");
            write_error(&message, "server_error", Some("stream_interrupted"), out);
            end_chunk(out);
            self.phase = Phase::Over;
        }
    }
}

fn end_chunk(out: &mut Out) {
    out.raw("}\n\n");
}

fn read<'a, T: Deserialize<'a>>(json: &'a RawValue) -> Option<T> {
    serde_json::from_str(json.get()).ok()
}
