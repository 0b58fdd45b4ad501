//! A call as an engine takes it: OpenAI's fields and its own.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::engine::model::Prompt;
use crate::engine::options::EngineOptions;
use crate::error::ApiError;
use crate::provider::Inner;
use crate::reply::to_json;
use crate::wire::parse;
use crate::work::{Api, Ending, Job, Streaming, Work};

/// Fields beyond OpenAI's; they are read here, or allowed and have no effect on this engine.
const OWN_FIELDS: [&str; 22] = [
    "add_generation_prompt",
    "add_special_tokens",
    "allowed_token_ids",
    "bad_words",
    "cache_salt",
    "chat_template",
    "chat_template_kwargs",
    "continue_final_message",
    "guided_json",
    "ignore_eos",
    "include_stop_str_in_output",
    "length_penalty",
    "min_p",
    "min_tokens",
    "priority",
    "repetition_penalty",
    "request_id",
    "skip_special_tokens",
    "stop_token_ids",
    "structured_outputs",
    "top_k",
    "truncate_prompt_tokens",
];

/// The fields that a self-hosted engine reads beyond OpenAI's.
#[derive(Debug, Default, Deserialize)]
struct OwnFields {
    priority: Option<i64>,
    ignore_eos: Option<bool>,
}

/// A checked call.
pub(super) struct EngineRequest {
    /// The body without the engine's own fields.
    pub(super) body: Bytes,
    pub(super) prompts: Vec<Prompt>,
    /// Tokens to generate, over all prompts.
    pub(super) generate: u64,
    pub(super) priority: i64,
    pub(super) ending: Ending,
    pub(super) stream: Option<Streaming>,
}

impl EngineRequest {
    pub(super) fn read(
        inner: &Inner,
        options: &EngineOptions,
        api: Api,
        body: &Bytes,
    ) -> Result<Self, ApiError> {
        let own: OwnFields = parse(body)?;
        let priority = own.priority.unwrap_or(0);
        if priority != 0 && !options.priority_scheduling {
            let message = format!(
                "Got priority {priority} but Priority scheduling is not enabled. Start the server with \
                 --scheduling-policy priority."
            );
            return Err(ApiError::invalid(message).param("priority"));
        }
        let body = without_own_fields(body)?;
        let mut work = Work::parse(api, &body)?;
        if inner.catalog.find(&work.model).is_none() {
            let message = format!("The model `{}` does not exist.", &*work.model);
            return Err(ApiError::not_found(message).param("model"));
        }
        if let Some(poison) = &options.poison
            && work.inputs().iter().any(|input| input.contains(poison.as_str()))
        {
            let mut error =
                ApiError::invalid("EngineCore encountered an issue with an input of this request.");
            error.status = StatusCode::INTERNAL_SERVER_ERROR;
            return Err(error);
        }
        let ending = Ending { is_full: own.ignore_eos.unwrap_or(false), is_aborted: false };
        work.set_ending(ending);
        if let Job::Embeddings(embeddings) = &work.job {
            embeddings.dimensions(&work.model)?;
        }
        let prompts = work.sequences();
        let too_long = prompts
            .iter()
            .map(|prompt| prompt.tokens + prompt.generate)
            .find(|len| *len > options.max_model_len);
        if let Some(len) = too_long {
            let most = options.max_model_len;
            let message = format!(
                "This model's maximum context length is {most} tokens. However, you requested {len} tokens (prompt and \
                 completion). Please reduce the length of the input or of the completion."
            );
            return Err(ApiError::invalid(message));
        }
        let generate = prompts.iter().map(|prompt| prompt.generate).sum();
        let stream = work.stream;
        Ok(Self { body: body.clone(), prompts, generate, priority, ending, stream })
    }
}

/// The body as OpenAI's API would take it.
fn without_own_fields(body: &Bytes) -> Result<Bytes, ApiError> {
    let mut fields: BTreeMap<Cow<'_, str>, &RawValue> = parse(body)?;
    let before = fields.len();
    for name in OWN_FIELDS {
        fields.remove(name);
    }
    Ok(if fields.len() == before { body.clone() } else { Bytes::from(to_json(&fields)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_fields_are_taken_out() {
        let body = Bytes::from_static(br#"{"model":"m","priority":3,"x":{"priority":1},"min_p":0.1}"#);
        assert_eq!(without_own_fields(&body).unwrap(), r#"{"model":"m","x":{"priority":1}}"#);
        let plain = Bytes::from_static(br#"{"model":"m"}"#);
        assert_eq!(without_own_fields(&plain).unwrap(), plain);
        assert!(without_own_fields(&Bytes::from_static(b"[]")).is_err());
    }
}
