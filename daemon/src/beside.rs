//! Which requests of a batch are run in real time beside it: what the batch still says about those, other than an answer,
//! changes nothing.

use std::collections::HashMap;

use offpeak_core::extent::{Cargo, Range};
use offpeak_core::words::{BatchId, Place};
use parking_lot::RwLock;

/// For each batch under way, the ranges that are run beside it.
#[derive(Default)]
pub struct Beside(RwLock<HashMap<BatchId, Vec<Range>>>);

impl Beside {
    /// These are, from now on.
    pub fn begin(&self, batch: BatchId, cargo: &[Cargo]) {
        self.0.write().entry(batch).or_default().extend(cargo.iter().map(|cargo| cargo.range));
    }

    /// Whether this request of a batch is run beside it.
    pub fn covers(&self, batch: BatchId, place: Place) -> bool {
        self.0.read().get(&batch).is_some_and(|ranges| ranges.iter().any(|range| range.contains(place)))
    }

    /// The batch is over.
    pub fn forget(&self, batch: BatchId) {
        self.0.write().remove(&batch);
    }
}
