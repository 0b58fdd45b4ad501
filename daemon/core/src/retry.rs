//! What follows from a failed attempt: once more and when, or an answer for the caller. What the failure means is the
//! retry-policy plugin's word ([`Class`]); how often, how far apart and at whose cost is decided here.

use serde::{Deserialize, Serialize};

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

/// What an attempt's failure means, in the words of the retry-policy plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Class {
    /// Not a failure, or one that would come again: the caller gets it.
    Permanent,
    /// The same request may succeed later.
    Temporary,
    /// It may succeed at another backend.
    Elsewhere,
    /// It is run in real time next.
    RunNow,
    /// The offer has no room for it now; a dearer one may. Nobody's attempts are used up.
    NoRoom,
    /// The provider does not sell this offer for the model. Nobody's attempts are used up.
    NotSold,
    /// The account may not spend more for now: nothing of this backend is sent for a while. Nobody's attempts are used up.
    Exhausted,
}

impl Class {
    /// It got to run, or nearly: it is one of the attempts that a request has. The others go round until their deadline,
    /// which is what they were promised.
    #[must_use]
    pub const fn is_attempt(self) -> bool {
        match self {
            Self::Permanent | Self::Temporary | Self::Elsewhere | Self::RunNow => true,
            Self::NoRoom | Self::NotSold | Self::Exhausted => false,
        }
    }
}

/// What becomes of an attempt that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The caller gets this outcome.
    Deliver,
    /// Once more, not before this time.
    Again(Timestamp),
    /// At once at another backend; where there is none, once more here, not before this time.
    Elsewhere(Timestamp),
    /// In real time, not before this time.
    Now(Timestamp),
}

/// An attempt that ended, as far as its verdict depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judged {
    /// What the failure means.
    pub class: Class,
    /// Attempts that were made, this one included.
    pub attempts: u16,
    /// What the provider or the plugin asked for.
    pub not_before: Option<Millis>,
    /// A share of the base in thousandths, drawn by the shell.
    pub jitter_permille: u16,
    /// When the answer is due.
    pub deadline: Timestamp,
}

/// So long before its answer is due a request is tried even if a pause would be longer.
pub const LAST_CHANCE: Millis = Millis::from_secs(15);

/// A try that begins later than this before its deadline is answered too late.
const AT_LAST: Millis = Millis::from_secs(1);

impl RetryPolicy {
    /// When a request that is run by itself is tried again: as it was judged, but within its deadline ([`bounded`]). The last
    /// attempt that it has is kept for the last chance, or for twice the longest delay: a provider that is out of order for
    /// some seconds would use up all of them in these seconds.
    #[must_use]
    pub fn next_try(&self, judged: &Judged, not_before: Timestamp, now: Timestamp) -> Timestamp {
        let is_its_last = judged.class.is_attempt() && judged.attempts.saturating_add(1) >= self.max_attempts;
        let is_kept = is_its_last && now < judged.deadline.before(LAST_CHANCE);
        let kept = now.after(Millis(self.cap.0.saturating_mul(2)));
        bounded(if is_kept { not_before.max(kept) } else { not_before }, judged.deadline, now)
    }

    /// Judges an attempt.
    #[must_use]
    pub fn judge(&self, attempt: &Judged, now: Timestamp) -> Verdict {
        let own = self.backoff(attempt.attempts, attempt.jitter_permille);
        let after = |least: Millis| now.after(attempt.not_before.map_or(least, |asked| asked.max(least)));
        let is_over = if attempt.class.is_attempt() {
            attempt.attempts >= self.max_attempts
        } else {
            now >= attempt.deadline
        };
        match attempt.class {
            Class::Permanent => Verdict::Deliver,
            _ if is_over => Verdict::Deliver,
            Class::Temporary | Class::NoRoom => Verdict::Again(after(own)),
            // What is bought next is another offer.
            Class::NotSold => Verdict::Again(after(Millis(0))),
            Class::Elsewhere => Verdict::Elsewhere(after(own)),
            Class::Exhausted => Verdict::Elsewhere(after(self.cap)),
            Class::RunNow => Verdict::Now(after(own)),
        }
    }

    /// base x 2^(attempt - 1) + random(0, base), capped.
    #[must_use]
    pub fn backoff(&self, attempt: u16, jitter_permille: u16) -> Millis {
        let doubled = self.base.0.saturating_mul(1_u64 << attempt.saturating_sub(1).min(32));
        let jitter = self.base.0.saturating_mul(u64::from(jitter_permille.min(1000))) / 1000;
        Millis(doubled.saturating_add(jitter).min(self.cap.0))
    }
}

/// The end of a pause that binds nobody too long: it does not last beyond the last chance to keep a deadline, and what is late
/// does not wait for long.
#[must_use]
pub fn bounded(not_before: Timestamp, deadline: Timestamp, now: Timestamp) -> Timestamp {
    let (last_chance, at_last) = (deadline.before(LAST_CHANCE), deadline.before(AT_LAST));
    not_before.min(if now < last_chance {
        last_chance
    } else if now < at_last {
        at_last
    } else {
        now.after(LAST_CHANCE)
    })
}

/// How many retries a backend gets: a share of what was sent to it for the first time, so that retries cannot multiply an
/// outage. A retry that finds it empty waits; it is not given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryBudget {
    credit_permille: u64,
    share_permille: u64,
}

/// Retries that a budget begins with, and the most that it saves up.
const CREDIT: std::ops::RangeInclusive<u64> = 100..=10_000;

impl RetryBudget {
    /// A budget that earns this share (in thousandths) of a retry with each first attempt.
    #[must_use]
    pub const fn new(share_permille: u64) -> Self {
        Self { credit_permille: *CREDIT.start() * 1000, share_permille }
    }

    /// So many were sent for the first time.
    pub fn earn(&mut self, firsts: u64) {
        let earned = firsts.saturating_mul(self.share_permille);
        self.credit_permille = self.credit_permille.saturating_add(earned).min(CREDIT.end() * 1000);
    }

    /// Takes one retry out; false if there is none.
    pub const fn spend(&mut self) -> bool {
        let is_there = self.credit_permille >= 1000;
        if is_there {
            self.credit_permille -= 1000;
        }
        is_there
    }
}

/// What a failure means where no plugin says: by status, and by whether it ran.
///
/// A request whose fate is unknown is sent again: its answer cannot be had any more, and the decision is on record as
/// the requeue that it causes.
#[must_use]
pub fn class_of(ending: &Ending) -> Class {
    match ending {
        Ending::Answered { status: 408 | 409 | 429 | 500..=599 } => Class::Temporary,
        Ending::Answered { .. } => Class::Permanent,
        Ending::Failed { code, .. } if code == CANCELLED_BY_CALLER => Class::Permanent,
        Ending::Failed { code, .. } if code.starts_with(PERMANENT) => Class::Permanent,
        Ending::Failed { ran, .. } => match ran {
            DidItRun::NotSent | DidItRun::Refused | DidItRun::Unknown => Class::Temporary,
            DidItRun::Ran => Class::Permanent,
        },
    }
}

/// The code of an outcome that the caller brought about by cancelling.
pub const CANCELLED_BY_CALLER: &str = "cancelled";

/// Codes that begin so say that the same request would fail in the same way.
pub const PERMANENT: &str = "permanent:";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn failed(ran: DidItRun, code: &str) -> Ending {
        Ending::Failed { ran, code: code.into(), message: String::new() }
    }

    fn judged(class: Class, attempts: u16) -> Judged {
        let deadline = NOW.after(Millis::from_hours(24));
        Judged { class, attempts, not_before: None, jitter_permille: 0, deadline }
    }

    #[test]
    fn without_a_plugin_status_and_fate_tell() {
        for (ending, class) in [
            (Ending::Answered { status: 200 }, Class::Permanent),
            (Ending::Answered { status: 400 }, Class::Permanent),
            (Ending::Answered { status: 404 }, Class::Permanent),
            (Ending::Answered { status: 408 }, Class::Temporary),
            (Ending::Answered { status: 429 }, Class::Temporary),
            (Ending::Answered { status: 500 }, Class::Temporary),
            (Ending::Answered { status: 529 }, Class::Temporary),
            (failed(DidItRun::Refused, "batch_expired"), Class::Temporary),
            (failed(DidItRun::NotSent, "connect"), Class::Temporary),
            (failed(DidItRun::Unknown, "result_missing"), Class::Temporary),
            (failed(DidItRun::Ran, "garbage"), Class::Permanent),
            (failed(DidItRun::Refused, CANCELLED_BY_CALLER), Class::Permanent),
            (failed(DidItRun::Refused, "permanent:model_not_found"), Class::Permanent),
        ] {
            assert_eq!(class_of(&ending), class, "{ending:?}");
        }
    }

    #[test]
    fn attempts_end_and_waits_for_room_end_at_the_deadline() {
        let policy = RetryPolicy::default();
        assert!(matches!(policy.judge(&judged(Class::Temporary, 3), NOW), Verdict::Again(_)));
        assert_eq!(policy.judge(&judged(Class::Temporary, 4), NOW), Verdict::Deliver);
        let late = NOW.after(Millis::from_hours(25));
        for class in [Class::NoRoom, Class::NotSold, Class::Exhausted] {
            assert_ne!(policy.judge(&judged(class, 99), NOW), Verdict::Deliver);
            assert_eq!(policy.judge(&judged(class, 1), late), Verdict::Deliver);
        }
        for class in [Class::Elsewhere, Class::RunNow] {
            assert_eq!(policy.judge(&judged(class, 4), NOW), Verdict::Deliver);
        }
    }

    #[test]
    fn each_class_goes_its_own_way() {
        let policy = RetryPolicy::default();
        let verdict = |class| policy.judge(&judged(class, 1), NOW);
        let soon = NOW.after(policy.base);
        assert_eq!(verdict(Class::Permanent), Verdict::Deliver);
        assert_eq!(verdict(Class::Temporary), Verdict::Again(soon));
        assert_eq!(verdict(Class::NoRoom), Verdict::Again(soon));
        assert_eq!(verdict(Class::NotSold), Verdict::Again(NOW));
        assert_eq!(verdict(Class::Elsewhere), Verdict::Elsewhere(soon));
        assert_eq!(verdict(Class::Exhausted), Verdict::Elsewhere(NOW.after(policy.cap)));
        assert_eq!(verdict(Class::RunNow), Verdict::Now(soon));
    }

    #[test]
    fn no_pause_lasts_beyond_the_last_chance() {
        let policy = RetryPolicy::default();
        let of = |class, attempts, left: Millis, pause: Millis| {
            let judged = Judged { deadline: NOW.after(left), ..judged(class, attempts) };
            policy.next_try(&judged, NOW.after(pause), NOW).since(NOW)
        };
        let (second, hour) = (Millis::from_secs(1), Millis::from_hours(1));
        let ten = Millis::from_mins(10);
        let last = Millis(ten.0 - LAST_CHANCE.0);
        assert_eq!(of(Class::Temporary, 1, ten, second), second);
        assert_eq!(of(Class::Temporary, 1, ten, hour), last);
        assert_eq!(of(Class::Temporary, 3, ten, second), last, "the last one waits for the last chance");
        assert_eq!(of(Class::Temporary, 3, hour, second), ten, "but not for ever");
        assert_eq!(of(Class::Exhausted, 99, ten, hour), last);
        assert_eq!(of(Class::NoRoom, 99, ten, second), second, "none of its attempts is used up");
        assert_eq!(of(Class::Temporary, 3, LAST_CHANCE, second), second);
        assert_eq!(of(Class::Temporary, 1, LAST_CHANCE, hour), Millis(LAST_CHANCE.0 - AT_LAST.0));
        assert_eq!(of(Class::Temporary, 1, Millis(0), second), second, "what is late has its attempts, too");
        assert_eq!(of(Class::Temporary, 1, Millis(0), hour), LAST_CHANCE);
    }

    #[test]
    fn the_delay_doubles_up_to_the_cap() {
        let policy = RetryPolicy { max_attempts: 99, ..RetryPolicy::default() };
        assert_eq!(policy.backoff(1, 0), Millis(1000));
        assert_eq!(policy.backoff(2, 0), Millis(2000));
        assert_eq!(policy.backoff(3, 500), Millis(4500));
        assert_eq!(policy.backoff(60, 1000), policy.cap);
    }

    proptest! {
        /// Over any row of failures: never before what the provider asked for, never more attempts than allowed, and
        /// otherwise never later than the cap.
        #[test]
        fn over_random_failures(
            base in 1_u64..10_000,
            cap in 10_000_u64..1_000_000,
            max_attempts in 1_u16..10,
            failures in prop::collection::vec((prop::option::of(0_u64..2_000_000), 0_u16..1200), 1..20),
        ) {
            let policy = RetryPolicy { max_attempts, base: Millis(base), cap: Millis(cap) };
            let mut now = NOW;
            let mut attempts = 0;
            for (asked, jitter_permille) in failures {
                attempts += 1;
                let not_before = asked.map(Millis);
                let attempt = Judged { not_before, jitter_permille, ..judged(Class::Temporary, attempts) };
                match policy.judge(&attempt, now) {
                    Verdict::Deliver => {
                        prop_assert_eq!(attempts, max_attempts);
                        break;
                    }
                    Verdict::Elsewhere(_) | Verdict::Now(_) => prop_assert!(false, "it is only temporary"),
                    Verdict::Again(at) => {
                        let wait = at.since(now);
                        prop_assert!(wait >= not_before.unwrap_or_default());
                        prop_assert!(wait <= not_before.unwrap_or_default().max(policy.cap));
                        prop_assert!(wait >= Millis(base).min(policy.cap));
                        now = at;
                    }
                }
                prop_assert!(attempts < max_attempts);
            }
        }

        /// However many fail: retries stay a share of what was sent, beyond what the budget began with.
        #[test]
        fn retries_are_a_share(waves in prop::collection::vec((0_u64..1000, 0_u64..3000), 1..50)) {
            let mut budget = RetryBudget::new(200);
            let (mut sent, mut retried) = (0, 0);
            for (firsts, failures) in waves {
                budget.earn(firsts);
                sent += firsts;
                retried += (0..failures).filter(|_| budget.spend()).count() as u64;
                prop_assert!(retried <= CREDIT.start() + sent / 5 + 1);
            }
        }
    }
}
