//! The ledger: one entry an outcome, written once and never changed.
//!
//! An entry is a document of the store. Its key begins with the time, so that a period is a range of keys, and goes on with
//! what makes it the entry of just this outcome, so that writing it again changes nothing.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use offpeak_core::money::Money;
use offpeak_core::outcome::DidItRun;
use offpeak_core::usage::Usage;
use offpeak_core::words::{
    BackendId, BatchId, Endpoint, Mode, ModelId, OfferName, Place, TenantId, Timestamp,
};
use offpeak_store::{Document, Kind, Order, Store, StoreError};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, oneshot};

use super::{Charge, Costs, Purpose, Sale, SharedSale, Taken};
use crate::blocking::blocking;
use crate::budgets::Reservation;
use crate::clock::Clock;
use crate::telemetry::Metrics;

/// How entries are written; the first byte of each.
const VERSION: u8 = 1;

/// Old entries that are dropped at once.
const TIDIED_AT_ONCE: usize = 1000;

/// One line of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When the outcome was known.
    pub at: Timestamp,
    /// The request's name, as its caller knows it; an attempt after the first is named by its own place.
    pub request: Arc<str>,
    /// Who pays.
    pub tenant: TenantId,
    /// Where it was bought.
    pub backend: BackendId,
    /// What was called.
    pub endpoint: Endpoint,
    /// The model.
    pub model: ModelId,
    /// How it was bought.
    pub offer: OfferName,
    /// Its mode.
    pub mode: Mode,
    /// The batch it was in, if it was in one.
    pub batch: Option<BatchId>,
    /// Why it was sent.
    pub purpose: Purpose,
    /// Whether it ran.
    pub ran: DidItRun,
    /// The answer's status; 0 if there was no answer.
    pub status: u16,
    /// What was counted.
    pub usage: Usage,
    /// It was not counted but reckoned.
    pub estimated: bool,
    /// There was a price.
    pub priced: bool,
    /// Nobody got the answer.
    pub wasted: bool,
    /// What the provider charges.
    pub cost: Money,
    /// What it would have been in real time.
    pub realtime: Money,
}

impl Entry {
    /// An attempt with its charge.
    pub fn new(
        sale: &Sale,
        taken: &Taken,
        charge: Charge,
        at: Timestamp,
        request: &str,
        batch: Option<BatchId>,
    ) -> Self {
        Self {
            at,
            request: request.into(),
            tenant: charge.tenant,
            backend: sale.backend.clone(),
            endpoint: sale.endpoint.clone(),
            model: sale.model.clone(),
            offer: sale.offer.clone(),
            mode: sale.mode,
            batch,
            purpose: taken.purpose,
            ran: taken.ran,
            status: taken.status.unwrap_or(0),
            usage: taken.usage.unwrap_or_default(),
            estimated: taken.estimated,
            priced: charge.priced,
            wasted: taken.wasted,
            cost: charge.cost,
            realtime: charge.realtime,
        }
    }

    /// As it is stored.
    pub fn document(&self, key: Bytes) -> Document {
        let mut value = Vec::new();
        self.put(&mut value);
        Document { kind: Kind::Ledger, key, value: Some(value.into()) }
    }

    fn put(&self, to: &mut Vec<u8>) {
        let begin = to.len();
        to.push(VERSION);
        // Writing plain values into memory cannot fail; an entry without a value would be found by the sums.
        if postcard::to_extend(self, Behind(to)).is_err() {
            to.truncate(begin);
        }
    }

    /// Adds it to the counters.
    pub fn count(&self, metrics: &Metrics) {
        let amounts = (self.cost, self.realtime);
        metrics.charged(self.tenant.as_str(), self.backend.as_str(), self.mode.as_str(), amounts, self.usage);
    }

    /// As it was stored; none if a newer offpeak wrote it, or it is damaged.
    pub fn read(value: &[u8]) -> Option<Self> {
        let rest = value.strip_prefix(&[VERSION])?;
        postcard::from_bytes(rest).ok()
    }
}

/// Writes behind what is there already.
struct Behind<'a>(&'a mut Vec<u8>);

impl Extend<u8> for Behind<'_> {
    fn extend<I: IntoIterator<Item = u8>>(&mut self, bytes: I) {
        self.0.extend(bytes);
    }
}

/// What an entry's key tells beside the time.
#[derive(Debug, Clone, Copy)]
pub enum Of {
    /// A real-time call, by a number that no other has at that time.
    Call(u64),
    /// An attempt of a deferred request: a place has one outcome.
    Attempt(Place),
    /// An answer that came for a request whose outcome was known already.
    Late(Place),
}

/// The key of an entry.
pub fn key(at: Timestamp, of: Of) -> Bytes {
    let mut key = Vec::with_capacity(21);
    put_key(&mut key, at, of);
    key.into()
}

fn put_key(to: &mut Vec<u8>, at: Timestamp, of: Of) {
    to.extend_from_slice(&at.0.to_be_bytes());
    let place = |to: &mut Vec<u8>, place: Place| {
        to.extend_from_slice(&place.lane.0.to_be_bytes());
        to.extend_from_slice(&place.seq.0.to_be_bytes());
    };
    match of {
        Of::Call(number) => {
            to.push(0);
            to.extend_from_slice(&number.to_be_bytes());
        }
        Of::Attempt(at) => {
            to.push(1);
            place(to, at);
        }
        Of::Late(at) => {
            to.push(2);
            place(to, at);
        }
    }
}

/// The least key of a time; what is before it is earlier.
pub fn first_key(at: Timestamp) -> Bytes {
    Bytes::copy_from_slice(&at.0.to_be_bytes())
}

/// Drops entries from before this time.
pub async fn tidy(store: &Store, before: Timestamp) -> Result<(), StoreError> {
    let old = || (Bound::Unbounded, Bound::Excluded(first_key(before)));
    loop {
        let page = store.documents(Kind::Ledger, old(), Order::Ascending, TIDIED_AT_ONCE).await?;
        if page.is_empty() {
            return Ok(());
        }
        let gone = page.into_iter().map(|(key, _)| Document { kind: Kind::Ledger, key, value: None });
        store.keep(gone.collect()).await?;
    }
}

/// A real-time call that is over, before it is priced.
pub struct Passed {
    /// What was bought.
    pub sale: SharedSale,
    /// What is known of it.
    pub taken: Taken,
    /// When it was over.
    pub at: Timestamp,
    /// Its name.
    pub request: String,
    /// The money that was set aside for it.
    pub reservation: Option<Reservation>,
}

/// Where calls gather until the task turns the page. A call that is over adds itself under a lock that is held for one
/// push, and wakes the task only if it is the first on its page.
struct Book {
    page: Mutex<Page>,
    /// The page has its first call, is full, or is the last.
    turn: Notify,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Page {
    calls: Vec<Passed>,
    /// Calls that found no room on it.
    missing: u64,
    /// Somebody waits until all is written.
    closing: Option<oneshot::Sender<()>>,
    /// The task has ended.
    is_closed: bool,
}

impl Page {
    /// There is no reason to wait for more.
    fn is_due(&self) -> bool {
        self.calls.len() >= AT_ONCE || self.closing.is_some()
    }
}

/// The way to the ledger's task for calls that do not wait for it.
#[derive(Clone)]
pub struct Ledger(Arc<Book>);

/// The task's end of the way.
pub struct Pages(Arc<Book>);

/// Calls that may wait for being written: more than a second of them at the highest rate. If the store stands still for
/// longer, calls go on and are missing in the ledger, which is counted and logged.
const WAITING: usize = 100_000;

/// With so many calls a page is turned at once.
const AT_ONCE: usize = 10_000;

/// Calls that the policy is asked about at once.
const ASKED_AT_ONCE: usize = 1000;

/// Bytes of entries that are given to the store in one piece, which takes no more than a mebibyte.
const PIECE: usize = 512 << 10;

/// How long calls gather before they are written: each write costs the disk a sync, whatever it holds.
const GATHER: Duration = Duration::from_millis(50);

/// A pause before writing again what the store refused.
const PAUSE: Duration = Duration::from_secs(1);

impl Ledger {
    /// A way, and its other end.
    pub fn new(metrics: Arc<Metrics>) -> (Self, Pages) {
        let book = Arc::new(Book { page: Mutex::default(), turn: Notify::new(), metrics });
        (Self(book.clone()), Pages(book))
    }

    /// Notes a call. Never waits.
    pub fn note(&self, passed: Passed) {
        let mut page = self.0.page.lock();
        if page.is_closed || page.calls.len() >= WAITING {
            page.missing += 1;
            let is_first = page.is_closed || page.missing == 1;
            drop(page);
            self.0.metrics.unwritten(1);
            if is_first {
                tracing::error!(request = passed.request, tenant = %passed.taken.tenant, "a call is missing in the ledger");
            }
            return;
        }
        page.calls.push(passed);
        let count = page.calls.len();
        drop(page);
        if count == 1 || count == AT_ONCE {
            self.0.turn.notify_one();
        }
    }

    /// Waits until what was noted is written, and ends the task.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        {
            let mut page = self.0.page.lock();
            if page.is_closed {
                return;
            }
            page.closing = Some(done);
        }
        self.0.turn.notify_one();
        if closed.await.is_err() {
            tracing::error!("the ledger's task ended before it was told to");
        }
    }
}

impl Pages {
    /// Waits until the page has something and has gathered for a while; then exchanges it for an empty one, whose calls
    /// are written on `empty`.
    async fn turn(&self, empty: Vec<Passed>) -> Page {
        self.0.turn.notified().await;
        let is_due = self.0.page.lock().is_due();
        if !is_due {
            // Either way it is turned: because the time is over, or because it is due before.
            drop(tokio::time::timeout(GATHER, self.0.turn.notified()).await);
        }
        let mut page = self.0.page.lock();
        let is_closed = page.closing.is_some();
        std::mem::replace(&mut *page, Page { calls: empty, is_closed, ..Page::default() })
    }
}

impl Drop for Pages {
    /// Nobody writes any more what is noted from now on.
    fn drop(&mut self) {
        let mut page = self.0.page.lock();
        page.is_closed = true;
        page.closing = None;
    }
}

/// Prices calls and writes their entries, many at a time: while the store syncs some, others gather.
pub async fn run(pages: Pages, costs: Arc<Costs>, store: Store, metrics: Arc<Metrics>, clock: Clock) {
    let mut empty = Vec::new();
    loop {
        let Page { mut calls, missing, closing, .. } = pages.turn(empty).await;
        if missing > 1 {
            tracing::error!(calls = missing, "calls are missing in the ledger: the store does not follow");
        }
        let mut entries = blocking(|| price(&costs, &mut calls, clock.now()));
        count(&entries, &metrics);
        // Keys that grow make cheap writes.
        entries.sort_by_key(|entry| entry.at);
        write(&store, &costs, &entries, &metrics, closing.is_some()).await;
        if let Some(done) = closing {
            if done.send(()).is_err() {
                tracing::debug!("nobody waits for the end of the ledger any more");
            }
            return;
        }
        // The page after the next is written where this one was, unless it was unusually long.
        empty = if calls.capacity() > 2 * AT_ONCE { Vec::new() } else { calls };
    }
}

/// The entries of calls, in the order of their sales: those of one sale are priced together.
fn price(costs: &Costs, passed: &mut Vec<Passed>, now: Timestamp) -> Vec<Entry> {
    passed.sort_by_key(|call| Arc::as_ptr(&call.sale) as usize);
    let mut entries = Vec::with_capacity(passed.len());
    let of_one_sale = passed.chunk_by_mut(|a, b| Arc::ptr_eq(&a.sale, &b.sale));
    for calls in of_one_sale.flat_map(|calls| calls.chunks_mut(ASKED_AT_ONCE)) {
        let Some(sale) = calls.first().map(|first| first.sale.clone()) else { continue };
        let charges = costs.charge(&sale, calls.iter().map(|call| &call.taken), now);
        for (call, charge) in calls.iter_mut().zip(charges) {
            if let Some(reservation) = call.reservation.take() {
                reservation.settle(charge.cost, now);
            }
            entries.push(Entry::new(&sale, &call.taken, charge, call.at, &call.request, None));
        }
    }
    passed.clear();
    entries
}

/// Adds entries to the counters: neighbours with the same labels at once.
fn count(entries: &[Entry], metrics: &Metrics) {
    let are_alike = |a: &Entry, b: &Entry| a.tenant == b.tenant && a.backend == b.backend && a.mode == b.mode;
    for alike in entries.chunk_by(are_alike) {
        let Some(first) = alike.first() else { continue };
        let mut sums = (Money::ZERO, Money::ZERO);
        let mut usage = Usage::default();
        for entry in alike {
            sums = (sums.0 + entry.cost, sums.1 + entry.realtime);
            usage = usage.plus(entry.usage);
        }
        metrics.charged(first.tenant.as_str(), first.backend.as_str(), first.mode.as_str(), sums, usage);
    }
}

/// Writes entries piece by piece, and tries until the store takes them; when the daemon stops, only once.
async fn write(store: &Store, costs: &Costs, entries: &[Entry], metrics: &Metrics, is_last: bool) {
    let mut rest = entries;
    while !rest.is_empty() {
        let documents = piece(costs, &mut rest);
        loop {
            match store.keep(documents.clone()).await {
                Ok(()) => break,
                Err(error) if is_last || matches!(error, StoreError::TooLarge { .. }) => {
                    metrics.unwritten(documents.len() as u64);
                    tracing::error!(%error, entries = documents.len(), "entries of the ledger could not be written");
                    break;
                }
                Err(error) => {
                    tracing::error!(%error, entries = documents.len(), "the ledger waits for the store");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Takes as many entries as the store takes in one piece. Their bytes lie together in one allocation.
fn piece(costs: &Costs, rest: &mut &[Entry]) -> Vec<Document> {
    let mut bytes = Vec::with_capacity(PIECE.min(rest.len() * 256));
    let mut ends = Vec::with_capacity(rest.len());
    while let Some((entry, others)) = rest.split_first() {
        let begin = bytes.len();
        put_key(&mut bytes, entry.at, Of::Call(costs.next_number()));
        let key_end = bytes.len();
        entry.put(&mut bytes);
        if bytes.len() > PIECE && begin > 0 {
            bytes.truncate(begin);
            break;
        }
        ends.push((key_end, bytes.len()));
        *rest = others;
    }
    let bytes = Bytes::from(bytes);
    let mut begin = 0;
    let mut document = |(key_end, end)| {
        let (key, value) = (bytes.slice(begin..key_end), bytes.slice(key_end..end));
        begin = end;
        Document { kind: Kind::Ledger, key, value: Some(value) }
    };
    ends.into_iter().map(&mut document).collect()
}

#[cfg(test)]
mod tests {
    use offpeak_core::words::{LaneId, Seq};

    use super::*;

    #[test]
    fn entries_are_read_as_they_were_written() {
        let entry = Entry {
            at: Timestamp(7),
            request: "dfr-0-1".into(),
            tenant: "t".into(),
            backend: "b".into(),
            endpoint: "/v1/chat/completions".into(),
            model: "m".into(),
            offer: "batch".into(),
            mode: Mode::Batch,
            batch: Some(BatchId(3)),
            purpose: Purpose::Retry,
            ran: DidItRun::Ran,
            status: 200,
            usage: Usage { input: 5, output: 3, ..Usage::default() },
            estimated: false,
            priced: true,
            wasted: false,
            cost: Money(1 << 70),
            realtime: Money(-1),
        };
        let document = entry.document(key(entry.at, Of::Call(1)));
        let value = document.value.unwrap();
        assert_eq!(Entry::read(&value), Some(entry));
        assert_eq!(Entry::read(&value[1..]), None);
        assert_eq!(Entry::read(&[]), None);
    }

    #[tokio::test]
    async fn old_entries_are_dropped_and_no_others() {
        let disk = offpeak_store::disk::memory::MemoryDisk::new();
        let options = offpeak_store::Options { inline: true, ..offpeak_store::Options::new("in memory") };
        let (store, _) = Store::open_on(disk, options, Timestamp(0)).unwrap();
        let entry = |at: u64| Document {
            kind: Kind::Ledger,
            key: key(Timestamp(at), Of::Call(1)),
            value: Some(Bytes::from_static(b"an entry")),
        };
        store.keep((0..2500).map(entry).collect()).await.unwrap();
        tidy(&store, Timestamp(2490)).await.unwrap();
        let everything = (Bound::Unbounded, Bound::Unbounded);
        let left = store.documents(Kind::Ledger, everything, Order::Ascending, 5000).await.unwrap();
        assert_eq!(left.len(), 10);
        assert!(left.first().unwrap().0 >= first_key(Timestamp(2490)));
    }

    #[test]
    fn keys_are_in_the_order_of_time_and_differ() {
        let place = Place { lane: LaneId(1), seq: Seq(2) };
        let keys = [
            first_key(Timestamp(255)),
            key(Timestamp(255), Of::Call(1)),
            key(Timestamp(255), Of::Call(2)),
            key(Timestamp(255), Of::Attempt(place)),
            key(Timestamp(255), Of::Late(place)),
            first_key(Timestamp(256)),
            key(Timestamp(256), Of::Call(0)),
        ];
        assert!(keys.is_sorted() && keys.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
