//! What an engine's server answers beside the calls that run: health, load, metrics, tokens, models, errors.

use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::engine::{Engine, Rejection};
use crate::error::ApiError;
use crate::provider::Inner;
use crate::reply::{SimBody, SimResponse, to_json};
use crate::wire::{Message, Text, parse};

/// Bytes of text in one token, by this simulator's rule.
const TOKEN_BYTES: usize = 4;

/// Answers a call to one of the paths that are an engine's own; `None` for any other path.
pub(crate) fn surface(
    engine: &Engine,
    inner: &Inner,
    method: &Method,
    path: &str,
    body: &Bytes,
) -> Option<Result<SimResponse, ApiError>> {
    let empty = || SimResponse::new("application/json", SimBody::Full(Bytes::new()));
    Some(Ok(match (method.as_str(), path) {
        ("GET", "/health") | ("GET" | "POST", "/ping") => empty(),
        ("GET", "/load") => SimResponse::of(&json!({ "server_load": engine.status(inner).calls })),
        ("GET", "/version") => SimResponse::of(&json!({ "version": "0.32.0" })),
        ("GET", "/metrics") => {
            let text = Bytes::from(engine.metrics(inner));
            SimResponse::new("text/plain; version=1.0.0; charset=utf-8", SimBody::Full(text))
        }
        ("POST", "/tokenize") => return Some(tokenize(engine, inner, body)),
        _ => return None,
    }))
}

#[derive(Deserialize)]
struct TokenizeRequest<'a> {
    #[serde(borrow)]
    model: Option<Text<'a>>,
    #[serde(borrow)]
    prompt: Option<Text<'a>>,
    #[serde(borrow)]
    messages: Option<Vec<Message<'a>>>,
    return_token_strs: Option<bool>,
}

#[derive(Serialize)]
struct Tokenized<'a> {
    count: usize,
    max_model_len: u64,
    tokens: Vec<u32>,
    token_strs: Option<Vec<std::borrow::Cow<'a, str>>>,
}

/// `POST /tokenize`: 4 bytes of text are a token, as everywhere in the simulator.
fn tokenize(engine: &Engine, inner: &Inner, body: &Bytes) -> Result<SimResponse, ApiError> {
    let request: TokenizeRequest<'_> = parse(body)?;
    if let Some(model) = &request.model
        && inner.catalog.find(model).is_none()
    {
        return Err(ApiError::not_found(format!("The model `{}` does not exist.", &**model)).param("model"));
    }
    let texts: Vec<String> = match (&request.prompt, &request.messages) {
        (Some(prompt), _) => vec![prompt.to_string()],
        (None, Some(messages)) => messages.iter().map(|it| it.content.text().into_owned()).collect(),
        (None, None) => return Err(ApiError::missing("prompt")),
    };
    let pieces = texts.iter().flat_map(|text| text.as_bytes().chunks(TOKEN_BYTES));
    let pieces: Vec<&[u8]> = pieces.collect();
    let number = |piece: &&[u8]| {
        let mut hash = DefaultHasher::new();
        piece.hash(&mut hash);
        u32::try_from(hash.finish() % 50_000).unwrap_or_default()
    };
    let wanted = request.return_token_strs.unwrap_or(false);
    let token_strs = wanted.then(|| pieces.iter().map(|piece| String::from_utf8_lossy(piece)).collect());
    Ok(SimResponse::of(&Tokenized {
        count: pieces.len(),
        max_model_len: engine.max_model_len(),
        tokens: pieces.iter().map(number).collect(),
        token_strs,
    }))
}

/// `GET /v1/models`
pub(crate) fn models(engine: &Engine, inner: &Inner) -> SimResponse {
    let (created, len) = (inner.clock.epoch().secs(), engine.max_model_len());
    let view = |id: &str| {
        json!({ "id": id, "object": "model", "created": created, "owned_by": "vllm", "root": id, "parent": null,
            "max_model_len": len, "permission": [] })
    };
    let data: Vec<_> = inner.catalog.models().iter().map(|model| view(&model.id)).collect();
    SimResponse::of(&json!({ "object": "list", "data": data }))
}

/// The refusal of a call for which there is no room.
pub(super) fn rejected(rejection: Rejection) -> ApiError {
    let what = match rejection {
        Rejection::QueuedRequests => "max_num_queued_reqs",
        Rejection::QueuedTokens => "max_num_queued_tokens",
    };
    ApiError::invalid(format!("The server is overloaded: {what} is reached. Please retry later."))
        .status(StatusCode::SERVICE_UNAVAILABLE)
}

/// The usual error for `status`, as an injected fault answers.
pub(crate) fn error_of_status(status: StatusCode, retry_after_ms: Option<u64>) -> ApiError {
    let mut error = ApiError::invalid(status.canonical_reason().unwrap_or("error")).status(status);
    error.retry_after_ms = retry_after_ms;
    error
}

/// `error` as an answer. Unlike OpenAI's, its `code` is the status as a number.
pub(crate) fn refuse(error: ApiError) -> SimResponse {
    let kind = match error.status.as_u16() {
        404 => "NotFoundError",
        429 => "RateLimitError",
        503 => "ServiceUnavailableError",
        500.. => "InternalServerError",
        401 => "AuthenticationError",
        _ => "BadRequestError",
    };
    let body = json!({ "error": {
        "message": error.message,
        "type": kind,
        "param": error.param,
        "code": error.status.as_u16(),
    } });
    let mut response = SimResponse::from(error);
    response.body = SimBody::Full(Bytes::from(to_json(&body)));
    response
}
