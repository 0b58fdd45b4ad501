//! Batches and rescues of earlier runs whose backend was taken out of the configuration: nobody can be asked for their answers.
//! What stands in a batch waits there, in case that the backend comes back, until it is rescued beside it as what is in any batch,
//! or is due; everything else goes to another backend at once.

use std::sync::Arc;

use bytes::Bytes;
use offpeak_core::batch::{Journey, Progress};
use offpeak_core::extent::{self, Range};
use offpeak_core::outcome::{DidItRun, Ending};
use offpeak_core::scheduler::{Event, Fate};
use offpeak_core::words::{Millis, Mode};
use offpeak_store::{BatchRecord, StoreError, Waiting};

use crate::costs::Took;
use crate::gateway::Gateway;
use crate::outcomes::{Attempt, Source};
use crate::rescue::{self, record_surely};
use crate::retries::BACKEND_GONE;
use crate::sent;

/// A batch is looked at again after this time at the latest: its requests may have their answers from elsewhere.
const LOOK_AGAIN: Millis = Millis::from_secs(10);

/// Requests that are given back in one commit.
const AT_ONCE: usize = 1000;

/// How such a batch is said to have ended.
const ENDED: &str = "backend removed";

/// Until all of its requests have outcomes, or stand in lanes again.
pub async fn see_through(gateway: Arc<Gateway>, record: BatchRecord, journey: Journey) {
    loop {
        match run(&gateway, &record, &journey).await {
            Ok(()) | Err(StoreError::Closed) => return,
            Err(error) => {
                tracing::error!(batch = %record.id, %error, "a batch of a backend that is gone is held up by the store");
            }
        }
        if rescue::pause(&gateway, rescue::PAUSE).await.is_none() {
            return;
        }
    }
}

/// What an operator is told of a batch whose backend is configured no more.
pub fn trouble(gateway: &Gateway, record: &BatchRecord) -> Option<String> {
    let backend = &record.backend;
    gateway.backends.get(backend).is_none().then(|| {
        format!(
            "Its backend '{backend}' is configured no more, so that its answers cannot be had: put '{backend}' back and start \
             offpeak again to have them. Until then each of its requests is run elsewhere before it is due, or gets an error \
             then if nobody else sells it."
        )
    })
}

async fn run(gateway: &Arc<Gateway>, record: &BatchRecord, journey: &Journey) -> Result<(), StoreError> {
    let (batch, backend) = (record.id, &record.backend);
    let source = source(gateway, record, journey);
    let over = match journey {
        Journey::Batch { progress: Some(progress), .. } => {
            tell_of(record, progress);
            if wait(gateway, record, &source).await?.is_none() {
                return Ok(());
            }
            Event::Ended { batch, hold_until: None, fate: Fate::Refused }
        }
        // Nothing of it was handed in.
        Journey::Batch { progress: None, .. } => {
            give_back_all(gateway, record, &source, &record.ranges).await?;
            Event::Ended { batch, hold_until: None, fate: Fate::Refused }
        }
        Journey::Realtime => {
            give_back_all(gateway, record, &source, &record.ranges).await?;
            Event::Over(batch)
        }
        Journey::Beside { cargo, .. } => {
            give_back_all(gateway, record, &source, &extent::ranges(cargo)).await?;
            Event::Over(batch)
        }
    };
    sent::forget(&gateway.store, batch).await?;
    gateway.store.end(batch, gateway.clock.now(), ENDED).await?;
    gateway.metrics.ended(backend.as_str(), ENDED);
    tracing::warn!(%batch, %backend, "nothing is left to do for a batch whose backend is configured no more");
    gateway.lanes.tell(over);
    Ok(())
}

fn source(gateway: &Gateway, record: &BatchRecord, journey: &Journey) -> Source {
    match journey {
        Journey::Batch { .. } => Source::batch(gateway, record),
        Journey::Realtime | Journey::Beside { .. } => {
            let mode = Mode::Realtime;
            let sale = gateway.backends.sale(record, gateway.clock.now());
            Source { batch: record.id, backend: record.backend.clone(), mode, sale }
        }
    }
}

fn tell_of(record: &BatchRecord, progress: &Progress) {
    let requests: u64 = record.ranges.iter().map(Range::len).sum();
    tracing::error!(
        batch = %record.id, backend = %record.backend, provider_id = progress.provider_id.as_deref().unwrap_or("unknown"),
        requests,
        "the backend of a batch under way is configured no more, so that its answers cannot be had, which the provider may \
         charge all the same; its requests are run elsewhere before they are due, or get an error then. Put the backend back \
         and start offpeak again to have the batch go on"
    );
}

/// Waits until all its requests have outcomes, or stand in lanes again. None if the daemon stops before.
async fn wait(
    gateway: &Arc<Gateway>,
    record: &BatchRecord,
    source: &Source,
) -> Result<Option<()>, StoreError> {
    loop {
        let now = gateway.clock.now();
        let waiting = waiting(gateway, &record.ranges).await?;
        if waiting.is_empty() {
            return Ok(Some(()));
        }
        // What is run beside it gets its outcome from there.
        let here = waiting.into_iter().filter(|one| !gateway.beside.covers(record.id, one.place()));
        let (due, later): (Vec<Waiting>, Vec<Waiting>) = here.partition(|one| one.due <= now);
        give_back(gateway, record, source, &due, DidItRun::Unknown).await?;
        let next = later.iter().map(|one| one.due.since(now)).min();
        let look = next.map_or(LOOK_AGAIN, |next| next.min(LOOK_AGAIN));
        if rescue::pause(gateway, look.max(Millis(1)).into()).await.is_none() {
            return Ok(None);
        }
    }
}

async fn waiting(gateway: &Gateway, ranges: &[Range]) -> Result<Vec<Waiting>, StoreError> {
    let mut all = Vec::new();
    for range in ranges {
        all.extend(gateway.store.waiting(*range).await?);
    }
    Ok(all)
}

/// What may have run is an attempt whose end is not known; the rest goes as it is.
async fn give_back_all(
    gateway: &Arc<Gateway>,
    record: &BatchRecord,
    source: &Source,
    ranges: &[Range],
) -> Result<(), StoreError> {
    let tried = sent::all(&gateway.store, record.id).await?;
    rescue::give_up_interrupted(gateway, source, tried.iter()).await?;
    let waiting = waiting(gateway, ranges).await?;
    let (batch, backend, requests) = (record.id, &record.backend, waiting.len());
    tracing::warn!(%batch, %backend, requests, "the backend of requests is configured no more; they go to another one, or wait");
    give_back(gateway, record, source, &waiting, DidItRun::NotSent).await
}

/// Has requests go to another backend, or wait in their lanes where there is none.
async fn give_back(
    gateway: &Arc<Gateway>,
    record: &BatchRecord,
    source: &Source,
    all: &[Waiting],
    ran: DidItRun,
) -> Result<(), StoreError> {
    for some in all.chunks(AT_ONCE) {
        let attempts = some.iter().map(|one| given_back(record, one, ran)).collect();
        record_surely(gateway, source, attempts).await?;
    }
    Ok(())
}

fn given_back(record: &BatchRecord, one: &Waiting, ran: DidItRun) -> Attempt {
    let ending = Ending::Failed {
        ran,
        code: BACKEND_GONE.into(),
        message: format!("its backend '{}' is configured no more", record.backend),
    };
    let (place, took) = (one.place(), Took::NO_TIME);
    Attempt { place, ending, tries: 0, retry_after: None, request_id: None, body: Bytes::new(), took }
}
