//! How long a plugin's calls took: two atomics a call, and quantiles for whoever asks.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Buckets of one doubling: a quantile is at most a quarter too high.
const STEPS: u32 = 4;

/// The first bucket holds what took less than 2 to this power of nanoseconds,
const LOWEST: u32 = 7;

/// and the last one what took longer than 2 to this power, which is more than a minute.
const HIGHEST: u32 = 36;

const BUCKETS: usize = ((HIGHEST - LOWEST) * STEPS) as usize;

/// What the calls of a plugin took, the failed ones included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PluginTimes {
    /// All calls together.
    pub total: Duration,
    /// Half of the calls took no longer.
    pub p50: Duration,
    /// Of a hundred, all but one.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

/// Counts calls by how long they took.
#[derive(Debug)]
pub(crate) struct Times {
    buckets: [AtomicU64; BUCKETS],
    total_ns: AtomicU64,
}

impl Times {
    pub(crate) const fn new() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; BUCKETS], total_ns: AtomicU64::new(0) }
    }

    pub(crate) fn took(&self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.buckets.get(bucket_of(ns)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.total_ns.fetch_add(ns, Ordering::Relaxed);
    }

    pub(crate) fn report(&self) -> PluginTimes {
        let counts = self.buckets.each_ref().map(|bucket| bucket.load(Ordering::Relaxed));
        let total: u64 = counts.iter().sum();
        // The rank of a quantile, rounded up: the one hundredth of a hundred calls is the last one.
        let quantile = |percent: u64| reached(&counts, (total * percent).div_ceil(100));
        PluginTimes {
            total: Duration::from_nanos(self.total_ns.load(Ordering::Relaxed)),
            p50: quantile(50),
            p99: quantile(99),
            max: quantile(100),
        }
    }
}

/// The upper end of the bucket in which the call of this rank is.
fn reached(counts: &[u64], rank: u64) -> Duration {
    if rank == 0 {
        return Duration::ZERO;
    }
    let mut seen = 0;
    let bucket = counts.iter().position(|count| {
        seen += count;
        seen >= rank
    });
    Duration::from_nanos(upper_end(bucket.unwrap_or(BUCKETS - 1)))
}

fn bucket_of(ns: u64) -> usize {
    let octave = ns.max(1).ilog2();
    if octave < LOWEST {
        return 0;
    }
    let step = u32::try_from((ns >> (octave - 2)) & 3).unwrap_or_default();
    (((octave - LOWEST) * STEPS + step) as usize).min(BUCKETS - 1)
}

fn upper_end(bucket: usize) -> u64 {
    let (octave, step) = (bucket as u64 / u64::from(STEPS), bucket as u64 % u64::from(STEPS));
    (u64::from(STEPS) + step + 1) << (octave + u64::from(LOWEST) - 2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantiles_are_those_of_the_calls() {
        let times = Times::new();
        assert_eq!(times.report(), PluginTimes::default());
        for micros in 1..=100 {
            times.took(Duration::from_micros(micros));
        }
        let report = times.report();
        assert_eq!(report.total, Duration::from_micros(5050));
        for (quantile, exact) in [(report.p50, 50), (report.p99, 99), (report.max, 100)] {
            let exact = Duration::from_micros(exact);
            assert!(quantile >= exact && quantile <= exact * 5 / 4, "{quantile:?} for {exact:?}");
        }
    }

    #[test]
    fn what_takes_for_ever_is_in_the_last_bucket() {
        let times = Times::new();
        times.took(Duration::MAX);
        assert_eq!(times.report().max, Duration::from_nanos(1 << HIGHEST));
    }

    proptest! {
        #[test]
        fn a_bucket_ends_above_its_calls_and_at_most_a_quarter(ns in (1_u64 << LOWEST)..(1 << HIGHEST)) {
            let end = upper_end(bucket_of(ns));
            prop_assert!(end > ns && end <= ns + ns / 4 + 1, "{ns} is in a bucket up to {end}");
        }
    }
}
