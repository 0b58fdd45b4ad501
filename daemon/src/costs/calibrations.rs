//! What has been learnt of each model's tokens, and its way into the store and back.

use std::collections::HashMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use offpeak_core::calibrate::{Calibration, Learnt};
use offpeak_core::words::{BackendId, Endpoint, ModelId};
use offpeak_store::{Document, Kind, Order, Store, StoreError};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

/// So often is written what was learnt. What a crash loses is learnt again within as many answers.
const KEEP_EVERY: Duration = Duration::from_secs(15);

/// Clients choose the models' names; beyond so many, what is learnt is used and forgotten.
const MODELS_MAX: usize = 4096;

/// Documents that are read at once.
const AT_ONCE: usize = 1000;

/// What one model's answers at one endpoint of one backend usually take.
type Of = (BackendId, Endpoint, ModelId);

/// What has been learnt, by backend, endpoint and model. Offers share it: tokens do not depend on the price.
#[derive(Default)]
pub struct Calibrations(RwLock<HashMap<Of, Arc<Learnt>>>);

impl Calibrations {
    /// What is known of a model's tokens; asked once for each offer.
    pub fn of(&self, backend: &BackendId, endpoint: &Endpoint, model: &ModelId) -> Arc<Learnt> {
        let of = (backend.clone(), endpoint.clone(), model.clone());
        if let Some(learnt) = self.0.read().get(&of) {
            return learnt.clone();
        }
        let mut known = self.0.write();
        if known.len() >= MODELS_MAX && !known.contains_key(&of) {
            return Arc::default();
        }
        known.entry(of).or_default().clone()
    }

    /// Takes in what earlier runs have learnt.
    pub async fn remember(&self, store: &Store) -> Result<(), StoreError> {
        let mut from = Unbounded;
        loop {
            let page =
                store.documents(Kind::Calibration, (from, Unbounded), Order::Ascending, AT_ONCE).await?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            from = Excluded(last.clone());
            for (key, value) in page {
                let read = (postcard::from_bytes::<Of>(&key), postcard::from_bytes::<Calibration>(&value));
                if let (Ok((backend, endpoint, model)), Ok(kept)) = read {
                    self.of(&backend, &endpoint, &model).restore(kept);
                } else {
                    tracing::warn!("what was learnt of a model's tokens cannot be read; it is learnt anew");
                }
            }
        }
    }

    /// Writes what is new.
    pub async fn keep(&self, store: &Store) -> Result<(), StoreError> {
        let news = self.news();
        if news.is_empty() { Ok(()) } else { store.keep(news).await }
    }

    fn news(&self) -> Vec<Document> {
        let known = self.0.read();
        let news = known.iter().filter_map(|(of, learnt)| {
            let kept = learnt.news()?;
            // Texts and numbers, which always can be written.
            let key = postcard::to_allocvec(of).ok()?;
            let value = postcard::to_allocvec(&kept).ok()?;
            Some(Document { kind: Kind::Calibration, key: Bytes::from(key), value: Some(Bytes::from(value)) })
        });
        news.collect()
    }

    /// Writes what is new from time to time, until `stop`.
    pub async fn run(self: Arc<Self>, store: Store, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(KEEP_EVERY) => {}
            }
            if let Err(error) = self.keep(&store).await {
                tracing::warn!(%error, "what was learnt of models' tokens could not be kept; trying again");
            }
        }
    }
}
