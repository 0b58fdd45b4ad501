//! What a job's answers cost: its requests' entries in the ledger.

use offpeak_core::extent::Range;
use offpeak_core::outcome::DidItRun;
use offpeak_store::{FinishedChunk, Kind, Store, StoreError};

use crate::costs::Entry;
use crate::costs::ledger::{self, Of};
use crate::delivery::output_file::CHUNK_BYTES;
use crate::documents::job_cost::Spent;

/// What an attempt adds to what its job has cost.
pub fn of_entry(entry: &Entry) -> Spent {
    let is_unknown = !entry.priced && entry.ran == DidItRun::Ran;
    Spent { cost: entry.cost, realtime: entry.realtime, unpriced: u64::from(is_unknown) }
}

/// What was run among some ranges, finished by now or not.
pub async fn of_ranges(store: &Store, ranges: Vec<Range>) -> Result<Spent, StoreError> {
    let mut spent = Spent::default();
    let mut rest = Some(ranges);
    while let Some(ranges) = rest {
        let chunk = store.finished(ranges, CHUNK_BYTES).await?;
        spent += of_chunk(store, &chunk).await?;
        rest = chunk.rest;
    }
    Ok(spent)
}

/// What some requests cost: the attempt that ended each, those that were followed by another one, and an answer that came
/// when it had ended.
pub async fn of_chunk(store: &Store, chunk: &FinishedChunk) -> Result<Spent, StoreError> {
    let finished = chunk.finished.iter().flat_map(|one| {
        let (at, place) = (one.outcome.finished_at, one.outcome.place);
        [ledger::key(at, Of::Attempt(place)), ledger::key(at, Of::Late(place))]
    });
    let retried = chunk.retried.iter().map(|(place, at)| ledger::key(*at, Of::Attempt(*place)));
    let keys = finished.chain(retried);
    let mut spent = Spent::default();
    for value in store.documents_at(Kind::Ledger, keys.collect()).await?.into_iter().flatten() {
        match Entry::read(&value) {
            Some(entry) => spent += of_entry(&entry),
            None => spent.unpriced += 1,
        }
    }
    Ok(spent)
}
