//! What nobody sells any more.

use super::*;

fn nothing() -> Event {
    Event::Opened { lane: LaneId(1), key: key("m", "t"), terms: LaneTerms::of_nothing(100) }
}

#[test]
fn it_waits_for_a_seller_until_it_is_due() {
    let mut world = World::new([nothing()]);
    let soon = Millis::from_mins(5);
    world.step(appended(1, 0, 10, START, soon), START);
    let effects = world.step(appended(1, 10, 600, START, DAY), START);
    assert_eq!((effects.effects, effects.wake_at), (vec![], Some(START.after(soon))));
    assert_eq!(world.scheduler.lanes().next().unwrap().next, Next::NotSold);
    let due = world.step(Event::Tick, START.after(soon));
    let [Effect::Expire { extents, lack: Lack::Seller }] = &due.effects[..] else { panic!("{due:?}") };
    assert!(extents.iter().any(|extent| extent.first == Seq(0)), "{extents:?}");
    for extent in extents.iter().filter(|extent| extent.end().0 > 10) {
        let first = Seq(10);
        let count = u32::try_from(extent.end().0 - 10).unwrap();
        let back = Extent { first, count, earliest_deadline: START.after(DAY), ..*extent };
        world.step(Event::Returned(back), START.after(soon));
    }
    assert_eq!(world.scheduler.lanes().next().unwrap().sums.count, 600);
    let sold = world.step(opened(1, "m", "t", GATE), START.after(soon));
    let left: u64 = batch_sizes(&sold).iter().sum();
    assert_eq!(left, 600);
}

#[test]
fn a_pause_does_not_outlast_its_deadline_there() {
    let mut world = World::new([nothing()]);
    let due = START.after(Millis::from_mins(5));
    let paused = Extent {
        lane: LaneId(1),
        first: Seq(0),
        count: 1,
        bytes: 1000,
        tokens: 250,
        oldest: START.after(DAY),
        earliest_deadline: due,
        not_before: START.after(DAY),
    };
    let mut wake = world.step(Event::Appended(paused), START).wake_at;
    while let Some(now) = wake {
        assert!(now <= due);
        let effects = world.step(Event::Tick, now);
        if !effects.effects.is_empty() {
            assert_eq!(now, due);
            assert!(matches!(&effects.effects[..], [Effect::Expire { lack: Lack::Seller, .. }]));
            return;
        }
        wake = effects.wake_at;
    }
    panic!("it is forgotten");
}
