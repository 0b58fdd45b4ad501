//! When a batch under way is not waited for any longer: cancel and run elsewhere what did not run, or run it in real time
//! beside the batch.
//!
//! A batch's results come at its end, so that at the last safe moment nobody has them, even if nearly all have run.
//! Cancelling gives those back, costs only what did not run, and takes some minutes; running beside pays twice for what the
//! batch still finishes. So cancelling comes first, early enough that running beside is still possible if it hangs.

use crate::extent::Cargo;
use crate::words::{Millis, Timestamp};

/// What the deadlines of a backend's batches are kept with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RescueTerms {
    /// Time that every rescue is given.
    pub least: Millis,
    /// Requests that are run in real time at once.
    pub at_once: u64,
    /// How long one of them takes.
    pub each: Millis,
    /// Real-time calls that the provider lets the account make in a minute, as far as it says so.
    pub a_minute: Option<u64>,
    /// How long a cancelled batch usually takes to give back what ran.
    pub cancel: Millis,
}

/// How far a batch is, as the provider told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pulse {
    first: Option<(Timestamp, u64)>,
    last: Option<(Timestamp, u64)>,
}

/// A batch under way, as far as its deadlines are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Voyage {
    /// What it carries; what is run beside it is taken out.
    pub cargo: Vec<Cargo>,
    /// When it left.
    pub since: Timestamp,
    /// How far it is.
    pub pulse: Pulse,
    /// It was told to stop.
    pub is_cancelled: bool,
}

/// What is to be done about a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Escalation {
    /// Nothing before this time.
    Look(Timestamp),
    /// Have the provider stop it and give back what ran.
    Cancel,
    /// Run these now, whatever comes of the batch.
    Hedge(Vec<Cargo>),
}

impl RescueTerms {
    /// The same where real-time calls were refused lately: a rescue may meet that again, and is given more time.
    #[must_use]
    pub const fn in_rough_weather(self) -> Self {
        Self { least: Millis(self.least.0.saturating_mul(8)), ..self }
    }

    /// How long it takes to run so many requests in real time, with some air. Half of the quota is real-time traffic's.
    #[must_use]
    pub fn needs(&self, requests: u64) -> Millis {
        let rounds = requests.div_ceil(self.at_once.max(1));
        let quota =
            self.a_minute.map_or(0, |a_minute| requests.saturating_mul(60_000) / (a_minute / 2).max(1));
        let work = rounds.saturating_mul(self.each.0).max(quota);
        Millis(self.least.0.max(work.saturating_add(work / 4)))
    }
}

impl Pulse {
    /// The provider says that so many items are done.
    pub fn beat(&mut self, done: u64, now: Timestamp) {
        if self.last.is_none_or(|(_, before)| done > before) {
            self.last = Some((now, done));
        }
        self.first.get_or_insert((now, done));
    }

    /// Items that are done.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.last.map_or(0, |(_, done)| done)
    }

    /// When the last item that is done was seen to be.
    #[must_use]
    pub fn last_at(&self) -> Option<Timestamp> {
        self.last.map(|(at, _)| at)
    }

    /// When it is finished if it goes on as it did; none if it stands still or nothing is known.
    #[must_use]
    pub fn ends_at(&self, total: u64, now: Timestamp) -> Option<Timestamp> {
        let ((from, before), (to, done)) = self.first.zip(self.last)?;
        let (gained, took) = (done.saturating_sub(before), to.since(from).0);
        if gained == 0 || took == 0 {
            return None;
        }
        let left = u128::from(total.saturating_sub(done));
        let needs = u64::try_from(left * u128::from(took) / u128::from(gained)).unwrap_or(u64::MAX);
        let ends_at = to.after(Millis(needs));
        // By then it should have beaten again.
        let is_standing = now.since(to).0 > took.max(took / gained * 4);
        (!is_standing).then_some(ends_at.max(now))
    }
}

impl Voyage {
    /// Its requests, without those that are run beside it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.cargo.iter().map(|cargo| cargo.range.len()).sum()
    }

    /// Its earliest deadline that is not kept otherwise yet.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        self.cargo.iter().map(|cargo| cargo.deadline).min()
    }

    /// Decides. What it tells to do is taken for done.
    pub fn escalate(&mut self, terms: &RescueTerms, now: Timestamp) -> Escalation {
        let Some(deadline) = self.deadline() else { return Escalation::Look(Timestamp::NEVER) };
        let (cancel_at, hedge_at) = self.moments(terms, deadline);
        if now >= hedge_at {
            return Escalation::Hedge(self.take_urgent(terms, now));
        }
        if self.is_cancelled || !self.is_worth_cancelling(terms, deadline) {
            return Escalation::Look(hedge_at);
        }
        if now < cancel_at {
            return Escalation::Look(cancel_at);
        }
        match self.pulse.ends_at(self.total(), now) {
            // It has time until then; if it loses its pace, this is asked again.
            Some(end) if end < hedge_at => {
                let half = Millis(hedge_at.since(now).0 / 2).max(Millis(1));
                Escalation::Look(now.after(half))
            }
            _ => {
                self.is_cancelled = true;
                Escalation::Cancel
            }
        }
    }

    /// When it is cancelled at the earliest, and when its requests are run beside it.
    #[must_use]
    pub fn moments(&self, terms: &RescueTerms, deadline: Timestamp) -> (Timestamp, Timestamp) {
        let given = deadline.since(self.since).0;
        // However long the rescue of all of it would take: the first half of its time belongs to the batch.
        let needs = Millis(terms.needs(self.due_by(deadline.after(terms.least))).0.min(given / 2));
        let cancel = Millis(terms.cancel.0.min(given / 4));
        let hedge_at = deadline.before(needs);
        (hedge_at.before(cancel), hedge_at)
    }

    /// About how many requests without an answer have a deadline up to this one; at least one.
    fn due_by(&self, deadline: Timestamp) -> u64 {
        let (mut due, mut all) = (0_u64, 0_u64);
        for cargo in &self.cargo {
            all += cargo.range.len();
            due += if cargo.deadline <= deadline { cargo.range.len() } else { 0 };
        }
        let left =
            u128::from(all.saturating_sub(self.pulse.done())) * u128::from(due) / u128::from(all.max(1));
        u64::try_from(left).unwrap_or(due).max(1)
    }

    /// Stopping all of it for the sake of a few would be dear.
    #[must_use]
    pub fn is_worth_cancelling(&self, terms: &RescueTerms, deadline: Timestamp) -> bool {
        let near = deadline.after(terms.least).after(terms.cancel);
        let urgent: u64 =
            self.cargo.iter().filter(|cargo| cargo.deadline <= near).map(|cargo| cargo.range.len()).sum();
        urgent.saturating_mul(2) >= self.total()
    }

    fn take_urgent(&mut self, terms: &RescueTerms, now: Timestamp) -> Vec<Cargo> {
        let is_urgent = |cargo: &Cargo| now >= self.moments(terms, cargo.deadline).1;
        let (urgent, rest) = self.cargo.iter().copied().partition(is_urgent);
        self.cargo = rest;
        urgent
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::extent::Range;
    use crate::words::{LaneId, Seq};

    const START: Timestamp = Timestamp(1_700_000_000_000);
    const TERMS: RescueTerms = RescueTerms {
        least: Millis::from_mins(10),
        at_once: 10,
        each: Millis::from_secs(6),
        a_minute: None,
        cancel: Millis::from_mins(10),
    };

    fn cargo(from: u64, count: u64, hours: u64) -> Cargo {
        let range = Range { lane: LaneId(1), from: Seq(from), to: Seq(from + count) };
        Cargo { range, tokens: count, deadline: START.after(Millis::from_hours(hours)) }
    }

    fn voyage(cargo: Vec<Cargo>) -> Voyage {
        Voyage { cargo, since: START, pulse: Pulse::default(), is_cancelled: false }
    }

    fn at(mins: u64) -> Timestamp {
        START.after(Millis::from_mins(mins))
    }

    #[test]
    fn a_stalled_batch_is_cancelled_in_time_and_run_beside_if_that_hangs() {
        let mut voyage = voyage(vec![cargo(0, 100, 24)]);
        assert_eq!(voyage.escalate(&TERMS, at(0)), Escalation::Look(at(24 * 60 - 20)));
        assert_eq!(voyage.escalate(&TERMS, at(24 * 60 - 20)), Escalation::Cancel);
        assert_eq!(voyage.escalate(&TERMS, at(24 * 60 - 19)), Escalation::Look(at(24 * 60 - 10)));
        assert_eq!(voyage.escalate(&TERMS, at(24 * 60 - 10)), Escalation::Hedge(vec![cargo(0, 100, 24)]));
        assert_eq!(voyage.escalate(&TERMS, at(24 * 60 - 9)), Escalation::Look(Timestamp::NEVER));
    }

    #[test]
    fn a_large_batch_is_rescued_earlier_but_has_half_of_the_time() {
        // 6,000 at 10 at once for 6 s each, and a quarter more: 75 minutes.
        let mut large = voyage(vec![cargo(0, 6_000, 24)]);
        assert_eq!(large.escalate(&TERMS, at(0)), Escalation::Look(at(24 * 60 - 85)));
        let mut huge = voyage(vec![cargo(0, 1_000_000, 24)]);
        assert_eq!(huge.escalate(&TERMS, at(0)), Escalation::Look(at(12 * 60 - 10)));
    }

    #[test]
    fn a_tight_quota_makes_a_rescue_longer() {
        let tight = RescueTerms { a_minute: Some(20), ..TERMS };
        assert_eq!(tight.needs(10), TERMS.least);
        assert_eq!(tight.needs(600), Millis::from_mins(75), "at ten a minute, and a quarter more");
    }

    #[test]
    fn a_batch_that_is_about_to_end_is_waited_for() {
        let mut voyage = voyage(vec![cargo(0, 100, 24)]);
        voyage.pulse.beat(10, at(23 * 60));
        voyage.pulse.beat(97, at(24 * 60 - 21));
        assert!(matches!(voyage.escalate(&TERMS, at(24 * 60 - 20)), Escalation::Look(_)));
        // It stops moving, and is stopped.
        let mut standing = voyage.clone();
        standing.pulse = Pulse::default();
        standing.pulse.beat(97, at(60));
        assert_eq!(standing.escalate(&TERMS, at(24 * 60 - 20)), Escalation::Cancel);
    }

    #[test]
    fn for_a_few_urgent_ones_the_others_are_not_stopped() {
        let mut voyage = voyage(vec![cargo(0, 10, 2), cargo(10, 1000, 24)]);
        assert_eq!(voyage.escalate(&TERMS, at(100)), Escalation::Look(at(110)));
        let Escalation::Hedge(urgent) = voyage.escalate(&TERMS, at(110)) else { panic!() };
        assert_eq!(urgent, vec![cargo(0, 10, 2)]);
        assert_eq!(voyage.total(), 1000);
    }

    proptest! {
        /// Followed from look to look, each request is either with the batch until half of its time, or run beside it while
        /// there is time for it, once.
        #[test]
        fn every_deadline_is_fought_for_once(
            parts in prop::collection::vec((1_u64..2_000, 1_u64..48), 1..10),
            beats in prop::collection::vec((1_u64..600, 0_u64..500), 0..20),
        ) {
            let mut from = 0;
            let parts: Vec<Cargo> = parts
                .into_iter()
                .map(|(count, hours)| {
                    from += count;
                    cargo(from - count, count, hours)
                })
                .collect();
            let mut voyage = voyage(parts.clone());
            let mut hedged: Vec<Cargo> = Vec::new();
            let mut beats = beats.into_iter();
            let mut now = START;
            for _ in 0..1_000 {
                match voyage.escalate(&TERMS, now) {
                    Escalation::Look(Timestamp::NEVER) => break,
                    Escalation::Look(at) => {
                        prop_assert!(at > now);
                        now = match beats.next() {
                            Some((mins, done)) => {
                                let beat = now.after(Millis::from_mins(mins)).min(at);
                                voyage.pulse.beat(done.min(voyage.total()), beat);
                                beat
                            }
                            None => at,
                        };
                    }
                    Escalation::Cancel => prop_assert!(hedged.len() < parts.len()),
                    Escalation::Hedge(urgent) => {
                        prop_assert!(!urgent.is_empty());
                        for cargo in &urgent {
                            let half = Millis(cargo.deadline.since(START).0 / 2);
                            prop_assert!(now >= START.after(half));
                            prop_assert!(now <= cargo.deadline.before(TERMS.least.min(half)));
                        }
                        hedged.extend(urgent);
                    }
                }
            }
            hedged.sort_by_key(|cargo| cargo.range.from);
            prop_assert_eq!(hedged, parts);
        }
    }
}
