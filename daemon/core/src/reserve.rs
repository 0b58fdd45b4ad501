//! What is real-time traffic's of what a provider lets an account have in a minute: deferred work that is run in real time
//! takes only what is above half of it.
//!
//! Providers tell with each answer what is left. Between two answers it is taken to grow back evenly. Where a provider gives
//! all of it at once, at the full minute, that is too early; but then the next answer tells of less, and the wait for it is
//! longer, so that real-time calls keep most of their half.

use crate::words::{Millis, Timestamp};

const MINUTE: u64 = 60_000;

/// With less time than this to its deadline, what is deferred takes of that half, too.
pub const LAST_MINUTE: Millis = Millis::from_mins(1);

/// One limit, as it was told last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserve {
    a_minute: u64,
    left: u64,
    told_at: Timestamp,
}

impl Reserve {
    /// The provider allows so much in a minute, and so much of it is left.
    #[must_use]
    pub fn told(a_minute: u64, left: u64, now: Timestamp) -> Self {
        let a_minute = a_minute.max(1);
        Self { a_minute, left: left.min(a_minute), told_at: now }
    }

    /// Something was taken of which the provider has not told yet.
    pub const fn take(&mut self, cost: u64) {
        self.left = self.left.saturating_sub(cost);
    }

    /// When there is more left than what is real-time traffic's: now, or later.
    #[must_use]
    pub fn free_at(&self, now: Timestamp) -> Timestamp {
        let kept = self.a_minute / 2;
        let missing = kept.saturating_add(1).min(self.a_minute).saturating_sub(self.left);
        let grows_in = u128::from(missing) * u128::from(MINUTE);
        let takes = u64::try_from(grows_in.div_ceil(u128::from(self.a_minute))).unwrap_or(MINUTE);
        self.told_at.after(Millis(takes)).max(now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Timestamp = Timestamp(1_700_000_000_000);

    fn after(millis: u64) -> Timestamp {
        START.after(Millis(millis))
    }

    #[test]
    fn half_of_a_minute_is_left_to_others() {
        assert_eq!(Reserve::told(60, 60, START).free_at(START), START);
        assert_eq!(Reserve::told(60, 31, START).free_at(START), START);
        assert_eq!(Reserve::told(60, 30, START).free_at(START), after(1_000));
        assert_eq!(Reserve::told(60, 0, START).free_at(START), after(31_000));
        assert_eq!(Reserve::told(60, 0, START).free_at(after(40_000)), after(40_000));
        // One that allows next to nothing still allows that.
        assert_eq!(Reserve::told(1, 1, START).free_at(START), START);
        assert_eq!(Reserve::told(1, 0, START).free_at(START), after(60_000));
    }

    #[test]
    fn what_was_taken_meanwhile_counts() {
        let mut reserve = Reserve::told(60, 40, START);
        reserve.take(9);
        assert_eq!(reserve.free_at(START), START);
        reserve.take(1);
        assert_eq!(reserve.free_at(START), after(1_000));
        reserve.take(u64::MAX);
        assert_eq!(reserve.free_at(START), after(31_000));
    }

    /// A provider that counts by full minutes.
    struct Minutes {
        a_minute: u64,
        minute: u64,
        used: u64,
    }

    impl Minutes {
        /// What is left after one more; none if it is refused.
        fn call(&mut self, now: Timestamp) -> Option<u64> {
            if now.0 / MINUTE != self.minute {
                (self.minute, self.used) = (now.0 / MINUTE, 0);
            }
            self.used += 1;
            self.a_minute.checked_sub(self.used)
        }
    }

    proptest! {
        /// Whoever calls as often as allowed does not take a minute's quota away from others, however the provider counts,
        /// and has his half of it.
        #[test]
        fn others_find_room(a_minute in 20_u64..2_000, latency in 0_u64..3_000) {
            let mut provider = Minutes { a_minute, minute: 0, used: 0 };
            let mut reserve = Reserve::told(a_minute, a_minute, START);
            let mut now = START;
            let mut made = 0_u64;
            while now < after(10 * MINUTE) {
                now = reserve.free_at(now);
                let left = provider.call(now);
                prop_assert!(left.is_some_and(|left| left * 5 >= a_minute), "{left:?} of {a_minute} left");
                now = now.after(Millis(latency));
                reserve = Reserve::told(a_minute, left.unwrap_or(0), now);
                made += 1;
            }
            let one_by_one = 10 * MINUTE / latency.max(1);
            prop_assert!(made >= (a_minute / 2 * 9).min(one_by_one), "{made} of {a_minute} a minute");
        }
    }
}
