//! How fast a job's requests are being answered, and when the last one may be.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How far back is looked: batches give their answers in gushes.
const WINDOW: Duration = Duration::from_mins(5);

/// What was seen lately, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Pace(VecDeque<(Instant, u64)>);

impl Pace {
    /// Takes note of how many requests have ended.
    pub(crate) fn observe(&mut self, now: Instant, finished: u64) {
        self.0.push_back((now, finished));
        // The last one that is too old is the point from which is measured.
        while self.0.get(1).is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            self.0.pop_front();
        }
    }

    /// Requests a second; none while nothing ends.
    pub(crate) fn per_second(&self) -> Option<f64> {
        let ((begun, first), (now, last)) = (self.0.front()?, self.0.back()?);
        let finished = u32::try_from(last.saturating_sub(*first)).ok().filter(|finished| *finished > 0)?;
        let seconds = now.duration_since(*begun).as_secs_f64();
        (seconds > 0.0).then(|| f64::from(finished) / seconds)
    }

    /// How long so many more will take at this pace.
    pub(crate) fn time_for(&self, requests: u64) -> Option<Duration> {
        let requests = f64::from(u32::try_from(requests).ok()?);
        Duration::try_from_secs_f64(requests / self.per_second()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_that_of_the_last_minutes() {
        let begun = Instant::now();
        let mut pace = Pace::default();
        assert_eq!((pace.per_second(), pace.time_for(5)), (None, None));
        pace.observe(begun, 100);
        assert_eq!(pace.per_second(), None, "one look tells nothing");
        pace.observe(begun + Duration::from_secs(10), 100);
        assert_eq!(pace.per_second(), None, "nothing has ended");
        pace.observe(begun + Duration::from_secs(20), 140);
        assert_eq!(pace.per_second(), Some(2.0));
        assert_eq!(pace.time_for(60), Some(Duration::from_secs(30)));
        // An hour of nothing, then ten in ten seconds: the first 140 are forgotten.
        let later = begun + Duration::from_hours(1);
        pace.observe(later, 140);
        pace.observe(later + WINDOW, 140);
        pace.observe(later + WINDOW + Duration::from_secs(1), 150);
        let per_second = pace.per_second().unwrap();
        assert!((0.03..0.04).contains(&per_second), "{per_second}");
        assert_eq!(pace.0.len(), 3);
    }
}
