//! One run: requests arrive for some days, the daemon's own scheduler decides, the simulated provider answers.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use offpeak_core::batch::Tally;
use offpeak_core::escalate::RescueTerms;
use offpeak_core::extent::{Cargo, Extent};
use offpeak_core::gate::GateLimits;
use offpeak_core::offers::{BatchRoom, Rung};
use offpeak_core::pace::{Pace, Turn};
use offpeak_core::retry::{Class, Judged, RetryPolicy, Verdict};
use offpeak_core::scheduler::{Effect, Effects, Event, Fate, Freight, LaneTerms, Scheduler};
use offpeak_core::turnaround::Way;
use offpeak_core::words::{BatchId, KeptHeaders, LaneId, LaneKey, Millis, Mode, Seq, SlaClass, Timestamp};

use crate::policy::{FIXED_LEAD, Policy};
use crate::provider::{Answer, Batch, Quota};
use crate::scenario::{Scenario, Weather};

const START: Timestamp = Timestamp(1_790_000_000_000);

/// Days on which requests arrive.
pub(crate) const DAYS: u64 = 12;

/// Days after which a run is broken off; what has no answer then never had one in time.
const DAYS_IN_ALL: u64 = 17;

const POLL: Millis = Millis::from_mins(5);

/// SLAs in hours, and how many of a hundred requests have them.
const SLAS: [(u64, u32); 3] = [(24, 70), (12, 20), (6, 10)];

/// What one run came to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sums {
    /// Requests.
    pub requests: u64,
    /// Those answered in time.
    pub met: u64,
    /// What all of it cost, in thousandths of a request at the list price.
    pub cost: u64,
    /// Of that, what was paid for answers that came a second time.
    pub waste: u64,
}

impl Sums {
    /// Takes in another run.
    pub(crate) fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.met += other.met;
        self.cost += other.cost;
        self.waste += other.waste;
    }
}

struct Request {
    deadline: Timestamp,
    done: Option<Timestamp>,
    is_beside: bool,
}

struct UnderWay {
    batch: Batch,
    items: Vec<(LaneId, usize)>,
    cancelled: Option<u64>,
}

/// A request that is run in real time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Call {
    deadline: Timestamp,
    request: usize,
    is_flex: bool,
    tries: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Arrive { requests: u32, hours: u64 },
    Tick,
    Poll(BatchId),
    End(BatchId),
    Ready(Call),
    Answered(Call, Millis),
    Lead(usize),
    Pump,
}

struct World {
    scenario: Scenario,
    policy: Policy,
    rng: StdRng,
    weather: Weather,
    quota: Quota,
    pace: Pace,
    retry: RetryPolicy,
    scheduler: Scheduler,
    lanes: BTreeMap<u64, LaneId>,
    items: Vec<Vec<usize>>,
    requests: Vec<Request>,
    under_way: BTreeMap<BatchId, UnderWay>,
    next_batch: u64,
    calls: BinaryHeap<Reverse<Call>>,
    due: BinaryHeap<Reverse<(Timestamp, u64, Due)>>,
    dues: u64,
    tick_at: Timestamp,
    sums: Sums,
}

/// Replays one run.
pub(crate) fn run(scenario: Scenario, policy: Policy, seed: u64) -> Sums {
    let mut rng = StdRng::seed_from_u64(seed);
    let weather = scenario.weather(START, DAYS_IN_ALL, &mut rng);
    let mut world = World {
        quota: Quota::new(weather.quota_a_minute, START),
        scenario,
        policy,
        weather,
        pace: Pace::new(16),
        retry: RetryPolicy { max_attempts: 50, ..RetryPolicy::default() },
        scheduler: Scheduler::new(),
        lanes: BTreeMap::new(),
        items: Vec::new(),
        requests: Vec::new(),
        under_way: BTreeMap::new(),
        next_batch: 1,
        calls: BinaryHeap::new(),
        due: BinaryHeap::new(),
        dues: 0,
        tick_at: Timestamp::NEVER,
        sums: Sums::default(),
        rng,
    };
    world.open_lanes();
    world.plan_arrivals();
    world.play();
    world.settle()
}

impl World {
    fn open_lanes(&mut self) {
        for (number, (hours, _)) in SLAS.into_iter().enumerate() {
            let lane = LaneId(u32::try_from(number).unwrap_or(u32::MAX));
            let key = LaneKey {
                backend: "provider".into(),
                endpoint: "/v1/chat/completions".into(),
                model: "model".into(),
                tenant: "tenant".into(),
                offer: "batch".into(),
                sla_class: SlaClass::of(Millis::from_hours(hours)),
                name: "".into(),
                api_key: "".into(),
                headers: KeptHeaders::default(),
            };
            self.lanes.insert(hours, lane);
            self.items.push(Vec::new());
            let terms = self.terms();
            self.step(Event::Opened { lane, key, terms }, START);
        }
        // Providers say so in the headers of any answer.
        let a_minute = u64::from(self.weather.quota_a_minute);
        self.step(Event::Quota { backend: "provider".into(), a_minute }, START);
    }

    fn terms(&self) -> LaneTerms {
        let gate = GateLimits { running: 100, an_hour: 2_000 };
        let room = BatchRoom { max_requests: 50_000, max_bytes: 200_000_000, overhead_bytes: 150, gate };
        let rung = |offer: &str, mode, price_permille, usual, batch| Rung {
            backend: "provider".into(),
            offer: offer.into(),
            mode,
            price_permille,
            usual,
            batch,
        };
        let mut ladder = vec![rung("batch", Mode::Batch, 500, Millis::from_hours(1), Some(room))];
        if self.policy == Policy::Offpeak {
            ladder.push(rung("standard", Mode::Realtime, 1000, Millis::from_secs(5), None));
            if self.scenario.has_flex() {
                ladder.push(rung("flex", Mode::Realtime, 500, Millis::from_secs(60), None));
            }
        }
        LaneTerms {
            ladder: Arc::from(ladder),
            linger: Millis::from_secs(10),
            rescue: RescueTerms {
                least: Millis::from_mins(10),
                at_once: 16,
                each: Millis::from_secs(5),
                a_minute: None,
                cancel: Millis::from_mins(10),
            },
            weight: 100,
            may_go_elsewhere: true,
            enqueued_tokens: None,
        }
    }

    /// Bursts of requests, about 2,000 a day.
    fn plan_arrivals(&mut self) {
        let mut at = START;
        let end = START.after(Millis::from_hours(24 * DAYS));
        while at < end {
            let requests = self.rng.random_range(1..=120);
            let mut lot = self.rng.random_range(0..100);
            let mut hours = 24;
            for (sla, share) in SLAS {
                if lot < share {
                    hours = sla;
                    break;
                }
                lot -= share;
            }
            self.later(at, Due::Arrive { requests, hours });
            at = at.after(Millis::from_secs(self.rng.random_range(60..=5_000)));
        }
    }

    fn later(&mut self, at: Timestamp, what: Due) {
        self.dues += 1;
        self.due.push(Reverse((at, self.dues, what)));
    }

    fn play(&mut self) {
        let end = START.after(Millis::from_hours(24 * DAYS_IN_ALL));
        while let Some(Reverse((now, _, due))) = self.due.pop() {
            if now > end {
                return;
            }
            match due {
                Due::Arrive { requests, hours } => self.arrive(requests, hours, now),
                Due::Tick => {
                    if now >= self.tick_at {
                        self.tick_at = Timestamp::NEVER;
                        self.step(Event::Tick, now);
                    }
                }
                Due::Poll(batch) => self.poll(batch, now),
                Due::End(batch) => self.end(batch, now),
                Due::Ready(call) => {
                    self.calls.push(Reverse(call));
                    self.pump(now);
                }
                Due::Answered(call, took) => self.answered(call, took, now),
                Due::Lead(request) => self.realtime([request], false, now),
                Due::Pump => self.pump(now),
            }
        }
    }

    fn arrive(&mut self, requests: u32, hours: u64, now: Timestamp) {
        let deadline = now.after(Millis::from_hours(hours));
        let first = self.requests.len();
        for _ in 0..requests {
            self.requests.push(Request { deadline, done: None, is_beside: false });
        }
        let new: Vec<usize> = (first..self.requests.len()).collect();
        match self.policy {
            Policy::Realtime => self.realtime(new, false, now),
            Policy::Offpeak | Policy::NeverEscalate => self.append(hours, &new, now, now),
            Policy::FixedLead => {
                for request in &new {
                    self.later(deadline.before(FIXED_LEAD), Due::Lead(*request));
                }
                self.append(hours, &new, now, now);
            }
        }
    }

    /// At the end of their lane; all have one deadline.
    fn append(&mut self, hours: u64, requests: &[usize], oldest: Timestamp, now: Timestamp) {
        let (Some(lane), Some(first)) = (self.lanes.get(&hours).copied(), requests.first()) else { return };
        let Some(deadline) = self.requests.get(*first).map(|request| request.deadline) else { return };
        let Some(items) = self.items.get_mut(lane.0 as usize) else { return };
        let extent = Extent {
            lane,
            first: Seq(items.len() as u64),
            count: u32::try_from(requests.len()).unwrap_or(u32::MAX),
            bytes: requests.len() as u64 * 4_000,
            tokens: requests.len() as u64 * 1_000,
            oldest,
            earliest_deadline: deadline,
            not_before: Timestamp(0),
        };
        items.extend_from_slice(requests);
        self.step(Event::Appended(extent), now);
    }

    fn step(&mut self, event: Event, now: Timestamp) {
        let effects = self.scheduler.step(event, now);
        self.act(effects, now);
    }

    fn act(&mut self, effects: Effects, now: Timestamp) {
        for effect in effects.effects {
            match effect {
                Effect::Batch { freight, cargo, .. } => self.send(freight, cargo, now),
                Effect::Realtime { freight, cargo } => {
                    let requests: Vec<usize> =
                        self.items_of(&cargo).into_iter().map(|(_, item)| item).collect();
                    self.realtime(requests, freight.offer.as_str() == "flex", now);
                }
                Effect::Hedge { freight, cargo, .. } => {
                    let requests: Vec<usize> =
                        self.items_of(&cargo).into_iter().map(|(_, item)| item).collect();
                    for request in &requests {
                        if let Some(request) = self.requests.get_mut(*request) {
                            request.is_beside = true;
                        }
                    }
                    self.realtime(requests, freight.offer.as_str() == "flex", now);
                }
                Effect::Cancel { batch, .. } if self.policy == Policy::Offpeak => self.cancel(batch, now),
                Effect::Cancel { .. } | Effect::Expire { .. } | Effect::Keep(..) => {}
            }
        }
        if let Some(at) = effects.wake_at.filter(|at| *at < self.tick_at) {
            self.tick_at = at;
            self.later(at, Due::Tick);
        }
    }

    fn items_of(&self, cargo: &[Cargo]) -> Vec<(LaneId, usize)> {
        let mut all = Vec::new();
        for part in cargo {
            let Some(items) = self.items.get(part.range.lane.0 as usize) else { continue };
            for seq in part.range.from.0..part.range.to.0 {
                let item = usize::try_from(seq).ok().and_then(|seq| items.get(seq));
                all.extend(item.map(|item| (part.range.lane, *item)));
            }
        }
        all
    }

    fn send(&mut self, freight: Freight, cargo: Vec<Cargo>, now: Timestamp) {
        let id = BatchId(self.next_batch);
        self.next_batch += 1;
        let items = self.items_of(&cargo);
        let batch = Batch::new(self.scenario, &self.weather, now, &mut self.rng);
        self.later(batch.ends().0, Due::End(id));
        self.later(now.after(POLL), Due::Poll(id));
        self.under_way.insert(id, UnderWay { batch, items, cancelled: None });
        self.step(Event::UnderWay { batch: id, freight, cargo, since: now, is_recovered: false }, now);
    }

    fn poll(&mut self, id: BatchId, now: Timestamp) {
        let Some(under_way) = self.under_way.get(&id) else { return };
        let ran = under_way.batch.ran(under_way.items.len() as u64, now, &self.weather);
        let completed = u32::try_from(ran).unwrap_or(u32::MAX);
        self.later(now.after(POLL), Due::Poll(id));
        self.step(Event::Progressed { batch: id, tally: Tally { completed, failed: 0 } }, now);
    }

    fn cancel(&mut self, id: BatchId, now: Timestamp) {
        let Some(under_way) = self.under_way.get_mut(&id) else { return };
        under_way.cancelled = Some(under_way.batch.ran(under_way.items.len() as u64, now, &self.weather));
        let takes = Millis::from_secs(self.rng.random_range(60..=600));
        self.later(now.after(takes), Due::End(id));
    }

    fn end(&mut self, id: BatchId, now: Timestamp) {
        let Some(UnderWay { batch, items, cancelled }) = self.under_way.remove(&id) else { return };
        let (_, is_expired) = batch.ends();
        let ran = cancelled.unwrap_or_else(|| batch.ran(items.len() as u64, now, &self.weather));
        let (back, rest) = items.split_at(items.len().min(usize::try_from(ran).unwrap_or(usize::MAX)));
        for (_, request) in back {
            self.finish(*request, 500, now);
        }
        let mut again: BTreeMap<(LaneId, Timestamp), Vec<usize>> = BTreeMap::new();
        for (lane, request) in rest {
            let Some(known) = self.requests.get(*request) else { continue };
            if known.done.is_none() && !known.is_beside {
                again.entry((*lane, known.deadline)).or_default().push(*request);
            }
        }
        let fate = if cancelled.is_some() || is_expired { Fate::GivenUp } else { Fate::Completed };
        let not_before = now.after(self.retry.backoff(1, 500));
        for ((lane, _), requests) in again {
            let hours = self.lanes.iter().find(|(_, of)| **of == lane).map_or(24, |(hours, _)| *hours);
            for part in requests.chunks(512) {
                self.append(hours, part, not_before, now);
            }
        }
        self.step(Event::Ended { batch: id, hold_until: None, fate }, now);
    }

    /// An answer is there and paid for.
    fn finish(&mut self, request: usize, price: u64, now: Timestamp) {
        self.sums.cost += price;
        match self.requests.get_mut(request) {
            Some(request) if request.done.is_none() => request.done = Some(now),
            _ => self.sums.waste += price,
        }
    }

    fn realtime(&mut self, requests: impl IntoIterator<Item = usize>, is_flex: bool, now: Timestamp) {
        for request in requests {
            let Some(known) = self.requests.get(request) else { continue };
            if known.done.is_none() {
                self.calls.push(Reverse(Call { deadline: known.deadline, request, is_flex, tries: 0 }));
            }
        }
        self.pump(now);
    }

    /// Makes calls as long as the pace allows.
    fn pump(&mut self, now: Timestamp) {
        while let Some(Reverse(mut call)) = self.calls.pop() {
            if self.requests.get(call.request).is_none_or(|request| request.done.is_some()) {
                continue;
            }
            match self.pace.ask(now) {
                Turn::Now => {}
                Turn::At(at) => {
                    self.calls.push(Reverse(call));
                    return self.later(at, Due::Pump);
                }
                Turn::AfterAnother => {
                    self.calls.push(Reverse(call));
                    return;
                }
            }
            let mut answer = if call.is_flex {
                Quota::flex(&mut self.rng)
            } else {
                self.quota.call(&self.weather, now, &mut self.rng)
            };
            if answer == Answer::NoRoom {
                call.is_flex = false;
                self.step(Event::NoRoom(way("flex")), now);
                answer = self.quota.call(&self.weather, now, &mut self.rng);
            }
            match answer {
                Answer::Fine(took) => self.later(now.after(took), Due::Answered(call, took)),
                Answer::TooMany(pause) => self.refused(call, pause, now),
                Answer::NoRoom => {}
            }
        }
    }

    fn refused(&mut self, mut call: Call, pause: Millis, now: Timestamp) {
        self.pace.done(true, Some(pause), now);
        self.step(Event::TooMany("provider".into()), now);
        call.tries += 1;
        let judged = Judged {
            class: Class::Temporary,
            attempts: call.tries,
            not_before: Some(pause),
            jitter_permille: self.rng.random_range(0..=1000),
            deadline: call.deadline,
        };
        // A request that is given up is late, and is so counted.
        if let Verdict::Again(at) = self.retry.judge(&judged, now) {
            self.later(at, Due::Ready(call));
        }
    }

    fn answered(&mut self, call: Call, took: Millis, now: Timestamp) {
        self.pace.done(false, None, now);
        self.finish(call.request, if call.is_flex { 500 } else { 1000 }, now);
        let way = way(if call.is_flex { "flex" } else { "standard" });
        self.step(Event::Answered { way, took }, now);
        self.pump(now);
    }

    fn settle(mut self) -> Sums {
        self.sums.requests = self.requests.len() as u64;
        let met = |request: &&Request| request.done.is_some_and(|done| done <= request.deadline);
        self.sums.met = self.requests.iter().filter(met).count() as u64;
        self.sums
    }
}

fn way(offer: &str) -> Way {
    Way { backend: "provider".into(), offer: offer.into(), model: "model".into() }
}
