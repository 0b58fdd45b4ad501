//! What waits: which lanes leave, how they are bought, and whose requests come along.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::depart::{self, Departure, Reason, Terms, Waiting};
use crate::escalate::RescueTerms;
use crate::extent::Cargo;
use crate::gate::Pass;
use crate::lane::{Lane, Paused, Room};
use crate::offers::{self, BatchRoom, Outlook, Rung};
use crate::retry::LAST_CHANCE;
use crate::words::{BackendId, LaneId, Millis, Mode, OfferName, Seq, TenantId, Timestamp};

use super::voyages::time_left;
use super::{Effect, Effects, Freight, Lack, Next, Party, Prospect, Scheduler, Shut};

/// Where several tenants share a batch, one helping is at most this part of it, so that a small one is not all of one tenant.
const HELPINGS: u64 = 16;

/// How a group of lanes is bought.
struct Deal {
    ladder: Arc<[Rung]>,
    rescue: RescueTerms,
    /// The ways to buy it as something that can wait, the cheapest first. Each further one is for what the one before would
    /// answer too late.
    steps: Vec<Step>,
}

/// One way to buy what can wait.
pub(super) struct Step {
    pub(super) rung: Rung,
    room: BatchRoom,
    pub(super) terms: Terms,
}

impl Deal {
    fn overhead(&self) -> u64 {
        self.steps.first().map_or(0, |step| step.room.overhead_bytes)
    }

    /// Before this deadline, nothing that can wait keeps it.
    fn soonest_kept(&self, now: Timestamp) -> Timestamp {
        self.steps.last().map_or(Timestamp::NEVER, |step| step.terms.soonest_kept(now))
    }

    /// When a pause ends: when it was told to, or at the first moment of its deadline that comes meanwhile, since to leave
    /// after it is worse than to leave early. A moment that was over when the pause began is lost anyway.
    fn pause_ends_at(&self, Paused { extent, since, .. }: &Paused) -> Timestamp {
        if extent.is_hurried() {
            return extent.not_before;
        }
        let deadline = extent.earliest_deadline;
        let safe = self.steps.first().map(|step| step.terms.latest_safe(deadline));
        let last = self.steps.iter().map(|step| deadline.before(step.terms.needs).before(step.terms.rescue));
        let rescue = [self.rescue.least, LAST_CHANCE, Millis(0)].map(|time| deadline.before(time));
        let moments = last.chain(safe).chain(rescue);
        moments.filter(|moment| moment > since).fold(extent.not_before, Timestamp::min)
    }
}

/// What has to wait may become urgent while it does.
fn held_up(
    next: Next,
    step: &Step,
    earliest_deadline: Timestamp,
    now: Timestamp,
    done: &mut Effects,
) -> Next {
    let urgent_at = step.terms.urgent_at(earliest_deadline);
    let moments = match next {
        Next::Held(until) | Next::Shut(until) => [urgent_at, until],
        _ => [urgent_at, Timestamp::NEVER],
    };
    // A moment that has passed is not waited for: then it is an event that lets it go.
    for moment in moments.into_iter().filter(|moment| *moment > now) {
        done.wake(moment);
    }
    next
}

impl Scheduler {
    pub(super) fn depart(&mut self, now: Timestamp, done: &mut Effects) {
        self.end_pauses(now, done);
        self.allot(now);
        for party in self.by_urgency(now) {
            let next = self.depart_group(&party, now, done);
            if let Some(group) = self.groups.get_mut(&party) {
                group.next = next;
            }
        }
    }

    /// What was told to wait takes part again when its time has come.
    fn end_pauses(&mut self, now: Timestamp, done: &mut Effects) {
        let pauses = |lane: &LaneId| self.berths.get(lane).is_some_and(|b| b.lane.paused_until().is_some());
        let parties = self.groups.iter().filter(|(_, group)| group.lanes.iter().any(pauses));
        let parties: Vec<Party> = parties.map(|(party, _)| party.clone()).collect();
        for party in parties {
            let Some(deal) = self.deal(&party) else { continue };
            let lanes = self.groups.get(&party).map(|group| group.lanes.clone()).unwrap_or_default();
            for lane in lanes {
                let Some(berth) = self.berths.get_mut(&lane) else { continue };
                let pauses = berth.lane.end_pauses(now, |paused| deal.pause_ends_at(paused));
                berth.flush |= pauses.is_flushed;
                if let Some(at) = pauses.next {
                    done.wake(at);
                }
            }
        }
    }

    /// Those whose last safe moment has come first, then those of the tenant whose turn it is: where a gate is narrow,
    /// that is the order in which they go through it.
    fn by_urgency(&mut self, now: Timestamp) -> Vec<Party> {
        let waiting: Vec<Party> = self
            .groups
            .iter()
            .filter(|(_, group)| group.lanes.iter().any(|lane| self.waits(*lane)))
            .map(|(party, _)| party.clone())
            .collect();
        let mut order: Vec<(bool, u64, Timestamp, Party)> = waiting
            .into_iter()
            .filter_map(|party| {
                let deal = self.deal(&party)?;
                let lanes = &self.groups.get(&party)?.lanes;
                let deadline = self.waiting(lanes, deal.overhead())?.earliest_deadline;
                let is_due = deal.steps.first().is_none_or(|step| now >= step.terms.latest_safe(deadline));
                let shares = self.shares.get(&party.freight.backend);
                let clock = lanes
                    .iter()
                    .filter(|lane| self.waits(**lane))
                    .filter_map(|lane| self.berths.get(lane))
                    .map(|berth| shares.map_or(0, |shares| shares.clock(&berth.key.tenant)))
                    .min()?;
                Some((!is_due, clock, deadline, party))
            })
            .collect();
        order.sort();
        order.into_iter().map(|(.., party)| party).collect()
    }

    fn waits(&self, lane: LaneId) -> bool {
        self.berths.get(&lane).is_some_and(|berth| !berth.lane.is_empty())
    }

    /// What waits in several lanes that may travel together.
    fn waiting(&self, lanes: &[LaneId], overhead: u64) -> Option<Waiting> {
        let mut sum: Option<Waiting> = None;
        for berth in lanes.iter().filter_map(|lane| self.berths.get(lane)) {
            let Some((oldest, earliest_deadline)) = berth.lane.oldest().zip(berth.lane.earliest_deadline())
            else {
                continue;
            };
            let sums = berth.lane.sums();
            let sum = sum.get_or_insert(Waiting { count: 0, bytes: 0, oldest, earliest_deadline });
            sum.count += sums.count;
            sum.bytes += sums.bytes + sums.count * overhead;
            sum.oldest = sum.oldest.min(oldest);
            sum.earliest_deadline = sum.earliest_deadline.min(earliest_deadline);
        }
        sum
    }

    /// How a group is bought, by what is known now. Its lanes share a backend, so only the patience may differ.
    fn deal(&mut self, party: &Party) -> Option<Deal> {
        let group = self.groups.get(party)?;
        let berths = || group.lanes.iter().filter_map(|lane| self.berths.get(lane));
        let terms = &berths().next()?.terms;
        let outlooks = self.prospect(party, &terms.ladder);
        let (linger, rescue) = (berths().map(|berth| berth.terms.linger).min()?, terms.rescue);
        let step = |outlook: &Outlook| {
            let rung = terms.ladder.get(outlook.rung)?.clone();
            let room = rung.batch?;
            let terms = Terms {
                max_requests: room.max_requests,
                max_bytes: room.max_bytes,
                linger,
                needs: outlook.needs,
                safe: outlook.safe,
                rescue: rescue.least,
            };
            Some(Step { rung, room, terms })
        };
        let steps = outlooks.iter().filter_map(step).collect();
        let deal = Deal { rescue, steps, ladder: terms.ladder.clone() };
        self.groups.get_mut(party)?.prospect = Some(Prospect(outlooks));
        Some(deal)
    }

    /// The ways to buy what waits in a group, as they are known.
    pub(super) fn prospect(&self, party: &Party, ladder: &[Rung]) -> Arc<[Outlook]> {
        match self.groups.get(party).and_then(|group| group.prospect.as_ref()) {
            Some(Prospect(outlooks)) => outlooks.clone(),
            None => self.outlooks(party, ladder).into(),
        }
    }

    /// A lane stays with its own backend as long as that takes work.
    fn outlooks(&self, Party { freight, may_go_elsewhere, .. }: &Party, ladder: &[Rung]) -> Vec<Outlook> {
        let is_own = |rung: &Rung| rung.backend == freight.backend;
        let is_shut = |rung: &Rung| match self.shut.get(&(rung.backend.clone(), rung.mode)) {
            None | Some(Shut::MayBeTried) => false,
            Some(Shut::Rests(_) | Shut::Tried(..)) => true,
        };
        // The cheapest tells: what is dearer is for what is urgent.
        let own = ladder.iter().filter(|rung| is_own(rung) && rung.batch.is_some());
        let own_takes_work =
            own.min_by_key(|rung| (rung.price_permille, rung.usual)).is_some_and(|rung| !is_shut(rung));
        offers::outlooks(ladder, &freight.model, &self.turnarounds, |rung| {
            if own_takes_work || !*may_go_elsewhere { is_own(rung) } else { !is_shut(rung) }
        })
    }

    /// Lets go what may go, and says what the rest waits for.
    fn depart_group(&mut self, party: &Party, now: Timestamp, done: &mut Effects) -> Next {
        let Some(deal) = self.deal(party) else { return Next::NotSold };
        let freight = &party.freight;
        let lanes = self.groups.get(party).map(|group| group.lanes.clone()).unwrap_or_default();
        if deal.ladder.is_empty() {
            self.give_up_unsold(&lanes, now, done);
            return Next::NotSold;
        }
        self.rescue(party, &lanes, &deal, now, done);
        let mut urgent = None;
        for (cheaper, step) in deal.steps.iter().zip(deal.steps.iter().skip(1)).rev() {
            let due_before = cheaper.terms.soonest_kept(now);
            urgent = self.depart_urgent(freight, &lanes, step, due_before, now, done).or(urgent);
        }
        let next = self.depart_rest(freight, &lanes, &deal, now, done);
        urgent.unwrap_or(next)
    }

    /// Nobody sells what these lanes hold: it waits for somebody who does, and what is due by then is given up.
    fn give_up_unsold(&mut self, lanes: &[LaneId], now: Timestamp, done: &mut Effects) {
        for lane in lanes {
            let Some(berth) = self.berths.get_mut(lane) else { continue };
            let extents = berth.lane.take_overdue(now);
            if !extents.is_empty() {
                done.effects.push(Effect::Expire { extents, lack: Lack::Seller });
            }
            if let Some(deadline) = berth.lane.earliest_deadline() {
                done.wake(deadline);
            }
        }
    }

    /// Lets go what the cheaper way would answer too late. Says what they wait for if they have to.
    fn depart_urgent(
        &mut self,
        freight: &Freight,
        lanes: &[LaneId],
        step: &Step,
        due_before: Timestamp,
        now: Timestamp,
        done: &mut Effects,
    ) -> Option<Next> {
        let is_urgent = |lane: &Lane| lane.last_before(due_before).is_some();
        loop {
            let urgent: Vec<LaneId> = lanes
                .iter()
                .copied()
                .filter(|lane| self.berths.get(lane).is_some_and(|berth| is_urgent(&berth.lane)))
                .collect();
            let urgent = self.affordable(&urgent, step, now, done);
            let waiting = self.waiting(&urgent, step.room.overhead_bytes)?;
            // One that travels alone has nobody to wait for.
            let lingers = step.room.max_requests > 1;
            let reason = match depart::decide(&waiting, &step.terms, now) {
                Departure::Batch(reason) => reason,
                Departure::Stay(until) if lingers => {
                    done.wake(until);
                    return Some(Next::Lingers(until));
                }
                Departure::Stay(_) | Departure::Realtime => Reason::Deadline,
            };
            match self.let_go(freight, &urgent, step, &is_urgent, reason, now) {
                Ok(effect) => done.effects.push(effect),
                Err(next) => return Some(held_up(next, step, waiting.earliest_deadline, now, done)),
            }
        }
    }

    /// Lets go all else, in the cheapest way.
    fn depart_rest(
        &mut self,
        freight: &Freight,
        lanes: &[LaneId],
        deal: &Deal,
        now: Timestamp,
        done: &mut Effects,
    ) -> Next {
        let patient = self.patient(lanes, deal, now);
        // Each round lets one batch go or stops; a batch holds at least one request, so this ends.
        while self.waiting(&patient, deal.overhead()).is_some() {
            let Some(step) = deal.steps.first() else { return Next::NotSold };
            let lanes = self.affordable(&patient, step, now, done);
            let Some(waiting) = self.waiting(&lanes, deal.overhead()) else { break };
            let flush = lanes.iter().any(|lane| self.berths.get(lane).is_some_and(|berth| berth.flush));
            let reason = match depart::decide(&waiting, &step.terms, now) {
                _ if flush => Reason::Flush,
                Departure::Batch(reason) => reason,
                Departure::Stay(until) => {
                    done.wake(until);
                    return Next::Lingers(until);
                }
                // Nothing on the ladder is faster: late is better than never.
                Departure::Realtime => Reason::Deadline,
            };
            match self.let_go(freight, &lanes, step, &|_| true, reason, now) {
                Ok(effect) => done.effects.push(effect),
                Err(next) => return held_up(next, step, waiting.earliest_deadline, now, done),
            }
        }
        for lane in patient {
            if let Some(berth) = self.berths.get_mut(&lane).filter(|berth| berth.lane.is_empty()) {
                berth.flush = false;
            }
        }
        Next::Empty
    }

    /// Lanes in which nothing waits that the cheapest way would answer too late while another step would not: what stands at
    /// a lane's head leaves first.
    fn patient(&self, lanes: &[LaneId], deal: &Deal, now: Timestamp) -> Vec<LaneId> {
        let Some(first) = deal.steps.first().filter(|_| deal.steps.len() > 1) else { return lanes.to_vec() };
        let kept = first.terms.soonest_kept(now);
        let is_patient = |lane: &Lane| lane.last_before(kept).is_none();
        lanes
            .iter()
            .copied()
            .filter(|lane| self.berths.get(lane).is_some_and(|berth| is_patient(&berth.lane)))
            .collect()
    }

    /// One batch of some lanes, if the backend takes it now.
    fn let_go(
        &mut self,
        freight: &Freight,
        lanes: &[LaneId],
        step: &Step,
        may_leave: &impl Fn(&Lane) -> bool,
        reason: Reason,
        now: Timestamp,
    ) -> Result<Effect, Next> {
        let only_newcomers = self.pass(&step.rung, now)?;
        let cargo = self.load(freight, lanes, step, may_leave, only_newcomers, now)?;
        self.enter(freight, &step.rung, &cargo, now);
        Ok(Effect::Batch { freight: freight.bought(&step.rung), cargo, reason })
    }

    /// Whether another batch may leave; true if only with requests of tenants that have nothing under way.
    fn pass(&mut self, rung: &Rung, now: Timestamp) -> Result<bool, Next> {
        match self.shut.get(&(rung.backend.clone(), rung.mode)) {
            None | Some(Shut::MayBeTried) => {}
            Some(Shut::Rests(until)) => return Err(Next::Shut(*until)),
            Some(Shut::Tried(..)) => return Err(Next::Tried),
        }
        match self.gates.get_mut(&(rung.backend.clone(), rung.offer.clone())).map(|gate| gate.ask(now)) {
            None | Some(Pass::Open) => Ok(false),
            Some(Pass::Reserved) => Ok(true),
            Some(Pass::Until(until)) => Err(Next::Held(until)),
            Some(Pass::UntilOneEnds) => Err(Next::ForAPlace),
        }
    }

    fn enter(&mut self, freight: &Freight, rung: &Rung, cargo: &[Cargo], now: Timestamp) {
        if let Some(gate) = self.gates.get_mut(&(rung.backend.clone(), rung.offer.clone())) {
            gate.enter(now);
        }
        let tokens = cargo.iter().map(|cargo| cargo.tokens).sum();
        self.ledgers.entry(rung.way(&freight.model)).or_default().enter(tokens);
        self.board(&freight.bought(rung), &self.tenants_of(cargo));
        if let Some(shut) = self.shut.get_mut(&(rung.backend.clone(), rung.mode)) {
            *shut = Shut::Tried(rung.offer.clone(), None);
            // The others may go elsewhere meanwhile.
            self.forget_outlooks();
        }
    }

    /// The ways to run now what is urgent.
    pub(super) fn ways_now(&self, ladder: &[Rung], own: &BackendId, may_go_elsewhere: bool) -> Vec<Rung> {
        offers::ways_now(ladder, own, may_go_elsewhere, |backend| {
            !matches!(self.shut.get(&(backend.clone(), Mode::Realtime)), Some(Shut::Rests(_)))
        })
    }

    /// Takes what a batch would answer too late.
    fn rescue(
        &mut self,
        Party { freight, may_go_elsewhere, .. }: &Party,
        lanes: &[LaneId],
        deal: &Deal,
        now: Timestamp,
        done: &mut Effects,
    ) {
        let kept_from = deal.soonest_kept(now);
        let ways = self.ways_now(&deal.ladder, &freight.backend, *may_go_elsewhere);
        let Some(fastest) = offers::fastest(&ways).map(|rung| rung.price_permille) else { return };
        for lane in lanes {
            let Some(berth) = self.berths.get(lane) else { continue };
            // Deadlines in a lane lie close together, so what stands before the last urgent request is nearly as urgent.
            let Some(last) = berth.lane.last_before(kept_from) else { continue };
            let cargo = self.take_urgent(*lane, last, fastest, now, done);
            if cargo.is_empty() {
                continue;
            }
            let left = time_left(&cargo, &deal.rescue, now);
            if let Some(rung) = offers::best_now(&ways, &freight.model, &self.turnarounds, left) {
                self.reprice(&cargo, fastest, rung.price_permille);
                done.effects.push(Effect::Realtime { freight: freight.bought(rung), cargo });
            }
        }
    }

    /// Takes a lane's requests up to this one, as far as its tenant's means go.
    fn take_urgent(
        &mut self,
        lane: LaneId,
        last: Seq,
        price_permille: u32,
        now: Timestamp,
        done: &mut Effects,
    ) -> Vec<Cargo> {
        let mut taken = Vec::new();
        while self
            .berths
            .get(&lane)
            .and_then(|berth| berth.lane.head())
            .is_some_and(|head| head.first <= last)
        {
            if let Err(next) = self.may_leave(lane, true, price_permille, now) {
                self.hold_up(lane, next, now, done);
                break;
            }
            let mut room = self.within_means(lane, &Room::BOUNDLESS, price_permille, now);
            let part = self.berths.get_mut(&lane).and_then(|berth| berth.lane.take(&mut room));
            let Some(part) = part else { break };
            self.spend(&part, price_permille, now);
            taken.push(part);
        }
        taken
    }

    /// Fills one batch: tenants by their shares, each one's earliest deadline first.
    fn load(
        &mut self,
        freight: &Freight,
        lanes: &[LaneId],
        step: &Step,
        may_leave: &impl Fn(&Lane) -> bool,
        only_newcomers: bool,
        now: Timestamp,
    ) -> Result<Vec<Cargo>, Next> {
        let Step { rung, room, .. } = step;
        let sailing = self.tenants_under_way(rung);
        let has_newcomers =
            lanes.iter().filter(|lane| self.waits(**lane)).any(|lane| !self.is_of(*lane, &sailing));
        if only_newcomers && !has_newcomers {
            return Err(Next::ForAPlace);
        }
        let ledger = self.ledgers.entry(rung.way(&freight.model)).or_default();
        let mut tokens = ledger.room();
        if !has_newcomers && ledger.limit() < u64::MAX && ledger.enqueued() > 0 {
            // The last quarter is for those that have nothing under way.
            tokens = tokens.saturating_sub(ledger.limit() / 4);
        }
        let must_take_one = ledger.enqueued() == 0;
        if tokens == 0 {
            return Err(Next::ForTokens);
        }
        let mut room = Room {
            requests: room.max_requests,
            bytes: room.max_bytes,
            overhead_bytes: room.overhead_bytes,
            tokens,
        };
        let mut open: Vec<LaneId> = lanes
            .iter()
            .copied()
            .filter(|lane| self.waits(*lane) && !(only_newcomers && self.is_of(*lane, &sailing)))
            .collect();
        let mut cargo = Vec::new();
        let by = (rung.price_permille, now);
        let was_bound_by_tokens = self.fill(freight, &mut open, &mut room, may_leave, by, &mut cargo);
        if cargo.is_empty() && was_bound_by_tokens && must_take_one {
            // Nothing is enqueued and not even one fits: the estimate or the limit is wrong, which only trying can tell.
            room.tokens = u64::MAX;
            room.requests = 1;
            open = lanes.iter().copied().filter(|lane| self.waits(*lane)).collect();
            self.fill(freight, &mut open, &mut room, may_leave, by, &mut cargo);
        }
        match cargo.is_empty() {
            false => Ok(cargo),
            true if was_bound_by_tokens => Err(Next::ForTokens),
            true => Err(Next::TooLarge),
        }
    }

    /// True if what was left over did not fit for its tokens.
    fn fill(
        &mut self,
        freight: &Freight,
        open: &mut Vec<LaneId>,
        room: &mut Room,
        may_leave: &impl Fn(&Lane) -> bool,
        (price_permille, now): (u32, Timestamp),
        cargo: &mut Vec<Cargo>,
    ) -> bool {
        let mut by_tokens = false;
        let tenants: BTreeSet<&TenantId> =
            open.iter().filter_map(|lane| self.berths.get(lane)).map(|berth| &berth.key.tenant).collect();
        let helping = if tenants.len() > 1 { (room.requests / HELPINGS).max(1) } else { u64::MAX };
        while let Some(lane) = self.next_lane(freight, open) {
            let helping = Room { requests: room.requests.min(helping), ..*room };
            let may_take = self.within_means(lane, &helping, price_permille, now);
            let mut left = may_take;
            let taken = self.berths.get_mut(&lane).and_then(|berth| berth.lane.take(&mut left));
            room.less(may_take, left);
            if let Some(taken) = &taken {
                self.spend(taken, price_permille, now);
            }
            let Some(berth) = self.berths.get_mut(&lane) else { break };
            if let Some(taken) = taken {
                let shares = self.shares.entry(freight.backend.clone()).or_default();
                shares.give(&berth.key.tenant, taken.tokens, berth.terms.weight);
                cargo.push(taken);
            } else {
                by_tokens |= berth.lane.fits(&Room { tokens: u64::MAX, ..*room });
            }
            if taken.is_none() || berth.lane.is_empty() || !may_leave(&berth.lane) {
                open.retain(|other| *other != lane);
            }
        }
        by_tokens
    }

    /// The lane from which the next helping comes.
    fn next_lane(&mut self, freight: &Freight, open: &[LaneId]) -> Option<LaneId> {
        let tenant_of = |lane: &LaneId| self.berths.get(lane).map(|berth| &berth.key.tenant);
        let shares = self.shares.entry(freight.backend.clone()).or_default();
        let tenant = shares.next(open.iter().filter_map(tenant_of))?.clone();
        let of_tenant = open.iter().filter(|lane| tenant_of(lane) == Some(&tenant));
        of_tenant
            .min_by_key(|lane| (self.berths.get(lane).and_then(|b| b.lane.earliest_deadline()), **lane))
            .copied()
    }

    fn tenants_under_way(&self, rung: &Rung) -> BTreeSet<TenantId> {
        let is_here =
            |backend: &BackendId, offer: &OfferName| rung.backend == *backend && rung.offer == *offer;
        self.afloat
            .iter()
            .filter(|((backend, offer, _), batches)| is_here(backend, offer) && **batches > 0)
            .map(|((.., tenant), _)| tenant.clone())
            .collect()
    }

    fn is_of(&self, lane: LaneId, tenants: &BTreeSet<TenantId>) -> bool {
        self.berths.get(&lane).is_some_and(|berth| tenants.contains(&berth.key.tenant))
    }
}
