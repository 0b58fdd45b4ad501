//! Times in which a provider's batches make no progress.

use serde::{Deserialize, Serialize};

use crate::clock::SimTime;

/// A time in which no batch makes progress, in provider milliseconds since the start of the simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stall {
    /// Its beginning.
    pub from_ms: u64,
    /// Its end (exclusive).
    pub until_ms: u64,
}

/// Stalls in order, without overlaps, as points in time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stalls {
    windows: Vec<(SimTime, SimTime)>,
}

impl Stalls {
    pub(crate) fn new(epoch: SimTime, stalls: &[Stall]) -> Self {
        let mut sorted: Vec<Stall> =
            stalls.iter().copied().filter(|stall| stall.from_ms < stall.until_ms).collect();
        sorted.sort_unstable();
        let mut windows: Vec<(SimTime, SimTime)> = Vec::with_capacity(sorted.len());
        for Stall { from_ms, until_ms } in sorted {
            let (from, until) = (epoch.plus_millis(from_ms), epoch.plus_millis(until_ms));
            match windows.last_mut() {
                Some((_, end)) if from <= *end => *end = until.max(*end),
                _ => windows.push((from, until)),
            }
        }
        Self { windows }
    }

    /// When work that takes `work_ms` and begins at `start` is done, seen that nothing moves in a stall.
    pub(crate) fn done(&self, start: SimTime, work_ms: u64) -> SimTime {
        let mut done = start.plus_millis(work_ms);
        for (from, until) in &self.windows {
            if *until <= start {
                continue;
            }
            // What is done at the very moment in which a stall begins is done.
            if done <= *from {
                break;
            }
            done = done.plus_millis(until.millis_since(start.max(*from)));
        }
        done
    }

    /// The milliseconds between `from` and `to` that are not in a stall.
    pub(crate) fn worked_ms(&self, from: SimTime, to: SimTime) -> u64 {
        let stalled = self.windows.iter().map(|(begin, end)| end.min(&to).millis_since(*begin.max(&from)));
        to.millis_since(from) - stalled.sum::<u64>().min(to.millis_since(from))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stalls(windows: &[(u64, u64)]) -> Stalls {
        let stalls: Vec<_> = windows
            .iter()
            .map(|(from_ms, until_ms)| Stall { from_ms: *from_ms, until_ms: *until_ms })
            .collect();
        Stalls::new(SimTime(1_000), &stalls)
    }

    #[test]
    fn work_waits_for_the_end_of_a_stall() {
        let stalls = stalls(&[(10, 20), (15, 30), (50, 60)]);
        let done = |start: u64, ms| stalls.done(SimTime(1_000 + start), ms).0 - 1_000;
        assert_eq!(done(0, 10), 10);
        assert_eq!(done(0, 11), 31);
        assert_eq!(done(12, 1), 31);
        assert_eq!(done(0, 40), 70, "through both");
        assert_eq!(done(30, 5), 35);
        assert_eq!(stalls.worked_ms(SimTime(1_000), SimTime(1_070)), 40);
    }

    proptest! {
        #[test]
        fn working_and_waiting_agree(
            windows in prop::collection::vec((0_u64..200, 0_u64..200), 0..6),
            start in 0_u64..300,
            work in prop::collection::vec(0_u64..100, 1..20),
        ) {
            let stalls = stalls(&windows);
            let start = SimTime(1_000 + start);
            let mut work = work;
            work.sort_unstable();
            let mut before = start;
            for ms in work {
                let done = stalls.done(start, ms);
                prop_assert!(done >= before, "more work is done later");
                prop_assert_eq!(stalls.worked_ms(start, done), ms);
                before = done;
            }
        }
    }
}
