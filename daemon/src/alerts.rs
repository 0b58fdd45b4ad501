//! Tells the operator's webhook what should not go unseen, from the store, until it is delivered or given up.

use std::ops::Bound::Unbounded;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use offpeak_core::budget::Told;
use offpeak_core::words::{Millis, TenantId, Timestamp};
use offpeak_store::{Document, Kind, Order, Store, StoreError};
use reqwest::Url;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::webhook::{self, Secret, Sender};

/// How often the store is asked for what is due.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Alerts that may wait for being stored; each tenant has at most six a day.
const WAITING: usize = 10_000;

/// Alerts that are looked at together.
const AT_ONCE: usize = 100;

/// A share of a budget is reached.
#[derive(Debug, Clone)]
pub struct Alert {
    /// Whose budget.
    pub tenant: TenantId,
    /// Which share of what.
    pub told: Told,
}

/// The way to the operator.
#[derive(Clone)]
pub struct Alerts(Option<mpsc::Sender<Alert>>);

/// The other end of the way.
pub struct Due(mpsc::Receiver<Alert>);

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

    /// Tells. Never waits.
    pub fn tell(&self, alert: Alert) {
        if let Some(way) = &self.0
            && let Err(error) = way.try_send(alert)
        {
            tracing::error!(%error, "an alert was not sent");
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
    fn document(&self, key: Bytes) -> Document {
        // Texts and numbers, which always can be written.
        let value = serde_json::to_vec(self).unwrap_or_default();
        Document { kind: Kind::Budget, key, value: Some(value.into()) }
    }
}

/// Stores what is told and delivers what is due, until `stop`.
pub async fn run(due: Due, target: Arc<Target>, store: Store, clock: Clock, stop: CancellationToken) {
    let Due(mut told) = due;
    loop {
        let alert = tokio::select! {
            () = stop.cancelled() => return,
            alert = told.recv() => alert,
            () = tokio::time::sleep(LOOK_EVERY) => None,
        };
        if let Some(alert) = alert
            && let Err(error) = keep(&store, &alert, clock.now()).await
        {
            tracing::error!(%error, tenant = %alert.tenant, "an alert could not be stored and is not sent");
        }
        if let Err(error) = deliver(&target, &store, clock).await {
            tracing::error!(%error, "alerts could not be read from the store; trying again");
        }
    }
}

async fn keep(store: &Store, alert: &Alert, now: Timestamp) -> Result<(), StoreError> {
    let told = alert.told;
    // A share of a period's budget is told once, so that this names it for good.
    let share = format!("{}-{}-{}", alert.tenant, told.period.as_str(), told.percent);
    let id = format!("msg_{:011x}-{share}", now.0);
    let at = std::time::UNIX_EPOCH + Duration::from_millis(now.0);
    let body = serde_json::json!({
        "type": "budget.reached",
        "timestamp": humantime::format_rfc3339_seconds(at).to_string(),
        "data": {
            "tenant": alert.tenant.as_str(),
            "period": told.period.as_str(),
            "percent": told.percent,
            "spent_usd": told.spent.to_decimal(),
            "allowed_usd": told.allowed.to_decimal(),
        },
    });
    let kept = Kept { body: body.to_string(), attempts: 0, not_before: now, id };
    store.keep(vec![kept.document(kept.id.clone().into())]).await
}

/// Delivers what is due. Whatever comes of it is stored before the next one goes.
async fn deliver(target: &Target, store: &Store, clock: Clock) -> Result<(), StoreError> {
    for (key, value) in
        store.documents(Kind::Budget, (Unbounded, Unbounded), Order::Ascending, AT_ONCE).await?
    {
        let Ok(kept) = serde_json::from_slice::<Kept>(&value) else {
            tracing::error!("a stored alert cannot be read and is dropped");
            store.keep(vec![Document { kind: Kind::Budget, key, value: None }]).await?;
            continue;
        };
        let now = clock.now();
        if kept.not_before > now {
            continue;
        }
        let after = match target
            .sender
            .send(&target.url, &target.secret, &kept.id, kept.body.clone(), now)
            .await
        {
            Ok(()) => None,
            Err(error) => {
                let attempts = kept.attempts.saturating_add(1);
                let pause = webhook::retry_after(attempts).filter(|_| error.is_passing);
                tracing::warn!(id = kept.id, attempts, %error, given_up = pause.is_none(), "an alert was not delivered");
                pause.map(|pause| {
                    let pause: Millis = pause.max(error.retry_after.unwrap_or_default());
                    Kept { attempts, not_before: clock.now().after(pause), ..kept }
                })
            }
        };
        let document = match after {
            Some(kept) => kept.document(key),
            None => Document { kind: Kind::Budget, key, value: None },
        };
        store.keep(vec![document]).await?;
    }
    Ok(())
}
