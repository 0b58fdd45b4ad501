//! The simulated provider: batches that make progress while nothing stands still, and a real-time API with a quota.

use rand::RngExt;
use rand::rngs::StdRng;

use offpeak_core::words::{Millis, Timestamp};

use crate::scenario::{Scenario, Weather, Window};

/// A batch's window.
pub(crate) const WINDOW: Millis = Millis::from_hours(24);

/// The first part of a batch's work in which no item is run yet.
const QUEUE: f64 = 0.2;

/// A batch at the provider.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    created: Timestamp,
    work: Millis,
    runs: f64,
    /// When all that will ever run has run.
    done: Timestamp,
}

impl Batch {
    /// A new batch.
    pub(crate) fn new(scenario: Scenario, weather: &Weather, now: Timestamp, rng: &mut StdRng) -> Self {
        let (work, runs) = (scenario.work(rng), scenario.runs(rng));
        Self { created: now, work, runs, done: done_at(now, work, &weather.stalls) }
    }

    /// When its results can be read, and whether it expired.
    pub(crate) fn ends(&self) -> (Timestamp, bool) {
        let expires = self.created.after(WINDOW);
        if self.runs < 1.0 || self.done > expires { (expires, true) } else { (self.done, false) }
    }

    /// How many of so many items have run.
    pub(crate) fn ran(&self, items: u64, now: Timestamp, weather: &Weather) -> u64 {
        let worked = now.since(self.created).0.saturating_sub(standing(self.created, now, &weather.stalls));
        let share = (ratio(worked, self.work.0) - QUEUE) / (1.0 - QUEUE);
        let most = portion(items, self.runs);
        if now >= self.done { most } else { portion(items, share.clamp(0.0, 1.0)).min(most) }
    }
}

/// The real-time API's quota: a bucket that fills by the minute.
#[derive(Debug)]
pub(crate) struct Quota {
    a_minute: u32,
    /// In thousandths of a call.
    level: u64,
    at: Timestamp,
}

/// What the real-time API says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// After so long, the answer.
    Fine(Millis),
    /// Too many; not before.
    TooMany(Millis),
    /// No room at this price.
    NoRoom,
}

impl Quota {
    /// A full bucket.
    pub(crate) fn new(a_minute: u32, now: Timestamp) -> Self {
        Self { a_minute, level: u64::from(a_minute) * 1000, at: now }
    }

    /// A call at the list price.
    pub(crate) fn call(&mut self, weather: &Weather, now: Timestamp, rng: &mut StdRng) -> Answer {
        let a_minute = u64::from(self.a_minute);
        self.level = (self.level + now.since(self.at).0 * a_minute / 60).min(a_minute * 1000);
        self.at = now;
        let is_storm = weather.storms.iter().any(|window| within(window, now));
        if self.level < 1000 {
            return Answer::TooMany(Millis((1000 - self.level) * 60 / a_minute + 1));
        }
        // Refused calls count against the quota too.
        self.level -= 1000;
        if is_storm && rng.random_bool(0.8) {
            return Answer::TooMany(Millis::from_secs(rng.random_range(1..=20)));
        }
        Answer::Fine(Millis(rng.random_range(1_500..=9_000)))
    }

    /// A call at the flex price: it takes longer, and often there is no room.
    pub(crate) fn flex(rng: &mut StdRng) -> Answer {
        if rng.random_bool(0.3) {
            Answer::NoRoom
        } else {
            Answer::Fine(Millis(rng.random_range(5_000..=90_000)))
        }
    }
}

fn within((from, to): &Window, now: Timestamp) -> bool {
    *from <= now && now < *to
}

/// How long it stood still between two times, in milliseconds.
fn standing(from: Timestamp, to: Timestamp, stalls: &[Window]) -> u64 {
    stalls.iter().map(|(start, end)| (*end).min(to).since((*start).max(from)).0).sum()
}

fn done_at(from: Timestamp, work: Millis, stalls: &[Window]) -> Timestamp {
    let mut done = from.after(work);
    for (start, end) in stalls.iter().filter(|(_, end)| *end > from) {
        if *start < done {
            done = done.after(end.since((*start).max(from)));
        }
    }
    done
}

#[expect(clippy::cast_precision_loss, reason = "times of days and numbers of items are small")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a share of a small number"
)]
fn portion(items: u64, share: f64) -> u64 {
    (items as f64 * share) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_stands_still_in_a_stall() {
        let at = |hours| Timestamp(1_000_000_000).after(Millis::from_hours(hours));
        let stalls = [(at(1), at(5)), (at(6), at(7))];
        assert_eq!(done_at(at(0), Millis::from_hours(3), &stalls), at(8));
        assert_eq!(done_at(at(2), Millis::from_hours(1), &stalls), at(6));
        assert_eq!(standing(at(0), at(6), &stalls), Millis::from_hours(4).0);
    }
}
