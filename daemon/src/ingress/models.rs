//! /v1/models: what the caller may use, of what the backends serve.
//!
//! A backend's patterns name models or kinds of models. What the kinds stand for, the backend itself lists; its list is
//! kept for a while and asked for again by whoever comes when it is old. A backend that cannot be asked shows what was
//! known of it, and the names that its configuration has in full.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use offpeak_core::words::{Millis, Timestamp};
use serde::{Deserialize, Serialize};

use crate::backends::Backend;
use crate::body::{ReplyBody, RequestBody};
use crate::gateway::Gateway;
use crate::ingress::files::no_such_call;
use crate::reply::{self, MODEL_NOT_FOUND, Refusal};
use crate::tenant::Identified;

/// Where models are.
pub const PATH: &str = "/v1/models";

/// A backend's list is good for so long.
const GOOD_FOR: Millis = Millis::from_mins(5);

/// A backend that does not answer by then is not waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The largest list of a backend.
const LIST_MAX: usize = 4 << 20;

/// By this header Anthropic's SDKs are known.
const ANTHROPIC_VERSION: HeaderName = HeaderName::from_static("anthropic-version");

/// Answers a call about models.
pub async fn answer(
    gateway: &Arc<Gateway>,
    caller: Identified,
    request: Request<RequestBody>,
    names: &[String],
) -> Result<Response<ReplyBody>, Refusal> {
    if request.method() != Method::GET {
        return Err(no_such_call(request.method(), "GET /v1/models and GET /v1/models/{id}", "GET"));
    }
    let is_anthropic = request.headers().contains_key(ANTHROPIC_VERSION);
    let models = models(gateway, &caller).await;
    if names.is_empty() {
        return Ok(listed(models, is_anthropic));
    }
    // Names of models may have slashes.
    let name = names.join("/");
    let model = models.into_iter().find(|model| model.id == name).ok_or_else(|| not_found(&name))?;
    Ok(if is_anthropic {
        reply::json_of(StatusCode::OK, &AnthropicModel::from(model))
    } else {
        reply::json_of(StatusCode::OK, &OpenAiModel::from(model))
    })
}

fn not_found(name: &str) -> Refusal {
    let name: String = name.chars().take(100).collect();
    let message = format!("The model '{name}' does not exist or this API key may not use it.");
    Refusal::not_found(MODEL_NOT_FOUND, message).param("model")
}

/// A model, and who serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Model {
    id: String,
    created: u64,
    backend: String,
}

#[derive(Serialize)]
struct OpenAiModel {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: String,
}

impl From<Model> for OpenAiModel {
    fn from(model: Model) -> Self {
        Self { id: model.id, object: "model", created: model.created, owned_by: model.backend }
    }
}

#[derive(Serialize)]
struct AnthropicModel {
    r#type: &'static str,
    display_name: String,
    id: String,
    created_at: String,
    lifecycle: &'static str,
}

impl From<Model> for AnthropicModel {
    fn from(model: Model) -> Self {
        Self {
            r#type: "model",
            display_name: model.id.clone(),
            id: model.id,
            created_at: reply::rfc3339(Timestamp(model.created.saturating_mul(1000))),
            lifecycle: "active",
        }
    }
}

fn listed(models: Vec<Model>, is_anthropic: bool) -> Response<ReplyBody> {
    #[derive(Serialize)]
    struct OpenAiList {
        object: &'static str,
        data: Vec<OpenAiModel>,
    }
    #[derive(Serialize)]
    struct AnthropicList {
        data: Vec<AnthropicModel>,
        has_more: bool,
        first_id: Option<String>,
        last_id: Option<String>,
    }
    if is_anthropic {
        let (first_id, last_id) = (models.first().map(|m| m.id.clone()), models.last().map(|m| m.id.clone()));
        let data = models.into_iter().map(AnthropicModel::from).collect();
        return reply::json_of(StatusCode::OK, &AnthropicList { data, has_more: false, first_id, last_id });
    }
    let data = models.into_iter().map(OpenAiModel::from).collect();
    reply::json_of(StatusCode::OK, &OpenAiList { object: "list", data })
}

/// What the caller may use, by name; a model that several backends serve is the first one's.
async fn models(gateway: &Gateway, caller: &Identified) -> Vec<Model> {
    let now = gateway.clock.now();
    let lists = join_all(gateway.backends.iter().map(|backend| known(backend, now))).await;
    let mut models = BTreeMap::new();
    for (backend, list) in gateway.backends.iter().zip(lists) {
        for (id, created) in list {
            if caller.may_use_model(&id) && caller.may_use_backend(backend.id.as_str()) {
                let backend = backend.id.to_string();
                models.entry(id.clone()).or_insert(Model { id, created, backend });
            }
        }
    }
    models.into_values().collect()
}

/// What a backend serves: names and when the models were made.
async fn known(backend: &Backend, now: Timestamp) -> BTreeMap<String, u64> {
    let is_good = |(at, _): &(Timestamp, BTreeMap<String, u64>)| now < at.after(GOOD_FOR);
    let kept = backend.listed.lock().clone();
    let mut list = match kept {
        Some(kept) if is_good(&kept) => kept.1,
        kept => match tokio::time::timeout(PATIENCE, ask(backend)).await {
            Ok(Some(list)) => {
                *backend.listed.lock() = Some((now, list.clone()));
                list
            }
            _ => kept.map(|(_, list)| list).unwrap_or_default(),
        },
    };
    list.retain(|name, _| backend.models.matches(name));
    for name in backend.models.as_slice().iter().filter(|pattern| !pattern.contains('*')) {
        list.entry(name.clone()).or_insert(0);
    }
    list
}

/// Asks the backend for its list. None if it has none to give.
async fn ask(backend: &Backend) -> Option<BTreeMap<String, u64>> {
    #[derive(Deserialize)]
    struct List {
        data: Vec<Listed>,
    }
    #[derive(Deserialize)]
    struct Listed {
        id: String,
        created: Option<u64>,
    }
    let mut headers = HeaderMap::new();
    if backend.sells_at("/v1/messages") {
        headers.insert(ANTHROPIC_VERSION, HeaderValue::from_static("2023-06-01"));
    }
    let url = backend.upstream.url("/v1/models?limit=1000").ok()?;
    let response = match backend.upstream.call(Method::GET, url, headers, "".into(), LIST_MAX).await {
        Ok(response) if response.status().is_success() => response,
        Ok(response) => {
            tracing::debug!(backend = %backend.id, status = %response.status(), "the backend lists no models");
            return None;
        }
        Err(error) => {
            tracing::debug!(backend = %backend.id, %error, "the backend's models could not be listed");
            return None;
        }
    };
    let list: List = serde_json::from_slice(response.body()).ok()?;
    Some(list.data.into_iter().map(|listed| (listed.id, listed.created.unwrap_or(0))).collect())
}
