//! How providers behave: the weather that policies are tried in.

use rand::rngs::StdRng;
use rand::{Rng, RngExt};

use offpeak_core::words::{Millis, Timestamp};

/// A provider's behaviour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// Batches are back within an hour or two.
    Healthy,
    /// One batch in twenty takes many hours.
    SlowTail,
    /// Every few days nothing moves for hours, up to a day and more.
    Stalls,
    /// One batch in five runs 30% of its items and expires with the rest.
    Expiry,
    /// A slow tail and stalls, and for hours most real-time calls are refused.
    Storms,
    /// Stalls, and few real-time calls a minute.
    TightQuota,
    /// Stalls, and a flex tier at half price that often has no room.
    Flex,
}

/// A time in which something does not work.
pub(crate) type Window = (Timestamp, Timestamp);

/// The weather of one run.
#[derive(Debug, Clone)]
pub(crate) struct Weather {
    /// When batches stand still.
    pub stalls: Vec<Window>,
    /// When real-time calls are mostly refused.
    pub storms: Vec<Window>,
    /// Real-time calls a minute.
    pub quota_a_minute: u32,
}

impl Scenario {
    /// All of them.
    pub(crate) const ALL: [Self; 7] = [
        Self::Healthy,
        Self::SlowTail,
        Self::Stalls,
        Self::Expiry,
        Self::Storms,
        Self::TightQuota,
        Self::Flex,
    ];

    /// Its name in tables.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::SlowTail => "slow tail",
            Self::Stalls => "stalls for hours",
            Self::Expiry => "expiry, 30% done",
            Self::Storms => "429 storms",
            Self::TightQuota => "tight real-time quota",
            Self::Flex => "stalls, with flex",
        }
    }

    /// Flex is on the ladder.
    pub(crate) const fn has_flex(self) -> bool {
        matches!(self, Self::Flex)
    }

    /// The weather from `start` on, for so many days.
    pub(crate) fn weather(self, start: Timestamp, days: u64, rng: &mut StdRng) -> Weather {
        let end = start.after(Millis::from_hours(24 * days));
        let stalls = match self {
            Self::Healthy | Self::SlowTail | Self::Expiry => Vec::new(),
            Self::Stalls | Self::TightQuota | Self::Flex => windows(start, end, 72, 4..=30, rng),
            Self::Storms => windows(start, end, 120, 4..=24, rng),
        };
        let storms = match self {
            Self::Storms => windows(start, end, 24, 1..=4, rng),
            _ => Vec::new(),
        };
        let quota_a_minute = if self == Self::TightQuota { 30 } else { 600 };
        Weather { stalls, storms, quota_a_minute }
    }

    /// How long a batch works if nothing stands still.
    pub(crate) fn work(self, rng: &mut StdRng) -> Millis {
        let is_slow = match self {
            Self::Healthy | Self::Expiry => false,
            Self::SlowTail | Self::Storms => rng.random_bool(0.05),
            Self::Stalls | Self::TightQuota | Self::Flex => rng.random_bool(0.01),
        };
        if is_slow {
            Millis::from_mins(rng.random_range(4 * 60..=14 * 60))
        } else {
            // Median 25 minutes; one in a hundred takes over an hour and a half.
            minutes(25.0 * (0.55 * normal(rng)).exp())
        }
    }

    /// The share of its items that a batch ever runs.
    pub(crate) fn runs(self, rng: &mut StdRng) -> f64 {
        if self == Self::Expiry && rng.random_bool(0.2) { 0.3 } else { 1.0 }
    }
}

/// Windows that begin so many hours apart on average and last so many.
fn windows(
    start: Timestamp,
    end: Timestamp,
    apart: u64,
    hours: std::ops::RangeInclusive<u64>,
    rng: &mut StdRng,
) -> Vec<Window> {
    let mut windows = Vec::new();
    let mut at = start;
    loop {
        at = at.after(Millis::from_mins(rng.random_range(apart * 20..=apart * 100)));
        if at >= end {
            return windows;
        }
        let until = at.after(Millis::from_mins(rng.random_range(hours.start() * 60..=hours.end() * 60)));
        windows.push((at, until));
        at = until;
    }
}

fn minutes(minutes: f64) -> Millis {
    std::time::Duration::try_from_secs_f64(minutes * 60.0)
        .ok()
        .and_then(|time| u64::try_from(time.as_millis()).ok())
        .map_or(Millis::from_mins(25), Millis)
}

/// A normal number, by the central limit: smooth enough, and without a further crate.
fn normal(rng: &mut impl Rng) -> f64 {
    (0..12).map(|_| rng.random_range(0.0..1.0)).sum::<f64>() - 6.0
}
