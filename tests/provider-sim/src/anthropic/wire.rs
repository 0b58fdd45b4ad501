//! The body of a message request, read and checked, wherever it came from: a call of its own or an entry of a batch.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::answer::count_tokens;
use crate::anthropic::Version;
use crate::anthropic::error::{extra, invalid, parse, required};
use crate::anthropic::tools::{self, Tool, ToolChoice, check_block, check_turns};
use crate::error::ApiError;
use crate::wire::{Content, Message, Text, request};

request! {
    /// `POST /v1/messages` and `POST /v1/messages/count_tokens`
    MessagesRequest {
        #[serde(borrow)]
        messages: Option<Vec<Message<'a>>>,
        #[serde(borrow, default)]
        system: Content<'a>,
        max_tokens: Option<i64>,
        stop_sequences: Option<Vec<String>>,
        stream: Option<bool>,
        #[serde(borrow)]
        service_tier: Option<Text<'a>>,
        #[serde(borrow)]
        speed: Option<Text<'a>>,
        cache_control: Option<IgnoredAny>,
        temperature: Option<f64>,
        top_p: Option<f64>,
        top_k: Option<u64>,
        #[serde(borrow)]
        tools: Option<Vec<Tool<'a>>>,
        #[serde(borrow)]
        tool_choice: Option<ToolChoice<'a>>,
    } allowed {
        metadata thinking output_config inference_geo container context_management diagnostics
        mcp_servers
    }
}

/// What a body is for; that decides which fields it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Call,
    BatchEntry,
    Count,
}

/// A checked request.
pub(super) struct MessageWork<'a> {
    pub(super) model: Text<'a>,
    messages: Vec<Message<'a>>,
    system: Content<'a>,
    pub(super) max_tokens: u32,
    pub(super) stop_sequences: Vec<String>,
    pub(super) stream: bool,
    /// The tool that has to be called, where one has to.
    pub(super) calls: Option<Text<'a>>,
    /// Whether the caller asked for prompt caching.
    pub(super) caches: bool,
}

impl<'a> MessageWork<'a> {
    pub(super) fn parse(body: &'a [u8], version: Version, of: Use) -> Result<Self, ApiError> {
        let request: MessagesRequest<'a> = parse(body)?;
        check_fields(&request, version, of)?;
        let max_tokens = check_max_tokens(request.max_tokens, of)?;
        let messages = request.messages.ok_or_else(|| required("messages"))?;
        if messages.is_empty() {
            return Err(invalid("messages", "at least one message is required"));
        }
        for (n, message) in messages.iter().enumerate() {
            check_message(n, message, version)?;
        }
        check_turns(&messages)?;
        let calls = tools::called(request.tools.unwrap_or_default(), request.tool_choice)?;
        let marked = |content: &Content<'_>| content.parts().iter().any(|part| part.cache_control.is_some());
        let caches = request.cache_control.is_some()
            || marked(&request.system)
            || messages.iter().any(|message| marked(&message.content));
        let model = request.model.filter(|model| !model.is_empty()).ok_or_else(|| required("model"))?;
        Ok(Self {
            model,
            messages,
            system: request.system,
            max_tokens,
            stop_sequences: request.stop_sequences.unwrap_or_default(),
            stream: request.stream.unwrap_or(false),
            calls,
            caches,
        })
    }

    /// The text that the answer is a function of: that of the user's last message.
    pub(super) fn prompt(&self) -> Cow<'_, str> {
        let of_user = self.messages.iter().rev().find(|message| message.role.as_deref() == Some("user"));
        let last = of_user.or_else(|| self.messages.last());
        last.map_or(Cow::Borrowed(""), |message| message.content.text())
    }

    /// Input tokens, cached ones included: those of the system prompt, if there is one, and of each message.
    pub(super) fn tokens(&self) -> u64 {
        let system = self.system.text();
        let of_system = if system.is_empty() { 0 } else { count_tokens(&system) };
        of_system + self.messages.iter().map(|message| count_tokens(&message.content.text())).sum::<u64>()
    }

    /// The whole prompt, as prompt caching sees it.
    pub(super) fn prefix(&self) -> String {
        let messages = self.messages.iter().map(|message| message.content.text());
        std::iter::once(self.system.text()).chain(messages).collect()
    }
}

/// Refuses fields that have no place in this version or this use.
fn check_fields(request: &MessagesRequest<'_>, version: Version, of: Use) -> Result<(), ApiError> {
    let sampling = [
        ("temperature", request.temperature.is_some()),
        ("top_p", request.top_p.is_some()),
        ("top_k", request.top_k.is_some()),
    ];
    if version >= Version::V2026
        && let Some((name, _)) = sampling.into_iter().find(|(_, is_there)| *is_there)
    {
        return Err(extra(name));
    }
    if request.temperature.is_some_and(|value| !(0.0..=1.0).contains(&value)) {
        return Err(invalid("temperature", "range: 0..1"));
    }
    match of {
        Use::BatchEntry if request.stream == Some(true) => {
            return Err(invalid("stream", "Streaming is not supported in a batch"));
        }
        Use::BatchEntry if request.speed.is_some() => return Err(extra("speed")),
        Use::Count if request.max_tokens.is_some() => return Err(extra("max_tokens")),
        Use::Count if request.stream.is_some() => return Err(extra("stream")),
        Use::Call | Use::BatchEntry | Use::Count => {}
    }
    match request.speed.as_deref() {
        None | Some("standard") => {}
        Some("fast") => return Err(invalid("speed", "'fast' is not available for this model")),
        Some(_) => return Err(invalid("speed", "Input should be 'standard' or 'fast'")),
    }
    match request.service_tier.as_deref() {
        None | Some("auto" | "standard_only") => Ok(()),
        Some(_) => Err(invalid("service_tier", "Input should be 'auto' or 'standard_only'")),
    }
}

fn check_max_tokens(max: Option<i64>, of: Use) -> Result<u32, ApiError> {
    match max {
        None if of == Use::Count => Ok(0),
        None => Err(required("max_tokens")),
        Some(..=0) => Err(invalid("max_tokens", "Input should be greater than or equal to 1")),
        Some(max) => u32::try_from(max).map_err(|_| {
            invalid("max_tokens", &format!("{max} is more than this model's maximum number of output tokens"))
        }),
    }
}

fn check_message(n: usize, message: &Message<'_>, version: Version) -> Result<(), ApiError> {
    let role = message.role.as_deref().ok_or_else(|| required(format_args!("messages.{n}.role")))?;
    if !["user", "assistant", "system"].contains(&role) {
        let field = format!("messages.{n}.role");
        return Err(invalid(field, "Input should be 'user' or 'assistant'"));
    }
    if n == 0 && role == "assistant" {
        return Err(invalid("messages", "first message must use the \"user\" role"));
    }
    match &message.content {
        Content::Nothing => return Err(required(format_args!("messages.{n}.content"))),
        Content::Text(text) if text.is_empty() && role == "user" => {
            let field = format!("messages.{n}");
            return Err(invalid(field, "user messages must have non-empty content"));
        }
        Content::Parts(parts) if parts.is_empty() && role == "user" => {
            let field = format!("messages.{n}");
            return Err(invalid(field, "user messages must have non-empty content"));
        }
        Content::Text(_) | Content::Parts(_) => {}
    }
    for (k, part) in message.content.parts().iter().enumerate() {
        let place = format!("messages.{n}.content.{k}");
        let kind = part.kind.as_deref().ok_or_else(|| required(format_args!("{place}.type")))?;
        check_block(part, kind, role, &place)?;
        if version >= Version::V2026 {
            if role == "assistant" && kind == "document" {
                return Err(invalid(place, "`document` blocks are not permitted in assistant messages"));
            }
            if role == "user" && kind == "text" && part.citations.is_some() {
                return Err(extra(format_args!("{place}.text.citations")));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn refusal(version: Version, of: Use, body: &Value) -> String {
        let body = body.to_string();
        MessageWork::parse(body.as_bytes(), version, of).err().map_or_else(String::new, |error| error.message)
    }

    fn with(more: &Value) -> Value {
        let mut body =
            json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    }

    #[test]
    fn versions_differ_in_sampling() {
        let warm = with(&json!({"temperature": 0.5, "top_k": 3}));
        assert_eq!(refusal(Version::V2023, Use::Call, &warm), "");
        assert_eq!(refusal(Version::V2026, Use::Call, &warm), "temperature: Extra inputs are not permitted");
        let hot = with(&json!({"temperature": 1.5}));
        assert_eq!(refusal(Version::V2023, Use::Call, &hot), "temperature: range: 0..1");
    }

    #[test]
    fn uses_differ_in_fields() {
        let stream = with(&json!({"stream": true}));
        assert_eq!(refusal(Version::V2026, Use::Call, &stream), "");
        assert!(refusal(Version::V2026, Use::BatchEntry, &stream).starts_with("stream:"));
        assert!(refusal(Version::V2026, Use::Count, &with(&json!({}))).starts_with("max_tokens: Extra"));
        let speed = with(&json!({"speed": "standard"}));
        assert_eq!(refusal(Version::V2026, Use::Call, &speed), "");
        assert!(refusal(Version::V2026, Use::BatchEntry, &speed).starts_with("speed:"));
    }

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        let call = |more: Value| refusal(Version::V2026, Use::Call, &with(&more));
        assert_eq!(call(json!({"colour": 1})), "colour: Extra inputs are not permitted");
        assert_eq!(call(json!({"max_tokens": null})), "max_tokens: Field required");
        assert!(call(json!({"max_tokens": 0})).starts_with("max_tokens: Input should be greater"));
        assert_eq!(call(json!({"model": null})), "model: Field required");
        assert_eq!(call(json!({"messages": []})), "messages: at least one message is required");
        let turn = |turn: Value| call(json!({"messages": [turn]}));
        assert!(turn(json!({"role": "robot", "content": "x"})).starts_with("messages.0.role:"));
        assert_eq!(turn(json!({"role": "user"})), "messages.0.content: Field required");
        assert!(turn(json!({"role": "user", "content": ""})).contains("non-empty"));
        assert!(turn(json!({"role": "assistant", "content": "x"})).contains("first message"));
        let cited = json!({"role": "user", "content": [{"type": "text", "text": "x", "citations": []}]});
        assert_eq!(turn(cited), "messages.0.content.0.text.citations: Extra inputs are not permitted");
    }

    #[test]
    fn caching_is_asked_for_anywhere() {
        let caches = |more: Value| {
            let body = with(&more).to_string();
            MessageWork::parse(body.as_bytes(), Version::V2026, Use::Call).unwrap().caches
        };
        let mark = json!({"type": "ephemeral"});
        assert!(!caches(json!({})));
        assert!(caches(json!({"cache_control": mark})));
        assert!(caches(json!({"system": [{"type": "text", "text": "s", "cache_control": mark}]})));
        let part = json!([{"type": "text", "text": "s", "cache_control": mark}]);
        assert!(caches(json!({"messages": [{"role": "user", "content": part}]})));
    }
}
