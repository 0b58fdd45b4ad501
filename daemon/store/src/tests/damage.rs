//! A disk that changes what was written.

use super::*;
use crate::StoreError;
use crate::disk::Disk;

const LANE: LaneId = LaneId(0);

/// A lane with so many requests, each a group of its own; returns where each record begins.
fn lane_with(disk: &Arc<MemoryDisk>, requests: u64) -> Vec<u64> {
    let (store, _) = open(disk);
    now(store.lane(&lane_key("a"))).unwrap();
    (0..requests)
        .map(|number| {
            let begin = disk.open(1).unwrap().len().unwrap();
            append(&store, LANE, &format!("body number {number}"));
            begin
        })
        .collect()
}

fn places(store: &Store) -> Vec<u64> {
    let chunk = now(store.requests(range(LANE, 0, 100), usize::MAX)).unwrap();
    chunk.entries.iter().map(|entry| entry.place.seq.0).collect()
}

#[test]
fn a_damaged_record_is_reported_kept_aside_and_stepped_over() {
    for (at, part) in [(0, "magic"), (5, "checksum"), (13, "length"), (40, "head"), (120, "body")] {
        let disk = MemoryDisk::new();
        let begins = lane_with(&disk, 5);
        disk.remove_index().unwrap();
        let place = usize::try_from(begins[2]).unwrap() + at;
        disk.damage(1, |bytes| bytes[place] ^= 0x40);
        let (store, recovered) = open(&disk);
        assert_eq!(places(&store), [0, 1, 3, 4], "{part}");
        let length = begins[3] - begins[2];
        let kept: u64 = disk.quarantined().values().map(|bytes| bytes.len() as u64).sum();
        let damaged = recovered.quarantined.first().copied().unwrap();
        assert_eq!((u64::from(damaged.offset), damaged.bytes), (begins[2], length), "{part}");
        assert_eq!(kept, length, "{part}");
        // The lane goes on behind its last entry.
        assert_eq!(append(&store, LANE, "next").seq, Seq(5));
        assert_eq!(recovered.lanes[0].extents.iter().map(|extent| extent.count).sum::<u32>(), 4);
    }
}

#[test]
fn damage_in_the_last_group_is_a_torn_tail() {
    let disk = MemoryDisk::new();
    let begins = lane_with(&disk, 3);
    disk.remove_index().unwrap();
    let place = usize::try_from(begins[2]).unwrap() + 50;
    disk.damage(1, |bytes| bytes[place] ^= 1);
    let (store, recovered) = open(&disk);
    assert_eq!((places(&store), recovered.quarantined.len()), (vec![0, 1], 0));
    assert!(recovered.cut_off_bytes > 50);
    assert_eq!(append(&store, LANE, "next").seq, Seq(2));
}

#[test]
fn a_torn_group_leaves_nothing_behind_its_tear() {
    let disk = MemoryDisk::new();
    lane_with(&disk, 3);
    let (store, _) = open(&disk);
    let begin = usize::try_from(disk.open(1).unwrap().len().unwrap()).unwrap();
    let at = |seq| Place { lane: LANE, seq: Seq(seq) };
    let body = "y".repeat(400);
    now(store.record((0..3).map(|seq| answered(at(seq), &body)).collect())).unwrap();
    drop(store);
    disk.remove_index().unwrap();
    // The disk wrote the second outcome's sectors before the power went, and the first one's not.
    disk.damage(1, |bytes| bytes[begin..begin + 300].fill(0));
    let (store, recovered) = open(&disk);
    assert_eq!((places(&store), recovered.quarantined.len()), (vec![0, 1, 2], 0));
    // What was cut off does not come back when the log grows over it.
    append(&store, LANE, "next");
    drop(store);
    disk.remove_index().unwrap();
    let (store, recovered) = open(&disk);
    assert_eq!((places(&store), recovered.quarantined.len()), (vec![0, 1, 2, 3], 0));
}

#[test]
fn what_a_failed_sync_left_is_cut_off_before_the_log_goes_on() {
    let disk = MemoryDisk::new();
    lane_with(&disk, 3);
    let (store, _) = open(&disk);
    let at = |seq| Place { lane: LANE, seq: Seq(seq) };
    // The write works, but neither the sync nor cutting off what was written.
    disk.fail_steps(disk.steps() + 2..disk.steps() + 4);
    let refused = now(store.record(vec![answered(at(0), "x"), answered(at(1), "x")]));
    assert!(matches!(refused, Err(StoreError::Io(_))), "{refused:?}");
    // This is as long as the first of those; behind it the second would still be valid.
    now(store.record(vec![answered(at(2), "x")])).unwrap();
    drop(store);
    disk.remove_index().unwrap();
    let (store, recovered) = open(&disk);
    assert_eq!((places(&store), recovered.quarantined.len()), (vec![0, 1], 0));
}

#[test]
fn damage_at_the_end_of_an_older_segment_is_no_torn_tail() {
    let disk = MemoryDisk::new();
    let (store, _) = open(&disk);
    let lane = now(store.lane(&lane_key("a"))).unwrap();
    let mut last = 0;
    while disk.segments().unwrap() == [1] {
        last = disk.open(1).unwrap().len().unwrap();
        append(&store, lane, &"x".repeat(300));
    }
    drop(store);
    let before = last - 350;
    disk.remove_index().unwrap();
    disk.damage(1, |bytes| {
        let from = usize::try_from(before).unwrap();
        bytes[from..].iter_mut().for_each(|byte| *byte ^= 0x55);
    });
    let (_, recovered) = open(&disk);
    assert_eq!(recovered.cut_off_bytes, 0);
    assert_eq!(recovered.quarantined.len(), 1);
}

#[test]
fn damage_found_later_is_an_error_and_others_are_not_touched() {
    let disk = MemoryDisk::new();
    let begins = lane_with(&disk, 3);
    let (store, _) = open(&disk);
    let place = usize::try_from(begins[1]).unwrap() + 110;
    disk.damage(1, |bytes| bytes[place] ^= 1);
    let at = |seq| Place { lane: LANE, seq: Seq(seq) };
    assert!(now(store.entry(at(0))).unwrap().is_some());
    let found = now(store.entry(at(1)));
    assert!(matches!(found, Err(StoreError::Corrupt { segment: 1, .. })), "{found:?}");
    assert!(now(store.entry(at(2))).unwrap().is_some());
}

#[test]
fn what_waits_is_told_without_its_bodies_so_that_a_damaged_one_is_in_nobodys_way() {
    let disk = MemoryDisk::new();
    let begins = lane_with(&disk, 3);
    let (store, _) = open(&disk);
    let at = |seq| Place { lane: LANE, seq: Seq(seq) };
    now(store.record(vec![requeued(at(0), LANE), answered(at(2), "done")])).unwrap();
    let place = usize::try_from(begins[1]).unwrap() + 110;
    disk.damage(1, |bytes| bytes[place] ^= 1);
    let chunk = now(store.requests(range(LANE, 0, 4), 1000)).unwrap();
    let read: Vec<_> = chunk.entries.iter().map(|entry| entry.place).collect();
    assert_eq!(read, [at(3)], "the others can be had");
    let [damaged] = &chunk.damaged[..] else { panic!("{:?}", chunk.damaged) };
    assert_eq!(damaged.waiting.place(), at(1));
    assert!(matches!(damaged.why, StoreError::Corrupt { segment: 1, .. }), "{:?}", damaged.why);
    assert_eq!(now(store.about(at(1))).unwrap(), Some(damaged.waiting));
    let waiting = now(store.waiting(range(LANE, 0, 4))).unwrap();
    let told: Vec<_> = waiting.iter().map(|one| (one.place(), one.origin, one.attempts, one.due)).collect();
    let later = Timestamp(9000);
    assert_eq!(told, [(at(1), at(1), 0, Timestamp(5000)), (at(3), at(0), 1, later)]);
    assert!(waiting.iter().all(|one| one.extent.count == 1 && one.extent.bytes > 0));
    // And it can get its outcome.
    let recorded = now(store.record(vec![answered(at(1), "sorry")])).unwrap();
    assert_eq!(recorded, [crate::Recorded::New { origin: at(1), requeued: None }]);
}

#[test]
fn a_body_cannot_pass_for_a_record() {
    let disk = MemoryDisk::new();
    let begins = lane_with(&disk, 2);
    // A client that knows the format sends a copy of a record as a body.
    let end = disk.open(1).unwrap().len().unwrap();
    let mut forged = vec![0; usize::try_from(end - begins[1]).unwrap()];
    disk.open(1).unwrap().read_at(begins[1], &mut forged).unwrap();
    let (store, _) = open(&disk);
    let begin = end;
    let body = Bytes::from(forged);
    now(store.append(NewRequest { body, ..request(LANE, "") })).unwrap();
    append(&store, LANE, "after");
    drop(store);
    disk.remove_index().unwrap();
    disk.damage(1, |bytes| bytes[usize::try_from(begin).unwrap()] ^= 1);
    let (store, recovered) = open(&disk);
    assert_eq!(places(&store), [0, 1, 3]);
    assert_eq!(recovered.quarantined.len(), 1);
}

#[test]
fn a_lost_segment_is_reported() {
    let disk = MemoryDisk::new();
    // The index is not made durable meanwhile, so that all is read from the log.
    let behind = Options { checkpoint_bytes: u64::MAX, ..options() };
    let (store, _) = Store::open_on(disk.clone(), behind, Timestamp(0)).unwrap();
    let lane = now(store.lane(&lane_key("a"))).unwrap();
    while disk.segments().unwrap().len() < 3 {
        append(&store, lane, &"x".repeat(300));
    }
    let disk = disk.after_power_failure(&mut || false);
    disk.remove(2).unwrap();
    let (store, recovered) = open(&disk);
    assert_eq!(recovered.quarantined, [crate::Quarantined { segment: 2, offset: 0, bytes: 0 }]);
    assert!(places(&store).len() > 5);
}

#[test]
fn an_index_that_is_not_one_is_made_again_only_from_a_whole_log() {
    let disk = MemoryDisk::new();
    let (store, _) = open(&disk);
    let lane = now(store.lane(&lane_key("a"))).unwrap();
    while disk.segments().unwrap().len() < 3 {
        append(&store, lane, &"x".repeat(300));
    }
    drop(store);
    disk.damage_index(|bytes| bytes[..4096].fill(0));
    let seen = dump_of_copy(&disk);
    assert_eq!(seen.lanes[0].waiting.len() as u64, seen.lanes[0].next);
    disk.remove(2).unwrap();
    let opened = Store::open_on(disk, options(), Timestamp(0));
    assert!(matches!(opened, Err(StoreError::Io(_))), "{opened:?}");
}

#[test]
fn a_lost_last_segment_is_reported_and_the_log_goes_on_in_a_new_one() {
    let disk = MemoryDisk::new();
    let (store, _) = open(&disk);
    let lane = now(store.lane(&lane_key("a"))).unwrap();
    append(&store, lane, "one");
    now(store.close()).unwrap();
    disk.remove(1).unwrap();
    let (store, recovered) = open(&disk);
    assert_eq!(recovered.quarantined.len(), 1);
    let place = append(&store, lane, "two");
    assert_eq!(place.seq, Seq(1));
    drop(store);
    let (store, recovered) = open(&disk);
    assert_eq!(recovered.quarantined, []);
    assert_eq!(now(store.entry(place)).unwrap().unwrap().body, "two");
}

#[test]
fn segments_without_an_index_are_refused_when_the_first_are_gone() {
    let disk = MemoryDisk::new();
    let (store, _) = open(&disk);
    let lane = now(store.lane(&lane_key("a"))).unwrap();
    while disk.segments().unwrap().len() < 2 {
        append(&store, lane, &"x".repeat(300));
    }
    drop(store);
    disk.remove_index().unwrap();
    disk.remove(1).unwrap();
    let opened = Store::open_on(disk, options(), Timestamp(0));
    assert!(matches!(opened, Err(StoreError::IndexMissing)));
}

#[test]
fn a_folder_of_a_later_version_is_refused() {
    let disk = MemoryDisk::new();
    lane_with(&disk, 1);
    disk.remove_index().unwrap();
    let header = crate::log::segment::Header { schema: 99, segment: 1, install: 0x5eed };
    disk.damage(1, |bytes| bytes[..64].copy_from_slice(&header.encode()));
    let opened = Store::open_on(disk, options(), Timestamp(0));
    assert!(matches!(opened, Err(StoreError::SchemaTooNew { found: 99, .. })));
}
