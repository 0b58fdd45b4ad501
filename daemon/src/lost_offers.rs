//! Offers that a provider refused to sell for a model: they are off the ladder until their rest is over, or until an operator
//! puts them back.

use std::collections::BTreeMap;

use bytes::Bytes;
use offpeak_core::turnaround::Way;
use offpeak_core::words::{BackendId, Millis, OfferName, Timestamp};
use offpeak_store::{Document, Kind};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

/// So long an offer is not bought; then it is tried again.
pub const REST: Millis = Millis::from_hours(24);

/// So many are remembered; clients choose the models' names.
const LOST_MAX: usize = 4096;

/// The provider's words are kept up to this length.
const WHY_CHARS: usize = 300;

/// All that are lost.
#[derive(Debug, Default)]
pub struct LostOffers {
    lost: RwLock<BTreeMap<Way, Loss>>,
}

/// How one was lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// When.
    pub at: Timestamp,
    /// It is tried again then.
    pub until: Timestamp,
    /// What the provider said.
    pub why: String,
}

impl LostOffers {
    /// An offer is lost from now on. What is to be kept of that; none if it was lost already, or nothing more is remembered.
    pub fn lose(&self, way: &Way, why: &str, now: Timestamp) -> Option<Document> {
        let mut lost = self.lost.write();
        if lost.contains_key(way) || lost.len() >= LOST_MAX {
            return None;
        }
        let why = why.chars().take(WHY_CHARS).collect();
        let loss = Loss { at: now, until: now.after(REST), why };
        let document = document(way, Some(&loss));
        lost.insert(way.clone(), loss);
        document
    }

    /// An offer is bought again. What is to be kept of that; none if it was not lost.
    pub fn restore(&self, way: &Way) -> Option<Document> {
        self.lost.write().remove(way)?;
        document(way, None)
    }

    /// Takes in a document of an earlier run; false if it cannot be read.
    pub fn remember(&self, key: &[u8], value: &[u8]) -> bool {
        let read = (postcard::from_bytes::<Way>(key), postcard::from_bytes::<Loss>(value));
        let (Ok(way), Ok(loss)) = read else { return false };
        self.lost.write().insert(way, loss);
        true
    }

    /// Whether it is lost.
    pub fn has(&self, way: &Way) -> bool {
        let lost = self.lost.read();
        !lost.is_empty() && lost.contains_key(way)
    }

    /// Those whose rest is over.
    pub fn rested(&self, now: Timestamp) -> Vec<Way> {
        let lost = self.lost.read();
        lost.iter().filter(|(_, loss)| loss.until <= now).map(|(way, _)| way.clone()).collect()
    }

    /// For how many models an offer is lost.
    pub fn count(&self, backend: &BackendId, offer: &OfferName) -> usize {
        self.lost.read().keys().filter(|way| way.backend == *backend && way.offer == *offer).count()
    }

    /// All, by backend, offer and model.
    pub fn all(&self) -> Vec<(Way, Loss)> {
        self.lost.read().iter().map(|(way, loss)| (way.clone(), loss.clone())).collect()
    }
}

fn document(way: &Way, loss: Option<&Loss>) -> Option<Document> {
    // Names, times and text: there is nothing in it that cannot be written.
    let key = Bytes::from(postcard::to_allocvec(way).ok()?);
    let value = loss.and_then(|loss| postcard::to_allocvec(loss).ok()).map(Bytes::from);
    Some(Document { kind: Kind::LostOffer, key, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn way(model: &str) -> Way {
        Way { backend: "a".into(), offer: "flex".into(), model: model.into() }
    }

    #[test]
    fn what_is_lost_comes_back_by_time_or_by_hand_and_is_known_after_a_restart() {
        let lost = LostOffers::default();
        let document = lost.lose(&way("m"), "not sold", NOW).unwrap();
        assert_eq!(lost.lose(&way("m"), "again", NOW), None, "once is enough");
        assert!(lost.has(&way("m")) && !lost.has(&way("n")));
        let later = LostOffers::default();
        assert!(later.remember(&document.key, &document.value.unwrap()));
        assert_eq!(later.all(), lost.all());
        assert!(!later.remember(b"?", b"?"));
        assert_eq!(lost.rested(NOW), []);
        assert_eq!(lost.rested(NOW.after(REST)), [way("m")]);
        assert_eq!(lost.restore(&way("m")).unwrap().value, None);
        assert_eq!(lost.restore(&way("m")), None);
        assert_eq!(lost.count(&"a".into(), &"flex".into()), 0);
    }
}
