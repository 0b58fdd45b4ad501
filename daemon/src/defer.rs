//! Later: the request is appended to its lane, durably, and then acknowledged or held.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName};
use http::{Response, StatusCode};
use offpeak_core::room::Load;
use offpeak_core::sla::Sla;
use offpeak_core::words::{KeptHeaders, LaneId, LaneKey, Millis, Place, Timestamp};
use offpeak_store::{Appended, Idempotency, NewRequest, Standing, StoreError, body_hash};
use sha2::{Digest, Sha256};

use crate::body::ReplyBody;
use crate::config::Delivery;
use crate::delivery::{self, TicketStanding};
use crate::envelope::Envelope;
use crate::gateway::Gateway;
use crate::label::FOR_ITS_CALLER;
use crate::lane_book::LaneError;
use crate::members::{self, Edit};
use crate::reply::Refusal;
use crate::room::Coming;
use crate::tenant::{Account, Identified};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const PREFER: HeaderName = HeaderName::from_static("prefer");

/// The code of a key under which another request came before.
pub const IDEMPOTENCY_KEY_REUSED: &str = "idempotency_key_reused";

/// By this header the official SDKs count their own tries of one call: 0 for the first, then 1, 2.
const RETRY_COUNT: HeaderName = HeaderName::from_static("x-stainless-retry-count");

/// A deferred request, ready to be kept.
#[derive(Debug, Clone)]
pub struct Deferral {
    /// The lane in which it waits.
    pub key: LaneKey,
    /// When its answer must be there.
    pub deadline: Timestamp,
    /// The router that chose this.
    pub router: Arc<str>,
}

/// An answer that came while its call was cut off is still there for the SDK's retry, which follows within seconds.
pub const RETRIES_COME_WITHIN: Millis = Millis::from_mins(10);

/// A request that is kept, and how its caller is answered.
pub struct Kept {
    origin: Place,
    standing: TicketStanding,
    delivery: Delivery,
    /// The caller asked for this delivery itself.
    is_asked: bool,
}

/// Keeps a request of a caller who wants its answer on this call or with a ticket.
pub async fn accept(
    gateway: &Gateway,
    caller: &Identified,
    deferral: Deferral,
    headers: &HeaderMap,
    envelope: Envelope,
    arrived: Timestamp,
) -> Result<Kept, Refusal> {
    let account = caller.account();
    let asked = asked_delivery(headers);
    let delivery = asked.unwrap_or(account.delivery);
    if delivery == Delivery::Held && !gateway.held.has_room() {
        return Err(too_many_held());
    }
    let deadline = deferral.deadline;
    let kept = keep(gateway, account, deferral, headers, envelope, arrived, FOR_ITS_CALLER).await?;
    let new = TicketStanding { attempts: 0, deadline: Some(deadline), is_done: false };
    let (origin, standing) = match kept {
        Repetition::New(origin) => (origin, new),
        // It keeps the deadline that it was given at first.
        Repetition::Of(origin) => (origin, standing_of(gateway, origin).await?.unwrap_or(new)),
    };
    Ok(Kept { origin, standing, delivery, is_asked: asked.is_some() })
}

/// Whether a request was kept before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repetition {
    /// It is new.
    New(Place),
    /// It repeats this one.
    Of(Place),
}

impl Repetition {
    /// Where the request stands, whoever called first.
    pub const fn origin(self) -> Place {
        match self {
            Self::New(origin) | Self::Of(origin) => origin,
        }
    }
}

/// What a ticket says of a request. None if it is not kept any more.
pub async fn standing_of(gateway: &Gateway, origin: Place) -> Result<Option<TicketStanding>, Refusal> {
    let standing = gateway.store.outcome(origin).await.map_err(|error| store_failed(&error))?;
    let about = gateway.store.about(origin).await.map_err(|error| store_failed(&error))?;
    let deadline = about.map(|about| about.due);
    Ok(standing.map(|standing| match standing {
        Standing::Waiting { attempts, .. } => TicketStanding { attempts, deadline, is_done: false },
        Standing::Final(outcome) => TicketStanding { attempts: outcome.attempts, deadline, is_done: true },
    }))
}

/// The work of a caller who calls again, if it is under way or done already: it is not bought once more, whatever the router
/// would choose by now. `kept` is what the request may have kept of its headers.
pub async fn find(
    gateway: &Gateway,
    caller: &Identified,
    headers: &HeaderMap,
    kept: &[KeptHeaders],
    envelope: &Envelope,
) -> Result<Option<Kept>, Refusal> {
    let account = caller.account();
    let Some(origin) = earlier(gateway, account, headers, kept, envelope).await? else { return Ok(None) };
    if gateway.stopping.is_cancelled() {
        return Err(stopping());
    }
    let asked = asked_delivery(headers);
    let delivery = asked.unwrap_or(account.delivery);
    let standing = standing_of(gateway, origin).await?;
    Ok(standing.map(|standing| Kept { origin, standing, delivery, is_asked: asked.is_some() }))
}

/// The request that a call repeats. Which of its headers told it from others depends on where it went, which is not known any
/// more: it may have been any backend.
async fn earlier(
    gateway: &Gateway,
    account: &Account,
    headers: &HeaderMap,
    kept: &[KeptHeaders],
    envelope: &Envelope,
) -> Result<Option<Place>, Refusal> {
    let given = given_key(headers);
    let body = deferred_body(envelope)?;
    let mut is_other = false;
    for kept in kept {
        let Some(key) = given else {
            match attach(gateway, account, kept, headers, envelope).await? {
                None => continue,
                found => return Ok(found),
            }
        };
        let hash = hash(&body, kept);
        let known = gateway.store.find_by_key(idempotency_key(account, key), hash, gateway.clock.now()).await;
        match known.map_err(|error| store_failed(&error))? {
            None => return Ok(None),
            Some(Appended::Conflict) => is_other = true,
            Some(Appended::Same(origin) | Appended::New(origin)) => {
                gateway.metrics.attached();
                return Ok(Some(origin));
            }
        }
    }
    if is_other { Err(conflict()) } else { Ok(None) }
}

/// Whether this may be a call that was made before: it says so, and what it asks for can wait.
pub fn may_be_a_repetition(headers: &HeaderMap, envelope: &Envelope) -> bool {
    envelope.sla != Sla::Realtime
        && !envelope.stream
        && (given_key(headers).is_some() || is_sdk_retry(headers))
}

/// Answers as the caller asked: by holding the call, or with a ticket.
pub async fn answer(gateway: &Arc<Gateway>, kept: Kept) -> Result<Response<ReplyBody>, Refusal> {
    let Kept { origin, standing, delivery, is_asked } = kept;
    match delivery {
        Delivery::Ticket => {
            let mut ticket = delivery::ticket(origin, standing, gateway.public_url.as_deref());
            if is_asked {
                ticket
                    .headers_mut()
                    .insert("preference-applied", http::HeaderValue::from_static("respond-async"));
            }
            gateway.metrics.answered("deferred", ticket.status().as_u16());
            Ok(ticket)
        }
        Delivery::Held => hold(gateway, origin).await,
    }
}

/// Keeps a request durably, or finds the one that it repeats.
pub async fn keep(
    gateway: &Gateway,
    account: &Account,
    deferral: Deferral,
    headers: &HeaderMap,
    envelope: Envelope,
    arrived: Timestamp,
    flags: u8,
) -> Result<Repetition, Refusal> {
    if gateway.stopping.is_cancelled() {
        return Err(stopping());
    }
    let load = Load { requests: 1, bytes: envelope.body.len() as u64 };
    gateway.room.check(gateway.books(), account, Some(&deferral.key), load, &Coming::default())?;
    match attach(gateway, account, &deferral.key.headers, headers, &envelope).await? {
        Some(origin) => Ok(Repetition::Of(origin)),
        None => append(gateway, account, deferral, headers, envelope, arrived, flags).await,
    }
}

/// Keeps the call open until the answer is there.
async fn hold(gateway: &Arc<Gateway>, origin: Place) -> Result<Response<ReplyBody>, Refusal> {
    let waiter = gateway.held.wait(origin).ok_or_else(too_many_held)?;
    loop {
        // The answer may have come before the waiter sat down; the store knows. Boxed, so that little room is taken while the
        // call is held.
        if let Some(answer) = Box::pin(final_answer(gateway, origin)).await? {
            return Ok(answer);
        }
        tokio::select! {
            biased;
            () = waiter.told() => {}
            () = gateway.stopping.cancelled() => return Err(stopping()),
        }
    }
}

/// The answer, if there is one.
async fn final_answer(gateway: &Gateway, origin: Place) -> Result<Option<Response<ReplyBody>>, Refusal> {
    let standing = gateway.store.outcome(origin).await.map_err(|error| store_failed(&error))?;
    let Some(Standing::Final(outcome)) = standing else { return Ok(None) };
    let answer = delivery::final_answer(&gateway.store, origin, &outcome)
        .await
        .map_err(|error| store_failed(&error))?;
    gateway.metrics.answered("deferred", answer.status().as_u16());
    Ok(Some(answer))
}

/// An SDK's own retry of a call that was cut off: the work is under way and is not begun anew.
async fn attach(
    gateway: &Gateway,
    account: &Account,
    kept: &KeptHeaders,
    headers: &HeaderMap,
    envelope: &Envelope,
) -> Result<Option<Place>, Refusal> {
    if !is_sdk_retry(headers) || given_key(headers).is_some() {
        return Ok(None);
    }
    let lanes: Vec<LaneId> = gateway.lanes.of_tenant(&account.id);
    let hash = hash(&deferred_body(envelope)?, kept);
    let since = gateway.clock.now().before(RETRIES_COME_WITHIN);
    let found =
        gateway.store.find_by_body(&lanes, hash, since).await.map_err(|error| store_failed(&error))?;
    if found.is_some() {
        gateway.metrics.attached();
    }
    Ok(found)
}

async fn append(
    gateway: &Gateway,
    account: &Account,
    deferral: Deferral,
    headers: &HeaderMap,
    envelope: Envelope,
    arrived: Timestamp,
    flags: u8,
) -> Result<Repetition, Refusal> {
    let body = deferred_body(&envelope)?;
    let body_hash = hash(&body, &deferral.key.headers);
    let lane = gateway.lanes.lane(&gateway.store, &gateway.backends, deferral.key, arrived).await;
    let lane = lane.map_err(|error| no_lane(&error))?;
    let idempotency = given_key(headers).map(|key| Idempotency {
        key: idempotency_key(account, key),
        expires: deferral.deadline.after(gateway.keep_results),
    });
    let request = NewRequest {
        lane,
        arrived,
        deadline: deferral.deadline,
        tokens: u32::try_from(envelope.input_tokens).unwrap_or(u32::MAX),
        body_hash,
        idempotency,
        flags,
        meta: Bytes::copy_from_slice(deferral.router.as_bytes()),
        body,
    };
    match gateway.store.append(request).await.map_err(|error| store_failed(&error))? {
        Appended::New(place) => {
            gateway.metrics.accepted();
            Ok(Repetition::New(place))
        }
        Appended::Same(place) => {
            gateway.metrics.attached();
            Ok(Repetition::Of(place))
        }
        Appended::Conflict => Err(conflict()),
    }
}

/// A batch item is a plain request: how it is delivered and bought is decided already.
pub fn deferred_body(envelope: &Envelope) -> Result<Bytes, Refusal> {
    if !envelope.has_delivery_members {
        return Ok(envelope.body.clone());
    }
    let edits = ["stream", "stream_options", "service_tier", "background", "background_options", "speed"]
        .map(Edit::remove);
    members::edit(&envelope.body, &edits).map(Bytes::from).map_err(|error| {
        Refusal::bad_request("invalid_json", format!("The body is not a JSON object: {error}"))
    })
}

/// What tells a request from others: its body, and the headers that change its meaning.
fn hash(body: &[u8], kept: &KeptHeaders) -> u64 {
    let headers = kept.iter().fold(Vec::new(), |mut text, (name, value)| {
        text.extend_from_slice(name.as_bytes());
        text.push(b'\n');
        text.extend_from_slice(value.as_bytes());
        text.push(b'\n');
        text
    });
    if headers.is_empty() { body_hash(body) } else { body_hash(body) ^ body_hash(&headers).rotate_left(1) }
}

/// An SDK tries again by itself what it got no answer to.
pub fn is_sdk_retry(headers: &HeaderMap) -> bool {
    headers.get(RETRY_COUNT).is_some_and(|count| count.as_bytes() != b"0")
}

/// The caller's `Idempotency-Key`; an empty one is none, or all who send it so would share it.
pub fn given_key(headers: &HeaderMap) -> Option<&[u8]> {
    headers.get(IDEMPOTENCY_KEY).map(|key| key.as_bytes().trim_ascii()).filter(|key| !key.is_empty())
}

/// A key belongs to its tenant: the same key of two tenants is two keys.
pub fn idempotency_key(account: &Account, key: &[u8]) -> [u8; 16] {
    let tenant = account.id.as_str().as_bytes();
    let hash = Sha256::new()
        .chain_update((tenant.len() as u64).to_le_bytes())
        .chain_update(tenant)
        .chain_update(key);
    let mut short = [0; 16];
    for (to, from) in short.iter_mut().zip(hash.finalize()) {
        *to = from;
    }
    short
}

/// `Prefer: respond-async` (RFC 7240), which may stand among other preferences.
fn asked_delivery(headers: &HeaderMap) -> Option<Delivery> {
    let asks = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok()).any(|value| {
        value.split(',').any(|preference| {
            preference.split(';').next().is_some_and(|name| name.trim().eq_ignore_ascii_case("respond-async"))
        })
    });
    asks.then_some(Delivery::Ticket)
}

fn no_lane(error: &LaneError) -> Refusal {
    match error {
        LaneError::Store(error) => store_failed(error),
        LaneError::NotSold { .. } | LaneError::Plugin(_) => {
            tracing::error!(%error, "a deferred request was not accepted");
            let message = "The router chose an offer that cannot be deferred to. Its plugin or the backend's is at fault; \
                           send x-offpeak-sla: realtime meanwhile.";
            Refusal::unavailable("offer_not_deferrable", message, 5)
        }
    }
}

/// What a failing store means for the caller.
pub fn store_failed(error: &StoreError) -> Refusal {
    tracing::error!(%error, "the store failed");
    let message = "offpeak cannot keep deferred requests at the moment, so this one was not accepted. Try again, or send \
                   x-offpeak-sla: realtime.";
    Refusal::unavailable("store_unavailable", message, 5)
}

/// No more calls may be held open.
pub fn too_many_held() -> Refusal {
    let message = "As many calls are held open as the configuration allows (server.held_max). Try again, or take a ticket \
                   with 'Prefer: respond-async'.";
    Refusal::unavailable("too_many_held", message, 5)
}

fn stopping() -> Refusal {
    let message = "offpeak is restarting. The request is safe if it was accepted; send it again to wait for its answer.";
    Refusal::unavailable("restarting", message, 1)
}

fn conflict() -> Refusal {
    let message = "This Idempotency-Key was used with another body, or with other headers that change what it means. Use a \
                   new key for a new request.";
    Refusal::new(StatusCode::CONFLICT, IDEMPOTENCY_KEY_REUSED, message)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn respond_async_is_found_among_preferences() {
        for (value, asks) in [
            ("respond-async", true),
            ("wait=10, Respond-Async", true),
            ("respond-async;x=1, wait=10", true),
            ("return=minimal", false),
            ("respond-asynchronously", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(PREFER, HeaderValue::from_static(value));
            assert_eq!(asked_delivery(&headers).is_some(), asks, "{value}");
        }
    }
}
