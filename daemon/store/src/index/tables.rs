//! The index's tables. Keys are sequential wherever many rows are written.

use offpeak_core::words::Place;
use redb::{TableDefinition, WriteTransaction};

use crate::error::StoreError;

/// A lane and a position in it.
pub(crate) type PlaceKey = (u32, u64);

/// Numbers about the whole store, by the names in [`meta`].
pub(crate) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// What a lane's requests have in common.
pub(crate) const LANES: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("lanes");
/// How far a lane is: [`super::lanes`].
pub(crate) const LANE_STATES: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("lane_states");
/// Runs of entries, by the place of the first: [`super::extents`].
pub(crate) const EXTENTS: TableDefinition<'_, PlaceKey, &[u8]> = TableDefinition::new("extents");
/// How entries ended: [`super::outcomes`].
pub(crate) const OUTCOMES: TableDefinition<'_, PlaceKey, &[u8]> = TableDefinition::new("outcomes");
/// Batches.
pub(crate) const BATCHES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("batches");
/// Segment files: bytes, requests in it that are not finished, time at which the last request finished whose body
/// or outcome is in it.
pub(crate) const SEGMENTS: TableDefinition<'_, u32, (u64, u64, u64)> = TableDefinition::new("segments");
/// Which rows point into a segment: for segment and lane the first and last entry, the first and last outcome.
pub(crate) const TOUCHED: TableDefinition<'_, (u32, u32), (u64, u64, u64, u64)> =
    TableDefinition::new("touched");
/// Idempotency keys: hash of the body, lane, position, expiry.
pub(crate) const KEYS: TableDefinition<'_, &[u8; 16], (u64, u32, u64, u64)> = TableDefinition::new("keys");
/// The idempotency key of a request that has one.
pub(crate) const KEY_OF: TableDefinition<'_, PlaceKey, &[u8; 16]> = TableDefinition::new("key_of");

/// Documents, by the number of their kind and their key.
pub(crate) const DOCUMENTS: TableDefinition<'_, (u8, &[u8]), &[u8]> = TableDefinition::new("documents");

/// A row of [`SEGMENTS`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SegmentRow {
    pub(crate) bytes: u64,
    pub(crate) unfinished: u64,
    pub(crate) latest_finish: u64,
}

impl SegmentRow {
    pub(crate) const fn from_row((bytes, unfinished, latest_finish): (u64, u64, u64)) -> Self {
        Self { bytes, unfinished, latest_finish }
    }

    pub(crate) const fn to_row(self) -> (u64, u64, u64) {
        (self.bytes, self.unfinished, self.latest_finish)
    }
}

/// Names of rows in [`META`].
pub(crate) mod meta {
    /// The schema's version.
    pub(crate) const SCHEMA: &str = "schema";
    /// The random number that names the store.
    pub(crate) const INSTALL: &str = "install";
    /// The index has everything before this position of the log: the segment ...
    pub(crate) const SEGMENT: &str = "segment";
    /// ... and the offset in it.
    pub(crate) const OFFSET: &str = "offset";
    /// The next lane's number.
    pub(crate) const NEXT_LANE: &str = "next_lane";
    /// The next batch's number.
    pub(crate) const NEXT_BATCH: &str = "next_batch";
}

pub(crate) const fn key(place: Place) -> PlaceKey {
    (place.lane.0, place.seq.0)
}

/// Makes all tables, so that readers find them.
pub(crate) fn create_all(transaction: &WriteTransaction) -> Result<(), StoreError> {
    transaction.open_table(META)?;
    transaction.open_table(LANES)?;
    transaction.open_table(LANE_STATES)?;
    transaction.open_table(EXTENTS)?;
    transaction.open_table(OUTCOMES)?;
    transaction.open_table(BATCHES)?;
    transaction.open_table(SEGMENTS)?;
    transaction.open_table(TOUCHED)?;
    transaction.open_table(KEYS)?;
    transaction.open_table(KEY_OF)?;
    transaction.open_table(DOCUMENTS)?;
    Ok(())
}
