//! The one place that asks the operating system for the time and for randomness. A simulation brings its own time, and
//! one seed for all that is drawn.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use offpeak_core::words::{Millis, Timestamp};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

/// The wall clock.
#[derive(Debug, Clone, Copy, Default)]
pub enum Clock {
    /// The system's.
    #[default]
    System,
    /// One that goes with tokio's time, which can be paused and then goes as fast as there is nothing to do.
    Virtual(&'static VirtualClock),
}

/// A wall clock for simulations: it may be set, as an operator or NTP would, while timers go on undisturbed.
#[derive(Debug)]
pub struct VirtualClock {
    base: Timestamp,
    since: Instant,
    set_by_ms: AtomicI64,
}

impl Clock {
    /// Now.
    pub fn now(self) -> Timestamp {
        match self {
            Self::System => {
                let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Timestamp(u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX))
            }
            Self::Virtual(clock) => clock.now(),
        }
    }
}

impl VirtualClock {
    /// A clock that shows `base` now. Clocks are copied everywhere, so that it lives as long as the process.
    pub fn starting_at(base: Timestamp) -> &'static Self {
        Box::leak(Box::new(Self { base, since: Instant::now(), set_by_ms: AtomicI64::new(0) }))
    }

    /// Sets the clock forward, or back.
    pub fn set_by(&self, ms: i64) {
        self.set_by_ms.fetch_add(ms, Ordering::Relaxed);
    }

    fn now(&self) -> Timestamp {
        let passed = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let right = self.base.after(Millis(passed));
        Timestamp(right.0.saturating_add_signed(self.set_by_ms.load(Ordering::Relaxed)))
    }
}

/// Where random numbers come from.
pub struct Chance(Option<Mutex<StdRng>>);

impl Chance {
    /// From the system.
    pub const fn system() -> Self {
        Self(None)
    }

    /// The same numbers for the same seed.
    pub fn seeded(seed: u64) -> Self {
        Self(Some(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// 64 random bits.
    pub fn bits(&self) -> u64 {
        match &self.0 {
            None => rand::random(),
            Some(seeded) => seeded.lock().random(),
        }
    }

    /// 128 random bits.
    pub fn wide(&self) -> u128 {
        (u128::from(self.bits()) << 64) | u128::from(self.bits())
    }

    /// A random share in thousandths: 0 to 1000.
    pub fn permille(&self) -> u16 {
        // The remainder's lean towards small numbers is 1 in 10^16.
        u16::try_from(self.bits() % 1001).unwrap_or_default()
    }
}

impl fmt::Debug for Chance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Chance(seeded)" } else { "Chance(system)" })
    }
}

/// Gives each request that is not deferred a name. Deferred requests are named by their place.
#[derive(Debug)]
pub struct RequestIds {
    process: u32,
    next: AtomicU64,
}

impl RequestIds {
    /// Names that differ from those of other runs of the daemon.
    pub fn new(chance: &Chance) -> Self {
        Self { process: u32::try_from(chance.bits() >> 32).unwrap_or_default(), next: AtomicU64::new(0) }
    }

    /// The next name, such as `rt-9f3a11c2-1b`.
    pub fn next(&self) -> String {
        format!("rt-{:08x}-{:x}", self.process, self.next.fetch_add(1, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_virtual_clock_goes_with_tokios_time_and_can_be_set() {
        let set = VirtualClock::starting_at(Timestamp(10_000));
        let clock = Clock::Virtual(set);
        tokio::time::sleep(Duration::from_hours(1)).await;
        assert_eq!(clock.now(), Timestamp(3_610_000));
        set.set_by(-4_000_000);
        assert_eq!(clock.now(), Timestamp(0));
        tokio::time::sleep(Duration::from_secs(500)).await;
        assert_eq!(clock.now(), Timestamp(110_000));
    }

    #[test]
    fn one_seed_gives_one_run() {
        let draw = |seed| {
            let chance = Chance::seeded(seed);
            (chance.bits(), chance.permille(), RequestIds::new(&chance).next())
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }
}
