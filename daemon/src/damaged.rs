//! Requests whose records in the log are damaged: each gets an error that says so, and those beside it go on.

use http::StatusCode;
use offpeak_core::words::Timestamp;
use offpeak_store::{Chunk, Damaged, NewOutcome, Selection, StoreError};

use crate::gateway::Gateway;
use crate::outcomes;

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
    let error = (StatusCode::INTERNAL_SERVER_ERROR, "request_damaged", &*message);
    outcomes::given_up(gateway, waiting, error, now)
}
