//! Checking a store that nobody has open, and giving back its room.

use super::*;
use crate::disk::Disk;
use crate::{Audit, StoreError};

fn check(disk: &MemoryDisk) -> Audit {
    Store::check_on(disk, &options()).unwrap()
}

/// Some of everything: two lanes, finished, failed, waiting and sealed requests, over several segments.
fn lived() -> Arc<MemoryDisk> {
    let disk = MemoryDisk::new();
    let (store, _) = open(&disk);
    let (a, b) = (now(store.lane(&lane_key("a"))).unwrap(), now(store.lane(&lane_key("b"))).unwrap());
    for number in 0..40 {
        append(&store, a, &format!("{number} {}", "x".repeat(300)));
    }
    let id = now(store.seal(batch(vec![range(a, 0, 30)]))).unwrap();
    let at = |seq| Place { lane: a, seq: Seq(seq) };
    now(store.record((0..20).map(|seq| answered(at(seq), &"y".repeat(200))).collect())).unwrap();
    now(store.record(vec![requeued(at(20), b)])).unwrap();
    now(store.advance(id, Bytes::from_static(b"on"))).unwrap();
    now(store.close()).unwrap();
    disk
}

#[test]
fn a_healthy_store_has_no_findings() {
    let disk = lived();
    let audit = check(&disk);
    assert!(audit.is_healthy(), "{audit:?}");
    assert_eq!((audit.lanes, audit.requests, audit.answers, audit.open_batches), (2, 40, 20, 1));
    assert_eq!((audit.unfinished, audit.behind_index, audit.torn_bytes), (20, 0, 0));
    assert!(audit.segments > 3 && audit.records >= 64, "{audit:?}");
    // It has changed nothing, and the store can be opened.
    assert_eq!(check(&disk), audit);
    open(&disk);
}

#[test]
fn a_crash_is_no_damage() {
    let disk = MemoryDisk::new();
    let (store, _) = open(&disk);
    let lane = now(store.lane(&lane_key("a"))).unwrap();
    for _ in 0..3 {
        append(&store, lane, "body");
    }
    // The last write is torn.
    let end = usize::try_from(disk.open(1).unwrap().len().unwrap()).unwrap();
    append(&store, lane, &"z".repeat(900));
    let disk = disk.after_power_failure(&mut || true);
    disk.damage(1, |bytes| bytes[end + 600..].fill(0));
    let audit = check(&disk);
    assert!(audit.is_healthy(), "{audit:?}");
    assert!(audit.behind_index >= 4 && audit.torn_bytes > 100, "{audit:?}");
    assert_eq!(open(&disk).1.replayed, audit.behind_index);
}

#[test]
fn every_kind_of_damage_is_found() {
    type Harm = fn(&MemoryDisk);
    let harms: [(&str, Harm); 4] = [
        ("segment 2 is damaged at byte", |disk| disk.damage(2, |bytes| bytes[500] ^= 1)),
        ("requests of segment 2 cannot be read", |disk| disk.damage(2, |bytes| bytes[500] ^= 1)),
        ("the file of segment 3 is gone", |disk| disk.remove(3).unwrap()),
        ("cannot be read", |disk| disk.remove(3).unwrap()),
    ];
    for (expected, harm) in harms {
        let disk = lived();
        harm(&disk);
        let audit = check(&disk);
        assert!(audit.findings.iter().any(|text| text.contains(expected)), "{expected}: {audit:?}");
        assert_eq!(disk.quarantined().len(), 0, "nothing is written");
    }
}

#[test]
fn a_damaged_index_is_found() {
    let disk = lived();
    // Each page of the index in turn; most hold something.
    let pages = usize::try_from(disk.index_bytes()).unwrap() / 4096;
    let mut found = 0;
    for page in 1..pages {
        let disk = lived();
        disk.damage_index(|bytes| {
            bytes[page * 4096 + 8..page * 4096 + 40].iter_mut().for_each(|b| *b ^= 0x5a);
        });
        found +=
            usize::from(!Store::check_on(disk.as_ref(), &options()).is_ok_and(|audit| audit.is_healthy()));
    }
    assert!(found > 5, "{found} of {pages}");
}

#[test]
fn a_store_in_use_and_one_that_is_not_there_are_refused() {
    let disk = MemoryDisk::new();
    let refused = Store::check_on(disk.as_ref(), &options());
    assert!(matches!(refused, Err(StoreError::NoIndex { .. })), "{refused:?}");
    let (_store, _) = open(&disk);
    for refused in
        [Store::check_on(disk.as_ref(), &options()).err(), Store::compact_on(disk.as_ref(), &options()).err()]
    {
        assert!(matches!(refused, Some(StoreError::Locked { .. })), "{refused:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("not there");
    assert!(matches!(Store::check(&Options::new(&nowhere)), Err(StoreError::NoIndex { .. })));
    assert!(!nowhere.exists());
}

#[test]
fn room_is_given_back_and_nothing_is_lost() {
    let disk = MemoryDisk::new();
    let (store, _) = open(&disk);
    let lane = now(store.lane(&lane_key("a"))).unwrap();
    for number in 0..2000 {
        let place = append(&store, lane, &number.to_string());
        now(store.record(vec![answered(place, "")])).unwrap();
    }
    let kept = append(&store, lane, "kept");
    now(store.sweep(LATER)).unwrap();
    now(store.close()).unwrap();
    let before = check(&disk);
    let compacted = Store::compact_on(disk.as_ref(), &options()).unwrap();
    assert!(compacted.after < compacted.before / 2, "{compacted:?}");
    assert_eq!(disk.index_bytes(), compacted.after);
    let after = check(&disk);
    assert!(after.is_healthy(), "{after:?}");
    assert_eq!(Audit { index_bytes: before.index_bytes, ..after }, before);
    let (store, _) = open(&disk);
    assert_eq!(now(store.entry(kept)).unwrap().unwrap().body, "kept");
}
