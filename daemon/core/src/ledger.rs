//! How many tokens a backend lets be enqueued in batches of one model: a limit that only shows when it is met.
//!
//! It makes "token limit exceeded" backpressure: what was refused waits for a batch to end, and the next one is made as
//! large as fits.

/// So few tokens fit into any provider's limit: if they are refused, it is because of what others of the account enqueued.
const SMALL: u64 = 1_000;

/// What is enqueued, and what may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ledger {
    configured: Option<u64>,
    learnt: Option<u64>,
    enqueued: u64,
    batches: u32,
}

impl Ledger {
    /// What the configuration says; the last word counts.
    pub const fn configure(&mut self, limit: Option<u64>) {
        self.configured = limit;
    }

    /// Tokens that may be added. Where nothing is enqueued something always may, or it would never be known whether the
    /// limit has risen.
    #[must_use]
    pub fn room(&self) -> u64 {
        let limit = self.limit();
        if self.batches == 0 { limit.max(1) } else { limit.saturating_sub(self.enqueued) }
    }

    /// The limit, as far as it is known.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.configured.unwrap_or(u64::MAX).min(self.learnt.unwrap_or(u64::MAX))
    }

    /// Tokens in batches under way.
    #[must_use]
    pub const fn enqueued(&self) -> u64 {
        self.enqueued
    }

    /// A batch is under way.
    pub const fn enter(&mut self, tokens: u64) {
        self.enqueued = self.enqueued.saturating_add(tokens);
        self.batches = self.batches.saturating_add(1);
    }

    /// A batch is over. A learnt limit is tried anew, a little higher each time.
    pub fn leave(&mut self, tokens: u64) {
        self.enqueued = self.enqueued.saturating_sub(tokens);
        self.batches = self.batches.saturating_sub(1);
        self.learnt = self.learnt.map(|limit| limit.saturating_add(limit / 16 + 1));
    }

    /// A batch was refused because of the limit, and so is over.
    pub fn refused(&mut self, tokens: u64) {
        self.enqueued = self.enqueued.saturating_sub(tokens);
        self.batches = self.batches.saturating_sub(1);
        // More than what was there before did not fit; alone, half of it may.
        let fits = match self.batches {
            0 if tokens <= SMALL => return,
            0 => tokens / 2,
            _ => self.enqueued,
        };
        self.learnt = Some(fits.max(1).min(self.learnt.unwrap_or(u64::MAX)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_refusal_teaches_and_room_comes_back() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.room(), u64::MAX);
        ledger.enter(600);
        ledger.enter(600);
        ledger.refused(600);
        assert_eq!((ledger.limit(), ledger.room()), (600, 0));
        ledger.leave(600);
        assert!(ledger.room() > 600, "it may have risen");
    }

    #[test]
    fn what_is_configured_holds() {
        let mut ledger = Ledger::default();
        ledger.configure(Some(1000));
        ledger.enter(700);
        assert_eq!(ledger.room(), 300);
    }

    proptest! {
        /// However small a limit the provider has (and none is smaller than that), all work gets through, and never more is enqueued than it takes.
        #[test]
        fn all_work_gets_through(limit in SMALL..10_000, mut work in 1_u64..100_000) {
            let mut ledger = Ledger::default();
            let mut running: Vec<u64> = Vec::new();
            for _ in 0..20_000 {
                let tokens = ledger.room().min(work);
                if tokens == 0 {
                    if running.is_empty() {
                        break;
                    }
                    ledger.leave(running.remove(0));
                    continue;
                }
                ledger.enter(tokens);
                if running.iter().sum::<u64>() + tokens > limit {
                    ledger.refused(tokens);
                } else {
                    running.push(tokens);
                    work -= tokens;
                }
            }
            prop_assert_eq!(work, 0);
        }
    }
}
