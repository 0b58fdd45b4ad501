//! What was sent by itself, in real time, and has no outcome yet: on record before it goes out, so that after a crash it is
//! known what may have run. Real-time APIs cannot be asked.

use std::collections::HashMap;
use std::ops::Bound;

use bytes::{BufMut, Bytes, BytesMut};
use offpeak_core::words::{BatchId, Place, Timestamp};
use offpeak_store::{Document, Kind, Order, Recorded, Standing, Store, StoreError};

use crate::documents::{key_of, place_of};

/// Records that are read, or removed, at once.
const AT_ONCE: usize = 1000;

/// How far a request has come that is run by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Its place.
    pub place: Place,
    /// How often it was tried, this time included.
    pub tries: u16,
    /// It was sent, or is about to be, and what became of it is not known. Otherwise the last try failed, and another one
    /// was decided.
    pub is_under_way: bool,
}

/// The record of how far a request has come.
pub fn record(batch: BatchId, sent: Sent) -> Document {
    let mut value = BytesMut::with_capacity(3);
    value.put_u16(sent.tries);
    value.put_u8(u8::from(sent.is_under_way));
    let key = key(batch, sent.place);
    Document { kind: Kind::Sent, key, value: Some(value.freeze()) }
}

/// Removes what is on record of a request. To be written together with its outcome.
pub fn removal(batch: BatchId, place: Place) -> Document {
    Document { kind: Kind::Sent, key: key(batch, place), value: None }
}

/// What is on record of a rescue's requests.
pub async fn all(store: &Store, batch: BatchId) -> Result<Vec<Sent>, StoreError> {
    let mut found = Vec::new();
    let mut from = Bound::Included(Bytes::copy_from_slice(&batch.0.to_be_bytes()));
    let to = Bound::Excluded(Bytes::copy_from_slice(&batch.0.saturating_add(1).to_be_bytes()));
    loop {
        let page = store.documents(Kind::Sent, (from, to.clone()), Order::Ascending, AT_ONCE).await?;
        let Some((last, _)) = page.last() else { return Ok(found) };
        from = Bound::Excluded(last.clone());
        found.extend(page.iter().filter_map(|(key, value)| read(key, value)));
    }
}

/// A rescue is over: what is on record of requests that got their outcomes from elsewhere is not needed any more.
pub async fn forget(store: &Store, batch: BatchId) -> Result<(), StoreError> {
    for sent in all(store, batch).await?.chunks(AT_ONCE) {
        store.keep(sent.iter().map(|sent| removal(batch, sent.place)).collect()).await?;
    }
    Ok(())
}

/// How often each of these was sent and has no outcome for it; those that were not are left out. Who ends a request from
/// elsewhere counts them, or what may have run would be on no record.
pub async fn tries(store: &Store, places: &[Place]) -> Result<HashMap<Place, u16>, StoreError> {
    let mut tries = HashMap::new();
    for batch in store.open_batches().await? {
        // What is run beside a batch stands in that one.
        let is_beside = batch.ranges.is_empty();
        let stands_there =
            |place: &&Place| is_beside || batch.ranges.iter().any(|range| range.contains(**place));
        let here: Vec<Place> = places.iter().filter(stands_there).copied().collect();
        if here.is_empty() {
            continue;
        }
        let keys = here.iter().map(|place| key(batch.id, *place)).collect();
        let found = store.documents_at(Kind::Sent, keys).await?;
        let sent = here.iter().zip(found).filter_map(|(place, value)| read(&key(batch.id, *place), &value?));
        tries.extend(sent.map(|sent| (sent.place, sent.tries)));
    }
    Ok(tries)
}

/// Ends a request that its caller no longer wants, wherever it stands now.
pub async fn cancel(store: &Store, origin: Place, at: Timestamp) -> Result<Recorded, StoreError> {
    let tried = match store.outcome(origin).await? {
        Some(Standing::Waiting { current, .. }) => tries(store, &[current]).await?.remove(&current),
        Some(Standing::Final(_)) | None => None,
    };
    store.cancel(origin, at, tried.unwrap_or(0)).await
}

fn key(batch: BatchId, place: Place) -> Bytes {
    let mut key = BytesMut::with_capacity(20);
    key.put_u64(batch.0);
    key.extend_from_slice(&key_of(place));
    key.freeze()
}

fn read(key: &[u8], value: &[u8]) -> Option<Sent> {
    let place = place_of(key.get(8..)?)?;
    let (tries, rest) = value.split_first_chunk::<2>()?;
    Some(Sent { place, tries: u16::from_be_bytes(*tries), is_under_way: rest.first() == Some(&1) })
}
