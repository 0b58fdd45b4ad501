//! What goes again after a failure, and was told when.

use super::*;
use crate::extent::HURRIED;
use crate::retry::LAST_CHANCE;

const PAUSE: Millis = Millis::from_mins(5);

/// One request that goes again, not before so long.
fn again(seq: u64, pause: Millis, deadline: Timestamp) -> Event {
    let not_before = START.after(pause);
    Event::Appended(Extent {
        lane: LaneId(1),
        first: Seq(seq),
        count: 1,
        bytes: 1000,
        tokens: 250,
        oldest: not_before,
        earliest_deadline: deadline,
        not_before,
    })
}

fn sealed(effects: &Effects) -> Vec<(u64, u64)> {
    let cargo = effects.effects.iter().flat_map(|effect| match effect {
        Effect::Batch { cargo, .. } | Effect::Realtime { cargo, .. } => cargo.clone(),
        _ => Vec::new(),
    });
    cargo.map(|cargo| (cargo.range.from.0, cargo.range.to.0)).collect()
}

/// Ticks as the scheduler asks for it, until something leaves.
fn until_one_leaves(world: &mut World, mut effects: Effects) -> (Timestamp, Vec<(u64, u64)>) {
    let mut now = START;
    for _ in 0..100 {
        let left = sealed(&effects);
        if !left.is_empty() {
            return (now, left);
        }
        now = effects.wake_at.expect("it wakes").max(now);
        effects = world.step(Event::Tick, now);
    }
    panic!("it wakes again and again for nothing");
}

#[test]
fn a_pause_is_kept_in_a_lane_whose_batches_leave_meanwhile() {
    let mut world = World::new([opened(1, "m", "t", GATE)]);
    world.step(again(0, PAUSE, START.after(DAY)), START);
    let full = world.step(appended(1, 1, 100, START, DAY), START);
    assert_eq!(sealed(&full), [(1, 101)], "what pauses has no part in a full batch");
    world.step(appended(1, 101, 99, START, DAY), START);
    assert_eq!(sealed(&world.step(Event::Tick, START)), [], "with it there would be 100");
    let view = world.scheduler.lanes().next().unwrap();
    assert_eq!(view.sums.count, 100, "it counts where room is asked for");
    let lingered = world.step(Event::Tick, START.after(LINGER));
    assert_eq!(sealed(&lingered), [(101, 200)]);
    let view = world.scheduler.lanes().next().unwrap();
    assert_eq!((view.sums.count, view.next), (1, Next::Paused(START.after(PAUSE))));
    assert!(!world.scheduler.close(LaneId(1)), "something is in it");
    let over = world.step(Event::Tick, START.after(PAUSE));
    assert_eq!(over.wake_at, Some(START.after(PAUSE).after(LINGER)), "it begins to wait for others");
    assert_eq!(sealed(&world.step(Event::Tick, START.after(PAUSE).after(LINGER))), [(0, 1)]);
}

#[test]
fn what_is_flushed_while_it_pauses_leaves_when_that_is_over() {
    let mut world = World::new([opened(1, "m", "t", GATE)]);
    world.step(again(0, PAUSE, START.after(DAY)), START);
    let flushed = world.step(Event::Flush(LaneId(1)), START.after(LINGER));
    assert_eq!((sealed(&flushed), flushed.wake_at), (vec![], Some(START.after(PAUSE))));
    let over = world.step(Event::Tick, START.after(PAUSE));
    assert_eq!(sealed(&over), [(0, 1)], "it waits for no others");
    world.step(again(1, Millis(PAUSE.0 * 2), START.after(DAY)), START.after(PAUSE));
    assert_eq!(sealed(&world.step(Event::Tick, START.after(Millis(PAUSE.0 * 2)))), [], "that is over");
}

#[test]
fn a_moment_of_the_deadline_ends_a_pause() {
    let rescue = Millis::from_mins(10);
    let one_hour = Millis::from_hours(1);
    for (deadline, leaves) in [
        // The last one for a rescue after a batch.
        (START.after(one_hour).after(rescue).after(Millis(7)), Millis(7)),
        // A batch was too late already; this is the last one for real time.
        (START.after(rescue).after(Millis(9)), Millis(9)),
        // That was missed as well: it is tried at its last chance.
        (START.after(LAST_CHANCE).after(Millis(10)), Millis(10)),
        // So was this: late is better than not before the deadline.
        (START.after(Millis(11)), Millis(11)),
    ] {
        let mut world = World::new([opened(1, "m", "t", GATE)]);
        let effects = world.step(again(0, PAUSE, deadline), START);
        let (now, left) = until_one_leaves(&mut world, effects);
        assert_eq!((now.since(START), left), (leaves, vec![(0, 1)]));
    }
}

#[test]
fn what_is_to_run_in_real_time_after_its_pause_is_not_hurried_before() {
    let mut world = World::new([opened(1, "m", "t", GATE)]);
    let effects = world.step(again(0, PAUSE, START.after(PAUSE).after(HURRIED)), START);
    let (now, left) = until_one_leaves(&mut world, effects);
    assert_eq!((now, left), (START.after(PAUSE), vec![(0, 1)]));
}

/// Whatever was told: what pauses leaves, and if it began to pause before its last chance, it leaves by then.
#[test]
fn no_pause_binds_beyond_the_last_chance() {
    let minutes = |minutes| Millis::from_mins(minutes);
    for pause in [Millis(1), minutes(1), minutes(5), minutes(61), minutes(24 * 60), minutes(48 * 60)] {
        for left in
            [Millis(1), LAST_CHANCE, minutes(1), minutes(5), minutes(9), minutes(70), minutes(24 * 60)]
        {
            let mut world = World::new([opened(1, "m", "t", GATE)]);
            let due = START.after(left);
            let not_before = crate::retry::bounded(START.after(pause), due, START);
            let effects = world.step(again(0, not_before.since(START), due), START);
            let (now, sent) = until_one_leaves(&mut world, effects);
            assert_eq!(sent, [(0, 1)]);
            let latest = match left {
                left if left > LAST_CHANCE => due.before(LAST_CHANCE),
                left if left > Millis::from_secs(1) => due.before(Millis::from_secs(1)),
                _ => START.after(LAST_CHANCE),
            };
            assert!(now <= latest, "{now:?} {due:?}");
        }
    }
}
