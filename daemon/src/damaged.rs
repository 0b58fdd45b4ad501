//! Requests whose records in the log are damaged: each gets an error that says so, and those beside it go on.

use bytes::Bytes;
use http::StatusCode;
use offpeak_core::outcome::Ending;
use offpeak_core::words::Timestamp;
use offpeak_store::{Chunk, Damaged, NewOutcome, Selection, StoreError, Verdict};

use crate::delivery::request_id;
use crate::gateway::Gateway;
use crate::outcomes;
use crate::reply::{self, Dialect, ErrorText};

/// The next requests of a selection without those that cannot be read any more: these have their outcome when it returns.
pub async fn sound(gateway: &Gateway, what: Selection, max_bytes: usize) -> Result<Chunk, StoreError> {
    let chunk = gateway.store.requests(what, max_bytes).await?;
    if chunk.damaged.is_empty() {
        return Ok(chunk);
    }
    for damaged in &chunk.damaged {
        let (place, why) = (damaged.waiting.place(), &damaged.why);
        tracing::error!(%place, %why, "a request is lost: its record on the disk is damaged; it gets an error");
    }
    let now = gateway.clock.now();
    let outcomes = chunk.damaged.iter().map(|damaged| outcome(gateway, damaged, now)).collect();
    outcomes::end_without_attempt(gateway, outcomes).await?;
    Ok(chunk)
}

fn outcome(gateway: &Gateway, Damaged { waiting, why }: &Damaged, now: Timestamp) -> NewOutcome {
    let message = format!(
        "What offpeak had stored of this request is damaged, so that it cannot be sent: {why}. Hand it in again; offpeak's \
         operator checks the disk, and can restore the data folder from a backup."
    );
    let text = ErrorText {
        status: StatusCode::INTERNAL_SERVER_ERROR.as_u16(),
        code: "request_damaged",
        message: &message,
        param: None,
        id: &request_id(waiting.origin),
    };
    let key = gateway.store.lane_key(waiting.extent.lane);
    let dialect = key.map_or(Dialect::OpenAi, |key| Dialect::of(key.endpoint.as_str()));
    NewOutcome {
        place: waiting.place(),
        attempts: waiting.attempts,
        batch: None,
        finished_at: now,
        ending: Ending::Answered { status: text.status },
        verdict: Verdict::Final,
        meta: Bytes::new(),
        body: reply::error_body(dialect, text).into(),
        documents: Vec::new(),
    }
}
