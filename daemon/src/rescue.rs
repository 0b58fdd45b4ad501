//! Requests that a batch would answer too late: each is run by itself in real time, a few at once.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Method, Response};
use offpeak_core::outcome::{DidItRun, Ending};
use offpeak_core::retry::Verdict;
use offpeak_core::words::Millis;
use offpeak_host::PluginError;
use offpeak_host::values::provider::Refusal;
use offpeak_store::{BatchRecord, Entry, Selection, StoreError};

use crate::backends::{Backend, DressError, Dressed, PrepareError, PreparedCall};
use crate::gateway::Gateway;
use crate::outcomes::{self, Attempt, Source};
use crate::rewrite;
use crate::upstream::SendError;

/// Bodies that are in memory at once, in bytes.
const CHUNK_BYTES: usize = 4 << 20;

/// The largest answer of one call.
const ANSWER_MAX: usize = 64 << 20;

/// A pause before trying again what the store or the plugin refused.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs what has no outcome yet. After a crash this starts again with what is left; what was under way then may have run,
/// which only the provider's bill knows: real-time APIs cannot be asked. So a daemon that is told to stop begins nothing
/// new here, but waits for what it has sent.
pub async fn run(gateway: Arc<Gateway>, backend: Arc<Backend>, record: BatchRecord) {
    if let Err(error) = run_to_the_end(&gateway, &backend, &record).await {
        tracing::error!(batch = %record.id, %error, "a rescue was broken off by the store; it goes on at the next start");
    }
}

async fn run_to_the_end(
    gateway: &Arc<Gateway>,
    backend: &Arc<Backend>,
    record: &BatchRecord,
) -> Result<(), StoreError> {
    let Some(call) = prepare(gateway, backend, record).await else { return Ok(()) };
    let source = Source { batch: record.id, backend: record.backend.clone() };
    let mut selection = Some(Selection::from(record.ranges.clone()));
    while let Some(what) = selection {
        let chunk = gateway.store.requests(what, CHUNK_BYTES).await?;
        selection = chunk.rest;
        let attempts = stream::iter(chunk.entries)
            .map(|entry| run_one(gateway, backend, &call, record, entry))
            .buffer_unordered(backend.lanes.rescue_concurrency);
        let mut attempts = std::pin::pin!(attempts);
        while let Some(attempt) = attempts.next().await {
            if let Some(attempt) = attempt {
                outcomes::record(gateway, &source, vec![attempt]).await?;
            }
        }
        if gateway.stopping.is_cancelled() {
            return Ok(());
        }
    }
    gateway.store.end(record.id, gateway.clock.now(), "rescued").await?;
    gateway.metrics.ended(record.backend.as_str(), "rescued");
    Ok(())
}

/// The fastest way to an answer. Waits while the plugin is out of order; none if the daemon stops before.
async fn prepare(gateway: &Gateway, backend: &Backend, record: &BatchRecord) -> Option<PreparedCall> {
    loop {
        match fastest_call(gateway, backend, record) {
            Ok(call) => return Some(call),
            Err(error) => {
                tracing::error!(batch = %record.id, %error, "requests wait: their call could not be prepared");
                pause(gateway, PAUSE).await?;
            }
        }
    }
}

/// None if the daemon stops meanwhile.
async fn pause(gateway: &Gateway, pause: Duration) -> Option<()> {
    tokio::select! {
        biased;
        () = gateway.stopping.cancelled() => None,
        () = tokio::time::sleep(pause) => Some(()),
    }
}

fn fastest_call(
    gateway: &Gateway,
    backend: &Backend,
    record: &BatchRecord,
) -> Result<PreparedCall, PrepareError> {
    let (endpoint, model) = (record.endpoint.as_str(), record.model.as_str());
    let now = gateway.clock.now();
    let menu = gateway.backends.menu(endpoint, model, now).ok();
    let seller = menu.iter().flat_map(|menu| &menu.sellers).find(|seller| seller.backend.id == backend.id);
    let offer = seller.and_then(|seller| seller.fastest()).ok_or_else(|| {
        PrepareError::Refused(Refusal {
            code: "no_realtime_offer".into(),
            message: "the backend sells this model in no real-time mode".into(),
            param: None,
        })
    })?;
    backend.prepare(endpoint, model, offer.name.as_str(), now)
}

/// Runs one request, again and again as the retry policy says, and returns how the last attempt ended; none if the
/// daemon stops between two attempts.
async fn run_one(
    gateway: &Gateway,
    backend: &Backend,
    call: &PreparedCall,
    record: &BatchRecord,
    entry: Entry,
) -> Option<Attempt> {
    let mut tries = 0_u16;
    loop {
        // Several rescues may run at once; the backend's places are for all of them.
        let place = backend.rescues.acquire().await.ok()?;
        if gateway.stopping.is_cancelled() {
            return None;
        }
        tries = tries.saturating_add(1);
        let ended = Attempt { tries, ..send(gateway, backend, call, record, &entry).await };
        drop(place);
        let now = gateway.clock.now();
        let attempts = entry.attempts.saturating_add(tries);
        let jitter = gateway.chance.permille();
        match gateway.retry.judge(&ended.ending, attempts, ended.retry_after, jitter, now) {
            Verdict::Deliver => return Some(ended),
            Verdict::Again(not_before) => {
                tracing::debug!(place = %entry.place, ?not_before, "a rescued request is tried again");
                pause(gateway, not_before.since(now).into()).await?;
            }
        }
    }
}

async fn send(
    gateway: &Gateway,
    backend: &Backend,
    call: &PreparedCall,
    record: &BatchRecord,
    entry: &Entry,
) -> Attempt {
    let mut headers: HeaderMap = record
        .headers
        .iter()
        .filter_map(|(name, value)| {
            Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?))
        })
        .collect();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let ended = |ending, retry_after, request_id, body| Attempt {
        place: entry.place,
        ending,
        tries: 1,
        retry_after,
        request_id,
        body,
    };
    let failed = |ran, code: &str, message: String| {
        ended(Ending::Failed { ran, code: code.into(), message }, None, None, Bytes::new())
    };
    let now = gateway.clock.now();
    let Dressed { body, notes } = match call.dress(backend, &mut headers, entry.body.clone(), now) {
        Ok(dressed) => dressed,
        Err(DressError::Refused(refusal)) => {
            return outcomes::refused(entry.place, entry.origin, record, &refusal);
        }
        Err(error @ DressError::Json(_)) => {
            return failed(DidItRun::NotSent, "permanent:invalid_json", error.to_string());
        }
        Err(error @ DressError::Plugin(_)) => {
            tracing::error!(place = %entry.place, %error, "a rescued request could not be sent");
            return failed(
                DidItRun::NotSent,
                "plugin_failed",
                "the backend's provider plugin failed".to_owned(),
            );
        }
    };
    let sent = backend.upstream.call(Method::POST, call.url.clone(), headers, body.into(), ANSWER_MAX).await;
    match sent {
        Ok(response) => {
            let retry_after = retry_after(&response);
            let request_id = header(&response, "x-request-id")
                .or_else(|| header(&response, "request-id"))
                .map(str::to_owned);
            match read(gateway, backend, call, &notes, response) {
                Ok((status, body)) => ended(Ending::Answered { status }, retry_after, request_id, body),
                Err(error) => {
                    tracing::error!(place = %entry.place, %error, "an answer was lost");
                    let message = "the request ran, but the backend's provider plugin failed on its answer";
                    failed(DidItRun::Ran, "plugin_failed", message.to_owned())
                }
            }
        }
        Err(SendError { ran, message, timed_out }) => {
            failed(ran, if timed_out { "backend_timeout" } else { "backend_unreachable" }, message)
        }
    }
}

/// The answer as the caller gets it.
fn read(
    gateway: &Gateway,
    backend: &Backend,
    call: &PreparedCall,
    notes: &[u8],
    response: Response<Bytes>,
) -> Result<(u16, Bytes), PluginError> {
    let status = response.status().as_u16();
    if !call.rewrites_answer {
        return Ok((status, response.into_body()));
    }
    let was = (status, response.headers(), &response.body()[..]);
    let answer = rewrite::answer(backend, call, notes, was, gateway.clock)?;
    Ok((answer.status, answer.body.into()))
}

fn header<'a, B>(response: &'a Response<B>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// `Retry-After` in seconds; the form with a date is rare and left to the policy's own delay.
fn retry_after<B>(response: &Response<B>) -> Option<Millis> {
    let seconds = header(response, RETRY_AFTER.as_str())?.trim().parse().ok()?;
    Some(Millis::from_secs(seconds))
}
