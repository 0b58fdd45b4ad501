//! How fast a tenant's deferred work leaves: so much in a minute. What is beyond that waits in its lanes.
//!
//! The rates are buckets as in [`crate::quota`], without atomics and in whole milliseconds, since one task alone decides what
//! leaves. What answers really took is corrected afterwards.

use serde::{Deserialize, Serialize};

use crate::words::{Millis, Timestamp};

/// What one of anything costs, in parts that a limit of one a minute earns in a millisecond.
const MINUTE: u128 = 60_000;

/// The longest time for which a correction is owed, in milliseconds.
const OWED_MOST: u128 = 3_600_000;

/// How much may leave in a minute; what is not there is not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TempoLimits {
    /// Requests.
    pub requests: Option<u64>,
    /// Input tokens.
    pub input: Option<u64>,
    /// Output tokens.
    pub output: Option<u64>,
    /// How much of a rate may be used at once: what it gives in this time.
    pub burst: Millis,
}

impl TempoLimits {
    /// Nothing is limited.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.requests.is_none() && self.input.is_none() && self.output.is_none()
    }
}

/// An amount of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Requests.
    pub requests: u64,
    /// Input tokens.
    pub input: u64,
    /// Output tokens.
    pub output: u64,
}

impl Load {
    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            input: self.input.saturating_add(other.input),
            output: self.output.saturating_add(other.output),
        }
    }

    /// What is left of it without another.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(other.requests),
            input: self.input.saturating_sub(other.input),
            output: self.output.saturating_sub(other.output),
        }
    }

    /// The share that some of its requests have in it, by the average.
    #[must_use]
    pub fn share(self, requests: u64) -> Self {
        let requests = requests.min(self.requests);
        let of = |amount: u64| {
            let share = u128::from(amount) * u128::from(requests) / u128::from(self.requests.max(1));
            u64::try_from(share).unwrap_or(amount)
        };
        Self { requests, input: of(self.input), output: of(self.output) }
    }
}

/// One rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flow {
    limit: u64,
    burst: u64,
    owed: u128,
    at: Timestamp,
}

impl Flow {
    fn new(limit: u64, burst: Millis, now: Timestamp) -> Self {
        let limit = limit.max(1);
        let amount = u128::from(limit) * u128::from(burst.0) / MINUTE;
        Self { limit, burst: u64::try_from(amount).unwrap_or(u64::MAX).max(1), owed: 0, at: now }
    }

    fn owed(&self, now: Timestamp) -> u128 {
        let earned = u128::from(self.limit) * u128::from(now.since(self.at).0);
        self.owed.saturating_sub(earned)
    }

    fn room(&self, now: Timestamp) -> u64 {
        let free = (u128::from(self.burst) * MINUTE).saturating_sub(self.owed(now));
        u64::try_from(free / MINUTE).unwrap_or(u64::MAX)
    }

    /// When so much of it is there; what is larger than the burst comes when all of that is.
    fn when(&self, amount: u64, now: Timestamp) -> Timestamp {
        let wanted = u128::from(amount.min(self.burst)) * MINUTE;
        let over = (self.owed(now) + wanted).saturating_sub(u128::from(self.burst) * MINUTE);
        let wait = over.div_ceil(u128::from(self.limit));
        now.after(Millis(u64::try_from(wait).unwrap_or(u64::MAX)))
    }

    fn turn(&mut self, now: Timestamp) {
        self.owed = self.owed(now);
        self.at = self.at.max(now);
    }

    fn take(&mut self, amount: u64, now: Timestamp) {
        self.turn(now);
        self.owed = self.owed.saturating_add(u128::from(amount) * MINUTE);
    }

    /// What was reckoned too little is owed for an hour at most, or as long as a whole burst takes: a provider that says so may
    /// be wrong, and nobody is shut out for that.
    fn owe(&mut self, amount: u64, now: Timestamp) {
        let most = (u128::from(self.burst) * MINUTE).max(u128::from(self.limit) * OWED_MOST);
        self.turn(now);
        let before = self.owed;
        self.take(amount, now);
        self.owed = self.owed.min(most.max(before));
    }

    fn give_back(&mut self, amount: u64, now: Timestamp) {
        self.turn(now);
        self.owed = self.owed.saturating_sub(u128::from(amount) * MINUTE);
    }
}

/// How fast a tenant's deferred work leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tempo {
    limits: TempoLimits,
    requests: Option<Flow>,
    input: Option<Flow>,
    output: Option<Flow>,
}

impl Tempo {
    /// Full buckets.
    #[must_use]
    pub fn new(limits: TempoLimits, now: Timestamp) -> Self {
        let flow = |limit: Option<u64>| limit.map(|limit| Flow::new(limit, limits.burst, now));
        Self {
            limits,
            requests: flow(limits.requests),
            input: flow(limits.input),
            output: flow(limits.output),
        }
    }

    /// Other limits hold from now on. What was taken stays taken.
    pub fn limit(&mut self, limits: TempoLimits, now: Timestamp) {
        if limits == self.limits {
            return;
        }
        let mut next = Self::new(limits, now);
        let before = [self.requests, self.input, self.output];
        for (flow, before) in [&mut next.requests, &mut next.input, &mut next.output].into_iter().zip(before)
        {
            if let (Some(flow), Some(before)) = (flow, before) {
                flow.owed = before.owed(now);
            }
        }
        *self = next;
    }

    /// When this is there, or `part` of the bursts if it is more than that: `part` 1 is all of them, 6 a sixth.
    #[must_use]
    pub fn when(&self, wanted: Load, part: u64, now: Timestamp) -> Timestamp {
        let at = |flow: Option<Flow>, amount: u64| {
            flow.map_or(now, |flow| flow.when(amount.min((flow.burst / part.max(1)).max(1)), now))
        };
        at(self.requests, wanted.requests)
            .max(at(self.input, wanted.input))
            .max(at(self.output, wanted.output))
    }

    /// How many requests may leave now if each takes this. One that takes more than a burst may when all of that is there.
    #[must_use]
    pub fn room(&self, each: Load, now: Timestamp) -> u64 {
        let fits = |flow: Option<Flow>, each: u64| match flow {
            Some(flow) if each > 0 => {
                let is_full = flow.owed(now) == 0;
                (flow.room(now) / each).max(u64::from(is_full))
            }
            _ => u64::MAX,
        };
        fits(self.requests, 1).min(fits(self.input, each.input)).min(fits(self.output, each.output))
    }

    /// It leaves.
    pub fn take(&mut self, load: Load, now: Timestamp) {
        let flows = [
            (&mut self.requests, load.requests),
            (&mut self.input, load.input),
            (&mut self.output, load.output),
        ];
        for (flow, amount) in flows {
            if let Some(flow) = flow {
                flow.take(amount, now);
            }
        }
    }

    /// So much was reckoned, and so much it was.
    pub fn correct(&mut self, reckoned: Load, was: Load, now: Timestamp) {
        let flows = [
            (&mut self.requests, reckoned.requests, was.requests),
            (&mut self.input, reckoned.input, was.input),
            (&mut self.output, reckoned.output, was.output),
        ];
        for (flow, reckoned, was) in flows {
            let Some(flow) = flow else { continue };
            if was > reckoned {
                flow.owe(was - reckoned, now);
            } else {
                flow.give_back(reckoned - was, now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Timestamp = Timestamp(1_700_000_000_000);

    fn limits(requests: u64, input: Option<u64>) -> TempoLimits {
        TempoLimits { requests: Some(requests), input, output: None, burst: Millis::from_mins(1) }
    }

    fn load(requests: u64, input: u64) -> Load {
        Load { requests, input, output: 0 }
    }

    #[test]
    fn a_burst_leaves_and_then_the_rate() {
        let mut tempo = Tempo::new(limits(60, None), START);
        assert_eq!(tempo.room(load(1, 10), START), 60);
        tempo.take(load(60, 600), START);
        assert_eq!(tempo.room(load(1, 10), START), 0);
        assert_eq!(tempo.when(load(1, 0), 1, START), START.after(Millis(1000)));
        assert_eq!(tempo.when(load(1000, 0), 1, START), START.after(Millis::from_mins(1)));
        assert_eq!(tempo.when(load(1000, 0), 6, START), START.after(Millis::from_secs(10)));
        assert_eq!(tempo.room(load(1, 10), START.after(Millis(2500))), 2);
    }

    #[test]
    fn what_was_reckoned_is_corrected() {
        let mut tempo = Tempo::new(limits(60, Some(600)), START);
        tempo.take(load(10, 600), START);
        tempo.correct(load(10, 600), load(4, 300), START);
        assert_eq!((tempo.room(load(1, 0), START), tempo.room(load(1, 10), START)), (56, 30));
        tempo.correct(load(0, 0), load(0, 900), START);
        assert_eq!(
            tempo.when(load(1, 10), 1, START),
            START.after(Millis::from_secs(61)),
            "600 more than there were"
        );
    }

    #[test]
    fn an_answer_that_claims_the_moon_shuts_nobody_out() {
        let mut tempo = Tempo::new(limits(60, Some(600)), START);
        for claimed in [1 << 60, u64::MAX] {
            tempo.correct(load(1, 10), load(1, claimed), START);
        }
        assert_eq!(tempo.when(load(1, 600), 1, START), START.after(Millis::from_mins(60)));
        let mut slow =
            Tempo::new(TempoLimits { burst: Millis::from_hours(5), ..limits(60, Some(600)) }, START);
        slow.take(load(1, 180_000), START);
        slow.correct(load(1, 10), load(1, 20), START);
        assert_eq!(
            slow.when(load(1, 180_000), 1, START),
            START.after(Millis::from_hours(5)),
            "a burst is a burst"
        );
    }

    #[test]
    fn what_is_larger_than_a_burst_leaves_when_all_of_it_is_there() {
        let mut tempo = Tempo::new(limits(60, Some(600)), START);
        let huge = load(1, 5000);
        assert_eq!(tempo.room(huge, START), 1);
        tempo.take(huge, START);
        let later = tempo.when(huge, 1, START);
        assert_eq!(later, START.after(Millis::from_secs(500)));
        assert_eq!((tempo.room(huge, later.before(Millis(1))), tempo.room(huge, later)), (0, 1));
    }

    #[test]
    fn other_limits_forget_nothing() {
        let mut tempo = Tempo::new(limits(60, None), START);
        tempo.take(load(60, 0), START);
        tempo.limit(limits(120, Some(10)), START);
        assert_eq!(tempo.room(load(1, 0), START), 60, "the larger burst less what was taken");
    }

    proptest! {
        /// Random loads of random limits with demand always there: no more than limit x time + burst leaves, and at least 99%
        /// of limit x time. The time that is told is exact.
        #[test]
        fn what_leaves_is_the_limit(
            limit in 60_u64..10_000_000,
            burst in 1_000_u64..600_000,
            parts in prop::collection::vec(1_u64..20, 100..300),
        ) {
            let terms = TempoLimits { burst: Millis(burst), ..limits(limit, None) };
            let mut tempo = Tempo::new(terms, START);
            let (mut now, mut left) = (START, 0_u64);
            let most = (limit * burst / 60_000).max(1);
            for part in parts {
                let at = tempo.when(load(u64::MAX, 0), part, now);
                if at > now {
                    prop_assert!(tempo.when(load(u64::MAX, 0), part, at.before(Millis(1))) >= at);
                }
                now = at;
                let room = tempo.room(load(1, 0), now);
                prop_assert!(room >= (most / part).max(1));
                tempo.take(load(room, 0), now);
                left += room;
                let earned = u128::from(limit) * u128::from(now.since(START).0);
                prop_assert!(u128::from(left) * MINUTE <= earned + u128::from(most) * MINUTE);
                prop_assert!(u128::from(left) * MINUTE * 100 >= earned * 99);
            }
        }
    }
}
