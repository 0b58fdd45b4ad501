//! A message becomes a `chat.completion`.
//!
//! What the model thought is passed on as `reasoning_content`, a member that OpenAI's API does not have and its clients
//! keep. Blocks that requests made here cannot lead to (searches, code run at the provider) are not looked for.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    json::{Out, Text},
    usage::Usage,
};

/// An answer that is not a message.
#[derive(Debug)]
pub struct NotAMessage(serde_json::Error);

impl std::fmt::Display for NotAMessage {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "the provider's answer is not a message: {}", self.0)
    }
}

impl std::error::Error for NotAMessage {}

/// A message of Anthropic's, as far as it is passed on.
#[derive(Debug, Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(borrow)]
    model: Text<'a>,
    #[serde(borrow)]
    content: Vec<Block<'a>>,
    #[serde(default)]
    stop_reason: Option<String>,
    #[serde(default)]
    stop_details: Option<StopDetails>,
    usage: Usage,
}

#[derive(Debug, Deserialize)]
struct Block<'a> {
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

/// Why the model stopped, where that needs more than a word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StopDetails {
    #[serde(default)]
    explanation: Option<String>,
}

impl StopDetails {
    /// What the client is told where the model refused.
    pub(super) fn refusal(details: Option<&Self>) -> &str {
        details
            .and_then(|details| details.explanation.as_deref())
            .filter(|explanation| !explanation.is_empty())
            .unwrap_or("The provider stopped this answer for reasons of policy.")
    }
}

/// Whether the model refused.
pub(super) fn is_refusal(stop_reason: &str) -> bool {
    stop_reason == "refusal"
}

/// Why the model stopped, in OpenAI's words. What is not known here is an ordinary end.
pub(super) fn finish_reason(stop_reason: &str) -> &'static str {
    match stop_reason {
        "max_tokens" | "model_context_window_exceeded" => "length",
        "tool_use" => "tool_calls",
        "refusal" => "content_filter",
        _ => "stop",
    }
}

/// Translates a message. `created_s` is when it was made, in seconds since 1970: the message itself does not tell.
pub fn translate(body: &[u8], created_s: u64) -> Result<Vec<u8>, NotAMessage> {
    let message: Message<'_> = serde_json::from_slice(body).map_err(NotAMessage)?;
    let mut out = Out::with_capacity(body.len() + 512);
    out.raw("{");
    out.member("id");
    out.text(&message.id.0);
    out.member("object");
    out.text("chat.completion");
    out.member("created");
    out.number(created_s);
    out.member("model");
    out.text(&message.model.0);
    out.member("choices");
    out.raw("[{\"index\":0,\"message\":");
    write_message(&message, &mut out);
    out.member("logprobs");
    out.raw("null");
    out.member("finish_reason");
    out.text(finish_reason(message.stop_reason.as_deref().unwrap_or_default()));
    out.raw("}]");
    out.member("usage");
    message.usage.write(&mut out);
    if let Some(tier) = message.usage.service_tier() {
        out.member("service_tier");
        out.text(tier);
    }
    out.raw("}");
    Ok(out.into_bytes())
}

fn write_message(message: &Message<'_>, out: &mut Out) {
    let of_kind = |kind: &'static str| message.content.iter().filter(move |block| block.kind.0 == kind);
    let texts = || of_kind("text").filter_map(|block| block.text.as_ref()).map(|text| &*text.0);
    let thoughts = || of_kind("thinking").filter_map(|block| block.thinking.as_ref()).map(|text| &*text.0);
    let calls = || of_kind("tool_use");
    let says_something = texts().any(|text| !text.is_empty());

    out.raw("{\"role\":\"assistant\",\"content\":");
    if says_something || calls().next().is_none() {
        out.texts(texts());
    } else {
        out.raw("null");
    }
    out.member("refusal");
    match message.stop_reason.as_deref() {
        Some(reason) if is_refusal(reason) => out.text(StopDetails::refusal(message.stop_details.as_ref())),
        _ => out.raw("null"),
    }
    if thoughts().any(|thought| !thought.is_empty()) {
        out.member("reasoning_content");
        out.texts(thoughts());
    }
    if calls().next().is_some() {
        out.member("tool_calls");
        out.raw("[");
        for call in calls() {
            write_call(call, out);
        }
        out.raw("]");
    }
    out.member("annotations");
    out.raw("[]}");
}

fn write_call(call: &Block<'_>, out: &mut Out) {
    let text = |text: &Option<Text<'_>>| text.as_ref().map(|text| text.0.to_string()).unwrap_or_default();
    out.separate();
    out.raw("{\"id\":");
    out.text(&text(&call.id));
    out.raw(",\"type\":\"function\",\"function\":{\"name\":");
    out.text(&text(&call.name));
    out.member("arguments");
    out.text(call.input.map_or("{}", RawValue::get));
    out.raw("}}");
}
