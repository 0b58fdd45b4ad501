//! A circuit breaker for one mode of one backend: whether it is sent work at all.
//!
//! It opens on failures in a row, or when too large a share of each of several batches in a row failed. Then one probe at
//! a time is let through, further and further apart, until one succeeds.

use serde::{Deserialize, Serialize};

use crate::words::{Millis, Timestamp};

/// When it opens, and how long it rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BreakerTerms {
    /// Failures in a row that open it.
    pub failures: u32,
    /// A batch of which more than this share (in thousandths) failed is a bad one.
    pub error_permille: u32,
    /// Bad batches in a row that open it.
    pub batches: u32,
    /// How long it rests before the first probe; twice as long after each probe that fails.
    pub rest: Millis,
    /// The longest rest.
    pub rest_max: Millis,
}

impl Default for BreakerTerms {
    fn default() -> Self {
        Self {
            failures: 10,
            error_permille: 50,
            batches: 10,
            rest: Millis::from_secs(10),
            rest_max: Millis::from_mins(5),
        }
    }
}

/// Whether work passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// It does.
    Closed,
    /// Nothing does before this time.
    Open {
        /// The next probe is let through then.
        until: Timestamp,
        /// How long this rest is.
        rest: Millis,
    },
    /// One probe is under way.
    Probing {
        /// If nothing is heard of it by then, the next one is let through.
        until: Timestamp,
        /// How long the last rest was.
        rest: Millis,
    },
}

/// How something ended, as far as it says something about the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// It was answered, be it with an error that is the caller's own.
    Fine,
    /// It failed by the backend's fault.
    Failed,
    /// A batch came back.
    Batch {
        /// Items that were tried.
        tried: u64,
        /// Those that failed by the backend's fault.
        failed: u64,
    },
}

/// The breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Breaker {
    state: State,
    failures: u32,
    bad_batches: u32,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: State::Closed, failures: 0, bad_batches: 0 }
    }
}

impl Breaker {
    /// Whether work passes.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// Until when nothing passes, if it is so.
    #[must_use]
    pub fn shut_until(&self, now: Timestamp) -> Option<Timestamp> {
        match self.state {
            State::Closed => None,
            State::Open { until, .. } | State::Probing { until, .. } => (now < until).then_some(until),
        }
    }

    /// Asks to pass. While it is not closed, one after each rest may: the probe.
    pub fn admit(&mut self, now: Timestamp) -> bool {
        match self.state {
            State::Closed => true,
            State::Open { until, .. } | State::Probing { until, .. } if now < until => false,
            State::Open { rest, .. } | State::Probing { rest, .. } => {
                self.state = State::Probing { until: now.after(rest), rest };
                true
            }
        }
    }

    /// Takes in how something ended. True if the state is another one now.
    pub fn tell(&mut self, report: Report, terms: &BreakerTerms, now: Timestamp) -> bool {
        let before = self.state;
        match report {
            Report::Fine => self.fine(),
            Report::Failed => self.failed(terms, now),
            Report::Batch { tried: 0, .. } => {}
            Report::Batch { tried, failed } if failed == tried => self.failed(terms, now),
            Report::Batch { tried, failed } => {
                let is_bad = failed.saturating_mul(1000) > tried.saturating_mul(terms.error_permille.into());
                // One of many is not held against it, but it does not show that it is well again either.
                if is_bad && self.state != State::Closed {
                    self.failed(terms, now);
                    return before != self.state;
                }
                self.bad_batches = if is_bad { self.bad_batches.saturating_add(1) } else { 0 };
                if self.bad_batches >= terms.batches.max(1) {
                    self.open(terms, now);
                } else {
                    self.fine();
                }
            }
        }
        before != self.state
    }

    const fn fine(&mut self) {
        self.failures = 0;
        self.state = State::Closed;
    }

    fn failed(&mut self, terms: &BreakerTerms, now: Timestamp) {
        self.failures = self.failures.saturating_add(1);
        match self.state {
            // What was sent before it opened says nothing new.
            State::Open { until, .. } if now < until => {}
            State::Closed if self.failures < terms.failures.max(1) => {}
            // Once its rest is over, whatever fails is as good as a probe that failed.
            State::Closed | State::Open { .. } | State::Probing { .. } => self.open(terms, now),
        }
    }

    fn open(&mut self, terms: &BreakerTerms, now: Timestamp) {
        let rest = match self.state {
            State::Open { until, .. } if now < until => return,
            State::Open { rest, .. } | State::Probing { rest, .. } => {
                Millis(rest.0.saturating_mul(2)).min(terms.rest_max)
            }
            State::Closed => terms.rest,
        };
        self.bad_batches = 0;
        self.state = State::Open { until: now.after(rest), rest };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Timestamp = Timestamp(1_700_000_000_000);
    const TERMS: BreakerTerms = BreakerTerms {
        failures: 3,
        error_permille: 50,
        batches: 10,
        rest: Millis::from_secs(10),
        rest_max: Millis::from_secs(60),
    };

    fn opened() -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 0..3 {
            breaker.tell(Report::Failed, &TERMS, START);
        }
        breaker
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_probe_closes_it() {
        let mut breaker = Breaker::default();
        for report in [Report::Failed, Report::Failed, Report::Fine, Report::Failed, Report::Failed] {
            breaker.tell(report, &TERMS, START);
            assert!(breaker.admit(START));
        }
        let mut breaker = opened();
        assert!(!breaker.admit(START.after(Millis(9_999))));
        let rested = START.after(TERMS.rest);
        assert!(breaker.admit(rested), "the probe");
        assert!(!breaker.admit(rested), "one at a time");
        assert!(breaker.tell(Report::Fine, &TERMS, rested));
        assert!(breaker.admit(rested));
    }

    #[test]
    fn rests_grow_up_to_their_bound() {
        let mut breaker = opened();
        let mut now = START.after(TERMS.rest);
        for rest in [20, 40, 60, 60] {
            assert!(breaker.admit(now));
            assert!(breaker.tell(Report::Failed, &TERMS, now));
            assert_eq!(breaker.shut_until(now), Some(now.after(Millis::from_secs(rest))));
            now = now.after(Millis::from_secs(rest));
        }
    }

    #[test]
    fn ten_batches_with_more_than_one_in_twenty_failed_open_it() {
        let bad = Report::Batch { tried: 1000, failed: 51 };
        let fine = Report::Batch { tried: 1000, failed: 50 };
        let mut breaker = Breaker::default();
        for _ in 0..9 {
            breaker.tell(bad, &TERMS, START);
        }
        assert_eq!(breaker.state(), State::Closed);
        breaker.tell(fine, &TERMS, START);
        for n in 0..10 {
            assert_eq!(breaker.state(), State::Closed, "{n}");
            breaker.tell(bad, &TERMS, START);
        }
        assert!(matches!(breaker.state(), State::Open { .. }));
    }

    #[test]
    fn while_it_is_not_closed_a_bad_batch_is_a_failure() {
        let bad = Report::Batch { tried: 1000, failed: 51 };
        let mut breaker = opened();
        assert!(!breaker.tell(bad, &TERMS, START), "it left before");
        let rested = START.after(TERMS.rest);
        assert!(breaker.tell(bad, &TERMS, rested), "nobody asked, and it failed all the same");
        assert_eq!(breaker.shut_until(rested), Some(rested.after(Millis::from_secs(20))));
        let rested = rested.after(Millis::from_secs(20));
        assert!(breaker.admit(rested) && breaker.tell(bad, &TERMS, rested));
        assert!(matches!(breaker.state(), State::Open { rest: Millis(40_000), .. }));
        assert!(breaker.tell(Report::Batch { tried: 1000, failed: 50 }, &TERMS, rested));
        assert_eq!(breaker.state(), State::Closed);
    }

    #[test]
    fn a_probe_of_which_nothing_is_heard_is_followed_by_another() {
        let mut breaker = opened();
        assert!(breaker.admit(START.after(TERMS.rest)));
        assert!(breaker.admit(START.after(Millis::from_secs(20))));
    }

    #[derive(Debug, Clone, Copy)]
    enum Happens {
        Pass(u64),
        Ask,
        Tell(Report),
    }

    fn happens() -> impl Strategy<Value = Happens> {
        prop_oneof![
            (0_u64..100_000).prop_map(Happens::Pass),
            Just(Happens::Ask),
            Just(Happens::Tell(Report::Fine)),
            Just(Happens::Tell(Report::Failed)),
            (0_u64..100, 0_u64..100).prop_map(|(tried, failed)| {
                Happens::Tell(Report::Batch { tried, failed: failed.min(tried) })
            }),
        ]
    }

    proptest! {
        /// Whatever happens: it opens only by failure, lets nothing through while it rests and one probe a rest, and some
        /// time later it always lets somebody try.
        #[test]
        fn over_random_events(events in prop::collection::vec(happens(), 1..300)) {
            let mut breaker = Breaker::default();
            let mut now = START;
            let mut passed_at = None;
            for event in events {
                let before = breaker.state();
                match event {
                    Happens::Pass(millis) => now = now.after(Millis(millis)),
                    Happens::Ask => {
                        let shut = breaker.shut_until(now).is_some();
                        let passed = breaker.admit(now);
                        prop_assert_eq!(passed, !shut);
                        if passed && before != State::Closed {
                            if let Some(last) = passed_at {
                                prop_assert!(now.since(last) >= TERMS.rest || now == last);
                            }
                            prop_assert!(!breaker.admit(now), "a second probe");
                            passed_at = Some(now);
                        }
                    }
                    Happens::Tell(report) => {
                        let changed = breaker.tell(report, &TERMS, now);
                        prop_assert_eq!(changed, before != breaker.state());
                        if report == Report::Fine {
                            prop_assert_eq!(breaker.state(), State::Closed);
                            passed_at = None;
                        }
                        if breaker.state() == State::Closed {
                            passed_at = None;
                        }
                        if let State::Open { rest, .. } = breaker.state() {
                            prop_assert!(rest >= TERMS.rest && rest <= TERMS.rest_max);
                            prop_assert!(report != Report::Fine);
                        }
                    }
                }
                let later = now.after(TERMS.rest_max);
                let mut copy = breaker;
                prop_assert!(copy.admit(later));
            }
        }
    }
}
