use super::*;
use crate::money::Money;
use crate::tempo::{Load, TempoLimits};

fn paced(tenant: &str, requests: u64) -> Event {
    let limits =
        TempoLimits { requests: Some(requests), input: None, output: None, burst: Millis::from_mins(1) };
    Event::Means(vec![(Holder::tenant(tenant.into()), Means { tempo: Some(limits), funds: None })])
}

fn funded(tenant: &str, left: i128, until: Timestamp) -> Event {
    let funds = Some(Funds { left: Money(left), until });
    Event::Means(vec![(Holder::tenant(tenant.into()), Means { tempo: None, funds })])
}

/// A thousand input tokens cost 1000, at the list price.
fn priced(lane: u32) -> Event {
    let reckoning = Reckoning { input_price: Money(1), ..Reckoning::default() };
    Event::Reckons { lane: LaneId(lane), reckoning, models: None }
}

fn committed(world: &World, tenant: &str) -> i128 {
    world.scheduler.committed().find(|(id, _)| id.as_str() == tenant).map_or(0, |(_, money)| money.0)
}

fn next_of(world: &World, lane: u32) -> Next {
    world.scheduler.lanes().find(|view| view.lane == LaneId(lane)).unwrap().next
}

#[test]
fn a_paced_tenant_leaves_in_portions_and_others_do_not_wait_for_it() {
    let mut world = World::new([opened(1, "m", "slow", GATE), opened(2, "m", "t", GATE)]);
    world.step(paced("slow", 60), START);
    world.step(appended(1, 0, 80, START, DAY), START);
    world.step(appended(2, 0, 10, START, DAY), START);
    let left = world.step(Event::Tick, START.after(LINGER));
    assert_eq!(batch_sizes(&left), [70], "a burst of the one, all of the other");
    let again = START.after(LINGER).after(Millis::from_secs(20));
    assert_eq!((left.wake_at, next_of(&world, 1)), (Some(again), Next::Paced(again)), "20 are a portion");
    assert_eq!(next_of(&world, 2), Next::Empty);
    world.step(appended(1, 80, 70, START, DAY), START.after(LINGER));
    let all = START.after(LINGER).after(Millis::from_mins(1));
    assert_eq!((next_of(&world, 1), next_of(&world, 2)), (Next::Paced(all), Next::Empty));
    assert_eq!(batch_sizes(&world.step(Event::Tick, again)), [0; 0], "now a whole burst is one");
    assert_eq!(batch_sizes(&world.step(Event::Tick, all)), [60]);
    assert_eq!(batch_sizes(&world.step(Event::Tick, all.after(Millis::from_secs(30)))), [30]);
}

#[test]
fn some_models_have_a_rate_of_their_own_within_their_tenants() {
    let mut world = World::new([opened(1, "big", "t", GATE), opened(2, "m", "t", GATE)]);
    let models: Arc<str> = "large".into();
    let reckoning = Reckoning::default();
    world.step(Event::Reckons { lane: LaneId(1), reckoning, models: Some(models.clone()) }, START);
    let limits = TempoLimits { requests: Some(10), input: None, output: None, burst: Millis::from_mins(1) };
    let holder = Holder { tenant: "t".into(), part: Part::Models(models) };
    world.step(Event::Means(vec![(holder, Means { tempo: Some(limits), funds: None })]), START);
    world.step(paced("t", 60), START);
    world.step(appended(1, 0, 30, START, DAY), START);
    world.step(appended(2, 0, 90, START, Millis::from_hours(23)), START);
    let now = START.after(LINGER);
    let mut sizes = batch_sizes(&world.step(Event::Tick, now));
    sizes.sort_unstable();
    assert_eq!(sizes.iter().sum::<u64>(), 60, "{sizes:?}");
    let minute = now.after(Millis::from_mins(1));
    let mut left = batch_sizes(&world.step(Event::Tick, minute));
    left.extend(batch_sizes(&world.step(Event::Tick, minute.after(Millis::from_mins(1)))));
    left.extend(batch_sizes(&world.step(Event::Tick, minute.after(Millis::from_mins(2)))));
    assert_eq!(sizes.iter().chain(&left).sum::<u64>(), 120);
    let big = world.scheduler.lanes().next().unwrap();
    assert_eq!(big.sums.count, 0, "30 in three minutes and a burst");
}

#[test]
fn a_key_has_a_rate_of_its_own_within_its_tenants_and_travels_with_the_others() {
    let of_key = LaneKey { api_key: "key-1".into(), ..key("m", "t") };
    let of_key = Event::Opened { lane: LaneId(1), key: of_key, terms: terms(GATE) };
    let mut world = World::new([of_key, opened(2, "m", "t", GATE)]);
    let limits = TempoLimits { requests: Some(10), input: None, output: None, burst: Millis::from_mins(1) };
    let holder = Holder { tenant: "t".into(), part: Part::Key("key-1".into()) };
    world.step(Event::Means(vec![(holder, Means { tempo: Some(limits), funds: None })]), START);
    world.step(appended(1, 0, 30, START, DAY), START);
    world.step(appended(2, 0, 60, START, DAY), START);
    let now = START.after(LINGER);
    assert_eq!(batch_sizes(&world.step(Event::Tick, now)), [70], "one batch, with ten of the key's");
    assert_eq!(batch_sizes(&world.step(Event::Tick, now.after(Millis::from_mins(1)))), [10]);
    assert_eq!(batch_sizes(&world.step(Event::Tick, now.after(Millis::from_mins(2)))), [10]);
}

#[test]
fn a_flush_goes_no_faster_than_the_rate() {
    let mut world = World::new([opened(1, "m", "slow", GATE)]);
    world.step(paced("slow", 60), START);
    world.step(appended(1, 0, 90, START, DAY), START);
    assert_eq!(batch_sizes(&world.step(Event::Flush(LaneId(1)), START)), [60]);
    assert_eq!(
        batch_sizes(&world.step(Event::Tick, START.after(Millis::from_secs(30)))),
        [30],
        "still flushed"
    );
}

#[test]
fn what_did_not_run_gives_its_part_of_the_rate_back() {
    let mut world = World::new([opened(1, "m", "slow", GATE)]);
    world.step(paced("slow", 60), START);
    world.step(appended(1, 0, 60, START, DAY), START);
    let now = START.after(LINGER);
    assert_eq!(batch_sizes(&world.step(Event::Tick, now)), [60]);
    let ran = Load { requests: 20, ..Load::default() };
    let settled = Settled { requests: 30, ran };
    world.step(Event::Settled { batch: BatchId(1), lane: LaneId(1), settled }, now);
    world.step(appended(1, 60, 40, START, DAY), now);
    assert_eq!(next_of(&world, 1), Next::Paced(now.after(Millis::from_secs(30))), "10 are there, 40 wait");
    let left = world.end(Fate::Refused, None, now);
    assert_eq!(batch_sizes(&left), [40], "the other 30 never ran");
}

#[test]
fn what_is_urgent_keeps_to_the_rate_in_smaller_portions() {
    let mut world = World::new([opened(1, "m", "slow", GATE)]);
    world.step(paced("slow", 60), START);
    let left = world.step(appended(1, 0, 200, START, Millis::from_mins(30)), START);
    assert!(matches!(left.effects[..], [Effect::Realtime { .. }]), "{left:?}");
    assert_eq!(batch_sizes(&left), [60]);
    let soon = START.after(Millis::from_secs(10));
    assert_eq!(next_of(&world, 1), Next::Paced(soon));
    assert_eq!(batch_sizes(&world.step(Event::Tick, soon)), [10]);
}

#[test]
fn a_budget_lets_go_what_it_pays_for_and_the_rest_waits() {
    let mut world = World::new([opened(1, "m", "t", GATE)]);
    world.step(priced(1), START);
    let tomorrow = START.after(Millis::from_hours(8));
    // 250 tokens a request, at half price.
    world.step(funded("t", 125 * 40, tomorrow), START);
    let left = world.step(appended(1, 0, 100, START, DAY), START);
    let now = START.after(LINGER);
    assert_eq!(batch_sizes(&left), [40], "they fill a batch");
    assert_eq!((committed(&world, "t"), next_of(&world, 1)), (5000, Next::ForMoney(tomorrow)));
    // They were cheaper than was thought.
    let ran = Load { requests: 40, input: 5000, output: 0 };
    let settled = Settled { requests: 40, ran };
    world.step(funded("t", 2500, tomorrow), now);
    let left = world.step(Event::Settled { batch: BatchId(1), lane: LaneId(1), settled }, now);
    assert_eq!((batch_sizes(&left), committed(&world, "t")), (vec![20], 2500));
    let left = world.step(funded("t", 1 << 40, tomorrow), tomorrow);
    assert_eq!(batch_sizes(&left), [40]);
    world.end(Fate::Completed, None, tomorrow);
    world.end(Fate::Completed, None, tomorrow);
    world.end(Fate::Completed, None, tomorrow);
    assert_eq!(committed(&world, "t"), 0);
}

#[test]
fn what_has_no_money_until_it_is_due_is_given_up_and_the_rest_is_put_back() {
    let mut world = World::new([opened(1, "m", "t", GATE)]);
    world.step(priced(1), START);
    let until = START.after(DAY).after(DAY);
    world.step(funded("t", 0, until), START);
    let mut wake = world.step(appended(1, 0, 10, START, Millis::from_hours(2)), START).wake_at;
    world.step(appended(1, 10, 600, START, DAY), START);
    let mut expired = Vec::new();
    let mut now = START;
    while expired.is_empty() {
        now = wake.expect("it looks again");
        assert!(now <= START.after(Millis::from_hours(2)));
        let effects = world.step(Event::Tick, now);
        wake = effects.wake_at;
        expired = effects.effects;
    }
    assert_eq!(now, START.after(Millis::from_hours(2)));
    let [Effect::Expire { extents, lack: Lack::Money(told) }] = &expired[..] else { panic!("{expired:?}") };
    let given_up: u32 = extents.iter().map(|extent| extent.count).sum();
    assert_eq!((given_up, *told), (10, until));
    let back = Extent {
        lane: LaneId(1),
        first: Seq(4),
        count: 6,
        bytes: 6000,
        tokens: 1500,
        oldest: START,
        earliest_deadline: now.after(Millis(1)),
        not_before: Timestamp(0),
    };
    world.step(Event::Returned(back), now);
    assert_eq!(world.scheduler.lanes().next().unwrap().sums.count, 606);
    let left = world.step(funded("t", 1 << 60, until), now.after(Millis(1)));
    let all: u64 = batch_sizes(&left).iter().sum();
    assert_eq!(all, 606);
}

#[test]
fn after_a_restart_what_is_under_way_is_set_aside_again() {
    let mut world = World::new([opened(1, "m", "t", GATE)]);
    world.step(priced(1), START);
    let range = Range { lane: LaneId(1), from: Seq(0), to: Seq(10) };
    let cargo = vec![Cargo { range, tokens: 2500, deadline: START.after(DAY) }];
    let freight = Freight { offer: "standard".into(), ..Freight::of(&key("m", "t")) };
    let sent = |batch, is_beside| Event::Sent {
        batch: BatchId(batch),
        freight: freight.clone(),
        cargo: cargo.clone(),
        is_beside,
        is_recovered: true,
    };
    world.step(sent(1, false), START);
    world.step(sent(2, true), START);
    assert_eq!(committed(&world, "t"), 5000);
    world.step(Event::Over(BatchId(1)), START);
    world.step(Event::Over(BatchId(2)), START);
    assert_eq!(committed(&world, "t"), 0);
}

#[test]
fn what_is_due_and_more_than_a_portion_is_waited_for_without_spinning() {
    let mut world = World::new([opened(1, "m", "slow", GATE)]);
    let reckoning = Reckoning { output: 500, ..Reckoning::default() };
    world.step(Event::Reckons { lane: LaneId(1), reckoning, models: None }, START);
    let burst = Millis::from_mins(1);
    let tempo = TempoLimits { requests: None, input: None, output: Some(2500), burst };
    let means = Means { tempo: Some(tempo), funds: None };
    world.step(Event::Means(vec![(Holder::tenant("slow".into()), means)]), START);
    let mut effects = world.step(appended(1, 0, 8, START, Millis::from_mins(1)), START);
    let (mut now, mut left, mut steps) = (START, 0, 0);
    loop {
        for effect in effects.effects {
            let (Effect::Batch { cargo, .. } | Effect::Realtime { cargo, .. }) = effect else { continue };
            left += requests(&cargo);
        }
        if left == 8 {
            break;
        }
        let wake_at = effects.wake_at.unwrap();
        assert!(wake_at > now);
        now = wake_at;
        steps += 1;
        assert!(steps < 40, "{left} have left after {steps} steps and {:?}", now.since(START));
        effects = world.step(Event::Tick, now);
    }
    assert!(now.since(START) >= Millis::from_secs(36), "five at once, then one in twelve seconds");
}

proptest! {
    /// Random arrivals of a tenant with random limits: each request leaves exactly once, never more than limit x time + burst,
    /// and nothing waits that could leave.
    #[test]
    fn paced_work_leaves_exactly_once_and_never_faster(
        limit in 30_u64..5_000,
        burst_s in 10_u64..300,
        arrivals in prop::collection::vec((1_u32..3, 1_u32..400, 0_u64..60_000), 1..30),
    ) {
        let gate = GateLimits { running: 100_000, an_hour: 100_000 };
        let mut world = World::new((1..3).map(|lane| opened(lane, "m", "slow", gate)));
        let burst = Millis::from_secs(burst_s);
        let tempo = TempoLimits { requests: Some(limit), input: None, output: None, burst };
        let means = Means { tempo: Some(tempo), funds: None };
        world.step(Event::Means(vec![(Holder::tenant("slow".into()), means)]), START);
        let most = (limit * burst_s / 60).max(1);
        let (mut now, mut total, mut left, mut next) = (START, 0_u64, 0_u64, [0_u64; 3]);
        let mut seen: Vec<Range> = Vec::new();
        let mut wake = None;
        let mut arrivals = arrivals.into_iter();
        let mut coming = arrivals.next();
        let mut arrives_at = START;
        let mut last_arrival = START;
        for _ in 0..50_000 {
            let effects = match coming.take() {
                Some((lane, count, pause)) if wake.is_none_or(|at: Timestamp| arrives_at <= at) => {
                    now = now.max(arrives_at);
                    last_arrival = now;
                    let first = next[lane as usize];
                    next[lane as usize] += u64::from(count);
                    total += u64::from(count);
                    coming = arrivals.next();
                    arrives_at = now.after(Millis(pause));
                    world.step(appended(lane, first, count, now, DAY), now)
                }
                other => {
                    coming = other;
                    let Some(at) = wake else { break };
                    prop_assert!(at > now, "it does not spin");
                    now = at;
                    world.step(Event::Tick, now)
                }
            };
            wake = effects.wake_at;
            for effect in effects.effects {
                let (Effect::Batch { cargo, .. } | Effect::Realtime { cargo, .. }) = effect else { continue };
                left += requests(&cargo);
                seen.extend(cargo.iter().map(|cargo| cargo.range));
            }
            let earned = u128::from(limit) * u128::from(now.since(START).0) / 60_000;
            prop_assert!(u128::from(left) <= earned + u128::from(most), "{left} after {:?}", now.since(START));
            if left == total && coming.is_none() {
                break;
            }
        }
        prop_assert_eq!(left, total, "all of it leaves");
        let slowest = Millis(total * 60_000 / limit + burst.0 + LINGER.0 + 1_000);
        prop_assert!(now.since(last_arrival) <= slowest, "{:?}", now.since(last_arrival));
        for lane in 1..3_u32 {
            let mut of: Vec<&Range> = seen.iter().filter(|range| range.lane == LaneId(lane)).collect();
            of.sort_by_key(|range| range.from);
            let mut at = 0;
            for range in of {
                prop_assert_eq!(range.from.0, at);
                at = range.to.0;
            }
            prop_assert_eq!(at, next[lane as usize]);
        }
    }
}
