//! Identifiers and small seeded draws: the same seed gives the same run.

use std::sync::atomic::{AtomicU64, Ordering};

/// The finaliser of `SplitMix64` (Steele, Lea, Flood 2014): a bijection on 64 bits that scatters neighbouring numbers.
pub(crate) fn scatter(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// Whether a draw numbered by `parts` falls below `probability` (0 to 1). Depends on nothing but its arguments, so
/// the order in which callers ask does not matter.
pub(crate) fn hits(parts: [u64; 3], probability: f64) -> bool {
    if probability <= 0.0 {
        return false;
    }
    let mixed = parts.into_iter().fold(0, |sum, part| scatter(sum ^ part));
    let fraction = f64::from(u32::try_from(mixed >> 32).unwrap_or(u32::MAX)) / f64::from(u32::MAX);
    fraction < probability || probability >= 1.0
}

/// Hands out identifiers that never repeat within a simulation.
#[derive(Debug)]
pub(crate) struct Ids {
    seed: u64,
    next: AtomicU64,
}

impl Ids {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed: scatter(seed), next: AtomicU64::new(0) }
    }

    /// 64 bits, unique because `scatter` is a bijection.
    pub(crate) fn number(&self) -> u64 {
        scatter(self.seed.wrapping_add(self.next.fetch_add(1, Ordering::Relaxed)))
    }

    /// `prefix` and 24 hexadecimal digits.
    pub(crate) fn text(&self, prefix: &str) -> String {
        let number = self.number();
        format!("{prefix}{number:016x}{:08x}", scatter(number) >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_meet_their_probability() {
        let count = |p: f64| (0..10_000).filter(|n| hits([1, 2, *n], p)).count();
        assert_eq!(count(0.0), 0);
        assert_eq!(count(1.0), 10_000);
        assert!((900..1_100).contains(&count(0.1)), "{}", count(0.1));
    }

    #[test]
    fn ids_differ() {
        let ids = Ids::new(7);
        assert_ne!(ids.text("file-"), ids.text("file-"));
        assert_eq!(ids.text("file-").len(), 29);
    }
}
