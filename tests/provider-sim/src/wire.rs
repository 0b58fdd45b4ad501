//! Request bodies as they come over the wire. Borrowed where the text has no escapes; unknown fields are refused, as
//! the real API does.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::error::Category;

use crate::error::ApiError;

/// A string, borrowed from the request where possible. (A plain `Option<Cow<str>>` would always be copied.)
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Text<'a>(pub(crate) Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Owned(text.to_owned())))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor)
    }
}

/// What a message says: a string, parts, or nothing (a message with tool calls only).
#[derive(Debug, Default)]
pub(crate) enum Content<'a> {
    #[default]
    Nothing,
    Text(Text<'a>),
    Parts(Vec<Part<'a>>),
}

/// A part of a message; what is not text, and holds none, counts as empty text.
#[derive(Debug, Deserialize)]
pub(crate) struct Part<'a> {
    #[serde(borrow)]
    text: Option<Text<'a>>,
    #[serde(borrow, rename = "type")]
    pub(crate) kind: Option<Text<'a>>,
    pub(crate) cache_control: Option<IgnoredAny>,
    pub(crate) citations: Option<IgnoredAny>,
    /// Of an image.
    #[serde(borrow)]
    pub(crate) source: Option<Source<'a>>,
    /// Of a call of a tool.
    #[serde(borrow)]
    pub(crate) id: Option<Text<'a>>,
    #[serde(borrow)]
    pub(crate) name: Option<Text<'a>>,
    pub(crate) input: Option<Dictionary>,
    /// Of what a tool gave.
    #[serde(borrow)]
    pub(crate) tool_use_id: Option<Text<'a>>,
    #[serde(borrow)]
    content: Option<Box<Content<'a>>>,
}

/// Any members.
#[derive(Debug, Deserialize)]
pub(crate) struct Dictionary {}

/// Where an image is, or what it holds.
#[derive(Debug, Deserialize)]
pub(crate) struct Source<'a> {
    #[serde(borrow, rename = "type")]
    pub(crate) kind: Option<Text<'a>>,
    #[serde(borrow)]
    pub(crate) media_type: Option<Text<'a>>,
    #[serde(borrow)]
    pub(crate) data: Option<Text<'a>>,
    #[serde(borrow)]
    pub(crate) url: Option<Text<'a>>,
}

impl Part<'_> {
    fn said(&self) -> Cow<'_, str> {
        match (&self.text, &self.content) {
            (Some(text), _) => Cow::Borrowed(text),
            (None, Some(content)) => content.text(),
            (None, None) => Cow::Borrowed(""),
        }
    }
}

impl Content<'_> {
    /// The text, parts joined.
    pub(crate) fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Nothing => Cow::Borrowed(""),
            Self::Text(text) => Cow::Borrowed(text),
            Self::Parts(parts) => match parts.as_slice() {
                [only] => only.said(),
                _ => Cow::Owned(parts.iter().map(Part::said).collect()),
            },
        }
    }

    /// The parts; none where the content is no array.
    pub(crate) fn parts(&self) -> &[Part<'_>] {
        match self {
            Self::Parts(parts) => parts,
            Self::Nothing | Self::Text(_) => &[],
        }
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or an array of objects")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Content<'de>, E> {
        Ok(Content::Text(Text(Cow::Borrowed(text))))
    }

    fn visit_str<E>(self, text: &str) -> Result<Content<'de>, E> {
        Ok(Content::Text(Text(Cow::Owned(text.to_owned()))))
    }

    fn visit_unit<E>(self) -> Result<Content<'de>, E> {
        Ok(Content::Nothing)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Content<'de>, A::Error> {
        let mut parts = Vec::new();
        while let Some(part) = seq.next_element()? {
            parts.push(part);
        }
        Ok(Content::Parts(parts))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Content<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

/// A chat message, or an input item of a response.
#[derive(Debug, Deserialize)]
pub(crate) struct Message<'a> {
    #[serde(borrow)]
    pub(crate) role: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(crate) content: Content<'a>,
}

/// What the other endpoints take as input: one text, one list of token numbers, or a list of either.
#[derive(Debug)]
pub(crate) enum Input<'a> {
    Text(Text<'a>),
    Tokens(Vec<u32>),
}

impl Input<'_> {
    /// The text that the answer is a function of.
    pub(crate) fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Text(text) => Cow::Borrowed(text),
            Self::Tokens(tokens) => {
                let numbers: Vec<_> = tokens.iter().map(ToString::to_string).collect();
                Cow::Owned(format!("tokens:{}", numbers.join(",")))
            }
        }
    }

    pub(crate) fn tokens(&self) -> u64 {
        match self {
            Self::Text(text) => crate::answer::count_tokens(text),
            Self::Tokens(tokens) => tokens.len() as u64,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Tokens(tokens) => tokens.is_empty(),
        }
    }
}

/// One or many inputs.
#[derive(Debug)]
pub(crate) struct Inputs<'a>(pub(crate) Vec<Input<'a>>);

/// An element of an input array.
#[derive(Deserialize)]
#[serde(untagged)]
enum Element<'a> {
    #[serde(borrow)]
    Text(Text<'a>),
    Token(u32),
    Tokens(Vec<u32>),
    Part(#[serde(borrow)] Box<Part<'a>>),
}

struct InputsVisitor;

impl<'de> Visitor<'de> for InputsVisitor {
    type Value = Inputs<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, an array of strings, or an array of tokens")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Inputs<'de>, E> {
        Ok(Inputs(vec![Input::Text(Text(Cow::Borrowed(text)))]))
    }

    fn visit_str<E>(self, text: &str) -> Result<Inputs<'de>, E> {
        Ok(Inputs(vec![Input::Text(Text(Cow::Owned(text.to_owned())))]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Inputs<'de>, A::Error> {
        let mut inputs = Vec::new();
        let mut single = Vec::new();
        while let Some(element) = seq.next_element()? {
            match element {
                Element::Text(text) => inputs.push(Input::Text(text)),
                Element::Part(part) => inputs.push(Input::Text(part.text.unwrap_or(Text(Cow::Borrowed(""))))),
                Element::Tokens(tokens) => inputs.push(Input::Tokens(tokens)),
                Element::Token(token) => single.push(token),
            }
        }
        match (inputs.is_empty(), single.is_empty()) {
            (true, false) => Ok(Inputs(vec![Input::Tokens(single)])),
            (false, false) => Err(de::Error::custom("invalid type: mixed array, expected one kind of input")),
            _ => Ok(Inputs(inputs)),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Inputs<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InputsVisitor)
    }
}

/// `metadata` of requests and batches.
pub(crate) type Metadata = BTreeMap<String, String>;

/// Checks the limits of `metadata`: 16 pairs, keys of 64 and values of 512 characters.
pub(crate) fn check_metadata(metadata: Option<&Metadata>) -> Result<(), ApiError> {
    let Some(metadata) = metadata else { return Ok(()) };
    let error = |message: String| Err(ApiError::invalid(message).param("metadata"));
    if metadata.len() > 16 {
        let message =
            format!("Invalid 'metadata': too many properties. Expected 16, got {}.", metadata.len());
        return error(message);
    }
    for (key, value) in metadata {
        if key.chars().count() > 64 || value.chars().count() > 512 {
            return error(format!(
                "Invalid 'metadata.{key}': keys have at most 64 and values 512 characters."
            ));
        }
    }
    Ok(())
}

#[derive(Debug, Deserialize)]
pub(crate) struct StreamOptions {
    #[serde(default)]
    pub(crate) include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BackgroundOptions<'a> {
    #[serde(borrow)]
    pub(crate) completion_window: Option<Text<'a>>,
    #[serde(default, rename = "continuation_id")]
    _continuation_id: IgnoredAny,
}

/// A request type: the fields that are read, and the names of those that are only allowed.
macro_rules! request {
    ($(#[$doc:meta])* $name:ident { $($(#[$meta:meta])* $field:ident: $type:ty,)* } allowed { $($skip:ident)* }) => {
        $(#[$doc])*
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(dead_code, reason = "the fields that are only allowed, where there are any, are never read")]
        pub(crate) struct $name<'a> {
            #[serde(borrow)]
            pub(crate) model: Option<Text<'a>>,
            $($(#[$meta])* pub(crate) $field: $type,)*
            $(#[serde(default)] $skip: IgnoredAny,)*
        }
    };
}
pub(crate) use request;

request! {
    /// `POST /v1/chat/completions`
    ChatRequest {
        #[serde(borrow)]
        messages: Option<Vec<Message<'a>>>,
        max_tokens: Option<u32>,
        max_completion_tokens: Option<u32>,
        n: Option<u32>,
        temperature: Option<f64>,
        stream: Option<bool>,
        stream_options: Option<StreamOptions>,
        #[serde(borrow)]
        service_tier: Option<Text<'a>>,
        metadata: Option<Metadata>,
    } allowed {
        audio frequency_penalty function_call functions logit_bias logprobs modalities moderation
        parallel_tool_calls prediction presence_penalty prompt_cache_key prompt_cache_options
        prompt_cache_retention reasoning_effort response_format safety_identifier seed stop store tool_choice tools
        top_logprobs top_p user verbosity web_search_options
    }
}

request! {
    /// `POST /v1/completions`
    CompletionRequest {
        #[serde(borrow)]
        prompt: Option<Inputs<'a>>,
        max_tokens: Option<u32>,
        n: Option<u32>,
        temperature: Option<f64>,
        stream: Option<bool>,
        stream_options: Option<StreamOptions>,
    } allowed {
        best_of echo frequency_penalty logit_bias logprobs presence_penalty seed stop suffix top_p user
    }
}

request! {
    /// `POST /v1/embeddings`
    EmbeddingRequest {
        #[serde(borrow)]
        input: Option<Inputs<'a>>,
        dimensions: Option<usize>,
        #[serde(borrow)]
        encoding_format: Option<Text<'a>>,
    } allowed { user }
}

request! {
    /// `POST /v1/moderations`
    ModerationRequest {
        #[serde(borrow)]
        input: Option<Inputs<'a>>,
    } allowed {}
}

/// Input of a response: a string or a list of items.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum ResponseInput<'a> {
    #[serde(borrow)]
    Text(Text<'a>),
    Items(Vec<Message<'a>>),
}

request! {
    /// `POST /v1/responses`
    ResponseRequest {
        #[serde(borrow)]
        input: Option<ResponseInput<'a>>,
        #[serde(borrow)]
        instructions: Option<Text<'a>>,
        max_output_tokens: Option<u32>,
        temperature: Option<f64>,
        stream: Option<bool>,
        background: Option<bool>,
        #[serde(borrow)]
        background_options: Option<BackgroundOptions<'a>>,
        store: Option<bool>,
        #[serde(borrow)]
        service_tier: Option<Text<'a>>,
        metadata: Option<Metadata>,
    } allowed {
        stream_options max_tool_calls previous_response_id conversation prompt prompt_cache_key prompt_cache_options
        prompt_cache_retention reasoning safety_identifier top_p top_logprobs tools tool_choice text truncation
        include context_management parallel_tool_calls user
    }
}

/// The fields that every batch line's body is checked for, whatever else is in it.
#[derive(Deserialize)]
pub(crate) struct Head<'a> {
    #[serde(borrow)]
    pub(crate) model: Option<Text<'a>>,
    pub(crate) stream: Option<bool>,
}

/// Reads a body, with the API's words for what is wrong with it.
pub(crate) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        let text = error.to_string();
        match error.classify() {
            Category::Data => {
                match text.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`')) {
                    Some((name, _)) => ApiError::invalid(format!("Unknown parameter: '{name}'."))
                        .param(name.to_owned())
                        .code("unknown_parameter"),
                    None => ApiError::invalid(format!("Invalid request: {text}.")).code("invalid_type"),
                }
            }
            _ => ApiError::invalid(format!(
                "We could not parse the JSON body of your request. The API expects a JSON payload ({text})."
            )),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_is_borrowed() {
        let body = br#"{"model":"m","messages":[{"role":"user","content":"hello"}]}"#;
        let request: ChatRequest<'_> = parse(body).unwrap();
        let messages = request.messages.unwrap();
        assert!(matches!(&messages[0].content, Content::Text(Text(Cow::Borrowed("hello")))));
        assert!(matches!(request.model, Some(Text(Cow::Borrowed("m")))));
    }

    #[test]
    fn parts_are_joined() {
        let body = br#"{"messages":[{"role":"user","content":[{"type":"text","text":"a\n"},
            {"type":"image_url","image_url":{"url":"x"}},{"type":"text","text":"b"}]},{"role":"assistant"}]}"#;
        let messages = parse::<ChatRequest<'_>>(body).unwrap().messages.unwrap();
        assert_eq!(messages[0].content.text(), "a\nb");
        assert_eq!(messages[1].content.text(), "");
    }

    #[test]
    fn inputs_come_in_four_shapes() {
        let read = |body: &str| {
            let body = format!(r#"{{"model":"m","input":{body}}}"#);
            parse::<EmbeddingRequest<'_>>(body.as_bytes()).map(|request| {
                request.input.unwrap().0.iter().map(|input| input.text().into_owned()).collect::<Vec<_>>()
            })
        };
        assert_eq!(read(r#""x""#).unwrap(), ["x"]);
        assert_eq!(read(r#"["x","y"]"#).unwrap(), ["x", "y"]);
        assert_eq!(read("[1,2]").unwrap(), ["tokens:1,2"]);
        assert_eq!(read("[[1],[2,3]]").unwrap(), ["tokens:1", "tokens:2,3"]);
        assert_eq!(read(r#"["x",1]"#).unwrap_err().code.as_deref(), Some("invalid_type"));
        assert_eq!(read("{}").unwrap_err().code.as_deref(), Some("invalid_type"));
    }

    #[test]
    fn errors_name_the_field() {
        let error = parse::<ChatRequest<'_>>(br#"{"model":"m","colour":1}"#).map(|_| ()).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("colour"));
        assert!(
            parse::<ChatRequest<'_>>(b"{").map(|_| ()).unwrap_err().message.starts_with("We could not parse")
        );
    }
}
