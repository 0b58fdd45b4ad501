//! How long a protocol waits before its next call.

use super::Hindrance;

/// The pauses between calls, in milliseconds. Each is shorter by up to a quarter, another part for each batch, so that many
/// batches do not call at once: a plugin has no source of chance, and the batch's mark serves as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pauses<'a> {
    /// The batch's mark.
    pub mark: &'a str,
    /// Between the first looks at a batch that runs.
    pub poll_ms: u64,
    /// Between looks at one that runs long.
    pub poll_max_ms: u64,
    /// After the first failure.
    pub retry_ms: u64,
    /// After many.
    pub retry_max_ms: u64,
}

impl Pauses<'_> {
    /// The pause after the `failures`th failure in a row: it doubles up to a bound.
    pub fn after_failure(&self, failures: u32) -> u64 {
        let doubled = self.retry_ms.saturating_mul(1 << failures.saturating_sub(1).min(30));
        self.spread(doubled.min(self.retry_max_ms), failures)
    }

    /// The same, or the provider's wish if that is longer.
    pub fn after(&self, failures: u32, hindrance: &Hindrance) -> u64 {
        self.after_failure(failures).max(hindrance.retry_after_ms.unwrap_or(0))
    }

    /// The pause before the next look at a running batch: it grows while the batch runs long.
    pub fn before_poll(&self, polls: u32) -> u64 {
        const POLLS_BEFORE_DOUBLING: u32 = 16;
        let doubled = self.poll_ms.saturating_mul(1 << (polls / POLLS_BEFORE_DOUBLING).min(30));
        self.spread(doubled.min(self.poll_max_ms.max(self.poll_ms)), polls)
    }

    fn spread(&self, ms: u64, salt: u32) -> u64 {
        const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
        const FNV_PRIME: u64 = 0x0100_0000_01b3;
        let bytes = self.mark.bytes().chain(salt.to_le_bytes());
        let hash = bytes.fold(FNV_OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME));
        let part = u128::from(hash >> 48); // of 65536
        let shorter = u128::from(ms / 4) * part / 65_536;
        ms - u64::try_from(shorter).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_grow_to_a_bound_and_differ_between_batches() {
        let a = Pauses {
            mark: "a",
            poll_ms: 30_000,
            poll_max_ms: 120_000,
            retry_ms: 1_000,
            retry_max_ms: 300_000,
        };
        for failures in 1..100 {
            let pause = a.after_failure(failures);
            let full = (1_000_u64 << (failures - 1).min(20)).min(300_000);
            assert!(pause <= full && pause >= full - full / 4, "{failures}: {pause}");
            let asked = Hindrance { retry_after_ms: Some(full + 1), ..Hindrance::new("", "") };
            assert_eq!(a.after(failures, &asked), full + 1);
        }
        assert!((22_500..=30_000).contains(&a.before_poll(0)));
        assert!((90_000..=120_000).contains(&a.before_poll(u32::MAX)));
        let b = Pauses { mark: "b", ..a };
        assert!((1..20).any(|polls| a.before_poll(polls) != b.before_poll(polls)));
    }
}
