//! A disk that runs full and has room again.

use super::*;
use crate::StoreError;

#[test]
fn a_full_log_refuses_and_goes_on_by_itself() {
    let disk = MemoryDisk::new();
    let (store, _) = open(&disk);
    let lane = now(store.lane(&lane_key("a"))).unwrap();
    append(&store, lane, "before");
    now(store.checkpoint()).unwrap();
    let seen = dump_of_copy(&disk);
    disk.limit_bytes(Some(disk.bytes() + 100));
    for _ in 0..3 {
        let refused = now(store.append(request(lane, &"x".repeat(200))));
        assert!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
    }
    assert!(matches!(now(store.lane(&lane_key(&"b".repeat(99)))), Err(StoreError::Full(_))));
    assert_eq!(dump_of_copy(&disk), seen);
    disk.limit_bytes(None);
    assert_eq!(append(&store, lane, "after").seq, Seq(1));
    assert_eq!(now(store.lane(&lane_key("b"))).unwrap(), LaneId(1));
    let all = now(store.requests(range(lane, 0, 9), usize::MAX)).unwrap();
    let bodies: Vec<_> = all.entries.iter().map(|entry| entry.body.clone()).collect();
    assert_eq!(bodies, ["before", "after"]);
}

#[test]
fn whatever_step_of_the_disk_fails_the_store_goes_on_by_itself() {
    for failing in 1..120 {
        let disk = MemoryDisk::new();
        let (store, _) = open(&disk);
        let lane = now(store.lane(&lane_key("a"))).unwrap();
        let from = disk.steps() + failing;
        disk.fail_steps(from..from + 1);
        let kept: Vec<Place> = (0..30)
            .filter_map(|number: u32| {
                match now(store.append(request(lane, &format!("{number} {}", "x".repeat(200))))) {
                    Ok(Appended::New(place)) => Some(place),
                    _ => None,
                }
            })
            .collect();
        assert!(kept.len() >= 28, "step {failing}: one failure costs at most two calls");
        // Whoever looks waits until the index has everything: `now` takes no waiting.
        for place in kept {
            assert!(now(store.entry(place)).unwrap().is_some(), "step {failing}");
        }
    }
}

#[test]
fn everything_planned_in_a_refused_group_is_taken_back() {
    let disk = MemoryDisk::new();
    let (store, _) = open(&disk);
    let lane = now(store.lane(&lane_key("a"))).unwrap();
    let places: Vec<Place> = (0..4).map(|number| append(&store, lane, &number.to_string())).collect();
    let id = now(store.seal(batch(vec![range(lane, 0, 1)]))).unwrap();
    now(store.checkpoint()).unwrap();
    let seen = dump_of_copy(&disk);
    disk.limit_bytes(Some(disk.bytes() + 60));
    let is_full =
        |error: Option<StoreError>| assert!(matches!(error, Some(StoreError::Full(_))), "{error:?}");
    is_full(now(store.seal(batch(vec![range(lane, 1, 3)]))).err());
    is_full(now(store.advance(id, Bytes::from(vec![0; 99]))).err());
    is_full(now(store.end(id, Timestamp(1), &"x".repeat(99))).err());
    is_full(now(store.record(vec![answered(places[0], "1"), requeued(places[1], lane)])).err());
    disk.limit_bytes(None);
    assert_eq!(dump_of_copy(&disk), seen);
    // Each of them works now, with the numbers that it would have got.
    let second = now(store.seal(batch(vec![range(lane, 1, 3)]))).unwrap();
    assert_eq!(second.0, id.0 + 1);
    now(store.advance(id, Bytes::from_static(b"on"))).unwrap();
    assert_eq!(now(store.batch(id)).unwrap().unwrap().version, 1);
    now(store.end(id, Timestamp(1), "done")).unwrap();
    let recorded = now(store.record(vec![answered(places[0], "1"), requeued(places[1], lane)])).unwrap();
    let requeued = Some(Place { lane, seq: Seq(4) });
    assert_eq!(
        recorded,
        [
            crate::Recorded::New { origin: places[0], requeued: None },
            crate::Recorded::New { origin: places[1], requeued },
        ]
    );
}

#[test]
fn an_index_without_room_follows_again_when_there_is_some() {
    // The room ends at many different moments of the index's life.
    for room in (2000..40_000).step_by(1500) {
        let disk = MemoryDisk::new();
        let (store, _) = open(&disk);
        let lane = now(store.lane(&lane_key("a"))).unwrap();
        disk.limit_bytes(Some(disk.bytes() + room));
        let mut stored = Vec::new();
        let mut refused = 0;
        for number in 0..60 {
            match now(store.append(request(lane, &format!("{number} {}", "x".repeat(500))))) {
                Ok(Appended::New(place)) => stored.push((place, number)),
                Ok(other) => panic!("{other:?}"),
                Err(StoreError::Full(_)) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
        assert!(refused > 0, "room {room}");
        disk.limit_bytes(None);
        let place = append(&store, lane, "60 after");
        stored.push((place, 60));
        for (place, number) in stored {
            let entry = now(store.entry(place)).unwrap().unwrap();
            assert!(entry.body.starts_with(format!("{number} ").as_bytes()), "room {room}");
        }
    }
}
