//! Provider time: real time multiplied, or advanced by hand.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

/// A point in provider time, in milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SimTime(pub u64);

impl SimTime {
    /// Whole seconds since the Unix epoch, as the API's timestamps have them.
    pub fn secs(self) -> u64 {
        self.0 / 1000
    }

    /// This time and `millis` milliseconds.
    #[must_use]
    pub fn plus_millis(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// This time and `duration`, to the millisecond.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        self.plus_millis(millis(duration))
    }

    /// Milliseconds since `earlier`; zero when `earlier` is later.
    pub fn millis_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// The last millisecond that RFC 3339 can write: the end of the year 9999.
const LAST_MS: u64 = 253_402_300_799_999;

/// `time` as Anthropic's API writes it, such as `2026-11-25T01:02:03.000Z`.
pub(crate) fn rfc3339(time: SimTime) -> String {
    let time = UNIX_EPOCH + Duration::from_millis(time.0.min(LAST_MS));
    humantime::format_rfc3339_millis(time).to_string()
}

/// A duration in whole milliseconds, saturating.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Tells provider time.
///
/// With speed `n` one real second is `n` provider seconds; with speed 0 time stands still until [`Clock::advance`].
/// Real time is tokio's, so that tests with paused time control it.
#[derive(Debug)]
pub struct Clock {
    epoch: SimTime,
    started: Instant,
    speed: u32,
    advanced_ms: AtomicU64,
    advanced: Notify,
}

impl Clock {
    /// A clock that shows `epoch` now and runs `speed` times as fast as real time.
    pub fn new(epoch: SimTime, speed: u32) -> Self {
        Self {
            epoch,
            started: Instant::now(),
            speed,
            advanced_ms: AtomicU64::new(0),
            advanced: Notify::new(),
        }
    }

    /// The provider time of this moment.
    pub fn now(&self) -> SimTime {
        SimTime(self.now_micros() / 1000)
    }

    /// The provider time of this moment, in microseconds since the Unix epoch.
    pub(crate) fn now_micros(&self) -> u64 {
        let advanced = self.advanced_ms.load(Ordering::Relaxed);
        let mut ran = 0;
        if self.speed > 0 {
            let micros = self.started.elapsed().as_micros().saturating_mul(u128::from(self.speed));
            ran = u64::try_from(micros).unwrap_or(u64::MAX);
        }
        self.epoch.plus_millis(advanced).0.saturating_mul(1000).saturating_add(ran)
    }

    /// Waits until the clock is advanced by hand. For one waiter.
    pub(crate) async fn advanced(&self) {
        self.advanced.notified().await;
    }

    /// The real time until the provider time `micros`; `None` when time is moved by hand.
    pub(crate) fn real_until(&self, micros: u64) -> Option<Duration> {
        let left = micros.saturating_sub(self.now_micros());
        (self.speed > 0).then(|| Duration::from_micros(left.div_ceil(u64::from(self.speed.max(1)))))
    }

    /// The time the clock showed when it was made.
    pub fn epoch(&self) -> SimTime {
        self.epoch
    }

    /// Moves provider time forward by `by`, at once.
    pub fn advance(&self, by: Duration) {
        self.advanced_ms.fetch_add(millis(by), Ordering::Relaxed);
        self.advanced.notify_one();
    }

    /// How many provider seconds pass in a real second; 0 when time is moved by hand.
    pub fn speed(&self) -> u32 {
        self.speed
    }

    /// The real milliseconds that `provider_ms` of provider time take, rounded up; unchanged when moved by hand.
    pub fn real_millis(&self, provider_ms: u64) -> u64 {
        provider_ms.div_ceil(u64::from(self.speed.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_dates() {
        assert_eq!(rfc3339(SimTime(1_795_568_523_456)), "2026-11-25T01:02:03.456Z");
        assert_eq!(rfc3339(SimTime(u64::MAX)), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn by_hand_it_stands_still_until_advanced() {
        let clock = Clock::new(SimTime(1_000), 0);
        assert_eq!(clock.now(), SimTime(1_000));
        clock.advance(Duration::from_secs(3));
        assert_eq!(clock.now(), SimTime(4_000));
        assert_eq!(clock.now().secs(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn runs_as_many_times_faster_as_told() {
        let clock = Clock::new(SimTime(0), 3600);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(clock.now(), SimTime(7_200_000));
        clock.advance(Duration::from_secs(1));
        assert_eq!(clock.now(), SimTime(7_201_000));
        assert_eq!(clock.real_millis(3_600_001), 1_001);
    }
}
