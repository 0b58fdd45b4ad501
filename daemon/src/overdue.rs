//! Deferred requests that are due and that their tenants' budgets do not pay for, or that nobody sells: each gets an error that
//! says so. What stands beside them and is not due yet goes on waiting.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use offpeak_core::batch::Journey;
use offpeak_core::extent::{Extent, Range};
use offpeak_core::scheduler::{Event, Lack};
use offpeak_core::words::{BatchId, Millis, Place, Timestamp};
use offpeak_store::{NewBatch, NewOutcome, Recorded, StoreError, Waiting};

use crate::gateway::Gateway;
use crate::journey;
use crate::outcomes;

/// What was hurried on its way and is not due for its caller yet is not given up again before so much time.
const LOOK_AGAIN: Millis = Millis::from_secs(10);

/// A pause before trying again what the store refused.
const PAUSE: Duration = Duration::from_secs(1);

/// How the batch of what was given up is said to have ended.
const GIVEN_UP: &str = "given up";

/// Gives up what is due of these, and tells the lanes of the rest.
pub async fn give_up(gateway: Arc<Gateway>, extents: Vec<Extent>, lack: Lack) {
    for extent in extents {
        let rest = loop {
            match give_up_one(&gateway, &extent, lack).await {
                Ok(rest) => break rest,
                Err(error) if !is_worth_waiting(&gateway, &extent, &error).await => return,
                Err(_) => {}
            }
        };
        let gone = gone(&extent, &rest);
        for extent in rest {
            gateway.lanes.tell(Event::Returned(extent));
        }
        let batch = loop {
            match seal(&gateway, gone.clone()).await {
                Ok(batch) => break batch,
                Err(error) if !is_worth_waiting(&gateway, &extent, &error).await => return,
                Err(_) => {}
            }
        };
        let Some(batch) = batch else { continue };
        while let Err(error) = gateway.store.end(batch, gateway.clock.now(), GIVEN_UP).await {
            if !is_worth_waiting(&gateway, &extent, &error).await {
                return;
            }
        }
    }
}

/// Says what the store refused, and waits a moment; false if the daemon stops. After a start it begins anew.
async fn is_worth_waiting(gateway: &Gateway, extent: &Extent, error: &StoreError) -> bool {
    if matches!(error, StoreError::Closed) {
        return false;
    }
    tracing::error!(lane = extent.lane.0, %error, "requests that are to be given up wait for the store");
    tokio::select! {
        biased;
        () = gateway.stopping.cancelled() => false,
        () = tokio::time::sleep(PAUSE) => true,
    }
}

async fn give_up_one(gateway: &Gateway, extent: &Extent, lack: Lack) -> Result<Vec<Extent>, StoreError> {
    let range = Range { lane: extent.lane, from: extent.first, to: extent.end() };
    let now = gateway.clock.now();
    let mut rest: Vec<Extent> = Vec::new();
    let mut outcomes = Vec::new();
    for waiting in gateway.store.waiting(range).await? {
        if waiting.due <= now {
            outcomes.push(outcome(gateway, &waiting, lack, now));
        } else {
            keep(&mut rest, &waiting, now);
        }
    }
    record(gateway, outcomes, lack).await?;
    Ok(rest)
}

/// What is over of an extent: all but the rest.
fn gone(extent: &Extent, rest: &[Extent]) -> Vec<Range> {
    let mut gone = Vec::new();
    let mut from = extent.first;
    let end = Extent { first: extent.end(), ..*extent };
    for next in rest.iter().chain([&end]) {
        if from < next.first {
            gone.push(Range { lane: extent.lane, from, to: next.first });
        }
        from = next.end();
    }
    gone
}

/// No batch will have these. So that they are no holes in what batches have of their lane, and do not come again as what
/// waits there when the daemon starts, they leave as a batch of which nothing is left to do.
async fn seal(gateway: &Gateway, gone: Vec<Range>) -> Result<Option<BatchId>, StoreError> {
    let Some(key) = gone.first().and_then(|range| gateway.store.lane_key(range.lane)) else {
        return Ok(None);
    };
    let batch = NewBatch {
        backend: key.backend,
        endpoint: key.endpoint,
        model: key.model,
        offer: key.offer,
        headers: key.headers,
        ranges: gone,
        created_at: gateway.clock.now(),
        progress: journey::encode(&Journey::Realtime),
    };
    gateway.store.seal(batch).await.map(Some)
}

/// For want of money, the error is the one that the tenant's new requests get.
fn outcome(gateway: &Gateway, waiting: &Waiting, lack: Lack, now: Timestamp) -> NewOutcome {
    let key = gateway.store.lane_key(waiting.extent.lane);
    let (status, code, message) = match lack {
        Lack::Money(until) => {
            let seconds = until.since(now).0.div_ceil(1000);
            let message = format!(
                "The tenant's budget did not pay for this request before its deadline, so it was not sent. There is money \
                 again in {seconds} s; offpeak's operator can raise the budget."
            );
            (StatusCode::TOO_MANY_REQUESTS, "insufficient_quota", message)
        }
        Lack::Seller => {
            let (model, backend) =
                key.as_ref().map_or(("", ""), |key| (key.model.as_str(), key.backend.as_str()));
            let message = format!(
                "Nobody sold the model '{model}' to this request before its deadline, so it got no answer: its backend \
                 '{backend}' does not any more, or was taken out of offpeak's configuration, and it may go to no other one. \
                 Hand it in again for a model that GET /v1/models lists; offpeak's operator can put the backend back."
            );
            (StatusCode::SERVICE_UNAVAILABLE, "not_sold", message)
        }
    };
    outcomes::given_up(gateway, waiting, (status, code, &message), now)
}

async fn record(gateway: &Gateway, outcomes: Vec<NewOutcome>, lack: Lack) -> Result<(), StoreError> {
    if outcomes.is_empty() {
        return Ok(());
    }
    let recorded = gateway.store.record(outcomes).await?;
    let ended = recorded.into_iter().filter_map(|one| match one {
        Recorded::New { origin, .. } => Some(origin),
        Recorded::Duplicate | Recorded::Unknown => None,
    });
    let ended: Vec<Place> = ended.collect();
    let why = match lack {
        Lack::Money(_) => "their tenants' budgets are used up",
        Lack::Seller => "no backend of the configuration sells what they ask for, or they may not go there",
    };
    tracing::warn!(requests = ended.len(), why, "requests were given up at their deadlines");
    gateway.jobs.finished(ended.iter().map(|origin| (*origin, false)));
    gateway.held.tell(ended);
    Ok(())
}

/// Puts a request to the others that go on waiting. What was hurried stays so, and is looked at again after a while.
fn keep(rest: &mut Vec<Extent>, waiting: &Waiting, now: Timestamp) {
    let hurried = waiting.extent.earliest_deadline.max(now.after(LOOK_AGAIN));
    let one = Extent { earliest_deadline: waiting.due.min(hurried), ..waiting.extent };
    match rest.last_mut().filter(|last| last.end() == one.first) {
        Some(last) => last.join(&one),
        None => rest.push(one),
    }
}

#[cfg(test)]
mod tests {
    use offpeak_core::words::{LaneId, Seq};

    use super::*;

    fn extent(first: u64, count: u32) -> Extent {
        Extent {
            lane: LaneId(3),
            first: Seq(first),
            count,
            bytes: 0,
            tokens: 0,
            oldest: Timestamp(0),
            earliest_deadline: Timestamp(0),
            not_before: Timestamp(0),
        }
    }

    #[test]
    fn what_is_gone_is_all_but_the_rest() {
        let of = |rest: &[(u64, u32)]| -> Vec<(u64, u64)> {
            let rest: Vec<Extent> = rest.iter().map(|(first, count)| extent(*first, *count)).collect();
            gone(&extent(10, 5), &rest).into_iter().map(|range| (range.from.0, range.to.0)).collect()
        };
        assert_eq!(of(&[]), [(10, 15)]);
        assert_eq!(of(&[(10, 5)]), []);
        assert_eq!(of(&[(10, 2)]), [(12, 15)]);
        assert_eq!(of(&[(12, 1), (14, 1)]), [(10, 12), (13, 14)]);
    }
}
