//! Rows of the outcomes table: how an entry ended.

use bytes::BufMut;
use offpeak_core::outcome::Ending;
use offpeak_core::words::{BatchId, Place, Timestamp};

use crate::codec::{Put, Take, some_batch};
use crate::error::StoreError;
use crate::log::Location;

/// How an entry ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OutcomeRow {
    /// The request is finished; its answer is in the log.
    Final {
        /// Where.
        at: Location,
        attempts: u16,
        batch: Option<BatchId>,
        finished_at: Timestamp,
        ending: Ending,
    },
    /// The request goes again from another place.
    Requeued {
        /// From there.
        to: Place,
        batch: Option<BatchId>,
        finished_at: Timestamp,
        reason: Ending,
    },
    /// The request was finished and its answer is swept, but its own segment is still needed by others.
    Swept,
}

impl OutcomeRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(48);
        match self {
            Self::Final { at, attempts, batch, finished_at, ending } => {
                bytes.put_u8(0);
                bytes.put_u32_le(at.segment);
                bytes.put_u32_le(at.offset);
                bytes.put_u16_le(at.head);
                bytes.put_u16_le(at.meta);
                bytes.put_u32_le(at.body);
                bytes.put_u16_le(*attempts);
                bytes.put_batch(*batch);
                bytes.put_time(*finished_at);
                bytes.put_ending(ending);
            }
            Self::Requeued { to, batch, finished_at, reason } => {
                bytes.put_u8(1);
                bytes.put_place(*to);
                bytes.put_batch(*batch);
                bytes.put_time(*finished_at);
                bytes.put_ending(reason);
            }
            Self::Swept => bytes.put_u8(2),
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        Self::take(&mut Take(bytes)).ok_or(StoreError::IndexDamaged("outcome"))
    }

    fn take(take: &mut Take<'_>) -> Option<Self> {
        let row = match take.u8()? {
            0 => Self::Final {
                at: Location {
                    segment: take.u32()?,
                    offset: take.u32()?,
                    head: take.u16()?,
                    meta: take.u16()?,
                    body: take.u32()?,
                },
                attempts: take.u16()?,
                batch: some_batch(take.u64()?),
                finished_at: take.time()?,
                ending: take.ending()?,
            },
            1 => Self::Requeued {
                to: take.place()?,
                batch: some_batch(take.u64()?),
                finished_at: take.time()?,
                reason: take.ending()?,
            },
            2 => Self::Swept,
            _ => return None,
        };
        take.finish()?;
        Some(row)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::tests::endings;
    use crate::log::record::tests::places;

    proptest! {
        #[test]
        fn what_is_written_is_read(to in places(), ending in endings(), numbers: (u32, u32, u16, u16, u32, u16, u64)) {
            let (segment, offset, head, meta, body, attempts, time) = numbers;
            let batch = Some(BatchId(time | 1));
            let finished_at = Timestamp(time);
            let at = Location { segment, offset, head, meta, body };
            let rows = [
                OutcomeRow::Final { at, attempts, batch, finished_at, ending: ending.clone() },
                OutcomeRow::Requeued { to, batch: None, finished_at, reason: ending },
                OutcomeRow::Swept,
            ];
            for row in rows {
                prop_assert_eq!(OutcomeRow::decode(&row.encode()).unwrap(), row);
            }
        }
    }

    #[test]
    fn a_damaged_row_is_refused() {
        assert!(OutcomeRow::decode(&[]).is_err());
        assert!(OutcomeRow::decode(&[9]).is_err());
        assert!(OutcomeRow::decode(&[2, 2]).is_err());
    }
}
