//! What is under way: watched until it is back or its deadlines are kept otherwise.

use std::collections::BTreeSet;

use crate::batch::Tally;
use crate::escalate::{Escalation, Prices, Pulse, RescueTerms, Voyage};
use crate::extent::Cargo;
use crate::offers;
use crate::words::{BatchId, Millis, TenantId, Timestamp};

use super::{Effect, Effects, Fate, Freight, LaneTerms, Party, Scheduler, Shut};

/// A batch under way.
#[derive(Debug)]
pub(super) struct Sailing {
    pub(super) freight: Freight,
    pub(super) voyage: Voyage,
    /// What the provider has enqueued of it, in tokens.
    tokens: u64,
    /// Whose they are.
    tenants: BTreeSet<TenantId>,
    rescue: Option<RescueTerms>,
    look_at: Timestamp,
}

impl Sailing {
    /// Something is known that may change what is to be done about it.
    pub(super) const fn look_again(&mut self) {
        self.look_at = Timestamp(0);
    }
}

/// A batch under way, as the admin plane shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VoyageView {
    /// Its number.
    pub batch: BatchId,
    /// How it was bought.
    pub freight: Freight,
    /// When it left.
    pub since: Timestamp,
    /// Its requests.
    pub requests: u64,
    /// Those that the provider says are done.
    pub done: u64,
    /// When that was seen to change last.
    pub moved_at: Option<Timestamp>,
    /// When it is over if it goes on as it did; none if it stands still or nothing is known.
    pub ends_at: Option<Timestamp>,
    /// The earliest of its deadlines that is not kept otherwise.
    pub deadline: Option<Timestamp>,
    /// It is cancelled then if it is not about to end; none if that was done, or is not worth it.
    pub cancel_at: Option<Timestamp>,
    /// What is urgent of it is run in real time then.
    pub hedge_at: Option<Timestamp>,
    /// It was told to stop.
    pub is_cancelled: bool,
    /// When half of all batches are back by experience, and nearly all.
    pub usually: (Timestamp, Timestamp),
}

impl Scheduler {
    pub(super) fn set_out(
        &mut self,
        batch: BatchId,
        freight: Freight,
        cargo: Vec<Cargo>,
        since: Timestamp,
        is_recovered: bool,
    ) {
        let lane = cargo.first().map(|cargo| cargo.range.lane);
        // Where nothing is sold in real time, a late batch is all there is: it is left alone.
        let terms = lane.and_then(|lane| self.berths.get(&lane)).map(|berth| &berth.terms);
        let rescue = terms.filter(|terms| offers::fastest(&terms.ladder).is_some()).map(|terms| terms.rescue);
        let tokens = cargo.iter().map(|cargo| cargo.tokens).sum();
        let requests = cargo.iter().map(|cargo| cargo.range.len()).sum();
        let tenants = self.tenants_of(&cargo);
        if is_recovered {
            self.board(&freight, &tenants);
            if let Some(gate) = self.gates.get_mut(&(freight.backend.clone(), freight.offer.clone())) {
                gate.readmit();
            }
            self.ledgers.entry(freight.way()).or_default().enter(tokens);
        } else {
            let tries = self.shut.iter_mut().filter(|((backend, _), _)| *backend == freight.backend);
            for (_, shut) in tries {
                if let Shut::Tried(offer, of @ None) = shut
                    && *offer == freight.offer
                {
                    *of = Some(batch);
                }
            }
        }
        let voyage = Voyage { cargo, requests, since, pulse: Pulse::default(), is_cancelled: false };
        let look_at = Timestamp(0);
        self.sailings.insert(batch, Sailing { freight, voyage, tokens, tenants, rescue, look_at });
    }

    pub(super) fn tenants_of(&self, cargo: &[Cargo]) -> BTreeSet<TenantId> {
        let berths = cargo.iter().filter_map(|cargo| self.berths.get(&cargo.range.lane));
        berths.map(|berth| berth.key.tenant.clone()).collect()
    }

    /// These tenants have one batch more under way.
    pub(super) fn board(&mut self, freight: &Freight, tenants: &BTreeSet<TenantId>) {
        for tenant in tenants {
            let berth = (freight.backend.clone(), freight.offer.clone(), tenant.clone());
            *self.afloat.entry(berth).or_default() += 1;
        }
    }

    pub(super) fn progressed(&mut self, batch: BatchId, tally: Tally, now: Timestamp) {
        if let Some(sailing) = self.sailings.get_mut(&batch) {
            sailing.voyage.pulse.beat(u64::from(tally.completed) + u64::from(tally.failed), now);
            sailing.look_at = Timestamp(0);
        }
    }

    pub(super) fn ended(
        &mut self,
        batch: BatchId,
        hold_until: Option<Timestamp>,
        fate: Fate,
        now: Timestamp,
        done: &mut Effects,
    ) {
        let Some(Sailing { freight, voyage, tokens, tenants, .. }) = self.sailings.remove(&batch) else {
            return;
        };
        // It said nothing about the backend, or that would be known by now.
        let is_this = |shut: &&mut Shut| matches!(shut, Shut::Tried(_, Some(tried)) if *tried == batch);
        if let Some(shut) = self.shut.values_mut().find(is_this) {
            *shut = Shut::MayBeTried;
            self.forget_outlooks();
        }
        for tenant in tenants {
            let berth = (freight.backend.clone(), freight.offer.clone(), tenant);
            if let Some(batches) = self.afloat.get_mut(&berth) {
                *batches = batches.saturating_sub(1);
            }
        }
        self.afloat.retain(|_, batches| *batches > 0);
        if let Some(gate) = self.gates.get_mut(&(freight.backend.clone(), freight.offer.clone())) {
            gate.leave();
            // What is refused for its tokens beside others waits for one of those to end, not for the clock.
            if let Some(until) = hold_until.filter(|_| fate != Fate::NoRoom || gate.running() == 0) {
                gate.hold(until);
            }
        }
        let ledger = self.ledgers.entry(freight.way()).or_default();
        match fate {
            Fate::NoRoom => ledger.refused(tokens),
            Fate::Completed | Fate::GivenUp | Fate::Refused => ledger.leave(tokens),
        }
        let took = now.since(voyage.since);
        match fate {
            Fate::Completed => self.seen(freight.way(), done, |sketch| sketch.observe(took, now)),
            Fate::GivenUp => {
                let done_permille = voyage.pulse.done().saturating_mul(1000) / voyage.requests.max(1);
                let done_after = voyage.pulse.last_at().map_or(took, |at| at.since(voyage.since));
                self.seen(freight.way(), done, |sketch| {
                    sketch.observe_given_up(took, done_permille, done_after, now);
                });
            }
            Fate::NoRoom | Fate::Refused => {}
        }
    }

    pub(super) fn escalate(&mut self, now: Timestamp, done: &mut Effects) {
        let due: Vec<BatchId> =
            self.sailings.iter().filter(|(_, sailing)| sailing.look_at <= now).map(|(id, _)| *id).collect();
        let before = done.effects.len();
        for batch in due {
            self.escalate_one(batch, now, done);
        }
        for effect in done.effects.iter().skip(before) {
            if let Effect::Hedge { freight, cargo, .. } = effect {
                self.spend_on_rescue(freight, cargo);
            }
        }
        for sailing in self.sailings.values() {
            done.wake(sailing.look_at);
        }
    }

    fn escalate_one(&mut self, batch: BatchId, now: Timestamp, done: &mut Effects) {
        let known = self.sailings.get(&batch).and_then(|sailing| {
            let terms = self.rescue_terms(sailing, now)?;
            Some((terms, self.prices(sailing, &terms)?))
        });
        loop {
            let Some(sailing) = self.sailings.get_mut(&batch) else { return };
            let Some((terms, prices)) = &known else {
                sailing.look_at = Timestamp::NEVER;
                return;
            };
            let deadline = sailing.voyage.deadline();
            match sailing.voyage.escalate(terms, prices, now) {
                Escalation::Look(at) => {
                    sailing.look_at = at;
                    return;
                }
                Escalation::Cancel => {
                    let deadline = deadline.unwrap_or(Timestamp::NEVER);
                    done.effects.push(Effect::Cancel { batch, deadline });
                }
                Escalation::Hedge(cargo) => {
                    // What comes of the batch after this is paid for twice; the less of it the better.
                    if !sailing.voyage.is_cancelled && sailing.voyage.cargo.is_empty() {
                        sailing.voyage.is_cancelled = true;
                        let deadline = deadline.unwrap_or(Timestamp::NEVER);
                        done.effects.push(Effect::Cancel { batch, deadline });
                    }
                    let freight = sailing.freight.clone();
                    let lane = cargo.first().and_then(|cargo| self.berths.get(&cargo.range.lane));
                    let Some(berth) = lane else { continue };
                    let LaneTerms { ladder, may_go_elsewhere, .. } = &berth.terms;
                    let ways = self.ways_now(ladder, &berth.key.backend, *may_go_elsewhere);
                    let left = time_left(&cargo, terms, now);
                    let Some(rung) = offers::best_now(&ways, &freight.model, &self.turnarounds, left) else {
                        continue;
                    };
                    let freight = freight.bought(rung);
                    done.effects.push(Effect::Hedge { batch, freight, cargo });
                }
            }
        }
    }

    /// What a rescue of a batch is given, by what is known of its backend now.
    fn rescue_terms(&self, sailing: &Sailing, now: Timestamp) -> Option<RescueTerms> {
        let backend = &sailing.freight.backend;
        let terms = RescueTerms { a_minute: self.quotas.get(backend).copied(), ..sailing.rescue? };
        let is_rough = self.rough_until.get(backend).is_some_and(|until| now < *until);
        Some(if is_rough { terms.in_rough_weather() } else { terms })
    }

    /// What its answers cost, and what they cost otherwise; none while there is nothing to be decided about it.
    fn prices(&self, Sailing { freight, voyage, .. }: &Sailing, terms: &RescueTerms) -> Option<Prices> {
        let berth = voyage.cargo.first().and_then(|cargo| self.berths.get(&cargo.range.lane))?;
        let LaneTerms { ladder, may_go_elsewhere, rescue, .. } = &berth.terms;
        let ways = self.ways_now(ladder, &berth.key.backend, *may_go_elsewhere);
        let now = offers::best_now(&ways, &freight.model, &self.turnarounds, terms.least)?;
        let again = self.prospect(&Party::of(berth), ladder);
        let again = again.iter().filter_map(|outlook| {
            let takes = Millis(outlook.needs.0.saturating_add(rescue.least.0));
            Some((takes, ladder.get(outlook.rung)?.price_permille.into()))
        });
        Some(Prices {
            batch: berth.price(freight).into(),
            now: now.price_permille.into(),
            again: again.collect(),
        })
    }

    /// What is under way.
    pub fn voyages(&self, now: Timestamp) -> impl Iterator<Item = VoyageView> {
        self.sailings.iter().map(move |(id, sailing)| self.view(*id, sailing, now))
    }

    fn view(&self, batch: BatchId, sailing: &Sailing, now: Timestamp) -> VoyageView {
        let voyage = &sailing.voyage;
        let deadline = voyage.deadline();
        let rescue = self.rescue_terms(sailing, now).zip(deadline);
        let moments = rescue.map(|(terms, deadline)| voyage.moments(&terms, deadline));
        let may_be_cancelled = rescue.is_some_and(|(terms, _)| {
            let prices = self.prices(sailing, &terms);
            prices.is_some_and(|prices| voyage.may_be_cancelled(&terms, &prices, now))
        });
        let nothing = crate::turnaround::Sketch::NOTHING;
        let way = sailing.freight.way();
        let sketch = self.turnarounds.get(&way).unwrap_or(&nothing);
        let lane = voyage.cargo.first().and_then(|cargo| self.berths.get(&cargo.range.lane));
        let rung = lane.and_then(|berth| {
            berth.terms.ladder.iter().find(|rung| rung.backend == way.backend && rung.offer == way.offer)
        });
        let usual = rung.map_or(Millis(0), |rung| rung.usual);
        let by = |late| voyage.since.after(sketch.within(late, usual));
        VoyageView {
            batch,
            freight: sailing.freight.clone(),
            since: voyage.since,
            requests: voyage.requests,
            done: voyage.pulse.done(),
            moved_at: voyage.pulse.last_at(),
            ends_at: voyage.pulse.ends_at(voyage.requests, now),
            deadline,
            cancel_at: moments.filter(|_| may_be_cancelled).map(|(cancel_at, _)| cancel_at),
            hedge_at: moments.map(|(_, hedge_at)| hedge_at),
            is_cancelled: voyage.is_cancelled,
            usually: (by(500_000), by(50_000)),
        }
    }
}

/// What is left until the earliest deadline when the last of these has its turn.
pub(super) fn time_left(cargo: &[Cargo], terms: &RescueTerms, now: Timestamp) -> Millis {
    let deadline = cargo.iter().map(|cargo| cargo.deadline).min().unwrap_or(now);
    let requests: u64 = cargo.iter().map(|cargo| cargo.range.len()).sum();
    let queue = requests.div_ceil(terms.at_once.max(1)).saturating_sub(1).saturating_mul(terms.each.0);
    Millis(deadline.since(now).0.saturating_sub(queue))
}
