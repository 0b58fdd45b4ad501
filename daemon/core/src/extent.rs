//! A run of neighbouring requests in a lane, summed up: the unit in which lanes are counted, so that memory is per
//! extent and never per request.

use serde::{Deserialize, Serialize};

use crate::words::{LaneId, Millis, Seq, Timestamp};

/// Pauses that end as close together as this are one, which ends when the last of them does.
const PAUSES_ALIKE: Millis = Millis::from_secs(5);

/// A request that is to be run in real time after its pause is due so long after it, so that no batch keeps its deadline.
pub const HURRIED: Millis = Millis::from_secs(1);

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
    /// Before this none of them leaves, unless its deadline forces it; 0 for those that were never sent.
    pub not_before: Timestamp,
}

impl Extent {
    /// The position after the last.
    #[must_use]
    pub const fn end(&self) -> Seq {
        Seq(self.first.0 + self.count as u64)
    }

    /// The other one follows directly, and they may wait as one: both were never sent, or their pauses end nearly together, and
    /// neither's deadline comes before the end of both. What is to be run in real time takes nobody with it who can wait.
    #[must_use]
    pub fn goes_on_with(&self, next: &Self) -> bool {
        let is_paused = |extent: &Self| extent.not_before > Timestamp(0);
        let first = self.oldest.min(next.oldest);
        let last = self.not_before.max(next.not_before);
        let is_kept =
            |extent: &Self| last <= extent.earliest_deadline || extent.earliest_deadline < extent.not_before;
        (self.lane, self.end()) == (next.lane, next.first)
            && is_paused(self) == is_paused(next)
            && self.is_hurried() == next.is_hurried()
            && last.since(first) <= PAUSES_ALIKE
            && is_kept(self)
            && is_kept(next)
    }

    /// Its deadlines say only that it is run in real time after its pause ([`HURRIED`]): they do not shorten the pause.
    #[must_use]
    pub fn is_hurried(&self) -> bool {
        self.not_before > Timestamp(0)
            && (self.oldest..=self.oldest.after(HURRIED)).contains(&self.earliest_deadline)
    }

    /// Takes in the extent that follows directly. The caller has made sure that it does.
    pub fn join(&mut self, next: &Self) {
        debug_assert_eq!((self.lane, self.end()), (next.lane, next.first));
        self.count += next.count;
        self.bytes += next.bytes;
        self.tokens += next.tokens;
        self.oldest = self.oldest.min(next.oldest);
        self.earliest_deadline = self.earliest_deadline.min(next.earliest_deadline);
        self.not_before = self.not_before.max(next.not_before);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pauses_waits_as_one_only_as_far_as_that_costs_no_deadline() {
        let pausing = |first, until: u64, deadline: u64| Extent {
            lane: LaneId(1),
            first: Seq(first),
            count: 1,
            bytes: 1,
            tokens: 1,
            oldest: Timestamp(until),
            earliest_deadline: Timestamp(deadline),
            not_before: Timestamp(until),
        };
        let one = pausing(1, 10_000, 90_000);
        assert!(one.goes_on_with(&pausing(2, 14_000, 90_000)));
        assert!(!one.goes_on_with(&pausing(2, 16_000, 90_000)), "that is another pause");
        assert!(!one.goes_on_with(&pausing(3, 10_000, 90_000)), "something is between them");
        assert!(!one.goes_on_with(&pausing(2, 0, 90_000)), "that was never sent");
        let hurried = pausing(1, 10_000, 11_000);
        assert!(hurried.is_hurried() && !one.is_hurried());
        assert!(hurried.goes_on_with(&pausing(2, 10_900, 11_900)));
        assert!(!hurried.goes_on_with(&pausing(2, 10_000, 90_000)), "that can wait");
        assert!(!hurried.goes_on_with(&pausing(2, 14_000, 90_000)), "it would be late");
        assert!(!pausing(0, 14_000, 90_000).goes_on_with(&hurried), "it would be late");
        assert!(pausing(1, 10_000, 5000).goes_on_with(&pausing(2, 14_000, 90_000)), "it is late anyway");
    }
}
