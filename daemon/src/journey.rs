//! How a batch's way stands in the store.

use bytes::Bytes;
use offpeak_core::batch::Journey;

/// As it is stored.
pub fn encode(journey: &Journey) -> Bytes {
    // Enums, numbers, text and bytes: there is nothing in it that cannot be written.
    postcard::to_allocvec(journey).map(Bytes::from).unwrap_or_default()
}

/// Reads what [`encode`] wrote.
pub fn decode(stored: &[u8]) -> Result<Journey, postcard::Error> {
    postcard::from_bytes(stored)
}
