//! The admin plane: health, metrics, lanes, batches, explanations, flush. It has no authentication of its own and listens on loopback
//! unless configured otherwise.

pub mod costs;
pub mod explain;
pub mod keys;
pub mod offers;
pub mod plugins;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, ORIGIN};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Body;
use offpeak_core::batch::Journey;
use offpeak_core::extent::Range;
use offpeak_core::scheduler::{Event, LaneView};
use offpeak_core::words::LaneId;
use offpeak_store::BatchRecord;
use serde::Serialize;

use crate::body::ReplyBody;
use crate::browser;
use crate::defer::store_failed;
use crate::gateway::Gateway;
use crate::journey;
use crate::orphaned;
use crate::reply::{Dialect, Refusal, json_of};

/// Answers one request of an operator. `is_local` says that only this machine reaches the listener.
pub async fn handle<B>(gateway: Arc<Gateway>, is_local: bool, request: Request<B>) -> Response<ReplyBody>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match take(&gateway, is_local, request).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(Dialect::OpenAi, ""),
    }
}

/// What the data plane serves, as a description in the form of `OpenAPI` 3.1.
pub const OPENAPI: &str = include_str!("../openapi.json");

/// The largest body that an operator's call may have.
const BODY_MAX: usize = 64 << 10;

async fn take<B>(
    gateway: &Gateway,
    is_local: bool,
    request: Request<B>,
) -> Result<Response<ReplyBody>, Refusal>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (head, body) = request.into_parts();
    if is_local {
        browser::check(&head.headers, &head.uri)?;
    } else if head.headers.contains_key(ORIGIN) {
        let message = "The admin plane takes no calls of web pages.";
        return Err(Refusal::new(StatusCode::FORBIDDEN, "from_a_web_page", message));
    }
    let path = head.uri.path().trim_end_matches('/');
    if path == keys::PATH || path.strip_prefix(keys::PATH).is_some_and(|rest| rest.starts_with('/')) {
        let body = Limited::new(body, BODY_MAX).collect().await.map_err(|error| {
            Refusal::bad_request("incomplete_body", format!("The body cannot be read: {error}."))
        })?;
        return keys::answer(gateway, &head.method, path, &body.to_bytes()).await;
    }
    answer(gateway, &head.method, path, head.uri.query().unwrap_or_default()).await
}

async fn answer(
    gateway: &Gateway,
    method: &Method,
    path: &str,
    query: &str,
) -> Result<Response<ReplyBody>, Refusal> {
    if let Some(lane) = path.strip_prefix("/admin/v1/lanes/").and_then(|rest| rest.strip_suffix("/flush")) {
        expect(method, &Method::POST)?;
        return flush(gateway, lane).await;
    }
    if path == "/admin/v1/plugins/reload" {
        expect(method, &Method::POST)?;
        return plugins::reload(gateway).await;
    }
    if path == "/admin/v1/offers/restore" {
        expect(method, &Method::POST)?;
        return offers::restore(gateway, query);
    }
    expect(method, &Method::GET)?;
    if let Some(about) = path.strip_prefix("/admin/v1/explain/") {
        return Ok(json_of(StatusCode::OK, &explain::explain(gateway, about).await?));
    }
    match path {
        "/healthz" => Ok(text("ok\n")),
        "/readyz" if gateway.stopping.is_cancelled() => {
            Err(Refusal::unavailable("stopping", "offpeak is stopping.", 1))
        }
        "/readyz" => Ok(text("ready\n")),
        "/metrics" => Ok(metrics(gateway)),
        "/admin/v1/lanes" => Ok(json_of(StatusCode::OK, &lanes(gateway).await)),
        "/admin/v1/batches" => Ok(json_of(StatusCode::OK, &batches(gateway).await?)),
        "/admin/v1/costs" => costs::answer(gateway, query).await,
        "/admin/v1/offers" => Ok(json_of(StatusCode::OK, &offers::lost(gateway))),
        "/admin/v1/openapi" => Ok(described()),
        "/admin/v1/plugins" => Ok(json_of(StatusCode::OK, &plugins::list(gateway))),
        _ => {
            let message = "The admin plane has /healthz, /readyz, /metrics, /admin/v1/lanes, /admin/v1/batches, \
                           /admin/v1/costs, /admin/v1/keys, /admin/v1/plugins, /admin/v1/openapi (what the data plane \
                           serves), /admin/v1/offers (those that providers refused to sell), \
                           /admin/v1/explain/{lane or request id}, POST /admin/v1/lanes/{id}/flush, \
                           POST /admin/v1/plugins/reload, and POST /admin/v1/offers/restore?backend=&offer=&model=.";
            Err(Refusal::not_found("unknown_endpoint", message))
        }
    }
}

fn expect(method: &Method, expected: &Method) -> Result<(), Refusal> {
    if method == expected {
        return Ok(());
    }
    let message = format!("This takes {expected}, not {method}.");
    let allow = if *expected == Method::POST { "POST" } else { "GET" };
    Err(Refusal::method_not_allowed(message, allow))
}

fn text(body: &'static str) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn described() -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::from(OPENAPI));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn metrics(gateway: &Gateway) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::from(
        gateway.metrics.render(gateway.held.count(), &gateway.plugin_reports()),
    ));
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[derive(Serialize)]
struct List<T> {
    data: Vec<T>,
}

#[derive(Serialize)]
struct LaneRow {
    id: u32,
    backend: String,
    endpoint: String,
    model: String,
    tenant: String,
    offer: String,
    sla_class: String,
    name: String,
    /// The key whose own limits for deferred work hold here; empty if there are none.
    api_key: String,
    headers: BTreeMap<String, String>,
    waiting_requests: u64,
    waiting_bytes: u64,
    estimated_input_tokens: u64,
    oldest_age_ms: Option<u64>,
    earliest_deadline_in_ms: Option<u64>,
}

async fn lanes(gateway: &Gateway) -> List<LaneRow> {
    let now = gateway.clock.now();
    let row = |view: LaneView| LaneRow {
        id: view.lane.0,
        backend: view.key.backend.to_string(),
        endpoint: view.key.endpoint.to_string(),
        model: view.key.model.to_string(),
        tenant: view.key.tenant.to_string(),
        offer: view.key.offer.to_string(),
        sla_class: view.key.sla_class.to_string(),
        name: view.key.name.to_string(),
        api_key: view.key.api_key.to_string(),
        headers: view.key.headers.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        waiting_requests: view.sums.count,
        waiting_bytes: view.sums.bytes,
        estimated_input_tokens: view.sums.tokens,
        oldest_age_ms: view.oldest.map(|oldest| now.since(oldest).0),
        earliest_deadline_in_ms: view.earliest_deadline.map(|deadline| deadline.since(now).0),
    };
    List { data: gateway.lanes.view().await.into_iter().map(row).collect() }
}

#[derive(Serialize)]
struct BatchRow {
    id: String,
    backend: String,
    endpoint: String,
    model: String,
    offer: String,
    requests: u64,
    finished: u64,
    step: &'static str,
    steps: u32,
    provider_id: Option<String>,
    provider_completed: Option<u32>,
    provider_failed: Option<u32>,
    age_ms: u64,
    ended: Option<String>,
    /// What is wrong with it, and what to do.
    trouble: Option<String>,
}

async fn batches(gateway: &Gateway) -> Result<List<BatchRow>, Refusal> {
    let records = gateway.store.open_batches().await.map_err(|error| store_failed(&error))?;
    let mut data = Vec::with_capacity(records.len());
    for record in records {
        let counts = gateway.store.counts(record.id).await.map_err(|error| store_failed(&error))?;
        data.push(batch_row(gateway, record, counts.finished));
    }
    Ok(List { data })
}

fn batch_row(gateway: &Gateway, record: BatchRecord, finished: u64) -> BatchRow {
    let progress = match journey::decode(&record.progress) {
        Ok(Journey::Batch { progress, .. }) => progress,
        Ok(Journey::Realtime | Journey::Beside { .. }) | Err(_) => None,
    };
    let tally = progress.as_ref().and_then(|progress| progress.tally);
    BatchRow {
        id: record.id.to_string(),
        requests: record.ranges.iter().map(Range::len).sum(),
        finished,
        step: progress.as_ref().map_or("starting", |progress| progress.step.as_str()),
        steps: progress.as_ref().map_or(0, |progress| progress.steps),
        provider_completed: tally.map(|tally| tally.completed),
        provider_failed: tally.map(|tally| tally.failed),
        provider_id: progress.and_then(|progress| progress.provider_id),
        age_ms: gateway.clock.now().since(record.created_at).0,
        trouble: orphaned::trouble(gateway, &record),
        backend: record.backend.to_string(),
        endpoint: record.endpoint.to_string(),
        model: record.model.to_string(),
        offer: record.offer.to_string(),
        ended: record.ended.map(|end| end.ending),
    }
}

#[derive(Serialize)]
struct Flushed {
    id: u32,
    flushed_requests: u64,
}

async fn flush(gateway: &Gateway, lane: &str) -> Result<Response<ReplyBody>, Refusal> {
    let view = gateway.lanes.view().await;
    let found = lane.parse().ok().and_then(|id| view.iter().find(|view| view.lane == LaneId(id)));
    let Some(found) = found else {
        let message = "There is no such lane. GET /admin/v1/lanes lists them with their ids.";
        return Err(Refusal::not_found("lane_not_found", message));
    };
    gateway.lanes.tell(Event::Flush(found.lane));
    Ok(json_of(StatusCode::OK, &Flushed { id: found.lane.0, flushed_requests: found.sums.count }))
}
