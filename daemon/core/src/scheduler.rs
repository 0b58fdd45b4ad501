//! The lane scheduler: `step(event, now) -> effects`. The only file that matches on every event.
//!
//! It composes the deciders: lanes count what waits ([`crate::lane`]), the ladder and what was seen of it say what is bought
//! ([`crate::offers`], [`crate::turnaround`]) and so when a lane leaves ([`crate::depart`]), gates and ledgers say whether
//! the backend takes another batch ([`crate::gate`], [`crate::ledger`]), shares whose turn it is ([`crate::fair`]), rates and
//! money how much of a tenant's ([`crate::tempo`]), and what is under way is watched until its deadlines are kept
//! ([`crate::escalate`]).

mod departures;
mod means;
mod voyages;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::batch::Tally;
use crate::depart::Reason;
use crate::escalate::RescueTerms;
use crate::extent::{Cargo, Extent};
use crate::fair::Shares;
use crate::gate::Gate;
use crate::lane::{Lane, Sums};
use crate::ledger::Ledger;
use crate::offers::{Outlook, Rung, Turnarounds};
use crate::turnaround::{Sketch, Way};
use crate::words::{
    BackendId, BatchId, Endpoint, KeptHeaders, LaneId, LaneKey, Millis, Mode, ModelId, OfferName, TenantId,
    Timestamp,
};
pub use means::{Funds, Holder, Means, Part, Reckoning, Settled};
use means::{Hold, Purse};
use voyages::Sailing;

/// Refusals of real-time calls are remembered for so long.
const ROUGH_FOR: Millis = Millis::from_hours(24);

/// What the backends and the configuration say about a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneTerms {
    /// All ways to buy what it holds; those of other backends too.
    pub ladder: Arc<[Rung]>,
    /// How long the first request waits for others.
    pub linger: Millis,
    /// What deadlines are kept with when a batch fails to.
    pub rescue: RescueTerms,
    /// The tenant's share, in hundredths of the usual one.
    pub weight: u32,
    /// While its own backend takes no work, its requests may go to another one.
    pub may_go_elsewhere: bool,
    /// Tokens that may be enqueued in the backend's batches of this model, where that is known beforehand.
    pub enqueued_tokens: Option<u64>,
}

impl LaneTerms {
    /// Nobody sells anything of what it holds: it waits until somebody does.
    #[must_use]
    pub fn of_nothing(weight: u32) -> Self {
        let rescue =
            RescueTerms { least: Millis(0), at_once: 1, each: Millis(0), a_minute: None, cancel: Millis(0) };
        let (ladder, linger) = (Arc::from([]), Millis(0));
        Self { ladder, linger, rescue, weight, may_go_elsewhere: false, enqueued_tokens: None }
    }
}

/// What has happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A lane exists from now on; its terms may be told again when they change.
    Opened {
        /// Its number.
        lane: LaneId,
        /// What its requests have in common.
        key: LaneKey,
        /// What is said about it.
        terms: LaneTerms,
    },
    /// Requests stand at the end of a lane, durably.
    Appended(Extent),
    /// A batch is under way: it was sealed, or goes on after a restart.
    UnderWay {
        /// Its number.
        batch: BatchId,
        /// What it carries, and how it was bought.
        freight: Freight,
        /// Its parts, without those that are run beside it already.
        cargo: Vec<Cargo>,
        /// When it left.
        since: Timestamp,
        /// It left before the daemon started.
        is_recovered: bool,
    },
    /// Requests are run one by one from now on: what left for that, or an earlier run's that goes on.
    Sent {
        /// The number of their record.
        batch: BatchId,
        /// How they are bought.
        freight: Freight,
        /// The parts.
        cargo: Vec<Cargo>,
        /// They are run beside a batch that has them too.
        is_beside: bool,
        /// They left before the daemon started.
        is_recovered: bool,
    },
    /// Outcomes of a batch were recorded, or of requests that were run one by one.
    Settled {
        /// Which.
        batch: BatchId,
        /// Whose.
        lane: LaneId,
        /// What they took.
        settled: Settled,
    },
    /// All requests of such a record have been run.
    Over(BatchId),
    /// What is reckoned of a lane's requests.
    Reckons {
        /// Which.
        lane: LaneId,
        /// What.
        reckoning: Reckoning,
        /// The models with means of their own that its model is one of.
        models: Option<Arc<str>>,
    },
    /// What tenants, and some of their models and keys, have for deferred work.
    Means(Vec<(Holder, Means)>),
    /// These were to be given up, and are not due yet.
    Returned(Extent),
    /// The provider tells how far a batch is.
    Progressed {
        /// Which.
        batch: BatchId,
        /// How far.
        tally: Tally,
    },
    /// A batch is over.
    Ended {
        /// Which.
        batch: BatchId,
        /// The provider asked to be left alone until then.
        hold_until: Option<Timestamp>,
        /// What that says about batches to come.
        fate: Fate,
    },
    /// A request was answered in real time.
    Answered {
        /// How it was bought.
        way: Way,
        /// How long that took.
        took: Millis,
    },
    /// An offer had no room for a request.
    NoRoom(Way),
    /// A backend takes no work of this mode before the time, or does again.
    Shut {
        /// Which.
        backend: BackendId,
        /// What.
        mode: Mode,
        /// Until when; none if it does again.
        until: Option<Timestamp>,
    },
    /// A real-time call was refused because there were too many.
    TooMany(BackendId),
    /// The provider lets the account make so many real-time calls a minute.
    Quota {
        /// Who.
        backend: BackendId,
        /// How many.
        a_minute: u64,
    },
    /// What was known of turnarounds when the daemon stopped.
    Known(Way, Sketch),
    /// Everything in the lane shall leave now.
    Flush(LaneId),
    /// Nothing but time.
    Tick,
}

/// How a batch ended, as far as it says something about others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It came back.
    Completed,
    /// It was given up: expired, cancelled.
    GivenUp,
    /// The provider had no room for so many tokens.
    NoRoom,
    /// It did not get to run for another reason.
    Refused,
}

/// What may travel in one batch: everything that goes to the same place in the same way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Freight {
    /// Where it goes.
    pub backend: BackendId,
    /// How it is bought.
    pub offer: OfferName,
    /// What it calls.
    pub endpoint: Endpoint,
    /// Which model answers.
    pub model: ModelId,
    /// What its callers sent that changes its meaning.
    pub headers: KeptHeaders,
}

impl Freight {
    /// What a lane's requests are part of.
    #[must_use]
    pub fn of(key: &LaneKey) -> Self {
        Self {
            backend: key.backend.clone(),
            offer: key.offer.clone(),
            endpoint: key.endpoint.clone(),
            model: key.model.clone(),
            headers: key.headers.clone(),
        }
    }

    /// The same, bought otherwise.
    fn bought(&self, rung: &Rung) -> Self {
        Self { backend: rung.backend.clone(), offer: rung.offer.clone(), ..self.clone() }
    }

    /// How it is bought, among the turnarounds.
    #[must_use]
    pub fn way(&self) -> Way {
        Way { backend: self.backend.clone(), offer: self.offer.clone(), model: self.model.clone() }
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Seal this as one batch and send it.
    Batch {
        /// What it carries, and how it is bought.
        freight: Freight,
        /// Its parts.
        cargo: Vec<Cargo>,
        /// Why it leaves.
        reason: Reason,
    },
    /// Seal this and run each of its requests in real time: a batch would be too late.
    Realtime {
        /// What it carries, and how it is bought.
        freight: Freight,
        /// Its parts.
        cargo: Vec<Cargo>,
    },
    /// Have the provider stop this batch and give back what ran.
    Cancel {
        /// Which.
        batch: BatchId,
        /// The deadline for whose sake.
        deadline: Timestamp,
    },
    /// Run what has no answer yet of these parts of a batch in real time, beside it.
    Hedge {
        /// Which.
        batch: BatchId,
        /// How they are bought.
        freight: Freight,
        /// The parts.
        cargo: Vec<Cargo>,
    },
    /// Give up what is due of this: it could not leave. What is not due yet is returned.
    Expire {
        /// Its parts.
        extents: Vec<Extent>,
        /// Why it could not.
        lack: Lack,
    },
    /// Keep what is known of a turnaround.
    Keep(Way, Sketch),
}

/// What requests lacked until they were due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// Their tenant's money; there is some again then.
    Money(Timestamp),
    /// Somebody who sells what they ask for.
    Seller,
}

/// What one step asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Effects {
    /// In this order.
    pub effects: Vec<Effect>,
    /// A tick is due then; none if nothing waits for time.
    pub wake_at: Option<Timestamp>,
}

impl Effects {
    fn wake(&mut self, at: Timestamp) {
        if at < Timestamp::NEVER {
            self.wake_at = Some(self.wake_at.map_or(at, |other| other.min(at)));
        }
    }
}

/// What a lane waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// For nothing: it is empty.
    Empty,
    /// For others to travel with, or for the latest safe departure.
    Lingers(Timestamp),
    /// The backend asked to be left alone, or has had its batches for this hour.
    Held(Timestamp),
    /// For a batch to end: there are as many under way as may be.
    ForAPlace,
    /// For a batch to end: there are as many tokens enqueued as the provider takes.
    ForTokens,
    /// The backend is out of order; it is tried again then.
    Shut(Timestamp),
    /// The backend was out of order, and is tried with another batch.
    Tried,
    /// Its first request fits into no batch; it is run in real time when that is due.
    TooLarge,
    /// Its offers are gone.
    NotSold,
    /// Its tenant has used what it may use in a minute; the next portion leaves then.
    Paced(Timestamp),
    /// Its tenant's budget is used up; there is money again then.
    ForMoney(Timestamp),
    /// For its pause to end: it goes again after a failure, and was told when.
    Paused(Timestamp),
}

#[derive(Debug)]
struct Berth {
    lane: Lane,
    key: LaneKey,
    terms: LaneTerms,
    flush: bool,
    reckoning: Reckoning,
    /// The models with means of their own that its model is one of.
    models: Option<Arc<str>>,
    /// What keeps it here while others of its group may leave.
    held_up: Option<Next>,
}

impl Berth {
    fn new(lane: LaneId, key: LaneKey, terms: LaneTerms) -> Self {
        let reckoning = Reckoning::default();
        Self { lane: Lane::new(lane), key, terms, flush: false, reckoning, models: None, held_up: None }
    }

    /// Whose means its requests take.
    fn holders(&self) -> impl Iterator<Item = Holder> + use<> {
        let key = Some(&self.key.api_key).filter(|key| !key.is_empty());
        let parts = self.models.clone().map(Part::Models).into_iter().chain(key.cloned().map(Part::Key));
        let tenant = self.key.tenant.clone();
        std::iter::once(Part::Whole).chain(parts).map(move |part| Holder { tenant: tenant.clone(), part })
    }

    /// The price of what is bought, in thousandths of the list price.
    fn price(&self, freight: &Freight) -> u32 {
        let is_it = |rung: &&Rung| rung.backend == freight.backend && rung.offer == freight.offer;
        self.terms.ladder.iter().find(is_it).map_or(1000, |rung| rung.price_permille)
    }
}

/// What is bought for a group of lanes, the cheapest first; nothing if it cannot wait.
#[derive(Debug, Clone)]
struct Prospect(Arc<[Outlook]>);

/// Lanes that may travel together are alike in this.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Party {
    freight: Freight,
    may_go_elsewhere: bool,
    /// A router's own: what it keeps apart stays apart.
    name: Arc<str>,
}

impl Party {
    fn of(berth: &Berth) -> Self {
        Self {
            freight: Freight::of(&berth.key),
            may_go_elsewhere: berth.terms.may_go_elsewhere,
            name: berth.key.name.clone(),
        }
    }
}

/// Lanes that may travel together.
#[derive(Debug)]
struct Group {
    lanes: Vec<LaneId>,
    /// None until it is asked for after something changed.
    prospect: Option<Prospect>,
    next: Next,
}

/// A backend that takes no work of one mode.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Shut {
    /// Nothing leaves before this time.
    Rests(Timestamp),
    /// One batch may leave, to try it.
    MayBeTried,
    /// One of this offer has left for that; which one is known as soon as it is under way.
    Tried(OfferName, Option<BatchId>),
}

/// A lane as the admin plane shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneView {
    /// Its number.
    pub lane: LaneId,
    /// What its requests have in common.
    pub key: LaneKey,
    /// What waits, pauses included.
    pub sums: Sums,
    /// When the oldest of those that wait arrived.
    pub oldest: Option<Timestamp>,
    /// The earliest deadline of those that wait.
    pub earliest_deadline: Option<Timestamp>,
    /// What it waits for.
    pub next: Next,
    /// What it would be bought as if it left now: the cheapest way as long as there is time for it, then the next one.
    pub plans: Vec<Plan>,
}

/// What is bought for a lane as long as there is time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Where.
    pub backend: BackendId,
    /// What.
    pub offer: OfferName,
    /// Its price in thousandths of the list price.
    pub price_permille: u32,
    /// How long it takes, often enough for the price.
    pub usual: Millis,
    /// With less time than this, the next way is bought instead; a rescue's time is in it.
    pub needs: Millis,
    /// With this much time, hardly any is late; a rescue's time is in it.
    pub safe: Millis,
}

pub use voyages::VoyageView;

/// All lanes, gates, and what is under way.
#[derive(Debug, Default)]
pub struct Scheduler {
    berths: BTreeMap<LaneId, Berth>,
    groups: BTreeMap<Party, Group>,
    gates: BTreeMap<(BackendId, OfferName), Gate>,
    ledgers: BTreeMap<Way, Ledger>,
    shares: BTreeMap<BackendId, Shares>,
    shut: BTreeMap<(BackendId, Mode), Shut>,
    turnarounds: Turnarounds,
    quotas: BTreeMap<BackendId, u64>,
    /// Until when rescues at a backend are given more time.
    rough_until: BTreeMap<BackendId, Timestamp>,
    sailings: BTreeMap<BatchId, Sailing>,
    /// How many batches each tenant has a part in.
    afloat: BTreeMap<(BackendId, OfferName, TenantId), u32>,
    purses: BTreeMap<Holder, Purse>,
    /// Somebody's means are limited.
    has_limits: bool,
    /// What is under way has of its tenants' means.
    holds: BTreeMap<BatchId, Vec<Hold>>,
}

impl Scheduler {
    /// A scheduler that knows no lanes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in an event and decides what is to be done.
    pub fn step(&mut self, event: Event, now: Timestamp) -> Effects {
        let mut done = Effects::default();
        match event {
            Event::Opened { lane, key, terms } => self.open(lane, key, terms),
            Event::Appended(extent) => {
                if let Some(berth) = self.berths.get_mut(&extent.lane) {
                    berth.lane.append(extent, now);
                }
            }
            Event::UnderWay { batch, freight, cargo, since, is_recovered } => {
                self.hold(batch, &freight, &cargo, false, is_recovered);
                self.set_out(batch, freight, cargo, since, is_recovered);
            }
            Event::Progressed { batch, tally } => self.progressed(batch, tally, now),
            Event::Ended { batch, hold_until, fate } => {
                self.let_go_of_holds(batch, now);
                self.ended(batch, hold_until, fate, now, &mut done);
            }
            Event::Sent { batch, freight, cargo, is_beside, is_recovered } => {
                self.hold(batch, &freight, &cargo, is_beside, is_recovered);
            }
            Event::Settled { batch, lane, settled } => self.settle(batch, lane, settled, now),
            Event::Over(batch) => self.let_go_of_holds(batch, now),
            Event::Reckons { lane, reckoning, models } => {
                if let Some(berth) = self.berths.get_mut(&lane) {
                    (berth.reckoning, berth.models) = (reckoning, models);
                }
            }
            Event::Means(all) => self.endow(all, now),
            Event::Returned(extent) => {
                if let Some(berth) = self.berths.get_mut(&extent.lane) {
                    berth.lane.put_back(extent);
                }
            }
            Event::Answered { way, took } => {
                self.turnarounds.entry(way).or_default().observe(took, now);
                self.forget_outlooks();
            }
            Event::NoRoom(way) => {
                self.turnarounds.entry(way).or_default().observe_no_room();
                self.forget_outlooks();
            }
            Event::Shut { backend, mode, until } => self.shut(backend, mode, until),
            Event::TooMany(backend) => {
                if self.rough_until.insert(backend, now.after(ROUGH_FOR)).is_none_or(|until| until < now) {
                    self.look_again();
                }
            }
            Event::Quota { backend, a_minute } => {
                self.quotas.insert(backend, a_minute);
                self.look_again();
            }
            Event::Known(way, sketch) => {
                self.turnarounds.insert(way, sketch);
                self.forget_outlooks();
            }
            Event::Flush(lane) => {
                // What comes to an empty one later lingers as usual, and what pauses leaves when its pause is over.
                if let Some(berth) = self.berths.get_mut(&lane) {
                    berth.flush |= !berth.lane.is_empty();
                    berth.lane.flush_paused();
                }
            }
            Event::Tick => {}
        }
        self.rested(now);
        self.escalate(now, &mut done);
        self.depart(now, &mut done);
        done
    }

    /// All lanes.
    pub fn lanes(&self) -> impl Iterator<Item = LaneView> {
        self.berths.iter().map(|(id, berth)| {
            let group = self.groups.get(&Party::of(berth));
            let prospect = group.and_then(|group| group.prospect.as_ref());
            let outlooks = prospect.map(|prospect| &prospect.0[..]).unwrap_or_default();
            let rungs =
                outlooks.iter().filter_map(|outlook| Some((outlook, berth.terms.ladder.get(outlook.rung)?)));
            let with_rescue = |time: Millis| Millis(time.0.saturating_add(berth.terms.rescue.least.0));
            LaneView {
                lane: *id,
                key: berth.key.clone(),
                sums: berth.lane.all_sums(),
                oldest: berth.lane.all().map(|extent| extent.oldest).min(),
                earliest_deadline: berth.lane.all().map(|extent| extent.earliest_deadline).min(),
                next: match group {
                    Some(group) if !berth.lane.is_empty() => berth.held_up.unwrap_or(group.next),
                    _ => berth.lane.paused_until().map_or(Next::Empty, Next::Paused),
                },
                plans: rungs
                    .map(|(outlook, rung)| Plan {
                        backend: rung.backend.clone(),
                        offer: rung.offer.clone(),
                        price_permille: rung.price_permille,
                        usual: outlook.needs,
                        needs: with_rescue(outlook.needs),
                        safe: with_rescue(outlook.safe),
                    })
                    .collect(),
            }
        })
    }

    /// Whether a lane is known.
    #[must_use]
    pub fn knows(&self, lane: LaneId) -> bool {
        self.berths.contains_key(&lane)
    }

    /// What is known of turnarounds.
    #[must_use]
    pub const fn turnarounds(&self) -> &Turnarounds {
        &self.turnarounds
    }

    fn open(&mut self, lane: LaneId, key: LaneKey, terms: LaneTerms) {
        for rung in terms.ladder.iter() {
            let Some(room) = rung.batch else { continue };
            let way = (rung.backend.clone(), rung.offer.clone());
            self.gates.entry(way).or_insert_with(|| Gate::new(room.gate)).limit(room.gate);
            if rung.backend == key.backend && rung.mode == Mode::Batch {
                let ledger = self.ledgers.entry(rung.way(&key.model)).or_default();
                ledger.configure(terms.enqueued_tokens);
            }
        }
        let berth = match self.berths.remove(&lane) {
            Some(berth) => {
                self.leave(&Party::of(&berth), lane);
                Berth { terms, ..berth }
            }
            None => Berth::new(lane, key, terms),
        };
        let group = self.groups.entry(Party::of(&berth)).or_insert_with(|| Group {
            lanes: Vec::new(),
            prospect: None,
            next: Next::Empty,
        });
        group.prospect = None;
        let at = group.lanes.partition_point(|other| *other < lane);
        group.lanes.insert(at, lane);
        self.berths.insert(lane, berth);
    }

    /// Forgets a lane in which nothing waits. False if something does, or it is not known.
    pub fn close(&mut self, lane: LaneId) -> bool {
        let is_idle = |berth: &&Berth| berth.lane.all().next().is_none();
        let Some(berth) = self.berths.get(&lane).filter(is_idle) else { return false };
        let party = Party::of(berth);
        self.berths.remove(&lane);
        self.leave(&party, lane);
        true
    }

    /// Takes a lane out of its group; one without lanes is not kept.
    fn leave(&mut self, party: &Party, lane: LaneId) {
        let Some(group) = self.groups.get_mut(party) else { return };
        group.lanes.retain(|other| *other != lane);
        group.prospect = None;
        if group.lanes.is_empty() {
            self.groups.remove(party);
        }
    }

    fn shut(&mut self, backend: BackendId, mode: Mode, until: Option<Timestamp>) {
        match until {
            Some(until) => self.shut.insert((backend, mode), Shut::Rests(until)),
            None => self.shut.remove(&(backend, mode)),
        };
        self.forget_outlooks();
    }

    /// Backends whose rest is over may be tried.
    fn rested(&mut self, now: Timestamp) {
        let is_over = |shut: &&mut Shut| matches!(shut, Shut::Rests(until) if *until <= now);
        let mut rested = self.shut.values_mut().filter(is_over).peekable();
        if rested.peek().is_some() {
            rested.for_each(|shut| *shut = Shut::MayBeTried);
            self.forget_outlooks();
        }
    }

    fn seen(&mut self, way: Way, done: &mut Effects, see: impl FnOnce(&mut Sketch)) {
        let sketch = self.turnarounds.entry(way.clone()).or_default();
        see(sketch);
        done.effects.push(Effect::Keep(way, sketch.clone()));
        self.forget_outlooks();
    }

    fn look_again(&mut self) {
        for sailing in self.sailings.values_mut() {
            sailing.look_again();
        }
    }

    fn forget_outlooks(&mut self) {
        for group in self.groups.values_mut() {
            group.prospect = None;
        }
    }
}

#[cfg(test)]
mod tests;
