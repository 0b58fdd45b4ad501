//! Decides what each operation writes: places, numbers, duplicates. Pure apart from looking things up in the index.
//!
//! The index runs a little behind the log. What is in the log but perhaps not in the index yet is kept in the
//! *overlay*, so that index and overlay together always say what the log says.

mod overlay;

use std::collections::{HashMap, HashSet};

use offpeak_core::extent::{Extent, Range};
use offpeak_core::words::{BatchId, LaneId, LaneKey, Place, Seq, Timestamp};

use crate::error::StoreError;
use crate::index::lanes::{LaneRow, Sealed};
use crate::index::lookup::{KeyRow, Rows};
use crate::index::tables::{key, meta};
use crate::index::{Index, View};
use crate::log::{Change, Ended, Position, Request, Requeued};
use crate::values::{
    Appended, BatchEnd, BatchRecord, IdleLane, NewBatch, NewOutcome, NewRequest, Recorded, Verdict,
};
use overlay::Overlay;

/// What the log's end looks like.
#[derive(Debug)]
pub(crate) struct Planner {
    lanes: HashMap<LaneId, LaneRow>,
    ids: HashMap<LaneKey, LaneId>,
    next_lane: u32,
    next_batch: u64,
    /// Open batches, and how often each was advanced.
    open: HashMap<BatchId, u32>,
    overlay: Overlay,
    /// How to take back what was planned since the last [`Planner::settle`].
    undo: Vec<Undo>,
}

/// Takes one planned change back.
#[derive(Debug)]
enum Undo {
    LaneCreated(LaneKey),
    LaneRemoved(LaneKey, LaneId, LaneRow),
    Entry(LaneId),
    Sealed(LaneId, Sealed),
    BatchSealed(BatchId),
    BatchAdvanced(BatchId),
    BatchEnded(BatchId, u32),
}

/// What an operation comes to.
#[derive(Debug)]
pub(crate) struct Planned<T> {
    pub(crate) answer: T,
    /// What to write.
    pub(crate) change: Option<Change>,
    /// The new entry, if it makes one.
    pub(crate) extent: Option<Extent>,
}

impl<T> Planned<T> {
    const fn nothing(answer: T) -> Self {
        Self { answer, change: None, extent: None }
    }
}

/// The index as operations of one group see it; opened only if one of them asks.
pub(crate) struct Lookup<'a> {
    index: &'a Index,
    view: Option<View>,
    rows: Rows,
}

impl<'a> Lookup<'a> {
    pub(crate) fn new(index: &'a Index) -> Self {
        Self { index, view: None, rows: Rows::default() }
    }

    fn view(&mut self) -> Result<(&View, &mut Rows), StoreError> {
        let view = match self.view.take() {
            Some(view) => view,
            None => self.index.view()?,
        };
        Ok((self.view.insert(view), &mut self.rows))
    }
}

impl Planner {
    /// Begins with an index that has the whole log.
    pub(crate) fn new(view: &View) -> Result<Self, StoreError> {
        let number = view.number(meta::NEXT_LANE)?;
        let mut planner = Self {
            lanes: HashMap::new(),
            ids: HashMap::new(),
            next_lane: u32::try_from(number).map_err(|_| StoreError::IndexDamaged("next lane"))?,
            next_batch: view.number(meta::NEXT_BATCH)?,
            open: HashMap::new(),
            overlay: Overlay::default(),
            undo: Vec::new(),
        };
        for (id, key, row) in view.lanes()? {
            planner.ids.insert(key, id);
            planner.lanes.insert(id, row);
        }
        planner.open.extend(view.open_batches()?.into_iter().map(|batch| (batch.id, batch.version)));
        Ok(planner)
    }

    /// The index has everything up to there; what it has need not be kept here.
    pub(crate) fn trim(&mut self, applied: Position) {
        self.overlay.trim(applied);
    }

    /// What was planned is durable, and ends there.
    pub(crate) fn settle(&mut self, upto: Position) {
        self.overlay.settle(upto);
        self.undo.clear();
    }

    /// What was planned since the last [`Planner::settle`] was not written.
    pub(crate) fn take_back(&mut self) {
        self.overlay.take_back();
        while let Some(undo) = self.undo.pop() {
            match undo {
                Undo::LaneCreated(key) => {
                    if let Some(id) = self.ids.remove(&key) {
                        self.lanes.remove(&id);
                    }
                    self.next_lane -= 1;
                }
                Undo::LaneRemoved(key, id, row) => {
                    self.ids.insert(key, id);
                    self.lanes.insert(id, row);
                }
                Undo::Entry(lane) => {
                    if let Some(row) = self.lanes.get_mut(&lane) {
                        row.next -= 1;
                    }
                }
                Undo::Sealed(lane, before) => {
                    if let Some(row) = self.lanes.get_mut(&lane) {
                        row.sealed = before;
                    }
                }
                Undo::BatchSealed(id) => {
                    self.open.remove(&id);
                    self.next_batch -= 1;
                }
                Undo::BatchAdvanced(id) => {
                    if let Some(version) = self.open.get_mut(&id) {
                        *version -= 1;
                    }
                }
                Undo::BatchEnded(id, version) => {
                    self.open.insert(id, version);
                }
            }
        }
    }

    /// A lane's number. There is nothing to write if the lane exists.
    pub(crate) fn lane(&mut self, key: &LaneKey) -> (LaneId, Option<Change>) {
        if let Some(&id) = self.ids.get(key) {
            return (id, None);
        }
        let id = LaneId(self.next_lane);
        self.next_lane += 1;
        self.ids.insert(key.clone(), id);
        self.lanes.insert(id, LaneRow::default());
        self.undo.push(Undo::LaneCreated(key.clone()));
        (id, Some(Change::LaneCreated { id, key: key.clone() }))
    }

    /// Removes those lanes to which nothing came since they were found to be idle. Their numbers are not given again.
    pub(crate) fn remove_lanes(&mut self, mut idle: Vec<IdleLane>) -> Vec<LaneId> {
        idle.retain(|lane| self.lanes.get(&lane.id).is_some_and(|row| row.next == lane.next.0));
        let wanted: HashSet<LaneId> = idle.iter().map(|lane| lane.id).collect();
        let gone = self.ids.extract_if(|_, id| wanted.contains(id));
        let mut removed = Vec::with_capacity(idle.len());
        for (key, id) in gone {
            if let Some(row) = self.lanes.remove(&id) {
                self.undo.push(Undo::LaneRemoved(key, id, row));
                removed.push(id);
            }
        }
        removed.sort_unstable();
        removed
    }

    /// A new request. There is nothing to write unless it is [`Appended::New`].
    pub(crate) fn append(
        &mut self,
        lookup: &mut Lookup<'_>,
        request: &NewRequest,
    ) -> Result<Planned<Appended>, StoreError> {
        if !self.lanes.contains_key(&request.lane) {
            return Err(StoreError::UnknownLane(request.lane));
        }
        if let Some(idempotency) = &request.idempotency {
            let known = match self.overlay.key(&idempotency.key) {
                Some(row) => Some(row),
                None => lookup.view()?.0.idempotency(&idempotency.key)?,
            };
            if let Some(row) = known.filter(|row| row.expires > request.arrived.0) {
                let answer = row.answer(request.body_hash);
                return Ok(Planned::nothing(answer));
            }
        }
        let place = self.next_place(request.lane)?;
        if let Some(idempotency) = &request.idempotency {
            let row = KeyRow { body_hash: request.body_hash, place, expires: idempotency.expires.0 };
            self.overlay.add_key(idempotency.key, row);
        }
        let change = Change::Request(Request {
            place,
            arrived: request.arrived,
            deadline: request.deadline,
            tokens: request.tokens,
            body_hash: request.body_hash,
            flags: request.flags,
            idempotency: request.idempotency,
        });
        let extent = Extent {
            lane: place.lane,
            first: place.seq,
            count: 1,
            bytes: request.body.len() as u64,
            tokens: request.tokens.into(),
            oldest: request.arrived,
            earliest_deadline: request.deadline,
            not_before: Timestamp(0),
        };
        Ok(Planned { answer: Appended::New(place), change: Some(change), extent: Some(extent) })
    }

    fn next_place(&mut self, lane: LaneId) -> Result<Place, StoreError> {
        let row = self.lanes.get_mut(&lane).ok_or(StoreError::UnknownLane(lane))?;
        let place = Place { lane, seq: Seq(row.next) };
        row.next += 1;
        self.undo.push(Undo::Entry(lane));
        Ok(place)
    }

    /// A new batch.
    pub(crate) fn seal(&mut self, batch: NewBatch) -> Result<(BatchId, Change), StoreError> {
        let before = self.undo.len();
        for &range in &batch.ranges {
            if let Err(error) = self.seal_range(range) {
                self.unseal(before);
                return Err(error);
            }
        }
        let id = BatchId(self.next_batch);
        self.next_batch += 1;
        self.open.insert(id, 0);
        self.undo.push(Undo::BatchSealed(id));
        let record = BatchRecord {
            id,
            backend: batch.backend,
            endpoint: batch.endpoint,
            model: batch.model,
            offer: batch.offer,
            headers: batch.headers,
            ranges: batch.ranges,
            created_at: batch.created_at,
            version: 0,
            progress: batch.progress,
            ended: None,
        };
        Ok((id, Change::BatchSealed(Box::new(record))))
    }

    fn seal_range(&mut self, range: Range) -> Result<(), StoreError> {
        let row = self.lanes.get_mut(&range.lane).ok_or(StoreError::UnknownLane(range.lane))?;
        let (from, to) = (range.from.0, range.to.0);
        if range.is_empty() || to > row.next || row.sealed.overlaps(from, to) {
            return Err(StoreError::BadRange(range));
        }
        self.undo.push(Undo::Sealed(range.lane, row.sealed.clone()));
        row.sealed.add(from, to);
        Ok(())
    }

    fn unseal(&mut self, upto: usize) {
        for undo in self.undo.drain(upto..).rev() {
            if let Undo::Sealed(lane, before) = undo
                && let Some(row) = self.lanes.get_mut(&lane)
            {
                row.sealed = before;
            }
        }
    }

    /// A new state of an open batch.
    pub(crate) fn advance(&mut self, id: BatchId, progress: bytes::Bytes) -> Result<Change, StoreError> {
        let version = self.open.get_mut(&id).ok_or(StoreError::UnknownBatch(id))?;
        *version += 1;
        self.undo.push(Undo::BatchAdvanced(id));
        Ok(Change::BatchAdvanced { id, version: *version, progress })
    }

    /// The end of an open batch.
    pub(crate) fn end(&mut self, id: BatchId, end: BatchEnd) -> Result<Change, StoreError> {
        let version = self.open.remove(&id).ok_or(StoreError::UnknownBatch(id))?;
        self.undo.push(Undo::BatchEnded(id, version));
        Ok(Change::BatchEnded { id, at: end.at, ending: end.ending })
    }

    /// All lanes that these outcomes name exist.
    pub(crate) fn check_lanes<'a>(
        &self,
        outcomes: impl Iterator<Item = &'a NewOutcome>,
    ) -> Result<(), StoreError> {
        for outcome in outcomes {
            match outcome.verdict {
                Verdict::Requeue { lane, .. } if !self.lanes.contains_key(&lane) => {
                    return Err(StoreError::UnknownLane(lane));
                }
                Verdict::Requeue { .. } | Verdict::Final => {}
            }
        }
        Ok(())
    }

    /// An outcome. There is nothing to write unless it is [`Recorded::New`].
    pub(crate) fn record(
        &mut self,
        lookup: &mut Lookup<'_>,
        outcome: &NewOutcome,
    ) -> Result<Planned<Recorded>, StoreError> {
        let place = outcome.place;
        if self.lanes.get(&place.lane).is_none_or(|row| row.next <= place.seq.0) {
            return Ok(Planned::nothing(Recorded::Unknown));
        }
        if self.overlay.has_outcome(place) {
            return Ok(Planned::nothing(Recorded::Duplicate));
        }
        let (view, rows) = lookup.view()?;
        if view.outcomes.get(key(place))?.is_some() {
            return Ok(Planned::nothing(Recorded::Duplicate));
        }
        // Callers wait until the index has what they saw, so an entry that it does not have is none of theirs.
        let Some(entry) = rows.entry(&view.extents, place)? else {
            return Ok(Planned::nothing(Recorded::Unknown));
        };
        let origin = entry.origin(place);
        let NewOutcome { attempts, batch, finished_at, .. } = *outcome;
        let ending = outcome.ending.clone();
        let documents = outcome.documents.clone();
        match outcome.verdict {
            Verdict::Final => {
                self.overlay.add_outcome(place);
                let ended = Ended { place, attempts, batch, finished_at, ending, documents };
                let answer = Recorded::New { origin, requeued: None };
                Ok(Planned { answer, change: Some(Change::Ended(ended)), extent: None })
            }
            Verdict::Requeue { lane, deadline, not_before } => {
                let to = self.next_place(lane)?;
                self.overlay.add_outcome(place);
                let requeued = Requeued {
                    from: place,
                    to,
                    deadline,
                    not_before,
                    attempts,
                    batch,
                    finished_at,
                    reason: ending,
                    documents,
                };
                Ok(Planned {
                    answer: Recorded::New { origin, requeued: Some(to) },
                    change: Some(Change::Requeued(requeued)),
                    extent: Some(entry.requeued(place, deadline, attempts, not_before).extent(to)),
                })
            }
        }
    }
}
