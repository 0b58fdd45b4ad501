//! A run of neighbouring requests in a lane, summed up: the unit in which lanes are counted, so that memory is per
//! extent and never per request.

use serde::{Deserialize, Serialize};

use crate::words::{LaneId, Seq, Timestamp};

/// Requests `first .. first + count` of one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// The lane.
    pub lane: LaneId,
    /// The first position.
    pub first: Seq,
    /// How many; at least 1.
    pub count: u32,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Their estimated input tokens.
    pub tokens: u64,
    /// When the first of them began to wait: its arrival, or, if it goes again, the time before which it must not.
    pub oldest: Timestamp,
    /// The earliest of their deadlines.
    pub earliest_deadline: Timestamp,
}

impl Extent {
    /// The position after the last.
    #[must_use]
    pub const fn end(&self) -> Seq {
        Seq(self.first.0 + self.count as u64)
    }

    /// Takes in the extent that follows directly. The caller has made sure that it does.
    pub fn join(&mut self, next: &Self) {
        debug_assert_eq!((self.lane, self.end()), (next.lane, next.first));
        self.count += next.count;
        self.bytes += next.bytes;
        self.tokens += next.tokens;
        self.oldest = self.oldest.min(next.oldest);
        self.earliest_deadline = self.earliest_deadline.min(next.earliest_deadline);
    }
}

/// A part of what a batch carries: neighbouring requests with deadlines that lie close together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cargo {
    /// Which.
    pub range: Range,
    /// Their estimated input tokens.
    pub tokens: u64,
    /// The earliest of their deadlines.
    pub deadline: Timestamp,
}

/// The ranges of a cargo: neighbours are one.
#[must_use]
pub fn ranges(cargo: &[Cargo]) -> Vec<Range> {
    let mut sorted: Vec<Range> = cargo.iter().map(|cargo| cargo.range).collect();
    sorted.sort_by_key(|range| (range.lane, range.from));
    let mut ranges: Vec<Range> = Vec::new();
    for range in sorted {
        match ranges.last_mut() {
            Some(last) if last.lane == range.lane && last.to == range.from => last.to = range.to,
            _ => ranges.push(range),
        }
    }
    ranges
}

/// Requests `from .. to` of one lane: what a batch is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// The lane.
    pub lane: LaneId,
    /// The first position.
    pub from: Seq,
    /// The position after the last.
    pub to: Seq,
}

impl Range {
    /// How many positions it has.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.to.0.saturating_sub(self.from.0)
    }

    /// It has none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The position lies in it.
    #[must_use]
    pub fn contains(&self, place: crate::words::Place) -> bool {
        self.lane == place.lane && self.from <= place.seq && place.seq < self.to
    }
}
