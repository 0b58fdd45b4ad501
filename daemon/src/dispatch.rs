//! Now: the call goes to the backend, the answer streams back as it arrives.

mod gathered;

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST,
    HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SET_COOKIE, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Response, StatusCode, response};
use offpeak_core::breaker::Report;
use offpeak_core::outcome::{DidItRun, Ending};
use offpeak_core::retry::Class;
use offpeak_core::scheduler::Event;
use offpeak_core::turnaround::Way;
use offpeak_core::words::{Millis, Mode, TenantId, Timestamp};
use tokio::time::Instant;

use crate::admission::Admission;
use crate::backends::{Backend, DressError, Dressed, PreparedCall};
use crate::body::{ReplyBody, WatchedBody};
use crate::costs::SharedSale;
use crate::costs::meter::{self, UnderWay};
use crate::fallback::Fallback;
use crate::gateway::Gateway;
use crate::reply::{Dialect, Refusal, stamp};
use crate::retries::Failed;
use crate::rewrite;
use crate::upstream::{self, SendError, read_up_to};

/// Headers that concern one connection and not the message (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    EXPECT,
];

/// What the client says to offpeak and not to the provider. Answers are asked for uncompressed, so that what they took can
/// be read from them as they pass.
const FOR_OFFPEAK: [HeaderName; 7] = [
    ACCEPT_ENCODING,
    HOST,
    CONTENT_LENGTH,
    AUTHORIZATION,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-offpeak-sla"),
];

/// While a backend is out of order, those that wait for it look again after this time.
const LOOK_AGAIN: Millis = Millis(100);

/// The largest answer that is written anew as a whole.
const REWRITTEN_MAX: usize = 64 << 20;

/// A real-time call, ready to be sent.
pub struct NowCall {
    /// Where to.
    pub backend: Arc<Backend>,
    /// How.
    pub call: Arc<PreparedCall>,
    /// For a reduced price: what to do if the provider has no room at it.
    pub or_else: Option<OrElse>,
    /// What is bought with it.
    pub sale: SharedSale,
    /// Who calls.
    pub tenant: TenantId,
    /// Its input, as it was reckoned.
    pub input_tokens: u64,
    /// What its route says about a backend that is out of order.
    pub fallback: Option<Arc<Fallback>>,
    /// It asks for its answer in pieces.
    pub is_stream: bool,
}

/// What follows on a reduced price without room.
pub struct OrElse {
    /// The offer at the reduced price.
    pub way: Way,
    /// The call at the full price.
    pub call: Arc<PreparedCall>,
    /// What is bought with that.
    pub sale: SharedSale,
}

/// Runs a call and passes on whatever the provider answers.
pub async fn run(
    gateway: &Gateway,
    call: &NowCall,
    admission: Admission,
    mut headers: HeaderMap,
    body: Bytes,
) -> Result<Response<ReplyBody>, Refusal> {
    strip(&mut headers);
    for name in FOR_OFFPEAK {
        headers.remove(name);
    }
    let id = &call.backend.id;
    if let Err(until) = admitted(gateway, call).await {
        return instead(gateway, call, until);
    }
    let request = gateway.ids.next();
    let metered = meter::Call {
        sale: call.sale.clone(),
        tenant: call.tenant.clone(),
        request: request.clone(),
        started: Instant::now(),
        input_estimate: call.input_tokens,
        admission,
        present: call.backend.engine.as_ref().map(|engine| engine.presence.enter()),
    };
    let mut under_way = UnderWay::new(metered, gateway.ledger.clone(), gateway.clock);
    let spare = call.or_else.as_ref().map(|or_else| (or_else, headers.clone(), body.clone()));
    let started = gateway.clock.now();
    let mut used = &call.call;
    let Sent { answer: mut sent, mut notes, mut speaks } =
        send(gateway, call, used, headers, body, &mut under_way).await?;
    if let (Ok(response), Some((or_else, headers, body))) = (&sent, spare) {
        let way = or_else.way.clone();
        let has_no_room = response.status() == StatusCode::TOO_MANY_REQUESTS;
        let is_not_sold = MAY_BE_THE_OFFER.contains(&response.status())
            && is_not_sold(gateway, call, &way, &mut sent).await;
        if has_no_room || is_not_sold {
            if has_no_room {
                gateway.metrics.stepped_up(id.as_str(), way.offer.as_str());
                gateway.lanes.tell(Event::NoRoom(way));
            }
            used = &or_else.call;
            under_way.came_back();
            under_way.buys(&or_else.sale);
            Sent { answer: sent, notes, speaks } =
                send(gateway, call, used, headers, body, &mut under_way).await?;
        } else if sent.as_ref().is_ok_and(|response| response.status().is_success()) {
            gateway.lanes.tell(Event::Answered { way, took: gateway.clock.now().since(started) });
        }
    }
    if speaks {
        gateway.report(id, Mode::Realtime, report_of(&sent));
    }
    match sent {
        Ok(response) => {
            let (mut head, body) = response.into_parts();
            let (status, is_stream) = (head.status.as_u16(), rewrite::is_stream(&head.headers));
            under_way.answered(status, is_stream);
            gateway.note_quota(&call.backend, &call.sale.model, &head.headers);
            if head.status == StatusCode::UNAUTHORIZED {
                under_way.came_back();
                let message = upstream::credential_refused(id.as_str());
                return Err(Refusal::new(StatusCode::BAD_GATEWAY, upstream::CREDENTIAL_REFUSED, message));
            }
            strip(&mut head.headers);
            strip_private(&mut head.headers);
            let dialect = Dialect::of(call.sale.endpoint.as_str());
            under_way.describe(&mut head.headers, gateway.clock.now(), dialect);
            // Its tokens are counted as it passes, for the ledger and the quotas.
            let meter = under_way.watched(status, is_stream);
            let body = WatchedBody::new(body, meter);
            let mut response = if used.rewrites_answer {
                rewritten(gateway, call, used, head, reqwest::Body::wrap(body), notes).await?
            } else {
                Response::from_parts(head, ReplyBody::Watched(body))
            };
            gateway.metrics.answered("realtime", response.status().as_u16());
            *response.version_mut() = http::Version::HTTP_11;
            stamp(&mut response, &request, "realtime");
            Ok(response)
        }
        Err(error) => {
            if error.ran.is_free_to_repeat() {
                under_way.came_back();
            }
            tracing::warn!(backend = %id, %error, "a real-time call got no answer");
            Err(no_answer(&error, id.as_str()))
        }
    }
}

/// Waits for the backend while its breaker is open, as long as the call's route says. After that, says until when it rests.
async fn admitted(gateway: &Gateway, call: &NowCall) -> Result<(), Timestamp> {
    let patience = call.fallback.as_ref().map_or(Millis(0), |fallback| fallback.wait);
    let last = gateway.clock.now().after(patience);
    loop {
        let now = gateway.clock.now();
        let Err(until) = gateway.health.admit(&call.backend.id, Mode::Realtime, now) else { return Ok(()) };
        if now >= last {
            return Err(until);
        }
        // One is let through at a time, and whether it succeeds shows before its rest is over.
        let pause = until.min(last).since(now).clamp(Millis(1), LOOK_AGAIN);
        tokio::time::sleep(pause.into()).await;
    }
}

/// What a call gets whose backend is out of order.
fn instead(gateway: &Gateway, call: &NowCall, until: Timestamp) -> Result<Response<ReplyBody>, Refusal> {
    let own = call.fallback.as_ref().and_then(|fallback| fallback.answer(call.is_stream));
    let Some(mut response) = own else {
        return Err(out_of_order(call.backend.id.as_str(), until.since(gateway.clock.now())));
    };
    gateway.metrics.answered("fallback", response.status().as_u16());
    stamp(&mut response, &gateway.ids.next(), "fallback");
    Ok(response)
}

/// Refusals that may be about how a request was bought, and not about what it says.
const MAY_BE_THE_OFFER: [StatusCode; 3] =
    [StatusCode::BAD_REQUEST, StatusCode::NOT_FOUND, StatusCode::UNPROCESSABLE_ENTITY];

/// As much of a refusal as is read to find that out.
const REFUSAL_MAX: usize = 1 << 20;

/// Whether the provider refused to sell the offer for the model; then it is off the ladder. The answer stays whole.
async fn is_not_sold(
    gateway: &Gateway,
    call: &NowCall,
    way: &Way,
    sent: &mut Result<Response<reqwest::Body>, SendError>,
) -> bool {
    let Ok(response) = sent else { return false };
    let body = std::mem::take(response.body_mut());
    let body = match read_up_to(body, REFUSAL_MAX).await {
        Ok(body) => body,
        Err(error) => {
            *sent = Err(error);
            return false;
        }
    };
    let now = gateway.clock.now();
    let failed = Failed {
        sale: &call.sale,
        mode: Mode::Realtime,
        ending: &Ending::Answered { status: response.status().as_u16() },
        body: &body,
        attempts: 1,
        retry_after: None,
        deadline: now,
    };
    let is_not_sold = gateway.retries.meaning(&failed, now).class == Class::NotSold;
    let said = String::from_utf8_lossy(&body).into_owned();
    *response.body_mut() = body.into();
    is_not_sold && gateway.lose(way, call.sale.endpoint.as_str(), &said)
}

/// An answer that the provider plugin writes anew: a stream while it arrives, all else as a whole.
async fn rewritten(
    gateway: &Gateway,
    call: &NowCall,
    used: &Arc<PreparedCall>,
    mut head: response::Parts,
    body: reqwest::Body,
    notes: Vec<u8>,
) -> Result<Response<ReplyBody>, Refusal> {
    head.headers.remove(CONTENT_LENGTH);
    if head.status.is_success() && rewrite::is_stream(&head.headers) {
        let (backend, prepared) = (call.backend.clone(), used.clone());
        let stream = rewrite::Stream::new(body, backend, prepared, gateway.clock, notes);
        return Ok(Response::from_parts(head, ReplyBody::Made(Box::pin(stream))));
    }
    let backend = call.backend.id.as_str();
    let body = read_up_to(body, REWRITTEN_MAX).await.map_err(|error| {
        tracing::warn!(backend, %error, "an answer broke off");
        no_answer(&error, backend)
    })?;
    let was = (head.status.as_u16(), &head.headers, &body[..]);
    let answer = rewrite::answer(used, &notes, was, gateway.clock).map_err(|error| {
        tracing::error!(backend, %error, "an answer was lost: the provider plugin could not write it anew");
        let message = "The request ran, but the backend's provider plugin failed on its answer. offpeak's log says why.";
        Refusal::new(StatusCode::BAD_GATEWAY, "plugin_failed", message)
    })?;
    head.status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY);
    head.headers.remove(CONTENT_ENCODING);
    match answer.content_type.and_then(|kind| HeaderValue::try_from(kind).ok()) {
        Some(kind) => head.headers.insert(CONTENT_TYPE, kind),
        None => head.headers.remove(CONTENT_TYPE),
    };
    Ok(Response::from_parts(head, answer.body.into()))
}

/// What it means for the caller that a body cannot be sent.
fn not_dressed(error: &DressError) -> Refusal {
    match error {
        DressError::Json(error) => {
            Refusal::bad_request("invalid_json", format!("The request's body cannot be edited: {error}"))
        }
        DressError::Refused(refusal) => {
            let param = refusal.param.clone().map(Cow::Owned);
            Refusal { param, ..Refusal::bad_request(refusal.code.clone(), refusal.message.clone()) }
        }
        DressError::Plugin(error) => {
            tracing::error!(%error, "a request was not sent: its body could not be written anew");
            let message = "The backend's provider plugin failed, so that this request was not run. Its log line says why.";
            Refusal::unavailable("plugin_failed", message, 5)
        }
    }
}

/// What became of a call.
struct Sent {
    answer: Result<Response<reqwest::Body>, SendError>,
    /// The plugin's, for the answer.
    notes: Vec<u8>,
    /// It tells of its backend's health; of calls that were sent as one, one does.
    speaks: bool,
}

async fn send(
    gateway: &Gateway,
    to: &NowCall,
    call: &Arc<PreparedCall>,
    mut headers: HeaderMap,
    body: Bytes,
    under_way: &mut UnderWay,
) -> Result<Sent, Refusal> {
    // Boxed, because few calls are, and each connection has room for all that may be.
    if to.backend.engine.as_ref().is_some_and(|engine| engine.merge_realtime.is_some())
        && let Some((answer, speaks)) =
            Box::pin(gathered::send(gateway, to, call, &headers, &body, under_way)).await
    {
        return Ok(Sent { answer, notes: Vec::new(), speaks });
    }
    let now = gateway.clock.now();
    let Dressed { body, notes } = call.dress(&mut headers, body, now).map_err(|error| not_dressed(&error))?;
    under_way.leaves();
    let answer = to.backend.upstream.send(Method::POST, call.url.clone(), headers, body.into()).await;
    Ok(Sent { answer, notes, speaks: true })
}

/// What an ending says about the backend. "Too many" is the caller's to slow down, not the backend's to rest.
fn report_of(sent: &Result<Response<reqwest::Body>, SendError>) -> Report {
    match sent {
        Ok(response) if response.status().is_server_error() => Report::Failed,
        Ok(_) => Report::Fine,
        Err(_) => Report::Failed,
    }
}

fn out_of_order(backend: &str, rest: Millis) -> Refusal {
    let message = format!(
        "The backend '{backend}' has failed again and again and is left alone for a moment; the request was not sent. Try \
         again, or tag what can wait (x-offpeak-sla: deferrable)."
    );
    let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "backend_out_of_order", message);
    Refusal { retry_after_s: Some((rest.0 / 1000).max(1)), ..refusal }
}

/// Removes the headers of one connection, those that it names itself included.
fn strip(headers: &mut HeaderMap) {
    if let Some(named) = headers.get(CONNECTION).cloned() {
        let named = named.to_str().unwrap_or_default().split(',');
        for name in named.filter_map(|name| HeaderName::try_from(name.trim()).ok()) {
            headers.remove(name);
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// What the provider says to the holder of its account: who that is, and how much the account may still use.
const PRIVATE: [HeaderName; 4] = [
    SET_COOKIE,
    HeaderName::from_static("openai-organization"),
    HeaderName::from_static("openai-project"),
    HeaderName::from_static("anthropic-organization-id"),
];

/// Headers that begin so tell of the provider account's own limits.
const PRIVATE_PREFIXES: [&str; 2] = ["x-ratelimit-", "anthropic-ratelimit-"];

fn strip_private(headers: &mut HeaderMap) {
    let is_private = |name: &&HeaderName| {
        PRIVATE.contains(name) || PRIVATE_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix))
    };
    // Few answers have more than a few of them, and most have none.
    while let Some(name) = headers.keys().find(is_private).cloned() {
        headers.remove(name);
    }
}

fn no_answer(error: &SendError, backend: &str) -> Refusal {
    let (status, code) = match (error.ran, error.timed_out) {
        (DidItRun::NotSent, _) => (StatusCode::BAD_GATEWAY, "backend_unreachable"),
        (_, true) => (StatusCode::GATEWAY_TIMEOUT, "backend_timeout"),
        (_, false) => (StatusCode::BAD_GATEWAY, "backend_broke_off"),
    };
    let message = match error.ran {
        DidItRun::NotSent => {
            format!("The backend '{backend}' cannot be reached; the request was not sent. Try again.")
        }
        _ => format!(
            "The backend '{backend}' gave no answer; it may have run the request. Try again if that is harmless."
        ),
    };
    // What never left may be sent again by the SDK at once.
    let retry_after_s = (error.ran == DidItRun::NotSent).then_some(1);
    Refusal { retry_after_s, ..Refusal::new(status, code, message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_concerns_one_connection_stays_on_it() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, X-Mine"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("x-other", "2"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        strip(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-other"]);
    }

    #[test]
    fn what_the_provider_says_to_the_accounts_holder_stays_here() {
        let mut headers = HeaderMap::new();
        for name in ["set-cookie", "x-ratelimit-limit-requests", "x-request-id", "openai-organization"] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static("1"));
        }
        headers.append(SET_COOKIE, HeaderValue::from_static("2"));
        strip_private(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-request-id"]);
    }
}
