//! The ledger: one entry an outcome, written once and never changed.
//!
//! An entry is a document of the store. Its key begins with the time, so that a period is a range of keys, and goes on with
//! what makes it the entry of just this outcome, so that writing it again changes nothing.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use offpeak_core::money::Money;
use offpeak_core::outcome::DidItRun;
use offpeak_core::usage::Usage;
use offpeak_core::words::{
    BackendId, BatchId, Endpoint, Mode, ModelId, OfferName, Place, TenantId, Timestamp,
};
use offpeak_store::{Document, Kind, Store};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::{Charge, Costs, Purpose, Sale, SharedSale, Taken};
use crate::blocking::blocking;
use crate::budgets::Reservation;
use crate::clock::Clock;
use crate::telemetry::Metrics;

/// How entries are written; the first byte of each.
const VERSION: u8 = 1;

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
        // Writing plain values into memory cannot fail; an entry without a value would be found by the sums.
        let value = postcard::to_extend(self, vec![VERSION]).unwrap_or_default();
        Document { kind: Kind::Ledger, key, value: Some(value.into()) }
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
    key.extend_from_slice(&at.0.to_be_bytes());
    let place = |key: &mut Vec<u8>, place: Place| {
        key.extend_from_slice(&place.lane.0.to_be_bytes());
        key.extend_from_slice(&place.seq.0.to_be_bytes());
    };
    match of {
        Of::Call(number) => {
            key.push(0);
            key.extend_from_slice(&number.to_be_bytes());
        }
        Of::Attempt(at) => {
            key.push(1);
            place(&mut key, at);
        }
        Of::Late(at) => {
            key.push(2);
            place(&mut key, at);
        }
    }
    key.into()
}

/// The least key of a time; what is before it is earlier.
pub fn first_key(at: Timestamp) -> Bytes {
    Bytes::copy_from_slice(&at.0.to_be_bytes())
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

enum Message {
    Passed(Box<Passed>),
    /// Write what came before, and stop.
    Close(oneshot::Sender<()>),
}

/// The way to the ledger's task for calls that do not wait for it.
#[derive(Clone)]
pub struct Ledger {
    way: mpsc::Sender<Message>,
    metrics: Arc<Metrics>,
}

/// The task's end of the way.
pub struct Pages(mpsc::Receiver<Message>);

/// Calls that may wait for being written: more than a second of them at the highest rate. If the store stands still for
/// longer, calls go on and are missing in the ledger, which is counted and logged.
const WAITING: usize = 100_000;

/// Entries that are written at once.
const AT_ONCE: usize = 1000;

/// How long calls gather before they are written: each write costs the disk a sync, whatever it holds.
const GATHER: Duration = Duration::from_millis(50);

/// A pause before writing again what the store refused.
const PAUSE: Duration = Duration::from_secs(1);

impl Ledger {
    /// A way, and its other end.
    pub fn new(metrics: Arc<Metrics>) -> (Self, Pages) {
        let (way, pages) = mpsc::channel(WAITING);
        (Self { way, metrics }, Pages(pages))
    }

    /// Notes a call. Never waits.
    pub fn note(&self, passed: Passed) {
        let request = self.way.try_send(Message::Passed(Box::new(passed))).err();
        if let Some(
            mpsc::error::TrySendError::Full(Message::Passed(passed))
            | mpsc::error::TrySendError::Closed(Message::Passed(passed)),
        ) = request
        {
            self.metrics.unwritten(1);
            tracing::error!(request = passed.request, tenant = %passed.taken.tenant, "a call is missing in the ledger");
        }
    }

    /// Waits until what was noted is written, and ends the task.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.way.send(Message::Close(done)).await.is_ok() && closed.await.is_err() {
            tracing::error!("the ledger's task ended before it was told to");
        }
    }
}

/// Prices calls and writes their entries, many at a time: while the store syncs some, others gather.
pub async fn run(pages: Pages, costs: Arc<Costs>, store: Store, metrics: Arc<Metrics>, clock: Clock) {
    let Pages(mut pages) = pages;
    let mut messages = Vec::with_capacity(AT_ONCE);
    while pages.recv_many(&mut messages, AT_ONCE).await > 0 {
        gather(&mut pages, &mut messages).await;
        let mut passed = Vec::with_capacity(messages.len());
        let mut closing = None;
        for message in messages.drain(..) {
            match message {
                Message::Passed(call) => passed.push(*call),
                Message::Close(done) => closing = Some(done),
            }
        }
        let entries = blocking(|| price(&costs, passed, clock.now()));
        write(&store, &costs, &entries, &metrics, closing.is_some()).await;
        for entry in &entries {
            entry.count(&metrics);
        }
        if let Some(done) = closing {
            if done.send(()).is_err() {
                tracing::debug!("nobody waits for the end of the ledger any more");
            }
            return;
        }
    }
}

/// Waits for more, unless the task is told to end.
async fn gather(pages: &mut mpsc::Receiver<Message>, messages: &mut Vec<Message>) {
    if messages.iter().any(|message| matches!(message, Message::Close(_))) {
        return;
    }
    tokio::time::sleep(GATHER).await;
    while messages.len() < AT_ONCE {
        match pages.try_recv() {
            Ok(message) => messages.push(message),
            Err(_) => return,
        }
    }
}

/// The entries of calls; those of one sale are priced together.
fn price(costs: &Costs, mut passed: Vec<Passed>, now: Timestamp) -> Vec<Entry> {
    passed.sort_by_key(|call| Arc::as_ptr(&call.sale) as usize);
    let mut entries = Vec::with_capacity(passed.len());
    for calls in passed.chunk_by_mut(|a, b| Arc::ptr_eq(&a.sale, &b.sale)) {
        let Some(first) = calls.first() else { continue };
        let taken: Vec<Taken> = calls.iter().map(|call| call.taken.clone()).collect();
        let charges = costs.charge(&first.sale, &taken, now);
        for (call, charge) in calls.iter_mut().zip(charges) {
            if let Some(reservation) = call.reservation.take() {
                reservation.settle(charge.cost, now);
            }
            entries.push(Entry::new(&call.sale, &call.taken, charge, call.at, &call.request, None));
        }
    }
    entries
}

/// Tries until the store takes them; when the daemon stops, only once.
async fn write(store: &Store, costs: &Costs, entries: &[Entry], metrics: &Metrics, is_last: bool) {
    if entries.is_empty() {
        return;
    }
    let documents: Vec<Document> =
        entries.iter().map(|entry| entry.document(key(entry.at, Of::Call(costs.next_number())))).collect();
    loop {
        match store.keep(documents.clone()).await {
            Ok(()) => return,
            Err(error) if is_last => {
                metrics.unwritten(entries.len() as u64);
                tracing::error!(%error, entries = entries.len(), "entries of the ledger could not be written");
                return;
            }
            Err(error) => {
                tracing::error!(%error, entries = entries.len(), "the ledger waits for the store");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
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
