//! Applies the log's records to the index, in the log's order and by nothing but the log.

use std::collections::BTreeMap;

use bytes::Bytes;
use offpeak_core::words::{BatchId, LaneId, LaneKey, Place, Seq};
use redb::{Database, Durability, ReadableTable, Table, WriteTransaction};

use super::extents::{Indexed, Row};
use super::lanes::LaneRow;
use super::lookup::{KeyRow, Rows, decode_batch, row_before};
use super::outcomes::OutcomeRow;
use super::tables::{
    BATCHES, DOCUMENTS, EXTENTS, KEY_OF, KEYS, LANE_STATES, LANES, META, OUTCOMES, PlaceKey, SEGMENTS,
    SegmentRow, TOUCHED, key, meta,
};
use crate::codec::Put;
use crate::error::StoreError;
use crate::log::{Change, Ended, Location, Logged, Position, Request, Requeued};
use crate::values::{BatchEnd, BatchRecord, Document};

/// Records that became durable together.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) records: Vec<Logged>,
    /// Where the log ends with them.
    pub(crate) upto: Position,
}

/// Applies groups in one transaction and returns the position up to which the index then has the log. Visible to
/// readers when it returns, durable after the next checkpoint.
pub(crate) fn apply<'a>(
    database: &Database,
    groups: impl Iterator<Item = (&'a [Logged], Position)>,
) -> Result<Option<Position>, StoreError> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::None)?;
    let mut applied = None;
    {
        let mut changes = Changes::open(&transaction)?;
        for (records, upto) in groups {
            for logged in records {
                changes.apply(logged)?;
            }
            changes.sum(upto.segment)?.bytes = upto.offset.into();
            applied = Some(upto);
        }
        changes.finish(applied)?;
    }
    transaction.commit()?;
    Ok(applied)
}

/// A row of the touched table: first and last position, of entries and of outcomes.
#[derive(Debug, Clone, Copy)]
struct Touched {
    entries: (u64, u64),
    outcomes: (u64, u64),
}

const NOTHING: (u64, u64) = (u64::MAX, 0);

fn widen(range: &mut (u64, u64), (first, last): (u64, u64)) {
    *range = (range.0.min(first), range.1.max(last));
}

/// One transaction. What many records change is kept here and written once, at its end.
struct Changes<'t> {
    lanes: Table<'t, u32, &'static [u8]>,
    lane_states: Table<'t, u32, &'static [u8]>,
    extents: Table<'t, PlaceKey, &'static [u8]>,
    outcomes: Table<'t, PlaceKey, &'static [u8]>,
    batches: Table<'t, u64, &'static [u8]>,
    segments: Table<'t, u32, (u64, u64, u64)>,
    touched: Table<'t, (u32, u32), (u64, u64, u64, u64)>,
    keys: Table<'t, &'static [u8; 16], (u64, u32, u64, u64)>,
    key_of: Table<'t, PlaceKey, &'static [u8; 16]>,
    documents: Table<'t, (u8, &'static [u8]), &'static [u8]>,
    meta: Table<'t, &'static str, u64>,
    states: BTreeMap<LaneId, LaneRow>,
    /// The last row of each lane that gets entries.
    growing: BTreeMap<LaneId, Row>,
    sums: BTreeMap<u32, SegmentRow>,
    marks: BTreeMap<(u32, u32), Touched>,
    rows: Rows,
}

impl<'t> Changes<'t> {
    fn open(transaction: &'t WriteTransaction) -> Result<Self, StoreError> {
        Ok(Self {
            lanes: transaction.open_table(LANES)?,
            lane_states: transaction.open_table(LANE_STATES)?,
            extents: transaction.open_table(EXTENTS)?,
            outcomes: transaction.open_table(OUTCOMES)?,
            batches: transaction.open_table(BATCHES)?,
            segments: transaction.open_table(SEGMENTS)?,
            touched: transaction.open_table(TOUCHED)?,
            keys: transaction.open_table(KEYS)?,
            key_of: transaction.open_table(KEY_OF)?,
            documents: transaction.open_table(DOCUMENTS)?,
            meta: transaction.open_table(META)?,
            states: BTreeMap::new(),
            growing: BTreeMap::new(),
            sums: BTreeMap::new(),
            marks: BTreeMap::new(),
            rows: Rows::default(),
        })
    }

    fn apply(&mut self, logged: &Logged) -> Result<(), StoreError> {
        match &logged.change {
            Change::LaneCreated { id, key } => self.lane_created(*id, key),
            Change::Request(request) => self.request(request, logged.at),
            Change::Requeued(requeued) => self.requeued(requeued),
            Change::Ended(ended) => self.ended(ended, logged.at),
            Change::BatchSealed(batch) => self.batch_sealed(batch),
            Change::BatchAdvanced { id, version, progress } => self.change_batch(*id, |batch| {
                batch.version = *version;
                batch.progress = Bytes::clone(progress);
            }),
            Change::BatchEnded { id, at, ending } => self.change_batch(*id, |batch| {
                batch.ended = Some(BatchEnd { at: *at, ending: ending.clone() });
            }),
            Change::Documents(documents) => self.keep(documents),
            Change::LaneRemoved { id } => self.lane_removed(*id),
        }
    }

    fn lane_created(&mut self, id: LaneId, lane_key: &LaneKey) -> Result<(), StoreError> {
        let mut bytes = Vec::new();
        bytes.put_lane_key(lane_key);
        self.lanes.insert(id.0, bytes.as_slice())?;
        self.states.insert(id, LaneRow::default());
        self.raise(meta::NEXT_LANE, u64::from(id.0) + 1)
    }

    /// A lane that has something again stays: a sweep that emptied it was not durable, and its rows are back.
    fn lane_removed(&mut self, id: LaneId) -> Result<(), StoreError> {
        let has_entries = self.extents.range((id.0, 0)..=(id.0, u64::MAX))?.next().is_some();
        if has_entries || self.growing.contains_key(&id) {
            return Ok(());
        }
        self.lanes.remove(id.0)?;
        self.lane_states.remove(id.0)?;
        self.states.remove(&id);
        Ok(())
    }

    fn request(&mut self, request: &Request, at: Location) -> Result<(), StoreError> {
        let entry = Indexed {
            at,
            tokens: request.tokens,
            arrived: request.arrived,
            deadline: request.deadline,
            body_hash: request.body_hash,
            again: None,
        };
        if !self.add_entry(request.place, &entry)? {
            return Ok(());
        }
        self.sum(at.segment)?.unfinished += 1;
        if let Some(idempotency) = &request.idempotency {
            let row =
                KeyRow { body_hash: request.body_hash, place: request.place, expires: idempotency.expires.0 };
            self.keys.insert(&idempotency.key, row.to_row())?;
            self.key_of.insert(key(request.place), &idempotency.key)?;
        }
        Ok(())
    }

    fn requeued(&mut self, requeued: &Requeued) -> Result<(), StoreError> {
        let Some(entry) = self.unfinished(requeued.from)? else { return Ok(()) };
        let Requeued { from, deadline, attempts, not_before, .. } = *requeued;
        let entry = entry.requeued(from, deadline, attempts, not_before);
        if !self.add_entry(requeued.to, &entry)? {
            return Ok(());
        }
        let row = OutcomeRow::Requeued {
            to: requeued.to,
            batch: requeued.batch,
            finished_at: requeued.finished_at,
            reason: requeued.reason.clone(),
        };
        self.outcomes.insert(key(requeued.from), row.encode().as_slice())?;
        self.keep(&requeued.documents)
    }

    fn ended(&mut self, ended: &Ended, at: Location) -> Result<(), StoreError> {
        let Some(entry) = self.unfinished(ended.place)? else { return Ok(()) };
        let row = OutcomeRow::Final {
            at,
            attempts: ended.attempts,
            batch: ended.batch,
            finished_at: ended.finished_at,
            ending: ended.ending.clone(),
        };
        self.outcomes.insert(key(ended.place), row.encode().as_slice())?;
        let finish = ended.finished_at.0;
        let bodies = self.sum(entry.at.segment)?;
        bodies.unfinished = bodies.unfinished.saturating_sub(1);
        bodies.latest_finish = bodies.latest_finish.max(finish);
        let answers = self.sum(at.segment)?;
        answers.latest_finish = answers.latest_finish.max(finish);
        let seq = ended.place.seq.0;
        widen(&mut self.mark(at.segment, ended.place.lane).outcomes, (seq, seq));
        self.keep(&ended.documents)
    }

    fn keep(&mut self, documents: &[Document]) -> Result<(), StoreError> {
        for Document { kind, key, value } in documents {
            let at = (kind.number(), key.as_ref());
            match value {
                Some(value) => self.documents.insert(at, value.as_ref())?,
                None => self.documents.remove(at)?,
            };
        }
        Ok(())
    }

    fn batch_sealed(&mut self, batch: &BatchRecord) -> Result<(), StoreError> {
        for range in &batch.ranges {
            if let Some(state) = self.state(range.lane)?
                && !state.sealed.overlaps(range.from.0, range.to.0)
            {
                state.sealed.add(range.from.0, range.to.0);
            }
        }
        self.put_batch(batch)?;
        self.raise(meta::NEXT_BATCH, batch.id.0 + 1)
    }

    fn change_batch(&mut self, id: BatchId, change: impl FnOnce(&mut BatchRecord)) -> Result<(), StoreError> {
        let found = self.batches.get(id.0)?.map(|row| decode_batch(row.value())).transpose()?;
        let Some(mut batch) = found else {
            tracing::error!(%id, "a change of a batch that is lost was dropped");
            return Ok(());
        };
        change(&mut batch);
        self.put_batch(&batch)
    }

    fn put_batch(&mut self, batch: &BatchRecord) -> Result<(), StoreError> {
        let mut bytes = Vec::new();
        bytes.put_batch_record(batch);
        self.batches.insert(batch.id.0, bytes.as_slice())?;
        Ok(())
    }

    /// Adds an entry at the end of its lane. False if it cannot stand there: its lane's record is damaged.
    fn add_entry(&mut self, place: Place, entry: &Indexed) -> Result<bool, StoreError> {
        let Some(state) = self.state(place.lane)? else {
            tracing::error!(%place, "a request in a lane that is lost was dropped");
            return Ok(false);
        };
        if place.seq.0 < state.next {
            tracing::error!(%place, "a second request at the same place was dropped");
            return Ok(false);
        }
        state.next = place.seq.0 + 1;
        if !self.growing.contains_key(&place.lane)
            && let Some(row) = row_before(&self.extents, Place { seq: Seq(u64::MAX), ..place })?
        {
            self.growing.insert(place.lane, row);
        }
        if !self.growing.get_mut(&place.lane).is_some_and(|row| row.push(place, entry))
            && let Some(full) = self.growing.insert(place.lane, Row::new(place, entry))
        {
            self.put_row(&full)?;
        }
        widen(&mut self.mark(entry.at.segment, place.lane).entries, (place.seq.0, place.seq.0));
        Ok(true)
    }

    /// The entry at a place, if it has no outcome.
    fn unfinished(&mut self, place: Place) -> Result<Option<Indexed>, StoreError> {
        if self.outcomes.get(key(place))?.is_some() {
            return Ok(None);
        }
        let growing = self.growing.get(&place.lane).and_then(|row| row.get(place.seq.0));
        let entry = match growing {
            Some(entry) => Some(entry),
            None => self.rows.entry(&self.extents, place)?,
        };
        if entry.is_none() {
            tracing::error!(%place, "an outcome of a request that is lost was dropped");
        }
        Ok(entry)
    }

    fn put_row(&mut self, row: &Row) -> Result<(), StoreError> {
        let key = (row.extent.lane.0, row.extent.first.0);
        self.extents.insert(key, row.encode().as_slice())?;
        Ok(())
    }

    fn state(&mut self, lane: LaneId) -> Result<Option<&mut LaneRow>, StoreError> {
        if !self.states.contains_key(&lane) {
            let Some(row) = self.lane_states.get(lane.0)? else { return Ok(None) };
            self.states.insert(lane, LaneRow::decode(row.value())?);
        }
        Ok(self.states.get_mut(&lane))
    }

    fn sum(&mut self, segment: u32) -> Result<&mut SegmentRow, StoreError> {
        use std::collections::btree_map::Entry;
        Ok(match self.sums.entry(segment) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let row = self.segments.get(segment)?.map(|row| SegmentRow::from_row(row.value()));
                entry.insert(row.unwrap_or_default())
            }
        })
    }

    fn mark(&mut self, segment: u32, lane: LaneId) -> &mut Touched {
        self.marks.entry((segment, lane.0)).or_insert(Touched { entries: NOTHING, outcomes: NOTHING })
    }

    fn raise(&mut self, name: &'static str, to: u64) -> Result<(), StoreError> {
        let now = self.meta.get(name)?.map_or(0, |row| row.value());
        self.meta.insert(name, now.max(to))?;
        Ok(())
    }

    /// Writes what was kept back.
    fn finish(mut self, applied: Option<Position>) -> Result<(), StoreError> {
        for row in std::mem::take(&mut self.growing).values() {
            self.put_row(row)?;
        }
        for (lane, state) in &self.states {
            self.lane_states.insert(lane.0, state.encode().as_slice())?;
        }
        for (&segment, sum) in &self.sums {
            self.segments.insert(segment, sum.to_row())?;
        }
        for (&key, new) in &self.marks {
            let before = self.touched.get(key)?.map(|row| row.value());
            let before = before.unwrap_or((NOTHING.0, NOTHING.1, NOTHING.0, NOTHING.1));
            let mut entries = (before.0, before.1);
            let mut outcomes = (before.2, before.3);
            widen(&mut entries, new.entries);
            widen(&mut outcomes, new.outcomes);
            self.touched.insert(key, (entries.0, entries.1, outcomes.0, outcomes.1))?;
        }
        if let Some(applied) = applied {
            self.meta.insert(meta::SEGMENT, u64::from(applied.segment))?;
            self.meta.insert(meta::OFFSET, u64::from(applied.offset))?;
        }
        Ok(())
    }
}
