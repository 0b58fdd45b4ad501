use proptest::prelude::*;

use super::*;
use crate::words::{Millis, Seq, SlaClass, TenantId};

const START: Timestamp = Timestamp(1_700_000_000_000);

const TERMS: Terms = Terms {
    max_requests: 100,
    max_bytes: 1_000_000,
    overhead_bytes: 100,
    linger: Millis::from_secs(10),
    usual: Millis::from_hours(1),
    rescue: Millis::from_mins(10),
};

const GATE: GateLimits = GateLimits { running: 10, an_hour: 100 };

fn key(model: &str, tenant: &str) -> LaneKey {
    LaneKey {
        backend: "openai".into(),
        endpoint: "/v1/chat/completions".into(),
        model: model.into(),
        tenant: TenantId::from(tenant),
        offer: "batch".into(),
        sla_class: SlaClass::of(Millis::from_hours(24)),
        name: "".into(),
        headers: KeptHeaders::default(),
    }
}

fn opened(lane: u32, model: &str, tenant: &str, gate: GateLimits) -> Event {
    Event::Opened { lane: LaneId(lane), key: key(model, tenant), terms: TERMS, gate }
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
    })
}

const DAY: Millis = Millis::from_hours(24);

fn batch_sizes(effects: &Effects) -> Vec<u64> {
    effects
        .effects
        .iter()
        .map(|effect| match effect {
            Effect::Batch { ranges, .. } => ranges.iter().map(Range::len).sum(),
            Effect::Realtime { range, .. } => range.len(),
        })
        .collect()
}

#[test]
fn a_lane_leaves_when_its_linger_is_over_and_not_before() {
    let mut scheduler = Scheduler::new();
    scheduler.step(opened(1, "m", "t", GATE), START);
    let effects = scheduler.step(appended(1, 0, 3, START, DAY), START);
    assert_eq!(effects, Effects { effects: vec![], wake_at: Some(START.after(TERMS.linger)) });
    let effects = scheduler.step(Event::Tick, START.after(TERMS.linger));
    assert_eq!(batch_sizes(&effects), [3]);
    assert!(matches!(effects.effects[0], Effect::Batch { reason: Reason::Linger, .. }));
    assert_eq!(scheduler.step(Event::Tick, START.after(DAY)), Effects::default());
}

#[test]
fn lanes_of_several_tenants_travel_in_one_batch_and_other_models_do_not() {
    let mut scheduler = Scheduler::new();
    scheduler.step(opened(1, "m", "a", GATE), START);
    scheduler.step(opened(2, "m", "b", GATE), START);
    scheduler.step(opened(3, "other", "a", GATE), START);
    scheduler.step(appended(1, 0, 3, START, DAY), START);
    scheduler.step(appended(2, 0, 4, START, DAY), START);
    scheduler.step(appended(3, 0, 5, START, DAY), START);
    let effects = scheduler.step(Event::Tick, START.after(TERMS.linger));
    let mut sizes = batch_sizes(&effects);
    sizes.sort_unstable();
    assert_eq!(sizes, [5, 7]);
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
    let mut scheduler = Scheduler::new();
    scheduler.step(opened(1, "m", "t", narrow), START);
    scheduler.step(appended(1, 0, 100, START, DAY), START);
    let effects = scheduler.step(appended(1, 100, 5, START, DAY), START);
    assert!(effects.effects.is_empty(), "one is under way");
    let lingered = START.after(TERMS.linger);
    let effects = scheduler.step(Event::Tick, lingered);
    assert!(effects.effects.is_empty());
    let urgent = effects.wake_at.expect("a wake-up before it is too late");
    let effects = scheduler.step(Event::Tick, urgent);
    assert!(matches!(effects.effects[..], [Effect::Realtime { .. }]));
}

#[test]
fn an_ended_batch_opens_the_gate_and_a_hold_closes_it() {
    let narrow = GateLimits { running: 1, an_hour: 100 };
    let mut scheduler = Scheduler::new();
    scheduler.step(opened(1, "m", "t", narrow), START);
    scheduler.step(appended(1, 0, 200, START, DAY), START);
    let freight = Freight::of(&key("m", "t"));
    let hold = START.after(Millis::from_mins(5));
    let effects = scheduler.step(Event::Ended { freight, hold_until: Some(hold) }, START);
    assert!(effects.effects.is_empty());
    assert_eq!(effects.wake_at, Some(hold));
    assert_eq!(batch_sizes(&scheduler.step(Event::Tick, hold)), [100]);
}

proptest! {
    /// Whatever comes in, in whatever order: each request leaves exactly once, and no batch breaks a limit.
    #[test]
    fn every_request_leaves_exactly_once(
        arrivals in prop::collection::vec((1_u32..4, 1_u32..150, 0_u64..20_000, 1_u64..48), 1..60),
    ) {
        let mut scheduler = Scheduler::new();
        for lane in 1..4 {
            scheduler.step(opened(lane, "m", &lane.to_string(), GateLimits { running: 3, an_hour: 1000 }), START);
        }
        let mut now = START;
        let mut next = [0_u64; 4];
        let mut left: Vec<Range> = Vec::new();
        let mut running = Vec::new();
        let mut run = |effects: Effects, running: &mut Vec<Freight>| {
            for effect in effects.effects {
                match effect {
                    Effect::Batch { freight, ranges, .. } => {
                        assert!(ranges.iter().map(Range::len).sum::<u64>() <= TERMS.max_requests);
                        running.push(freight);
                        left.extend(ranges);
                    }
                    Effect::Realtime { range, .. } => left.push(range),
                }
            }
            assert!(running.len() <= 3);
        };
        for (lane, count, wait, hours) in arrivals {
            now = now.after(Millis(wait));
            let first = next[lane as usize];
            next[lane as usize] += u64::from(count);
            let effects = scheduler.step(appended(lane, first, count, now, Millis::from_hours(hours)), now);
            run(effects, &mut running);
            if let Some(freight) = running.pop() {
                run(scheduler.step(Event::Ended { freight, hold_until: None }, now), &mut running);
            }
        }
        for _ in 0..10_000 {
            if let Some(freight) = running.pop() {
                run(scheduler.step(Event::Ended { freight, hold_until: None }, now), &mut running);
                continue;
            }
            let effects = scheduler.step(Event::Tick, now);
            let wake = effects.wake_at;
            run(effects, &mut running);
            match wake {
                Some(wake) if running.is_empty() => now = wake,
                None if running.is_empty() => break,
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
