//! The log's side of the store: plans operations, writes them as one group, makes the group durable. Synchronous and
//! single-threaded; who calls it, and from which thread, is decided elsewhere.

use std::sync::Arc;
use std::time::{Duration, Instant};

use offpeak_core::extent::Extent;
use offpeak_core::words::LaneId;

use crate::error::StoreError;
use crate::index::{Group, Index};
use crate::log::record::Payload;
use crate::log::writer::LogWriter;
use crate::log::{Change, Logged, Position};
use crate::ops::{Answer, Checked, Op};
use crate::planner::{Lookup, Planner};
use crate::values::{Appended, BatchEnd, IdleLane, Recorded, Verdict};

/// A group that has so many bytes takes no further operations.
const GROUP_BYTES: usize = 8 << 20;

/// The log's side of the store.
#[derive(Debug)]
pub(crate) struct Engine {
    writer: LogWriter,
    planner: Planner,
    index: Arc<Index>,
}

/// A durable group, and who waits for it.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) group: Group,
    /// New entries: of each lane one extent, or several where their pauses end at different times.
    pub(crate) extents: Vec<Extent>,
    pub(crate) answers: Vec<Answer>,
    /// How long writing and syncing took.
    pub(crate) took: Duration,
    /// Bytes written.
    pub(crate) bytes: u64,
}

/// A group under construction.
#[derive(Debug, Default)]
struct Draft {
    records: Vec<Logged>,
    extents: Vec<Extent>,
    answers: Vec<Answer>,
}

/// Why an operation was not done.
enum Fault {
    /// It alone fails.
    Op(StoreError),
    /// It has left something half done: the group fails.
    Group(StoreError),
}

impl Engine {
    pub(crate) fn new(writer: LogWriter, index: Arc<Index>) -> Result<Self, StoreError> {
        let planner = Planner::new(&index.view()?)?;
        Ok(Self { writer, planner, index })
    }

    /// Where the durable log ends.
    pub(crate) const fn end(&self) -> Position {
        self.writer.end()
    }

    /// Gives back the room that was reserved and is not used.
    pub(crate) fn finish(&self) -> Result<(), StoreError> {
        self.writer.finish()
    }

    /// Takes operations until the group is large enough and makes it durable. If that fails, those who asked are
    /// told, and nothing has changed.
    ///
    /// `applied` is what the index has at least.
    pub(crate) fn run(&mut self, ops: &mut impl Iterator<Item = Op>, applied: Position) -> Option<Written> {
        self.planner.trim(applied);
        if let Err(error) = self.writer.begin() {
            ops.for_each(|op| op.refuse(error.clone()));
            return None;
        }
        let mut draft = Draft::default();
        let index = self.index.clone();
        let mut lookup = Lookup::new(&index);
        let mut planned = Ok(());
        while planned.is_ok() && self.writer.pending_bytes() < GROUP_BYTES {
            let Some(op) = ops.next() else { break };
            planned = self.plan(op, &mut lookup, &mut draft);
        }
        drop(lookup);
        let bytes = self.writer.pending_bytes() as u64;
        // How long the disk takes is for people to look at; nothing is decided by it.
        let begun = Instant::now();
        match planned.and_then(|()| self.writer.commit()) {
            Ok(upto) => {
                self.planner.settle(upto);
                let group = Group { records: draft.records, upto };
                let took = begun.elapsed();
                Some(Written { group, extents: draft.extents, answers: draft.answers, took, bytes })
            }
            Err(error) => {
                self.writer.abandon();
                self.planner.take_back();
                for answer in draft.answers {
                    answer.give(Err(&error));
                }
                None
            }
        }
    }

    /// Plans one operation. An error is the group's.
    fn plan(&mut self, op: Op, lookup: &mut Lookup<'_>, draft: &mut Draft) -> Result<(), StoreError> {
        let before = draft.records.len();
        // Reports a fault of one operation to the one who asked, and passes on that of a group.
        macro_rules! answer {
            ($reply:expr, $result:expr, $answer:path) => {
                match $result {
                    Ok(value) => draft.answers.push($answer($reply, value)),
                    Err(Fault::Op(error)) if draft.records.len() == before => {
                        crate::ops::tell($reply, Err(error));
                    }
                    Err(Fault::Op(error) | Fault::Group(error)) => {
                        crate::ops::tell($reply, Err(error.clone()));
                        return Err(error);
                    }
                }
            };
        }
        match op {
            Op::Lane { key, reply } => {
                let (id, change) = self.planner.lane(&key);
                let written = change.map_or(Ok(()), |change| self.write(change, Payload::default(), draft));
                answer!(reply, written.map(|()| id), Answer::Lane);
            }
            Op::Append { request, body_crc, reply } => {
                let appended = self.append(&request, body_crc, lookup, draft);
                answer!(reply, appended, Answer::Appended);
            }
            Op::Seal { batch, reply } => {
                let sealed = self
                    .planner
                    .seal(batch)
                    .map_err(Fault::Op)
                    .and_then(|(id, change)| self.write(change, Payload::default(), draft).map(|()| id));
                answer!(reply, sealed, Answer::Sealed);
            }
            Op::Advance { id, progress, reply } => {
                let change = self.planner.advance(id, progress).map_err(Fault::Op);
                let written = change.and_then(|change| self.write(change, Payload::default(), draft));
                answer!(reply, written, Answer::Done);
            }
            Op::End { id, at, ending, reply } => {
                let change = self.planner.end(id, BatchEnd { at, ending }).map_err(Fault::Op);
                let written = change.and_then(|change| self.write(change, Payload::default(), draft));
                answer!(reply, written, Answer::Done);
            }
            Op::Record { outcomes, reply } => {
                let recorded = self.record(&outcomes, lookup, draft);
                answer!(reply, recorded, Answer::Recorded);
            }
            Op::RemoveLanes { idle, reply } => {
                let removed = self.remove_lanes(idle, draft);
                answer!(reply, removed, Answer::Removed);
            }
            Op::Keep { documents, reply } => {
                let written = self.write(Change::Documents(documents), Payload::default(), draft);
                answer!(reply, written, Answer::Done);
            }
        }
        Ok(())
    }

    fn append(
        &mut self,
        request: &crate::values::NewRequest,
        body_crc: u32,
        lookup: &mut Lookup<'_>,
        draft: &mut Draft,
    ) -> Result<Appended, Fault> {
        let planned = self.planner.append(lookup, request).map_err(Fault::Op)?;
        if let Some(change) = planned.change {
            let payload = Payload { meta: &request.meta, body: &request.body, body_crc };
            self.write(change, payload, draft)?;
            draft.add_extent(planned.extent);
        }
        Ok(planned.answer)
    }

    fn record(
        &mut self,
        outcomes: &[Checked],
        lookup: &mut Lookup<'_>,
        draft: &mut Draft,
    ) -> Result<Vec<Recorded>, Fault> {
        self.planner.check_lanes(outcomes.iter().map(|checked| &checked.outcome)).map_err(Fault::Op)?;
        let mut answers = Vec::with_capacity(outcomes.len());
        for Checked { outcome, body_crc } in outcomes {
            let planned = self.planner.record(lookup, outcome).map_err(Fault::Op)?;
            if let Some(change) = planned.change {
                let payload = match outcome.verdict {
                    Verdict::Final => {
                        Payload { meta: &outcome.meta, body: &outcome.body, body_crc: *body_crc }
                    }
                    Verdict::Requeue { .. } => Payload::default(),
                };
                self.write(change, payload, draft)?;
                draft.add_extent(planned.extent);
            }
            answers.push(planned.answer);
        }
        Ok(answers)
    }

    fn remove_lanes(&mut self, idle: Vec<IdleLane>, draft: &mut Draft) -> Result<Vec<LaneId>, Fault> {
        let removed = self.planner.remove_lanes(idle);
        for id in &removed {
            self.write(Change::LaneRemoved { id: *id }, Payload::default(), draft)?;
        }
        Ok(removed)
    }

    fn write(&mut self, change: Change, payload: Payload<'_>, draft: &mut Draft) -> Result<(), Fault> {
        let at = self.writer.push(&change, payload).map_err(Fault::Group)?;
        draft.records.push(Logged { change, at });
        Ok(())
    }
}

impl Draft {
    fn add_extent(&mut self, extent: Option<Extent>) {
        let Some(extent) = extent else { return };
        let latest = self.extents.iter_mut().rev().find(|before| before.lane == extent.lane);
        match latest.filter(|before| before.goes_on_with(&extent)) {
            Some(before) => before.join(&extent),
            None => self.extents.push(extent),
        }
    }
}
