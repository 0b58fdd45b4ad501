//! How many batches a backend takes: at once, in an hour, and not before a time that it named.

use std::collections::VecDeque;

use crate::words::{Millis, Timestamp};

const HOUR: Millis = Millis::from_hours(1);

/// One place in so many is kept for tenants that have nothing under way, so that one with a million requests does not
/// keep another's hundred waiting until a batch of its own is back.
const RESERVED: usize = 4;

/// What a backend allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GateLimits {
    /// Batches under way at the same time.
    pub running: usize,
    /// Batches made in any hour.
    pub an_hour: usize,
}

/// Counts a backend's batches against its limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    limits: GateLimits,
    running: usize,
    made: VecDeque<Timestamp>,
    held_until: Timestamp,
}

/// Whether another batch may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// It may.
    Open,
    /// It may if it carries something of a tenant that has none under way: the last places are kept for them.
    Reserved,
    /// Not before this time.
    Until(Timestamp),
    /// Not before one of those under way has ended.
    UntilOneEnds,
}

impl Gate {
    /// A gate through which nothing has passed.
    #[must_use]
    pub const fn new(limits: GateLimits) -> Self {
        Self { limits, running: 0, made: VecDeque::new(), held_until: Timestamp(0) }
    }

    /// Asks without passing.
    pub fn ask(&mut self, now: Timestamp) -> Pass {
        while self.made.front().is_some_and(|made| made.after(HOUR) <= now) {
            self.made.pop_front();
        }
        if now < self.held_until {
            Pass::Until(self.held_until)
        } else if self.running >= self.limits.running {
            Pass::UntilOneEnds
        } else if let Some(first) = self.made.front().filter(|_| self.made.len() >= self.limits.an_hour) {
            Pass::Until(first.after(HOUR))
        } else if self.running >= self.limits.running - self.limits.running / RESERVED {
            Pass::Reserved
        } else {
            Pass::Open
        }
    }

    /// Other limits; the last word counts.
    pub const fn limit(&mut self, limits: GateLimits) {
        self.limits = limits;
    }

    /// A batch has left.
    pub fn enter(&mut self, now: Timestamp) {
        self.running += 1;
        self.made.push_back(now);
    }

    /// A batch that was under way before the daemon started.
    pub const fn readmit(&mut self) {
        self.running += 1;
    }

    /// A batch has ended.
    pub const fn leave(&mut self) {
        self.running = self.running.saturating_sub(1);
    }

    /// The provider asked to be left alone until then.
    pub fn hold(&mut self, until: Timestamp) {
        self.held_until = self.held_until.max(until);
    }

    /// Batches under way.
    #[must_use]
    pub const fn running(&self) -> usize {
        self.running
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_places_are_kept_for_newcomers() {
        let mut gate = Gate::new(GateLimits { running: 8, an_hour: 100 });
        for _ in 0..6 {
            assert_eq!(gate.ask(Timestamp(0)), Pass::Open);
            gate.enter(Timestamp(0));
        }
        for _ in 0..2 {
            assert_eq!(gate.ask(Timestamp(0)), Pass::Reserved);
            gate.enter(Timestamp(0));
        }
        assert_eq!(gate.ask(Timestamp(0)), Pass::UntilOneEnds);
    }

    #[test]
    fn each_limit_closes_and_opens_again() {
        let mut gate = Gate::new(GateLimits { running: 2, an_hour: 3 });
        let start = Timestamp(1_000_000);
        gate.enter(start);
        gate.enter(start);
        assert_eq!(gate.ask(start), Pass::UntilOneEnds);
        gate.leave();
        assert_eq!(gate.ask(start), Pass::Open);
        gate.enter(start);
        gate.leave();
        gate.leave();
        assert_eq!(gate.ask(start), Pass::Until(start.after(HOUR)));
        assert_eq!(gate.ask(start.after(HOUR)), Pass::Open);
        gate.hold(start.after(HOUR).after(HOUR));
        assert_eq!(gate.ask(start.after(HOUR)), Pass::Until(start.after(HOUR).after(HOUR)));
    }
}
