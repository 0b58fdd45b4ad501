//! The power fails at every step that the disk takes; what was acknowledged is there afterwards, and nothing else.

use proptest::prelude::*;

use super::*;
use crate::{Idempotency, StoreError};

/// A step of a small life of a store. Each is one operation, so that it is done or not.
type Act = fn(&Store) -> Result<(), StoreError>;

const A: LaneId = LaneId(0);
const B: LaneId = LaneId(1);

const fn at(lane: LaneId, seq: u64) -> Place {
    Place { lane, seq: Seq(seq) }
}

fn add(store: &Store, lane: LaneId, body: &str) -> Result<(), StoreError> {
    now(store.append(request(lane, body))).map(|_| ())
}

fn record(store: &Store, outcomes: Vec<NewOutcome>) -> Result<(), StoreError> {
    now(store.record(outcomes)).map(|_| ())
}

fn add_with_key(store: &Store, body: &str) -> Result<(), StoreError> {
    let idempotency = Some(Idempotency { key: [7; 16], expires: Timestamp(9000) });
    now(store.append(NewRequest { idempotency, ..request(A, body) })).map(|_| ())
}

const LIFE: &[Act] = &[
    |store| now(store.lane(&lane_key("a"))).map(|_| ()),
    |store| add(store, A, "one"),
    |store| add(store, A, &"two".repeat(400)),
    |store| now(store.lane(&lane_key("b"))).map(|_| ()),
    |store| add(store, B, "three"),
    |store| add_with_key(store, "four"),
    |store| now(store.seal(batch(vec![range(A, 0, 2)]))).map(|_| ()),
    |store| now(store.advance(offpeak_core::words::BatchId(1), Bytes::from_static(b"sent"))),
    |store| record(store, vec![answered(at(A, 0), "1"), requeued(at(A, 1), B)]),
    |store| add(store, B, &"five".repeat(600)),
    |store| now(store.end(offpeak_core::words::BatchId(1), Timestamp(2100), "done")),
    |store| record(store, vec![answered(at(B, 1), &"2".repeat(900)), answered(at(A, 0), "again")]),
    |store| now(store.seal(batch(vec![range(B, 0, 2), range(A, 2, 3)]))).map(|_| ()),
    |store| add(store, A, &"six".repeat(300)),
    |store| now(store.sweep(LATER)).map(|_| ()),
    |store| record(store, vec![answered(at(B, 0), "3"), answered(at(A, 2), "4")]),
    |store| add(store, A, "seven"),
    |store| now(store.sweep(LATER)).map(|_| ()),
    |store| add(store, B, "eight"),
];

/// What is seen after each act, nothing failing; the first is the empty store.
fn healthy() -> (Vec<Dump>, u64) {
    let disk = MemoryDisk::new();
    let (store, _) = open(&disk);
    let mut seen = vec![dump_of_copy(&disk)];
    for act in LIFE {
        act(&store).unwrap();
        seen.push(dump_of_copy(&disk));
    }
    (seen, disk.steps())
}

/// Lives until the power fails; returns how many acts were acknowledged.
fn live(disk: &Arc<MemoryDisk>, power_off_at: u64) -> usize {
    disk.power_off_at(power_off_at);
    let Ok((store, _)) = Store::open_on(disk.clone(), options(), Timestamp(0)) else { return 0 };
    LIFE.iter().take_while(|act| act(&store).is_ok()).count()
}

/// A different but repeatable luck for every step.
fn luck(seed: u64) -> impl FnMut() -> bool {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        match seed % 4 {
            0 => false,
            1 => true,
            _ => state & 8 == 0,
        }
    }
}

fn check_crash_at(step: u64, seen: &[Dump]) {
    let disk = MemoryDisk::new();
    let acknowledged = live(&disk, step);
    let disk = disk.after_power_failure(&mut luck(step));
    let (store, recovered) = open(&disk);
    assert_eq!(recovered.quarantined, [], "step {step}");
    check_index(&store, &disk);
    let found = dump(&store, &recovered);
    let may_be = &seen[acknowledged..seen.len().min(acknowledged + 2)];
    assert!(may_be.contains(&found), "step {step}, {acknowledged} acknowledged:\n{found:#?}\n{may_be:#?}");
    // It goes on from there as if nothing had been.
    now(store.lane(&lane_key("new"))).unwrap();
    drop(store);
    assert_eq!(dump_of_copy(&disk).lanes.len(), found.lanes.len() + 1, "step {step}");
}

#[test]
fn what_was_acknowledged_survives_a_power_failure_at_any_step() {
    let (seen, steps) = healthy();
    assert!(steps > 100, "only {steps} steps");
    for step in 1..=steps {
        check_crash_at(step, &seen);
    }
}

#[test]
fn a_second_power_failure_while_the_first_is_mended_does_no_harm() {
    let (seen, steps) = healthy();
    for step in (1..=steps).step_by(29) {
        let disk = MemoryDisk::new();
        let acknowledged = live(&disk, step);
        for again in 1.. {
            let mut disk = disk.after_power_failure(&mut luck(step));
            disk.power_off_at(again);
            let opened = Store::open_on(disk.clone(), options(), Timestamp(0)).is_ok();
            disk = disk.after_power_failure(&mut luck(step + again));
            let (store, recovered) = open(&disk);
            let found = dump(&store, &recovered);
            let may_be = &seen[acknowledged..seen.len().min(acknowledged + 2)];
            assert!(may_be.contains(&found), "step {step}, then {again}");
            if opened {
                break;
            }
        }
    }
}

#[test]
fn the_same_log_gives_the_same_index() {
    let disk = MemoryDisk::new();
    let (store, _) = open(&disk);
    for act in LIFE
        .iter()
        .filter(|act| !std::ptr::fn_addr_eq(**act, LIFE[14]) && !std::ptr::fn_addr_eq(**act, LIFE[17]))
    {
        act(&store).unwrap();
    }
    let followed = dump_of_copy(&disk);
    let copy = disk.after_power_failure(&mut || true);
    crate::disk::Disk::remove_index(copy.as_ref()).unwrap();
    let (store, recovered) = open(&copy);
    assert_eq!(dump(&store, &recovered), followed);
    assert!(recovered.replayed > 10);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_log_cut_anywhere_is_a_shorter_life(cut: prop::sample::Index) {
        // One segment, so that every cut is at the log's end.
        let whole = || Options { segment_bytes: 1 << 20, ..options() };
        let disk = MemoryDisk::new();
        let (store, _) = Store::open_on(disk.clone(), whole(), Timestamp(0)).unwrap();
        let mut ends = Vec::new();
        let mut seen = Vec::new();
        let look = |disk: &MemoryDisk| {
            let copy = disk.after_power_failure(&mut || true);
            crate::disk::Disk::remove_index(copy.as_ref()).unwrap();
            let (store, recovered) = Store::open_on(copy, whole(), Timestamp(0)).unwrap();
            dump(&store, &recovered)
        };
        seen.push(look(&disk));
        for act in &LIFE[..14] {
            act(&store).unwrap();
            seen.push(look(&disk));
            let end = crate::disk::Disk::open(disk.as_ref(), 1).unwrap().len().unwrap();
            ends.push(usize::try_from(end).unwrap());
        }
        let cut = cut.index(ends.last().unwrap() + 1);
        let copy = disk.after_power_failure(&mut || true);
        crate::disk::Disk::remove_index(copy.as_ref()).unwrap();
        copy.damage(1, |bytes| bytes.truncate(cut));
        let (store, recovered) = Store::open_on(copy, whole(), Timestamp(0)).unwrap();
        prop_assert_eq!(&recovered.quarantined, &[]);
        let found = dump(&store, &recovered);
        // An act of several records may be cut in the middle: then its first records are there.
        let complete = ends.iter().filter(|&&end| end <= cut).count();
        let is_between = complete == 8 || complete == 11;
        prop_assert!(is_between || found == seen[complete], "cut at {}", cut);
    }
}
