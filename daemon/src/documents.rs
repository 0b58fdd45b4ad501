//! What clients leave here under a name: files, jobs. Each is a document of the store, found by its tenant and number, so
//! that another tenant's does not exist.

pub mod file;
pub mod job;
pub mod job_cost;
pub mod upload;

use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{BufMut, Bytes, BytesMut};
use offpeak_core::words::{LaneId, Place, Seq, TenantId, Timestamp};
use offpeak_store::{Document, Kind, Order, Store, StoreError};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use file::File;
pub use job::Job;
pub use job_cost::JobCost;

/// How a document's value begins: the version of what follows.
const VERSION: u8 = 2;

/// The version before, which is still read.
const BEFORE: u8 = 1;

/// Documents that are read from the store at once.
const PAGE: usize = 256;

/// Gives files, uploads and jobs their numbers: each is given once, and later ones are larger.
#[derive(Debug)]
pub struct Numbers(AtomicU64);

impl Numbers {
    /// `largest` is the largest number that was ever given and is still there.
    pub const fn after(largest: u64) -> Self {
        Self(AtomicU64::new(largest))
    }

    /// The next number. It tells the time roughly, so that numbers grow over restarts even if all documents are gone.
    pub fn next(&self, now: Timestamp) -> u64 {
        let least = now.0 << 12;
        let next = |last: u64| Some(last.saturating_add(1).max(least));
        match self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            Ok(last) | Err(last) => last.saturating_add(1).max(least),
        }
    }
}

/// Something that is kept as a document.
pub trait Kept: Serialize + DeserializeOwned {
    /// Among which documents.
    const KIND: Kind;

    /// What the version before lacks at its end, as it is written: one byte of zero for a text that is empty.
    const LACKING_BEFORE: &'static [u8] = &[];

    /// Whose it is.
    fn tenant(&self) -> &TenantId;

    /// Its number.
    fn number(&self) -> u64;
}

/// Why a document could not be had.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its value cannot be read.
    #[error("a document of the store cannot be read ({0}): was it written by a newer offpeak?")]
    Unreadable(String),
}

/// Stores it, in place of what stood there.
pub async fn keep<T: Kept>(store: &Store, value: &T) -> Result<(), DocumentError> {
    store.keep(vec![document(value)?]).await?;
    Ok(())
}

/// As it is stored.
pub fn document<T: Kept>(value: &T) -> Result<Document, DocumentError> {
    let encoded = postcard::to_extend(value, vec![VERSION])
        .map_err(|error| DocumentError::Unreadable(error.to_string()))?;
    Ok(Document { kind: T::KIND, key: key(value.tenant(), value.number()), value: Some(encoded.into()) })
}

/// How it is removed.
pub fn removal<T: Kept>(value: &T) -> Document {
    Document { kind: T::KIND, key: key(value.tenant(), value.number()), value: None }
}

/// The tenant's document of this number.
pub async fn get<T: Kept>(store: &Store, tenant: &TenantId, number: u64) -> Result<Option<T>, DocumentError> {
    let value = store.document(T::KIND, key(tenant, number)).await?;
    value.map(|value| decode(&value)).transpose()
}

/// At most so many of the tenant's documents whose numbers lie below (or above) one.
pub async fn list<T: Kept>(
    store: &Store,
    tenant: &TenantId,
    beyond: Option<u64>,
    order: Order,
    most: usize,
) -> Result<Vec<T>, DocumentError> {
    let (first, last) = (Bound::Included(key(tenant, 0)), Bound::Included(key(tenant, u64::MAX)));
    let range = match (beyond.map(|number| Bound::Excluded(key(tenant, number))), order) {
        (None, _) => (first, last),
        (Some(cut), Order::Ascending) => (cut, last),
        (Some(cut), Order::Descending) => (first, cut),
    };
    let found = store.documents(T::KIND, range, order, most).await?;
    found.iter().map(|(_, value)| decode(value)).collect()
}

/// Visits all documents of a kind, of all tenants; one that cannot be read is reported and passed over.
pub async fn each<T: Kept>(store: &Store, mut visit: impl FnMut(T)) -> Result<(), StoreError> {
    let mut from = Bound::Unbounded;
    loop {
        let page = store.documents(T::KIND, (from, Bound::Unbounded), Order::Ascending, PAGE).await?;
        for (_, value) in &page {
            match decode(value) {
                Ok(document) => visit(document),
                Err(error) => tracing::error!(%error, "a document is passed over"),
            }
        }
        match page.last() {
            Some((key, _)) if page.len() == PAGE => from = Bound::Excluded(key.clone()),
            _ => return Ok(()),
        }
    }
}

fn decode<T: Kept>(value: &[u8]) -> Result<T, DocumentError> {
    let read = |value: &[u8]| {
        postcard::from_bytes(value).map_err(|error| DocumentError::Unreadable(error.to_string()))
    };
    match value.split_first() {
        Some((&VERSION, value)) => read(value),
        Some((&BEFORE, value)) => read(&[value, T::LACKING_BEFORE].concat()),
        Some((version, _)) => Err(DocumentError::Unreadable(format!("it has the version {version}"))),
        None => Err(DocumentError::Unreadable("it is empty".to_owned())),
    }
}

/// A tenant's documents stand next to each other, in the order of their numbers.
fn key(tenant: &TenantId, number: u64) -> Bytes {
    let name = tenant.as_str().as_bytes();
    let mut key = BytesMut::with_capacity(name.len() + 10);
    // A name longer than 64 KiB does not come out of a configuration file.
    key.put_u16(u16::try_from(name.len()).unwrap_or(u16::MAX));
    key.put_slice(name);
    key.put_u64(number);
    key.freeze()
}

/// The key of what is kept about a request.
pub fn key_of(place: Place) -> Bytes {
    let mut key = BytesMut::with_capacity(12);
    key.put_u32(place.lane.0);
    key.put_u64(place.seq.0);
    key.freeze()
}

/// The request that such a key is about.
pub fn place_of(key: &[u8]) -> Option<Place> {
    let (lane, seq) = key.split_first_chunk::<4>()?;
    let seq = u64::from_be_bytes(seq.try_into().ok()?);
    Some(Place { lane: LaneId(u32::from_be_bytes(*lane)), seq: Seq(seq) })
}

/// The name of a thing with a number, such as `file-18c2b0a5f1e000`.
pub fn id(prefix: &str, number: u64) -> String {
    format!("{prefix}{number:x}")
}

/// The number in a name; one thing has one name.
pub fn number(prefix: &str, id: &str) -> Option<u64> {
    let digits = id.strip_prefix(prefix)?;
    let is_canonical =
        digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) && !digits.starts_with('0');
    if is_canonical { u64::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_grow_even_if_the_clock_does_not() {
        let numbers = Numbers::after(Timestamp(1000).0 << 12);
        let first = numbers.next(Timestamp(5));
        assert!(first > 1000 << 12);
        assert!(numbers.next(Timestamp(5)) > first);
        assert_eq!(numbers.next(Timestamp(2000)), 2000 << 12);
    }

    #[test]
    fn one_thing_has_one_name() {
        assert_eq!(number("file-", &id("file-", 0x1f)), Some(0x1f));
        for other in [
            "file-",
            "file-01f",
            "file-1F",
            "file-+1f",
            "file-1g",
            "batch_1f",
            "1f",
            "file-11111111111111111",
        ] {
            assert_eq!(number("file-", other), None, "{other}");
        }
    }

    #[test]
    fn a_job_of_the_version_before_is_read() {
        use offpeak_core::job::Life;
        let job = Job {
            number: 7,
            tenant: "acme".into(),
            api: job::Api::OpenAi,
            life: Life::begin(Timestamp(1_700_000_000_000), offpeak_core::words::Millis::from_hours(24)),
            input: 6,
            endpoint: "/v1/chat/completions".to_owned(),
            headers: Vec::new(),
            model: None,
            window: "24h".to_owned(),
            metadata: Vec::new(),
            output_kept: None,
            total: 3,
            expansion: job::Expansion::default(),
            ranges: Vec::new(),
            problems: Vec::new(),
            sums: None,
            is_output_deleted: false,
            are_errors_deleted: false,
            idempotency: None,
            digest: [1; 16],
            api_key: "".into(),
        };
        let now = document(&job).unwrap().value.unwrap();
        assert_eq!(decode::<Job>(&now).unwrap(), job);
        let (_, text) = now.split_first().unwrap();
        let before = [&[BEFORE], text.strip_suffix(&[0]).unwrap()].concat();
        assert_eq!(decode::<Job>(&before).unwrap(), job);
        assert!(decode::<Job>(&[&[VERSION + 1], text].concat()).is_err());
    }

    #[test]
    fn a_requests_key_names_it() {
        let place = Place { lane: LaneId(7), seq: Seq(1 << 40) };
        assert_eq!(place_of(&key_of(place)), Some(place));
        assert_eq!(place_of(b"short"), None);
    }

    #[test]
    fn a_tenants_keys_stand_together_and_apart_from_anothers() {
        let (a, ab) = (TenantId::from("a"), TenantId::from("ab"));
        assert!(key(&a, 1) < key(&a, 2) && key(&a, 255) < key(&a, 256));
        assert!(key(&a, u64::MAX) < key(&ab, 0));
    }
}
