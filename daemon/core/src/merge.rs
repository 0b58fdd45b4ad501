//! Requests that travel as one call with many inputs: which part of a call that was refused is sent next, until each has its
//! own answer, and what each has of a sum that was counted for all of them.

use std::ops::Range;

/// What an ending of a call says about the requests in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// Each of them has its part of the answer, or all share what happened: nothing is sent again here.
    Shared,
    /// It was refused for what one of them says, and none of them ran.
    Content,
}

/// What an answer's status says about the requests of a call with many inputs.
#[must_use]
pub const fn blame(status: u16) -> Blame {
    match status {
        // The body: malformed, too long, not to be processed. What concerns the credential, the model or the moment is the
        // same for all of them, and what a server's error means is the retry policy's to say.
        400 | 413 | 422 => Blame::Content,
        _ => Blame::Shared,
    }
}

/// What becomes of a part of a call that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// The requests at these positions have this ending.
    Settled(Range<usize>),
    /// Its halves are sent instead.
    Halved,
}

/// Those that wait for company, up to a number of inputs. The shell keeps the time: whoever begins a gathering leaves after a
/// while, with whoever has joined by then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gathering<T> {
    number: u64,
    waiting: Vec<T>,
    inputs: usize,
}

/// What follows when one has joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined<T> {
    /// These leave at once, each list as one call.
    pub leave: Vec<Vec<T>>,
    /// A gathering has begun, and is over after its time.
    pub begins: bool,
}

impl<T> Default for Gathering<T> {
    fn default() -> Self {
        Self { number: 0, waiting: Vec::new(), inputs: 0 }
    }
}

impl<T> Gathering<T> {
    /// One with so many inputs comes. `number` is that of the gathering which it may begin.
    pub fn join(&mut self, one: T, inputs: usize, most: usize, number: u64) -> Joined<T> {
        let mut leave = Vec::new();
        if !self.waiting.is_empty() && self.inputs.saturating_add(inputs) > most {
            leave.push(self.take());
        }
        let is_first = self.waiting.is_empty();
        if is_first {
            self.number = number;
        }
        self.waiting.push(one);
        self.inputs = self.inputs.saturating_add(inputs);
        let is_full = self.inputs >= most;
        if is_full {
            leave.push(self.take());
        }
        Joined { leave, begins: is_first && !is_full }
    }

    /// The time of the gathering with this number is over. Nobody leaves if it was full before.
    pub fn over(&mut self, number: u64) -> Vec<T> {
        if self.number == number { self.take() } else { Vec::new() }
    }

    /// Nobody waits.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn take(&mut self) -> Vec<T> {
        self.inputs = 0;
        std::mem::take(&mut self.waiting)
    }
}

/// Finds those for which a call with many inputs is refused, by halving, so that only they fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hunt {
    /// Parts that have no answer, in descending order.
    open: Vec<Range<usize>>,
}

impl Hunt {
    /// For a call of so many requests.
    #[must_use]
    pub fn new(requests: usize) -> Self {
        let open = (requests > 0).then_some(0..requests).into_iter().collect();
        Self { open }
    }

    /// The part to send next; none when each request has its ending. [`Self::ended`] must follow.
    #[must_use]
    pub fn part(&self) -> Option<Range<usize>> {
        self.open.last().cloned()
    }

    /// The part that was to be sent next has ended.
    pub fn ended(&mut self, blame: Blame) -> Next {
        let Some(part) = self.open.pop() else { return Next::Settled(0..0) };
        match blame {
            Blame::Content if part.len() > 1 => {
                let middle = part.start + part.len() / 2;
                self.open.push(middle..part.end);
                self.open.push(part.start..middle);
                Next::Halved
            }
            Blame::Content | Blame::Shared => Next::Settled(part),
        }
    }
}

/// Divides a sum by weights, so that the parts add up to it: what is left after rounding down goes to the largest remainders.
/// Without any weight it is divided evenly.
#[must_use]
pub fn shares(sum: u64, weights: &[u64]) -> Vec<u64> {
    let evenly = vec![1; weights.len()];
    let weights = if weights.iter().all(|weight| *weight == 0) { &evenly } else { weights };
    let whole: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    if whole == 0 {
        return Vec::new();
    }
    let mut left = sum;
    let mut remainders = Vec::with_capacity(weights.len());
    let mut parts: Vec<u64> = Vec::with_capacity(weights.len());
    for (at, weight) in weights.iter().enumerate() {
        let product = u128::from(sum) * u128::from(*weight);
        // No more than the sum, as no weight is more than the whole.
        let part = u64::try_from(product / whole).unwrap_or(sum);
        left = left.saturating_sub(part);
        remainders.push((std::cmp::Reverse(product % whole), at));
        parts.push(part);
    }
    remainders.sort_unstable();
    for (_, at) in remainders {
        if left == 0 {
            break;
        }
        if let Some(part) = parts.get_mut(at) {
            *part += 1;
            left -= 1;
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_of_eight_is_found_by_halves_and_the_others_are_answered() {
        let mut hunt = Hunt::new(8);
        let (mut calls, mut failed) = (0, Vec::new());
        while let Some(part) = hunt.part() {
            calls += 1;
            let is_bad = part.contains(&5);
            let next = hunt.ended(if is_bad { Blame::Content } else { Blame::Shared });
            if let (true, Next::Settled(part)) = (is_bad, next) {
                failed.push(part);
            }
        }
        assert_eq!((failed, calls), (std::iter::once(5..6).collect::<Vec<_>>(), 7));
    }

    #[test]
    fn what_is_the_same_for_all_is_not_hunted() {
        for status in [200, 401, 403, 404, 408, 429, 500, 502, 503, 529] {
            assert_eq!(blame(status), Blame::Shared, "{status}");
        }
        let mut hunt = Hunt::new(32);
        assert_eq!(hunt.ended(Blame::Shared), Next::Settled(0..32));
        assert_eq!(hunt.part(), None);
    }

    #[test]
    fn the_rest_goes_to_the_largest_remainders() {
        assert_eq!(shares(10, &[1, 1, 1]), [4, 3, 3]);
        assert_eq!(shares(10, &[3, 3, 1]), [4, 4, 2]);
        assert_eq!(shares(7, &[0, 0]), [4, 3]);
        assert_eq!(shares(7, &[0, 5]), [0, 7]);
        assert_eq!(shares(7, &[]), Vec::<u64>::new());
        assert_eq!(
            shares(u64::MAX, &[u64::MAX, u64::MAX]).iter().map(|part| u128::from(*part)).sum::<u128>(),
            u64::MAX.into()
        );
    }

    proptest! {
        #[test]
        fn everyone_leaves_exactly_once_and_no_call_is_too_large(
            most in 2_usize..40,
            // How many inputs each has, and whether the time of the gathering before it is over first.
            comers in prop::collection::vec((1_usize..12, any::<bool>()), 0..120),
        ) {
            let mut gathering = Gathering::default();
            let (mut left, mut begun) = (Vec::new(), None);
            let mut calls: Vec<Vec<usize>> = Vec::new();
            for (at, (inputs, is_over)) in comers.iter().enumerate() {
                if let Some(number) = begun.take_if(|_| *is_over) {
                    calls.extend(Some(gathering.over(number)).filter(|call| !call.is_empty()));
                }
                let number = at as u64 + 1;
                let joined = gathering.join(at, *inputs, most, number);
                calls.extend(joined.leave);
                if joined.begins {
                    begun = Some(number);
                }
                prop_assert!(gathering.is_empty() || begun.is_some(), "who waits has somebody who keeps the time");
            }
            calls.extend(begun.map(|number| gathering.over(number)));
            for call in calls {
                let inputs: usize = call.iter().map(|at| comers[*at].0).sum();
                prop_assert!(inputs <= most || call.len() == 1);
                left.extend(call);
            }
            prop_assert_eq!(left, (0..comers.len()).collect::<Vec<_>>());
        }

        #[test]
        fn everyone_has_exactly_one_ending_and_only_the_bad_ones_fail(
            requests in 0_usize..70,
            bad in prop::collection::btree_set(0_usize..70, 0..8),
            // The calls that end in a way that is shared by all in them.
            lost in prop::collection::btree_set(0_usize..100, 0..3),
        ) {
            let bad: BTreeSet<usize> = bad.into_iter().filter(|at| *at < requests).collect();
            let mut hunt = Hunt::new(requests);
            let mut endings = vec![0; requests];
            let (mut failed, mut shared, mut calls) = (BTreeSet::new(), BTreeSet::new(), 0);
            while let Some(part) = hunt.part() {
                let is_lost = lost.contains(&calls);
                calls += 1;
                let is_refused = !is_lost && part.clone().any(|at| bad.contains(&at));
                match hunt.ended(if is_refused { Blame::Content } else { Blame::Shared }) {
                    Next::Halved => prop_assert!(is_refused && part.len() > 1),
                    Next::Settled(settled) => {
                        prop_assert_eq!(&settled, &part);
                        for at in settled {
                            endings[at] += 1;
                            if is_refused {
                                failed.insert(at);
                            }
                            if is_lost {
                                shared.insert(at);
                            }
                        }
                    }
                }
            }
            prop_assert!(endings.iter().all(|count| *count == 1), "{:?}", endings);
            prop_assert!(failed.is_subset(&bad));
            prop_assert!(bad.difference(&failed).all(|at| shared.contains(at)));
            // Each bad one costs at most two calls at each level.
            let levels = requests.next_power_of_two().trailing_zeros() as usize;
            prop_assert!(calls <= 1 + 2 * bad.len() * levels);
        }

        #[test]
        fn parts_add_up_and_are_in_proportion(sum in 0_u64..1_000_000, weights in prop::collection::vec(0_u64..10_000, 1..40)) {
            let parts = shares(sum, &weights);
            prop_assert_eq!(parts.len(), weights.len());
            prop_assert_eq!(parts.iter().sum::<u64>(), sum);
            let whole: u64 = weights.iter().sum();
            for (part, weight) in parts.iter().zip(&weights) {
                let Some(exact) = (sum * weight).checked_div(whole) else { continue };
                prop_assert!(*part == exact || *part == exact + 1, "{} of {}", part, exact);
            }
        }
    }
}
