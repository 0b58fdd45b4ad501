mod means;
mod parties;
mod pauses;
mod unsold;

use proptest::prelude::*;

use super::*;
use crate::extent::Range;
use crate::gate::GateLimits;
use crate::offers::BatchRoom;
use crate::words::{Seq, SlaClass};

const START: Timestamp = Timestamp(1_700_000_000_000);

const LINGER: Millis = Millis::from_secs(10);
const MAX_REQUESTS: u64 = 100;

const GATE: GateLimits = GateLimits { running: 10, an_hour: 100 };

fn rung(backend: &str, offer: &str, mode: Mode, gate: GateLimits) -> Rung {
    let room = BatchRoom { max_requests: MAX_REQUESTS, max_bytes: 1_000_000, overhead_bytes: 100, gate };
    let (price_permille, usual, batch) = match mode {
        Mode::Batch => (500, Millis::from_hours(1), Some(room)),
        _ => (1000, Millis::from_secs(5), None),
    };
    Rung { backend: backend.into(), offer: offer.into(), mode, price_permille, usual, batch }
}

fn terms(gate: GateLimits) -> LaneTerms {
    LaneTerms {
        ladder: Arc::new([
            rung("openai", "standard", Mode::Realtime, gate),
            rung("openai", "batch", Mode::Batch, gate),
            rung("other", "batch", Mode::Batch, gate),
        ]),
        linger: LINGER,
        rescue: RescueTerms {
            least: Millis::from_mins(10),
            at_once: 10,
            each: Millis::from_secs(5),
            a_minute: None,
            cancel: Millis::from_mins(10),
        },
        weight: 100,
        may_go_elsewhere: true,
        enqueued_tokens: None,
    }
}

fn key(model: &str, tenant: &str) -> LaneKey {
    LaneKey {
        backend: "openai".into(),
        endpoint: "/v1/chat/completions".into(),
        model: model.into(),
        tenant: TenantId::from(tenant),
        offer: "batch".into(),
        sla_class: SlaClass::of(Millis::from_hours(24)),
        name: "".into(),
        api_key: "".into(),
        headers: KeptHeaders::default(),
    }
}

fn opened(lane: u32, model: &str, tenant: &str, gate: GateLimits) -> Event {
    Event::Opened { lane: LaneId(lane), key: key(model, tenant), terms: terms(gate) }
}

fn appended(lane: u32, first: u64, count: u32, arrived: Timestamp, sla: Millis) -> Event {
    Event::Appended(Extent {
        lane: LaneId(lane),
        first: Seq(first),
        count,
        bytes: u64::from(count) * 1000,
        tokens: u64::from(count) * 250,
        oldest: arrived,
        earliest_deadline: arrived.after(sla),
        not_before: Timestamp(0),
    })
}

const DAY: Millis = Millis::from_hours(24);

fn batch_sizes(effects: &Effects) -> Vec<u64> {
    effects
        .effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Batch { cargo, .. } | Effect::Realtime { cargo, .. } | Effect::Hedge { cargo, .. } => {
                Some(requests(cargo))
            }
            Effect::Cancel { .. } | Effect::Expire { .. } | Effect::Keep(..) => None,
        })
        .collect()
}

fn requests(cargo: &[Cargo]) -> u64 {
    cargo.iter().map(|cargo| cargo.range.len()).sum()
}

/// A scheduler around which batches are sealed as the shell does it.
struct World {
    scheduler: Scheduler,
    next: u64,
    running: Vec<BatchId>,
}

impl World {
    fn new(lanes: impl IntoIterator<Item = Event>) -> Self {
        let mut world = Self { scheduler: Scheduler::new(), next: 1, running: Vec::new() };
        for event in lanes {
            world.scheduler.step(event, START);
        }
        world
    }

    /// One step; batches that leave are under way after it.
    fn step(&mut self, event: Event, now: Timestamp) -> Effects {
        let mut all = self.scheduler.step(event, now);
        for effect in all.effects.clone() {
            let Effect::Batch { freight, cargo, .. } = effect else { continue };
            let batch = BatchId(self.next);
            self.next += 1;
            self.running.push(batch);
            let under_way = Event::UnderWay { batch, freight, cargo, since: now, is_recovered: false };
            let more = self.scheduler.step(under_way, now);
            all.effects.extend(more.effects);
            all.wake_at = more.wake_at;
        }
        all
    }

    fn end(&mut self, fate: Fate, hold_until: Option<Timestamp>, now: Timestamp) -> Effects {
        let batch = self.running.remove(0);
        self.step(Event::Ended { batch, hold_until, fate }, now)
    }
}

#[test]
fn a_lane_leaves_when_its_linger_is_over_and_not_before() {
    let mut scheduler = Scheduler::new();
    scheduler.step(opened(1, "m", "t", GATE), START);
    let effects = scheduler.step(appended(1, 0, 3, START, DAY), START);
    assert_eq!(effects, Effects { effects: vec![], wake_at: Some(START.after(LINGER)) });
    let effects = scheduler.step(Event::Tick, START.after(LINGER));
    assert_eq!(batch_sizes(&effects), [3]);
    assert!(matches!(effects.effects[0], Effect::Batch { reason: Reason::Linger, .. }));
    assert_eq!(scheduler.step(Event::Tick, START.after(DAY)), Effects::default());
}

#[test]
fn a_flush_empties_the_lane_at_once() {
    let mut scheduler = Scheduler::new();
    scheduler.step(opened(1, "m", "t", GATE), START);
    scheduler.step(appended(1, 0, 3, START, DAY), START);
    let effects = scheduler.step(Event::Flush(LaneId(1)), START);
    assert!(matches!(effects.effects[..], [Effect::Batch { reason: Reason::Flush, .. }]));
    // It was for what waited then.
    let effects = scheduler.step(appended(1, 3, 1, START, DAY), START);
    assert!(effects.effects.is_empty());
}

#[test]
fn what_a_batch_cannot_answer_in_time_is_run_in_real_time() {
    let mut scheduler = Scheduler::new();
    scheduler.step(opened(1, "m", "t", GATE), START);
    scheduler.step(appended(1, 0, 3, START, Millis::from_mins(30)), START);
    let mut scheduler = Scheduler::new();
    scheduler.step(opened(1, "m", "t", GATE), START);
    let effects = scheduler.step(appended(1, 0, 3, START, Millis::from_mins(30)), START);
    assert!(matches!(effects.effects[..], [Effect::Realtime { .. }]));
    assert_eq!(batch_sizes(&effects), [3]);
}

#[test]
fn at_a_closed_gate_work_waits_and_is_rescued_when_it_becomes_urgent() {
    let narrow = GateLimits { running: 1, an_hour: 100 };
    let mut world = World::new([opened(1, "m", "t", narrow)]);
    world.step(appended(1, 0, 100, START, DAY), START);
    let effects = world.step(appended(1, 100, 5, START, DAY), START);
    assert!(effects.effects.is_empty(), "one is under way");
    let effects = world.step(Event::Tick, START.after(LINGER));
    assert!(effects.effects.is_empty());
    assert_eq!(world.scheduler.lanes().next().map(|lane| lane.next), Some(Next::ForAPlace));
    // The batch that is away is stopped in time for its own deadline, and what waits is run before.
    let mut now = effects.wake_at.expect("a wake-up before it is too late");
    let mut rescued = 0;
    while rescued == 0 {
        let effects = world.step(Event::Tick, now);
        rescued = effects
            .effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Realtime { cargo, freight } => {
                    assert_eq!(freight.offer.as_str(), "standard");
                    Some(requests(cargo))
                }
                _ => None,
            })
            .sum();
        if rescued == 0 {
            now = effects.wake_at.expect("a wake-up before it is too late");
        }
    }
    assert_eq!(rescued, 5);
    assert!(now < START.after(DAY).before(Millis::from_hours(1)));
}

#[test]
fn an_ended_batch_opens_the_gate_and_a_hold_closes_it() {
    let narrow = GateLimits { running: 1, an_hour: 100 };
    let mut world = World::new([opened(1, "m", "t", narrow)]);
    world.step(appended(1, 0, 200, START, DAY), START);
    let hold = START.after(Millis::from_mins(5));
    let effects = world.end(Fate::Refused, Some(hold), START);
    assert_eq!(batch_sizes(&effects), [0; 0]);
    assert_eq!(effects.wake_at, Some(hold));
    assert_eq!(batch_sizes(&world.step(Event::Tick, hold)), [100]);
}

#[test]
fn a_stalled_batch_is_cancelled_and_then_run_beside() {
    let mut world = World::new([opened(1, "m", "t", GATE)]);
    world.step(appended(1, 0, 100, START, DAY), START);
    let deadline = START.after(DAY);
    let (mut cancelled, mut hedged, mut now) = (None, None, START);
    while hedged.is_none() {
        let effects = world.step(Event::Tick, now);
        for effect in &effects.effects {
            match effect {
                Effect::Cancel { batch: BatchId(1), .. } => cancelled = Some(now),
                Effect::Hedge { batch: BatchId(1), freight, cargo } => {
                    assert_eq!((freight.offer.as_str(), requests(cargo)), ("standard", 100));
                    hedged = Some(now);
                }
                other => panic!("{other:?}"),
            }
        }
        now = effects.wake_at.unwrap_or(now);
    }
    assert_eq!(cancelled, Some(deadline.before(Millis::from_mins(20))));
    assert_eq!(hedged, Some(deadline.before(Millis::from_mins(10))));
    let voyage = world.scheduler.voyages(now).next().unwrap();
    assert_eq!((voyage.requests, voyage.deadline, voyage.is_cancelled), (100, None, true));
}

#[test]
fn after_refusals_rescues_begin_earlier() {
    let mut world = World::new([opened(1, "m", "t", GATE)]);
    world.step(appended(1, 0, 100, START, DAY), START);
    let cancel_at = |world: &World, now| world.scheduler.voyages(now).next().unwrap().cancel_at.unwrap();
    let before = cancel_at(&world, START);
    let effects = world.step(Event::TooMany("openai".into()), START);
    let rough = cancel_at(&world, START);
    assert_eq!(before.since(rough), Millis::from_mins(70));
    assert_eq!(effects.wake_at, Some(rough));
}

#[test]
fn a_thousand_items_that_came_back_at_the_last_minute_are_not_paid_twice() {
    let mut world = World::new([opened(1, "m", "t", GATE)]);
    world.step(appended(1, 0, 100, START, DAY), START);
    let tally = |completed| Event::Progressed { batch: BatchId(1), tally: Tally { completed, failed: 0 } };
    world.step(tally(10), START.after(Millis::from_hours(20)));
    let near = START.after(DAY).before(Millis::from_mins(21));
    world.step(tally(99), near);
    let effects = world.step(Event::Tick, START.after(DAY).before(Millis::from_mins(20)));
    assert_eq!(effects.effects, [], "it is about to end");
}

#[test]
fn what_batches_take_lately_decides_what_is_still_a_batch() {
    let mut world = World::new([opened(1, "m", "t", GATE), opened(2, "m", "u", GATE)]);
    let mut now = START;
    for n in 0..30 {
        world.step(appended(1, n * 100, 100, now, DAY), now);
        now = now.after(Millis::from_hours(5));
        let effects = world.end(Fate::Completed, None, now);
        assert!(matches!(effects.effects[..], [Effect::Keep(..)]));
    }
    let effects = world.step(appended(2, 0, 100, now, Millis::from_hours(4)), now);
    assert!(matches!(effects.effects[..], [Effect::Realtime { .. }]), "{effects:?}");
    let plan = world.scheduler.lanes().next().unwrap().plans.swap_remove(0);
    assert!(plan.needs > Millis::from_hours(5), "{plan:?}");
}

#[test]
fn too_many_tokens_are_backpressure() {
    let mut world = World::new([opened(1, "m", "t", GATE)]);
    world.step(appended(1, 0, 200, START, DAY), START);
    assert_eq!(world.running.len(), 2);
    // The second did not fit beside the first; its requests come back.
    world.running.swap(0, 1);
    world.end(Fate::NoRoom, None, START);
    let effects = world.step(appended(1, 200, 100, START, DAY), START);
    assert_eq!(batch_sizes(&effects), [0; 0]);
    assert_eq!(world.scheduler.lanes().next().map(|lane| lane.next), Some(Next::ForTokens));
    let later = START.after(Millis::from_hours(1));
    assert_eq!(batch_sizes(&world.end(Fate::Completed, None, later)), [100]);
}

#[test]
fn while_its_own_backend_is_shut_a_lane_goes_to_the_next_one() {
    let mut world = World::new([opened(1, "m", "t", GATE)]);
    let until = START.after(Millis::from_mins(1));
    let shut = |until| Event::Shut { backend: "openai".into(), mode: Mode::Batch, until };
    world.step(shut(Some(until)), START);
    let effects = world.step(appended(1, 0, 100, START, DAY), START);
    let [Effect::Batch { freight, .. }] = &effects.effects[..] else { panic!("{effects:?}") };
    assert_eq!(freight.backend.as_str(), "other");
    world.step(shut(None), START);
    let effects = world.step(appended(1, 100, 100, START, DAY), START);
    let [Effect::Batch { freight, .. }] = &effects.effects[..] else { panic!("{effects:?}") };
    assert_eq!(freight.backend.as_str(), "openai");
}

#[test]
fn what_is_urgent_is_run_at_another_backend_while_its_own_takes_no_calls() {
    let mut ladder = terms(GATE).ladder.to_vec();
    ladder.push(rung("other", "standard", Mode::Realtime, GATE));
    let both = LaneTerms { ladder: ladder.into(), ..terms(GATE) };
    let opened = |lane, terms| Event::Opened { lane: LaneId(lane), key: key("m", &lane.to_string()), terms };
    let stays = LaneTerms { may_go_elsewhere: false, ..both.clone() };
    let mut world = World::new([opened(1, both), opened(2, stays)]);
    let bought_at = |effects: &Effects| -> Vec<String> {
        let runs = effects.effects.iter().filter_map(|effect| match effect {
            Effect::Realtime { freight, .. } => Some(freight.backend.to_string()),
            _ => None,
        });
        runs.collect()
    };
    let soon = Millis::from_mins(5);
    assert_eq!(bought_at(&world.step(appended(1, 0, 1, START, soon), START)), ["openai"]);
    let until = START.after(Millis::from_mins(1));
    world.step(Event::Shut { backend: "openai".into(), mode: Mode::Realtime, until: Some(until) }, START);
    assert_eq!(bought_at(&world.step(appended(1, 1, 1, START, soon), START)), ["other"]);
    // What is to stay stays, though it is of the same kind.
    assert_eq!(bought_at(&world.step(appended(2, 0, 1, START, soon), START)), ["openai"]);
    // Its rest is over: it is tried.
    assert_eq!(bought_at(&world.step(appended(1, 2, 1, until, soon), until)), ["openai"]);
}

#[test]
fn lanes_that_are_to_stay_are_told_from_those_that_may_go() {
    let open = |lane, tenant: &str, may_go_elsewhere| Event::Opened {
        lane: LaneId(lane),
        key: key("m", tenant),
        terms: LaneTerms { may_go_elsewhere, ..terms(GATE) },
    };
    let mut world = World::new([open(1, "stays", false), open(2, "goes", true)]);
    let until = Some(START.after(DAY));
    world.step(Event::Shut { backend: "openai".into(), mode: Mode::Batch, until }, START);
    let later = START.after(LINGER);
    let took = |effects: &Effects| -> Vec<(String, u32)> {
        let batches = effects.effects.iter().filter_map(|effect| match effect {
            Effect::Batch { freight, cargo, .. } => {
                Some((freight.backend.to_string(), cargo[0].range.lane.0))
            }
            _ => None,
        });
        batches.collect()
    };
    world.step(appended(1, 0, 3, START, DAY), later);
    assert_eq!(took(&world.step(appended(2, 0, 3, START, DAY), later)), [("other".to_owned(), 2)]);
    // A route that is taken away lets the first one go too.
    world.scheduler.step(open(1, "stays", true), later);
    let lanes: Vec<LaneView> = world.scheduler.lanes().collect();
    assert_eq!(lanes.len(), 2);
    assert_eq!(took(&world.step(appended(2, 3, 1, START, DAY), later)).len(), 1, "they share a batch again");
}

#[test]
fn what_is_not_sold_any_more_is_bought_otherwise_or_waits_until_it_is() {
    let mut world = World::new([opened(1, "m", "t", GATE)]);
    world.step(appended(1, 0, 3, START, DAY), START);
    let told = |terms| Event::Opened { lane: LaneId(1), key: key("m", "t"), terms };
    let nothing = world.step(told(LaneTerms::of_nothing(100)), START.after(LINGER));
    let when_due = Effects { effects: Vec::new(), wake_at: Some(START.after(DAY)) };
    assert_eq!(nothing, when_due);
    let lane = world.scheduler.lanes().next().unwrap();
    assert_eq!((lane.sums.count, lane.next), (3, Next::NotSold));
    let other = Rung { offer: "night".into(), ..rung("openai", "batch", Mode::Batch, GATE) };
    let ladder = Arc::new([rung("openai", "standard", Mode::Realtime, GATE), other]);
    let sold = world.step(told(LaneTerms { ladder, ..terms(GATE) }), START.after(LINGER));
    assert_eq!(bought(&sold), [("night".to_owned(), 3)]);
    world.step(appended(1, 3, 2, START.after(LINGER), DAY), START.after(LINGER));
    let ladder = Arc::new([rung("openai", "standard", Mode::Realtime, GATE)]);
    let at_once = world.step(told(LaneTerms { ladder, ..terms(GATE) }), START.after(LINGER));
    assert_eq!(bought(&at_once), [("standard".to_owned(), 2)]);
}

#[test]
fn where_only_batches_are_sold_a_late_request_still_leaves() {
    let batch_only =
        LaneTerms { ladder: Arc::new([rung("openai", "batch", Mode::Batch, GATE)]), ..terms(GATE) };
    let opened = Event::Opened { lane: LaneId(1), key: key("m", "t"), terms: batch_only };
    let mut world = World::new([opened]);
    let late = START.after(DAY);
    let effects = world.step(appended(1, 0, 3, START, Millis::from_hours(1)), late);
    assert!(matches!(effects.effects[..], [Effect::Batch { reason: Reason::Deadline, .. }]), "{effects:?}");
}

#[test]
fn what_is_urgent_and_cannot_leave_does_not_keep_the_scheduler_awake() {
    let ladder = Arc::new([rung("openai", "batch", Mode::Batch, GateLimits { running: 1, an_hour: 100 })]);
    let batch_only = LaneTerms { ladder, ..terms(GATE) };
    let mut world = World::new([Event::Opened { lane: LaneId(1), key: key("m", "t"), terms: batch_only }]);
    let late = START.after(DAY);
    let effects = world.step(appended(1, 0, 300, START, Millis::from_hours(1)), late);
    assert_eq!(batch_sizes(&effects), [100], "the gate lets one through");
    let wake_at = world.step(Event::Tick, late.after(Millis(1))).wake_at;
    assert!(wake_at.is_none_or(|at| at > late.after(Millis(1))), "{wake_at:?}");
}

#[test]
fn a_backend_without_another_is_probed_with_one_batch() {
    let alone = LaneTerms { may_go_elsewhere: false, ..terms(GATE) };
    let opened = Event::Opened { lane: LaneId(1), key: key("m", "t"), terms: alone };
    let mut world = World::new([opened]);
    let until = START.after(Millis::from_mins(1));
    world.step(Event::Shut { backend: "openai".into(), mode: Mode::Batch, until: Some(until) }, START);
    let effects = world.step(appended(1, 0, 300, START, DAY), START);
    assert_eq!((batch_sizes(&effects), effects.wake_at), (vec![], Some(until)));
    assert_eq!(batch_sizes(&world.step(Event::Tick, until)), [100], "the probe");
    let tried = world.step(Event::Tick, until.after(Millis(5)));
    assert_eq!(batch_sizes(&tried), [0; 0]);
    assert!(
        tried.wake_at.is_none_or(|at| at > until.after(Millis::from_mins(1))),
        "nothing waits for time: {tried:?}"
    );
    assert_eq!(world.scheduler.lanes().next().map(|lane| lane.next), Some(Next::Tried));
    let again = world.step(Event::Shut { backend: "openai".into(), mode: Mode::Batch, until: None }, until);
    assert_eq!(batch_sizes(&again), [100, 100]);
}

#[test]
fn a_backend_is_tried_with_one_batch_while_all_else_goes_elsewhere() {
    let mut world = World::new([opened(1, "m", "t", GATE)]);
    let until = START.after(Millis::from_mins(1));
    let shut = |until| Event::Shut { backend: "openai".into(), mode: Mode::Batch, until };
    let backends = |effects: &Effects| -> Vec<String> {
        let batches = effects.effects.iter().filter_map(|effect| match effect {
            Effect::Batch { freight, .. } => Some(freight.backend.to_string()),
            _ => None,
        });
        batches.collect()
    };
    world.step(shut(Some(until)), START);
    assert_eq!(backends(&world.step(appended(1, 0, 200, START, DAY), START)), ["other", "other"]);
    // The rest is over: one tries, and the next ones do not wait for it.
    assert_eq!(backends(&world.step(appended(1, 200, 100, until, DAY), until)), ["openai"]);
    assert_eq!(backends(&world.step(appended(1, 300, 100, until, DAY), until)), ["other"]);
    // It ended without a word about the backend, which is tried again; then it failed, and it rests.
    world.running.swap(0, 2);
    world.end(Fate::Refused, None, until);
    assert_eq!(backends(&world.step(appended(1, 400, 100, until, DAY), until)), ["openai"]);
    world.step(shut(Some(until.after(Millis::from_mins(2)))), until);
    assert_eq!(backends(&world.step(appended(1, 500, 100, until, DAY), until)), ["other"]);
    world.step(shut(None), until);
    assert_eq!(backends(&world.step(appended(1, 600, 200, until, DAY), until)), ["openai", "openai"]);
}

#[test]
fn a_million_requests_of_one_tenant_do_not_delay_a_hundred_of_another() {
    let mut world = World::new([opened(1, "m", "crowd", GATE), opened(2, "other", "few", GATE)]);
    let left = crowd(&mut world, 1_000_000);
    assert_eq!(left, [100; 8], "the last places are for others");
    assert_eq!(world.scheduler.lanes().map(|lane| lane.sums.count).sum::<u64>(), 999_200);
    let effects = world.step(appended(2, 0, 100, START, DAY), START);
    assert_eq!(batch_sizes(&effects), [100]);
}

/// So many requests of the first lane's tenant, in extents as the store makes them; the batches that left.
fn crowd(world: &mut World, count: u32) -> Vec<u64> {
    let mut left = Vec::new();
    for first in (0..count).step_by(512) {
        let effects = world.step(appended(1, first.into(), 512.min(count - first), START, DAY), START);
        left.extend(batch_sizes(&effects));
    }
    left
}

/// How many of each lane's requests the first batch of these takes.
fn aboard(effects: &Effects, lane: u32) -> u64 {
    let cargo = effects.effects.iter().find_map(|effect| match effect {
        Effect::Batch { cargo, .. } => Some(cargo),
        _ => None,
    });
    let of_lane = cargo.unwrap().iter().filter(|cargo| cargo.range.lane == LaneId(lane));
    of_lane.map(|cargo| cargo.range.len()).sum()
}

#[test]
fn where_a_million_wait_for_the_only_place_each_batch_has_its_share_of_the_few() {
    let narrow = GateLimits { running: 1, an_hour: 1_000 };
    let weighing = |lane, tenant: &str, weight| Event::Opened {
        lane: LaneId(lane),
        key: key("m", tenant),
        terms: LaneTerms { weight, ..terms(narrow) },
    };
    for (weight, share) in [(100, 50), (300, 75)] {
        let mut world = World::new([weighing(1, "crowd", 100), weighing(2, "few", weight)]);
        assert_eq!(crowd(&mut world, 1_000_000), [100]);
        world.step(appended(2, 0, 100, START, DAY), START);
        let first = world.end(Fate::Completed, None, START.after(LINGER));
        assert_eq!(batch_sizes(&first), [100]);
        assert!(aboard(&first, 2).abs_diff(share) <= 7, "{} of 100", aboard(&first, 2));
        let second = world.end(Fate::Completed, None, START.after(LINGER));
        let third = world.end(Fate::Completed, None, START.after(LINGER));
        let few = [&first, &second, &third].map(|left| aboard(left, 2));
        assert_eq!(few.iter().sum::<u64>(), 100, "all of them are gone: {few:?}");
    }
}

#[test]
fn in_one_batch_each_tenant_has_its_share() {
    let narrow = GateLimits { running: 1, an_hour: 100 };
    let mut world = World::new([opened(1, "m", "crowd", narrow), opened(2, "m", "few", narrow)]);
    world.step(appended(1, 0, 100, START, DAY), START);
    for n in 0..20 {
        world.step(appended(1, 100 + n * 600, 600, START, Millis::from_hours(10)), START);
    }
    world.step(appended(2, 0, 30, START, DAY), START);
    let effects = world.end(Fate::Completed, None, START.after(LINGER));
    assert_eq!(aboard(&effects, 2), 30);
}

/// A batch, two requests at a time in the background, and real time.
fn with_background(lane: u32) -> Event {
    let one = BatchRoom {
        max_requests: 1,
        max_bytes: 1_000_000,
        overhead_bytes: 100,
        gate: GateLimits { running: 2, an_hour: 100 },
    };
    let background = Rung {
        offer: "background-8h".into(),
        mode: Mode::Background,
        price_permille: 600,
        usual: Millis::from_mins(10),
        batch: Some(one),
        ..rung("openai", "batch", Mode::Batch, GATE)
    };
    let ladder = [
        rung("openai", "standard", Mode::Realtime, GATE),
        rung("openai", "batch", Mode::Batch, GATE),
        background,
    ];
    let terms = LaneTerms { ladder: Arc::new(ladder), ..terms(GATE) };
    Event::Opened { lane: LaneId(lane), key: key("m", "t"), terms }
}

fn bought(effects: &Effects) -> Vec<(String, u64)> {
    let bought = effects.effects.iter().filter_map(|effect| match effect {
        Effect::Batch { freight, cargo, .. } | Effect::Realtime { freight, cargo } => {
            Some((freight.offer.to_string(), requests(cargo)))
        }
        Effect::Hedge { .. } | Effect::Cancel { .. } | Effect::Expire { .. } | Effect::Keep(..) => None,
    });
    bought.collect()
}

#[test]
fn what_a_batch_would_answer_too_late_goes_one_by_one_in_the_background() {
    let mut world = World::new([with_background(1), with_background(2)]);
    let hour = Millis::from_hours(1);
    let left = world.step(appended(1, 0, 5, START, hour), START);
    let two = vec![("background-8h".to_owned(), 1); 2];
    assert_eq!(bought(&left), two, "as many as may be under way, at once");
    let view: Vec<LaneView> = world.scheduler.lanes().collect();
    assert_eq!(view[0].next, Next::ForAPlace);
    assert_eq!(view[0].plans.len(), 2);
    assert!(view[0].plans[0].needs > hour && view[0].plans[1].needs < hour, "{:?}", view[0].plans);
    // The other lane has time for a batch, and leaves as one.
    world.step(appended(2, 0, 5, START, DAY), START);
    let left = world.step(Event::Tick, START.after(LINGER));
    assert_eq!(bought(&left), [("batch".to_owned(), 5)]);
    let left = world.end(Fate::Completed, None, START.after(Millis::from_mins(5)));
    assert_eq!(bought(&left), [("background-8h".to_owned(), 1)]);
    // What finds no place in time is run at once.
    let left = world.step(Event::Tick, START.after(Millis::from_mins(45)));
    assert_eq!(bought(&left).last(), Some(&("standard".to_owned(), 2)), "{left:?}");
}

#[test]
fn without_a_background_that_takes_work_real_time_is_next() {
    let mut world = World::new([with_background(1)]);
    let until = Some(START.after(DAY));
    world.step(Event::Shut { backend: "openai".into(), mode: Mode::Background, until }, START);
    let left = world.step(appended(1, 0, 5, START, Millis::from_hours(1)), START);
    assert_eq!(bought(&left), []);
    let left = world.step(Event::Tick, START.after(Millis::from_mins(45)));
    assert_eq!(bought(&left), [("standard".to_owned(), 5)]);
}

proptest! {
    /// Whatever comes in, in whatever order: each request leaves exactly once, and no batch breaks a limit.
    #[test]
    fn every_request_leaves_exactly_once(
        arrivals in prop::collection::vec((1_u32..4, 1_u32..150, 0_u64..20_000, 1_u64..48), 1..60),
    ) {
        let gate = GateLimits { running: 3, an_hour: 1000 };
        let mut world = World::new((1..4).map(|lane| opened(lane, "m", &lane.to_string(), gate)));
        let mut now = START;
        let mut next = [0_u64; 4];
        let mut left: Vec<Range> = Vec::new();
        let mut run = |effects: Effects| {
            for effect in effects.effects {
                match effect {
                    Effect::Batch { cargo, .. } => {
                        assert!(requests(&cargo) <= MAX_REQUESTS);
                        left.extend(cargo.iter().map(|cargo| cargo.range));
                    }
                    Effect::Realtime { cargo, .. } => left.extend(cargo.iter().map(|cargo| cargo.range)),
                    _ => {}
                }
            }
        };
        for (lane, count, wait, hours) in arrivals {
            now = now.after(Millis(wait));
            let first = next[lane as usize];
            next[lane as usize] += u64::from(count);
            run(world.step(appended(lane, first, count, now, Millis::from_hours(hours)), now));
            prop_assert!(world.running.len() <= 3);
            if !world.running.is_empty() {
                run(world.end(Fate::Completed, None, now));
            }
        }
        for _ in 0..10_000 {
            if !world.running.is_empty() {
                run(world.end(Fate::Completed, None, now));
                continue;
            }
            let effects = world.step(Event::Tick, now);
            let wake = effects.wake_at;
            run(effects);
            match wake {
                Some(wake) if world.running.is_empty() => now = wake,
                None if world.running.is_empty() => break,
                _ => {}
            }
        }
        for lane in 1..4_u32 {
            let mut ranges: Vec<&Range> = left.iter().filter(|range| range.lane == LaneId(lane)).collect();
            ranges.sort_by_key(|range| range.from);
            let mut at = 0;
            for range in ranges {
                prop_assert_eq!(range.from.0, at);
                at = range.to.0;
            }
            prop_assert_eq!(at, next[lane as usize]);
        }
    }
}

#[test]
fn a_flush_of_an_empty_lane_hurries_nobody_who_comes_later() {
    let mut scheduler = Scheduler::new();
    scheduler.step(opened(1, "m", "t", GATE), START);
    scheduler.step(Event::Flush(LaneId(1)), START);
    let effects = scheduler.step(appended(1, 0, 3, START, DAY), START);
    assert_eq!(effects, Effects { effects: vec![], wake_at: Some(START.after(LINGER)) });
}

#[test]
fn a_lane_in_which_nothing_waits_is_forgotten() {
    let mut scheduler = Scheduler::new();
    scheduler.step(opened(1, "m", "t", GATE), START);
    scheduler.step(opened(2, "m", "u", GATE), START);
    scheduler.step(appended(1, 0, 3, START, DAY), START);
    assert!(!scheduler.close(LaneId(1)), "three wait in it");
    assert!(scheduler.close(LaneId(2)));
    assert!(!scheduler.close(LaneId(2)), "it is not known any more");
    let later = START.after(Millis::from_mins(1));
    assert_eq!(
        batch_sizes(&scheduler.step(Event::Tick, later)),
        [3],
        "the others of its group are not disturbed"
    );
    assert!(scheduler.close(LaneId(1)));
    assert_eq!(scheduler.lanes().count(), 0);
    // The same key may come again, in another lane.
    scheduler.step(opened(3, "m", "t", GATE), later);
    scheduler.step(appended(3, 0, 2, later, DAY), later);
    assert_eq!(batch_sizes(&scheduler.step(Event::Tick, later.after(Millis::from_mins(1)))), [2]);
}
