//! A background response that is streamed: what is known at once, and the rest when the answer is there. A caller that
//! hangs up loses nothing: the work goes on, and `starting_after` takes the stream up where it broke off.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use offpeak_core::words::Place;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::events::Events;
use super::{Shown, object, stamped};
use crate::body::ReplyBody;
use crate::defer::too_many_held;
use crate::gateway::Gateway;
use crate::held::Waiter;
use crate::ingress::query::Query;
use crate::reply::Refusal;

/// As often something is sent while there is nothing to tell, so that nobody on the way takes the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A line that readers of events skip.
const NOTHING: &[u8] = b": the response is not there yet\n\n";

/// What a stream has told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Nothing,
    Queued,
    Begun,
    Ended,
}

/// A stream that somebody reads.
struct Live {
    gateway: Arc<Gateway>,
    place: Place,
    waiter: Waiter,
    events: Events,
    told: Told,
}

/// The number of the last event that the caller has, if it does not begin anew.
pub(super) fn starting_after(query: &Query) -> Result<Option<u64>, Refusal> {
    let Some(text) = query.get("starting_after") else { return Ok(None) };
    text.parse().map(Some).map_err(|_| {
        let message = "starting_after must be the sequence_number of an event.";
        Refusal::bad_request("invalid_value", message).param("starting_after")
    })
}

/// Answers with the events of a response.
pub(super) fn answer(
    gateway: &Arc<Gateway>,
    place: Place,
    after: Option<u64>,
) -> Result<Response<ReplyBody>, Refusal> {
    let waiter = gateway.held.wait(place).ok_or_else(too_many_held)?;
    let live =
        Live { gateway: gateway.clone(), place, waiter, events: Events::after(after), told: Told::Nothing };
    let pieces = stream::try_unfold(live, |mut live| async move {
        let piece = live.next().await.inspect_err(|error| {
            tracing::debug!(%error, id = super::id(live.place), "a streamed response breaks off");
        })?;
        Ok::<_, io::Error>(piece.map(|piece| (piece, live)))
    });
    let mut response = Response::new(ReplyBody::Passed(reqwest::Body::wrap_stream(pieces)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    gateway.metrics.answered("deferred", StatusCode::OK.as_u16());
    Ok(stamped(response, place))
}

impl Live {
    /// What is to be sent next; none when all is told. An error breaks the stream off, so that nobody takes it for whole.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let mut is_quiet = false;
        while self.told < Told::Ended {
            // The answer may have come before the waiter sat down; the store knows.
            self.look().await?;
            let piece = self.events.take();
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
            if std::mem::take(&mut is_quiet) {
                return Ok(Some(Bytes::from_static(NOTHING)));
            }
            if self.told < Told::Ended {
                tokio::select! {
                    biased;
                    () = self.gateway.stopping.cancelled() => return Err(io::Error::other("offpeak is restarting")),
                    () = self.waiter.told() => {}
                    () = tokio::time::sleep(KEEP_ALIVE) => is_quiet = true,
                }
            }
        }
        Ok(None)
    }

    /// Tells what has happened since it looked last.
    async fn look(&mut self) -> io::Result<()> {
        #[derive(Deserialize)]
        struct Peek<'a> {
            status: &'a str,
        }
        let shown =
            object(&self.gateway, self.place).await.map_err(|refusal| io::Error::other(refusal.message))?;
        let Some(Shown { body, has_ended }) = shown else {
            return Err(io::Error::other("the response is not kept any more"));
        };
        let response: &RawValue = serde_json::from_slice(&body)?;
        let is_queued = !has_ended && serde_json::from_slice::<Peek<'_>>(&body)?.status == "queued";
        if self.told < Told::Queued {
            self.events.queued(response)?;
            self.told = Told::Queued;
        }
        if self.told < Told::Begun && !is_queued {
            self.events.begun(response)?;
            self.told = Told::Begun;
        }
        if has_ended {
            self.events.ended(response)?;
            self.told = Told::Ended;
        }
        Ok(())
    }
}
