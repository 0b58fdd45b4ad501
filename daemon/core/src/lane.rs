//! A lane as the scheduler sees it: the extents that wait in it, those that pause, and their sums.

use std::collections::VecDeque;

use crate::extent::{Cargo, Extent, Range};
use crate::words::{LaneId, Seq, Timestamp};

/// Extents are joined up to this many requests, so that a lane of a million needs some two thousand of them.
pub const EXTENT_MAX_REQUESTS: u32 = 512;

/// And up to this many bytes, so that a batch's byte limit is met closely.
pub const EXTENT_MAX_BYTES: u64 = 4 << 20;

/// What waits in one lane, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    id: LaneId,
    waiting: VecDeque<Extent>,
    sums: Sums,
    paused: Vec<Paused>,
    paused_sums: Sums,
}

/// What may not leave yet: it goes again after a failure, and was told when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paused {
    /// What.
    pub extent: Extent,
    /// Since when it pauses.
    pub since: Timestamp,
    /// It leaves when its pause is over, and waits for no others.
    pub is_flushed: bool,
}

/// What became of the pauses in a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pauses {
    /// When the next one ends.
    pub next: Option<Timestamp>,
    /// One has ended of what is to wait for no others.
    pub is_flushed: bool,
}

/// Sums over requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sums {
    /// Requests.
    pub count: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Estimated input tokens.
    pub tokens: u64,
}

impl Sums {
    fn add(&mut self, extent: &Extent) {
        self.count += u64::from(extent.count);
        self.bytes += extent.bytes;
        self.tokens += extent.tokens;
    }

    /// Both together.
    #[must_use]
    pub const fn plus(mut self, other: Self) -> Self {
        self.count += other.count;
        self.bytes += other.bytes;
        self.tokens += other.tokens;
        self
    }

    fn sub(&mut self, extent: &Extent) {
        self.count -= u64::from(extent.count);
        self.bytes -= extent.bytes;
        self.tokens -= extent.tokens;
    }
}

impl std::iter::Sum for Sums {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Self::plus)
    }
}

/// How much may be taken from a lane at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Requests.
    pub requests: u64,
    /// Bytes on the wire, item overhead included.
    pub bytes: u64,
    /// What each item takes beyond its body.
    pub overhead_bytes: u64,
    /// Estimated input tokens.
    pub tokens: u64,
}

impl Room {
    /// No bound at all.
    pub const BOUNDLESS: Self =
        Self { requests: u64::MAX, bytes: u64::MAX, overhead_bytes: 0, tokens: u64::MAX };

    fn bytes_of(&self, extent: &Extent) -> u64 {
        extent.bytes.saturating_add(u64::from(extent.count) * self.overhead_bytes)
    }

    /// How many of the extent's requests fit. An extent that is too big only for bytes or tokens is cut by its average,
    /// which the byte limit of extents keeps harmless.
    fn fits(&self, extent: &Extent) -> u64 {
        let share = |of: u64, room: u64| {
            if of <= room {
                return u64::from(extent.count);
            }
            let share = u128::from(extent.count) * u128::from(room) / u128::from(of.max(1));
            u64::try_from(share).unwrap_or(u64::MAX)
        };
        share(self.bytes_of(extent), self.bytes).min(share(extent.tokens, self.tokens)).min(self.requests)
    }

    /// Takes off what was used of a part of it.
    pub const fn less(&mut self, before: Self, after: Self) {
        self.requests = self.requests.saturating_sub(before.requests.saturating_sub(after.requests));
        self.bytes = self.bytes.saturating_sub(before.bytes.saturating_sub(after.bytes));
        self.tokens = self.tokens.saturating_sub(before.tokens.saturating_sub(after.tokens));
    }

    fn shrink(&mut self, extent: &Extent) {
        self.requests -= u64::from(extent.count);
        self.bytes = self.bytes.saturating_sub(self.bytes_of(extent));
        self.tokens = self.tokens.saturating_sub(extent.tokens);
    }
}

impl Lane {
    /// A lane in which nothing waits.
    pub const fn new(id: LaneId) -> Self {
        let none = Sums { count: 0, bytes: 0, tokens: 0 };
        Self { id, waiting: VecDeque::new(), sums: none, paused: Vec::new(), paused_sums: none }
    }

    /// Its number.
    pub const fn id(&self) -> LaneId {
        self.id
    }

    /// Sums over what may leave.
    pub const fn sums(&self) -> Sums {
        self.sums
    }

    /// Sums over everything in it: what may leave, and what pauses.
    pub fn all_sums(&self) -> Sums {
        self.sums.plus(self.paused_sums)
    }

    /// Nothing may leave: there is nothing, or all of it pauses.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The end of the first pause in it; none if nothing pauses.
    pub fn paused_until(&self) -> Option<Timestamp> {
        self.paused.iter().map(|paused| paused.extent.not_before).min()
    }

    /// Everything in it: what may leave, and what pauses.
    pub fn all(&self) -> impl Iterator<Item = &Extent> {
        self.waiting.iter().chain(self.paused.iter().map(|paused| &paused.extent))
    }

    /// When the oldest of those that may leave arrived.
    pub fn oldest(&self) -> Option<Timestamp> {
        self.waiting.iter().map(|extent| extent.oldest).min()
    }

    /// The earliest deadline of those that may leave.
    pub fn earliest_deadline(&self) -> Option<Timestamp> {
        self.waiting.iter().map(|extent| extent.earliest_deadline).min()
    }

    /// The first position of the last extent that holds a deadline before `time`.
    pub fn last_before(&self, time: Timestamp) -> Option<Seq> {
        self.waiting.iter().rev().find(|extent| extent.earliest_deadline < time).map(|extent| extent.first)
    }

    /// Takes in what was appended. Extents come in the order of the lane.
    pub fn append(&mut self, extent: Extent, now: Timestamp) {
        debug_assert_eq!(extent.lane, self.id);
        if extent.not_before <= now {
            self.put_back(extent);
            return;
        }
        self.paused_sums.add(&extent);
        match self.paused.last_mut() {
            Some(last) if last.extent.goes_on_with(&extent) && is_small(&last.extent, &extent) => {
                last.extent.join(&extent);
            }
            _ => self.paused.push(Paused { extent, since: now, is_flushed: false }),
        }
    }

    /// What pauses is to wait for no others when its pause is over.
    pub fn flush_paused(&mut self) {
        for paused in &mut self.paused {
            paused.is_flushed = true;
        }
    }

    /// Lets those go on whose time has come.
    pub fn end_pauses(&mut self, now: Timestamp, ends_at: impl Fn(&Paused) -> Timestamp) -> Pauses {
        let mut pauses = Pauses::default();
        for paused in std::mem::take(&mut self.paused) {
            let at = ends_at(&paused);
            if at <= now {
                self.paused_sums.sub(&paused.extent);
                self.put_back(paused.extent);
                pauses.is_flushed |= paused.is_flushed;
            } else {
                pauses.next = Some(pauses.next.map_or(at, |next| next.min(at)));
                self.paused.push(paused);
            }
        }
        pauses
    }

    /// Takes the head extent, or as much of it as there is room for, and lessens the room by it.
    pub fn take(&mut self, room: &mut Room) -> Option<Cargo> {
        let head = self.waiting.front().copied()?;
        let fits = room.fits(&head);
        if fits == 0 {
            return None;
        }
        let taken = self.take_head(head, fits);
        room.shrink(&taken);
        let range = Range { lane: self.id, from: taken.first, to: taken.end() };
        Some(Cargo { range, tokens: taken.tokens, deadline: taken.earliest_deadline })
    }

    /// Whether there is room for at least one request.
    pub fn fits(&self, room: &Room) -> bool {
        self.waiting.front().is_some_and(|head| room.fits(head) > 0)
    }

    /// What stands at its head.
    pub fn head(&self) -> Option<&Extent> {
        self.waiting.front()
    }

    /// Takes out the extents in which something is due.
    pub fn take_overdue(&mut self, now: Timestamp) -> Vec<Extent> {
        let (due, rest): (Vec<Extent>, Vec<Extent>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|extent| extent.earliest_deadline <= now);
        self.waiting = rest.into();
        for extent in &due {
            self.sums.sub(extent);
        }
        due
    }

    /// Takes in what may leave, at its place.
    pub fn put_back(&mut self, extent: Extent) {
        self.sums.add(&extent);
        let at = self.waiting.partition_point(|other| other.first < extent.first);
        let before = at.checked_sub(1).and_then(|at| self.waiting.get_mut(at));
        // What is to be run in real time takes nobody with it who can wait.
        let goes_on = |before: &&mut Extent| {
            before.end() == extent.first
                && before.is_hurried() == extent.is_hurried()
                && is_small(before, &extent)
        };
        match before.filter(goes_on) {
            Some(before) => before.join(&extent),
            None => self.waiting.insert(at, extent),
        }
    }

    /// Removes the first `count` requests of the head extent.
    fn take_head(&mut self, head: Extent, count: u64) -> Extent {
        self.waiting.pop_front();
        let (taken, rest) = split(head, count);
        self.sums.sub(&taken);
        if let Some(rest) = rest {
            self.waiting.push_front(rest);
        }
        taken
    }
}

/// Two extents are one that is not too large.
const fn is_small(one: &Extent, other: &Extent) -> bool {
    one.count + other.count <= EXTENT_MAX_REQUESTS && one.bytes + other.bytes <= EXTENT_MAX_BYTES
}

/// Cuts an extent after `count` requests; sums are shared out by the average, times stay those of the whole.
fn split(extent: Extent, count: u64) -> (Extent, Option<Extent>) {
    let Some(count) = u32::try_from(count).ok().filter(|count| *count < extent.count) else {
        return (extent, None);
    };
    let share = |sum: u64| {
        let share = u128::from(sum) * u128::from(count) / u128::from(extent.count);
        u64::try_from(share).unwrap_or(sum)
    };
    let head = Extent { count, bytes: share(extent.bytes), tokens: share(extent.tokens), ..extent };
    let rest = Extent {
        first: Seq(extent.first.0 + u64::from(count)),
        count: extent.count - count,
        bytes: extent.bytes - head.bytes,
        tokens: extent.tokens - head.tokens,
        ..extent
    };
    (head, Some(rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp(0);

    fn extent(first: u64, count: u32, bytes: u64) -> Extent {
        Extent {
            lane: LaneId(1),
            first: Seq(first),
            count,
            bytes,
            tokens: bytes / 4,
            oldest: Timestamp(first),
            earliest_deadline: Timestamp(1000 + first),
            not_before: Timestamp(0),
        }
    }

    fn room(requests: u64, bytes: u64) -> Room {
        Room { requests, bytes, ..Room::BOUNDLESS }
    }

    #[test]
    fn neighbours_are_joined() {
        let mut lane = Lane::new(LaneId(1));
        for seq in 0..1000 {
            lane.append(extent(seq, 1, 100), NOW);
        }
        assert_eq!(lane.waiting.len(), 2);
        assert_eq!(lane.sums(), Sums { count: 1000, bytes: 100_000, tokens: 25_000 });
    }

    #[test]
    fn a_range_ends_at_the_request_limit_exactly() {
        let mut lane = Lane::new(LaneId(1));
        lane.append(extent(0, 256, 256_000), NOW);
        let taken = lane.take(&mut room(10, u64::MAX));
        assert_eq!(
            taken.map(|cargo| cargo.range),
            Some(Range { lane: LaneId(1), from: Seq(0), to: Seq(10) })
        );
        assert_eq!(lane.sums().count, 246);
    }

    #[test]
    fn overhead_counts() {
        let mut lane = Lane::new(LaneId(1));
        lane.append(extent(0, 10, 1000), NOW);
        let mut room = Room { requests: 100, bytes: 1000, overhead_bytes: 100, tokens: u64::MAX };
        assert_eq!(lane.take(&mut room).map(|cargo| cargo.range.len()), Some(5));
        let mut room = Room { tokens: 60, ..Room::BOUNDLESS };
        assert_eq!(lane.take(&mut room).map(|cargo| cargo.range.len()), Some(2), "25 tokens each");
    }

    #[test]
    fn what_pauses_waits_apart_and_comes_back_to_its_place() {
        let pausing = |first, until| Extent {
            oldest: Timestamp(until),
            earliest_deadline: Timestamp(90_000),
            not_before: Timestamp(until),
            ..extent(first, 1, 100)
        };
        let mut lane = Lane::new(LaneId(1));
        for part in
            [extent(0, 2, 200), pausing(2, 500), pausing(3, 900), pausing(4, 60_000), extent(5, 1, 100)]
        {
            lane.append(part, NOW);
        }
        assert_eq!((lane.sums().count, lane.all_sums().count), (3, 6));
        let pauses: Vec<u32> = lane.paused.iter().map(|paused| paused.extent.count).collect();
        assert_eq!(pauses, [2, 1], "pauses that end nearly together are one");
        let ends_at = |paused: &Paused| paused.extent.not_before;
        assert_eq!(lane.end_pauses(Timestamp(899), ends_at).next, Some(Timestamp(900)));
        assert_eq!(lane.sums().count, 3);
        assert_eq!(lane.end_pauses(Timestamp(900), ends_at).next, Some(Timestamp(60_000)));
        let taken: Vec<Range> =
            std::iter::from_fn(|| lane.take(&mut Room::BOUNDLESS.clone())).map(|cargo| cargo.range).collect();
        let of = |from, to| Range { lane: LaneId(1), from: Seq(from), to: Seq(to) };
        assert_eq!(taken, [of(0, 4), of(5, 6)]);
        assert_eq!(lane.end_pauses(Timestamp(60_000), ends_at), Pauses::default());
        assert_eq!(lane.all_sums(), lane.sums());
    }

    #[test]
    fn what_is_hurried_stands_alone_among_those_that_can_wait() {
        let mut lane = Lane::new(LaneId(1));
        let hurried = Extent {
            oldest: Timestamp(500),
            earliest_deadline: Timestamp(1500),
            not_before: Timestamp(500),
            ..extent(2, 1, 100)
        };
        let waits = |first| Extent { earliest_deadline: Timestamp(90_000), ..extent(first, 2, 200) };
        for part in [waits(0), hurried, waits(3)] {
            lane.append(part, NOW);
        }
        lane.end_pauses(Timestamp(500), |paused| paused.extent.not_before);
        let due = lane.take_overdue(Timestamp(1500));
        assert_eq!(due, [hurried]);
        assert_eq!(lane.sums().count, 4);
    }

    proptest! {
        #[test]
        fn taking_loses_and_doubles_nothing(
            counts in prop::collection::vec((1_u32..300, 0_u64..100_000), 1..40),
            limit in 1_u64..700,
            bytes in 1_u64..500_000,
        ) {
            let mut lane = Lane::new(LaneId(1));
            let mut next = 0;
            for (count, bytes) in counts {
                lane.append(extent(next, count, bytes), NOW);
                next += u64::from(count);
            }
            let before = lane.sums();
            let mut taken = 0;
            while let Some(Cargo { range, .. }) = lane.take(&mut room(limit, bytes)) {
                prop_assert_eq!(range.from, Seq(taken));
                prop_assert!(range.len() <= limit);
                taken = range.to.0;
                prop_assert_eq!(lane.sums().count, before.count - taken);
            }
            // What is left is one request that no batch could hold.
            if lane.is_empty() {
                prop_assert_eq!(taken, next);
                prop_assert_eq!(lane.sums(), Sums::default());
            }
        }
    }
}
