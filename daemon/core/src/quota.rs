//! Quotas: so much in a minute, and so many at once.
//!
//! A [`Rate`] is a generic cell rate algorithm, as in the crate `governor`, with what that one lacks: amounts that are
//! corrected afterwards, since what an answer takes is only known at its end. It is one atomic number, so that a check is a
//! few nanoseconds whoever else checks. Time is nanoseconds since some moment of the caller's choice.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Units of a nanosecond, so that even a billion a minute are told apart (one takes 60 ns) and the clock lasts nine years.
const UNITS: u64 = 64;

const MINUTE: u64 = 60_000_000_000 * UNITS;

/// What an answer is said to have taken beyond what was reckoned is owed for so long at most: whoever says it may be wrong, and
/// nobody is shut out for that.
const OWED_MOST: u64 = 60 * MINUTE;

/// The largest limit, a minute.
pub const LIMIT_MAX: u64 = 1_000_000_000;

/// So much in a minute: on average the limit, and at once no more than the burst. The limit may be changed while it is used,
/// or not be there: then everything is taken.
#[derive(Debug)]
pub struct Rate {
    /// When everything that was taken will have been earned.
    earned_at: AtomicU64,
    /// 0 where there is none.
    limit: AtomicU64,
    burst: AtomicU64,
}

/// How much in a minute, and how much of that at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    limit: u64,
    burst: u64,
}

impl Pace {
    /// Limit and burst are at least 1 and at most [`LIMIT_MAX`].
    #[must_use]
    pub fn new(limit: u64, burst: u64) -> Self {
        let within = |amount: u64| amount.clamp(1, LIMIT_MAX);
        Self { limit: within(limit), burst: within(burst) }
    }

    /// The time in which an amount is earned. Rounded up, so that no more than the limit is given.
    fn price(self, amount: u64) -> u64 {
        let price = (u128::from(amount) * u128::from(MINUTE)).div_ceil(u128::from(self.limit));
        u64::try_from(price).unwrap_or(u64::MAX)
    }

    /// The amount that is earned in a time.
    fn amount(self, time: u64) -> u64 {
        let amount = u128::from(time) * u128::from(self.limit) / u128::from(MINUTE);
        u64::try_from(amount).unwrap_or(u64::MAX).min(self.burst)
    }

    /// What is owed by another pace, in the time of this one: what was taken stays taken, but no more than a whole burst,
    /// so that nobody waits for an hour because of what an old limit allowed; what is owed beyond a burst stays a debt.
    fn take_over(self, before: Self, owed: u64) -> u64 {
        let burst = before.price(before.burst);
        let amount = |time: u64| u128::from(time) * u128::from(before.limit);
        let taken = amount(owed.min(burst)).min(u128::from(self.burst) * u128::from(MINUTE));
        let owed = (taken + amount(owed.saturating_sub(burst))).div_ceil(u128::from(self.limit));
        u64::try_from(owed).unwrap_or(u64::MAX)
    }
}

/// What a rate says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// It is taken.
    Taken,
    /// Not now; it will be there after so many nanoseconds, if nobody else takes it.
    Wait(u64),
    /// It is more than the burst and will never be there.
    Never,
}

/// How a rate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// A minute.
    pub limit: u64,
    /// What can be taken at once when all is there.
    pub burst: u64,
    /// What can be taken now.
    pub remaining: u64,
    /// When all of the burst can be taken again, in nanoseconds from now.
    pub full_after: u64,
}

impl Rate {
    /// A full rate. Limit and burst are at least 1 and at most [`LIMIT_MAX`].
    #[must_use]
    pub fn new(limit: u64, burst: u64) -> Self {
        Self::of(Some(Pace::new(limit, burst)))
    }

    fn of(pace: Option<Pace>) -> Self {
        let (limit, burst) = pace.map_or((0, 0), |pace| (pace.limit, pace.burst));
        Self { earned_at: AtomicU64::new(0), limit: AtomicU64::new(limit), burst: AtomicU64::new(burst) }
    }

    /// None where nothing is limited.
    fn pace(&self) -> Option<Pace> {
        match self.limit.load(Ordering::Acquire) {
            0 => None,
            limit => Some(Pace { limit, burst: self.burst.load(Ordering::Acquire).max(1) }),
        }
    }

    /// From now on this pace holds. What was taken stays taken. What is taken in the very moment of a change may be reckoned
    /// by either.
    fn change(&self, pace: Option<Pace>, now: u64) {
        let before = self.pace();
        if before == pace {
            return;
        }
        let now = now.saturating_mul(UNITS);
        let owed = |earned_at: u64| match (before, pace) {
            (Some(before), Some(after)) => after.take_over(before, earned_at.saturating_sub(now)),
            _ => 0,
        };
        self.earned_at
            .update(Ordering::AcqRel, Ordering::Acquire, |earned_at| now.saturating_add(owed(earned_at)));
        let (limit, burst) = pace.map_or((0, 0), |pace| (pace.limit, pace.burst));
        self.burst.store(burst, Ordering::Release);
        self.limit.store(limit, Ordering::Release);
    }

    /// Takes an amount if it is there.
    pub fn take(&self, amount: u64, now: u64) -> Check {
        let Some(pace) = self.pace() else { return Check::Taken };
        if amount > pace.burst {
            return Check::Never;
        }
        let (now, price, most) = (now.saturating_mul(UNITS), pace.price(amount), pace.price(pace.burst));
        let taken = self.earned_at.try_update(Ordering::AcqRel, Ordering::Acquire, |earned_at| {
            let after = earned_at.max(now).saturating_add(price);
            (after - now <= most).then_some(after)
        });
        match taken {
            Ok(_) => Check::Taken,
            Err(earned_at) => {
                let over = earned_at.max(now).saturating_add(price) - now;
                Check::Wait(over.saturating_sub(most).div_ceil(UNITS))
            }
        }
    }

    /// Takes an amount whether it is there or not: what was taken too little before. Later calls wait for it, for an hour at
    /// most, or as long as a whole burst takes.
    pub fn owe(&self, amount: u64, now: u64) {
        let Some(pace) = self.pace() else { return };
        let (now, price) = (now.saturating_mul(UNITS), pace.price(amount));
        let most = now.saturating_add(pace.price(pace.burst).max(OWED_MOST));
        self.earned_at.update(Ordering::AcqRel, Ordering::Acquire, |earned_at| {
            earned_at.max(now).saturating_add(price).min(most.max(earned_at))
        });
    }

    /// Gives back what was taken and not used.
    pub fn give_back(&self, amount: u64) {
        let Some(pace) = self.pace() else { return };
        let price = pace.price(amount);
        self.earned_at
            .update(Ordering::AcqRel, Ordering::Acquire, |earned_at| earned_at.saturating_sub(price));
    }

    /// How it stands; none where nothing is limited.
    pub fn standing(&self, now: u64) -> Option<Standing> {
        let pace = self.pace()?;
        let now = now.saturating_mul(UNITS);
        let owed = self.earned_at.load(Ordering::Acquire).saturating_sub(now);
        let free = pace.price(pace.burst).saturating_sub(owed);
        let (limit, remaining) = (pace.limit, pace.amount(free));
        Some(Standing { limit, burst: pace.burst, remaining, full_after: owed.div_ceil(UNITS) })
    }

    /// No more than the burst, which is let in when all of it is there.
    fn most(&self, amount: u64) -> u64 {
        self.pace().map_or(amount, |pace| amount.min(pace.burst))
    }
}

/// So many at once. They are counted where there is no limit as well, since one may be set while they run.
#[derive(Debug)]
pub struct AtOnce {
    running: AtomicU32,
    /// The largest number where there is no limit.
    most: AtomicU32,
}

impl AtOnce {
    /// None is running.
    #[must_use]
    pub const fn new(most: u32) -> Self {
        Self { running: AtomicU32::new(0), most: AtomicU32::new(most) }
    }

    /// Takes a place, if there is one; it is given back with [`AtOnce::leave`].
    pub fn enter(&self) -> bool {
        let most = self.most.load(Ordering::Acquire);
        let enter = |running| (running < most).then_some(running + 1);
        self.running.try_update(Ordering::AcqRel, Ordering::Acquire, enter).is_ok()
    }

    /// Takes a place that may not be there.
    pub fn enter_anyway(&self) {
        self.running.update(Ordering::AcqRel, Ordering::Acquire, |running| running.saturating_add(1));
    }

    /// Gives a place back.
    pub fn leave(&self) {
        self.running.update(Ordering::AcqRel, Ordering::Acquire, |running| running.saturating_sub(1));
    }
}

/// The limits of one tenant, key, model or backend; what is not there is not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QuotaLimits {
    /// Requests.
    pub requests: Option<Pace>,
    /// Input tokens.
    pub input: Option<Pace>,
    /// Output tokens.
    pub output: Option<Pace>,
    /// Requests at once.
    pub at_once: Option<u32>,
}

/// Limits, and what was taken from them.
#[derive(Debug)]
pub struct Quota {
    requests: Rate,
    input: Rate,
    output: Rate,
    at_once: AtOnce,
}

/// What a request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Demand {
    /// Input tokens, reckoned.
    pub input: u64,
    /// Output tokens, reckoned.
    pub output: u64,
}

/// Which limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limited {
    /// Requests a minute.
    Requests,
    /// Input tokens a minute.
    Input,
    /// Output tokens a minute.
    Output,
    /// Requests at once.
    AtOnce,
}

/// A quota does not let a request in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub by: Limited,
    /// When it is worth trying again, in nanoseconds; none if it never is.
    pub wait: Option<u64>,
}

impl Quota {
    /// Nothing is taken.
    #[must_use]
    pub fn new(limits: QuotaLimits) -> Self {
        Self {
            requests: Rate::of(limits.requests),
            input: Rate::of(limits.input),
            output: Rate::of(limits.output),
            at_once: AtOnce::new(limits.at_once.unwrap_or(u32::MAX)),
        }
    }

    /// From now on these limits hold. What was taken stays taken, and what runs is counted.
    pub fn set(&self, limits: QuotaLimits, now: u64) {
        self.requests.change(limits.requests, now);
        self.input.change(limits.input, now);
        self.output.change(limits.output, now);
        self.at_once.most.store(limits.at_once.unwrap_or(u32::MAX), Ordering::Release);
    }

    /// Nothing is limited.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let [requests, input, output] = self.rates();
        let is_unlimited = self.at_once.most.load(Ordering::Acquire) == u32::MAX;
        is_unlimited && requests.pace().is_none() && input.pace().is_none() && output.pace().is_none()
    }

    /// Takes all of a request's demand, or nothing of it.
    ///
    /// A demand larger than a burst is let in when the whole burst is there: the estimate may be wrong, and a request that
    /// is never let in could not be told from a broken daemon.
    pub fn take(&self, demand: Demand, now: u64) -> Result<(), Refused> {
        if !self.at_once.enter() {
            return Err(Refused { by: Limited::AtOnce, wait: Some(1_000_000_000) });
        }
        let parts = self.parts(demand);
        for (index, (by, rate, amount)) in parts.iter().enumerate() {
            if let Check::Wait(wait) = rate.take(rate.most(*amount), now) {
                for (_, rate, amount) in parts.iter().take(index) {
                    rate.give_back(rate.most(*amount));
                }
                self.at_once.leave();
                return Err(Refused { by: *by, wait: Some(wait) });
            }
        }
        Ok(())
    }

    /// Takes a demand that may not be there: whoever comes next waits for what is owed.
    pub fn owe(&self, demand: Demand, now: u64) {
        self.at_once.enter_anyway();
        for (_, rate, amount) in self.parts(demand) {
            rate.owe(rate.most(amount), now);
        }
    }

    /// The request is over: its place is free, and what was reckoned is corrected by what it took.
    pub fn settle(&self, reckoned: Demand, took: Demand, now: u64) {
        self.at_once.leave();
        for (rate, reckoned, took) in
            [(&self.input, reckoned.input, took.input), (&self.output, reckoned.output, took.output)]
        {
            let reckoned = rate.most(reckoned);
            if took > reckoned {
                rate.owe(took - reckoned, now);
            } else {
                rate.give_back(reckoned - took);
            }
        }
    }

    /// The request was not sent after all.
    pub fn undo(&self, demand: Demand) {
        self.at_once.leave();
        for (_, rate, amount) in self.parts(demand) {
            rate.give_back(rate.most(amount));
        }
    }

    /// How its rates stand: of requests, input tokens, output tokens.
    pub fn standing(&self, now: u64) -> [Option<Standing>; 3] {
        self.rates().map(|rate| rate.standing(now))
    }

    const fn rates(&self) -> [&Rate; 3] {
        [&self.requests, &self.input, &self.output]
    }

    const fn parts(&self, demand: Demand) -> [(Limited, &Rate, u64); 3] {
        [
            (Limited::Requests, &self.requests, 1),
            (Limited::Input, &self.input, demand.input),
            (Limited::Output, &self.output, demand.output),
        ]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_rate_gives_its_burst_and_then_its_limit() {
        let rate = Rate::new(60, 2);
        assert_eq!((rate.take(1, 0), rate.take(1, 0)), (Check::Taken, Check::Taken));
        assert_eq!(rate.take(1, 0), Check::Wait(SECOND));
        assert_eq!(rate.take(1, SECOND - 1), Check::Wait(1));
        assert_eq!(rate.take(1, SECOND), Check::Taken);
        assert_eq!(rate.take(3, 100 * SECOND), Check::Never);
        let standing = |remaining, full_after| Some(Standing { limit: 60, burst: 2, remaining, full_after });
        assert_eq!(rate.standing(SECOND), standing(0, 2 * SECOND));
        assert_eq!(rate.standing(9 * SECOND), standing(2, 0));
    }

    #[test]
    fn debts_are_paid_and_change_is_given() {
        let rate = Rate::new(60, 10);
        assert_eq!(rate.take(10, 0), Check::Taken);
        rate.owe(5, 0);
        assert_eq!(rate.take(1, 0), Check::Wait(6 * SECOND));
        rate.give_back(15);
        assert_eq!(rate.take(10, 0), Check::Taken);
    }

    #[test]
    fn an_answer_that_claims_the_moon_shuts_nobody_out() {
        let quota = Quota::new(QuotaLimits { output: Some(Pace::new(600, 100)), ..QuotaLimits::default() });
        let one = Demand { input: 0, output: 1 };
        for claimed in [u64::MAX, 1 << 60] {
            quota.take(one, 0).ok();
            quota.settle(one, Demand { input: 0, output: claimed }, 0);
        }
        let hour = 3600 * SECOND;
        assert!(quota.take(one, 0).unwrap_err().wait.is_some_and(|wait| wait <= hour));
        assert_eq!(quota.take(one, hour), Ok(()));
    }

    #[test]
    fn a_quota_takes_all_or_nothing() {
        let quota = Quota::new(QuotaLimits {
            requests: Some(Pace::new(60, 60)),
            input: Some(Pace::new(6000, 100)),
            output: None,
            at_once: Some(2),
        });
        let demand = Demand { input: 80, output: 1 << 40 };
        assert_eq!(quota.take(demand, 0), Ok(()));
        let refused = Refused { by: Limited::Input, wait: Some(SECOND * 6 / 10) };
        assert_eq!(quota.take(demand, 0), Err(refused));
        let [requests, ..] = quota.standing(0);
        assert_eq!(requests.map(|requests| requests.remaining), Some(59), "the request was given back");
        quota.settle(demand, Demand { input: 20, output: 0 }, 0);
        assert_eq!(quota.take(demand, 0), Ok(()), "60 tokens were not used");
        assert_eq!(quota.take(Demand::default(), 0), Ok(()));
        let full = quota.take(Demand::default(), 0).unwrap_err();
        assert_eq!(full.by, Limited::AtOnce);
        quota.undo(demand);
        assert_eq!(quota.take(demand, 0), Ok(()));
    }

    #[test]
    fn what_is_larger_than_the_burst_comes_in_when_all_of_it_is_there() {
        let quota = Quota::new(QuotaLimits { input: Some(Pace::new(600, 100)), ..QuotaLimits::default() });
        let huge = Demand { input: 1000, output: 0 };
        assert_eq!(quota.take(huge, 0), Ok(()));
        quota.settle(huge, Demand { input: 1000, output: 0 }, 0);
        // 1000 tokens at 10 a second.
        let one = Demand { input: 100, output: 0 };
        assert_eq!(quota.take(one, 0).unwrap_err().wait, Some(100 * SECOND));
        assert_eq!(quota.take(one, 100 * SECOND), Ok(()));
    }

    proptest! {
        /// Random amounts at random times, with demand always there: never more than limit x time + burst, and never
        /// less than 99% of limit x time.
        #[test]
        fn what_is_admitted_is_the_limit(
            limit in 600_u64..50_000_000,
            burst_permille in 20_u64..2000,
            steps in prop::collection::vec((1_u64..200_000_000, 1_u64..100), 200..400),
        ) {
            let burst = (limit / 60 * burst_permille / 1000).max(100);
            let rate = Rate::new(limit, burst);
            let (mut now, mut admitted) = (0_u64, 0_u64);
            for (pause, share) in steps {
                let amount = (burst * share / 100).max(1);
                match rate.take(amount, now) {
                    Check::Taken => admitted += amount,
                    Check::Wait(wait) => {
                        // The time that is told is exact: a moment before it is refused, and then it is there.
                        if wait > 1 {
                            prop_assert!(matches!(rate.take(amount, now + wait - 2), Check::Wait(_)));
                        }
                        now += wait;
                        prop_assert_eq!(rate.take(amount, now), Check::Taken);
                        admitted += amount;
                    }
                    Check::Never => prop_assert!(false, "no amount is above the burst"),
                }
                let earned = u128::from(limit) * u128::from(now) / 60_000_000_000;
                prop_assert!(u128::from(admitted) <= earned + u128::from(burst) + 1);
                // While the bucket is not full, nothing of what it earns is lost.
                let standing = rate.standing(now).unwrap();
                if standing.remaining < burst {
                    let given = u128::from(admitted) + u128::from(standing.remaining);
                    prop_assert!(given + 2 >= earned * 99 / 100, "{given} of {earned}");
                }
                // Waiting on purpose would lose what overflows, so only as long as there is room.
                now += pause.min(standing.full_after);
            }
        }

        #[test]
        fn corrections_are_exact(limit in 60_u64..1_000_000, reckoned in 1_u64..1000, took in 0_u64..2000) {
            let quota =
                Quota::new(QuotaLimits { input: Some(Pace::new(limit, 1000)), ..QuotaLimits::default() });
            let exact = Rate::new(limit, 1000);
            let demand = Demand { input: reckoned, output: 0 };
            quota.take(demand, 0).unwrap();
            quota.settle(demand, Demand { input: took, output: 0 }, 0);
            exact.owe(took, 0);
            let full_after = |rate: &Rate| rate.standing(0).map_or(0, |standing| standing.full_after);
            prop_assert!(full_after(&quota.input).abs_diff(full_after(&exact)) <= 2);
        }
    }

    #[test]
    fn other_limits_find_what_was_taken_and_what_runs() {
        let limits = |requests, at_once| QuotaLimits {
            requests: Some(Pace::new(requests, requests)),
            at_once,
            ..QuotaLimits::default()
        };
        let quota = Quota::new(limits(10, None));
        let one = Demand::default();
        for _ in 0..6 {
            assert_eq!(quota.take(one, 0), Ok(()));
        }
        let left = || quota.standing(0)[0].unwrap().remaining;
        quota.set(limits(20, Some(6)), 0);
        assert_eq!(left(), 14);
        assert_eq!(quota.take(one, 0).unwrap_err().by, Limited::AtOnce, "six run");
        quota.set(limits(2, None), 0);
        assert_eq!(left(), 0);
        let wait = quota.take(one, 0).unwrap_err().wait;
        assert_eq!(wait, Some(30 * SECOND), "a burst is taken, and not three");
        quota.set(QuotaLimits::default(), 0);
        assert!(quota.is_open() && quota.take(one, 0).is_ok());
        for _ in 0..7 {
            quota.settle(one, one, 0);
        }
        quota.set(limits(5, Some(1)), 0);
        assert_eq!((left(), quota.take(one, 0)), (5, Ok(())), "none runs any more");
    }

    proptest! {
        /// By other limits, what was taken is taken, up to a burst; and what was given back is there, but for one that the
        /// rounding may keep until the next nanosecond has earned it.
        #[test]
        fn changes_give_nothing_away(
            limits in (1_u64..10_000, 1_u64..10_000), bursts in (1_u64..10_000, 1_u64..10_000), part in 0_u64..=100,
        ) {
            let of = |limit, burst| QuotaLimits { input: Some(Pace::new(limit, burst)), ..QuotaLimits::default() };
            let quota = Quota::new(of(limits.0, bursts.0));
            let demand = Demand { input: bursts.0 * part / 100, output: 0 };
            quota.take(demand, SECOND).unwrap();
            quota.set(of(limits.1, bursts.1), SECOND);
            let left = || quota.standing(SECOND)[1].unwrap().remaining;
            prop_assert!(left().abs_diff(bursts.1.saturating_sub(demand.input)) <= 1);
            quota.settle(demand, Demand::default(), SECOND);
            prop_assert!((bursts.1.saturating_sub(1)..=bursts.1).contains(&left()));
        }
    }

    #[test]
    fn threads_together_take_no_more_than_one_would() {
        let rate = Rate::new(60, 1000);
        let taken = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        if rate.take(1, 0) == Check::Taken {
                            taken.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(taken.into_inner(), 1000);
    }
}
