//! What travels together.

use super::*;

#[test]
fn lanes_of_several_tenants_travel_in_one_batch_and_other_models_do_not() {
    let mut scheduler = Scheduler::new();
    scheduler.step(opened(1, "m", "a", GATE), START);
    scheduler.step(opened(2, "m", "b", GATE), START);
    scheduler.step(opened(3, "other", "a", GATE), START);
    scheduler.step(appended(1, 0, 3, START, DAY), START);
    scheduler.step(appended(2, 0, 4, START, DAY), START);
    scheduler.step(appended(3, 0, 5, START, DAY), START);
    let effects = scheduler.step(Event::Tick, START.after(LINGER));
    let mut sizes = batch_sizes(&effects);
    sizes.sort_unstable();
    assert_eq!(sizes, [5, 7]);
}

#[test]
fn what_a_router_keeps_apart_travels_apart() {
    let named = |lane, name: &str| {
        let key = LaneKey { name: name.into(), ..key("m", "t") };
        Event::Opened { lane: LaneId(lane), key, terms: terms(GATE) }
    };
    let mut world = World::new([named(1, ""), named(2, "nightly"), named(3, "nightly")]);
    for (lane, count) in [(1, 3), (2, 4), (3, 5)] {
        world.step(appended(lane, 0, count, START, DAY), START);
    }
    let mut sizes = batch_sizes(&world.step(Event::Tick, START.after(LINGER)));
    sizes.sort_unstable();
    assert_eq!(sizes, [3, 9]);
}
