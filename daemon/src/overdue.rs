//! Deferred requests that are due and that their tenants' budgets do not pay for: each gets an error that says so. What stands
//! beside them and is not due yet goes on waiting.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use offpeak_core::extent::{Extent, Range};
use offpeak_core::outcome::Ending;
use offpeak_core::scheduler::Event;
use offpeak_core::words::{LaneId, Millis, Place, Seq, Timestamp};
use offpeak_store::{Entry, NewOutcome, Recorded, Selection, StoreError, Verdict};

use crate::delivery::request_id;
use crate::gateway::Gateway;
use crate::reply::{self, Dialect, ErrorText};

/// Bodies that are in memory at once, in bytes; they are of no interest here.
const CHUNK_BYTES: usize = 1 << 20;

/// What was hurried on its way and is not due for its caller yet is not given up again before so much time.
const LOOK_AGAIN: Millis = Millis::from_secs(10);

/// A pause before trying again what the store refused.
const PAUSE: Duration = Duration::from_secs(1);

/// Gives up what is due of these, and tells the lanes of the rest.
pub async fn give_up(gateway: Arc<Gateway>, extents: Vec<Extent>, until: Timestamp) {
    for extent in extents {
        loop {
            match give_up_one(&gateway, &extent, until).await {
                Ok(rest) => {
                    for extent in rest {
                        gateway.lanes.tell(Event::Returned(extent));
                    }
                    break;
                }
                Err(StoreError::Closed) => return,
                Err(error) => {
                    tracing::error!(lane = extent.lane.0, %error, "requests without money wait for the store");
                }
            }
            tokio::select! {
                biased;
                () = gateway.stopping.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }
}

async fn give_up_one(
    gateway: &Gateway,
    extent: &Extent,
    until: Timestamp,
) -> Result<Vec<Extent>, StoreError> {
    let range = Range { lane: extent.lane, from: extent.first, to: extent.end() };
    let mut selection = Some(Selection::from(vec![range]));
    let mut rest: Vec<Extent> = Vec::new();
    while let Some(what) = selection {
        let chunk = gateway.store.requests(what, CHUNK_BYTES).await?;
        selection = chunk.rest;
        let now = gateway.clock.now();
        let mut outcomes = Vec::new();
        for entry in chunk.entries {
            let due = due(gateway, &entry).await?;
            if due <= now {
                outcomes.push(outcome(gateway, &entry, until, now));
            } else {
                keep(&mut rest, &entry, due.min(entry.deadline.max(now.after(LOOK_AGAIN))));
            }
        }
        record(gateway, outcomes).await?;
    }
    Ok(rest)
}

/// What was hurried on the way is due when its caller said.
async fn due(gateway: &Gateway, entry: &Entry) -> Result<Timestamp, StoreError> {
    if entry.origin == entry.place {
        return Ok(entry.deadline);
    }
    let origin = gateway.store.entry(entry.origin).await?;
    Ok(origin.map_or(entry.deadline, |origin| origin.deadline.max(entry.deadline)))
}

/// The error is the one that the tenant's new requests get.
fn outcome(gateway: &Gateway, entry: &Entry, until: Timestamp, now: Timestamp) -> NewOutcome {
    let seconds = until.since(now).0.div_ceil(1000);
    let message = format!(
        "The tenant's budget did not pay for this request before its deadline, so it was not sent. There is money again in \
         {seconds} s; offpeak's operator can raise the budget."
    );
    let text = ErrorText {
        status: StatusCode::TOO_MANY_REQUESTS.as_u16(),
        code: "insufficient_quota",
        message: &message,
        param: None,
        id: &request_id(entry.origin),
    };
    let key = gateway.store.lane_key(entry.place.lane);
    let dialect = key.map_or(Dialect::OpenAi, |key| Dialect::of(key.endpoint.as_str()));
    NewOutcome {
        place: entry.place,
        attempts: entry.attempts,
        batch: None,
        finished_at: now,
        ending: Ending::Answered { status: text.status },
        verdict: Verdict::Final,
        meta: Bytes::new(),
        body: reply::error_body(dialect, text).into(),
        documents: Vec::new(),
    }
}

async fn record(gateway: &Gateway, outcomes: Vec<NewOutcome>) -> Result<(), StoreError> {
    if outcomes.is_empty() {
        return Ok(());
    }
    let recorded = gateway.store.record(outcomes).await?;
    let ended = recorded.into_iter().filter_map(|one| match one {
        Recorded::New { origin, .. } => Some(origin),
        Recorded::Duplicate | Recorded::Unknown => None,
    });
    let ended: Vec<Place> = ended.collect();
    tracing::warn!(
        requests = ended.len(),
        "requests were given up at their deadlines: their tenants' budgets are used up"
    );
    gateway.jobs.finished(ended.iter().map(|origin| (*origin, false)));
    gateway.held.tell(ended);
    Ok(())
}

/// Puts a request to the others that go on waiting.
fn keep(rest: &mut Vec<Extent>, entry: &Entry, earliest_deadline: Timestamp) {
    let (lane, first): (LaneId, Seq) = (entry.place.lane, entry.place.seq);
    let one = Extent {
        lane,
        first,
        count: 1,
        bytes: entry.body.len() as u64,
        tokens: u64::from(entry.tokens),
        oldest: entry.arrived.max(entry.not_before),
        earliest_deadline,
    };
    match rest.last_mut().filter(|last| last.end() == first) {
        Some(last) => last.join(&one),
        None => rest.push(one),
    }
}
