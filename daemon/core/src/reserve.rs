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

/// Whether a limit that is whole again after this time, as providers write it (`6m0s`, `2m59.56s`, `20ms`), is one of a minute.
/// Some count requests by the day under the same name. What is written otherwise, such as a time of day, is taken for a minute's.
#[must_use]
pub fn is_of_a_minute(whole_in: &str) -> bool {
    let mut rest = whole_in.trim();
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, next) = after.split_at(letters);
        let of_unit = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            _ => return true,
        };
        let Ok(number) = number.parse::<f64>() else { return true };
        seconds += number * of_unit;
        rest = next;
    }
    seconds <= 60.0
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

    #[test]
    fn what_takes_longer_than_a_minute_is_no_limit_of_a_minute() {
        for whole_in in ["", "1s", "20ms", "0.5s", "59.9s", "1m0s", "2026-11-25T10:00:00Z", "soon", "12"] {
            assert!(is_of_a_minute(whole_in), "{whole_in}");
        }
        for whole_in in ["6m0s", "2m59.56s", "1h", "23h59m1.2s", "1d", "61s"] {
            assert!(!is_of_a_minute(whole_in), "{whole_in}");
        }
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
