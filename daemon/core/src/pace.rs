//! How many calls are made at once to a backend that says when it is too many: a window that grows by one for each round
//! that went well, and is halved when the provider says "slow down".

use crate::words::{Millis, Timestamp};

/// Parts of a place in the window, so that it can grow slowly.
const PLACE: u64 = 1000;

/// After a halving, further refusals of calls that were under way then do not halve again.
const CALM: Millis = Millis::from_secs(1);

/// After this time at the latest a call tries whether there is room again: what a provider asked of one call, such as to wait
/// for an hour, may be true of that one alone, and all others' would wait with it.
const HOLD_MAX: Millis = Millis::from_mins(1);

/// The window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    most: u64,
    window: u64,
    ceiling: u64,
    under_way: u64,
    held_until: Timestamp,
    halved_at: Timestamp,
}

/// Whether a call may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It may; [`Pace::done`] must follow.
    Now,
    /// Not before this time.
    At(Timestamp),
    /// Not before another one is done.
    AfterAnother,
}

impl Pace {
    /// At most so many at once. It begins with half of them.
    #[must_use]
    pub fn new(most: u64) -> Self {
        let most = most.max(1);
        Self {
            most,
            window: (most * PLACE / 2).max(PLACE),
            ceiling: u64::MAX,
            under_way: 0,
            held_until: Timestamp(0),
            halved_at: Timestamp(0),
        }
    }

    /// Asks for a turn, and takes it if it is given.
    pub fn ask(&mut self, now: Timestamp) -> Turn {
        if now < self.held_until { Turn::At(self.held_until) } else { self.ask_at_last() }
    }

    /// The same for a call that would be too late after a pause: the pause does not bind it.
    pub fn ask_at_last(&mut self) -> Turn {
        if self.under_way * PLACE >= self.window || self.under_way >= self.ceiling {
            return Turn::AfterAnother;
        }
        self.under_way += 1;
        Turn::Now
    }

    /// The same for what travels with a call that has its turn, and costs little beside it: neither a pause nor the window binds it.
    pub const fn ask_along(&mut self) -> Turn {
        if self.under_way >= self.most || self.ceiling == 0 {
            return Turn::AfterAnother;
        }
        self.under_way += 1;
        Turn::Now
    }

    /// A call is over; `too_much` if the provider refused it for want of room.
    pub fn done(&mut self, too_much: bool, retry_after: Option<Millis>, now: Timestamp) {
        self.under_way = self.under_way.saturating_sub(1);
        if !too_much {
            self.window = (self.window + PLACE * PLACE / self.window.max(PLACE)).min(self.most * PLACE);
            return;
        }
        if let Some(pause) = retry_after {
            self.held_until = self.held_until.max(now.after(pause.min(HOLD_MAX)));
        }
        if now.since(self.halved_at) >= CALM {
            self.window = (self.window / 2).max(PLACE);
            self.halved_at = now;
        }
    }

    /// No more than so many at once, whatever the window, until another word: somebody else decides about that. It may be
    /// none at all.
    #[must_use]
    pub const fn under(mut self, ceiling: u64) -> Self {
        self.ceiling = ceiling;
        self.window = self.most * PLACE;
        self
    }

    /// Another ceiling.
    pub const fn limit(&mut self, ceiling: u64) {
        self.ceiling = ceiling;
    }

    /// Calls under way.
    #[must_use]
    pub const fn under_way(&self) -> u64 {
        self.under_way
    }

    /// How many may be under way at once, as things stand.
    #[must_use]
    pub const fn at_once(&self) -> u64 {
        let window = self.window / PLACE;
        if window < self.ceiling { window } else { self.ceiling }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_refusal_halves_the_window_and_success_widens_it() {
        let mut pace = Pace::new(16);
        assert_eq!(pace.at_once(), 8);
        let now = Timestamp(1_000_000);
        for _ in 0..8 {
            assert_eq!(pace.ask(now), Turn::Now);
        }
        assert_eq!(pace.ask(now), Turn::AfterAnother);
        for _ in 0..8 {
            pace.done(true, Some(Millis::from_secs(5)), now);
        }
        assert_eq!(pace.at_once(), 4, "one storm halves it once");
        assert_eq!(pace.ask(now), Turn::At(now.after(Millis::from_secs(5))));
        let later = now.after(Millis::from_secs(5));
        for _ in 0..200 {
            assert_eq!(pace.ask(later), Turn::Now);
            pace.done(false, None, later);
        }
        assert_eq!(pace.at_once(), 16);
    }

    #[test]
    fn a_pause_is_a_minute_at_most_and_binds_nobody_at_last() {
        let mut pace = Pace::new(16);
        let now = Timestamp(1_000_000);
        assert_eq!(pace.ask(now), Turn::Now);
        pace.done(true, Some(Millis::from_hours(1)), now);
        assert_eq!(pace.ask(now), Turn::At(now.after(Millis::from_mins(1))));
        assert_eq!([0; 4].map(|_| pace.ask_at_last()), [Turn::Now; 4], "the window was halved, and holds");
        assert_eq!(pace.ask_at_last(), Turn::AfterAnother);
    }

    #[test]
    fn what_travels_along_is_bound_by_what_may_be_there_at_most() {
        let mut pace = Pace::new(16).under(2);
        assert_eq!(pace.ask(Timestamp(0)), Turn::Now);
        assert_eq!((0..20).filter(|_| pace.ask_along() == Turn::Now).count(), 15);
        assert_eq!(pace.ask(Timestamp(0)), Turn::AfterAnother, "the next call waits for all of them");
        pace.limit(0);
        pace.done(false, None, Timestamp(0));
        assert_eq!(pace.ask_along(), Turn::AfterAnother, "the engine takes nothing");
    }

    #[test]
    fn a_ceiling_holds_whatever_the_window() {
        let mut pace = Pace::new(16).under(2);
        let now = Timestamp(0);
        assert_eq!([pace.ask(now), pace.ask(now), pace.ask(now)], [Turn::Now, Turn::Now, Turn::AfterAnother]);
        pace.limit(0);
        pace.done(false, None, now);
        assert_eq!((pace.ask(now), pace.under_way()), (Turn::AfterAnother, 1));
        pace.limit(16);
        assert_eq!((0..20).filter(|_| pace.ask(now) == Turn::Now).count(), 15);
    }

    proptest! {
        #[test]
        fn the_window_is_kept(most in 1_u64..50, events in prop::collection::vec((0_u8..3, 0_u64..3_000), 1..500)) {
            let mut pace = Pace::new(most);
            let (mut now, mut under_way) = (Timestamp(1_000_000), 0_u64);
            for (event, millis) in events {
                match event {
                    0 => now = now.after(Millis(millis)),
                    1 => {
                        under_way += u64::from(pace.ask(now) == Turn::Now);
                        prop_assert!(under_way <= most);
                    }
                    _ if under_way > 0 => {
                        under_way -= 1;
                        pace.done(millis % 3 == 0, (millis % 2 == 0).then_some(Millis(millis)), now);
                    }
                    _ => {}
                }
                prop_assert!(pace.at_once() >= 1 && pace.at_once() <= most);
            }
        }
    }
}
