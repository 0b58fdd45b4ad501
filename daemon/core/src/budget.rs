//! Budgets: so much money in a day and in a month (UTC), with reservations for what is under way.

use crate::money::Money;
use crate::words::Timestamp;

const DAY_MS: u64 = 86_400_000;

/// Shares of a budget, in percent, that are told when they are reached.
pub const TOLD_AT: [u8; 3] = [50, 80, 100];

/// How much may be spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Allowance {
    /// In a day.
    pub day: Option<Money>,
    /// In a month.
    pub month: Option<Money>,
    /// What goes beyond is refused; otherwise it is only told.
    pub is_hard: bool,
}

/// A day or a month.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Period {
    /// A day.
    Day,
    /// A month.
    Month,
}

impl Period {
    /// The word as users see it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Month => "month",
        }
    }

    /// Its number, counted from some day; the same for two times in the same period.
    #[must_use]
    pub fn number(self, at: Timestamp) -> u64 {
        let days = at.0 / DAY_MS;
        match self {
            Self::Day => days,
            Self::Month => {
                let (year, month, _) = civil(days);
                year * 12 + month
            }
        }
    }

    /// Its first moment.
    #[must_use]
    pub fn start(self, at: Timestamp) -> Timestamp {
        let days = at.0 / DAY_MS;
        match self {
            Self::Day => Timestamp(days * DAY_MS),
            Self::Month => Timestamp((days - (civil(days).2 - 1)) * DAY_MS),
        }
    }

    /// The first moment of the next one.
    #[must_use]
    pub fn end(self, at: Timestamp) -> Timestamp {
        let start = self.start(at);
        match self {
            Self::Day => Timestamp(start.0 + DAY_MS),
            // Every month has at least 28 days and at most 31.
            Self::Month => self.start(Timestamp(start.0 + 32 * DAY_MS)),
        }
    }
}

/// Year, month (1 to 12) and day (1 to 31) of a day counted from 1970-01-01, in the Gregorian calendar.
const fn civil(days: u64) -> (u64, u64, u64) {
    // Counted from 0000-03-01, so that the leap day is the last of its year.
    let days = days + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400;
    (if month <= 2 { year + 1 } else { year }, month, day)
}

/// A budget does not allow a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Over {
    /// Which period's.
    pub period: Period,
    /// When there is money again.
    pub until: Timestamp,
}

/// A share of a budget is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// Of this period.
    pub period: Period,
    /// The number of that period.
    pub number: u64,
    /// Percent.
    pub percent: u8,
    /// What is spent.
    pub spent: Money,
    /// What may be.
    pub allowed: Money,
}

/// What is spent in one period.
#[derive(Debug, Clone, Copy)]
struct Purse {
    period: Period,
    /// None without a limit: what is spent is counted all the same, since a limit may be set later.
    allowed: Option<Money>,
    number: u64,
    spent: Money,
    /// The largest share that was told in this period.
    told: u8,
}

/// A tenant's budget. Whatever may be spent, what is spent is counted: a limit that is set or changed later finds it there.
#[derive(Debug)]
pub struct Budget {
    purses: [Purse; 2],
    is_hard: bool,
    reserved: Money,
    deferred: Money,
}

impl Default for Budget {
    fn default() -> Self {
        let purse = |period| Purse { period, allowed: None, number: 0, spent: Money::ZERO, told: 0 };
        Self {
            purses: [purse(Period::Day), purse(Period::Month)],
            is_hard: false,
            reserved: Money::ZERO,
            deferred: Money::ZERO,
        }
    }
}

impl Budget {
    /// From now on so much may be spent; what was spent and set aside stays. Tells the shares that are passed by that
    /// already.
    pub fn set(&mut self, allowance: Allowance, now: Timestamp) -> Vec<Told> {
        self.turn(now);
        self.is_hard = allowance.is_hard;
        let mut told = Vec::new();
        for purse in &mut self.purses {
            let allowed = match purse.period {
                Period::Day => allowance.day,
                Period::Month => allowance.month,
            };
            if purse.allowed != allowed {
                purse.allowed = allowed;
                told.extend(purse.tell());
                // Of a larger amount the shares are told anew.
                purse.told = purse.reached();
            }
        }
        told
    }

    /// So much was spent in the present period before this budget began to count, and this share was told: what the ledger
    /// and the store say.
    pub fn remember(&mut self, period: Period, spent: Money, told: u8, now: Timestamp) {
        self.turn(now);
        for purse in self.purses.iter_mut().filter(|purse| purse.period == period) {
            purse.spent += spent;
            purse.told = purse.told.max(told);
        }
    }

    /// Sets money aside for a request. A hard budget refuses it if that, with what is spent and what is set aside for
    /// others, goes beyond what is allowed.
    pub fn reserve(&mut self, amount: Money, now: Timestamp) -> Result<(), Over> {
        self.turn(now);
        if self.is_hard {
            for purse in &self.purses {
                let Some(allowed) = purse.allowed else { continue };
                let committed = purse.spent.plus(self.reserved).plus(self.deferred);
                // With nothing left, even what costs nothing by the estimate is refused.
                if committed.plus(amount) > allowed || committed >= allowed {
                    return Err(Over { period: purse.period, until: purse.period.end(now) });
                }
            }
        }
        self.reserved += amount;
        Ok(())
    }

    /// Gives back what was set aside.
    pub fn release(&mut self, amount: Money) {
        self.reserved = Money((self.reserved.0 - amount.0).max(0));
    }

    /// What deferred work under way will cost, by what is known now.
    pub const fn defer(&mut self, amount: Money) {
        self.deferred = amount;
    }

    /// What a hard budget leaves for deferred work, that which is under way included, and when there is more; none if
    /// nothing is limited.
    pub fn funds(&mut self, now: Timestamp) -> Option<(Money, Timestamp)> {
        self.turn(now);
        let left = |purse: &Purse| {
            let left = purse.allowed?.0.saturating_sub(purse.spent.0).saturating_sub(self.reserved.0);
            Some((Money(left), purse.period.end(now)))
        };
        // Where two periods leave nothing, the later end counts.
        let least =
            |(left, until): &(Money, Timestamp)| ((*left).max(Money::ZERO), Timestamp(u64::MAX - until.0));
        self.purses.iter().filter(|_| self.is_hard).filter_map(left).min_by_key(least)
    }

    /// Money was spent, now.
    pub fn spend(&mut self, amount: Money, now: Timestamp) -> Vec<Told> {
        self.turn(now);
        let mut told = Vec::new();
        for purse in &mut self.purses {
            purse.spent += amount;
            told.extend(purse.tell());
        }
        told
    }

    /// What is spent and allowed in each period that has a limit.
    pub fn standing(&mut self, now: Timestamp) -> Vec<(Period, Money, Money)> {
        self.turn(now);
        self.purses.iter().filter_map(|purse| Some((purse.period, purse.spent, purse.allowed?))).collect()
    }

    /// A new period begins with an empty purse. What is set aside stays: it will be spent in the new one. A time from before
    /// belongs to the present period all the same: times come out of order, and clocks are set back, and neither gives
    /// money back that was spent.
    fn turn(&mut self, now: Timestamp) {
        for purse in &mut self.purses {
            let number = purse.period.number(now);
            if number > purse.number {
                *purse = Purse { number, spent: Money::ZERO, told: 0, ..*purse };
            }
        }
    }
}

impl Purse {
    /// A share that is reached and was not told.
    fn tell(&mut self) -> Option<Told> {
        let (allowed, reached) = (self.allowed?, self.reached());
        if reached <= self.told {
            return None;
        }
        self.told = reached;
        let Self { period, number, spent, .. } = *self;
        Some(Told { period, number, percent: reached, spent, allowed })
    }

    /// The largest share that is reached.
    fn reached(&self) -> u8 {
        let Some(allowed) = self.allowed else { return 0 };
        let is_reached = |percent: &&u8| {
            self.spent.0.saturating_mul(100) >= allowed.0.saturating_mul(i128::from(**percent))
        };
        TOLD_AT.iter().rev().find(is_reached).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with(allowance: Allowance) -> Budget {
        let mut budget = Budget::default();
        budget.set(allowance, Timestamp(0));
        budget
    }

    fn budget(day: u32, is_hard: bool) -> Budget {
        with(Allowance { day: Some(Money::dollars(day)), month: None, is_hard })
    }

    /// 2026-11-25T08:00:00Z
    const NOW: Timestamp = Timestamp(1_795_593_600_000);

    #[test]
    fn periods_begin_and_end_as_in_the_calendar() {
        let at = |days: u64| Timestamp(days * DAY_MS);
        assert_eq!((civil(0), civil(59), civil(11_016)), ((1970, 1, 1), (1970, 3, 1), (2000, 2, 29)));
        assert_eq!(Period::Month.start(at(11_016)), at(10_988));
        assert_eq!(Period::Month.end(at(11_016)), at(11_017));
        assert_eq!(Period::Month.end(at(0)), at(31));
        assert_eq!(civil(NOW.0 / DAY_MS), (2026, 11, 25));
        assert_eq!(Period::Day.end(NOW).since(NOW).0, 16 * 3_600_000);
    }

    #[test]
    fn a_hard_budget_holds_and_begins_anew() {
        let mut budget = budget(1, true);
        let half = Money::dollars(1).permille(500);
        assert_eq!((budget.reserve(half, NOW), budget.reserve(half, NOW)), (Ok(()), Ok(())));
        let over = Over { period: Period::Day, until: Period::Day.end(NOW) };
        assert_eq!(budget.reserve(Money(1), NOW), Err(over));
        budget.release(half);
        assert_eq!(budget.spend(half, NOW).len(), 1, "50 percent");
        budget.release(half);
        assert_eq!(budget.spend(Money(1), NOW), [], "told once");
        assert_eq!(budget.reserve(half, NOW), Err(over));
        assert_eq!(budget.reserve(half, over.until), Ok(()));
    }

    #[test]
    fn a_soft_budget_only_tells() {
        let mut budget = budget(1, false);
        budget.remember(Period::Day, Money::dollars(1).permille(850), 80, NOW);
        assert_eq!(budget.reserve(Money::dollars(9), NOW), Ok(()));
        let told = budget.spend(Money::dollars(9), NOW);
        assert_eq!(told.iter().map(|told| told.percent).collect::<Vec<_>>(), [100]);
    }

    #[test]
    fn deferred_work_under_way_is_counted_beside_what_is_set_aside() {
        let cent = |cents: i128| Money(Money::dollars(1).0 * cents / 100);
        let mut budget = with(Allowance { day: Some(cent(100)), month: Some(cent(1000)), is_hard: true });
        assert_eq!(budget.funds(NOW), Some((cent(100), Period::Day.end(NOW))));
        budget.reserve(cent(30), NOW).unwrap();
        budget.defer(cent(60));
        assert_eq!(budget.funds(NOW), Some((cent(70), Period::Day.end(NOW))));
        assert!(budget.reserve(cent(11), NOW).is_err());
        assert!(budget.reserve(cent(10), NOW).is_ok());
        budget.remember(Period::Month, cent(2000), 0, NOW);
        budget.remember(Period::Day, cent(200), 0, NOW);
        assert_eq!(budget.funds(NOW).map(|(_, until)| until), Some(Period::Month.end(NOW)));
        let soft = Allowance { day: Some(cent(1)), month: None, is_hard: false };
        assert_eq!(with(soft).funds(NOW), None);
    }

    #[test]
    fn nothing_is_allowed_where_nothing_is_allowed() {
        assert!(budget(0, true).reserve(Money::ZERO, NOW).is_err());
    }

    #[test]
    fn another_budget_finds_what_was_spent_and_set_aside() {
        let cents = |day: i128| Allowance { day: Some(Money(day * 100)), month: None, is_hard: true };
        let percents = |told: Vec<Told>| told.iter().map(|told| told.percent).collect::<Vec<_>>();
        let mut budget = Budget::default();
        budget.reserve(Money(300), NOW).unwrap();
        assert_eq!(budget.spend(Money(400), NOW), [], "nothing is limited yet");
        assert_eq!(percents(budget.set(cents(10), NOW)), [], "four of ten");
        assert!(budget.reserve(Money(301), NOW).is_err(), "four are spent, and three are set aside");
        assert_eq!(percents(budget.set(cents(5), NOW)), [80], "a lower budget is used up that far");
        assert_eq!(percents(budget.set(cents(5), NOW)), []);
        assert_eq!(percents(budget.set(cents(20), NOW)), []);
        assert_eq!(percents(budget.spend(Money(600), NOW)), [50], "of the larger one");
        assert_eq!(budget.standing(NOW), [(Period::Day, Money(1000), Money(2000))]);
        budget.set(Allowance::default(), NOW);
        assert_eq!(budget.reserve(Money(1 << 40), NOW), Ok(()));
    }

    #[test]
    fn what_was_told_before_is_not_told_again_and_what_was_not_is() {
        let allowance = Allowance { day: None, month: Some(Money(100)), is_hard: false };
        let mut budget = Budget::default();
        budget.remember(Period::Month, Money(85), 80, NOW);
        assert_eq!(budget.set(allowance, NOW), []);
        let mut budget = Budget::default();
        budget.remember(Period::Month, Money(85), 50, NOW);
        assert_eq!(budget.set(allowance, NOW).first().map(|told| told.percent), Some(80));
    }

    proptest! {
        /// Calls end out of order, and clocks are set back: what is spent in a period only grows, and a share is told once.
        #[test]
        fn times_out_of_order_give_no_money_back(
            spendings in prop::collection::vec((0_u64..4 * DAY_MS, 0_i128..40), 1..200),
        ) {
            let allowance = Allowance { day: Some(Money(100)), month: Some(Money(1000)), is_hard: true };
            let mut budget = with(allowance);
            let (mut latest, mut since, mut all) = (0, 0, 0);
            let mut told = Vec::new();
            for (ms, amount) in spendings {
                let now = Timestamp(NOW.0 + ms);
                let number = Period::Day.number(now);
                if number > latest {
                    (latest, since) = (number, 0);
                }
                told.extend(budget.spend(Money(amount), now).iter().map(|told| (told.period, told.number, told.percent)));
                (since, all) = (since + amount, all + amount);
                // The four days lie in one month.
                let standing = [(Period::Day, Money(since), Money(100)), (Period::Month, Money(all), Money(1000))];
                prop_assert_eq!(budget.standing(now), standing);
                prop_assert_eq!(budget.reserve(Money(1), now).is_ok(), since < 100 && all < 1000);
                budget.release(Money(1));
            }
            let count = told.len();
            told.sort_unstable();
            told.dedup();
            prop_assert_eq!(told.len(), count);
        }

        /// Whatever comes at once, no more is spent than allowed, as far as estimates are right; and by no more than
        /// the sum of their errors where they are not.
        #[test]
        fn parallel_requests_do_not_overshoot(
            requests in prop::collection::vec((1_i128..1000, -200_i128..200), 1..300),
            allowed in 100_i128..20_000,
        ) {
            let allowance = Allowance { day: Some(Money(allowed)), month: None, is_hard: true };
            let mut budget = with(allowance);
            let (mut spent, mut errors, mut running) = (0, 0, Vec::new());
            for (index, (estimate, error)) in requests.into_iter().enumerate() {
                if budget.reserve(Money(estimate), NOW).is_ok() {
                    running.push((estimate, (estimate + error).max(0)));
                }
                // Every third request, the oldest one under way ends.
                if index % 3 == 0 && !running.is_empty() {
                    let (estimate, actual) = running.remove(0);
                    budget.release(Money(estimate));
                    budget.spend(Money(actual), NOW);
                    (spent, errors) = (spent + actual, errors + (actual - estimate).max(0));
                }
            }
            for (estimate, actual) in running {
                budget.release(Money(estimate));
                budget.spend(Money(actual), NOW);
                (spent, errors) = (spent + actual, errors + (actual - estimate).max(0));
            }
            prop_assert!(spent <= allowed + errors, "{spent} of {allowed}, errors {errors}");
            prop_assert_eq!(budget.reserved, Money::ZERO);
        }

        #[test]
        fn every_time_lies_in_its_period(ms in 0_u64..4_102_444_800_000) {
            for period in [Period::Day, Period::Month] {
                let at = Timestamp(ms);
                let (start, end) = (period.start(at), period.end(at));
                prop_assert!(start <= at && at < end);
                prop_assert_eq!(period.number(start), period.number(at));
                prop_assert_eq!(period.number(Timestamp(end.0 - 1)), period.number(at));
                prop_assert_ne!(period.number(end), period.number(at));
            }
        }
    }
}
