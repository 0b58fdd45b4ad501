//! The lane scheduler: `step(event, now) -> effects`. The only file that matches on every event.
//!
//! It composes the deciders: lanes count what waits ([`crate::lane`]), terms say when they leave ([`crate::depart`]),
//! gates say whether the backend takes another batch ([`crate::gate`]).

use std::collections::BTreeMap;

use crate::depart::{self, Departure, Reason, Terms, Waiting};
use crate::extent::{Extent, Range};
use crate::gate::{Gate, GateLimits, Pass};
use crate::lane::{Lane, Room, Sums};
use crate::words::{BackendId, Endpoint, KeptHeaders, LaneId, LaneKey, ModelId, OfferName, Timestamp};

/// What has happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A lane exists from now on; its terms may be told again when they change.
    Opened {
        /// Its number.
        lane: LaneId,
        /// What its requests have in common.
        key: LaneKey,
        /// When it leaves.
        terms: Terms,
        /// What its backend takes. Lanes of one backend and offer share one gate; the last word counts.
        gate: GateLimits,
    },
    /// Requests stand at the end of a lane, durably.
    Appended(Extent),
    /// A batch that was under way before the daemon started goes on.
    Readmitted(Freight),
    /// A batch is over.
    Ended {
        /// What it carried.
        freight: Freight,
        /// The provider asked to be left alone until then.
        hold_until: Option<Timestamp>,
    },
    /// Everything in the lane shall leave now.
    Flush(LaneId),
    /// Nothing but time.
    Tick,
}

/// What may travel in one batch: everything that goes to the same place in the same way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Seal these ranges as one batch and send it.
    Batch {
        /// What it carries.
        freight: Freight,
        /// Its requests; one range a lane.
        ranges: Vec<Range>,
        /// Why it leaves.
        reason: Reason,
    },
    /// Seal this range and run each of its requests in real time: a batch would be too late.
    Realtime {
        /// What it carries.
        freight: Freight,
        /// Its requests.
        range: Range,
    },
}

/// What one step asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Effects {
    /// In this order.
    pub effects: Vec<Effect>,
    /// A tick is due then; [`Timestamp::NEVER`] if nothing waits for time.
    pub wake_at: Option<Timestamp>,
}

#[derive(Debug)]
struct Berth {
    lane: Lane,
    key: LaneKey,
    terms: Terms,
    flush: bool,
}

/// A lane as the admin plane shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneView {
    /// Its number.
    pub lane: LaneId,
    /// What its requests have in common.
    pub key: LaneKey,
    /// What waits.
    pub sums: Sums,
    /// When the oldest of those that wait arrived.
    pub oldest: Option<Timestamp>,
    /// The earliest deadline of those that wait.
    pub earliest_deadline: Option<Timestamp>,
}

/// All lanes and gates.
#[derive(Debug, Default)]
pub struct Scheduler {
    berths: BTreeMap<LaneId, Berth>,
    by_freight: BTreeMap<Freight, Vec<LaneId>>,
    gates: BTreeMap<(BackendId, OfferName), Gate>,
}

impl Scheduler {
    /// A scheduler that knows no lanes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in an event and decides what is to be done.
    pub fn step(&mut self, event: Event, now: Timestamp) -> Effects {
        match event {
            Event::Opened { lane, key, terms, gate } => self.open(lane, key, terms, gate),
            Event::Appended(extent) => {
                if let Some(berth) = self.berths.get_mut(&extent.lane) {
                    berth.lane.append(extent);
                }
            }
            Event::Readmitted(freight) => {
                if let Some(gate) = self.gate(&freight) {
                    gate.readmit();
                }
            }
            Event::Ended { freight, hold_until } => {
                if let Some(gate) = self.gate(&freight) {
                    gate.leave();
                    if let Some(until) = hold_until {
                        gate.hold(until);
                    }
                }
            }
            Event::Flush(lane) => {
                if let Some(berth) = self.berths.get_mut(&lane) {
                    berth.flush = true;
                }
            }
            Event::Tick => {}
        }
        self.depart(now)
    }

    /// The lanes in which something waits, or all of them.
    pub fn lanes(&self) -> impl Iterator<Item = LaneView> {
        self.berths.iter().map(|(id, berth)| LaneView {
            lane: *id,
            key: berth.key.clone(),
            sums: berth.lane.sums(),
            oldest: berth.lane.oldest(),
            earliest_deadline: berth.lane.earliest_deadline(),
        })
    }

    /// Whether a lane is known.
    #[must_use]
    pub fn knows(&self, lane: LaneId) -> bool {
        self.berths.contains_key(&lane)
    }

    fn open(&mut self, lane: LaneId, key: LaneKey, terms: Terms, limits: GateLimits) {
        let freight = Freight::of(&key);
        self.gates
            .entry((freight.backend.clone(), freight.offer.clone()))
            .or_insert_with(|| Gate::new(limits));
        if let Some(berth) = self.berths.get_mut(&lane) {
            berth.terms = terms;
            return;
        }
        self.by_freight.entry(freight).or_default().push(lane);
        self.berths.insert(lane, Berth { lane: Lane::new(lane), key, terms, flush: false });
    }

    fn gate(&mut self, freight: &Freight) -> Option<&mut Gate> {
        self.gates.get_mut(&(freight.backend.clone(), freight.offer.clone()))
    }

    fn depart(&mut self, now: Timestamp) -> Effects {
        let mut done = Effects::default();
        for freight in self.by_urgency() {
            self.depart_freight(&freight, now, &mut done);
        }
        done
    }

    /// Those with the earliest deadline first: where a gate is narrow, they go through it.
    fn by_urgency(&self) -> Vec<Freight> {
        let mut order: Vec<(Timestamp, &Freight)> = self
            .by_freight
            .iter()
            .filter_map(|(freight, lanes)| Some((self.waiting(lanes)?.earliest_deadline, freight)))
            .collect();
        order.sort();
        order.into_iter().map(|(_, freight)| freight.clone()).collect()
    }

    /// What waits in several lanes that may travel together.
    fn waiting(&self, lanes: &[LaneId]) -> Option<Waiting> {
        let mut sum: Option<Waiting> = None;
        for berth in lanes.iter().filter_map(|lane| self.berths.get(lane)) {
            let Some((oldest, earliest_deadline)) = berth.lane.oldest().zip(berth.lane.earliest_deadline())
            else {
                continue;
            };
            let sums = berth.lane.sums();
            let bytes = sums.bytes + sums.count * berth.terms.overhead_bytes;
            let sum = sum.get_or_insert(Waiting { count: 0, bytes: 0, oldest, earliest_deadline });
            sum.count += sums.count;
            sum.bytes += bytes;
            sum.oldest = sum.oldest.min(oldest);
            sum.earliest_deadline = sum.earliest_deadline.min(earliest_deadline);
        }
        sum
    }

    fn depart_freight(&mut self, freight: &Freight, now: Timestamp, done: &mut Effects) {
        let lanes = self.by_freight.get(freight).cloned().unwrap_or_default();
        self.rescue(freight, &lanes, now, done);
        // Each round lets one batch go or stops; a batch holds at least one request, so this ends.
        while let Some(waiting) = self.waiting(&lanes) {
            let Some(terms) = self.terms(&lanes) else { return };
            let flush = lanes.iter().any(|lane| self.berths.get(lane).is_some_and(|berth| berth.flush));
            let reason = match depart::decide(&waiting, &terms, now) {
                _ if flush => Reason::Flush,
                Departure::Batch(reason) => reason,
                Departure::Stay(until) => return wake(done, until),
                // The rescue took what was urgent; what is left of it could not be taken for its size.
                Departure::Realtime => return,
            };
            match self.gate(freight).map_or(Pass::Open, |gate| gate.ask(now)) {
                Pass::Open => {}
                // What has to wait at the gate may become urgent while it does.
                Pass::Until(until) => {
                    wake(done, until);
                    return wake(done, urgent_at(&waiting, &terms));
                }
                Pass::UntilOneEnds => return wake(done, urgent_at(&waiting, &terms)),
            }
            let ranges = self.load(&lanes, &terms);
            if ranges.is_empty() {
                return;
            }
            if let Some(gate) = self.gate(freight) {
                gate.enter(now);
            }
            done.effects.push(Effect::Batch { freight: freight.clone(), ranges, reason });
        }
        for lane in lanes {
            if let Some(berth) = self.berths.get_mut(&lane) {
                berth.flush = false;
            }
        }
    }

    /// The terms of lanes that travel together: they share a backend, so only the patience may differ.
    fn terms(&self, lanes: &[LaneId]) -> Option<Terms> {
        lanes
            .iter()
            .filter_map(|lane| self.berths.get(lane))
            .map(|berth| berth.terms)
            .min_by_key(|t| t.linger)
    }

    /// Takes what a batch would answer too late.
    fn rescue(&mut self, freight: &Freight, lanes: &[LaneId], now: Timestamp, done: &mut Effects) {
        for lane in lanes {
            let Some(berth) = self.berths.get_mut(lane) else { continue };
            let kept_from = berth.terms.soonest_kept(now);
            let urgent = berth.lane.earliest_deadline().is_some_and(|deadline| deadline < kept_from);
            if !urgent {
                continue;
            }
            // Deadlines in a lane lie close together, so what stands before the last urgent request is nearly as urgent.
            let mut room = Room { requests: u64::MAX, bytes: u64::MAX, overhead_bytes: 0 };
            let last = berth.lane.last_before(kept_from);
            let range = berth.lane.take(&mut room, |extent| last.is_some_and(|last| extent.first <= last));
            if let Some(range) = range {
                done.effects.push(Effect::Realtime { freight: freight.clone(), range });
            }
        }
    }

    /// Fills one batch, lanes with the earliest deadline first.
    fn load(&mut self, lanes: &[LaneId], terms: &Terms) -> Vec<Range> {
        let mut room = Room {
            requests: terms.max_requests,
            bytes: terms.max_bytes,
            overhead_bytes: terms.overhead_bytes,
        };
        let mut order: Vec<(Timestamp, LaneId)> = lanes
            .iter()
            .filter_map(|id| Some((self.berths.get(id)?.lane.earliest_deadline()?, *id)))
            .collect();
        order.sort();
        order
            .into_iter()
            .filter_map(|(_, id)| self.berths.get_mut(&id)?.lane.take(&mut room, |_| true))
            .collect()
    }
}

fn wake(done: &mut Effects, at: Timestamp) {
    done.wake_at = Some(done.wake_at.map_or(at, |other| other.min(at)));
}

/// When a rescue becomes the only way.
const fn urgent_at(waiting: &Waiting, terms: &Terms) -> Timestamp {
    waiting.earliest_deadline.before(terms.usual).after(crate::words::Millis(1))
}

#[cfg(test)]
mod tests;
