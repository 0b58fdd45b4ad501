//! `/v1/embeddings` and `/v1/moderations`: many inputs, one answer each.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Value, json};

use crate::answer::expected_embedding;
use crate::error::ApiError;
use crate::ids::Ids;
use crate::wire::{EmbeddingRequest, Input, Inputs, ModerationRequest};

/// Inputs in one request.
const MAX_INPUTS: usize = 2048;
/// Tokens of one input.
const MAX_INPUT_TOKENS: u64 = 8192;
/// Tokens of all inputs of one request.
const MAX_TOKENS: u64 = 300_000;

/// Length of a model's vectors.
fn native_dimensions(model: &str) -> usize {
    if model == "text-embedding-3-large" { 3072 } else { 1536 }
}

/// A checked request for embeddings.
pub(crate) struct Embeddings<'a> {
    pub(crate) inputs: Vec<Input<'a>>,
    dimensions: Option<usize>,
    base64: bool,
}

impl<'a> Embeddings<'a> {
    pub(crate) fn check(request: EmbeddingRequest<'a>) -> Result<Self, ApiError> {
        let inputs = request.input.ok_or_else(|| ApiError::missing("input"))?.0;
        let count = inputs.len();
        if count == 0 || inputs.iter().any(Input::is_empty) {
            return Err(ApiError::invalid("Invalid 'input': it must not be empty.").param("input"));
        }
        if count > MAX_INPUTS {
            let message =
                format!("Invalid 'input': array too long. Expected at most {MAX_INPUTS} items, got {count}.");
            return Err(ApiError::invalid(message).param("input").code("array_above_max_length"));
        }
        let longest = inputs.iter().map(Input::tokens).max().unwrap_or(0);
        let total: u64 = inputs.iter().map(Input::tokens).sum();
        if longest > MAX_INPUT_TOKENS || total > MAX_TOKENS {
            return Err(ApiError::invalid(format!(
                "This model's maximum context length is {MAX_INPUT_TOKENS} tokens an input and {MAX_TOKENS} tokens a \
                 request; the longest input has {longest}, the request {total}."
            ))
            .param("input")
            .code("context_length_exceeded"));
        }
        if request.dimensions == Some(0) {
            return Err(ApiError::invalid("Invalid 'dimensions': it must be at least 1.").param("dimensions"));
        }
        let base64 = match request.encoding_format.as_deref() {
            None | Some("float") => false,
            Some("base64") => true,
            Some(other) => {
                return Err(ApiError::invalid_value("encoding_format", other, "'float' and 'base64'"));
            }
        };
        Ok(Self { inputs, dimensions: request.dimensions, base64 })
    }

    pub(crate) fn tokens(&self) -> u64 {
        self.inputs.iter().map(Input::tokens).sum()
    }

    /// The length of the vectors, which the model must have.
    pub(crate) fn dimensions(&self, model: &str) -> Result<usize, ApiError> {
        let native = native_dimensions(model);
        let dimensions = self.dimensions.unwrap_or(native);
        if dimensions > native {
            let message =
                format!("Invalid value for 'dimensions' = {dimensions}: {model} has at most {native}.");
            return Err(ApiError::invalid(message).param("dimensions"));
        }
        Ok(dimensions)
    }

    pub(crate) fn body(&self, model: &str) -> Result<Vec<u8>, ApiError> {
        let dimensions = self.dimensions(model)?;
        let tokens = self.tokens();
        let data = self.inputs.iter().enumerate().map(|(index, input)| {
            let vector = expected_embedding(model, &input.text(), dimensions);
            Item {
                object: "embedding",
                index,
                embedding: if self.base64 { Vector::packed(&vector) } else { Vector::Floats(vector) },
            }
        });
        let usage = EmbeddingUsage { prompt_tokens: tokens, total_tokens: tokens };
        Ok(crate::reply::to_json(&Reply { object: "list", data: data.collect(), model, usage }))
    }
}

#[derive(Serialize)]
struct Reply<'a> {
    object: &'a str,
    data: Vec<Item>,
    model: &'a str,
    usage: EmbeddingUsage,
}

#[derive(Serialize)]
struct Item {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector {
    Floats(Vec<f32>),
    Base64(String),
}

impl Vector {
    /// Little-endian 32-bit floats in standard base64.
    fn packed(vector: &[f32]) -> Self {
        let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self::Base64(STANDARD.encode(bytes))
    }
}

#[derive(Serialize)]
struct EmbeddingUsage {
    prompt_tokens: u64,
    total_tokens: u64,
}

/// The categories of `/v1/moderations`.
const CATEGORIES: [&str; 13] = [
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/intent",
    "self-harm/instructions",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
];

/// The inputs of a moderation request.
pub(crate) fn moderation_inputs(request: ModerationRequest<'_>) -> Result<Vec<Input<'_>>, ApiError> {
    let Inputs(inputs) = request.input.ok_or_else(|| ApiError::missing("input"))?;
    if inputs.is_empty() {
        return Err(ApiError::invalid("Invalid 'input': it must not be empty.").param("input"));
    }
    Ok(inputs)
}

/// The verdicts: an input is flagged for violence when it contains the word `violence`, and never otherwise.
pub(crate) fn moderation_body(model: &str, inputs: &[Input<'_>], ids: &Ids) -> Vec<u8> {
    let verdict = |input: &Input<'_>| {
        let flagged = input.text().contains("violence");
        let is = |name: &str| flagged && name == "violence";
        let by_name = |value: &dyn Fn(&str) -> Value| -> Value {
            CATEGORIES
                .iter()
                .map(|name| ((*name).to_owned(), value(name)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        json!({
            "flagged": flagged,
            "categories": by_name(&|name| is(name).into()),
            "category_scores": by_name(&|name| if is(name) { 0.9.into() } else { 0.001.into() }),
            "category_applied_input_types": by_name(&|_| json!(["text"])),
        })
    };
    let results: Vec<_> = inputs.iter().map(verdict).collect();
    crate::reply::to_json(&json!({ "id": ids.text("modr-"), "model": model, "results": results }))
}
