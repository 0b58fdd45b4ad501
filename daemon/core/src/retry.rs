//! What a failed attempt means: again, or an answer for the caller. A fixed policy; the retry-policy world of plugins
//! will stand in its place, with this as what the bundled one decides.

use crate::outcome::{DidItRun, Ending};
use crate::words::{Millis, Timestamp};

/// How often and how far apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in all, the first included.
    pub max_attempts: u16,
    /// Delay before the second attempt; doubled for each further one.
    pub base: Millis,
    /// The longest delay.
    pub cap: Millis,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { max_attempts: 4, base: Millis::from_secs(1), cap: Millis::from_mins(5) }
    }
}

/// What becomes of an attempt that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The caller gets this outcome.
    Deliver,
    /// Once more, not before this time.
    Again(Timestamp),
}

impl RetryPolicy {
    /// Judges an attempt. `attempt` counts from 1; `jitter` is a share of the base in thousandths, drawn by the shell;
    /// `retry_after` is what the provider asked for.
    #[must_use]
    pub fn judge(
        &self,
        ending: &Ending,
        attempt: u16,
        retry_after: Option<Millis>,
        jitter_permille: u16,
        now: Timestamp,
    ) -> Verdict {
        if attempt >= self.max_attempts || !is_temporary(ending) {
            return Verdict::Deliver;
        }
        let own = self.backoff(attempt, jitter_permille);
        Verdict::Again(now.after(retry_after.map_or(own, |asked| asked.max(own))))
    }

    /// base x 2^(attempt - 1) + random(0, base), capped.
    #[must_use]
    pub fn backoff(&self, attempt: u16, jitter_permille: u16) -> Millis {
        let doubled = self.base.0.saturating_mul(1_u64 << attempt.saturating_sub(1).min(32));
        let jitter = self.base.0.saturating_mul(u64::from(jitter_permille.min(1000))) / 1000;
        Millis(doubled.saturating_add(jitter).min(self.cap.0))
    }
}

/// Whether another attempt may end otherwise.
///
/// A request whose fate is unknown is sent again: its answer cannot be had any more, and the decision is on record as
/// the requeue that it causes.
fn is_temporary(ending: &Ending) -> bool {
    match ending {
        Ending::Answered { status } => matches!(status, 408 | 409 | 429 | 500..=599),
        Ending::Failed { code, .. } if code == CANCELLED_BY_CALLER => false,
        Ending::Failed { code, .. } if code.starts_with(PERMANENT) => false,
        Ending::Failed { ran, .. } => match ran {
            DidItRun::NotSent | DidItRun::Refused | DidItRun::Unknown => true,
            DidItRun::Ran => false,
        },
    }
}

/// The code of an outcome that the caller brought about by cancelling.
pub const CANCELLED_BY_CALLER: &str = "cancelled";

/// Codes that begin so say that the same request would fail in the same way.
pub const PERMANENT: &str = "permanent:";

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn failed(ran: DidItRun, code: &str) -> Ending {
        Ending::Failed { ran, code: code.into(), message: String::new() }
    }

    #[test]
    fn temporary_and_permanent_are_told_apart() {
        let policy = RetryPolicy::default();
        for (ending, again) in [
            (Ending::Answered { status: 200 }, false),
            (Ending::Answered { status: 400 }, false),
            (Ending::Answered { status: 404 }, false),
            (Ending::Answered { status: 408 }, true),
            (Ending::Answered { status: 429 }, true),
            (Ending::Answered { status: 500 }, true),
            (Ending::Answered { status: 529 }, true),
            (failed(DidItRun::Refused, "batch_expired"), true),
            (failed(DidItRun::NotSent, "connect"), true),
            (failed(DidItRun::Unknown, "result_missing"), true),
            (failed(DidItRun::Ran, "garbage"), false),
            (failed(DidItRun::Refused, CANCELLED_BY_CALLER), false),
            (failed(DidItRun::Refused, "permanent:model_not_found"), false),
        ] {
            let verdict = policy.judge(&ending, 1, None, 0, NOW);
            assert_eq!(matches!(verdict, Verdict::Again(_)), again, "{ending:?}");
        }
    }

    #[test]
    fn attempts_end() {
        let policy = RetryPolicy::default();
        let ending = Ending::Answered { status: 500 };
        assert!(matches!(policy.judge(&ending, 3, None, 0, NOW), Verdict::Again(_)));
        assert_eq!(policy.judge(&ending, 4, None, 0, NOW), Verdict::Deliver);
    }

    #[test]
    fn the_delay_doubles_up_to_the_cap_and_never_comes_before_retry_after() {
        let policy = RetryPolicy { max_attempts: 99, ..RetryPolicy::default() };
        assert_eq!(policy.backoff(1, 0), Millis(1000));
        assert_eq!(policy.backoff(2, 0), Millis(2000));
        assert_eq!(policy.backoff(3, 500), Millis(4500));
        assert_eq!(policy.backoff(60, 1000), policy.cap);
        let ending = Ending::Answered { status: 429 };
        let verdict = policy.judge(&ending, 1, Some(Millis::from_secs(30)), 0, NOW);
        assert_eq!(verdict, Verdict::Again(NOW.after(Millis::from_secs(30))));
    }
}
