//! Rows of the extents table: entries that stand next to each other in a lane and whose bodies are in one segment.
//!
//! ```text
//! header, 40 bytes: segment u32, kind u8 (0 requests, 1 requeued), zero u8, count u16,
//!                   bytes u64, tokens u64, oldest u64, earliest deadline u64
//! a request, 38 bytes: offset u32, body u32, meta u16, tokens u32, arrived u64, deadline u64, hash u64
//! requeued, 60 bytes: the same, then attempts u16, not before u64, origin (u32, u64)
//! ```
//! Where a row ends is decided by the log alone (full, or another segment or kind), never by how many records are
//! applied at once: the same log gives the same rows.

use bytes::BufMut;
use offpeak_core::extent::Extent;
use offpeak_core::words::{LaneId, Place, Seq, Timestamp};

use crate::codec::{Put, Take};
use crate::error::StoreError;
use crate::log::Location;
use crate::log::record::REQUEST_HEAD;

const HEADER: usize = 40;
const REQUEST: usize = 38;
const REQUEUED: usize = 60;
/// Entries a row: so many that a full row fills one 4 KiB page of the index.
const MOST_REQUESTS: usize = 104;
const MOST_REQUEUED: usize = 64;

/// What the index knows of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Indexed {
    /// Where the request's record is.
    pub(crate) at: Location,
    pub(crate) tokens: u32,
    pub(crate) arrived: Timestamp,
    pub(crate) deadline: Timestamp,
    pub(crate) body_hash: u64,
    /// What is different in an entry that is not the request's first.
    pub(crate) again: Option<Again>,
}

/// What a requeued entry has besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Again {
    pub(crate) attempts: u16,
    pub(crate) not_before: Timestamp,
    pub(crate) origin: Place,
}

impl Indexed {
    /// The request's identity, for an entry at this place.
    pub(crate) fn origin(&self, place: Place) -> Place {
        self.again.map_or(place, |again| again.origin)
    }

    pub(crate) fn attempts(&self) -> u16 {
        self.again.map_or(0, |again| again.attempts)
    }

    /// The same request, as it stands where it goes again from `from`.
    pub(crate) fn requeued(
        &self,
        from: Place,
        deadline: Timestamp,
        attempts: u16,
        not_before: Timestamp,
    ) -> Self {
        let again = Again { attempts, not_before, origin: self.origin(from) };
        Self { deadline, again: Some(again), ..*self }
    }

    /// As an extent of one.
    pub(crate) fn extent(&self, place: Place) -> Extent {
        Extent {
            lane: place.lane,
            first: place.seq,
            count: 1,
            bytes: self.at.body.into(),
            tokens: self.tokens.into(),
            // One that goes again begins to wait anew, when it may.
            oldest: self.again.map_or(self.arrived, |again| again.not_before.max(self.arrived)),
            earliest_deadline: self.deadline,
            not_before: self.again.map_or(Timestamp(0), |again| again.not_before),
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32_le(self.at.offset);
        out.put_u32_le(self.at.body);
        out.put_u16_le(self.at.meta);
        out.put_u32_le(self.tokens);
        out.put_time(self.arrived);
        out.put_time(self.deadline);
        out.put_u64_le(self.body_hash);
        if let Some(again) = &self.again {
            out.put_u16_le(again.attempts);
            out.put_time(again.not_before);
            out.put_place(again.origin);
        }
    }

    fn decode(bytes: &[u8], segment: u32, is_again: bool) -> Option<Self> {
        let mut take = Take(bytes);
        let (offset, body, meta) = (take.u32()?, take.u32()?, take.u16()?);
        Some(Self {
            at: Location { segment, offset, head: REQUEST_HEAD, meta, body },
            tokens: take.u32()?,
            arrived: take.time()?,
            deadline: take.time()?,
            body_hash: take.u64()?,
            again: if is_again {
                Some(Again { attempts: take.u16()?, not_before: take.time()?, origin: take.place()? })
            } else {
                None
            },
        })
    }
}

/// A row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) segment: u32,
    is_again: bool,
    /// All its entries summed up.
    pub(crate) extent: Extent,
    entries: Vec<u8>,
}

impl Row {
    /// A row with its first entry.
    pub(crate) fn new(place: Place, entry: &Indexed) -> Self {
        let is_again = entry.again.is_some();
        let mut entries = Vec::new();
        entry.encode(&mut entries);
        Self { segment: entry.at.segment, is_again, extent: entry.extent(place), entries }
    }

    /// Adds the next entry; false if it belongs into a row of its own.
    pub(crate) fn push(&mut self, place: Place, entry: &Indexed) -> bool {
        let most = if self.is_again { MOST_REQUEUED } else { MOST_REQUESTS };
        let fits = (self.segment, self.is_again) == (entry.at.segment, entry.again.is_some())
            && (self.extent.lane, self.extent.end()) == (place.lane, place.seq)
            && (self.extent.count as usize) < most;
        if fits {
            self.extent.join(&entry.extent(place));
            entry.encode(&mut self.entries);
        }
        fits
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.entries.len());
        bytes.put_u32_le(self.segment);
        bytes.put_u8(self.is_again.into());
        bytes.put_u8(0);
        // At most `MOST_REQUESTS`.
        bytes.put_u16_le(u16::try_from(self.extent.count).unwrap_or(u16::MAX));
        bytes.put_u64_le(self.extent.bytes);
        bytes.put_u64_le(self.extent.tokens);
        bytes.put_time(self.extent.oldest);
        bytes.put_time(self.extent.earliest_deadline);
        bytes.put_slice(&self.entries);
        bytes
    }

    pub(crate) fn decode(key: (u32, u64), bytes: &[u8]) -> Result<Self, StoreError> {
        let (segment, is_again, extent, entries) =
            take_header(key, bytes).ok_or(StoreError::IndexDamaged("extent"))?;
        Ok(Self { segment, is_again, extent, entries: entries.to_vec() })
    }

    /// The entry at a position.
    pub(crate) fn get(&self, seq: u64) -> Option<Indexed> {
        let at = usize::try_from(seq.checked_sub(self.extent.first.0)?).ok()?;
        let size = if self.is_again { REQUEUED } else { REQUEST };
        let bytes = self.entries.get(at.checked_mul(size)?..)?.get(..size)?;
        Indexed::decode(bytes, self.segment, self.is_again)
    }

    /// The position after the last.
    pub(crate) const fn end(&self) -> u64 {
        self.extent.end().0
    }

    /// The entries in `from..to`.
    pub(crate) fn entries(&self, from: u64, to: u64) -> impl Iterator<Item = (Place, Indexed)> + '_ {
        let lane = self.extent.lane;
        (from.max(self.extent.first.0)..to.min(self.end()))
            .filter_map(move |seq| Some((Place { lane, seq: Seq(seq) }, self.get(seq)?)))
    }

    /// The entries in `from..to`, summed up as far as they wait as one.
    pub(crate) fn parts(&self, from: u64, to: u64) -> Vec<Extent> {
        if !self.is_again && from <= self.extent.first.0 && self.end() <= to {
            return vec![self.extent];
        }
        let mut parts: Vec<Extent> = Vec::new();
        for (place, entry) in self.entries(from, to) {
            let next = entry.extent(place);
            // Those that were never sent are one whatever their deadlines.
            match parts.last_mut().filter(|last| !self.is_again || last.goes_on_with(&next)) {
                Some(last) => last.join(&next),
                None => parts.push(next),
            }
        }
        parts
    }
}

/// The sum of a row, without its entries.
pub(crate) fn summary(key: (u32, u64), bytes: &[u8]) -> Result<(u32, Extent), StoreError> {
    let (segment, _, extent, _) = take_header(key, bytes).ok_or(StoreError::IndexDamaged("extent"))?;
    Ok((segment, extent))
}

/// When the last pause of a row's entries ends.
fn paused_until(is_again: bool, entries: &[u8]) -> Timestamp {
    let ends = |entry: &[u8]| Indexed::decode(entry, 0, true)?.again.map(|again| again.not_before);
    let all = entries.chunks_exact(REQUEUED).filter(|_| is_again);
    all.filter_map(ends).max().unwrap_or(Timestamp(0))
}

fn take_header((lane, first): (u32, u64), bytes: &[u8]) -> Option<(u32, bool, Extent, &[u8])> {
    let mut take = Take(bytes);
    let (segment, is_again, _) = (take.u32()?, take.u8()? != 0, take.u8()?);
    let mut extent = Extent {
        lane: LaneId(lane),
        first: Seq(first),
        count: take.u16()?.into(),
        bytes: take.u64()?,
        tokens: take.u64()?,
        oldest: take.time()?,
        earliest_deadline: take.time()?,
        not_before: Timestamp(0),
    };
    extent.not_before = paused_until(is_again, take.0);
    let size = if is_again { REQUEUED } else { REQUEST };
    (take.0.len() == size * extent.count as usize && extent.count > 0)
        .then_some((segment, is_again, extent, take.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries(segment: u32, is_again: bool) -> impl Strategy<Value = Indexed> {
        let again = (any::<u16>(), any::<u64>(), any::<u32>(), any::<u64>()).prop_map(
            move |(attempts, not_before, lane, seq)| {
                let origin = Place { lane: LaneId(lane), seq: Seq(seq) };
                is_again.then_some(Again { attempts, not_before: Timestamp(not_before), origin })
            },
        );
        let place = (any::<u32>(), any::<u32>(), any::<u16>());
        let about = (any::<u32>(), any::<u64>(), any::<u64>(), any::<u64>());
        (place, about, again).prop_map(
            move |((offset, body, meta), (tokens, arrived, deadline, body_hash), again)| Indexed {
                at: Location { segment, offset, head: REQUEST_HEAD, meta, body },
                tokens,
                arrived: Timestamp(arrived),
                deadline: Timestamp(deadline),
                body_hash,
                again,
            },
        )
    }

    fn rows() -> impl Strategy<Value = (u64, Vec<Indexed>)> {
        (0..1_u64 << 40, any::<u32>(), any::<bool>()).prop_flat_map(|(first, segment, is_again)| {
            (Just(first), proptest::collection::vec(entries(segment, is_again), 1..64))
        })
    }

    fn at(seq: u64) -> Place {
        Place { lane: LaneId(3), seq: Seq(seq) }
    }

    fn fill(first: u64, entries: &[Indexed]) -> Row {
        let mut row = Row::new(at(first), &entries[0]);
        for (seq, entry) in (first + 1..).zip(&entries[1..]) {
            assert!(row.push(at(seq), entry));
        }
        row
    }

    proptest! {
        #[test]
        fn what_is_packed_is_found((first, entries) in rows()) {
            let row = fill(first, &entries);
            let row = Row::decode((3, first), &row.encode()).unwrap();
            for (seq, entry) in (first..).zip(&entries) {
                prop_assert_eq!(row.get(seq), Some(*entry));
            }
            prop_assert_eq!(row.get(row.end()), None);
            prop_assert_eq!(first.checked_sub(1).and_then(|before| row.get(before)), None);
            prop_assert_eq!(row.extent.bytes, entries.iter().map(|entry| u64::from(entry.at.body)).sum::<u64>());
            let earliest = entries.iter().map(|entry| entry.deadline).min();
            prop_assert_eq!(Some(row.extent.earliest_deadline), earliest);
        }

        #[test]
        fn parts_add_up((first, entries) in rows(), cut: prop::sample::Index) {
            let row = fill(first, &entries);
            let cut = first + cut.index(entries.len() + 1) as u64;
            let parts = row.parts(0, cut).into_iter().chain(row.parts(cut, u64::MAX));
            let sum = parts.reduce(|mut sum, part| { sum.join(&part); sum });
            prop_assert_eq!(sum, Some(row.extent));
        }
    }

    #[test]
    fn a_full_row_fits_a_page() {
        let overhead = 4 + 4 + 12;
        assert!(HEADER + MOST_REQUESTS * REQUEST + overhead <= 4096);
        assert!(HEADER + MOST_REQUEUED * REQUEUED + overhead <= 4096);
    }

    #[test]
    fn a_damaged_row_is_refused() {
        assert!(Row::decode((1, 1), &[0; 10]).is_err());
        assert!(Row::decode((1, 1), &[0; HEADER]).is_err());
    }
}
