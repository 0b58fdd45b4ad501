//! The data plane: identify -> envelope -> quota -> route -> dispatch or defer -> answer. Start reading here.

pub mod batches;
pub mod files;
pub mod lookup;
pub mod message_batches;
pub mod models;
pub mod pieces;
pub mod query;
pub mod responses;
pub mod uploads;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use percent_encoding::percent_decode_str;

use crate::body::{ReplyBody, RequestBody};
use crate::defer::Kept;
use crate::gateway::Gateway;
use crate::reply::{Dialect, MODEL_NOT_FOUND, Refusal, stamp};
use crate::route::{self, Routed};
use crate::tenant::Identified;
use crate::tenant::keys::SlaScope;
use crate::{browser, defer, delivery, dispatch, envelope};

/// A client may pause this long between two pieces of a request's body.
const BODY_PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of room that are made for a body at once, whatever length it announces.
const RESERVED_AT_ONCE: usize = 256 << 10;

/// A body must be whole after this long, however often a piece of it comes.
const BODY_TIME: Duration = Duration::from_mins(10);

/// Answers one request. Nothing that a client sends makes this fail; what goes wrong becomes an answer.
pub async fn handle(gateway: Arc<Gateway>, request: Request<RequestBody>) -> Response<ReplyBody> {
    let dialect = Dialect::of(request.uri().path());
    // A call may be held for hours, and ten thousand of them at once: what it was made of is let go before it waits.
    let answered = match Box::pin(begin(&gateway, request)).await {
        Ok(Begun::Answered(response)) => Ok(response),
        Ok(Begun::Kept(kept)) => Box::pin(defer::answer(&gateway, kept)).await,
        Err(refusal) => Err(refusal),
    };
    match answered {
        Ok(response) => response,
        Err(refusal) => {
            tracing::debug!(status = %refusal.status, code = %refusal.code, "refused: {}", refusal.message);
            gateway.metrics.answered("refused", refusal.status.as_u16());
            let id = gateway.ids.next();
            let mut response = refusal.into_response(dialect, &id);
            stamp(&mut response, &id, "refused");
            if let (Dialect::Anthropic, Ok(id)) = (dialect, HeaderValue::try_from(id)) {
                response.headers_mut().insert(dialect.request_id(), id);
            }
            response
        }
    }
}

/// How far a call has come without waiting for what can wait.
enum Begun {
    /// To its answer.
    Answered(Response<ReplyBody>),
    /// To where it is safe; its answer may take long.
    Kept(Kept),
}

async fn begin(gateway: &Arc<Gateway>, request: Request<RequestBody>) -> Result<Begun, Refusal> {
    if gateway.tenants.are_open() {
        browser::check(request.headers(), request.uri())?;
    }
    let caller = gateway.tenants.identify(request.headers(), gateway.clock.now())?;
    let path = request.uri().path();
    if let Some(id) = path.strip_prefix(delivery::PATH) {
        let id = id.to_owned();
        return Box::pin(lookup::answer(gateway, caller.account(), request.method(), &id))
            .await
            .map(Begun::Answered);
    }
    // What offpeak keeps for its clients; everything else names a model. Boxed, because each call has room for the largest
    // of all these, and most of them only ever call models.
    if let Some(rest) = below(path, files::PATH) {
        return Box::pin(files::answer(gateway, caller, request, &rest)).await.map(Begun::Answered);
    }
    if let Some(rest) = below(path, batches::PATH) {
        return Box::pin(batches::answer(gateway, caller, request, &rest)).await.map(Begun::Answered);
    }
    if let Some(rest) = below(path, uploads::PATH) {
        return Box::pin(uploads::answer(gateway, caller, request, &rest)).await.map(Begun::Answered);
    }
    if let Some(rest) = below(path, models::PATH) {
        return Box::pin(models::answer(gateway, caller, request, &rest)).await.map(Begun::Answered);
    }
    if let Some(rest) = below(path, message_batches::PATH) {
        return Box::pin(message_batches::answer(gateway, caller, request, &rest)).await.map(Begun::Answered);
    }
    if let Some(rest) = below(path, responses::PATH).filter(|rest| !rest.is_empty()) {
        return Box::pin(responses::answer(gateway, caller, request, &rest)).await.map(Begun::Answered);
    }
    check_endpoint(gateway, request.method(), path)?;
    caller.check_endpoint(path)?;
    model_call(gateway, caller, request).await
}

/// What a path has below another: nothing, or the names of things there, as their owners write them. Clients escape what a
/// path takes for its own: the slash in a model's name is `%2F`. What does not decode to text is no name of ours, and stays.
fn below(path: &str, above: &str) -> Option<Vec<String>> {
    let rest = path.strip_prefix(above)?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    match rest.strip_prefix('/') {
        Some(names) => Some(names.split('/').map(decoded).collect()),
        None => rest.is_empty().then(Vec::new),
    }
}

fn decoded(name: &str) -> String {
    percent_decode_str(name).decode_utf8().map_or_else(|_| name.to_owned(), Cow::into_owned)
}

/// A call that names a model.
async fn model_call(
    gateway: &Arc<Gateway>,
    caller: Identified,
    request: Request<RequestBody>,
) -> Result<Begun, Refusal> {
    let (head, body) = request.into_parts();
    // As long as the call is here.
    let mut in_memory = gateway.room.bodies.begin();
    let grow = |length: usize| in_memory.grow_to(length as u64);
    let body = read_body(&head.headers, body, gateway.max_body, grow).await?;
    let arrived = (gateway.clock.now(), Instant::now());
    let envelope = envelope::read_call(head.uri.path(), &head.headers, body, caller.account().sla)?;
    if envelope.background && head.uri.path() == responses::PATH {
        caller.admit_plain(gateway.tenants.asked(arrived.0, Dialect::OpenAi))?;
        caller.account().check_budget(arrived.0)?;
        let created = responses::create(gateway, &caller, &head.headers, envelope, arrived.0);
        return Box::pin(created).await.map(Begun::Answered);
    }
    let routed = route::route(gateway, &caller, head.uri.path(), &head.headers, &envelope, arrived.0).await;
    let routed = routed.map_err(|refusal| {
        let is_it = envelope.named_by == envelope::NamedBy::Api && refusal.code == MODEL_NOT_FOUND;
        if is_it { envelope::no_default_model(head.uri.path(), &envelope.model) } else { refusal }
    });
    match routed? {
        Routed::Now(call) => {
            if defer::may_be_a_repetition(&head.headers, &envelope) {
                let kept = route::kept_anywhere(&gateway.backends, &head.headers);
                let found = Box::pin(defer::find(gateway, &caller, &head.headers, &kept, &envelope)).await?;
                if let Some(kept) = found {
                    return Ok(Begun::Kept(kept));
                }
            }
            caller.check_sla(SlaScope::Realtime)?;
            let demand = call.sale.learnt.demand(envelope.input_tokens, envelope.max_output_tokens);
            let asked = gateway.tenants.asked(arrived.0, Dialect::of(head.uri.path()));
            let mut admission = caller.admit(&envelope.model, &call.backend.quota, demand, asked)?;
            let amount = gateway.costs.estimate(&call.sale, demand);
            admission.reservation = Some(caller.account().purse().reserve(amount, arrived.0)?);
            gateway.metrics.decided(arrived.1.elapsed());
            let answered = dispatch::run(gateway, &call, admission, head.headers, envelope.body).await;
            answered.map(Begun::Answered)
        }
        Routed::Later(deferral) => {
            caller.check_sla(SlaScope::Deferred)?;
            caller.account().check_budget(arrived.0)?;
            let kept = defer::accept(gateway, &caller, deferral, &head.headers, envelope, arrived.0);
            Box::pin(kept).await.map(Begun::Kept)
        }
    }
}

fn check_endpoint(gateway: &Gateway, method: &Method, path: &str) -> Result<(), Refusal> {
    if !gateway.backends.knows(path) {
        let path: String = path.chars().take(100).collect();
        let message = format!(
            "There is no endpoint {path} here. offpeak answers the model endpoints of its backends (such as \
             /v1/chat/completions), /v1/files, /v1/uploads, /v1/batches, /v1/responses/{{id}}, /v1/models, \
             /v1/messages/batches and /v1/deferred/{{id}}; check the base URL of your SDK."
        );
        return Err(Refusal::not_found("unknown_endpoint", message));
    }
    if method != Method::POST {
        let message = format!("{path} takes POST, not {method}.");
        return Err(Refusal::method_not_allowed(message, "POST"));
    }
    Ok(())
}

/// Reads a body of at most `max` bytes, and tells how long it has become. One that arrives in one piece is not copied.
pub(crate) async fn read_body(
    headers: &HeaderMap,
    mut body: RequestBody,
    max: usize,
    mut grow: impl FnMut(usize) -> Result<(), Refusal>,
) -> Result<Bytes, Refusal> {
    let announced: Option<usize> =
        headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length| length > max) {
        return Err(too_large(max));
    }
    let begun = tokio::time::Instant::now();
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    loop {
        // The timer is only set where the next piece is not there yet.
        let Ok(frame) = tokio::time::timeout(BODY_PATIENCE, body.frame()).await else {
            return Err(slow_body());
        };
        let has_begun = !first.is_empty() || !all.is_empty();
        if has_begun && begun.elapsed() > BODY_TIME {
            return Err(slow_body());
        }
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|_| broken_body())?;
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + all.len() + data.len() > max {
            return Err(too_large(max));
        }
        grow(first.len() + all.len() + data.len())?;
        if first.is_empty() && all.is_empty() {
            first = data;
        } else {
            if all.is_empty() {
                let room = announced.unwrap_or(first.len() * 2).min(RESERVED_AT_ONCE);
                all.reserve(room.max(first.len() + data.len()));
                all.extend_from_slice(&std::mem::take(&mut first));
            }
            all.extend_from_slice(&data);
        }
        if body.is_end_stream() {
            break;
        }
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

fn too_large(max: usize) -> Refusal {
    let message =
        format!("The request's body is larger than {max} bytes. Send less, or raise server.max_body.");
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
}

fn slow_body() -> Refusal {
    let message = "The request's body stopped coming before its end. Send it again.";
    Refusal::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message)
}

fn broken_body() -> Refusal {
    Refusal::bad_request("incomplete_body", "The request's body broke off before its end. Send it again.")
}
