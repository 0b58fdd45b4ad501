//! How far a lane is: its next position, and which positions batches have.

use bytes::BufMut;

use crate::codec::Take;
use crate::error::StoreError;

/// How far a lane is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct LaneRow {
    /// The next position.
    pub(crate) next: u64,
    /// What batches have.
    pub(crate) sealed: Sealed,
}

/// The positions of a lane that batches have. Batches mostly take a lane from its front, so that this is one number.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Sealed {
    /// Everything before this is sealed.
    head: u64,
    /// Sealed ranges behind it, ascending, apart from each other and from `head`.
    beyond: Vec<(u64, u64)>,
}

impl Sealed {
    /// The first position that is not sealed.
    pub(crate) const fn head(&self) -> u64 {
        self.head
    }

    /// Some position of the range is sealed.
    pub(crate) fn overlaps(&self, from: u64, to: u64) -> bool {
        from < self.head || self.beyond.iter().any(|&(first, end)| first < to && from < end)
    }

    /// Adds a range that does not overlap.
    pub(crate) fn add(&mut self, from: u64, to: u64) {
        let at = self.beyond.partition_point(|&(first, _)| first < from);
        self.beyond.insert(at, (from, to));
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(self.beyond.len());
        for &(first, end) in &self.beyond {
            match merged.last_mut() {
                _ if first <= self.head => self.head = self.head.max(end),
                Some(last) if first <= last.1 => last.1 = last.1.max(end),
                _ => merged.push((first, end)),
            }
        }
        self.beyond = merged;
    }

    /// The parts of `from..to` that are not sealed.
    pub(crate) fn gaps(&self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut at = from.max(self.head);
        for &(first, end) in &self.beyond {
            if at < first.min(to) {
                gaps.push((at, first.min(to)));
            }
            at = at.max(end);
        }
        if at < to {
            gaps.push((at, to));
        }
        gaps
    }
}

impl LaneRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16 + 16 * self.sealed.beyond.len());
        bytes.put_u64_le(self.next);
        bytes.put_u64_le(self.sealed.head);
        for &(from, to) in &self.sealed.beyond {
            bytes.put_u64_le(from);
            bytes.put_u64_le(to);
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        Self::take(bytes).ok_or(StoreError::IndexDamaged("lane"))
    }

    fn take(bytes: &[u8]) -> Option<Self> {
        let mut take = Take(bytes);
        let (next, head) = (take.u64()?, take.u64()?);
        let mut beyond = Vec::new();
        while take.finish().is_none() {
            beyond.push((take.u64()?, take.u64()?));
        }
        Some(Self { next, sealed: Sealed { head, beyond } })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set_of_positions(ranges in proptest::collection::vec((0..60_u64, 1..8_u64), 0..20)) {
            let mut row = LaneRow { next: 70, ..LaneRow::default() };
            let mut model = BTreeSet::new();
            for (from, length) in ranges {
                let to = from + length;
                let overlaps = (from..to).any(|at| model.contains(&at));
                prop_assert_eq!(row.sealed.overlaps(from, to), overlaps);
                if !overlaps {
                    row.sealed.add(from, to);
                    model.extend(from..to);
                }
                let head = (0..=70).find(|at| !model.contains(at));
                prop_assert_eq!(Some(row.sealed.head()), head);
                let free: Vec<u64> =
                    row.sealed.gaps(3, 50).into_iter().flat_map(|(from, to)| from..to).collect();
                let expected: Vec<u64> = (3..50).filter(|at| !model.contains(at)).collect();
                prop_assert_eq!(free, expected);
                prop_assert_eq!(LaneRow::decode(&row.encode()).unwrap(), row.clone());
            }
        }
    }

    #[test]
    fn sealing_from_the_front_keeps_one_number() {
        let mut sealed = Sealed::default();
        for at in 0..1000 {
            sealed.add(at, at + 1);
        }
        assert_eq!(sealed, Sealed { head: 1000, beyond: Vec::new() });
    }
}
