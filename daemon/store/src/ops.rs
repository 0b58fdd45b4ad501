//! What callers ask of the log, and the answers that wait until the log is durable.

use offpeak_core::words::{BatchId, LaneId, LaneKey, Timestamp};
use tokio::sync::oneshot;

use crate::error::StoreError;
use crate::values::{Appended, Document, IdleLane, NewBatch, NewOutcome, NewRequest, Recorded};

/// Where an answer goes. Nobody may wait any more; then it is dropped.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// A change that a caller asks for.
#[derive(Debug)]
pub(crate) enum Op {
    Lane { key: LaneKey, reply: Reply<LaneId> },
    Append { request: NewRequest, body_crc: u32, reply: Reply<Appended> },
    Seal { batch: NewBatch, reply: Reply<BatchId> },
    Advance { id: BatchId, progress: bytes::Bytes, reply: Reply<()> },
    End { id: BatchId, at: Timestamp, ending: String, reply: Reply<()> },
    Record { outcomes: Vec<Checked>, reply: Reply<Vec<Recorded>> },
    Keep { documents: Vec<Document>, reply: Reply<()> },
    RemoveLanes { idle: Vec<IdleLane>, reply: Reply<Vec<LaneId>> },
}

/// An outcome with the checksum of its body.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) outcome: NewOutcome,
    pub(crate) body_crc: u32,
}

impl Op {
    /// Answers without having done anything.
    pub(crate) fn refuse(self, error: StoreError) {
        match self {
            Self::Lane { reply, .. } => tell(reply, Err(error)),
            Self::Append { reply, .. } => tell(reply, Err(error)),
            Self::Seal { reply, .. } => tell(reply, Err(error)),
            Self::Advance { reply, .. } | Self::End { reply, .. } | Self::Keep { reply, .. } => {
                tell(reply, Err(error));
            }
            Self::Record { reply, .. } => tell(reply, Err(error)),
            Self::RemoveLanes { reply, .. } => tell(reply, Err(error)),
        }
    }
}

/// An answer that may be given once the group is durable.
#[derive(Debug)]
pub(crate) enum Answer {
    Lane(Reply<LaneId>, LaneId),
    Appended(Reply<Appended>, Appended),
    Sealed(Reply<BatchId>, BatchId),
    Done(Reply<()>, ()),
    Recorded(Reply<Vec<Recorded>>, Vec<Recorded>),
    Removed(Reply<Vec<LaneId>>, Vec<LaneId>),
}

impl Answer {
    /// Gives the answer, or the error that the group ended with.
    pub(crate) fn give(self, result: Result<(), &StoreError>) {
        match self {
            Self::Lane(reply, id) => tell(reply, with(result, id)),
            Self::Appended(reply, appended) => tell(reply, with(result, appended)),
            Self::Sealed(reply, id) => tell(reply, with(result, id)),
            Self::Done(reply, ()) => tell(reply, with(result, ())),
            Self::Recorded(reply, recorded) => tell(reply, with(result, recorded)),
            Self::Removed(reply, lanes) => tell(reply, with(result, lanes)),
        }
    }
}

fn with<T>(result: Result<(), &StoreError>, value: T) -> Result<T, StoreError> {
    match result {
        Ok(()) => Ok(value),
        Err(error) => Err(error.clone()),
    }
}

/// A caller that went away needs no answer.
pub(crate) fn tell<T>(reply: Reply<T>, result: Result<T, StoreError>) {
    drop(reply.send(result));
}
