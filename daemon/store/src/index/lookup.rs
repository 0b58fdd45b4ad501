//! Looking single things up in the index as it is at one moment.

use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use offpeak_core::words::{BatchId, LaneId, LaneKey, Place, Seq, Timestamp};
use redb::{Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable};

use super::extents::{Indexed, Row};
use super::lanes::LaneRow;
use super::outcomes::OutcomeRow;
use super::tables::{
    BATCHES, DOCUMENTS, EXTENTS, KEYS, LANE_STATES, LANES, META, OUTCOMES, PlaceKey, SEGMENTS, SegmentRow,
    TOUCHED, key, meta,
};
use crate::codec::Take;
use crate::error::StoreError;
use crate::log::Position;
use crate::values::{Appended, BatchRecord, Kind, Order};

/// Requests are not requeued more often than this, so a longer chain is a damaged index.
const LONGEST_CHAIN: usize = 100_000;

/// The index as it is at one moment.
pub(crate) struct View {
    pub(crate) extents: ReadOnlyTable<PlaceKey, &'static [u8]>,
    pub(crate) outcomes: ReadOnlyTable<PlaceKey, &'static [u8]>,
    transaction: ReadTransaction,
    // Last, so that it is dropped last: closing the index waits until nobody holds it.
    _database: Arc<Database>,
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").finish_non_exhaustive()
    }
}

/// What an idempotency key stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyRow {
    pub(crate) body_hash: u64,
    pub(crate) place: Place,
    pub(crate) expires: u64,
}

impl KeyRow {
    pub(crate) const fn from_row((body_hash, lane, seq, expires): (u64, u32, u64, u64)) -> Self {
        Self { body_hash, place: Place { lane: LaneId(lane), seq: Seq(seq) }, expires }
    }

    pub(crate) const fn to_row(self) -> (u64, u32, u64, u64) {
        (self.body_hash, self.place.lane.0, self.place.seq.0, self.expires)
    }

    /// What whoever comes with this body under the key is told.
    pub(crate) const fn answer(self, body_hash: u64) -> Appended {
        if self.body_hash == body_hash { Appended::Same(self.place) } else { Appended::Conflict }
    }
}

/// Finds entries; remembers the last row, because neighbours are mostly asked for together.
#[derive(Debug, Default)]
pub(crate) struct Rows(Option<Row>);

impl Rows {
    /// What the table knows of an entry.
    pub(crate) fn entry(
        &mut self,
        table: &impl ReadableTable<PlaceKey, &'static [u8]>,
        place: Place,
    ) -> Result<Option<Indexed>, StoreError> {
        let has = |row: &Row| {
            row.extent.lane == place.lane && row.extent.first <= place.seq && place.seq.0 < row.end()
        };
        if !self.0.as_ref().is_some_and(has) {
            self.0 = row_before(table, place)?.filter(has);
        }
        Ok(self.0.as_ref().and_then(|row| row.get(place.seq.0)))
    }
}

/// The row of the same lane which begins at or before a place.
pub(crate) fn row_before(
    table: &impl ReadableTable<PlaceKey, &'static [u8]>,
    place: Place,
) -> Result<Option<Row>, StoreError> {
    let Some(found) = table.range((place.lane.0, 0)..=key(place))?.next_back() else { return Ok(None) };
    let (key, value) = found?;
    Row::decode(key.value(), value.value()).map(Some)
}

impl View {
    pub(crate) fn new(database: Arc<Database>) -> Result<Self, StoreError> {
        let transaction = database.begin_read()?;
        Ok(Self {
            extents: transaction.open_table(EXTENTS)?,
            outcomes: transaction.open_table(OUTCOMES)?,
            transaction,
            _database: database,
        })
    }

    /// What the index knows of an entry.
    pub(crate) fn entry(&self, place: Place) -> Result<Option<Indexed>, StoreError> {
        Rows::default().entry(&self.extents, place)
    }

    /// How an entry ended.
    pub(crate) fn outcome(&self, place: Place) -> Result<Option<OutcomeRow>, StoreError> {
        self.outcomes.get(key(place))?.map(|row| OutcomeRow::decode(row.value())).transpose()
    }

    /// The latest entry of a request, and how it ended if it did.
    pub(crate) fn latest(&self, origin: Place) -> Result<(Place, Option<OutcomeRow>), StoreError> {
        self.follow(origin, |_, _| {})
    }

    /// The same, and visits the entries before the latest: where each stood, and when it was over.
    pub(crate) fn follow(
        &self,
        origin: Place,
        mut visit: impl FnMut(Place, Timestamp),
    ) -> Result<(Place, Option<OutcomeRow>), StoreError> {
        let mut place = origin;
        for _ in 0..LONGEST_CHAIN {
            match self.outcome(place)? {
                Some(OutcomeRow::Requeued { to, finished_at, .. }) => {
                    visit(place, finished_at);
                    place = to;
                }
                other => return Ok((place, other)),
            }
        }
        Err(StoreError::IndexDamaged("a request is requeued in a circle"))
    }

    /// What an idempotency key stands for.
    pub(crate) fn idempotency(&self, key: &[u8; 16]) -> Result<Option<KeyRow>, StoreError> {
        let table = self.transaction.open_table(KEYS)?;
        Ok(table.get(key)?.map(|row| KeyRow::from_row(row.value())))
    }

    /// A batch.
    pub(crate) fn batch(&self, id: BatchId) -> Result<Option<BatchRecord>, StoreError> {
        let table = self.transaction.open_table(BATCHES)?;
        table.get(id.0)?.map(|row| decode_batch(row.value())).transpose()
    }

    /// All batches that have not ended.
    pub(crate) fn open_batches(&self) -> Result<Vec<BatchRecord>, StoreError> {
        self.batches(|batch| batch.ended.is_none())
    }

    /// Batches that are wanted, oldest first.
    pub(crate) fn batches(
        &self,
        is_wanted: impl Fn(&BatchRecord) -> bool,
    ) -> Result<Vec<BatchRecord>, StoreError> {
        let mut wanted = Vec::new();
        for row in self.transaction.open_table(BATCHES)?.iter()? {
            let batch = decode_batch(row?.1.value())?;
            if is_wanted(&batch) {
                wanted.push(batch);
            }
        }
        Ok(wanted)
    }

    /// A document.
    pub(crate) fn document(&self, kind: Kind, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let table = self.transaction.open_table(DOCUMENTS)?;
        Ok(table.get((kind.number(), key))?.map(|row| Bytes::copy_from_slice(row.value())))
    }

    /// At most so many documents of a kind whose keys lie in the range, in order or from its end.
    pub(crate) fn documents(
        &self,
        kind: Kind,
        (from, to): (Bound<&[u8]>, Bound<&[u8]>),
        order: Order,
        most: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let number = kind.number();
        let from = match from {
            Bound::Unbounded => Bound::Included((number, &[][..])),
            bound => bound.map(|key| (number, key)),
        };
        let to = match to {
            Bound::Unbounded => Bound::Excluded((number + 1, &[][..])),
            bound => bound.map(|key| (number, key)),
        };
        let table = self.transaction.open_table(DOCUMENTS)?;
        let mut rows = table.range::<(u8, &[u8])>((from, to))?;
        let mut found = Vec::new();
        while found.len() < most {
            let row = match order {
                Order::Ascending => rows.next(),
                Order::Descending => rows.next_back(),
            };
            let Some(row) = row else { break };
            let (key, value) = row?;
            found.push((Bytes::copy_from_slice(key.value().1), Bytes::copy_from_slice(value.value())));
        }
        Ok(found)
    }

    /// All lanes.
    pub(crate) fn lanes(&self) -> Result<Vec<(LaneId, LaneKey, LaneRow)>, StoreError> {
        let states = self.transaction.open_table(LANE_STATES)?;
        let mut lanes = Vec::new();
        for row in self.transaction.open_table(LANES)?.iter()? {
            let (id, key) = row?;
            let key = Take(key.value()).lane_key().ok_or(StoreError::IndexDamaged("lane"))?;
            let state = states.get(id.value())?.map(|row| LaneRow::decode(row.value())).transpose()?;
            lanes.push((LaneId(id.value()), key, state.unwrap_or_default()));
        }
        Ok(lanes)
    }

    /// A number about the whole store.
    pub(crate) fn number(&self, name: &str) -> Result<u64, StoreError> {
        let table = self.transaction.open_table(META)?;
        let row = table.get(name)?.ok_or(StoreError::IndexDamaged("meta"))?;
        Ok(row.value())
    }

    /// Everything before this is in the index.
    pub(crate) fn applied(&self) -> Result<Position, StoreError> {
        let number =
            |name| u32::try_from(self.number(name)?).map_err(|_| StoreError::IndexDamaged("position"));
        Ok(Position { segment: number(meta::SEGMENT)?, offset: number(meta::OFFSET)? })
    }

    /// How far a lane is.
    pub(crate) fn lane_row(&self, lane: LaneId) -> Result<Option<LaneRow>, StoreError> {
        let table = self.transaction.open_table(LANE_STATES)?;
        table.get(lane.0)?.map(|row| LaneRow::decode(row.value())).transpose()
    }

    /// Which segments hold something of which lanes.
    pub(crate) fn touched(&self) -> Result<Vec<(u32, u32)>, StoreError> {
        let mut touched = Vec::new();
        for row in self.transaction.open_table(TOUCHED)?.iter()? {
            touched.push(row?.0.value());
        }
        Ok(touched)
    }

    /// All segments.
    pub(crate) fn segment_rows(&self) -> Result<Vec<(u32, SegmentRow)>, StoreError> {
        let mut segments = Vec::new();
        for row in self.transaction.open_table(SEGMENTS)?.iter()? {
            let (number, row) = row?;
            segments.push((number.value(), SegmentRow::from_row(row.value())));
        }
        Ok(segments)
    }

    /// Any table.
    pub(crate) fn open<K: redb::Key + 'static, V: redb::Value + 'static>(
        &self,
        table: redb::TableDefinition<'_, K, V>,
    ) -> Result<ReadOnlyTable<K, V>, StoreError> {
        Ok(self.transaction.open_table(table)?)
    }
}

pub(crate) fn decode_batch(bytes: &[u8]) -> Result<BatchRecord, StoreError> {
    Take(bytes).batch_record().ok_or(StoreError::IndexDamaged("batch"))
}
