//! What tenants have to spend on deferred work: so much a minute, and so much money. What is beyond that waits.
//!
//! Both are taken when something leaves, by what it is reckoned to take; what it really took is corrected as its outcomes are
//! recorded, and what never ran is given back when its batch is over.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::extent::{Cargo, Extent};
use crate::lane::Room;
use crate::money::Money;
use crate::tempo::{Load, Tempo, TempoLimits};
use crate::words::{BatchId, LaneId, Millis, TenantId, Timestamp};

use super::departures::Step;
use super::{Effect, Effects, Freight, Lack, Next, Scheduler};

/// What waits for money is looked at again after this time: what real-time calls had set aside comes back without a word.
const MONEY_LOOK: Millis = Millis::from_secs(10);

/// What is due leaves in portions of this part of a burst: not one by one as the rate allows it, and not too late.
const DUE_PART: u64 = 6;

/// What a request of a lane is reckoned to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reckoning {
    /// Input tokens for a thousand that were estimated.
    pub input_permille: u64,
    /// Output tokens.
    pub output: u64,
    /// The list price of an input token.
    pub input_price: Money,
    /// The list price of an output token.
    pub output_price: Money,
}

impl Default for Reckoning {
    fn default() -> Self {
        Self { input_permille: 1000, output: 0, input_price: Money::ZERO, output_price: Money::ZERO }
    }
}

impl Reckoning {
    fn load(&self, requests: u64, tokens: u64) -> Load {
        Load {
            requests,
            input: tokens.saturating_mul(self.input_permille) / 1000,
            output: requests.saturating_mul(self.output),
        }
    }

    /// What each request of an extent takes, on average.
    fn each(&self, extent: &Extent) -> Load {
        self.load(1, extent.tokens.div_ceil(u64::from(extent.count.max(1))))
    }

    fn money(&self, load: Load, price_permille: u32) -> Money {
        let of = |price: Money, tokens| price.times(tokens).unwrap_or(Money(i128::MAX));
        of(self.input_price, load.input).plus(of(self.output_price, load.output)).permille(price_permille)
    }
}

/// Money that a tenant may still spend in this period, without what deferred work under way will cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Funds {
    /// So much.
    pub left: Money,
    /// When the next period begins.
    pub until: Timestamp,
}

/// Who has means: a tenant, or a part of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder {
    /// The tenant.
    pub tenant: TenantId,
    /// Which part.
    pub part: Part,
}

/// What a tenant has means for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Everything.
    Whole,
    /// Some of its models, by what its operator calls them.
    Models(Arc<str>),
    /// One of its API keys.
    Key(Arc<str>),
}

impl Holder {
    /// A tenant with all its models.
    #[must_use]
    pub const fn tenant(tenant: TenantId) -> Self {
        Self { tenant, part: Part::Whole }
    }
}

/// What somebody has for deferred work; what is not there is not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Means {
    /// So much a minute.
    pub tempo: Option<TempoLimits>,
    /// So much money.
    pub funds: Option<Funds>,
}

/// What was recorded of some requests of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settled {
    /// How many they are.
    pub requests: u64,
    /// How many of them ran, and what they took.
    pub ran: Load,
}

/// What a batch has of a tenant's means.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hold {
    lane: LaneId,
    load: Load,
    money: Money,
    /// The load was taken from the tenant's rates by this run.
    is_paced: bool,
}

/// A tenant's means as they stand.
#[derive(Debug, Default)]
pub(super) struct Purse {
    tempo: Option<Tempo>,
    funds: Option<Funds>,
    /// What is under way will cost this.
    committed: Money,
    /// What waits in all its lanes.
    waiting: Load,
    /// A whole portion of that may leave, and of what is due: found out once for each step.
    is_patient_there: bool,
    is_due_there: bool,
}

impl Purse {
    const fn is_open(&self) -> bool {
        self.tempo.is_none() && self.funds.is_none()
    }

    /// How many requests may leave now.
    fn room(&self, each: Load, cost: Money, is_due: bool, now: Timestamp) -> Result<u64, Next> {
        if let Some(funds) = self.funds {
            let left = funds.left.0.saturating_sub(self.committed.0);
            if left <= 0 || left < cost.0 {
                return Err(Next::ForMoney(funds.until));
            }
        }
        let by_tempo = match self.tempo {
            None => u64::MAX,
            Some(tempo) => {
                let (is_there, part) =
                    if is_due { (self.is_due_there, DUE_PART) } else { (self.is_patient_there, 1) };
                let room = tempo.room(each, now);
                if !is_there || room == 0 {
                    // The portion, and one request as a whole, which may be more than that.
                    let at = tempo.when(self.waiting, part, now).max(tempo.when(each, 1, now));
                    return Err(Next::Paced(at.max(now.after(Millis(1)))));
                }
                room
            }
        };
        let by_money = match self.funds {
            Some(funds) if cost.0 > 0 => {
                let left = funds.left.0.saturating_sub(self.committed.0);
                u64::try_from(left / cost.0).unwrap_or(u64::MAX)
            }
            _ => u64::MAX,
        };
        Ok(by_tempo.min(by_money))
    }
}

impl Scheduler {
    /// What tenants have from now on.
    pub(super) fn endow(&mut self, all: Vec<(Holder, Means)>, now: Timestamp) {
        for (holder, means) in all {
            let purse = self.purses.entry(holder).or_default();
            purse.funds = means.funds;
            match (&mut purse.tempo, means.tempo.filter(|limits| !limits.is_open())) {
                (Some(tempo), Some(limits)) => tempo.limit(limits, now),
                (tempo, limits) => *tempo = limits.map(|limits| Tempo::new(limits, now)),
            }
        }
        self.has_limits = self.purses.values().any(|purse| !purse.is_open());
        for berth in self.berths.values_mut() {
            berth.held_up = None;
        }
    }

    /// What deferred work under way will cost each tenant.
    pub fn committed(&self) -> impl Iterator<Item = (&TenantId, Money)> {
        let of_tenants = self.purses.iter().filter(|(holder, _)| holder.part == Part::Whole);
        of_tenants.map(|(holder, purse)| (&holder.tenant, purse.committed))
    }

    /// Finds out when what waits of each tenant may leave: as soon as its whole portion may, so that a rate makes few batches
    /// of many requests and not many of one.
    pub(super) fn allot(&mut self, now: Timestamp) {
        if !self.has_limits {
            return;
        }
        let mut waiting: BTreeMap<Holder, Load> = BTreeMap::new();
        for berth in self.berths.values_mut() {
            berth.held_up = None;
            let sums = berth.lane.sums();
            let load = berth.reckoning.load(sums.count, sums.tokens);
            for holder in berth.holders() {
                let sum = waiting.entry(holder).or_default();
                *sum = sum.plus(load);
            }
        }
        for (holder, load) in waiting {
            let Some(purse) = self.purses.get_mut(&holder) else { continue };
            if let Some(tempo) = &purse.tempo {
                purse.is_patient_there = tempo.when(load, 1, now) <= now;
                purse.is_due_there = tempo.when(load, DUE_PART, now) <= now;
            }
            purse.waiting = load;
        }
    }

    /// Those of some lanes that may leave now by their tenants' means. Of the others it is noted what they wait for.
    pub(super) fn affordable(
        &mut self,
        lanes: &[LaneId],
        step: &Step,
        now: Timestamp,
        done: &mut Effects,
    ) -> Vec<LaneId> {
        if !self.has_limits {
            return lanes.to_vec();
        }
        let mut may_leave = Vec::with_capacity(lanes.len());
        for lane in lanes {
            let Some(deadline) = self.berths.get(lane).and_then(|berth| berth.lane.earliest_deadline())
            else {
                continue;
            };
            let due_at = step.terms.latest_safe(deadline);
            match self.may_leave(*lane, now >= due_at, step.rung.price_permille, now) {
                Ok(_) => may_leave.push(*lane),
                Err(next) => {
                    if due_at > now {
                        done.wake(due_at);
                    }
                    self.hold_up(*lane, next, now, done);
                }
            }
        }
        may_leave
    }

    /// How many requests of a lane's head may leave by its tenant's means.
    pub(super) fn may_leave(
        &self,
        lane: LaneId,
        is_due: bool,
        price_permille: u32,
        now: Timestamp,
    ) -> Result<u64, Next> {
        if !self.has_limits {
            return Ok(u64::MAX);
        }
        let Some((berth, head)) = self.berths.get(&lane).and_then(|berth| Some((berth, berth.lane.head()?)))
        else {
            return Ok(u64::MAX);
        };
        let each = berth.reckoning.each(head);
        let cost = berth.reckoning.money(each, price_permille);
        let purses = berth.holders().filter_map(|holder| self.purses.get(&holder));
        purses
            .map(|purse| purse.room(each, cost, is_due, now))
            .try_fold(u64::MAX, |room, of| Ok(room.min(of?)))
    }

    /// Notes what a lane waits for. What is due and has no money is given up.
    pub(super) fn hold_up(&mut self, lane: LaneId, next: Next, now: Timestamp, done: &mut Effects) {
        let Some(berth) = self.berths.get_mut(&lane) else { return };
        berth.held_up = Some(next);
        match next {
            Next::ForMoney(until) => {
                if berth.lane.earliest_deadline().is_some_and(|deadline| deadline <= now) {
                    let extents = berth.lane.take_overdue(now);
                    done.effects.push(Effect::Expire { extents, lack: Lack::Money(until) });
                }
                let soon = [until, now.after(MONEY_LOOK), berth.lane.earliest_deadline().unwrap_or(until)];
                for at in soon.into_iter().filter(|at| *at > now) {
                    done.wake(at);
                }
            }
            Next::Paced(at) => done.wake(at),
            _ => {}
        }
    }

    /// Bounds what is taken from a lane by its tenant's means.
    pub(super) fn within_means(
        &self,
        lane: LaneId,
        room: &Room,
        price_permille: u32,
        now: Timestamp,
    ) -> Room {
        let requests = self.may_leave(lane, true, price_permille, now).unwrap_or(0);
        Room { requests: room.requests.min(requests), ..*room }
    }

    /// This leaves: it is taken from its tenant's means.
    pub(super) fn spend(&mut self, cargo: &Cargo, price_permille: u32, now: Timestamp) {
        let Some(berth) = self.berths.get(&cargo.range.lane) else { return };
        let load = berth.reckoning.load(cargo.range.len(), cargo.tokens);
        let money = berth.reckoning.money(load, price_permille);
        for holder in berth.holders() {
            let purse = self.purses.entry(holder).or_default();
            purse.committed += money;
            purse.waiting = purse.waiting.minus(load);
            if let Some(tempo) = &mut purse.tempo {
                tempo.take(load, now);
            }
        }
    }

    /// What has left already is run once more beside its batch: that is seen through, and costs money only.
    pub(super) fn spend_on_rescue(&mut self, freight: &Freight, cargo: &[Cargo]) {
        let lane = cargo.first().map(|part| part.range.lane);
        let price = lane.and_then(|lane| self.berths.get(&lane)).map_or(1000, |berth| berth.price(freight));
        self.reprice(cargo, 0, price);
    }

    /// It was bought at another price than was thought.
    pub(super) fn reprice(&mut self, cargo: &[Cargo], before: u32, after: u32) {
        for part in cargo {
            let Some(berth) = self.berths.get(&part.range.lane) else { continue };
            let load = berth.reckoning.load(part.range.len(), part.tokens);
            let (before, after) = (berth.reckoning.money(load, before), berth.reckoning.money(load, after));
            for holder in berth.holders() {
                let purse = self.purses.entry(holder).or_default();
                let committed = purse.committed.0.saturating_add(after.0).saturating_sub(before.0);
                purse.committed = Money(committed.max(0));
            }
        }
    }

    /// A batch is under way: what it holds of its tenants' means. That was taken when it left; what an earlier run sent is
    /// taken now.
    pub(super) fn hold(
        &mut self,
        batch: BatchId,
        freight: &Freight,
        cargo: &[Cargo],
        is_beside: bool,
        is_recovered: bool,
    ) {
        let is_paced = !is_beside && !is_recovered;
        let mut holds: Vec<Hold> = Vec::new();
        for part in cargo {
            let lane = part.range.lane;
            let Some(berth) = self.berths.get(&lane) else { continue };
            let load = berth.reckoning.load(part.range.len(), part.tokens);
            let money = berth.reckoning.money(load, berth.price(freight));
            if is_recovered {
                for holder in berth.holders() {
                    self.purses.entry(holder).or_default().committed += money;
                }
            }
            match holds.iter_mut().find(|hold| hold.lane == lane) {
                Some(hold) => (hold.load, hold.money) = (hold.load.plus(load), hold.money.plus(money)),
                None => holds.push(Hold { lane, load, money, is_paced }),
            }
        }
        self.holds.insert(batch, holds);
    }

    /// Some of a batch's requests have their outcomes: what was reckoned for them is what they took.
    pub(super) fn settle(&mut self, batch: BatchId, lane: LaneId, settled: Settled, now: Timestamp) {
        let holds = self.holds.get_mut(&batch);
        let Some(hold) = holds.and_then(|holds| holds.iter_mut().find(|hold| hold.lane == lane)) else {
            return;
        };
        let requests = settled.requests.min(hold.load.requests);
        let reckoned = hold.load.share(requests);
        let divided =
            hold.money.0.saturating_mul(i128::from(requests)) / i128::from(hold.load.requests.max(1));
        let money = if requests == hold.load.requests { hold.money } else { Money(divided) };
        hold.load = hold.load.minus(reckoned);
        hold.money = Money(hold.money.0 - money.0);
        let part = Hold { load: reckoned, money, ..*hold };
        self.release(part, settled.ran, now);
    }

    /// A batch is over: what it still holds did not run.
    pub(super) fn let_go_of_holds(&mut self, batch: BatchId, now: Timestamp) {
        for hold in self.holds.remove(&batch).unwrap_or_default() {
            self.release(hold, Load::default(), now);
        }
    }

    fn release(&mut self, part: Hold, was: Load, now: Timestamp) {
        let Some(berth) = self.berths.get(&part.lane) else { return };
        for holder in berth.holders() {
            let Some(purse) = self.purses.get_mut(&holder) else { continue };
            purse.committed = Money((purse.committed.0 - part.money.0).max(0));
            if let Some(tempo) = purse.tempo.as_mut().filter(|_| part.is_paced) {
                tempo.correct(part.load, was, now);
            }
        }
    }
}
