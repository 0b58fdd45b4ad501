//! When a batch under way is not waited for any longer: cancel and run elsewhere what did not run, or run it in real time
//! beside the batch.
//!
//! A batch's results come at its end, so that at the last safe moment nobody has them, even if nearly all have run.
//! Cancelling gives those back at the batch's price, so that only what did not run is bought anew; it takes some minutes, and
//! what was in no hurry has to go again. Running beside disturbs nobody, but pays twice for all that has run and for what the
//! batch still finishes. The bill decides ([`Voyage::bill`]); cancelling comes early enough that running beside is still
//! possible if it hangs.

use crate::extent::Cargo;
use crate::words::{Millis, Timestamp};

/// What it costs to send again what was in no hurry, in thousandths of the list price. No provider bills it; it is an upload,
/// a place at the gate, and the place that it had in the provider's queue.
const AGAIN_PERMILLE: u64 = 50;

/// How much of what has not run yet, in thousandths, the batch runs though it is run beside it: all while it moves, and nobody
/// knows while it stands still.
const STILL_RUNS_PERMILLE: u64 = 500;

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

/// What an answer costs, by how it is bought, in thousandths of the list price.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prices {
    /// In the batch.
    pub batch: u64,
    /// At once: in real time, or as whatever else keeps the deadline by then.
    pub now: u64,
    /// As something that can wait, anew: the time that it takes and the price, the cheapest first. With less time it is bought
    /// at once.
    pub again: Vec<(Millis, u64)>,
}

/// What the requests of a batch come to from where it stands, in the same unit for both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bill {
    /// It is cancelled: what ran is charged, what is urgent is bought at once, what is not goes again.
    pub cancelled: u128,
    /// What is urgent is run beside it: bought at once, and charged by the batch as well as far as that runs it.
    pub beside: u128,
}

/// A batch under way, as far as its deadlines are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Voyage {
    /// What it carries; what is run beside it is taken out.
    pub cargo: Vec<Cargo>,
    /// All its requests, those run beside it included.
    pub requests: u64,
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

impl Prices {
    /// What one costs that goes again with so much time left, its trouble included.
    fn again_with(&self, left: Millis) -> u64 {
        let way = self.again.iter().find(|(takes, _)| *takes <= left);
        way.map_or(self.now, |(_, price)| *price).saturating_add(AGAIN_PERMILLE)
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
    pub fn escalate(&mut self, terms: &RescueTerms, prices: &Prices, now: Timestamp) -> Escalation {
        let Some(deadline) = self.deadline() else { return Escalation::Look(Timestamp::NEVER) };
        let (cancel_at, hedge_at) = self.moments(terms, deadline);
        if now >= hedge_at {
            return Escalation::Hedge(self.take_urgent(terms, now));
        }
        if !self.may_be_cancelled(terms, prices, now) {
            return Escalation::Look(hedge_at);
        }
        if now < cancel_at {
            return Escalation::Look(cancel_at);
        }
        match self.pulse.ends_at(self.requests, now) {
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

    /// It was not cancelled yet, and that is the cheaper way when it has to be decided.
    #[must_use]
    pub fn may_be_cancelled(&self, terms: &RescueTerms, prices: &Prices, now: Timestamp) -> bool {
        let Some(deadline) = self.deadline().filter(|_| !self.is_cancelled) else { return false };
        let at = self.moments(terms, deadline).0.max(now);
        let bill = self.bill(terms, prices, deadline, at);
        bill.cancelled <= bill.beside
    }

    /// What both ways come to if one of them is taken `at` this time for the sake of this deadline. The unit is a millionth of
    /// the list price, times the requests of the batch: so a share of them is a whole number.
    #[must_use]
    pub fn bill(&self, terms: &RescueTerms, prices: &Prices, deadline: Timestamp, at: Timestamp) -> Bill {
        let all = u128::from(self.requests.max(1));
        let done = u128::from(self.pulse.done()).min(all);
        let left = all - done;
        let still_runs = match self.pulse.ends_at(self.requests, at) {
            Some(_) => 1000,
            None => u128::from(STILL_RUNS_PERMILLE),
        };
        let (batch, now) = (u128::from(prices.batch), u128::from(prices.now));
        // What becomes urgent while the batch is stopped is urgent, too.
        let near = deadline.after(terms.least).after(terms.cancel);
        let back_at = at.after(terms.cancel);
        let mut bill = Bill { cancelled: 0, beside: 0 };
        for cargo in &self.cargo {
            let requests = u128::from(cargo.range.len());
            // Of each request: what the batch has done of it so far, and the rest.
            let (cancelled, beside) = if cargo.deadline <= near {
                (
                    1000 * (done * batch + left * now),
                    1000 * (all * now + done * batch) + left * batch * still_runs,
                )
            } else {
                let again = u128::from(prices.again_with(cargo.deadline.since(back_at)));
                (1000 * (done * batch + left * again), 1000 * all * batch)
            };
            bill.cancelled += requests * cancelled;
            bill.beside += requests * beside;
        }
        bill
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
        let requests = cargo.iter().map(|cargo| cargo.range.len()).sum();
        Voyage { cargo, requests, since: START, pulse: Pulse::default(), is_cancelled: false }
    }

    fn prices() -> Prices {
        Prices { batch: 500, now: 1000, again: vec![(Millis::from_hours(2), 500)] }
    }

    /// A batch that has stood still since so many were done.
    fn standing(cargo: Vec<Cargo>, done: u64) -> Voyage {
        let mut voyage = voyage(cargo);
        voyage.pulse.beat(done, at(30));
        voyage
    }

    fn would_cancel(voyage: &Voyage, prices: &Prices) -> bool {
        voyage.may_be_cancelled(&TERMS, prices, START.after(Millis::from_hours(1)))
    }

    fn at(mins: u64) -> Timestamp {
        START.after(Millis::from_mins(mins))
    }

    #[test]
    fn a_stalled_batch_is_cancelled_in_time_and_run_beside_if_that_hangs() {
        let mut voyage = voyage(vec![cargo(0, 100, 24)]);
        assert_eq!(voyage.escalate(&TERMS, &prices(), at(0)), Escalation::Look(at(24 * 60 - 20)));
        assert_eq!(voyage.escalate(&TERMS, &prices(), at(24 * 60 - 20)), Escalation::Cancel);
        assert_eq!(voyage.escalate(&TERMS, &prices(), at(24 * 60 - 19)), Escalation::Look(at(24 * 60 - 10)));
        assert_eq!(
            voyage.escalate(&TERMS, &prices(), at(24 * 60 - 10)),
            Escalation::Hedge(vec![cargo(0, 100, 24)])
        );
        assert_eq!(voyage.escalate(&TERMS, &prices(), at(24 * 60 - 9)), Escalation::Look(Timestamp::NEVER));
    }

    #[test]
    fn a_large_batch_is_rescued_earlier_but_has_half_of_the_time() {
        // 6,000 at 10 at once for 6 s each, and a quarter more: 75 minutes.
        let mut large = voyage(vec![cargo(0, 6_000, 24)]);
        assert_eq!(large.escalate(&TERMS, &prices(), at(0)), Escalation::Look(at(24 * 60 - 85)));
        let mut huge = voyage(vec![cargo(0, 1_000_000, 24)]);
        assert_eq!(huge.escalate(&TERMS, &prices(), at(0)), Escalation::Look(at(12 * 60 - 10)));
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
        assert!(matches!(voyage.escalate(&TERMS, &prices(), at(24 * 60 - 20)), Escalation::Look(_)));
        // It stops moving, and is stopped.
        let mut standing = voyage.clone();
        standing.pulse = Pulse::default();
        standing.pulse.beat(97, at(60));
        assert_eq!(standing.escalate(&TERMS, &prices(), at(24 * 60 - 20)), Escalation::Cancel);
    }

    #[test]
    fn for_a_few_urgent_ones_the_others_are_not_stopped() {
        let mut voyage = voyage(vec![cargo(0, 10, 2), cargo(10, 1000, 24)]);
        assert_eq!(voyage.escalate(&TERMS, &prices(), at(100)), Escalation::Look(at(110)));
        let Escalation::Hedge(urgent) = voyage.escalate(&TERMS, &prices(), at(110)) else { panic!() };
        assert_eq!(urgent, vec![cargo(0, 10, 2)]);
        assert_eq!(voyage.total(), 1000);
    }

    #[test]
    fn what_has_run_decides_whether_the_others_are_stopped_for_a_few() {
        let few_and_many = || vec![cargo(0, 100, 2), cargo(100, 900, 24)];
        assert!(!would_cancel(&standing(few_and_many(), 10), &prices()), "nearly all would have to go again");
        assert!(would_cancel(&standing(few_and_many(), 900), &prices()), "running 90 again would be dearer");
        // Without time for another batch, the others are better left where they are.
        let close = vec![cargo(0, 100, 2), cargo(100, 900, 3)];
        let again = Prices { again: vec![(Millis::from_hours(2), 500)], ..prices() };
        assert!(!would_cancel(&standing(close.clone(), 0), &again));
        let quick = Prices { again: vec![(Millis::from_mins(20), 100)], ..prices() };
        assert!(would_cancel(&standing(close, 0), &quick), "another batch is cheap and has time");
    }

    #[test]
    fn what_running_beside_costs_decides_it_too() {
        let half = || standing(vec![cargo(0, 120, 2), cargo(120, 880, 24)], 300);
        assert!(
            would_cancel(&half(), &prices()),
            "36 of the 120 have run, and are worth the list price each"
        );
        let flex = Prices { now: 150, ..prices() };
        assert!(!would_cancel(&half(), &flex), "run beside it they cost little");
        let free = Prices { batch: 0, again: vec![(Millis(0), 0)], now: 0 };
        assert!(!would_cancel(&half(), &free), "nothing is saved, and there is work in it");
    }

    proptest! {
        /// The bill is that of each request by itself, and the decision follows it.
        #[test]
        fn the_bill_is_the_sum_over_requests(
            parts in prop::collection::vec((1_u64..60, 2_u64..30), 1..6),
            done in 0_u64..400,
            moves in any::<bool>(),
            (batch, now, again) in (0_u64..2_000, 0_u64..2_000, 0_u64..2_000),
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
            let done = done.min(voyage.requests);
            if moves {
                voyage.pulse.beat(0, at(1));
            }
            voyage.pulse.beat(done, at(60));
            let prices = Prices { batch, now, again: vec![(Millis::from_hours(3), again)] };
            let deadline = voyage.deadline().unwrap();
            let decided_at = voyage.moments(&TERMS, deadline).0;
            let bill = voyage.bill(&TERMS, &prices, deadline, decided_at);
            let is_moving = voyage.pulse.ends_at(voyage.requests, decided_at).is_some();

            // In shares of one request: how much of it is done, and what the batch still runs of the rest.
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let [done, all, batch, now, again] = [done, voyage.requests, batch, now, again].map(|n| n as f64);
            let (done, runs_on) = (done / all, if is_moving { 1.0 } else { 0.5 });
            let (mut cancelled, mut beside) = (0.0, 0.0);
            for part in &parts {
                let left = part.deadline.since(decided_at.after(TERMS.cancel));
                for _ in 0..part.range.len() {
                    if part.deadline.since(deadline) <= Millis::from_mins(20) {
                        cancelled += done * batch + (1.0 - done) * now;
                        beside += now + batch * (done + (1.0 - done) * runs_on);
                    } else {
                        let next = if left >= Millis::from_hours(3) { again } else { now };
                        cancelled += done * batch + (1.0 - done) * (next + 50.0);
                        beside += batch;
                    }
                }
            }
            #[expect(clippy::cast_precision_loss, reason = "as exact as the sum above")]
            let shown = |sum: u128| sum as f64 / (1000.0 * all);
            prop_assert!((shown(bill.cancelled) - cancelled).abs() < 0.01, "{bill:?} {cancelled}");
            prop_assert!((shown(bill.beside) - beside).abs() < 0.01, "{bill:?} {beside}");
            let would = voyage.may_be_cancelled(&TERMS, &prices, START);
            prop_assert!((cancelled - beside).abs() < 0.01 || would == (cancelled < beside));
        }

        /// If all of it is urgent, what has run is never paid twice, whatever the prices.
        #[test]
        fn a_batch_of_nothing_but_urgent_ones_is_cancelled(
            count in 1_u64..10_000, done in 0_u64..10_000, (batch, now) in (0_u64..2_000, 0_u64..2_000),
        ) {
            let prices = Prices { batch, now, again: Vec::new() };
            prop_assert!(would_cancel(&standing(vec![cargo(0, count, 24)], done), &prices));
        }

        /// The dearer it is to run something at once, the rather the batch is cancelled; the dearer it is to send the others
        /// again, the rather not.
        #[test]
        fn each_price_pulls_in_its_direction(
            (urgent, patient) in (1_u64..500, 1_u64..500),
            done in 0_u64..1_000,
            (batch, now, again) in (0_u64..1_000, 0_u64..2_000, 0_u64..2_000),
            more in 0_u64..500,
        ) {
            let parts = || vec![cargo(0, urgent, 2), cargo(urgent, patient, 24)];
            let prices = Prices { batch, now, again: vec![(Millis(0), again)] };
            let is_cancelled = would_cancel(&standing(parts(), done), &prices);
            let dearer_now = Prices { now: now + more, ..prices.clone() };
            prop_assert!(!is_cancelled || would_cancel(&standing(parts(), done), &dearer_now));
            let dearer_again = Prices { again: vec![(Millis(0), again + more)], ..prices };
            prop_assert!(is_cancelled || !would_cancel(&standing(parts(), done), &dearer_again));
        }

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
                match voyage.escalate(&TERMS, &prices(), now) {
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
