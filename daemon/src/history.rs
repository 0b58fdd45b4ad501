//! What became of a request's attempts: kept from its first failure on, for as long as its result is.

use std::ops::Bound;

use bytes::{BufMut, Bytes, BytesMut};
use offpeak_core::outcome::Ending;
use offpeak_core::words::{BackendId, BatchId, Mode, Place, Timestamp};
use offpeak_store::{Document, Kind, Order, Store, StoreError};
use serde::{Deserialize, Serialize};

/// The latest attempts of a request that are kept.
const NOTES_MAX: usize = 32;

/// Documents that are looked at, and removed, at once.
const TIDIED_AT_ONCE: usize = 1000;

/// An attempt that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// When it was over.
    pub at: Timestamp,
    /// Attempts that were made by then; the same as before if it did not get to run.
    pub attempts: u16,
    /// The batch or rescue that it was part of.
    pub batch: BatchId,
    /// Where it was run.
    pub backend: BackendId,
    /// How it was run.
    pub mode: Mode,
    /// What happened.
    pub what: String,
}

/// An ending in a few words.
pub fn in_words(ending: &Ending) -> String {
    match ending {
        Ending::Answered { status } => format!("the provider answered with {status}"),
        Ending::Failed { code, message, .. } => {
            let message: String = message.chars().take(200).collect();
            format!("{message} ({code})")
        }
    }
}

/// The same, with what the provider said.
pub fn why(ending: &Ending, body: &[u8]) -> String {
    let said: String = String::from_utf8_lossy(body.get(..512).unwrap_or(body)).chars().collect();
    if said.trim().is_empty() { in_words(ending) } else { format!("{}: {}", in_words(ending), said.trim()) }
}

/// The failed attempts of a request, the first one first.
pub async fn read(store: &Store, origin: Place) -> Result<Vec<Note>, StoreError> {
    let kept = store.document(Kind::Attempts, key(origin)).await?;
    Ok(kept.and_then(|kept| postcard::from_bytes(&kept).ok()).unwrap_or_default())
}

/// The document that holds what was kept, and this. To be written together with the attempt's outcome.
pub async fn with(store: &Store, origin: Place, note: Note) -> Result<Option<Document>, StoreError> {
    let mut notes = read(store, origin).await?;
    notes.push(note);
    let surplus = notes.len().saturating_sub(NOTES_MAX);
    notes.drain(..surplus);
    // Times, numbers and texts: there is nothing in it that cannot be written.
    let value = postcard::to_allocvec(&notes).ok().map(Bytes::from);
    Ok(value.map(|value| Document { kind: Kind::Attempts, key: key(origin), value: Some(value) }))
}

/// Removes what is kept of requests whose last failure is that long ago.
pub async fn tidy(store: &Store, before: Timestamp) -> Result<(), StoreError> {
    let mut from = Bound::Unbounded;
    loop {
        let page = store
            .documents(Kind::Attempts, (from, Bound::Unbounded), Order::Ascending, TIDIED_AT_ONCE)
            .await?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        from = Bound::Excluded(last.clone());
        let old = page.into_iter().filter(|(_, value)| {
            let notes: Vec<Note> = postcard::from_bytes(value).unwrap_or_default();
            notes.last().is_none_or(|note| note.at < before)
        });
        let old = old.map(|(key, _)| Document { kind: Kind::Attempts, key, value: None });
        let old: Vec<Document> = old.collect();
        if !old.is_empty() {
            store.keep(old).await?;
        }
    }
}

/// In the order of lanes and positions.
fn key(origin: Place) -> Bytes {
    let mut key = BytesMut::with_capacity(12);
    key.put_u32(origin.lane.0);
    key.put_u64(origin.seq.0);
    key.freeze()
}
