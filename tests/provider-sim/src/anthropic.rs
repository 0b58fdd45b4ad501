//! Anthropic's surface: messages, token counts, message batches and models, in its words.
//!
//! Routing, keys, limits, faults and the bill are shared with the OpenAI surface. What differs is here: a version must
//! be named, errors have another form, and a batch takes its requests inline and gives its results as a stream.

mod batch;
mod batches;
mod error;
mod messages;
mod models;
mod tools;
mod wire;

use bytes::Bytes;
use http::HeaderMap;

use crate::clock::SimTime;
use crate::error::ApiError;
use crate::provider::Inner;
use crate::quota::Caller;
use crate::reply::SimResponse;
use crate::route::{Endpoint, Route};

pub(crate) use crate::anthropic::batches::MessageBatches;
pub(crate) use crate::anthropic::error::{error_of_status, refuse};
pub(crate) use crate::anthropic::models::list as list_models;

/// The header that names the version.
pub(crate) const VERSION: &str = "anthropic-version";

/// How long a prefix stays in the prompt cache after its last use, in provider milliseconds: 5 minutes.
const CACHE_STAYS_MS: u64 = 300_000;

/// The versions of the API that callers send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    /// `2023-06-01`
    V2023,
    /// `2026-10-21`: no sampling parameters, documents only from the user, citations only from the model.
    V2026,
}

impl Version {
    /// The version that a call names; one must be named.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        match headers.get(VERSION).map(|value| value.to_str().unwrap_or_default()) {
            Some("2023-06-01") => Ok(Self::V2023),
            Some("2026-10-21") => Ok(Self::V2026),
            Some(other) => {
                Err(ApiError::invalid(format!("{VERSION}: \"{other}\" is not a valid version for this API")))
            }
            None => Err(ApiError::invalid(format!("{VERSION}: header is required"))),
        }
    }
}

/// What an endpoint needs to know about a call.
pub(crate) struct Call<'a> {
    pub(crate) version: Version,
    pub(crate) caller: &'a Caller<'a>,
    pub(crate) query: Option<&'a str>,
    /// The address that the caller used, without a path; empty when it named none.
    pub(crate) base_url: String,
    pub(crate) now: SimTime,
}

/// Answers a call to one of the endpoints under `/v1/messages`.
pub(crate) fn dispatch(
    inner: &Inner,
    route: Route<'_>,
    call: &Call<'_>,
    body: &Bytes,
) -> Result<SimResponse, ApiError> {
    let id = route.id;
    match route.endpoint {
        Endpoint::Messages => messages::create(inner, call, body),
        Endpoint::CountTokens => messages::count_tokens(inner, call, body),
        Endpoint::CreateMessageBatch => batches::create(inner, call, body),
        Endpoint::ListMessageBatches => batches::list(inner, call),
        Endpoint::GetMessageBatch => batches::get(inner, call, id),
        Endpoint::CancelMessageBatch => batches::cancel(inner, call, id),
        Endpoint::DeleteMessageBatch => batches::delete(inner, call, id),
        Endpoint::MessageBatchResults => batches::results(inner, call, id),
        _ => Err(ApiError::not_found("Not found")),
    }
}
