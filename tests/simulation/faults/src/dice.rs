//! Everything that is drawn, from a seed.

use std::ops::RangeInclusive;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// A source of draws. Different purposes of one seed have sources of their own, so that a draw more in one of them does
/// not change the others.
#[derive(Debug)]
pub(crate) struct Dice(StdRng);

impl Dice {
    /// The draws of a seed for one purpose.
    pub(crate) fn new(seed: u64, purpose: u64) -> Self {
        Self(StdRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ purpose))
    }

    /// True in `permille` of a thousand cases.
    pub(crate) fn hits(&mut self, permille: u64) -> bool {
        self.0.random_range(0..1000) < permille
    }

    /// A number.
    pub(crate) fn number(&mut self, range: RangeInclusive<u64>) -> u64 {
        self.0.random_range(range)
    }

    /// A number as likely small as large: each power of two has the same weight.
    pub(crate) fn magnitude(&mut self, range: RangeInclusive<u64>) -> u64 {
        let (low, high) = (range.start().max(&1).ilog2(), range.end().max(&1).ilog2());
        let power = self.0.random_range(low..=high);
        let within = (1_u64 << power)..=((1_u64 << power) * 2 - 1);
        self.number(within).clamp(*range.start(), *range.end())
    }

    /// One of several things.
    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        of.get(usize::try_from(self.number(0..=(of.len().max(1) as u64 - 1))).ok()?).copied()
    }
}
