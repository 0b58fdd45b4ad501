//! A chat-completions body becomes a messages body, or a refusal.
//!
//! Three things can happen to a member of the request, and the plugin's README has the table of them: it is translated;
//! it is left out, because it says what holds anyway or concerns only OpenAI's own records; or the request is refused
//! with the member's name, because without it the answer would be another one.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    conversation,
    json::{Object, Out, Place, Refusal, list, text},
    tools,
};

/// How requests are translated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// `max_tokens` where the request does not say: Anthropic's API wants to be told.
    pub default_max_tokens: u64,
    /// Whether `temperature` and `top_p` are passed on. Since version 2026-10-21 of Anthropic's API they are errors.
    pub sampling: bool,
    /// What may be left out though it changes the answer, because the operator said so.
    pub ignored: Vec<Ignorable>,
}

impl Default for Options {
    fn default() -> Self {
        Self { default_max_tokens: 4096, sampling: true, ignored: Vec::new() }
    }
}

/// What an operator may let be ignored instead of refused. None of it changes the form of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ignorable {
    /// How much repetition is disliked.
    FrequencyPenalty,
    /// How much old topics are disliked.
    PresencePenalty,
    /// Which tokens are liked.
    LogitBias,
    /// The same answer again, if possible.
    Seed,
    /// The randomness of the answer.
    Temperature,
    /// The same in another way.
    TopP,
    /// How long the answer should be.
    Verbosity,
    /// How much the model should think.
    ReasoningEffort,
    /// What the answer will probably be, so that it comes sooner.
    Prediction,
    /// How prompts are cached.
    PromptCacheOptions,
    /// How long prompts are cached.
    PromptCacheRetention,
    /// Which class of service is asked for.
    ServiceTier,
    /// That OpenAI should keep the answer.
    Store,
}

impl Ignorable {
    fn name(self) -> &'static str {
        match self {
            Self::FrequencyPenalty => "frequency_penalty",
            Self::PresencePenalty => "presence_penalty",
            Self::LogitBias => "logit_bias",
            Self::Seed => "seed",
            Self::Temperature => "temperature",
            Self::TopP => "top_p",
            Self::Verbosity => "verbosity",
            Self::ReasoningEffort => "reasoning_effort",
            Self::Prediction => "prediction",
            Self::PromptCacheOptions => "prompt_cache_options",
            Self::PromptCacheRetention => "prompt_cache_retention",
            Self::ServiceTier => "service_tier",
            Self::Store => "store",
        }
    }
}

/// A request for Anthropic's API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translated {
    /// The body for `/v1/messages`.
    pub body: Vec<u8>,
    /// The answer is to come in pieces.
    pub stream: bool,
    /// The last of them is to tell the tokens.
    pub include_usage: bool,
}

/// Translates a chat-completions body.
pub fn translate(body: &[u8], options: &Options) -> Result<Translated, Refusal> {
    let mut request = Object::of_bytes(body, Place::Body)?;
    for ignored in &options.ignored {
        request.take(ignored.name());
    }
    refuse_what_cannot_be_said(&mut request)?;
    let mut out = Out::with_capacity(body.len() + body.len() / 16 + 512);
    out.raw("{");
    out.member("model");
    out.text(&request.require_text("model")?);
    write_max_tokens(&mut request, options, &mut out)?;
    let place = request.place();
    conversation::write(request.require("messages")?, &place.member("messages"), &mut out)?;
    tools::write(&mut request, &mut out)?;
    write_stop(&mut request, &mut out)?;
    write_sampling("temperature", &mut request, options, &mut out)?;
    write_sampling("top_p", &mut request, options, &mut out)?;
    write_output_config(&mut request, &mut out)?;
    write_user(&mut request, &mut out)?;
    write_service_tier(&mut request, &mut out)?;
    let (stream, include_usage) = write_stream(&mut request, &mut out)?;
    out.raw("}");
    request.finish()?;
    Ok(Translated { body: out.into_bytes(), stream, include_usage })
}

// === What has no counterpart ===

/// Refuses what has no counterpart, unless it says what holds anyway, and leaves out what does not touch the answer.
fn refuse_what_cannot_be_said(request: &mut Object<'_, '_>) -> Result<(), Refusal> {
    for (name, holds_anyway, why) in [
        ("n", &["1"][..], "it gives one answer to a request; send the request several times."),
        ("logprobs", &["false"], "it tells no probabilities of tokens; leave it out."),
        ("top_logprobs", &["0"], "it tells no probabilities of tokens; leave it out."),
        ("logit_bias", &["{}"], "tokens cannot be weighted there; leave it out."),
        ("frequency_penalty", &["0", "0.0", "-0.0"], "it knows no penalties; leave it out."),
        ("presence_penalty", &["0", "0.0", "-0.0"], "it knows no penalties; leave it out."),
        ("seed", &[], "its answers cannot be made to repeat; leave it out."),
        ("modalities", &[r#"["text"]"#], "it answers with text alone."),
        ("audio", &[], "it answers with text alone."),
        ("prediction", &[], "it takes no predictions; leave it out."),
        ("store", &["false"], "it keeps no answers to be fetched later; leave it out."),
        ("verbosity", &[r#""medium""#], "ask for a length in the prompt instead."),
        ("web_search_options", &[], "its search is a tool of its own; call /v1/messages for it."),
        ("moderation", &[], "it has no such step; leave it out."),
        ("prompt_cache_options", &[], "call /v1/messages with `cache_control` to control its cache."),
        ("prompt_cache_retention", &[], "call /v1/messages with `cache_control` to control its cache."),
        ("functions", &["[]"], "use `tools` instead, which has replaced it."),
        ("function_call", &[r#""none""#], "use `tool_choice` instead, which has replaced it."),
    ] {
        if let Some(json) = request.take(name)
            && !holds_anyway.contains(&json.get())
        {
            return Err(Refusal::unsupported(&request.place().member(name), why));
        }
    }
    // Which of OpenAI's caches is asked first.
    request.text("prompt_cache_key")?;
    // Labels on what OpenAI stores, and nothing is stored.
    if let Some(labels) = request.take("metadata")
        && !labels.get().starts_with('{')
    {
        return Err(Refusal::invalid(&request.place().member("metadata"), "an object"));
    }
    Ok(())
}

// === What has one ===

fn write_max_tokens(request: &mut Object<'_, '_>, options: &Options, out: &mut Out) -> Result<(), Refusal> {
    const EXPECTED: &str = "a whole number from 1";
    let old: Option<u64> = request.value("max_tokens", EXPECTED)?;
    let new: Option<u64> = request.value("max_completion_tokens", EXPECTED)?;
    let place = request.place();
    let place = place.member(if new.is_some() { "max_completion_tokens" } else { "max_tokens" });
    if let (Some(old), Some(new)) = (old, new)
        && old != new
    {
        return Err(Refusal::invalid(&place, "the same as `max_tokens`, or given alone"));
    }
    let max_tokens = new.or(old).unwrap_or(options.default_max_tokens);
    if max_tokens == 0 {
        return Err(Refusal::invalid(&place, EXPECTED));
    }
    out.member("max_tokens");
    out.number(max_tokens);
    Ok(())
}

fn write_stop(request: &mut Object<'_, '_>, out: &mut Out) -> Result<(), Refusal> {
    let Some(stop) = request.take("stop") else { return Ok(()) };
    let place = request.place();
    let place = place.member("stop");
    out.member("stop_sequences");
    out.raw("[");
    if stop.get().starts_with('"') {
        out.text(&text(stop, &place)?);
    } else {
        for (index, sequence) in list(stop, &place)?.into_iter().enumerate() {
            out.separate();
            out.text(&text(sequence, &place.entry(index))?);
        }
    }
    out.raw("]");
    Ok(())
}

/// OpenAI's temperature goes to 2, Anthropic's to 1; both begin at 0 and stand at 1 by default, like `top_p`.
fn write_sampling(
    name: &str,
    request: &mut Object<'_, '_>,
    options: &Options,
    out: &mut Out,
) -> Result<(), Refusal> {
    let Some(json) = request.take(name) else { return Ok(()) };
    let place = request.place();
    let place = place.member(name);
    let Ok(value) = serde_json::from_str::<f64>(json.get()) else {
        return Err(Refusal::invalid(&place, "a number"));
    };
    if options.sampling && (0.0..=1.0).contains(&value) {
        out.member(name);
        out.raw(json.get());
        return Ok(());
    }
    if options.sampling {
        return Err(Refusal::unsupported_value(&place, json.get(), "it goes from 0 to 1 there."));
    }
    let is_default = (value - 1.0).abs() < f64::EPSILON;
    if is_default {
        return Ok(());
    }
    Err(Refusal::unsupported(
        &place,
        "the randomness of its answers cannot be changed any more; leave it out.",
    ))
}

/// `reasoning_effort` and `response_format`.
fn write_output_config(request: &mut Object<'_, '_>, out: &mut Out) -> Result<(), Refusal> {
    let place = request.place();
    let effort = request.text("reasoning_effort")?;
    let format = match request.take("response_format") {
        Some(format) => output_format(Object::of(format, place.member("response_format"))?)?,
        None => None,
    };
    let effort = match effort.as_deref() {
        Some("none") => {
            out.member("thinking");
            out.raw(r#"{"type":"disabled"}"#);
            None
        }
        None | Some("low" | "medium" | "high" | "xhigh" | "max") => effort,
        Some(other) => {
            let why = "it is none, low, medium, high, xhigh or max.";
            return Err(Refusal::unsupported_value(&place.member("reasoning_effort"), other, why));
        }
    };
    if effort.is_none() && format.is_none() {
        return Ok(());
    }
    out.member("output_config");
    out.raw("{");
    if let Some(effort) = effort {
        out.member("effort");
        out.text(&effort);
    }
    if let Some(schema) = format {
        out.member("format");
        out.raw("{\"type\":\"json_schema\",\"schema\":");
        out.raw(&schema);
        out.raw("}");
    }
    out.raw("}");
    Ok(())
}

/// The schema that the answer is to follow; none if it may be any text.
fn output_format(mut format: Object<'_, '_>) -> Result<Option<String>, Refusal> {
    let place = format.place();
    let kind = format.require_text("type")?;
    match &*kind {
        "text" => {
            format.finish()?;
            return Ok(None);
        }
        "json_schema" => {}
        other => {
            let why = "it is text or json_schema; say which JSON is wanted.";
            return Err(Refusal::unsupported_value(&place.member("type"), other, why));
        }
    }
    let mut described = Object::of(format.require("json_schema")?, place.member("json_schema"))?;
    // A label for people; and what is not strict is done strictly.
    described.text("name")?;
    described.flag("strict")?;
    let place = described.place();
    let schema = described.require("schema")?;
    let description = described.text("description")?;
    let schema = match description {
        None => schema.get().to_owned(),
        Some(description) => with_description(schema, &description, &place)?,
    };
    if !schema.starts_with('{') {
        return Err(Refusal::invalid(&place.member("schema"), "a JSON schema"));
    }
    described.finish()?;
    format.finish()?;
    Ok(Some(schema))
}

/// The model reads what the format is for: in the schema, if it does not say that itself.
fn with_description(schema: &RawValue, description: &str, place: &Place<'_>) -> Result<String, Refusal> {
    let schema_place = place.member("schema");
    let mut members = Object::of(schema, schema_place)?;
    let inner = schema.get().strip_prefix('{').unwrap_or_default();
    match members.text("description")? {
        Some(own) if own == description => Ok(schema.get().to_owned()),
        Some(_) => {
            let why = "the schema has a description already; put both into it.";
            Err(Refusal::unsupported(&place.member("description"), why))
        }
        None => {
            let mut out = Out::with_capacity(schema.get().len() + description.len() + 32);
            out.raw("{\"description\":");
            out.text(description);
            out.raw(if members.is_empty() { "" } else { "," });
            out.raw(if members.is_empty() { "}" } else { inner });
            String::from_utf8(out.into_bytes()).map_err(|_| Refusal::invalid(place, "UTF-8"))
        }
    }
}

/// Who asks, for the search after abuse.
fn write_user(request: &mut Object<'_, '_>, out: &mut Out) -> Result<(), Refusal> {
    let new = request.text("safety_identifier")?;
    let old = request.text("user")?;
    if new.is_some() && old.is_some() && new != old {
        let expected = "the same as `safety_identifier`, which has replaced it, or left out";
        return Err(Refusal::invalid(&request.place().member("user"), expected));
    }
    if let Some(user) = new.or(old) {
        out.member("metadata");
        out.raw("{\"user_id\":");
        out.text(&user);
        out.raw("}");
    }
    Ok(())
}

fn write_service_tier(request: &mut Object<'_, '_>, out: &mut Out) -> Result<(), Refusal> {
    let tier = request.text("service_tier")?;
    let anthropic = match tier.as_deref() {
        // `flex` asks offpeak to find a cheap way, which it has done by now.
        None | Some("flex") => return Ok(()),
        Some("auto") => "auto",
        Some("default") => "standard_only",
        Some(other) => {
            let why = "it is auto, default or flex; what is faster has to be bought beforehand.";
            return Err(Refusal::unsupported_value(&request.place().member("service_tier"), other, why));
        }
    };
    out.member("service_tier");
    out.text(anthropic);
    Ok(())
}

fn write_stream(request: &mut Object<'_, '_>, out: &mut Out) -> Result<(bool, bool), Refusal> {
    let stream = request.flag("stream")?;
    if let Some(stream) = stream {
        out.member("stream");
        out.raw(if stream { "true" } else { "false" });
    }
    let stream = stream.unwrap_or(false);
    let place = request.place();
    let Some(stream_options) = request.take("stream_options") else { return Ok((stream, false)) };
    let place = place.member("stream_options");
    if !stream {
        return Err(Refusal::invalid(&place, "left out where `stream` is not true"));
    }
    let mut stream_options = Object::of(stream_options, place)?;
    let include_usage = stream_options.flag("include_usage")?.unwrap_or(false);
    if stream_options.flag("include_obfuscation")? == Some(true) {
        let why = "its pieces are not padded; leave it out.";
        return Err(Refusal::unsupported(&place.member("include_obfuscation"), why));
    }
    stream_options.finish()?;
    Ok((stream, include_usage))
}
