//! What is removed, and what stays.

use super::*;
use crate::{Idempotency, IdleLane, Recorded, StoreError, Swept};

fn key(number: u8) -> Idempotency {
    Idempotency { key: [number; 16], expires: Timestamp(u64::MAX) }
}

/// Fills segments until there is one more.
fn next_segment(store: &Store, lane: LaneId) -> Vec<Place> {
    let before = store.stats().segments;
    let mut places = Vec::new();
    while store.stats().segments == before {
        places.push(append(store, lane, &"f".repeat(700)));
    }
    places
}

#[test]
fn nothing_is_left_of_what_is_finished_and_old() {
    let disk = MemoryDisk::new();
    let (store, _) = open(&disk);
    let (a, b) = (now(store.lane(&lane_key("a"))).unwrap(), now(store.lane(&lane_key("b"))).unwrap());
    let mut places = Vec::new();
    for number in 0..30 {
        let request = NewRequest { idempotency: Some(key(number)), ..request(a, &"x".repeat(400)) };
        let Appended::New(place) = now(store.append(request)).unwrap() else { panic!("not new") };
        places.push(place);
    }
    let id = now(store.seal(batch(vec![range(a, 0, 30)]))).unwrap();
    for place in places {
        let Some(Recorded::New { requeued: Some(to), .. }) =
            now(store.record(vec![requeued(place, b)])).unwrap().pop()
        else {
            panic!("not requeued")
        };
        now(store.record(vec![answered(to, &"y".repeat(300))])).unwrap();
    }
    now(store.end(id, Timestamp(2000), "done")).unwrap();
    // What is active stays: move on to fresh segments, whose requests then are all that is left.
    let mut fresh = next_segment(&store, b);
    fresh.extend(next_segment(&store, b));
    assert_eq!(now(store.sweep(Timestamp(2999))).unwrap(), Swept::default());
    let swept = now(store.sweep(Timestamp(3000))).unwrap();
    assert!(swept.segments >= 5 && swept.batches == 1, "{swept:?}");
    check_index(&store, &disk);
    assert_eq!(u64::from(store.stats().segments), disk_segments(&disk).len() as u64);
    let gone = now(store.entry(Place { lane: a, seq: Seq(0) })).unwrap();
    assert_eq!(gone, None);
    let again = NewRequest { idempotency: Some(key(0)), ..request(a, &"x".repeat(400)) };
    assert!(matches!(now(store.append(again)).unwrap(), Appended::New(_)), "its key is gone too");
    let left = now(store.requests(range(b, 0, 1000), usize::MAX)).unwrap();
    assert_eq!(left.entries.iter().map(|entry| entry.place).collect::<Vec<_>>(), fresh);
    // The rest goes too.
    for place in fresh {
        now(store.record(vec![answered(place, "")])).unwrap();
    }
    next_segment(&store, a);
    next_segment(&store, a);
    let before = disk_segments(&disk).len();
    now(store.sweep(LATER)).unwrap();
    assert!(disk_segments(&disk).len() < before);
    check_index(&store, &disk);
    drop(store);
    let (store, recovered) = open(&disk);
    assert_eq!(recovered.lanes.len(), 2);
    assert_eq!(append(&store, a, "on").seq.0, recovered.lanes[0].next.0);
}

#[test]
fn an_answer_may_go_before_its_request_and_does_not_come_back_to_life() {
    let disk = MemoryDisk::new();
    let (store, _) = open(&disk);
    let lane = now(store.lane(&lane_key("a"))).unwrap();
    // Both requests are in the first segment, and one of them stays unfinished.
    let (done, open_one) = (append(&store, lane, "done"), append(&store, lane, "open"));
    let filled = next_segment(&store, lane);
    now(store.record(vec![answered(done, "answer")])).unwrap();
    let finish: Vec<NewOutcome> = filled.iter().map(|&place| answered(place, "")).collect();
    now(store.record(finish)).unwrap();
    let filled = next_segment(&store, lane);
    let finish: Vec<NewOutcome> = filled.iter().map(|&place| answered(place, "")).collect();
    now(store.record(finish)).unwrap();
    next_segment(&store, lane);
    let outcome = now(store.outcome(done)).unwrap();
    let Some(Standing::Final(outcome)) = outcome else { panic!("{outcome:?}") };
    let swept = now(store.sweep(LATER)).unwrap();
    assert!(swept.segments >= 1);
    check_index(&store, &disk);
    assert!(disk_has(&disk, 1), "the first segment has an unfinished request");
    assert_eq!(now(store.outcome(done)).unwrap(), None);
    assert!(matches!(now(store.read_body(outcome.body)), Err(StoreError::Gone)));
    assert_eq!(now(store.record(vec![answered(done, "again")])).unwrap(), [Recorded::Duplicate]);
    let left = now(store.requests(vec![done, open_one], 0)).unwrap();
    assert_eq!(left.entries.iter().map(|entry| entry.place).collect::<Vec<_>>(), [open_one]);
    assert_eq!(now(store.entry(open_one)).unwrap().unwrap().body, "open");
    // And when the first segment goes, so does the rest of what was known.
    now(store.record(vec![answered(open_one, "")])).unwrap();
    next_segment(&store, lane);
    now(store.sweep(LATER)).unwrap();
    assert!(!disk_has(&disk, 1));
    check_index(&store, &disk);
    assert_eq!(now(store.record(vec![answered(done, "again")])).unwrap(), [Recorded::Unknown]);
}

fn disk_segments(disk: &MemoryDisk) -> Vec<u32> {
    crate::disk::Disk::segments(disk).unwrap()
}

fn disk_has(disk: &MemoryDisk, segment: u32) -> bool {
    disk_segments(disk).contains(&segment)
}

#[test]
fn a_key_given_to_another_request_outlives_the_first() {
    let disk = MemoryDisk::new();
    let (store, _) = open(&disk);
    let lane = now(store.lane(&lane_key("a"))).unwrap();
    let with_key = |arrived, expires, body: &str| NewRequest {
        arrived: Timestamp(arrived),
        idempotency: Some(Idempotency { key: [1; 16], expires: Timestamp(expires) }),
        ..request(lane, body)
    };
    let Appended::New(first) = now(store.append(with_key(0, 50, "one"))).unwrap() else { panic!() };
    assert_eq!(now(store.append(with_key(49, 99, "two"))).unwrap(), Appended::Conflict);
    assert_eq!(now(store.append(with_key(49, 99, "one"))).unwrap(), Appended::Same(first));
    now(store.record(vec![answered(first, "1")])).unwrap();
    let filled = next_segment(&store, lane);
    let finish: Vec<NewOutcome> = filled.iter().map(|&place| answered(place, "")).collect();
    now(store.record(finish)).unwrap();
    let Appended::New(second) = now(store.append(with_key(50, u64::MAX, "two"))).unwrap() else { panic!() };
    let swept = now(store.sweep(LATER)).unwrap();
    assert_eq!(swept.segments, 1);
    check_index(&store, &disk);
    assert_eq!(now(store.append(with_key(60, 99, "two"))).unwrap(), Appended::Same(second));
    drop(store);
    let (store, _) = open(&disk);
    assert_eq!(now(store.append(with_key(70, 99, "two"))).unwrap(), Appended::Same(second));
}

#[test]
fn a_lane_goes_when_nothing_of_it_is_left_and_its_number_is_never_given_again() {
    let disk = MemoryDisk::new();
    let (store, _) = open(&disk);
    let lane = |name: &str| now(store.lane(&lane_key(name))).unwrap();
    let idle = || now(store.idle_lanes()).unwrap();
    let (a, b) = (lane("a"), lane("b"));
    // It was only just made.
    assert_eq!(idle(), [IdleLane { id: a, next: Seq(0) }, IdleLane { id: b, next: Seq(0) }]);
    let place = append(&store, a, "x");
    let id = now(store.seal(batch(vec![range(a, 0, 1)]))).unwrap();
    now(store.record(vec![answered(place, "y")])).unwrap();
    let filled = [next_segment(&store, b), next_segment(&store, b)].concat();
    now(store.record(filled.into_iter().map(|place| answered(place, "")).collect())).unwrap();
    now(store.sweep(LATER)).unwrap();
    assert_eq!(idle(), [], "its batch goes on");
    now(store.end(id, Timestamp(2000), "done")).unwrap();
    now(store.sweep(LATER)).unwrap();
    let found = idle();
    assert_eq!(found, [IdleLane { id: a, next: Seq(1) }]);
    // What came to it after it was found keeps it.
    let late = append(&store, a, "late");
    assert_eq!(now(store.remove_lanes(found)).unwrap(), []);
    now(store.record(vec![answered(late, "")])).unwrap();
    let c = lane("c");
    let filled = [next_segment(&store, c), next_segment(&store, c)].concat();
    now(store.record(filled.into_iter().map(|place| answered(place, "")).collect())).unwrap();
    now(store.sweep(LATER)).unwrap();
    let found = idle();
    assert_eq!(found.iter().map(|idle| idle.id).collect::<Vec<_>>(), [a, b]);
    // Without room it is taken back.
    disk.limit_bytes(Some(disk.bytes()));
    assert!(matches!(now(store.remove_lanes(found.clone())), Err(StoreError::Full(_))));
    disk.limit_bytes(None);
    assert_eq!(now(store.remove_lanes(found.clone())).unwrap(), [a, b]);
    assert_eq!(now(store.remove_lanes(found)).unwrap(), []);
    assert_eq!((store.lane_key(a), idle()), (None, Vec::new()));
    assert!(matches!(now(store.append(request(a, "x"))), Err(StoreError::UnknownLane(_))));
    check_index(&store, &disk);
    assert_eq!(lane("a"), LaneId(3));
    // The same after a crash, whatever of it was in the index.
    drop(store);
    let (store, recovered) = open(&disk.after_power_failure(&mut || false));
    assert_eq!(recovered.lanes.iter().map(|lane| lane.id).collect::<Vec<_>>(), [c, LaneId(3)]);
    assert_eq!(now(store.lane(&lane_key("b"))).unwrap(), LaneId(4));
}
