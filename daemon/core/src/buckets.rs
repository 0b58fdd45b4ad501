//! Length buckets, for engines that pad each input of a call to the length of its longest: what travels together is of similar
//! length. A bucket whose calls would be too empty is widened: it goes with the next longer one.
//!
//! What waits in a queue is divided by what is there ([`Buckets::divide`]); calls in real time, which come one by one, by what
//! was learnt from those before ([`Widths`]).

use std::collections::BTreeMap;

/// Calls that are looked at before buckets are joined or parted.
const LOOK: u64 = 32;

/// Joined buckets are parted when each side alone would fill its calls by so many thousandths of what is asked: not at the first
/// good moment, so that they do not go to and fro.
const PART_PERMILLE: u64 = 1250;

/// The operator's bounds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Buckets {
    bounds: Vec<u64>,
    utilisation_permille: u64,
}

/// One request, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Tokens of its longest input.
    pub length: u64,
    /// Its inputs.
    pub inputs: u64,
    /// Tokens of all its inputs.
    pub tokens: u64,
}

impl Size {
    /// A request with one input of so many tokens.
    #[must_use]
    pub const fn of_one(length: u64) -> Self {
        Self { length, inputs: 1, tokens: length }
    }
}

/// How a call was filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// The longest length in its bucket; none for the last.
    pub up_to: Option<u64>,
    /// Its inputs.
    pub inputs: u64,
    /// As many as it had room for.
    pub room: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Their tokens, each padded to the longest.
    pub padded: u64,
}

/// Requests of one bucket, or of several that go together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The widest of its buckets.
    pub bucket: usize,
    /// Positions of the requests, in ascending order.
    pub members: Vec<usize>,
}

impl Buckets {
    /// `bounds` are the longest lengths of all buckets but the last, which has none, in ascending order. A bucket is too empty
    /// if less than so many thousandths of the room in its calls are used.
    #[must_use]
    pub const fn new(bounds: Vec<u64>, utilisation_permille: u64) -> Self {
        Self { bounds, utilisation_permille }
    }

    /// How many there are: one, if lengths do not matter.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.bounds.len() + 1
    }

    /// That of a length.
    #[must_use]
    pub fn of(&self, length: u64) -> usize {
        self.bounds.partition_point(|bound| *bound < length)
    }

    /// The longest length in a bucket; none for the last.
    #[must_use]
    pub fn bound(&self, bucket: usize) -> Option<u64> {
        self.bounds.get(bucket).copied()
    }

    /// How requests of these sizes fill a call of this bucket, which has room for so many inputs.
    #[must_use]
    pub fn fill(&self, bucket: usize, sizes: impl IntoIterator<Item = Size>, most: u64) -> Fill {
        let mut fill = Fill { up_to: self.bound(bucket), inputs: 0, room: most, tokens: 0, padded: 0 };
        let mut longest = 0;
        for size in sizes {
            fill.inputs = fill.inputs.saturating_add(size.inputs);
            fill.tokens = fill.tokens.saturating_add(size.tokens);
            longest = size.length.max(longest);
        }
        // One that has more by itself travels alone.
        fill.room = most.max(fill.inputs);
        fill.padded = fill.inputs.saturating_mul(longest);
        fill
    }

    /// Divides requests that wait for calls with at most so many inputs.
    #[must_use]
    pub fn divide(&self, sizes: &[Size], most: u64) -> Vec<Group> {
        let mut by_bucket: BTreeMap<usize, (u64, Vec<usize>)> = BTreeMap::new();
        for (at, size) in sizes.iter().enumerate() {
            let (inputs, members) = by_bucket.entry(self.of(size.length)).or_default();
            *inputs = inputs.saturating_add(size.inputs);
            members.push(at);
        }
        let mut groups = Vec::new();
        let mut widened: Option<(u64, Group)> = None;
        for (bucket, (inputs, members)) in by_bucket {
            let (inputs, group) = match widened.take() {
                Some((before, mut group)) => {
                    group.members.extend(members);
                    group.members.sort_unstable();
                    (before.saturating_add(inputs), Group { bucket, ..group })
                }
                None => (inputs, Group { bucket, members }),
            };
            if self.is_used_well(inputs, inputs.div_ceil(most.max(1)), most) {
                groups.push(group);
            } else {
                widened = Some((inputs, group));
            }
        }
        // The longest have nobody to go with who is not shorter.
        groups.extend(widened.map(|(_, group)| group));
        groups
    }

    /// So many inputs fill their calls as far as is asked.
    fn is_used_well(&self, inputs: u64, calls: u64, most: u64) -> bool {
        Self::is_used(inputs, calls, most, self.utilisation_permille)
    }

    /// They do so by far, or fill them wholly.
    fn is_used_very_well(&self, inputs: u64, calls: u64, most: u64) -> bool {
        Self::is_used(inputs, calls, most, (self.utilisation_permille * PART_PERMILLE / 1000).min(1000))
    }

    fn is_used(inputs: u64, calls: u64, most: u64, permille: u64) -> bool {
        u128::from(inputs) * 1000 >= u128::from(calls) * u128::from(most) * u128::from(permille)
    }
}

/// Which of several queues is served next, so that each has its share of the calls, in proportion to its length: the one of
/// which the largest part is left. Each is given as what is left of it and what it was.
#[must_use]
pub fn next(queues: impl IntoIterator<Item = (u64, u64)>) -> Option<usize> {
    let mut best: Option<(usize, u64, u64)> = None;
    for (at, (left, whole)) in queues.into_iter().enumerate() {
        let is_better = best.is_none_or(|(_, best_left, best_whole)| {
            u128::from(left) * u128::from(best_whole) > u128::from(best_left) * u128::from(whole)
        });
        if left > 0 && is_better {
            best = Some((at, left, whole));
        }
    }
    best.map(|(at, _, _)| at)
}

/// Which buckets go together, learnt from the calls that left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Widths {
    buckets: Buckets,
    most: u64,
    seen: Vec<Seen>,
}

/// Of one bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Seen {
    /// It goes with the next longer one.
    is_joined: bool,
    /// Calls of which it was the widest bucket, since the last change.
    calls: u64,
    /// Inputs of its own, since then.
    inputs: u64,
}

impl Widths {
    /// Nothing was learnt yet: each bucket is by itself. Calls have at most so many inputs.
    #[must_use]
    pub fn new(buckets: Buckets, most: u64) -> Self {
        let seen = vec![Seen::default(); buckets.count()];
        Self { buckets, most, seen }
    }

    /// Where something of this length travels: the widest bucket of those that go together with its own.
    #[must_use]
    pub fn of(&self, length: u64) -> usize {
        let own = self.buckets.of(length);
        let rest = self.seen.iter().enumerate().skip(own);
        rest.take_while(|(_, seen)| seen.is_joined).last().map_or(own, |(at, _)| at + 1)
    }

    /// A call of this bucket has left with these requests.
    pub fn left(&mut self, bucket: usize, sizes: impl IntoIterator<Item = Size>) {
        for size in sizes {
            let own = self.buckets.of(size.length);
            if let Some(seen) = self.seen.get_mut(own) {
                seen.inputs = seen.inputs.saturating_add(size.inputs);
            }
        }
        let Some(widest) = self.seen.get_mut(bucket) else { return };
        widest.calls += 1;
        if widest.calls >= LOOK {
            self.look(bucket);
        }
    }

    /// Joins what is too empty to the next longer bucket, or parts what would do well alone.
    fn look(&mut self, widest: usize) {
        let first = self.first_with(widest);
        let Some(together) = self.seen.get(first..=widest) else { return };
        let calls = together.last().map_or(0, |seen| seen.calls);
        let inputs: Vec<u64> = together.iter().map(|seen| seen.inputs).collect();
        let sum = |part: &[u64]| part.iter().fold(0_u64, |sum, inputs| sum.saturating_add(*inputs));
        let is_last = widest + 1 >= self.seen.len();
        let mut next = widest;
        if !is_last && !self.buckets.is_used_well(sum(&inputs), calls, self.most) {
            self.join(widest, true);
            // What the next one saw by itself says nothing any more.
            next += 1;
        } else {
            let does_well = |at: &usize| {
                let (shorter, longer) = inputs.split_at(*at);
                [shorter, longer]
                    .iter()
                    .all(|part| self.buckets.is_used_very_well(sum(part), calls, self.most))
            };
            if let Some(at) = (1..inputs.len()).find(does_well) {
                self.join(first + at - 1, false);
            }
        }
        for seen in self.seen.get_mut(first..=next).unwrap_or_default() {
            (seen.calls, seen.inputs) = (0, 0);
        }
    }

    fn join(&mut self, at: usize, is_joined: bool) {
        if let Some(seen) = self.seen.get_mut(at) {
            seen.is_joined = is_joined;
        }
    }

    /// The shortest bucket that goes together with this one.
    fn first_with(&self, widest: usize) -> usize {
        let shorter = self.seen.get(..widest).unwrap_or_default();
        widest - shorter.iter().rev().take_while(|seen| seen.is_joined).count()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sizes(lengths: &[u64]) -> Vec<Size> {
        lengths.iter().copied().map(Size::of_one).collect()
    }

    fn buckets() -> Buckets {
        Buckets::new(vec![10, 100], 500)
    }

    #[test]
    fn a_length_has_a_bucket_and_the_last_has_no_end() {
        let buckets = buckets();
        let of: Vec<_> = [0, 10, 11, 100, 101, u64::MAX].map(|length| buckets.of(length)).into();
        assert_eq!(of, [0, 0, 1, 1, 2, 2]);
        assert_eq!(
            (0..3).map(|bucket| buckets.bound(bucket)).collect::<Vec<_>>(),
            [Some(10), Some(100), None]
        );
        assert_eq!(Buckets::default().of(7), 0);
    }

    #[test]
    fn a_call_is_as_full_as_its_inputs_and_as_padded_as_its_longest() {
        let sizes = [Size { length: 50, inputs: 3, tokens: 60 }, Size::of_one(20)];
        let fill = buckets().fill(1, sizes, 8);
        assert_eq!(fill, Fill { up_to: Some(100), inputs: 4, room: 8, tokens: 80, padded: 200 });
        assert_eq!(buckets().fill(2, sizes, 3).room, 4);
    }

    #[test]
    fn what_would_make_empty_calls_goes_with_the_next_longer() {
        let buckets = buckets();
        // Two short ones would fill a call of 8 by a quarter, with those in the middle they fill two by more than half.
        let mixed = sizes(&[5, 50, 500, 50, 50, 50, 50, 5, 50, 500, 50, 50, 500, 500]);
        let groups = buckets.divide(&mixed, 8);
        assert_eq!(groups.iter().map(|group| group.bucket).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(groups[0].members, [0, 1, 3, 4, 5, 6, 7, 8, 10, 11]);
        // Four fill a call by half, and the longest have nobody to go with.
        let apart = sizes(&[5, 5, 5, 5, 500]);
        let groups = buckets.divide(&apart, 8);
        assert_eq!(groups.iter().map(|group| group.bucket).collect::<Vec<_>>(), [0, 2]);
        assert!(buckets.divide(&[], 8).is_empty());
    }

    #[test]
    fn a_bucket_that_is_too_empty_is_joined_and_parted_when_more_comes() {
        let mut widths = Widths::new(buckets(), 8);
        let short = Size::of_one(5);
        let middle = Size::of_one(50);
        for _ in 0..LOOK {
            assert_eq!(widths.of(5), 0);
            widths.left(0, [short; 2]);
        }
        assert_eq!((widths.of(5), widths.of(50), widths.of(500)), (1, 1, 2), "they go with the next longer");
        for _ in 0..4 * LOOK {
            widths.left(1, [short, short, middle, middle, middle, middle]);
        }
        assert_eq!(widths.of(5), 1, "the short ones alone would still be too few");
        for _ in 0..2 * LOOK {
            widths.left(widths.of(5), [[short; 6], [middle; 6]].concat());
        }
        assert_eq!((widths.of(5), widths.of(50)), (0, 1), "each does well alone");
    }

    #[test]
    fn the_longest_stay_by_themselves() {
        let mut widths = Widths::new(buckets(), 8);
        for _ in 0..10 * LOOK {
            widths.left(2, [Size::of_one(500)]);
        }
        assert_eq!((widths.of(500), widths.of(50)), (2, 1));
    }

    proptest! {
        #[test]
        fn each_is_in_one_group_and_nothing_is_shorter_than_it_should_be(
            lengths in prop::collection::vec((0_u64..300, 1_u64..5), 0..200),
            bounds in prop::collection::btree_set(1_u64..300, 0..6),
            most in 1_u64..40,
            utilisation in 0_u64..=1000,
        ) {
            let buckets = Buckets::new(bounds.into_iter().collect(), utilisation);
            let size = |(length, inputs): &(u64, u64)| Size { inputs: *inputs, ..Size::of_one(*length) };
            let sizes: Vec<Size> = lengths.iter().map(size).collect();
            let groups = buckets.divide(&sizes, most);
            let mut all: Vec<usize> = groups.iter().flat_map(|group| group.members.clone()).collect();
            prop_assert!(groups.iter().all(|group| group.members.is_sorted()));
            all.sort_unstable();
            prop_assert_eq!(all, (0..sizes.len()).collect::<Vec<_>>());
            let mut above = 0;
            for (at, group) in groups.iter().enumerate() {
                let lengths = || group.members.iter().filter_map(|at| sizes.get(*at));
                prop_assert!(lengths().all(|size| (above..=group.bucket).contains(&buckets.of(size.length))));
                above = group.bucket + 1;
                let inputs: u64 = lengths().map(|size| size.inputs).sum();
                let is_widest = at + 1 == groups.len();
                prop_assert!(is_widest || buckets.is_used_well(inputs, inputs.div_ceil(most), most));
            }
        }

        #[test]
        fn queues_are_served_in_proportion(wholes in prop::collection::vec(1_u64..60, 1..6)) {
            let mut left = wholes.clone();
            while let Some(at) = next(left.iter().copied().zip(wholes.iter().copied())) {
                left[at] -= 1;
                // No queue is ahead of another by more than one of its own.
                for (a, (left_a, whole_a)) in left.iter().zip(&wholes).enumerate() {
                    for (b, (left_b, whole_b)) in left.iter().zip(&wholes).enumerate() {
                        let (served, of_the_other) = (whole_a - left_a, whole_b - left_b);
                        prop_assert!(
                            a == b || served.saturating_sub(1) * whole_b <= of_the_other * whole_a,
                            "{left:?} of {wholes:?}"
                        );
                    }
                }
            }
            prop_assert!(left.iter().all(|left| *left == 0));
        }

        #[test]
        fn joined_buckets_are_neighbours_whatever_comes(
            calls in prop::collection::vec((0_u64..200, 1_u64..12), 0..600),
            utilisation in 0_u64..=1000,
        ) {
            let mut widths = Widths::new(Buckets::new(vec![10, 40, 100], utilisation), 8);
            for (length, inputs) in calls {
                let bucket = widths.of(length);
                prop_assert!(bucket >= widths.buckets.of(length) && bucket < 4);
                widths.left(bucket, [Size { inputs, ..Size::of_one(length) }]);
                let of: Vec<usize> = [5, 20, 50, 150].map(|length| widths.of(length)).into();
                prop_assert!(of.is_sorted() && of.last() == Some(&3));
            }
        }
    }
}
