//! Tells the operator's webhook what should not go unseen, from the store, until it is delivered or given up.
//!
//! Beside each alert lies which share of the budget it told of, in the same commit. At a start that is compared with what the
//! ledger says: what was spent and not told, because the daemon was killed in between, is told then.

use std::ops::Bound::{Excluded, Included};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use offpeak_core::budget::{Period, Told};
use offpeak_core::words::{Millis, TenantId, Timestamp};
use offpeak_store::{Document, Kind, Order, Store, StoreError};
use reqwest::Url;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::webhook::{self, Secret, Sender};

/// How often the store is asked for what is due.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A pause before keeping again what the store refused.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a stop waits for the store to take what was told last.
const CLOSING: Duration = Duration::from_secs(5);

/// Alerts that may wait for being stored; each tenant has at most six a day.
const WAITING: usize = 10_000;

/// Alerts that are read together.
const READ_AT_ONCE: usize = 100;

/// Deliveries at once: a receiver that does not answer takes its time for each.
const AT_ONCE: usize = 8;

/// What the keys of waiting alerts begin with; after that comes from when they are due, so that what waits for a later time
/// hides nothing.
const DUE: &str = "due-";

/// What the keys of told shares begin with.
const TOLD: &str = "told-";

/// A share of a budget is reached.
#[derive(Debug, Clone)]
pub struct Alert {
    /// Whose budget.
    pub tenant: TenantId,
    /// Which share of what.
    pub told: Told,
}

#[derive(Debug)]
enum Message {
    Tell(Alert),
    /// All that was told before is kept.
    Close(oneshot::Sender<()>),
}

/// The way to the operator.
#[derive(Clone)]
pub struct Alerts(Option<mpsc::Sender<Message>>);

/// The other end of the way.
pub struct Due(mpsc::Receiver<Message>);

impl Alerts {
    /// Nobody is told; the log has it.
    pub const fn none() -> Self {
        Self(None)
    }

    /// A way, and its other end.
    pub fn new() -> (Self, Due) {
        let (way, due) = mpsc::channel(WAITING);
        (Self(Some(way)), Due(due))
    }

    /// Tells. Never waits. What is not kept is told at the next start.
    pub fn tell(&self, alert: Alert) {
        if let Some(way) = &self.0
            && let Err(error) = way.try_send(Message::Tell(alert))
        {
            tracing::error!(%error, "an alert was not sent");
        }
    }

    /// Waits until what was told is kept.
    pub async fn close(&self) {
        let Some(way) = &self.0 else { return };
        let (done, closed) = oneshot::channel();
        let close = async { way.send(Message::Close(done)).await.is_ok() && closed.await.is_ok() };
        if tokio::time::timeout(CLOSING, close).await != Ok(true) {
            tracing::error!("alerts could not be kept; they are told at the next start");
        }
    }
}

/// Where alerts go.
pub struct Target {
    /// The address.
    pub url: Url,
    /// What they are signed with.
    pub secret: Secret,
    /// The client.
    pub sender: Sender,
}

/// An alert as it is kept until it is delivered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    id: String,
    body: String,
    attempts: u32,
    not_before: Timestamp,
}

impl Kept {
    fn of(Alert { tenant, told }: &Alert, now: Timestamp) -> Self {
        let (tenant, period) = (tenant.as_str(), told.period.as_str());
        // The same share of the same amount has the same name, should it be told again.
        let (number, percent, allowed) = (told.number, told.percent, told.allowed.0);
        let id = format!("msg_{number:x}-{tenant}-{period}-{percent}-{allowed:x}");
        let at = std::time::UNIX_EPOCH + Duration::from_millis(now.0);
        let body = serde_json::json!({
            "type": "budget.reached",
            "timestamp": humantime::format_rfc3339_seconds(at).to_string(),
            "data": {
                "tenant": tenant,
                "period": period,
                "percent": percent,
                "spent_usd": told.spent.to_decimal(),
                "allowed_usd": told.allowed.to_decimal(),
            },
        });
        Self { body: body.to_string(), attempts: 0, not_before: now, id }
    }

    fn key(&self) -> Bytes {
        format!("{}-{}", due_key(self.not_before), self.id).into()
    }

    fn document(&self) -> Document {
        // Texts and numbers, which always can be written.
        let value = serde_json::to_vec(self).unwrap_or_default();
        Document { kind: Kind::Budget, key: self.key(), value: Some(value.into()) }
    }
}

fn due_key(at: Timestamp) -> String {
    format!("{DUE}{:016x}", at.0)
}

/// The largest share of a budget that was told of in a period.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToldOf {
    tenant: TenantId,
    period: String,
    number: u64,
    percent: u8,
}

impl ToldOf {
    fn document(Alert { tenant, told }: &Alert) -> Document {
        let period = told.period.as_str();
        let key = format!("{TOLD}{period}-{tenant}").into();
        let (number, percent) = (told.number, told.percent);
        let of = Self { tenant: tenant.clone(), period: period.to_owned(), number, percent };
        let value = serde_json::to_vec(&of).unwrap_or_default();
        Document { kind: Kind::Budget, key, value: Some(value.into()) }
    }

    /// The share, if it is of this tenant's budget in the period of `now`.
    pub fn percent_of(&self, tenant: &TenantId, period: Period, now: Timestamp) -> Option<u8> {
        let is_it =
            self.tenant == *tenant && self.period == period.as_str() && self.number == period.number(now);
        is_it.then_some(self.percent)
    }
}

/// What was told of before.
pub async fn told_before(store: &Store) -> Result<Vec<ToldOf>, StoreError> {
    // What comes after the hyphen in the order of bytes ends what begins with it.
    let range = (Included(Bytes::from(TOLD)), Excluded(Bytes::from("told.")));
    let found = store.documents(Kind::Budget, range, Order::Ascending, usize::MAX).await?;
    Ok(found.into_iter().filter_map(|(_, value)| serde_json::from_slice(&value).ok()).collect())
}

/// Keeps what is told, until it is closed. `fresh` says that there is something to deliver.
pub async fn keep(due: Due, store: Store, clock: Clock, fresh: Arc<Notify>) {
    let Due(mut told) = due;
    while let Some(message) = told.recv().await {
        match message {
            Message::Tell(alert) => {
                let documents = || vec![Kept::of(&alert, clock.now()).document(), ToldOf::document(&alert)];
                while let Err(error) = store.keep(documents()).await {
                    tracing::error!(%error, tenant = %alert.tenant, "an alert waits for the store");
                    tokio::time::sleep(PAUSE).await;
                }
                fresh.notify_one();
            }
            Message::Close(done) => {
                if done.send(()).is_err() {
                    tracing::debug!("nobody waits for the end of the alerts any more");
                }
                return;
            }
        }
    }
}

/// Delivers what is due, until `stop`: a delivery that is cut off by it goes out again, under the same name.
pub async fn deliver_all(
    target: Arc<Target>,
    store: Store,
    clock: Clock,
    fresh: Arc<Notify>,
    stop: CancellationToken,
) {
    let delivering = async {
        loop {
            match deliver(&target, &store, clock).await {
                // There may be more.
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(%error, "alerts could not be read from the store; trying again");
                }
            }
            // Either way it is looked again.
            drop(tokio::time::timeout(LOOK_EVERY, fresh.notified()).await);
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = delivering => {}
    }
}

/// Delivers what is due, or some of it; then it says so. Whatever comes of it is stored.
async fn deliver(target: &Target, store: &Store, clock: Clock) -> Result<bool, StoreError> {
    let till = due_key(Timestamp(clock.now().0.saturating_add(1)));
    let range = (Included(Bytes::from(DUE)), Excluded(Bytes::from(till)));
    let due = store.documents(Kind::Budget, range, Order::Ascending, READ_AT_ONCE).await?;
    let is_more = due.len() == READ_AT_ONCE;
    let deliveries = due.into_iter().map(|(key, value)| async move {
        let gone = Document { kind: Kind::Budget, key, value: None };
        let Ok(kept) = serde_json::from_slice::<Kept>(&value) else {
            tracing::error!("a stored alert cannot be read and is dropped");
            return store.keep(vec![gone]).await;
        };
        let again = attempt(target, kept, clock).await.map(|kept| kept.document());
        store.keep(std::iter::once(gone).chain(again).collect()).await
    });
    stream::iter(deliveries).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    Ok(is_more)
}

/// Delivers one; where that fails, returns it with the time of the next attempt, if there is one.
async fn attempt(target: &Target, kept: Kept, clock: Clock) -> Option<Kept> {
    let sent =
        target.sender.send(&target.url, &target.secret, &kept.id, kept.body.clone(), clock.now()).await;
    let error = sent.err()?;
    let attempts = kept.attempts.saturating_add(1);
    let pause = webhook::retry_after(attempts).filter(|_| error.is_passing);
    tracing::warn!(id = kept.id, attempts, %error, given_up = pause.is_none(), "an alert was not delivered");
    let pause: Millis = pause?.max(error.retry_after.unwrap_or_default());
    Some(Kept { attempts, not_before: clock.now().after(pause), ..kept })
}

#[cfg(test)]
mod tests {
    use offpeak_core::money::Money;
    use offpeak_store::Options;

    use super::*;
    use crate::webhook::Guard;

    fn alert(tenant: &str, percent: u8) -> Alert {
        let (spent, allowed) = (Money(90), Money(100));
        let told = Told { period: Period::Day, number: 3, percent, spent, allowed };
        Alert { tenant: tenant.into(), told }
    }

    async fn waiting(store: &Store) -> Vec<Kept> {
        let range = (Included(Bytes::from(DUE)), Excluded(Bytes::from("due.")));
        let found = store.documents(Kind::Budget, range, Order::Ascending, usize::MAX).await.unwrap();
        found.iter().map(|(_, value)| serde_json::from_slice(value).unwrap()).collect()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_waits_for_a_later_time_hides_nothing_newer() {
        crate::upstream::install_crypto();
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(Options::new(folder.path()), Timestamp(0)).unwrap();
        let clock = Clock::System;
        let later = clock.now().after(Millis::from_hours(1));
        let old = |n: usize| {
            let kept = Kept::of(&alert(&format!("t{n}"), 50), later);
            Kept { attempts: 9, ..kept }.document()
        };
        store.keep((0..150).map(old).collect()).await.unwrap();
        store.keep(vec![Kept::of(&alert("new", 80), clock.now()).document()]).await.unwrap();
        let target = Target {
            url: Url::parse("http://127.0.0.1:1/").unwrap(),
            secret: Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap(),
            sender: Sender::new(Guard::Everywhere).unwrap(),
        };
        assert!(!deliver(&target, &store, clock).await.unwrap());
        let waiting = waiting(&store).await;
        let tried: Vec<_> =
            waiting.iter().filter(|kept| kept.attempts == 1).map(|kept| kept.id.as_str()).collect();
        assert_eq!((waiting.len(), tried), (151, vec!["msg_3-new-day-80-64"]));
        store.close().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_was_told_is_kept_with_its_share_before_it_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(Options::new(folder.path()), Timestamp(0)).unwrap();
        let (alerts, due) = Alerts::new();
        let keeping = tokio::spawn(keep(due, store.clone(), Clock::System, Arc::default()));
        for percent in [50, 80] {
            alerts.tell(alert("a-b", percent));
        }
        alerts.close().await;
        keeping.await.unwrap();
        assert_eq!(waiting(&store).await.len(), 2);
        let told = told_before(&store).await.unwrap();
        let percent = |tenant: &str, period, day: u64| {
            let at = Timestamp(day * 86_400_000);
            told.iter().find_map(|told| told.percent_of(&tenant.into(), period, at))
        };
        assert_eq!(percent("a-b", Period::Day, 3), Some(80));
        assert_eq!((percent("a-b", Period::Day, 4), percent("a-b", Period::Month, 3)), (None, None));
        assert_eq!(percent("b", Period::Day, 3), None);
        store.close().await.unwrap();
    }
}
