//! The one place that asks the operating system for the time and for randomness.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use offpeak_core::words::Timestamp;

/// The wall clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock;

impl Clock {
    /// Now.
    pub fn now(self) -> Timestamp {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX))
    }
}

/// A random number.
pub fn random_u64() -> u64 {
    rand::random()
}

/// A random share in thousandths: 0 to 1000.
pub fn random_permille() -> u16 {
    rand::random_range(0..=1000)
}

/// Gives each request that is not deferred a name. Deferred requests are named by their place.
#[derive(Debug)]
pub struct RequestIds {
    process: u32,
    next: AtomicU64,
}

impl RequestIds {
    /// Names that differ from those of other runs of the daemon.
    pub fn new() -> Self {
        Self { process: rand::random(), next: AtomicU64::new(0) }
    }

    /// The next name, such as `rt-9f3a11c2-1b`.
    pub fn next(&self) -> String {
        format!("rt-{:08x}-{:x}", self.process, self.next.fetch_add(1, Ordering::Relaxed))
    }
}

impl Default for RequestIds {
    fn default() -> Self {
        Self::new()
    }
}
